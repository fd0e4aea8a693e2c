//! A million routes: memory, time to build, a look-up's cost, and what replacing them costs the
//! packets.
//!
//! `cargo bench --bench routes -- [--routes N] [--rounds N] [--json FILE] [--quick] [--kernel]`.
//! IPv4 prefixes are random over the unicast space, of lengths as the Internet's (60 % /24). IPv6
//! ones lie in the registries' blocks: providers' /29 to /32, and up to 19 longer ones within each.
//! Every route leads to one of 200 gateways by chance, so that neighbours have nothing in common.
//! `--kernel` loads as many into the kernel of a network namespace and follows them from there;
//! it needs root.

#[path = "../common/mod.rs"]
mod common;
mod kernel;
#[path = "../pipeline/rig.rs"]
#[allow(dead_code, reason = "shared with another measurement")]
mod rig;
mod tables;
#[path = "../pipeline/traffic.rs"]
#[allow(dead_code, reason = "shared with another measurement")]
mod traffic;

use std::hint::black_box;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Instant;

use clap::Parser;
use serde_json::{Value, json};
use tidegate::base::Addr;
use tidegate::forward::Routes;
use tidegate::forward::fib::Fib;
use tidegate::graph::spec::StageSpec::Route;
use tidegate::packet::FlowKey;
use tidegate::packet::batch::BATCH_MAX;

use common::{Cli, Samples, machine};
use tables::{Table, v4, v6};

const LOOKUPS: usize = 1_000_000;
/// What the issue of this project asks for.
const TARGET_NS: f64 = 30.0;
const TARGET_TURN_US: f64 = 1_000.0;
const FLOWS: u32 = 10_000;
const PACKETS: u64 = 2_000_000;

#[derive(Parser)]
#[command(about = "Measures forwarding tables of many routes")]
struct Args {
    #[command(flatten)]
    cli: Cli,
    /// Routes of each table.
    #[arg(long, default_value_t = 1_000_000)]
    routes: usize,
    /// Also from the kernel, by netlink.
    #[arg(long)]
    kernel: bool,
}

fn main() -> ExitCode {
    let args = Args::parse();
    println!("{}", machine());
    let routes = if args.cli.quick { args.routes.min(50_000) } else { args.routes };
    let few = Table::new("10 routes, IPv4", v4(10, 1));
    let many = Table::new(&format!("{routes} routes, IPv4"), v4(routes, 1));
    let many_v6 = Table::new(&format!("{routes} routes, IPv6"), v6(routes));
    println!("{:<26}{:>10}{:>10}  ns a look-up: median (least)", "", "MiB", "build ms");
    let mut rows: Vec<_> = [few, many, many_v6]
        .iter()
        .filter(|table| args.cli.wants(&table.name))
        .flat_map(|table| measure(table, &args.cli))
        .collect();
    rows.push(swaps(routes, if args.cli.quick { PACKETS / 10 } else { PACKETS }));
    if args.kernel {
        rows.push(kernel::measure(routes));
    }
    args.cli.write("routes", json!({ "rows": rows }))
}

fn measure(table: &Table, cli: &Cli) -> Vec<Value> {
    let start = Instant::now();
    let fib = table.builder().build();
    let build_ms = start.elapsed().as_secs_f64() * 1e3;
    let mib = fib.memory_bytes() as f64 / f64::from(1 << 20);
    println!("{:<26}{mib:>10.1}{build_ms:>10.0}", table.name);
    let of = |what: &str, addrs: Vec<Addr>, look: fn(&Arc<Fib>, &[Addr]) -> f64| {
        let ns: Samples = (0..cli.rounds()).map(|_| look(&fib, &addrs)).collect();
        let told = if ns.median() <= TARGET_NS { "reached" } else { "MISSED" };
        println!("  {what:<44}  {ns}   {TARGET_NS} wanted: {told}");
        json!({
            "table": table.name, "addresses": what, "memory_bytes": fib.memory_bytes(),
            "build_ms": build_ms, "ns": ns.json(),
        })
    };
    vec![
        of("any unicast address", table.any_addresses(LOOKUPS), look_up),
        of("addresses of the routes", table.addresses_within(LOOKUPS), look_up),
        of("the same, asked for by the batch", table.addresses_within(LOOKUPS), look_up_batches),
    ]
}

fn look_up(fib: &Arc<Fib>, addrs: &[Addr]) -> f64 {
    let (start, flow) = (Instant::now(), FlowKey::default());
    for addr in addrs {
        let _ = black_box(fib.way(*addr, &flow));
    }
    start.elapsed().as_nanos() as f64 / addrs.len() as f64
}

/// As the `route` stage does for packets that begin flows.
fn look_up_batches(fib: &Arc<Fib>, addrs: &[Addr]) -> f64 {
    let (start, flow) = (Instant::now(), FlowKey::default());
    for batch in addrs.chunks(BATCH_MAX) {
        fib.ask(batch.iter().copied());
        for addr in batch {
            let _ = black_box(fib.way(*addr, &flow));
        }
    }
    start.elapsed().as_nanos() as f64 / addrs.len() as f64
}

/// The longest turn of a worker's loop that forwards by one table and then by another.
fn swaps(routes: usize, packets: u64) -> Value {
    let table = |seed| Table::new("", v4(routes, seed)).with_paths(&rig::routes_of_traffic());
    let both: Vec<Arc<Routes>> =
        [table(1), table(2)].iter().enumerate().map(|(i, t)| t.routes(10 + i as u32)).collect();
    let mut rig = rig::rig(&[Route], FLOWS, 0);
    rig.turns(packets, &both, packets / 20);
    let (alone, _) = rig.turns(packets, &[], packets);
    let (swapped, swaps) = rig.turns(packets, &both, packets / 200);
    rig.finish(true);
    let us = |turns: &[u64]| turns.first().map_or(f64::NAN, |ns| *ns as f64 / 1e3);
    let (without, with) = (us(&alone), us(&swapped));
    let told = if with <= TARGET_TURN_US { "reached" } else { "MISSED" };
    println!(
        "longest turn of a worker, {FLOWS} flows: {without:.0} us; with {swaps} replacements of \
         the table: {with:.0} us, {TARGET_TURN_US} wanted: {told}"
    );
    json!({ "longest_turn_us": without, "replaced": swaps, "longest_turn_replaced_us": with })
}
