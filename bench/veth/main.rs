//! Forwarders compared on veth: one generator core, one router core, a sink.
//!
//! `cargo bench --bench veth -- [--rounds N] [--seconds S] [--json FILE] [--quick]`, as root. Every
//! forwarder stands in namespaces of its own and is paused but while it is measured; a round
//! measures each of them once with each traffic, so that all see the same moods of the machine.
//! What they forward is looked at before it is counted.

mod bed;
mod forwarder;
mod kernel;
mod measure;
mod napi;
mod priority;
mod report;
mod sink;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use clap::Parser;

use bed::Traffic;
use forwarder::{Forwarder, Kind, check_programs};
use report::Results;
use sink::Sink;

const TRAFFIC: [Traffic; 4] = [
    Traffic { size: 64, flows: 1 },
    Traffic { size: 64, flows: 10_000 },
    Traffic { size: 1_500, flows: 1 },
    Traffic { size: 1_500, flows: 10_000 },
];

#[derive(Parser)]
#[command(about = "Compares forwarders on veth; needs root and two cores")]
struct Cli {
    /// Measurements of each forwarder with each traffic; the median counts.
    #[arg(long, default_value_t = 5)]
    rounds: u32,
    /// Length of a measurement.
    #[arg(long, default_value_t = 1.0)]
    seconds: f64,
    /// One short round: to see that it works.
    #[arg(long)]
    quick: bool,
    /// What receives, alike for all.
    #[arg(long, value_enum, default_value_t = Sink::Xdp)]
    sink: Sink,
    /// Only forwarders with this in their name; several may be given.
    #[arg(long)]
    only: Vec<String>,
    /// Write the results here, too.
    #[arg(long)]
    json: Option<PathBuf>,
    /// `cargo bench` says so.
    #[arg(long, hide = true)]
    bench: bool,
}

fn main() -> ExitCode {
    match run(&Cli::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("error: {e:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(cli: &Cli) -> anyhow::Result<()> {
    ensure!(nix::unistd::geteuid().is_root(), "network namespaces and AF_XDP need root");
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    ensure!(cores > bed::ROUTER_CORE, "a generator's and a router's core are needed: two at least");
    check_programs()?;
    let _priority = priority::raise()?;
    let (rounds, seconds) = if cli.quick { (1, 0.3) } else { (cli.rounds, cli.seconds) };
    ensure!(rounds > 0 && (0.05..=60.0).contains(&seconds), "nothing to measure, or too much");
    let window = Duration::from_secs_f64(seconds);
    let begin = Instant::now();
    let mut forwarders = start(&cli.only, cli.sink)?;
    let mut results = Results::new(forwarders.iter().map(|f| f.kind).collect(), seconds, cli.sink);
    for round in 1..=rounds {
        for traffic in TRAFFIC {
            for f in &mut forwarders {
                let mut sample = measure::measure(f, traffic, window)?;
                if sample.disturbed > report::DISTURBED {
                    results.repeated += 1;
                    sample = measure::measure(f, traffic, window)?;
                }
                results.add(f.kind, traffic, sample);
            }
        }
        eprintln!("round {round} of {rounds} done, {} s so far", begin.elapsed().as_secs());
    }
    print!("{results}");
    if let Some(path) = &cli.json {
        if let Some(dir) = path.parent() {
            std::fs::create_dir_all(dir)?;
        }
        let text = format!("{:#}\n", results.to_json());
        std::fs::write(path, text).with_context(|| path.display().to_string())?;
    }
    Ok(())
}

/// Starts all of them, sees that they do what they claim, and pauses them.
fn start(only: &[String], sink: Sink) -> anyhow::Result<Vec<Forwarder>> {
    let wanted = |kind: &Kind| only.is_empty() || only.iter().any(|o| kind.name().contains(o));
    let possible = |kind: &Kind| !kind.is_offload() || sink.takes_xdp_frames();
    let kinds: Vec<Kind> = Kind::all().into_iter().filter(|k| wanted(k) && possible(k)).collect();
    ensure!(!kinds.is_empty(), "no forwarder is called that");
    let mut forwarders = Vec::with_capacity(kinds.len());
    for kind in kinds {
        let mut f = Forwarder::start(kind, sink).with_context(|| kind.name())?;
        for traffic in TRAFFIC {
            sink::verify(&f.bed, traffic, kind.translation()).with_context(|| kind.name())?;
        }
        sink.close(&f.bed)?;
        f.pause()?;
        eprintln!("{} forwards", kind.name());
        forwarders.push(f);
    }
    Ok(forwarders)
}
