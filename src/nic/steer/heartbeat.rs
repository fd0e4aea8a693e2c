//! The sign of life that a worker gives to the XDP programs, through a page that both sides map.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use crossbeam::queue::ArrayQueue;

use super::abi::HeartbeatLine;
use super::mapped::MappedArray;
use crate::base::Nanos;

/// A worker writes its stamp no more often than this.
const BEAT_INTERVAL_NS: u64 = 1_000_000;

/// The mapped map `heartbeats` of one interface's program.
pub(super) type HeartbeatPage = MappedArray<HeartbeatLine>;

/// One worker's stamp in the programs of all interfaces.
pub struct Heartbeat {
    pages: Pages,
    renewal: Arc<Renewal>,
    worker: u16,
    last: Nanos,
}

/// The pages of all interfaces.
type Pages = Vec<Arc<HeartbeatPage>>;

/// How a worker hears of interfaces that have come or gone, without waiting for anybody.
pub(super) struct Renewal {
    /// The newest pages, until the worker has taken them.
    fresh: ArrayQueue<Pages>,
    /// Those that the worker had before: freed where they come from. From one time that this is
    /// emptied to the next it may take pages twice: those of before, and the newest.
    used: ArrayQueue<Pages>,
}

impl Renewal {
    pub(super) fn new() -> Arc<Renewal> {
        Arc::new(Renewal { fresh: ArrayQueue::new(1), used: ArrayQueue::new(2) })
    }

    pub(super) fn renew(&self, pages: Pages) {
        while self.used.pop().is_some() {}
        drop(self.fresh.force_push(pages));
    }
}

impl Heartbeat {
    pub(super) fn new(pages: Pages, renewal: Arc<Renewal>, worker: u16) -> Heartbeat {
        let mut beat = Heartbeat { pages, renewal, worker, last: Nanos::ZERO };
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
        if let Some(pages) = self.renewal.fresh.pop() {
            let before = std::mem::replace(&mut self.pages, pages);
            drop(self.renewal.used.force_push(before));
        }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_that_comes_later_is_stamped_and_one_that_goes_is_not() {
        let page = || Arc::new(HeartbeatPage::anonymous(2).expect("memory"));
        let stamp = |page: &HeartbeatPage| page.at(1).ns.load(Ordering::Relaxed);
        let (first, second, third) = (page(), page(), page());
        let renewal = Renewal::new();
        let mut beat = Heartbeat::new(vec![Arc::clone(&first)], Arc::clone(&renewal), 1);
        assert!(stamp(&first) > 0);
        renewal.renew(vec![Arc::clone(&first), Arc::clone(&second)]);
        beat.stamp(Nanos(7));
        assert_eq!([&first, &second].map(|page| stamp(page)), [7, 7]);
        assert_eq!(Arc::strong_count(&first), 3, "the old list waits for its owner");
        // Of two that come before the next beat the newer one counts.
        renewal.renew(vec![Arc::clone(&first)]);
        renewal.renew(vec![Arc::clone(&second), Arc::clone(&third)]);
        beat.stamp(Nanos(9));
        assert_eq!([&first, &second, &third].map(|page| stamp(page)), [7, 9, 9]);
        assert_eq!(first.at(0).ns.load(Ordering::Relaxed), 0, "another worker's");
    }

    #[test]
    fn pages_taken_twice_between_two_looks_are_not_freed_by_the_worker() {
        let page = || Arc::new(HeartbeatPage::anonymous(1).expect("memory"));
        let (first, second) = (page(), page());
        let renewal = Renewal::new();
        let mut beat = Heartbeat::new(vec![Arc::clone(&first)], Arc::clone(&renewal), 0);
        renewal.renew(vec![Arc::clone(&second)]);
        // The worker takes these when the next renewal has just emptied what was given back.
        beat.stamp(Nanos(1));
        drop(renewal.fresh.force_push(Vec::new()));
        beat.stamp(Nanos(2));
        assert_eq!([&first, &second].map(Arc::strong_count), [2, 2]);
        renewal.renew(Vec::new());
        assert_eq!([&first, &second].map(Arc::strong_count), [1, 1]);
    }
}
