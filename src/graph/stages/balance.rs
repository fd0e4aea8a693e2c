//! Binds flows of services to backends and rewrites their packets, in both directions.

use super::admission::{self, Lacking};
use super::checks::take_answer;
use super::egress::{begin, each_undecided, forbidden, may_cross, refuse, send, wait, way_of_flow};
use super::errors::pass_on;
use super::inspect::Inspect;
use super::severing::severed;
use super::shadow::copy_shadowed;
use super::splice::Splice;
use super::timing::Timing;
use super::tunnel::send_within;
use crate::base::Seed;
use crate::flow::{Flow, FlowKind, Hop, InsertError, NewFlow, TcpState};
use crate::forward::spec::ForwardMode;
use crate::forward::splice::Translation;
use crate::forward::tunnel::Encap;
use crate::forward::{Backend, Choosing, Service, mss, nat};
use crate::graph::{Cx, Snapshot, Stage};
use crate::packet::{
    Batch, Direction, DropReason, FlowKey, FlowRef, PacketFlags, PacketMeta, PacketMut, tcp, udp,
};

/// The balancer. It keeps nothing itself but the connections that are being bound: flows are in the
/// worker's table, the rest in the snapshot.
///
/// A packet of one of its flows goes out with the flow's other addresses. A TCP SYN or UDP packet
/// to a service opens a flow; other TCP packets to a service are dropped ([`DropReason::NoFlow`]).
/// Fragments go the way of their datagram's first one; they are dropped ([`DropReason::Fragment`])
/// where that one was, and where a connection is bound by what its client says.
/// What is not for a service is left to the stages behind.
#[derive(Default)]
pub struct Balance {
    /// Where some service binds its flows later than with their first packet.
    splice: Option<Box<Splice>>,
}

impl Balance {
    /// Binds every flow with its first packet.
    pub fn new() -> Balance {
        Balance::default()
    }

    /// Can also bind connections after what their client says.
    pub fn with_splice(splice: Splice) -> Balance {
        Balance { splice: Some(Box::new(splice)) }
    }

    /// The connections that are being bound, where that is done at all.
    pub fn splice(&self) -> Option<&Splice> {
        self.splice.as_deref()
    }

    /// The flow left the table.
    pub fn forget(&mut self, flow: &Flow, seed: Seed) {
        if let Some(splice) = &mut self.splice {
            splice.forget(flow, seed);
        }
    }

    /// As [`Splice::cut_waiting`].
    pub fn cut_waiting(
        &mut self,
        cx: &mut Cx<'_>,
        of: impl Fn(&FlowKey) -> bool,
        cuts_max: usize,
    ) -> usize {
        self.splice.as_mut().map_or(0, |splice| splice.cut_waiting(cx, of, cuts_max))
    }

    /// Whether the flow's connection is being bound: it is ended by its own rules.
    pub fn is_binding(&self, flow: FlowRef) -> bool {
        self.splice.as_ref().is_some_and(|splice| splice.is_binding(flow))
    }

    /// What is changed in the segments of a spliced flow, once it is joined.
    pub fn translation(&self, flow: FlowRef) -> Option<Translation> {
        self.splice.as_ref()?.translation(flow)
    }

    /// Shows what clients said before their connections were bound to those that look into what
    /// passes: the inspector, and the timers.
    #[inline]
    pub fn follow_bound(
        &mut self,
        cx: &mut Cx<'_>,
        inspect: Option<&mut Inspect>,
        timing: Option<&mut Timing>,
    ) {
        let Some(splice) = &mut self.splice else { return };
        if let Some(inspect) = inspect.filter(|_| splice.has_unfollowed()) {
            splice.follow(cx, inspect);
        }
        if let Some(timing) = timing.filter(|_| splice.has_untimed()) {
            splice.time(cx, timing);
        }
    }

    /// Does what is due.
    pub fn tick(&mut self, cx: &mut Cx<'_>) {
        if let Some(splice) = &mut self.splice {
            splice.tick(cx);
        }
    }

