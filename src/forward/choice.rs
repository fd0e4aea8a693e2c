//! Which backend of a pool a new flow goes to.

use super::maglev::{Candidate, Maglev};
use super::rotation::rotation;
use super::spec::{Balance, PoolSpec};
use crate::base::hash::{hash1, pick};
use crate::base::{Nanos, Seed};
use crate::flow::Serving;
use crate::packet::DropReason;

/// Draws from a group's table until one is found that may take the flow; then they are asked in
/// turn.
const DRAWS_MAX: u32 = 32;
/// Backends that are all compared; of more, two that are drawn: comparing many costs time, and
/// those who choose by the same counts at the same time should not all choose the same.
const COMPARED_MAX: usize = 16;
/// Pools that take turns of their own; of more, some share one.
const TURNS_MAX: usize = 1024;
/// Draws beyond the first: a constant, because appliances must agree.
const DRAW_SEED: Seed = Seed(0x6368_6f69_6365_7631);

/// Whether a flow stays in the zone: a constant, too.
const ZONE_SEED: Seed = Seed(0x7a6f_6e65_732d_7631);

/// What a pool's backends are chosen by, made fast.
#[derive(Clone, Debug)]
pub struct PoolChoice {
    balance: Balance,
    /// By priority, the first one first, those that wait last. Those that nobody in has a weight
    /// are left out.
    levels: Box<[Level]>,
}

/// Backends of one priority.
#[derive(Clone, Debug)]
struct Level {
    /// In the appliance's zone and elsewhere; one of them at least has members.
    near: Option<Group>,
    away: Option<Group>,
    spills_percent: u8,
}

/// Backends of one priority and on one side of the zone's border.
#[derive(Clone, Debug)]
struct Group {
    /// Its values are places in `members`.
    maglev: Maglev,
    /// Those with a weight.
    members: Box<[Member]>,
    /// Places in `members`, in the order of their turns; empty unless they take turns.
    rotation: Box<[u16]>,
}

#[derive(Clone, Copy, Debug)]
struct Member {
    /// Index among the backends of all pools.
    index: u16,
    /// In [`Serving`].
    place: u16,
    weight: u16,
    connections_max: u32,
}

/// One worker's turns.
#[derive(Debug)]
pub struct Turns {
    taken: Box<[u32; TURNS_MAX]>,
    /// Where this worker begins, of the whole: others begin elsewhere.
    start: u32,
}

impl Turns {
    pub fn new(worker: u16, workers: u16) -> Turns {
        let start = (u64::from(worker) << 32) / u64::from(workers.max(1));
        Turns { taken: Box::new([0; TURNS_MAX]), start: start as u32 }
    }

    /// The next turn of a pool, of as many.
    fn next(&mut self, pool: usize, count: u32) -> u32 {
        let taken = &mut self.taken[pool % TURNS_MAX];
        let turn = u64::from(*taken) + u64::from(pick(u64::from(self.start) << 32, count));
        *taken = if *taken + 1 >= count { 0 } else { *taken + 1 };
        (turn % u64::from(count.max(1))) as u32
    }
}

/// What a worker chooses by, beside the flow.
pub struct Choosing<'a> {
    pub now: Nanos,
    pub turns: &'a mut Turns,
    pub serving: &'a Serving,
}

/// A flow that wants a backend.
pub struct Seeker<'a, Avoid> {
    /// The pool's number.
    pub pool: usize,
    /// Of the flow's key: the same on every appliance.
    pub hash: u64,
    pub by: Choosing<'a>,
    /// Whether a backend, by its index, will not do.
    pub avoid: Avoid,
}

impl<Avoid: Fn(u16) -> bool> Seeker<'_, Avoid> {
    fn may(&self, m: &Member) -> bool {
        (m.connections_max == u32::MAX || self.by.serving.connections(m.place) < m.connections_max)
            && !(self.avoid)(m.index)
    }

    fn draw(&self, group: &Group, n: u32) -> usize {
        let (hash, n) = (self.hash, u64::from(n));
        let hash = if n == 0 { hash } else { hash1(DRAW_SEED, hash ^ n) };
        usize::from(group.maglev.pick(hash))
    }

    /// Whether the first would have less to do for its weight, with the flow.
    fn is_freer(&self, balance: Balance, a: &Member, b: &Member) -> bool {
        let serving = self.by.serving;
        let price = |m: &Member| match balance {
            Balance::LeastLoad => serving.price(m.place),
            Balance::PeakEwma => serving.peak_us(m.place, self.by.now),
            _ => 1,
        };
        let requests = |m: &Member| match balance {
            Balance::LeastLoad => serving.requests(m.place),
            _ => serving.connections(m.place),
        };
        // What is not known is taken to be as the other's.
        let prices = match (price(a), price(b)) {
            (0, 0) => (1, 1),
            (0, known) | (known, 0) => (known, known),
            both => both,
        };
        let cost = |price: u32, m: &Member, other: &Member| {
            u128::from(price) * (u128::from(requests(m)) + 1) * u128::from(other.weight)
        };
        cost(prices.0, a, b) < cost(prices.1, b, a)
    }
}

