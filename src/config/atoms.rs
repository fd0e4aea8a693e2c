//! Values with a notation of their own: how each is written, and what is told when it is not.

use std::net::SocketAddr;
use std::ops::RangeInclusive;
use std::time::Duration;

use crate::base::tomlfile::Atom;
use crate::base::units::{BitRate, ByteSize, parse_duration};
use crate::base::{Addr, Prefix};
use crate::forward::spec::MssClamp;
use crate::policy::spec::NamePattern;

impl Atom for Addr {
    const EXPECTED: &'static str = "an IP address such as \"192.0.2.1\" or \"2001:db8::1\"";

    fn from_text(text: &str) -> Result<Addr, String> {
        text.parse()
    }
}

impl Atom for Prefix {
    const EXPECTED: &'static str = "a prefix such as \"192.0.2.0/24\"";

    fn from_text(text: &str) -> Result<Prefix, String> {
        let prefix: Prefix = text.parse()?;
        let written = text.split('/').next().unwrap_or_default();
        if written.parse() != Ok(prefix.addr()) {
            return Err(format!("`{text}` has bits beyond its length; did you mean `{prefix}`?"));
        }
        Ok(prefix)
    }
}

impl Atom for Duration {
    const EXPECTED: &'static str = "a duration such as \"20ms\", \"30s\" or \"2h 4min\"";

    fn from_text(text: &str) -> Result<Duration, String> {
        parse_duration(text)
    }
}

/// A rate of its own, or a share of the parent's.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Rate {
    Absolute(BitRate),
    Percent(f64),
}

impl Atom for Rate {
    const EXPECTED: &'static str = "a rate such as \"100Mbit/s\" or \"10%\"";

    fn from_text(text: &str) -> Result<Rate, String> {
        let Some(share) = text.trim().strip_suffix('%') else {
            return text.parse().map(Rate::Absolute);
        };
        match share.trim_end().parse::<f64>() {
            Ok(p) if p > 0.0 && p <= 100.0 => Ok(Rate::Percent(p)),
            _ => Err(format!("`{text}` is not a share above 0% and up to 100%")),
        }
    }
}

/// A number of bytes, plain or with a unit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Bytes(pub u64);

impl Atom for Bytes {
    const EXPECTED: &'static str = "a size such as 65536 or \"64KiB\"";

    fn from_text(text: &str) -> Result<Bytes, String> {
        text.parse::<ByteSize>().map(|b| Bytes(b.0))
    }

    fn from_number(number: i64) -> Result<Bytes, String> {
        u64::try_from(number).map(Bytes).map_err(|_| format!("{number} is not a size"))
    }
}

/// A TCP or UDP port; 0 stands for none and is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PortNumber(pub u16);

impl Atom for PortNumber {
    const EXPECTED: &'static str = "a port number";

    fn from_number(number: i64) -> Result<PortNumber, String> {
        match u16::try_from(number) {
            Ok(port) if port > 0 => Ok(PortNumber(port)),
            _ => Err(format!("{number} is not a port: they go from 1 to 65535")),
        }
    }
}

/// First and last port of a range.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PortRange(pub u16, pub u16);

impl Atom for PortRange {
    const EXPECTED: &'static str = "a range of ports such as \"1024-32767\"";

    fn from_text(text: &str) -> Result<PortRange, String> {
        let bad = || format!("`{text}` is not a range of ports: write it as in \"1024-32767\"");
        let (first, last) = text.split_once('-').ok_or_else(bad)?;
        let first: u16 = first.trim().parse().map_err(|_| bad())?;
        let last: u16 = last.trim().parse().map_err(|_| bad())?;
        if first == 0 || first > last {
            return Err(bad());
        }
        Ok(PortRange(first, last))
    }
}

/// A server name to match, exact or `*.suffix`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServerName(pub NamePattern);

impl Atom for ServerName {
    const EXPECTED: &'static str = "a server name such as \"api.example.com\" or \"*.example.com\"";

