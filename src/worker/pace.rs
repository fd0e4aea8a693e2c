//! How busy a worker is.

use super::turn::Worker;
use crate::nic::Port;
use crate::observe::Gauges;

/// Since its start.
#[derive(Default)]
pub(super) struct Pace {
    polls: u64,
    polls_idle: u64,
    busy_ns: u64,
}

impl Pace {
    /// A turn has moved so many packets.
    #[inline]
    pub(super) fn turn(&mut self, moved: usize) {
        self.polls += 1;
        self.polls_idle += u64::from(moved == 0);
    }

    pub(super) fn gauges(&self) -> Gauges {
        let Pace { polls, polls_idle, busy_ns } = *self;
        Gauges { polls, polls_idle, busy_us: busy_ns / 1_000, ..Gauges::default() }
    }
}

impl<P: Port> Worker<P> {
    /// A turn that moved packets took this long.
    #[inline]
    pub(super) fn was_busy(&mut self, ns: u64) {
        self.pace.busy_ns += ns;
    }
}
