//! What leaves hold: flows in a deficit round robin, their packets, and who loses when there is no
//! room.
//!
//! The order among flows is that of FQ-CoDel (RFC 8290, section 4.1): flows that just began to
//! queue stand in a list of their own and are served first, once; the others take turns, a quantum
//! each.

use super::flows::{Flow, Flows, Standing};
use super::packets::Packets;
use super::stats::ClassStats;
use super::wheel::NIL;
use crate::base::Seed;
use crate::packet::Frame;

/// Sizes of flows are told apart by powers of two, from 2 KiB on; the last takes all from 4 MiB on.
const FAT_SIZES: usize = 12;
const FAT_BITS_MIN: u32 = 11;
/// Flows looked at, in one list, for the fattest.
const FAT_SCAN: usize = 8;
/// Leaves looked at for the fattest, each time the scheduler is full.
const DONOR_SCAN: usize = 8;
/// Flows that hold no packet but still stand in a list, at most this many: 1 in so many of the
/// packets held. Those above are forgotten at once.
const EMPTY_SHARE: u32 = 4;

/// What a leaf takes from the configuration.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct LeafSettings {
    /// Bytes, as counted, that it may hold.
    pub limit: u32,
    pub priority: u8,
}

#[derive(Clone, Copy, Debug)]
pub(super) struct List {
    pub head: u32,
    pub tail: u32,
}

/// Packets and bytes as counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Tally {
    pub packets: u64,
    pub bytes: u64,
}

impl Tally {
    #[inline(always)]
    pub fn add(&mut self, bytes: u32) {
        self.packets += 1;
        self.bytes += u64::from(bytes);
    }
}

/// A leaf's queues and counters: two cache lines, the first for every packet, the second for
/// losses.
#[derive(Clone, Debug)]
#[repr(C, align(64))]
pub(super) struct Leaf {
    /// Of new flows and of old ones.
    pub lists: [List; 2],
    pub bytes: u64,
    pub settings: LeafSettings,
    pub packets: u32,
    fat_sizes: u16,
    pub sent: Tally,
    pub borrowed_bytes: u64,
    pub dropped: Tally,
    /// The first fat flow of each size.
    fat: [u32; FAT_SIZES],
}

const _: () = assert!(size_of::<Leaf>() == 128);

/// All leaves of one scheduler.
pub(super) struct Queues {
    pub leaves: Vec<Leaf>,
    pub flows: Flows,
    pub packets: Packets,
    /// Flows that hold no packet but stand in a list.
    pub empty: u32,
    pub empty_max: u32,
    /// Bytes a round for a flow: the largest frame.
    pub quantum: u32,
    /// The leaf that is known to hold, or to have held, most.
    fattest: u32,
    /// Where the search for a fatter leaf goes on.
    donor_scan: u32,
    pub bytes: u64,
}

impl Leaf {
    pub fn new(settings: LeafSettings) -> Leaf {
        Leaf {
            lists: [List { head: NIL, tail: NIL }; 2],
            settings,
            packets: 0,
            bytes: 0,
            sent: Tally::default(),
            borrowed_bytes: 0,
            dropped: Tally::default(),
            fat_sizes: 0,
            fat: [NIL; FAT_SIZES],
        }
    }

    pub fn stats(&self) -> ClassStats {
        let (backlog_packets, backlog_bytes) = (u64::from(self.packets), self.bytes);
        ClassStats {
            enqueued_packets: self.sent.packets + self.dropped.packets + backlog_packets,
            enqueued_bytes: self.sent.bytes + self.dropped.bytes + backlog_bytes,
            sent_packets: self.sent.packets,
            sent_bytes: self.sent.bytes,
            dropped_packets: self.dropped.packets,
            dropped_bytes: self.dropped.bytes,
            borrowed_bytes: self.borrowed_bytes,
            backlog_packets,
            backlog_bytes,
        }
    }

    pub fn take_counters(&mut self, old: &Leaf) {
        (self.sent, self.dropped) = (old.sent, old.dropped);
        self.borrowed_bytes = old.borrowed_bytes;
    }
}

