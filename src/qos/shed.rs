//! Who loses packets when there is no room for all.

use super::flows::{Key, Queue};
use super::queues::{Exit, NEW, OLD, Queues};
use super::wheel::NIL;
use crate::packet::{DropReason, Frame};

/// Packets that one arrival may push out.
pub(super) const DROPS_MAX: usize = 64;
/// Packets that may be lost because one arrives: from a full scheduler, from a leaf over its limit,
/// and the packet itself.
pub const DROPS_PER_ARRIVAL: usize = 2 * DROPS_MAX + 1;
/// Flows looked at, in one list, for the fattest.
const FAT_SCAN: usize = 8;
/// Leaves looked at for the fattest, each time the scheduler is full.
const DONOR_SCAN: usize = 8;

impl Queues {
    /// Drops packets of a leaf that holds more than it may since a flow sent some, `DROPS_MAX` at
    /// most.
    #[cold]
    pub fn shed_to_limit(&mut self, arriving: Key, bytes_max: u64, exit: &mut Exit<'_>) {
        let leaf = arriving.leaf;
        let mut left = DROPS_MAX;
        while left > 0 {
            if self.leaves[leaf as usize].bytes <= bytes_max {
                return;
            }
            match self.shed(leaf, Some(arriving), left, exit.dropped) {
                0 => return,
                dropped => left -= dropped,
            }
        }
    }

    /// An arriving packet finds no room.
    #[cold]
    pub fn refuse(
        &mut self,
        leaf: u32,
        frame: Frame,
        bytes: u32,
        dropped: &mut Vec<(Frame, DropReason)>,
    ) {
        self.losses[leaf as usize].dropped.add(bytes);
        dropped.push((frame, DropReason::QueueFull));
    }

    /// Drops the oldest packets of the leaf's fattest flow, until half of what it held is left, or
    /// `packets_max` have gone. Returns how many. The fattest within a factor of four, except among
    /// the few largest, where it is exact; it is found at once among any number of flows. Where all
    /// are thin and sleep, the arriving packet's flow loses.
    pub fn shed(
        &mut self,
        leaf: u32,
        arriving: Option<Key>,
        packets_max: usize,
        dropped: &mut Vec<(Frame, DropReason)>,
    ) -> usize {
        self.forget_empty_ones(leaf);
        let fattest =
            self.fattest_flow(leaf).or_else(|| arriving.and_then(|key| self.flows.find(key)));
        let Some(flow) = fattest.filter(|&flow| self.flows.at(flow).head != NIL) else {
            return 0;
        };
        let half = self.flows.at(flow).bytes / 2;
        let mut count = 0;
        while count < packets_max && self.flows.at(flow).bytes > half {
            let Some((frame, bytes, _)) = self.shift(leaf, flow) else {
                break;
            };
            self.losses[leaf as usize].dropped.add(bytes);
            dropped.push((frame, DropReason::QueueFull));
            count += 1;
        }
        if self.flows.at(flow).head == NIL {
            self.empty += 1;
            for list in [OLD, NEW] {
                if self.first_of(leaf, list) == Some(flow) {
                    self.dismiss_first(leaf, list);
                }
            }
        }
        count
    }

    /// Forgets flows without packets, up to the first of a list that has some.
    pub fn forget_empty_ones(&mut self, leaf: u32) {
        for list in [OLD, NEW] {
            while let Some(first) = self.first_of(leaf, list)
                && self.flows.at(first).head == NIL
            {
                self.dismiss_first(leaf, list);
            }
        }
    }

    /// The leaf that gives up packets when the scheduler is full: the fattest as far as is known.
    /// Each call looks at a few more leaves, so that one that grew fat and then fell silent is
    /// found however many there are. `None`: no leaf that is known holds anything.
    pub fn donor(&mut self, arriving: u32) -> Option<u32> {
        let held = |leaf: u32| self.leaves[leaf as usize].bytes;
        let mut fattest = self.fattest;
        for _ in 0..DONOR_SCAN {
            self.donor_scan = (self.donor_scan + 1) % self.leaves.len() as u32;
            if held(self.donor_scan) > held(fattest) {
                fattest = self.donor_scan;
            }
        }
        if held(arriving) > held(fattest) {
            fattest = arriving;
        }
        self.fattest = fattest;
        (self.leaves[fattest as usize].packets > 0).then_some(fattest)
    }

    /// Puts a flow on the list of those of about its size.
    #[cold]
    pub fn change_size(&mut self, leaf: u32, flow: u32) {
        let losses = &mut self.losses[leaf as usize];
        let size = self.flows.at(flow).size();
        let before = std::mem::replace(&mut self.flows.at_mut(flow).fat, size);
        if let Some(size) = before.checked_sub(1) {
            let Queue { fat_prev: prev, fat_next: next, .. } = *self.flows.queue(flow);
            if next != NIL {
                self.flows.queue_mut(next).fat_prev = prev;
            }
            if prev != NIL {
                self.flows.queue_mut(prev).fat_next = next;
            } else {
                losses.fat[usize::from(size)] = next;
                if next == NIL {
                    losses.fat_sizes &= !(1 << size);
                }
            }
        }
        if let Some(size) = size.checked_sub(1) {
            let next = std::mem::replace(&mut losses.fat[usize::from(size)], flow);
            losses.fat_sizes |= 1 << size;
            let queue = self.flows.queue_mut(flow);
            (queue.fat_prev, queue.fat_next) = (NIL, next);
            if next != NIL {
                self.flows.queue_mut(next).fat_prev = flow;
            }
        }
    }

