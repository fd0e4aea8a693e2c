//! The hash index of the flow table: linear probing over 8-byte slots, deletion by shifting back.
//!
//! A slot holds the upper half of the key's hash and the flow's number, so that a probe compares
//! eight slots per cache line before it touches a flow, and so that deletion can tell where a
//! slot's entry would rather be (Knuth, TAOCP vol. 3, algorithm 6.4R).

use crate::base::mem::prefetch;

const EMPTY: u64 = u64::MAX;
/// Percent of the slots that may be in use: longer runs would cost second cache lines.
const LOAD_PERCENT_MAX: usize = 70;

pub(super) struct Index {
    slots: Vec<u64>,
    used: usize,
}

impl Index {
    /// Room for `entries` keys.
    pub(super) fn new(entries: usize) -> Index {
        let slots = (entries * 100).div_ceil(LOAD_PERCENT_MAX).max(16);
        Index { slots: vec![EMPTY; slots], used: 0 }
    }

    pub(super) fn bytes(&self) -> usize {
        self.slots.len() * size_of::<u64>()
    }

    #[inline(always)]
    fn home(&self, tag: u32) -> usize {
        // A range reduction by multiplication: the table need not be a power of two.
        ((u64::from(tag) * self.slots.len() as u64) >> 32) as usize
    }

    #[inline(always)]
    fn tag(hash: u64) -> u32 {
        (hash >> 32) as u32
    }

    #[inline(always)]
    pub(super) fn prefetch(&self, hash: u64) {
        prefetch(&self.slots, self.home(Self::tag(hash)));
    }

    /// The first flow with this hash's tag: probably the one that `matches` would choose.
    #[inline(always)]
    pub(super) fn candidate(&self, hash: u64) -> Option<u32> {
        self.find(hash, |_| true)
    }

    /// The flow whose tag is this hash's and which `matches`.
    #[inline(always)]
    pub(super) fn find(&self, hash: u64, mut matches: impl FnMut(u32) -> bool) -> Option<u32> {
        let tag = Self::tag(hash);
        let mut at = self.home(tag);
        // The load limit guarantees an empty slot.
        loop {
            let slot = self.slots[at];
            if slot == EMPTY {
                return None;
            }
            if (slot >> 32) as u32 == tag && matches(slot as u32) {
                return Some(slot as u32);
            }
            at += 1;
            if at == self.slots.len() {
                at = 0;
            }
        }
    }

    /// Adds an entry; the caller has seen that the key is not in it.
    pub(super) fn insert(&mut self, hash: u64, flow: u32) {
        assert!((self.used + 1) * 100 <= self.slots.len() * LOAD_PERCENT_MAX, "index is full");
        let mut at = self.home(Self::tag(hash));
        while self.slots[at] != EMPTY {
            at = if at + 1 == self.slots.len() { 0 } else { at + 1 };
        }
        self.slots[at] = u64::from(Self::tag(hash)) << 32 | u64::from(flow);
        self.used += 1;
    }

    /// Removes the entry of this hash that points to `flow`. Nothing happens where there is none.
    pub(super) fn remove(&mut self, hash: u64, flow: u32) {
        let wanted = u64::from(Self::tag(hash)) << 32 | u64::from(flow);
        let n = self.slots.len();
        let mut at = self.home(Self::tag(hash));
        while self.slots[at] != wanted {
            if self.slots[at] == EMPTY {
                return;
            }
            at = if at + 1 == n { 0 } else { at + 1 };
        }
        self.used -= 1;
        let mut hole = at;
        loop {
            at = if at + 1 == n { 0 } else { at + 1 };
            let slot = self.slots[at];
            if slot == EMPTY {
                break;
            }
            let home = self.home((slot >> 32) as u32);
            // The entry may move into the hole unless its home lies behind the hole, cyclically.
            let distance_home = (at + n - home) % n;
            let distance_hole = (at + n - hole) % n;
            if distance_home >= distance_hole {
                self.slots[hole] = slot;
                hole = at;
            }
        }
        self.slots[hole] = EMPTY;
    }
}
