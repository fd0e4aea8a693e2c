//! Packets through the balancer: what comes out, in each mode and family, and what is refused.

use super::*;
use crate::base::Nanos;
use crate::flow::FlowLimits;
use crate::forward::ports::PROBES_MAX;
use crate::graph::stages::rig::*;
use crate::packet::build::{ChecksumFill, TcpSpec, tcp_packet};
use crate::packet::tcp::flag::{ACK, RST, SYN};
use crate::packet::{ClassId, DropReason, ParseOptions, Verdict, parse};

mod joining;

const LIMITS: FlowLimits = FlowLimits { flows_max: 4096, half_open_max: 64 };
const OUT: Verdict = Verdict::Output;

fn dropped(reason: DropReason) -> Verdict {
    Verdict::Drop(reason)
}

/// Source of a packet that went to a backend, ready to be answered to.
fn nat_port(bytes: &[u8]) -> u16 {
    let mut meta = PacketMeta::default();
    parse(bytes, crate::base::Seed(1), ParseOptions::default(), &mut meta).expect("good");
    meta.key.sport
}

#[test]
fn both_directions_in_every_mode_family_and_protocol() {
    for family in [&V4, &V6] {
        for (shape, answer) in [(Shape::syn(), Shape::tcp(SYN | ACK)), (Shape::udp(), Shape::udp())]
        {
            for (mode, port) in MODES {
                let mut rig = Rig::new(LIMITS);
                let stage = &mut Balance::new();
                let vip = (family.vip, port);
                for again in 0..2 {
                    let sent = rig.run(stage, shape.between(family.client, vip));
                    let (src, dst) = match mode {
                        ForwardMode::Nat => {
                            let port = nat_port(&sent.bytes);
                            assert!((20_000..20_500).contains(&port), "worker 0's slice");
                            ((family.nat, port), family.backend)
                        }
                        ForwardMode::Dnat => (family.client, family.backend),
                        _ => (family.client, vip),
                    };
                    let want = shape.after(BACKEND_MAC, BACKEND_SIDE).between(src, dst);
                    assert_eq!(sent.verdict, OUT, "{mode:?} {vip:?}");
                    assert_eq!(sent.meta.out_port, BACKEND_PORT);
                    assert_eq!(sent.bytes, want, "{mode:?} {vip:?}, packet {again}");
                    if mode == ForwardMode::Dsr {
                        continue;
                    }
                    let back = answer.at_backend();
                    let reply = rig.run(stage, back.between(dst, src));
                    let want = back.after(CLIENT_MAC, CLIENT_SIDE);
                    assert_eq!(reply.bytes, want.between(vip, family.client), "{mode:?}");
                    assert_eq!((reply.verdict, reply.meta.out_port), (OUT, CLIENT_PORT));
                }
                assert_eq!(rig.flows.len(), 1);
                assert_eq!(rig.counters.flows_opened, 1);
            }
        }
    }
}

/// What a tunnel's backend is sent, as the parser reads it, and what is within.
fn unwrapped(bytes: &[u8], encap: Encap) -> (PacketMeta, Vec<u8>) {
    let mut meta = PacketMeta::default();
    let options = ParseOptions { verify_transport_checksum: true };
    parse(bytes, crate::base::Seed(1), options, &mut meta).expect("good");
    let inner = usize::from(meta.l3 + encap.overhead(meta.is_v4()));
    (meta, bytes[inner..].to_vec())
}

