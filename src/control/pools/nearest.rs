//! Which of the other zones has what spills out of the appliance's: the nearest, by its round
//! trip, for as long as it has room; then the next.
//!
//! As in [`super::zones`], a zone needs `need` percent of all its weight for what is its own. So of
//! a group whose weight in the appliance's zone is `W`, `spilled * need * W` is on its way, and
//!
//! ```text
//! room = H - need * W
//! ```
//!
//! of another zone's own `H` and `W` is there for it. What no zone has room for goes to all of them
//! by the weight of who is well there. Where the group has nobody in the appliance's zone, the
//! nearest is taken for it: all that is well there is its room.
//!
//! What is well falls at once; it counts as room again once it has been well for a while.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use super::health::WHOLE;
use super::zones::Settling;
use crate::base::Nanos;
use crate::config::Config;
use crate::forward::spec::{BackendSpec, PoolSpec};

/// A zone is nearer than another by this part at least ...
const NEARER_PERCENT: u32 = 20;
/// ... and by this at least, ...
const NEARER_MIN: Duration = Duration::from_millis(1);
/// ... for the time of so many checks, before it goes ahead.
const NEARER_CHECKS: u32 = 5;

/// What a backend weighs beside the heaviest of the other zones': fine enough for shares, and in
/// [`crate::forward`]'s tables one in so many is as good as none, but still there where the others
/// are full.
const HEAVIEST: u128 = 10_000;
/// Parts of a weight, for shares of small ones.
const PARTS: u64 = 1_000;

/// All pools' orders of zones.
#[derive(Debug, Default)]
pub struct Nearest {
    pools: BTreeMap<String, Order>,
    /// By pool, priority and zone: the part of its weight that has been well for a while.
    settled: BTreeMap<(String, u8, String), Settling>,
}

impl Nearest {
    /// Forgets what a configuration no longer has.
    pub fn set_config(&mut self, config: &Config) {
        let pools = config.forward.pools.iter().filter(|p| p.by_rtt);
        let pools: BTreeMap<&str, BTreeSet<&str>> =
            pools.map(|p| (p.name.as_str(), away(p).map(zone).collect())).collect();
        self.pools.retain(|pool, order| {
            pools.get(pool.as_str()).map(|zones| order.keep(zones)).is_some()
        });
        let known = |pool: &str, zone: &str| pools.get(pool).is_some_and(|zs| zs.contains(zone));
        self.settled.retain(|(pool, _, zone), _| known(pool, zone));
    }

    /// Takes in how far the zones of a pool are. `rtts` has those backends that are well and known;
    /// `interval` is that of the pool's checks.
    pub fn measured<'a>(
        &mut self,
        now: Nanos,
        pool: &PoolSpec,
        interval: Duration,
        rtts: impl Iterator<Item = (&'a BackendSpec, Duration)>,
    ) {
        let mut zones: BTreeMap<&str, Vec<Duration>> = BTreeMap::new();
        for (backend, rtt) in rtts {
            zones.entry(zone(backend)).or_default().push(rtt);
        }
        let medians = zones.into_iter().filter_map(|(zone, mut rtts)| {
            rtts.sort_unstable();
            Some((zone, *rtts.get(rtts.len().saturating_sub(1) / 2)?))
        });
        let order = self.pools.entry(pool.name.clone()).or_default();
        if order.measured(now, interval * NEARER_CHECKS, &medians.collect()) {
            let nearest = order.zones.join(", ");
            tracing::info!(pool = pool.name, nearest, "zones in another order");
        }
    }

    /// The zones of a pool that were measured, the nearest one first. A backend without a zone is
    /// in one that has no name.
    pub fn order(&self, pool: &str) -> &[String] {
        self.pools.get(pool).map_or(&[], |order| &order.zones)
    }

    /// Gives the backends of one priority in other zones their weights, of which nobody loses all.
    /// `well` is as for [`super::zones::Zones::groups`]; of the group's flows `spills_percent`
    /// spill.
    pub fn weigh(
        &mut self,
        now: Nanos,
        pool: &PoolSpec,
        priority: u8,
        (well, spills_percent): (&[u32], u8),
        weights: &mut [u16],
    ) {
        let order = self.order(&pool.name).to_vec();
        let of = |b: &BackendSpec| {
            let at = order.iter().position(|known| known == zone(b)).unwrap_or(order.len());
            b.is_away.then_some(at)
        };
        let mut own = Zone::default();
        // One more than there are: zones that were not measured are the farthest, all as one.
        let mut zones = vec![Zone::default(); order.len() + 1];
        let members = || pool.backends.iter().zip(well).filter(|(b, _)| b.priority == priority);
        for (b, well) in members() {
            match of(b) {
                Some(at) => zones[at].add(b, *well),
                None => own.add(b, *well),
            }
        }
        let room = self.settle(now, pool, priority, &order, &zones);
        if zones.iter().filter(|zone| zone.well > 0).count() < 2 {
            return;
        }
        let gets = share_out(own, &room, pool.need_percent, spills_percent);
        let target = |b: &BackendSpec, well: u32| {
            let at = of(b)?;
            let part = u128::from(b.weight) * u128::from(well);
            // Fine enough: what a zone gets may be little beside what it has.
            let fine = HEAVIEST * HEAVIEST;
            (part > 0).then(|| part * u128::from(gets[at]) * fine / u128::from(zones[at].well))
        };
        let heaviest = members().filter_map(|(b, well)| target(b, *well)).max().unwrap_or(0);
        for ((b, well), weight) in pool.backends.iter().zip(well).zip(weights) {
            if b.priority == priority
                && *weight > 0
                && let Some(target) = target(b, *well)
            {
                let scaled = (target * HEAVIEST + heaviest / 2) / heaviest.max(1);
                *weight = u16::try_from(scaled).unwrap_or(u16::MAX).max(1);
            }
        }
    }
}

