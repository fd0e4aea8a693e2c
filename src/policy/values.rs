//! The values that rules name, each with its rules.

use crate::base::Seed;
use crate::base::index::HashIndex;

/// No value.
pub const NONE: u32 = u32::MAX;
/// Fixed, so that two compilations of the same rules are equal.
pub const SEED: Seed = Seed(0x7469_6465_6761_7465);

/// All values of all kinds, by number.
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
    /// The only rule that names it, where there is but one: most are alone, and it saves a look
    /// elsewhere.
    alone: u16,
}

const _: () = assert!(size_of::<Value>() <= 16);

impl Values {
    /// Enters a value; lists are given in ascending order.
    pub fn push(&mut self, naming: &[u16], primaries: impl Iterator<Item = u16>, wider: u32) {
        let start = self.rules.len();
        if let [alone] = *naming {
            let primaries = primaries.count() as u16;
            self.values.push(Value { start: 0, wider, naming: 1, primaries, alone });
            return;
        }
        self.rules.extend_from_slice(naming);
        self.rules.extend(primaries);
        let primaries = (self.rules.len() - start - naming.len()) as u16;
        let naming = naming.len() as u16;
        self.values.push(Value { start: start as u32, wider, naming, primaries, alone: 0 });
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
                value = self.values[value as usize].wider;
            }
        }
        false
    }

    /// The rules that are looked for under this value, ascending.
    #[inline]
    pub fn primaries(&self, value: u32) -> &[u16] {
        let v = &self.values[value as usize];
        if v.naming == 1 {
            return &std::slice::from_ref(&v.alone)[..usize::from(v.primaries)];
        }
        let start = v.start as usize + usize::from(v.naming);
        &self.rules[start..start + usize::from(v.primaries)]
    }

    /// Whether the rule names this value.
    #[inline]
    pub fn names(&self, value: u32, rule: u16) -> bool {
        let v = &self.values[value as usize];
        if v.naming == 1 {
            return v.alone == rule;
        }
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

    pub fn is_empty(&self) -> bool {
        self.keys.is_empty()
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

    pub fn iter(&self) -> impl Iterator<Item = (&K, u32)> {
        self.keys.iter().map(|(key, value)| (key, *value))
    }
}
