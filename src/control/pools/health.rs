//! Whether a backend is well, by what its checks found: pure, told the time.

use std::time::Duration;

use super::rtt::Rtt;
use crate::base::Nanos;
use crate::config::health::HealthSpec;

/// A backend that flaps needs its `rise` this often doubled at most.
const DOUBLINGS_MAX: u32 = 4;
/// Share of its weight that a backend begins its return with, in hundredths.
const RETURN_SHARE_MIN: u64 = 10;
/// A whole weight, in hundredths.
pub const WHOLE: u32 = 100;

/// One backend's state.
///
/// It is taken to be well until its first check. Where that fails it is out at once: nothing has
/// shown yet that it ever served.
#[derive(Clone, Debug)]
pub struct Health {
    up: bool,
    /// Checks in a row that contradict `up`.
    against: u32,
    /// When `up` changed; `None`: never.
    changed: Option<Nanos>,
    /// Since when its weight grows; `None`: it has the whole.
    eased: Option<Nanos>,
    /// It has come by a reload, and was not checked yet.
    is_new: bool,
    /// Falls, each soon after the return before.
    flaps: u32,
    pub checks: u64,
    pub failures: u64,
    /// Of the last check that failed.
    pub error: Option<String>,
    pub rtt: Rtt,
}

/// What a check has changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    Down,
    Up,
}

impl Default for Health {
    fn default() -> Health {
        Health {
            up: true,
            against: 0,
            changed: None,
            eased: None,
            is_new: false,
            flaps: 0,
            checks: 0,
            failures: 0,
            error: None,
            rtt: Rtt::default(),
        }
    }
}

impl Health {
    /// Of one that a reload brings: its weight grows as after a return, from its first check on.
    pub fn newcomer() -> Health {
        Health { is_new: true, ..Health::default() }
    }

    pub fn is_up(&self) -> bool {
        self.up
    }

    /// It gets flows again that it did not get for another reason than its checks.
    pub fn ease(&mut self, now: Nanos) {
        self.eased = Some(now);
    }

    /// When it was taken out or came back last.
    pub fn changed(&self) -> Option<Nanos> {
        self.changed
    }

    /// Falls that count against its return.
    pub fn flaps(&self) -> u32 {
        self.flaps
    }

    /// Takes in what a check found.
    pub fn take(
        &mut self,
        now: Nanos,
        spec: &HealthSpec,
        found: Result<(), String>,
    ) -> Option<Change> {
        let first = self.checks == 0;
        self.checks += 1;
        let well = found.is_ok();
        if std::mem::take(&mut self.is_new) {
            self.eased = Some(now);
        }
        if let Err(error) = found {
            self.failures += 1;
            self.error = Some(error);
        }
        if well == self.up {
            self.against = 0;
            self.forgive(now, spec);
            return None;
        }
        self.against += 1;
        let needed = match self.up {
            true if first => 1,
            true => spec.fall,
            false => self.rise_needed(spec),
        };
        if self.against < needed {
            return None;
        }
        if self.up && self.soon_after_return(now, spec) {
            self.flaps += 1;
        }
        self.up = well;
        self.against = 0;
        self.changed = Some(now);
        self.eased = Some(now);
        Some(if well { Change::Up } else { Change::Down })
    }

    /// Its share of its weight at this time, in hundredths: less while it has just returned, or
    /// come.
    pub fn share(&self, now: Nanos, spec: &HealthSpec) -> u32 {
        let since = if self.is_new { Some(now) } else { self.eased };
        let Some(since) = since.filter(|_| self.up) else { return WHOLE };
        let (age, ramp) = (now.since(since), nanos(spec.slow_start));
        if age >= ramp {
            return WHOLE;
        }
        let grown = u128::from(WHOLE) * u128::from(age) / u128::from(ramp);
        (grown as u64).clamp(RETURN_SHARE_MIN, u64::from(WHOLE)) as u32
    }

    /// Checks in a row that bring it back.
    fn rise_needed(&self, spec: &HealthSpec) -> u32 {
        spec.rise.saturating_mul(1 << self.flaps.min(DOUBLINGS_MAX))
    }

    fn soon_after_return(&self, now: Nanos, spec: &HealthSpec) -> bool {
        self.changed.is_some_and(|at| now.since(at) < nanos(spec.flap_window))
    }

    /// What has been well for long enough is forgiven its falls.
    fn forgive(&mut self, now: Nanos, spec: &HealthSpec) {
        if self.up && !self.soon_after_return(now, spec) {
            self.flaps = 0;
        }
    }
}

fn nanos(d: Duration) -> u64 {
    u64::try_from(d.as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::health::Check;

    const SECOND: u64 = 1_000_000_000;

    fn spec() -> HealthSpec {
        HealthSpec {
            check: Check::Tcp,
            port: None,
            interval: Duration::from_secs(1),
            timeout: Duration::from_secs(1),
            rise: 2,
            fall: 3,
            jitter_percent: 0,
            slow_start: Duration::from_secs(10),
            flap_window: Duration::from_secs(30),
        }
    }

    /// Checks a second apart, `+` well and `-` not; what each changed, `.` nothing.
    fn told(health: &mut Health, from: u64, checks: &str) -> String {
        let mut out = String::new();
        for (at, check) in (from..).zip(checks.chars()) {
            let found = if check == '+' { Ok(()) } else { Err("refused".to_string()) };
            out.push(match health.take(Nanos(at * SECOND), &spec(), found) {
                Some(Change::Up) => 'U',
                Some(Change::Down) => 'D',
                None => '.',
            });
        }
        out
    }

    #[test]
    fn it_falls_and_rises_by_checks_in_a_row() {
        let mut h = Health::default();
        assert_eq!(told(&mut h, 0, "+--+---"), "......D");
        assert_eq!((h.checks, h.failures, h.is_up()), (7, 5, false));
        assert_eq!(h.error.as_deref(), Some("refused"));
        assert_eq!(told(&mut h, 7, "+-++"), "...U");
    }

    #[test]
    fn the_first_check_counts_for_all() {
        let mut h = Health::default();
        assert_eq!(told(&mut h, 0, "-++"), "D.U");
    }

    #[test]
    fn who_flaps_waits_twice_as_long_each_time_and_is_forgiven() {
        let mut h = Health::default();
        assert_eq!(told(&mut h, 0, "+---++"), "...D.U");
        assert_eq!(told(&mut h, 6, "---++++"), "..D...U", "four instead of two");
        assert_eq!(told(&mut h, 13, "---++++++++"), "..D.......U", "eight");
        assert_eq!(h.flaps(), 2);
        assert_eq!(told(&mut h, 24, &"+".repeat(31)), ".".repeat(31));
        assert_eq!(h.flaps(), 0);
        assert_eq!(told(&mut h, 60, "---++"), "..D.U");
    }

    #[test]
    fn weights_grow_after_a_return_only() {
        let mut h = Health::default();
        let at = |h: &Health, secs: u64| h.share(Nanos(secs * SECOND), &spec());
        assert_eq!(at(&h, 0), WHOLE);
        assert_eq!(told(&mut h, 0, "-++"), "D.U");
        assert_eq!([2, 3, 7, 11, 12, 99].map(|s| at(&h, s)), [10, 10, 50, 90, 100, 100]);
    }
}
