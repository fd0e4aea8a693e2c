//! Threads of workers: which runs which, and how that changes while they run.

use std::io;

use super::appliance::Appliance;
use super::crew::Crew;
use super::run::Control;
use crate::base::Nanos;
use crate::worker::spec::WorkersSpec;
use crate::worker::{Blocked, Exit, ThreadParts, WorkerCommand, WorkerThread};

/// How busy a worker is, from one look at it to the next.
#[derive(Default)]
pub(super) struct Load {
    at: Nanos,
    busy_us: u64,
    pub(super) percent: f64,
}

impl Load {
    fn look(&mut self, now: Nanos, busy_us: u64) {
        let (ns, busy_ns) = (now.since(self.at), (busy_us - self.busy_us.min(busy_us)) * 1_000);
        // Before the first look there was none.
        let known = self.at > Nanos::ZERO && ns > 0;
        let percent = if known { (busy_ns as f64 * 100.0 / ns as f64).min(100.0) } else { 0.0 };
        *self = Load { at: now, busy_us, percent };
    }
}

/// The thread that runs a worker, of so many.
pub(super) fn thread_of(worker: u16, threads: u16) -> u16 {
    worker % threads.max(1)
}

impl Crew {
    /// A thread that has begun, by its number.
    pub(super) fn add_thread(&mut self, number: u16, thread: WorkerThread) {
        let at = usize::from(number);
        if self.threads.len() <= at {
            self.threads.resize_with(at + 1, || None);
        }
        self.threads[at] = Some(thread);
    }

    /// Whether workers can go to all threads at once.
    pub(super) fn is_ready(&self) -> bool {
        self.threads.iter().flatten().all(WorkerThread::is_ready)
    }

    /// Looks how busy workers are.
    pub(super) fn look_at_loads(&mut self, now: Nanos) {
        for seat in &mut self.seats {
            let busy_us = seat.stats().gauges.busy_us;
            seat.load.look(now, busy_us);
        }
    }

    /// Has threads run on these cores; those that have none given on any. What could not be had is
    /// told by [`Crew::misplaced`].
    pub(super) fn pin(&self, cores: &[usize]) {
        for (number, thread) in self.threads.iter().enumerate() {
            if let Some(thread) = thread
                && let Err(error) = thread.pin(cores.get(number).copied())
            {
                tracing::debug!(thread = number, %error, "stays on its core");
            }
        }
    }

    /// The core that a thread is pinned to.
    pub(super) fn core_of(&self, thread: u16) -> Option<usize> {
        self.threads.get(usize::from(thread))?.as_ref()?.core()
    }

    /// Which threads don't have the cores that they were to have, in words. Threads are to be
    /// [ready](Crew::is_ready).
    pub(super) fn misplaced(&self, cores: &[usize]) -> Vec<String> {
        let words = |(thread, core): (u16, &usize)| {
            let place = match self.core_of(thread) {
                Some(got) if got == *core => return None,
                Some(got) => format!("core {got}"),
                None => "any core".to_string(),
            };
            Some(format!(
                "thread {thread} runs on {place}: core {core} of `cores` is none of this \
                 machine's, or not for this process"
            ))
        };
        (0..).zip(cores).filter_map(words).collect()
    }

    /// Shares the workers out among so many threads, which have begun; the others may end.
    pub(super) fn share_out(&mut self, count: u16) {
        for seat in &mut self.seats {
            let to = thread_of(seat.id, count);
            if to == seat.bound_for {
                continue;
            }
            let thread = self.threads.get(usize::from(to)).and_then(Option::as_ref);
            if thread.is_some_and(WorkerThread::claim) {
                seat.bound_for = to;
                seat.send(WorkerCommand::Move(to));
            } else {
                tracing::error!(worker = seat.id, thread = to, "the thread is gone: it stays");
            }
        }
        self.dismiss(count);
    }

    /// A worker is run by this thread now.
    pub(super) fn moved(&mut self, worker: u16, thread: u16) {
        if let Some(seat) = self.seats.iter_mut().find(|seat| seat.id == worker) {
            seat.thread = thread;
        }
    }

    /// Workers that are not where they should be.
    pub(super) fn unsettled(&self) -> Vec<u16> {
        let on_their_way = self.seats.iter().filter(|seat| seat.thread != seat.bound_for);
        on_their_way.map(|seat| seat.id).collect()
    }

