//! Explicit congestion notification (RFC 3168): instead of being dropped, a packet of a flow that
//! understands it is marked.

use crate::packet::checksum::update16;
use crate::packet::field::{put_u16, u16_at};

/// Both bits of the field: congestion experienced. Any of them: the flow understands it.
const CE: u8 = 0b11;
const IPV4_HEADER: usize = 20;
const IPV4_CHECKSUM: usize = 10;
/// The traffic class lies across the first two bytes of an IPv6 header.
const IPV6_SHIFT: u32 = 4;

/// Marks a packet whose IP header begins at `l3`, and mends the checksum of an IPv4 header.
/// `false`, changing nothing, where the flow does not understand it, or there is no IP header.
pub(super) fn mark(frame: &mut [u8], l3: usize) -> bool {
    let Some(ip) = frame.get_mut(l3..).filter(|ip| ip.len() >= IPV4_HEADER) else { return false };
    match ip[0] >> 4 {
        4 if ip[1] & CE != 0 => {
            let before = u16_at(ip, 0);
            ip[1] |= CE;
            let check = update16(u16_at(ip, IPV4_CHECKSUM), before, u16_at(ip, 0));
            put_u16(ip, IPV4_CHECKSUM, check);
            true
        }
        6 if (ip[1] >> IPV6_SHIFT) & CE != 0 => {
            ip[1] |= CE << IPV6_SHIFT;
            true
        }
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::Seed;
    use crate::packet::build::{LinkSpec, UdpSpec, udp_packet};
    use crate::packet::{PacketMeta, ParseOptions, parse};

    /// A packet with this TOS byte or traffic class, behind a VLAN tag or not.
    fn packet(tos: u8, is_v4: bool, vlan: bool) -> Vec<u8> {
        let (a, b) = if is_v4 { ("10.0.0.1", "10.0.0.2") } else { ("fd00::1", "fd00::2") };
        let end = |text: &str, port| (text.parse().expect("an address"), port);
        let mut spec = UdpSpec::new(end(a, 1), end(b, 2), b"payload");
        spec.ip.tos = tos;
        if vlan {
            spec.link = LinkSpec::vlan(7);
        }
        udp_packet(&spec)
    }

    fn read(bytes: &mut [u8]) -> PacketMeta {
        let mut meta = PacketMeta::default();
        let options = ParseOptions { verify_transport_checksum: true };
        parse(bytes, Seed(1), options, &mut meta).expect("a packet as any host sends");
        meta
    }

    #[test]
    fn those_who_understand_are_marked_and_stay_whole() {
        for (is_v4, vlan) in [(true, false), (true, true), (false, false), (false, true)] {
            for dscp in [0u8, 0b1011_1000] {
                for (ecn, marked) in [(0, false), (1, true), (2, true), (3, true)] {
                    let mut bytes = packet(dscp | ecn, is_v4, vlan);
                    let before = bytes.clone();
                    let l3 = usize::from(read(&mut bytes).l3);
                    assert_eq!(l3, if vlan { 18 } else { 14 });
                    assert_eq!(mark(&mut bytes, l3), marked);
                    let want = if marked { dscp | 3 } else { dscp };
                    assert_eq!(read(&mut bytes).tos, want, "checksums are verified too");
                    assert!(marked || bytes == before);
                }
            }
        }
    }

    #[test]
    fn what_is_no_ip_packet_is_left_alone() {
        let good = packet(1, true, false);
        for l3 in [0, 13, good.len() - 19, good.len(), usize::from(u16::MAX)] {
            let mut bytes = good.clone();
            assert!(!mark(&mut bytes, l3), "{l3}");
            assert_eq!(bytes, good);
        }
    }
}
