//! Every tunnel leads to the same datagram; cut or noisy packets lead nowhere, and never panic.

use proptest::prelude::*;

use super::*;

/// UDP from port 1000 to 2000.
fn datagram() -> Vec<u8> {
    [&[0x03, 0xe8, 0x07, 0xd0, 0, 12, 0, 0][..], b"data"].concat()
}

fn udp(port: u16, payload: &[u8]) -> Vec<u8> {
    let len = (8 + payload.len()) as u16;
    [&9u16.to_be_bytes()[..], &port.to_be_bytes(), &len.to_be_bytes(), &[0, 0], payload].concat()
}

fn v4(proto: u8, payload: &[u8]) -> Vec<u8> {
    v4_part(proto, 0, payload)
}

/// `place`: the flags and offset of a fragment.
fn v4_part(proto: u8, place: u16, payload: &[u8]) -> Vec<u8> {
    let len = (20 + payload.len()) as u16;
    let mut ip = vec![0x45, 0];
    ip.extend(len.to_be_bytes());
    ip.extend([0, 7]);
    ip.extend(place.to_be_bytes());
    ip.extend([64, proto, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2]);
    [ip, payload.to_vec()].concat()
}

fn v6(next: u8, payload: &[u8]) -> Vec<u8> {
    let mut ip = vec![0x60, 0, 0, 0];
    ip.extend((payload.len() as u16).to_be_bytes());
    ip.extend([next, 64]);
    for last in [1, 2] {
        ip.extend([0x20, 1, 0xd, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, last]);
    }
    [ip, payload.to_vec()].concat()
}

fn eth(kind: u16, payload: &[u8]) -> Vec<u8> {
    [&[2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2][..], &kind.to_be_bytes(), payload].concat()
}

fn read(link: u32, frames: &[Vec<u8>]) -> Option<(String, Vec<u8>)> {
    let (mut fragments, mut whole) = (Fragments::default(), Vec::new());
    let mut last = None;
    for frame in frames {
        let transport = innermost(Link(link), frame, &mut fragments, &mut whole);
        last = transport.map(|t| (t.encap.to_string(), t.bytes.to_vec()));
    }
    last
}

