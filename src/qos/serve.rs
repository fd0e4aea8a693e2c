//! A leaf's turn: its packets leave, each from the flow that is first in line.

use super::codel::Ticks;
use super::flows::Standing;
use super::packets::Note;
use super::queues::{Exit, NEW, OLD, Queues};
use super::settings::Manner;
use super::wheel::NIL;
use crate::base::Nanos;
use crate::packet::Frame;

/// Packets of a flow that are served as a run, if there may be so many: what that costs is less
/// than what it saves.
const RUN_MIN: u32 = 3;

/// What a turn may send: it ends behind the packet that reaches one of these.
#[derive(Clone, Copy, Debug)]
pub(super) struct Allowance {
    pub packets: usize,
    /// Bytes of their frames.
    pub len: u64,
    /// Bytes, as counted, that it stays within if all its packets are as long as its last.
    pub turn: u32,
    /// Bytes, as counted, behind which no other packet begins, once that was asked for.
    room: u64,
}

/// What a leaf has sent in a turn.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Served {
    pub packets: usize,
    /// Bytes of their frames.
    pub len: u64,
    /// Bytes that they count as.
    pub bytes: u32,
    /// The leaf has no more to send.
    pub emptied: bool,
}

/// A packet that was sent: its length, and the bytes that it counts as.
#[derive(Clone, Copy, Debug)]
struct Sent {
    len: u32,
    bytes: u32,
}

impl Allowance {
    pub fn new(packets: usize, len: u64, turn: u32) -> Allowance {
        Allowance { packets, len, turn, room: u64::MAX }
    }

    /// Whether so many bytes more are within it.
    #[inline(always)]
    fn has_room_for(&self, served: &Served, bytes: u32) -> bool {
        let sum = served.bytes.saturating_add(bytes);
        sum <= self.turn && u64::from(sum) <= self.room
    }

    /// Whether another packet may follow the last, which counts as `last`.
    #[inline(always)]
    fn goes_on(&self, served: &Served, last: u32) -> bool {
        served.bytes.saturating_add(last) <= self.turn
            && served.packets < self.packets
            && served.len < self.len
            && u64::from(served.bytes) <= self.room
    }
}

impl Served {
    #[inline(always)]
    fn add(&mut self, len: u32, bytes: u32) {
        self.packets += 1;
        self.len += u64::from(len);
        self.bytes = self.bytes.saturating_add(bytes);
    }
}

impl Queues {
    /// Sends a leaf's next packet, and then more as long as it has some and may. None may be sent
    /// at all: the queue management may drop some. `room` gives the bound of that name, and is
    /// called once, where the other bounds allow a second packet.
    #[inline(always)]
    pub fn serve(
        &mut self,
        (leaf, is_borrowed): (u32, bool),
        allowed: Allowance,
        exit: &mut Exit<'_>,
        out: &mut Vec<Frame>,
        mut room: impl FnMut() -> u64,
    ) -> Served {
        let (mut served, mut allowed) = (Served::default(), allowed);
        while let Some(Sent { len, bytes }) = self.pop(leaf, is_borrowed, exit, out) {
            served.add(len, bytes);
            served.emptied = !self.has_ready(leaf);
            if served.emptied || !allowed.goes_on(&served, bytes) {
                return served;
            }
            if served.packets == 1 {
                allowed.room = room();
                if u64::from(bytes) > allowed.room {
                    return served;
                }
            }
            if allowed.has_room_for(&served, RUN_MIN * bytes)
                && self.may_run(leaf)
                && self.run(leaf, is_borrowed, &allowed, &mut served, (exit.now, out))
            {
                return served;
            }
        }
        served.emptied = true;
        served
    }

    /// Whether a leaf has one flow, an old one that is neither managed nor paced.
    #[inline(always)]
    fn may_run(&self, leaf: u32) -> bool {
        let [new, old] = self.leaves[leaf as usize].lists;
        let is_one = new.head == NIL && old.head != NIL && old.head == old.tail;
        is_one && !self.has_paces && !self.flows.at(old.head).above.is_set()
    }

