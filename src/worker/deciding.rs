//! Has other rules decide about the flows that are there already, a bounded number a turn.

use super::turn::{Worker, WorkerParts};
use crate::base::Nanos;
use crate::nic::Port;
use crate::observe::Counters;
use crate::packet::{FlowRef, PacketMeta};

/// Places of the flow table looked at in one turn of the loop at most.
const PLACES_A_TURN: u32 = 1_024;
/// Flows decided about in one turn at most.
const FLOWS_A_TURN: usize = 64;

impl<P: Port> Worker<P> {
    /// Goes on where it stopped. Packets of flows that are not reached yet go as they did before.
    pub(super) fn decide_anew(&mut self, now: Nanos) {
        let Some(mut next) = self.parts.control.deciding.take() else { return };
        let Worker { parts, arena, counters, replies, copies, offload, .. } = self;
        let capacity = parts.flows.capacity() as u32;
        let end = next.saturating_add(PLACES_A_TURN).min(capacity);
        let mut flows = 0;
        while next < end && flows < FLOWS_A_TURN {
            let at = FlowRef(next);
            next += 1;
            if parts.flows.at(at).is_none() {
                continue;
            }
            flows += 1;
            let (mut cx, pipeline) =
                parts.lend(now, arena, counters, (&mut *replies, &mut *copies));
            if pipeline.decide_anew(&mut cx, at)
                && let Some(offload) = offload
            {
                // The program does nothing but forward.
                offload.take_back(now, at, parts.flows.get_mut(at));
            }
        }
        parts.take_along(now, counters, &mut []);
        parts.control.deciding = (next < capacity).then_some(next);
    }
}

impl<P: Port> WorkerParts<P> {
    /// Has what waits of flows follow them to the classes that they now have, also what is about to
    /// be queued.
    #[cold]
    #[inline(never)]
    pub(super) fn take_along(
        &mut self,
        now: Nanos,
        counters: &mut Counters,
        batch: &mut [PacketMeta],
    ) {
        for flow in self.names.reclassed.drain(..) {
            let of_flow = |meta: &&mut PacketMeta| {
                !meta.class.is_refused() && flow.hashes.contains(&meta.hash)
            };
            batch.iter_mut().filter(of_flow).for_each(|meta| meta.class = flow.to);
            for side in &mut self.sides {
                side.reclass(now, &flow, &mut self.pool, counters);
            }
        }
    }
}
