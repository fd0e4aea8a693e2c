//! Delayed binding between strict TCPs, over links that lose, reorder and duplicate: every byte
//! arrives both ways, and nothing that either side sees gives the seam away.

use std::time::Duration;

use tidegate::base::hash::Rng;
use tidegate::base::{Nanos, Seed};
use tidegate::forward::spec::{
    BackendId, BackendSpec, BindAt, Delay, ForwardMode, PoolId, PoolSpec,
};
use tidegate::forward::splice::Promise;
use tidegate::graph::spec::StageSpec;
use tidegate::observe::Counters;
use tidegate::packet::build::{TcpSpec, tcp_packet};
use tidegate::packet::{ClassId, tcp};
use tidegate::policy::spec::{NamePattern, RuleSpec};
use tidegate::sim::stream::{Echo, Mood, Plan, Profile, Stand, Talker};
use tidegate::sim::{Appliance, Endpoint, LinkSpec, Machine, Net, Setup, mac_of};

use crate::speech::{hello, http1, http2};
use crate::world::{
    CLIENTS, Family, SERVER_PORTS, SERVERS, TCP_PORT, World, box_mac, client_end, for_seeds,
    inspect, setup, stages,
};

const DELAY: Duration = Duration::from_millis(2);
const LIMIT: Duration = Duration::from_secs(600);
/// Names of the servers' own: the first two share a pool.
const NAMES: [&str; 3] = ["a.example", "a.example", "b.example"];

/// Seeds of each simulation; `TIDEGATE_SIM_SEEDS` asks for more.
pub fn seeds(few: u64) -> u64 {
    std::env::var("TIDEGATE_SIM_SEEDS").ok().and_then(|s| s.parse().ok()).unwrap_or(few)
}

pub fn delayed(seed: Seed, family: Family, mode: ForwardMode, at: BindAt) -> Setup {
    let mut setup = setup(seed, family, mode);
    setup.pipeline = stages(&[inspect(), StageSpec::Classify, StageSpec::Balance]);
    let service = &mut setup.forward.services[0];
    let promise = Promise { mss: 1_440, ..Promise::default() };
    service.delay = Some(Delay { at, timeout_ms: 30_000, promise });
    service.rule_pools = vec![PoolId(1)];
    setup.forward.services.truncate(1);
    let backend = |i: usize| BackendSpec {
        id: BackendId(i as u16),
        name: format!("b{i}"),
        addr: family.server(i),
        port: SERVER_PORTS[0],
        weight: 10,
        ..BackendSpec::default()
    };
    let pool = |id: u16, backends| {
        let (id, name) = (PoolId(id), format!("p{id}"));
        PoolSpec { id, name, backends, ..PoolSpec::default() }
    };
    setup.forward.pools = vec![pool(0, vec![backend(0), backend(1)]), pool(1, vec![backend(2)])];
    let name = || vec![NamePattern::Exact(NAMES[2].into())];
    let rule = RuleSpec { class: ClassId(3), pool: Some(1), ..RuleSpec::default() };
    let method = vec!["POST".into()];
    setup.rules = vec![
        RuleSpec { sni: name(), ..rule.clone() },
        RuleSpec { authority: name(), method, ..rule },
    ];
    setup
}

pub fn world(
    setup: Setup,
    family: Family,
    cable: LinkSpec,
    profile: impl Fn(usize) -> Profile,
) -> World {
    let seed = setup.seed;
    let mut net = Net::new(Appliance::new(setup), &[cable, cable], seed);
    for i in 0..3 {
        let addr = family.server(i);
        let echo = Echo::new(profile(i), mac_of(addr), box_mac(SERVERS), addr);
        net.add(SERVERS, Machine::Echo(Box::new(echo)));
    }
    net
}

pub fn talker(family: Family, i: usize, isn: u32, profile: Profile, plan: Plan) -> Machine {
    let local = client_end(family, i, 40_000 + i as u16);
    let remote = Endpoint { mac: box_mac(CLIENTS), addr: family.vip(), port: TCP_PORT };
    Machine::Talker(Box::new(Talker::new(profile, local, remote, isn, plan)))
}

