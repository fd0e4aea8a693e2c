//! `[meter.NAME]` and `[dscp.PORT]`.

use std::collections::{HashMap, HashSet};
use std::ops::Range;

use toml::Spanned;

use super::classes::{CLASSES_MAX, Classes};
use super::{Build, index};
use crate::base::diag::advice;
use crate::base::tomlfile::{Atom, texts};
use crate::base::units::{BitRate, ByteSize};
use crate::config::atoms::{Bytes, Dscp, Rate};
use crate::config::file::{FileConfig, FileMeter, FileTrust, Noted};
use crate::nic::spec::PortSpec;
use crate::packet::ClassId;
use crate::qos::dscp::Remap;
use crate::qos::meter::{MeterSpec, Second};
use crate::qos::meters::{Action, ClassMeterSpec, METERS_MAX, MeteringSpec};
use crate::qos::spec::PortQosSpec;

/// A bucket that is smaller than any packet lets none through.
const BURST_MIN: u64 = 64;
const BURST_MAX: u64 = 1 << 30;

/// All meters, and what ports trust.
pub fn metering(
    b: &mut Build<'_>,
    file: &FileConfig,
    ports: &[PortSpec],
    qos: &[PortQosSpec],
    classes: &Classes,
) -> MeteringSpec {
    if let Some((key, _)) = file.meter.0.get(METERS_MAX) {
        b.error(&key.span(), format!("there are {METERS_MAX} meters at most"));
    }
    let known = index(&file.port.0);
    let below = below(qos);
    let mut taken: HashMap<ClassId, &str> = HashMap::new();
    let meters = file.meter.0.iter().map(|(key, table)| {
        b.name(key);
        let m = table.get_ref();
        let named = m.port.as_ref().and_then(|port| b.resolve("port", port, &known));
        let classes = measured(b, key, table, (classes, &below), &mut taken);
        ClassMeterSpec {
            name: key.get_ref().clone(),
            meter: meter(b, &table.span(), m),
            classes,
            port: named.and_then(|i| ports.get(i)).map(|p| p.id),
            actions: [
                m.green.as_ref().map_or(Action::Pass, |a| a.get_ref().0.0),
                m.yellow.as_ref().map_or(Action::Pass, |a| a.get_ref().0.0),
                m.red.as_ref().map_or(Action::Drop, |a| a.get_ref().0.0),
            ],
        }
    });
    let meters = meters.collect();
    let mut trust = Vec::new();
    for (key, table) in &file.dscp.0 {
        if let Some(port) = b.resolve("port", key, &known) {
            if trust.len() <= port {
                trust.resize(port + 1, Remap::TRUST);
            }
            trust[port] = trusted(b, table.get_ref());
        }
    }
    MeteringSpec { meters, trust }
}

/// The leaves that a meter's classes stand for.
fn measured<'f>(
    b: &mut Build<'_>,
    key: &'f Spanned<String>,
    table: &Spanned<FileMeter>,
    (classes, below): (&Classes, &[Below]),
    taken: &mut HashMap<ClassId, &'f str>,
) -> Vec<ClassId> {
    let what = "the classes whose packets it measures, all together";
    let Some(list) = b.need(&table.span(), "classes", &table.get_ref().classes, what) else {
        return Vec::new();
    };
    if list.get_ref().is_empty() {
        b.error(&list.span(), "the list is empty: the meter measures nothing");
    }
    let mut leaves = Vec::new();
    // Classes without ids of their own can't be told apart; that there are too many was told.
    let is_apart = classes.len() <= CLASSES_MAX;
    for name in &texts(&table.get_ref().classes) {
        let Some(class) = classes.id(name.get_ref()) else {
            let advice = advice(name.get_ref(), classes.leaves());
            b.error(&name.span(), format!("no class is named `{}`{advice}", name.get_ref()));
            continue;
        };
        let below = if is_apart { leaves_below(below, class) } else { Vec::new() };
        for leaf in below {
            match taken.insert(leaf, key.get_ref()) {
                Some(other) if other != key.get_ref() => {
                    let what =
                        format!("meter `{other}` has packets of `{}` already", name.get_ref());
                    b.error(&name.span(), what);
                }
                Some(_) => {
                    b.error(&name.span(), format!("`{}` is named twice", name.get_ref()));
                }
                None => leaves.push(leaf),
            }
        }
    }
    leaves
}

/// By class of one port: its children there. Meters may be as many as classes, so that none can go
/// through the whole tree.
type Below = HashMap<ClassId, Vec<ClassId>>;