impl Queues {
    pub fn new(leaves: &[LeafSettings], packets_max: u32, quantum: u32, seed: Seed) -> Queues {
        let empty_max = packets_max / EMPTY_SHARE + 1;
        Queues {
            leaves: leaves.iter().map(|&settings| Leaf::new(settings)).collect(),
            // A flow holds a packet or is one of the empty ones: this never runs out.
            flows: Flows::new(packets_max.saturating_add(empty_max), seed),
            packets: Packets::new(packets_max),
            empty: 0,
            empty_max,
            quantum,
            fattest: 0,
            donor_scan: 0,
            bytes: 0,
        }
    }

    /// Appends a packet to its flow. Gives the frame back when there is no room.
    #[inline]
    pub fn push(&mut self, leaf: u32, hash: u32, frame: Frame, bytes: u32) -> Result<(), Frame> {
        if self.packets.is_full() {
            return Err(frame);
        }
        let Some((flow, fresh)) = self.flows.find_or_insert(leaf, hash) else {
            return Err(frame);
        };
        let cell = self.packets.insert(frame)?;
        if fresh {
            let entry = self.flows.at_mut(flow);
            (entry.head, entry.tail, entry.bytes) = (NIL, NIL, 0);
            entry.deficit = self.quantum as i32;
            self.append(leaf, flow, Standing::New);
        } else if self.flows.at(flow).head == NIL {
            self.empty -= 1;
        }
        let entry = self.flows.at_mut(flow);
        let tail = std::mem::replace(&mut entry.tail, cell);
        if tail == NIL {
            entry.head = cell;
        } else {
            self.packets.link(tail, cell);
        }
        self.resize(leaf, flow, i64::from(bytes));
        let held = &mut self.leaves[leaf as usize];
        held.packets += 1;
        if held.bytes > self.leaves[self.fattest as usize].bytes {
            self.fattest = leaf;
        }
        Ok(())
    }

    /// The packet that the leaf sends next.
    #[inline]
    pub fn pop(&mut self, leaf: u32, counted: impl Fn(usize) -> u32) -> Option<(Frame, u32)> {
        loop {
            let lists = &self.leaves[leaf as usize].lists;
            let flow = if lists[0].head != NIL { lists[0].head } else { lists[1].head };
            if flow == NIL {
                return None;
            }
            let entry = self.flows.at_mut(flow);
            if entry.head == NIL {
                self.rest(leaf, flow);
            } else if entry.deficit <= 0 {
                entry.deficit += self.quantum as i32;
                self.unlink(leaf, flow);
                self.append(leaf, flow, Standing::Old);
            } else {
                let (frame, bytes) = self.shift(leaf, flow, counted)?;
                let entry = self.flows.at_mut(flow);
                entry.deficit -= bytes as i32;
                if entry.head == NIL {
                    self.empty += 1;
                    if self.leaves[leaf as usize].packets == 0 || self.empty > self.empty_max {
                        self.forget(leaf, flow);
                    }
                }
                return Some((frame, bytes));
            }
        }
    }

    /// Takes the oldest packet of the leaf's fattest flow, to be dropped. The fattest within a
    /// factor of two, except among the few largest, where it is exact; a drop costs the same for
    /// any number of flows.
    pub fn shed(&mut self, leaf: u32, counted: impl Fn(usize) -> u32) -> Option<Frame> {
        let flow = self.fattest_flow(leaf)?;
        let (frame, bytes) = self.shift(leaf, flow, counted)?;
        self.leaves[leaf as usize].dropped.add(bytes);
        if self.flows.at(flow).head == NIL {
            self.empty += 1;
            self.forget(leaf, flow);
        }
        Some(frame)
    }

    /// The leaf that gives up a packet when the scheduler is full: the fattest as far as is known.
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

