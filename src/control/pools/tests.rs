//! Weights by the state of things: checks, drains, returns, panic.

use std::path::Path;
use std::time::Duration;

use super::*;
use crate::config;

const SECOND: u64 = 1_000_000_000;

fn text(panic_percent: u8) -> String {
    let head = "pipeline = \"l4-balancer\"\n[port.p]\ninterface = \"p\"\n[nat]\naddresses = \
                [\"192.0.2.9\"]\n[service.s]\nvip = \"203.0.113.1\"\nport = 80\npool = \"a\"\n";
    let backend = |i: usize| {
        format!("[[pool.a.backend]]\naddress = \"10.0.0.{i}\"\nname = \"b{i}\"\nweight = {i}\n")
    };
    let backends: String = (1..=4).map(backend).collect();
    format!(
        "{head}[pool.a]\npanic_percent = {panic_percent}\n{backends}\
         [pool.a.health]\ntype = \"tcp\"\nrise = 1\nfall = 1\nslow_start = \"10s\"\n"
    )
}

fn load(text: &str) -> Config {
    config::load_text(Path::new("t.toml"), text).unwrap_or_else(|faults| panic!("{faults}"))
}

struct World {
    config: Config,
    pools: Pools,
}

impl World {
    fn new(text: &str) -> World {
        let config = load(text);
        let mut pools = Pools::new(&config);
        pools.tables(Nanos(0), &config, Seed(1));
        World { config, pools }
    }

    fn check(&mut self, secs: u64, backend: u8, well: bool) {
        let result = if well { Ok(()) } else { Err("refused".to_string()) };
        self.found(secs, backend, result, None);
    }

    fn measured(&mut self, secs: u64, backend: u8, rtt_ms: u64) {
        self.found(secs, backend, Ok(()), Some(Duration::from_millis(rtt_ms)));
    }

    fn found(&mut self, secs: u64, backend: u8, result: Result<(), String>, rtt: Option<Duration>) {
        let addr = format!("10.0.0.{backend}").parse().expect("literal");
        let found = Found { key: ("a".to_string(), addr, 80), result, rtt };
        self.pools.found(Nanos(secs * SECOND), &self.config, found);
    }

    /// The weights, and whether the workers must be told.
    fn weights(&mut self, secs: u64) -> (Vec<u16>, bool) {
        let renewed = self.pools.renewed(Nanos(secs * SECOND), &self.config, Seed(1));
        ((0..4).map(|i| self.pools.weight(0, i)).collect(), renewed.is_some())
    }
}

fn backend(name: &str) -> DrainTarget {
    DrainTarget::Backend { pool: "a".into(), name: name.into() }
}

/// Checks need a runtime to be started in; none of them gets to run here.
fn in_runtime(body: impl FnOnce()) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.expect("a runtime");
    let _in = runtime.enter();
    body();
}

#[test]
fn what_is_down_gets_nothing_and_grows_when_it_returns() {
    in_runtime(|| {
        let mut w = World::new(&text(0));
        assert_eq!(w.weights(0), (vec![1, 2, 3, 4], false));
        w.check(1, 3, false);
        assert_eq!(w.weights(1), (vec![1, 2, 0, 4], true));
        assert_eq!(w.weights(2), (vec![1, 2, 0, 4], false));
        w.check(10, 3, true);
        assert_eq!(w.weights(10), (vec![100, 200, 30, 400], true));
        assert_eq!(w.weights(15), (vec![100, 200, 150, 400], true));
        assert_eq!(w.weights(20), (vec![1, 2, 3, 4], true));
    });
}

#[test]
fn where_too_few_are_well_all_get_flows() {
    in_runtime(|| {
        let mut w = World::new(&text(0));
        for b in 1..=3 {
            w.check(1, b, false);
        }
        assert_eq!(w.weights(1).0, [0, 0, 0, 4]);
        w.check(2, 4, false);
        assert_eq!(w.weights(2).0, [1, 2, 3, 4], "none is well");
        assert!(w.pools.is_panicking("a"));
        w.check(3, 1, true);
        assert_eq!(w.weights(60).0, [1, 0, 0, 0]);
        assert!(!w.pools.is_panicking("a"));

        let mut w = World::new(&text(51));
        w.check(1, 1, false);
        assert_eq!(w.weights(1).0, [0, 2, 3, 4]);
        w.check(1, 2, false);
        assert_eq!(w.weights(1).0, [1, 2, 3, 4], "half of them is less than 51 percent");
    });
}

