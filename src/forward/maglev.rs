//! Weighted Maglev hashing: which backend a new flow goes to.
//!
//! D. Eisenbud et al., "Maglev: A Fast and Reliable Software Network Load Balancer", NSDI 2016,
//! section 3.4. Backends with weights take turns in proportion to them. The table follows from the
//! backends' names and weights alone, so every appliance with the same pool computes the same one
//! and flows survive a change of appliance without shared state.

use crate::base::Seed;
use crate::base::hash::{hash_bytes, pick};

/// Entries of a table: a prime over 100 times the backends of a usual pool (the paper's "small"
/// size).
pub const TABLE_SIZE: u32 = 65_537;

// Constants, not the process's secret: appliances must agree.
const OFFSET_SEED: Seed = Seed(0x6d61_676c_6576_2d61);
const SKIP_SEED: Seed = Seed(0x6d61_676c_6576_2d62);

/// One candidate for a table's entries.
#[derive(Clone, Copy, Debug)]
pub struct Candidate<'a> {
    /// Alone decides, with the weight, which entries it gets.
    pub name: &'a str,
    /// 0: none.
    pub weight: u16,
    /// What [`Maglev::pick`] returns for it.
    pub value: u16,
}

/// The filled table of one pool.
#[derive(Clone, Debug)]
pub struct Maglev {
    entries: Box<[u16]>,
}

impl Maglev {
    /// `None` where no candidate has a weight.
    pub fn build(candidates: &[Candidate<'_>]) -> Option<Maglev> {
        let mut turns: Vec<Turns> =
            candidates.iter().filter(|c| c.weight > 0).map(Turns::new).collect();
        // The order of turns must not depend on the order in a file.
        turns.sort_by_key(|t| t.name);
        let weight_max = turns.iter().map(|t| t.weight).max()?;
        for t in &mut turns {
            t.due = weight_max;
        }
        Some(Maglev { entries: fill(&mut turns, weight_max) })
    }

    /// The entry of a flow's hash.
    #[inline]
    pub fn pick(&self, hash: u64) -> u16 {
        self.entries[pick(hash, TABLE_SIZE) as usize]
    }

    /// All entries, in order.
    pub fn entries(&self) -> &[u16] {
        &self.entries
    }
}

/// A candidate's walk through its permutation of the table.
struct Turns<'a> {
    name: &'a str,
    value: u16,
    weight: u64,
    /// Its next turn comes in the round `r` with `2 * r * weight >= due`: rounds are spread in
    /// proportion to the weight, rounded to the nearest.
    due: u64,
    next: u32,
    skip: u32,
}

