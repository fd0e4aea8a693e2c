//! tidegate and Linux HTB with the same class tree, on veth and on the same two cores: packets a
//! second where the tree holds nothing back, and how exactly a rate is kept under a flood.
//!
//! `cargo bench --bench veth_htb [-- [--rounds N] [--seconds S] [--json FILE] [--quick]]`, as root,
//! with tc. Each round measures all of them once with each tree, in namespaces of their own, so
//! that all see the same moods of the machine; medians count. HTB stands there once for each way
//! in which the kernel can forward on one core.

#[path = "../veth/bed.rs"]
#[allow(dead_code, reason = "the bench of forwarders uses more of it")]
mod bed;
#[path = "../common/comparison.rs"]
mod comparison;
#[path = "../veth/kernel.rs"]
#[allow(dead_code, reason = "the bench of forwarders uses more of it")]
mod kernel;
#[path = "../common/machine.rs"]
mod machine;
#[path = "../veth/napi.rs"]
mod napi;
#[path = "../veth/priority.rs"]
mod priority;
mod shaper;
#[path = "../veth/work.rs"]
mod work;

use std::fs::File;
use std::io::{Read, Seek};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use clap::Parser;
use serde_json::{Value, json};
use tidegate::lab::wait_for;

use bed::{Amount, Bed, Traffic};
use comparison::{end, median};
use shaper::{Kind, Shaper};

/// What is sent through which tree: `None` holds nothing back.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Case {
    traffic: Traffic,
    rate: Option<u64>,
}

const MBIT: u64 = 1_000_000;
const CASES: [Case; 5] = [
    Case { traffic: Traffic { size: 64, flows: 1 }, rate: None },
    Case { traffic: Traffic { size: 64, flows: 10_000 }, rate: None },
    Case { traffic: Traffic { size: 1_500, flows: 10_000 }, rate: Some(100 * MBIT) },
    Case { traffic: Traffic { size: 1_500, flows: 10_000 }, rate: Some(500 * MBIT) },
    Case { traffic: Traffic { size: 300, flows: 10_000 }, rate: Some(100 * MBIT) },
];
/// Bytes of a frame's check sequence: sizes have them, neither shaper counts them.
const FCS: u64 = 4;
/// Queues are full and bursts gone before packets count.
const WARM_UP: Duration = Duration::from_millis(1_000);
/// The generator outlasts the measurement by this.
const REST: Duration = Duration::from_millis(200);
/// Packets that arrive before it is said that they do.
const FLOWING: u64 = 100;
const START_LIMIT: Duration = Duration::from_secs(10);
/// A look at the counter that takes longer is repeated, so many times.
const LOOK_MAX: Duration = Duration::from_micros(200);
const LOOKS: usize = 50;

#[derive(Parser)]
#[command(about = "tidegate's class tree and Linux HTB on veth; needs root and two cores")]
struct Cli {
    #[command(flatten)]
    common: comparison::Plan,
}

fn main() -> ExitCode {
    end(run(&Cli::parse()))
}

fn run(cli: &Cli) -> anyhow::Result<()> {
    let (rounds, seconds) = cli.common.plan(bed::ROUTER_CORE, 3.0)?;
    let window = Duration::from_secs_f64(seconds);
    let _priority = priority::raise()?;
    let kinds: Vec<Kind> = Kind::ALL.into_iter().filter(|k| cli.common.wants(&k.name())).collect();
    ensure!(!kinds.is_empty(), "no shaper is called that");
    // By case and kind, a rate of packets from each round.
    let mut rates = vec![vec![Vec::new(); kinds.len()]; CASES.len()];
    for round in 1..=rounds {
        for (case, of_case) in CASES.iter().zip(&mut rates) {
            for (&kind, of_kind) in kinds.iter().zip(of_case) {
                let rate = measure(kind, *case, window).with_context(|| kind.name())?;
                of_kind.push(rate);
            }
        }
        eprintln!("round {round} of {rounds} done");
    }
    let rows: Vec<Vec<f64>> =
        rates.into_iter().map(|of_case| of_case.into_iter().map(median).collect()).collect();
    print(&kinds, &rows);
    cli.common.write("veth_htb", json!({ "seconds": seconds, "rows": to_json(&kinds, &rows) }))
}

