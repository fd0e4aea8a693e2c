//! Flows that give way to others, because they stall or because there is no room.

use super::{Given, Inspect, SIDES, STALL_NS_MAX};
use crate::flow::TcpState;
use crate::graph::Cx;
use crate::inspect::inspector::{Inspector, Unknown};

/// Slots looked at for stalled flows with each batch.
const SWEEP_SLOTS: usize = 2;
/// Slots among which the one that stalls longest gives way to a new flow.
const CROWD_SLOTS: usize = 8;
/// Flows with parsers among which the one that is silent for longest gives them to a new flow.
const PARSER_SLOTS: usize = 64;
/// How long both sides have closed before the slot is free though no packet came that says so.
const ENDED_NS: u64 = 1_000_000_000;
const NOWHERE: u16 = u16::MAX;

/// Slots of flows that have parsers of HTTP, in no order.
pub(super) struct Holders {
    slots: Vec<u16>,
    /// Where each slot stands there.
    at: Box<[u16]>,
    /// Where the search for one that gives way goes on.
    hand: usize,
}

impl Holders {
    pub(super) fn new(slots: usize) -> Holders {
        let at = vec![NOWHERE; slots].into_boxed_slice();
        Holders { slots: Vec::with_capacity(slots), at, hand: 0 }
    }

    #[inline]
    pub(super) fn note(&mut self, slot: usize) {
        if self.at[slot] == NOWHERE {
            self.at[slot] = self.slots.len() as u16;
            self.slots.push(slot as u16);
        }
    }

    pub(super) fn forget(&mut self, slot: usize) {
        let at = std::mem::replace(&mut self.at[slot], NOWHERE);
        if at != NOWHERE {
            self.slots.swap_remove(usize::from(at));
            if let Some(&moved) = self.slots.get(usize::from(at)) {
                self.at[usize::from(moved)] = at;
            }
        }
    }

    fn next(&mut self) -> Option<usize> {
        self.hand = if self.hand + 1 < self.slots.len() { self.hand + 1 } else { 0 };
        self.slots.get(self.hand).map(|&slot| usize::from(slot))
    }
}

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
    /// is and another head may come in part: of some flows that have one, the one that is silent
    /// for longest is let go; of those first of which nothing is lost by that, then of those of
    /// HTTP/2 that have nothing under way.
    pub(super) fn free_parsers(&mut self, cx: &mut Cx<'_>, has: impl Fn(&Inspector) -> bool) {
        let mut least = None;
        for n in 0..self.holders.slots.len() {
            let Some(slot) = self.holders.next().filter(|_| n < PARSER_SLOTS || least.is_none())
            else {
                break;
            };
            if has(&self.inspectors[slot]) {
                let spared = self.may_begin_anew(slot, Given::Stalled) || self.has_ended(cx, slot);
                let idle = self.inspectors[slot].is_idle_http2();
                let this = (!spared, !idle, self.slots[slot].progress_at, slot);
                least = least.filter(|least| *least < this).or(Some(this));
            }
        }
        if let Some((.., slot)) = least {
            self.give_up(cx, slot, Given::Up(Unknown::Crowded));
        }
    }

    /// Both sides have closed, and all that the client said was read: nothing more comes. Or the
    /// flow has left the table.
    pub(super) fn has_ended(&self, cx: &Cx<'_>, slot: usize) -> bool {
        self.flow_of(cx, slot).is_none_or(|flow| {
            let both = matches!(cx.flows.get(flow).tcp, TcpState::TimeWait | TcpState::LastAck);
            both && !self.reassembler.has_gap(SIDES * slot)
        })
    }

    /// Gives up a few of the flows that stall. Those whose protocol is known may be silent for as
    /// long as they like.
    pub(super) fn sweep(&mut self, cx: &mut Cx<'_>) {
        for _ in 0..SWEEP_SLOTS.min(self.slots.len()) {
            self.hand = (self.hand + 1) % self.slots.len();
            let (slot, inspector) = (&self.slots[self.hand], &self.inspectors[self.hand]);
            let follows = inspector.knows() && inspector.requests() > 0 && !slot.told;
            let silent = cx.now.since(slot.progress_at);
            let over = match follows {
                true => silent > ENDED_NS && self.has_ended(cx, self.hand),
                false => silent > STALL_NS_MAX,
            };
            if slot.taken && over {
                self.give_up(cx, self.hand, Given::Stalled);
            }
        }
    }
}
