//! The kernel as a forwarder, with the best that it has for one core.

use std::collections::BTreeSet;
use std::fs;
use std::time::Duration;

use anyhow::{Context, ensure};
use nix::sched::{CpuSet, sched_setaffinity};
use nix::unistd::Pid;
use tidegate::lab::{Namespace, wait_for};

use crate::bed::{BACKEND_PORT, BACKENDS, ROUTER_CORE, VIP, VIP_PORT};

/// Where the kernel does its work.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Placement {
    /// As it comes: in the sender's softirq, on the generator's core.
    SameCore,
    /// Receive packet steering (Documentation/networking/scaling.rst) to the router's core.
    Rps,
    /// Threaded NAPI (Documentation/networking/napi.rst), its thread on the router's core.
    Threaded,
}

impl Placement {
    pub const ALL: [Placement; 3] = [Placement::SameCore, Placement::Rps, Placement::Threaded];

    pub fn name(self) -> &'static str {
        match self {
            Placement::SameCore => "sender's core",
            Placement::Rps => "RPS",
            Placement::Threaded => "threaded NAPI",
        }
    }
}

/// Switches forwarding on, and destination NAT if asked for. Returns the threads that the kernel
/// forwards with.
///
/// # Errors
/// What `nft` or the kernel say.
pub fn forward(router: &Namespace, placement: Placement, dnat: bool) -> anyhow::Result<Vec<i32>> {
    router.sysctl("net.ipv4.ip_forward", "1")?;
    // Without GRO or a program a veth device has no NAPI, and takes no XDP frames.
    router.run("ethtool", &["-K", "wan", "gro", "on"])?;
    if dnat {
        let rules = dnat_rules();
        router.run("nft", &[&rules]).context("`nft` is of the package nftables")?;
    }
    match placement {
        Placement::SameCore => Ok(Vec::new()),
        Placement::Rps => {
            let mask = format!("{:x}", 1 << ROUTER_CORE);
            write_sysfs(router, "class/net/wan/queues/rx-0/rps_cpus", &mask)?;
            Ok(Vec::new())
        }
        Placement::Threaded => thread_napi(router),
    }
}

/// Each flow to one of the backends, as the balancers do it.
fn dnat_rules() -> String {
    let backends: Vec<String> =
        BACKENDS.iter().enumerate().map(|(i, b)| format!("{i} : {b}")).collect();
    format!(
        "table ip bench {{ chain in {{ type nat hook prerouting priority dstnat; \
         ip daddr {VIP} udp dport {VIP_PORT} \
         dnat to jhash ip saddr . udp sport mod {} map {{ {} }} : {BACKEND_PORT}; }}; }}",
        BACKENDS.len(),
        backends.join(", ")
    )
}

/// Has the kernel poll `wan` in a thread on the router's core. Returns the thread's id.
///
/// # Errors
/// A kernel that can't.
pub fn thread_napi(router: &Namespace) -> anyhow::Result<Vec<i32>> {
    let before = napi_threads()?;
    write_sysfs(router, "class/net/wan/threaded", "1")?;
    let mut new: Vec<i32> = Vec::new();
    let started = wait_for(Duration::from_secs(2), "NAPI's thread", || {
        let now = napi_threads().unwrap_or_default();
        new = now.difference(&before).copied().collect();
        !new.is_empty()
    });
    started.context("threaded NAPI (Linux 5.12)")?;
    let mut core = CpuSet::new();
    core.set(ROUTER_CORE)?;
    for &id in &new {
        sched_setaffinity(Pid::from_raw(id), &core).context("pinning NAPI's thread")?;
        // As high as the other forwarders are.
        router.run("renice", &["-n", "-20", "-p", &id.to_string()])?;
    }
    Ok(new)
}

/// All threads that poll devices called `wan`: those that appear when ours is switched are ours.
fn napi_threads() -> anyhow::Result<BTreeSet<i32>> {
    let mut found = BTreeSet::new();
    for entry in fs::read_dir("/proc")? {
        let path = entry?.path();
        let id = path.file_name().and_then(|n| n.to_str()?.parse::<i32>().ok());
        // A process that has just ended has no name any more.
        let name = fs::read_to_string(path.join("comm")).unwrap_or_default();
        if let Some(id) = id
            && name.starts_with("napi/wan-")
        {
            found.insert(id);
        }
    }
    Ok(found)
}

/// `/sys` shows the namespace that it was mounted in: so one is mounted for the moment.
fn write_sysfs(ns: &Namespace, path: &str, value: &str) -> anyhow::Result<()> {
    let script = format!("mount -t sysfs sysfs /sys && echo {value} > /sys/{path}");
    ns.run("unshare", &["--mount", "sh", "-ec", &script])?;
    let script = format!("mount -t sysfs sysfs /sys && cat /sys/{path}");
    let is = ns.run("unshare", &["--mount", "sh", "-ec", &script])?;
    ensure!(is.trim() == value, "{path} is {}, not {value}", is.trim());
    Ok(())
}