#[test]
fn a_service_is_served_while_enough_are_known_to_be_well() {
    in_runtime(|| {
        let mut w = World::new(&text(0));
        let serves =
            |w: &World, percent| w.pools.serves(&w.config, &w.config.forward.services[0], percent);
        assert!(!serves(&w, 0), "none was checked yet");
        w.check(1, 1, true);
        assert_eq!((serves(&w, 25), serves(&w, 26)), (true, false), "one of four");
        (2..=3).for_each(|b| w.check(1, b, true));
        w.check(1, 4, false);
        w.weights(1);
        assert_eq!((serves(&w, 75), serves(&w, 76)), (true, false), "three of four");
        let drain = |w: &mut World, target: &DrainTarget, on| {
            w.pools.drained.set(target, on);
            w.weights(2);
        };
        drain(&mut w, &backend("b1"), true);
        assert_eq!((serves(&w, 50), serves(&w, 51)), (true, false), "two of four");
        drain(&mut w, &DrainTarget::Service("s".into()), true);
        assert!(!serves(&w, 0), "nobody may begin");
        drain(&mut w, &DrainTarget::Service("s".into()), false);
        assert!(serves(&w, 0));
        (1..=4).for_each(|b| w.check(3, b, false));
        w.weights(3);
        assert!(w.pools.is_panicking("a") && !serves(&w, 0), "all get flows, and none is well");
    });
}

#[test]
fn drained_backends_get_nothing_even_in_panic_and_after_a_reload() {
    in_runtime(|| {
        let mut w = World::new(&text(0));
        assert!(w.pools.drained.set(&backend("b4"), true));
        assert!(!w.pools.drained.set(&backend("b4"), true), "no change");
        assert_eq!(w.weights(0).0, [1, 2, 3, 0]);
        for b in 1..=4 {
            w.check(1, b, b == 4);
        }
        assert_eq!(w.weights(1).0, [1, 2, 3, 0], "of those that may be used none is well");
        w.config = load(&text(0).replace("weight = 1", "weight = 9"));
        w.pools.set_config(&w.config, |_| false);
        w.pools.tables(Nanos(SECOND), &w.config, Seed(1));
        assert_eq!(w.weights(1), (vec![9, 2, 3, 0], false));
        w.config = load(&text(0).replace("\"b4\"", "\"other\""));
        w.pools.set_config(&w.config, |_| false);
        assert!(w.pools.drained.keep_known(&w.config).is_empty(), "forgotten already");
        assert_eq!(w.weights(1).0, [0, 0, 0, 4], "its end is the same: it is well");
    });
}

#[test]
fn a_split_leaves_out_pools_that_nobody_is_well_in() {
    in_runtime(|| {
        let split = "pool = { a = 90, b = 10, c = 0 }";
        let others = "[[pool.b.backend]]\naddress = \"10.0.1.1\"\n[[pool.c.backend]]\naddress = \
                      \"10.0.2.1\"\n";
        let mut w = World::new(&format!("{}{others}", text(0).replace("pool = \"a\"", split)));
        assert_eq!(w.config.forward.splits.len(), 1);
        let shares = |w: &mut World, secs| {
            w.weights(secs);
            w.pools.applied.splits[0].clone()
        };
        let service = |w: &World| w.pools.serves(&w.config, &w.config.forward.services[0], 100);
        assert_eq!(shares(&mut w, 0), [90, 10, 0]);
        (1..=3).for_each(|b| w.check(1, b, false));
        assert_eq!(shares(&mut w, 1), [90, 10, 0], "one is well");
        w.check(2, 4, false);
        assert_eq!(shares(&mut w, 2), [0, 10, 0]);
        assert!(w.pools.is_panicking("a") && service(&w), "the other pool serves");
        w.pools.drained.set(&DrainTarget::Pool("b".into()), true);
        assert_eq!(shares(&mut w, 2), [90, 10, 0], "nobody can: better one that may fail");
        w.check(3, 4, true);
        assert_eq!(shares(&mut w, 3), [90, 0, 0]);
        w.pools.drained.set(&DrainTarget::Pool("b".into()), false);
        assert_eq!(shares(&mut w, 3), [90, 10, 0]);
    });
}

