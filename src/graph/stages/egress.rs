//! The last steps of every stage that forwards: the next hop, what forbids going there, and the
//! Ethernet header.

use crate::base::Addr;
use crate::base::mem::Arena;
use crate::flow::{Flow, FlowTable, Hop};
use crate::forward::icmp::{self, IcmpError, Unreachable};
use crate::forward::{Egress, Resolved, Routes, link};
use crate::graph::{Cx, REPLIES_MAX, park};
use crate::observe::Counters;
use crate::packet::frame::HEADROOM;
use crate::packet::{
    Batch, Direction, DropReason, FlowKey, FlowRef, Frame, Packet, PacketFlags, PacketMeta,
    PacketMut, PacketRef, Verdict, scope,
};

/// Where a packet goes next.
#[derive(Clone, Copy, Debug)]
pub(super) struct Way {
    pub hop: Hop,
    /// The neighbour whose MAC address is not known yet; the one in `hop` is none.
    pub wait_for: Option<Addr>,
}

/// How many packets ahead a frame's header is asked for: frames lie at even distances, so that few
/// of them fit the first-level cache at once.
const AHEAD: usize = 4;

/// Runs `step` over the packets that are undecided; an error drops the packet. So does another
/// host's Ethernet destination ([`PacketFlags::OTHER_HOST`]).
#[inline(always)]
pub(super) fn each_undecided(
    cx: &mut Cx<'_>,
    batch: &mut Batch,
    mut step: impl FnMut(&mut Cx<'_>, &mut PacketMut<'_>) -> Result<(), DropReason>,
) {
    each_overheard(cx, batch, |cx, packet| {
        if packet.meta.flags.has(PacketFlags::OTHER_HOST) {
            return Err(DropReason::NotOurMac);
        }
        step(cx, packet)
    });
}

/// As [`each_undecided`], whatever the Ethernet destination.
///
/// Opening a flow may push an older one out of the table. From then on what the batch was looked up
/// to be can't be trusted, so the rest is looked up again, also for the stages behind.
#[inline(always)]
pub(super) fn each_overheard(
    cx: &mut Cx<'_>,
    batch: &mut Batch,
    mut step: impl FnMut(&mut Cx<'_>, &mut PacketMut<'_>) -> Result<(), DropReason>,
) {
    let removals = cx.flows.removals();
    let (frames, metas) = batch.parts_mut();
    frames.iter().take(AHEAD).for_each(|frame| frame.prefetch(cx.arena));
    for i in 0..frames.len().min(metas.len()) {
        if let (Some(later), Some(meta)) = (frames.get(i + AHEAD), metas.get(i + AHEAD)) {
            later.prefetch(cx.arena);
            cx.flows.prefetch_flow(meta.flow);
        }
        let mut packet = PacketMut { frame: &mut frames[i], meta: &mut metas[i] };
        if packet.meta.verdict != Verdict::Next {
            continue;
        }
        if cx.flows.removals() != removals {
            look_up_again(cx.flows, packet.meta);
        }
        if let Err(reason) = step(cx, &mut packet) {
            packet.meta.drop_for(reason);
        }
    }
    if cx.flows.removals() != removals {
        let left = metas.iter_mut().filter(|meta| meta.verdict == Verdict::Next);
        left.for_each(|meta| look_up_again(cx.flows, meta));
    }
}

#[cold]
fn look_up_again(flows: &FlowTable, meta: &mut PacketMeta) {
    let found = flows.lookup(&meta.key, meta.hash);
    (meta.flow, meta.direction) = found.unwrap_or((FlowRef::NONE, Direction::Forward));
}

/// Finds the way to `target` for packets of a flow anew, and has the flow remember it until routes
/// change, so that most packets need no lookup.
///
/// # Errors
/// As [`Routes::resolve`].
pub(super) fn way_of_flow(
    routes: &Routes,
    flow: &mut Flow,
    direction: Direction,
    target: Addr,
) -> Result<Way, DropReason> {
    let key = flow.client_key();
    let way = way_to(routes, target, &key)?;
    if way.wait_for.is_none() {
        flow.set_hop(direction, way.hop, routes.generation());
    }
    Ok(way)
}

/// The way of a flow to `target`.
///
/// # Errors
/// As [`Routes::resolve`].
pub(super) fn way_to(routes: &Routes, target: Addr, flow: &FlowKey) -> Result<Way, DropReason> {
    routes.resolve(target, flow).map(Way::from)
}

impl From<Resolved> for Way {
    fn from(to: Resolved) -> Way {
        let hop = Hop { mac: to.mac.unwrap_or_default(), port: to.port };
        Way { hop, wait_for: to.mac.is_none().then_some(to.next_hop) }
    }
}

/// Has a packet that was sent wait for its neighbour, where it must.
pub(super) fn wait(meta: &mut PacketMeta, way: &Way) {
    if let Some(next_hop) = way.wait_for {
        park(meta, way.hop.port, next_hop);
    }
}

