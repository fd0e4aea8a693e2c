//! One measurement: what clients saw, and the processor time that the router took for it.

use std::fs;
use std::thread::sleep;
use std::time::Duration;

use anyhow::{Context, anyhow};

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
    /// One long transfer.
    Download,
    /// New connections, one after another.
    Opening,
    /// Requests on one connection, one after another.
    Exchanges,
}

impl Test {
    pub const ALL: [Test; 4] = [Test::Connections, Test::Download, Test::Opening, Test::Exchanges];
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
    // A worker that has been paused is taken for dead, and bypassed until its heart beats again.
    sleep(WAKE);
    let sample = run(c, test, window).with_context(|| format!("{}, {test:?}", c.kind.name()));
    c.work.pause()?;
    sample
}

fn run(c: &mut Contender, test: Test, window: Duration) -> anyhow::Result<Sample> {
    let (ids, routed) = (c.work.process_ids(), c.kind != Kind::Forwarding);
    if test == Test::Connections {
        let mut ends = Ends::open(&c.bed)?;
        let before = spent_ns(&ids)?;
        let seen = ends.connections((CLIENTS, &mut c.opened), routed, window);
        let spent = spent_ns(&ids)? - before;
        ends.close(&c.bed)?;
        return Ok(sample(test, seen?, spent));
    }
    let before = spent_ns(&ids)?;
    let clients = c.bed.clients.thread("clients", move || match test {
        Test::Connections | Test::Opening => ends::run(ends::opening(routed, window)),
        Test::Download => ends::run(ends::download(routed, window)),
        Test::Exchanges => ends::run(ends::exchanges(routed, window)),
    })?;
    let seen = clients.join().map_err(|_| anyhow!("the clients panicked"))??;
    Ok(sample(test, seen, spent_ns(&ids)? - before))
}

fn sample(test: Test, seen: Seen, spent_ns: u64) -> Sample {
    let cpu = spent_ns as f64 / 1e9;
    let Seen { done, bytes, elapsed, mut took } = seen;
    took.sort_unstable();
    let amount = if test == Test::Download { bytes as f64 * 8.0 } else { done as f64 };
    let seconds = elapsed.as_secs_f64();
    Sample { rate: amount / seconds, per_cpu_second: amount / cpu, busy: cpu / seconds, took }
}

/// Processor time of all threads of these processes, and of the thread that does what is left over
/// of the kernel's work on the router's core. (What the kernel does for a device within a thread's
/// time counts for the thread.)
fn spent_ns(ids: &[i32]) -> anyhow::Result<u64> {
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
