//! Errors about packets of services, in each mode and family: who hears of them, and what.

use super::*;
use crate::flow::FlowLimits;
use crate::forward::spec::ForwardMode;
use crate::graph::stages::balance::Balance;
use crate::graph::stages::rig::*;
use crate::packet::build::{IcmpSpec, IpSpec, LinkSpec, icmp_packet};
use crate::packet::tcp::flag::{ACK, SYN};
use crate::packet::{PacketMeta, ParseOptions, icmp, parse};
use proptest::prelude::*;

const LIMITS: FlowLimits = FlowLimits { flows_max: 64, half_open_max: 16 };
const OUT: Verdict = Verdict::Output;
const ETH: usize = 14;
const MTU: u16 = 1_280;

fn router(v4: bool) -> Addr {
    addr(if v4 { "203.0.113.77" } else { "2001:db8:77::1" })
}

/// "Too big" about a frame that left, as a router on that port sends it.
fn too_big(frame: &[u8], quote: usize, from_backend_side: bool) -> Vec<u8> {
    let meta = read(frame);
    let v4 = meta.is_v4();
    let (kind, code) = if v4 { (3, 4) } else { (2, 0) };
    let (destination, source) =
        if from_backend_side { (BACKEND_SIDE, BACKEND_MAC) } else { (CLIENT_SIDE, CLIENT_MAC) };
    let link = LinkSpec { destination, source, ..LinkSpec::default() };
    let end = (ETH + quote).min(frame.len());
    icmp_packet(&IcmpSpec {
        link,
        ip: IpSpec::new(router(v4), meta.key.src),
        kind,
        code,
        rest: u32::from(MTU),
        payload: frame[ETH..end].to_vec(),
    })
}

fn read(frame: &[u8]) -> PacketMeta {
    let mut meta = PacketMeta::default();
    let options = ParseOptions { verify_transport_checksum: true };
    parse(frame, crate::base::Seed(7), options, &mut meta).expect("what any host takes");
    meta
}

/// Who hears of it, from whom, the MTU, and what is quoted.
fn told(frame: &[u8]) -> (Addr, Addr, u32, Vec<u8>) {
    let meta = read(frame);
    let message = &frame[usize::from(meta.l4)..usize::from(meta.end)];
    let view = icmp::View::new_checked(message).expect("whole");
    assert!(icmp::is_error(meta.key.proto, view.kind()));
    (meta.key.dst, meta.key.src, view.rest(), view.payload().to_vec())
}

/// Eight bytes of transport header, or all.
fn quotes(v4: bool) -> [usize; 2] {
    [if v4 { 28 } else { 48 }, 1_200]
}

#[test]
fn translated_errors_are_about_what_was_sent() {
    for family in [&V4, &V6] {
        let v4 = family.backend == V4.backend;
        for (mode, port) in [(ForwardMode::Nat, 80), (ForwardMode::Dnat, 81)] {
            for shape in [Shape::syn(), Shape::udp()] {
                for quote in quotes(v4) {
                    let mut rig = Rig::new(LIMITS);
                    let stage = &mut Balance::new();
                    let vip = (family.vip, port);
                    let sent = rig.run(stage, shape.between(family.client, vip));
                    // A router before the backend; the client has sent it with a hop more.
                    let got = rig.run(stage, too_big(&sent.bytes, quote, true));
                    assert_eq!((got.verdict, got.meta.out_port), (OUT, CLIENT_PORT), "{mode:?}");
                    let original = shape.after(CLIENT_MAC, CLIENT_SIDE);
                    let original = original.between(family.client, vip);
                    let mut about = original[ETH..].to_vec();
                    about.truncate(quote);
                    let want = (addr(family.client.0), addr(family.vip), MTU.into(), about);
                    assert_eq!(told(&got.bytes), want, "{mode:?}, {quote}");
                    assert_eq!(read(&got.bytes).ttl, 63);

                    // And one before the client, about an answer.
                    let key = read(&sent.bytes).key;
                    let source = (
                        if mode == ForwardMode::Nat { family.nat } else { family.client.0 },
                        key.sport,
                    );
                    let back = Shape { flags: SYN | ACK, ..shape }.at_backend();
                    let answer = rig.run(stage, back.between(family.backend, source));
                    assert_eq!(answer.verdict, OUT);
                    let got = rig.run(stage, too_big(&answer.bytes, quote, false));
                    assert_eq!((got.verdict, got.meta.out_port), (OUT, BACKEND_PORT), "{mode:?}");
                    let original = back.after(BACKEND_MAC, BACKEND_SIDE);
                    let mut about = original.between(family.backend, source)[ETH..].to_vec();
                    about.truncate(quote);
                    let want = (addr(family.backend.0), addr(source.0), MTU.into(), about);
                    assert_eq!(told(&got.bytes), want, "{mode:?}, {quote}, reply");
                }
            }
        }
    }
}

