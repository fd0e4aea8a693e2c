//! Connections that were given a backend by a request, or by what was no hello: the inspector
//! follows them, and their answers are timed, from the first byte that is held.

use super::Splice;
use crate::forward::splice::Out;
use crate::graph::stages::inspect::Inspect;
use crate::graph::stages::timing::Timing;
use crate::graph::{Cx, REPLIES_MAX};
use crate::packet::{FlowRef, PacketMeta};

impl Splice {
    /// Whether the inspector follows the connection once it has a backend.
    pub(super) fn is_followed(&self, slot: usize) -> bool {
        self.speech.may_ask(slot)
    }

    /// The connection has a flow: before the next batch is looked at, it is followed.
    pub(super) fn have_followed(&mut self, slot: usize) {
        let is_new = !self.unfollowed.contains(&(slot as u16));
        if self.is_followed(slot) {
            self.bound[slot].unfollowed = true;
            // One for each slot.
            if is_new {
                self.unfollowed.push(slot as u16);
            }
        }
    }

    pub fn has_unfollowed(&self) -> bool {
        !self.unfollowed.is_empty()
    }

    /// Gives all that are to be followed to the inspector, and to the stage that times answers:
    /// before their backends' answers are looked at, which would have what is held sent.
    #[cold]
    pub fn follow(
        &mut self,
        cx: &mut Cx<'_>,
        inspect: &mut Inspect,
        mut timing: Option<&mut Timing>,
    ) {
        while let Some(slot) = self.unfollowed.pop() {
            let slot = usize::from(slot);
            let bound = &self.bound[slot];
            if let Some(flow) = bound.flow.filter(|_| bound.unfollowed) {
                self.follow_one(cx, (inspect, timing.as_deref_mut()), slot, flow);
            }
        }
    }

    fn follow_one(
        &mut self,
        cx: &mut Cx<'_>,
        (inspect, timing): (&mut Inspect, Option<&mut Timing>),
        slot: usize,
        flow: FlowRef,
    ) {
        self.bound[slot].unfollowed = false;
        let bound = &self.bound[slot];
        let ((&key, hash), from) = (self.slots.key(slot), bound.binding.beginning());
        let tcp_seq = bound.binding.at(from);
        let first = PacketMeta { key, hash, flow, tcp_seq, ..PacketMeta::default() };
        let first = PacketMeta { tos: bound.dscp << 2, ..first };
        let said = || {
            let pieces = self.held.pieces(slot, from, self.held.len(slot));
            let offsets = pieces.scan(from, |at, piece| {
                let offset = *at;
                *at += piece.len() as u32;
                Some((offset, piece))
            });
            let all = offsets.chain(self.held.early(slot));
            all.map(|(offset, piece)| (bound.binding.at(offset), piece))
        };
        inspect.follow(cx, &first, said());
        if let Some(timing) = timing {
            timing.follow(cx, &first, said());
        }
        if cx.flows.get(flow).class.is_refused() {
            // A later request than the one that it was bound by.
            let mut out = Out::new(REPLIES_MAX - cx.replies.len());
            out.push(self.bound[slot].binding.reset_client(&self.held, slot));
            cx.counters.bindings_unserved += 1;
            self.send_all(cx, slot, &out);
            self.kill(cx, slot);
        }
    }
}