    /// Whether all workers are where they should be.
    pub(super) fn is_settled(&self) -> bool {
        self.seats.iter().all(|seat| seat.thread == seat.bound_for)
    }

    /// Workers of the thread that runs most.
    pub(super) fn workers_of_one(&self) -> u32 {
        let of = |thread: usize| {
            self.seats.iter().filter(|seat| usize::from(seat.bound_for) == thread).count()
        };
        (0..self.threads.len()).map(of).max().unwrap_or(0).max(1) as u32
    }

    /// Threads from this number on may end once they have no workers.
    pub(super) fn dismiss(&mut self, from: u16) {
        let rest = self.threads.iter_mut().skip(usize::from(from));
        rest.flatten().for_each(WorkerThread::dismiss);
    }

    /// A worker that a bug has ended, and what was said of it. Each is told of once; threads that
    /// have ended as they should are forgotten.
    pub fn fallen(&mut self) -> Option<(u16, String)> {
        for thread in &mut self.threads {
            let ended = thread.take_if(|thread| thread.is_finished()).map(WorkerThread::join);
            if let Some(Exit::Panicked { worker, words }) = ended {
                return Some((worker, words));
            }
        }
        None
    }

    /// Whether all threads have ended and were told of.
    pub fn is_empty(&self) -> bool {
        self.threads.iter().all(Option::is_none)
    }

    /// Threads that go on, and the workers that each runs, in words.
    pub(super) fn going_on(&self) -> String {
        let numbers = (0..).zip(&self.threads).filter(|(_, thread)| thread.is_some());
        let words = |(number, _): (u16, _)| {
            let workers = self.seats.iter().filter(|seat| seat.thread == number);
            let workers: Vec<_> = workers.map(|seat| seat.id.to_string()).collect();
            match &workers[..] {
                [] => format!("thread {number}"),
                [worker] => format!("thread {number} (worker {worker})"),
                _ => format!("thread {number} (workers {})", workers.join(", ")),
            }
        };
        numbers.map(words).collect::<Vec<_>>().join(", ")
    }
}

impl Control {
    /// A worker has gone to this thread, which has cost so much.
    pub(super) fn moved(&mut self, worker: u16, thread: u16, blocked: Blocked) {
        let core = self.appliance.crew.core_of(thread);
        let us = blocked.ns / 1_000;
        tracing::info!(worker, thread, core, us, "the worker goes on on another thread");
        self.appliance.crew.moved(worker, thread);
        self.blocked(worker, blocked);
    }
}

impl Appliance {
    /// Starts the threads that a configuration needs beside those that run. Workers come to them
    /// by [`Crew::share_out`].
    ///
    /// # Errors
    /// One can't be made; those that were end again.
    pub(super) fn start_threads(&mut self, wanted: &WorkersSpec) -> io::Result<()> {
        for number in 0..wanted.count {
            let thread = self.crew.threads.get_mut(usize::from(number)).and_then(Option::as_mut);
            if thread.is_some_and(WorkerThread::keep) {
                continue;
            }
            let parts = self.thread_parts(number, wanted);
            match self.threads.spawn(parts, Vec::new()) {
                Ok(thread) => self.crew.add_thread(number, thread),
                Err(error) => {
                    self.dismiss_threads();
                    return Err(error);
                }
            }
        }
        Ok(())
    }

    /// Has the threads run where a configuration has them, and the workers where they belong then.
    pub(super) fn move_workers(&mut self, wanted: &WorkersSpec) {
        if wanted.cores != self.config.workers.cores {
            self.crew.pin(&wanted.cores);
        }
        self.crew.share_out(wanted.count);
    }

    /// Whether all workers, ports and frames are where they should be.
    pub(super) fn is_settled(&self) -> bool {
        self.crew.is_settled() && self.exchanges.is_idle()
    }

    /// Threads may end that the configuration which runs does not need.
    pub(super) fn dismiss_threads(&mut self) {
        self.crew.dismiss(self.config.workers.count);
    }

    pub(super) fn thread_parts(&self, number: u16, spec: &WorkersSpec) -> ThreadParts {
        let core = spec.cores.get(usize::from(number)).copied();
        ThreadParts { number, core, idle: spec.idle, clock: self.clock.clone() }
    }
}

#[cfg(test)]
mod tests;
