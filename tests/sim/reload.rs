//! Reloads at any moment: flows go on, and nothing is lost.

use std::time::Duration;

use tidegate::base::hash::Rng;
use tidegate::base::{Nanos, Seed};
use tidegate::forward::spec::ForwardMode;
use tidegate::graph::spec::StageSpec;
use tidegate::packet::{ClassId, DropReason, PortId};
use tidegate::policy::spec::RuleSpec;
use tidegate::qos::spec::{ClassSpec, PortQosSpec, QueueSpec};
use tidegate::sim::{LinkSpec, Machine, Setup};
use tidegate::worker::WorkerCommand;

use crate::world::{
    Family, MODES, add_clients, add_source, finish, for_seeds, inspect, no_damage, serve_all,
    setup, soon, stages, world, world_between,
};

const DELAY: Duration = Duration::from_millis(2);

/// Any of the changes that an operator makes.
fn change(setup: &mut Setup, rng: &mut Rng) {
    match rng.below(4) {
        0 => {
            let pool = &mut setup.forward.pools[0];
            let i = rng.below(pool.backends.len() as u32) as usize;
            pool.backends[i].weight = rng.below(20) as u16;
            // Someone has to be left.
            pool.backends[(i + 1) % 3].weight = 10;
        }
        1 => {
            let class = ClassId(rng.below(3) as u16);
            setup.rules = vec![RuleSpec { name: "all".into(), class, ..RuleSpec::default() }];
        }
        2 => {
            let shaped = [inspect(), StageSpec::Classify, StageSpec::Balance, StageSpec::Shape];
            let plain = [StageSpec::Balance];
            setup.pipeline = stages(if rng.chance(0.5) { &shaped } else { &plain });
        }
        _ => setup.qos = (0..2).map(|port| qos(port, 200 + rng.below(200))).collect(),
    }
}

fn qos(port: u16, mbit: u32) -> PortQosSpec {
    let rate = |mbit: u32| format!("{mbit}Mbit/s").parse().expect("a rate");
    let class = |id: u16| ClassSpec {
        burst: 20_000,
        cburst: 20_000,
        priority: id as u8,
        limit: 200_000,
        queue: QueueSpec::INTERNET,
        ..ClassSpec::plain(id, rate(mbit / 4), rate(mbit))
    };
    PortQosSpec {
        port: PortId(port),
        rate: rate(mbit),
        burst: 20_000,
        overhead: 24,
        mpu: 84,
        mtu: 1_514,
        default_class: ClassId(2),
        classes: (0..3).map(class).collect(),
    }
}

#[test]
fn no_flow_breaks() {
    for mode in MODES {
        for family in Family::BOTH {
            for_seeds(6, |seed| {
                let mut rng = Rng::new(seed);
                let mut setup = setup(seed, family, mode);
                setup.workers = 1 + rng.below(2) as u16;
                let mut net = world(setup, family, mode, LinkSpec::bad(2.0, DELAY));
                add_clients(&mut net, family, family.vip(), 443, 16);
                for _ in 0..30 {
                    let until = soon(&mut rng, net.now, 100);
                    net.run_until(until, |_| false);
                    net.appliance.reload(|setup| change(setup, &mut rng));
                }
                serve_all(&mut net);
                finish(net);
            });
        }
    }
}

#[test]
fn no_packet_is_lost() {
    let (family, mode) = (Family::V4, ForwardMode::Nat);
    for_seeds(6, |seed| {
        let mut rng = Rng::new(seed);
        let mut setup = setup(seed, family, mode);
        setup.workers = 2;
        let mut net = world(setup, family, mode, LinkSpec::default());
        for i in 0..8 {
            add_source(&mut net, family, i, 200_000, 5_000);
        }
        for _ in 0..40 {
            let until = soon(&mut rng, net.now, 50);
            net.run_until(until, |_| false);
            net.appliance.reload(|setup| change(setup, &mut rng));
        }
        net.run_for(Duration::from_secs(2));
        no_damage(&net);
        for host in net.hosts() {
            if let Machine::Source(s) = host {
                assert_eq!((s.sent, s.echoes), (5_000, 5_000));
            }
        }
        assert_eq!(finish(net).drops_total(), 0);
    });
}

