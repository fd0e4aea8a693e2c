//! Meters: whether packets keep to a rate, in three colours (RFC 2697 and RFC 2698).
//!
//! A meter is shared by all workers without a lock. Time is taken by whoever advances the clock:
//! what comes between two times is a difference of two sums since 0, so no fraction is ever lost.
//! While one worker adds what has come, another may still find less there; it never finds more.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use super::bucket::Rate;
use crate::base::Nanos;
use crate::base::units::BitRate;

/// How a packet keeps to its rate. The order is that of RFC 2697: from conforming to not.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Colour {
    #[default]
    Green,
    Yellow,
    Red,
}

impl Colour {
    pub const ALL: [Colour; 3] = [Colour::Green, Colour::Yellow, Colour::Red];
}

/// A meter as configured. Rates are in bytes of IP packets, headers included, per second.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct MeterSpec {
    /// Committed information rate.
    pub rate: BitRate,
    /// Committed burst size, in bytes.
    pub burst: u32,
    pub second: Second,
    /// Whether a packet keeps a colour that it comes with, or a worse one.
    pub is_colour_aware: bool,
}

/// What tells yellow from red.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Second {
    /// RFC 2697: an excess burst, in bytes, filled at the same rate once the other is full.
    Excess { burst: u32 },
    /// RFC 2698: a peak rate with a burst of its own, which every packet that passes uses, too.
    Peak { rate: BitRate, burst: u32 },
}

/// The two buckets, full at first. One cache line of its own: workers write to it.
#[derive(Debug)]
#[repr(align(64))]
pub struct Meter {
    /// Up to when tokens have been added.
    filled: AtomicU64,
    /// Tokens, in 2^-20 byte.
    committed: AtomicU64,
    second: AtomicU64,
    rate: Rate,
    peak: Option<Rate>,
    /// Most tokens.
    caps: [u64; 2],
    is_colour_aware: bool,
}

const TOKEN_BITS: u32 = 20;

impl Meter {
    pub fn new(spec: &MeterSpec) -> Meter {
        let (peak, second) = match spec.second {
            Second::Excess { burst } => (None, burst),
            Second::Peak { rate, burst } => (Some(Rate::new(rate)), burst),
        };
        let caps = [tokens(spec.burst), tokens(second)];
        Meter {
            filled: AtomicU64::new(0),
            committed: AtomicU64::new(caps[0]),
            second: AtomicU64::new(caps[1]),
            rate: Rate::new(spec.rate),
            peak,
            caps,
            is_colour_aware: spec.is_colour_aware,
        }
    }

    /// A meter in the place of `old`, with its tokens, as many as there is room for.
    pub fn replacing(spec: &MeterSpec, old: &Meter) -> Meter {
        let new = Meter::new(spec);
        new.filled.store(old.filled.load(Relaxed), Relaxed);
        new.committed.store(old.committed.load(Relaxed).min(new.caps[0]), Relaxed);
        new.second.store(old.second.load(Relaxed).min(new.caps[1]), Relaxed);
        new
    }

    /// The colour of a packet of so many bytes that comes with colour `before`, which only a
    /// colour-aware meter asks for. Red packets use no tokens.
    #[inline]
    pub fn colour(&self, now: Nanos, bytes: u32, before: Colour) -> Colour {
        self.fill(now);
        let before = if self.is_colour_aware { before } else { Colour::Green };
        let cost = tokens(bytes);
        if self.peak.is_some() {
            if before == Colour::Red || !take(&self.second, cost) {
                Colour::Red
            } else if before == Colour::Yellow || !take(&self.committed, cost) {
                Colour::Yellow
            } else {
                Colour::Green
            }
        } else if before == Colour::Green && take(&self.committed, cost) {
            Colour::Green
        } else if before != Colour::Red && take(&self.second, cost) {
            Colour::Yellow
        } else {
            Colour::Red
        }
    }

    /// Adds what has come since the last time, unless another worker is at it.
    #[inline]
    fn fill(&self, now: Nanos) {
        let filled = self.filled.load(Relaxed);
        if now.0 <= filled || self.filled.compare_exchange(filled, now.0, Relaxed, Relaxed).is_err()
        {
            return;
        }
        let over = add(&self.committed, came(self.rate, filled, now.0), self.caps[0]);
        let second = self.peak.map_or(over, |peak| came(peak, filled, now.0));
        if second > 0 {
            add(&self.second, second, self.caps[1]);
        }
    }
}

fn tokens(bytes: u32) -> u64 {
    u64::from(bytes) << TOKEN_BITS
}

/// Tokens that come between two times. Sums of such differences are exact.
#[inline]
fn came(rate: Rate, from: u64, to: u64) -> u64 {
    let sum = |t: u64| rate.tokens_until(t);
    u64::try_from(sum(to).saturating_sub(sum(from))).unwrap_or(u64::MAX)
}

