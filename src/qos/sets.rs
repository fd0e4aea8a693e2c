//! Sets of siblings as bits: the next member from any place on is found at once, among eight
//! siblings or 64 thousand, and without touching any of them.

/// Where a set begins among the words of [`Sets`]. A set of more than 64 has its members in the
/// first words, and after them a bit for each of those words that is not zero.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Set {
    at: u32,
    /// Members at most.
    size: u32,
}

/// The words of many sets.
#[derive(Clone, Debug, Default)]
pub(super) struct Sets {
    words: Vec<u64>,
}

const BITS: u32 = u64::BITS;

impl Sets {
    /// An empty set with room for members below `size`. Returns where it begins.
    pub fn add(&mut self, size: u32) -> u32 {
        let at = self.words.len() as u32;
        let words = size.div_ceil(BITS).max(1);
        let above = if words > 1 { words.div_ceil(BITS) } else { 0 };
        self.words.resize((at + words + above) as usize, 0);
        at
    }

    /// Puts a member in, or takes it out.
    #[inline(always)]
    pub fn put(&mut self, set: Set, member: u32, is_in: bool) {
        if set.size > BITS {
            return if is_in { self.insert(set, member) } else { self.remove(set, member) };
        }
        let bits = &mut self.words[set.at as usize];
        *bits = *bits & !(1 << (member % BITS)) | u64::from(is_in) << (member % BITS);
    }

    #[inline(always)]
    pub fn insert(&mut self, set: Set, member: u32) {
        let word = member / BITS;
        self.words[(set.at + word) as usize] |= 1 << (member % BITS);
        if set.size > BITS {
            self.words[(set.above() + word / BITS) as usize] |= 1 << (word % BITS);
        }
    }

    #[inline(always)]
    pub fn remove(&mut self, set: Set, member: u32) {
        let word = member / BITS;
        let bits = &mut self.words[(set.at + word) as usize];
        *bits &= !(1 << (member % BITS));
        if *bits == 0 && set.size > BITS {
            self.words[(set.above() + word / BITS) as usize] &= !(1 << (word % BITS));
        }
    }

    /// The first member from `from` on, else the first of all; `None` when the set is empty.
    #[inline(always)]
    pub fn next(&self, set: Set, from: u32) -> Option<u32> {
        if set.size > BITS {
            let from = if from < set.size { from } else { 0 };
            let word = from / BITS;
            let here = self.words[(set.at + word) as usize] & (u64::MAX << (from % BITS));
            if here != 0 {
                return Some(word * BITS + here.trailing_zeros());
            }
            return self.next_behind(set, word);
        }
        let all = self.words[set.at as usize];
        let later = if from < BITS { all & (u64::MAX << from) } else { 0 };
        let bits = if later != 0 { later } else { all };
        (bits != 0).then(|| bits.trailing_zeros())
    }

    /// As above among many, behind a word. Out of line, lest what it needs take registers from the
    /// walk.
    #[inline(never)]
    fn next_behind(&self, set: Set, word: u32) -> Option<u32> {
        let words = set.size.div_ceil(BITS);
        let word =
            self.next_word(set, word + 1, words).or_else(|| self.next_word(set, 0, words))?;
        Some(word * BITS + self.words[(set.at + word) as usize].trailing_zeros())
    }

    /// The first word from `from` on that is not zero.
    fn next_word(&self, set: Set, from: u32, words: u32) -> Option<u32> {
        let mut mask = u64::MAX << (from % BITS);
        for at in from / BITS..words.div_ceil(BITS) {
            let bits = self.words[(set.above() + at) as usize] & mask;
            if bits != 0 {
                return Some(at * BITS + bits.trailing_zeros());
            }
            mask = u64::MAX;
        }
        None
    }
}

impl Set {
    /// One that was made for members below `size`, and begins there.
    #[inline(always)]
    pub fn at(at: u32, size: u32) -> Set {
        Set { at, size }
    }

    #[inline(always)]
    fn above(self) -> u32 {
        self.at + self.size.div_ceil(BITS)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::Seed;
    use crate::base::hash::Rng;
    use std::collections::BTreeSet;

    #[test]
    fn behaves_like_a_sorted_set() {
        let mut rng = Rng::new(Seed(7));
        for size in [1u32, 2, 63, 64, 65, 128, 700, 4_096, 4_097, 65_000] {
            let mut sets = Sets::default();
            let [below, set, above] = [0; 3].map(|_| Set::at(sets.add(size), size));
            let mut model = BTreeSet::new();
            for _ in 0..3_000 {
                let member = rng.below(size);
                if rng.chance(0.5) {
                    sets.put(set, member, true);
                    model.insert(member);
                } else if rng.chance(0.5) {
                    sets.put(set, member, false);
                    model.remove(&member);
                } else if let Some(first) = model.first().copied() {
                    sets.remove(set, first);
                    model.remove(&first);
                }
                let from = rng.below(size + 1);
                let want = model.range(from..).next().or(model.first()).copied();
                assert_eq!(sets.next(set, from), want, "of {size} from {from}");
            }
            assert_eq!((sets.next(below, 0), sets.next(above, 0)), (None, None));
        }
    }
}
