//! Encapsulated packets, against headers written out by hand.

use super::*;
use crate::base::Seed;
use crate::packet::build::{LinkSpec, UdpSpec, pad, udp_packet};
use crate::packet::{FramePool, ParseOptions, parse};

const HASH: u64 = 0x0123_4567_89ab_cdef;

fn addr(s: &str) -> Addr {
    s.parse().expect(s)
}

fn tunnels(sources: &[&str]) -> Tunnels {
    let sources = sources.iter().map(|s| s.parse().expect(s)).collect();
    Tunnels::new(&TunnelSpec { sources, ..TunnelSpec::default() })
}

/// A client's datagram to a VIP, and it within another packet toward `backend`.
fn wrapped(v4: bool, encap: Encap, backend: &str) -> (Vec<u8>, Vec<u8>, PacketMeta) {
    let (client, vip) =
        if v4 { ("198.51.100.7", "192.0.2.1") } else { ("2001:db8:c::7", "2001:db8::1") };
    let mut spec = UdpSpec::new((addr(client), 4_000), (addr(vip), 443), b"hi");
    spec.ip.tos = 0xb9;
    let inner = udp_packet(&spec);
    let mut pool = FramePool::standalone(1, 2048);
    let arena = pool.arena().clone();
    let mut frame = pool.take_with(&pad(inner.clone())).expect("stock");
    let mut meta = PacketMeta::default();
    parse(frame.bytes(&arena), Seed(1), ParseOptions::default(), &mut meta).expect("good");
    let tunnels = tunnels(&["10.0.0.1", "fd00::1"]);
    let outer = tunnels.outer(encap, addr(backend), HASH, None).expect("a source");
    encapsulate(&mut frame, &arena, &mut meta, &outer).expect("room");
    let bytes = frame.bytes(&arena).to_vec();
    pool.put(frame);
    (inner[eth::HEADER_LEN..].to_vec(), bytes, meta)
}

/// `x` stands for what is not looked at here.
fn hex(text: &str) -> Vec<Option<u8>> {
    let bytes = text.split_whitespace();
    bytes.map(|b| u8::from_str_radix(b, 16).ok()).collect()
}

fn begins(bytes: &[u8], text: &str, what: &str) {
    let want = hex(text);
    for (i, (got, want)) in bytes.iter().zip(&want).enumerate() {
        assert!(want.is_none_or(|w| w == *got), "{what}: byte {i} is {got:02x}:\n{bytes:02x?}");
    }
    assert!(bytes.len() >= want.len());
}

#[test]
fn golden_headers_of_every_combination() {
    // The inner packets are 30 and 50 bytes; b9 is EF with ECT(1).
    let v4_in_v4 = "08 00 45 b9 00 32 00 00 40 00 40 04 xx xx 0a 00 00 01 0a 01 00 07 45";
    let v6_in_v4 = "08 00 45 b9 00 46 00 00 40 00 40 29 xx xx 0a 00 00 01 0a 01 00 07 6b";
    let gue_v4 = "08 00 45 b9 00 3e 00 00 40 00 40 11 xx xx 0a 00 00 01 0a 01 00 07 \
                  c5 67 17 c0 00 2a 00 00 00 04 00 00 45";
    let gue_v6_in_v4 = "08 00 45 b9 00 52 00 00 40 00 40 11 xx xx 0a 00 00 01 0a 01 00 07 \
                        c5 67 17 c0 00 3e 00 00 00 29 00 00 6b";
    let ends = "fd 00 00 00 00 00 00 00 00 00 00 00 00 00 00 01 \
                fd 00 00 00 00 00 00 00 00 00 00 00 00 00 00 07";
    let v4_in_v6 = format!("86 dd 6b 97 89 ab 00 1e 04 40 {ends} 45");
    let v6_in_v6 = format!("86 dd 6b 97 89 ab 00 32 29 40 {ends} 6b");
    let gue_v6 =
        format!("86 dd 6b 97 89 ab 00 3e 11 40 {ends} c5 67 17 c0 00 3e xx xx 00 29 00 00");
    let gue_v4_in_v6 =
        format!("86 dd 6b 97 89 ab 00 2a 11 40 {ends} c5 67 17 c0 00 2a xx xx 00 04 00 00");
    let (v4, v6) = ("10.1.0.7", "fd00::7");
    for (inner_v4, encap, backend, want) in [
        (true, Encap::Ipip, v4, v4_in_v4),
        (false, Encap::Ipip, v4, v6_in_v4),
        (true, Encap::Gue, v4, gue_v4),
        (false, Encap::Gue, v4, gue_v6_in_v4),
        (true, Encap::Ipip, v6, &v4_in_v6),
        (false, Encap::Ipip, v6, &v6_in_v6),
        (true, Encap::Gue, v6, &gue_v4_in_v6),
        (false, Encap::Gue, v6, &gue_v6),
    ] {
        let what = format!("{encap:?} to {backend}, IPv4 within: {inner_v4}");
        let (inner, bytes, meta) = wrapped(inner_v4, encap, backend);
        begins(&bytes[12..], want, &what);
        let overhead = usize::from(encap.overhead(addr(backend).is_v4()));
        assert_eq!(bytes[eth::HEADER_LEN + overhead..], inner, "{what}: as it was, no padding");
        // Checksums, lengths and what is known of the packet, by the parser.
        let mut again = PacketMeta::default();
        let options = ParseOptions { verify_transport_checksum: true };
        parse(&bytes, Seed(1), options, &mut again).expect("what any host takes");
        assert_eq!((meta.key, meta.l3, meta.end), (again.key, again.l3, again.end), "{what}");
        assert_eq!(meta.tos, again.tos);
        if let (Encap::Gue, false) = (encap, meta.is_v4()) {
            // Receivers over IPv6 refuse one without (RFC 6936); that it is right, the parser says.
            let at = eth::HEADER_LEN + ipv6::HEADER_LEN + udp::offset::CHECKSUM;
            assert_ne!(bytes[at..at + 2], [0, 0], "{what}: no checksum");
        }
    }
}

