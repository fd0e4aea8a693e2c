//! What leaves hold: flows in a deficit round robin, their packets, and who loses when there is no
//! room.
//!
//! The order among flows is that of FQ-CoDel (RFC 8290, section 4.1): flows that just began to
//! queue stand in a list of their own and are served first, once; the others take turns, a quantum
//! each.

use super::flows::{Fat, Flow, Flows, Standing};
use super::packets::Packets;
use super::stats::ClassStats;
use super::wheel::NIL;
use crate::base::Seed;
use crate::base::mem::prefetch;
use crate::packet::Frame;

/// Sizes of flows are told apart by powers of two, from 4 KiB on; the last takes all from 4 MiB on.
const FAT_SIZES: usize = 11;
const FAT_BITS_MIN: u32 = 12;
/// Flows looked at, in one list, for the fattest.
const FAT_SCAN: usize = 8;
/// Leaves looked at for the fattest, each time the scheduler is full.
const DONOR_SCAN: usize = 8;
/// Flows that hold no packet but still stand in a list, at most this many: 1 in so many of the
/// packets held. Those above are forgotten at once.
const EMPTY_SHARE: u32 = 4;

/// Index of a leaf's list of new flows, and of its old ones.
const NEW: usize = 0;
const OLD: usize = 1;

/// What a leaf takes from the configuration.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct LeafSettings {
    /// Bytes, as counted, that it may hold.
    pub limit: u32,
}

impl LeafSettings {
    /// Of an inner class.
    pub const NONE: LeafSettings = LeafSettings { limit: 0 };
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

/// A leaf's queues and counters: what every packet touches, in one cache line.
#[derive(Clone, Debug)]
#[repr(C, align(64))]
pub(super) struct Leaf {
    /// Of new flows and of old ones.
    pub lists: [List; 2],
    pub bytes: u64,
    pub settings: LeafSettings,
    pub packets: u32,
    pub sent: Tally,
    pub borrowed_bytes: u64,
    /// Sizes of which there are fat flows.
    fat_sizes: u16,
}

/// What losses need of a leaf.
#[derive(Clone, Debug)]
pub(super) struct Losses {
    pub dropped: Tally,
    /// The first fat flow of each size.
    fat: [u32; FAT_SIZES],
}

const _: () = assert!(size_of::<Leaf>() == 64);
const _: () = assert!(FAT_SIZES <= u16::BITS as usize);

/// Where the flows of an old leaf go.
#[derive(Clone, Copy, Debug)]
pub(super) struct Move {
    pub leaf: u32,
    /// It is the same class.
    pub keeps_counters: bool,
}

/// All leaves of one scheduler.
pub(super) struct Queues {
    /// By class; those of inner classes stay empty.
    pub leaves: Vec<Leaf>,
    pub losses: Vec<Losses>,
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
            bytes: 0,
            settings,
            packets: 0,
            sent: Tally::default(),
            borrowed_bytes: 0,
            fat_sizes: 0,
        }
    }
}

impl Losses {
    pub const NONE: Losses =
        Losses { dropped: Tally { packets: 0, bytes: 0 }, fat: [NIL; FAT_SIZES] };
}

impl Queues {
    pub fn new(leaves: &[LeafSettings], packets_max: u32, quantum: u32, seed: Seed) -> Queues {
        let empty_max = packets_max / EMPTY_SHARE + 1;
        Queues {
            leaves: leaves.iter().map(|&settings| Leaf::new(settings)).collect(),
            losses: vec![Losses::NONE; leaves.len()],
            // A flow holds a packet or is one of the empty ones, of which a few more may lie
            // between others in a leaf that is over its limit.
            flows: Flows::new(packets_max.saturating_add(empty_max.saturating_mul(2)), seed),
            packets: Packets::new(packets_max),
            empty: 0,
            empty_max,
            quantum,
            fattest: 0,
            donor_scan: 0,
            bytes: 0,
        }
    }

    pub fn stats(&self, leaf: usize) -> ClassStats {
        let (held, dropped) = (&self.leaves[leaf], self.losses[leaf].dropped);
        let (backlog_packets, backlog_bytes) = (u64::from(held.packets), held.bytes);
        ClassStats {
            enqueued_packets: held.sent.packets + dropped.packets + backlog_packets,
            enqueued_bytes: held.sent.bytes + dropped.bytes + backlog_bytes,
            sent_packets: held.sent.packets,
            sent_bytes: held.sent.bytes,
            dropped_packets: dropped.packets,
            dropped_bytes: dropped.bytes,
            borrowed_bytes: held.borrowed_bytes,
            backlog_packets,
            backlog_bytes,
        }
    }

