//! Times at which rules apply: hours of weekdays, by the clock of a time zone.
//!
//! Pure: the control plane says what time it is.

use std::sync::atomic::{AtomicBool, Ordering};

use jiff::Timestamp;
use jiff::civil::Weekday;
use jiff::tz::TimeZone;

const DAY_MINUTES: u16 = 24 * 60;

/// A time zone of the IANA database, such as `Europe/Berlin`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Zone(String);

/// Weekdays: bit 0 is Monday.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Weekdays(pub u8);

/// From one minute of the day to before another. Where they go over midnight they belong to the
/// day on which they begin; where both are the same, they are a whole day.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hours {
    pub from: u16,
    pub to: u16,
}

/// When a rule applies.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TimeSpec {
    pub zone: Zone,
    pub days: Weekdays,
    pub hours: Vec<Hours>,
}

impl Zone {
    /// `None`: there is no such zone.
    pub fn new(name: &str) -> Option<Zone> {
        TimeZone::get(name).ok().map(|_| Zone(name.to_owned()))
    }

    fn time_zone(&self) -> TimeZone {
        TimeZone::get(&self.0).unwrap_or(TimeZone::UTC)
    }
}

impl Weekdays {
    pub const ALL: Weekdays = Weekdays(0x7f);
    const NAMES: [&str; 7] = ["mon", "tue", "wed", "thu", "fri", "sat", "sun"];

    /// A day, or a range of days that may go over Sunday: `mon`, `mon-fri`, `sat-mon`.
    pub fn parse(text: &str) -> Option<Weekdays> {
        let lower = text.to_ascii_lowercase();
        let number = |name: &str| Weekdays::NAMES.iter().position(|n| *n == name.trim());
        let Some((first, last)) = lower.split_once('-') else {
            return Some(Weekdays(1 << number(&lower)?));
        };
        let (first, last) = (number(first)?, number(last)?);
        let count = (last + 7 - first) % 7 + 1;
        Some(Weekdays((0..count).fold(0, |bits, i| bits | 1 << ((first + i) % 7))))
    }

    /// Those of either.
    pub fn or(self, other: Weekdays) -> Weekdays {
        Weekdays(self.0 | other.0)
    }

    fn has(self, day: u8) -> bool {
        self.0 >> day & 1 != 0
    }
}

impl Hours {
    /// `08:00-18:00`, `22:00-06:00`, `00:00-24:00`.
    pub fn parse(text: &str) -> Option<Hours> {
        let minute = |text: &str| {
            let (hours, minutes) = text.trim().split_once(':')?;
            let two =
                |digits: &str| digits.len() == 2 && digits.bytes().all(|b| b.is_ascii_digit());
            let (h, m): (u16, u16) = (hours.parse().ok()?, minutes.parse().ok()?);
            let at = h * 60 + m;
            (two(hours) && two(minutes) && m < 60 && at <= DAY_MINUTES).then_some(at)
        };
        let (from, to) = text.split_once('-')?;
        let (from, to) = (minute(from)?, minute(to)?);
        (from < DAY_MINUTES).then_some(Hours { from, to: to % DAY_MINUTES })
    }

    fn minutes(self) -> u16 {
        let length = (self.to + DAY_MINUTES - self.from) % DAY_MINUTES;
        if length == 0 { DAY_MINUTES } else { length }
    }

    /// Minutes since it began, seen so many days after the day on which it begins.
    fn since(self, minute: u16, days_later: u16) -> Option<u16> {
        let since = (minute + days_later * DAY_MINUTES).checked_sub(self.from)?;
        (since < self.minutes()).then_some(since)
    }
}

impl TimeSpec {
    /// Whether it applies at this moment, in seconds since 1970 (UTC).
    pub fn holds_at(&self, unix_seconds: i64) -> bool {
        self.holds_in(&self.zone.time_zone(), unix_seconds)
    }

    fn holds_in(&self, zone: &TimeZone, unix_seconds: i64) -> bool {
        let Ok(now) = Timestamp::from_second(unix_seconds) else { return false };
        let now = now.to_zoned(zone.clone());
        let today = day_number(now.weekday());
        let minute = u16::from(now.hour().unsigned_abs()) * 60;
        let minute = minute + u16::from(now.minute().unsigned_abs());
        let begun = |later: u16| {
            let day = (today + 7 - later as u8) % 7;
            self.days.has(day) && self.hours.iter().any(|h| h.since(minute, later).is_some())
        };
        begun(0) || begun(1)
    }

    /// Two of its hours that overlap on some day, by their places in the list.
    pub fn overlap(&self) -> Option<(usize, usize)> {
        let all = || self.hours.iter().enumerate();
        all().find_map(|(i, a)| {
            let later = all().skip(i + 1);
            later.map(|(j, b)| (i, j, *b)).find_map(|(i, j, b)| overlaps(*a, b).then_some((i, j)))
        })
    }
}

/// Whether they meet on the clock's face: then they do so on some day of any that repeat.
fn overlaps(a: Hours, b: Hours) -> bool {
    let ahead = |x: Hours, y: Hours| (y.from + DAY_MINUTES - x.from) % DAY_MINUTES;
    ahead(a, b) < a.minutes() || ahead(b, a) < b.minutes()
}

fn day_number(day: Weekday) -> u8 {
    day.to_monday_zero_offset().unsigned_abs()
}

