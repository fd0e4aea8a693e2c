//! A thread's work: turns of the workers that it runs, their heartbeats, its sleep.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use super::clock::Clock;
use super::closing::detach_all;
use super::command::Blocked;
use super::spec::IdleStrategy;
use super::threads::{Claims, Exit, ThreadParts, Threads, words};
use super::turn::Worker;
use crate::base::Nanos;
use crate::nic::Port;
use crate::nic::wake::{Sleeper, Waker};

/// How often a running worker says that it lives. A heartbeat limit is a multiple of this.
pub const BEAT_EVERY_NS: u64 = 1_000_000;
/// An idle worker looks again at least this often. A heartbeat limit is a multiple of this, too.
pub const SLEEP_MAX_NS: u64 = 5_000_000;
/// How long an adaptive worker looks for packets before it sleeps: about what waking up costs.
const SPIN_NS: u64 = 20_000;
/// Shorter sleeps than this are not worth their system call.
const SLEEP_MIN_NS: u64 = 10_000;
/// A thread that has no worker looks this often whether it is still needed; it is woken for that.
const VACANT_NS: u64 = 1_000_000_000;

/// Tells the XDP program, or whoever steers packets here, that the worker lives.
pub trait Heartbeat: Send {
    fn beat(&mut self);
}

/// Nobody watches.
pub struct NoHeartbeat;

impl Heartbeat for NoHeartbeat {
    fn beat(&mut self) {}
}

/// A worker, and what a thread needs to run it. It goes from thread to thread as one.
pub struct Runnable<P> {
    pub(super) worker: Box<Worker<P>>,
    heartbeat: Box<dyn Heartbeat>,
    /// By which others wake whoever runs it.
    waker: Waker,
    beat_at: Nanos,
    /// Since when it is on its way to this thread, and the work that this was so far.
    left: Option<(Nanos, u64)>,
}

impl<P> Runnable<P> {
    /// `waker` is the one that other workers and the control plane have for it.
    pub fn new(worker: Worker<P>, heartbeat: Box<dyn Heartbeat>, waker: Waker) -> Runnable<P> {
        let worker = Box::new(worker);
        Runnable { worker, heartbeat, waker, beat_at: Nanos::ZERO, left: None }
    }
}

/// One thread at work.
pub(super) struct Shift<P: Port> {
    parts: ThreadParts,
    threads: Threads<P>,
    claims: Arc<Claims>,
    /// Watches the sockets of all workers here, and heeds their wakers.
    sleeper: Sleeper,
    workers: Vec<Runnable<P>>,
    /// The place in `workers` of the one whose turn it is.
    turn: usize,
    moved_at: Nanos,
    /// When the last turn began, and whose it was, where that moved packets.
    now: Nanos,
    busy: Option<usize>,
}

impl<P: Port> Shift<P> {
    pub(super) fn new(
        parts: ThreadParts,
        threads: Threads<P>,
        claims: Arc<Claims>,
        sleeper: Sleeper,
    ) -> Shift<P> {
        let moved_at = parts.clock.now();
        let (workers, now) = (Vec::new(), moved_at);
        Shift { parts, threads, claims, sleeper, workers, turn: 0, moved_at, now, busy: None }
    }

    /// Runs these workers, and those that come, until none is left and nobody needs the thread.
    pub(super) fn run_guarded(mut self, workers: Vec<Runnable<P>>) -> Exit {
        self.workers = workers;
        let result = catch_unwind(AssertUnwindSafe(|| self.run()));
        let Err(panic) = result else { return Exit::Dismissed };
        let (words, thread) = (words(&*panic), self.parts.number);
        let worker = self.workers.get(self.turn).or(self.workers.first());
        let worker = worker.map_or(thread, |runnable| runnable.worker.id());
        tracing::error!(worker, thread, "worker panicked: {words}");
        // The sockets have to be closed, or the kernel goes on filling them. What else the workers
        // hold may be half changed: it is left alone, and the process ends soon.
        let all = self.workers.iter_mut().map(|runnable| &mut *runnable.worker);
        if catch_unwind(AssertUnwindSafe(|| detach_all(all))).is_err() {
            tracing::error!(thread, "its ports could not be detached together");
        }
        for mut runnable in self.workers.drain(..) {
            let closed = catch_unwind(AssertUnwindSafe(|| runnable.worker.close()));
            if closed.is_err() {
                let worker = runnable.worker.id();
                tracing::error!(worker, thread, "its ports could not be closed in order");
            }
            std::mem::forget(runnable);
        }
        Exit::Panicked { worker, words }
    }

    fn run(&mut self) {
        self.watch();
        loop {
            if self.threads.is_called(self.parts.number) {
                self.take_up();
            }
            if !self.workers.is_empty() {
                self.round();
            } else if self.claims.end() {
                return;
            } else {
                let (threads, number) = (&self.threads, self.parts.number);
                let ready = || threads.is_called(number) || self.claims.is_none();
                self.sleeper.sleep(VACANT_NS, ready);
            }
        }
    }

