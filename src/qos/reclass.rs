//! A flow that belongs to another class from now on.
//!
//! What it has waiting goes with it. Stayed it where it is, what comes next would leave before it
//! whenever the new leaf has its turn first: TCP takes that for loss, and an answer that a rule
//! found out to be urgent would wait behind the bulk it was first taken for.

use super::Scheduler;
use super::packets::Note;
use super::queues::Queues;
use super::wheel::NIL;
use crate::base::Nanos;
use crate::packet::{ClassId, DropReason, Frame};

/// What of a flow is moved at most: whoever changes its class must not hold up its worker.
const MOVED_MAX: usize = 512;

impl Scheduler {
    /// Moves what waits of a flow from one class to another, behind what it has there already, in
    /// its order and with the time that it has waited. `false`: something may have stayed. That is
    /// so where the old class is a FIFO, which does not tell flows apart, and where more than 512
    /// packets wait.
    pub fn reclass(
        &mut self,
        now: Nanos,
        flow_hash: u32,
        (from, to): (ClassId, ClassId),
        dropped: &mut Vec<(Frame, DropReason)>,
    ) -> bool {
        let (from, to) = (self.leaf(from), self.leaf(to));
        if from == to || self.queues.leaves[from as usize].packets == 0 {
            return true;
        }
        let now = self.advance(now);
        let was_idle = !self.queues.has_ready(to);
        let is_gone = self.queues.reclass(now, flow_hash, (from, to), dropped);
        if let Some(member) = &mut self.member {
            member.changed(from);
            member.changed(to);
            return is_gone;
        }
        if !self.queues.has_ready(from) {
            self.tree.deactivate(from);
        }
        if was_idle && self.queues.has_ready(to) {
            self.tree.activate(now, to);
        }
        is_gone
    }
}

impl Queues {
    fn reclass(
        &mut self,
        now: Nanos,
        flow_hash: u32,
        (from, to): (u32, u32),
        dropped: &mut Vec<(Frame, DropReason)>,
    ) -> bool {
        if self.manner(from).is_fifo() {
            return false;
        }
        let Some(flow) = self.flows.find(self.key(from, flow_hash)) else { return true };
        if self.flows.at(flow).head == NIL {
            return true;
        }
        let mut last = self.flows.at(flow).head;
        for _ in 1..MOVED_MAX {
            last = if last == NIL { NIL } else { self.packets.next(last) };
        }
        if last != NIL && self.packets.next(last) != NIL {
            return false;
        }
        // The flow stays in its list with nothing in it until its turn, and there is room for only
        // so many of those.
        if self.empty >= self.empty_max {
            return false;
        }
        let key = self.key(to, flow_hash);
        while self.flows.at(flow).head != NIL {
            let Some((frame, _, Note { since, l3 })) = self.shift(from, flow) else { break };
            let bytes = self.counted(to, frame.len());
            if let Err(frame) = self.push(key, frame, bytes, Note { since, l3 }, now) {
                debug_assert!(false, "there is room for one flow more");
                self.refuse(to, frame, bytes, dropped);
            }
        }
        self.empty += 1;
        true
    }
}

#[cfg(test)]
mod tests {
    use super::MOVED_MAX;
    use crate::base::units::BitRate;
    use crate::base::{Nanos, Seed};
    use crate::packet::{ClassId, Frame, FramePool, PortId};
    use crate::qos::spec::{ClassSpec, PortQosSpec, QueueSpec};
    use crate::qos::{Queued, Scheduler};

    const URGENT: ClassId = ClassId(1);
    const BULK: ClassId = ClassId(2);
    const FLOW: u32 = 7;
    const OTHER: u32 = 8;
    const LEN: usize = 1_000;

    fn tree(bulk: QueueSpec) -> PortQosSpec {
        let (rate, ceil) = (BitRate(1_000_000), BitRate(1_000_000_000));
        let class = |id: ClassId, priority, queue| ClassSpec {
            burst: 4_000,
            priority,
            queue,
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
            classes: vec![class(URGENT, 0, QueueSpec::INTERNET), class(BULK, 7, bulk)],
        }
    }

    /// A scheduler that holds 20 packets of two flows in turn, numbered, in the class of bulk.
    fn filled(bulk: QueueSpec, pool: &mut FramePool) -> Scheduler {
        let mut scheduler = Scheduler::new(&tree(bulk), 100, Seed(1));
        for number in 0..20 {
            put(&mut scheduler, pool, number, BULK);
        }
        scheduler
    }

    fn put(scheduler: &mut Scheduler, pool: &mut FramePool, number: u8, class: ClassId) {
        let frame = pool.take_with(&[number; LEN]).expect("stock");
        let flow_hash = if number.is_multiple_of(2) { FLOW } else { OTHER };
        let q = Queued { frame, class, flow_hash, l3: 0 };
        scheduler.enqueue(Nanos(0), q, pool.arena(), &mut Vec::new());
    }

    fn take(scheduler: &mut Scheduler, pool: &mut FramePool, packets: usize) -> Vec<u8> {
        let (mut out, arena) = (Vec::new(), pool.arena().clone());
        scheduler.dequeue(Nanos(1), packets, u64::MAX, &arena, &mut out, &mut Vec::new());
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
        assert!(scheduler.reclass(Nanos(0), FLOW, (BULK, URGENT), &mut lost) && lost.is_empty());
        put(&mut scheduler, &mut pool, 20, URGENT);
        let mut stats = |class| {
            let stats = scheduler.class_stats(class);
            (stats.backlog_packets, stats.backlog_bytes)
        };
        assert_eq!((stats(URGENT), stats(BULK)), ((11, 11_000), (10, 10_000)));
        let sent = take(&mut scheduler, &mut pool, 100);
        let of = |flow: u8| sent.iter().copied().filter(|n| n % 2 == flow).collect::<Vec<_>>();
        assert_eq!(of(0), (0..=20).step_by(2).collect::<Vec<u8>>());
        assert_eq!(of(1), (1..=19).step_by(2).collect::<Vec<u8>>());
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
            assert!(scheduler.reclass(Nanos(0), flow, way, &mut lost) && lost.is_empty());
        }
        assert_eq!(scheduler.class_stats(URGENT).backlog_packets, 0);
        assert_eq!(scheduler.class_stats(BULK).backlog_packets, 20);
        let sent = take(&mut scheduler, &mut pool, 100);
        let even: Vec<u8> = sent.iter().copied().filter(|n| n % 2 == 0).collect();
        assert_eq!((sent.len(), even), (20, (0..20).step_by(2).collect()));
        assert_eq!((scheduler.len(), pool.outstanding()), (0, 0));
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
            assert_eq!(scheduler.reclass(Nanos(0), FLOW, (BULK, URGENT), &mut Vec::new()), moves);
            let moved = scheduler.class_stats(URGENT).backlog_packets;
            assert_eq!(moved, if moves { packets as u64 } else { 0 });
            take(&mut scheduler, &mut pool, packets);
            assert_eq!((scheduler.len(), pool.outstanding()), (0, 0));
        }
    }

    #[test]
    fn a_fifo_keeps_what_it_has() {
        let mut pool = FramePool::standalone(100, 2_048);
        let mut scheduler = filled(QueueSpec::Fifo, &mut pool);
        assert!(!scheduler.reclass(Nanos(0), FLOW, (BULK, URGENT), &mut Vec::new()));
        assert_eq!(scheduler.class_stats(BULK).backlog_packets, 20);
        assert_eq!(take(&mut scheduler, &mut pool, 100), (0..20).collect::<Vec<u8>>());
    }
}
