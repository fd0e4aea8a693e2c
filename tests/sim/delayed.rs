//! What waits for the token of a limit goes on in its turn, and nothing of it is lost; what is
//! dropped instead is counted.

use std::time::Duration;

use tidegate::base::hash::Rng;
use tidegate::base::{Nanos, Seed};
use tidegate::forward::spec::{BindAt, ForwardMode};
use tidegate::graph::spec::StageSpec;
use tidegate::packet::{ClassId, DropReason};
use tidegate::policy::spec::RuleSpec;
use tidegate::qos::limits::{Event, Excess, LimitSpec};
use tidegate::qos::tokens::Pace;
use tidegate::sim::stream::Plan;
use tidegate::sim::{LinkSpec, Machine, Setup, Spread};

use crate::binding::{self, any_profile, server_profile, talker};
use crate::followed::asks;
use crate::limits::{counted, for_all, with_limit};
use crate::world::{
    CLIENTS, Family, TCP_PORT, World, add_clients, add_source, finish, for_seeds, no_damage, setup,
    stages, world,
};

const SECOND: u64 = 1_000_000_000;
const BURST: u64 = 5;
/// A second.
const RATE: u64 = 20;
const MODE: ForwardMode = ForwardMode::Nat;
/// Longer than anybody has to wait here.
const LONG: Excess = Excess::Delay(3 * SECOND);

fn pace(count: u64, burst: u64) -> Option<Pace> {
    Some(Pace { count: count as u32, per_ns: SECOND, burst: burst as u32 })
}

fn connections(excess: Excess) -> LimitSpec {
    LimitSpec { connections: pace(RATE, BURST), ..for_all(excess) }
}

/// How many there may have been since `begun`.
fn most(net: &World, begun: Nanos) -> u64 {
    BURST + RATE * net.now.since(begun) / SECOND + 1
}

fn served(net: &World) -> u64 {
    let served = |m: &&Machine| matches!(m, Machine::Client(c) if c.is_served());
    net.hosts().filter(served).count() as u64
}

/// Runs until all clients are served, each in its turn and without a loss.
fn all_wait(mut net: World, clients: u64) {
    let begun = net.now;
    while served(&net) < clients {
        net.run_for(Duration::from_millis(25));
        assert!(served(&net) <= most(&net, begun), "{} at {:?}", served(&net), net.now);
        assert!(net.now.since(begun) < 10 * SECOND, "{:?}", net.appliance.counters());
    }
    no_damage(&net);
    let told = counted(&net, Event::Connection);
    assert_eq!((told.passed, told.refused), (clients, 0), "{told:?}");
    assert!(told.delayed > 0, "{told:?}");
    let counters = finish(net);
    assert!(counters.delayed >= told.delayed, "{counters:?}");
    assert_eq!(counters.drops[DropReason::OverLimit as usize], 0, "{counters:?}");
}

#[test]
fn connections_wait_for_their_tokens() {
    for workers in [1, 2, 4] {
        for (family, spread) in [(Family::V4, Spread::Hash), (Family::V6, Spread::Random)] {
            for_seeds(3, |seed| {
                let mut setup = with_limit(setup(seed, family, MODE), connections(LONG));
                (setup.workers, setup.spread) = (workers, spread);
                setup.pipeline = stages(&[StageSpec::Classify, StageSpec::Balance]);
                let mut net = world(setup, family, MODE, LinkSpec::default());
                add_clients(&mut net, family, family.vip(), TCP_PORT, 40);
                all_wait(net, 40);
            });
        }
    }
}

#[test]
fn connections_that_are_bound_later_wait_before_they_are() {
    for at in [BindAt::Hello, BindAt::Request] {
        let family = Family::V6;
        let setup = binding::delayed(Seed(1), family, MODE, at);
        let setup = with_limit(Setup { workers: 2, ..setup }, connections(LONG));
        let mut net = world(setup, family, MODE, LinkSpec::default());
        add_clients(&mut net, family, family.vip(), TCP_PORT, 40);
        all_wait(net, 40);
    }
}

/// Whoever would have to wait for longer is dropped, and is served in the end all the same.
#[test]
fn nobody_waits_for_longer_than_may_be() {
    let family = Family::V4;
    let limit = connections(Excess::Delay(SECOND / 5));
    let mut setup = with_limit(setup(Seed(3), family, MODE), limit);
    setup.pipeline = stages(&[StageSpec::Classify, StageSpec::Balance]);
    let mut net = world(setup, family, MODE, LinkSpec::default());
    add_clients(&mut net, family, family.vip(), TCP_PORT, 40);
    let begun = net.now;
    for _ in 0..400 {
        net.run_for(Duration::from_millis(25));
        assert!(served(&net) <= most(&net, begun));
    }
    let told = counted(&net, Event::Connection);
    assert_eq!((told.passed, served(&net)), (40, 40), "{told:?}");
    let counters = finish(net);
    assert!(counters.drops[DropReason::OverLimit as usize] > 0 && counters.delayed > 0);
}

const SOURCES: u64 = 12;
const DATAGRAMS: u64 = 30;

