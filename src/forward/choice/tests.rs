//! Who is chosen, by every kind of balance; and who never is.

use proptest::prelude::*;

use super::*;
use crate::base::Seed;
use crate::base::hash::Rng;
use crate::forward::spec::BackendSpec;

const ALL: [Balance; 5] = [
    Balance::Maglev,
    Balance::RoundRobin,
    Balance::LeastConnections,
    Balance::LeastLoad,
    Balance::PeakEwma,
];

fn backend(i: usize, weight: u16, priority: u8, connections_max: Option<u32>) -> BackendSpec {
    let name = format!("b{i}");
    BackendSpec { name, weight, priority, connections_max, ..BackendSpec::default() }
}

fn pool(balance: Balance, backends: Vec<BackendSpec>) -> PoolChoice {
    let spec = PoolSpec { balance, backends, ..PoolSpec::default() };
    PoolChoice::build(&spec, 0, |index| index)
}

/// A pool, and one worker that chooses from it.
struct World {
    pool: PoolChoice,
    serving: Serving,
    turns: Turns,
    rng: Rng,
}

impl World {
    fn new(balance: Balance, backends: Vec<BackendSpec>) -> World {
        let (serving, turns) = (Serving::new(1_024), Turns::new(0, 1));
        World { pool: pool(balance, backends), serving, turns, rng: Rng::new(Seed(7)) }
    }

    fn ask(&mut self, avoid: impl Fn(u16) -> bool) -> Result<u16, DropReason> {
        let now = Nanos::from_secs(1);
        let by = Choosing { now, turns: &mut self.turns, serving: &self.serving };
        let hash = self.rng.next_u64();
        self.pool.choose(&mut Seeker { pool: 0, hash, by, avoid })
    }

    fn next(&mut self) -> u16 {
        self.ask(|_| false).expect("one")
    }

    /// Chooses, and has the chosen keep the connection.
    fn open(&mut self) -> u16 {
        let chosen = self.next();
        self.serving.tell_connections(chosen, self.serving.connections(chosen) + 1);
        chosen
    }

    fn open_many(&mut self, count: usize) {
        for _ in 0..count {
            self.open();
        }
    }

    fn counts(&self, backends: u16) -> Vec<u32> {
        (0..backends).map(|b| self.serving.connections(b)).collect()
    }
}

#[test]
fn turns_go_round_and_workers_begin_elsewhere() {
    let equal = |n| (0..n).map(|i| backend(i, 5, 0, None)).collect::<Vec<_>>();
    let mut w = World::new(Balance::RoundRobin, equal(4));
    let seen: Vec<u16> = (0..9).map(|_| w.next()).collect();
    assert_eq!(seen, [0, 1, 2, 3, 0, 1, 2, 3, 0]);
    w.turns = Turns::new(1, 2);
    let seen: Vec<u16> = (0..5).map(|_| w.next()).collect();
    assert_eq!(seen, [2, 3, 0, 1, 2]);
    let weighted = vec![backend(0, 3, 0, None), backend(1, 0, 0, None), backend(2, 1, 0, None)];
    let mut w = World::new(Balance::RoundRobin, weighted);
    let seen: Vec<u16> = (0..8).map(|_| w.next()).collect();
    assert_eq!(seen, [0, 0, 2, 0, 0, 0, 2, 0]);
}

#[test]
fn least_connections_go_by_weight_and_equals_share() {
    let backends = vec![backend(0, 1, 0, None), backend(1, 3, 0, None), backend(2, 2, 0, None)];
    let mut w = World::new(Balance::LeastConnections, backends);
    w.open_many(60);
    assert_eq!(w.counts(3), [10, 30, 20]);
    w.serving.tell_connections(1, 4);
    assert_eq!(w.next(), 1);
    let mut w =
        World::new(Balance::LeastConnections, (0..5).map(|i| backend(i, 1, 0, None)).collect());
    let mut seen = [0u32; 5];
    (0..500).for_each(|_| seen[usize::from(w.next())] += 1);
    assert!(seen.iter().all(|n| (60..150).contains(n)), "idle ones share: {seen:?}");
}

