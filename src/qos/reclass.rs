//! A flow that belongs to another class from now on.
//!
//! What it has waiting goes with it. Stayed it where it is, what comes next would leave before it
//! whenever the new leaf has its turn first: TCP takes that for loss, and an answer that a rule
//! found out to be urgent would wait behind the bulk it was first taken for.

use super::Scheduler;
use super::codel::Above;
use super::flows::{Flow, Standing};
use super::pacing::Due;
use super::packets::Note;
use super::queues::Queues;
use super::wheel::NIL;
use crate::base::Nanos;
use crate::packet::{ClassId, DropReason, Frame};

/// What of a flow is moved at most: whoever changes its class must not hold up its worker.
const MOVED_MAX: usize = 512;

impl Scheduler {
    /// Moves what waits of a flow from one class to another, behind what it has there already, in
    /// its order and with the time that it has waited. There it is held to the limit as if it came
    /// now: a FIFO loses the last of it, others the fattest flow's first. What is over goes to
    /// `dropped`, as many packets as are moved at most. What a FIFO holds stays, since it does not
    /// tell flows apart, and so does a flow with more than 512 packets. One that has nothing
    /// waiting, and may not send at once yet, takes that along.
    pub fn reclass(
        &mut self,
        now: Nanos,
        flow_hash: u32,
        (from, to): (ClassId, ClassId),
        dropped: &mut Vec<(Frame, DropReason)>,
    ) {
        let (from, to) = (self.leaf(from), self.leaf(to));
        let is_paced = self.queues.pace(from).is_set();
        if from == to || self.queues.leaves[from as usize].packets == 0 && !is_paced {
            return;
        }
        let now = self.advance(now);
        let was_idle = !self.queues.has_ready(to);
        let most = self.most(now, to, u64::from(self.queues.manner(to).limit));
        self.queues.reclass(now, flow_hash, (from, to), most, dropped);
        if let Some(member) = &mut self.member {
            member.changed(from);
            member.changed(to);
            return;
        }
        if !self.queues.has_ready(from) {
            self.tree.deactivate(from);
        }
        match (was_idle, !self.queues.has_ready(to)) {
            (true, false) => self.tree.activate(now, to),
            (false, true) => self.tree.deactivate(to),
            _ => {}
        }
    }
}

impl Queues {
    fn reclass(
        &mut self,
        now: Nanos,
        flow_hash: u32,
        (from, to): (u32, u32),
        bytes_max: u64,
        dropped: &mut Vec<(Frame, DropReason)>,
    ) {
        if self.manner(from).is_fifo() {
            return;
        }
        let Some(flow) = self.flows.find(self.key(from, flow_hash)) else { return };
        if self.flows.at(flow).head == NIL {
            self.take_pace_along(flow, to);
            return;
        }
        if !self.can_go(from, flow) {
            return;
        }
        let key = self.key(to, flow_hash);
        let Some((target, fresh)) = self.flows.find_or_insert(key, NIL) else {
            self.moves[from as usize].flows_unmoved += 1;
            return;
        };
        let old = self.flows.at_mut(flow);
        old.above = Above::default();
        if fresh {
            // Whoever goes to and fro has no turn of a new flow each time, and no credit.
            let deficit = old.deficit.min(self.quantum as i32);
            let standing =
                if old.standing == Standing::New { Standing::New } else { Standing::Old };
            self.enter(to, target, (standing, deficit, Due::default()));
        }
        self.hold_back(target, self.pacing.due(flow));
        let is_fifo = self.manner(to).is_fifo();
        let mut left = 0;
        while self.flows.at(flow).head != NIL {
            let Some((frame, bytes, Note { since, l3 })) = self.shift(from, flow) else { break };
            self.moves[from as usize].went.add(bytes);
            let bytes = self.counted(to, frame.len());
            self.moves[to as usize].came.add(bytes);
            let held = self.leaves[to as usize].bytes + u64::from(bytes);
            if is_fifo && held > bytes_max {
                self.refuse(to, frame, bytes, dropped);
            } else if let Err(frame) = self.push(key, frame, bytes, Note { since, l3 }, now) {
                debug_assert!(false, "there is room for one flow more");
                self.refuse(to, frame, bytes, dropped);
            }
            left += 1;
        }
        self.empty += 1;
        // Each time the fattest that is then.
        while !is_fifo && left > 0 && self.leaves[to as usize].bytes > bytes_max {
            left = if self.shed(to, Some(key), 1, dropped) == 0 { 0 } else { left - 1 };
        }
        // There is room for only so many, and a leaf that holds nothing has no turn to forget them.
        for leaf in [from, to] {
            if self.leaves[leaf as usize].packets == 0 {
                self.forget_empty_ones(leaf);
            }
        }
    }

