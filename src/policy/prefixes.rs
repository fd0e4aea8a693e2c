//! Address prefixes by longest match.
//!
//! Binary search on prefix lengths (Waldvogel, Varghese, Turner, Plattner: "Scalable High Speed IP
//! Routing Lookups", SIGCOMM 1997): one hash look-up for each halving of the lengths in use, five
//! for IPv4 and seven for IPv6 at most, however many prefixes there are. Markers at shorter lengths
//! lead the search on to longer ones and remember the best match so far.

use super::addr_hash;
use super::values::{HashTable, NONE};
use crate::base::index::HashIndex;
use crate::base::{Addr, Prefix};

pub struct PrefixTable {
    v4: Lengths,
    v6: Lengths,
}

/// The prefixes of one family.
struct Lengths {
    /// Lengths in use, ascending, as [`Prefix::len128`].
    lengths: Vec<u8>,
    entries: Vec<Entry>,
    index: HashIndex,
}

/// A prefix, or a marker on the way to a longer one.
struct Entry {
    addr: Addr,
    length: u8,
    /// Value of the longest prefix that covers it.
    best: u32,
}

impl PrefixTable {
    pub fn build(prefixes: &HashTable<Prefix>) -> PrefixTable {
        PrefixTable { v4: Lengths::build(prefixes, true), v6: Lengths::build(prefixes, false) }
    }

    /// The value of the longest prefix that contains the address.
    #[inline]
    pub fn find(&self, addr: Addr) -> u32 {
        if addr.is_v4() { self.v4.find(addr) } else { self.v6.find(addr) }
    }
}

/// The longest prefix in the table that covers `addr` and is shorter than `below`.
pub fn longest_below(prefixes: &HashTable<Prefix>, lens: &[u8], addr: Addr, below: u8) -> u32 {
    let lens = lens.iter().rev().filter(|&&len| len < below);
    for &len in lens {
        let short = if addr.is_v4() { len - 96 } else { len };
        let Ok(prefix) = Prefix::new(addr, short) else { continue };
        let value = prefixes.find(prefix_hash(prefix), |p| *p == prefix);
        if value != NONE {
            return value;
        }
    }
    NONE
}

/// Lengths in use in one family, ascending.
pub fn lengths(prefixes: &HashTable<Prefix>, v4: bool) -> Vec<u8> {
    let of_family = prefixes.iter().filter(|(p, _)| p.is_v4() == v4);
    let mut lens: Vec<u8> = of_family.map(|(p, _)| p.len128()).collect();
    lens.sort_unstable();
    lens.dedup();
    lens
}

pub fn prefix_hash(prefix: Prefix) -> u64 {
    entry_hash(prefix.addr(), prefix.len128())
}

#[inline]
fn entry_hash(addr: Addr, length: u8) -> u64 {
    addr_hash(Addr { hi: addr.hi ^ u64::from(length) << 56, lo: addr.lo })
}

impl Lengths {
    fn build(prefixes: &HashTable<Prefix>, v4: bool) -> Lengths {
        let lengths = lengths(prefixes, v4);
        // A prefix leaves a marker at each halving at most, besides itself.
        let halvings = lengths.len().checked_ilog2().map_or(0, |n| n as usize + 1);
        let count = prefixes.iter().filter(|(p, _)| p.is_v4() == v4).count();
        let mut built = Lengths {
            lengths,
            entries: Vec::new(),
            index: HashIndex::with_capacity(count * (halvings + 1)),
        };
        for (prefix, _) in prefixes.iter().filter(|(p, _)| p.is_v4() == v4) {
            built.insert_path(prefixes, *prefix);
        }
        // Most prefixes need fewer markers than that, and a small index stays in the cache.
        built.index = HashIndex::with_capacity(built.entries.len());
        for (at, entry) in (0..).zip(&built.entries) {
            let entered = built.index.insert(entry_hash(entry.addr, entry.length), at);
            debug_assert!(entered, "it has room for all");
        }
        built
    }

    /// Enters the prefix and the markers that the search meets on its way to it.
    fn insert_path(&mut self, prefixes: &HashTable<Prefix>, prefix: Prefix) {
        let (mut low, mut high) = (0, self.lengths.len());
        while low < high {
            let middle = low.midpoint(high);
            let length = self.lengths[middle];
            if length > prefix.len128() {
                high = middle;
                continue;
            }
            let addr = prefix.addr().masked(length);
            if self.entry(addr, length).is_none() {
                let best = longest_below(prefixes, &self.lengths, addr, length + 1);
                let at = self.entries.len() as u32;
                let entered = self.index.insert(entry_hash(addr, length), at);
                debug_assert!(entered, "counted in `build`");
                self.entries.push(Entry { addr, length, best });
            }
            low = middle + 1;
        }
    }

    #[inline]
    fn entry(&self, addr: Addr, length: u8) -> Option<&Entry> {
        let is_it = |at: u32| {
            let entry = &self.entries[at as usize];
            entry.addr == addr && entry.length == length
        };
        self.index.find(entry_hash(addr, length), is_it).map(|at| &self.entries[at as usize])
    }

    #[inline]
    fn find(&self, addr: Addr) -> u32 {
        let (mut low, mut high) = (0, self.lengths.len());
        let mut best = NONE;
        while low < high {
            let middle = low.midpoint(high);
            let length = self.lengths[middle];
            match self.entry(addr.masked(length), length) {
                Some(entry) => {
                    best = entry.best;
                    low = middle + 1;
                }
                None => high = middle,
            }
        }
        best
    }
}
