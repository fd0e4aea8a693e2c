//! The sign of life that a worker gives to the XDP programs, through a page that both sides map.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::abi::HeartbeatLine;
use super::mapped::MappedArray;
use crate::base::Nanos;

/// A worker writes its stamp no more often than this.
const BEAT_INTERVAL_NS: u64 = 1_000_000;

/// The mapped map `heartbeats` of one interface's program.
pub(super) type HeartbeatPage = MappedArray<HeartbeatLine>;

/// One worker's stamp in the programs of all interfaces.
pub struct Heartbeat {
    pages: Vec<Arc<HeartbeatPage>>,
    worker: u16,
    last: Nanos,
}

impl Heartbeat {
    pub(super) fn new(pages: Vec<Arc<HeartbeatPage>>, worker: u16) -> Heartbeat {
        let mut beat = Heartbeat { pages, worker, last: Nanos::ZERO };
        beat.stamp(kernel_now());
        beat
    }

    /// Says that the worker lives. Cheap enough for every loop: the stamp is written once a
    /// millisecond of `now`, the worker's own clock, and taken from the clock that the programs
    /// read.
    #[inline]
    pub fn beat(&mut self, now: Nanos) {
        if now.since(self.last) >= BEAT_INTERVAL_NS {
            self.last = now;
            self.stamp(kernel_now());
        }
    }

    /// Writes this stamp (`CLOCK_MONOTONIC`) whatever the time: zero makes the worker look dead.
    pub fn stamp(&mut self, stamp: Nanos) {
        for page in &self.pages {
            page.at(usize::from(self.worker)).ns.store(stamp.0, Ordering::Relaxed);
        }
    }
}

/// `CLOCK_MONOTONIC` in nanoseconds: what `bpf_ktime_get_ns` reads.
pub fn kernel_now() -> Nanos {
    let mut ts = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: writes one timespec; the clock exists on every Linux.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &mut ts) };
    Nanos(ts.tv_sec as u64 * 1_000_000_000 + ts.tv_nsec as u64)
}
