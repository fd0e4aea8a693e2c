//! What a packet costs in each pipeline and stage, on ports in memory, and what a flow costs in
//! memory.
//!
//! `cargo bench --bench pipeline -- [--only CASE] [--flows N] [--rounds N] [--json FILE]
//! [--quick]`. Every packet
//! is a TCP segment of 64 B (with FCS) of a random one of the flows, half of them from clients and
//! half from servers; `l4-balancer` translates both ends (full NAT). A figure holds everything from
//! a port's receive burst to its transmit burst, and what it takes to write the packet and to
//! choose its flow: that part is shown apart as "(port alone)" and is not taken off. `--only
//! threads`: what it costs when 1, 2 and 4 workers are at it at once.

#[path = "../common/mod.rs"]
mod common;
mod memory;
mod parts;
#[allow(dead_code, reason = "shared with another measurement")]
mod rig;
mod threads;
mod traffic;

use std::collections::BTreeSet;
use std::process::ExitCode;

use clap::Parser;
use serde_json::{Value, json};
use tidegate::graph::spec::StageSpec::{self, Balance, Classify, Route, Shape, Tap};

use common::{Cli, Samples, machine};
use memory::Memory;
use parts::Part;
use rig::{inspect, rig, timing};

const FLOWS: [u32; 3] = [1, 10_000, 1_000_000];
const PACKETS: u64 = 2_000_000;

/// What the issue of this project asks of `l4-balancer`: nanoseconds at 10 k flows, how much more
/// at 1 M, and bytes a flow.
const TARGET_NS: f64 = 60.0;
const TARGET_RATIO: f64 = 2.0;
const TARGET_FLOW_BYTES: u64 = 192;

/// The pipelines that ship, and some that differ from another in one stage.
const CASES: [&str; 9] = [
    "l4-balancer",
    "llm-edge",
    "router",
    "tap",
    "balance + classify",
    "balance + inspect",
    "balance + timing",
    "balance + shape",
    "route + shape",
];

fn stages(case: &str) -> Vec<StageSpec> {
    match case {
        "l4-balancer" => vec![Balance],
        "llm-edge" => vec![inspect(), Classify, timing(), Balance, Shape],
        "router" => vec![Classify, Route, Shape],
        "tap" => vec![inspect(), Classify, timing(), Tap],
        "balance + classify" => vec![Classify, Balance],
        "balance + inspect" => vec![inspect(), Balance],
        "balance + timing" => vec![timing(), Balance],
        "balance + shape" => vec![Balance, Shape],
        _ => vec![Route, Shape],
    }
}

#[derive(Parser)]
#[command(about = "Measures what a packet costs in each pipeline and stage")]
struct Args {
    #[command(flatten)]
    cli: Cli,
    /// With so many flows; several may be given.
    #[arg(long)]
    flows: Vec<u32>,
}

struct Row {
    case: &'static str,
    flows: u32,
    ns: Samples,
}

struct Costs(Vec<Row>);

fn main() -> ExitCode {
    let Args { cli, flows } = Args::parse();
    println!("{}", machine());
    let (usual, packets) =
        if cli.quick { (&FLOWS[..2], PACKETS / 10) } else { (&FLOWS[..], PACKETS) };
    let flow_counts = if flows.is_empty() { usual } else { &flows };
    // First, while nothing that was given back can be used again.
    let memory = memory::measure(if cli.quick { 10_000 } else { 1_000_000 });
    let costs = Costs::measure(&cli, flow_counts, packets);
    costs.print(flow_counts);
    memory.print();
    costs.print_targets(&memory);
    let mut json = costs.json(&memory);
    json["threads"] = threads::print(&cli, packets).into();
    cli.write("pipeline", json)
}