#[test]
fn a_stop_sends_what_waits_and_counts_the_rest() {
    for_seeds(6, |seed| {
        let (family, mode) = (Family::V4, ForwardMode::Nat);
        let rate = Some("2Mbit/s".parse().expect("a rate"));
        let (fast, slow) = (LinkSpec::default(), LinkSpec { rate, ..LinkSpec::default() });
        let mut net = world_between(setup(seed, family, mode), family, mode, [fast, slow]);
        for i in 0..4 {
            add_source(&mut net, family, i, 100_000, 10_000);
        }
        let limit = if seed.0.is_multiple_of(2) { 20 } else { 20_000 };
        net.run_for(Duration::from_millis(300));
        let deadline = net.now + Duration::from_millis(limit);
        net.appliance.command(0, WorkerCommand::Stop { deadline });
        net.run_until(deadline.max(Nanos::from_secs(30)), |_| false);
        let counters = net.appliance.finish();
        let cut = counters.drops[DropReason::Shutdown as usize];
        assert_eq!(cut > 0, limit == 20, "{counters:?}");
        assert!(counters.rx_packets < 40_000, "a stopping box receives nothing");
    });
}

/// Between a plain queue and a class tree, with packets that wait in it.
#[test]
fn a_ports_other_kind_of_queue_gets_some_packets_a_turn() {
    const A_TURN: usize = 256;
    let (family, mode) = (Family::V4, ForwardMode::Nat);
    let rate = Some("2Mbit/s".parse().expect("a rate"));
    let (fast, slow) = (LinkSpec::default(), LinkSpec { rate, ..LinkSpec::default() });
    let mut setup = setup(Seed(5), family, mode);
    setup.workers = 1;
    setup.qos = (0..2).map(|port| qos(port, 200)).collect();
    setup.pipeline = stages(&[StageSpec::Balance]);
    let mut net = world_between(setup, family, mode, [fast, slow]);
    for i in 0..4 {
        add_source(&mut net, family, i, 100_000, 10_000);
    }
    net.run_for(Duration::from_millis(300));
    for kind in [&[StageSpec::Balance, StageSpec::Shape][..], &[StageSpec::Balance]] {
        net.appliance.reload(|setup| setup.pipeline = stages(kind));
        let (now, worker) = (net.now, &mut net.appliance.workers[0]);
        worker.poll(now);
        let mut left = worker.leaving();
        assert!(left > A_TURN, "{left} packets go over");
        while left > 0 {
            worker.poll(now);
            let before = std::mem::replace(&mut left, worker.leaving());
            assert!(left < before && before - left <= A_TURN, "{before}, then {left}");
        }
    }
    // And a stop meanwhile.
    net.appliance.reload(|setup| setup.pipeline = stages(&[StageSpec::Balance, StageSpec::Shape]));
    let now = net.now;
    net.appliance.workers[0].poll(now);
    assert!(net.appliance.workers[0].leaving() > 0);
    net.appliance.finish();
}

#[test]
fn half_of_a_pool_can_be_drained() {
    let (family, mode) = (Family::V4, ForwardMode::Dnat);
    let mut net = world(setup(Seed(1), family, mode), family, mode, LinkSpec::default());
    net.appliance.reload(|setup| {
        for backend in &mut setup.forward.pools[0].backends[1..] {
            backend.weight = 0;
        }
    });
    add_clients(&mut net, family, family.vip(), 443, 20);
    serve_all(&mut net);
    let accepted: Vec<_> = net
        .hosts()
        .filter_map(|h| if let Machine::Server(s) = h { Some(s.accepted) } else { None })
        .collect();
    assert_eq!(accepted, [20, 0, 0]);
    finish(net);
}
