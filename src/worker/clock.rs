//! The clock of all workers of a process.

use crate::base::Nanos;

/// The processor's time stamp counter, scaled to nanoseconds. Read by the outermost loops only; the
/// rooms below are handed what it said.
#[derive(Clone, Debug)]
pub struct Clock {
    clock: quanta::Clock,
    start: u64,
}

/// What the clock shows when it is made: so that "a while ago" is above zero.
const START: Nanos = Nanos::from_secs(1);

impl Clock {
    /// Calibrates against the kernel's monotonic clock; takes some milliseconds the first time.
    pub fn new() -> Clock {
        let clock = quanta::Clock::new();
        let start = clock.raw();
        Clock { clock, start }
    }

    #[inline]
    pub fn now(&self) -> Nanos {
        START.saturating_add(self.clock.delta_as_nanos(self.start, self.clock.raw()))
    }
}

impl Default for Clock {
    fn default() -> Clock {
        Clock::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn time_goes_on_at_the_usual_pace() {
        let clock = Clock::new();
        let (a, wall) = (clock.now(), std::time::Instant::now());
        assert!(a >= START);
        std::thread::sleep(std::time::Duration::from_millis(20));
        let (b, wall) = (clock.clone().now().since(a), wall.elapsed().as_nanos() as u64);
        assert!(b > wall / 2 && b < wall * 2, "{b} ns of {wall}");
    }
}
