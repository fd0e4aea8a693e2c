//! How long packets waited, in buckets of fixed number whose width grows with the time: four in
//! each power of two, so that a quantile is right to an eighth.
//!
//! A leaf notes its last few in one word beside what its packets touch anyway, and counts them
//! together: a table of buckets for each of many classes is in no cache.

use std::ops::AddAssign;

use super::codel::Ticks;
use crate::base::mem::prefetch;

const PER_OCTAVE_BITS: u32 = 2;
const PER_OCTAVE: u32 = 1 << PER_OCTAVE_BITS;
/// Up to 4.5 minutes; the last bucket takes what waited longer.
const BUCKETS: usize = 108;
/// Nanoseconds in a tick.
const TICK_NS: f64 = 1_024.0;

/// Packets by the time they waited.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sojourn {
    buckets: [u32; BUCKETS],
}

/// The buckets of up to eight packets, not counted yet: a byte each, the bucket's number from 1 on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Recent(u64);

const _: () = assert!(BUCKETS < u8::MAX as usize);

impl Recent {
    /// Notes one more. Returns whether there is room for no other: it is to be counted now.
    #[inline(always)]
    pub fn note(&mut self, waited: Ticks) -> bool {
        self.0 = self.0 << u8::BITS | (bucket_of(waited) as u64 + 1);
        self.0 >> (u64::BITS - u8::BITS) != 0
    }

    /// Whether there is room for only two others.
    #[inline(always)]
    pub fn is_nearly_full(self) -> bool {
        self.0 >> (u64::BITS - 3 * u8::BITS) != 0
    }
}

impl Default for Sojourn {
    fn default() -> Sojourn {
        Sojourn { buckets: [0; BUCKETS] }
    }
}

impl Sojourn {
    /// Counts what was noted, and empties it.
    #[inline(never)]
    pub(super) fn record(&mut self, recent: &mut Recent) {
        for number in std::mem::take(recent).0.to_ne_bytes() {
            // 0: none was noted.
            if let Some(at) = usize::from(number).checked_sub(1) {
                let bucket = &mut self.buckets[at.min(BUCKETS - 1)];
                *bucket = bucket.wrapping_add(1);
            }
        }
    }

    /// Asks the cache for what `record` touches, if most waited about as long as the last.
    #[inline(always)]
    pub(super) fn prefetch(&self, recent: Recent) {
        prefetch(&self.buckets, (recent.0 % (1 << u8::BITS)) as usize);
    }

    /// Packets counted.
    pub fn count(&self) -> u64 {
        self.buckets.iter().map(|&n| u64::from(n)).sum()
    }

    /// What was counted since `before`.
    pub fn since(&self, before: &Sojourn) -> Sojourn {
        let mut new = *self;
        for (new, before) in new.buckets.iter_mut().zip(before.buckets) {
            *new = new.wrapping_sub(before);
        }
        new
    }

    /// The time in nanoseconds below which `share` (0 to 1) of the packets waited; 0 without any.
    pub fn quantile_ns(&self, share: f64) -> u64 {
        let rank = (self.count() as f64 * share).ceil().max(1.0) as u64;
        let mut seen = 0;
        for (i, &n) in self.buckets.iter().enumerate() {
            seen += u64::from(n);
            if seen >= rank {
                let (from, to) = (start_of(i), start_of(i + 1));
                return ((from + to) / 2.0 * TICK_NS) as u64;
            }
        }
        0
    }
}

impl AddAssign for Sojourn {
    fn add_assign(&mut self, other: Sojourn) {
        for (a, b) in self.buckets.iter_mut().zip(other.buckets) {
            *a = a.wrapping_add(b);
        }
    }
}

#[inline(always)]
fn bucket_of(waited: Ticks) -> usize {
    let octave = (waited | (PER_OCTAVE - 1)).ilog2() + 1 - PER_OCTAVE_BITS;
    let within = if octave == 0 { waited } else { (waited >> (octave - 1)) & (PER_OCTAVE - 1) };
    ((octave * PER_OCTAVE + within) as usize).min(BUCKETS - 1)
}

/// The shortest time of a bucket, in ticks.
fn start_of(bucket: usize) -> f64 {
    let (octave, within) = (bucket as u32 / PER_OCTAVE, bucket as u32 % PER_OCTAVE);
    if octave == 0 {
        f64::from(within)
    } else {
        f64::from(PER_OCTAVE + within) * f64::from(1 << (octave - 1))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_time_has_its_bucket() {
        for t in (0..2_000u32).chain((1..28).flat_map(|b| [(1 << b) - 1, 1 << b])) {
            let bucket = bucket_of(t);
            assert!(start_of(bucket) <= f64::from(t), "{t}");
            assert!(bucket == BUCKETS - 1 || f64::from(t) < start_of(bucket + 1), "{t}");
        }
        assert_eq!(bucket_of(u32::MAX), BUCKETS - 1);
    }

    #[test]
    fn minutes_are_told_as_such() {
        for seconds in [1u64, 5, 60, 250] {
            let mut waits = Sojourn::default();
            let mut recent = Recent::default();
            let exact = seconds as f64 * 1e9;
            recent.note((exact / TICK_NS) as Ticks);
            waits.record(&mut recent);
            let got = waits.quantile_ns(0.5) as f64;
            assert!((got - exact).abs() <= exact / 8.0, "{seconds} s: {got}");
        }
    }

    #[test]
    fn quantiles_are_right_to_an_eighth() {
        let mut waits = Sojourn::default();
        assert_eq!(waits.quantile_ns(0.5), 0);
        let mut recent = Recent::default();
        for t in 0..100_000 {
            if recent.note(t) {
                assert_eq!(t % 8, 7, "noted eight at a time");
                waits.record(&mut recent);
            }
        }
        assert_eq!((waits.count(), recent), (100_000, Recent::default()));
        for share in [0.01, 0.5, 0.9, 0.99] {
            let exact = 100_000.0 * share * TICK_NS;
            let got = waits.quantile_ns(share) as f64;
            assert!((got - exact).abs() <= exact / 8.0, "{share}: {got}, want {exact}");
        }
        let before = waits;
        assert!(!recent.note(500));
        waits.record(&mut recent);
        assert_eq!(waits.since(&before).count(), 1);
    }
}
