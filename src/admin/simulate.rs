//! `tidegate simulate`: what a class tree makes of given traffic, before anyone tries it.

use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::Args;

use super::check::tell;
use super::cli::OutputArgs;
use super::commands::{Failure, print_json, print_text};
use super::progress::Bar;
use super::table::{Table, grouped};
use crate::base::units::BitRate;
use crate::scenario::{self, ClassOutcome, Delays, Outcome};

/// Columns of a class's rate over time.
const TIME_COLUMNS: usize = 24;
/// Names told of what is not simulated.
const NAMES_MAX: usize = 5;
const LEVELS: [char; 9] = [' ', '▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];

#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  \
    tidegate simulate config/scenarios/evening-rush.toml\n  \
    tidegate simulate rush.toml --set class.batch.ceil=30% --against\n  \
    tidegate simulate rush.toml --set workers.count=4 --plot rush.svg\n  \
    tidegate simulate rush.toml --json | jq '.classes[] | {name, granted_bps, delay}'\n\n\
    A scenario is a TOML file: a class tree (or the configuration that has it), sources, workers,\n\
    a link, and what is expected. The same file and seed give the same outcome. Exits 1 where an\n\
    expectation is not met, 2 with a faulty file. The README tells the file's keys.")]
pub struct SimulateArgs {
    /// The scenario (TOML)
    #[arg(value_name = "SCENARIO")]
    pub scenario: PathBuf,
    /// Put a value in the place of what the scenario says, or the configuration that it names:
    /// `class.NAME.KEY=VALUE` for a class, `source.NAME.constant.rate=VALUE`, and so on; may be
    /// given several times
    #[arg(long, value_name = "KEY=VALUE")]
    pub set: Vec<String>,
    /// Show another scenario beside it; without FILE, the same one without --set
    #[arg(long, value_name = "FILE", num_args = 0..=1)]
    pub against: Option<Option<PathBuf>>,
    /// Seed of all chance, in the place of the scenario's
    #[arg(long, value_name = "N")]
    pub seed: Option<u64>,
    /// Draw shares and delays over time into a file (SVG)
    #[arg(long, value_name = "FILE")]
    pub plot: Option<PathBuf>,
    #[command(flatten)]
    pub output: OutputArgs,
}

/// Runs the scenario, and another one beside it if asked for.
///
/// # Errors
/// Exit code 2 with a faulty file, 1 where an expectation is not met.
pub fn run(args: &SimulateArgs) -> Result<(), Failure> {
    let seed = args.seed.map(|seed| format!("seed={seed}"));
    let sets: Vec<String> = args.set.iter().cloned().chain(seed.clone()).collect();
    let outcome = play(&args.scenario, &sets)?;
    let against = match &args.against {
        Some(other) => {
            let sets: Vec<String> = seed.into_iter().collect();
            Some(play(other.as_ref().unwrap_or(&args.scenario), &sets)?)
        }
        None => None,
    };
    if let Some(file) = &args.plot {
        std::fs::write(file, scenario::plot(&outcome)).map_err(|error| {
            Failure::Failed(format!("{}: can't be written: {error}", file.display()))
        })?;
    }
    if args.output.json {
        let failed = |e: serde_json::Error| Failure::Failed(e.to_string());
        let mut value = serde_json::to_value(&outcome).map_err(failed)?;
        if let Some(against) = &against {
            value["against"] = serde_json::to_value(against).map_err(failed)?;
        }
        print_json(&value)?;
    } else {
        print_text(&match &against {
            Some(against) => side_by_side(&outcome, against),
            None => told(&outcome),
        })?;
    }
    if outcome.is_as_expected() { Ok(()) } else { Err(Failure::Told(1)) }
}

fn play(file: &Path, sets: &[String]) -> Result<Outcome, Failure> {
    let loaded = scenario::load(file, sets).map_err(|faults| {
        tell(faults.iter());
        Failure::Told(2)
    })?;
    tell(loaded.warnings.iter());
    let duration = loaded.scenario.duration;
    let millis = |d: Duration| u64::try_from(d.as_millis()).unwrap_or(u64::MAX);
    let mut bar = Bar::new(millis(duration), format!("{duration:?}"));
    let outcome = scenario::run(&loaded.scenario, |passed| {
        if let Some(bar) = &mut bar {
            bar.reach(millis(passed));
        }
    });
    drop(bar);
    outcome.map_err(|error| Failure::Failed(error.to_string()))
}

fn told(outcome: &Outcome) -> String {
    let mut text = heading(outcome);
    let mut table = Table::new(&[
        "CLASS",
        ">RATE",
        ">OFFERED",
        ">GRANTED",
        ">SHARE",
        ">BORROWED",
        ">DROPPED",
        ">MARKED",
        ">P50",
        ">P99",
        ">P99.9",
        ">MAX",
        "GRANTED OVER TIME",
    ]);
    for (i, class) in outcome.classes.iter().enumerate() {
        let delay =
            |f: fn(&Delays) -> f64| class.delay.as_ref().map_or(String::new(), |d| time(f(d)));
        table.row([
            indented(outcome, class),
            BitRate(class.rate_bps).to_string(),
            rate(class.offered_bps),
            rate(class.granted_bps),
            percent(class.share),
            percent(class.borrowed),
            grouped(class.dropped_overload + class.dropped_aqm),
            grouped(class.marked_packets),
            delay(|d| d.p50_us),
            delay(|d| d.p99_us),
            delay(|d| d.p999_us),
            delay(|d| d.max_us),
            over_time(outcome, i),
        ]);
    }
    text += &table.to_string();
    text.push('\n');
    let mut table = Table::new(&[
        "SOURCE", "CLASS", ">SENT", ">ARRIVED", ">DROPPED", ">MARKED", ">P50", ">P99", ">P99.9",
        ">MAX",
    ]);
    for source in &outcome.sources {
        let delay =
            |f: fn(&Delays) -> f64| source.delay.as_ref().map_or(String::new(), |d| time(f(d)));
        table.row([
            source.name.clone(),
            source.class.clone(),
            grouped(source.offered_packets),
            grouped(source.granted_packets),
            grouped(source.dropped_packets),
            grouped(source.marked_packets),
            delay(|d| d.p50_us),
            delay(|d| d.p99_us),
            delay(|d| d.p999_us),
            delay(|d| d.max_us),
        ]);
    }
    text + &table.to_string() + &expectations(outcome)
}

/// Each class of both outcomes, with what it got here and there.
fn side_by_side(outcome: &Outcome, against: &Outcome) -> String {
    let mut text = heading(outcome) + "against " + &heading(against);
    let mut table = Table::new(&[
        "CLASS", ">OFFERED", ">GRANTED", ">(WAS)", ">DROPPED", ">(WAS)", ">MARKED", ">(WAS)",
        ">P50", ">(WAS)", ">P99", ">(WAS)",
    ]);
    let of =
        |outcome: &'_ Outcome, name: &str| outcome.classes.iter().find(|c| c.name == name).cloned();
    let gone = against.classes.iter().filter(|c| of(outcome, &c.name).is_none());
    for class in outcome.classes.iter().chain(gone) {
        let [here, there] = [of(outcome, &class.name), of(against, &class.name)];
        let both = |f: &dyn Fn(&ClassOutcome) -> String| {
            [&here, &there].map(|c| c.as_ref().map_or("-".to_string(), f))
        };
        let [granted, granted_was] = both(&|c| rate(c.granted_bps));
        let [dropped, dropped_was] = both(&|c| grouped(c.dropped_overload + c.dropped_aqm));
        let [marked, marked_was] = both(&|c| grouped(c.marked_packets));
        let [p50, p50_was] = both(&|c| c.delay.map_or(String::new(), |d| time(d.p50_us)));
        let [p99, p99_was] = both(&|c| c.delay.map_or(String::new(), |d| time(d.p99_us)));
        let whose = if here.is_some() { outcome } else { against };
        table.row([
            indented(whose, class),
            rate(class.offered_bps),
            granted,
            granted_was,
            dropped,
            dropped_was,
            marked,
            marked_was,
            p50,
            p50_was,
            p99,
            p99_was,
        ]);
    }
    text += &table.to_string();
    text + &expectations(outcome)
}

fn heading(outcome: &Outcome) -> String {
    let link =
        outcome.link_bps.map_or(String::new(), |bps| format!(", on a link of {}", BitRate(bps)));
    let workers = match outcome.workers {
        1 => "1 worker".to_string(),
        n => format!("{n} workers"),
    };
    format!(
        "{}: {} s after {} s, {workers}, seed {}: {} of {} used{link}\n",
        outcome.scenario,
        ((outcome.duration_s - outcome.warmup_s) * 1e9).round() / 1e9,
        outcome.warmup_s,
        outcome.seed,
        rate(outcome.granted_bps),
        BitRate(outcome.rate_bps),
    ) + &not_simulated(outcome)
}

/// What a figure does not account for.
fn not_simulated(outcome: &Outcome) -> String {
    let all = &outcome.not_simulated;
    if all.is_empty() {
        return String::new();
    }
    let more = match all.len().saturating_sub(NAMES_MAX) {
        0 => String::new(),
        more => format!(" and {more} more"),
    };
    let names = all[..all.len().min(NAMES_MAX)].join(", ");
    format!("not simulated: {names}{more}; what sources send is what those let pass\n")
}

fn expectations(outcome: &Outcome) -> String {
    if outcome.expectations.is_empty() {
        return String::new();
    }
    let mut table = Table::new(&["EXPECTED OF", "WHAT", ">EXPECTED", ">GOT", ""]);
    for verdict in &outcome.expectations {
        let show = |value: f64| match verdict.what {
            "rate_bps" => rate(value),
            "delay_p99_max_us" => time(value),
            _ => format!("{value}"),
        };
        table.row([
            verdict.class.clone(),
            verdict.what.trim_end_matches("_bps").trim_end_matches("_us").to_string(),
            show(verdict.expected),
            show(verdict.got),
            if verdict.is_met { "met".to_string() } else { "NOT MET".to_string() },
        ]);
    }
    format!("\n{table}")
}

/// A class's name, further in than its parent's.
fn indented(outcome: &Outcome, class: &ClassOutcome) -> String {
    let mut depth = 0;
    let mut parent = class.parent.as_ref();
    while let Some(name) = parent {
        depth += 1;
        parent = outcome.classes.iter().find(|c| c.name == *name).and_then(|c| c.parent.as_ref());
    }
    "  ".repeat(depth) + &class.name
}

/// What a class was granted over time, relative to the port's rate.
fn over_time(outcome: &Outcome, class: usize) -> String {
    let slices = &outcome.over_time;
    let columns = TIME_COLUMNS.min(slices.len());
    let column = |i: usize| {
        let part = &slices[i * slices.len() / columns..(i + 1) * slices.len() / columns];
        let bps = part.iter().map(|s| s.classes[class].granted_bps).sum::<f64>();
        let full = bps / part.len().max(1) as f64 / outcome.rate_bps.max(1) as f64;
        // A little is not nothing.
        let level = (full * 8.0).round().max(if bps > 0.0 { 1.0 } else { 0.0 }) as usize;
        LEVELS[level.min(8)]
    };
    (0..columns).map(column).collect()
}

fn rate(bps: f64) -> String {
    if bps < 1.0 { "0".to_string() } else { BitRate(bps.round() as u64).to_string() }
}

fn percent(share: f64) -> String {
    format!("{:.1}%", share * 100.0)
}

/// Microseconds in the unit that suits them.
fn time(us: f64) -> String {
    match us {
        us if !us.is_finite() => "-".to_string(),
        us if us < 1_000.0 => format!("{us:.0}us"),
        us if us < 1e6 => format!("{:.1}ms", us / 1e3),
        us => format!("{:.2}s", us / 1e6),
    }
}
