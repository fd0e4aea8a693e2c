//! What engines have told of late, and what workers are told of it.

use std::collections::BTreeMap;
use std::time::Duration;

use super::engines::Engine;
use super::scraper::Scraped;
use super::{BackendKey, Pools, key};
use crate::base::Nanos;
use crate::config::Config;
use crate::control::crew::Crew;
use crate::flow::Serving;
use crate::forward::load::{Known, loads};
use crate::forward::spec::{BackendSpec, Balance, PoolSpec};

/// What is known of one engine.
#[derive(Clone, Debug, Default)]
pub struct Told {
    /// The last time that it told something, what, and whose words those are.
    last: Option<(Nanos, Engine, Known)>,
    /// Of the last reading, where it failed.
    pub error: Option<String>,
    /// What is known is too old to be believed; as of the last time it was looked at.
    stale: bool,
}

impl Told {
    /// What it told, whose words those are, and how long ago.
    pub fn last(&self, now: Nanos) -> Option<(&Known, Engine, Duration)> {
        let (at, engine, known) = self.last.as_ref()?;
        Some((known, *engine, Duration::from_nanos(now.since(*at))))
    }

    /// Whether workers go by what they see alone.
    pub fn is_stale(&self) -> bool {
        self.stale
    }

    fn fresh(&self, now: Nanos, limit: Duration) -> Option<Known> {
        self.last(now).filter(|(.., age)| *age <= limit).map(|(known, ..)| *known)
    }
}

/// By pool and backend.
pub type AllTold = BTreeMap<BackendKey, Told>;

impl Pools {
    /// Takes a reading in, and tells the workers.
    pub fn scraped(&mut self, now: Nanos, config: &Config, crew: &Crew, scraped: Scraped) {
        let Some(pool) = config.forward.pools.iter().find(|p| p.name == scraped.key.0) else {
            return;
        };
        let place = self.places.of((scraped.key.1, scraped.key.2));
        let told = self.told.entry(scraped.key).or_default();
        match scraped.result {
            Ok((engine, reading)) => {
                let before = told.last.as_ref().and_then(|(.., known)| known.price);
                let price = reading.price().or(before);
                let connections = crew.connections(place).try_into().unwrap_or(u32::MAX);
                told.last = Some((now, engine, Known { reading, price, connections }));
                told.error = None;
            }
            Err(words) => told.error = Some(words),
        }
        self.tell_pool(now, config, crew, usize::from(pool.id.0));
    }

    /// Tells the workers of all pools what engines have told: with time it is believed no more.
    pub fn tell_loads(&mut self, now: Nanos, config: &Config, crew: &Crew) {
        for pool in 0..config.forward.pools.len() {
            self.tell_pool(now, config, crew, pool);
        }
    }

    fn tell_pool(&mut self, now: Nanos, config: &Config, crew: &Crew, index: usize) {
        let spec = config.metrics.get(index).and_then(Option::as_ref);
        let (Some(pool), Some(spec)) = (config.forward.pools.get(index), spec) else { return };
        let mut known = Vec::with_capacity(pool.backends.len());
        for backend in &pool.backends {
            let told = self.told.entry(key(pool, backend)).or_default();
            let fresh = told.fresh(now, spec.stale_after);
            if told.last.is_some() && told.stale != fresh.is_none() {
                let (pool, backend) = (&pool.name, &backend.name);
                match (&fresh, &told.error) {
                    (Some(_), _) => tracing::info!(pool, backend, "metrics are fresh again"),
                    (None, error) => tracing::warn!(pool, backend, ?error, "metrics are stale"),
                }
            }
            told.stale = fresh.is_none();
            known.push(fresh);
        }
        if pool.balance != Balance::LeastLoad {
            return;
        }
        for (backend, load) in pool.backends.iter().zip(loads(&known)) {
            let place = self.places.of((backend.addr, backend.port));
            let tell = |s: &Serving| s.tell_load(place, load.price, load.unseen);
            crew.seats.iter().for_each(|seat| tell(seat.serving()));
        }
    }

    /// What is known of a backend's engine, where its metrics are read.
    pub fn told(&self, pool: &PoolSpec, backend: &BackendSpec) -> Option<&Told> {
        self.told.get(&key(pool, backend))
    }
}