#[test]
fn tunnels_carry_packets_whole() {
    for (family, other) in [(&V4, &V6), (&V6, &V4)] {
        for shape in [Shape::syn(), Shape::udp()] {
            for (mode, port, across) in TUNNELS {
                let encap = if mode == ForwardMode::Ipip { Encap::Ipip } else { Encap::Gue };
                let mut rig = Rig::new(LIMITS);
                let stage = &mut Balance::new();
                let vip = (family.vip, port);
                for _ in 0..2 {
                    let sent = rig.run(stage, shape.between(family.client, vip));
                    assert_eq!((sent.verdict, sent.meta.out_port), (OUT, BACKEND_PORT));
                    let (outer, inner) = unwrapped(&sent.bytes, encap);
                    let whole = shape.after(BACKEND_MAC, BACKEND_SIDE).between(family.client, vip);
                    assert_eq!(inner, whole[14..], "{mode:?} {vip:?}");
                    assert_eq!(sent.bytes[..12], whole[..12]);
                    let to = if across { other } else { family };
                    let own = if to.backend == V4.backend { "10.1.0.1" } else { "2001:db8:b::1" };
                    assert_eq!((outer.key.src, outer.key.dst), (addr(own), addr(to.backend.0)));
                    let end = usize::from(sent.meta.end);
                    assert_eq!((sent.meta.l3, end), (14, sent.bytes.len()));
                }
                assert_eq!((rig.flows.len(), rig.counters.flows_opened), (1, 1));
            }
        }
    }
}

#[test]
fn tags_of_the_port_go_in_every_mode() {
    for family in [&V4, &V6] {
        for port in 80..=86 {
            for (shape, vip) in
                [(Shape::syn(), (family.vip, port)), (Shape::udp(), (family.vip, port))]
            {
                let plain = shape.between(family.client, vip);
                let mut tagged = plain[..12].to_vec();
                tagged.extend([0x81, 0x00, 0x20, 0x07]);
                tagged.extend(&plain[12..]);
                let want = Rig::new(LIMITS).run(&mut Balance::new(), plain);
                let got = Rig::new(LIMITS).run(&mut Balance::new(), tagged);
                assert_eq!((got.verdict, got.bytes), (OUT, want.bytes), "{vip:?}");
            }
        }
    }
}

#[test]
fn clients_among_the_backends_are_served_by_their_own_port() {
    for (family, client) in [(&V4, ("10.1.0.50", 4_000)), (&V6, ("2001:db8:b::50", 4_000))] {
        for port in [80, 82, 83, 84] {
            let mut rig = Rig::new(LIMITS);
            let stage = &mut Balance::new();
            let shape = Shape::syn().at_backend();
            let sent = rig.run(stage, shape.between(client, (family.vip, port)));
            assert_eq!((sent.verdict, sent.meta.out_port), (OUT, BACKEND_PORT), "{port}");
            assert_eq!(sent.bytes[..12], [BACKEND_MAC, BACKEND_SIDE].concat());
            if port == 80 {
                let ours = (family.nat, nat_port(&sent.bytes));
                let back = Shape::tcp(SYN | ACK).at_backend().between(family.backend, ours);
                let reply = rig.run(stage, back);
                // But for the client's address on the link, which is not known yet.
                assert_eq!((reply.verdict, reply.meta.out_port), (Verdict::Park, BACKEND_PORT));
                assert_eq!(reply.meta.key.dst, addr(client.0));
            }
        }
    }
}

#[test]
fn syns_announce_what_fits_both_links() {
    let fits = |bytes: &[u8], l4: usize| u16::from_be_bytes([bytes[l4 + 22], bytes[l4 + 23]]);
    for (family, headers) in [(&V4, 40), (&V6, 60)] {
        let l4 = 14 + usize::from(headers) - 20;
        for (mode, port) in MODES {
            let mut rig = Rig::new(LIMITS);
            let stage = &mut Balance::new();
            let syn = |flags, from: (&str, u16), to: (&str, u16), macs: ([u8; 6], [u8; 6])| {
                let end = |(host, port): (&str, u16)| (addr(host), port);
                let mut spec = TcpSpec::new(end(from), end(to), flags, b"");
                (spec.link.destination, spec.link.source) = macs;
                spec.options = vec![2, 4, 0x22, 0xd8];
                tcp_packet(&spec)
            };
            let vip = (family.vip, port);
            let sent = rig.run(stage, syn(SYN, family.client, vip, (CLIENT_SIDE, CLIENT_MAC)));
            assert_eq!(fits(&sent.bytes, l4), BACKEND_MTU - headers, "{mode:?}");
            let source = match mode {
                ForwardMode::Nat => (family.nat, nat_port(&sent.bytes)),
                ForwardMode::Dnat => family.client,
                _ => continue,
            };
            let macs = (BACKEND_SIDE, BACKEND_MAC);
            let reply = rig.run(stage, syn(SYN | ACK, family.backend, source, macs));
            assert_eq!(fits(&reply.bytes, l4), BACKEND_MTU - headers, "{mode:?}, its answer");
        }
    }
}