/// Takes all of `cost`, or nothing.
#[inline]
fn take(bucket: &AtomicU64, cost: u64) -> bool {
    bucket.fetch_update(Relaxed, Relaxed, |tokens| tokens.checked_sub(cost)).is_ok()
}

/// Fills up to `cap`; returns what there was no room for.
#[inline]
fn add(bucket: &AtomicU64, more: u64, cap: u64) -> u64 {
    let mut over = 0;
    let _ = bucket.fetch_update(Relaxed, Relaxed, |tokens| {
        let room = cap.saturating_sub(tokens);
        over = more.saturating_sub(room);
        Some(tokens + more.min(room))
    });
    over
}

#[cfg(test)]
mod tests {
    use super::*;
    use Colour::{Green, Red, Yellow};
    use proptest::prelude::*;

    const SECOND: u64 = 1_000_000_000;

    fn single(cir: u64, cbs: u32, ebs: u32, is_colour_aware: bool) -> MeterSpec {
        let second = Second::Excess { burst: ebs };
        MeterSpec { rate: BitRate(cir), burst: cbs, second, is_colour_aware }
    }

    fn two(cir: u64, cbs: u32, pir: u64, pbs: u32, is_colour_aware: bool) -> MeterSpec {
        let second = Second::Peak { rate: BitRate(pir), burst: pbs };
        MeterSpec { rate: BitRate(cir), burst: cbs, second, is_colour_aware }
    }

    fn one_each(spec: &MeterSpec, lengths: &[u32]) -> Vec<Colour> {
        let fresh = |&bytes: &u32| Meter::new(spec).colour(Nanos(0), bytes, Green);
        lengths.iter().map(fresh).collect()
    }

    /// The usual conformance table: each length against full buckets.
    #[test]
    fn lengths_about_the_bursts() {
        let lengths = [2_047, 2_049, 4_095, 4_097];
        let want = [Green, Yellow, Yellow, Red];
        assert_eq!(one_each(&single(46_000_000, 2_048, 4_096, false), &lengths), want);
        assert_eq!(one_each(&two(46_000_000, 2_048, 69_000_000, 4_096, false), &lengths), want);
    }

    #[test]
    fn a_red_packet_uses_nothing_and_a_yellow_one_of_two_rates_only_the_peak() {
        let m = Meter::new(&single(8_000, 1_000, 1_000, false));
        let colours = [900, 900, 900, 100, 100, 1].map(|n| m.colour(Nanos(0), n, Green));
        assert_eq!(colours, [Green, Yellow, Red, Green, Yellow, Red]);
        let m = Meter::new(&two(8_000, 1_000, 8_000, 2_000, false));
        let colours = [1_100, 900, 100].map(|n| m.colour(Nanos(0), n, Green));
        assert_eq!(colours, [Yellow, Green, Red]);
    }

    #[test]
    fn the_excess_fills_only_once_the_committed_bucket_is_full() {
        let m = Meter::new(&single(8_000, 1_000, 500, false)); // 1000 B/s
        assert_eq!([1_000, 500].map(|n| m.colour(Nanos(0), n, Green)), [Green, Yellow]);
        assert_eq!(m.colour(Nanos(SECOND), 1_000, Green), Green);
        assert_eq!(m.colour(Nanos(SECOND), 1, Green), Red);
        assert_eq!(m.colour(Nanos(2 * SECOND + SECOND / 4), 1_001, Green), Red);
        assert_eq!(m.colour(Nanos(2 * SECOND + SECOND / 4), 1_000, Green), Green);
        assert_eq!(m.colour(Nanos(2 * SECOND + SECOND / 4), 250, Green), Yellow);
        assert_eq!(m.colour(Nanos(2 * SECOND + SECOND / 4), 1, Green), Red);
    }

    #[test]
    fn a_clock_that_steps_back_brings_nothing() {
        let m = Meter::new(&single(8_000, 1_000, 0, false));
        assert_eq!(m.colour(Nanos(9 * SECOND), 1_000, Green), Green);
        assert_eq!(m.colour(Nanos(SECOND), 1, Green), Red);
        assert_eq!(m.colour(Nanos(9 * SECOND + SECOND / 10), 100, Green), Green);
        assert_eq!(m.colour(Nanos(9 * SECOND + SECOND / 10), 1, Green), Red);
    }

    #[test]
    fn a_replaced_meter_keeps_its_tokens() {
        let old = Meter::new(&single(8_000, 1_000, 1_000, false));
        assert_eq!(old.colour(Nanos(SECOND), 700, Green), Green);
        let new = Meter::replacing(&single(16_000, 2_000, 100, false), &old);
        assert_eq!(
            [301, 300, 100].map(|n| new.colour(Nanos(SECOND), n, Green)),
            [Red, Green, Yellow]
        );
        assert_eq!(new.colour(Nanos(SECOND + SECOND / 2), 990, Green), Green);
    }