/// A TCP of any make.
pub fn any_profile(rng: &mut Rng) -> Profile {
    let scales = [None, Some(0), Some(2), Some(7), Some(9), Some(14)];
    Profile {
        mss: [536, 900, 1_200, 1_400, 1_440][rng.below(5) as usize],
        window_scale: scales[rng.below(6) as usize],
        sack: rng.chance(0.8),
        stamps: rng.chance(0.8),
        buffer: [20_000, 65_536, 300_000][rng.below(3) as usize],
        clock: rng.next_u64() as u32,
        reads: if rng.chance(0.2) { 3_000 } else { u32::MAX },
    }
}

/// Servers keep what clients were promised: timestamps, and the usual size.
pub fn server_profile(rng: &mut Rng) -> Profile {
    let mss = 1_440;
    let window_scale = Some([0, 5, 7, 10][rng.below(4) as usize]);
    let buffer = [32_768, 65_536, 300_000][rng.below(3) as usize];
    Profile { mss, sack: true, stamps: true, window_scale, buffer, ..any_profile(rng) }
}

/// Makes up what a client says to the server of that name.
pub type Planner = fn(&mut Rng, Nanos, &str) -> Plan;

fn any_hello(rng: &mut Rng, now: Nanos, name: &str) -> Plan {
    any_plan(rng, now, name, &[hello])
}

/// Requests of HTTP/1 and HTTP/2, and hellos.
fn any_request(rng: &mut Rng, now: Nanos, name: &str) -> Plan {
    any_plan(rng, now, name, &[hello, http1, http2])
}

fn any_plan(rng: &mut Rng, now: Nanos, name: &str, ways: &[fn(&str, usize) -> Vec<u8>]) -> Plan {
    let padding = [0, 1_500, 4_000, 12_000][rng.below(4) as usize];
    let mut says = ways[rng.below(ways.len() as u32) as usize](name, padding);
    let more = if rng.chance(0.1) { 0 } else { rng.below(40_000) };
    says.extend((0..more).map(|i| (i ^ i >> 8) as u8));
    let start = Nanos(now.0 + u64::from(rng.below(300_000_000)));
    Plan { start, says, closes_early: rng.chance(0.3), pause: None }
}

fn talk(seed: Seed, percent: f64, at: BindAt, planner: Planner) -> Counters {
    const TALKERS: usize = 6;
    let family = Family::BOTH[(seed.0 / 2 % 2) as usize];
    let mode = [ForwardMode::Nat, ForwardMode::Dnat][(seed.0 / 4 % 2) as usize];
    let mut rng = Rng::new(seed);
    let profiles: Vec<_> = (0..3).map(|_| server_profile(&mut rng)).collect();
    let bad = LinkSpec::bad(percent, DELAY);
    let mut setup = delayed(seed, family, mode, at);
    setup.workers = 1 + (seed.0 % 2) as u16;
    let mut net = world(setup, family, bad, |i| profiles[i]);
    let mut names = Vec::new();
    for i in 0..TALKERS {
        let name = NAMES[rng.below(3) as usize];
        names.push(name);
        let plan = planner(&mut rng, net.now, name);
        let profile = any_profile(&mut rng);
        let isn = if rng.chance(0.5) { 0u32.wrapping_sub(rng.below(9_000)) } else { rng.below(9) };
        net.add(CLIENTS, talker(family, i, isn, profile, plan));
    }
    everyone_is_served(&mut net);
    let mut to_b = 0;
    for host in net.hosts() {
        if let Machine::Echo(echo) = host {
            let b = echo.mac() == mac_of(family.server(2));
            to_b += echo.conns().filter(|t| b && !t.received.is_empty()).count();
        }
    }
    let named_b = names.iter().filter(|n| **n == "b.example").count();
    assert_eq!(to_b, named_b, "at the wrong server");
    finish(net)
}

fn everyone_is_served(net: &mut World) {
    let served = net.run_until(net.now + LIMIT, |net| net.hosts().all(Machine::is_content));
    no_faults(net);
    let unserved: Vec<_> = net
        .hosts()
        .filter_map(|h| match h {
            Machine::Talker(t) if !t.is_served() => Some(t.tcp().to_string()),
            _ => None,
        })
        .collect();
    let servers: Vec<_> = net
        .hosts()
        .filter_map(|h| match h {
            Machine::Echo(e) => Some(e.conns().map(ToString::to_string).collect::<Vec<_>>()),
            _ => None,
        })
        .collect();
    assert!(served, "not served: {unserved:#?} {servers:#?}; {:?}", net.appliance.counters());
}

