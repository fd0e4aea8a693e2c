//! The last steps of every stage that forwards: the next hop, what forbids going there, and the
//! Ethernet header.

use crate::base::Addr;
use crate::flow::{FlowTable, Hop};
use crate::forward::icmp::{self, IcmpError};
use crate::forward::{Egress, Routes, link};
use crate::graph::{Cx, REPLIES_MAX, park};
use crate::packet::frame::HEADROOM;
use crate::packet::{
    Batch, Direction, DropReason, FlowRef, Packet, PacketFlags, PacketMeta, PortId, Verdict, scope,
};

/// Where a packet goes next.
#[derive(Clone, Copy, Debug)]
pub(super) struct Way {
    pub port: PortId,
    pub to: To,
}

#[derive(Clone, Copy, Debug)]
pub(super) enum To {
    Mac([u8; 6]),
    /// Its MAC address is not known yet.
    Neighbour(Addr),
}

/// Runs `step` over the packets that are undecided; an error drops the packet. So does another
/// host's Ethernet destination ([`DropReason::NotOurMac`]): a promiscuous interface sees such
/// packets too, and whom they are for will forward them.
#[inline]
pub(super) fn each_undecided(
    cx: &mut Cx<'_>,
    batch: &mut Batch,
    mut step: impl FnMut(&mut Cx<'_>, &mut Packet) -> Result<(), DropReason>,
) {
    each_overheard(cx, batch, |cx, packet| {
        if is_for_us(cx, packet) { step(cx, packet) } else { Err(DropReason::NotOurMac) }
    });
}

/// As [`each_undecided`], whatever the Ethernet destination.
///
/// Opening a flow may push an older, half-open one out of the table. From then on what the batch
/// was looked up to be can't be trusted, so the rest is looked up again, also for the stages
/// behind.
#[inline]
pub(super) fn each_overheard(
    cx: &mut Cx<'_>,
    batch: &mut Batch,
    mut step: impl FnMut(&mut Cx<'_>, &mut Packet) -> Result<(), DropReason>,
) {
    let evicted = cx.flows.half_open_evicted();
    for packet in batch.iter_mut() {
        if packet.meta.verdict != Verdict::Next {
            continue;
        }
        if cx.flows.half_open_evicted() != evicted {
            look_up_again(cx.flows, &mut packet.meta);
        }
        if let Err(reason) = step(cx, packet) {
            packet.meta.drop_for(reason);
        }
    }
    if cx.flows.half_open_evicted() != evicted {
        let left = batch.iter_mut().filter(|p| p.meta.verdict == Verdict::Next);
        left.for_each(|p| look_up_again(cx.flows, &mut p.meta));
    }
}

/// Whether the packet's Ethernet destination is the port it came in by. A port whose address is not
/// known (all zero) takes everything.
#[inline(always)]
fn is_for_us(cx: &Cx<'_>, packet: &Packet) -> bool {
    let own = cx.snapshot.routes.egress(packet.meta.in_port).map_or([0; 6], |port| port.mac);
    packet.frame.bytes(cx.arena).starts_with(&own) || own == [0; 6]
}

#[cold]
fn look_up_again(flows: &FlowTable, meta: &mut PacketMeta) {
    let found = flows.lookup(&meta.key, meta.hash);
    (meta.flow, meta.direction) = found.unwrap_or((FlowRef::NONE, Direction::Forward));
}

/// The way to `target` for packets of a flow. Remembered in the flow until routes change, so that
/// most packets need no lookup.
///
/// # Errors
/// As [`Routes::resolve`].
#[inline]
pub(super) fn way_of_flow(
    cx: &mut Cx<'_>,
    flow: FlowRef,
    direction: Direction,
    target: Addr,
) -> Result<Way, DropReason> {
    let routes: &Routes = &cx.snapshot.routes;
    let direction = direction as usize;
    let known = cx.flows.get(flow);
    if known.hop_generation[direction] == routes.generation() {
        let hop = known.hop[direction];
        return Ok(Way { port: hop.port, to: To::Mac(hop.mac) });
    }
    let way = way_to(routes, target)?;
    if let To::Mac(mac) = way.to {
        let known = cx.flows.get_mut(flow);
        known.hop[direction] = Hop { mac, port: way.port };
        known.hop_generation[direction] = routes.generation();
    }
    Ok(way)
}

/// The way to `target`.
///
/// # Errors
/// As [`Routes::resolve`].
pub(super) fn way_to(routes: &Routes, target: Addr) -> Result<Way, DropReason> {
    let resolved = routes.resolve(target)?;
    let to = resolved.mac.map_or(To::Neighbour(resolved.next_hop), To::Mac);
    Ok(Way { port: resolved.port, to })
}

/// For first packets: those of a flow come from where its first one came from.
///
/// # Errors
/// [`DropReason::Martian`] on a source that only means something on its own link (RFC 3927, section
/// 7; RFC 4291, section 2.5.6).
pub(super) fn may_cross(meta: &PacketMeta) -> Result<(), DropReason> {
    if scope::is_link_local(meta.key.src) { Err(DropReason::Martian) } else { Ok(()) }
}

/// Whether the packet, still as it was received, may leave by `port`; if not, its sender is told.
///
/// # Errors
/// [`DropReason::TtlExceeded`] and [`DropReason::TooBig`].
#[inline]
pub(super) fn admit(cx: &mut Cx<'_>, packet: &Packet, port: PortId) -> Result<Egress, DropReason> {
    let meta = &packet.meta;
    let egress = *cx.snapshot.routes.egress(port).ok_or(DropReason::NotOurPort)?;
    if meta.ttl <= 1 {
        answer(cx, packet, IcmpError::TimeExceeded);
        return Err(DropReason::TtlExceeded);
    }
    if meta.end.saturating_sub(meta.l3) > egress.mtu {
        answer(cx, packet, IcmpError::TooBig { mtu: egress.mtu });
        return Err(DropReason::TooBig);
    }
    Ok(egress)
}

/// Takes tags off, has `rewrite` change the IP packet, writes the Ethernet header, and decides.
///
/// # Errors
/// Those of `rewrite`.
#[inline]
pub(super) fn send(
    cx: &mut Cx<'_>,
    packet: &mut Packet,
    egress: Egress,
    way: Way,
    rewrite: impl FnOnce(&mut [u8], &mut PacketMeta) -> Result<(), DropReason>,
) -> Result<(), DropReason> {
    let Packet { frame, meta } = packet;
    link::strip_tags(frame, cx.arena, meta);
    if meta.flags.has(PacketFlags::PARTIAL_CHECKSUM) {
        cx.counters.checksums_completed += 1;
    }
    let bytes = frame.bytes_mut(cx.arena);
    rewrite(bytes, meta)?;
    match way.to {
        To::Mac(mac) => {
            link::set_addresses(bytes, mac, egress.mac);
            meta.out_port = way.port;
            meta.verdict = Verdict::Output;
        }
        To::Neighbour(next_hop) => {
            link::set_addresses(bytes, [0; 6], egress.mac);
            park(meta, way.port, next_hop);
        }
    }
    Ok(())
}

/// Sends an ICMP error about a packet, where that is allowed, back to the neighbour that sent it.
#[cold]
#[inline(never)]
fn answer(cx: &mut Cx<'_>, packet: &Packet, error: IcmpError) {
    let meta = &packet.meta;
    let bytes = packet.frame.bytes(cx.arena);
    if !icmp::may_answer(bytes, meta) {
        return;
    }
    let Some(from) = cx.snapshot.routes.own_address(meta.in_port, meta.is_v4()) else { return };
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
