//! What a packet costs of memory alone, with nothing scheduled.

use std::hint::black_box;

use tidegate::base::Seed;
use tidegate::base::hash::Rng;
use tidegate::base::mem::{Table, prefetch};

use crate::{BURST, PACKETS_A_ROUND, ROUNDS, cpu_ns};

type Line = [u64; 8];

/// Of a leaf, its flow and the packet's own cell, as the packet comes.
const COMES: [usize; 3] = [0, 1, 2];
/// The same and the class's buckets, as another one leaves.
const LEAVES: [usize; 4] = [0, 1, 2, 3];

/// Nanoseconds for the seven lines that a packet changes on its way in and out, in tables as large
/// as the scheduler's: random ones, since flows are, and those of a burst asked for at once. Two
/// flows, and two cells, share a line.
pub fn measure(classes: u32, flows: u32, packets: u32) -> f64 {
    let lines = [classes, flows / 2, packets / 2, classes].map(|n| n.max(1));
    let mut tables = lines.map(|n| Table::filled(n as usize, Line::default()));
    let mut rng = Rng::new(Seed(7));
    let mut picks = vec![0_u32; BURST * LEAVES.len()];
    let mut pass = |of: &[usize]| {
        let picks = &mut picks[..BURST * of.len()];
        for (i, pick) in picks.iter_mut().enumerate() {
            let table = of[i % of.len()];
            *pick = rng.below(lines[table]);
            prefetch(&tables[table], *pick as usize);
        }
        for (i, pick) in picks.iter().enumerate() {
            tables[of[i % of.len()]][*pick as usize][0] += 1;
        }
        black_box(&tables);
    };
    let mut round = || {
        let begin = cpu_ns();
        for _ in 0..PACKETS_A_ROUND / BURST {
            pass(&COMES);
            pass(&LEAVES);
        }
        (cpu_ns() - begin) / PACKETS_A_ROUND as f64
    };
    (0..ROUNDS).map(|_| round()).fold(f64::INFINITY, f64::min)
}
