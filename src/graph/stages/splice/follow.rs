//! Connections that were given a backend: what their clients said before goes by neither the
//! inspector nor the timers, and is shown to them. Those that began with a request, or with what
//! was no hello, the inspector follows, from the first byte that is held.

use super::Splice;
use crate::base::Nanos;
use crate::forward::splice::Out;
use crate::graph::stages::inspect::Inspect;
use crate::graph::stages::timing::Timing;
use crate::graph::{Cx, REPLIES_MAX};
use crate::packet::{FlowRef, PacketMeta};

impl Splice {
    /// The connection has a flow: before the next batch is looked at, it is followed.
    pub(super) fn have_followed(&mut self, slot: usize) {
        let is_new = !self.unfollowed.contains(&(slot as u16));
        if self.speech.may_ask(slot) {
            self.bound[slot].unfollowed = true;
            // One for each slot.
            if is_new {
                self.unfollowed.push(slot as u16);
            }
        }
    }

    /// The backend has taken the connection, so that it is asked now what the client asked before.
    pub(super) fn have_timed(&mut self, now: Nanos, slot: usize) {
        self.bound[slot].asked_at = Some(now);
        // It only fills up where nothing is timed at all.
        if self.untimed.len() < self.untimed.capacity() {
            self.untimed.push(slot as u16);
        }
    }

    /// Whether there is anything that the inspector is to know.
    pub fn has_unfollowed(&self) -> bool {
        !(self.unfollowed.is_empty() && self.left.is_empty())
    }

    /// Gives all that are to be followed to the inspector: before their backends' answers are
    /// looked at, which would have what is held sent.
    #[cold]
    pub fn follow(&mut self, cx: &mut Cx<'_>, inspect: &mut Inspect) {
        self.give_back(inspect);
        while let Some(slot) = self.unfollowed.pop() {
            let slot = usize::from(slot);
            let bound = &self.bound[slot];
            if let Some(flow) = bound.flow.filter(|_| bound.unfollowed) {
                self.follow_one(cx, inspect, slot, flow);
            }
        }
    }

    pub fn has_untimed(&self) -> bool {
        !self.untimed.is_empty()
    }

    /// Shows what was held of connections that were joined to the timers: before their backends'
    /// answers come by there.
    #[cold]
    pub fn time(&mut self, cx: &mut Cx<'_>, timing: &mut Timing) {
        while let Some(slot) = self.untimed.pop() {
            let bound = &mut self.bound[usize::from(slot)];
            if let (Some(at), Some(flow)) = (bound.asked_at.take(), bound.flow) {
                let (first, said) = self.said(usize::from(slot), flow);
                timing.follow(cx, at, &first, said);
            }
        }
    }

    /// What is held of what a client said, by its own sequence numbers, and a packet's notes that
    /// begin it.
    fn said(&self, slot: usize, flow: FlowRef) -> (PacketMeta, impl Iterator<Item = (u32, &[u8])>) {
        let bound = &self.bound[slot];
        let ((&key, hash), from) = (self.slots.key(slot), bound.binding.beginning());
        let tcp_seq = bound.binding.at(from);
        let first = PacketMeta { key, hash, flow, tcp_seq, ..PacketMeta::default() };
        let first = PacketMeta { tos: bound.dscp << 2, ..first };
        let pieces = self.held.pieces(slot, from, self.held.len(slot));
        let offsets = pieces.scan(from, |at, piece| {
            let offset = *at;
            *at += piece.len() as u32;
            Some((offset, piece))
        });
        let all = offsets.chain(self.held.early(slot));
        (first, all.map(|(offset, piece)| (bound.binding.at(offset), piece)))
    }

    fn follow_one(&mut self, cx: &mut Cx<'_>, inspect: &mut Inspect, slot: usize, flow: FlowRef) {
        self.bound[slot].unfollowed = false;
        let (first, said) = self.said(slot, flow);
        inspect.follow(cx, &first, said);
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
