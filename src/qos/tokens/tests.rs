//! Buckets against exact ones, alone, in a crowd and by several workers.

use proptest::prelude::*;

use super::*;
use crate::base::Seed;
use crate::base::hash::hash1;

const SECOND: u64 = 1_000_000_000;

fn pace(count: u32, per_ns: u64, burst: u32) -> Pace {
    Pace { count, per_ns, burst }
}

fn taken(tokens: &Tokens, now: u64, client: u64) -> bool {
    tokens.take(Nanos(now), hash1(Seed(3), client), 0).is_some()
}

fn has(tokens: &Tokens, now: u64, client: u64) -> bool {
    tokens.wait(Nanos(now), hash1(Seed(3), client)) == 0
}

#[test]
fn a_burst_and_then_the_rate() {
    let tokens = Tokens::new(pace(10, SECOND, 3), Some(64));
    let burst: Vec<_> = (0..5).map(|_| taken(&tokens, SECOND, 1)).collect();
    assert_eq!(burst, [true, true, true, false, false]);
    // A token comes every 100 ms.
    for (at, want) in [(99, false), (100, true), (150, false), (200, true), (201, false)] {
        assert_eq!(taken(&tokens, SECOND + at * 1_000_000, 1), want, "{at} ms");
    }
    assert!(taken(&tokens, SECOND, 2), "another client's tokens are its own");
    assert_eq!(tokens.busy(Nanos(SECOND)), 2);
    assert_eq!(tokens.busy(Nanos(9 * SECOND)), 0);
}

#[test]
fn who_only_asks_takes_nothing() {
    let tokens = Tokens::new(pace(1, SECOND, 1), Some(64));
    for client in 0..10_000 {
        assert!(has(&tokens, SECOND, client));
    }
    assert_eq!(tokens.busy(Nanos(SECOND)), 0);
    assert!(taken(&tokens, SECOND, 1));
    assert!(!has(&tokens, SECOND, 1));
    assert!(has(&tokens, 2 * SECOND, 1));
}

/// Tokens that are still to come are taken in order, each when it has come and no further ahead
/// than may be waited for.
#[test]
fn who_waits_has_a_token_of_its_own() {
    const MS: u64 = 1_000_000;
    let tokens = Tokens::new(pace(10, SECOND, 2), Some(64));
    let hash = hash1(Seed(3), 1);
    let take = |now, most| tokens.take(Nanos(SECOND + now * MS), hash, most * MS);
    let waits: Vec<_> = (0..6).map(|_| take(0, 350)).collect();
    let ms = |n: u64| Some(n * MS);
    assert_eq!(waits, [ms(0), ms(0), ms(100), ms(200), ms(300), None]);
    assert_eq!(tokens.wait(Nanos(SECOND), hash), 400 * MS);
    assert_eq!((take(249, 0), take(249, 100)), (None, None), "all until then are taken");
    assert_eq!((take(250, 150), take(500, 0)), (ms(150), ms(0)));
    // Whoever has not waited meanwhile is not held up by it.
    assert!(taken(&tokens, SECOND, 2));
}

#[test]
fn all_clients_may_share_one_bucket() {
    let tokens = Tokens::new(pace(1, SECOND, 2), None);
    assert_eq!([1, 2, 3].map(|client| taken(&tokens, 0, client)), [true, true, false]);
    assert!(!has(&tokens, 0, 4));
}

#[test]
fn another_pace_keeps_what_is_lacking() {
    let old = Tokens::new(pace(10, SECOND, 10), Some(64));
    (0..8).for_each(|_| assert!(taken(&old, 5 * SECOND, 1)));
    let new = Tokens::replacing(pace(1, SECOND, 10), Some(64), &old, Nanos(5 * SECOND));
    let left: Vec<_> = (0..3).map(|_| taken(&new, 5 * SECOND, 1)).collect();
    assert_eq!(left, [true, true, false]);
    assert!(taken(&new, 6 * SECOND, 1));
    assert!(taken(&new, 5 * SECOND, 2));
}