#[test]
fn flows_stay_in_the_zone_for_as_long_as_it_can_serve_them() {
    in_runtime(|| {
        let mut text = text(0).replace("slow_start = \"10s\"", "").replacen(
            "[port.p]",
            "[appliance]\nzone = \"north\"\n[port.p]",
            1,
        );
        for (i, zone) in ["north", "north", "south", "south"].iter().enumerate() {
            let name = format!("name = \"b{}\"\n", i + 1);
            text = text.replace(&name, &format!("{name}zone = \"{zone}\"\n"));
        }
        let mut w = World::new(&text);
        let spills = |w: &mut World, secs| {
            w.weights(secs);
            w.pools.groups(0)[0].spills_percent
        };
        assert_eq!(spills(&mut w, 0), 0);
        w.check(1, 1, false);
        assert_eq!(spills(&mut w, 1), 5, "2 of 2.1");
        w.pools.drained.set(&backend("b2"), true);
        assert_eq!(spills(&mut w, 1), 100);
        w.pools.drained.set(&backend("b2"), false);
        w.check(2, 1, true);
        assert_eq!((spills(&mut w, 2), spills(&mut w, 11), spills(&mut w, 12)), (100, 100, 0));
        (1..=4).for_each(|b| w.check(13, b, false));
        assert_eq!(spills(&mut w, 13), 0, "nobody is well anywhere");
    });
}

#[test]
fn what_spills_goes_to_the_nearest_zone_by_what_checks_have_measured() {
    in_runtime(|| {
        let head = "[appliance]\nzone = \"north\"\n[port.p]";
        let text = text(0).replace("slow_start = \"10s\"", "");
        let mut text = text.replacen("[port.p]", head, 1).replacen(
            "[pool.a]",
            "[pool.a]\nreturn_after = \"0s\"\ndistance = \"rtt\"",
            1,
        );
        for (i, zone) in ["north", "south", "east", "east"].iter().enumerate() {
            let name = format!("name = \"b{}\"\n", i + 1);
            text = text.replace(&name, &format!("{name}zone = \"{zone}\"\n"));
        }
        let mut w = World::new(&text);
        assert_eq!(w.weights(0).0, [1, 2, 3, 4], "nothing is known");
        w.measured(1, 2, 30);
        w.measured(1, 3, 9);
        assert_eq!(w.weights(1), (vec![1, 1, 7_500, 10_000], true), "east is the nearest");
        assert_eq!(w.pools.nearest(&w.config.forward.pools[0]), ["east", "south"]);
        w.check(2, 3, false);
        assert_eq!(w.weights(2).0, [1, 10_000, 0, 1], "4 of 7 in east are less than it needs");
        w.pools.drained.set(&backend("b4"), true);
        assert_eq!(w.weights(3).0, [1, 2, 0, 0], "nobody else is left");
        w.pools.drained.set(&backend("b4"), false);
        // South comes nearer: by five checks of two seconds.
        (0..60).for_each(|_| w.measured(4, 2, 1));
        w.check(4, 3, true);
        assert_eq!(w.weights(4).0[1], 1);
        assert_eq!(w.weights(13).0[1], 1);
        assert_eq!(w.weights(14).0[1..], [10_000, 1, 1]);
        let without = load(&text.replace("distance", "# distance"));
        w.pools.set_config(&without, |_| false);
        w.config = without;
        assert_eq!((w.weights(15).0, w.pools.groups(0)[0].spills_percent), (vec![1, 2, 3, 4], 0));
        assert!(w.pools.nearest(&w.config.forward.pools[0]).is_empty());
    });
}

