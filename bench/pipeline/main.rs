//! What a packet costs in each pipeline and stage, on ports in memory, and what a flow costs in
//! memory.
//!
//! `cargo bench --bench pipeline -- [--json FILE] [--quick]`. Every packet is a TCP segment of 64 B
//! (with FCS) of a random one of the flows, half of them from clients and half from servers. Each
//! figure is the best of several rounds; the port's own cost is shown apart and is not taken off.

mod rig;
mod traffic;

use std::fs;
use std::time::Instant;

use serde_json::json;
use tidegate::base::{Nanos, Seed};
use tidegate::graph::spec::StageSpec::{self, Balance, Classify, Route, Shape, Tap};
use tidegate::nic::Port;
use tidegate::packet::{Frame, FramePool, PacketMeta};
use tidegate::packet::{ParseOptions, parse};

use rig::{Shared, inspect, port, rig};
use traffic::{Mode, Traffic};

const FLOWS: [u32; 3] = [1, 10_000, 1_000_000];
const ROUNDS: usize = 7;
const BURST: usize = 64;

/// Costs of the pipelines that ship, and of some that only differ in one stage.
const CASES: [&str; 8] = [
    "l4-balancer",
    "llm-edge",
    "router",
    "tap",
    "balance + classify",
    "balance + inspect",
    "balance + shape",
    "route + shape",
];

fn stages(case: &str) -> Vec<StageSpec> {
    match case {
        "l4-balancer" => vec![Balance],
        "llm-edge" => vec![inspect(), Classify, Balance, Shape],
        "router" => vec![Classify, Route, Shape],
        "tap" => vec![inspect(), Classify, Tap],
        "balance + classify" => vec![Classify, Balance],
        "balance + inspect" => vec![inspect(), Balance],
        "balance + shape" => vec![Balance, Shape],
        _ => vec![Route, Shape],
    }
}

fn main() {
    let args: Vec<String> = std::env::args().collect();
    let quick = args.iter().any(|a| a == "--quick");
    let packets = if quick { 200_000 } else { 2_000_000 };
    let flow_counts = if quick { &FLOWS[..2] } else { &FLOWS[..] };
    let mut rows = Vec::new();
    for &flows in flow_counts {
        let port_ns = port_cost(flows, packets, false);
        let parse_ns = port_cost(flows, packets, true);
        rows.push(("(port alone)", flows, port_ns));
        rows.push(("(port and parse)", flows, parse_ns));
        for case in CASES {
            rows.push((case, flows, cost(case, flows, packets)));
        }
    }
    print_costs(&rows, flow_counts);
    let memory = memory(if quick { 10_000 } else { 1_000_000 });
    let (flow, start, flows) = (memory.0, memory.1 >> 20, memory.2);
    println!("\nmemory: {flow} B a flow; {start} MiB at start for {flows} flows");
    if let Some(at) = args.iter().position(|a| a == "--json") {
        let costs: Vec<_> = rows
            .iter()
            .map(|(case, flows, ns)| json!({"case": case, "flows": flows, "ns_per_packet": ns}))
            .collect();
        let all = json!({
            "costs": costs,
            "bytes_per_flow": memory.0,
            "start_bytes": memory.1,
            "start_flows_max": memory.2,
        });
        let path = args.get(at + 1).map_or("pipeline.json", String::as_str);
        fs::write(path, format!("{all:#}\n")).expect("the JSON file can't be written");
    }
}

fn cost(case: &str, flows: u32, packets: u64) -> f64 {
    let mut rig = rig(&stages(case), flows, 0);
    rig.measure(packets / 4);
    let best = (0..ROUNDS).map(|_| rig.measure(packets)).fold(f64::INFINITY, f64::min);
    rig.finish(case != "tap");
    best
}

/// Both ports without a worker, with or without the headers being read.
fn port_cost(flows: u32, packets: u64, with_parse: bool) -> f64 {
    let traffic: Shared = Shared::new(std::cell::RefCell::new(Traffic::new(flows, true)));
    traffic.borrow_mut().set(Mode::Data, 0);
    let mut ports = [side(&traffic, 0), side(&traffic, 1)];
    let mut pool = FramePool::standalone(4_096, 2_048);
    let mut frames: Vec<Frame> = Vec::with_capacity(BURST);
    let mut round = || {
        let start = Instant::now();
        for _ in 0..packets / (2 * BURST as u64) {
            for port in &mut ports {
                port.rx_burst(Nanos::ZERO, &mut pool, &mut frames, BURST);
                for frame in frames.iter().filter(|_| with_parse) {
                    let mut meta = PacketMeta::default();
                    let bytes = frame.bytes(pool.arena());
                    let result = parse(bytes, Seed(1), ParseOptions::default(), &mut meta);
                    std::hint::black_box((result.is_ok(), &meta));
                }
                port.tx_burst(Nanos::ZERO, &mut pool, &mut frames);
            }
        }
        start.elapsed().as_nanos() as f64 / packets as f64
    };
    (0..ROUNDS).map(|_| round()).fold(f64::INFINITY, f64::min)
}

fn side(traffic: &Shared, id: usize) -> impl Port + use<> {
    port(traffic, id)
}

fn print_costs(rows: &[(&str, u32, f64)], flow_counts: &[u32]) {
    let at = |case: &str, flows: u32| {
        rows.iter().find(|r| r.0 == case && r.1 == flows).map_or(f64::NAN, |r| r.2)
    };
    print!("{:<22}", "ns a packet; flows:");
    flow_counts.iter().for_each(|f| print!("{f:>12}"));
    println!();
    let line = |name: &str, value: &dyn Fn(u32) -> f64| {
        print!("{name:<22}");
        flow_counts.iter().for_each(|f| print!("{:>12.1}", value(*f)));
        println!();
    };
    for case in ["(port alone)", "(port and parse)"].into_iter().chain(CASES) {
        line(case, &|f| at(case, f));
    }
    println!("by stage (differences):");
    line("  parse", &|f| at("(port and parse)", f) - at("(port alone)", f));
    let worker = |f| at("l4-balancer", f) - at("(port and parse)", f);
    line("  look up, balance, send", &worker);
    for stage in ["classify", "inspect", "shape"] {
        let with = format!("balance + {stage}");
        line(&format!("  {stage}"), &|f| at(&with, f) - at("l4-balancer", f));
    }
}

/// Bytes a flow, bytes of a process that has started, and the flows it has room for.
fn memory(flows_max: u32) -> (u64, u64, u32) {
    let before = data_bytes();
    let small = rig(&[Balance], 1, 1);
    let with_one = data_bytes();
    let large = rig(&[Balance], 1, flows_max);
    let with_many = data_bytes();
    small.finish(true);
    large.finish(true);
    let one = with_one.saturating_sub(before);
    let many = with_many.saturating_sub(with_one);
    (many.saturating_sub(one) / u64::from(flows_max), many, flows_max)
}

/// Private memory that the process has asked for, whether touched or not.
fn data_bytes() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|l| l.strip_prefix("VmData:"));
    let kib = line.and_then(|l| l.split_whitespace().next()?.parse::<u64>().ok());
    kib.unwrap_or(0) * 1_024
}
