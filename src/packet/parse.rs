//! Reads all headers of a packet in one pass: the packet path's only parser.
//!
//! Twice over: [`usual`] takes the packets that nearly all are, in a straight line at constant
//! offsets, and says no at the first doubt. [`read_any`] reads every packet, and is who names the
//! reason.

use crate::base::{Addr, Seed};
use crate::packet::checksum::{Sum, is_partial, pseudo};
use crate::packet::eth::ethertype;
use crate::packet::field::u16_at;
use crate::packet::scope::{is_martian_destination, is_martian_source};
use crate::packet::{
    Direction, DropReason, FlowKey, PacketFlags, PacketMeta, eth, icmp, ipv4, ipv6, tcp, udp, usual,
};

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ParseOptions {
    /// Sums up TCP, UDP and ICMP too and drops what is damaged. Off, damage is left for the
    /// receiver to find: what is rewritten keeps a wrong sum wrong (RFC 1624). IPv4 headers are
    /// always verified.
    pub verify_transport_checksum: bool,
}

/// Reads the headers; fills everything of `meta` but flow, class, in_port, out_port and verdict.
///
/// Multicast destinations and protocols other than TCP, UDP and ICMP pass, with ports 0. TTL 1
/// passes: only who forwards a packet knows whether it ends here. On an error `meta` is half
/// filled.
///
/// # Errors
/// Why the packet is to be dropped: its headers are incomplete, contradict each other, or hold what
/// nobody may send.
#[inline(always)]
pub fn parse(
    bytes: &[u8],
    seed: Seed,
    opts: ParseOptions,
    meta: &mut PacketMeta,
) -> Result<(), DropReason> {
    // Offsets are kept in 16 bits.
    let bytes = &bytes[..bytes.len().min(usize::from(u16::MAX))];
    let Some(head) = bytes.first_chunk::<{ eth::HEADER_LEN + eth::TAG_LEN }>() else {
        return read_any(bytes, seed, opts, meta);
    };
    let (outer, inner) = (u16_at(head, 12), u16_at(head, 16));
    let is_usual = match (outer, inner) {
        (ethertype::IPV4, _) => usual::ipv4::<14>(bytes, seed, meta),
        (ethertype::IPV6, _) => usual::ipv6::<14>(bytes, seed, meta),
        (ethertype::VLAN, ethertype::IPV4) => usual::ipv4::<18>(bytes, seed, meta),
        (ethertype::VLAN, ethertype::IPV6) => usual::ipv6::<18>(bytes, seed, meta),
        _ => false,
    };
    if !is_usual {
        return read_any(bytes, seed, opts, meta);
    }
    if opts.verify_transport_checksum && !usual::intact(bytes, meta) {
        return Err(DropReason::BadTransportChecksum);
    }
    Ok(())
}

/// Reads any packet. `bytes` are 65,535 at most.
#[inline(never)]
fn read_any(
    bytes: &[u8],
    seed: Seed,
    opts: ParseOptions,
    meta: &mut PacketMeta,
) -> Result<(), DropReason> {
    let Some(head) = bytes.first_chunk::<{ eth::HEADER_LEN }>() else {
        return Err(DropReason::Truncated);
    };
    let (mut l3, mut kind) = (eth::HEADER_LEN, u16_at(head, eth::offset::ETHERTYPE));
    meta.vlan_tci = 0;
    if eth::is_tag(kind) {
        (l3, kind) = behind_tags(bytes)?;
        meta.vlan_tci = u16_at(bytes, eth::HEADER_LEN);
    }
    meta.l3 = l3 as u16;
    meta.direction = Direction::Forward;
    match kind {
        ethertype::IPV4 => read_ipv4(bytes, l3, seed, opts, meta),
        ethertype::IPV6 => read_ipv6(bytes, l3, seed, opts, meta),
        _ => Err(DropReason::NotIp),
    }
}

/// What the transport header needs to know of the headers before it.
struct Network {
    src: Addr,
    dst: Addr,
    proto: u8,
    l4: usize,
    end: usize,
    flags: PacketFlags,
    /// The packet is whole, and its transport checksum covers these addresses.
    summed: bool,
}

