//! From a scenario file to a [`Scenario`]: names resolved, limits checked, every fault told at its
//! place.

use std::collections::HashMap;
use std::path::Path;
use std::time::Duration;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::configured::{Configured, NotSimulated, beside, configured};
use super::file::{FileScenario, FileSource, Offered};
use super::spec::{
    Control, DURATION_MAX, Expectation, FLOWS_MAX, Kind, Link, SOURCES_MAX, Scenario, Source,
    WORKERS_MAX, Workers,
};
use super::trace::Trace;
use crate::base::Seed;
use crate::base::diag::{self, Diagnostic, Diagnostics};
use crate::base::tomlfile::{self, ROOT, Reading};
use crate::base::units::BitRate;
use crate::config::{self, Build, Noted};
use crate::packet::ClassId;
use crate::qos::spec::PortQosSpec;

const MILLISECOND: Duration = Duration::from_millis(1);
/// Slices of time unless told otherwise, and at most.
const SLICES: u32 = 50;
const SLICES_MAX: u128 = 10_000;
const POLL: Duration = Duration::from_micros(10);
const POLL_MIN: Duration = Duration::from_nanos(100);
/// As `frames` of the appliance's workers.
const FRAMES: u32 = 16_384;
const FRAMES_MAX: i64 = 1 << 20;
const SEED: u64 = 1;
/// An Ethernet frame of 1500 bytes within.
const PACKET: u16 = 1_514;
const RTT: Duration = Duration::from_millis(40);
const RTT_MAX: Duration = Duration::from_secs(10);
const TOLERANCE_PERCENT: f64 = 0.5;
const TOKENS_MAX: i64 = 1 << 20;
const COUNT_MAX: i64 = 1 << 53;

/// A scenario, and what is allowed in its file but probably not meant.
#[derive(Debug)]
pub struct Loaded {
    pub scenario: Scenario,
    pub warnings: Vec<Diagnostic>,
}

/// Reads a scenario, with `sets` (as `qos.class.batch.rate=20%`) in the place of what it says, or
/// of what the configuration says whose class tree it uses. `class.NAME` is short for the class,
/// wherever it stands.
///
/// # Errors
/// Everything that is wrong with the files or with `sets`.
pub fn load(path: &Path, sets: &[String]) -> Result<Loaded, Diagnostics> {
    let mut out = Diagnostics::default();
    let mut source = config::read_source(path)?;
    let (of_tree, of_scenario): (Vec<_>, Vec<_>) =
        sets.iter().partition(|s| s.starts_with("class.") || s.starts_with("qos."));
    let mut told = Diagnostics::default();
    set_all(&mut source, &of_scenario, "", &mut told);
    let mut reading = tomlfile::read::<FileScenario>(&source, &mut out);
    let of_config = reading.as_ref().and_then(|r| Some((r.value.config.clone()?, &r.value.port)));
    let mut tree = None;
    if let Some((name, port)) = of_config {
        tree = configured(&source, &name, port.as_ref(), &of_tree, &mut out);
    } else if !of_tree.is_empty() {
        set_all(&mut source, &of_tree, "qos.", &mut told);
        // Told again if still there.
        out = Diagnostics::default();
        reading = tomlfile::read::<FileScenario>(&source, &mut out);
    }
    let scenario = reading.map(|Reading { value, faulty }| {
        let (source, faulty, out) = (&source, &faulty, &mut out);
        let mut b = Build { source, faulty, out, running: None, groups: Vec::new() };
        build(&mut b, &value, tree)
    });
    out.append(told);
    out.sort();
    match scenario {
        Some(scenario) if !out.has_errors() => Ok(Loaded { scenario, warnings: out.into_vec() }),
        _ => Err(out),
    }
}

