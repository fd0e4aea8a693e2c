//! Rewriting packets on their way through: addresses, ports, TTL, and the checksums over them.
//!
//! Checksums are updated, not made anew (RFC 1624), so that damage done elsewhere stays visible. A
//! partial one is completed first: it holds a part that is about to change.

use crate::flow::SumChange;
use crate::packet::checksum::{FoldedDelta, complete_checksum};
use crate::packet::field::{put_addr, put_u16, put_u32};
use crate::packet::{DropReason, FlowKey, PacketFlags, PacketMeta, eth, ipv4, ipv6, tcp, udp};

/// Gives a TCP or UDP packet the addresses and ports of what `other` is the answer to, and one hop
/// less to live. `change` is [`SumChange::between`] the packet's key and `other`. The families must
/// agree, and the caller has seen that the TTL is above 1. `meta` keeps the key as received. Later
/// fragments have no ports, and no checksum: the first one's covers them, too.
///
/// # Errors
/// [`DropReason::Truncated`] where `meta`'s offsets leave the packet, and
/// [`DropReason::UnsupportedProtocol`] for other protocols; nothing is changed then.
#[inline(always)]
pub fn rewrite(
    bytes: &mut [u8],
    meta: &mut PacketMeta,
    other: &FlowKey,
    change: SumChange,
) -> Result<(), DropReason> {
    debug_assert_eq!(meta.key.dst.is_v4(), other.src.is_v4());
    complete_checksum(bytes, meta);
    let (l3, l4) = (usize::from(meta.l3), usize::from(meta.l4));
    let later = meta.flags.has(PacketFlags::LATER_FRAGMENT);
    if meta.is_v4() {
        // The usual packet, at constant offsets: one look at its length is enough.
        if let (ETH, USUAL_L4_V4) = (l3, l4)
            && meta.key.proto == tcp::PROTOCOL
            && !later
            && let Some(head) = bytes.first_chunk_mut::<{ USUAL_L4_V4 + tcp::HEADER_LEN }>()
        {
            let (ip, segment) = head.split_at_mut(USUAL_L4_V4);
            addresses_v4(&mut ip[ETH..], other, change)?;
            return ports(segment, tcp::PROTOCOL, other, change);
        }
    }
    let (head, segment) = bytes.split_at_mut_checked(l4).ok_or(DropReason::Truncated)?;
    let ip = head.get_mut(l3..).ok_or(DropReason::Truncated)?;
    match meta.key.proto {
        tcp::PROTOCOL | udp::PROTOCOL if later => {}
        tcp::PROTOCOL if segment.len() >= tcp::HEADER_LEN => {}
        udp::PROTOCOL if segment.len() >= udp::HEADER_LEN => {}
        tcp::PROTOCOL | udp::PROTOCOL => return Err(DropReason::Truncated),
        _ => return Err(DropReason::UnsupportedProtocol),
    }
    if meta.is_v4() {
        addresses_v4(ip, other, change)?;
    } else {
        addresses_v6(ip, other)?;
    }
    if later {
        return Ok(());
    }
    ports(segment, meta.key.proto, other, change)
}

const ETH: usize = eth::HEADER_LEN;
const USUAL_L4_V4: usize = ETH + ipv4::HEADER_LEN;

#[inline(always)]
fn addresses_v4(ip: &mut [u8], other: &FlowKey, change: SumChange) -> Result<(), DropReason> {
    let ip: &mut [u8; ipv4::HEADER_LEN] = ip.first_chunk_mut().ok_or(DropReason::Truncated)?;
    put_u32(ip, ipv4::offset::SOURCE, other.dst.v4_bits());
    put_u32(ip, ipv4::offset::DESTINATION, other.src.v4_bits());
    take_hop_v4(ip, change.ip);
    Ok(())
}

/// With a routing header another destination counts for the pseudo-header, and the sum comes out
/// wrong: who sends such packets to a service gets no answer.
#[inline(always)]
fn addresses_v6(ip: &mut [u8], other: &FlowKey) -> Result<(), DropReason> {
    let ip: &mut [u8; ipv6::HEADER_LEN] = ip.first_chunk_mut().ok_or(DropReason::Truncated)?;
    put_addr(ip, ipv6::offset::SOURCE, other.dst);
    put_addr(ip, ipv6::offset::DESTINATION, other.src);
    take_hop_v6(ip);
    Ok(())
}