#[test]
fn tunnels_tell_what_fits_into_them() {
    for (family, header) in [(&V4, 28), (&V6, 48)] {
        for (mode, port, across) in TUNNELS {
            let outer_v4 = (family.backend == V4.backend) != across;
            let encap = if mode == ForwardMode::Ipip { Encap::Ipip } else { Encap::Gue };
            let room = BACKEND_MTU - encap.overhead(outer_v4);
            let mut rig = Rig::new(LIMITS);
            for (longer, verdict) in [(0, OUT), (1, dropped(DropReason::TooBig))] {
                let payload = usize::from(room) - header + longer;
                let packet = Shape { payload, ..Shape::udp() };
                let packet = packet.between(family.client, (family.vip, port));
                let (got, reply) = rig.run_answered(&mut Balance::new(), packet);
                assert_eq!(got.verdict, verdict, "{mode:?} {port}");
                let told = reply.map(|r| u16::from_be_bytes([r.bytes[40], r.bytes[41]]));
                if family.vip == V4.vip {
                    assert_eq!(told, (longer > 0).then_some(room));
                } else {
                    assert_eq!(told.is_some(), longer > 0);
                }
            }
        }
    }
}

#[test]
fn partial_checksums_are_completed_and_counted() {
    for family in [&V4, &V6] {
        for (_, port) in MODES {
            let mut rig = Rig::new(LIMITS);
            let whole = Shape::syn();
            let partial = Shape { sum: ChecksumFill::Partial, ..whole };
            let vip = (family.vip, port);
            let a = rig.run(&mut Balance::new(), partial.between(family.client, vip));
            let b = rig.run(&mut Balance::new(), whole.between(family.client, vip));
            assert_eq!(a.verdict, OUT);
            assert_eq!(a.bytes, b.bytes);
            assert_eq!(rig.counters.checksums_completed, 1);
        }
    }
}

#[test]
fn what_is_refused_and_why() {
    let c = V4.client;
    let vip = |port| (V4.vip, port);
    let tcp = |flags, port| Shape::tcp(flags).between(c, vip(port));
    let cases: &[(&str, Vec<u8>, Verdict)] = &[
        ("no flow", tcp(ACK, 80), dropped(DropReason::NoFlow)),
        ("reset of no flow", tcp(RST, 80), dropped(DropReason::NoFlow)),
        ("SYN-ACK of no flow", tcp(SYN | ACK, 80), dropped(DropReason::NoFlow)),
        ("drained pool", tcp(SYN, DRAINED_PORT), dropped(DropReason::NoBackend)),
        ("no service", tcp(SYN, 79), Verdict::Next),
        (
            "late answer to a NAT port",
            Shape::tcp(ACK).between(V4.backend, (V4.nat, 20_100)),
            dropped(DropReason::NoFlow),
        ),
        ("below the NAT ports", Shape::udp().between(c, (V4.nat, 19_999)), Verdict::Next),
    ];
    for (name, packet, want) in cases {
        let mut rig = Rig::new(LIMITS);
        let got = rig.run(&mut Balance::new(), packet.clone());
        assert_eq!(got.verdict, *want, "{name}");
        assert_eq!(rig.flows.len(), 0, "{name}");
        assert_eq!(got.bytes, *packet, "{name}: changed nothing");
    }
}

