//! Forwarders compared on veth: one generator core, one router core, a sink.
//!
//! `cargo bench --bench veth -- [--rounds N] [--seconds S] [--json FILE] [--quick]`, as root. Every
//! forwarder stands in namespaces of its own and is paused but while it is measured; a round
//! measures each of them once with each traffic, so that all see the same moods of the machine.
//! What they forward is looked at before it is counted.

mod bed;
#[path = "../common/comparison.rs"]
mod comparison;
mod forwarder;
mod kernel;
#[path = "../common/machine.rs"]
mod machine;
mod measure;
mod napi;
mod priority;
mod report;
mod sink;
mod work;

use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use clap::Parser;

use bed::Traffic;
use comparison::end;
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
    #[command(flatten)]
    common: comparison::Plan,
    /// What receives, alike for all.
    #[arg(long, value_enum, default_value_t = Sink::Xdp)]
    sink: Sink,
}

fn main() -> ExitCode {
    end(run(&Cli::parse()))
}

fn run(cli: &Cli) -> anyhow::Result<()> {
    let (rounds, seconds) = cli.common.plan(bed::ROUTER_CORE, 1.0)?;
    let window = Duration::from_secs_f64(seconds);
    check_programs()?;
    let _priority = priority::raise()?;
    let begin = Instant::now();
    let mut forwarders = start(cli)?;
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
    cli.common.write("veth", results.to_json())
}

/// Starts all of them, sees that they do what they claim, and pauses them.
fn start(cli: &Cli) -> anyhow::Result<Vec<Forwarder>> {
    let wanted = |kind: &Kind| cli.common.wants(&kind.name());
    let possible = |kind: &Kind| !kind.is_offload() || cli.sink.takes_xdp_frames();
    let kinds: Vec<Kind> = Kind::all().into_iter().filter(|k| wanted(k) && possible(k)).collect();
    ensure!(!kinds.is_empty(), "no forwarder is called that");
    let mut forwarders = Vec::with_capacity(kinds.len());
    for kind in kinds {
        let mut f = Forwarder::start(kind, cli.sink).with_context(|| kind.name())?;
        for traffic in TRAFFIC {
            sink::verify(&f.bed, traffic, kind.translation()).with_context(|| kind.name())?;
        }
        cli.sink.close(&f.bed)?;
        f.work.pause()?;
        eprintln!("{} forwards", kind.name());
        forwarders.push(f);
    }
    Ok(forwarders)
}
