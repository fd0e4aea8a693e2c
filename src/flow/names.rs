//! Server names that flows asked for, each kept once.

use super::notes::{Fate, Notes, Reclassed};
use super::sightings::Sightings;
use crate::base::Seed;
use crate::base::hash::hash_bytes;
use crate::base::index::HashIndex;
use crate::packet::batch::BATCH_MAX;

/// Longest name that is kept, in bytes (RFC 1035, section 2.3.4).
pub const NAME_BYTES_MAX: usize = 255;
/// Bytes reserved for each name: real names are rarely longer, and shorter ones make up for those.
pub const NAME_BYTES_MEAN: usize = 48;

/// Names for each flow of which more is kept.
const NAMES_PER_NOTE: usize = 2;

/// A table of names with a small id each. All its memory is taken at construction and a name stays
/// for good: strangers choose names, so when it is full new ones simply get no id.
pub struct Names {
    /// What this batch brought to light.
    pub sightings: Sightings,
    /// What was seen of flows.
    pub notes: Notes,
    /// What is to be added to flows that later stages enter.
    pub fates: Vec<Fate>,
    /// Flows whose class has changed since their packets were last queued. Those beyond its
    /// capacity are not told: what waits of them stays where it is.
    pub reclassed: Vec<Reclassed>,
    seed: Seed,
    index: HashIndex,
    /// Where each name ends in `bytes`; it begins where the one before ends.
    ends: Vec<u32>,
    bytes: Vec<u8>,
    names_max: usize,
    bytes_max: usize,
}

impl Names {
    /// The id of no name.
    pub const NONE: u32 = u32::MAX;

    /// Room for `names_max` names of [`NAME_BYTES_MEAN`] bytes on average.
    pub fn new(names_max: u32, seed: Seed) -> Names {
        let names_max = names_max as usize;
        let bytes_max = (names_max * NAME_BYTES_MEAN).min(u32::MAX as usize);
        Names {
            sightings: Sightings::default(),
            fates: Vec::with_capacity(BATCH_MAX),
            reclassed: Vec::with_capacity(BATCH_MAX),
            notes: Notes::new(names_max / NAMES_PER_NOTE),
            seed,
            index: HashIndex::with_capacity(names_max),
            ends: Vec::with_capacity(names_max),
            bytes: Vec::with_capacity(bytes_max),
            names_max,
            bytes_max,
        }
    }

    /// The id of this name, byte for byte; a new one where it was not known.
    /// [`Names::NONE`] for an empty or overlong name, and for a new one when the table is full.
    pub fn intern(&mut self, name: &[u8]) -> u32 {
        if name.is_empty() || name.len() > NAME_BYTES_MAX {
            return Names::NONE;
        }
        let hash = hash_bytes(self.seed, name);
        if let Some(id) = self.index.find(hash, |id| self.get(id) == Some(name)) {
            return id;
        }
        let id = self.ends.len();
        if id >= self.names_max || self.bytes.len() + name.len() > self.bytes_max {
            return Names::NONE;
        }
        if !self.index.insert(hash, id as u32) {
            return Names::NONE;
        }
        self.bytes.extend_from_slice(name);
        self.ends.push(self.bytes.len() as u32);
        id as u32
    }

    /// `None` for [`Names::NONE`] and for ids that were never given out.
    pub fn get(&self, id: u32) -> Option<&[u8]> {
        let id = id as usize;
        let end = *self.ends.get(id)? as usize;
        let start = if id == 0 { 0 } else { self.ends[id - 1] as usize };
        Some(&self.bytes[start..end])
    }

    /// Names that have an id.
    pub fn len(&self) -> usize {
        self.ends.len()
    }

    pub fn is_empty(&self) -> bool {
        self.ends.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_has_one_id() {
        let mut names = Names::new(10, Seed(1));
        let a = names.intern(b"api.openai.com");
        let b = names.intern(b"api.anthropic.com");
        assert_ne!(a, b);
        assert_eq!(names.intern(b"api.openai.com"), a);
        assert_eq!(names.get(a), Some(&b"api.openai.com"[..]));
        assert_eq!(names.get(b), Some(&b"api.anthropic.com"[..]));
        assert_eq!(names.get(Names::NONE), None);
        assert_eq!(names.get(2), None);
        assert_eq!(names.len(), 2);
    }

    #[test]
    fn a_full_table_keeps_what_it_has_and_takes_no_memory() {
        let mut names = Names::new(3, Seed(1));
        let (ends, bytes) = (names.ends.capacity(), names.bytes.capacity());
        let first = names.intern(b"first");
        for i in 0..100 {
            names.intern(format!("name-{i}").as_bytes());
        }
        assert_eq!(names.len(), 3);
        assert_eq!(names.intern(b"name-99"), Names::NONE);
        assert_eq!(names.intern(b"first"), first);
        assert_eq!((names.ends.capacity(), names.bytes.capacity()), (ends, bytes));
    }

    #[test]
    fn bytes_are_bounded_too() {
        let mut names = Names::new(6, Seed(1));
        assert_ne!(names.intern(&[b'a'; NAME_BYTES_MAX]), Names::NONE);
        assert_eq!(names.intern(&[b'b'; NAME_BYTES_MAX]), Names::NONE);
        assert_ne!(names.intern(b"short"), Names::NONE);
        assert_eq!(names.intern(&[b'a'; NAME_BYTES_MAX + 1]), Names::NONE);
        assert_eq!(names.intern(b""), Names::NONE);
    }
}