impl PoolChoice {
    /// `first` is the index of the pool's first backend among those of all pools, `place` says
    /// where each is counted.
    pub fn build(pool: &PoolSpec, first: u16, place: impl Fn(u16) -> u16) -> PoolChoice {
        let state =
            |priority: u8| pool.groups.get(usize::from(priority)).copied().unwrap_or_default();
        let mut priorities: Vec<u8> = pool.backends.iter().map(|b| b.priority).collect();
        priorities.sort_unstable_by_key(|priority| (state(*priority).waits, *priority));
        priorities.dedup();
        let group = |priority, is_away| {
            let of = (first..).zip(&pool.backends);
            let of = of.filter(|(_, b)| b.priority == priority && b.is_away == is_away);
            let of = of.filter(|(_, b)| b.weight > 0);
            let members = of.clone().map(|(index, b)| Member {
                index,
                place: place(index),
                weight: b.weight,
                connections_max: b.connections_max.unwrap_or(u32::MAX),
            });
            let members: Box<[Member]> = members.collect();
            let candidates = (0u16..).zip(of);
            let candidates: Vec<_> = candidates
                .map(|(value, (_, b))| Candidate { name: &b.name, weight: b.weight, value })
                .collect();
            let weights: Vec<_> = members.iter().map(|m| m.weight).collect();
            let rotation = match pool.balance {
                Balance::RoundRobin => rotation(&weights),
                _ => Box::default(),
            };
            Some(Group { maglev: Maglev::build(&candidates)?, members, rotation })
        };
        let level = |priority| {
            let (near, away) = (group(priority, false), group(priority, true));
            let spills_percent = state(priority).spills_percent;
            (near.is_some() || away.is_some()).then_some(Level { near, away, spills_percent })
        };
        let levels = priorities.into_iter().filter_map(level).collect();
        PoolChoice { balance: pool.balance, levels }
    }

    /// Whether the choice follows from the flow's hash and the weights alone.
    pub fn is_by_hash(&self) -> bool {
        self.balance == Balance::Maglev
    }

    /// Whether one of those with a weight is such, by its index.
    pub fn has(&self, is: impl Fn(u16) -> bool) -> bool {
        let groups = self.levels.iter().flat_map(|level| level.near.iter().chain(&level.away));
        groups.flat_map(|group| group.members.iter()).any(|member| is(member.index))
    }

    /// The index of the backend for a flow.
    ///
    /// # Errors
    /// [`DropReason::NoBackend`] where none has a weight, [`DropReason::BackendsFull`] where none
    /// of those may take more.
    pub fn choose<A: Fn(u16) -> bool>(&self, by: &mut Seeker<'_, A>) -> Result<u16, DropReason> {
        for level in &self.levels {
            for group in level.order(by.hash) {
                if let Some(index) = group.choose(self.balance, by) {
                    return Ok(index);
                }
            }
        }
        let none = self.levels.is_empty();
        Err(if none { DropReason::NoBackend } else { DropReason::BackendsFull })
    }
}

impl Level {
    /// The flow's own side of the border first: which one that is changes for as few flows as the
    /// share that spills does.
    fn order(&self, hash: u64) -> impl Iterator<Item = &Group> {
        let (near, away) = (self.near.as_ref(), self.away.as_ref());
        let spills =
            away.is_some() && pick(hash1(ZONE_SEED, hash), 100) < self.spills_percent.into();
        let order = if spills { [away, near] } else { [near, away] };
        order.into_iter().flatten()
    }
}

impl Group {
    fn choose<A: Fn(u16) -> bool>(&self, balance: Balance, by: &mut Seeker<'_, A>) -> Option<u16> {
        let found = match balance {
            Balance::Maglev => self.drawn(by).next(),
            Balance::RoundRobin => self.in_turn(by),
            Balance::LeastConnections if self.members.len() <= COMPARED_MAX => {
                self.freest(balance, by)
            }
            _ => self.freer_of_two(balance, by),
        };
        found.or_else(|| self.from(by).next()).map(|m| m.index)
    }

    /// Those that are drawn and may, in proportion to their weights.
    fn drawn<A: Fn(u16) -> bool>(&self, by: &Seeker<'_, A>) -> impl Iterator<Item = &Member> {
        let drawn = (0..DRAWS_MAX).filter_map(|n| self.members.get(by.draw(self, n)));
        drawn.filter(|m| by.may(m))
    }

    fn in_turn<A: Fn(u16) -> bool>(&self, by: &mut Seeker<'_, A>) -> Option<&Member> {
        let count = self.rotation.len() as u32;
        (0..count.min(DRAWS_MAX)).find_map(|_| {
            let turn = by.by.turns.next(by.pool, count);
            let member = *self.rotation.get(turn as usize)?;
            self.members.get(usize::from(member)).filter(|m| by.may(m))
        })
    }

    /// Of equals the one that the flow's hash comes to first.
    fn freest<A: Fn(u16) -> bool>(&self, balance: Balance, by: &Seeker<'_, A>) -> Option<&Member> {
        self.from(by).reduce(|best, m| if by.is_freer(balance, m, best) { m } else { best })
    }

    /// Power of two choices (M. Mitzenmacher, "The Power of Two Choices in Randomized Load
    /// Balancing", IEEE TPDS 12(10), 2001).
    fn freer_of_two<A: Fn(u16) -> bool>(
        &self,
        balance: Balance,
        by: &Seeker<'_, A>,
    ) -> Option<&Member> {
        let mut drawn = self.drawn(by);
        let first = drawn.next()?;
        let second = drawn.find(|m| m.index != first.index);
        Some(second.filter(|second| by.is_freer(balance, second, first)).unwrap_or(first))
    }

    /// All that may, from one on that the flow's hash says.
    fn from<A: Fn(u16) -> bool>(&self, by: &Seeker<'_, A>) -> impl Iterator<Item = &Member> {
        let first = by.draw(self, 0).min(self.members.len());
        let (before, from) = self.members.split_at(first);
        from.iter().chain(before).filter(|m| by.may(m))
    }
}

#[cfg(test)]
mod tests;
