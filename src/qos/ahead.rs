//! What of the scheduler's tables is fetched into the cache before packets need it.
//!
//! With many classes nearly all that a packet touches was touched last a whole round ago, and is in
//! no cache. So the walk that chooses a leaf is made a second time for the turn that comes
//! [`AHEAD`] later, as if each class on the way had one, and what that leaf will need is asked for
//! step by step. A wrong guess costs a fetch in vain, nothing else.
//!
//! Where little is held, all of it is in the cache. Yet flows that come and go with each packet are
//! found anywhere in their table.
//!
//! With few classes and many flows, a leaf has its next turn soon, with many of its flows one after
//! the other. These are fetched ahead.

use super::flows::{Flow, Standing};
use super::queues::{NEW, OLD, Queues};
use super::scheduler::{Queued, Scheduler};
use super::tree::{ROOT, Tree};
use super::wheel::NIL;
use crate::base::mem::prefetch;

/// Turns ahead at which a leaf is foreseen, where classes are many.
const AHEAD: usize = 32;
/// Turns after which its first flow is fetched, and after which those behind it and their first
/// packets are, one after the other, and then what is counted: each has come by the next.
const FLOW_AFTER: usize = 4;
const FLOWS_AFTER: [usize; 5] = [8, 12, 16, 20, 24];
const COUNTS_AFTER: usize = 28;
const CLASSES_FEW: usize = 64;
/// Where classes are few: how many of them are looked at for each packet, and how many of its flows
/// a leaf is foreseen at most.
const SCOUTS_A_PACKET: usize = 2;
const LEAD_MAX: u32 = 24;
/// Classes, and packets with their flows, that stay in a cache of 1 MiB by themselves.
const CLASSES_CACHED: usize = 1_280;
const PACKETS_CACHED: u32 = 6_144;

const _: () = assert!(FLOW_AFTER < FLOWS_AFTER[0] && FLOWS_AFTER[4] < COUNTS_AFTER);
const _: () = assert!(COUNTS_AFTER < AHEAD && AHEAD.is_power_of_two());

/// Who is likely to have a turn soon.
pub(super) struct Ahead {
    /// A ring of turns.
    next: [Foreseen; AHEAD],
    at: usize,
    /// By class, where classes are few.
    scouts: [Scout; CLASSES_FEW],
    /// The class that is looked at next.
    scout: usize,
    /// [`Queues::passed`] as it was.
    passed: u32,
    /// Whether most packets have begun a flow lately.
    pub flows_come: bool,
}