/// Where the network header begins, and its EtherType.
fn behind_tags(bytes: &[u8]) -> Result<(usize, u16), DropReason> {
    let mut l3 = eth::HEADER_LEN + eth::TAG_LEN;
    for _ in 0..eth::TAGS_MAX {
        if bytes.len() < l3 {
            return Err(DropReason::Truncated);
        }
        let kind = u16_at(bytes, l3 - 2);
        if !eth::is_tag(kind) {
            return Ok((l3, kind));
        }
        l3 += eth::TAG_LEN;
    }
    Err(DropReason::NotIp)
}

fn read_ipv4(
    bytes: &[u8],
    l3: usize,
    seed: Seed,
    opts: ParseOptions,
    meta: &mut PacketMeta,
) -> Result<(), DropReason> {
    let ip = &bytes[l3..];
    let view = ipv4::View::new_checked(ip)?;
    let mut flags = PacketFlags::default();
    if !view.options().is_empty() {
        flags.set(PacketFlags::OPTIONS);
    }
    let (src, dst, proto) = (view.source(), view.destination(), view.protocol());
    meta.tos = view.tos();
    meta.ttl = view.ttl();
    check_addresses(src, dst, meta.ttl)?;
    let (offset, more) = (view.fragment_offset(), view.more_fragments());
    if more || offset != 0 {
        flags.set(check_fragment(offset, more, view.payload().len(), proto)?);
    }
    let end = l3 + view.total_len();
    let l4 = end - view.payload().len();
    let summed = !flags.has(PacketFlags::FRAGMENT);
    read_transport(bytes, Network { src, dst, proto, l4, end, flags, summed }, seed, opts, meta)
}

fn read_ipv6(
    bytes: &[u8],
    l3: usize,
    seed: Seed,
    opts: ParseOptions,
    meta: &mut PacketMeta,
) -> Result<(), DropReason> {
    let view = ipv6::View::new_checked(&bytes[l3..])?;
    let (src, dst) = (view.source(), view.destination());
    if src.is_v4() || dst.is_v4() {
        // An IPv4-mapped address on the wire would be taken for IPv4 from here on.
        return Err(DropReason::Martian);
    }
    meta.tos = view.traffic_class();
    meta.ttl = view.hop_limit();
    check_addresses(src, dst, meta.ttl)?;
    let upper = view.upper()?;
    let mut flags = PacketFlags::default();
    if upper.at > 0 {
        flags.set(PacketFlags::OPTIONS);
    }
    let proto = upper.protocol;
    let end = l3 + ipv6::HEADER_LEN + view.payload().len();
    let l4 = l3 + ipv6::HEADER_LEN + upper.at;
    if let Some(fragment) = upper.fragment {
        let begin = l3 + ipv6::HEADER_LEN + fragment.behind;
        flags.set(check_fragment(fragment.offset, fragment.more, end - begin, proto)?);
    }
    let summed = upper.fragment.is_none() && !upper.source_routed;
    read_transport(bytes, Network { src, dst, proto, l4, end, flags, summed }, seed, opts, meta)
}

fn check_addresses(src: Addr, dst: Addr, ttl: u8) -> Result<(), DropReason> {
    if is_martian_source(src) || is_martian_destination(dst) {
        return Err(DropReason::Martian);
    }
    if src == dst {
        return Err(DropReason::SelfAddressed);
    }
    if ttl == 0 {
        return Err(DropReason::TtlExceeded);
    }
    Ok(())
}

/// `offset` is in units of eight bytes. Returns the flags that tell of it.
fn check_fragment(
    offset: u16,
    more: bool,
    len: usize,
    proto: u8,
) -> Result<PacketFlags, DropReason> {
    // All but the last are whole units (RFC 791 section 3.2, RFC 8200 section 4.5), and none may
    // reach beyond the largest packet.
    if more && !len.is_multiple_of(8) || usize::from(offset) * 8 + len > usize::from(u16::MAX) {
        return Err(DropReason::BadIpLength);
    }
    // A fragment that would overwrite the TCP flags of the first one (RFC 3128).
    if offset == 1 && proto == tcp::PROTOCOL {
        return Err(DropReason::Fragment);
    }
    let mut flags = PacketFlags::FRAGMENT;
    if offset != 0 {
        flags.set(PacketFlags::LATER_FRAGMENT);
    }
    Ok(flags)
}

