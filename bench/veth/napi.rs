//! Where the kernel takes packets in: threads of its own for a device, steering to a core.

use std::collections::BTreeSet;
use std::fs;
use std::time::Duration;

use anyhow::{Context, ensure};
use nix::sched::{CpuSet, sched_setaffinity};
use nix::unistd::Pid;
use tidegate::lab::{Namespace, wait_for};

/// Threaded NAPI (Documentation/networking/napi.rst): the interface, which has to have NAPI (veth
/// devices have it with GRO or a program), is polled by threads on this core. Returns them.
///
/// # Errors
/// An older kernel.
pub fn thread(ns: &Namespace, interface: &str, core: usize) -> anyhow::Result<Vec<i32>> {
    let before = threads(interface)?;
    write_sysfs(ns, &format!("class/net/{interface}/threaded"), "1")?;
    let mut new: Vec<i32> = Vec::new();
    let started = wait_for(Duration::from_secs(2), "NAPI's thread", || {
        let now = threads(interface).unwrap_or_default();
        new = now.difference(&before).copied().collect();
        !new.is_empty()
    });
    started.context("threaded NAPI (Linux 5.12)")?;
    let mut cores = CpuSet::new();
    cores.set(core)?;
    for &id in &new {
        sched_setaffinity(Pid::from_raw(id), &cores).context("pinning NAPI's thread")?;
        // As high as the other forwarders are.
        ns.run("renice", &["-n", "-20", "-p", &id.to_string()])?;
    }
    Ok(new)
}

/// Receive packet steering (Documentation/networking/scaling.rst) to a core.
///
/// # Errors
/// The kernel not taking it.
pub fn steer(ns: &Namespace, interface: &str, core: usize) -> anyhow::Result<()> {
    let mask = format!("{:x}", 1 << core);
    write_sysfs(ns, &format!("class/net/{interface}/queues/rx-0/rps_cpus"), &mask)
}

/// No steering any more: packets stay where they are taken in.
///
/// # Errors
/// The kernel not taking it.
#[allow(dead_code, reason = "not every bench steers for a while only")]
pub fn let_go(ns: &Namespace, interface: &str) -> anyhow::Result<()> {
    write_sysfs(ns, &format!("class/net/{interface}/queues/rx-0/rps_cpus"), "0")
}

/// All threads that poll devices of this name, in any namespace: those that appear when ours is
/// switched are ours.
fn threads(interface: &str) -> anyhow::Result<BTreeSet<i32>> {
    let prefix = format!("napi/{interface}-");
    let mut found = BTreeSet::new();
    for entry in fs::read_dir("/proc")? {
        let path = entry?.path();
        let id = path.file_name().and_then(|n| n.to_str()?.parse::<i32>().ok());
        // A process that has just ended has no name any more.
        let name = fs::read_to_string(path.join("comm")).unwrap_or_default();
        if let Some(id) = id
            && name.starts_with(&prefix)
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