/// A table that is far too small: nobody gets more for that, and the idle give way without a loss.
#[test]
fn a_crowd_gets_no_more_than_its_rate() {
    let tokens = Tokens::new(pace(1, SECOND, 2), Some(8));
    let mut passed = [0u64; 40];
    for step in 0..4_000u64 {
        let client = step % 40;
        passed[client as usize] += u64::from(taken(&tokens, step * SECOND / 100, client));
    }
    // 40 s, and two at once.
    assert!(passed.iter().all(|n| *n <= 42), "{passed:?}");
    assert!(tokens.crowded() > 0);
    let later = 10_000 * SECOND;
    assert!((0..8).all(|client| taken(&tokens, later, 100 + client)));
    assert!((0..8).all(|client| taken(&tokens, later + 1, 100 + client)));
}

/// Workers that ask at once for one client, and for many that come and go.
#[test]
fn workers_together_get_what_one_would() {
    for clients in [1u64, 24] {
        let tokens = Tokens::new(pace(1_000, SECOND, 50), Some(8));
        let end = SECOND;
        let passed: Vec<Vec<u64>> = std::thread::scope(|scope| {
            let work = |_| {
                let tokens = &tokens;
                scope.spawn(move || {
                    let mut passed = vec![0; clients as usize];
                    for (i, now) in (0..=end).step_by(20_000).enumerate() {
                        let client = i as u64 % clients;
                        passed[client as usize] += u64::from(taken(tokens, now, client));
                    }
                    passed
                })
            };
            let threads: Vec<_> = (0..3).map(work).collect();
            threads.into_iter().map(|t| t.join().expect("ends")).collect()
        });
        for client in 0..clients as usize {
            let all: u64 = passed.iter().map(|of| of[client]).sum();
            assert!(all <= 1_050, "client {client} of {clients}: {all}");
            // Threads that run one after the other still find what came and was not used.
            assert!(clients > 1 || all >= 1_000, "{all}");
        }
    }
}

proptest! {
    /// In no span of time does a client get more than the rate and the burst, nor less than it may
    /// if it is alone.
    #[test]
    fn never_more_and_never_less(
        count in 1u32..1_000,
        per_ms in 1u64..100_000,
        burst in 1u32..50,
        clients in 1u64..20,
        asks in prop::collection::vec((0u64..50_000_000, 0u64..20), 1..400),
    ) {
        let per_ns = per_ms * 1_000_000;
        let tokens = Tokens::new(pace(count, per_ns, burst), Some(8));
        let mut now = 0;
        let mut passed: Vec<Vec<u64>> = vec![Vec::new(); clients as usize];
        // Alone: an exact bucket, in 1/per_ns of a token.
        let (one, full) = (u128::from(per_ns), u128::from(burst) * u128::from(per_ns));
        let (mut level, mut last) = (full, 0);
        for (gap, client) in asks {
            now += gap;
            let client = client % clients;
            let yes = taken(&tokens, now, client);
            if yes {
                passed[client as usize].push(now);
            }
            level = (level + u128::from(now - last) * u128::from(count)).min(full);
            last = now;
            // Near to a whole token rounding decides.
            if clients == 1 && level.abs_diff(one) > one / ONE as u128 {
                prop_assert_eq!(yes, level >= one, "at {}", now);
            }
            if clients == 1 && yes {
                level = level.saturating_sub(one);
            }
        }
        for times in &passed {
            for (i, from) in times.iter().enumerate() {
                for (n, until) in times[i..].iter().enumerate() {
                    let come = u128::from(until - from) * u128::from(count);
                    let most = come + full + one / ONE as u128;
                    prop_assert!((n as u128 + 1) * one <= most, "{from} to {until}: {}", n + 1);
                }
            }
        }
    }
}