/// Sets values beside a file's text. What is no TOML is taken for a string without its quotes.
pub fn set_all(source: &mut diag::Source, sets: &[&String], above: &str, out: &mut Diagnostics) {
    for words in sets {
        let Some((key, value)) = words.split_once('=') else {
            let what = "a key and its value are expected, as in class.batch.rate=20%";
            out.file_error(Path::new(&format!("--set {words}")), what.to_string());
            continue;
        };
        let above = if key.starts_with("class.") { above } else { "" };
        let plain = format!("{above}{key} = {value}");
        let line = match DeTable::parse(&plain) {
            Ok(_) => plain,
            Err(_) => format!("{above}{key} = {value:?}"),
        };
        match unknown_name(source.text(), &line) {
            Some(what) => out.file_error(Path::new(&format!("--set {words}")), what),
            None => source.set(words, line),
        }
    }
}

/// What is wrong with a line that is set, where it names what the file does not have: it would be
/// something new, and lack all else.
fn unknown_name(text: &str, line: &str) -> Option<String> {
    const KINDS: [&str; 3] = ["class", "source", "expect"];
    let (file, set) = (DeTable::parse(text).ok()?, DeTable::parse(line).ok()?);
    let (mut known, mut set) = (file.get_ref(), set.get_ref());
    let mut kind: Option<&str> = None;
    loop {
        let (key, value) = set.iter().next()?;
        let key: &str = key.get_ref();
        let found = known.get(key).map(Spanned::get_ref);
        if let (Some(kind), None) = (kind, found) {
            let advice = diag::advice(key, known.keys().map(|k| k.get_ref().as_ref()));
            return Some(format!("no {kind} is named `{key}`{advice}"));
        }
        (known, set) = match (found, value.get_ref()) {
            (Some(DeValue::Table(known)), DeValue::Table(set)) if kind.is_none() => (known, set),
            _ => return None,
        };
        kind = KINDS.into_iter().find(|kind| *kind == key);
    }
}

/// What sources and expectations refer to.
struct Known {
    tree: PortQosSpec,
    class_names: Vec<String>,
}

fn build(b: &mut Build<'_>, file: &FileScenario, configured: Option<Configured>) -> Scenario {
    let Configured { tree, class_names, not_simulated } = tree(b, file, configured);
    let known = Known { tree, class_names };
    if file.duration.is_none() && !b.faulty.contains(&ROOT, "duration") {
        b.error(&(0..0), "`duration` is missing: how long the scenario lasts");
    }
    let second = Duration::from_secs(1);
    let duration = between(b, &file.duration, MILLISECOND, DURATION_MAX, second);
    let warmup = between(b, &file.warmup, Duration::ZERO, duration, Duration::ZERO);
    if let Some(given) = &file.warmup
        && warmup == duration
    {
        b.error(&given.span(), "nothing is left to be counted after the warm-up");
    }
    let slice = (duration / SLICES).max(MILLISECOND).min(duration);
    let slice = between(b, &file.slice, MILLISECOND, duration, slice);
    if let Some(given) = &file.slice
        && duration.as_nanos() / slice.as_nanos().max(1) > SLICES_MAX
    {
        b.error(&given.span(), format!("these are more than {SLICES_MAX} slices"));
    }
    // Of one that is at fault nothing follows.
    let is_read = file.duration.as_ref().is_some_and(|given| given.get_ref().0 == duration);
    let lasts = if is_read { duration } else { Duration::MAX };
    let sources = sources(b, file, &known, lasts);
    let name = b.source.path().file_stem().unwrap_or_default().to_string_lossy().into_owned();
    Scenario {
        name,
        duration,
        warmup,
        slice,
        seed: Seed(b.number(&file.seed, 0..=i64::MAX, SEED)),
        workers: workers(b, file),
        link: link(b, file, known.tree.rate),
        not_simulated: not_simulated.of_sources(&sources),
        sources,
        expectations: expectations(b, file, &known),
        tree: known.tree,
        class_names: known.class_names,
    }
}

