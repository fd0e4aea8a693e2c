//! Routers by server name compared on veth: tidegate with `bind = "hello"`, HAProxy in TCP mode,
//! nginx's stream module, and the kernel that forwards without any of them.
//!
//! `cargo bench --bench sni -- [--rounds N] [--seconds S] [--json FILE] [--quick]`, as root. A
//! round measures each router once with each test, so that all see the same moods of the machine.
//! Every connection is seen to lead to a server of its name.

mod bed;
mod contender;
mod ends;
mod measure;
#[path = "../veth/napi.rs"]
mod napi;
#[path = "../veth/priority.rs"]
mod priority;
mod report;
#[path = "../../tests/sim/speech.rs"]
#[allow(dead_code, reason = "shared with tests")]
mod speech;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use clap::Parser;

use contender::{Contender, Kind};
use measure::{Test, measure};
use report::Results;

#[derive(Parser)]
#[command(about = "Compares routers by server name on veth; needs root and two cores")]
struct Cli {
    /// Measurements of each router with each test; the median counts.
    #[arg(long, default_value_t = 5)]
    rounds: u32,
    /// Length of a measurement.
    #[arg(long, default_value_t = 2.0)]
    seconds: f64,
    /// One short round: to see that it works.
    #[arg(long)]
    quick: bool,
    /// Only routers with this in their name; several may be given.
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
    ensure!(cores > bed::ROUTER_CORE, "the router needs a core of its own: two at least");
    let _priority = priority::raise()?;
    let (rounds, seconds) = if cli.quick { (1, 0.5) } else { (cli.rounds, cli.seconds) };
    ensure!(rounds > 0 && (0.1..=60.0).contains(&seconds), "nothing to measure, or too much");
    let window = Duration::from_secs_f64(seconds);
    let begin = Instant::now();
    let mut contenders = start(&cli.only)?;
    let mut results = Results::new(contenders.iter().map(|c| c.kind).collect(), seconds);
    for round in 1..=rounds {
        for test in Test::ALL {
            for c in &mut contenders {
                results.add(c.kind, test, measure(c, test, window)?);
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

/// Starts all of them with their servers, sees that they route, and pauses them.
fn start(only: &[String]) -> anyhow::Result<Vec<Contender>> {
    let wanted = |kind: &Kind| only.is_empty() || only.iter().any(|o| kind.name().contains(o));
    let kinds: Vec<Kind> = Kind::ALL.into_iter().filter(wanted).collect();
    ensure!(!kinds.is_empty(), "no router is called that");
    let mut contenders = Vec::with_capacity(kinds.len());
    for kind in kinds {
        let mut c = Contender::start(kind).with_context(|| kind.name())?;
        c.bed.servers.thread("servers", || {
            if let Err(e) = ends::run(ends::serve()) {
                eprintln!("servers: {e:#}");
            }
        })?;
        measure(&mut c, Test::Opening, Duration::from_millis(200))?;
        eprintln!("{} routes", kind.name());
        contenders.push(c);
    }
    Ok(contenders)
}