/// Packets a second that come through.
fn measure(kind: Kind, case: Case, window: Duration) -> anyhow::Result<f64> {
    let bed = Bed::new()?;
    let _shaper = Shaper::start(&bed, kind, case.rate)?;
    let mut counter = Counter::open(&bed)?;
    let before = counter.look()?.1;
    let seconds = (WARM_UP + window + REST).as_secs_f64();
    let sending = bed.send(case.traffic, Amount::Seconds(seconds))?;
    let flows = wait_for(START_LIMIT, "packets at the sink", || {
        sending.is_over() || counter.look().is_ok_and(|(_, n)| n >= before + FLOWING)
    });
    if flows.is_err() || sending.is_over() {
        sending.finish()?;
        anyhow::bail!("nothing comes to the sink");
    }
    std::thread::sleep(WARM_UP);
    let (start, from) = counter.look()?;
    std::thread::sleep(window);
    let (end, to) = counter.look()?;
    sending.finish()?;
    Ok((to - from) as f64 / (end - start).as_secs_f64())
}

/// The sink's counter of packets.
struct Counter(File);

impl Counter {
    /// What is opened inside the namespace tells of it from outside, too.
    fn open(bed: &Bed) -> anyhow::Result<Counter> {
        let file = bed.sink.enter(|| File::open("/proc/thread-self/net/dev"))?;
        Ok(Counter(file.context("/proc/thread-self/net/dev")?))
    }

    /// Packets received, and when that was.
    fn look(&mut self) -> anyhow::Result<(Instant, u64)> {
        let mut text = String::new();
        let mut best: Option<(Duration, Instant, u64)> = None;
        for _ in 0..LOOKS {
            text.clear();
            let before = Instant::now();
            self.0.rewind()?;
            self.0.read_to_string(&mut text)?;
            let took = before.elapsed();
            let numbers = text.lines().find_map(|l| l.trim().strip_prefix("s0:"));
            let packets = numbers.and_then(|n| n.split_whitespace().nth(1)?.parse().ok());
            let packets = packets.context("no s0 in the sink's namespace")?;
            if best.is_none_or(|(least, ..)| took < least) {
                best = Some((took, before + took / 2, packets));
            }
            if took < LOOK_MAX {
                break;
            }
        }
        best.map(|(_, at, packets)| (at, packets)).context("never looked")
    }
}

impl Case {
    fn name(self) -> String {
        let Traffic { size, flows } = self.traffic;
        let rate =
            self.rate.map_or("nothing held back".to_owned(), |r| format!("{} Mbit/s", r / MBIT));
        format!("{size} B, {flows} flows, {rate}")
    }

    /// By how much of the rate what came through differs from it; nothing where none is set.
    fn error(self, packets_per_second: f64) -> Option<f64> {
        let bits = packets_per_second * ((u64::from(self.traffic.size) - FCS) * 8) as f64;
        self.rate.map(|rate| bits / rate as f64 - 1.0)
    }
}

fn print(kinds: &[Kind], rows: &[Vec<f64>]) {
    for (case, row) in CASES.into_iter().zip(rows) {
        println!("\n{}", case.name());
        let ours = kinds.iter().zip(row).find(|(k, _)| **k == Kind::Tidegate).map(|(_, &r)| r);
        for (kind, &rate) in kinds.iter().zip(row) {
            print!("  {:24} {:>9.0} packets/s", kind.name(), rate);
            match (case.error(rate), ours) {
                (Some(error), _) => println!("   {:+.3} % of its rate", error * 100.0),
                (None, Some(ours)) => println!("   tidegate has {:.2} x", ours / rate),
                (None, None) => println!(),
            }
        }
    }
}

fn to_json(kinds: &[Kind], rows: &[Vec<f64>]) -> Vec<Value> {
    let row = |(case, row): (Case, &Vec<f64>)| {
        let of_kind = |(kind, &rate): (&Kind, &f64)| {
            let error = case.error(rate);
            json!({ "shaper": kind.name(), "packets_per_second": rate, "error": error })
        };
        json!({
            "size": case.traffic.size, "flows": case.traffic.flows, "rate": case.rate,
            "shapers": kinds.iter().zip(row).map(of_kind).collect::<Vec<_>>(),
        })
    };
    CASES.into_iter().zip(rows).map(row).collect()
}