fn tree(b: &mut Build<'_>, file: &FileScenario, configured: Option<Configured>) -> Configured {
    if let (Some(qos), Some(_)) = (&file.qos, &file.config) {
        b.error(&qos.span(), "the class tree is that of `config` already: leave one of them out");
    }
    if let (Some(port), None) = (&file.port, &file.config) {
        b.error(&port.span(), "`port` is one of a `config`, and none is named");
    }
    let nothing = Spanned::new(0..0, Default::default());
    let (tree, class_names) = match (configured, &file.qos) {
        (Some(configured), _) => return configured,
        (None, Some(qos)) => config::tree_alone(b, qos),
        (None, None) => {
            if file.config.is_none()
                && !b.faulty.contains(&ROOT, "qos")
                && !b.faulty.contains(&ROOT, "config")
            {
                let what = "no class tree: give it as `[qos]`, or name a `config` and its `port`";
                b.error(&(0..0), what);
            }
            let (source, faulty) = (b.source, b.faulty);
            let mut silent = Diagnostics::default();
            let mut b =
                Build { source, faulty, out: &mut silent, running: None, groups: Vec::new() };
            config::tree_alone(&mut b, &nothing)
        }
    };
    Configured { tree, class_names, not_simulated: NotSimulated::default() }
}

fn workers(b: &mut Build<'_>, file: &FileScenario) -> Workers {
    let nothing = Default::default();
    let w = file.workers.as_ref().map_or(&nothing, Spanned::get_ref);
    let mut poll = vec![POLL];
    if let Some(given) = &w.poll {
        poll = given.get_ref().0.clone();
        if poll.is_empty() {
            b.error(&given.span(), "the list is empty: leave `poll` out instead");
        } else if poll.iter().any(|p| *p < POLL_MIN || *p > Duration::from_secs(1)) {
            b.error(&given.span(), "workers look at their queues every 100ns to 1s");
        }
    }
    Workers {
        count: b.number(&w.count, 1..=WORKERS_MAX as i64, 1usize),
        poll,
        frames: b.number(&w.frames, 64..=FRAMES_MAX, FRAMES),
    }
}

fn link(b: &mut Build<'_>, file: &FileScenario, whole: BitRate) -> Link {
    let nothing = Default::default();
    let l = file.link.as_ref().map_or(&nothing, Spanned::get_ref);
    let rate = l.rate.as_ref().map(|r| r.get_ref().0.of(whole));
    let ring = l.ring.as_ref().map(|r| r.get_ref().0.0);
    if let (Some(given), None) = (&l.ring, rate) {
        b.error(&given.span(), "a link without `rate` takes all at once: it fills no ring");
    }
    Link { rate, ring }
}

/// `lasts`: how long the scenario does.
fn sources(b: &mut Build<'_>, file: &FileScenario, known: &Known, lasts: Duration) -> Vec<Source> {
    if file.source.0.is_empty() && !b.faulty.contains(&ROOT, "source") {
        b.error(&(0..0), "nothing is sent: add a `[source.NAME]`");
    }
    if let Some((_, table)) = file.source.0.get(SOURCES_MAX) {
        b.error(&table.span(), format!("there are {SOURCES_MAX} sources at most"));
    }
    let sources = file.source.0.iter().take(SOURCES_MAX);
    let mut list = Vec::new();
    for (name, table) in sources {
        list.extend(source(b, name, table, known));
        if let Some(start) = &table.get_ref().start
            && start.get_ref().0 >= lasts
        {
            // No error: a shorter look at a scenario needs no other sources.
            let what = format!("it sends nothing: the scenario lasts {lasts:?}");
            b.warning(&start.span(), what);
        }
    }
    list
}

fn source(
    b: &mut Build<'_>,
    name: &Spanned<String>,
    table: &Spanned<FileSource>,
    known: &Known,
) -> Option<Source> {
    b.name(name);
    let s = table.get_ref();
    let class = match b.need(&table.span(), "class", &s.class, "whose packets it sends") {
        Some(class) => class_of(b, class, known, true),
        None => None,
    };
    let start = between(b, &s.start, Duration::ZERO, DURATION_MAX, Duration::ZERO);
    let stop = s.stop.as_ref().map(|_| between(b, &s.stop, start, DURATION_MAX, start));
    let skew = skew(b, s);
    let mut packets: Vec<u16> = vec![PACKET];
    if let Some(given) = &s.packet {
        packets = given.get_ref().0.iter().map(|p| p.0).collect();
        if packets.is_empty() {
            b.error(&given.span(), "the list is empty: leave `packet` out instead");
        }
        if s.trace.is_some() {
            b.error(&given.span(), "a trace has lengths of its own");
        }
    }
    let kind = kind(b, table, known)?;
    Some(Source {
        name: name.get_ref().clone(),
        class: class?,
        flows: b.number(&s.flows, 1..=i64::from(FLOWS_MAX), 1u32),
        packets,
        ecn: s.ecn.unwrap_or(false),
        start,
        stop,
        skew,
        kind,
    })
}

