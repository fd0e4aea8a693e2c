//! A worker's thread: its core, its clock, its heartbeat, its sleep.

use std::any::Any;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicI32, Ordering};
use std::thread::JoinHandle;

use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::unistd::{Pid, gettid};

use super::clock::Clock;
use super::command::{Blocked, Phase};
use super::spec::IdleStrategy;
use super::turn::Worker;
use crate::base::Nanos;
use crate::nic::Port;
use crate::nic::wake::Sleeper;

/// How often a running worker says that it lives. A heartbeat limit is a multiple of this.
pub const BEAT_EVERY_NS: u64 = 1_000_000;
/// An idle worker looks again at least this often. A heartbeat limit is a multiple of this, too.
pub const SLEEP_MAX_NS: u64 = 5_000_000;
/// How long an adaptive worker looks for packets before it sleeps: about what waking up costs.
const SPIN_NS: u64 = 20_000;
/// Shorter sleeps than this are not worth their system call.
const SLEEP_MIN_NS: u64 = 10_000;

/// Tells the XDP program, or whoever steers packets here, that the worker lives.
pub trait Heartbeat: Send {
    fn beat(&mut self);
}

/// Nobody watches.
pub struct NoHeartbeat;

impl Heartbeat for NoHeartbeat {
    fn beat(&mut self) {}
}

/// What a worker's thread is given beside the worker.
pub struct RunnerParts {
    /// The thread's name, 15 bytes at most (as `comm` keeps it).
    pub name: String,
    /// Pinned to this core; `None`: the kernel moves it about.
    pub core: Option<usize>,
    pub idle: IdleStrategy,
    pub clock: Clock,
    pub heartbeat: Box<dyn Heartbeat>,
    /// Watches the ports' sockets, once the worker runs.
    pub sleeper: Sleeper,
}

/// How a worker ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Exit {
    /// As it was asked to.
    Stopped,
    /// A bug. Its heartbeat has stopped and its ports are closed.
    Panicked(String),
}

/// A worker's thread.
pub struct WorkerThread {
    thread: JoinHandle<Exit>,
    /// The kernel's number of it; 0 before it runs.
    tid: Arc<AtomicI32>,
}

impl WorkerThread {
    /// Starts a worker on a thread of its own.
    ///
    /// # Errors
    /// The thread can't be made.
    pub fn spawn<P: Port + Send + 'static>(
        worker: Worker<P>,
        parts: RunnerParts,
    ) -> io::Result<WorkerThread> {
        let tid = Arc::new(AtomicI32::new(0));
        let told = Arc::clone(&tid);
        let thread = std::thread::Builder::new().name(parts.name.clone()).spawn(move || {
            told.store(gettid().as_raw(), Ordering::Release);
            run_guarded(worker, parts)
        })?;
        Ok(WorkerThread { thread, tid })
    }

    /// Moves the worker to a core; `None`: to whichever the calling thread may use.
    ///
    /// # Errors
    /// There is no such core, or it is not for this process.
    pub fn pin(&self, core: Option<usize>) -> io::Result<()> {
        let set = match core {
            None => sched_getaffinity(Pid::from_raw(0))?,
            Some(core) => {
                let mut set = CpuSet::new();
                set.set(core)?;
                set
            }
        };
        match self.tid.load(Ordering::Acquire) {
            0 => Err(io::ErrorKind::NotFound.into()),
            tid => Ok(sched_setaffinity(Pid::from_raw(tid), &set)?),
        }
    }

    /// Whether the worker has ended; [`WorkerThread::join`] doesn't wait then.
    pub fn is_finished(&self) -> bool {
        self.thread.is_finished()
    }

    /// Waits for the worker's end.
    pub fn join(self) -> Exit {
        self.thread.join().unwrap_or_else(|panic| Exit::Panicked(message(&*panic)))
    }
}

fn run_guarded<P: Port>(mut worker: Worker<P>, parts: RunnerParts) -> Exit {
    let name = parts.name.clone();
    let result = catch_unwind(AssertUnwindSafe(|| run(&mut worker, parts)));
    let Err(panic) = result else { return Exit::Stopped };
    let message = message(&*panic);
    tracing::error!(worker = name, "worker panicked: {message}");
    // The sockets have to be closed, or the kernel goes on filling them. What else the worker holds
    // may be half changed: it is left alone, and the process ends soon.
    let closed = catch_unwind(AssertUnwindSafe(|| worker.close()));
    if closed.is_err() {
        tracing::error!(worker = name, "its ports could not be closed in order");
    }
    std::mem::forget(worker);
    Exit::Panicked(message)
}

fn message(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(|s| (*s).to_string());
    text.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_default()
}

fn run<P: Port>(worker: &mut Worker<P>, mut parts: RunnerParts) {
    prepare_thread(&parts);
    watch(worker, &mut parts.sleeper);
    let mut beat_at = Nanos::ZERO;
    let mut moved_at = parts.clock.now();
    loop {
        let now = parts.clock.now();
        let worked = worker.has_commands().then(processor_time);
        let moved = worker.poll(now);
        if worker.has_updated() {
            if worker.take_ports_changed() {
                watch(worker, &mut parts.sleeper);
            }
            let ns = parts.clock.now().since(now);
            let worked_ns = worked.map_or(ns, |from| processor_time().saturating_sub(from)).min(ns);
            worker.tell_blocked(Blocked { ns, worked_ns });
        }
        if worker.phase() == Phase::Stopped {
            return;
        }
        if now >= beat_at {
            parts.heartbeat.beat();
            beat_at = now.saturating_add(BEAT_EVERY_NS);
        }
        if moved > 0 {
            moved_at = now;
        } else if parts.idle == IdleStrategy::Busy {
            std::hint::spin_loop();
        } else if now.since(moved_at) < SPIN_NS {
            // Lets whoever else needs this core have it; returns at once where nobody does.
            std::thread::yield_now();
        } else {
            rest(worker, &mut parts.sleeper, now);
        }
    }
}

/// Has packets end the sleep, by whichever port they come.
fn watch<P: Port>(worker: &Worker<P>, sleeper: &mut Sleeper) {
    sleeper.forget();
    worker.each_fd(|fd| sleeper.watch(fd));
}

/// What this thread has had of a processor, nanoseconds. Where it can't be told, all is the
/// worker's.
fn processor_time() -> u64 {
    let time = nix::time::clock_gettime(nix::time::ClockId::CLOCK_THREAD_CPUTIME_ID);
    time.map_or(0, |time| time.tv_sec() as u64 * 1_000_000_000 + time.tv_nsec() as u64)
}

fn rest<P: Port>(worker: &mut Worker<P>, sleeper: &mut Sleeper, now: Nanos) {
    let ns = worker.next_event(now).map_or(SLEEP_MAX_NS, |at| at.since(now).min(SLEEP_MAX_NS));
    if ns < SLEEP_MIN_NS {
        return std::thread::yield_now();
    }
    worker.publish(now);
    sleeper.sleep(ns, || worker.is_called());
}

fn prepare_thread(parts: &RunnerParts) {
    if let Some(id) = parts.core
        && !core_affinity::set_for_current(core_affinity::CoreId { id })
    {
        tracing::warn!(worker = parts.name, core = id, "can't be pinned to its core");
    }
    // A sleep ends up to 50 us late otherwise, which is 40 packets at 10 Gbit/s.
    if let Err(e) = nix::sys::prctl::set_timerslack(1) {
        tracing::warn!(worker = parts.name, "timer slack stays as it is: {e}");
    }
}