#[test]
fn pools_services_and_all_can_be_drained() {
    in_runtime(|| {
        let mut w = World::new(&text(0));
        let mut drained = |target: DrainTarget, on| {
            w.pools.drained.set(&target, on);
            let tables = w.pools.renewed(Nanos(0), &w.config, Seed(1)).expect("a change");
            let vip = "203.0.113.1".parse().expect("literal");
            let service = *tables.service(vip, 80, 6).expect("the service");
            let key = crate::packet::FlowKey { dst: vip, ..Default::default() };
            let mut turns = crate::forward::Turns::new(0, 1);
            let serving = crate::flow::Serving::new(8);
            let by =
                crate::forward::Choosing { now: Nanos(0), turns: &mut turns, serving: &serving };
            let chosen = tables.choose(service.pool, &key, by);
            (service.drained, chosen.is_ok())
        };
        assert_eq!(drained(DrainTarget::Pool("a".into()), true), (false, false));
        assert_eq!(drained(DrainTarget::Pool("a".into()), false), (false, true));
        assert_eq!(drained(DrainTarget::Service("s".into()), true), (true, true));
        w.pools.drained.set(&DrainTarget::Appliance, true);
        let beside = |w: &World, target| w.pools.drained.beside(&w.config, &target);
        let both = vec!["service s".to_string(), "the appliance".to_string()];
        assert_eq!(beside(&w, backend("b1")), both);
        assert_eq!(beside(&w, DrainTarget::Appliance), both[..1]);
        w.pools.drained.set(&DrainTarget::Service("s".into()), false);
        assert_eq!(beside(&w, DrainTarget::Pool("b".into())), Vec::<String>::new());
        assert!(w.pools.renewed(Nanos(0), &w.config, Seed(1)).is_none(), "drained either way");
        for (target, said) in [
            (DrainTarget::Pool("b".into()), "there is no pool `b`"),
            (DrainTarget::Service("t".into()), "there is no service `t`"),
            (backend("b9"), "pool `a` has no backend `b9`"),
        ] {
            assert_eq!(flows_of(&w.config, &target), Err(said.to_string()));
        }
    });
}

const VIP: &str = "203.0.113.1";

/// A flow that has come by a port of the VIP to a backend.
fn flow(vip_port: u16, backend: &str) -> crate::flow::Flow {
    use crate::flow::{FlowKind, FlowLimits, FlowTable, NewFlow, Timeouts};
    use crate::packet::{ClassId, FlowKey, PacketMeta};
    let addr = |text: &str| text.parse().expect("literal");
    let (client, nat) = (addr("198.51.100.7"), addr("192.0.2.9"));
    let (proto, sport) = (6, 40_000);
    let key = FlowKey { src: client, dst: addr(VIP), sport, dport: vip_port, proto };
    let reply = FlowKey { src: addr(backend), dst: nat, sport: 80, dport: sport, proto };
    let (kind, class, idle_established_ms) = (FlowKind::Nat, ClassId::UNSET, None);
    let new = NewFlow { key, reply: Some(reply), kind, backend: 0, class, idle_established_ms };
    let limits = FlowLimits { flows_max: 1, half_open_max: 1 };
    let mut table = FlowTable::new(limits, Timeouts::default(), Seed(1));
    let at = table.insert(Nanos(1), &new, &PacketMeta::default()).expect("room");
    table.get(at).clone()
}

/// Service `t` leads to pool `b`, which has the first backend of `a`, too.
fn shared(pool_of_t: &str, more: &str) -> String {
    let t = format!("[service.t]\nvip = \"{VIP}\"\nport = 81\npool = {pool_of_t}\n");
    let b = "[[pool.b.backend]]\naddress = \"10.0.0.1\"\nport = 80\nname = \"b1\"\n";
    let a = text(0).replace("weight = ", "port = 80\nweight = ");
    a.replace("[pool.a]\n", &format!("[pool.a]\n{more}")) + &t + b
}

