//! Values that only limits have.

use crate::base::tomlfile::Atom;
use crate::base::units::parse_duration;

/// So many times in so many nanoseconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Often {
    pub count: u32,
    pub per_ns: u64,
}

/// Units of time, as they may stand behind the slash.
const UNITS: [(&str, u64); 6] =
    [("s", 1), ("second", 1), ("min", 60), ("minute", 60), ("h", 3_600), ("hour", 3_600)];
const SECOND_NS: u64 = 1_000_000_000;
/// A day.
const PER_SECONDS_MAX: u64 = 86_400;

impl Atom for Often {
    const EXPECTED: &'static str = "how often, such as \"20/s\", \"600/min\" or \"5/10s\"";

    fn from_text(text: &str) -> Result<Often, String> {
        let bad = || format!("`{text}` is not {}", Self::EXPECTED);
        let (count, per) = text.split_once('/').ok_or_else(bad)?;
        let count: u32 = count.trim().parse().map_err(|_| bad())?;
        let per = per.trim();
        let per_ns = match UNITS.iter().find(|(unit, _)| *unit == per) {
            Some((_, seconds)) => seconds * SECOND_NS,
            None => u64::try_from(parse_duration(per).map_err(|_| bad())?.as_nanos())
                .map_err(|_| bad())?,
        };
        if count == 0 {
            return Err(format!("`{text}` lets nothing pass: a rule with `drop` says that"));
        }
        if per_ns == 0 || per_ns > PER_SECONDS_MAX * SECOND_NS {
            return Err(format!("`{text}`: the time is above 0 and up to a day"));
        }
        Ok(Often { count, per_ns })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times() {
        let read = |text| Often::from_text(text).map(|o| (o.count, o.per_ns / 1_000_000));
        assert_eq!(read("20/s"), Ok((20, 1_000)));
        assert_eq!(read("600 / min"), Ok((600, 60_000)));
        assert_eq!(read("1/hour"), Ok((1, 3_600_000)));
        assert_eq!(read("5/10s"), Ok((5, 10_000)));
        assert_eq!(read("1/100ms"), Ok((1, 100)));
        for bad in ["20", "20/", "/s", "-1/s", "2.5/s", "0/s", "1/0s", "1/25h", "20/day", ""] {
            assert!(Often::from_text(bad).is_err(), "{bad}");
        }
    }
}