    /// A turn of each worker; then a pause, where none had anything to do.
    fn round(&mut self) {
        let mut moved = 0;
        // What one takes holds all up: they take new things one a round, and each has a turn for
        // its packets between.
        let mut may_obey = true;
        self.turn = 0;
        while self.turn < self.workers.len() {
            let now = self.begin_turn();
            let worker = &mut self.workers[self.turn].worker;
            let before = moved;
            if may_obey {
                let from = worker.has_commands().then(processor_time);
                moved += worker.poll(now);
                if worker.has_updated() {
                    may_obey = false;
                    if self.has_left(now, from) {
                        continue;
                    }
                }
            } else {
                moved += worker.work(now);
            }
            let runnable = &mut self.workers[self.turn];
            if now >= runnable.beat_at {
                runnable.heartbeat.beat();
                runnable.beat_at = now.saturating_add(BEAT_EVERY_NS);
            }
            self.busy = (moved > before).then_some(self.turn);
            self.turn += 1;
        }
        let now = self.now;
        if self.workers.iter().all(|runnable| runnable.worker.may_close(now)) {
            return self.close();
        }
        if moved > 0 {
            self.moved_at = now;
        } else if self.parts.idle == IdleStrategy::Busy {
            std::hint::spin_loop();
        } else if now.since(self.moved_at) < SPIN_NS {
            // Lets whoever else needs this core have it; returns at once where nobody does.
            std::thread::yield_now();
        } else {
            self.rest(now);
        }
    }

    /// When the next turn begins, with which the last one ends.
    #[inline]
    fn begin_turn(&mut self) -> Nanos {
        let now = self.parts.clock.now();
        if let Some(runnable) = self.busy.take().and_then(|at| self.workers.get_mut(at)) {
            runnable.worker.was_busy(now.since(self.now));
        }
        self.now = now;
        now
    }

    /// Tells what the turn has cost that began at `now` and took a new configuration or other
    /// ports, or has the worker go to another thread. Whether it has gone.
    #[cold]
    fn has_left(&mut self, now: Nanos, from: Option<u64>) -> bool {
        let Some(runnable) = self.workers.get_mut(self.turn) else { return true };
        let worked =
            |ns: u64| from.map_or(ns, |from| processor_time().saturating_sub(from)).min(ns);
        let ns = |clock: &Clock| clock.now().since(now);
        if let Some(to) = runnable.worker.take_move() {
            let mut runnable = self.workers.remove(self.turn);
            self.watch();
            runnable.left = Some((now, worked(ns(&self.parts.clock))));
            self.threads.give(to, runnable);
            self.claims.remove();
            return true;
        }
        let ports_changed = runnable.worker.take_ports_changed();
        if ports_changed {
            self.watch();
        }
        let ns = ns(&self.parts.clock);
        let blocked = Blocked { ns, worked_ns: worked(ns) };
        self.workers[self.turn].worker.tell_blocked(blocked);
        false
    }

    /// Goes on with workers that come from other threads.
    #[cold]
    fn take_up(&mut self) {
        while let Some(mut runnable) = self.threads.take(self.parts.number) {
            let from = processor_time();
            let left = runnable.left.take();
            self.workers.push(runnable);
            self.watch();
            if let (Some((since, worked)), Some(runnable)) = (left, self.workers.last_mut()) {
                let ns = self.parts.clock.now().since(since);
                let here = processor_time().saturating_sub(from);
                let blocked = Blocked { ns, worked_ns: (worked + here).min(ns) };
                runnable.worker.tell_moved(self.parts.number, blocked);
            }
        }
        self.moved_at = self.parts.clock.now();
    }

    /// Closes the workers, all of them: each keeps the thread for as long as the kernel takes to
    /// let its sockets go, so none may have packets to send.
    #[cold]
    fn close(&mut self) {
        detach_all(self.workers.iter_mut().map(|runnable| &mut *runnable.worker));
        self.workers.iter_mut().for_each(|runnable| runnable.worker.close());
        let count = self.workers.len();
        self.workers.clear();
        self.watch();
        (0..count).for_each(|_| self.claims.remove());
    }

    /// Has packets end the sleep, by whichever port they come, and whoever calls a worker.
    fn watch(&mut self) {
        self.sleeper.forget();
        for runnable in &self.workers {
            self.sleeper.heed(&runnable.waker);
            runnable.worker.each_fd(|fd| self.sleeper.watch(fd));
        }
    }

    fn rest(&mut self, now: Nanos) {
        let events = self.workers.iter().filter_map(|r| r.worker.next_event(now));
        let ns = events.min().map_or(SLEEP_MAX_NS, |at| at.since(now).min(SLEEP_MAX_NS));
        if ns < SLEEP_MIN_NS {
            return std::thread::yield_now();
        }
        self.workers.iter_mut().for_each(|r| r.worker.publish(now));
        let (threads, workers) = (&self.threads, &self.workers);
        let has_work = |r: &Runnable<P>| r.worker.is_called() || r.worker.has_arrivals();
        workers.iter().for_each(|r| r.worker.doze(true));
        self.sleeper
            .sleep(ns, || threads.is_called(self.parts.number) || workers.iter().any(has_work));
        workers.iter().for_each(|r| r.worker.doze(false));
    }
}

/// What this thread has had of a processor, nanoseconds. Where it can't be told, all is the
/// worker's.
fn processor_time() -> u64 {
    let time = nix::time::clock_gettime(nix::time::ClockId::CLOCK_THREAD_CPUTIME_ID);
    time.map_or(0, |time| time.tv_sec() as u64 * 1_000_000_000 + time.tv_nsec() as u64)
}

/// Prepares the calling thread. The core that it is pinned to: `None` also where the one that it
/// was to have can't be had.
pub(super) fn prepare_thread(parts: &ThreadParts) -> Option<usize> {
    let thread = parts.number;
    let is_pinned = |id: &usize| core_affinity::set_for_current(core_affinity::CoreId { id: *id });
    let core = parts.core.filter(is_pinned);
    if let Some(core) = parts.core.filter(|_| core.is_none()) {
        tracing::warn!(thread, core, "can't be pinned to its core, and runs on any");
    }
    // A sleep ends up to 50 us late otherwise, which is 40 packets at 10 Gbit/s.
    if let Err(e) = nix::sys::prctl::set_timerslack(1) {
        tracing::warn!(thread, "timer slack stays as it is: {e}");
    }
    core
}
