//! What a worker takes at its start, and what a flow's place costs.

use std::fs;

use serde_json::{Value, json};
use tidegate::graph::spec::StageSpec;

use crate::rig::rig;

pub struct Memory {
    pub bytes_per_flow: u64,
    /// Of a worker with places for `flows_max`.
    start_bytes: u64,
    flows_max: u32,
}

/// Compares a worker that has room for `flows_max` flows with one that has room for few.
pub fn measure(flows_max: u32) -> Memory {
    let few = 1_000;
    let before = data_bytes();
    let small = rig(&[StageSpec::Balance], 1, few);
    let with_small = data_bytes();
    let large = rig(&[StageSpec::Balance], 1, flows_max);
    let with_both = data_bytes();
    small.finish(true);
    large.finish(true);
    let start_bytes = with_both.saturating_sub(with_small);
    let more = start_bytes.saturating_sub(with_small.saturating_sub(before));
    Memory { bytes_per_flow: more.div_ceil(u64::from(flows_max - few)), start_bytes, flows_max }
}

impl Memory {
    pub fn print(&self) {
        let (flow, start, flows) = (self.bytes_per_flow, self.start_bytes >> 20, self.flows_max);
        println!("\nmemory: {flow} B a flow; {start} MiB at a worker's start for {flows} flows");
    }

    pub fn json(&self) -> Value {
        json!({
            "bytes_per_flow": self.bytes_per_flow,
            "start_bytes": self.start_bytes,
            "flows_max": self.flows_max,
        })
    }
}

/// Private memory that the process has asked for, whether touched or not.
fn data_bytes() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|l| l.strip_prefix("VmData:"));
    let kib = line.and_then(|l| l.split_whitespace().next()?.parse::<u64>().ok());
    kib.unwrap_or(0) * 1_024
}
