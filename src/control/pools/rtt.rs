//! A backend's round trip, as its checks' connections show it.

use std::time::Duration;

/// Round trips whose least is told.
const WINDOW: usize = 16;
/// A connection that took as long may have sent its SYN again, whose answer says nothing (RFC 6298
/// section 3, with the initial timeout of section 2).
const MEASURED_MAX: Duration = Duration::from_secs(1);

/// Round trips from SYN to SYN-ACK.
#[derive(Clone, Debug, Default)]
pub struct Rtt {
    /// SRTT of RFC 6298 section 2.
    smoothed: Duration,
    /// The last ones, the next at `taken % WINDOW`.
    window: [Duration; WINDOW],
    taken: usize,
}

impl Rtt {
    /// Takes in how long a connection took to be there.
    pub fn take(&mut self, measured: Duration) {
        if measured >= MEASURED_MAX {
            return;
        }
        self.smoothed = match self.taken {
            0 => measured,
            // alpha = 1/8.
            _ => (self.smoothed * 7 + measured) / 8,
        };
        self.window[self.taken % WINDOW] = measured;
        self.taken += 1;
    }

    /// `None` before the first one.
    pub fn smoothed(&self) -> Option<Duration> {
        (self.taken > 0).then_some(self.smoothed)
    }

    /// The least of the last ones.
    pub fn least(&self) -> Option<Duration> {
        self.window.iter().take(self.taken).min().copied()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    #[test]
    fn round_trips_are_smoothed_as_tcp_does_and_the_least_is_of_late() {
        let mut rtt = Rtt::default();
        assert_eq!((rtt.smoothed(), rtt.least()), (None, None));
        rtt.take(ms(1_000));
        assert_eq!(rtt.smoothed(), None, "its SYN may have been sent twice");
        rtt.take(ms(8));
        assert_eq!((rtt.smoothed(), rtt.least()), (Some(ms(8)), Some(ms(8))));
        rtt.take(ms(16));
        assert_eq!((rtt.smoothed(), rtt.least()), (Some(ms(9)), Some(ms(8))));
        (0..WINDOW - 1).for_each(|_| rtt.take(ms(20)));
        assert_eq!(rtt.least(), Some(ms(16)));
        rtt.take(ms(20));
        assert_eq!(rtt.least(), Some(ms(20)));
        assert!((ms(18)..ms(20)).contains(&rtt.smoothed().expect("known")));
    }
}