/// As the worker hands them over: put to their datagram, the later one with the first one's ports.
fn in_fragments(meta: &mut PacketMeta, later: bool) {
    meta.flags.set(PacketFlags::FRAGMENT);
    meta.flags.set(PacketFlags::JOINED);
    if later {
        meta.flags.set(PacketFlags::LATER_FRAGMENT);
    }
}

#[test]
fn later_fragments_go_where_the_first_one_went() {
    let packets = [
        Shape::udp().between(V4.client, (V4.vip, 80)),
        Shape::udp().between(V4.client, (V4.vip, 9)),
        Shape::udp().between(V4.backend, (V4.nat, 9)),
        Shape::udp().between(V4.client, V4.backend),
    ];
    let refused = dropped(DropReason::Fragment);
    let verdicts =
        |(out, _): (Vec<Outcome>, _)| -> Vec<_> { out.iter().map(|o| o.verdict).collect() };
    let mut rig = Rig::new(LIMITS);
    let stage = &mut Balance::new();
    let got = verdicts(rig.run_with(stage, &packets, |meta| in_fragments(meta, true)));
    assert_eq!(got, [refused, refused, refused, Verdict::Next], "whose first one is not known");
    let twice = [packets[0].clone(), packets[0].clone()];
    let number = std::cell::Cell::new(0);
    let (out, _) = rig.run_with(stage, &twice, |meta| {
        in_fragments(meta, number.replace(1) > 0);
    });
    let [first, later] = &out[..] else { panic!("{out:?}") };
    assert_eq!((first.verdict, later.verdict), (OUT, OUT));
    assert_eq!(first.bytes[..24], later.bytes[..24]);
    assert_eq!(first.bytes[26..34], later.bytes[26..34], "both addresses");
    assert_eq!(later.bytes[34..], packets[0][34..], "what is no header stays as it is");
    assert_ne!(first.bytes[34..], later.bytes[34..]);
    assert_eq!(rig.flows.len(), 1);
}

#[test]
fn the_last_hop_is_answered() {
    for family in [&V4, &V6] {
        let mut rig = Rig::new(LIMITS);
        let vip = (family.vip, 80);
        let syn = Shape { ttl: 1, ..Shape::syn() }.between(family.client, vip);
        let (got, reply) = rig.run_answered(&mut Balance::new(), syn.clone());
        assert_eq!(got.verdict, dropped(DropReason::TtlExceeded));
        assert_eq!(got.bytes, syn, "unchanged");
        let reply = reply.expect("an answer");
        assert_eq!((reply.verdict, reply.meta.out_port), (OUT, CLIENT_PORT));
        assert_eq!((&reply.bytes[..6], &reply.bytes[6..12]), (&CLIENT_MAC[..], &CLIENT_SIDE[..]));
        let mut meta = PacketMeta::default();
        let options = ParseOptions { verify_transport_checksum: true };
        parse(&reply.bytes, crate::base::Seed(1), options, &mut meta).expect("good");
        assert_eq!((meta.key.src, meta.key.dst), (addr(family.own), addr(family.client.0)));
        assert_eq!(rig.counters.icmp_sent, 1);
        let spoofed = Shape { ttl: 1, ..Shape::syn() }.between((family.own, 7), vip);
        assert!(rig.run_answered(&mut Balance::new(), spoofed).1.is_none(), "from us to us");
    }
}

#[test]
fn larger_than_the_backends_link() {
    for (family, room) in [(&V4, 1400 - 40), (&V6, 1400 - 60)] {
        let mut rig = Rig::new(LIMITS);
        let vip = (family.vip, 81);
        let fits = Shape { payload: room, ..Shape::syn() };
        let over = Shape { payload: room + 1, ..fits };
        assert_eq!(rig.run(&mut Balance::new(), fits.between(family.client, vip)).verdict, OUT);
        let (got, reply) = rig.run_answered(&mut Balance::new(), over.between(family.client, vip));
        assert_eq!(got.verdict, dropped(DropReason::TooBig));
        let bytes = reply.expect("an answer").bytes;
        let l4 = if family.client == V4.client { 34 } else { 54 };
        let mtu = u32::from_be_bytes([bytes[l4 + 4], bytes[l4 + 5], bytes[l4 + 6], bytes[l4 + 7]]);
        assert_eq!(mtu, u32::from(BACKEND_MTU));
    }
}