    /// Goes on with what a balancer knows that this one replaces.
    pub fn take_over(&mut self, old: &mut Balance) {
        match (&mut self.splice, &mut old.splice) {
            (Some(splice), Some(old)) => splice.take_over(old),
            // Spliced flows live on even where no service makes them any more.
            (None, old) => self.splice = old.take(),
            (Some(_), None) => {}
        }
    }
}

impl Stage for Balance {
    fn process(&mut self, cx: &mut Cx<'_>, batch: &mut Batch) {
        copy_shadowed(cx, batch);
        let mut splice = self.splice.as_deref_mut();
        each_undecided(cx, batch, |cx, packet| {
            let splice = splice.as_deref_mut();
            match packet.meta.flow {
                FlowRef::NONE => first(cx, packet, splice),
                flow => established(cx, packet, flow, splice),
            }
        });
    }
}

/// A packet of a known flow, ours or not.
#[inline(always)]
fn established(
    cx: &mut Cx<'_>,
    packet: &mut PacketMut<'_>,
    flow: FlowRef,
    splice: Option<&mut Splice>,
) -> Result<(), DropReason> {
    let kind = cx.flows.get(flow).kind;
    if kind == FlowKind::Transit {
        return Ok(());
    }
    match (kind, splice) {
        (FlowKind::Spliced, _) if packet.meta.flags.has(PacketFlags::FRAGMENT) => {
            Err(DropReason::Fragment)
        }
        (FlowKind::Spliced, Some(splice)) => splice.bound(cx, packet, flow),
        _ => forward(cx, packet, flow),
    }
}

/// Sends a packet of one of our flows on its way.
#[inline(always)]
pub(super) fn forward(
    cx: &mut Cx<'_>,
    packet: &mut PacketMut<'_>,
    flow: FlowRef,
) -> Result<(), DropReason> {
    let known = cx.flows.touch(cx.now, flow, packet.meta, packet.frame.len() as u32);
    match known.hop(packet.meta.direction, cx.snapshot.routes.generation()) {
        Some(hop) => translate(cx, packet, flow, hop, |_| ()),
        None => forward_anew(cx, packet, flow, |_| ()),
    }
}

/// As [`forward`], for a packet that was counted, and with what `edit` changes of its segment.
#[inline(always)]
pub(super) fn forward_edited(
    cx: &mut Cx<'_>,
    packet: &mut PacketMut<'_>,
    flow: FlowRef,
    edit: impl FnOnce(&mut [u8]),
) -> Result<(), DropReason> {
    let known = cx.flows.get(flow);
    match known.hop(packet.meta.direction, cx.snapshot.routes.generation()) {
        Some(hop) => translate(cx, packet, flow, hop, edit),
        None => forward_anew(cx, packet, flow, edit),
    }
}

/// As [`forward`], where the flow's next hop is not known.
#[inline(never)]
fn forward_anew(
    cx: &mut Cx<'_>,
    packet: &mut PacketMut<'_>,
    flow: FlowRef,
    edit: impl FnOnce(&mut [u8]),
) -> Result<(), DropReason> {
    let direction = packet.meta.direction;
    let known = cx.flows.get_mut(flow);
    if known.tcp == TcpState::Cut {
        return Err(severed(cx, packet, flow));
    }
    let target = known.key(direction.flip()).src;
    let way = way_of_flow(&cx.snapshot.routes, known, direction, target)?;
    translate(cx, packet, flow, way.hop, edit)?;
    wait(packet.meta, &way);
    Ok(())
}