/// `segment` holds a whole header of `proto`.
#[inline(always)]
fn ports(
    segment: &mut [u8],
    proto: u8,
    other: &FlowKey,
    change: SumChange,
) -> Result<(), DropReason> {
    put_u16(segment, 0, other.dport);
    put_u16(segment, 2, other.sport);
    if proto == tcp::PROTOCOL {
        let check = segment[tcp::offset::CHECKSUM..].first_chunk_mut();
        change.transport.apply(check.ok_or(DropReason::Truncated)?);
    } else {
        let check = segment[udp::offset::CHECKSUM..].first_chunk_mut();
        change.transport.apply_udp(check.ok_or(DropReason::Truncated)?);
    }
    Ok(())
}

/// Takes one off the TTL or hop limit, which the caller has seen to be above 1, and completes a
/// partial checksum: all that changes in a packet that is routed.
///
/// # Errors
/// [`DropReason::Truncated`] where `meta`'s offsets leave the packet.
#[inline(always)]
pub fn hop(bytes: &mut [u8], meta: &mut PacketMeta) -> Result<(), DropReason> {
    complete_checksum(bytes, meta);
    let ip = bytes.get_mut(usize::from(meta.l3)..).ok_or(DropReason::Truncated)?;
    if meta.is_v4() {
        let ip = ip.first_chunk_mut().ok_or(DropReason::Truncated)?;
        take_hop_v4(ip, FoldedDelta::default());
    } else {
        let ip: &mut [u8; ipv6::HEADER_LEN] = ip.first_chunk_mut().ok_or(DropReason::Truncated)?;
        take_hop_v6(ip);
    }
    Ok(())
}

/// Also brings the header checksum up to date, with what `change` says of the addresses.
#[inline(always)]
fn take_hop_v4(ip: &mut [u8; ipv4::HEADER_LEN], change: FoldedDelta) {
    ip[ipv4::offset::TTL] = ip[ipv4::offset::TTL].wrapping_sub(1);
    if let Some(check) = ip[ipv4::offset::CHECKSUM..].first_chunk_mut() {
        change.and(FoldedDelta::HOP).apply(check);
    }
}

