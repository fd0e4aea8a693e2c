//! Server names and suffixes of them, looked up label by label.

use super::values::NONE;
use crate::base::index::HashIndex;

/// Names that match as a whole, and suffixes that match below them. Patterns are lower case.
pub struct NameTable {
    exact: NameSet,
    suffix: NameSet,
}

impl NameTable {
    pub fn with_capacity(exact: usize, suffixes: usize) -> NameTable {
        NameTable { exact: NameSet::with_capacity(exact), suffix: NameSet::with_capacity(suffixes) }
    }

    pub fn insert_exact(&mut self, name: &str, fresh: u32) -> u32 {
        self.exact.find_or_insert(name, fresh)
    }

    pub fn insert_suffix(&mut self, suffix: &str, fresh: u32) -> u32 {
        self.suffix.find_or_insert(suffix, fresh)
    }

    /// The values of the name itself and of the longest suffix that it lies below.
    ///
    /// One pass from the last byte: each label that begins is tried with all after it, so a long
    /// name costs its length and a short look for each label.
    pub fn find(&self, name: &[u8]) -> [u32; 2] {
        let name = name.strip_suffix(b".").unwrap_or(name);
        if self.exact.is_empty() && self.suffix.is_empty() {
            return [NONE; 2];
        }
        let mut hash = START;
        let mut below = NONE;
        for (at, &byte) in name.iter().enumerate().rev() {
            // At least one more label must stand before the dot.
            if byte == b'.' && at > 0 && name[at - 1] != b'.' {
                let rest = &name[at + 1..];
                let hit = self.suffix.find(finish(hash), rest);
                if hit != NONE {
                    below = hit;
                }
            }
            hash = step(hash, byte);
        }
        [self.exact.find(finish(hash), name), below]
    }

    /// Gives each name another value.
    pub fn map(&mut self, to: impl Fn(u32) -> u32) {
        self.exact.map(&to);
        self.suffix.map(&to);
    }

    /// For each suffix's value, the value of the longest other suffix that it lies below.
    pub fn wider_suffixes(&self) -> Vec<(u32, u32)> {
        self.suffix.iter().map(|(suffix, value)| (value, self.find(suffix)[1])).collect()
    }
}

/// Names with a value each.
struct NameSet {
    /// Each name's value (4 bytes), its length (1), and itself: close together, since a look-up
    /// needs all three.
    records: Vec<u8>,
    index: HashIndex,
}

impl NameSet {
    fn with_capacity(names: usize) -> NameSet {
        NameSet { records: Vec::new(), index: HashIndex::with_capacity(names) }
    }

    fn is_empty(&self) -> bool {
        self.records.is_empty()
    }

    #[inline]
    fn find(&self, hash: u64, name: &[u8]) -> u32 {
        let is_it = |at| self.record(at).1.eq_ignore_ascii_case(name);
        self.index.find(hash, is_it).map_or(NONE, |at| self.record(at).0)
    }

    /// The name's value; `fresh` becomes it where the name is new. Names beyond 255 bytes
    /// match nothing: no server name is as long.
    ///
    /// # Panics
    /// When the table is full: it is made for as many names as the rules name.
    fn find_or_insert(&mut self, name: &str, fresh: u32) -> u32 {
        let name = name.to_ascii_lowercase().into_bytes();
        let hash = finish(name.iter().rev().fold(START, |hash, &byte| step(hash, byte)));
        let known = self.find(hash, &name);
        if known != NONE {
            return known;
        }
        let at = self.records.len() as u32;
        assert!(self.index.insert(hash, at), "more names than were counted");
        let name = &name[..name.len().min(usize::from(u8::MAX))];
        self.records.extend(fresh.to_le_bytes());
        self.records.push(name.len() as u8);
        self.records.extend(name);
        fresh
    }

    #[inline]
    fn record(&self, at: u32) -> (u32, &[u8]) {
        match self.records.get(at as usize..) {
            Some(&[a, b, c, d, len, ref rest @ ..]) => {
                (u32::from_le_bytes([a, b, c, d]), &rest[..usize::from(len)])
            }
            _ => (NONE, &[]),
        }
    }

    fn map(&mut self, to: impl Fn(u32) -> u32) {
        let mut rest = &mut self.records[..];
        while let Some((value, after)) = rest.split_first_chunk_mut::<4>() {
            *value = to(u32::from_le_bytes(*value)).to_le_bytes();
            let len = after.first().map_or(0, |&len| 1 + usize::from(len));
            rest = &mut after[len..];
        }
    }

    fn iter(&self) -> impl Iterator<Item = (&[u8], u32)> {
        let mut at = 0;
        std::iter::from_fn(move || {
            let (value, name) = self.record(at);
            at += 5 + name.len() as u32;
            (value != NONE).then_some((name, value))
        })
    }
}

const START: u64 = 0x9e37_79b9_7f4a_7c15;

#[inline(always)]
fn step(hash: u64, byte: u8) -> u64 {
    (hash.rotate_left(5) ^ u64::from(byte.to_ascii_lowercase())).wrapping_mul(0xd6e8_feb8_6659_fd93)
}

#[inline(always)]
fn finish(hash: u64) -> u64 {
    crate::base::hash::hash1(super::values::SEED, hash)
}
