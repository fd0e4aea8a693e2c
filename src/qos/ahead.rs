//! What of the scheduler's tables is fetched into the cache before packets need it.
//!
//! With many classes nearly all that a packet touches was touched last a whole round ago, and is in
//! no cache. So the walk that chooses a leaf is made a second time for the turn that comes
//! [`AHEAD`] later, as if each class on the way had one, and what that leaf will need is asked for
//! step by step. A wrong guess costs a fetch in vain, nothing else.
//!
//! With few classes and many flows, a leaf has its next turn soon, with many of its flows one after
//! the other. These are fetched ahead.

use super::codel::Ticks;
use super::flows::Flow;
use super::queues::{NEW, OLD, Queues};
use super::tree::{ROOT, Tree};
use super::wheel::NIL;
use crate::base::mem::prefetch;

/// Turns ahead at which a leaf is foreseen, where classes are many.
const AHEAD: usize = 32;
/// Turns after which its flow, and after which its first packet, and then what is counted, are
/// fetched: each has come by the next.
const FLOW_AFTER: usize = 8;
const PACKET_AFTER: usize = 16;
const COUNTS_AFTER: usize = 24;
const CLASSES_FEW: usize = 64;
/// Where classes are few: how many of them are looked at for each packet, and how many of its flows
/// a leaf is foreseen at most.
const SCOUTS_A_PACKET: usize = 3;
const LEAD_MAX: u32 = 40;
/// Classes, and packets with their flows, that stay in a cache of 1 MiB by themselves.
const CLASSES_CACHED: usize = 1_280;
const PACKETS_CACHED: u32 = 6_144;

const _: () = assert!(FLOW_AFTER < PACKET_AFTER && PACKET_AFTER < COUNTS_AFTER);
const _: () = assert!(COUNTS_AFTER < AHEAD && AHEAD.is_power_of_two());

/// Who is likely to have a turn soon.
pub(super) struct Ahead {
    /// A ring of leaves.
    next: [u32; AHEAD],
    at: usize,
    /// By class, where classes are few.
    scouts: [Scout; CLASSES_FEW],
    /// The class that is looked at next.
    scout: usize,
    /// [`Queues::passed`] as it was.
    passed: u32,
}

/// How far the flows of a leaf are foreseen. Flows may go otherwise than by their turns: then it is
/// wrong for a while.
#[derive(Clone, Copy)]
struct Scout {
    /// The next to be looked at; it is on its way into the cache.
    flow: u32,
    /// Flows that have their turn before it.
    lead: u32,
}

impl Ahead {
    pub fn new() -> Ahead {
        let scouts = [Scout { flow: NIL, lead: 0 }; CLASSES_FEW];
        Ahead { next: [ROOT; AHEAD], at: 0, scouts, scout: 0, passed: 0 }
    }

    /// Foresees another turn, and fetches the next of what those foreseen will touch. To be called
    /// at each turn.
    #[inline(always)]
    pub fn look(&mut self, now: Ticks, tree: &Tree, queues: &Queues) {
        let at = self.at;
        self.at = at.wrapping_add(1);
        if let Some(leaf) = tree.foresee(AHEAD as u32) {
            queues.prefetch_leaf(leaf);
            self.next[at % AHEAD] = leaf;
        }
        queues.prefetch_flow(self.next[(at + AHEAD - FLOW_AFTER) % AHEAD]);
        queues.prefetch_packet(self.next[(at + AHEAD - PACKET_AFTER) % AHEAD]);
        queues.prefetch_counts(now, self.next[(at + AHEAD - COUNTS_AFTER) % AHEAD]);
    }

    /// Foresees some more flows, where classes are few. To be called after each packet. `leaf`:
    /// whose it was. Out of line: where all is in the cache it would be in the way.
    #[inline(never)]
    pub fn scout(&mut self, leaf: u32, tree: &Tree, queues: &Queues) {
        let passed = queues.passed.wrapping_sub(self.passed);
        self.passed = queues.passed;
        if let Some(scout) = self.scouts.get_mut(leaf as usize) {
            scout.lead = scout.lead.saturating_sub(passed);
        }
        queues.prefetch_next(leaf);
        for _ in 0..SCOUTS_A_PACKET {
            let next = self.scout + 1;
            self.scout = if next < tree.classes.len().min(CLASSES_FEW) { next } else { 0 };
            let scout = &mut self.scouts[self.scout];
            if scout.lead < LEAD_MAX {
                queues.go_on(self.scout, scout);
            }
        }
    }
}

/// Whether flows are foreseen, not leaves.
#[inline(always)]
pub(super) fn has_few_classes(tree: &Tree) -> bool {
    tree.classes.len() <= CLASSES_FEW
}