    fn from_text(text: &str) -> Result<ServerName, String> {
        let lower = text.to_ascii_lowercase();
        let whole = lower.strip_suffix('.').unwrap_or(&lower);
        if whole == "*" {
            return Err("`*` matches every name: leave `sni` out instead".to_string());
        }
        let (name, is_suffix) = match whole.strip_prefix("*.") {
            Some(suffix) => (suffix, true),
            None => (whole, false),
        };
        if name.contains('*') {
            return Err(format!(
                "`{text}`: `*` can only be the whole first label, as in \"*.a.b\""
            ));
        }
        if !is_host_name(name) {
            return Err(format!("`{text}` is not a server name"));
        }
        let name = name.to_string();
        Ok(ServerName(match is_suffix {
            true => NamePattern::Suffix(name),
            false => NamePattern::Exact(name),
        }))
    }
}

/// RFC 1123, section 2.1, with the underscore that real names have; lengths as in RFC 1035.
fn is_host_name(name: &str) -> bool {
    let label_char = |b: u8| b.is_ascii_alphanumeric() || b == b'-' || b == b'_';
    name.len() <= 253
        && name.split('.').all(|l| (1..=63).contains(&l.len()) && l.bytes().all(label_char))
}

/// A protocol name of ALPN (RFC 7301: 1 to 255 bytes).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Alpn(pub String);

impl Atom for Alpn {
    const EXPECTED: &'static str = "an ALPN protocol name such as \"h2\"";

    fn from_text(text: &str) -> Result<Alpn, String> {
        if !(1..=255).contains(&text.len()) {
            return Err("an ALPN protocol name has 1 to 255 bytes (RFC 7301)".to_string());
        }
        Ok(Alpn(text.to_string()))
    }
}

/// A DSCP, by number or by its name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Dscp(pub u8);

/// Names of RFC 2474 (CS), RFC 2597 (AF), RFC 3246 (EF) and RFC 8622 (LE).
const DSCP_NAMES: [(&str, u8); 23] = [
    ("be", 0),
    ("le", 1),
    ("cs0", 0),
    ("cs1", 8),
    ("af11", 10),
    ("af12", 12),
    ("af13", 14),
    ("cs2", 16),
    ("af21", 18),
    ("af22", 20),
    ("af23", 22),
    ("cs3", 24),
    ("af31", 26),
    ("af32", 28),
    ("af33", 30),
    ("cs4", 32),
    ("af41", 34),
    ("af42", 36),
    ("af43", 38),
    ("cs5", 40),
    ("ef", 46),
    ("cs6", 48),
    ("cs7", 56),
];

impl Atom for Dscp {
    const EXPECTED: &'static str = "a DSCP: 0 to 63, or a name such as \"ef\" or \"af41\"";

    fn from_text(text: &str) -> Result<Dscp, String> {
        let lower = text.to_ascii_lowercase();
        DSCP_NAMES
            .iter()
            .find(|(name, _)| *name == lower)
            .map(|&(_, value)| Dscp(value))
            .ok_or_else(|| {
                format!("`{text}` is not the name of a DSCP, such as \"ef\" or \"af41\"")
            })
    }

    fn from_number(number: i64) -> Result<Dscp, String> {
        match u8::try_from(number) {
            Ok(value) if value < 64 => Ok(Dscp(value)),
            _ => Err(format!("{number} is not a DSCP: they go from 0 to 63")),
        }
    }
}

/// Permission bits, in octal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SocketMode(pub u32);

impl Atom for SocketMode {
    const EXPECTED: &'static str = "permissions in octal such as \"0660\", in quotes";

    fn from_text(text: &str) -> Result<SocketMode, String> {
        match u32::from_str_radix(text, 8) {
            Ok(mode) if mode <= 0o777 => Ok(SocketMode(mode)),
            _ => Err(format!("`{text}` is not a mode in octal such as \"0660\"")),
        }
    }
}

/// Statuses of HTTP, both ends included.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StatusRange(pub RangeInclusive<u16>);

impl StatusRange {
    const KNOWN: RangeInclusive<u16> = 100..=599;
}

impl Atom for StatusRange {
    const EXPECTED: &'static str = "a status such as 200, or several such as \"200-299\"";

    fn from_text(text: &str) -> Result<StatusRange, String> {
        let (first, last) = text.split_once('-').unwrap_or((text, text));
        match (first.trim().parse(), last.trim().parse()) {
            (Ok(first), Ok(last))
                if first <= last && Self::KNOWN.contains(&first) && Self::KNOWN.contains(&last) =>
            {
                Ok(StatusRange(first..=last))
            }
            _ => Err(format!("`{text}` is no range of statuses within 100 to 599")),
        }
    }

