//! Who gets new flows: weights as configured, less what is drained or not well.

mod counts;
pub mod drained;
mod ejecting;
mod engines;
mod health;
mod nearest;
mod outliers;
mod places;
mod probe;
mod prober;
mod rtt;
mod scraper;
mod told;
mod zones;

use std::collections::{BTreeMap, BTreeSet};

use crate::base::{Addr, Nanos, Seed};
use crate::config::Config;
use crate::config::health::HealthSpec;
use crate::flow::entry::NONE_U16;
use crate::forward::Tables;
use crate::forward::spec::{
    BackendSpec, GroupState, PRIORITIES, PoolId, PoolSpec, ServiceId, ServiceSpec, SplitSpec,
};
use crate::worker::FlowsOf;

pub use drained::{DrainTarget, Drained, flows_of};
pub use health::{Change, Health};
pub use prober::{Found, Prober};
pub use scraper::{Scraped, Scraper};
pub use told::Told;

use counts::Counts;
use ejecting::Outliers;
use health::WHOLE;
use nearest::Nearest;
use places::Places;
use told::AllTold;
use zones::Zones;

/// A backend of a pool, by what stays the same over reloads.
pub type BackendKey = (String, Addr, u16);

/// The state of all pools.
#[derive(Debug)]
pub struct Pools {
    pub drained: Drained,
    pub prober: Prober,
    pub scraper: Scraper,
    told: AllTold,
    health: BTreeMap<BackendKey, Health>,
    places: Places,
    counts: Counts,
    outliers: Outliers,
    zones: Zones,
    nearest: Nearest,
    /// Backends that have gone down and whose flows are to be cut, once their pool does not panic.
    downed: BTreeSet<BackendKey>,
    /// What the workers have.
    applied: Standing,
}

/// What [`Tables`] are built by, beside the configuration.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Standing {
    /// By pool and backend, in the configuration's order.
    weights: Vec<Vec<u16>>,
    /// Pools of which so few are well that all get flows.
    panicking: BTreeSet<String>,
    /// Those of them that nobody in is well.
    hopeless: BTreeSet<String>,
    services_drained: Vec<ServiceId>,
    /// By pool.
    groups: Vec<[GroupState; PRIORITIES]>,
    /// By split and pool: its share, 0 where nobody can serve it while another pool can.
    splits: Vec<Vec<u16>>,
}

impl Pools {
    /// Needs a tokio runtime.
    pub fn new(config: &Config) -> Pools {
        let mut pools = Pools {
            drained: Drained::default(),
            prober: Prober::new(),
            scraper: Scraper::new(),
            told: AllTold::new(),
            health: BTreeMap::new(),
            places: Places::default(),
            counts: Counts::default(),
            outliers: Outliers::default(),
            zones: Zones::default(),
            nearest: Nearest::default(),
            downed: BTreeSet::new(),
            applied: Standing::default(),
        };
        pools.set_config(config, |_| false);
        pools
    }

    /// Goes over to another configuration. Backends that it keeps stay as they are. `busy` says
    /// whether flows count on a place.
    pub fn set_config(&mut self, config: &Config, busy: impl Fn(u16) -> bool) {
        self.places.set_config(config, busy);
        self.counts = Counts::of(config, |pool, i| {
            pool.backends.get(i).map_or(NONE_U16, |b| self.places.of((b.addr, b.port)))
        });
        for gone in self.drained.keep_known(config) {
            tracing::info!("{gone} is gone and no longer drained");
        }
        self.prober.set_config(config);
        self.scraper.set_config(config);
        self.outliers.set_config(config);
        self.zones.set_config(config);
        self.nearest.set_config(config);
        let known: BTreeSet<BackendKey> =
            all(config).map(|(pool, backend)| key(pool, backend)).collect();
        self.told.retain(|key, _| known.contains(key));
        let checked: BTreeSet<BackendKey> = checked(config).map(|(p, b)| key(p, b)).collect();
        self.health.retain(|key, _| checked.contains(key));
        let is_first = self.applied.weights.is_empty();
        for key in checked {
            let new = if is_first { Health::default } else { Health::newcomer };
            self.health.entry(key).or_insert_with(new);
        }
    }