/// Whether what is held is so little that nothing of it need be fetched ahead.
#[inline(always)]
pub(super) fn is_in_cache(tree: &Tree, queues: &Queues) -> bool {
    tree.classes.len() <= CLASSES_CACHED && queues.packets.len() <= PACKETS_CACHED
}

impl Queues {
    /// Asks the cache for the first packet of the flow behind a leaf's first, which came itself
    /// with the packet before, and for the flow behind that.
    #[inline(always)]
    fn prefetch_next(&self, leaf: u32) {
        let first = self.leaves[leaf as usize].lists[NEW].head;
        if first != NIL {
            let next = self.flows.at(first).next;
            if next != NIL {
                let Flow { head, next, .. } = *self.flows.at(next);
                self.packets.prefetch(head);
                self.flows.prefetch(next);
            }
        }
    }

    /// Asks the cache for what a leaf's next unforeseen flow touches, and for the flow after it. A
    /// flow tells where the next one is, so leaves are followed a flow each by turns.
    #[inline(always)]
    fn go_on(&self, leaf: usize, scout: &mut Scout) {
        let held = &self.leaves[leaf];
        if scout.flow == NIL || scout.lead == 0 {
            *scout = Scout { flow: held.lists[OLD].head, lead: 0 };
            if scout.flow == NIL {
                return;
            }
        }
        let Flow { head, next, .. } = *self.flows.at(scout.flow);
        self.packets.prefetch(head);
        self.flows.prefetch_rest(scout.flow);
        self.flows.prefetch(next);
        scout.flow = next;
        scout.lead += 1;
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::units::BitRate;
    use crate::base::{Nanos, Seed};
    use crate::packet::{ClassId, FramePool, PortId};
    use crate::qos::spec::{ClassSpec, PortQosSpec, QueueSpec};
    use crate::qos::{Queued, Scheduler};

    const FLOWS: u32 = 2_000;
    const PACKETS: u32 = 16_000;
    const LEN: usize = 700;

    fn two_leaves() -> PortQosSpec {
        let (rate, ceil) = (BitRate(50_000_000_000), BitRate(100_000_000_000));
        let leaf = |id| ClassSpec {
            burst: 64 << 10,
            cburst: 64 << 10,
            queue: QueueSpec::INTERNET,
            ..ClassSpec::plain(id, rate, ceil)
        };
        PortQosSpec {
            port: PortId(0),
            rate: BitRate(100_000_000_000),
            burst: 1 << 20,
            overhead: 0,
            mpu: 0,
            mtu: LEN as u16,
            default_class: ClassId(0),
            classes: vec![leaf(0), leaf(1)],
        }
    }

    /// Whether a scout is where it thinks it is: so many flows behind the first.
    fn is_right(scout: Scout, leaf: usize, queues: &Queues) -> bool {
        let mut flow = queues.leaves[leaf].lists[OLD].head;
        for _ in 0..scout.lead {
            flow = if flow == NIL { NIL } else { queues.flows.at(flow).next };
        }
        flow == scout.flow
    }

    #[test]
    fn scouts_of_few_classes_stay_ahead_of_the_flows_that_send() {
        let mut pool = FramePool::standalone(PACKETS, 2_048);
        let arena = std::sync::Arc::clone(pool.arena());
        let mut scheduler = Scheduler::new(&two_leaves(), PACKETS, Seed(1));
        let (mut out, mut dropped) = (Vec::new(), Vec::new());
        for i in 0..PACKETS {
            let frame = pool.take_with(&[0; LEN]).expect("stock");
            let (class, flow_hash) = (ClassId((i % 2) as u16), i / 2 % FLOWS);
            let q = Queued { frame, class, flow_hash, l3: 0 };
            scheduler.enqueue(Nanos(0), q, &arena, &mut dropped);
        }
        for i in 1..=250 {
            let sent =
                scheduler.dequeue(Nanos(i * 2_000), 32, u64::MAX, &arena, &mut out, &mut dropped);
            assert!(sent > 0 && dropped.is_empty());
            let Scheduler { ahead, queues, .. } = &scheduler;
            for leaf in 1..=2 {
                let scout = ahead.scouts[leaf];
                assert!(scout.lead <= LEAD_MAX && is_right(scout, leaf, queues), "round {i}");
                // By then all new flows have had their turn.
                assert!(i < 150 || scout.lead > LEAD_MAX / 2, "round {i}: {}", scout.lead);
            }
        }
        scheduler.drain(&mut out);
        out.into_iter().for_each(|frame| pool.put(frame));
    }
}
