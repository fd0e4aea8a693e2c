//! From the kernel's tables to ours, in a network namespace.

use std::io::Write;
use std::process::{Command, Stdio};
use std::time::Instant;

use serde_json::{Value, json};
use tidegate::base::Seed;
use tidegate::control::netlink::{Netlink, NetlinkOptions};
use tidegate::control::routes::RouteFeed;
use tidegate::nic::spec::PortSpec;
use tidegate::packet::PortId;

use crate::tables::v4;

/// In a thread of its own, whose namespace goes with it.
pub fn measure(routes: usize) -> Value {
    let body = move || {
        nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET).expect("root, for a namespace");
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        runtime.expect("a runtime").block_on(follow(routes))
    };
    std::thread::spawn(body).join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}

async fn follow(routes: usize) -> Value {
    ip_batch(
        "link add v0 type veth peer name v1\nlink set v0 up\nlink set v1 up\n\
         addr add 10.9.0.1/24 dev v0\n",
    );
    let line = |(i, prefix)| format!("route add {prefix} via 10.9.0.{}\n", 2 + i % 200);
    let lines: String = v4(routes, 1).iter().enumerate().map(line).collect();
    ip_batch(&lines);
    let before = resident_mib();
    let start = Instant::now();
    let netlink = Netlink::connect(NetlinkOptions::default()).await.expect("netlink");
    let read = start.elapsed().as_secs_f64();
    let start = Instant::now();
    let mut feed =
        RouteFeed::new(&[PortSpec::in_memory(PortId(0), "v0")], Seed(1)).expect("a thread");
    feed.start(netlink.mirror()).await;
    let built = start.elapsed().as_secs_f64();
    let (held, mib) = (feed.routes_len(), resident_mib() - before);
    println!(
        "from the kernel: {held} routes read in {read:.1} s, in use {built:.1} s later; the \
         process grew by {mib} MiB"
    );
    assert!(held >= routes, "{held} of {routes}");
    json!({ "kernel_routes": held, "read_s": read, "in_use_s": built, "process_mib": mib })
}

fn ip_batch(lines: &str) {
    let mut command = Command::new("ip");
    let mut child =
        command.args(["-batch", "-"]).stdin(Stdio::piped()).spawn().expect("ip (iproute2)");
    child.stdin.take().expect("stdin").write_all(lines.as_bytes()).expect("ip reads");
    assert!(child.wait().expect("ip ends").success());
}

/// Of this process.
fn resident_mib() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|l| l.strip_prefix("VmRSS:"));
    let kib = line.and_then(|l| l.split_whitespace().next()?.parse::<u64>().ok());
    kib.unwrap_or(0) / 1_024
}
