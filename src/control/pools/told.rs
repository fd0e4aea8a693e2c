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
    /// It was said that nothing could be read ever since.
    missed: bool,
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

    /// Notes whether what is known is too old; what is new about that.
    fn look(&mut self, stale: bool) -> Option<News> {
        let turned = std::mem::replace(&mut self.stale, stale) != stale;
        match &self.last {
            Some(_) => turned.then_some(if stale { News::Stale } else { News::Fresh }),
            None if self.error.is_none() => None,
            None => (!std::mem::replace(&mut self.missed, true)).then_some(News::Missing),
        }
    }

    fn fresh(&self, now: Nanos, limit: Duration) -> Option<Known> {
        self.last(now).filter(|(.., age)| *age <= limit).map(|(known, ..)| *known)
    }
}

/// What operators are told of an engine's metrics, once each time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum News {
    Fresh,
    Stale,
    /// They could not be read from the start.
    Missing,
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
            let (pool, backend) = (&pool.name, &backend.name);
            match told.look(fresh.is_none()) {
                Some(News::Fresh) => tracing::info!(pool, backend, "metrics are read"),
                Some(News::Stale) => {
                    let error = told.error.as_deref();
                    tracing::warn!(pool, backend, error, "metrics are stale");
                }
                Some(News::Missing) => {
                    let error = told.error.as_deref();
                    tracing::warn!(pool, backend, error, "metrics can't be read");
                }
                None => {}
            }
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::forward::load::Reading;

    #[test]
    fn what_becomes_of_an_engines_metrics_is_news_once() {
        let mut told = Told::default();
        assert_eq!(told.look(true), None, "not tried yet");
        told.error = Some("refused".into());
        assert_eq!((told.look(true), told.look(true)), (Some(News::Missing), None));
        let known = Known { reading: Reading::default(), price: None, connections: 0 };
        told.last = Some((Nanos(0), Engine::Vllm, known));
        assert_eq!((told.look(false), told.look(false)), (Some(News::Fresh), None));
        assert_eq!((told.look(true), told.look(true)), (Some(News::Stale), None));
        assert_eq!(told.look(false), Some(News::Fresh));
    }
}
