//! The sign of life that a worker gives to the XDP programs, through a page that both sides map.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::abi::{HeartbeatLine, MAX_WORKERS};
use crate::base::Nanos;

/// A worker writes its stamp no more often than this.
const BEAT_INTERVAL_NS: u64 = 1_000_000;

const PAGE_LEN: usize = MAX_WORKERS as usize * size_of::<HeartbeatLine>();
const _: () = assert!(PAGE_LEN.is_multiple_of(4096), "a BPF map is mapped in whole pages");

/// The mapped map `heartbeats` of one interface's program.
pub(super) struct HeartbeatPage {
    base: NonNull<HeartbeatLine>,
}

// SAFETY: the page is only reached through `line`, which hands out atomics.
unsafe impl Send for HeartbeatPage {}
// SAFETY: as above.
unsafe impl Sync for HeartbeatPage {}

impl HeartbeatPage {
    pub(super) fn map(fd: BorrowedFd<'_>) -> io::Result<HeartbeatPage> {
        // SAFETY: a new shared mapping of a BPF array that was created with BPF_F_MMAPABLE and has
        // at least PAGE_LEN bytes of values.
        let p = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                PAGE_LEN,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_SHARED,
                fd.as_raw_fd(),
                0,
            )
        };
        match NonNull::new(p.cast::<HeartbeatLine>()) {
            Some(base) if p != libc::MAP_FAILED => Ok(HeartbeatPage { base }),
            _ => Err(io::Error::last_os_error()),
        }
    }

    fn line(&self, worker: u16) -> &HeartbeatLine {
        let index = usize::from(worker) % MAX_WORKERS as usize;
        // SAFETY: `index` is inside the mapping, which lives as long as `self`; the kernel side
        // only reads, this side writes the atomic only.
        unsafe { self.base.add(index).as_ref() }
    }
}

impl Drop for HeartbeatPage {
    fn drop(&mut self) {
        // SAFETY: mapped in `map` with this length; references into it borrow `self`.
        unsafe { libc::munmap(self.base.as_ptr().cast(), PAGE_LEN) };
    }
}

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
            page.line(self.worker).ns.store(stamp.0, Ordering::Relaxed);
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