    /// As above for a leaf with one flow, an old one that is not managed: its packets go one after
    /// the other, but for the last, and up to the first that waited too long. Whether the turn is
    /// over.
    #[inline(never)]
    fn run(
        &mut self,
        leaf: u32,
        is_borrowed: bool,
        allowed: &Allowance,
        served: &mut Served,
        (now, out): (Ticks, &mut Vec<Frame>),
    ) -> bool {
        let Queues { leaves, manners, sojourns, flows, packets, .. } = self;
        let held = &mut leaves[leaf as usize];
        let flow = held.lists[OLD].head;
        let Manner { counting, target, .. } = manners[usize::from(held.manner)];
        let entry = flows.at_mut(flow);
        let (mut head, mut deficit) = (entry.head, entry.deficit);
        let (mut sum, mut count, mut is_over) = (0u32, 0u32, false);
        while head != entry.tail && !is_over {
            let waited = now.wrapping_sub(packets.since(head));
            if deficit <= 0 {
                deficit += self.quantum as i32;
            }
            // One that came from another leaf may have waited for longer than those before it.
            if waited >= target || deficit <= 0 {
                break;
            }
            let (frame, _, next) = packets.remove(head);
            let Some(frame) = frame else { break };
            let (len, bytes) = (frame.len() as u32, counting.counted(frame.len()));
            out.push(frame);
            (head, deficit) = (next, deficit - bytes as i32);
            (sum, count) = (sum.wrapping_add(bytes), count + 1);
            served.add(len, bytes);
            if held.recent.note(waited) {
                sojourns[leaf as usize].record(&mut held.recent);
            }
            is_over = !allowed.goes_on(served, bytes);
        }
        (entry.head, entry.deficit) = (head, deficit);
        entry.bytes = entry.bytes.wrapping_sub(sum);
        held.packets -= count;
        held.bytes = held.bytes.wrapping_sub(u64::from(sum));
        held.sent.packets += u64::from(count);
        held.sent.bytes += u64::from(sum);
        held.borrowed_bytes += u64::from(if is_borrowed { sum } else { 0 });
        self.bytes -= u64::from(sum);
        // A thin flow that shrinks stays one.
        if entry.fat != 0 && !entry.is_of_size() {
            self.change_size(leaf, flow);
        }
        is_over
    }

    /// `None` when the leaf holds nothing to send, or nothing any more.
    #[inline(always)]
    fn pop(
        &mut self,
        leaf: u32,
        is_borrowed: bool,
        exit: &mut Exit<'_>,
        out: &mut Vec<Frame>,
    ) -> Option<Sent> {
        loop {
            let (list, flow) = self.first_in_line(leaf, exit.at)?;
            let (mut frame, bytes, Note { since, l3 }) = self.shift(leaf, flow)?;
            let (len, waited) = (frame.len() as u32, exit.now.wrapping_sub(since));
            let late = waited >= self.manner(leaf).target;
            let entry = self.flows.at_mut(flow);
            let (next, is_empty) = (entry.next, entry.head == NIL);
            let is_managed = late | entry.above.is_set();
            if is_managed && self.signals(leaf, flow, late, exit) {
                let Some(kept) = self.signal(leaf, (frame, bytes, l3), exit) else {
                    if is_empty || self.has_paces {
                        self.leave(leaf, list, is_empty, 0, exit.at);
                    }
                    continue;
                };
                frame = kept;
            }
            out.push(frame);
            let Queues { leaves, flows, sojourns, .. } = self;
            flows.prefetch(next);
            flows.at_mut(flow).deficit -= bytes as i32;
            let held = &mut leaves[leaf as usize];
            held.sent.add(bytes);
            held.borrowed_bytes += u64::from(if is_borrowed { bytes } else { 0 });
            if held.recent.note(waited) {
                sojourns[leaf as usize].record(&mut held.recent);
            }
            if is_empty || self.has_paces {
                self.leave(leaf, list, is_empty, bytes, exit.at);
            }
            return Some(Sent { len, bytes });
        }
    }

    /// The flow whose packet is the leaf's next, and the list that it is first of. On the way to it
    /// those that have used up their round, hold nothing or must wait leave the front.
    #[inline(always)]
    fn first_in_line(&mut self, leaf: u32, now: Nanos) -> Option<(usize, u32)> {
        loop {
            let held = &self.leaves[leaf as usize];
            let list = usize::from(held.lists[NEW].head == NIL);
            let flow = held.lists[list].head;
            if flow == NIL {
                return None;
            }
            let entry = self.flows.at_mut(flow);
            if entry.head == NIL {
                self.rest(leaf, list);
                continue;
            }
            if entry.deficit <= 0 {
                entry.deficit += self.quantum as i32;
                let is_alone = list == OLD && entry.next == NIL;
                if !is_alone || entry.deficit <= 0 {
                    self.go_behind(leaf, list);
                    continue;
                }
            }
            if self.has_paces && self.sleeps_first(leaf, list, now) {
                continue;
            }
            return Some((list, flow));
        }
    }

