//! Whole workers side by side, as cards with a queue each feed them: what a packet costs when
//! others work on the same ports.

use std::sync::Barrier;
use std::thread;

use nix::sys::time::TimeValLike;
use nix::time::{ClockId, clock_gettime};
use serde_json::{Value, json};
use tidegate::qos::SharedPorts;

use crate::common::{Cli, Samples};
use crate::rig::{Others, rig_beside};
use crate::stages;

const THREADS: [u16; 3] = [1, 2, 4];
const CASES: [&str; 1] = ["l4-balancer"];
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
    println!(
        "\nworkers at once, {FLOWS} flows each; {cores} cores: CPU ns a packet, median (least)"
    );
    for case in CASES {
        print!("{case:<34}");
        for count in THREADS {
            let ns = measure(case, count, packets, cli.rounds());
            print!("{:>18}", format!("{count}: {ns}"));
            rows.push(json!({ "case": case, "threads": count, "ns_per_packet": ns.json() }));
        }
        println!();
    }
    rows
}

/// Of each round the mean over the threads.
fn measure(case: &str, count: u16, packets: u64, rounds: u32) -> Samples {
    let (shared, start) = (SharedPorts::default(), Barrier::new(usize::from(count)));
    let run = || {
        let others = Others { workers: count, shared: shared.clone() };
        let mut rig = rig_beside(&stages(case), FLOWS, 0, others);
        start.wait();
        rig.measure(packets / 4);
        let ns: Vec<f64> = (0..rounds)
            .map(|_| {
                start.wait();
                let begin = cpu_ns();
                let done = rig.run(packets);
                (cpu_ns() - begin) / done as f64
            })
            .collect();
        // None leaves the trees before all have ended.
        start.wait();
        rig.close();
        ns
    };
    let all: Vec<Vec<f64>> = thread::scope(|scope| {
        let threads: Vec<_> = (0..count).map(|_| scope.spawn(run)).collect();
        threads.into_iter().map(|t| t.join().expect("thread")).collect()
    });
    let mean = |round: usize| all.iter().map(|ns| ns[round]).sum::<f64>() / f64::from(count);
    (0..rounds as usize).map(mean).collect()
}

fn cpu_ns() -> f64 {
    let clock = ClockId::CLOCK_THREAD_CPUTIME_ID;
    clock_gettime(clock).expect("every thread has this clock").num_nanoseconds() as f64
}
