//! Whole workers side by side, as cards with a queue each feed them: what a packet costs when
//! others work on the same ports.

use std::sync::{Barrier, Mutex, PoisonError};
use std::thread;

use nix::sys::time::TimeValLike;
use nix::time::{ClockId, clock_gettime};
use serde_json::{Value, json};

use crate::common::{Cli, Samples};
use crate::rig::{Others, rig_beside};
use crate::stages;

const THREADS: [u16; 3] = [1, 2, 4];
const CASES: [&str; 3] = ["l4-balancer", "router", "llm-edge"];
/// Of each worker.
const FLOWS: u32 = 10_000;

/// Measures and prints a row for each pipeline and number of threads. Time is that of the threads
/// on their cores, not of the clock on the wall: more threads than cores only take turns.
pub fn print(cli: &Cli, packets: u64) -> Vec<Value> {
    let mut rows = Vec::new();
    if !cli.wants("threads") {
        return rows;
    }
    let cores = thread::available_parallelism().map_or(1, usize::from);
    println!("\nworkers at once, {FLOWS} flows each; {cores} cores: CPU ns a packet (least), lost");
    for case in CASES {
        print!("{case:<34}");
        for count in THREADS {
            let (ns, lost) = measure(case, count, packets, cli.rounds());
            print!("{:>24}", format!("{count}: {ns}, {:.1} %", lost * 100.0));
            rows.push(json!({
                "case": case, "threads": count, "ns_per_packet": ns.json(), "lost": lost,
            }));
        }
        println!();
    }
    rows
}

/// Of each round the mean over the threads; and the share of packets that were lost: where there
/// are fewer cores than threads, one that waits for its core may be at a tree that the others need.
fn measure(case: &str, count: u16, packets: u64, rounds: u32) -> (Samples, f64) {
    let (others, start) = (Others::new(count), Barrier::new(usize::from(count)));
    let opening = Mutex::new(());
    let run = || {
        // One after the other: of these packets none may be lost.
        let one = opening.lock().unwrap_or_else(PoisonError::into_inner);
        let mut rig = rig_beside(&stages(case), FLOWS, 0, others.clone());
        drop(one);
        start.wait();
        let mut moved = rig.run(packets / 4);
        let ns: Vec<f64> = (0..rounds)
            .map(|_| {
                start.wait();
                let begin = cpu_ns();
                let done = rig.run(packets);
                moved += done;
                (cpu_ns() - begin) / done as f64
            })
            .collect();
        let lost = rig.dropped() as f64 / moved as f64;
        // None leaves the trees before all have ended.
        start.wait();
        rig.close();
        (ns, lost)
    };
    let all: Vec<(Vec<f64>, f64)> = thread::scope(|scope| {
        let threads: Vec<_> = (0..count).map(|_| scope.spawn(run)).collect();
        threads.into_iter().map(|t| t.join().expect("thread")).collect()
    });
    let mean = |round: usize| all.iter().map(|(ns, _)| ns[round]).sum::<f64>() / f64::from(count);
    let lost = all.iter().map(|(_, lost)| lost).sum::<f64>() / f64::from(count);
    ((0..rounds as usize).map(mean).collect(), lost)
}

fn cpu_ns() -> f64 {
    let clock = ClockId::CLOCK_THREAD_CPUTIME_ID;
    clock_gettime(clock).expect("every thread has this clock").num_nanoseconds() as f64
}