    /// What is no longer drained begins with a part of its weight, where its pool has it so.
    pub fn ease_in(&mut self, now: Nanos, config: &Config, target: &DrainTarget) {
        let (pool, backend) = match target {
            DrainTarget::Backend { pool, name } => (pool, Some(name)),
            DrainTarget::Pool(pool) => (pool, None),
            DrainTarget::Service(_) | DrainTarget::Appliance => return,
        };
        for (pool, b) in checked(config).filter(|(p, _)| p.name == *pool) {
            if let Some(health) = self.health.get_mut(&key(pool, b))
                && backend.is_none_or(|name| b.name == *name)
            {
                health.ease(now);
            }
        }
    }

    /// A check's result; what changed by it is logged.
    pub fn found(&mut self, now: Nanos, config: &Config, found: Found) {
        let Some(health) = self.health.get_mut(&found.key) else { return };
        let (pool, addr, port) = &found.key;
        let Some(of) = config.forward.pools.iter().find(|p| p.name == *pool) else { return };
        let spec = config.health.get(usize::from(of.id.0)).and_then(|h| h.check.as_ref());
        let backend = of.backends.iter().find(|b| (b.addr, b.port) == (*addr, *port));
        let (Some(spec), Some(backend)) = (spec, backend) else { return };
        let name = &backend.name;
        if let Some(rtt) = found.rtt {
            health.rtt.take(rtt);
        }
        match health.take(now, spec, found.result) {
            Some(Change::Down) => {
                let error = health.error.as_deref().unwrap_or_default();
                tracing::warn!(pool, backend = name, error, "backend down");
                if config.health.get(usize::from(of.id.0)).is_some_and(|h| h.cuts_on_down) {
                    self.downed.insert(found.key);
                }
            }
            Some(Change::Up) => {
                tracing::info!(pool, backend = name, flaps = health.flaps(), "backend up");
            }
            None => {}
        }
    }

    /// Flows that are to be cut; told once. Where so few of a pool are well that all get flows, its
    /// checks are not believed: whoever is down still when that is over is told then. After
    /// [`Pools::renewed`].
    pub fn take_downed(&mut self, config: &Config) -> Vec<FlowsOf> {
        let mut downed = std::mem::take(&mut self.downed);
        downed.retain(|key| self.health.get(key).is_some_and(|health| !health.is_up()));
        let (waiting, believed) = downed.into_iter().partition(|key| self.is_panicking(&key.0));
        self.downed = waiting;
        let mut ends: BTreeMap<String, Vec<(Addr, u16)>> = BTreeMap::new();
        for (pool, addr, port) in believed {
            ends.entry(pool).or_default().push((addr, port));
        }
        let pools = config.forward.pools.iter().zip(&config.health);
        let cutting = pools.filter(|(_, health)| health.cuts_on_down);
        let of = cutting.filter_map(|(pool, _)| Some((pool.id, ends.remove(&pool.name)?)));
        of.map(|(pool, ends)| drained::flows_at(config, pool, ends)).collect()
    }

    /// The state of a backend that is checked.
    pub fn health(&self, pool: &PoolSpec, backend: &BackendSpec) -> Option<&Health> {
        self.health.get(&key(pool, backend))
    }

    /// Where workers count a backend.
    pub fn place(&self, backend: &BackendSpec) -> u16 {
        self.places.of((backend.addr, backend.port))
    }

    /// All places are below this.
    pub fn places_count(&self) -> usize {
        self.places.count()
    }

    /// The weight that the workers have for a backend.
    pub fn weight(&self, pool: usize, backend: usize) -> u16 {
        self.applied.weights.get(pool).and_then(|w| w.get(backend)).copied().unwrap_or(0)
    }

    /// How a pool's groups stand, by priority.
    pub fn groups(&self, pool: usize) -> [GroupState; PRIORITIES] {
        self.applied.groups.get(pool).copied().unwrap_or_default()
    }

    /// The other zones of a pool, the nearest one first; none where they are not measured.
    pub fn nearest(&self, pool: &PoolSpec) -> &[String] {
        self.nearest.order(&pool.name)
    }

    /// Whether a service's new flows go to backends that are known to be well: to so many of a
    /// pool's that have a weight, and to one at least. Of a split, one pool is enough: it gets what
    /// is for the others.
    pub fn serves(&self, config: &Config, service: &ServiceSpec, percent: u8) -> bool {
        !self.drained.service(&service.name)
            && config.forward.parts(service.pool).any(|pool| self.pool_serves(pool, percent))
    }