/// Reads the transport header and writes what was found to `meta`.
fn read_transport(
    bytes: &[u8],
    network: Network,
    seed: Seed,
    opts: ParseOptions,
    meta: &mut PacketMeta,
) -> Result<(), DropReason> {
    let Network { src, dst, proto, l4, end, mut flags, summed } = network;
    let segment = &bytes[l4..end];
    let (mut ports, mut payload) = ((0, 0), l4);
    (meta.tcp_flags, meta.tcp_seq, meta.tcp_ack) = (0, 0, 0);
    match proto {
        _ if flags.has(PacketFlags::LATER_FRAGMENT) => {}
        tcp::PROTOCOL => {
            let view = tcp::View::new_checked(segment)?;
            meta.tcp_flags = view.flags();
            meta.tcp_seq = view.sequence();
            meta.tcp_ack = view.acknowledgment();
            payload = end - view.payload().len();
            ports = (view.source_port(), view.destination_port());
            if summed {
                let base = pseudo(src, dst, proto, segment.len() as u16);
                let field = u16_at(segment, tcp::offset::CHECKSUM);
                flags.set(check_sum(segment, field, base, opts)?);
            }
        }
        udp::PROTOCOL => {
            let Some(head) = segment.first_chunk::<{ udp::HEADER_LEN }>() else {
                return Err(DropReason::Truncated);
            };
            let len = usize::from(u16_at(head, udp::offset::LENGTH));
            // Of a first fragment the length is that of the whole datagram.
            let fragment = flags.has(PacketFlags::FRAGMENT);
            if len < udp::HEADER_LEN || len > segment.len() && !fragment {
                return Err(DropReason::BadTransportLength);
            }
            payload = l4 + udp::HEADER_LEN;
            ports = (u16_at(head, 0), u16_at(head, 2));
            let field = u16_at(head, udp::offset::CHECKSUM);
            if summed && field != 0 {
                let base = pseudo(src, dst, proto, len as u16);
                flags.set(check_sum(&segment[..len], field, base, opts)?);
            }
        }
        icmp::PROTOCOL | icmp::PROTOCOL_V6 if (proto == icmp::PROTOCOL) == src.is_v4() => {
            let verify = summed && opts.verify_transport_checksum;
            let identifier = read_icmp(segment, proto, verify.then_some((src, dst)))?;
            payload = l4 + icmp::HEADER_LEN;
            ports = (identifier, identifier);
            if icmp::is_error(proto, segment[icmp::offset::TYPE]) {
                flags.set(PacketFlags::ICMP_ERROR);
            }
        }
        _ => {}
    }
    meta.l4 = l4 as u16;
    meta.payload = payload as u16;
    meta.end = end as u16;
    meta.flags = flags;
    meta.key = FlowKey { src, dst, sport: ports.0, dport: ports.1, proto };
    meta.hash = meta.key.hash(seed);
    Ok(())
}

/// Returns the identifier of an echo, 0 for other messages.
fn read_icmp(
    segment: &[u8],
    proto: u8,
    verify_between: Option<(Addr, Addr)>,
) -> Result<u16, DropReason> {
    let message = icmp::View::new_checked(segment)?;
    if verify_between.is_some_and(|(src, dst)| !message.checksum_ok(src, dst)) {
        return Err(DropReason::BadTransportChecksum);
    }
    let echo = icmp::is_echo(proto, message.kind());
    Ok(if echo { u16_at(segment, icmp::offset::IDENTIFIER) } else { 0 })
}

