//! What a packet that is a part of another says of its place in the whole (RFC 791, section 3.2;
//! RFC 8200, section 4.5).

use super::field::u16_at;
use super::{FlowKey, PacketFlags, PacketMeta, ipv4, ipv6};

/// A fragment, as its headers tell.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fragment {
    /// The same in all fragments of a whole.
    pub id: u32,
    /// Bytes of the whole's payload before this one's.
    pub from: u32,
    /// Bytes of the whole's payload up to this one's end.
    pub to: u32,
    /// It is not the last one.
    pub more: bool,
}

impl Fragment {
    /// Reads a packet that [`crate::packet::parse`] has found to be a fragment; `None` for others.
    pub fn read(bytes: &[u8], meta: &PacketMeta) -> Option<Fragment> {
        if !meta.flags.has(PacketFlags::FRAGMENT) {
            return None;
        }
        let (l3, l4, end) = (usize::from(meta.l3), usize::from(meta.l4), usize::from(meta.end));
        let ip = bytes.get(l3..end)?;
        let (id, units, more, begin) = if meta.is_v4() {
            let head = ip.first_chunk::<{ ipv4::HEADER_LEN }>()?;
            let field = u16_at(head, ipv4::offset::FRAGMENT);
            let id = u32::from(u16_at(head, ipv4::offset::IDENTIFICATION));
            (id, field & ipv4::OFFSET_MASK, field & ipv4::MORE_FRAGMENTS != 0, l4)
        } else {
            let found = ipv6::View::new_checked(ip).ok()?.upper().ok()?.fragment?;
            let begin = l3 + ipv6::HEADER_LEN + found.behind;
            (found.identification, found.offset, found.more, begin)
        };
        let len = end.checked_sub(begin)? as u32;
        let from = 8 * u32::from(units);
        Some(Fragment { id, from, to: from + len, more })
    }

    /// What all fragments of a whole have in common, in the place of ports their identification.
    /// The protocol is part of it with IPv4 only: later fragments of IPv6 may name an extension
    /// header that the first one has.
    pub fn key(&self, meta: &PacketMeta) -> FlowKey {
        let (sport, dport) = ((self.id >> 16) as u16, self.id as u16);
        let proto = if meta.is_v4() { meta.key.proto } else { 0 };
        FlowKey { sport, dport, proto, ..meta.key }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::{Addr, Seed};
    use crate::packet::build::{IpSpec, LinkSpec, UdpSpec, ip_packet, udp_packet};
    use crate::packet::{ParseOptions, parse};

    fn read(bytes: &[u8]) -> Option<Fragment> {
        let mut meta = PacketMeta::default();
        parse(bytes, Seed(1), ParseOptions::default(), &mut meta).expect("a good packet");
        Fragment::read(bytes, &meta)
    }

    #[test]
    fn both_families_tell_their_place() {
        for (src, dst) in [("192.0.2.1", "198.51.100.1"), ("2001:db8::1", "2001:db8::2")] {
            let [src, dst]: [Addr; 2] = [src, dst].map(|a| a.parse().expect("literal"));
            let mut ip = IpSpec::new(src, dst);
            ip.identification = 0xbeef;
            ip.fragment = ipv4::MORE_FRAGMENTS | 50;
            ip.extensions = vec![(44, vec![0, 0, 0x01, 0x91, 0, 1, 0xbe, 0xef])];
            for link in [LinkSpec::default(), LinkSpec::vlan(7)] {
                let id = if src.is_v4() { 0xbeef } else { 0x1_beef };
                let want = Fragment { id, from: 400, to: 416, more: true };
                assert_eq!(read(&ip_packet(&link, &ip, 17, &[0; 16])), Some(want));
            }
            assert_eq!(read(&udp_packet(&UdpSpec::new((src, 1), (dst, 2), b"whole"))), None);
        }
    }

    /// Headers behind the fragment header are of what is fragmented: later ones could write over
    /// the first one's ports otherwise, and no overlap be seen.
    #[test]
    fn extension_headers_of_the_whole_count() {
        let [src, dst] = ["2001:db8::1", "2001:db8::2"].map(|a| a.parse().expect("literal"));
        let mut ip = IpSpec::new(src, dst);
        let options = vec![0, 0, 1, 4, 0, 0, 0, 0];
        ip.extensions = vec![(44, vec![0, 0, 0, 1, 0, 0, 0, 7]), (60, options)];
        let udp = [0, 1, 0, 2, 1, 0, 0, 0, 1, 2, 3, 4, 5, 6, 7, 8];
        let want = Fragment { id: 7, from: 0, to: 24, more: true };
        assert_eq!(read(&ip_packet(&LinkSpec::default(), &ip, 17, &udp)), Some(want));
    }
}