    /// No byte more than the rate gives passes, however many workers ask at once, and none less.
    #[test]
    fn workers_together_get_what_one_would() {
        let m = Meter::new(&single(8_000_000_000, 100_000, 0, false)); // 1 byte a nanosecond
        let end = 20_000_000u64;
        let passed: u64 = std::thread::scope(|scope| {
            let work = |_| {
                let m = &m;
                scope.spawn(move || {
                    let steps = (0..end).step_by(500);
                    let bytes = |now| match m.colour(Nanos(now), 1_000, Green) {
                        Green => 1_000u64,
                        _ => 0,
                    };
                    steps.map(bytes).sum::<u64>()
                })
            };
            let threads: Vec<_> = (0..3).map(work).collect();
            threads.into_iter().map(|t| t.join().expect("ends")).sum()
        });
        assert!(passed <= end + 100_000, "{passed}");
        // At the end all that came and was not used is still there.
        let left = m.committed.load(Relaxed) >> TOKEN_BITS;
        assert!(passed + left >= end - 1_000, "{passed} and {left}");
    }

    /// The RFCs' own words, with tokens as exact fractions: units of 2^-40 byte.
    struct Model {
        spec: MeterSpec,
        now: u64,
        committed: u128,
        second: u128,
    }

    impl Model {
        const ONE: u128 = 1 << 40;

        fn new(spec: MeterSpec) -> Model {
            let (committed, second) = (Model::cap(spec.burst), Model::cap(Model::burst2(&spec)));
            Model { spec, now: 0, committed, second }
        }

        fn burst2(spec: &MeterSpec) -> u32 {
            match spec.second {
                Second::Excess { burst } | Second::Peak { burst, .. } => burst,
            }
        }

        fn cap(bytes: u32) -> u128 {
            u128::from(bytes) * Model::ONE
        }

        fn came(rate: BitRate, ns: u64) -> u128 {
            u128::from(rate.0) * u128::from(ns) * Model::ONE / 8_000_000_000
        }

        fn fill(&mut self, now: u64) {
            let ns = now - self.now;
            self.now = now;
            let caps = [Model::cap(self.spec.burst), Model::cap(Model::burst2(&self.spec))];
            let committed = self.committed + Model::came(self.spec.rate, ns);
            self.committed = committed.min(caps[0]);
            let second = match self.spec.second {
                Second::Excess { .. } => committed - self.committed,
                Second::Peak { rate, .. } => Model::came(rate, ns),
            };
            self.second = (self.second + second).min(caps[1]);
        }

        /// `None` where a bucket is so near the packet's length that rounding decides.
        fn colour(&mut self, now: u64, bytes: u32, before: Colour) -> Option<Colour> {
            self.fill(now);
            let b = Model::cap(bytes);
            let near = |t: u128| t.abs_diff(b) < Model::ONE / 64;
            if near(self.committed) || near(self.second) {
                return None;
            }
            let before = if self.spec.is_colour_aware { before } else { Green };
            let colour = match self.spec.second {
                Second::Excess { .. } if before == Green && self.committed >= b => Green,
                Second::Excess { .. } if before != Red && self.second >= b => Yellow,
                Second::Excess { .. } => Red,
                Second::Peak { .. } if before == Red || self.second < b => Red,
                Second::Peak { .. } if before == Yellow || self.committed < b => Yellow,
                Second::Peak { .. } => Green,
            };
            let is_two = matches!(self.spec.second, Second::Peak { .. });
            if colour == Green {
                self.committed -= b;
            }
            if colour == Yellow || (colour == Green && is_two) {
                self.second -= b;
            }
            Some(colour)
        }
    }

    fn specs() -> impl Strategy<Value = MeterSpec> {
        let rates = 1_000u64..10_000_000_000;
        let bursts = || 0u32..100_000;
        (rates.clone(), rates, bursts(), bursts(), any::<bool>(), any::<bool>()).prop_map(
            |(cir, pir, cbs, other, aware, is_two)| match is_two {
                true => two(cir.min(pir), cbs, cir.max(pir), other, aware),
                false => single(cir, cbs, other, aware),
            },
        )
    }

    proptest! {
        #[test]
        fn colours_are_those_of_the_rfcs(
            spec in specs(),
            packets in prop::collection::vec((0u64..200_000, 40u32..9_000, 0usize..3), 1..400),
        ) {
            let (meter, mut model, mut now) = (Meter::new(&spec), Model::new(spec), 0);
            for (gap, bytes, before) in packets {
                now += gap;
                let before = Colour::ALL[before];
                let Some(want) = model.colour(now, bytes, before) else { return Ok(()) };
                prop_assert_eq!(meter.colour(Nanos(now), bytes, before), want);
            }
        }
    }
}
