//! Quantities as operators write them: rates, sizes and durations with their units.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

/// A rate in bits per second. Written `100Mbit/s`, `2.5Gbit`, `64kbit/s` or `800 bit/s` (SI steps
/// of 1000).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct BitRate(pub u64);

impl BitRate {
    pub const fn bits_per_sec(self) -> u64 {
        self.0
    }

    pub const fn bytes_per_sec(self) -> u64 {
        self.0 / 8
    }
}

/// Splits `12.5Mbit` into the number and its unit.
fn number_and_unit(s: &str) -> Result<(f64, &str), String> {
    let s = s.trim();
    let cut = s.find(|c: char| !(c.is_ascii_digit() || c == '.')).unwrap_or(s.len());
    let n: f64 = s[..cut].parse().map_err(|_| format!("`{s}` does not begin with a number"))?;
    Ok((n, s[cut..].trim()))
}

impl FromStr for BitRate {
    type Err = String;
    fn from_str(s: &str) -> Result<BitRate, String> {
        let (n, unit) = number_and_unit(s)?;
        let unit = unit.strip_suffix("/s").unwrap_or(unit);
        let scale = match unit {
            "bit" => 1.0,
            "kbit" | "Kbit" => 1e3,
            "Mbit" => 1e6,
            "Gbit" => 1e9,
            "Tbit" => 1e12,
            _ => {
                return Err(format!(
                    "`{s}` is not a rate: write it with one of bit, kbit, Mbit, Gbit, Tbit, \
                     as in \"100Mbit/s\""
                ));
            }
        };
        let bits = n * scale;
        if !(1.0..=1e15).contains(&bits) {
            return Err(format!("`{s}` is outside 1 bit/s to 1000 Tbit/s"));
        }
        Ok(BitRate(bits.round() as u64))
    }
}

impl fmt::Display for BitRate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let b = self.0;
        for (unit, scale) in [("Tbit/s", 1e12), ("Gbit/s", 1e9), ("Mbit/s", 1e6), ("kbit/s", 1e3)] {
            if b as f64 >= scale {
                return write!(f, "{}{unit}", trim(b as f64 / scale));
            }
        }
        write!(f, "{b}bit/s")
    }
}

/// Two decimals at most, none that are zero.
fn trim(v: f64) -> String {
    let s = format!("{v:.2}");
    s.trim_end_matches('0').trim_end_matches('.').to_string()
}

/// A size in bytes. Written `1500`, `64KiB`, `2MiB`, `1GiB`, or with SI steps `64kB`, `1MB`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ByteSize(pub u64);

impl FromStr for ByteSize {
    type Err = String;
    fn from_str(s: &str) -> Result<ByteSize, String> {
        let (n, unit) = number_and_unit(s)?;
        let scale = match unit {
            "" | "B" => 1.0,
            "kB" | "KB" => 1e3,
            "MB" => 1e6,
            "GB" => 1e9,
            "KiB" => 1024.0,
            "MiB" => 1024.0 * 1024.0,
            "GiB" => 1024.0 * 1024.0 * 1024.0,
            _ => {
                return Err(format!(
                    "`{s}` is not a size: write bytes, or use KiB, MiB, GiB, kB, MB, GB"
                ));
            }
        };
        let bytes = n * scale;
        if bytes > 1e15 {
            return Err(format!("`{s}` is over 1000 TB"));
        }
        Ok(ByteSize(bytes.round() as u64))
    }
}

impl fmt::Display for ByteSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let b = self.0;
        for (unit, shift) in [("GiB", 30), ("MiB", 20), ("KiB", 10)] {
            if b >= 1 << shift {
                return write!(f, "{}{unit}", trim(b as f64 / (1u64 << shift) as f64));
            }
        }
        write!(f, "{b}B")
    }
}

/// Parses `500us`, `20ms`, `30s`, `5min`, `2h`, `1d`, and sums such as `2h 4min`.
///
/// # Errors
/// No number, an unknown unit, or a sum beyond ten years.
pub fn parse_duration(s: &str) -> Result<Duration, String> {
    const TEN_YEARS_S: f64 = 10.0 * 366.0 * 86_400.0;
    let bad = || {
        format!(
            "`{s}` is not a duration: write it as in \"20ms\", \"30s\", \"5min\" or \"2h 4min\""
        )
    };
    let mut total_s = 0.0;
    let mut rest = s.trim();
    if rest.is_empty() {
        return Err(bad());
    }
    while !rest.is_empty() {
        let cut = rest.find(|c: char| !(c.is_ascii_digit() || c == '.')).ok_or_else(bad)?;
        let n: f64 = rest[..cut].parse().map_err(|_| bad())?;
        rest = rest[cut..].trim_start();
        let end = rest.find(|c: char| !c.is_ascii_alphabetic()).unwrap_or(rest.len());
        let scale = match &rest[..end] {
            "ns" => 1e-9,
            "us" => 1e-6,
            "ms" => 1e-3,
            "s" => 1.0,
            "m" | "min" => 60.0,
            "h" => 3_600.0,
            "d" => 86_400.0,
            _ => return Err(bad()),
        };
        total_s += n * scale;
        rest = rest[end..].trim_start();
    }
    if total_s > TEN_YEARS_S {
        return Err(format!("`{s}` is over ten years"));
    }
    Ok(Duration::from_nanos((total_s * 1e9).round() as u64))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates() {
        assert_eq!("100Mbit/s".parse(), Ok(BitRate(100_000_000)));
        assert_eq!("2.5 Gbit".parse(), Ok(BitRate(2_500_000_000)));
        assert_eq!("800bit/s".parse(), Ok(BitRate(800)));
        for bad in ["", "fast", "100", "100Mb", "-1Mbit", "0bit", "1e9Gbit"] {
            assert!(bad.parse::<BitRate>().is_err(), "{bad}");
        }
        assert_eq!(BitRate(2_500_000_000).to_string(), "2.5Gbit/s");
        assert_eq!(BitRate(999).to_string(), "999bit/s");
    }

    #[test]
    fn sizes() {
        assert_eq!("1500".parse(), Ok(ByteSize(1500)));
        assert_eq!("64KiB".parse(), Ok(ByteSize(65_536)));
        assert_eq!("1.5MB".parse(), Ok(ByteSize(1_500_000)));
        assert!("64kb".parse::<ByteSize>().is_err());
        assert_eq!(ByteSize(65_536).to_string(), "64KiB");
    }

    #[test]
    fn durations() {
        assert_eq!(parse_duration("2h 4min"), Ok(Duration::from_secs(7_440)));
        assert_eq!(parse_duration("500us"), Ok(Duration::from_micros(500)));
        assert_eq!(parse_duration("1.5s"), Ok(Duration::from_millis(1_500)));
        for bad in ["", "5", "5 parsecs", "s", "99999d 99999d"] {
            assert!(parse_duration(bad).is_err(), "{bad}");
        }
    }
}