    fn from_number(number: i64) -> Result<StatusRange, String> {
        Self::from_text(&number.to_string())
    }
}

/// Where metrics are served.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Metrics {
    Off,
    At(SocketAddr),
}

impl Atom for Metrics {
    const EXPECTED: &'static str = "an address with a port such as \"127.0.0.1:9898\", or false,";

    fn from_text(text: &str) -> Result<Metrics, String> {
        text.parse().map(Metrics::At).map_err(|_| {
            format!("`{text}` is not an address with a port, such as \"127.0.0.1:9898\"")
        })
    }

    fn from_switch(on: bool) -> Result<Metrics, String> {
        match on {
            false => Ok(Metrics::Off),
            true => Err(format!("{} is expected here", Self::EXPECTED.trim_end_matches(','))),
        }
    }
}

/// What every host takes (RFC 9293, section 3.7.1), and the largest IPv4 packet's.
const MSS: std::ops::RangeInclusive<i64> = 536..=65_495;

impl Atom for MssClamp {
    const EXPECTED: &'static str = "a segment size such as 1360, or true or false,";

    fn from_number(number: i64) -> Result<MssClamp, String> {
        let valid = u16::try_from(number).ok().filter(|_| MSS.contains(&number));
        let what = || format!("{number} is not within {} to {}", MSS.start(), MSS.end());
        valid.map(MssClamp::AtMost).ok_or_else(what)
    }

    fn from_switch(on: bool) -> Result<MssClamp, String> {
        Ok(if on { MssClamp::Mtu } else { MssClamp::Off })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn server_names() {
        let exact = |s: &str| Ok(ServerName(NamePattern::Exact(s.to_string())));
        let suffix = |s: &str| Ok(ServerName(NamePattern::Suffix(s.to_string())));
        assert_eq!(ServerName::from_text("API.Example.com."), exact("api.example.com"));
        assert_eq!(ServerName::from_text("*.example.com"), suffix("example.com"));
        assert_eq!(ServerName::from_text("_svc.local"), exact("_svc.local"));
        let long = format!("{}.com", "a".repeat(64));
        for bad in ["", ".", "*", "*.", "a..b", "a.*.b", "*a.b", "a b", "µ.com", &long] {
            assert!(ServerName::from_text(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn rates_are_absolute_or_shares() {
        assert_eq!(Rate::from_text("10 %"), Ok(Rate::Percent(10.0)));
        assert_eq!(Rate::from_text("1Gbit/s"), Ok(Rate::Absolute(BitRate(1_000_000_000))));
        for bad in ["0%", "-1%", "101%", "%", "nan%", "10"] {
            assert!(Rate::from_text(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn code_points_have_names() {
        assert_eq!(Dscp::from_text("EF"), Ok(Dscp(46)));
        // RFC 2597: AFxy is 8x + 2y.
        for x in 1..=4u8 {
            for y in 1..=3u8 {
                assert_eq!(Dscp::from_text(&format!("af{x}{y}")), Ok(Dscp(8 * x + 2 * y)));
            }
        }
        for x in 0..=7u8 {
            assert_eq!(Dscp::from_text(&format!("cs{x}")), Ok(Dscp(8 * x)));
        }
        assert!(Dscp::from_text("af51").is_err() && Dscp::from_number(64).is_err());
    }

    #[test]
    fn port_ranges() {
        assert_eq!(PortRange::from_text("1024-32767"), Ok(PortRange(1024, 32_767)));
        assert_eq!(PortRange::from_text("5 - 5"), Ok(PortRange(5, 5)));
        for bad in ["", "5", "0-5", "6-5", "1-65536", "-", "a-b", "1-2-3"] {
            assert!(PortRange::from_text(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn prefixes_without_stray_bits() {
        assert!(<Prefix as Atom>::from_text("10.0.0.0/8").is_ok());
        assert!(<Prefix as Atom>::from_text("2001:db8::7").is_ok());
        assert_eq!(
            <Prefix as Atom>::from_text("10.1.2.3/8"),
            Err("`10.1.2.3/8` has bits beyond its length; did you mean `10.0.0.0/8`?".to_string())
        );
    }
}