impl Costs {
    fn measure(cli: &Cli, flow_counts: &[u32], packets: u64) -> Costs {
        let mut rows = Vec::new();
        for &flows in flow_counts {
            for part in Part::ALL.into_iter().filter(|part| cli.wants(part.name())) {
                let ns = part.measure(flows, packets, cli.rounds());
                rows.push(Row { case: part.name(), flows, ns });
            }
            for case in CASES.into_iter().filter(|case| cli.wants(case)) {
                let mut rig = rig(&stages(case), flows, 0);
                rig.measure(packets / 4);
                let ns = (0..cli.rounds()).map(|_| rig.measure(packets)).collect();
                rig.finish(case != "tap");
                rows.push(Row { case, flows, ns });
            }
        }
        Costs(rows)
    }

    fn at(&self, case: &str, flows: u32) -> Option<&Samples> {
        self.0.iter().find(|r| r.case == case && r.flows == flows).map(|r| &r.ns)
    }

    /// What `more` costs beyond `less`.
    fn between(&self, less: &str, more: &str, flows: u32) -> Option<f64> {
        Some(self.at(more, flows)?.median() - self.at(less, flows)?.median())
    }

    fn print(&self, flow_counts: &[u32]) {
        print!("{:<34}", "ns a packet: median (least); flows:");
        flow_counts.iter().for_each(|f| print!("{f:>18}"));
        println!();
        for case in Part::ALL.map(Part::name).into_iter().chain(CASES) {
            if flow_counts.iter().any(|&f| self.at(case, f).is_some()) {
                print!("{case:<34}");
                for &flows in flow_counts {
                    print!("{:>18}", self.at(case, flows).map_or("".into(), Samples::to_string));
                }
                println!();
            }
        }
        println!("by stage (differences of medians):");
        for (stage, less, more) in STAGES {
            let all: Vec<_> = flow_counts.iter().map(|&f| self.between(less, more, f)).collect();
            if all.iter().any(Option::is_some) {
                print!("  {stage:<32}");
                all.iter().for_each(|ns| print!("{:>18.1}", ns.unwrap_or(f64::NAN)));
                println!();
            }
        }
    }

    fn print_targets(&self, memory: &Memory) {
        let (Some(some), Some(many)) =
            (self.at("l4-balancer", 10_000), self.at("l4-balancer", 1_000_000))
        else {
            return;
        };
        let told = |reached| if reached { "reached" } else { "MISSED" };
        let (ns, ratio) = (some.median(), many.median() / some.median());
        println!("\ntargets of l4-balancer:");
        println!("  {ns:.1} ns at 10 k flows, {TARGET_NS} wanted: {}", told(ns <= TARGET_NS));
        let wanted = told(ratio <= TARGET_RATIO);
        println!("  {ratio:.2} x that at 1 M flows, {TARGET_RATIO} wanted: {wanted}");
        let wanted = told(memory.bytes_per_flow <= TARGET_FLOW_BYTES);
        println!("  {} B a flow, {TARGET_FLOW_BYTES} wanted: {wanted}", memory.bytes_per_flow);
    }

    fn json(&self, memory: &Memory) -> Value {
        let rows: Vec<_> = self
            .0
            .iter()
            .map(|r| json!({ "case": r.case, "flows": r.flows, "ns_per_packet": r.ns.json() }))
            .collect();
        let flow_counts: BTreeSet<_> = self.0.iter().map(|r| r.flows).collect();
        let stages: Vec<_> = flow_counts
            .into_iter()
            .flat_map(|flows| STAGES.map(|(stage, less, more)| (stage, less, more, flows)))
            .filter_map(|(stage, less, more, flows)| {
                let ns = self.between(less, more, flows)?;
                Some(json!({ "stage": stage, "flows": flows, "ns_per_packet": ns }))
            })
            .collect();
        json!({ "costs": rows, "stages": stages, "memory": memory.json() })
    }
}

/// Each stage as the difference of two rows.
const STAGES: [(&str, &str, &str); 6] = [
    ("parse", "(port alone)", "(port, parse)"),
    ("look up", "(port, parse)", "(port, parse, look up)"),
    ("balance, send", "(port, parse, look up)", "l4-balancer"),
    ("classify", "l4-balancer", "balance + classify"),
    ("inspect", "l4-balancer", "balance + inspect"),
    ("shape", "l4-balancer", "balance + shape"),
];
