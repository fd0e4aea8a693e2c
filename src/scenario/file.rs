//! The scenario file as it is written.

use std::time::Duration;

use serde::Deserialize;
use toml::Spanned;

use crate::base::tomlfile::{Atom, Named, OneOrMany};
use crate::base::units::BitRate;
use crate::config::{Bytes, FileQos, Noted, Plain, Rate};

use super::spec::{PACKET_MAX, PACKET_MIN};

/// Of the port's rate, for what may be over it.
const PERCENT_MAX: f64 = 10_000.0;

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct FileScenario {
    pub duration: Noted<Duration>,
    pub warmup: Noted<Duration>,
    pub slice: Noted<Duration>,
    pub seed: Plain<i64>,
    pub config: Plain<String>,
    pub port: Plain<String>,
    pub workers: Plain<FileWorkers>,
    pub link: Plain<FileLink>,
    pub qos: Plain<FileQos>,
    pub source: Named<FileSource>,
    pub expect: Named<FileExpect>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct FileWorkers {
    pub count: Plain<i64>,
    pub poll: Option<Spanned<OneOrMany<Duration>>>,
    pub frames: Plain<i64>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct FileLink {
    pub rate: Noted<Offered>,
    pub ring: Noted<Bytes>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct FileSource {
    pub class: Plain<String>,
    pub flows: Plain<i64>,
    pub packet: Option<Spanned<OneOrMany<Packet>>>,
    pub ecn: Option<bool>,
    pub start: Noted<Duration>,
    pub stop: Noted<Duration>,
    pub skew: Option<Spanned<Vec<Spanned<i64>>>>,
    pub constant: Plain<FileConstant>,
    pub poisson: Plain<FileConstant>,
    pub on_off: Plain<FileOnOff>,
    pub greedy: Plain<FileGreedy>,
    pub tokens: Plain<FileTokens>,
    pub tcp: Plain<FileTcp>,
    pub trace: Plain<FileTrace>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct FileConstant {
    pub rate: Noted<Offered>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct FileOnOff {
    pub rate: Noted<Offered>,
    pub on: Noted<Duration>,
    pub off: Noted<Duration>,
    pub random: bool,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct FileGreedy {}

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct FileTokens {
    pub bytes: Plain<i64>,
    pub every: Noted<Duration>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct FileTcp {
    pub rtt: Noted<Duration>,
    pub control: Option<FileControl>,
}

#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum FileControl {
    Cubic,
    Reno,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct FileTrace {
    pub file: Plain<String>,
    pub speed: Plain<f64>,
    pub repeat: bool,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct FileExpect {
    pub rate: Noted<Granted>,
    pub tolerance_percent: Plain<f64>,
    pub delay_p99_max: Noted<Duration>,
    pub dropped_max: Plain<i64>,
    pub marked_min: Plain<i64>,
}

/// A rate, or a share of the port's, which it may be over: what is sent, or what a link carries.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Offered(Rate);

impl Offered {
    pub fn of(self, whole: BitRate) -> BitRate {
        match self.0 {
            Rate::Absolute(rate) => rate,
            Rate::Percent(p) => BitRate((whole.0 as f64 * p / 100.0).round().max(1.0) as u64),
        }
    }
}

impl Atom for Offered {
    const EXPECTED: &'static str = Rate::EXPECTED;
    fn from_text(text: &str) -> Result<Offered, String> {
        let Some(share) = text.trim().strip_suffix('%') else {
            return Rate::from_text(text).map(Offered);
        };
        match share.trim_end().parse::<f64>() {
            Ok(p) if p > 0.0 && p <= PERCENT_MAX => Ok(Offered(Rate::Percent(p))),
            _ => Err(format!("`{text}` is not a share above 0% and up to {PERCENT_MAX}%")),
        }
    }
}

/// A rate, or a share of the port's, or none: what a class gets.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Granted(Option<Rate>);

impl Granted {
    pub fn of(self, whole: BitRate) -> BitRate {
        self.0.map_or(BitRate(0), |rate| Offered(rate).of(whole))
    }
}

impl Atom for Granted {
    const EXPECTED: &'static str = Rate::EXPECTED;
    fn from_text(text: &str) -> Result<Granted, String> {
        let text = text.trim();
        let cut = text.find(|c: char| !(c.is_ascii_digit() || c == '.')).unwrap_or(text.len());
        let (number, unit) = text.split_at(cut);
        match number.parse::<f64>() {
            // Its unit must be one all the same.
            Ok(0.0) => match Rate::from_text(&format!("1{unit}")) {
                Ok(_) => Ok(Granted(None)),
                Err(_) => Err(format!("`{text}` is not {}", Self::EXPECTED)),
            },
            _ => Rate::from_text(text).map(|rate| Granted(Some(rate))),
        }
    }
}

/// Bytes of a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Packet(pub u16);

impl Atom for Packet {
    const EXPECTED: &'static str = "a frame's length in bytes";
    fn from_number(number: i64) -> Result<Packet, String> {
        match u16::try_from(number) {
            Ok(n) if (PACKET_MIN..=PACKET_MAX).contains(&n) => Ok(Packet(n)),
            _ => Err(format!("frames have {PACKET_MIN} to {PACKET_MAX} bytes, not {number}")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_name_what_was_written() {
        for text in ["0", "0parsec", "0.0 lightyears"] {
            let error = Granted::from_text(text).expect_err(text);
            assert!(error.contains(&format!("`{text}`")), "{error}");
        }
        assert_eq!(Granted::from_text("0%"), Ok(Granted(None)));
        assert_eq!(Granted::from_text("0Mbit/s"), Ok(Granted(None)));
    }
}