#[test]
fn errors_about_answers_that_went_another_way_go_to_the_backend() {
    for family in [&V4, &V6] {
        let v4 = family.backend == V4.backend;
        let modes = [(ForwardMode::Dsr, 82), (ForwardMode::Ipip, 83), (ForwardMode::Gue, 84)];
        for (mode, port) in modes {
            for known in [true, false] {
                let mut rig = Rig::new(LIMITS);
                let stage = &mut Balance::new();
                let vip = (family.vip, port);
                if known {
                    rig.run(stage, Shape::syn().between(family.client, vip));
                }
                let answer = Shape::tcp(ACK).between(vip, family.client);
                let error = too_big(&answer, 1_200, false);
                let got = rig.run(stage, error.clone());
                assert_eq!((got.verdict, got.meta.out_port), (OUT, BACKEND_PORT), "{mode:?}");
                let within = match mode {
                    ForwardMode::Ipip => usize::from(Encap::Ipip.overhead(v4)),
                    ForwardMode::Gue => usize::from(Encap::Gue.overhead(v4)),
                    _ => 0,
                };
                let mut whole = got.bytes[..ETH].to_vec();
                whole.extend(&got.bytes[ETH + within..]);
                let (to, from, _, about) = told(&whole);
                assert_eq!((to, from), (addr(family.vip), router(v4)), "as it was");
                assert_eq!(about, answer[ETH..]);
                assert_eq!(got.bytes[..6], BACKEND_MAC);
                assert_eq!(rig.flows.len(), usize::from(known), "errors open nothing");
            }
        }
    }
}

#[test]
fn errors_about_tunnels_are_about_what_was_within() {
    for family in [&V4, &V6] {
        for (mode, port, across) in TUNNELS {
            let mut rig = Rig::new(LIMITS);
            let stage = &mut Balance::new();
            let shape = Shape { payload: 900, ..Shape::tcp(SYN) };
            let sent = rig.run(stage, shape.between(family.client, (family.vip, port)));
            let error = too_big(&sent.bytes, 500, true);
            let got = rig.run(stage, error);
            assert_eq!((got.verdict, got.meta.out_port), (OUT, CLIENT_PORT), "{mode:?} {port}");
            let outer_v4 = (family.backend == V4.backend) != across;
            let encap = if mode == ForwardMode::Ipip { Encap::Ipip } else { Encap::Gue };
            let overhead = encap.overhead(outer_v4);
            let original = shape.after(CLIENT_MAC, CLIENT_SIDE);
            let original = original.between(family.client, (family.vip, port));
            let (to, from, mtu, about) = told(&got.bytes);
            assert_eq!((to, from), (addr(family.client.0), addr(family.vip)));
            assert_eq!(mtu, u32::from(MTU - overhead), "{mode:?} {port}");
            assert_eq!(about, original[ETH..][..500 - usize::from(overhead)]);
            assert_eq!(got.meta.end as usize, got.bytes.len());
        }
    }
}