impl<'a> Turns<'a> {
    fn new(c: &Candidate<'a>) -> Turns<'a> {
        let size = u64::from(TABLE_SIZE);
        Turns {
            name: c.name,
            value: c.value,
            weight: u64::from(c.weight),
            due: 0,
            next: (hash_bytes(OFFSET_SEED, c.name.as_bytes()) % size) as u32,
            skip: (hash_bytes(SKIP_SEED, c.name.as_bytes()) % (size - 1)) as u32 + 1,
        }
    }

    fn advance(&mut self) {
        self.next += self.skip;
        if self.next >= TABLE_SIZE {
            self.next -= TABLE_SIZE;
        }
    }
}

fn fill(turns: &mut [Turns<'_>], weight_max: u64) -> Box<[u16]> {
    let mut entries = vec![0u16; TABLE_SIZE as usize].into_boxed_slice();
    let mut taken = vec![false; TABLE_SIZE as usize];
    let mut left = TABLE_SIZE;
    // The heaviest takes a turn in every round, so each round fills an entry.
    for round in 1u64.. {
        for t in turns.iter_mut() {
            if 2 * round * t.weight < t.due {
                continue;
            }
            t.due += 2 * weight_max;
            while taken[t.next as usize] {
                t.advance();
            }
            taken[t.next as usize] = true;
            entries[t.next as usize] = t.value;
            left -= 1;
            if left == 0 {
                return entries;
            }
        }
    }
    entries
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(n: usize) -> Vec<String> {
        (0..n).map(|i| format!("gpu-{i:03}.example:8000")).collect()
    }

    fn table(names: &[String], weight: impl Fn(usize) -> u16) -> Maglev {
        let candidates: Vec<_> = names
            .iter()
            .enumerate()
            .map(|(i, name)| Candidate { name, weight: weight(i), value: i as u16 })
            .collect();
        Maglev::build(&candidates).expect("weights")
    }

    fn counts(m: &Maglev, n: usize) -> Vec<u32> {
        let mut counts = vec![0; n];
        for &e in m.entries() {
            counts[usize::from(e)] += 1;
        }
        counts
    }

    #[test]
    fn shares_are_within_one_percent_of_the_weights() {
        for (n, weigh) in [(1, 1), (3, 1), (7, 5), (100, 1), (50, 10)] {
            let weight = |i: usize| (i % weigh + 1) as u16;
            let total: u32 = (0..n).map(|i| u32::from(weight(i))).sum();
            let m = table(&names(n), weight);
            for (i, got) in counts(&m, n).into_iter().enumerate() {
                let want = f64::from(TABLE_SIZE) * f64::from(weight(i)) / f64::from(total);
                let off = (f64::from(got) - want).abs() / want;
                assert!(off <= 0.01, "{n} backends, number {i}: {got} for {want}");
            }
        }
    }

    #[test]
    fn extreme_weights_fill_the_table_too() {
        let m = table(&names(3), |i| if i == 0 { u16::MAX } else { 1 });
        let c = counts(&m, 3);
        assert_eq!(c.iter().sum::<u32>(), TABLE_SIZE);
        assert!(c[1] == 1 && c[2] == 1, "{c:?}");
    }

    #[test]
    fn removing_one_of_a_hundred_moves_few_others() {
        let names = names(100);
        let before = table(&names, |_| 10);
        for gone in [0usize, 42, 99] {
            let after = table(&names, |i| if i == gone { 0 } else { 10 });
            let mut moved = 0;
            for (&b, &a) in before.entries().iter().zip(after.entries()) {
                assert_ne!(usize::from(a), gone, "weight 0 gets nothing");
                moved += u32::from(usize::from(b) != gone && a != b);
            }
            let share = f64::from(moved) / f64::from(TABLE_SIZE);
            assert!(share <= 0.02, "{moved} entries of others moved");
        }
    }

    #[test]
    fn the_order_of_candidates_does_not_matter() {
        let names = names(20);
        let mut candidates: Vec<_> = names
            .iter()
            .enumerate()
            .map(|(i, name)| Candidate { name, weight: i as u16 % 4, value: i as u16 })
            .collect();
        let a = Maglev::build(&candidates).expect("weights");
        candidates.reverse();
        let b = Maglev::build(&candidates).expect("weights");
        assert_eq!(a.entries(), b.entries());
    }

    #[test]
    fn only_proportions_matter() {
        let names = names(7);
        let small = table(&names, |i| i as u16 % 3 + 1);
        let large = table(&names, |i| (i as u16 % 3 + 1) * 100);
        assert_eq!(small.entries(), large.entries());
    }

    /// The table is a protocol between appliances of different builds: it must never change.
    #[test]
    fn the_table_is_pinned() {
        let m = table(&["a".into(), "b".into(), "c".into()], |i| [1, 2, 3][i]);
        let digest = m
            .entries()
            .iter()
            .fold(0u64, |h, &e| (h ^ u64::from(e)).wrapping_mul(0x0000_0100_0000_01b3));
        assert_eq!(
            (counts(&m, 3), digest),
            (vec![10_923, 21_846, 32_768], 11_706_543_849_407_568_504)
        );
    }

    #[test]
    fn no_weight_no_table() {
        assert!(Maglev::build(&[]).is_none());
        assert!(Maglev::build(&[Candidate { name: "a", weight: 0, value: 0 }]).is_none());
    }
}