/// Makes a packet one that the flow's other side answers to.
#[inline(always)]
fn translate(
    cx: &mut Cx<'_>,
    packet: &mut PacketMut<'_>,
    flow: FlowRef,
    hop: Hop,
    edit: impl FnOnce(&mut [u8]),
) -> Result<(), DropReason> {
    let egress = *cx.snapshot.routes.egress(hop.port).ok_or(DropReason::NotOurPort)?;
    let known = cx.flows.get(flow);
    if let Some(encap) = Encap::of(known.kind) {
        let backend = known.server_key().src;
        return send_within(cx, packet, encap, backend, (hop, egress));
    }
    if let Some(error) = forbidden(packet.meta, &egress) {
        return Err(refuse(cx, packet.as_ref(), error));
    }
    let known = cx.flows.get(flow);
    let meta = &mut *packet.meta;
    let bytes = begin(cx.arena, cx.counters, packet.frame, meta);
    if known.kind == FlowKind::Dsr {
        nat::hop(bytes, meta)?;
    } else {
        let (other, change) = (known.key(meta.direction.flip()), known.sum_change(meta.direction));
        nat::rewrite(bytes, meta, &other, change)?;
    }
    if let Some(segment) = bytes.get_mut(usize::from(meta.l4)..usize::from(meta.end)) {
        if meta.tcp_flags & tcp::flag::SYN != 0 {
            let client = &known.client_key();
            clamp_mss(cx.snapshot, client, meta, segment, egress.mtu);
        }
        edit(segment);
    }
    send(bytes, meta, egress, hop);
    Ok(())
}

/// Has a SYN or SYN-ACK of a client's flow announce no larger segments than fit the way that it
/// came and the way that it goes.
#[cold]
pub(super) fn clamp_mss(
    snapshot: &Snapshot,
    client: &FlowKey,
    meta: &PacketMeta,
    segment: &mut [u8],
    mtu: u16,
) {
    let came = snapshot.routes.egress(meta.in_port).map_or(mtu, |e| e.mtu);
    let service = snapshot.forward.service(client.dst, client.dport, client.proto);
    if let Some(limit) = service.and_then(|s| s.mss_clamp.limit(mtu.min(came), client.dst.is_v4()))
    {
        mss::clamp(segment, limit);
    }
}

/// The first packet of a flow, or of none.
#[inline(never)]
fn first(
    cx: &mut Cx<'_>,
    packet: &mut PacketMut<'_>,
    splice: Option<&mut Splice>,
) -> Result<(), DropReason> {
    let tables = &cx.snapshot.forward;
    let meta = &packet.meta;
    let key = &meta.key;
    if meta.flags.has(PacketFlags::ICMP_ERROR) {
        return pass_on(cx, packet, splice);
    }
    // Earlier in this batch it may have been opened.
    if let Some((flow, direction)) = cx.flows.lookup(key, meta.hash) {
        (packet.meta.flow, packet.meta.direction) = (flow, direction);
        return established(cx, packet, flow, splice);
    }
    if meta.flags.has(PacketFlags::LATER_FRAGMENT) {
        if cx.delays.until(meta.hash).is_some() {
            // The first one waits for its token.
            return Lacking::Waits.apply(packet.meta);
        }
        let ours = tables.is_vip(key.dst) || tables.nat().is_some_and(|n| n.is_source(key.dst));
        return if ours { Err(DropReason::Fragment) } else { Ok(()) };
    }
    let Some(&service) = tables.service(key.dst, key.dport, key.proto) else {
        return match adopt_answer(cx, meta)? {
            Some(flow) => {
                (packet.meta.flow, packet.meta.direction) = (flow, Direction::Reply);
                forward(cx, packet, flow)
            }
            None if take_answer(cx, packet) => Ok(()),
            None => stray(cx, packet.meta),
        };
    };
    if let (Some(delay), Some(splice)) = (service.delay, splice) {
        if meta.flags.has(PacketFlags::FRAGMENT) {
            return Err(DropReason::Fragment);
        }
        return match key.proto {
            udp::PROTOCOL => splice.datagram(cx, packet, &service, &delay),
            _ if service.drained && opens(meta.tcp_flags) => Err(DropReason::ServiceDrained),
            _ => splice.unbound(cx, packet, &delay),
        };
    }
    if key.proto == tcp::PROTOCOL && !opens(meta.tcp_flags) && !adopts(cx, meta, &service) {
        return Err(DropReason::NoFlow);
    }
    if service.drained {
        return Err(DropReason::ServiceDrained);
    }
    may_cross(meta)?;
    if key.proto == udp::PROTOCOL
        && let Err(lacking) = admission::begin(cx, meta)
    {
        return lacking.apply(packet.meta);
    }
    let by = Choosing { now: cx.now, turns: cx.turns, serving: cx.flows.serving() };
    let backend = *tables.choose(service.pool, key, by)?;
    if backend.addr.is_v4() != key.dst.is_v4() && !service.mode.is_tunnel() {
        return Err(DropReason::NoBackend);
    }
    let flow = open(cx, meta, &service, &backend)?;
    (packet.meta.flow, packet.meta.direction) = (flow, Direction::Forward);
    forward(cx, packet, flow)
}