    /// Whether the packets of a flow can go to another leaf.
    fn can_go(&mut self, from: u32, flow: u32) -> bool {
        let Flow { head: mut last, standing, .. } = *self.flows.at(flow);
        if standing == Standing::Backlog {
            return false;
        }
        for _ in 1..MOVED_MAX {
            last = if last == NIL { NIL } else { self.packets.next(last) };
        }
        let is_long = last != NIL && self.packets.next(last) != NIL;
        // The flow stays in its list with nothing in it until its turn, and there is room for only
        // so many of those.
        if is_long || self.empty >= self.empty_max {
            self.moves[from as usize].flows_unmoved += 1;
            return false;
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::MOVED_MAX;
    use crate::base::units::BitRate;
    use crate::base::{Nanos, Seed};
    use crate::packet::{ClassId, DropReason, Frame, FramePool, PortId};
    use crate::qos::spec::{ClassSpec, PortQosSpec, QueueSpec};
    use crate::qos::{ClassStats, Queued, Scheduler, Shared};

    const URGENT: ClassId = ClassId(1);
    const BULK: ClassId = ClassId(2);
    const FLOW: u32 = 7;
    const OTHER: u32 = 8;
    const LEN: usize = 1_000;

    fn tree(bulk: QueueSpec) -> PortQosSpec {
        tree_of([(QueueSpec::INTERNET, u32::MAX), (bulk, u32::MAX)])
    }

    /// With the queues and limits of both classes.
    fn tree_of([urgent, bulk]: [(QueueSpec, u32); 2]) -> PortQosSpec {
        let (rate, ceil) = (BitRate(1_000_000), BitRate(1_000_000_000));
        let class = |id: ClassId, priority, (queue, limit)| ClassSpec {
            burst: 4_000,
            priority,
            queue,
            limit,
            ..ClassSpec::plain(id.0, rate, ceil)
        };
        PortQosSpec {
            port: PortId(0),
            rate: BitRate(1_000_000_000),
            burst: 1 << 20,
            overhead: 0,
            mpu: 0,
            mtu: 1_500,
            default_class: BULK,
            classes: vec![class(URGENT, 0, urgent), class(BULK, 7, bulk)],
        }
    }

    /// A scheduler that holds 20 packets of two flows in turn, numbered, in the class of bulk.
    fn filled(bulk: QueueSpec, pool: &mut FramePool) -> Scheduler {
        fill(Scheduler::new(&tree(bulk), 100, Seed(1)), pool)
    }

    fn fill(mut scheduler: Scheduler, pool: &mut FramePool) -> Scheduler {
        for number in 0..20 {
            put(&mut scheduler, pool, number, BULK);
        }
        scheduler
    }

    /// The flow of a packet: numbers go by turns.
    fn flow_of(number: u8) -> u32 {
        if number.is_multiple_of(2) { FLOW } else { OTHER }
    }

    /// What of it is of a flow.
    fn of(sent: &[u8], flow: u32) -> Vec<u8> {
        sent.iter().copied().filter(|&number| flow_of(number) == flow).collect()
    }

    fn put(scheduler: &mut Scheduler, pool: &mut FramePool, number: u8, class: ClassId) {
        let frame = pool.take_with(&[number; LEN]).expect("stock");
        let flow_hash = flow_of(number);
        let q = Queued { frame, class, flow_hash, l3: 0 };
        scheduler.enqueue(Nanos(0), q, pool.arena(), &mut Vec::new());
    }

    fn take(scheduler: &mut Scheduler, pool: &mut FramePool, packets: usize) -> Vec<u8> {
        take_at(Nanos(1), scheduler, pool, packets)
    }

    fn take_at(
        now: Nanos,
        scheduler: &mut Scheduler,
        pool: &mut FramePool,
        packets: usize,
    ) -> Vec<u8> {
        let (mut out, arena) = (Vec::new(), pool.arena().clone());
        scheduler.dequeue(now, packets, u64::MAX, &arena, &mut out, &mut Vec::new());
        let number = |frame: Frame| {
            let number = frame.bytes(&arena)[0];
            pool.put(frame);
            number
        };
        out.into_iter().map(number).collect()
    }

    #[test]
    fn what_waits_goes_with_its_flow_and_first() {
        let mut pool = FramePool::standalone(100, 2_048);
        let mut scheduler = filled(QueueSpec::INTERNET, &mut pool);
        let mut lost = Vec::new();
        scheduler.reclass(Nanos(0), FLOW, (BULK, URGENT), &mut lost);
        assert!(lost.is_empty());
        put(&mut scheduler, &mut pool, 20, URGENT);
        let mut stats = |class| {
            let stats = scheduler.class_stats(class);
            (stats.backlog_packets, stats.backlog_bytes)
        };
        assert_eq!((stats(URGENT), stats(BULK)), ((11, 11_000), (10, 10_000)));
        let sent = take(&mut scheduler, &mut pool, 100);
        assert_eq!(of(&sent, FLOW), (0..=20).step_by(2).collect::<Vec<u8>>());
        assert_eq!(of(&sent, OTHER), (1..=19).step_by(2).collect::<Vec<u8>>());
        // Bulk has its own rate first, which are two or three packets.
        assert!(sent[14..].iter().all(|n| n % 2 == 1), "{sent:?}");
        assert_eq!((scheduler.len(), pool.outstanding()), (0, 0));
    }

    #[test]
    fn a_flow_can_come_back_and_one_that_is_not_there_changes_nothing() {
        let mut pool = FramePool::standalone(100, 2_048);
        let mut scheduler = filled(QueueSpec::INTERNET, &mut pool);
        let mut lost = Vec::new();
        for (flow, way) in [
            (FLOW, (BULK, URGENT)),
            (99, (BULK, URGENT)),
            (FLOW, (URGENT, BULK)),
            (OTHER, (BULK, BULK)),
        ] {
            scheduler.reclass(Nanos(0), flow, way, &mut lost);
            assert!(lost.is_empty());
        }
        assert_eq!(scheduler.class_stats(URGENT).backlog_packets, 0);
        assert_eq!(scheduler.class_stats(BULK).backlog_packets, 20);
        let sent = take(&mut scheduler, &mut pool, 100);
        assert_eq!((sent.len(), of(&sent, FLOW)), (20, (0..20).step_by(2).collect()));
        assert_eq!((scheduler.len(), pool.outstanding()), (0, 0));
    }

    #[test]
    fn counters_go_on_as_flows_come_and_go() {
        let mut pool = FramePool::standalone(100, 2_048);
        let mut scheduler = filled(QueueSpec::INTERNET, &mut pool);
        let mut told = |way| {
            scheduler.reclass(Nanos(0), FLOW, way, &mut Vec::new());
            let told = |s: ClassStats| {
                [s.enqueued_packets, s.moved_in_packets, s.moved_out_packets, s.backlog_packets]
            };
            [told(scheduler.class_stats(URGENT)), told(scheduler.class_stats(BULK))]
        };
        assert_eq!(told((BULK, BULK)), [[0; 4], [20, 0, 0, 20]]);
        assert_eq!(told((BULK, URGENT)), [[0, 10, 0, 10], [20, 0, 10, 10]]);
        assert_eq!(told((URGENT, BULK)), [[0, 10, 10, 0], [20, 10, 10, 20]]);
        let bytes = scheduler.class_stats(BULK);
        assert_eq!((bytes.enqueued_bytes, bytes.moved_out_bytes), (20_000, 10_000));
        take(&mut scheduler, &mut pool, 100);
    }

    /// As if it came then: the last is lost to a FIFO, else what has waited longest.
    #[test]
    fn what_moves_is_held_to_the_limit_and_keeps_its_order() {
        for (queue, kept) in [(QueueSpec::Fifo, 0..5), (QueueSpec::INTERNET, 5..10)] {
            let mut pool = FramePool::standalone(100, 2_048);
            let spec = tree_of([(queue, 5_000), (QueueSpec::INTERNET, u32::MAX)]);
            let mut scheduler = fill(Scheduler::new(&spec, 100, Seed(1)), &mut pool);
            let mut lost = Vec::new();
            scheduler.reclass(Nanos(0), FLOW, (BULK, URGENT), &mut lost);
            assert!(lost.iter().all(|&(_, reason)| reason == DropReason::QueueFull));
            lost.into_iter().for_each(|(frame, _)| pool.put(frame));
            let stats = scheduler.class_stats(URGENT);
            assert_eq!((stats.backlog_bytes, stats.dropped_packets), (5_000, 5), "{queue:?}");
            assert_eq!((stats.enqueued_packets, stats.moved_in_packets), (0, 10));
            let sent = take(&mut scheduler, &mut pool, 100);
            assert_eq!(of(&sent, FLOW), kept.map(|n| 2 * n).collect::<Vec<u8>>());
            assert_eq!((sent.len(), pool.outstanding()), (15, 0));
        }
    }

    /// Workers that share a tree are granted what they have in the class where it is now.
    #[test]
    fn what_waits_moves_where_workers_share_a_tree_too() {
        let mut pool = FramePool::standalone(100, 2_048);
        let spec = tree(QueueSpec::INTERNET);
        let shared = Shared::new(&spec);
        let mut scheduler =
            fill(Scheduler::member(&spec, 100, Seed(1), Arc::clone(&shared)), &mut pool);
        let mut other = Scheduler::member(&spec, 100, Seed(1), shared);
        // Some of it is leased already, and a packet sent.
        let first = take(&mut scheduler, &mut pool, 1);
        scheduler.reclass(Nanos(0), FLOW, (BULK, URGENT), &mut Vec::new());
        put(&mut other, &mut pool, 30, BULK);
        let mut sent = first;
        for _ in 0..10 {
            sent.extend(take(&mut scheduler, &mut pool, 4));
        }
        assert_eq!(take(&mut other, &mut pool, 4), [30]);
        assert_eq!(of(&sent, FLOW), (0..=18).step_by(2).collect::<Vec<u8>>());
        assert_eq!(of(&sent, OTHER), (1..=19).step_by(2).collect::<Vec<u8>>());
        assert!(sent[15..].iter().all(|n| n % 2 == 1), "{sent:?}");
        assert_eq!((scheduler.len(), pool.outstanding()), (0, 0));
    }

    /// A flow that sleeps at its class's pace goes at that of the new one from then on, and one
    /// that comes back has no more than it had.
    #[test]
    fn a_flow_that_sleeps_moves_and_has_no_credit_for_it() {
        let mut pool = FramePool::standalone(100, 2_048);
        let mut spec = tree(QueueSpec::INTERNET);
        // A packet in 8 ms.
        spec.classes.iter_mut().for_each(|class| class.flow_rate = Some(BitRate(1_000_000)));
        let mut scheduler = Scheduler::new(&spec, 100, Seed(1));
        for number in 0..10 {
            put(&mut scheduler, &mut pool, 2 * number, BULK);
        }
        let mut sent = take(&mut scheduler, &mut pool, 10);
        assert_eq!(sent, [0]);
        let mut ways = [(BULK, URGENT), (URGENT, BULK)].into_iter().cycle();
        for half_ms in 1..=60 {
            let now = Nanos(half_ms * 500_000);
            let way = ways.next().expect("goes round");
            scheduler.reclass(now, FLOW, way, &mut Vec::new());
            sent.extend(take_at(now, &mut scheduler, &mut pool, 10));
        }
        // One each 8 ms.
        assert_eq!(sent, [0, 2, 4, 6]);
        let mut out = Vec::new();
        scheduler.drain(&mut out);
        out.into_iter().for_each(|frame| pool.put(frame));
        assert_eq!(pool.outstanding(), 0);
    }

    /// A time when whoever idled may send 4 ms in advance, and one so many microseconds later.
    fn after(us: u64) -> Nanos {
        Nanos(1_000_000_000 + us * 1_000)
    }

    /// A flow whose last packet went in advance of its pace owes that in its new class, too.
    #[test]
    fn a_flow_that_has_nothing_waiting_takes_along_what_it_owes() {
        let mut spec = tree(QueueSpec::INTERNET);
        // A packet takes 8 ms.
        spec.classes.iter_mut().for_each(|class| class.flow_rate = Some(BitRate(1_000_000)));
        let mut without = spec.clone();
        without.classes[0].flow_rate = None;
        let (there, back) = ((BULK, URGENT), (URGENT, BULK));
        // Who comes into a class without a pace may send, and has its old one when it comes back.
        for (spec, ways, at_once) in [
            (&spec, &[there][..], false),
            (&spec, &[there, back], false),
            (&without, &[there], true),
            (&without, &[there, back], false),
        ] {
            let mut pool = FramePool::standalone(10, 2_048);
            let mut scheduler = Scheduler::new(spec, 10, Seed(1));
            put(&mut scheduler, &mut pool, 0, BULK);
            assert_eq!(take_at(after(0), &mut scheduler, &mut pool, 10), [0]);
            for way in ways {
                scheduler.reclass(after(1), FLOW, *way, &mut Vec::new());
            }
            put(&mut scheduler, &mut pool, 2, ways[ways.len() - 1].1);
            let sent = take_at(after(3_990), &mut scheduler, &mut pool, 10);
            assert_eq!(sent.len(), usize::from(at_once), "{ways:?}");
            let rest = take_at(after(4_010), &mut scheduler, &mut pool, 10);
            assert_eq!(rest.len(), usize::from(!at_once), "{ways:?}");
            // Forgotten in time.
            take_at(after(100_000), &mut scheduler, &mut pool, 10);
            assert_eq!((scheduler.queues.empty, scheduler.queues.flows.len()), (0, 0));
            assert_eq!(pool.outstanding(), 0);
        }
    }

    /// Also where packets went along, and what was left of it has its turn without any.
    #[test]
    fn a_flow_that_goes_and_comes_back_owes_what_it_owed() {
        let mut spec = tree(QueueSpec::INTERNET);
        spec.classes[1].flow_rate = Some(BitRate(1_000_000));
        for others in [false, true] {
            let mut pool = FramePool::standalone(10, 2_048);
            let mut scheduler = Scheduler::new(&spec, 10, Seed(1));
            put(&mut scheduler, &mut pool, 0, BULK);
            put(&mut scheduler, &mut pool, 2, BULK);
            assert_eq!(take_at(after(0), &mut scheduler, &mut pool, 10), [0]);
            // It is awake, and has used up what it may send in advance.
            assert!(take_at(after(4_010), &mut scheduler, &mut pool, 0).is_empty());
            if others {
                put(&mut scheduler, &mut pool, 1, BULK);
            }
            scheduler.reclass(after(4_010), FLOW, (BULK, URGENT), &mut Vec::new());
            let sent = take_at(after(4_020), &mut scheduler, &mut pool, 10);
            assert_eq!(sent.len(), 1 + usize::from(others));
            scheduler.reclass(after(4_020), FLOW, (URGENT, BULK), &mut Vec::new());
            put(&mut scheduler, &mut pool, 4, BULK);
            put(&mut scheduler, &mut pool, 6, BULK);
            let sent = take_at(after(4_030), &mut scheduler, &mut pool, 10);
            assert_eq!(sent, [4], "no more, and no credit anew");
            assert!(take_at(after(11_990), &mut scheduler, &mut pool, 10).is_empty());
            let sent = take_at(after(12_020), &mut scheduler, &mut pool, 10);
            assert_eq!((sent, pool.outstanding()), (vec![6], 0));
        }
    }

    /// Whatever has moved, nothing is left of it where it was.
    #[test]
    fn a_leaf_that_nothing_is_left_in_keeps_no_empty_flows() {
        let mut pool = FramePool::standalone(100, 2_048);
        let mut scheduler = filled(QueueSpec::INTERNET, &mut pool);
        let mut gone = Vec::new();
        for flow in [FLOW, OTHER] {
            scheduler.reclass(Nanos(0), flow, (BULK, URGENT), &mut gone);
        }
        assert_eq!((scheduler.queues.empty, scheduler.queues.flows.len()), (0, 2));
        // Nor of one of which a FIFO takes nothing.
        let spec = tree_of([(QueueSpec::Fifo, 0), (QueueSpec::INTERNET, u32::MAX)]);
        let mut full = fill(Scheduler::new(&spec, 100, Seed(1)), &mut pool);
        full.reclass(Nanos(0), FLOW, (BULK, URGENT), &mut gone);
        assert_eq!((full.queues.empty, full.queues.flows.len(), gone.len()), (1, 2, 10));
        gone.into_iter().for_each(|(frame, _)| pool.put(frame));
        for mut scheduler in [scheduler, full] {
            let mut out = Vec::new();
            scheduler.drain(&mut out);
            out.into_iter().for_each(|frame| pool.put(frame));
        }
    }

    #[test]
    fn more_than_can_be_moved_at_once_stays() {
        for (packets, moves) in [(MOVED_MAX, true), (MOVED_MAX + 1, false)] {
            let mut pool = FramePool::standalone(1_024, 2_048);
            let mut scheduler = Scheduler::new(&tree(QueueSpec::INTERNET), 1_024, Seed(1));
            for number in 0..packets {
                // All of one flow.
                put(&mut scheduler, &mut pool, 2 * (number % 100) as u8, BULK);
            }
            scheduler.reclass(Nanos(0), FLOW, (BULK, URGENT), &mut Vec::new());
            let moved = scheduler.class_stats(URGENT).backlog_packets;
            assert_eq!(moved, if moves { packets as u64 } else { 0 });
            assert_eq!(scheduler.class_stats(BULK).flows_unmoved, u64::from(!moves));
            take(&mut scheduler, &mut pool, packets);
            assert_eq!((scheduler.len(), pool.outstanding()), (0, 0));
        }
    }

    #[test]
    fn a_fifo_keeps_what_it_has() {
        let mut pool = FramePool::standalone(100, 2_048);
        let mut scheduler = filled(QueueSpec::Fifo, &mut pool);
        scheduler.reclass(Nanos(0), FLOW, (BULK, URGENT), &mut Vec::new());
        assert_eq!(scheduler.class_stats(BULK).backlog_packets, 20);
        assert_eq!(take(&mut scheduler, &mut pool, 100), (0..20).collect::<Vec<u8>>());
    }
}