/// Ethernet frames by what they must be read as.
fn frames() -> Vec<(&'static str, Vec<u8>)> {
    let (d4, d6) = (v4(UDP, &datagram()), v6(UDP, &datagram()));
    let e4 = eth(0x0800, &d4);
    let outer = |port: u16, head: &[u8], inner: &[u8]| {
        eth(0x0800, &v4(UDP, &udp(port, &[head, inner].concat())))
    };
    let gre = |head: &[u8], inner: &[u8]| eth(0x0800, &v4(47, &[head, inner].concat()));
    let tagged = [&[0, 5, 0x81, 0, 0, 6, 0x08, 0][..], &d4].concat();
    let session = [&[0x11, 0, 0, 1, 0, d6.len() as u8 + 2, 0, 0x57][..], &d6].concat();
    let hop_by_hop =
        [&[60, 0, 1, 4, 0, 0, 0, 0, 17, 0, 1, 4, 0, 0, 0, 0][..], &datagram()].concat();
    let fr = [&[17, 0, 0, 0, 0, 0, 0, 9][..], &datagram()].concat();
    vec![
        ("eth/ip", e4.clone()),
        ("eth/ip6", eth(0x86dd, &d6)),
        ("eth/vlan/vlan/ip", eth(0x88a8, &tagged)),
        ("eth/pppoe/ip6", eth(0x8864, &session)),
        ("eth/mpls/mpls/ip", eth(0x8847, &[&[0, 1, 0, 9, 0, 2, 1, 9][..], &d4].concat())),
        ("eth/mpls/eth/ip", eth(0x8847, &[&[0, 2, 1, 9, 0, 0, 0, 0][..], &e4].concat())),
        ("eth/ip", eth(d4.len() as u16 + 8, &[&[0xaa, 0xaa, 3, 0, 0, 0, 8, 0][..], &d4].concat())),
        ("eth/ip/gre/ip", gre(&[0, 0, 0x08, 0], &d4)),
        ("eth/ip/gre/ip6", gre(&[0xb0, 0, 0x86, 0xdd, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 2], &d6)),
        ("eth/ip/gre/eth/ip", gre(&[0x20, 0, 0x65, 0x58, 0, 0, 0, 1], &e4)),
        ("eth/ip/gre/erspan/eth/ip", gre(&[0, 0, 0x88, 0xbe], &e4)),
        (
            "eth/ip/gre/erspan/eth/ip",
            gre(&[0x10, 0, 0x88, 0xbe, 0, 0, 0, 1, 0x10, 0, 0, 0, 0, 0, 0, 0], &e4),
        ),
        (
            "eth/ip/gre/ppp/ip",
            gre(&[0x30, 1, 0x88, 0x0b, 0, 99, 0, 1, 0, 0, 0, 1, 0xff, 3, 0, 0x21], &d4),
        ),
        ("eth/ip/ipip/ip", eth(0x0800, &v4(4, &d4))),
        ("eth/ip/6in4/ip6", eth(0x0800, &v4(41, &d6))),
        ("eth/ip6/ipip6/ip", eth(0x86dd, &v6(4, &d4))),
        ("eth/ip6/ipip6/ip6", eth(0x86dd, &v6(41, &d6))),
        ("eth/ip6ext/ip6", eth(0x86dd, &v6(0, &hop_by_hop))),
        ("eth/ip6", eth(0x86dd, &v6(44, &fr))),
        ("eth/ip/vxlan/eth/ip", outer(4789, &[8, 0, 0, 0, 0, 0, 1, 0], &e4)),
        ("eth/ip/vxlangpe/ip6", outer(4790, &[0x0c, 0, 0, 2, 0, 0, 1, 0], &d6)),
        ("eth/ip/geneve/ip", outer(6081, &[1, 0, 8, 0, 0, 0, 1, 0, 0, 0, 0, 0], &d4)),
        ("eth/ip/geneve/eth/ip", outer(6081, &[0, 0, 0x65, 0x58, 0, 0, 1, 0], &e4)),
        ("eth/ip/gtp/ip", outer(2152, &[0x30, 255, 0, 0, 0, 0, 0, 1], &d4)),
        (
            "eth/ip/gtp/ip6",
            outer(2152, &[0x34, 255, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0x85, 1, 0, 0, 0], &d6),
        ),
        (
            "eth/ip/vxlangpe/nsh/ip",
            outer(4790, &[0x0c, 0, 0, 4, 0, 0, 1, 0, 0, 2, 1, 1, 0, 0, 0, 1], &d4),
        ),
        ("eth/ip/l2tp/ip", outer(1701, &[0x40, 2, 0, 0, 0, 1, 0, 1, 0xff, 3, 0, 0x21], &d4)),
        ("eth/vntag/ip", eth(0x8926, &[&[0, 1, 0, 2, 8, 0][..], &d4].concat())),
        ("eth/pbb/eth/ip", eth(0x88e7, &[&[0, 0, 0, 1][..], &e4].concat())),
        ("eth/ip/teredo/ip6", outer(3544, &[], &d6)),
    ]
}

/// Those that are less often seen, and forms of others.
fn rare_frames() -> Vec<(&'static str, Vec<u8>)> {
    let (d4, d6) = (v4(UDP, &datagram()), v6(UDP, &datagram()));
    let e4 = eth(0x0800, &d4);
    let outer = |port: u16, head: &[u8], inner: &[u8]| {
        eth(0x0800, &v4(UDP, &udp(port, &[head, inner].concat())))
    };
    let tag = |kind: u16, head: &[u8], inner: &[u8]| eth(kind, &[head, inner].concat());
    let mut of_client = d6.clone();
    of_client[8..12].copy_from_slice(&[0x20, 1, 0, 0]);
    let answer = [&3544u16.to_be_bytes()[..], &[0, 9, 0, 99, 0, 0], &d6].concat();
    let proof = [&[0, 1, 2, 3][..], &[7; 2 + 3 + 9], &[0, 0], &[7; 6]].concat();
    let identity = [&[0x44, 0x52, 0x11, 41][..], &[7; 4 + 16 + 20]].concat();
    vec![
        // A group policy's number (draft-smith-vxlan-group-policy).
        ("eth/ip/vxlan/eth/ip", outer(4789, &[0x88, 0, 0, 5, 0, 0, 1, 0], &e4)),
        // An address that begins with a zero, and no control word.
        ("eth/mpls/eth/ip", tag(0x8847, &[0, 2, 1, 9], &e4)),
        ("eth/etag/ip", tag(0x893f, &[0, 0, 0, 1, 0, 0, 8, 0], &d4)),
        ("eth/cmd/ip6", tag(0x8909, &[1, 1, 0, 1, 0, 7, 0x86, 0xdd], &d6)),
        ("eth/fabricpath/eth/ip", tag(0x8903, &[0, 0x40], &e4)),
        ("eth/trill/eth/ip", tag(0x22f3, &[0, 0x7f, 0, 1, 0, 2, 9, 9, 9, 9], &e4)),
        ("eth/ip/lisp/ip", outer(4341, &[0xc0, 0, 0, 0, 0, 0, 0, 1], &d4)),
        ("eth/ip/ayiya/ip6", outer(5072, &identity, &d6)),
        ("eth/ip/teredo/ip6", eth(0x0800, &v4(UDP, &answer))),
        ("eth/ip/teredo/ip6", outer(3544, &proof, &d6)),
        ("eth/ip/teredo/ip6", outer(32_900, &[], &of_client)),
    ]
}