#[test]
fn icmp_errors_are_limited() {
    let mut rig = Rig::new(LIMITS);
    let syn = Shape { ttl: 1, ..Shape::syn() }.between(V4.client, (V4.vip, 80));
    let packets = vec![syn; 60];
    let (out, replies) = rig.run_with(&mut Balance::new(), &packets, |_| {});
    assert!(out.iter().all(|o| o.verdict == dropped(DropReason::TtlExceeded)));
    assert_eq!(replies.len(), 50);
    assert_eq!((rig.counters.icmp_sent, rig.counters.icmp_limited), (50, 10));
}

#[test]
fn an_unknown_neighbour_is_waited_for() {
    for family in [&V4, &V6] {
        let mut rig = Rig::new(LIMITS);
        let vip = (family.vip, UNRESOLVED_PORT);
        let syn = Shape::syn();
        let got = rig.run(&mut Balance::new(), syn.between(family.client, vip));
        assert_eq!(got.verdict, Verdict::Park);
        assert_eq!(got.meta.out_port, BACKEND_PORT);
        assert_eq!(got.meta.key.dst, addr(family.unresolved.0));
        let src = (family.nat, nat_port(&got.bytes));
        let want = syn.after([0; 6], BACKEND_SIDE).between(src, family.unresolved);
        assert_eq!(got.bytes, want, "all but the destination MAC");

        rig.routes.set_neighbour(11, addr(family.unresolved.0), [2; 6]);
        rig.publish();
        let got = rig.run(&mut Balance::new(), syn.between(family.client, vip));
        assert_eq!(got.verdict, OUT);
        assert_eq!(got.bytes[..6], [2; 6]);
    }
}

#[test]
fn a_cached_hop_lasts_until_routes_change() {
    for (_, port) in MODES {
        let mut rig = Rig::new(LIMITS);
        let syn = Shape::syn().between(V4.client, (V4.vip, port));
        assert_eq!(rig.run(&mut Balance::new(), syn.clone()).bytes[..6], BACKEND_MAC);
        rig.routes.set_neighbour(11, addr(V4.backend.0), [2; 6]);
        assert_eq!(rig.run(&mut Balance::new(), syn.clone()).bytes[..6], BACKEND_MAC);
        rig.publish();
        assert_eq!(rig.run(&mut Balance::new(), syn.clone()).bytes[..6], [2; 6]);
        rig.routes.clear_routes();
        rig.publish();
        assert_eq!(rig.run(&mut Balance::new(), syn).verdict, dropped(DropReason::NoRoute));
    }
}

#[test]
fn ports_come_from_the_workers_slice_until_they_are_taken() {
    let mut rig = Rig::new(FlowLimits { flows_max: 4096, half_open_max: 4096 });
    rig.worker = 1;
    let mut seen = std::collections::HashSet::new();
    let mut failed = 0;
    for client in 1..=600u16 {
        rig.now = Nanos(rig.now.0 + 1000);
        let got =
            rig.run(&mut Balance::new(), Shape::udp().between((V4.client.0, client), (V4.vip, 80)));
        match got.verdict {
            OUT => assert!(seen.insert(nat_port(&got.bytes)), "a port twice"),
            other => {
                assert_eq!(other, dropped(DropReason::NatPortsExhausted));
                failed += 1;
            }
        }
    }
    assert!(seen.iter().all(|p| (20_500..=20_999).contains(p)));
    // Bounded probing leaves a few of the 500 unused.
    assert!(failed >= 100 && seen.len() > 490 - PROBES_MAX as usize, "{failed}");
}

