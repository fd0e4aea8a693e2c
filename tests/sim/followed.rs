//! Connections that are bound by their first request are followed request by request, as others
//! are.

use std::time::Duration;

use tidegate::base::Nanos;
use tidegate::base::hash::Rng;
use tidegate::forward::spec::{BindAt, ForwardMode};
use tidegate::packet::ClassId;
use tidegate::policy::spec::{PathPattern, RuleSpec};
use tidegate::qos::limits::{Excess, LimitSpec, LimitsSpec};
use tidegate::qos::tokens::Pace;
use tidegate::sim::stream::Plan;
use tidegate::sim::{LinkSpec, Machine, Setup};

use crate::binding::{any_profile, delayed, seeds, server_profile, talk_all, talker, world};
use crate::speech::{data, http2, http2_more};
use crate::world::{CLIENTS, Family, for_seeds};

/// Requests of each connection.
const REQUESTS: u64 = 5;
const TALKERS: usize = 6;

/// Requests for these paths, with bodies of either kind.
pub fn asks(rng: &mut Rng, name: &str, paths: &[&str]) -> Vec<u8> {
    let mut says = Vec::new();
    for path in paths {
        let body = vec![b'G'; [0, 10, 3_000][rng.below(3) as usize]];
        let head = format!("POST {path} HTTP/1.1\r\nHost: {name}\r\n");
        let rest = match rng.chance(0.5) {
            true => format!("Content-Length: {}\r\n\r\n", body.len()),
            false => format!("Transfer-Encoding: chunked\r\n\r\n{:x}\r\n", body.len().max(1)),
        };
        let (body, end) = match rest.starts_with('T') {
            true if body.is_empty() => (&b"G"[..], &b"\r\n0\r\n\r\n"[..]),
            true => (&body[..], &b"\r\n0\r\n\r\n"[..]),
            false => (&body[..], &b""[..]),
        };
        says.extend([head.as_bytes(), rest.as_bytes(), body, end].concat());
    }
    says
}

fn plan(rng: &mut Rng, now: Nanos, says: Vec<u8>) -> Plan {
    let start = Nanos(now.0 + u64::from(rng.below(300_000_000)));
    Plan { start, says, closes_early: rng.chance(0.3), pause: None }
}

fn several(rng: &mut Rng, now: Nanos, name: &str) -> Plan {
    let mut says = asks(rng, name, &["/v1/chat"; REQUESTS as usize]);
    if rng.chance(0.5) {
        says = [http2(name, 500), data(rng.below(9_000) as usize)].concat();
        for i in 1..REQUESTS as u8 {
            says.extend(http2_more(2 * i + 1, name));
        }
    }
    plan(rng, now, says)
}

#[test]
fn each_request_of_a_bound_connection_counts() {
    for percent in [0.0, 1.0, 5.0, 20.0] {
        let few = 6;
        let counters = talk_all(percent, few, BindAt::Request, several);
        let all = TALKERS as u64 * REQUESTS * seeds(few);
        let read = counters.requests_read;
        // Also those of connections that some backend did not take.
        assert_eq!(read, all, "{percent} %: {counters:?}");
        assert_eq!(counters.unknown_gaps, 0, "{counters:?}");
    }
}

/// A later request that rules refuse does not arrive, wherever it stands: among what is held, or
/// behind it.
#[test]
fn a_later_request_that_is_refused_does_not_arrive() {
    let path = vec![PathPattern::new("/secret").expect("a pattern")];
    let guard = RuleSpec { path, class: ClassId::RESET, ..RuleSpec::default() };
    let says = |rng: &mut Rng, before| {
        let mut paths = vec!["/v1/chat"; before];
        paths.extend(["/secret", "/v1/chat"]);
        asks(rng, "a.example", &paths)
    };
    let secret = "POST /secret HTTP/1.1\r\nHost: a.example\r\n";
    does_not_arrive(secret, says, |setup| setup.rules.insert(0, guard.clone()));
}

/// Nor does one that can't be read, where requests are counted.
#[test]
fn a_later_request_that_is_not_counted_does_not_arrive() {
    let secret = "POST /v1/chat HTTP/1.1\r\nHost : a.example\r\n";
    let says = |rng: &mut Rng, before| {
        let mut says = asks(rng, "a.example", &vec!["/v1/chat"; before]);
        says.extend([secret, "\r\n"].concat().bytes());
        says.extend(asks(rng, "a.example", &["/v1/chat"]));
        says
    };
    let pace = Pace { count: 1_000, per_ns: 1_000_000_000, burst: 1_000 };
    let limit = LimitSpec {
        name: "many".into(),
        connections: None,
        requests: Some(pace),
        clients: None,
        excess: Excess::Drop,
    };
    let limits =
        LimitsSpec { limits: vec![limit], of_service: vec![Some(0)], ..LimitsSpec::default() };
    does_not_arrive(secret, says, |setup| setup.limits = limits.clone());
}

/// No server gets a head that begins so, of clients with any number of requests before it.
fn does_not_arrive(
    secret: &str,
    says: impl Fn(&mut Rng, usize) -> Vec<u8>,
    change: impl Fn(&mut Setup),
) {
    for percent in [0.0, 5.0, 20.0] {
        for_seeds(seeds(8), |seed| {
            let (family, mut rng) = (Family::BOTH[(seed.0 % 2) as usize], Rng::new(seed));
            let profiles: Vec<_> = (0..3).map(|_| server_profile(&mut rng)).collect();
            let mut setup = delayed(seed, family, ForwardMode::Nat, BindAt::Request);
            change(&mut setup);
            let bad = LinkSpec::bad(percent, Duration::from_millis(2));
            let mut net = world(setup, family, bad, |i| profiles[i]);
            for i in 0..TALKERS {
                let says = says(&mut rng, i);
                let plan = plan(&mut rng, net.now, says);
                net.add(CLIENTS, talker(family, i, 77, any_profile(&mut rng), plan));
            }
            net.run_for(Duration::from_secs(60));
            for host in net.hosts() {
                if let Machine::Echo(echo) = host {
                    let has = |heard: &[u8]| {
                        let at = heard.windows(secret.len()).position(|p| p == secret.as_bytes());
                        at.is_some_and(|at| heard[at..].windows(4).any(|end| end == b"\r\n\r\n"))
                    };
                    assert!(!echo.conns().any(|tcp| has(&tcp.received)), "{percent} %");
                }
            }
            let counters = net.appliance.counters();
            let read = counters.requests_read;
            assert!(read >= (TALKERS * (TALKERS - 1) / 2) as u64, "{read} {counters:?}");
        });
    }
}