fn below(qos: &[PortQosSpec]) -> Vec<Below> {
    let of_port = |port: &PortQosSpec| {
        let mut below = Below::new();
        for c in &port.classes {
            if let Some(parent) = c.parent {
                below.entry(parent).or_default().push(c.id);
            }
        }
        below
    };
    qos.iter().map(of_port).collect()
}

/// The class itself, and the leaves below it under any port.
fn leaves_below(ports: &[Below], class: ClassId) -> Vec<ClassId> {
    let mut leaves = vec![class];
    for below in ports {
        let mut inside = HashSet::from([class]);
        let mut left = vec![class];
        while let Some(parent) = left.pop() {
            for child in below.get(&parent).into_iter().flatten() {
                if inside.insert(*child) {
                    leaves.push(*child);
                    left.push(*child);
                }
            }
        }
    }
    leaves.sort_unstable();
    leaves.dedup();
    leaves
}

fn meter(b: &mut Build<'_>, at: &Range<usize>, m: &FileMeter) -> MeterSpec {
    let is_colour_aware = m.colour_aware.unwrap_or(false);
    let what = "the committed rate";
    let given = b.need(at, "rate", &m.rate, what);
    let rate = given.map_or(BitRate(0), |given| absolute(b, given));
    let what = "the committed burst, in bytes";
    let burst = b.need(at, "burst", &m.burst, what).map_or(0, |_| bytes(b, &m.burst, BURST_MIN));
    let second = match (&m.peak_rate, &m.peak_burst, &m.excess_burst) {
        (None, None, _) => Second::Excess { burst: bytes(b, &m.excess_burst, 0) },
        (Some(_), Some(_), Some(excess)) => {
            let what = "a meter has an excess burst (RFC 2697) or a peak rate (RFC 2698), not both";
            b.error(&excess.span(), what);
            Second::Excess { burst: 0 }
        }
        (Some(peak), Some(_), None) => {
            let peak_rate = absolute(b, peak);
            if peak_rate < rate {
                let what = format!("a peak rate of {peak_rate} is below the rate of {rate}");
                b.error(&peak.span(), what);
            }
            Second::Peak { rate: peak_rate, burst: bytes(b, &m.peak_burst, BURST_MIN) }
        }
        (Some(given), None, _) => {
            b.error(&given.span(), "a peak rate needs a `peak_burst`");
            Second::Excess { burst: 0 }
        }
        (None, Some(given), _) => {
            b.error(&given.span(), "a peak burst needs a `peak_rate`");
            Second::Excess { burst: 0 }
        }
    };
    MeterSpec { rate, burst, second, is_colour_aware }
}

fn absolute(b: &mut Build<'_>, given: &Spanned<crate::base::tomlfile::Leaf<Rate>>) -> BitRate {
    match given.get_ref().0 {
        Rate::Absolute(rate) => rate,
        Rate::Percent(_) => {
            b.error(&given.span(), "a meter has no parent: give its rate as in \"10Mbit/s\"");
            BitRate(0)
        }
    }
}

fn bytes(b: &mut Build<'_>, given: &Noted<Bytes>, low: u64) -> u32 {
    let Some(given) = given else { return 0 };
    let n = given.get_ref().0.0;
    if !(low..=BURST_MAX).contains(&n) {
        let (shown, most) = (ByteSize(n), ByteSize(BURST_MAX));
        b.error(&given.span(), format!("{shown} is not within {low}B to {most}"));
    }
    u32::try_from(n).unwrap_or(u32::MAX)
}

fn trusted(b: &mut Build<'_>, table: &FileTrust) -> Remap {
    let trust = table.trust.unwrap_or(true);
    if let (true, Some(otherwise)) = (trust, &table.otherwise) {
        b.error(&otherwise.span(), "has no effect without `trust = false`");
    }
    let mut remap = match trust {
        true => Remap::TRUST,
        false => Remap::all_to(table.otherwise.as_ref().map_or(0, |dscp| dscp.get_ref().0.0)),
    };
    let mut known: HashMap<u8, &str> = HashMap::new();
    for (from, to) in &table.remap.0 {
        let text = from.get_ref();
        let read = match text.parse::<i64>() {
            Ok(number) => Dscp::from_number(number),
            Err(_) => Dscp::from_text(text),
        };
        match read {
            Ok(dscp) => {
                if let Some(other) = known.insert(dscp.0, text) {
                    let what = format!("`{text}` is the same code point as `{other}` before it");
                    b.error(&from.span(), what);
                }
                remap.set(dscp.0, to.get_ref().0.0);
            }
            Err(what) => b.error(&from.span(), what),
        }
    }
    remap
}