    fn pool_serves(&self, spec: &PoolSpec, percent: u8) -> bool {
        let pool = usize::from(spec.id.0);
        let known = |b: &BackendSpec| self.health(spec, b).is_none_or(|h| h.checks > 0);
        let weighted = || spec.backends.iter().enumerate().filter(|(_, b)| b.weight > 0);
        let well = weighted().filter(|(i, b)| self.weight(pool, *i) > 0 && known(b)).count();
        !self.is_panicking(&spec.name)
            && well > 0
            && well * 100 >= usize::from(percent) * weighted().count()
    }

    pub fn is_panicking(&self, pool: &str) -> bool {
        self.applied.panicking.contains(pool)
    }

    /// Tables by the state of things, for a configuration.
    pub fn tables(&mut self, now: Nanos, config: &Config, seed: Seed) -> Tables {
        self.applied = self.standing(now, config);
        self.build(config, seed)
    }

    /// As [`Pools::tables`], if they differ from what was built last.
    pub fn renewed(&mut self, now: Nanos, config: &Config, seed: Seed) -> Option<Tables> {
        let standing = self.standing(now, config);
        if standing == self.applied {
            return None;
        }
        for pool in standing.panicking.difference(&self.applied.panicking) {
            tracing::error!(pool, "too few backends are well: all get new flows");
        }
        for pool in self.applied.panicking.difference(&standing.panicking) {
            tracing::info!(pool, "enough backends are well again");
        }
        self.applied = standing;
        Some(self.build(config, seed))
    }

    fn build(&self, config: &Config, seed: Seed) -> Tables {
        let mut spec = config.forward.clone();
        for (pool, weights) in spec.pools.iter_mut().zip(&self.applied.weights) {
            for (backend, weight) in pool.backends.iter_mut().zip(weights) {
                backend.weight = *weight;
            }
        }
        for (pool, groups) in spec.pools.iter_mut().zip(&self.applied.groups) {
            pool.groups = *groups;
        }
        for (split, weights) in spec.splits.iter_mut().zip(&self.applied.splits) {
            for ((_, weight), now) in split.parts.iter_mut().zip(weights) {
                *weight = *now;
            }
        }
        let place = |b: &BackendSpec| self.place(b);
        let mut tables = Tables::build_with(&spec, config.workers.count_max, seed, place);
        self.applied.services_drained.iter().for_each(|s| tables.drain(*s));
        tables
    }

    fn standing(&mut self, now: Nanos, config: &Config) -> Standing {
        let mut standing = Standing::default();
        for (i, pool) in config.forward.pools.iter().enumerate() {
            let health = config.health.get(i);
            let check = health.and_then(|h| h.check.as_ref());
            let checked = |b| match check {
                Some(spec) => {
                    let up = self.health(pool, b).filter(|h| h.is_up());
                    up.map_or(0, |h| h.share(now, spec))
                }
                None => WHOLE,
            };
            let share = |b| if self.outliers.is_out(&key(pool, b)) { 0 } else { checked(b) };
            let mut shares: Vec<u32> = pool.backends.iter().map(share).collect();
            let percent = health.map_or(0, |h| h.panic_percent);
            if self.panics(pool, &shares, percent) {
                // What connections have shown counts less than what checks have.
                shares = pool.backends.iter().map(checked).collect();
            }
            if self.panics(pool, &shares, percent) {
                let may = |b: &BackendSpec| b.weight > 0 && !self.drained.backend(pool, b);
                let mut of = pool.backends.iter().zip(&shares);
                if !of.any(|(b, share)| *share > 0 && may(b)) {
                    standing.hopeless.insert(pool.name.clone());
                }
                shares.fill(WHOLE);
                standing.panicking.insert(pool.name.clone());
            }
            let mut weights = self.weights(pool, &shares);
            let well = pool.backends.iter().zip(&shares);
            let well =
                well.map(|(b, share)| if self.drained.backend(pool, b) { 0 } else { *share });
            let well: Vec<u32> = well.collect();
            // Where all get flows, nobody is to be spared.
            let groups = match standing.panicking.contains(&pool.name) {
                true => Default::default(),
                false => {
                    let groups = self.zones.groups(now, pool, &well);
                    if let Some(spec) = check.filter(|_| pool.by_rtt) {
                        self.weigh_zones(now, pool, spec, &well, &groups, &mut weights);
                    }
                    groups
                }
            };
            standing.groups.push(groups);
            standing.weights.push(weights);
        }
        let services = config.forward.services.iter();
        let drained = services.filter(|s| self.drained.service(&s.name));
        standing.services_drained = drained.map(|s| s.id).collect();
        let splits = config.forward.splits.iter();
        standing.splits = splits.map(|split| standing.shares(config, split)).collect();
        standing
    }

