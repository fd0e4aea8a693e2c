//! A worker that goes to another thread.

use super::command::{Blocked, WorkerEvent};
use super::turn::Worker;
use crate::nic::Port;

impl<P: Port> Worker<P> {
    pub(super) fn id(&self) -> u16 {
        self.parts.id
    }

    /// The thread that it is to go to, asked for in the last turn.
    pub(super) fn take_move(&mut self) -> Option<u16> {
        self.moving_to.take()
    }

    /// Tells that this thread runs it now, and what the way has cost.
    #[cold]
    pub(super) fn tell_moved(&mut self, thread: u16, blocked: Blocked) {
        self.parts.control.tell(WorkerEvent::Moved { thread, blocked });
    }
}
