//! Server names and suffixes of them, looked up label by label.

use super::texts::TextTable;
use super::values::NONE;

/// Names that match as a whole, and suffixes that match below them. Patterns are lower case.
pub struct NameTable {
    exact: NameSet,
    suffix: NameSet,
}

impl NameTable {
    pub fn with_capacity(exact: usize, suffixes: usize) -> NameTable {
        let set = |names| NameSet(TextTable::with_capacity(names));
        NameTable { exact: set(exact), suffix: set(suffixes) }
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
        if self.exact.0.is_empty() && self.suffix.0.is_empty() {
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
        self.exact.0.map(&to);
        self.suffix.0.map(&to);
    }

    /// For each suffix's value, the value of the longest other suffix that it lies below.
    pub fn wider_suffixes(&self) -> Vec<(u32, u32)> {
        self.suffix.0.iter().map(|(suffix, value)| (value, self.find(suffix)[1])).collect()
    }
}

/// Names with a value each.
struct NameSet(TextTable);

impl NameSet {
    #[inline]
    fn find(&self, hash: u64, name: &[u8]) -> u32 {
        self.0.find(hash, 0, |known| known.eq_ignore_ascii_case(name))
    }

    fn find_or_insert(&mut self, name: &str, fresh: u32) -> u32 {
        let name = name.to_ascii_lowercase().into_bytes();
        let hash = finish(name.iter().rev().fold(START, |hash, &byte| step(hash, byte)));
        self.0.find_or_insert(hash, 0, &name, fresh)
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