    /// Has other zones' backends weigh what the order of their zones says.
    fn weigh_zones(
        &mut self,
        now: Nanos,
        pool: &PoolSpec,
        spec: &HealthSpec,
        well: &[u32],
        groups: &[GroupState; PRIORITIES],
        weights: &mut [u16],
    ) {
        let health = &self.health;
        let away = pool.backends.iter().zip(well).filter(|(b, well)| b.is_away && **well > 0);
        let rtts = away.filter_map(|(b, _)| Some((b, health.get(&key(pool, b))?.rtt.smoothed()?)));
        self.nearest.measured(now, pool, spec.interval, rtts);
        for (priority, group) in (0..).zip(groups) {
            self.nearest.weigh(now, pool, priority, (well, group.spills_percent), weights);
        }
    }

    /// Whether too few of those that may get flows are well.
    fn panics(&self, pool: &PoolSpec, shares: &[u32], percent: u8) -> bool {
        // By priority: how many may get flows, and how many of those are well.
        let mut groups: BTreeMap<u8, (usize, usize)> = BTreeMap::new();
        for (b, share) in pool.backends.iter().zip(shares) {
            if b.weight > 0 && !self.drained.backend(pool, b) {
                let (all, well) = groups.entry(b.priority).or_default();
                (*all, *well) = (*all + 1, *well + usize::from(*share > 0));
            }
        }
        // One group that can stand is enough.
        let fails =
            |(all, well): &(usize, usize)| *well == 0 || well * 100 < usize::from(percent) * all;
        !groups.is_empty() && groups.values().all(fails)
    }

    fn weights(&self, pool: &PoolSpec, shares: &[u32]) -> Vec<u16> {
        let partial = shares.iter().any(|s| (1..WHOLE).contains(s));
        let heaviest = pool.backends.iter().map(|b| u32::from(b.weight)).max().unwrap_or(0);
        // Small weights could not show a part. All times the same give the same Maglev table.
        let times = if partial && heaviest * WHOLE <= u32::from(u16::MAX) { WHOLE } else { 1 };
        let weight = |(b, share): (&BackendSpec, &u32)| {
            if self.drained.backend(pool, b) || b.weight == 0 || *share == 0 {
                return 0;
            }
            let part = u32::from(b.weight) * times * share / WHOLE;
            part.max(1).try_into().unwrap_or(u16::MAX)
        };
        pool.backends.iter().zip(shares).map(weight).collect()
    }
}

impl Standing {
    /// The shares of a split's pools: none for those that nobody in is well or may be used, unless
    /// that is so of all.
    fn shares(&self, config: &Config, split: &SplitSpec) -> Vec<u16> {
        let can = |id: PoolId| {
            let id = usize::from(id.0);
            let weights = self.weights.get(id).is_some_and(|w| w.iter().any(|w| *w > 0));
            let pool = config.forward.pools.get(id);
            weights && pool.is_some_and(|pool| !self.hopeless.contains(&pool.name))
        };
        let any = split.parts.iter().any(|&(pool, weight)| weight > 0 && can(pool));
        let share = |&(pool, weight): &(PoolId, u16)| if any && !can(pool) { 0 } else { weight };
        split.parts.iter().map(share).collect()
    }
}

fn key(pool: &PoolSpec, backend: &BackendSpec) -> BackendKey {
    (pool.name.clone(), backend.addr, backend.port)
}

/// All backends, each with its pool.
fn all(config: &Config) -> impl Iterator<Item = (&PoolSpec, &BackendSpec)> {
    let pools = config.forward.pools.iter();
    pools.flat_map(|pool| pool.backends.iter().map(move |b| (pool, b)))
}

/// Backends whose pool has a check.
fn checked(config: &Config) -> impl Iterator<Item = (&PoolSpec, &BackendSpec)> {
    let pools = config.forward.pools.iter().zip(&config.health);
    let checked = pools.filter(|(_, health)| health.check.is_some());
    checked.flat_map(|(pool, _)| pool.backends.iter().map(move |b| (pool, b)))
}

#[cfg(test)]
mod tests;
