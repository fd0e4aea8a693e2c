//! Clients of HTTP/2 at a service that waits for requests: those that wait for the server's
//! settings before they ask, and those that ask a little later than they begin.

use std::time::Duration;

use tidegate::base::Nanos;
use tidegate::base::hash::Rng;
use tidegate::forward::spec::BindAt;
use tidegate::inspect::h2::{PREFACE, SETTINGS};
use tidegate::sim::stream::{Pause, Plan};

use crate::binding::{seeds, talk_all};
use crate::speech::{data, http2};

/// Preface and SETTINGS of [`http2`].
const BEGINNING: usize = PREFACE.len() + 9 + 6;
const ACKNOWLEDGMENT: [u8; 9] = [0, 0, 0, 4, 1, 0, 0, 0, 0];
/// A server's window for a new stream (RFC 9113, section 6.9.2), of which less may be held.
const BODY_MAX: u32 = 40_000;
const BODY_HELD_MAX: u32 = 12_000;

/// Waits, then acknowledges before its request, behind its head, or behind its body: as long as
/// all before that may be held.
fn waits(rng: &mut Rng, now: Nanos, name: &str) -> Plan {
    let head = http2(name, [0, 1_500, 4_000][rng.below(3) as usize]);
    let order = rng.below(3) as usize;
    let body = data(rng.below([BODY_MAX, BODY_MAX, BODY_HELD_MAX][order]) as usize);
    let answer_at = [BEGINNING, head.len(), head.len() + body.len()][order];
    plan(rng, now, [head, body].concat(), answer_at, Duration::MAX)
}

/// Asks within 40 ms: before it is told anything, while it is, or after.
fn hesitates(rng: &mut Rng, now: Nanos, name: &str) -> Plan {
    let body = data(rng.below(BODY_HELD_MAX) as usize);
    let says = [http2(name, 1_500), body].concat();
    let wait = Duration::from_micros(u64::from(rng.below(40_000)));
    Plan { closes_early: false, ..plan(rng, now, says, BEGINNING, wait) }
}

fn plan(rng: &mut Rng, now: Nanos, says: Vec<u8>, answer_at: usize, wait: Duration) -> Plan {
    let start = Nanos(now.0 + u64::from(rng.below(300_000_000)));
    let pause = Pause {
        at: BEGINNING,
        hears: SETTINGS.to_vec(),
        until: Nanos(start.0.saturating_add(wait.as_nanos().min(u128::from(u64::MAX)) as u64)),
        answer: ACKNOWLEDGMENT.to_vec(),
        answer_at,
    };
    Plan { start, says, closes_early: rng.chance(0.3), pause: Some(pause) }
}

#[test]
fn clients_that_wait_are_told_that_they_may_ask() {
    for percent in [0.0, 1.0, 5.0, 20.0] {
        let counters = talk_all(percent, 6, BindAt::Request, waits);
        assert_eq!(counters.bindings_greeted, counters.bindings_joined, "{percent} %");
    }
}

#[test]
fn clients_that_hesitate_are_served_whether_they_are_told_or_not() {
    for percent in [0.0, 1.0, 5.0, 20.0] {
        let few = 6;
        let counters = talk_all(percent, few, BindAt::Request, hesitates);
        let told = counters.bindings_greeted;
        assert!((1..6 * seeds(few)).contains(&told), "{percent} %: {told} were told");
    }
}