#[inline(always)]
fn take_hop_v6(ip: &mut [u8; ipv6::HEADER_LEN]) {
    let limit = &mut ip[ipv6::offset::HOP_LIMIT];
    *limit = limit.saturating_sub(1);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::{Addr, Seed};
    use crate::packet::build::{ChecksumFill, TcpSpec, UdpSpec, tcp_packet, udp_packet};
    use crate::packet::{ParseOptions, parse};
    use proptest::prelude::*;

    const OPTIONS: ParseOptions = ParseOptions { verify_transport_checksum: true };

    fn addr(s: &str) -> Addr {
        s.parse().expect(s)
    }

    fn parsed(bytes: &[u8]) -> PacketMeta {
        let mut meta = PacketMeta::default();
        parse(bytes, Seed(1), OPTIONS, &mut meta).expect("a good packet");
        meta
    }

    /// As the key that packets are to have.
    fn rewrite_to(
        bytes: &mut [u8],
        meta: &mut PacketMeta,
        new: &FlowKey,
    ) -> Result<(), DropReason> {
        let (other, old) = (new.reversed(), meta.key);
        rewrite(bytes, meta, &other, SumChange::between(&old, &other))
    }

    type Endpoint = (&'static str, u16);

    /// The packet between two endpoints, with the TTL as given.
    fn packet(proto: u8, ttl: u8, src: Endpoint, dst: Endpoint, sum: ChecksumFill) -> Vec<u8> {
        let (src, dst) = ((addr(src.0), src.1), (addr(dst.0), dst.1));
        if proto == tcp::PROTOCOL {
            let mut spec = TcpSpec::new(src, dst, tcp::flag::ACK, b"tokens");
            (spec.ip.ttl, spec.checksum) = (ttl, sum);
            tcp_packet(&spec)
        } else {
            let mut spec = UdpSpec::new(src, dst, b"tokens");
            (spec.ip.ttl, spec.checksum) = (ttl, sum);
            udp_packet(&spec)
        }
    }

    struct Case {
        name: &'static str,
        before: (Endpoint, Endpoint),
        after: (Endpoint, Endpoint),
    }

    const C4: Endpoint = ("198.51.100.7", 40_000);
    const VIP4: Endpoint = ("192.0.2.1", 443);
    const NAT4: Endpoint = ("10.1.0.1", 20_001);
    const BACKEND4: Endpoint = ("10.1.0.7", 8443);
    const C6: Endpoint = ("2001:db8:c::7", 40_000);
    const VIP6: Endpoint = ("2001:db8::1", 443);
    const NAT6: Endpoint = ("2001:db8:1::1", 20_001);
    const BACKEND6: Endpoint = ("2001:db8:1::7", 8443);

    const CASES: &[Case] = &[
        Case { name: "nat, v4, to the backend", before: (C4, VIP4), after: (NAT4, BACKEND4) },
        Case { name: "nat, v4, reply", before: (BACKEND4, NAT4), after: (VIP4, C4) },
        Case { name: "dnat, v4, to the backend", before: (C4, VIP4), after: (C4, BACKEND4) },
        Case { name: "dnat, v4, reply", before: (BACKEND4, C4), after: (VIP4, C4) },
        Case { name: "nat, v6, to the backend", before: (C6, VIP6), after: (NAT6, BACKEND6) },
        Case { name: "nat, v6, reply", before: (BACKEND6, NAT6), after: (VIP6, C6) },
        Case { name: "dnat, v6, to the backend", before: (C6, VIP6), after: (C6, BACKEND6) },
        Case { name: "dnat, v6, reply", before: (BACKEND6, C6), after: (VIP6, C6) },
        Case { name: "nothing but a hop", before: (C4, VIP4), after: (C4, VIP4) },
    ];

    fn key(proto: u8, (src, dst): (Endpoint, Endpoint)) -> FlowKey {
        let (sport, dport) = (src.1, dst.1);
        FlowKey { src: addr(src.0), dst: addr(dst.0), sport, dport, proto }
    }

    #[test]
    fn packets_come_out_as_if_sent_so() {
        for case in CASES {
            for proto in [tcp::PROTOCOL, udp::PROTOCOL] {
                let (from, to) = case.before;
                let mut bytes = packet(proto, 64, from, to, ChecksumFill::Full);
                let mut meta = parsed(&bytes);
                rewrite_to(&mut bytes, &mut meta, &key(proto, case.after)).expect(case.name);
                let (from, to) = case.after;
                let want = packet(proto, 63, from, to, ChecksumFill::Full);
                assert_eq!(bytes, want, "{}, protocol {proto}", case.name);
            }
        }
    }

    #[test]
    fn partial_checksums_are_completed_before() {
        for case in CASES {
            for proto in [tcp::PROTOCOL, udp::PROTOCOL] {
                let (from, to) = case.before;
                let mut bytes = packet(proto, 2, from, to, ChecksumFill::Partial);
                let mut meta = parsed(&bytes);
                assert!(meta.flags.has(PacketFlags::PARTIAL_CHECKSUM), "{}", case.name);
                rewrite_to(&mut bytes, &mut meta, &key(proto, case.after)).expect(case.name);
                let (from, to) = case.after;
                let want = packet(proto, 1, from, to, ChecksumFill::Full);
                assert_eq!(bytes, want, "{}, protocol {proto}", case.name);
            }
        }
    }

    #[test]
    fn udp_without_a_checksum_stays_without() {
        let mut bytes = packet(udp::PROTOCOL, 64, C4, VIP4, ChecksumFill::Zero);
        let mut meta = parsed(&bytes);
        let new = key(udp::PROTOCOL, (NAT4, BACKEND4));
        rewrite_to(&mut bytes, &mut meta, &new).expect("a whole packet");
        assert_eq!(bytes, packet(udp::PROTOCOL, 63, NAT4, BACKEND4, ChecksumFill::Zero));
    }

    #[test]
    fn damage_stays_visible() {
        let mut bytes = packet(tcp::PROTOCOL, 64, C4, VIP4, ChecksumFill::Full);
        let mut meta = parsed(&bytes);
        *bytes.last_mut().expect("payload") ^= 0x10;
        rewrite_to(&mut bytes, &mut meta, &key(tcp::PROTOCOL, (NAT4, BACKEND4))).expect("whole");
        let got = parse(&bytes, Seed(1), OPTIONS, &mut meta);
        assert_eq!(got, Err(DropReason::BadTransportChecksum));
    }

    #[test]
    fn a_routed_packet_loses_a_hop_and_nothing_else() {
        for (from, to) in [(C4, BACKEND4), (C6, BACKEND6)] {
            for sum in [ChecksumFill::Full, ChecksumFill::Partial] {
                let mut bytes = packet(tcp::PROTOCOL, 9, from, to, sum);
                let mut meta = parsed(&bytes);
                hop(&mut bytes, &mut meta).expect("a whole packet");
                assert_eq!(bytes, packet(tcp::PROTOCOL, 8, from, to, ChecksumFill::Full));
            }
        }
    }

    #[test]
    fn offsets_beyond_the_packet_are_refused() {
        let whole = packet(tcp::PROTOCOL, 64, C4, VIP4, ChecksumFill::Full);
        let mut meta = parsed(&whole);
        let new = key(tcp::PROTOCOL, (NAT4, BACKEND4));
        for len in 0..54 {
            let mut cut = whole[..len].to_vec();
            assert_eq!(rewrite_to(&mut cut, &mut meta, &new), Err(DropReason::Truncated), "{len}");
            assert_eq!(cut, whole[..len]);
        }
        meta.key.proto = 1;
        let got = rewrite_to(&mut whole.clone(), &mut meta, &new);
        assert_eq!(got, Err(DropReason::UnsupportedProtocol));
    }

    /// Words near the ends of ones-complement arithmetic, and any others.
    fn any_word() -> impl Strategy<Value = u16> {
        prop_oneof![Just(0u16), Just(1), Just(0xffff), Just(0xfffe), any::<u16>()]
    }

    fn any_key(v4: bool, proto: u8) -> impl Strategy<Value = FlowKey> {
        prop::collection::vec(any_word(), 18).prop_map(move |w| {
            let at = |i: usize| {
                let word = |j: usize| u64::from(w[i + j]) << (48 - 16 * j);
                word(0) | word(1) | word(2) | word(3)
            };
            // Global addresses, none of those that are refused on the wire.
            let one = |i: usize| match v4 {
                true => Addr::v4(at(i) as u32 & 0x00ff_ffff | 0x0a00_0000),
                false => Addr { hi: at(i) >> 4 | 2 << 60, lo: at(i + 4) },
            };
            FlowKey { src: one(0), dst: one(8), sport: w[16], dport: w[17], proto }
        })
    }

    fn any_pair() -> impl Strategy<Value = (FlowKey, FlowKey)> {
        (any::<bool>(), prop_oneof![Just(tcp::PROTOCOL), Just(udp::PROTOCOL)])
            .prop_flat_map(|(v4, proto)| (any_key(v4, proto), any_key(v4, proto)))
    }

    fn build(key: &FlowKey, ttl: u8, payload: &[u8]) -> Vec<u8> {
        let (src, dst) = ((key.src, key.sport), (key.dst, key.dport));
        if key.proto == tcp::PROTOCOL {
            let mut spec = TcpSpec::new(src, dst, tcp::flag::ACK, payload);
            spec.ip.ttl = ttl;
            tcp_packet(&spec)
        } else {
            let mut spec = UdpSpec::new(src, dst, payload);
            spec.ip.ttl = ttl;
            udp_packet(&spec)
        }
    }

    proptest! {
        #[test]
        fn updated_checksums_equal_those_made_anew(
            (old, new) in any_pair(), ttl in 2u8..=255,
            payload in
                prop::collection::vec(prop_oneof![Just(0u8), Just(0xff), any::<u8>()], 0..40),
        ) {
            prop_assume!(old.src != old.dst);
            let mut bytes = build(&old, ttl, &payload);
            let mut meta = parsed(&bytes);
            // A sum that looks partial by chance is completed, to the same effect.
            rewrite_to(&mut bytes, &mut meta, &new).expect("a whole packet");
            prop_assert_eq!(&bytes, &build(&new, ttl - 1, &payload));
        }
    }
}
