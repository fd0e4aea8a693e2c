//! Backends' packets before the replay is over.

use super::client::{offer, seen};
use super::{LinkState, Splice};
use crate::forward::mss;
use crate::forward::splice::translate::acknowledge;
use crate::forward::splice::{FromServer, Heard, Out};
use crate::graph::stages::admission::Lacking;
use crate::graph::stages::balance::forward_edited;
use crate::graph::stages::egress::way_to;
use crate::graph::{Cx, REPLIES_MAX};
use crate::packet::{DropReason, FlowRef, PacketMut};

impl Splice {
    /// A backend's packet of a connection that has a slot.
    pub(super) fn answered(
        &mut self,
        cx: &mut Cx<'_>,
        packet: &mut PacketMut<'_>,
        flow: FlowRef,
        slot: usize,
    ) -> Result<(), DropReason> {
        // What the client asks goes on once the backend has opened: so that is what waits for the
        // request's token.
        if let Some(due) = cx.delays.until(self.slots.key(slot).1) {
            cx.delays.begin(packet.meta.hash, due, false);
            return Lacking::Waits.apply(packet.meta);
        }
        let (seen, offer) = (seen(cx, packet.as_ref()), offer(cx, packet.as_ref()));
        let meta = &*packet.meta;
        let mtu = way_to(&cx.snapshot.routes, meta.key.src, &meta.key)
            .ok()
            .and_then(|way| cx.snapshot.routes.egress(way.hop.port))
            .map_or(u16::MAX, |e| e.mtu);
        let stamp = self.cookies.stamp(cx.now, self.slots.key(slot).0);
        let mut out = Out::new(REPLIES_MAX - cx.replies.len());
        let payload_len = meta.payload_len() as u32;
        let mss_max = mss::of_mtu(mtu, meta.is_v4());
        let heard = Heard { seen, offer, payload_len, mss_max, stamp };
        let held = (&mut self.held, slot);
        let binding = &mut self.bound[slot].binding;
        let from = binding.server(cx.now, &heard, held, &mut out);
        match from {
            FromServer::Refused(reason) => Err(reason),
            FromServer::Unwilling => {
                self.answer(cx, packet, slot, &out)?;
                self.try_next(cx, slot);
                Ok(())
            }
            FromServer::Taken | FromServer::Opened => {
                cx.flows.touch(cx.now, flow, packet.meta, packet.frame.len() as u32);
                if from == FromServer::Opened {
                    self.links[flow.0 as usize].translation =
                        self.bound[slot].binding.translation();
                    self.have_timed(cx.now, slot);
                }
                self.arm(slot);
                self.answer(cx, packet, slot, &out)
            }
            FromServer::PassAs { acknowledgment, window } => {
                cx.flows.touch(cx.now, flow, packet.meta, packet.frame.len() as u32);
                self.send_all(cx, slot, &out);
                self.arm(slot);
                let translation = self.links[flow.0 as usize].translation;
                forward_edited(cx, packet, flow, |segment| {
                    translation.to_client(segment);
                    acknowledge(segment, acknowledgment, window);
                })
            }
            FromServer::Done => {
                cx.counters.bindings_joined += 1;
                self.links[flow.0 as usize].state = LinkState::Joined;
                self.release(slot);
                self.translated(cx, packet, flow)
            }
        }
    }
}