/// How many flows of so many each worker gets.
fn skew(b: &mut Build<'_>, s: &FileSource) -> Vec<u32> {
    let mut skew = Vec::new();
    let Some(given) = &s.skew else { return skew };
    for entry in given.get_ref() {
        skew.push(b.number(&Some(entry.clone()), 0..=i64::from(FLOWS_MAX), 0u32));
    }
    if given.get_ref().is_empty() {
        b.error(&given.span(), "the list is empty: leave `skew` out instead");
    } else if given.get_ref().iter().all(|n| *n.get_ref() == 0) {
        b.error(&given.span(), "no worker gets any of the flows");
    }
    skew
}

/// How a source sends: it has one of the tables for that.
fn kind(b: &mut Build<'_>, table: &Spanned<FileSource>, known: &Known) -> Option<Kind> {
    let (s, at) = (table.get_ref(), table.span());
    let mut kinds = Vec::new();
    for (t, is_poisson) in [(&s.constant, false), (&s.poisson, true)] {
        if let Some(t) = t {
            let rate = source_rate(b, t.span(), &t.get_ref().rate, known);
            let kind = if is_poisson { Kind::Poisson { rate } } else { Kind::Constant { rate } };
            kinds.push((t.span(), kind));
        }
    }
    if let Some(t) = &s.on_off {
        let (f, span) = (t.get_ref(), t.span());
        let [on, off] = [("on", &f.on), ("off", &f.off)].map(|(key, given)| {
            let d = needed(b, &span, key, given, "how long it sends, or does not");
            between(b, given, MILLISECOND, DURATION_MAX, d)
        });
        let rate = source_rate(b, span.clone(), &f.rate, known);
        kinds.push((span, Kind::OnOff { rate, on, off, is_random: f.random }));
    }
    if let Some(t) = &s.greedy {
        kinds.push((t.span(), Kind::Greedy));
    }
    if let Some(t) = &s.tokens {
        let (f, span) = (t.get_ref(), t.span());
        b.need(&span, "bytes", &f.bytes, "how much each flow sends at once");
        let bytes = b.number(&f.bytes, 1..=TOKENS_MAX, 1u32);
        let every = needed(b, &span, "every", &f.every, "how often each flow sends");
        let every = between(b, &f.every, POLL, DURATION_MAX, every);
        kinds.push((span, Kind::Tokens { bytes, every }));
    }
    if let Some(t) = &s.tcp {
        let rtt = between(b, &t.get_ref().rtt, POLL, RTT_MAX, RTT);
        let control = match t.get_ref().control {
            Some(super::file::FileControl::Reno) => Control::Reno,
            Some(super::file::FileControl::Cubic) | None => Control::Cubic,
        };
        kinds.push((t.span(), Kind::Tcp { rtt, control }));
    }
    if let Some(t) = &s.trace {
        kinds.push((t.span(), trace(b, t, known.tree.mtu)?));
    }
    match kinds.len() {
        0 if !b.faulty.any_in(&at) => {
            b.error(
                &at,
                "it does not say how it sends: one of `constant`, `poisson`, `on_off`, `greedy`, \
                 `tokens`, `tcp`, `trace`, as in `constant = { rate = \"20Mbit/s\" }`",
            );
        }
        0 | 1 => {}
        _ => b.error(&kinds[1].0, "it says already how it sends: make this another source"),
    }
    kinds.into_iter().next().map(|(_, kind)| kind)
}