impl Nearest {
    /// Zones with what has been well in them for a while; where that is nobody, with what is.
    fn settle(
        &mut self,
        now: Nanos,
        pool: &PoolSpec,
        priority: u8,
        order: &[String],
        zones: &[Zone],
    ) -> Vec<Zone> {
        let mut room = zones.to_vec();
        for (zone, name) in room.iter_mut().zip(order).filter(|(zone, _)| zone.all > 0) {
            let key = (pool.name.clone(), priority, name.clone());
            let percent = (zone.well * 100 / zone.all) as u8;
            let settled = self.settled.entry(key).or_default();
            let percent = settled.settle(now, percent, pool.return_after);
            zone.well = zone.well.min(zone.all * u64::from(percent) / 100);
        }
        if room.iter().all(|zone| zone.well == 0) {
            for (zone, name) in zones.iter().zip(order).filter(|(zone, _)| zone.all > 0) {
                let key = (pool.name.clone(), priority, name.clone());
                self.settled.insert(key, Settling::at((zone.well * 100 / zone.all) as u8));
            }
            return zones.to_vec();
        }
        room
    }
}

/// What a zone's backends weigh, in hundredths of [`PARTS`].
#[derive(Clone, Copy, Debug, Default)]
struct Zone {
    all: u64,
    well: u64,
}

impl Zone {
    fn add(&mut self, b: &BackendSpec, well: u32) {
        let weight = u64::from(b.weight) * PARTS;
        self.all += weight * u64::from(WHOLE);
        self.well += weight * u64::from(well);
    }

    fn need(self, need_percent: u8) -> u64 {
        self.all * u64::from(need_percent) / 100
    }
}

/// What each of the zones, the nearest one first, gets of what spills.
fn share_out(own: Zone, zones: &[Zone], need_percent: u8, spills_percent: u8) -> Vec<u64> {
    let home = if own.all == 0 { zones.iter().position(|zone| zone.well > 0) } else { None };
    let spilled = match home.and_then(|home| zones.get(home)) {
        Some(home) => home.need(need_percent),
        None => own.need(need_percent) * u64::from(spills_percent) / 100,
    };
    // Where nothing spills, a flow may still find the zone full.
    let mut left = spilled.max(PARTS);
    let mut gets: Vec<u64> = Vec::with_capacity(zones.len());
    for (at, zone) in zones.iter().enumerate() {
        let needs = if home == Some(at) { 0 } else { zone.need(need_percent) };
        let takes = zone.well.saturating_sub(needs).min(left);
        gets.push(takes);
        left -= takes;
    }
    let well: u64 = zones.iter().map(|zone| zone.well).sum();
    for (gets, zone) in gets.iter_mut().zip(zones) {
        let part = u128::from(left) * u128::from(zone.well) / u128::from(well.max(1));
        *gets += part as u64;
    }
    gets
}

/// The zones of one pool that were measured.
#[derive(Debug, Default)]
struct Order {
    /// The nearest one first.
    zones: Vec<String>,
    /// Pairs that stand the wrong way round, the nearer one first, and since when.
    wrong: BTreeMap<(String, String), Nanos>,
}

impl Order {
    fn keep(&mut self, known: &BTreeSet<&str>) {
        self.zones.retain(|zone| known.contains(zone.as_str()));
        self.wrong.retain(|(a, b), _| known.contains(a.as_str()) && known.contains(b.as_str()));
    }

    /// Whether the order has changed.
    fn measured(
        &mut self,
        now: Nanos,
        after: Duration,
        medians: &BTreeMap<&str, Duration>,
    ) -> bool {
        let mut changed = false;
        let far = |zone: &String| medians.get(zone.as_str()).copied();
        for (zone, rtt) in medians {
            if !self.zones.iter().any(|known| known == zone) {
                let behind = self.zones.iter().position(|z| far(z).is_some_and(|far| far > *rtt));
                self.zones.insert(behind.unwrap_or(self.zones.len()), (*zone).to_string());
                changed = true;
            }
        }
        for at in 1..self.zones.len() {
            let ripe = (0..at).find(|ahead| {
                let (near, ahead) = (&self.zones[at], &self.zones[*ahead]);
                let pair = (near.clone(), ahead.clone());
                let is_wrong = far(near).zip(far(ahead)).is_some_and(|(a, b)| is_nearer(a, b));
                if !is_wrong {
                    self.wrong.remove(&pair);
                    return false;
                }
                let since = *self.wrong.entry(pair).or_insert(now);
                u128::from(now.since(since)) >= after.as_nanos()
            });
            if let Some(ahead) = ripe {
                let zone = self.zones.remove(at);
                self.wrong.retain(|(near, _), _| *near != zone);
                self.zones.insert(ahead, zone);
                changed = true;
            }
        }
        changed
    }
}

fn is_nearer(a: Duration, b: Duration) -> bool {
    a * 100 <= b * (100 - NEARER_PERCENT) && a + NEARER_MIN <= b
}

fn zone(b: &BackendSpec) -> &str {
    b.zone.as_deref().unwrap_or_default()
}

fn away(pool: &PoolSpec) -> impl Iterator<Item = &BackendSpec> {
    pool.backends.iter().filter(|b| b.is_away)
}

#[cfg(test)]
mod tests;
