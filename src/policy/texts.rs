//! Values by text.

use super::values::NONE;
use crate::base::index::HashIndex;

/// Texts of several sorts with a value each. A text of one sort is another than the same of
/// another.
pub struct TextTable {
    /// For each text its value (4 bytes), its sort and its length (4), and itself: close together,
    /// since a look-up among many waits for each line of memory.
    records: Vec<u8>,
    index: HashIndex,
}

/// Bytes of a record before its text.
const HEAD: usize = 8;
/// A sort stands above this bit, a length below.
const SORT_BIT: u32 = 24;

impl TextTable {
    pub fn with_capacity(texts: usize) -> TextTable {
        TextTable { records: Vec::new(), index: HashIndex::with_capacity(texts) }
    }

    #[inline]
    pub fn is_empty(&self) -> bool {
        self.records.is_empty()
    }

    /// The value of the text of this sort and hash that `is_it` recognises; [`NONE`] where there is
    /// none.
    #[inline]
    pub fn find(&self, hash: u64, sort: u8, is_it: impl Fn(&[u8]) -> bool) -> u32 {
        let is_it = |at| {
            let (_, of, text) = self.record(at);
            of == sort && is_it(text)
        };
        self.index.find(hash, is_it).map_or(NONE, |at| self.record(at).0)
    }

    /// The text's value; `fresh` becomes it where the text is new. Of texts of 16 MiB or more none
    /// is found: a configuration is shorter.
    ///
    /// # Panics
    /// When the table is full: it is made for as many texts as the rules name.
    pub fn find_or_insert(&mut self, hash: u64, sort: u8, text: &[u8], fresh: u32) -> u32 {
        let known = self.find(hash, sort, |known| known == text);
        if known != NONE || text.len() >> SORT_BIT != 0 {
            return if known == NONE { fresh } else { known };
        }
        let at = self.records.len() as u32;
        assert!(self.index.insert(hash, at), "more texts than were counted");
        self.records.extend(fresh.to_le_bytes());
        self.records.extend((u32::from(sort) << SORT_BIT | text.len() as u32).to_le_bytes());
        self.records.extend(text);
        fresh
    }

    /// Gives each text another value.
    pub fn map(&mut self, to: impl Fn(u32) -> u32) {
        let mut at = 0;
        while let Some(value) = self.records.get_mut(at..).and_then(|r| r.first_chunk_mut::<4>()) {
            *value = to(u32::from_le_bytes(*value)).to_le_bytes();
            at += HEAD + self.record(at as u32).2.len();
        }
    }

    /// All texts and their values.
    pub fn iter(&self) -> impl Iterator<Item = (&[u8], u32)> {
        let mut at = 0;
        std::iter::from_fn(move || {
            if at >= self.records.len() {
                return None;
            }
            let (value, _, text) = self.record(at as u32);
            at += HEAD + text.len();
            Some((text, value))
        })
    }

    /// The value, sort and text that begin here.
    #[inline]
    fn record(&self, at: u32) -> (u32, u8, &[u8]) {
        match self.records.get(at as usize..) {
            Some(&[a, b, c, d, e, f, g, sort, ref rest @ ..]) => {
                let len = u32::from_le_bytes([e, f, g, 0]) as usize;
                let text = rest.get(..len).unwrap_or_default();
                (u32::from_le_bytes([a, b, c, d]), sort, text)
            }
            _ => (NONE, 0, &[]),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_are_found_by_sort_and_keep_their_place() {
        let mut table = TextTable::with_capacity(3);
        assert!(table.is_empty() && table.find(7, 0, |_| true) == NONE);
        // One hash for all: what tells them apart is the sort and the text.
        assert_eq!(table.find_or_insert(7, 1, b"POST", 10), 10);
        assert_eq!(table.find_or_insert(7, 2, b"POST", 11), 11);
        assert_eq!(table.find_or_insert(7, 1, b"", 12), 12);
        assert_eq!(table.find_or_insert(7, 1, b"POST", 13), 10);
        table.map(|value| value + 100);
        let all: Vec<_> = table.iter().collect();
        assert_eq!(all, [(&b"POST"[..], 110), (b"POST", 111), (b"", 112)]);
        for (sort, text, want) in
            [(1, "POST", 110), (2, "POST", 111), (1, "", 112), (2, "", NONE), (1, "POS", NONE)]
        {
            assert_eq!(table.find(7, sort, |t| t == text.as_bytes()), want, "{sort} {text}");
            assert_eq!(table.find(8, sort, |t| t == text.as_bytes()), NONE, "{sort} {text}");
        }
    }
}