/// Takes a flow in, with the key that its answers will have.
pub(super) fn open(
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
        backend: backend.place,
        class: meta.class,
        idle_established_ms: Some(service.idle_established_ms),
    };
    match service.mode {
        ForwardMode::Nat => return open_nat(cx, meta, new, from_backend),
        ForwardMode::Dnat if backend.addr == client.src => return Err(DropReason::SelfAddressed),
        ForwardMode::Dnat => {}
        ForwardMode::Dsr => (new.kind, new.reply) = (FlowKind::Dsr, None),
        ForwardMode::Ipip => (new.kind, new.reply) = (FlowKind::Ipip, None),
        ForwardMode::Gue => (new.kind, new.reply) = (FlowKind::Gue, None),
    }
    let flow = cx.flows.insert(cx.now, &new, meta).map_err(|e| match e {
        // The client uses one port toward two services that lead to this backend.
        InsertError::KeyTaken => DropReason::NatPortsExhausted,
        InsertError::Drop(reason) => reason,
    })?;
    if service.mode.is_one_way() {
        // Never looked up; it says where the backend is.
        cx.flows.get_mut(flow).set_key(Direction::Reply, &from_backend);
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

/// Whether a packet in the middle of a connection opens its flow: another appliance has had it, or
/// this one before it was started anew, and the backend is the one that would be chosen now.
///
/// Such flows count as established for others that begin, so they have half of the table at most. A
/// server's answer to a SYN that took another way opens one, too; as the handshake that it is.
fn adopts(cx: &Cx<'_>, meta: &PacketMeta, service: &Service) -> bool {
    use tcp::flag::{ACK, RST, SYN};
    let telling = match meta.direction {
        Direction::Forward => SYN | ACK | RST,
        Direction::Reply => ACK | RST,
    };
    meta.tcp_flags & telling == ACK
        && cx.snapshot.forward.adopts(service).is_some()
        && cx.flows.len() < cx.flows.capacity() / 2
}

/// The same by what a `dnat` backend answers: its route may lead to another appliance than the
/// client's.
fn adopt_answer(cx: &mut Cx<'_>, meta: &PacketMeta) -> Result<Option<FlowRef>, DropReason> {
    let tables = &cx.snapshot.forward;
    let Some((client, service)) = tables.answered(&meta.key) else { return Ok(None) };
    // What we have asked ourselves is no client's.
    if tables.nat().is_some_and(|n| n.is_source(client.src)) {
        return Ok(None);
    }
    let first = PacketMeta { key: client, direction: Direction::Reply, ..meta.clone() };
    if meta.key.proto != tcp::PROTOCOL || !adopts(cx, &first, service) {
        return Ok(None);
    }
    let service = *service;
    let by = Choosing { now: cx.now, turns: cx.turns, serving: cx.flows.serving() };
    let backend = *tables.choose(service.pool, &client, by)?;
    if (backend.addr, backend.port) != (meta.key.src, meta.key.sport) {
        return Ok(None);
    }
    open(cx, &first, &service, &backend).map(Some)
}

fn opens(tcp_flags: u8) -> bool {
    use tcp::flag::{ACK, FIN, RST, SYN};
    tcp_flags & (SYN | ACK | RST | FIN) == SYN
}

#[cfg(test)]
mod tests;