#[test]
fn of_many_two_are_compared_and_none_is_far_ahead() {
    let many = |balance| {
        let mut w = World::new(balance, (0..200).map(|i| backend(i, 1, 0, None)).collect());
        w.open_many(20_000);
        let counts = w.counts(200);
        let (least, most) = (counts.iter().min().copied(), counts.iter().max().copied());
        most.unwrap_or_default() - least.unwrap_or_default()
    };
    let (two, by_hash) = (many(Balance::LeastConnections), many(Balance::Maglev));
    assert!(two <= 12 && by_hash > 30, "{two} against {by_hash}");
}

#[test]
fn what_a_request_costs_counts_beside_how_many_there_are() {
    let two = || vec![backend(0, 1, 0, None), backend(1, 1, 0, None)];
    let mut w = World::new(Balance::LeastLoad, two());
    w.serving.tell_load(0, 100, 0);
    w.serving.tell_load(1, 300, 0);
    w.open_many(40);
    assert_eq!(w.counts(2), [30, 10]);
    w.serving.tell_load(0, 100, 60);
    w.open_many(20);
    assert_eq!(w.counts(2), [30, 30], "the first has others' requests, too");
    w.serving.tell_load(1, 0, 0);
    assert_eq!(w.next(), 1, "of an unknown price the number counts");

    let mut w = World::new(Balance::PeakEwma, two());
    w.serving.answered(0, Nanos::from_secs(1), 20_000_000);
    w.serving.answered(1, Nanos::from_secs(1), 5_000_000);
    w.open_many(50);
    assert_eq!(w.counts(2), [10, 40]);
}

#[test]
fn full_backends_are_passed_over_then_their_whole_group() {
    for balance in ALL {
        let backends =
            vec![backend(0, 1, 1, Some(3)), backend(1, 1, 0, Some(2)), backend(2, 9, 0, Some(4))];
        let mut w = World::new(balance, backends);
        let chosen: Vec<u16> = (0..9).map(|_| w.open()).collect();
        assert!(chosen[..6].iter().all(|b| *b > 0), "{balance:?}: {chosen:?}");
        assert_eq!(w.counts(3), [3, 2, 4], "{balance:?}");
        assert_eq!(w.ask(|_| false), Err(DropReason::BackendsFull));
        w.serving.tell_connections(1, 1);
        assert_eq!(w.next(), 1, "{balance:?}: the first group has room again");
        assert_eq!(w.ask(|b| b == 1), Err(DropReason::BackendsFull));
    }
    let mut none = World::new(Balance::Maglev, vec![backend(0, 0, 0, None)]);
    assert_eq!(none.ask(|_| false), Err(DropReason::NoBackend));
}

fn any_backend() -> impl Strategy<Value = (u16, u8, Option<u32>, u32, bool)> {
    let weight = prop_oneof![Just(0u16), 1..4u16, Just(u16::MAX)];
    (weight, 0..3u8, proptest::option::of(1..4u32), 0..5u32, any::<bool>())
}

proptest! {
    /// Whoever is chosen has a weight, has room, is not avoided, and nobody of a better group
    /// could have been chosen; and somebody is chosen wherever anybody could.
    #[test]
    fn only_those_who_may(
        all in proptest::collection::vec(any_backend(), 1..40),
        kind in 0..ALL.len(),
    ) {
        let balance = ALL[kind];
        let specs = all.iter().enumerate();
        let specs = specs.map(|(i, b)| backend(i, b.0, b.1, b.2));
        let mut w = World::new(balance, specs.collect());
        for (i, (.., connections, _)) in (0u16..).zip(&all) {
            w.serving.tell_connections(i, *connections);
        }
        let may = |&(weight, _, max, connections, avoided): &(u16, u8, Option<u32>, u32, bool)| {
            weight > 0 && max.is_none_or(|max| connections < max) && !avoided
        };
        let best = all.iter().filter(|b| may(b)).map(|b| b.1).min();
        for _ in 0..20 {
            let chosen = w.ask(|i| all[usize::from(i)].4);
            let chosen = chosen.ok().map(|i| all[usize::from(i)]);
            prop_assert!(chosen.is_none_or(|b| may(&b)), "{chosen:?}");
            prop_assert_eq!(chosen.map(|b| b.1), best);
        }
    }
}
