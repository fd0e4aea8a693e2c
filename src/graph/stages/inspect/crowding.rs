//! Flows that give way to others, because they stall or because there is no room.

use super::{Given, Inspect, STALL_NS_MAX};
use crate::graph::Cx;
use crate::inspect::inspector::{Inspector, Unknown};

/// Slots looked at for stalled flows with each batch.
const SWEEP_SLOTS: usize = 2;
/// Slots among which the one that stalls longest gives way to a new flow.
const CROWD_SLOTS: usize = 8;
/// Slots among which the one that is silent for longest gives its parsers to a new flow.
const PARSER_SLOTS: usize = 64;

impl Inspect {
    /// All slots are taken: of the next few, the flow that stalls longest gives way. Real flows
    /// say what they are within moments, so that whoever opens flows and sends nothing more can't
    /// keep others out.
    pub(super) fn crowd_out(&mut self, cx: &mut Cx<'_>) -> usize {
        let from = self.hand;
        self.hand = (from + CROWD_SLOTS) % self.slots.len();
        let next = (from..from + CROWD_SLOTS).map(|i| i % self.slots.len());
        let slot = next.min_by_key(|&slot| self.slots[slot].progress_at).unwrap_or(from);
        self.give_up(cx, slot, Given::Up(Unknown::Crowded));
        self.free.pop().map_or(slot, usize::from)
    }

    /// All parsers of HTTP are in use and another flow begins as HTTP does, or all room for heads
    /// is and another head may come in part: of the next flows that have one, the one that is
    /// silent for longest is let go.
    pub(super) fn free_parsers(&mut self, cx: &mut Cx<'_>, has: impl Fn(&Inspector) -> bool) {
        let from = self.hand;
        self.hand = (from + PARSER_SLOTS) % self.slots.len();
        let next = (from..from + PARSER_SLOTS.min(self.slots.len())).map(|i| i % self.slots.len());
        let using = next.filter(|&slot| has(&self.inspectors[slot]));
        if let Some(slot) = using.min_by_key(|&slot| self.slots[slot].progress_at) {
            self.give_up(cx, slot, Given::Up(Unknown::Crowded));
        }
    }

    /// Gives up a few of the flows that stall. Those whose protocol is known may be silent for as
    /// long as they like.
    pub(super) fn sweep(&mut self, cx: &mut Cx<'_>) {
        for _ in 0..SWEEP_SLOTS.min(self.slots.len()) {
            self.hand = (self.hand + 1) % self.slots.len();
            let (slot, inspector) = (&self.slots[self.hand], &self.inspectors[self.hand]);
            let follows = inspector.knows() && inspector.requests() > 0 && !slot.told;
            let stalls = cx.now.since(slot.progress_at) > STALL_NS_MAX;
            if slot.taken && stalls && !(follows && self.flow_of(cx, self.hand).is_some()) {
                self.give_up(cx, self.hand, Given::Stalled);
            }
        }
    }
}