#[test]
fn both_directions_get_the_class_of_the_first_packet() {
    let mut rig = Rig::new(LIMITS);
    let syn = Shape::syn().between(V4.client, (V4.vip, 81));
    rig.run_with(&mut Balance::new(), &[syn], |meta| meta.class = ClassId(3));
    let (_, flow) = rig.flows.iter().next().expect("a flow");
    assert_eq!(flow.class, ClassId(3));
}

#[test]
fn a_syn_flood_does_not_touch_established_flows() {
    let mut rig = Rig::new(LIMITS);
    let stage = &mut Balance::new();
    let (client, vip) = (V4.client, (V4.vip, 80));
    let syn = rig.run(stage, Shape::syn().between(client, vip));
    let src = (V4.nat, nat_port(&syn.bytes));
    let back = Shape::tcp(SYN | ACK).at_backend().between(V4.backend, src);
    assert_eq!(rig.run(stage, back).verdict, OUT);
    let ack = Shape::tcp(ACK).between(client, vip);
    assert_eq!(rig.run(stage, ack.clone()).verdict, OUT);
    for i in 0..2000u16 {
        rig.now = Nanos(rig.now.0 + 1000);
        let from = (["203.0.113.5", "203.0.113.6"][usize::from(i % 2)], 1024 + i);
        rig.run(stage, Shape::syn().between(from, vip));
    }
    assert!(rig.flows.len() <= 65, "{} flows", rig.flows.len());
    assert_eq!(rig.run(stage, ack).verdict, OUT);
    let fresh = ("198.51.100.7", 50_000);
    assert_eq!(rig.run(stage, Shape::syn().between(fresh, vip)).verdict, OUT, "not locked out");
}

#[test]
fn packets_of_one_new_flow_in_one_batch() {
    let mut rig = Rig::new(LIMITS);
    for (_, port) in MODES {
        let packets = vec![Shape::udp().between(V6.client, (V6.vip, port)); 3];
        let (out, _) = rig.run_with(&mut Balance::new(), &packets, |_| {});
        assert!(out.iter().all(|o| o.verdict == OUT && o.bytes == out[0].bytes));
    }
    assert_eq!((rig.flows.len(), rig.counters.flows_opened), (3, 3));
}

/// The slot of a flow that is pushed out is used again at once, while a packet of the same
/// batch still refers to it.
#[test]
fn a_flow_pushed_out_within_a_batch_is_not_mistaken_for_its_successor() {
    let mut rig = Rig::new(FlowLimits { flows_max: 64, half_open_max: 1 });
    let stage = &mut Balance::new();
    let (a, b) = (V4.client, (V4.client.0, 50_000));
    let vip = (V4.vip, 81);
    rig.run(stage, Shape::syn().between(a, vip));
    let routed = Shape::syn().between(a, V4.backend);
    let batch = [a, b, a].map(|client| Shape::syn().between(client, vip));
    let (out, _) = rig.run_with(stage, &[&batch[..], &[routed]].concat(), |_| {});
    let want = Shape::syn().after(BACKEND_MAC, BACKEND_SIDE);
    for (got, client) in out.iter().zip([a, b, a]) {
        assert_eq!(got.bytes, want.between(client, V4.backend));
    }
    assert_eq!(out[3].verdict, Verdict::Next);
    assert_eq!((rig.flows.len(), rig.flows.half_open_evicted()), (1, 2));
}

#[test]
fn transit_flows_are_left_alone() {
    let mut rig = Rig::new(LIMITS);
    let packet = Shape::syn().between(V4.client, V4.backend);
    let route = &mut crate::graph::stages::route::Route::new();
    assert_eq!(rig.run(route, packet.clone()).verdict, OUT);
    let got = rig.run(&mut Balance::new(), packet.clone());
    assert_eq!((got.verdict, got.bytes), (Verdict::Next, packet));
    assert!(got.meta.flow.is_some());
}
