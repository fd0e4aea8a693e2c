//! Shares of new flows between pools, by the flow's hash: a canary of a new server version, or a
//! move from one pool to another.
//!
//! Which pool a flow goes to follows from its key, the pools' names and their weights alone, so it
//! is the same on every appliance and after a restart. Of two pools a change of weights moves
//! exactly the share that changes; of more, it may move up to twice as much.

use super::rendezvous::distance;
use super::spec::{PARTS_MAX, PoolId, SplitSpec};
use crate::base::Seed;
use crate::base::hash::{hash_bytes, hash1};

/// A constant, as that of choosing backends: appliances must agree.
const NAME_SEED: Seed = Seed(0x7370_6c69_742d_7631);

/// A split, made fast.
#[derive(Clone, Debug)]
pub struct Split {
    parts: Box<[Part]>,
}

#[derive(Clone, Copy, Debug)]
struct Part {
    pool: PoolId,
    /// Follows from the pool's name.
    seed: Seed,
    weight: u16,
}

impl Split {
    /// `name` says how a pool is called. Pools without a weight are left out.
    pub fn build<'a>(spec: &SplitSpec, name: impl Fn(PoolId) -> &'a str) -> Split {
        let weighted = spec.parts.iter().filter(|(_, weight)| *weight > 0);
        let parts = weighted.take(PARTS_MAX).map(|&(pool, weight)| {
            let seed = Seed(hash_bytes(NAME_SEED, name(pool).as_bytes()));
            Part { pool, seed, weight }
        });
        Split { parts: parts.collect() }
    }

    /// The pools for a flow of this hash: its own, then those that it would have without the ones
    /// before.
    #[inline]
    pub fn order(&self, hash: u64) -> impl Iterator<Item = PoolId> {
        let mut far = [f64::INFINITY; PARTS_MAX];
        for (far, part) in far.iter_mut().zip(&self.parts) {
            *far = distance(hash1(part.seed, hash), part.weight);
        }
        (0..self.parts.len()).filter_map(move |_| {
            let nearest = (0..self.parts.len()).min_by(|a, b| far[*a].total_cmp(&far[*b]))?;
            far[nearest] = f64::INFINITY;
            self.parts.get(nearest).map(|part| part.pool)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const NAMES: [&str; 4] = ["old", "new", "third", "fourth"];
    const FLOWS: u64 = 20_000;

    fn split(weights: &[u16]) -> Split {
        let parts = (0u16..).map(PoolId).zip(weights.iter().copied()).collect();
        Split::build(&SplitSpec { parts }, |pool| NAMES[usize::from(pool.0)])
    }

    /// The pool of each flow.
    fn shares(weights: &[u16]) -> Vec<u16> {
        let split = split(weights);
        let hash = |flow| hash1(Seed(7), flow);
        (0..FLOWS).map(|flow| split.order(hash(flow)).next().map_or(u16::MAX, |p| p.0)).collect()
    }

    fn percent(all: &[u16], of: impl Fn(usize) -> bool) -> f64 {
        (0..all.len()).filter(|at| of(*at)).count() as f64 * 100.0 / all.len() as f64
    }

    #[test]
    fn shares_are_as_weighted() {
        for weights in [&[90, 10][..], &[1, 1], &[0, 5], &[10, 20, 30, 40], &[65_535, 655]] {
            let all = shares(weights);
            let sum: f64 = weights.iter().map(|w| f64::from(*w)).sum();
            for (pool, weight) in (0u16..).zip(weights) {
                let (got, wanted) = (percent(&all, |i| all[i] == pool), f64::from(*weight) / sum);
                assert!((got - wanted * 100.0).abs() < 1.0, "{weights:?}: {pool} got {got} %");
            }
        }
    }

    #[test]
    fn a_change_of_two_moves_only_the_difference() {
        let (before, after) = (shares(&[90, 10]), shares(&[80, 20]));
        assert!((0..before.len()).all(|i| before[i] == after[i] || after[i] == 1));
        let moved = percent(&before, |i| before[i] != after[i]);
        assert!((9.0..11.0).contains(&moved), "{moved} % moved");
        assert_eq!(shares(&[90, 10]), shares(&[9, 1]), "only the relation counts");
    }

    #[test]
    fn the_order_has_each_weighted_pool_once() {
        let split = split(&[5, 0, 1, 9]);
        for flow in 0..100 {
            let mut order: Vec<u16> = split.order(hash1(Seed(1), flow)).map(|p| p.0).collect();
            order.sort_unstable();
            assert_eq!(order, [0, 2, 3]);
        }
        assert_eq!(Split { parts: Box::default() }.order(1).count(), 0);
    }

    proptest! {
        /// Two drawings by the same clocks differ in 2 d / (1 + d) at most, where d is how far the
        /// shares differ.
        #[test]
        fn a_change_moves_twice_the_difference_at_most(
            a in prop::array::uniform4(1u16..100),
            b in prop::array::uniform4(1u16..100),
        ) {
            let share = |w: &[u16; 4], i: usize| {
                f64::from(w[i]) / w.iter().map(|w| f64::from(*w)).sum::<f64>()
            };
            let apart = (0..4).map(|i| (share(&a, i) - share(&b, i)).abs()).sum::<f64>() / 2.0;
            let (before, after) = (shares(&a), shares(&b));
            let moved = percent(&before, |i| before[i] != after[i]) / 100.0;
            prop_assert!(moved <= 2.0 * apart / (1.0 + apart) + 0.015, "{moved} for {apart}");
        }
    }
}
