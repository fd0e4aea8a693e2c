//! Nanoseconds that the scheduler spends on one packet: its enqueue and its dequeue together.
//!
//! Packets of random flows come in bursts and leave in bursts, with a standing backlog, on a
//! virtual clock that runs at the port's speed. Classes stand two levels deep. `own`: rates come to
//! the port's, so that nearly all is sent within them. `borrow`: rates are a quarter of the port's,
//! the rest is borrowed. `ceil`: every class is held by its ceil, and sleeps between its packets.
//!
//! `cargo bench --bench qos [-- [CLASSES/FLOWS/CASE] [--json FILE]]`: the first picks rows by how
//! their name begins.

use std::sync::Arc;

use nix::sys::resource::{UsageWho, getrusage};
use nix::sys::time::TimeValLike;
use tidegate::base::hash::Rng;
use tidegate::base::mem::Arena;
use tidegate::base::units::BitRate;
use tidegate::base::{Nanos, Seed};
use tidegate::packet::frame::HEADROOM;
use tidegate::packet::{ClassId, Frame, FramePool, PortId};
use tidegate::qos::spec::{ClassSpec, PortQosSpec, QueueSpec};
use tidegate::qos::{Queued, Scheduler};

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
    case: Case,
    ns: f64,
}

fn main() {
    let args: Vec<String> = std::env::args().skip(1).filter(|arg| arg != "--bench").collect();
    let json = args.iter().position(|arg| arg == "--json").and_then(|i| args.get(i + 1));
    let only = args.first().filter(|arg| !arg.starts_with("--")).map_or("", String::as_str);
    let mut rows = Vec::new();
    println!("classes/flows/case     ns a packet");
    for (tenants, leaves) in SIZES {
        let classes = u32::from(tenants) * u32::from(leaves);
        for flows in FLOWS {
            for case in Case::ALL {
                let name = format!("{classes}/{flows}/{}", case.name());
                if name.starts_with(only) {
                    let ns = measure(tenants, leaves, flows, case);
                    println!("{name:22} {ns:>8.1}");
                    rows.push(Row { classes, flows, case, ns });
                }
            }
        }
    }
    if let Some(path) = json {
        let rows: Vec<_> = rows
            .iter()
            .map(|r| {
                serde_json::json!({
                    "classes": r.classes, "flows": r.flows, "case": r.case.name(), "ns": r.ns,
                })
            })
            .collect();
        let text = serde_json::json!({ "bench": "qos", "rows": rows }).to_string();
        if let Err(e) = std::fs::write(path, text + "\n") {
            eprintln!("{path}: {e}");
            std::process::exit(1);
        }
    }
}

fn tree(tenants: u16, leaves: u16, case: Case) -> PortQosSpec {
    let part = |whole: BitRate, n: u16| BitRate(whole.0 / u64::from(n));
    let of = |id, parent, rate: BitRate, ceil| {
        let rate = if matches!(case, Case::Borrow) { part(rate, 4) } else { rate };
        ClassSpec {
            id: ClassId(id),
            name: format!("c{id}"),
            parent,
            rate,
            ceil,
            burst: 64 << 10,
            cburst: 64 << 10,
            priority: 0,
            weight: 1,
            quantum: None,
            limit: u32::MAX,
            queue: QueueSpec::INTERNET,
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

fn measure(tenants: u16, leaves: u16, flows: u32, case: Case) -> f64 {
    let classes = u32::from(tenants) * u32::from(leaves);
    let backlog = (4 * classes).max(flows).max(1_024) as usize;
    let frames = backlog + 4 * BURST;
    // The scheduler never looks into a frame: slots may be smaller than what they stand for.
    let (arena, slots) = Arena::map(frames as u32, 64, false).expect("memory");
    let mut pool = FramePool::new(Arc::clone(&arena), slots);
    let spec = tree(tenants, leaves, case);
    let mut scheduler = Scheduler::new(&spec, frames as u32, Seed(1));
    let mut rng = Rng::new(Seed(2));
    let arrivals: Vec<(ClassId, u32)> = (0..1 << 20)
        .map(|_| {
            let flow = rng.below(flows.max(classes));
            let (class, flow) = (flow % classes, flow / classes % flows.div_ceil(classes));
            let (tenant, leaf) = (class as u16 / leaves, class as u16 % leaves);
            (ClassId(tenant * (leaves + 1) + 1 + leaf), flow.wrapping_mul(0x9e37_79b9))
        })
        .collect();
    let mut next = arrivals.iter().cycle();
    let mut dropped = Vec::with_capacity(BURST);
    let mut out: Vec<Frame> = Vec::with_capacity(BURST);
    let mut lost = Vec::with_capacity(BURST);
    let mut now = Nanos(0);
    let mut batch = Vec::with_capacity(BURST);
    let mut offer = |scheduler: &mut Scheduler, pool: &mut FramePool, now, packets: usize| {
        for _ in 0..packets {
            let (Some(slot), Some(&(class, flow_hash))) = (pool.take_slot(), next.next()) else {
                break;
            };
            let frame = Frame::new(slot, HEADROOM, LEN);
            batch.push(Queued { frame, class, flow_hash, l3: 0 });
            if batch.len() == BURST {
                scheduler.enqueue_all(now, &mut batch, &arena, &mut dropped);
            }
        }
        scheduler.enqueue_all(now, &mut batch, &arena, &mut dropped);
    };
    offer(&mut scheduler, &mut pool, now, backlog);
    let mut rounds = Vec::with_capacity(ROUNDS);
    for _ in 0..ROUNDS {
        let (mut moved, begin) = (0, cpu_ns());
        while moved < PACKETS_A_ROUND {
            now = now.saturating_add(BURST_NS);
            let n = scheduler.dequeue(now, BURST, u64::MAX, &arena, &mut out, &mut lost);
            let lost_now = lost.len();
            lost.drain(..).for_each(|(frame, _)| pool.put(frame));
            out.drain(..).for_each(|frame| pool.put(frame));
            let gone = n + lost_now;
            offer(&mut scheduler, &mut pool, now, gone);
            moved += gone;
        }
        rounds.push((cpu_ns() - begin) / moved as f64);
    }
    scheduler.drain(&mut out);
    out.drain(..).for_each(|frame| pool.put(frame));
    rounds.into_iter().fold(f64::INFINITY, f64::min)
}

/// What this thread has had of a CPU: other programs on the machine don't count, but for the cache
/// lines that they take.
fn cpu_ns() -> f64 {
    let usage = getrusage(UsageWho::RUSAGE_THREAD).expect("a thread may ask for its own usage");
    let us = usage.user_time().num_microseconds() + usage.system_time().num_microseconds();
    us as f64 * 1e3
}
