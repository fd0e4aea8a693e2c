//! Sends packets of services to backends that are reached through a tunnel.

use super::balance::clamp_mss;
use super::egress::{begin, forbidden, refuse, send};
use crate::base::Addr;
use crate::flow::Hop;
use crate::forward::tunnel::{Encap, encapsulate};
use crate::forward::{Egress, nat};
use crate::graph::Cx;
use crate::packet::{DropReason, PacketMut, tcp};

/// Sends a packet to a backend within another one. Its sender is told where that would be larger
/// than the egress link takes.
#[inline(never)]
pub(super) fn send_within(
    cx: &mut Cx<'_>,
    packet: &mut PacketMut<'_>,
    encap: Encap,
    backend: Addr,
    (hop, egress): (Hop, Egress),
) -> Result<(), DropReason> {
    let room = egress.mtu.saturating_sub(encap.overhead(backend.is_v4()));
    if let Some(error) = forbidden(packet.meta, &Egress { mtu: room, ..egress }) {
        return Err(refuse(cx, packet.as_ref(), error));
    }
    let own = cx.snapshot.routes.own_address(hop.port, backend.is_v4());
    let tunnels = cx.snapshot.forward.tunnels();
    let outer = tunnels.outer(encap, backend, packet.meta.hash, own);
    let outer = outer.ok_or(DropReason::NoTunnelSource)?;
    let meta = &mut *packet.meta;
    let bytes = begin(cx.arena, cx.counters, packet.frame, meta);
    nat::hop(bytes, meta)?;
    if meta.tcp_flags & tcp::flag::SYN != 0
        && let Some(segment) = bytes.get_mut(usize::from(meta.l4)..usize::from(meta.end))
    {
        clamp_mss(cx.snapshot, &meta.key, meta, segment, room);
    }
    encapsulate(packet.frame, cx.arena, meta, &outer)?;
    send(packet.frame.bytes_mut(cx.arena), meta, egress, hop);
    Ok(())
}
