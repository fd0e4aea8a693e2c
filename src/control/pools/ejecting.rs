//! Takes outliers out of their pools, and lets them return.

use std::collections::BTreeMap;

use super::outliers::Outlier;
use super::{BackendKey, Health, Pools, key};
use crate::base::Nanos;
use crate::config::Config;
use crate::config::outliers::OutlierSpec;
use crate::control::crew::Crew;
use crate::flow::serving::Tally;
use crate::forward::spec::{BackendSpec, PoolSpec};

/// How often connections are looked at.
const LOOK_EVERY_NS: u64 = 200_000_000;

/// Backends whose connections are looked at, and when they were last.
#[derive(Debug, Default)]
pub struct Outliers {
    by_key: BTreeMap<BackendKey, Outlier>,
    looked: Nanos,
}

impl Outliers {
    /// Forgets what is no longer of a pool that is looked at.
    pub fn set_config(&mut self, config: &Config) {
        let pools = config.forward.pools.iter().zip(&config.outliers);
        let pools: Vec<_> = pools.filter(|(_, spec)| spec.is_some()).map(|(p, _)| p).collect();
        let known =
            |of: &BackendKey| pools.iter().any(|p| p.backends.iter().any(|b| key(p, b) == *of));
        self.by_key.retain(|of, _| known(of));
    }

    pub fn is_out(&self, of: &BackendKey) -> bool {
        self.by_key.get(of).is_some_and(Outlier::is_out)
    }
}

impl Pools {
    /// Looks at what became of connections; whether somebody was taken out or came back.
    pub fn look_for_outliers(&mut self, now: Nanos, config: &Config, crew: &Crew) -> bool {
        if now.since(self.outliers.looked) < LOOK_EVERY_NS {
            return false;
        }
        self.outliers.looked = now;
        let mut changed = false;
        for (pool, spec) in config.forward.pools.iter().zip(&config.outliers) {
            let Some(spec) = spec else { continue };
            let tally = |place: u16| {
                let all = crew.seats.iter().map(|s| s.serving().tally(place));
                all.fold(Tally::default(), |sum, own| sum.and(&own))
            };
            changed |= self.look_at(now, pool, spec, tally);
        }
        changed
    }

    pub(super) fn look_at(
        &mut self,
        now: Nanos,
        pool: &PoolSpec,
        spec: &OutlierSpec,
        tally: impl Fn(u16) -> Tally,
    ) -> bool {
        let of = &mut self.outliers.by_key;
        let mut changed = false;
        for backend in &pool.backends {
            let outlier = of.entry(key(pool, backend)).or_default();
            if outlier.returns(now) {
                if let Some(health) = self.health.get_mut(&key(pool, backend)) {
                    health.ease(now);
                }
                tracing::info!(pool = pool.name, backend = backend.name, "outlier back in use");
                changed = true;
            }
        }
        let mean = |b: &BackendSpec| of.get(&key(pool, b)).and_then(Outlier::mean_us);
        let means: Vec<_> = pool.backends.iter().map(mean).collect();
        for (i, backend) in pool.backends.iter().enumerate() {
            // Who gets no flows for other reasons can't take over from those that go.
            let serves = |b: &&BackendSpec| {
                let key = key(pool, b);
                let is_up = self.health.get(&key).is_none_or(Health::is_up);
                let is_in = !of.get(&key).is_some_and(Outlier::is_out);
                b.weight > 0 && is_up && is_in && !self.drained.backend(pool, b)
            };
            // Those that stand by without a weight are no part of what may go.
            let all = pool.backends.iter().filter(|b| b.weight > 0).count();
            let left = pool.backends.iter().filter(serves).count();
            let out = all - left + 1;
            let may = left > 1 && out * 100 <= usize::from(spec.ejected_percent_max) * all;
            let total = tally(self.places.of((backend.addr, backend.port)));
            let Some(outlier) = of.get_mut(&key(pool, backend)) else { continue };
            let reason = outlier.look(now, spec, total, usual(&means, i));
            if let Some(reason) = reason.filter(|_| may) {
                let (pool, backend) = (&pool.name, &backend.name);
                tracing::warn!(pool, backend, reason, "outlier taken out");
                outlier.eject(now, spec, reason);
                changed = true;
            }
        }
        changed
    }

    /// What connections to a backend have shown, where they are looked at.
    pub fn outlier(&self, pool: &PoolSpec, backend: &BackendSpec) -> Option<&Outlier> {
        self.outliers.by_key.get(&key(pool, backend))
    }
}

/// The median of the others' times.
fn usual(means: &[Option<u64>], but: usize) -> Option<u64> {
    let others = means.iter().enumerate().filter(|(i, _)| *i != but);
    let mut others: Vec<u64> = others.filter_map(|(_, mean)| *mean).collect();
    others.sort_unstable();
    others.get(others.len() / 2).copied()
}