    /// The first flow of a list has sent: it is forgotten or sleeps if it has to.
    #[inline(never)]
    fn leave(&mut self, leaf: u32, list: usize, is_empty: bool, sent: u32, now: Nanos) {
        let (flow, pace) = (self.leaves[leaf as usize].lists[list].head, self.pace(leaf));
        let is_backlog = self.flows.at(flow).standing == Standing::Backlog;
        let sleeps =
            pace.is_set() && !is_backlog && (self.pacing.charge(flow, pace, now, sent) || is_empty);
        if is_empty {
            self.empty += 1;
            let is_last = self.leaves[leaf as usize].packets == 0 && !sleeps;
            if is_last || is_backlog || self.empty > self.empty_max {
                self.forget_first(leaf, list);
                return;
            }
        }
        if sleeps {
            self.sleep_first(leaf, list);
        }
    }

    /// Sends the first flow of a list to sleep if it may not send yet.
    #[inline(never)]
    fn sleeps_first(&mut self, leaf: u32, list: usize, now: Nanos) -> bool {
        let flow = self.leaves[leaf as usize].lists[list].head;
        let sleeps = self.pace(leaf).is_set() && !self.pacing.is_due(flow, now);
        if sleeps {
            self.sleep_first(leaf, list);
        }
        sleeps
    }