fn trace(b: &mut Build<'_>, table: &Spanned<super::file::FileTrace>, longest: u16) -> Option<Kind> {
    const SPEED: std::ops::RangeInclusive<f64> = 0.001..=1_000.0;
    let f = table.get_ref();
    let speed = f.speed.as_ref().map_or(1.0, |s| *s.get_ref());
    if let Some(given) = &f.speed
        && !SPEED.contains(&speed)
    {
        b.error(&given.span(), format!("{speed} is not within 0.001 to 1000"));
    }
    let name = b.need(&table.span(), "file", &f.file, "a capture, pcap or pcapng")?;
    let file = beside(b.source.path(), name.get_ref());
    // To its end, so that what is wrong there is told here too.
    let whole = Trace::open(&file, longest).and_then(|mut trace| {
        while trace.next()?.is_some() {}
        Ok(())
    });
    if let Err(error) = whole {
        b.error(&name.span(), format!("{}: {error}", file.display()));
    }
    Some(Kind::Trace { file, speed, repeats: f.repeat })
}

fn expectations(b: &mut Build<'_>, file: &FileScenario, known: &Known) -> Vec<Expectation> {
    let mut list = Vec::new();
    for (name, table) in &file.expect.0 {
        let f = table.get_ref();
        let Some(class) = class_of(b, name, known, false) else { continue };
        let is_empty = f.rate.is_none()
            && f.delay_p99_max.is_none()
            && f.dropped_max.is_none()
            && f.marked_min.is_none();
        if is_empty && !b.faulty.any_in(&table.span()) {
            let what = "nothing is expected: give a `rate`, `delay_p99_max`, `dropped_max` or \
                        `marked_min`";
            b.error(&table.span(), what);
        }
        let mut tolerance_percent = TOLERANCE_PERCENT;
        if let Some(given) = &f.tolerance_percent {
            tolerance_percent = *given.get_ref();
            if !(0.0..=100.0).contains(&tolerance_percent) {
                b.error(&given.span(), format!("{tolerance_percent} is not within 0 to 100"));
            }
        }
        let delay = &f.delay_p99_max;
        let count = |b: &mut Build<'_>, given: &Option<Spanned<i64>>| {
            given.as_ref().map(|_| b.number(given, 0..=COUNT_MAX, 0u64))
        };
        list.push(Expectation {
            class,
            rate: f.rate.as_ref().map(|r| r.get_ref().0.of(known.tree.rate)),
            tolerance_percent,
            delay_p99_max: delay.as_ref().map(|d| d.get_ref().0),
            dropped_max: count(b, &f.dropped_max),
            marked_min: count(b, &f.marked_min),
        });
    }
    list
}

/// A class of the tree; `is_leaf`: one that carries packets.
fn class_of(
    b: &mut Build<'_>,
    name: &Spanned<String>,
    known: &Known,
    is_leaf: bool,
) -> Option<ClassId> {
    let classes = &known.tree.classes;
    let name_of = |id: ClassId| known.class_names.get(usize::from(id.0)).map(String::as_str);
    let names: HashMap<&str, usize> =
        classes.iter().enumerate().filter_map(|(i, c)| Some((name_of(c.id)?, i))).collect();
    if names.is_empty() {
        return None; // told already
    }
    let id = classes[b.resolve("class of this port", name, &names)?].id;
    if is_leaf && classes.iter().any(|c| c.parent == Some(id)) {
        let what = format!("`{}` has classes below it, so it carries no packets", name.get_ref());
        b.error(&name.span(), what);
    }
    Some(id)
}

fn source_rate(
    b: &mut Build<'_>,
    table: std::ops::Range<usize>,
    given: &Noted<Offered>,
    known: &Known,
) -> BitRate {
    let given = b.need(&table, "rate", given, "how much it sends");
    given.map_or(BitRate(1), |r| r.get_ref().0.of(known.tree.rate))
}

fn needed(
    b: &mut Build<'_>,
    table: &std::ops::Range<usize>,
    key: &str,
    given: &Noted<Duration>,
    what: &str,
) -> Duration {
    b.need(table, key, given, what).map_or(Duration::from_secs(1), |d| d.get_ref().0)
}

fn between(
    b: &mut Build<'_>,
    given: &Noted<Duration>,
    low: Duration,
    high: Duration,
    default: Duration,
) -> Duration {
    b.within(given, low..=high, default, |d| format!("{d:?}"))
}
