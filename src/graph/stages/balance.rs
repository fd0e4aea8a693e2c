//! Binds flows of services to backends and rewrites their packets, in both directions.

use super::egress::{admit, each_undecided, may_cross, send, way_of_flow};
use crate::flow::{FlowKind, InsertError, NewFlow};
use crate::forward::spec::ForwardMode;
use crate::forward::{Backend, Service, nat};
use crate::graph::{Cx, Stage};
use crate::packet::{
    Batch, Direction, DropReason, FlowKey, FlowRef, Packet, PacketFlags, PacketMeta, tcp, udp,
};

/// The balancer. It keeps nothing itself: flows are in the worker's table, the rest in the
/// snapshot.
///
/// A packet of one of its flows goes out with the flow's other addresses. A TCP SYN or UDP packet
/// to a service opens a flow; other TCP packets to a service are dropped ([`DropReason::NoFlow`]),
/// and fragments too ([`DropReason::Fragment`]), because later ones don't show where they belong.
/// What is not for a service is left to the stages behind.
#[derive(Clone, Debug, Default)]
pub struct Balance;

impl Balance {
    pub fn new() -> Balance {
        Balance
    }
}

impl Stage for Balance {
    fn process(&mut self, cx: &mut Cx<'_>, batch: &mut Batch) {
        each_undecided(cx, batch, |cx, packet| match packet.meta.flow {
            FlowRef::NONE => first(cx, packet),
            flow => established(cx, packet, flow),
        });
    }
}

/// A packet of a known flow, ours or not.
#[inline]
fn established(cx: &mut Cx<'_>, packet: &mut Packet, flow: FlowRef) -> Result<(), DropReason> {
    let meta = &packet.meta;
    if cx.flows.get(flow).kind == FlowKind::Transit {
        return Ok(());
    }
    if meta.flags.has(PacketFlags::FRAGMENT) {
        return Err(DropReason::Fragment);
    }
    forward(cx, packet, flow)
}

/// Sends a packet of one of our flows on its way.
#[inline]
fn forward(cx: &mut Cx<'_>, packet: &mut Packet, flow: FlowRef) -> Result<(), DropReason> {
    let meta = &packet.meta;
    cx.flows.touch(cx.now, flow, meta, packet.frame.len() as u32);
    let known = cx.flows.get(flow);
    let dsr = known.kind == FlowKind::Dsr;
    // As it is to leave: what the other side's packets look like, turned round.
    let key = known.key[meta.direction.flip() as usize].reversed();
    let way = way_of_flow(cx, flow, meta.direction, key.dst)?;
    let egress = admit(cx, packet, way.port)?;
    if dsr {
        send(cx, packet, egress, way, nat::hop)
    } else {
        send(cx, packet, egress, way, |bytes, meta| nat::rewrite(bytes, meta, &key))
    }
}

/// The first packet of a flow, or of none.
#[inline(never)]
fn first(cx: &mut Cx<'_>, packet: &mut Packet) -> Result<(), DropReason> {
    let tables = &cx.snapshot.forward;
    let meta = &packet.meta;
    let key = &meta.key;
    if meta.flags.has(PacketFlags::FRAGMENT) {
        let ours = tables.is_vip(key.dst) || tables.nat().is_some_and(|n| n.is_source(key.dst));
        return if ours { Err(DropReason::Fragment) } else { Ok(()) };
    }
    // Earlier in this batch it may have been opened.
    if let Some((flow, direction)) = cx.flows.lookup(key, meta.hash) {
        (packet.meta.flow, packet.meta.direction) = (flow, direction);
        return established(cx, packet, flow);
    }
    let Some(&service) = tables.service(key.dst, key.dport, key.proto) else {
        return stray(cx, meta);
    };
    if key.proto == tcp::PROTOCOL && !opens(meta.tcp_flags) {
        return Err(DropReason::NoFlow);
    }
    may_cross(meta)?;
    let backend = *tables.choose(&service, key)?;
    if backend.addr.is_v4() != key.dst.is_v4() {
        return Err(DropReason::NoBackend);
    }
    let flow = open(cx, meta, &service, &backend)?;
    (packet.meta.flow, packet.meta.direction) = (flow, Direction::Forward);
    forward(cx, packet, flow)
}