    /// The first flow of a list, which holds no packets, has its turn: a new one joins the old
    /// ones, so that it can't come back as new at once and starve them; an old one leaves them.
    fn rest(&mut self, leaf: u32, list: usize) {
        if list == NEW && self.first_of(leaf, OLD).is_some() {
            let flow = self.unlink_first(leaf, NEW);
            self.append(leaf, flow, Standing::Old);
        } else if self.has_paces {
            self.dismiss_first(leaf, list);
        } else {
            self.forget_first(leaf, list);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::Seed;
    use crate::base::hash::Rng;
    use crate::base::units::BitRate;
    use crate::packet::{ClassId, DropReason, FramePool, PortId};
    use crate::qos::spec::{ClassSpec, PortQosSpec, QueueSpec};
    use crate::qos::{ClassStats, Queued, Scheduler};

    const PACKETS: u32 = 2_000;
    const LEN_MAX: u32 = 1_500;

    /// A port that is fast enough for turns of many packets.
    fn one_leaf(rate: u64, queue: QueueSpec) -> PortQosSpec {
        let port = BitRate(100_000_000_000);
        PortQosSpec {
            port: PortId(0),
            rate: port,
            burst: 1 << 20,
            overhead: 24,
            mpu: 84,
            mtu: LEN_MAX as u16,
            default_class: ClassId(1),
            classes: vec![ClassSpec {
                burst: 20_000,
                cburst: 64 << 10,
                queue,
                ..ClassSpec::plain(1, BitRate(rate), port)
            }],
        }
    }

    /// A scheduler, and what has left it so far: numbers of packets, and of those whether they are
    /// marked; and of those that were dropped.
    struct Way {
        scheduler: Scheduler,
        pool: FramePool,
        sent: Vec<(u32, u8)>,
        dropped: Vec<(u32, DropReason)>,
    }

    impl Way {
        fn new(rate: u64, queue: QueueSpec) -> Way {
            Way {
                scheduler: Scheduler::new(&one_leaf(rate, queue), PACKETS, Seed(1)),
                pool: FramePool::standalone(PACKETS, 2_048),
                sent: Vec::new(),
                dropped: Vec::new(),
            }
        }

        fn enqueue(&mut self, now: Nanos, number: u32, flow_hash: u32, len: u32) {
            // IPv4. A flow understands marks, the other does not.
            let mut bytes = vec![0; len as usize];
            bytes[20..24].copy_from_slice(&number.to_be_bytes());
            let tos = [2, 0][flow_hash as usize];
            bytes[12..16].copy_from_slice(&[8, 0, 0x45, tos]);
            let frame = self.pool.take_with(&bytes).expect("stock");
            let q = Queued { frame, class: ClassId(1), flow_hash, l3: 14 };
            let arena = std::sync::Arc::clone(self.pool.arena());
            self.scheduler.enqueue(now, q, &arena, &mut Vec::new());
        }

        fn dequeue(&mut self, now: Nanos, packets: usize) -> usize {
            let arena = std::sync::Arc::clone(self.pool.arena());
            let (mut out, mut dropped) = (Vec::new(), Vec::new());
            let sent =
                self.scheduler.dequeue(now, packets, u64::MAX, &arena, &mut out, &mut dropped);
            let number = |bytes: &[u8]| u32::from_be_bytes([20, 21, 22, 23].map(|i| bytes[i]));
            for frame in out {
                let bytes = frame.bytes(&arena);
                self.sent.push((number(bytes), bytes[15] & 3));
                self.pool.put(frame);
            }
            for (frame, reason) in dropped {
                self.dropped.push((number(frame.bytes(&arena)), reason));
                self.pool.put(frame);
            }
            self.scheduler.check_invariants();
            sent
        }
    }

    /// Whether packets of a leaf leave many at a time or one by one makes no difference: in their
    /// order, their marks and all that is counted.
    #[test]
    fn a_run_is_as_its_packets_one_by_one() {
        let (mut marked, mut dropped, mut borrowed) = (0, 0, 0);
        for seed in 0..60 {
            let mut rng = Rng::new(Seed(seed));
            let rate = [1_000_000_000, 99_000_000_000][rng.below(2) as usize];
            let managed = QueueSpec::FqCodel { target: 20_000, interval: 100_000 };
            let queue = if seed % 4 == 0 { QueueSpec::Fifo } else { managed };
            let (mut many, mut each) = (Way::new(rate, queue), Way::new(rate, queue));
            let (mut now, mut number) = (Nanos(1), 0);
            for _ in 0..60 {
                now = now.saturating_add(1 << rng.below(18));
                let flows = 1 + rng.below(2);
                for _ in 0..rng.below(40).min(PACKETS - many.scheduler.len() as u32) {
                    let (flow, len) = (rng.below(flows), 64 + rng.below(LEN_MAX - 64));
                    many.enqueue(now, number, flow, len);
                    each.enqueue(now, number, flow, len);
                    number += 1;
                }
                let packets = rng.below(30) as usize;
                let sent = many.dequeue(now, packets);
                let one_by_one = (0..packets).take_while(|_| each.dequeue(now, 1) > 0).count();
                assert_eq!(sent, one_by_one, "seed {seed}");
                let stats = [&mut many, &mut each].map(|w| w.scheduler.class_stats(ClassId(1)));
                // Each call looks whether the class has tokens again.
                let [a, b] = stats.map(|s| s.leaf_borrowed_bytes);
                assert!(a.abs_diff(b) <= 2 * u64::from(LEN_MAX), "seed {seed}: {a} {b}");
                let [a, b] = stats.map(|s| ClassStats { leaf_borrowed_bytes: 0, ..s });
                assert!(many.sent == each.sent && a == b, "seed {seed}: {a:?} {b:?}");
                assert_eq!(many.dropped, each.dropped, "seed {seed}");
            }
            let stats = many.scheduler.class_stats(ClassId(1));
            marked += stats.marked_packets;
            dropped += stats.aqm_dropped_packets;
            borrowed += stats.leaf_borrowed_bytes;
            for mut way in [many, each] {
                let mut out = Vec::new();
                way.scheduler.drain(&mut out);
                out.into_iter().for_each(|frame| way.pool.put(frame));
            }
        }
        let enough = marked > 100 && dropped > 20 && borrowed > 1_000_000;
        assert!(enough, "{marked} marked, {dropped} dropped, {borrowed} borrowed");
    }

    /// Packets that came from another leaf may have waited for longer than those before them: the
    /// queue management sees them, also behind others of a run.
    #[test]
    fn a_run_ends_before_a_packet_that_waited_too_long() {
        let managed = QueueSpec::FqCodel { target: 20_000, interval: 100_000 };
        let mut way = Way::new(99_000_000_000, managed);
        let now = Nanos(10_000_000);
        for number in 0..6 {
            way.enqueue(now, number, 0, 1_000);
        }
        // Its first round is used up: it is an old flow.
        assert_eq!(way.dequeue(now, 2), 2);
        for number in 6..12 {
            way.enqueue(now, number, 0, 1_000);
        }
        let queues = &mut way.scheduler.queues;
        let flow = queues.leaves[1].first_flow();
        let next = |cell| queues.packets.next(cell);
        let fourth = next(next(next(queues.flows.at(flow).head)));
        queues.packets.set_since(fourth, 0);
        assert_eq!(way.dequeue(now, 4), 4);
        assert!(way.scheduler.queues.flows.at(flow).above.is_set(), "it was not looked at");
        let mut out = Vec::new();
        way.scheduler.drain(&mut out);
        out.into_iter().for_each(|frame| way.pool.put(frame));
    }
}
