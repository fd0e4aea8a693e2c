//! Limits of connections over several workers, which see the packets of each client mixed.

use std::time::Duration;

use tidegate::base::Seed;
use tidegate::forward::spec::{BindAt, ForwardMode};
use tidegate::graph::spec::StageSpec;
use tidegate::packet::DropReason;
use tidegate::qos::limits::{Event, EventCounts, Excess, LimitSpec, LimitsSpec};
use tidegate::qos::tokens::Pace;
use tidegate::sim::{LinkSpec, Setup, Spread};

use crate::binding;
use crate::world::{
    Family, TCP_PORT, World, add_clients, finish, for_seeds, serve_all, setup, stages, world,
};

const SEEDS: u64 = 6;
const CLIENTS: usize = 40;
const RATE: u32 = 10;
const BURST: u32 = 5;
const DELAY: Duration = Duration::from_millis(2);

fn limited(setup: Setup, workers: u16, spread: Spread) -> Setup {
    let pace = Pace { count: RATE, per_ns: 1_000_000_000, burst: BURST };
    let limit = LimitSpec { connections: Some(pace), ..for_all(Excess::Drop) };
    with_limit(Setup { workers, spread, ..setup }, limit)
}

/// A limit that all clients share.
pub fn for_all(excess: Excess) -> LimitSpec {
    LimitSpec { name: "all".into(), connections: None, requests: None, clients: None, excess }
}

/// Has all services share a limit.
pub fn with_limit(mut setup: Setup, limit: LimitSpec) -> Setup {
    let of_service = vec![Some(0); setup.forward.services.len()];
    setup.limits = LimitsSpec { limits: vec![limit], of_service, ..LimitsSpec::default() };
    setup
}

/// What the limit did about connections or requests.
pub fn counted(net: &World, event: Event) -> EventCounts {
    let counted = net.appliance.limits().counts(net.now).next().expect("one limit");
    counted.events[event as usize].expect("limited")
}

fn passed(net: &World) -> u64 {
    counted(net, Event::Connection).passed
}

/// Runs for some steps, after which in no window more have begun than the rate and the burst allow,
/// to the connection.
fn never_more(net: &mut World, steps: usize, step: Duration) {
    let mut taken = vec![(net.now, passed(net))];
    for _ in 0..steps {
        net.run_for(step);
        taken.push((net.now, passed(net)));
    }
    // In 16ths of a token, to which buckets round.
    let come = |ns: u64| u128::from(RATE) * 16 * u128::from(ns) / 1_000_000_000;
    for (i, (from, before)) in taken.iter().enumerate() {
        for (until, after) in &taken[i..] {
            let most = (16 * u128::from(BURST) + come(until.since(*from)) + 1) / 16;
            let begun = u128::from(after - before);
            assert!(begun <= most, "{begun} from {from:?} to {until:?}, not {most}");
        }
    }
}

/// Runs until all are served: never more have begun than the rate and the burst allow, and as many
/// once they are over.
fn all_in_turn(mut net: World) {
    never_more(&mut net, 500, Duration::from_millis(10));
    serve_all(&mut net);
    assert_eq!(passed(&net), CLIENTS as u64, "each connection has taken one token");
    let counters = finish(net);
    assert!(counters.drops[DropReason::OverLimit as usize] > 0, "{counters:?}");
}

#[test]
fn workers_share_a_limit_to_the_connection() {
    for workers in [1, 2, 4] {
        for (family, spread) in [(Family::V4, Spread::Hash), (Family::V6, Spread::Random)] {
            for_seeds(SEEDS, |seed| {
                let mode = ForwardMode::Nat;
                let mut setup = limited(setup(seed, family, mode), workers, spread);
                setup.pipeline = stages(&[StageSpec::Classify, StageSpec::Balance]);
                let mut net = world(setup, family, mode, LinkSpec::bad(1.0, DELAY));
                add_clients(&mut net, family, family.vip(), TCP_PORT, CLIENTS);
                all_in_turn(net);
            });
        }
    }
}

/// Where nothing is kept of a SYN, the cookie that comes back takes the token, on whichever worker.
#[test]
fn connections_that_are_bound_later_take_theirs_with_the_cookie() {
    let (family, mode) = (Family::V4, ForwardMode::Nat);
    let workers = [(1, Spread::Hash), (2, Spread::Hash), (2, Spread::Random), (4, Spread::Random)];
    let at = [BindAt::Hello, BindAt::Request];
    for (at, (workers, spread)) in at.into_iter().flat_map(|at| workers.map(|w| (at, w))) {
        let setup = binding::delayed(Seed(1), family, mode, at);
        let setup = limited(setup, workers, spread);
        let mut net = world(setup, family, mode, LinkSpec::default());
        add_clients(&mut net, family, family.vip(), TCP_PORT, CLIENTS);
        never_more(&mut net, 300, Duration::from_millis(5));
        let (passed, begun) = (passed(&net), net.appliance.counters().bindings_begun);
        assert_eq!(passed, begun, "{at:?}");
        assert!((u64::from(BURST)..=u64::from(BURST + 15)).contains(&passed), "{at:?}: {passed}");
        let counters = net.appliance.counters();
        assert!(counters.drops[DropReason::OverLimit as usize] > 0, "{at:?}: {counters:?}");
    }
}