/// Sources of datagrams that all begin at once; how many came back, and what was counted.
fn datagrams(excess: Excess) -> (u64, LimitTold) {
    let family = Family::V4;
    let mut setup = with_limit(setup(Seed(5), family, MODE), connections(excess));
    setup.workers = 2;
    setup.pipeline = stages(&[StageSpec::Classify, StageSpec::Balance]);
    let mut net = world(setup, family, MODE, LinkSpec::default());
    for i in 0..SOURCES as usize {
        add_source(&mut net, family, i, 20_000_000, DATAGRAMS);
    }
    net.run_for(Duration::from_secs(3));
    let echoes = |m: &Machine| if let Machine::Source(s) = m { s.echoes } else { 0 };
    let echoes = net.hosts().map(echoes).sum();
    let told = counted(&net, Event::Connection);
    let counters = finish(net);
    let lost = counters.drops[DropReason::OverLimit as usize];
    (echoes, LimitTold { passed: told.passed, refused: told.refused, lost })
}

#[derive(Debug)]
struct LimitTold {
    passed: u64,
    refused: u64,
    lost: u64,
}

#[test]
fn a_flow_of_datagrams_takes_a_token_with_its_first_packet() {
    let (echoes, told) = datagrams(Excess::Drop);
    assert!(told.lost > 0 && told.refused == told.lost, "{told:?}");
    assert_eq!(told.passed, SOURCES, "each begins once there is a token");
    assert_eq!(echoes, SOURCES * DATAGRAMS - told.lost);
}

#[test]
fn datagrams_wait_with_the_first_of_their_flow() {
    let (echoes, told) = datagrams(LONG);
    assert_eq!((told.passed, told.refused), (SOURCES, 0));
    // The last flow waits for 350 ms, in which 18 come: two more than wait.
    assert_eq!(echoes, SOURCES * DATAGRAMS - told.lost);
    assert!(told.lost < 5, "{told:?}");
}

const TALKERS: usize = 6;
/// Requests of each connection.
const REQUESTS: usize = 5;

/// Heads of requests that servers have in full.
fn heads(net: &World) -> u64 {
    let mut heads = 0;
    for host in net.hosts() {
        let Machine::Echo(echo) = host else { continue };
        for tcp in echo.conns() {
            let heard = &tcp.received;
            let begins = heard.windows(5).enumerate().filter(|(_, part)| *part == b"POST ");
            let whole = |at: usize| heard[at..].windows(4).any(|end| end == b"\r\n\r\n");
            heads += begins.filter(|&(at, _)| whole(at)).count() as u64;
        }
    }
    heads
}

/// Connections with some requests each, to a service that waits for them or does not.
fn talk(seed: Seed, at: Option<BindAt>, limit: LimitSpec) -> World {
    let (family, mut rng) = (Family::BOTH[(seed.0 % 2) as usize], Rng::new(seed));
    let profiles: Vec<_> = (0..3).map(|_| server_profile(&mut rng)).collect();
    let mut setup = binding::delayed(seed, family, MODE, at.unwrap_or(BindAt::Request));
    if at.is_none() {
        setup.forward.services[0].delay = None;
        setup.forward.services[0].rule_pools.clear();
        setup.rules = vec![RuleSpec { class: ClassId(1), ..RuleSpec::default() }];
    }
    let setup = with_limit(Setup { workers: 2, ..setup }, limit);
    let mut net = binding::world(setup, family, LinkSpec::default(), |i| profiles[i]);
    for i in 0..TALKERS {
        let says = asks(&mut rng, "a.example", &["/v1/chat"; REQUESTS]);
        let plan = Plan { start: net.now, says, closes_early: false, pause: None };
        net.add(CLIENTS, talker(family, i, 77, any_profile(&mut rng), plan));
    }
    net
}

#[test]
fn requests_wait_for_their_tokens() {
    for at in [None, Some(BindAt::Hello), Some(BindAt::Request)] {
        for_seeds(4, |seed| {
            let limit = LimitSpec { requests: pace(RATE, BURST), ..for_all(LONG) };
            let mut net = talk(seed, at, limit);
            let begun = net.now;
            while !net.hosts().all(Machine::is_content) {
                net.run_for(Duration::from_millis(25));
                assert!(heads(&net) <= most(&net, begun), "{at:?}: {} heads", heads(&net));
                assert!(net.now.since(begun) < 60 * SECOND, "{:?}", net.appliance.counters());
            }
            let told = counted(&net, Event::Request);
            let all = (TALKERS * REQUESTS) as u64;
            assert_eq!((told.passed, told.refused), (all, 0), "{at:?}: {told:?}");
            assert_eq!(heads(&net), all);
            assert!(told.delayed > 0, "{at:?}: {told:?}");
            binding::finish(net);
        });
    }
}

/// Where a request is dropped all that follows in its connection is, or is never joined.
#[test]
fn what_follows_a_request_beyond_the_limit_does_not_arrive() {
    for at in [None, Some(BindAt::Hello), Some(BindAt::Request)] {
        for_seeds(4, |seed| {
            let once = Some(Pace { count: 1, per_ns: 3_600 * SECOND, burst: BURST as u32 });
            let limit = LimitSpec { requests: once, ..for_all(Excess::Drop) };
            let mut net = talk(seed, at, limit);
            net.run_for(Duration::from_secs(30));
            let told = counted(&net, Event::Request);
            assert_eq!(told.passed, BURST, "{at:?}: {told:?}");
            assert!(told.refused > 0 && heads(&net) <= BURST, "{at:?}: {} heads", heads(&net));
            net.appliance.finish();
        });
    }
}