#[test]
fn of_a_backend_of_two_pools_each_has_the_flows_of_its_services() {
    let has = |pool_of_t: &str, target: &DrainTarget| {
        let of = flows_of(&load(&shared(pool_of_t, "")), target).expect("known");
        [80, 81, 82].map(|port| of.has(&flow(port, "10.0.0.1")))
    };
    let [a, b] = ["a", "b"].map(|pool| DrainTarget::Pool(pool.into()));
    // Nobody knows any more whose those are that have come by port 82.
    assert_eq!(has("\"b\"", &a), [true, false, true]);
    assert_eq!(has("\"b\"", &backend("b1")), [true, false, true]);
    assert_eq!(has("\"b\"", &b), [false, true, true]);
    assert_eq!(has("{ a = 1, b = 9 }", &a), [true, true, true], "by either");
    let of = flows_of(&load(&shared("\"b\"", "")), &a).expect("known");
    assert!(of.has(&flow(81, "10.0.0.2")), "which no other pool has");
}

#[test]
fn flows_of_a_backend_that_goes_down_are_cut_unless_all_are_down() {
    in_runtime(|| {
        let mut w = World::new(&shared("\"b\"", "on_down = \"reset\"\n"));
        let mut down = |secs: u64, backends: &[u8]| {
            backends.iter().for_each(|b| w.check(secs, *b, false));
            w.weights(secs);
            w.pools.take_downed(&w.config)
        };
        let [of] = &down(1, &[1])[..] else { panic!("those of one pool") };
        assert_eq!([80, 81].map(|port| of.has(&flow(port, "10.0.0.1"))), [true, false]);
        assert!(down(2, &[2, 3]).len() == 1 && down(2, &[]).is_empty(), "together, and once");
        assert!(down(3, &[4]).is_empty(), "nobody is well: the checks are not believed");
    });
}

#[test]
fn whoever_is_down_when_a_panic_is_over_is_cut_then() {
    in_runtime(|| {
        let mut text = shared("\"b\"", "on_down = \"reset\"\n");
        let mut w = World::new(&text);
        let cut = |w: &mut World, secs: u64, checks: &[(u8, bool)]| {
            checks.iter().for_each(|(b, well)| w.check(secs, *b, *well));
            w.weights(secs);
            let of = w.pools.take_downed(&w.config);
            let has = |b: &u8| of.iter().any(|of| of.has(&flow(80, &format!("10.0.0.{b}"))));
            (1..=4).filter(has).collect::<Vec<u8>>()
        };
        assert!(cut(&mut w, 1, &[1, 2, 3, 4].map(|b| (b, false))).is_empty());
        assert!(cut(&mut w, 2, &[]).is_empty(), "the panic lasts");
        assert_eq!(cut(&mut w, 3, &[(1, true), (2, true)]), [3, 4], "the others are back");
        assert!(cut(&mut w, 4, &[]).is_empty(), "once");
        assert!(cut(&mut w, 5, &[(1, false), (2, false)]).is_empty());
        // Pools may change their places meanwhile.
        text = text.replace("\"b\"", "\"0\"").replace("pool.b.", "pool.0.");
        w.config = load(&text);
        w.pools.set_config(&w.config, |_| false);
        w.pools.tables(Nanos(5 * SECOND), &w.config, Seed(1));
        assert_eq!(cut(&mut w, 6, &[(4, true)]), [1, 2]);
    });
}

/// A look at connections that show that these backends fail.
fn look(w: &mut World, secs: u64, failing: &[usize]) {
    let spec = w.config.outliers[0].clone().expect("given");
    let pool = w.config.forward.pools[0].clone();
    let places: Vec<u16> = failing.iter().map(|i| w.pools.place(&pool.backends[*i])).collect();
    // Each look sees more than the one before.
    let tally = |place: u16| crate::flow::serving::Tally {
        failed: if places.contains(&place) { secs * 100 } else { 0 },
        ..Default::default()
    };
    w.pools.look_at(Nanos(secs * SECOND), &pool, &spec, tally);
}