    fn fattest_flow(&self, leaf: u32) -> Option<u32> {
        let (held, losses) = (&self.leaves[leaf as usize], &self.losses[leaf as usize]);
        let fattest_of = |start: u32, next: &dyn Fn(u32) -> u32| {
            let mut best: Option<u32> = None;
            let mut at = start;
            for _ in 0..FAT_SCAN {
                if at == NIL {
                    break;
                }
                if self.flows.at(at).bytes > best.map_or(0, |b| self.flows.at(b).bytes) {
                    best = Some(at);
                }
                at = next(at);
            }
            best
        };
        if losses.fat_sizes != 0 {
            let first = losses.fat[losses.fat_sizes.ilog2() as usize];
            return fattest_of(first, &|flow| self.flows.queue(flow).fat_next);
        }
        // All are thin: the one that has waited longest is as good as any.
        let next = |flow: u32| self.flows.at(flow).next;
        let old = fattest_of(held.lists[OLD].head, &next);
        let new = fattest_of(held.lists[NEW].head, &next);
        match (old, new) {
            (Some(a), Some(b)) if self.flows.at(b).bytes > self.flows.at(a).bytes => Some(b),
            (a, b) => a.or(b),
        }
    }
}

#[cfg(test)]
mod tests {
    use crate::base::units::BitRate;
    use crate::base::{Nanos, Seed};
    use crate::packet::{ClassId, Frame, FramePool, PortId};
    use crate::qos::spec::{ClassSpec, PortQosSpec, QueueSpec};
    use crate::qos::{Queued, Scheduler};

    const FIRST: u16 = 1;
    const BULK: u16 = 2;
    const HELD: u32 = 100;
    const FEWER: usize = 10;

    fn two_classes() -> PortQosSpec {
        let (rate, ceil) = (BitRate(1_000_000), BitRate(1_000_000_000));
        let class = |id: u16| ClassSpec {
            priority: id as u8,
            queue: QueueSpec::INTERNET,
            ..ClassSpec::plain(id, rate, ceil)
        };
        PortQosSpec {
            port: PortId(0),
            rate: BitRate(1_000_000_000),
            burst: 1 << 20,
            overhead: 24,
            mpu: 84,
            mtu: 1_514,
            default_class: ClassId(BULK),
            classes: vec![class(FIRST), class(BULK)],
        }
    }

    /// A backlog beyond what may be held by now, in thin flows or in one, loses a packet or more
    /// for each that comes, and nothing that comes is lost itself.
    #[test]
    fn what_comes_takes_the_place_of_what_is_too_much() {
        for flows in [HELD, 1] {
            let mut pool = FramePool::standalone(2 * HELD, 2_048);
            let arena = pool.arena().clone();
            let mut scheduler = Scheduler::new(&two_classes(), HELD, Seed(1));
            let mut dropped = Vec::new();
            let mut offer = |scheduler: &mut Scheduler, class, flow_hash| {
                let frame = pool.take_with(&[class as u8; 1_000]).expect("stock");
                let q = Queued { frame, class: ClassId(class), flow_hash, l3: 0 };
                scheduler.enqueue(Nanos::ZERO, q, &arena, &mut dropped);
                let classes = |(frame, _): (Frame, _)| {
                    let class = frame.bytes(&arena)[0];
                    pool.put(frame);
                    u16::from(class)
                };
                dropped.drain(..).map(classes).collect::<Vec<_>>()
            };
            for flow in 0..HELD {
                assert!(offer(&mut scheduler, BULK, flow % flows).is_empty());
            }
            scheduler.set_packets_max(FEWER as u32);
            assert_eq!(scheduler.len(), HELD as usize);
            let mut out = Vec::new();
            for flow in 0..HELD {
                let before = scheduler.len();
                let lost = offer(&mut scheduler, FIRST, flow % 2);
                if before > 2 * FEWER {
                    assert!(lost.contains(&BULK) && !lost.contains(&FIRST), "{before}: {lost:?}");
                }
                assert!(scheduler.len() <= before.max(FEWER), "{before} before");
                scheduler.dequeue(Nanos::ZERO, 1, u64::MAX, &arena, &mut out, &mut Vec::new());
            }
            assert!(scheduler.len() <= FEWER, "{} of {flows} flows", scheduler.len());
            scheduler.drain(&mut out);
            out.into_iter().for_each(|frame| pool.put(frame));
            assert_eq!(pool.outstanding(), 0);
        }
    }
}