/// Takes a flow in, with the key that its answers will have.
fn open(
    cx: &mut Cx<'_>,
    meta: &PacketMeta,
    service: &Service,
    backend: &Backend,
) -> Result<FlowRef, DropReason> {
    let client = &meta.key;
    let from_backend = FlowKey {
        src: backend.addr,
        sport: backend.port,
        dst: client.src,
        dport: client.sport,
        proto: client.proto,
    };
    let mut new = NewFlow {
        key: *client,
        reply: Some(from_backend),
        kind: FlowKind::Dnat,
        service: service.id.0,
        backend: backend.id.0,
        class: meta.class,
        idle_established_ms: Some(service.idle_established_ms),
    };
    match service.mode {
        ForwardMode::Nat => return open_nat(cx, meta, new, from_backend),
        ForwardMode::Dnat if backend.addr == client.src => return Err(DropReason::SelfAddressed),
        ForwardMode::Dnat => {}
        ForwardMode::Dsr => (new.kind, new.reply) = (FlowKind::Dsr, None),
    }
    let flow = cx.flows.insert(cx.now, &new, meta).map_err(|e| match e {
        // The client uses one port toward two services that lead to this backend.
        InsertError::KeyTaken => DropReason::NatPortsExhausted,
        InsertError::Drop(reason) => reason,
    })?;
    if service.mode == ForwardMode::Dsr {
        // Never looked up; it says where the backend is.
        cx.flows.get_mut(flow).key[Direction::Reply as usize] = from_backend;
    }
    cx.counters.flows_opened += 1;
    Ok(flow)
}

/// As [`open`], with the first of a few ports of ours that is free toward the backend.
fn open_nat(
    cx: &mut Cx<'_>,
    meta: &PacketMeta,
    mut new: NewFlow,
    from_backend: FlowKey,
) -> Result<FlowRef, DropReason> {
    let nat = cx.snapshot.forward.nat().ok_or(DropReason::NatPortsExhausted)?;
    let ours = nat.address(meta.is_v4()).ok_or(DropReason::NatPortsExhausted)?;
    new.kind = FlowKind::Nat;
    // The time is part of it: a client's second attempt gets another port.
    for port in nat.probes(cx.worker, cx.flows.seed(), meta.hash ^ cx.now.0) {
        new.reply = Some(FlowKey { dst: ours, dport: port, ..from_backend });
        match cx.flows.insert(cx.now, &new, meta) {
            Ok(flow) => {
                cx.counters.flows_opened += 1;
                return Ok(flow);
            }
            Err(InsertError::KeyTaken) => {}
            Err(InsertError::Drop(reason)) => return Err(reason),
        }
    }
    Err(DropReason::NatPortsExhausted)
}

/// What arrives at our NAT ports and belongs to no flow is a late answer; routed on it could come
/// back.
fn stray(cx: &Cx<'_>, meta: &PacketMeta) -> Result<(), DropReason> {
    let key = &meta.key;
    let ports = matches!(key.proto, tcp::PROTOCOL | udp::PROTOCOL);
    let nat = cx.snapshot.forward.nat().filter(|_| ports);
    match nat.and_then(|n| n.owner(key.dst, key.dport)) {
        Some(_) => Err(DropReason::NoFlow),
        None => Ok(()),
    }
}

