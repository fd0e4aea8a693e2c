//! DPDK's rte_sched on as many queues as tidegate has leaves: compiled here, run as it comes.

use std::path::Path;
use std::process::Command;

use serde_json::{Value, json};

/// Pipes (a power of two) of four queues each, and packets that stand in them.
const SIZES: [(u32, u32); 3] = [(2, 1_024), (256, 4_096), (16_384, 262_144)];
const QUEUES: u32 = 4;
/// Neither huge pages nor devices nor files that outlive it.
const EAL: &str = "--no-huge -m 1024 --no-pci --no-shconf --no-telemetry -l 0 --log-level=error";

/// Prints a row for each size; without DPDK's headers, what is missing.
pub fn print() -> Vec<Value> {
    println!("\nDPDK rte_sched, queues     ns a packet");
    let dir = tempfile::tempdir().expect("temporary directory");
    let program = dir.path().join("rte_sched");
    if let Err(e) = compile(&program) {
        println!("not measured (package dpdk-dev): {e}");
        return Vec::new();
    }
    let measure = |&(pipes, backlog): &(u32, u32)| {
        let queues = pipes * QUEUES;
        let numbers = [pipes, QUEUES, backlog].map(|n| n.to_string());
        let mut command = Command::new(&program);
        let out = command.args(numbers).args(EAL.split(' ')).output().expect("rte_sched");
        let text = String::from_utf8_lossy(&out.stdout);
        match text.lines().last().and_then(|line| line.parse::<f64>().ok()) {
            Some(ns) => {
                println!("{queues:<26} {ns:>11.1}");
                json!({ "queues": queues, "ns": ns })
            }
            None => {
                println!("{queues:<26} failed: {}", String::from_utf8_lossy(&out.stderr));
                json!({ "queues": queues, "ns": null })
            }
        }
    };
    SIZES.iter().map(measure).collect()
}

fn compile(program: &Path) -> Result<(), String> {
    const SOURCE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/bench/qos/rte_sched.c");
    let script = format!(
        "gcc -O3 -march=native -DALLOW_EXPERIMENTAL_API $(pkg-config --cflags libdpdk) '{SOURCE}' \
         -o '{}' $(pkg-config --libs libdpdk) -lrte_sched",
        program.display()
    );
    let out = Command::new("sh").args(["-c", &script]).output().map_err(|e| e.to_string())?;
    if out.status.success() {
        return Ok(());
    }
    let text = String::from_utf8_lossy(&out.stderr);
    Err(text.lines().last().unwrap_or_default().to_owned())
}
