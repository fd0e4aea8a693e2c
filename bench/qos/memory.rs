//! What the scheduler takes of memory, by what the process has more of once there is another one.

use serde_json::{Value, json};
use tidegate::base::Seed;
use tidegate::qos::Scheduler;

use crate::{Case, tree};

const FEW_PACKETS: u32 = 1 << 10;
const MANY_PACKETS: u32 = 1 << 20;

/// Prints bytes a class, and bytes a place for a packet with the flow that it may be alone in. To
/// be called first: later the allocator has memory that was freed, and takes none from the system.
pub fn print() -> Value {
    let (few, _a) = resident(2, 4, FEW_PACKETS);
    let (many_classes, _b) = resident(256, 250, FEW_PACKETS);
    let (many_packets, _c) = resident(2, 4, MANY_PACKETS);
    let class = (many_classes - few) / (256.0 * 251.0 - 2.0 * 5.0);
    let packet = (many_packets - few) / f64::from(MANY_PACKETS - FEW_PACKETS);
    println!("memory: {class:.0} bytes a class, {packet:.0} a packet held and its flow\n");
    json!({ "bytes_a_class": class, "bytes_a_packet_and_flow": packet })
}

/// Bytes that a scheduler adds to those resident, and the scheduler.
fn resident(tenants: u16, leaves: u16, packets: u32) -> (f64, Scheduler) {
    let spec = tree(tenants, leaves, Case::Own);
    let before = pages();
    let scheduler = Scheduler::new(&spec, packets, Seed(1));
    ((pages() - before) * 4_096.0, scheduler)
}

/// Resident pages, proc_pid_statm(5).
fn pages() -> f64 {
    let text = std::fs::read_to_string("/proc/self/statm").expect("/proc");
    text.split(' ').nth(1).and_then(|n| n.parse().ok()).expect("a number")
}