/// The times that rules name, each with a flag that says whether it applies now. Workers read the
/// flags; the control plane sets them.
#[derive(Default)]
pub struct Schedule {
    times: Vec<(TimeSpec, TimeZone)>,
    holds: Vec<AtomicBool>,
}

impl Schedule {
    /// The number of a time, a new one where it was not known.
    pub fn add(&mut self, time: &TimeSpec) -> u16 {
        let known = self.times.iter().position(|(known, _)| known == time);
        let at = known.unwrap_or_else(|| {
            self.times.push((time.clone(), time.zone.time_zone()));
            self.holds.push(AtomicBool::new(false));
            self.times.len() - 1
        });
        at as u16
    }

    /// Sets all flags for this moment, in seconds since 1970 (UTC).
    pub fn set_time(&self, unix_seconds: i64) {
        for ((time, zone), holds) in self.times.iter().zip(&self.holds) {
            holds.store(time.holds_in(zone, unix_seconds), Ordering::Relaxed);
        }
    }

    #[inline]
    pub fn holds(&self, number: u16) -> bool {
        let flag = self.holds.get(usize::from(number));
        flag.is_some_and(|holds| holds.load(Ordering::Relaxed))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(zone: &str, days: &str, hours: &[&str]) -> TimeSpec {
        TimeSpec {
            zone: Zone::new(zone).expect(zone),
            days: Weekdays::parse(days).expect(days),
            hours: hours.iter().map(|h| Hours::parse(h).expect(h)).collect(),
        }
    }

    fn at(time: &str) -> i64 {
        time.parse::<Timestamp>().expect(time).as_second()
    }

    #[test]
    fn hours_are_those_of_the_zone_summer_and_winter() {
        let office = spec("Europe/Berlin", "mon-fri", &["08:00-18:00"]);
        // Wednesdays; UTC+1 and UTC+2.
        for (time, want) in [
            ("2026-01-14T06:59:59Z", false),
            ("2026-01-14T07:00:00Z", true),
            ("2026-01-14T16:59:59Z", true),
            ("2026-01-14T17:00:00Z", false),
            ("2026-07-15T05:59:59Z", false),
            ("2026-07-15T06:00:00Z", true),
            ("2026-07-15T16:00:00Z", false),
            ("2026-07-18T09:00:00Z", false),
        ] {
            assert_eq!(office.holds_at(at(time)), want, "{time}");
        }
    }

    #[test]
    fn hours_over_midnight_belong_to_the_day_they_begin_on() {
        let night = spec("UTC", "fri", &["22:00-06:00"]);
        for (time, want) in [
            ("2026-01-16T21:59:00Z", false),
            ("2026-01-16T22:00:00Z", true),
            ("2026-01-17T05:59:59Z", true),
            ("2026-01-17T06:00:00Z", false),
            ("2026-01-16T02:00:00Z", false),
            ("2026-01-17T22:30:00Z", false),
        ] {
            assert_eq!(night.holds_at(at(time)), want, "{time}");
        }
        let whole = spec("UTC", "sat-mon", &["00:00-24:00"]);
        assert!(whole.holds_at(at("2026-01-18T23:59:59Z")));
        assert!(whole.holds_at(at("2026-01-19T12:00:00Z")));
        assert!(!whole.holds_at(at("2026-01-20T00:00:00Z")));
    }

    #[test]
    fn what_is_no_time() {
        for bad in ["8:00-18:00", "08:00", "08:60-09:00", "24:00-08:00", "08:00-24:01", "a-b", ""] {
            assert_eq!(Hours::parse(bad), None, "{bad}");
        }
        for bad in ["", "monday", "mon-", "-fri", "mon-tue-wed"] {
            assert_eq!(Weekdays::parse(bad), None, "{bad}");
        }
        assert_eq!(Zone::new("Europe/Nowhere"), None);
        assert_eq!(Weekdays::parse("Sun-Tue"), Some(Weekdays(0b100_0011)));
    }

    #[test]
    fn overlaps_are_found_over_midnight_too() {
        let overlap = |hours: &[&str]| spec("UTC", "mon", hours).overlap();
        assert_eq!(overlap(&["08:00-12:00", "12:00-18:00", "18:00-08:00"]), None);
        assert_eq!(overlap(&["08:00-12:00", "11:59-18:00"]), Some((0, 1)));
        assert_eq!(overlap(&["09:00-10:00", "22:00-06:00", "05:00-06:30"]), Some((1, 2)));
        assert_eq!(overlap(&["00:00-24:00", "10:00-11:00"]), Some((0, 1)));
    }

    #[test]
    fn flags_follow_the_time_that_is_told() {
        let mut schedule = Schedule::default();
        let (day, night) =
            (spec("UTC", "mon", &["08:00-18:00"]), spec("UTC", "mon", &["18:00-08:00"]));
        assert_eq!([&day, &night, &day].map(|t| schedule.add(t)), [0, 1, 0]);
        assert!(!schedule.holds(0) && !schedule.holds(7));
        schedule.set_time(at("2026-01-19T08:00:00Z"));
        assert!(schedule.holds(0) && !schedule.holds(1));
        schedule.set_time(at("2026-01-19T20:00:00Z"));
        assert!(!schedule.holds(0) && schedule.holds(1));
    }
}