    /// Takes everything out, in no order, and forgets all flows. Counters stay. Allocates.
    pub fn drain(&mut self, seed: Seed, out: &mut Vec<Frame>) {
        self.packets.drain(out);
        self.flows = Flows::new(self.flows.capacity(), seed);
        (self.bytes, self.empty) = (0, 0);
        (self.fattest, self.donor_scan) = (0, 0);
        for leaf in &mut self.leaves {
            let fresh = Leaf::new(leaf.settings);
            let old = std::mem::replace(leaf, fresh);
            leaf.take_counters(&old);
        }
    }

    /// Puts `leaves` in the place of the old ones; flows of old leaf `i` move to leaf `map[i]` in
    /// their order. A flow that the target has already gets the packets behind its own. Nothing is
    /// dropped, even over a limit. Allocates.
    pub fn rehouse(
        &mut self,
        leaves: Vec<Leaf>,
        map: &[u32],
        seed: Seed,
        counted: impl Fn(usize) -> u32,
    ) {
        let old_leaves = std::mem::replace(&mut self.leaves, leaves);
        let fresh = Flows::new(self.flows.capacity(), seed);
        let old_flows = std::mem::replace(&mut self.flows, fresh);
        (self.bytes, self.empty) = (0, 0);
        (self.fattest, self.donor_scan) = (0, 0);
        for (from, &to) in old_leaves.iter().zip(map) {
            for list in from.lists {
                let mut at = list.head;
                while at != NIL {
                    let flow = old_flows.at(at);
                    if flow.head != NIL {
                        self.settle_in(to, flow, &counted);
                    }
                    at = flow.next;
                }
            }
        }
    }

    fn settle_in(&mut self, leaf: u32, old: &Flow, counted: &impl Fn(usize) -> u32) {
        let Some((flow, fresh)) = self.flows.find_or_insert(leaf, old.hash) else {
            debug_assert!(false, "as many flows as before do not fit");
            return;
        };
        if fresh {
            let entry = self.flows.at_mut(flow);
            (entry.head, entry.tail, entry.bytes) = (old.head, old.tail, 0);
            entry.deficit = old.deficit.min(self.quantum as i32);
            self.append(leaf, flow, old.standing);
        } else {
            let entry = self.flows.at_mut(flow);
            let tail = std::mem::replace(&mut entry.tail, old.tail);
            self.packets.link(tail, old.head);
        }
        let (mut bytes, mut packets, mut cell) = (0i64, 0, old.head);
        while cell != NIL {
            bytes += i64::from(counted(self.packets.frame_len(cell)));
            packets += 1;
            cell = if cell == old.tail { NIL } else { self.packets.next(cell) };
        }
        self.resize(leaf, flow, bytes);
        let held = &mut self.leaves[leaf as usize];
        held.packets += packets;
        if held.bytes > self.leaves[self.fattest as usize].bytes {
            self.fattest = leaf;
        }
    }

    /// Takes the first packet of a flow that holds one.
    #[inline]
    fn shift(
        &mut self,
        leaf: u32,
        flow: u32,
        counted: impl Fn(usize) -> u32,
    ) -> Option<(Frame, u32)> {
        let entry = self.flows.at_mut(flow);
        let (frame, next) = self.packets.remove(entry.head);
        entry.head = next;
        if next == NIL {
            entry.tail = NIL;
        }
        let frame = frame?;
        let bytes = counted(frame.len());
        self.leaves[leaf as usize].packets -= 1;
        self.resize(leaf, flow, -i64::from(bytes));
        Some((frame, bytes))
    }

    /// Counts bytes that come to a flow or leave it, and keeps it among those of its size.
    #[inline]
    fn resize(&mut self, leaf: u32, flow: u32, change: i64) {
        let held = &mut self.leaves[leaf as usize];
        held.bytes = held.bytes.wrapping_add_signed(change);
        self.bytes = self.bytes.wrapping_add_signed(change);
        let entry = self.flows.at_mut(flow);
        let before = fat_size(entry.bytes);
        entry.bytes = entry.bytes.wrapping_add(change as u32);
        let after = fat_size(entry.bytes);
        if before != after {
            self.change_size(leaf, flow, before, after);
        }
    }

