//! Threads that shape one port together: what a packet costs each of them beside the others.

use std::sync::{Arc, Barrier};
use std::thread;

use serde_json::{Value, json};
use tidegate::base::Seed;
use tidegate::base::units::BitRate;
use tidegate::qos::spec::PortQosSpec;
use tidegate::qos::{Scheduler, Shared};

use crate::rig::Rig;
use crate::{Case, PORT, ROUNDS, tree};

const THREADS: [usize; 3] = [1, 2, 4];
const FLOWS: u32 = 1_000;

/// Prints a row for each number of threads. Time is that of the threads on their cores, not of the
/// clock on the wall: more threads than cores only take turns.
pub fn print() -> Vec<Value> {
    println!("\nthreads at one tree (8 classes, {FLOWS} flows each)     ns a packet");
    THREADS
        .iter()
        .map(|&count| {
            let ns = measure(count);
            println!("{count:<52} {ns:>11.1}");
            json!({ "threads": count, "ns": ns })
        })
        .collect()
}

/// The mean over the threads of their best rounds.
fn measure(count: usize) -> f64 {
    // Each thread's clock runs at the pace of its own packets: the port has room for all.
    let fast = |rate: BitRate| BitRate(rate.0 * 2 * count as u64);
    let mut spec = PortQosSpec { rate: fast(PORT), ..tree(2, 4, Case::Own) };
    for class in &mut spec.classes {
        (class.rate, class.ceil) = (fast(class.rate), fast(class.ceil));
    }
    let (shared, start) = (Shared::new(&spec), Barrier::new(count));
    let run = || {
        let mut rig = Rig::new(2, 4, FLOWS, |frames| {
            Scheduler::member(&spec, frames, Seed(1), Arc::clone(&shared))
        });
        start.wait();
        let ns = (0..ROUNDS).map(|_| rig.round()).fold(f64::INFINITY, f64::min);
        // The others still measure: none leaves the tree before all have ended.
        start.wait();
        rig.finish();
        ns
    };
    let all: f64 = thread::scope(|scope| {
        let threads: Vec<_> = (0..count).map(|_| scope.spawn(run)).collect();
        threads.into_iter().map(|t| t.join().expect("thread")).sum()
    });
    all / count as f64
}
