//! Forwards by the kernel's routing table what no stage before has taken.

use super::egress::{
    begin, each_undecided, forbidden, may_cross, refuse, send, wait, way_of_transit,
};
use super::transit::{has_flow, open};
use crate::flow::{FlowKind, Hop};
use crate::forward::{Egress, nat};
use crate::graph::{Cx, Stage};
use crate::packet::{Batch, Direction, DropReason, FlowRef, PacketMeta, PacketMut, Verdict};

/// The router. It keeps nothing itself.
///
/// TCP, UDP and echo packets open a transit flow, so that answers get the class of what they answer
/// and most packets need no lookup. All else, and what the table has no room for, is routed packet
/// by packet: a router must not fail because it can't remember.
#[derive(Clone, Debug, Default)]
pub struct Route;

impl Route {
    pub fn new() -> Route {
        Route
    }
}

impl Stage for Route {
    fn process(&mut self, cx: &mut Cx<'_>, batch: &mut Batch) {
        let new = |meta: &&PacketMeta| meta.verdict == Verdict::Next && !meta.flow.is_some();
        cx.snapshot.routes.ask(batch.metas().iter().filter(new).map(|meta| meta.key.dst));
        each_undecided(cx, batch, |cx, packet| match packet.meta.flow {
            FlowRef::NONE => first(cx, packet),
            flow => established(cx, packet, flow),
        });
    }
}

#[inline(always)]
fn established(
    cx: &mut Cx<'_>,
    packet: &mut PacketMut<'_>,
    flow: FlowRef,
) -> Result<(), DropReason> {
    if cx.flows.get(flow).kind != FlowKind::Transit {
        // A service's flow in a pipeline that does not balance.
        return Err(DropReason::NotHandled);
    }
    let known = cx.flows.touch(cx.now, flow, packet.meta, packet.frame.len() as u32);
    let routes = &cx.snapshot.routes;
    match known.hop(packet.meta.direction, routes.generation()) {
        Some(hop) if routes.table_of(packet.meta.in_port) == 0 => leave(cx, packet, hop),
        _ => find_way(cx, packet, flow),
    }
}

/// Where the flow's next hop is not known, or is not to be relied upon: flows are told apart by
/// their addresses alone, which hosts behind several tables of routes may share.
#[inline(never)]
fn find_way(cx: &mut Cx<'_>, packet: &mut PacketMut<'_>, flow: FlowRef) -> Result<(), DropReason> {
    let way = way_of_transit(cx, packet.as_ref())?;
    let (routes, meta) = (&cx.snapshot.routes, &packet.meta);
    if way.wait_for.is_none() && routes.table_of(meta.in_port) == 0 {
        cx.flows.get_mut(flow).set_hop(meta.direction, way.hop, routes.generation());
    }
    leave(cx, packet, way.hop)?;
    wait(packet.meta, &way);
    Ok(())
}

/// Sends a packet to its next hop, unless it may not go there.
#[inline(always)]
fn leave(cx: &mut Cx<'_>, packet: &mut PacketMut<'_>, hop: Hop) -> Result<(), DropReason> {
    let egress = *cx.snapshot.routes.egress(hop.port).ok_or(DropReason::NotOurPort)?;
    if let Some(error) = forbidden(packet.meta, &egress) {
        return Err(refuse(cx, packet.as_ref(), error));
    }
    take_hop(cx, packet, egress, hop)
}

#[inline(always)]
fn take_hop(
    cx: &mut Cx<'_>,
    packet: &mut PacketMut<'_>,
    egress: Egress,
    hop: Hop,
) -> Result<(), DropReason> {
    let bytes = begin(cx.arena, cx.counters, packet.frame, packet.meta);
    nat::hop(bytes, packet.meta)?;
    send(bytes, packet.meta, egress, hop);
    Ok(())
}

