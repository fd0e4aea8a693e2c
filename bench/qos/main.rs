//! Nanoseconds that the scheduler spends on one packet: its enqueue and its dequeue together.
//!
//! Packets of random flows come in bursts and leave in bursts, with a standing backlog, on a
//! virtual clock that runs at the port's speed. Classes stand two levels deep. `own`: rates come to
//! the port's, so that nearly all is sent within them. `borrow`: rates are a quarter of the port's,
//! the rest is borrowed. `ceil`: every class is held by its ceil, and sleeps between its packets.
//! `lines`: nothing is scheduled, and only as much memory changed as a packet must change.
//!
//! Beside it: threads that share a port's tree, DPDK's rte_sched on as many queues, and what a
//! class and a flow take of memory.
//!
//! `cargo bench --bench qos [-- [CLASSES/FLOWS/CASE] [--json FILE]]`: the first picks rows by how
//! their name begins.

mod lines;
mod memory;
mod peer;
mod rig;
mod threads;

use nix::sys::time::TimeValLike;
use nix::time::{ClockId, clock_gettime};
use rig::Rig;
use tidegate::base::Seed;
use tidegate::base::units::BitRate;
use tidegate::packet::{ClassId, PortId};
use tidegate::qos::Scheduler;
use tidegate::qos::spec::{ClassSpec, PortQosSpec, QueueSpec};

const PORT: BitRate = BitRate(100_000_000_000);
const LEN: usize = 1_514;
const OVERHEAD: u16 = 24;
const BURST: usize = 32;
/// Virtual nanoseconds in which the port sends one burst.
const BURST_NS: u64 = (LEN as u64 + OVERHEAD as u64) * 8 * BURST as u64 * 1_000_000_000 / PORT.0;
/// The best of so many rounds counts: what else runs on the machine can only take time away.
const ROUNDS: usize = 9;
const PACKETS_A_ROUND: usize = 500_000;
const SIZES: [(u16, u16); 3] = [(2, 4), (32, 32), (256, 250)];
const FLOWS: [u32; 3] = [1, 1_000, 100_000];

#[derive(Clone, Copy)]
enum Case {
    Own,
    Borrow,
    Ceil,
}

impl Case {
    const ALL: [Case; 3] = [Case::Own, Case::Borrow, Case::Ceil];

    fn name(self) -> &'static str {
        match self {
            Case::Own => "own",
            Case::Borrow => "borrow",
            Case::Ceil => "ceil",
        }
    }
}

struct Row {
    classes: u32,
    flows: u32,
    case: &'static str,
    ns: f64,
}

fn main() {
    let args: Vec<String> = std::env::args().skip(1).filter(|arg| arg != "--bench").collect();
    let json = args.iter().position(|arg| arg == "--json").and_then(|i| args.get(i + 1));
    let only = args.first().filter(|arg| !arg.starts_with("--")).map_or("", String::as_str);
    let everything = only.is_empty();
    let memory = everything.then(memory::print);
    let mut rows = Vec::new();
    println!("classes/flows/case     ns a packet");
    for (tenants, leaves) in SIZES {
        let classes = u32::from(tenants) * u32::from(leaves);
        for flows in FLOWS {
            let mut row = |case: &'static str, measure: &dyn Fn() -> f64| {
                let name = format!("{classes}/{flows}/{case}");
                if name.starts_with(only) {
                    let ns = measure();
                    println!("{name:22} {ns:>8.1}");
                    rows.push(Row { classes, flows, case, ns });
                }
            };
            for case in Case::ALL {
                row(case.name(), &|| measure(tenants, leaves, flows, case));
            }
            row("lines", &|| lines::measure(classes, flows.max(classes), backlog(classes, flows)));
        }
    }
    let shared = if everything { threads::print() } else { Vec::new() };
    let peers = if everything { peer::print() } else { Vec::new() };
    let Some(path) = json else { return };
    let rows: Vec<_> = rows.iter().map(Row::to_json).collect();
    let text = serde_json::json!({
        "bench": "qos", "rows": rows, "threads": shared, "rte_sched": peers, "memory": memory,
    });
    if let Err(e) = std::fs::write(path, format!("{text}\n")) {
        eprintln!("{path}: {e}");
        std::process::exit(1);
    }
}

impl Row {
    fn to_json(&self) -> serde_json::Value {
        serde_json::json!({
            "classes": self.classes, "flows": self.flows, "case": self.case, "ns": self.ns,
        })
    }
}

fn measure(tenants: u16, leaves: u16, flows: u32, case: Case) -> f64 {
    let spec = tree(tenants, leaves, case);
    let mut rig = Rig::new(tenants, leaves, flows, |frames| Scheduler::new(&spec, frames, Seed(1)));
    let ns = (0..ROUNDS).map(|_| rig.round()).fold(f64::INFINITY, f64::min);
    rig.finish();
    ns
}

/// Packets that stand in as many classes, of so many flows.
fn backlog(classes: u32, flows: u32) -> u32 {
    (4 * classes).max(flows).max(1_024)
}

fn tree(tenants: u16, leaves: u16, case: Case) -> PortQosSpec {
    let part = |whole: BitRate, n: u16| BitRate(whole.0 / u64::from(n));
    let of = |id, parent, rate: BitRate, ceil| {
        let rate = if matches!(case, Case::Borrow) { part(rate, 4) } else { rate };
        ClassSpec {
            parent,
            burst: 64 << 10,
            cburst: 64 << 10,
            queue: QueueSpec::INTERNET,
            ..ClassSpec::plain(id, rate, ceil)
        }
    };
    let tenant_rate = part(PORT, tenants);
    let rate = part(tenant_rate, leaves);
    let mut classes = Vec::new();
    for t in 0..tenants {
        let id = t * (leaves + 1);
        classes.push(of(id, None, tenant_rate, PORT));
        for leaf in 1..=leaves {
            let ceil = if matches!(case, Case::Ceil) { rate } else { PORT };
            classes.push(of(id + leaf, Some(ClassId(id)), rate, ceil));
        }
    }
    PortQosSpec {
        port: PortId(0),
        rate: PORT,
        burst: 1 << 20,
        overhead: OVERHEAD,
        mpu: 84,
        mtu: LEN as u16,
        default_class: ClassId(1),
        classes,
    }
}

/// What this thread has had of a CPU: other programs on the machine don't count, but for the cache
/// lines that they take.
fn cpu_ns() -> f64 {
    let clock = ClockId::CLOCK_THREAD_CPUTIME_ID;
    clock_gettime(clock).expect("every thread has this clock").num_nanoseconds() as f64
}