#[test]
fn what_belongs_to_no_flow_or_is_damaged_goes_nowhere() {
    let mut rig = Rig::new(LIMITS);
    let stage = &mut Balance::new();
    let sent = rig.run(stage, Shape::syn().between(V4.client, (V4.vip, 80)));
    let mut damaged = too_big(&sent.bytes, 28, true);
    let last = damaged.len() - 1;
    damaged[last] ^= 1;
    let options = |meta: &mut PacketMeta| meta.class = crate::packet::ClassId::UNSET;
    let ignored = Verdict::Drop(DropReason::IcmpIgnored);
    let stranger = Shape::tcp(ACK).between((V4.nat, 20_900), V4.backend);
    let other = Shape::tcp(ACK).between(("198.51.100.9", 5), V4.backend);
    for (error, want) in [
        (too_big(&stranger, 28, true), ignored),
        // Of another host, to be routed.
        (too_big(&other, 28, true), Verdict::Next),
        // With NAT only who has the flow knows it.
        (too_big(&Shape::tcp(ACK).between((V4.vip, 80), ("198.51.100.8", 9)), 28, false), ignored),
        // Not to whom sent what is quoted.
        (
            {
                let mut error = too_big(&sent.bytes, 28, true);
                let mut quoted = error.split_off(42);
                quoted[12..16].copy_from_slice(&[198, 51, 100, 9]);
                let meta = IpSpec::new(router(true), addr(V4.nat));
                let link = LinkSpec { destination: BACKEND_SIDE, ..LinkSpec::default() };
                let (kind, code, rest) = (3, 4, u32::from(MTU));
                icmp_packet(&IcmpSpec { link, ip: meta, kind, code, rest, payload: quoted })
            },
            Verdict::Next,
        ),
    ] {
        let (out, replies) = rig.run_with(stage, &[error], options);
        assert_eq!(out[0].verdict, want);
        assert!(replies.is_empty(), "errors are never answered");
    }
    // Checksums are looked at here, even where ports don't verify them.
    let mut meta = PacketMeta::default();
    parse(&damaged, rig.snapshot.seed, ParseOptions::default(), &mut meta).expect("headers");
    let about = icmp::quoted(&damaged, &meta).expect("quoted");
    let sent =
        rig.flows.lookup(&about.key.reversed(), about.key.reversed().hash(rig.snapshot.seed));
    let (flow, _) = sent.expect("a flow");
    let key = rig.flows.get(flow).client_key();
    let got = translate(&mut damaged, &meta, &about, &key, 0);
    assert_eq!(got, Err(DropReason::BadTransportChecksum));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]
    /// Whatever is quoted: nothing panics, and no frame is lost (the rig counts them).
    #[test]
    fn any_quotation_is_survived(
        which in 0..8usize, cut in 8..200usize,
        changes in prop::collection::vec((42..160usize, any::<u8>()), 0..4),
    ) {
        let family = if which % 2 == 0 { &V4 } else { &V6 };
        let port = [80, 82, 83, 86][which / 2];
        let mut rig = Rig::new(LIMITS);
        let stage = &mut Balance::new();
        let sent = rig.run(stage, Shape::syn().between(family.client, (family.vip, port)));
        let mut frame = sent.bytes.clone();
        for (at, value) in changes {
            if let Some(byte) = frame.get_mut(at - 28) {
                *byte = value;
            }
        }
        let meta = read(&sent.bytes);
        let v4 = meta.is_v4();
        let (kind, code) = if v4 { (3, 4) } else { (2, 0) };
        let link = LinkSpec { destination: BACKEND_SIDE, ..LinkSpec::default() };
        let ip = IpSpec::new(router(v4), meta.key.src);
        let payload = frame[ETH..(ETH + cut).min(frame.len())].to_vec();
        let error = icmp_packet(&IcmpSpec { link, ip, kind, code, rest: 1_300, payload });
        rig.run(stage, error);
    }
}
