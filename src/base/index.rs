//! An index from hashes to positions, for tables whose keys lie elsewhere.

/// Open addressing with linear probing over a fixed number of slots, two thirds of them used at
/// most. It keeps 32 bits of each hash beside the position, so that strange keys are rarely
/// compared. Entries are never removed.
#[derive(Clone, Debug)]
pub struct HashIndex {
    slots: Box<[Slot]>,
    mask: usize,
    len: usize,
    capacity: usize,
}

#[derive(Clone, Copy, Debug)]
struct Slot {
    tag: u32,
    /// Position in the table that is indexed; [`EMPTY`]: none.
    at: u32,
}

const EMPTY: u32 = u32::MAX;

impl HashIndex {
    /// Takes all its memory: 12 to 24 bytes an entry.
    pub fn with_capacity(entries: usize) -> HashIndex {
        let slots = (entries + entries / 2 + 1).next_power_of_two();
        HashIndex {
            slots: vec![Slot { tag: 0, at: EMPTY }; slots].into_boxed_slice(),
            mask: slots - 1,
            len: 0,
            capacity: entries,
        }
    }

    pub fn len(&self) -> usize {
        self.len
    }

    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The position whose hash is this one and whose key `is_it` recognises.
    #[inline]
    pub fn find(&self, hash: u64, mut is_it: impl FnMut(u32) -> bool) -> Option<u32> {
        let tag = hash as u32;
        let mut i = (hash >> 32) as usize & self.mask;
        // Ends: some slots are always empty.
        loop {
            let slot = self.slots[i];
            if slot.at == EMPTY {
                return None;
            }
            if slot.tag == tag && is_it(slot.at) {
                return Some(slot.at);
            }
            i = (i + 1) & self.mask;
        }
    }

    /// Enters a position under a hash; the caller has made sure that its key is not there yet.
    /// `false`, changing nothing, when full or where `at` is the reserved `u32::MAX`.
    #[must_use]
    pub fn insert(&mut self, hash: u64, at: u32) -> bool {
        if self.len >= self.capacity || at == EMPTY {
            return false;
        }
        let mut i = (hash >> 32) as usize & self.mask;
        while self.slots[i].at != EMPTY {
            i = (i + 1) & self.mask;
        }
        self.slots[i] = Slot { tag: hash as u32, at };
        self.len += 1;
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::Seed;
    use crate::base::hash::hash1;

    #[test]
    fn every_entry_is_found_and_no_other() {
        let keys: Vec<u64> = (0..1_000).map(|i| i * 7).collect();
        let mut index = HashIndex::with_capacity(keys.len());
        for (at, &key) in keys.iter().enumerate() {
            assert!(index.insert(hash1(Seed(1), key), at as u32));
        }
        assert!(!index.insert(1, 5), "it is full");
        for key in 0..7_000 {
            let found = index.find(hash1(Seed(1), key), |at| keys[at as usize] == key);
            assert_eq!(found, (key % 7 == 0).then_some((key / 7) as u32), "{key}");
        }
    }

    #[test]
    fn equal_hashes_are_told_apart_by_their_keys() {
        let mut index = HashIndex::with_capacity(3);
        assert!((0..3).all(|at| index.insert(42, at)));
        assert!((0..3).all(|at| index.find(42, |a| a == at) == Some(at)));
        assert_eq!(index.find(42, |_| false), None);
    }
}
