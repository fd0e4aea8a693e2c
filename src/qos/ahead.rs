//! What of the scheduler's tables is fetched into the cache before packets need it.
//!
//! With many classes nearly all that a packet touches was touched last a whole round ago, and is in
//! no cache. So the walk that chooses a leaf is made a second time for the turn that comes
//! [`AHEAD`] later, as if each class on the way had one, and what that leaf will need is asked for
//! step by step. A wrong guess costs a fetch in vain, nothing else.
//!
//! With few classes and many flows, a leaf has its next turn soon, with its next flow.

use super::codel::Ticks;
use super::flows::Flow;
use super::queues::{OLD, Queues};
use super::tree::{ROOT, Tree};
use super::wheel::NIL;
use crate::base::mem::prefetch;

/// Turns ahead at which a leaf is foreseen.
const AHEAD: usize = 32;
/// Turns after which its flow, and after which its first packet, and then what is counted, are
/// fetched: each has come by the next.
const FLOW_AFTER: usize = 8;
const PACKET_AFTER: usize = 16;
const COUNTS_AFTER: usize = 24;
/// Turns after which what the next flow of a leaf needs is fetched, where classes are few.
const NEXT_AFTER: usize = 4;
const CLASSES_FEW: usize = 64;
/// Classes, and packets with their flows, that stay in a cache of 1 MiB by themselves.
const CLASSES_CACHED: usize = 1_280;
const PACKETS_CACHED: u32 = 6_144;

const _: () = assert!(FLOW_AFTER < PACKET_AFTER && PACKET_AFTER < COUNTS_AFTER);
const _: () = assert!(COUNTS_AFTER < AHEAD && AHEAD.is_power_of_two());

/// Who is likely to have a turn soon.
pub(super) struct Ahead {
    /// A ring of leaves; of flows, where classes are few.
    next: [u32; AHEAD],
    at: usize,
}

impl Ahead {
    pub fn new() -> Ahead {
        Ahead { next: [ROOT; AHEAD], at: 0 }
    }

    /// Foresees another turn, and fetches the next of what those foreseen will touch. To be called
    /// at each turn. `leaf`: whose it is.
    #[inline(always)]
    pub fn look(&mut self, now: Ticks, leaf: u32, tree: &Tree, queues: &Queues) {
        let at = self.at;
        self.at = at.wrapping_add(1);
        if tree.classes.len() <= CLASSES_FEW {
            self.next[at % AHEAD] = queues.leaves[leaf as usize].first_flow();
            queues.prefetch_of_flow(self.next[(at + AHEAD - NEXT_AFTER) % AHEAD]);
            return;
        }
        if let Some(leaf) = tree.foresee(AHEAD as u32) {
            queues.prefetch_leaf(leaf);
            self.next[at % AHEAD] = leaf;
        }
        queues.prefetch_flow(self.next[(at + AHEAD - FLOW_AFTER) % AHEAD]);
        queues.prefetch_packet(self.next[(at + AHEAD - PACKET_AFTER) % AHEAD]);
        queues.prefetch_counts(now, self.next[(at + AHEAD - COUNTS_AFTER) % AHEAD]);
    }
}

/// Whether what is held is so little that nothing of it need be fetched ahead.
#[inline(always)]
pub(super) fn is_in_cache(tree: &Tree, queues: &Queues) -> bool {
    tree.classes.len() <= CLASSES_CACHED && queues.packets.len() <= PACKETS_CACHED
}

impl Queues {
    /// Asks the cache for what a flow's next packet touches, and for the flow after it; it itself
    /// was asked for when the one before it had its turn.
    #[inline(always)]
    fn prefetch_of_flow(&self, flow: u32) {
        if flow != NIL {
            let Flow { head, next, .. } = *self.flows.at(flow);
            self.packets.prefetch(head);
            self.flows.prefetch(next);
            self.flows.prefetch_rest(flow);
        }
    }

    /// Asks the cache for what a leaf's next packet touches, in four steps.
    #[inline(always)]
    pub fn prefetch_leaf(&self, leaf: u32) {
        prefetch(&self.leaves, leaf as usize);
    }

    #[inline(always)]
    fn prefetch_flow(&self, leaf: u32) {
        self.flows.prefetch(self.leaves[leaf as usize].first_flow());
    }

    #[inline(always)]
    fn prefetch_packet(&self, leaf: u32) {
        let flow = self.leaves[leaf as usize].first_flow();
        if flow != NIL {
            let Flow { head, next, .. } = *self.flows.at(flow);
            self.packets.prefetch(head);
            self.flows.prefetch(next);
        }
    }

    #[inline(always)]
    fn prefetch_counts(&self, now: Ticks, leaf: u32) {
        let flow = self.leaves[leaf as usize].first_flow();
        if flow == NIL {
            return;
        }
        self.flows.prefetch_rest(flow);
        // Behind it the flow will stand.
        self.flows.prefetch(self.leaves[leaf as usize].lists[OLD].tail);
        let Flow { head, above, next, .. } = *self.flows.at(flow);
        if head == NIL {
            // It only has to be forgotten: the one after it has the turn.
            if next != NIL {
                self.packets.prefetch(self.flows.at(next).head);
                self.flows.prefetch_rest(next);
            }
        } else {
            if above.is_set() {
                // Its first packet may be dropped.
                prefetch(&self.losses, leaf as usize);
            }
            self.packets.prefetch(self.packets.next(head));
            if self.leaves[leaf as usize].recent.is_nearly_full() {
                let waited = now.wrapping_sub(self.packets.note(head).since);
                self.sojourns[leaf as usize].prefetch(waited);
            }
        }
    }
}