fn no_faults(net: &World) {
    for host in net.hosts() {
        match host {
            Machine::Talker(t) => assert!(t.tcp().faults.is_empty(), "{:?}", t.tcp().faults),
            Machine::Echo(e) => {
                assert_eq!(e.strange, 0, "damaged or misdirected packets at a server");
                e.conns().for_each(|t| assert!(t.faults.is_empty(), "{:?}", t.faults));
            }
            _ => {}
        }
    }
}

pub fn finish(mut net: World) -> Counters {
    net.run_for(Duration::from_secs(40));
    no_faults(&net);
    assert_eq!(net.appliance.held(), 0, "packets are still held");
    let bindings: usize = net.appliance.workers.iter().map(|w| w.bindings()).sum();
    assert_eq!(bindings, 0, "connections are still being bound");
    net.appliance.finish()
}

/// Six clients a seed, over links that lose so many packets of a hundred.
pub fn talk_all(percent: f64, few: u64, at: BindAt, planner: Planner) -> Counters {
    let mut sum = Counters::default();
    for_seeds(seeds(few), |seed| {
        let counters = talk(seed, percent, at, planner);
        assert!(counters.bindings_joined >= 6, "{counters:?}");
        sum.add(&counters);
    });
    sum
}

#[test]
fn over_perfect_links() {
    talk_all(0.0, 8, BindAt::Hello, any_hello);
}

#[test]
fn over_links_that_lose_one_in_a_hundred() {
    talk_all(1.0, 8, BindAt::Hello, any_hello);
}

#[test]
fn over_links_that_lose_one_in_twenty() {
    talk_all(5.0, 8, BindAt::Hello, any_hello);
}

#[test]
fn over_links_that_lose_one_in_five() {
    talk_all(20.0, 8, BindAt::Hello, any_hello);
}

/// Requests of HTTP/1 and HTTP/2, and hellos, at a service that waits for requests.
#[test]
fn requests_over_links_of_all_kinds() {
    for percent in [0.0, 1.0, 5.0, 20.0] {
        talk_all(percent, 6, BindAt::Request, any_request);
    }
}

/// One talker behind good links, with what the servers are like.
fn one(family: Family, moods: [Mood; 3], says: Vec<u8>) -> World {
    one_at(family, moods, says, BindAt::Hello)
}

fn one_at(family: Family, moods: [Mood; 3], says: Vec<u8>, at: BindAt) -> World {
    let mut net =
        world(delayed(Seed(7), family, ForwardMode::Nat, at), family, LinkSpec::default(), |_| {
            Profile { mss: 1_440, ..Profile::default() }
        });
    for (i, mood) in moods.into_iter().enumerate() {
        if let Some(Machine::Echo(echo)) = net.hosts_mut().nth(i) {
            echo.mood = mood;
        }
    }
    let plan = Plan { start: net.now, says, closes_early: false, pause: None };
    let profile = Profile { mss: 1_440, ..Profile::default() };
    net.add(CLIENTS, talker(family, 0, 1, profile, plan));
    net
}

fn stand(net: &World) -> Stand {
    let talker = net.hosts().find_map(|h| match h {
        Machine::Talker(t) => Some(t.tcp().stand),
        _ => None,
    });
    talker.expect("a talker")
}

#[test]
fn the_next_backend_takes_what_one_refuses() {
    for family in Family::BOTH {
        for (unwilling, within) in [(Mood::Refusing, 1), (Mood::Silent, 6)] {
            // Whichever is asked first: one of both is unwilling.
            for moods in [[unwilling, Mood::Willing], [Mood::Willing, unwilling]] {
                let [a, b] = moods;
                let mut net = one(family, [a, b, Mood::Silent], hello(NAMES[0], 3_000));
                let served = net.run_until(net.now + Duration::from_secs(within), |net| {
                    net.hosts().all(Machine::is_content)
                });
                assert!(served, "{family:?} {moods:?}: {:?}", net.appliance.counters());
                finish(net);
            }
        }
    }
}

#[test]
fn with_no_backend_the_client_is_reset() {
    for (mood, within) in [(Mood::Refusing, 1), (Mood::Silent, 15)] {
        let mut net = one(Family::V4, [mood; 3], hello(NAMES[0], 0));
        net.run_for(Duration::from_secs(within));
        assert_eq!(stand(&net), Stand::Reset, "{mood:?}");
        let counters = finish(net);
        assert_eq!((counters.bindings_unserved, counters.backends_unwilling), (1, 3), "{mood:?}");
    }
}