    /// Asks the cache for what the leaf's next packet touches, in three steps.
    #[inline(always)]
    pub fn prefetch_leaf(&self, leaf: u32) {
        prefetch(&self.leaves, leaf as usize);
    }

    #[inline(always)]
    pub fn prefetch_flow(&self, leaf: u32) {
        let lists = &self.leaves[leaf as usize].lists;
        self.flows.prefetch(if lists[0].head != NIL { lists[0].head } else { lists[1].head });
    }

    #[inline(always)]
    pub fn prefetch_packet(&self, leaf: u32) {
        let lists = &self.leaves[leaf as usize].lists;
        let flow = if lists[0].head != NIL { lists[0].head } else { lists[1].head };
        if flow != NIL {
            self.packets.prefetch(self.flows.at(flow).head);
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
            (entry.head, entry.tail, entry.bytes, entry.fat) = (NIL, NIL, 0, 0);
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
            let list = usize::from(lists[NEW].head == NIL);
            let flow = lists[list].head;
            if flow == NIL {
                return None;
            }
            let entry = self.flows.at_mut(flow);
            if entry.head == NIL {
                self.rest(leaf, list);
            } else if entry.deficit <= 0 {
                entry.deficit += self.quantum as i32;
                self.unlink_first(leaf, list);
                self.append(leaf, flow, Standing::Old);
            } else {
                let (frame, bytes) = self.shift(leaf, flow, counted)?;
                let entry = self.flows.at_mut(flow);
                entry.deficit -= bytes as i32;
                self.flows.prefetch(self.flows.at(flow).next);
                if self.flows.at(flow).head == NIL {
                    self.empty += 1;
                    if self.leaves[leaf as usize].packets == 0 || self.empty > self.empty_max {
                        self.forget_first(leaf, list);
                    }
                }
                return Some((frame, bytes));
            }
        }
    }

    /// Takes the oldest packet of the leaf's fattest flow, to be dropped. The fattest within a
    /// factor of four, except among the few largest, where it is exact; a drop costs the same for
    /// any number of flows.
    pub fn shed(&mut self, leaf: u32, counted: impl Fn(usize) -> u32) -> Option<Frame> {
        for list in [OLD, NEW] {
            while let Some(first) = self.first_of(leaf, list)
                && self.flows.at(first).head == NIL
            {
                self.forget_first(leaf, list);
            }
        }
        let flow = self.fattest_flow(leaf)?;
        let (frame, bytes) = self.shift(leaf, flow, counted)?;
        self.losses[leaf as usize].dropped.add(bytes);
        if self.flows.at(flow).head == NIL {
            self.empty += 1;
            for list in [OLD, NEW] {
                if self.first_of(leaf, list) == Some(flow) {
                    self.forget_first(leaf, list);
                }
            }
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
            let Leaf { settings, sent, borrowed_bytes, .. } = *leaf;
            *leaf = Leaf { sent, borrowed_bytes, ..Leaf::new(settings) };
        }
        for losses in &mut self.losses {
            *losses = Losses { dropped: losses.dropped, ..Losses::NONE };
        }
    }

