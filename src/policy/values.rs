//! The values that rules name, each with its rules.
//!
//! Tables hold a handle for each value. Most values are named by a single rule and lead on to no
//! other: their handle says all that there is, so that a decision among many rules does not wait
//! for one more line of memory.

use crate::base::Seed;
use crate::base::index::HashIndex;

/// No value.
pub const NONE: u32 = u32::MAX;
/// Fixed, so that two compilations of the same rules are equal.
pub const SEED: Seed = Seed(0x7469_6465_6761_7465);

/// Bits of a handle that says all itself, beside its rule's number in the lowest 16.
const ALONE: u32 = 1 << 31;
/// Its rule is looked for under this value.
const PRIMARY: u32 = 1 << 16;

/// All other values of all kinds, by handle.
#[derive(Default)]
pub struct Values {
    values: Vec<Value>,
    /// Rule numbers of all lists, each list ascending.
    rules: Vec<u16>,
}

/// Where the lists of one value lie in [`Values::rules`]: the rules that name it, followed by those
/// among them that are looked for under it.
struct Value {
    start: u32,
    /// The next wider value of its kind that holds wherever this one does.
    wider: u32,
    naming: u16,
    primaries: u16,
}

/// The handle of a value that only this rule names and that leads on to no other.
pub fn alone(rule: u16, primary: bool) -> u32 {
    ALONE | if primary { PRIMARY } else { 0 } | u32::from(rule)
}

impl Values {
    /// Enters a value, whose handle is the number of those before; lists are given in ascending
    /// order.
    pub fn push(&mut self, naming: &[u16], primaries: &[u16], wider: u32) {
        let start = self.rules.len() as u32;
        self.rules.extend_from_slice(naming);
        self.rules.extend_from_slice(primaries);
        let (naming, primaries) = (naming.len() as u16, primaries.len() as u16);
        self.values.push(Value { start, wider, naming, primaries });
    }

    /// Whether `test` says so of any of these values or of those that they lead on to.
    #[inline]
    pub fn any(&self, from: &[u32], mut test: impl FnMut(u32) -> bool) -> bool {
        for &first in from {
            let mut value = first;
            while value != NONE {
                if test(value) {
                    return true;
                }
                let wider = value & ALONE == 0;
                value = if wider { self.values[value as usize].wider } else { NONE };
            }
        }
        false
    }

    /// The rules that are looked for under this value, ascending.
    #[inline]
    pub fn primaries(&self, value: u32) -> impl Iterator<Item = u16> {
        let (alone, list) = if value & ALONE != 0 {
            ((value & PRIMARY != 0).then_some(value as u16), &[][..])
        } else {
            let v = &self.values[value as usize];
            let start = v.start as usize + usize::from(v.naming);
            (None, &self.rules[start..start + usize::from(v.primaries)])
        };
        alone.into_iter().chain(list.iter().copied())
    }

    /// Whether the rule names this value.
    #[inline]
    pub fn names(&self, value: u32, rule: u16) -> bool {
        if value & ALONE != 0 {
            return value as u16 == rule;
        }
        let v = &self.values[value as usize];
        let start = v.start as usize;
        self.rules[start..start + usize::from(v.naming)].binary_search(&rule).is_ok()
    }
}

/// Values by key.
pub struct HashTable<K> {
    keys: Vec<(K, u32)>,
    index: HashIndex,
}

impl<K: PartialEq> HashTable<K> {
    pub fn with_capacity(keys: usize) -> HashTable<K> {
        HashTable { keys: Vec::with_capacity(keys), index: HashIndex::with_capacity(keys) }
    }

    /// The value whose key `is_it` recognises; [`NONE`] where there is none.
    #[inline]
    pub fn find(&self, hash: u64, is_it: impl Fn(&K) -> bool) -> u32 {
        if self.keys.is_empty() {
            return NONE;
        }
        match self.index.find(hash, |at| is_it(&self.keys[at as usize].0)) {
            Some(at) => self.keys[at as usize].1,
            None => NONE,
        }
    }

    /// The key's value; `fresh` becomes it where the key is new.
    ///
    /// # Panics
    /// When the table is full: it is made for as many keys as the rules name.
    pub fn find_or_insert(&mut self, hash: u64, key: K, fresh: u32) -> u32 {
        let known = self.find(hash, |k| *k == key);
        if known != NONE {
            return known;
        }
        assert!(self.index.insert(hash, self.keys.len() as u32), "more keys than were counted");
        self.keys.push((key, fresh));
        fresh
    }

    /// Gives each key another value.
    pub fn map(&mut self, to: impl Fn(u32) -> u32) {
        for (_, value) in &mut self.keys {
            *value = to(*value);
        }
    }

    pub fn iter(&self) -> impl Iterator<Item = (&K, u32)> {
        self.keys.iter().map(|(key, value)| (key, *value))
    }
}