/// A turn.
#[derive(Clone, Copy)]
struct Foreseen {
    leaf: u32,
    /// The next of its flows to be looked at; it is on its way into the cache.
    flow: u32,
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
        let next = [Foreseen { leaf: ROOT, flow: NIL }; AHEAD];
        Ahead { next, at: 0, scouts, scout: 0, passed: 0, flows_come: false }
    }

    /// Foresees another turn, and fetches the next of what those foreseen will touch. To be called
    /// at each turn.
    #[inline(always)]
    pub fn look(&mut self, tree: &Tree, queues: &Queues) {
        let at = self.at;
        self.at = at.wrapping_add(1);
        if let Some(leaf) = tree.foresee(AHEAD as u32) {
            queues.prefetch_leaf(leaf);
            self.next[at % AHEAD].leaf = leaf;
        }
        queues.prefetch_flow(self.before(at, FLOW_AFTER));
        for after in FLOWS_AFTER {
            queues.follow(self.before(at, after));
        }
        queues.prefetch_counts(self.before(at, COUNTS_AFTER).leaf);
    }

    /// The turn that was foreseen so many turns before.
    #[inline(always)]
    fn before(&mut self, at: usize, turns: usize) -> &mut Foreseen {
        &mut self.next[(at + AHEAD - turns) % AHEAD]
    }

    /// Foresees some more flows, where classes are few. To be called after each turn: whose it was,
    /// and of how many packets. Out of line: where all is in the cache it would be in the way.
    #[inline(never)]
    pub fn scout(&mut self, leaf: u32, packets: usize, tree: &Tree, queues: &Queues) {
        let passed = queues.passed.wrapping_sub(self.passed);
        self.passed = queues.passed;
        if let Some(scout) = self.scouts.get_mut(leaf as usize) {
            scout.lead = scout.lead.saturating_sub(passed);
        }
        queues.prefetch_next(leaf);
        for _ in 0..SCOUTS_A_PACKET * packets {
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

impl Scheduler {
    /// Asks the cache for where in their table the flows of these packets will stand.
    #[inline(never)]
    pub(super) fn prefetch_places(&self, packets: &[Queued]) {
        for q in packets {
            let key = self.queues.key(self.leaf(q.class), q.flow_hash);
            self.queues.flows.prefetch_entry(key);
        }
    }
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
        self.flows.prefetch_rest(scout.flow, self.quantum);
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
    fn prefetch_flow(&self, turn: &mut Foreseen) {
        turn.flow = self.leaves[turn.leaf as usize].first_flow();
        self.flows.prefetch(turn.flow);
    }

    /// Asks the cache for what a flow of a turn touches, and for the flow after it.
    #[inline(always)]
    fn follow(&self, turn: &mut Foreseen) {
        if turn.flow == NIL {
            return;
        }
        let Flow { head, next, standing, .. } = *self.flows.at(turn.flow);
        self.packets.prefetch(head);
        self.flows.prefetch_rest(turn.flow, 2 * self.quantum);
        let is_last = next == NIL && standing == Standing::New;
        let next = if is_last { self.leaves[turn.leaf as usize].lists[OLD].head } else { next };
        self.flows.prefetch(next);
        turn.flow = next;
    }

    #[inline(always)]
    fn prefetch_counts(&self, leaf: u32) {
        let held = &self.leaves[leaf as usize];
        // Behind it the first flow will stand.
        self.flows.prefetch(held.lists[OLD].tail);
        if held.recent.is_nearly_full() {
            self.sojourns[leaf as usize].prefetch(held.recent);
        }
        let flow = held.first_flow();
        if flow != NIL {
            let Flow { head, above, .. } = *self.flows.at(flow);
            if above.is_set() {
                // Its first packet may be dropped.
                prefetch(&self.losses, leaf as usize);
            }
            if head != NIL {
                self.packets.prefetch(self.packets.next(head));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::units::BitRate;
    use crate::base::{Nanos, Seed};
    use crate::packet::{ClassId, Frame, FramePool, PortId};
    use crate::qos::spec::{ClassSpec, PortQosSpec, QueueSpec};
    use crate::qos::{Queued, Scheduler};

    const FLOWS: u32 = 2_000;
    const PACKETS: u32 = 16_000;
    const LEN: usize = 700;

    fn leaves(count: u16) -> PortQosSpec {
        let ceil = BitRate(100_000_000_000);
        let rate = BitRate(ceil.0 / u64::from(count));
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
            classes: (0..count).map(leaf).collect(),
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

    /// With all packets in, of so many flows, spread over the leaves.
    fn filled(count: u16, pool: &mut FramePool) -> Scheduler {
        let arena = std::sync::Arc::clone(pool.arena());
        let mut scheduler = Scheduler::new(&leaves(count), PACKETS, Seed(1));
        let mut dropped = Vec::new();
        for i in 0..PACKETS {
            let frame = pool.take_with(&[0; LEN]).expect("stock");
            let (leaves, flows) = (u32::from(count), FLOWS * 2 / u32::from(count));
            let (class, flow_hash) = (ClassId((i % leaves) as u16), i / leaves % flows);
            let q = Queued { frame, class, flow_hash, l3: 0 };
            scheduler.enqueue(Nanos(0), q, &arena, &mut dropped);
        }
        scheduler
    }

    fn empty(mut scheduler: Scheduler, mut out: Vec<Frame>, pool: &mut FramePool) {
        scheduler.drain(&mut out);
        out.into_iter().for_each(|frame| pool.put(frame));
    }

    /// The flow so many places behind a leaf's first.
    fn behind_first(leaf: u32, places: usize, queues: &Queues) -> u32 {
        let is_one = |flow: &u32| *flow != NIL;
        let after = |flow: &u32| Some(queues.flows.at(*flow).next).filter(is_one);
        let lists = queues.leaves[leaf as usize].lists.map(|list| Some(list.head).filter(is_one));
        let mut flows = lists.into_iter().flat_map(|head| std::iter::successors(head, after));
        flows.nth(places).unwrap_or(NIL)
    }

    #[test]
    fn flows_of_many_classes_are_foreseen_one_behind_the_other() {
        let mut pool = FramePool::standalone(PACKETS, 2_048);
        let arena = std::sync::Arc::clone(pool.arena());
        let mut scheduler = filled(100, &mut pool);
        let (mut out, mut dropped, mut seen) = (Vec::new(), Vec::new(), 0);
        for i in 1..=300 {
            let now = Nanos(i * 2_000);
            scheduler.dequeue(now, 32, u64::MAX, &arena, &mut out, &mut dropped);
            let Scheduler { ahead, queues, .. } = &scheduler;
            for (places, after) in (1..).zip(FLOWS_AFTER) {
                let turn = ahead.next[(ahead.at + AHEAD - 1 - after) % AHEAD];
                if i > 1 {
                    let flow = behind_first(turn.leaf, places, queues);
                    assert_eq!(turn.flow, flow, "round {i}, {places} behind");
                    seen += u32::from(flow != NIL);
                }
            }
        }
        assert!(seen > 1_000, "{seen}");
        empty(scheduler, out, &mut pool);
    }

    #[test]
    fn scouts_of_few_classes_stay_ahead_of_the_flows_that_send() {
        let mut pool = FramePool::standalone(PACKETS, 2_048);
        let arena = std::sync::Arc::clone(pool.arena());
        let mut scheduler = filled(2, &mut pool);
        let (mut out, mut dropped) = (Vec::new(), Vec::new());
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
        empty(scheduler, out, &mut pool);
    }

    /// Among those that stay there is nothing to be looked for.
    #[test]
    fn places_are_asked_for_while_flows_come_with_the_packets() {
        let mut pool = FramePool::standalone(PACKETS, 2_048);
        let arena = std::sync::Arc::clone(pool.arena());
        let mut scheduler = Scheduler::new(&leaves(2), PACKETS, Seed(1));
        let (mut out, mut dropped, mut packets) = (Vec::new(), Vec::new(), Vec::new());
        let wanted = [(0..64, true), (0..64, false), (32..96, false), (64..128, false)];
        for (i, (flows, come)) in wanted.into_iter().enumerate() {
            for flow_hash in flows {
                let frame = pool.take_with(&[0; LEN]).expect("stock");
                packets.push(Queued { frame, class: ClassId(0), flow_hash, l3: 0 });
            }
            scheduler.enqueue_all(Nanos(0), &mut packets, &arena, &mut dropped);
            assert_eq!(scheduler.ahead.flows_come, come, "call {i}");
        }
        // Those that leave come anew.
        scheduler.drain(&mut out);
        let frame = out.pop().expect("a packet");
        packets.push(Queued { frame, class: ClassId(0), flow_hash: 0, l3: 0 });
        scheduler.enqueue_all(Nanos(0), &mut packets, &arena, &mut dropped);
        assert!(scheduler.ahead.flows_come);
        assert!(dropped.is_empty());
        empty(scheduler, out, &mut pool);
    }
}
