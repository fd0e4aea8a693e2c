//! The hash index of the flow table: buckets of one cache line, overflowing into the next one.
//!
//! A bucket holds the upper halves of its keys' hashes beside what they lead to, so that all eight
//! are compared at once, before a flow is touched and without a branch for each: nearly every key
//! lies in the bucket of its hash. Deletion moves back what had to go on to a later bucket (after
//! Knuth, TAOCP vol. 3, algorithm 6.4R), so that no marks of deleted entries pile up.

use crate::base::mem::{Table, lanes_equal, prefetch};

const SLOTS: usize = 8;
const EMPTY: u32 = u32::MAX;
/// Percent of the slots that may be in use: with more, more keys would cost a second cache line.
const LOAD_PERCENT_MAX: usize = 70;

pub(super) struct Index {
    buckets: Table<Bucket>,
    used: usize,
}

/// Entries are packed: the first that is empty ends them.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
struct Bucket {
    tags: [u32; SLOTS],
    values: [u32; SLOTS],
}

impl Bucket {
    const VACANT: Bucket = Bucket { tags: [0; SLOTS], values: [EMPTY; SLOTS] };

    /// A bit for each slot with this tag; empty slots may be among them.
    #[inline(always)]
    fn matching(&self, tag: u32) -> u32 {
        lanes_equal(&self.tags, tag)
    }

    fn set(&mut self, slot: usize, tag: u32, value: u32) {
        (self.tags[slot], self.values[slot]) = (tag, value);
    }

    #[inline(always)]
    fn is_full(&self) -> bool {
        self.values[SLOTS - 1] != EMPTY
    }

    /// Entries in it.
    fn len(&self) -> usize {
        self.values.iter().take_while(|&&v| v != EMPTY).count()
    }

    fn slot_of(&self, tag: u32, value: u32) -> Option<usize> {
        (0..SLOTS).find(|&slot| self.tags[slot] == tag && self.values[slot] == value)
    }

    /// Adds an entry behind the others; there is room.
    fn add(&mut self, tag: u32, value: u32) {
        self.set(self.len(), tag, value);
    }

    /// Takes an entry out, and fills its place with the last one.
    fn take(&mut self, slot: usize) -> (u32, u32) {
        let entry = (self.tags[slot], self.values[slot]);
        let last = self.len() - 1;
        self.set(slot, self.tags[last], self.values[last]);
        self.set(last, 0, EMPTY);
        entry
    }
}

impl Index {
    /// Room for `entries` keys.
    pub(super) fn new(entries: usize) -> Index {
        let slots = (entries * 100).div_ceil(LOAD_PERCENT_MAX);
        Index { buckets: Table::filled(slots.div_ceil(SLOTS).max(2), Bucket::VACANT), used: 0 }
    }

    pub(super) fn bytes(&self) -> usize {
        self.buckets.len() * size_of::<Bucket>()
    }

    #[inline(always)]
    fn home(&self, tag: u32) -> usize {
        // A range reduction by multiplication: the table need not be a power of two.
        ((u64::from(tag) * self.buckets.len() as u64) >> 32) as usize
    }

    #[inline(always)]
    fn after(&self, bucket: usize) -> usize {
        if bucket + 1 == self.buckets.len() { 0 } else { bucket + 1 }
    }

    #[inline(always)]
    fn tag(hash: u64) -> u32 {
        (hash >> 32) as u32
    }

    #[inline(always)]
    pub(super) fn prefetch(&self, hash: u64) {
        prefetch(&self.buckets, self.home(Self::tag(hash)));
    }

    /// The first value with this hash's tag in its own bucket: probably the one that `find` would
    /// give. `None` may be wrong.
    #[inline(always)]
    pub(super) fn candidate(&self, hash: u64) -> Option<u32> {
        let tag = Self::tag(hash);
        let bucket = &self.buckets[self.home(tag)];
        let slot = bucket.matching(tag).trailing_zeros() as usize;
        bucket.values.get(slot).copied().filter(|&value| value != EMPTY)
    }

