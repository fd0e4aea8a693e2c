//! One measurement, and how much else the machine had to do meanwhile.

use std::fs;
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::Context;
use tidegate::lab::wait_for;

use crate::bed::{Amount, Traffic};
use crate::forwarder::Forwarder;
use crate::sink;

/// Flows are made and caches filled before packets count.
const WARM_UP: Duration = Duration::from_millis(1_000);
/// The generator outlasts the measurement by this.
const REST: Duration = Duration::from_millis(100);
/// Packets that arrive before it is said that they do.
const FLOWING: u64 = 1_000;
const START_LIMIT: Duration = Duration::from_secs(10);

/// What was measured of a forwarder once.
#[derive(Clone, Copy, Debug)]
pub struct Sample {
    /// Packets a second that the generator sent.
    pub offered: f64,
    /// Packets a second that reached the sink.
    pub forwarded: f64,
    /// Share of all cores that other programs had meanwhile.
    pub disturbed: f64,
    /// Processor time that the forwarder's own threads took, and how much of it inside the kernel.
    /// `None` where they are not told apart from the generator's.
    pub cost: Option<Cost>,
}

/// Of the router's core.
#[derive(Clone, Copy, Debug)]
pub struct Cost {
    pub ns_per_packet: f64,
    pub kernel_share: f64,
}

impl Sample {
    pub fn loss(&self) -> f64 {
        (1.0 - self.forwarded / self.offered).max(0.0)
    }
}

/// Resumes the forwarder, sends as fast as can be, and counts for so long at the sink.
///
/// # Errors
/// The generator's, or that nothing arrives.
pub fn measure(f: &mut Forwarder, traffic: Traffic, window: Duration) -> anyhow::Result<Sample> {
    f.work.resume()?;
    let sample = run(f, traffic, window).with_context(|| format!("{}, {traffic:?}", f.kind.name()));
    f.work.pause()?;
    sample
}

fn run(f: &Forwarder, traffic: Traffic, window: Duration) -> anyhow::Result<Sample> {
    let received = || sink::received(&f.bed.sink);
    let before = received()?;
    let seconds = (WARM_UP + window + REST).as_secs_f64();
    let sending = f.bed.send(traffic, Amount::Seconds(seconds))?;
    let flows = wait_for(START_LIMIT, "packets at the sink", || {
        sending.is_over() || received().is_ok_and(|n| n >= before + FLOWING)
    });
    if flows.is_err() || sending.is_over() {
        sending.finish()?;
        anyhow::bail!("nothing comes to the sink");
    }
    sleep(WARM_UP);
    let ids = f.work.process_ids();
    let (load, spent) = (Load::read(&ids), Spent::read(&ids));
    let (from, start) = (received()?, Instant::now());
    sleep(window);
    let (to, elapsed) = (received()?, start.elapsed());
    let disturbed = Load::read(&ids).others_since(&load, elapsed);
    let cost = (!ids.is_empty()).then(|| Spent::read(&ids).since(&spent, to - from));
    let report = sending.finish()?;
    Ok(Sample {
        offered: report.tx.packets_per_second,
        forwarded: (to - from) as f64 / elapsed.as_secs_f64(),
        disturbed,
        cost,
    })
}

/// Processor time of processes: nanoseconds of all their threads (schedstat), and ticks in user and
/// in kernel mode.
struct Spent {
    ns: u64,
    user: u64,
    kernel: u64,
}

impl Spent {
    fn read(processes: &[i32]) -> Spent {
        let mut spent = Spent { ns: 0, user: 0, kernel: 0 };
        for &id in processes {
            let threads = fs::read_dir(format!("/proc/{id}/task")).into_iter().flatten();
            for thread in threads.flatten() {
                let stat = fs::read_to_string(thread.path().join("schedstat")).unwrap_or_default();
                let ran = stat.split_whitespace().next().and_then(|n| n.parse().ok());
                spent.ns += ran.unwrap_or(0);
            }
            let [user, kernel] = times(&id.to_string());
            (spent.user, spent.kernel) = (spent.user + user, spent.kernel + kernel);
        }
        spent
    }

    fn since(&self, earlier: &Spent, packets: u64) -> Cost {
        let (user, kernel) = (self.user - earlier.user, self.kernel - earlier.kernel);
        Cost {
            ns_per_packet: (self.ns - earlier.ns) as f64 / packets.max(1) as f64,
            kernel_share: kernel as f64 / (user + kernel).max(1) as f64,
        }
    }
}

/// Time in user mode, in clock ticks: of all programs, and of those that belong to the measurement.
/// (The kernel's own time can't be told apart: it is what is measured.)
struct Load {
    all: u64,
    stolen: u64,
    ours: u64,
}

impl Load {
    fn read(forwarder: &[i32]) -> Load {
        let stat = fs::read_to_string("/proc/stat").unwrap_or_default();
        let of: Vec<u64> = stat
            .lines()
            .next()
            .map(|l| l.split_whitespace().filter_map(|n| n.parse().ok()).collect())
            .unwrap_or_default();
        let at = |i: usize| of.get(i).copied().unwrap_or(0);
        let theirs: u64 = forwarder.iter().map(|id| times(&id.to_string())[0]).sum();
        let ours = times("self")[0] + theirs;
        Load { all: at(0) + at(1), stolen: at(7), ours }
    }

    fn others_since(&self, earlier: &Load, elapsed: Duration) -> f64 {
        const TICKS_PER_SECOND: f64 = 100.0; // USER_HZ of every architecture
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        let all = self.all - earlier.all + (self.stolen - earlier.stolen);
        let ticks = all.saturating_sub(self.ours - earlier.ours);
        ticks as f64 / TICKS_PER_SECOND / elapsed.as_secs_f64() / cores as f64
    }
}

/// `utime` and `stime` of proc_pid_stat(5), the 12th and the 13th field after the name.
fn times(process: &str) -> [u64; 2] {
    let stat = fs::read_to_string(format!("/proc/{process}/stat")).unwrap_or_default();
    let after_name = stat.rsplit_once(") ").map_or("", |(_, rest)| rest);
    let mut fields = after_name.split_whitespace().skip(11).map(|n| n.parse().unwrap_or(0));
    [fields.next().unwrap_or(0), fields.next().unwrap_or(0)]
}
