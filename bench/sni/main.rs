//! Routers by server name compared on veth: tidegate with `bind = "hello"`, HAProxy in TCP mode,
//! nginx's stream module, and the kernel that forwards without any of them.
//!
//! `cargo bench --bench sni -- [--rounds N] [--seconds S] [--json FILE] [--quick]`, as root. A
//! round measures each router once with each test, so that all see the same moods of the machine.
//! Every connection is seen to lead to a server of its name.

mod bed;
#[path = "../common/comparison.rs"]
mod comparison;
mod contender;
mod end;
mod ends;
#[path = "../common/machine.rs"]
mod machine;
mod measure;
#[path = "../veth/napi.rs"]
mod napi;
#[path = "../veth/priority.rs"]
mod priority;
mod raw;
mod report;
#[path = "../../tests/sim/speech.rs"]
#[allow(dead_code, reason = "shared with tests")]
mod speech;
#[path = "../veth/work.rs"]
mod work;

use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use clap::Parser;

use comparison::end;
use contender::{Contender, Kind};
use measure::{Sample, Test, measure};
use report::Results;

/// Of a measurement.
const ATTEMPTS: usize = 3;

#[derive(Parser)]
#[command(about = "Compares routers by server name on veth; needs root and two cores")]
struct Cli {
    #[command(flatten)]
    common: comparison::Plan,
}

fn main() -> ExitCode {
    end(run(&Cli::parse()))
}

fn run(cli: &Cli) -> anyhow::Result<()> {
    let (rounds, seconds) = cli.common.plan(bed::ROUTER_CORE, 2.0)?;
    let window = Duration::from_secs_f64(seconds);
    let _priority = priority::raise()?;
    let begin = Instant::now();
    let mut contenders = start(&cli.common)?;
    let mut results = Results::new(contenders.iter().map(|c| c.kind).collect(), seconds);
    for round in 1..=rounds {
        for test in Test::ALL {
            for c in &mut contenders {
                let sample = measured(c, test, window, &mut results)?;
                results.add(c.kind, test, sample);
            }
        }
        eprintln!("round {round} of {rounds} done, {} s so far", begin.elapsed().as_secs());
    }
    print!("{results}");
    cli.common.write("sni", results.to_json())
}

/// Measures once more where that fails: a router that loses frames of a burst leaves connections
/// hanging whose ends don't send again, and a whole run is not to be lost for it.
fn measured(
    c: &mut Contender,
    test: Test,
    window: Duration,
    results: &mut Results,
) -> anyhow::Result<Sample> {
    for _ in 1..ATTEMPTS {
        match measure(c, test, window) {
            Ok(sample) => return Ok(sample),
            Err(error) => {
                eprintln!("done again: {error:#}");
                results.repeated.push((c.kind, format!("{error:#}")));
            }
        }
    }
    measure(c, test, window)
}

/// Starts all of them with their servers, sees that they route, and pauses them.
fn start(cli: &comparison::Plan) -> anyhow::Result<Vec<Contender>> {
    let wanted = |kind: &Kind| cli.wants(kind.name());
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