#[test]
fn who_serves_when_the_others_are_down_is_not_taken_out() {
    in_runtime(|| {
        let outliers = "[pool.a.outliers]\nfailures = 1\nejected_percent_max = 60\n";
        let mut w = World::new(&(text(0) + outliers));
        look(&mut w, 1, &[]);
        (1..=2).for_each(|b| w.check(1, b, false));
        look(&mut w, 2, &[2, 3]);
        assert_eq!(w.weights(2).0, [0, 0, 3, 4], "three of four would be more than 60 percent");
        let mut w = World::new(&(text(0) + &outliers.replace("60", "100")));
        look(&mut w, 1, &[]);
        look(&mut w, 2, &[0, 1, 2, 3]);
        assert_eq!(w.weights(2).0, [0, 0, 0, 4], "never the last");
        w.check(3, 4, false);
        assert_eq!(w.weights(3).0, [1, 2, 3, 0], "better who fails now and then than who is down");
        assert!(!w.pools.is_panicking("a"));
        (1..=3).for_each(|b| w.check(4, b, false));
        assert_eq!(w.weights(4).0, [1, 2, 3, 4]);
        assert!(w.pools.is_panicking("a"));
    });
}

#[test]
fn those_without_a_weight_are_no_part_of_what_may_go() {
    in_runtime(|| {
        let mut text = text(0) + "[pool.a.outliers]\nfailures = 1\n";
        for i in 3..=4 {
            text = text.replace(&format!("weight = {i}"), "weight = 0");
        }
        let mut w = World::new(&text);
        look(&mut w, 1, &[]);
        look(&mut w, 2, &[0, 1]);
        assert_eq!(w.weights(2).0, [0, 2, 0, 0], "one of two, not of four");
    });
}

#[test]
fn who_comes_by_a_reload_or_is_no_longer_drained_begins_with_a_part() {
    in_runtime(|| {
        let all = text(0);
        let (three, fourth) = all.split_at(all.rfind("[[pool.a.backend]]").expect("the fourth"));
        let rest = &fourth[fourth.find("[pool.a.health]").expect("behind it")..];
        let mut w = World::new(&format!("{three}{rest}"));
        assert_eq!(w.weights(0).0, [1, 2, 3, 0]);
        w.config = load(&all);
        w.pools.set_config(&w.config, |_| false);
        assert_eq!(w.weights(1).0, [100, 200, 300, 40], "it was not checked yet");
        w.check(2, 4, true);
        assert_eq!((w.weights(2).0[3], w.weights(7).0[3]), (40, 200));
        assert_eq!(w.weights(12).0, [1, 2, 3, 4]);
        w.pools.drained.set(&backend("b1"), true);
        assert_eq!(w.weights(20).0, [0, 2, 3, 4]);
        w.pools.drained.set(&backend("b1"), false);
        w.pools.ease_in(Nanos(20 * SECOND), &w.config, &backend("b1"));
        assert_eq!(w.weights(20).0, [10, 200, 300, 400]);
        assert_eq!(w.weights(30).0, [1, 2, 3, 4]);
    });
}

#[test]
fn what_was_drained_before_a_trial_is_drained_after_it() {
    in_runtime(|| {
        let mut w = World::new(&text(0));
        w.pools.drained.set(&backend("b4"), true);
        let all = w.config.clone();
        w.config = load(&text(0).replace("10.0.0.4", "10.0.0.5").replace("\"b4\"", "\"b5\""));
        w.pools.set_config(&w.config, |_| false);
        assert!(!w.pools.drained.has(&backend("b4")));
        w.pools.drained.bring_back();
        w.config = all;
        w.pools.set_config(&w.config, |_| false);
        assert!(w.pools.drained.has(&backend("b4")));
        assert_eq!(w.weights(60).0[3], 0);
        w.pools.set_config(&w.config, |_| false);
        w.pools.drained.set(&backend("b4"), false);
        w.pools.drained.bring_back();
        assert!(!w.pools.drained.has(&backend("b4")), "it was undrained since");
    });
}