    /// Puts `leaves` in the place of the old ones; flows of old leaf `i` move to leaf `map[i]` in
    /// their order. A flow that the target has already gets the
    /// packets behind its own. Nothing is dropped, even over a limit. Allocates.
    pub fn rehouse(
        &mut self,
        leaves: &[LeafSettings],
        map: &[Move],
        seed: Seed,
        counted: impl Fn(usize) -> u32,
    ) {
        let fresh = leaves.iter().map(|&settings| Leaf::new(settings)).collect();
        let old_leaves = std::mem::replace(&mut self.leaves, fresh);
        let old_losses = std::mem::replace(&mut self.losses, vec![Losses::NONE; leaves.len()]);
        let fresh = Flows::new(self.flows.capacity(), seed);
        let old_flows = std::mem::replace(&mut self.flows, fresh);
        (self.bytes, self.empty) = (0, 0);
        (self.fattest, self.donor_scan) = (0, 0);
        for ((from, losses), to) in old_leaves.iter().zip(&old_losses).zip(map) {
            if to.keeps_counters {
                let leaf = &mut self.leaves[to.leaf as usize];
                (leaf.sent, leaf.borrowed_bytes) = (from.sent, from.borrowed_bytes);
                self.losses[to.leaf as usize].dropped = losses.dropped;
            }
            for list in from.lists {
                let mut at = list.head;
                while at != NIL {
                    let flow = old_flows.at(at);
                    if flow.head != NIL {
                        self.settle_in(to.leaf, flow, &counted);
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
            (entry.head, entry.tail) = (old.head, old.tail);
            (entry.bytes, entry.fat) = (0, 0);
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

    /// Counts bytes that come to a flow or leave it, and keeps it among those of about its size.
    #[inline]
    fn resize(&mut self, leaf: u32, flow: u32, change: i64) {
        let held = &mut self.leaves[leaf as usize];
        held.bytes = held.bytes.wrapping_add_signed(change);
        self.bytes = self.bytes.wrapping_add_signed(change);
        let entry = self.flows.at_mut(flow);
        entry.bytes = entry.bytes.wrapping_add(change as u32);
        // Only at half of its size a flow counts as one of the next smaller, lest it go to and fro.
        let (least, most) = (fat_size(entry.bytes), fat_size(entry.bytes.saturating_mul(2)));
        if entry.fat < least || entry.fat > most {
            self.change_size(leaf, flow, least);
        }
    }

    #[cold]
    fn change_size(&mut self, leaf: u32, flow: u32, size: u8) {
        let (held, losses) = (&mut self.leaves[leaf as usize], &mut self.losses[leaf as usize]);
        let before = std::mem::replace(&mut self.flows.at_mut(flow).fat, size);
        if let Some(size) = before.checked_sub(1) {
            let Fat { prev, next } = *self.flows.fat_mut(flow);
            if next != NIL {
                self.flows.fat_mut(next).prev = prev;
            }
            if prev != NIL {
                self.flows.fat_mut(prev).next = next;
            } else {
                losses.fat[usize::from(size)] = next;
                if next == NIL {
                    held.fat_sizes &= !(1 << size);
                }
            }
        }
        if let Some(size) = size.checked_sub(1) {
            let next = std::mem::replace(&mut losses.fat[usize::from(size)], flow);
            held.fat_sizes |= 1 << size;
            *self.flows.fat_mut(flow) = Fat { prev: NIL, next };
            if next != NIL {
                self.flows.fat_mut(next).prev = flow;
            }
        }
    }

    fn fattest_flow(&self, leaf: u32) -> Option<u32> {
        let held = &self.leaves[leaf as usize];
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
        if held.fat_sizes != 0 {
            let first = self.losses[leaf as usize].fat[held.fat_sizes.ilog2() as usize];
            return fattest_of(first, &|flow| self.flows.fat(flow).next);
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

    /// The first flow of a list, which holds no packets, has its turn: a new one joins the old
    /// ones, so that it can't come back as new at once and starve them; an old one is forgotten.
    fn rest(&mut self, leaf: u32, list: usize) {
        if list == NEW && self.first_of(leaf, OLD).is_some() {
            let flow = self.unlink_first(leaf, NEW);
            self.append(leaf, flow, Standing::Old);
        } else {
            self.forget_first(leaf, list);
        }
    }

    /// Removes the first flow of a list, which holds no packets.
    fn forget_first(&mut self, leaf: u32, list: usize) {
        self.empty -= 1;
        let flow = self.unlink_first(leaf, list);
        self.flows.remove(flow);
    }

    #[inline(always)]
    fn first_of(&self, leaf: u32, list: usize) -> Option<u32> {
        let head = self.leaves[leaf as usize].lists[list].head;
        (head != NIL).then_some(head)
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
        (entry.next, entry.standing) = (NIL, standing);
    }

    #[inline]
    fn unlink_first(&mut self, leaf: u32, list: usize) -> u32 {
        let list = &mut self.leaves[leaf as usize].lists[list];
        let first = list.head;
        list.head = self.flows.at(first).next;
        if list.head == NIL {
            list.tail = NIL;
        }
        first
    }
}

#[inline(always)]
fn list_of(standing: Standing) -> usize {
    if standing == Standing::New { NEW } else { OLD }
}

/// The list of fat flows for a flow of this size, counted from 1; 0 for thin flows, which are on no
/// such list.
#[inline(always)]
fn fat_size(bytes: u32) -> u8 {
    let bits = u32::BITS - bytes.leading_zeros();
    bits.saturating_sub(FAT_BITS_MIN).min(FAT_SIZES as u32) as u8
}
