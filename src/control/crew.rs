//! The workers as the control plane sees them: rings, counters, threads.

use std::collections::VecDeque;
use std::sync::Arc;

use crate::base::Nanos;
use crate::forward::Routes;
use crate::observe::{SharedStats, Stats};
use crate::worker::{Exit, WorkerCommand, WorkerEvent, WorkerLink, WorkerThread};

/// One worker's seat.
pub struct Seat {
    pub id: u16,
    link: WorkerLink,
    stats: Arc<SharedStats>,
    thread: Option<WorkerThread>,
    /// Commands that found the ring full: the worker hangs or is busy. In order.
    outbox: VecDeque<WorkerCommand>,
}

impl Seat {
    pub fn new(id: u16, link: WorkerLink, stats: Arc<SharedStats>, thread: WorkerThread) -> Seat {
        Seat { id, link, stats, thread: Some(thread), outbox: VecDeque::new() }
    }

    /// Gives a command; one that finds no room is given later, by [`Crew::poll`].
    pub fn send(&mut self, command: WorkerCommand) {
        // Of two states of the routes the worker needs the newer one only: a worker that hangs
        // piles up nothing.
        if let (WorkerCommand::Routes(_), Some(WorkerCommand::Routes(_))) =
            (&command, self.outbox.back())
        {
            self.outbox.pop_back();
        }
        self.outbox.push_back(command);
        self.flush();
    }

    /// Whether all commands so far have reached the worker's ring.
    pub fn is_reached(&self) -> bool {
        self.outbox.is_empty()
    }

    pub fn is_running(&self) -> bool {
        self.thread.is_some()
    }

    /// What the worker published last.
    pub fn stats(&self) -> Stats {
        self.stats.read()
    }

    fn flush(&mut self) {
        while let Some(command) = self.outbox.pop_front() {
            if let Err(command) = self.link.send(command) {
                self.outbox.push_front(command);
                return;
            }
        }
    }
}

/// All workers, in the order of their numbers.
#[derive(Default)]
pub struct Crew {
    pub seats: Vec<Seat>,
}

impl Crew {
    /// Gives routes to all.
    pub fn reroute(&mut self, routes: &Arc<Routes>) {
        for seat in &mut self.seats {
            seat.send(WorkerCommand::Routes(Arc::clone(routes)));
        }
    }

    /// Takes what workers told, into `events`, and gives what could not be given before.
    pub fn poll(&mut self, events: &mut Vec<(u16, WorkerEvent)>) {
        for seat in &mut self.seats {
            while let Some(event) = seat.link.recv() {
                events.push((seat.id, event));
            }
            seat.flush();
        }
    }

    /// A worker that has ended, and how. Each is told of once.
    pub fn ended(&mut self) -> Option<(u16, Exit)> {
        let seat = self
            .seats
            .iter_mut()
            .find(|s| s.thread.as_ref().is_some_and(WorkerThread::is_finished))?;
        Some((seat.id, seat.thread.take()?.join()))
    }

    /// Asks all to send what waits, until the deadline, and end.
    pub fn stop(&mut self, deadline: Nanos) {
        for seat in &mut self.seats {
            seat.send(WorkerCommand::Stop { deadline });
        }
    }

    /// Whether all have ended and were told of.
    pub fn is_empty(&self) -> bool {
        self.seats.iter().all(|s| s.thread.is_none())
    }
}