/// Looks for a partial sum of TCP or UDP, and verifies others where asked to.
fn check_sum(
    segment: &[u8],
    field: u16,
    base: Sum,
    opts: ParseOptions,
) -> Result<PacketFlags, DropReason> {
    if is_partial(field, base) {
        return Ok(PacketFlags::PARTIAL_CHECKSUM);
    }
    if opts.verify_transport_checksum && !base.bytes(segment).verifies() {
        return Err(DropReason::BadTransportChecksum);
    }
    Ok(PacketFlags::default())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::packet::build::{IcmpSpec, LinkSpec, TcpSpec, UdpSpec};
    use crate::packet::build::{icmp_packet, pad, tcp_packet, udp_packet};
    use crate::packet::icmp::quoted;
    use proptest::prelude::*;

    fn frames() -> Vec<Vec<u8>> {
        let v6 = |lo| Addr { hi: 0x2001_0db8_0000_0000, lo };
        let families = [(Addr::v4(0x0a00_0001), Addr::v4(0x0a00_0002)), (v6(1), v6(2))];
        let mut frames = Vec::new();
        for link in [LinkSpec::default(), LinkSpec::vlan(7)] {
            for (src, dst) in families {
                let tcp = TcpSpec::new((src, 1000), (dst, 443), tcp::flag::ACK, b"data");
                let udp = UdpSpec::new((src, 1000), (dst, 443), b"data");
                frames.push(pad(tcp_packet(&TcpSpec { link: link.clone(), ..tcp })));
                frames.push(pad(udp_packet(&UdpSpec { link: link.clone(), ..udp })));
            }
        }
        frames
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2_000))]
        /// What the straight line takes, the other parser reads the same; whatever was changed.
        #[test]
        fn both_parsers_agree(
            which in 0..8usize, verify_transport_checksum in any::<bool>(),
            changes in prop::collection::vec((12..70usize, any::<u8>()), 0..3),
            fix_sum in any::<bool>(), cut in 0..120usize,
        ) {
            let mut frame = frames().swap_remove(which);
            for (at, value) in changes {
                if let Some(byte) = frame.get_mut(at) {
                    *byte = value;
                }
            }
            let l3 = if eth::is_tag(u16_at(&frame, 12)) { 18 } else { 14 };
            if fix_sum {
                // Otherwise few changes of an IPv4 header would get beyond its checksum.
                crate::packet::field::put_u16(&mut frame, l3 + 10, 0);
                let sum = Sum::of(&frame[l3..l3 + 20]).checksum();
                crate::packet::field::put_u16(&mut frame, l3 + 10, sum);
            }
            frame.truncate(cut.max(14));
            let opts = ParseOptions { verify_transport_checksum };
            let (mut a, mut b) = (PacketMeta::default(), PacketMeta::default());
            let first = parse(&frame, Seed(9), opts, &mut a);
            prop_assert_eq!(first, read_any(&frame, Seed(9), opts, &mut b));
            if first.is_ok() {
                prop_assert_eq!(a, b);
            }
        }
    }

    /// Untouched, all of them go the straight line: else the test above would prove nothing.
    #[test]
    fn usual_packets_take_the_straight_line() {
        for frame in frames() {
            let mut meta = PacketMeta::default();
            let l3 = if eth::is_tag(u16_at(&frame, 12)) { 18 } else { 14 };
            let taken = match (l3, frame[l3] >> 4) {
                (14, 4) => usual::ipv4::<14>(&frame, Seed(9), &mut meta),
                (14, _) => usual::ipv6::<14>(&frame, Seed(9), &mut meta),
                (_, 4) => usual::ipv4::<18>(&frame, Seed(9), &mut meta),
                _ => usual::ipv6::<18>(&frame, Seed(9), &mut meta),
            };
            assert!(taken && meta.key.dport == 443);
        }
    }

    #[test]
    fn the_quoted_packet_is_found() {
        for inner in frames() {
            let mut sent = PacketMeta::default();
            assert_eq!(parse(&inner, Seed(9), ParseOptions::default(), &mut sent), Ok(()));
            let (l3, l4, end) = (usize::from(sent.l3), usize::from(sent.l4), usize::from(sent.end));
            let router = if sent.is_v4() {
                Addr::v4(0x0a00_0009)
            } else {
                Addr { hi: 0x2001_0db8_0000_0000, lo: 9 }
            };
            // Eight bytes of transport header are enough, seven are not.
            for (cut, found) in [(end, true), (l4 + 8, true), (l4 + 7, false), (l3 + 19, false)] {
                let (kind, code) = if sent.is_v4() { (11, 0) } else { (3, 0) };
                let spec = IcmpSpec::echo(router, sent.key.src, false, 0, &inner[l3..cut]);
                let error = icmp_packet(&IcmpSpec { kind, code, rest: 0, ..spec });
                let mut meta = PacketMeta::default();
                assert_eq!(parse(&error, Seed(9), ParseOptions::default(), &mut meta), Ok(()));
                let quote = quoted(&error, &meta);
                assert_eq!(quote.map(|q| q.key), found.then_some(sent.key));
                if let Some(quote) = quote {
                    assert_eq!(usize::from(quote.l4 - quote.l3), l4 - l3);
                    assert_eq!(error[usize::from(quote.l3)], inner[l3]);
                }
            }
            assert_eq!(quoted(&inner, &sent), None, "no error message");
        }
    }
}