fn opens(tcp_flags: u8) -> bool {
    use tcp::flag::{ACK, FIN, RST, SYN};
    tcp_flags & (SYN | ACK | RST | FIN) == SYN
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::Nanos;
    use crate::flow::FlowLimits;
    use crate::forward::ports::PROBES_MAX;
    use crate::graph::stages::rig::*;
    use crate::packet::build::ChecksumFill;
    use crate::packet::tcp::flag::{ACK, RST, SYN};
    use crate::packet::{ClassId, DropReason, ParseOptions, Verdict, parse};

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
            for (shape, answer) in
                [(Shape::syn(), Shape::tcp(SYN | ACK)), (Shape::udp(), Shape::udp())]
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
                            ForwardMode::Dsr => (family.client, vip),
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

    #[test]
    fn partial_checksums_are_completed_and_counted() {
        for family in [&V4, &V6] {
            for (_, port) in MODES {
                let mut rig = Rig::new(LIMITS);
                let whole = Shape::syn();
                let partial = Shape { sum: ChecksumFill::Partial, ..whole };
                let vip = (family.vip, port);
                let a = rig.run(&mut Balance, partial.between(family.client, vip));
                let b = rig.run(&mut Balance, whole.between(family.client, vip));
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
            let got = rig.run(&mut Balance, packet.clone());
            assert_eq!(got.verdict, *want, "{name}");
            assert_eq!(rig.flows.len(), 0, "{name}");
            assert_eq!(got.bytes, *packet, "{name}: changed nothing");
        }
    }

    #[test]
    fn fragments_of_services_are_refused() {
        let mut rig = Rig::new(LIMITS);
        let stage = &mut Balance::new();
        let fragment = |meta: &mut PacketMeta| meta.flags.set(PacketFlags::FRAGMENT);
        let packets = [
            Shape::udp().between(V4.client, (V4.vip, 80)),
            Shape::udp().between(V4.client, (V4.vip, 9)),
            Shape::udp().between(V4.backend, (V4.nat, 9)),
            Shape::udp().between(V4.client, V4.backend),
        ];
        let refused = dropped(DropReason::Fragment);
        let verdicts =
            |(out, _): (Vec<Outcome>, _)| -> Vec<_> { out.iter().map(|o| o.verdict).collect() };
        let got = verdicts(rig.run_with(stage, &packets, fragment));
        assert_eq!(got, [refused, refused, refused, Verdict::Next]);
        assert_eq!(rig.run(stage, packets[0].clone()).verdict, OUT);
        let got = verdicts(rig.run_with(stage, &packets[..1], fragment));
        assert_eq!(got, [refused], "also of a flow that exists");
    }

    #[test]
    fn the_last_hop_is_answered() {
        for family in [&V4, &V6] {
            let mut rig = Rig::new(LIMITS);
            let vip = (family.vip, 80);
            let syn = Shape { ttl: 1, ..Shape::syn() }.between(family.client, vip);
            let (got, reply) = rig.run_answered(&mut Balance, syn.clone());
            assert_eq!(got.verdict, dropped(DropReason::TtlExceeded));
            assert_eq!(got.bytes, syn, "unchanged");
            let reply = reply.expect("an answer");
            assert_eq!((reply.verdict, reply.meta.out_port), (OUT, CLIENT_PORT));
            assert_eq!(
                (&reply.bytes[..6], &reply.bytes[6..12]),
                (&CLIENT_MAC[..], &CLIENT_SIDE[..])
            );
            let mut meta = PacketMeta::default();
            let options = ParseOptions { verify_transport_checksum: true };
            parse(&reply.bytes, crate::base::Seed(1), options, &mut meta).expect("good");
            assert_eq!((meta.key.src, meta.key.dst), (addr(family.own), addr(family.client.0)));
            assert_eq!(rig.counters.icmp_sent, 1);
        }
    }

    #[test]
    fn larger_than_the_backends_link() {
        for (family, room) in [(&V4, 1400 - 40), (&V6, 1400 - 60)] {
            let mut rig = Rig::new(LIMITS);
            let vip = (family.vip, 81);
            let fits = Shape { payload: room, ..Shape::syn() };
            let over = Shape { payload: room + 1, ..fits };
            assert_eq!(rig.run(&mut Balance, fits.between(family.client, vip)).verdict, OUT);
            let (got, reply) = rig.run_answered(&mut Balance, over.between(family.client, vip));
            assert_eq!(got.verdict, dropped(DropReason::TooBig));
            let bytes = reply.expect("an answer").bytes;
            let l4 = if family.client == V4.client { 34 } else { 54 };
            let mtu =
                u32::from_be_bytes([bytes[l4 + 4], bytes[l4 + 5], bytes[l4 + 6], bytes[l4 + 7]]);
            assert_eq!(mtu, u32::from(BACKEND_MTU));
        }
    }

    #[test]
    fn icmp_errors_are_limited() {
        let mut rig = Rig::new(LIMITS);
        let syn = Shape { ttl: 1, ..Shape::syn() }.between(V4.client, (V4.vip, 80));
        let packets = vec![syn; 60];
        let (out, replies) = rig.run_with(&mut Balance, &packets, |_| {});
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
            let got = rig.run(&mut Balance, syn.between(family.client, vip));
            assert_eq!(got.verdict, Verdict::Park);
            assert_eq!(got.meta.out_port, BACKEND_PORT);
            assert_eq!(got.meta.key.dst, addr(family.unresolved.0));
            let src = (family.nat, nat_port(&got.bytes));
            let want = syn.after([0; 6], BACKEND_SIDE).between(src, family.unresolved);
            assert_eq!(got.bytes, want, "all but the destination MAC");

            rig.routes.set_neighbour(11, addr(family.unresolved.0), [2; 6]);
            rig.publish();
            let got = rig.run(&mut Balance, syn.between(family.client, vip));
            assert_eq!(got.verdict, OUT);
            assert_eq!(got.bytes[..6], [2; 6]);
        }
    }

    #[test]
    fn a_cached_hop_lasts_until_routes_change() {
        for (_, port) in MODES {
            let mut rig = Rig::new(LIMITS);
            let syn = Shape::syn().between(V4.client, (V4.vip, port));
            assert_eq!(rig.run(&mut Balance, syn.clone()).bytes[..6], BACKEND_MAC);
            rig.routes.set_neighbour(11, addr(V4.backend.0), [2; 6]);
            assert_eq!(rig.run(&mut Balance, syn.clone()).bytes[..6], BACKEND_MAC);
            rig.publish();
            assert_eq!(rig.run(&mut Balance, syn.clone()).bytes[..6], [2; 6]);
            rig.routes.clear_routes();
            rig.publish();
            assert_eq!(rig.run(&mut Balance, syn).verdict, dropped(DropReason::NoRoute));
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
                rig.run(&mut Balance, Shape::udp().between((V4.client.0, client), (V4.vip, 80)));
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
        rig.run_with(&mut Balance, &[syn], |meta| meta.class = ClassId(3));
        let (_, flow) = rig.flows.iter().next().expect("a flow");
        assert_eq!(flow.class, [ClassId(3); 2]);
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
            let (out, _) = rig.run_with(&mut Balance, &packets, |_| {});
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
        let got = rig.run(&mut Balance, packet.clone());
        assert_eq!((got.verdict, got.bytes), (Verdict::Next, packet));
        assert!(got.meta.flow.is_some());
    }
}
