//! Sends packets of health checks the way that a client's would take behind the balancer, and gives
//! back what is answered.

use super::egress::{send, wait, way_to};
use crate::base::Addr;
use crate::flow::SumChange;
use crate::forward::checks::{CheckPacket, CheckWay, OWN_PORTS, PortsOf};
use crate::forward::nat;
use crate::forward::spec::ForwardMode;
use crate::forward::tunnel::{Encap, encapsulate};
use crate::graph::{Cx, REPLIES_MAX, Snapshot};
use crate::packet::field::put_u16;
use crate::packet::frame::HEADROOM;
use crate::packet::{
    DropReason, FlowKey, Frame, Packet, PacketFlags, PacketMeta, PacketMut, ParseOptions, PortId,
    Verdict, eth, parse, tcp,
};

/// Sends a packet as [`Cx::replies`]. Its source address is written here: that of `[nat]`, or the
/// one of our own that a client behind the egress port would have asked.
///
/// # Errors
/// Why it does not go out; nothing is sent then.
pub fn send_check(cx: &mut Cx<'_>, packet: &CheckPacket) -> Result<(), DropReason> {
    if cx.replies.len() >= REPLIES_MAX {
        return Err(DropReason::NoFrames);
    }
    let mut frame = cx.pool.take().ok_or(DropReason::NoFrames)?;
    match prepare(cx, &mut frame, packet) {
        Ok(meta) => {
            cx.replies.push(Packet { frame, meta });
            Ok(())
        }
        Err(reason) => {
            cx.pool.put(frame);
            Err(reason)
        }
    }
}

fn prepare(cx: &Cx<'_>, frame: &mut Frame, packet: &CheckPacket) -> Result<PacketMeta, DropReason> {
    let (snapshot, ip) = (cx.snapshot, packet.bytes());
    if !frame.set_extent(cx.arena, HEADROOM, eth::HEADER_LEN + ip.len()) {
        return Err(DropReason::Truncated);
    }
    let bytes = frame.bytes_mut(cx.arena);
    let is_v4 = ip.first().is_some_and(|first| first >> 4 == 4);
    let kind = if is_v4 { eth::ethertype::IPV4 } else { eth::ethertype::IPV6 };
    put_u16(bytes, eth::offset::ETHERTYPE, kind);
    bytes[eth::HEADER_LEN..].copy_from_slice(ip);
    let mut meta = PacketMeta::default();
    parse(bytes, snapshot.seed, ParseOptions::default(), &mut meta)?;

    let CheckWay { mode, backend } = packet.way;
    let way = way_to(&snapshot.routes, backend, &meta.key)?;
    let egress = *snapshot.routes.egress(way.hop.port).ok_or(DropReason::NotOurPort)?;
    let source = source(snapshot, mode, way.hop.port, is_v4)?;
    let sent = FlowKey { src: source, ..meta.key };
    let change = SumChange::between(&meta.key, &sent.reversed());
    nat::rewrite(bytes, &mut meta, &sent.reversed(), change)?;
    (meta.key, meta.hash) = (sent, sent.hash(snapshot.seed));
    if let Some(encap) = encap(mode) {
        let own = snapshot.routes.own_address(way.hop.port, backend.is_v4());
        let outer = snapshot.forward.tunnels().outer(encap, backend, meta.hash, own);
        encapsulate(frame, cx.arena, &mut meta, &outer.ok_or(DropReason::NoTunnelSource)?)?;
    }
    if meta.end.saturating_sub(meta.l3) > egress.mtu {
        return Err(DropReason::TooBig);
    }
    send(frame.bytes_mut(cx.arena), &mut meta, egress, way.hop);
    wait(&mut meta, &way);
    Ok(meta)
}

fn encap(mode: ForwardMode) -> Option<Encap> {
    match mode {
        ForwardMode::Ipip => Some(Encap::Ipip),
        ForwardMode::Gue => Some(Encap::Gue),
        ForwardMode::Nat | ForwardMode::Dnat | ForwardMode::Dsr => None,
    }
}

fn source(
    snapshot: &Snapshot,
    mode: ForwardMode,
    port: PortId,
    v4: bool,
) -> Result<Addr, DropReason> {
    let nat = snapshot.forward.nat();
    if mode == ForwardMode::Nat {
        return nat.and_then(|nat| nat.address(v4)).ok_or(DropReason::NatPortsExhausted);
    }
    // An address of `[nat]` has other ports for checks.
    let mut own = snapshot.routes.own_addresses(port, v4);
    own.find(|own| !nat.is_some_and(|nat| nat.is_source(*own))).ok_or(DropReason::NoTunnelSource)
}

/// Takes a packet of no flow that is for a check. `false`: it is none.
#[cold]
pub(super) fn take_answer(cx: &Cx<'_>, packet: &mut PacketMut<'_>) -> bool {
    let meta = &mut *packet.meta;
    let (Some(ring), Some(of)) = (&cx.copies.checks, ports_of(cx.snapshot, &meta.key)) else {
        return false;
    };
    // Whatever comes here from others takes nothing of what checks need.
    if !ring.asks(of, meta.key.dport, (meta.key.src, meta.key.sport)) {
        return false;
    }
    meta.verdict = Verdict::Absorb;
    let within = usize::from(meta.l3)..usize::from(meta.end);
    let bytes = packet.frame.bytes(cx.arena).get(within).unwrap_or_default();
    // Where none is free it is as if lost on the way.
    if let Some(mut answer) = ring.blank_for_answer() {
        (answer.key, answer.failed) = (meta.key, None);
        answer.l4 = usize::from(meta.l4.saturating_sub(meta.l3));
        answer.has_partial_checksum = meta.flags.has(PacketFlags::PARTIAL_CHECKSUM);
        match answer.fill(bytes) {
            true => ring.give(answer),
            false => ring.recycle(answer),
        }
    }
    true
}

/// Whose ports a packet is for, of those that checks ask from.
fn ports_of(snapshot: &Snapshot, key: &FlowKey) -> Option<PortsOf> {
    if key.proto != tcp::PROTOCOL {
        return None;
    }
    let is_own = || snapshot.routes.ports().iter().any(|port| port.addrs.contains(&key.dst));
    match snapshot.forward.nat().filter(|nat| nat.is_source(key.dst)) {
        Some(nat) => nat.is_for_checks(key.dport).then_some(PortsOf::Nat),
        None => (OWN_PORTS.contains(&key.dport) && is_own()).then_some(PortsOf::Own),
    }
}