#[test]
fn flows_spread_over_the_sources() {
    let t = tunnels(&["10.9.0.0/28", "fd00:9::/64"]);
    let mut seen = std::collections::HashSet::new();
    for i in 0..2_000u64 {
        let hash = i.wrapping_mul(0x9e37_79b9_7f4a_7c15);
        let o = t.outer(Encap::Ipip, addr("10.1.0.7"), hash, None).expect("a source");
        assert!((0x0a09_0001..=0x0a09_000e).contains(&o.src.v4_bits()), "{:?}", o.src);
        assert_eq!(Some(o), t.outer(Encap::Ipip, addr("10.1.0.7"), hash, None), "by flow");
        seen.insert(o.src);
        let o = t.outer(Encap::Gue, addr("fd00::7"), hash, None).expect("a source");
        assert!(o.src.hi == addr("fd00:9::").hi && o.src.lo != 0 && o.sport >= SPORT_FIRST);
        seen.insert(Addr::v4(u32::from(o.sport)));
    }
    assert!(seen.len() > 14 + 1_500, "{}", seen.len());
    for (prefix, hosts) in [("10.9.0.4/31", 2), ("10.9.0.4/32", 1), ("10.9.0.4/30", 2)] {
        let t = tunnels(&[prefix]);
        let source = |i: u64| t.outer(Encap::Ipip, addr("10.1.0.7"), i << 20, None).map(|o| o.src);
        let all: std::collections::HashSet<_> = (0..4_096).map(source).collect();
        assert_eq!(all.len(), hosts, "{prefix}: {all:?}");
    }
    let none = tunnels(&["10.9.0.4"]).outer(Encap::Ipip, addr("fd00::7"), HASH, None);
    assert_eq!(none, None, "no source of that family");
    let own = tunnels(&[]).outer(Encap::Ipip, addr("fd00::7"), HASH, Some(addr("fd00::1")));
    assert_eq!(own.map(|o| o.src), Some(addr("fd00::1")));
}

#[test]
fn what_does_not_fit_is_left_as_it_is() {
    let spec = UdpSpec::new((addr("10.0.0.1"), 1), (addr("10.0.0.2"), 2), b"payload");
    let tagged = udp_packet(&UdpSpec { link: LinkSpec::vlan(7), ..spec.clone() });
    let mut pool = FramePool::standalone(1, 2048);
    let arena = pool.arena().clone();
    let outer = tunnels(&["10.0.0.1"]).outer(Encap::Gue, addr("10.1.0.7"), HASH, None);
    for (bytes, headroom) in [(udp_packet(&spec), 31), (tagged, 256)] {
        let mut frame = pool.take_with(&bytes).expect("stock");
        frame.bytes_mut(&arena);
        let mut meta = PacketMeta::default();
        parse(&bytes, Seed(1), ParseOptions::default(), &mut meta).expect("good");
        assert!(frame.set_extent(&arena, headroom, bytes.len()));
        let before = (frame.offset(), frame.len(), meta.clone());
        let got = encapsulate(&mut frame, &arena, &mut meta, &outer.expect("a source"));
        assert_eq!(got, Err(DropReason::Truncated));
        assert_eq!((frame.offset(), frame.len(), meta), before);
        pool.put(frame);
    }
}
