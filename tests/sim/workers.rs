//! Several workers: packets that the card gives to the wrong one.

use std::time::Duration;

use tidegate::base::Seed;
use tidegate::sim::{LinkSpec, Machine, Spread};

use crate::world::{
    Family, MODES, add_clients, add_source, finish, for_seeds, serve_all, setup, world,
};

const DELAY: Duration = Duration::from_millis(2);

#[test]
fn replies_that_arrive_at_the_other_queue_reach_their_flow() {
    for (spread, workers) in [(Spread::Hash, 2), (Spread::Random, 2), (Spread::Random, 4)] {
        for mode in MODES {
            for family in Family::BOTH {
                for_seeds(4, |seed| {
                    let mut setup = setup(seed, family, mode);
                    (setup.workers, setup.spread) = (workers, spread);
                    let bad = LinkSpec::bad(2.0, DELAY);
                    let mut net = world(setup, family, mode, bad);
                    add_clients(&mut net, family, family.vip(), 443, 24);
                    serve_all(&mut net);
                    let counters = finish(net);
                    assert!(counters.handed_over > 0, "nothing was handed over: {counters:?}");
                });
            }
        }
    }
}

#[test]
fn hand_over_loses_and_reorders_nothing() {
    let family = Family::V4;
    for mode in MODES {
        let mut setup = setup(Seed(9), family, mode);
        (setup.workers, setup.spread) = (2, Spread::Random);
        let mut net = world(setup, family, mode, LinkSpec::default());
        add_clients(&mut net, family, family.vip(), 443, 24);
        for i in 30..34 {
            add_source(&mut net, family, i, 20_000, 2_000);
        }
        serve_all(&mut net);
        net.run_for(Duration::from_secs(1));
        for host in net.hosts() {
            match host {
                Machine::Client(c) => assert_eq!(c.retransmissions(), 0),
                Machine::Source(s) => assert_eq!(s.echoes, 2_000, "{mode:?}"),
                _ => {}
            }
        }
        let counters = finish(net);
        assert_eq!(counters.drops_total(), 0, "{counters:?}");
    }
}

#[test]
fn a_flow_is_in_one_table_only() {
    let (family, mode) = (Family::V6, MODES[0]);
    let mut setup = setup(Seed(10), family, mode);
    (setup.workers, setup.spread) = (4, Spread::Random);
    let mut net = world(setup, family, mode, LinkSpec::default());
    add_clients(&mut net, family, family.vip(), 443, 40);
    serve_all(&mut net);
    let counters = finish(net);
    assert_eq!(counters.flows_opened, 40, "{counters:?}");
}
