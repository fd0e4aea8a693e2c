//! How many of a pool's new flows stay in the appliance's zone, and which group of one priority
//! has them: less at once, more only after a while.
//!
//! Of a group, `H` is the weight of the backends in the appliance's zone that are well, and `W`
//! that of all of them. The zone needs `need` percent of `W` to serve what is its own. So
//!
//! ```text
//! stays = min(100 %, H / (need * W))
//! ```
//!
//! of the flows stay; the rest goes to the group's other zones, by the weight of who is well there.
//! Where flows come back, backends whose weight grows count by the part that they have. It sends
//! none away: those that a reload brings would share what is there with the others.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use super::health::WHOLE;
use crate::base::Nanos;
use crate::config::Config;
use crate::forward::spec::{GroupState, PRIORITIES, PoolSpec};

/// All groups' states, by pool and priority.
#[derive(Debug, Default)]
pub struct Zones {
    groups: BTreeMap<(String, u8), Group>,
}

#[derive(Debug, Default)]
struct Group {
    stays: Settling,
    serves: Settling,
}

impl Zones {
    /// Forgets what a configuration no longer has.
    pub fn set_config(&mut self, config: &Config) {
        let pools: BTreeSet<&str> = config.forward.pools.iter().map(|p| p.name.as_str()).collect();
        self.groups.retain(|(pool, _), _| pools.contains(pool.as_str()));
    }

    /// The groups of a pool, by priority. `well` has the part of its weight that each backend may
    /// use, in hundredths.
    pub fn groups(
        &mut self,
        now: Nanos,
        pool: &PoolSpec,
        well: &[u32],
    ) -> [GroupState; PRIORITIES] {
        let mut states = [GroupState::default(); PRIORITIES];
        // Whether each has somebody who is well, and whether that has been so for long.
        let (mut usable, mut settled) = ([false; PRIORITIES], [false; PRIORITIES]);
        for (at, state) in states.iter_mut().enumerate() {
            let Some(weights) = Weights::of(pool, at as u8, well) else { continue };
            let group = self.groups.entry((pool.name.clone(), at as u8)).or_default();
            let after = pool.return_after;
            let [able, grown] = weights.stays(pool.need_percent);
            let held = group.stays.now.unwrap_or(able).min(able);
            let stays = group.stays.settle(now, held.max(grown), after);
            state.spills_percent = if weights.away > 0 { 100 - stays } else { 0 };
            usable[at] = weights.near + weights.away > 0;
            let serves = group.serves.settle(now, if usable[at] { 100 } else { 0 }, after);
            settled[at] = usable[at] && serves > 0;
        }
        if !settled.contains(&true)
            && let Some(first) = usable.iter().position(|usable| *usable)
            && let Some(group) = self.groups.get_mut(&(pool.name.clone(), first as u8))
        {
            // It gets the flows now, so it need not wait for them later.
            group.serves = Settling::at(100);
            settled[first] = true;
        }
        // A group has nobody to leave its flows to but those behind it.
        for (at, state) in states.iter_mut().enumerate() {
            state.waits = usable[at] && !settled[at] && settled[at..].contains(&true);
        }
        states
    }
}

/// What a group's backends weigh, in hundredths.
#[derive(Clone, Copy, Debug, Default)]
struct Weights {
    /// In the appliance's zone, whether well or not.
    near_all: u64,
    /// Of those that are well: all of it, and the part that they have by now.
    near_well: u64,
    near: u64,
    /// Elsewhere, and well.
    away: u64,
}

impl Weights {
    /// `None` where the pool has nobody of this priority.
    fn of(pool: &PoolSpec, priority: u8, well: &[u32]) -> Option<Weights> {
        let mut sums = None;
        for (b, well) in pool.backends.iter().zip(well).filter(|(b, _)| b.priority == priority) {
            let sums = sums.get_or_insert(Weights::default());
            let weight = u64::from(b.weight);
            match b.is_away {
                true => sums.away += weight * u64::from(*well),
                false => {
                    sums.near += weight * u64::from(*well);
                    sums.near_well += weight * u64::from(if *well > 0 { WHOLE } else { 0 });
                    sums.near_all += weight * u64::from(WHOLE);
                }
            }
        }
        sums
    }

    /// Percent of its flows that the zone can serve, and how many by what has grown so far.
    fn stays(&self, need_percent: u8) -> [u8; 2] {
        let need = self.near_all * u64::from(need_percent) / 100;
        [self.near_well, self.near].map(|near| match (near, need) {
            (0, _) => 0,
            (_, 0) => 100,
            (near, need) => (near * 100 / need).min(100) as u8,
        })
    }
}

/// A percentage that falls at once. It rises when it could have been higher for a while, to the
/// least that it could have been in that time.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Settling {
    /// `None`: nothing was asked for yet.
    now: Option<u8>,
    /// Since when it could be higher, and how high at least.
    rising: Option<(Nanos, u8)>,
}

impl Settling {
    pub(super) fn at(percent: u8) -> Settling {
        Settling { now: Some(percent), rising: None }
    }

    pub(super) fn settle(&mut self, now: Nanos, wanted: u8, after: Duration) -> u8 {
        let Some(current) = self.now.filter(|current| wanted > *current) else {
            (self.now, self.rising) = (Some(wanted), None);
            return wanted;
        };
        let (since, least) = self.rising.unwrap_or((now, wanted));
        let least = least.min(wanted);
        self.rising = Some((since, least));
        if u128::from(now.since(since)) < after.as_nanos() {
            return current;
        }
        self.now = Some(least);
        self.rising = (wanted > least).then_some((now, wanted));
        least
    }
}

#[cfg(test)]
mod tests;