    fn change_size(&mut self, leaf: u32, flow: u32, before: Option<usize>, after: Option<usize>) {
        let held = &mut self.leaves[leaf as usize];
        if let Some(size) = before {
            let Flow { fat_prev, fat_next, .. } = *self.flows.at(flow);
            if fat_next != NIL {
                self.flows.at_mut(fat_next).fat_prev = fat_prev;
            }
            if fat_prev != NIL {
                self.flows.at_mut(fat_prev).fat_next = fat_next;
            } else {
                held.fat[size] = fat_next;
                if fat_next == NIL {
                    held.fat_sizes &= !(1 << size);
                }
            }
        }
        if let Some(size) = after {
            let next = std::mem::replace(&mut held.fat[size], flow);
            held.fat_sizes |= 1 << size;
            let entry = self.flows.at_mut(flow);
            (entry.fat_prev, entry.fat_next) = (NIL, next);
            if next != NIL {
                self.flows.at_mut(next).fat_prev = flow;
            }
        }
    }

    fn fattest_flow(&self, leaf: u32) -> Option<u32> {
        let held = &self.leaves[leaf as usize];
        let fattest_of = |start: u32, next: fn(&Flow) -> u32| {
            let mut best: Option<u32> = None;
            let mut at = start;
            for _ in 0..FAT_SCAN {
                if at == NIL {
                    break;
                }
                let flow = self.flows.at(at);
                if flow.bytes > best.map_or(0, |b| self.flows.at(b).bytes) {
                    best = Some(at);
                }
                at = next(flow);
            }
            best
        };
        if held.fat_sizes != 0 {
            let size = held.fat_sizes.ilog2() as usize;
            return fattest_of(held.fat[size], |flow| flow.fat_next);
        }
        // All are thin: the one that has waited longest is as good as any.
        let old = fattest_of(held.lists[1].head, |flow| flow.next);
        let new = fattest_of(held.lists[0].head, |flow| flow.next);
        match (old, new) {
            (Some(a), Some(b)) if self.flows.at(b).bytes > self.flows.at(a).bytes => Some(b),
            (a, b) => a.or(b),
        }
    }

    /// A flow without packets has its turn: a new one joins the old ones, so that it can't come
    /// back as new at once and starve them; an old one is forgotten.
    fn rest(&mut self, leaf: u32, flow: u32) {
        let has_old = self.leaves[leaf as usize].lists[1].head != NIL;
        if self.flows.at(flow).standing == Standing::New && has_old {
            self.unlink(leaf, flow);
            self.append(leaf, flow, Standing::Old);
        } else {
            self.forget(leaf, flow);
        }
    }

    /// Removes a flow without packets.
    fn forget(&mut self, leaf: u32, flow: u32) {
        self.empty -= 1;
        self.unlink(leaf, flow);
        self.flows.remove(flow);
    }

    fn append(&mut self, leaf: u32, flow: u32, standing: Standing) {
        let list = &mut self.leaves[leaf as usize].lists[list_of(standing)];
        let last = std::mem::replace(&mut list.tail, flow);
        if last == NIL {
            list.head = flow;
        } else {
            self.flows.at_mut(last).next = flow;
        }
        let entry = self.flows.at_mut(flow);
        (entry.prev, entry.next, entry.standing) = (last, NIL, standing);
    }

    fn unlink(&mut self, leaf: u32, flow: u32) {
        let Flow { prev, next, standing, .. } = *self.flows.at(flow);
        let list = &mut self.leaves[leaf as usize].lists[list_of(standing)];
        if prev == NIL {
            list.head = next;
        } else {
            self.flows.at_mut(prev).next = next;
        }
        if next == NIL {
            list.tail = prev;
        } else {
            self.flows.at_mut(next).prev = prev;
        }
    }
}

#[inline(always)]
fn list_of(standing: Standing) -> usize {
    usize::from(standing != Standing::New)
}

/// Index of a flow's size among the fat ones; `None` for thin flows, which are on no such list.
#[inline(always)]
fn fat_size(bytes: u32) -> Option<usize> {
    let bits = bytes.checked_ilog2()?.checked_sub(FAT_BITS_MIN)?;
    Some((bits as usize).min(FAT_SIZES - 1))
}
