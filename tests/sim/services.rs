//! Services and routes, over links that lose, reorder and duplicate.

use std::time::Duration;

use tidegate::base::Seed;
use tidegate::forward::spec::ForwardMode;
use tidegate::graph::spec::StageSpec;
use tidegate::packet::DropReason;
use tidegate::sim::{LinkSpec, Machine};

use crate::world::{
    Family, MODES, SERVER_PORTS, add_clients, add_source, finish, for_seeds, inspect, no_damage,
    serve_all, setup, share_out, stages, timing, world, world_between,
};

const SEEDS: u64 = 12;
const DELAY: Duration = Duration::from_millis(2);

fn everyone_is_served(mode: ForwardMode, pipeline: &[StageSpec]) {
    for family in Family::BOTH {
        for_seeds(SEEDS, |seed| {
            let mut setup = setup(seed, family, mode);
            setup.pipeline = stages(pipeline);
            let mut net = world(setup, family, mode, LinkSpec::bad(3.0, DELAY));
            add_clients(&mut net, family, family.vip(), 443, 12);
            serve_all(&mut net);
            let counters = finish(net);
            assert!(counters.flows_opened >= 12, "{family:?} {mode:?}: {counters:?}");
        });
    }
}

#[test]
fn nat_over_bad_links() {
    everyone_is_served(ForwardMode::Nat, &[StageSpec::Balance]);
}

#[test]
fn dnat_over_bad_links() {
    everyone_is_served(ForwardMode::Dnat, &[StageSpec::Balance]);
}

#[test]
fn dsr_over_bad_links() {
    everyone_is_served(ForwardMode::Dsr, &[StageSpec::Balance]);
}

#[test]
fn pools_with_shares_zones_and_a_group_that_waits() {
    let family = Family::V4;
    for_seeds(SEEDS / 2, |seed| {
        let mut setup = setup(seed, family, ForwardMode::Nat);
        share_out(&mut setup.forward);
        let mut net = world(setup, family, ForwardMode::Nat, LinkSpec::bad(3.0, DELAY));
        add_clients(&mut net, family, family.vip(), 443, 12);
        serve_all(&mut net);
        let counters = finish(net);
        assert!(counters.flows_opened >= 12, "{counters:?}");
    });
}

#[test]
fn the_whole_edge_pipeline_over_bad_links() {
    let pipeline = [inspect(), StageSpec::Classify, timing(), StageSpec::Balance, StageSpec::Shape];
    everyone_is_served(ForwardMode::Nat, &pipeline);
}

#[test]
fn routing_over_bad_links() {
    for family in Family::BOTH {
        for_seeds(SEEDS, |seed| {
            let mut setup = setup(seed, family, ForwardMode::Dnat);
            setup.pipeline = stages(&[StageSpec::Classify, StageSpec::Route]);
            setup.forward.services.clear();
            let bad = LinkSpec::bad(3.0, DELAY);
            let mut net = world(setup, family, ForwardMode::Dnat, bad);
            for i in 0..3 {
                add_clients(&mut net, family, family.server(i), SERVER_PORTS[0], 4);
            }
            serve_all(&mut net);
            finish(net);
        });
    }
}

#[test]
fn a_perfect_network_loses_nothing() {
    for mode in MODES {
        let family = Family::V4;
        let mut net = world(setup(Seed(1), family, mode), family, mode, LinkSpec::default());
        add_clients(&mut net, family, family.vip(), 443, 20);
        add_source(&mut net, family, 30, 100_000, 500);
        serve_all(&mut net);
        net.run_for(Duration::from_secs(1));
        for host in net.hosts() {
            match host {
                Machine::Client(c) => assert_eq!(c.retransmissions(), 0),
                Machine::Source(s) => assert_eq!((s.sent, s.echoes), (500, 500), "{mode:?}"),
                _ => {}
            }
        }
        let counters = finish(net);
        assert_eq!(counters.drops_total(), 0, "{mode:?}: {counters:?}");
        assert_eq!(counters.rx_packets, counters.tx_packets);
    }
}

#[test]
fn the_first_packet_to_an_unresolved_neighbour_is_not_lost() {
    for mode in MODES {
        let family = Family::V6;
        let mut setup = setup(Seed(2), family, mode);
        setup.resolve_after = Duration::from_millis(50);
        let mut net = world(setup, family, mode, LinkSpec::default());
        add_clients(&mut net, family, family.vip(), 443, 12);
        serve_all(&mut net);
        for host in net.hosts() {
            if let Machine::Client(c) = host {
                assert_eq!(c.retransmissions(), 0, "{mode:?}: a packet was lost");
            }
        }
        let counters = finish(net);
        assert!(counters.parked >= 3, "{mode:?}: {counters:?}");
        assert_eq!(counters.drops_total(), 0, "{mode:?}: {counters:?}");
    }
}

#[test]
fn packets_to_a_silent_neighbour_are_dropped_in_the_end() {
    let (family, mode) = (Family::V4, ForwardMode::Nat);
    let mut setup = setup(Seed(3), family, mode);
    setup.resolve_after = Duration::from_millis(50);
    setup.neighbours.clear();
    let mut net = world(setup, family, mode, LinkSpec::default());
    add_source(&mut net, family, 0, 1_000_000, 30);
    net.run_for(Duration::from_secs(5));
    let counters = finish(net);
    let dropped = counters.drops[DropReason::NeighbourUnresolved as usize];
    assert!(counters.parked > 0 && dropped == 30, "{counters:?}");
}

#[test]
fn an_overrun_cable_costs_packets_and_nothing_else() {
    for pipeline in [&[StageSpec::Balance][..], &[StageSpec::Balance, StageSpec::Shape][..]] {
        let (family, mode) = (Family::V4, ForwardMode::Nat);
        let mut setup = setup(Seed(4), family, mode);
        setup.pipeline = stages(pipeline);
        let mut slow = LinkSpec { delay: DELAY, ..LinkSpec::default() };
        slow.rate = Some("10Mbit/s".parse().expect("a rate"));
        let fast = LinkSpec { delay: DELAY, ..LinkSpec::default() };
        let mut net = world_between(setup, family, mode, [fast, slow]);
        for i in 0..4 {
            add_source(&mut net, family, i, 100_000, 5_000);
        }
        net.run_for(Duration::from_secs(3));
        let counters = finish(net);
        let full = counters.drops[DropReason::QueueFull as usize];
        assert!(full > 0, "nothing was overrun: {counters:?}");
        assert_eq!(counters.drops[DropReason::NoFrames as usize], 0, "{counters:?}");
        assert!(counters.rx_packets >= 20_000, "the box stopped receiving: {counters:?}");
    }
}

#[test]
fn the_same_seed_gives_the_same_run() {
    let run = |seed| {
        let (family, mode) = (Family::V4, ForwardMode::Nat);
        let bad = LinkSpec::bad(5.0, DELAY);
        let mut net = world(setup(seed, family, mode), family, mode, bad);
        add_clients(&mut net, family, family.vip(), 443, 8);
        add_source(&mut net, family, 20, 700_000, 300);
        serve_all(&mut net);
        no_damage(&net);
        (net.now, finish(net))
    };
    assert_eq!(run(Seed(5)), run(Seed(5)));
    assert_ne!(run(Seed(5)), run(Seed(6)), "the seed decides nothing");
}