#[test]
fn a_hello_that_never_ends_is_reset_in_time() {
    let mut half = hello(NAMES[0], 0);
    half.truncate(20);
    let mut net = one(Family::V6, [Mood::Willing; 3], half);
    net.run_for(Duration::from_secs(29));
    assert_eq!(stand(&net), Stand::Open);
    net.run_for(Duration::from_secs(2));
    assert_eq!(stand(&net), Stand::Reset);
    assert_eq!(finish(net).bindings_timed_out, 1);
}

#[test]
fn what_is_no_hello_goes_to_the_services_own_pool() {
    let mut net =
        one(Family::V4, [Mood::Willing, Mood::Willing, Mood::Refusing], vec![b'x'; 9_000]);
    everyone_is_served(&mut net);
    assert_eq!(finish(net).apps_other, 1);
}

/// A head that never ends, one that is longer than what is read, and one whose target is.
#[test]
fn requests_that_never_end_are_given_up() {
    let mut half = http2(NAMES[0], 100);
    half.truncate(70);
    let mut net = one_at(Family::V4, [Mood::Willing; 3], half, BindAt::Request);
    net.run_for(Duration::from_secs(31));
    assert_eq!(stand(&net), Stand::Reset);
    assert_eq!(finish(net).bindings_timed_out, 1);
    let long = http1(NAMES[2], 40_000);
    let host = "a".repeat(300);
    let host = format!("GET / HTTP/1.1\r\nHost: {host}.{}\r\n\r\n", NAMES[2]).into_bytes();
    for (says, heads) in [(long, 1), (host, 0)] {
        let mut net = one_at(Family::V4, [Mood::Willing; 3], says, BindAt::Request);
        net.run_for(Duration::from_secs(1));
        assert_eq!(stand(&net), Stand::Reset);
        let counters = finish(net);
        assert_eq!((counters.unknown_head_too_long, counters.requests_too_long), (heads, 1));
        assert_eq!(counters.bindings_unserved, 1);
    }
}

/// Where the first backend refuses, the head is read again for the next: of the same pool.
#[test]
fn the_next_backend_is_of_the_pool_that_the_request_chose() {
    let moods = [Mood::Willing, Mood::Willing, Mood::Refusing];
    for says in [http1(NAMES[2], 500), http2(NAMES[2], 12_000)] {
        let mut net = one_at(Family::V4, moods, says, BindAt::Request);
        net.run_for(Duration::from_secs(1));
        assert_eq!(stand(&net), Stand::Reset, "{:?}", net.appliance.counters());
        let counters = finish(net);
        assert_eq!((counters.bindings_unserved, counters.backends_unwilling), (1, 3));
    }
}

/// Cookies keep nothing, so a flood takes no memory and no place from anybody.
#[test]
fn a_flood_of_syns_harms_nobody() {
    let (family, mode) = (Family::V4, ForwardMode::Nat);
    let good = LinkSpec { delay: DELAY, ..LinkSpec::default() };
    let mut net =
        world(delayed(Seed(9), family, mode, BindAt::Hello), family, good, |_| Profile::default());
    let mut rng = Rng::new(Seed(9));
    for i in 0..8 {
        let plan = any_hello(&mut rng, net.now, NAMES[i % 3]);
        net.add(CLIENTS, talker(family, i, 77, Profile::default(), plan));
    }
    let vip = (family.vip(), TCP_PORT);
    for round in 0..200u32 {
        for i in 0..100u16 {
            let source =
                (family.client(50 + usize::from(i % 10)), 1_024 + rng.below(60_000) as u16);
            let mut syn = TcpSpec::new(source, vip, tcp::flag::SYN, &[]);
            syn.link = tidegate::packet::build::LinkSpec {
                destination: box_mac(CLIENTS),
                source: mac_of(source.0),
                ..Default::default()
            };
            syn.seq = rng.next_u64() as u32;
            assert!(net.appliance.ends[0][0].send(&tcp_packet(&syn)), "round {round}");
        }
        net.run_for(Duration::from_millis(5));
        assert!(net.appliance.workers[0].bindings() <= 8);
    }
    everyone_is_served(&mut net);
    net.run_for(Duration::from_secs(40));
    no_faults(&net);
    let counters = net.appliance.finish();
    assert!(counters.cookies_sent >= 20_000, "{counters:?}");
    assert_eq!((counters.bindings_begun, counters.flows_opened), (8, 8));
    assert_eq!(counters.drops_total(), 0, "{counters:?}");
}
