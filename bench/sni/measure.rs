//! One measurement: what clients saw, and the processor time that the router took for it.

use std::fs;
use std::thread::sleep;
use std::time::Duration;

use anyhow::{Context, anyhow};
use tidegate::nic::steer::kernel_now;

use crate::bed::ROUTER_CORE;
use crate::contender::{Contender, Kind};
use crate::ends::{self, Seen};
use crate::raw::Ends;

/// After a router was resumed.
const WAKE: Duration = Duration::from_millis(200);
/// Clients at once where connections are counted.
const CLIENTS: usize = 64;

/// What is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Test {
    /// New connections, as many as can be.
    Connections,
    /// One long transfer; what arrives at the router is frames as a wire carries them, which its
    /// own interfaces may merge.
    Download,
    /// The same where servers send what veth takes, 64 KB at a time; it does not for a router with
    /// an XDP program, whose frames stay as they are.
    Merged,
    /// New connections, one after another.
    Opening,
    /// Requests on one connection, one after another.
    Exchanges,
}

impl Test {
    pub const ALL: [Test; 5] =
        [Test::Connections, Test::Download, Test::Merged, Test::Opening, Test::Exchanges];

    fn is_transfer(self) -> bool {
        matches!(self, Test::Download | Test::Merged)
    }
}

/// What came of it once.
#[derive(Clone, Debug)]
pub struct Sample {
    /// Connections, exchanges, or bits, a second.
    pub rate: f64,
    /// Of the same, for each second of the router's processor time. Not known where the kernel
    /// forwards by itself.
    pub per_cpu_second: f64,
    /// Processor time of the router for each second.
    pub busy: f64,
    /// Sorted.
    pub took: Vec<Duration>,
}

/// Resumes the router and has clients at it for so long.
///
/// # Errors
/// What goes wrong for any client.
pub fn measure(c: &mut Contender, test: Test, window: Duration) -> anyhow::Result<Sample> {
    c.work.resume()?;
    let merges = test == Test::Merged && c.kind.merges();
    if merges {
        c.bed.merge(true)?;
    }
    // A worker that has been paused is taken for dead, and bypassed until its heart beats again.
    sleep(WAKE);
    let sample = run(c, test, window).with_context(|| format!("{}, {test:?}", c.kind.name()));
    if merges {
        c.bed.merge(false)?;
    }
    c.work.pause()?;
    sample
}

fn run(c: &mut Contender, test: Test, window: Duration) -> anyhow::Result<Sample> {
    let (ids, routed) = (c.work.process_ids(), c.kind != Kind::Forwarding);
    if test == Test::Connections {
        let mut ends = Ends::open(&c.bed)?;
        let before = spent_ns(test, &ids)?;
        let seen = ends.connections((CLIENTS, &mut c.opened), routed, window);
        let spent = spent_ns(test, &ids)? - before;
        ends.close(&c.bed)?;
        return Ok(sample(test, seen?, spent));
    }
    let before = spent_ns(test, &ids)?;
    let clients = c.bed.clients.thread("clients", move || match test {
        Test::Connections | Test::Opening => ends::run(ends::opening(routed, window)),
        Test::Download | Test::Merged => ends::run(ends::download(routed, window)),
        Test::Exchanges => ends::run(ends::exchanges(routed, window)),
    })?;
    let seen = clients.join().map_err(|_| anyhow!("the clients panicked"))??;
    Ok(sample(test, seen, spent_ns(test, &ids)? - before))
}

fn sample(test: Test, seen: Seen, spent_ns: u64) -> Sample {
    let cpu = spent_ns as f64 / 1e9;
    let Seen { done, bytes, elapsed, mut took } = seen;
    took.sort_unstable();
    let amount = if test.is_transfer() { bytes as f64 * 8.0 } else { done as f64 };
    let seconds = elapsed.as_secs_f64();
    Sample { rate: amount / seconds, per_cpu_second: amount / cpu, busy: cpu / seconds, took }
}

/// Processor time of all threads of these processes, and of the thread that does what is left over
/// of the kernel's work on the router's core. (What the kernel does for a device within a thread's
/// time counts for the thread.) Frames merged by their sender reach the router in interrupts that
/// belong to no thread: for those all of the core's time counts that it is not idle.
fn spent_ns(test: Test, ids: &[i32]) -> anyhow::Result<u64> {
    if test == Test::Merged {
        return core_ns();
    }
    let softirqs = softirq_thread()?;
    let mut sum = 0;
    for id in ids.iter().copied().chain([softirqs]) {
        let threads = fs::read_dir(format!("/proc/{id}/task")).context("a router's thread")?;
        for thread in threads.flatten() {
            let stat = fs::read_to_string(thread.path().join("schedstat")).unwrap_or_default();
            let ran = stat.split_whitespace().next().and_then(|n| n.parse::<u64>().ok());
            sum += ran.unwrap_or(0);
        }
    }
    Ok(sum)
}

/// Time that the router's core was not idle: the clock, less what proc_stat(5) has of idleness.
fn core_ns() -> anyhow::Result<u64> {
    const IDLE: usize = 4;
    const WAITING_FOR_DISKS: usize = 5;
    const NS_PER_TICK: u64 = 10_000_000;
    let stat = fs::read_to_string("/proc/stat")?;
    let name = format!("cpu{ROUTER_CORE} ");
    let line = stat.lines().find(|line| line.starts_with(&name)).context("no such core")?;
    let ticks = |at| line.split_whitespace().nth(at).and_then(|n| n.parse::<u64>().ok());
    let idle = ticks(IDLE).context("no idle time")? + ticks(WAITING_FOR_DISKS).unwrap_or(0);
    Ok(kernel_now().0.saturating_sub(idle * NS_PER_TICK))
}

fn softirq_thread() -> anyhow::Result<i32> {
    let name = format!("ksoftirqd/{ROUTER_CORE}");
    for entry in fs::read_dir("/proc")? {
        let path = entry?.path();
        let id = path.file_name().and_then(|n| n.to_str()?.parse().ok());
        let comm = fs::read_to_string(path.join("comm")).unwrap_or_default();
        if let Some(id) = id
            && comm.trim() == name
        {
            return Ok(id);
        }
    }
    Err(anyhow!("no {name}"))
}