/// A packet without a flow: opens one where it can be the first of one and may go where it wants.
#[inline(never)]
fn first(cx: &mut Cx<'_>, packet: &mut PacketMut<'_>) -> Result<(), DropReason> {
    let meta = &packet.meta;
    let remember = has_flow(meta);
    // Earlier in this batch it may have been opened.
    if remember && let Some((flow, direction)) = cx.flows.lookup(&meta.key, meta.hash) {
        (packet.meta.flow, packet.meta.direction) = (flow, direction);
        return established(cx, packet, flow);
    }
    may_cross(meta)?;
    let way = way_of_transit(cx, packet.as_ref())?;
    let meta = &packet.meta;
    let egress = *cx.snapshot.routes.egress(way.hop.port).ok_or(DropReason::NotOurPort)?;
    if let Some(error) = forbidden(meta, &egress) {
        return Err(refuse(cx, packet.as_ref(), error));
    }
    // What the table has no room for is routed all the same.
    if remember && let Ok(flow) = open(cx, packet.meta) {
        (packet.meta.flow, packet.meta.direction) = (flow, Direction::Forward);
        cx.flows.touch(cx.now, flow, packet.meta, packet.frame.len() as u32);
    }
    take_hop(cx, packet, egress, way.hop)?;
    wait(packet.meta, &way);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::Nanos;
    use crate::flow::FlowLimits;
    use crate::forward::{RouteKind, RouteSpec};
    use crate::graph::stages::balance::Balance;
    use crate::graph::stages::rig::*;
    use crate::packet::build::{
        ChecksumFill, IcmpSpec, IpSpec, LinkSpec, UdpSpec, icmp_packet, ip_packet, udp_packet,
    };
    use crate::packet::tcp::flag::{ACK, RST, SYN};
    use crate::packet::{ClassId, PacketFlags};

    const LIMITS: FlowLimits = FlowLimits { flows_max: 64, half_open_max: 16 };
    const OUT: Verdict = Verdict::Output;

    #[test]
    fn both_directions_lose_a_hop_and_nothing_else() {
        for family in [&V4, &V6] {
            for shape in [Shape::syn(), Shape::udp()] {
                let mut rig = Rig::new(LIMITS);
                let stage = &mut Route::new();
                for _ in 0..2 {
                    let got = rig.run(stage, shape.between(family.client, family.backend));
                    let want = shape.after(BACKEND_MAC, BACKEND_SIDE);
                    assert_eq!((got.verdict, got.meta.out_port), (OUT, BACKEND_PORT));
                    assert_eq!(got.bytes, want.between(family.client, family.backend));
                    let back = Shape { flags: SYN | ACK, ..shape }.at_backend();
                    let got = rig.run(stage, back.between(family.backend, family.client));
                    let want = back.after(CLIENT_MAC, CLIENT_SIDE);
                    assert_eq!((got.verdict, got.meta.out_port), (OUT, CLIENT_PORT));
                    assert_eq!(got.bytes, want.between(family.backend, family.client));
                }
                assert_eq!((rig.flows.len(), rig.counters.flows_opened), (1, 1));
            }
        }
    }

    #[test]
    fn tags_are_taken_off_and_partial_checksums_completed() {
        for family in [&V4, &V6] {
            let mut rig = Rig::new(LIMITS);
            let (client, backend) = (family.client, family.backend);
            let ends = ((addr(client.0), client.1), (addr(backend.0), backend.1));
            let mut spec = UdpSpec::new(ends.0, ends.1, b"xxxxxx");
            (spec.link, spec.checksum) = (LinkSpec::vlan(7), ChecksumFill::Partial);
            let got = rig.run(&mut Route, udp_packet(&spec));
            let want = Shape::udp().after(BACKEND_MAC, BACKEND_SIDE);
            assert_eq!(got.bytes, want.between(client, backend));
        }
    }

    #[test]
    fn destinations_that_lead_nowhere() {
        let mut rig = Rig::new(LIMITS);
        let route = |prefix: &str, kind, ifindex| RouteSpec {
            prefix: prefix.parse().expect(prefix),
            via: None,
            ifindex,
            kind,
        };
        rig.routes.add_route(route("203.0.113.0/25", RouteKind::Prohibit, 0));
        rig.routes.add_route(route("203.0.113.64/26", RouteKind::Blackhole, 0));
        rig.routes.add_route(route("203.0.113.128/26", RouteKind::Unreachable, 0));
        rig.routes.add_route(route("203.0.113.192/26", RouteKind::Unicast, 99));
        rig.publish();
        for (dst, reason, told) in [
            (V4.own, DropReason::NotHandled, None),
            ("10.1.0.1", DropReason::NotHandled, None),
            (V6.own, DropReason::NotHandled, None),
            ("224.0.0.9", DropReason::NotHandled, None),
            ("ff02::9", DropReason::NotHandled, None),
            ("192.0.2.200", DropReason::NoRoute, Some([3, 0])),
            ("2001:db8:77::1", DropReason::NoRoute, Some([1, 0])),
            ("203.0.113.7", DropReason::RouteForbids, Some([3, 13])),
            ("203.0.113.70", DropReason::RouteBlackhole, None),
            ("203.0.113.130", DropReason::RouteUnreachable, Some([3, 1])),
            ("203.0.113.200", DropReason::NotOurPort, None),
        ] {
            let client = if addr(dst).is_v4() { V4.client } else { V6.client };
            let packet = Shape::udp().between(client, (dst, 53));
            let (got, reply) = rig.run_answered(&mut Route, packet.clone());
            assert_eq!(got.verdict, Verdict::Drop(reason), "{dst}");
            assert_eq!(got.bytes, packet);
            let message = if addr(dst).is_v4() { 34 } else { 54 };
            let said = reply.map(|r| [r.bytes[message], r.bytes[message + 1]]);
            assert_eq!(said, told, "type and code about {dst}");
        }
        assert_eq!(rig.flows.len(), 0);
    }

    #[test]
    fn the_last_hop_and_the_largest_packet() {
        for (family, room) in [(&V4, 1400 - 28), (&V6, 1400 - 48)] {
            let mut rig = Rig::new(LIMITS);
            let (client, backend) = (family.client, family.backend);
            let last = Shape { ttl: 1, ..Shape::udp() };
            let (got, reply) = rig.run_answered(&mut Route, last.between(client, backend));
            assert_eq!(got.verdict, Verdict::Drop(DropReason::TtlExceeded));
            assert_eq!(reply.expect("an answer").meta.out_port, CLIENT_PORT);
            let fits = Shape { payload: room, ..Shape::udp() };
            assert_eq!(rig.run(&mut Route, fits.between(client, backend)).verdict, OUT);
            let over = Shape { payload: room + 1, ..fits };
            let (got, reply) = rig.run_answered(&mut Route, over.between(client, backend));
            assert_eq!(got.verdict, Verdict::Drop(DropReason::TooBig));
            assert!(reply.is_some());
            let two = Shape { ttl: 2, ..Shape::udp() };
            assert_eq!(rig.run(&mut Route, two.between(client, backend)).verdict, OUT);
        }
    }

    #[test]
    fn packets_without_flows_are_routed_all_the_same() {
        let mut rig = Rig::new(LIMITS);
        let (src, dst) = (addr(V4.client.0), addr(V4.backend.0));
        let error = icmp_packet(&IcmpSpec {
            link: LinkSpec::default(),
            ip: IpSpec::new(src, dst),
            kind: 3,
            code: 1,
            rest: 0,
            payload: vec![0; 28],
        });
        let gre = ip_packet(&LinkSpec::default(), &IpSpec::new(src, dst), 47, &[0; 24]);
        let reset = Shape::tcp(RST).between(V4.client, V4.backend);
        let (out, _) = rig.run_with(&mut Route, &[error, gre, reset], |_| {});
        assert!(out.iter().all(|o| o.verdict == OUT), "{out:?}");
        let fragment = |meta: &mut PacketMeta| meta.flags.set(PacketFlags::FRAGMENT);
        let udp = Shape::udp().between(V4.client, V4.backend);
        let (out, _) = rig.run_with(&mut Route, &[udp], fragment);
        assert_eq!(out[0].verdict, OUT);
        assert_eq!(rig.flows.len(), 0);
        let echo = icmp_packet(&IcmpSpec::echo(src, dst, false, 7, b"ping"));
        assert_eq!(rig.run(&mut Route, echo).verdict, OUT);
        assert_eq!(rig.flows.len(), 1);
        let back = icmp_packet(&IcmpSpec::echo(dst, src, true, 7, b"ping"));
        assert_eq!(rig.run(&mut Route, back).verdict, OUT);
        assert_eq!(rig.flows.len(), 1, "the answer belongs to the request");
    }

    #[test]
    fn a_full_table_does_not_stop_the_router() {
        let mut rig = Rig::new(LIMITS);
        for port in 0..200 {
            rig.now = Nanos(rig.now.0 + 1);
            let packet = Shape::udp().between((V4.client.0, 1000 + port), V4.backend);
            assert_eq!(rig.run(&mut Route, packet).verdict, OUT);
        }
        assert_eq!(rig.flows.len(), 64);
    }

    #[test]
    fn both_directions_get_the_class_of_the_first_packet() {
        let mut rig = Rig::new(LIMITS);
        let packet = Shape::tcp(ACK).between(V4.client, V4.backend);
        rig.run_with(&mut Route, &[packet], |meta| meta.class = ClassId(4));
        assert_eq!(rig.flows.iter().next().expect("a flow").1.class, ClassId(4));
    }

    #[test]
    fn an_unknown_neighbour_is_waited_for() {
        let mut rig = Rig::new(LIMITS);
        let got = rig.run(&mut Route, Shape::udp().between(V4.client, V4.unresolved));
        assert_eq!((got.verdict, got.meta.out_port), (Verdict::Park, BACKEND_PORT));
        assert_eq!(got.meta.key.dst, addr(V4.unresolved.0));
    }

    #[test]
    fn flows_of_services_are_not_routed() {
        let mut rig = Rig::new(LIMITS);
        let packet = Shape::syn().between(V4.client, (V4.vip, 80));
        assert_eq!(rig.run(&mut Balance::new(), packet.clone()).verdict, OUT);
        let got = rig.run(&mut Route, packet);
        assert_eq!(got.verdict, Verdict::Drop(DropReason::NotHandled));
    }
}
