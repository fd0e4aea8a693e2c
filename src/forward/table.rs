//! A small read-only hash table from an address and a tag to a number: services, returns,
//! neighbours.

use crate::base::hash::hash_endpoint;
use crate::base::{Addr, Seed};

/// Slots for each entry at least. At a quarter full most misses end at the first slot, and a miss
/// is what most packets that are not for a service come to.
const SLOTS_PER_ENTRY: usize = 4;
const SLOTS_MIN: usize = 8;

/// Open addressing with linear probing, filled once and then only read.
#[derive(Clone, Debug)]
pub struct AddrTable {
    seed: Seed,
    mask: usize,
    slots: Box<[Slot]>,
}

#[derive(Clone, Copy, Debug)]
struct Slot {
    addr: Addr,
    tag: u32,
    /// [`FREE`] where the slot is empty.
    value: u32,
}

/// Not a value: values are indices of things counted in 16 or 24 bits.
const FREE: u32 = u32::MAX;

impl AddrTable {
    /// Of equal keys the first one given stays.
    pub fn new(seed: Seed, entries: &[(Addr, u32, u32)]) -> AddrTable {
        let size = (entries.len() * SLOTS_PER_ENTRY).next_power_of_two().max(SLOTS_MIN);
        let empty = Slot { addr: Addr::UNSPECIFIED, tag: 0, value: FREE };
        let slots = vec![empty; size].into_boxed_slice();
        let mut table = AddrTable { seed, mask: size - 1, slots };
        for &(addr, tag, value) in entries {
            debug_assert_ne!(value, FREE);
            let at = table.find(addr, tag);
            if table.slots[at].value == FREE {
                table.slots[at] = Slot { addr, tag, value };
            }
        }
        table
    }

    #[inline]
    pub fn get(&self, addr: Addr, tag: u32) -> Option<u32> {
        let value = self.slots[self.find(addr, tag)].value;
        (value != FREE).then_some(value)
    }

    #[inline]
    pub fn contains(&self, addr: Addr, tag: u32) -> bool {
        self.slots[self.find(addr, tag)].value != FREE
    }

    /// The key's slot, or the free one where it would go. Ends, because the table is never full.
    #[inline]
    fn find(&self, addr: Addr, tag: u32) -> usize {
        // Only the tag's lower half is hashed: a service's TCP and UDP port share a chain of two.
        let mut at = hash_endpoint(self.seed, addr, tag as u16) as usize & self.mask;
        loop {
            let slot = &self.slots[at];
            if slot.value == FREE || (slot.addr == addr && slot.tag == tag) {
                return at;
            }
            at = (at + 1) & self.mask;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_what_was_put_in_and_nothing_else() {
        let entries: Vec<_> =
            (0..1000u32).map(|i| (Addr::v4(0x0a00_0000 | i), i % 7, i + 1)).collect();
        let table = AddrTable::new(Seed(3), &entries);
        for &(addr, tag, value) in &entries {
            assert_eq!(table.get(addr, tag), Some(value));
            assert_eq!(table.get(addr, tag + 7), None);
            assert!(!table.contains(Addr::v4(addr.v4_bits() + 4096), tag));
        }
    }

    #[test]
    fn empty_tables_and_equal_keys() {
        let empty = AddrTable::new(Seed(1), &[]);
        assert_eq!(empty.get(Addr::v4(1), 0), None);
        let twice = AddrTable::new(Seed(1), &[(Addr::v4(1), 5, 10), (Addr::v4(1), 5, 11)]);
        assert_eq!(twice.get(Addr::v4(1), 5), Some(10));
    }
}