/// For first packets: those of a flow come from where its first one came from.
///
/// # Errors
/// [`DropReason::Martian`] on a source that only means something on its own link (RFC 3927, section
/// 7; RFC 4291, section 2.5.6).
pub(super) fn may_cross(meta: &PacketMeta) -> Result<(), DropReason> {
    if scope::is_link_local(meta.key.src) { Err(DropReason::Martian) } else { Ok(()) }
}

/// What the packet's sender is to be told if the packet, still as it was received, may not leave by
/// a port.
#[inline(always)]
pub(super) fn forbidden(meta: &PacketMeta, egress: &Egress) -> Option<IcmpError> {
    if meta.ttl <= 1 {
        return Some(IcmpError::TimeExceeded);
    }
    (meta.end.saturating_sub(meta.l3) > egress.mtu).then_some(IcmpError::TooBig { mtu: egress.mtu })
}

/// Takes tags off, and returns the packet's bytes for rewriting.
#[inline(always)]
pub(super) fn begin<'a>(
    arena: &'a Arena,
    counters: &mut Counters,
    frame: &'a mut Frame,
    meta: &mut PacketMeta,
) -> &'a mut [u8] {
    link::strip_tags(frame, arena, meta);
    if meta.flags.has(PacketFlags::PARTIAL_CHECKSUM) {
        counters.checksums_completed += 1;
    }
    frame.bytes_mut(arena)
}

/// Writes the Ethernet header, and decides.
#[inline(always)]
pub(super) fn send(bytes: &mut [u8], meta: &mut PacketMeta, egress: Egress, hop: Hop) {
    link::set_addresses(bytes, hop.mac, egress.mac);
    meta.out_port = hop.port;
    meta.verdict = Verdict::Output;
}

/// Sends an ICMP error about a packet, where that is allowed, back to the neighbour that sent it.
/// Returns why the packet is dropped.
#[cold]
#[inline(never)]
pub(super) fn refuse(cx: &mut Cx<'_>, packet: PacketRef<'_>, error: IcmpError) -> DropReason {
    answer(cx, packet, error);
    match error {
        IcmpError::TooBig { .. } => DropReason::TooBig,
        IcmpError::TimeExceeded => DropReason::TtlExceeded,
        IcmpError::Unreachable(Unreachable::Network) => DropReason::NoRoute,
        IcmpError::Unreachable(Unreachable::Host) => DropReason::RouteUnreachable,
        IcmpError::Unreachable(Unreachable::Prohibited) => DropReason::RouteForbids,
    }
}

/// The way of a transit packet to where it wants, by the routes for the port that it came in by.
/// Its sender is told where there is none (RFC 1812, 5.2.7.1; RFC 4443, 3.1).
///
/// # Errors
/// As [`Routes::resolve`].
pub(super) fn way_of_transit(cx: &mut Cx<'_>, packet: PacketRef<'_>) -> Result<Way, DropReason> {
    let meta = packet.meta;
    let found = cx.snapshot.routes.resolve_transit(meta.in_port, meta.key.dst, &meta.key);
    found.map(Way::from).map_err(|reason| {
        let why = match reason {
            DropReason::NoRoute => Unreachable::Network,
            DropReason::RouteUnreachable => Unreachable::Host,
            DropReason::RouteForbids => Unreachable::Prohibited,
            silent => return silent,
        };
        refuse(cx, packet, IcmpError::Unreachable(why))
    })
}

fn answer(cx: &mut Cx<'_>, packet: PacketRef<'_>, error: IcmpError) {
    let meta = packet.meta;
    let bytes = packet.frame.bytes(cx.arena);
    if !icmp::may_answer(bytes, meta) {
        return;
    }
    let Some(from) = cx.snapshot.routes.own_address(meta.in_port, meta.is_v4()) else { return };
    if from == meta.key.src {
        // Somebody claims to be us: no packet leaves from an address to itself.
        return;
    }
    if cx.replies.len() >= REPLIES_MAX || !cx.icmp_limit.allow(cx.now) {
        cx.counters.icmp_limited += 1;
        return;
    }
    let Some(mut frame) = cx.pool.take() else {
        cx.counters.icmp_limited += 1;
        return;
    };
    if !frame.set_extent(cx.arena, HEADROOM, icmp::frame_len(meta)) {
        cx.pool.put(frame);
        return;
    }
    icmp::emit(frame.bytes_mut(cx.arena), bytes, meta, error, from);
    let meta = PacketMeta {
        hash: meta.hash,
        in_port: meta.in_port,
        out_port: meta.in_port,
        verdict: Verdict::Output,
        ..PacketMeta::default()
    };
    cx.replies.push(Packet { frame, meta });
    cx.counters.icmp_sent += 1;
}
