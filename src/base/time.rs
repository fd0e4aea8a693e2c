//! Time as it is passed around: nanoseconds on a monotonic clock whose zero nobody relies on.

use std::ops::{Add, AddAssign, Sub};
use std::time::Duration;

/// A point on the worker's monotonic clock, in nanoseconds.
///
/// Rooms below `worker` never read a clock (invariant 6): they are handed one of these.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Nanos(pub u64);

impl Nanos {
    pub const ZERO: Nanos = Nanos(0);
    pub const MAX: Nanos = Nanos(u64::MAX);

    pub const fn from_micros(us: u64) -> Nanos {
        Nanos(us * 1_000)
    }

    pub const fn from_millis(ms: u64) -> Nanos {
        Nanos(ms * 1_000_000)
    }

    pub const fn from_secs(s: u64) -> Nanos {
        Nanos(s * 1_000_000_000)
    }

    /// Nanoseconds from `earlier` to `self`; 0 when `earlier` is later.
    #[inline]
    pub const fn since(self, earlier: Nanos) -> u64 {
        self.0.saturating_sub(earlier.0)
    }

    #[inline]
    pub const fn saturating_add(self, ns: u64) -> Nanos {
        Nanos(self.0.saturating_add(ns))
    }
}

impl Add<Duration> for Nanos {
    type Output = Nanos;
    fn add(self, d: Duration) -> Nanos {
        self.saturating_add(u64::try_from(d.as_nanos()).unwrap_or(u64::MAX))
    }
}

impl AddAssign<Duration> for Nanos {
    fn add_assign(&mut self, d: Duration) {
        *self = *self + d;
    }
}

impl Sub for Nanos {
    type Output = Duration;
    fn sub(self, other: Nanos) -> Duration {
        Duration::from_nanos(self.since(other))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn since_never_goes_below_zero() {
        assert_eq!(Nanos(5).since(Nanos(9)), 0);
        assert_eq!(Nanos(9).since(Nanos(5)), 4);
    }

    #[test]
    fn adding_saturates() {
        assert_eq!(Nanos(u64::MAX) + Duration::from_secs(1), Nanos::MAX);
        assert_eq!(Nanos::from_secs(1) + Duration::from_millis(5), Nanos(1_005_000_000));
    }
}