#[test]
fn tunnels_lead_to_the_datagram_inside() {
    for (want, frame) in [frames(), rare_frames()].concat() {
        assert_eq!(read(1, &[frame]), Some((want.to_owned(), datagram())), "{want}");
    }
}

/// Captures may hold the beginnings of packets only.
#[test]
fn what_is_cut_short_inside_teredo_is_read_as_far_as_it_goes() {
    let (whole, cut) = (datagram(), datagram().len() - 2);
    let d6 = v6(UDP, &whole);
    let frame = eth(0x0800, &v4(UDP, &udp(3544, &d6[..d6.len() - 2])));
    let want = ("eth/ip/teredo/ip6".to_owned(), whole[..cut].to_vec());
    assert_eq!(read(1, &[frame]), Some(want));
}

#[test]
fn other_links_lead_to_it_too() {
    let d4 = v4(UDP, &datagram());
    let sll = [&[0, 0, 0, 1, 0, 6, 1, 2, 3, 4, 5, 6, 0, 0, 0x08, 0][..], &d4].concat();
    for (link, want, frame) in [
        (101, "raw/ip", d4.clone()),
        (113, "sll/ip", sll),
        (0, "null/ip", [&[2, 0, 0, 0][..], &d4].concat()),
        (9, "ppp/ip", [&[0x21][..], &d4].concat()),
    ] {
        assert_eq!(read(link, &[frame]), Some((want.to_owned(), datagram())), "{want}");
    }
}

#[test]
fn a_port_of_a_tunnel_alone_makes_none() {
    for port in [4789, 4790, 6081, 2152, 3544, 1701, 4341, 5072] {
        let inner = udp(port, b"\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff");
        let frame = eth(0x0800, &v4(UDP, &inner));
        assert_eq!(read(1, &[frame]), Some(("eth/ip".to_owned(), inner)), "{port}");
    }
}

#[test]
fn fragments_are_put_together_in_any_order() {
    let d = datagram();
    let (first, last) = (v4_part(UDP, 0x2000, &d[..8]), v4_part(UDP, 1, &d[8..]));
    let want = Some(("eth/ipfrag/ip".to_owned(), d.clone()));
    let frames = [eth(0x0800, &first), eth(0x0800, &last)];
    assert_eq!(read(1, &frames), want);
    assert_eq!(read(1, &[frames[1].clone(), frames[0].clone()]), want);
    assert_eq!(read(1, &frames[..1]), None);
    let tunneled = [first, last].map(|part| eth(0x0800, &v4(4, &part)));
    assert_eq!(read(1, &tunneled), Some(("eth/ip/ipip/ipfrag/ip".to_owned(), d)));
}

#[test]
fn padding_is_cut_off_and_missing_bytes_are_told() {
    let frame = eth(0x0800, &v4(UDP, &datagram()));
    let padded = [&frame[..], &[0; 20]].concat();
    assert_eq!(read(1, &[padded]).map(|(_, bytes)| bytes), Some(datagram()));
    let (mut fragments, mut whole) = (Fragments::default(), Vec::new());
    let short = &frame[..frame.len() - 2];
    let transport = innermost(Link(1), short, &mut fragments, &mut whole).expect("headers");
    assert!(transport.cut && transport.bytes.len() == datagram().len() - 2);
}

#[test]
fn nesting_ends() {
    let mut packet = v4(UDP, &datagram());
    for _ in 0..2 * LAYERS_MAX {
        packet = v4(4, &packet);
    }
    assert_eq!(read(101, &[packet]), None);
}

/// Links that are known, and one that is not.
const LINKS: [u32; 14] = [0, 1, 9, 101, 104, 105, 108, 113, 117, 127, 219, 239, 276, 999];

proptest! {
    #[test]
    fn damage_never_panics(
        which in any::<prop::sample::Index>(),
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..6),
        cut in any::<prop::sample::Index>(),
        link in prop::sample::select(LINKS.to_vec()),
    ) {
        let frames = frames();
        let mut frame = which.get(&frames).1.clone();
        for (at, value) in changes {
            let at = at.index(frame.len());
            frame[at] = value;
        }
        frame.truncate(cut.index(frame.len() + 1));
        read(link, &[frame]);
    }
}
