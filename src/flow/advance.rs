//! How far a client's streams on one flow have gone on through the numbers of TCP, beginning after
//! beginning.

use super::table::tick;
use crate::base::Nanos;

/// Bits of the numbers that are not kept.
const UNIT_BITS: u32 = 12;
/// What is forgotten with each tick, sixteen a second: 2^24 numbers a second, a little more than
/// the clocks pass that hosts begin their streams by (RFC 9293, section 3.4.1; Linux passes 15.6
/// million).
const UNITS_PER_TICK: u32 = 1 << (20 - UNIT_BITS);
/// Half of all numbers: no single step is longer.
const UNITS_MAX: u32 = 1 << (31 - UNIT_BITS);
/// When all of it is forgotten: after 128 s.
const TICKS_MAX: u32 = UNITS_MAX / UNITS_PER_TICK;
/// Bits of the time that are kept: after longer times too little is forgotten, never too much.
const TICK_BITS: u32 = UNIT_BITS;

const _: () = assert!(TICKS_MAX < 1 << TICK_BITS);

/// Steps from where streams end to where the next ones begin, and what these carry, less what
/// clocks have passed meanwhile. Streams that begin by a clock never run out of room; those that
/// are to go once around all numbers, to where a server still stands, take two minutes at least.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Advance {
    /// Numbers, rounded up, above the tick when that was.
    pub(super) packed: u32,
}

impl Advance {
    /// After this stream's `bytes`, and a `step` to where the next one begins. `None`: too far.
    pub fn to(self, now: Nanos, bytes: u32, step: u32) -> Option<Advance> {
        let units = self.units(now, bytes) + step.div_ceil(1 << UNIT_BITS);
        (units <= UNITS_MAX).then(|| Advance::new(units, now))
    }

    /// After `bytes` of this stream, which goes on.
    #[must_use]
    pub fn after(self, now: Nanos, bytes: u32) -> Advance {
        Advance::new(self.units(now, bytes), now)
    }

    /// Whether this stream may go on behind so many bytes.
    pub fn has_room(self, now: Nanos, bytes: u32) -> bool {
        self.is_over(now) || self.units(now, bytes) <= UNITS_MAX
    }

    /// Whether what was before this stream is forgotten, however much it carries.
    pub fn is_over(self, now: Nanos) -> bool {
        self.ticks(now) >= TICKS_MAX
    }

    fn new(units: u32, now: Nanos) -> Advance {
        let units = units.min(u32::MAX >> TICK_BITS);
        Advance { packed: (units << TICK_BITS) | (tick(now) % (1 << TICK_BITS)) }
    }

    fn units(self, now: Nanos, bytes: u32) -> u32 {
        let sum = (self.packed >> TICK_BITS) + bytes.div_ceil(1 << UNIT_BITS);
        sum.saturating_sub(self.ticks(now) * UNITS_PER_TICK)
    }

    fn ticks(self, now: Nanos) -> u32 {
        tick(now).wrapping_sub(self.packed) % (1 << TICK_BITS)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const STEP: u32 = (1 << 31) - 1;

    fn at(ms: u64) -> Nanos {
        Nanos::from_secs(70_000).saturating_add(ms * 1_000_000)
    }

    #[test]
    fn once_around_takes_two_minutes() {
        let first = Advance::default().to(at(0), 0, STEP).expect("one step, as any");
        assert_eq!(first.to(at(0), 0, 2), None);
        assert_eq!(first.to(at(0), 2, 0), None, "bytes are numbers, too");
        assert_eq!(first.to(at(126_000), 0, STEP), None);
        assert!(first.to(at(128_000), 0, STEP).is_some());
        // Neither in small steps: numbers that are gone through in so many milliseconds.
        for (step, every_ms) in [(1 << 29, 0), (1 << 20, 0), (1 << 20, 20), (70_000, 0)] {
            let (mut advance, mut sum, mut now) = (Advance::default(), 0_u64, 0);
            while let Some(next) = advance.to(at(now), 0, step) {
                (advance, sum, now) = (next, sum + u64::from(step), now + every_ms);
                assert!(sum <= (1 << 31) + (now << 24) / 1_000, "{step} every {every_ms} ms");
            }
            assert!(sum < 1 << 32);
        }
    }

    #[test]
    fn streams_that_begin_by_a_clock_always_have_room() {
        for every_ms in [1_u64, 10, 999, 30_000, 137_000] {
            let mut advance = Advance::default();
            for n in 0..10_000 {
                let step = (every_ms * 15_625) as u32;
                let next = advance.to(at(n * every_ms), 0, step);
                advance = next.unwrap_or_else(|| panic!("after {n} times {every_ms} ms"));
            }
        }
    }

    #[test]
    fn a_stream_may_carry_all_that_it_likes_once_what_was_before_is_forgotten() {
        let advance = Advance::default().to(at(0), 0, 1).expect("near");
        assert!(advance.has_room(at(0), (1 << 31) - (1 << 16)));
        assert!(!advance.has_room(at(0), 1 << 31) && !advance.has_room(at(100_000), u32::MAX));
        assert!(advance.has_room(at(127_000), 1 << 31), "not faster than a clock");
        assert!(advance.has_room(at(128_000), u32::MAX));
        // What it has carried counts where another one begins, or when it is read on.
        assert_eq!(advance.to(at(0), 1 << 31, 1), None);
        assert!(!advance.after(at(1_000), 1 << 31).has_room(at(1_000), 1 << 24));
        assert!(!advance.after(at(0), u32::MAX).has_room(at(100_000), 0));
    }
}
