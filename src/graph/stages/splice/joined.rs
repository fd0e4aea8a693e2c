//! Packets of spliced flows: once joined, translated and sent on.

use super::{LinkState, Splice};
use crate::graph::Cx;
use crate::graph::stages::balance::forward_edited;
use crate::packet::{Direction, DropReason, FlowRef, PacketMut, udp};

impl Splice {
    /// A packet of a spliced flow.
    #[inline]
    pub fn bound(
        &mut self,
        cx: &mut Cx<'_>,
        packet: &mut PacketMut<'_>,
        flow: FlowRef,
    ) -> Result<(), DropReason> {
        let Some(link) = self.links.get(flow.0 as usize) else { return Err(DropReason::NoFlow) };
        let state = link.state;
        if state == LinkState::Joined && !cx.flows.get(flow).tcp.has_ended() {
            return self.translated(cx, packet, flow);
        }
        self.unusual(cx, packet, flow, state)
    }

    #[cold]
    fn unusual(
        &mut self,
        cx: &mut Cx<'_>,
        packet: &mut PacketMut<'_>,
        flow: FlowRef,
        state: LinkState,
    ) -> Result<(), DropReason> {
        if packet.meta.key.proto == udp::PROTOCOL {
            return self.early_datagram(cx, packet, flow);
        }
        let forward = packet.meta.direction == Direction::Forward;
        if forward && let Some(done) = self.reopened(cx, packet, flow) {
            return done;
        }
        match state {
            LinkState::Joined => self.translated(cx, packet, flow),
            LinkState::Dead | LinkState::Unread => self.refuse(cx, packet, flow),
            LinkState::Binding(slot) if forward => self.waiting(cx, packet, usize::from(slot)),
            LinkState::Binding(slot) => self.answered(cx, packet, flow, usize::from(slot)),
        }
    }

    #[inline]
    pub(super) fn translated(
        &mut self,
        cx: &mut Cx<'_>,
        packet: &mut PacketMut<'_>,
        flow: FlowRef,
    ) -> Result<(), DropReason> {
        cx.flows.touch(cx.now, flow, packet.meta, packet.frame.len() as u32);
        let translation = &mut self.links[flow.0 as usize].translation;
        match packet.meta.direction {
            Direction::Forward => {
                forward_edited(cx, packet, flow, |segment| translation.to_server(segment))
            }
            Direction::Reply => {
                forward_edited(cx, packet, flow, |segment| translation.to_client(segment))
            }
        }
    }

    /// As [`Splice::translated`], for a client's packet while the replay goes on; it was counted.
    pub(super) fn pass_early(
        &mut self,
        cx: &mut Cx<'_>,
        packet: &mut PacketMut<'_>,
        slot: usize,
    ) -> Result<(), DropReason> {
        let flow = self.bound[slot].flow.ok_or(DropReason::NoFlow)?;
        let translation = &mut self.links[flow.0 as usize].translation;
        forward_edited(cx, packet, flow, |segment| translation.to_server(segment))
    }
}