    /// The value whose tag is this hash's and which `matches`.
    #[inline]
    pub(super) fn find(&self, hash: u64, mut matches: impl FnMut(u32) -> bool) -> Option<u32> {
        let tag = Self::tag(hash);
        let mut at = self.home(tag);
        // The load limit guarantees a bucket that is not full.
        loop {
            let bucket = &self.buckets[at];
            let mut bits = bucket.matching(tag);
            while bits != 0 {
                let value = bucket.values[bits.trailing_zeros() as usize];
                if value != EMPTY && matches(value) {
                    return Some(value);
                }
                bits &= bits - 1;
            }
            if !bucket.is_full() {
                return None;
            }
            at = self.after(at);
        }
    }

    /// Adds an entry; the caller has seen that the key is not in it.
    pub(super) fn insert(&mut self, hash: u64, value: u32) {
        let slots = self.buckets.len() * SLOTS;
        assert!((self.used + 1) * 100 <= slots * LOAD_PERCENT_MAX, "index is full");
        let tag = Self::tag(hash);
        let mut at = self.home(tag);
        while self.buckets[at].is_full() {
            at = self.after(at);
        }
        self.buckets[at].add(tag, value);
        self.used += 1;
    }

    /// Removes the entry of this hash with this value. Nothing happens where there is none.
    pub(super) fn remove(&mut self, hash: u64, value: u32) {
        let tag = Self::tag(hash);
        let mut at = self.home(tag);
        let slot = loop {
            let bucket = &self.buckets[at];
            match bucket.slot_of(tag, value) {
                Some(slot) => break slot,
                None if !bucket.is_full() => return,
                None => at = self.after(at),
            }
        };
        let mut go_on = self.buckets[at].is_full();
        self.buckets[at].take(slot);
        self.used -= 1;
        // Behind a bucket that was full may lie entries that would rather be in it.
        let mut hole = at;
        while go_on {
            at = self.after(at);
            go_on = self.buckets[at].is_full();
            if let Some(slot) = self.displaced(at, hole) {
                let (tag, value) = self.buckets[at].take(slot);
                self.buckets[hole].add(tag, value);
                hole = at;
            }
        }
    }

    /// An entry of bucket `at` that would be found in `hole` too: whose home is not behind it.
    fn displaced(&self, at: usize, hole: usize) -> Option<usize> {
        let n = self.buckets.len();
        let back = |to: usize| (at + n - to) % n;
        let bucket = &self.buckets[at];
        (0..bucket.len()).find(|&slot| back(self.home(bucket.tags[slot])) >= back(hole))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::Seed;
    use crate::base::hash::Rng;
    use std::collections::HashMap;

    /// Hashes that crowd into few buckets, at the end of the table too.
    fn crowded(rng: &mut Rng) -> u64 {
        let bucket = [0u64, 1, 1, 2, 30, 31, 31][rng.below(7) as usize];
        let low = u64::from(rng.below(40));
        (bucket * (1 << 27) + low) << 32 | rng.next_u64() >> 32
    }

    #[test]
    fn a_crowded_index_holds_what_was_put_in() {
        let mut rng = Rng::new(Seed(5));
        let mut index = Index::new(32 * SLOTS * LOAD_PERCENT_MAX / 100);
        assert_eq!(index.buckets.len(), 32);
        let mut held: HashMap<u32, u64> = HashMap::new();
        for value in 0..20_000 {
            if held.len() < 40 || held.len() < 150 && rng.chance(0.5) {
                let hash = crowded(&mut rng);
                index.insert(hash, value);
                held.insert(value, hash);
            } else {
                let at = rng.below(held.len() as u32) as usize;
                let value = *held.keys().nth(at).expect("one of them");
                let hash = held.remove(&value).expect("held");
                index.remove(hash, value);
                index.remove(hash, value);
                assert_eq!(index.find(hash, |v| v == value), None);
            }
            assert_eq!(index.used, held.len());
            for (&value, &hash) in &held {
                assert_eq!(index.find(hash, |v| v == value), Some(value));
            }
        }
    }

    #[test]
    fn every_candidate_has_the_tag_that_was_asked_for() {
        let mut index = Index::new(100);
        assert_eq!(index.candidate(0), None, "empty slots have tag 0");
        index.insert(7 << 32, 3);
        assert_eq!(index.candidate(7 << 32 | 99), Some(3));
        assert_eq!(index.candidate(8 << 32), None);
    }
}
