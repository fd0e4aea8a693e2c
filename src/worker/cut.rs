//! Cuts flows that the control plane names, a bounded number a turn.

use super::command::WorkerEvent;
use super::turn::Worker;
use crate::base::Nanos;
use crate::graph::REPLIES_MAX;
use crate::graph::stages::severing::PROBES_MAX;
use crate::nic::Port;
use crate::packet::{FlowKey, FlowRef};

/// Flows looked at in one turn of the loop at most.
const FLOWS_A_TURN: u32 = 256;
/// Flows cut in one turn at most: what that sends has room.
const CUTS_A_TURN: u64 = (REPLIES_MAX / PROBES_MAX) as u64;

impl<P: Port> Worker<P> {
    /// Goes on with what is to be cut.
    pub(super) fn cut_flows(&mut self, now: Nanos) {
        let Some(mut cut) = self.parts.control.cutting.take() else { return };
        let Worker { parts, arena, counters, replies, copies, offload, .. } = self;
        let capacity = parts.flows.capacity() as u32;
        let end = cut.cursor.saturating_add(FLOWS_A_TURN).min(capacity);
        let before = cut.flows;
        while cut.cursor < end && cut.flows - before < CUTS_A_TURN {
            let at = FlowRef(cut.cursor);
            cut.cursor += 1;
            if parts.flows.at(at).is_some_and(|flow| cut.of.has(flow)) {
                // Its packets are to come here again.
                if let Some(offload) = offload {
                    offload.take_back(now, at, parts.flows.get_mut(at));
                }
                let (mut cx, pipeline) =
                    parts.lend(now, arena, counters, (&mut *replies, &mut *copies));
                cut.flows += u64::from(pipeline.cut(&mut cx, at));
            }
        }
        let left = CUTS_A_TURN - (cut.flows - before);
        let mut is_done = cut.cursor == capacity;
        if is_done && cut.of.awaits_some() {
            let (mut cx, pipeline) =
                parts.lend(now, arena, counters, (&mut *replies, &mut *copies));
            let waiting = |client: &FlowKey| cut.of.awaits(client);
            let ended = pipeline.cut_waiting(&mut cx, waiting, left as usize) as u64;
            cut.flows += ended;
            is_done = ended < left;
        }
        parts.send_made(now, counters, replies);
        match !is_done {
            true => self.parts.control.cutting = Some(cut),
            false => self.parts.control.tell(WorkerEvent::Cut(cut)),
        }
    }
}
