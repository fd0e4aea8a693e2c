//! The reader's side of a queue's inbox: frames that a program for tc has copied into memory that
//! both sides map.
//!
//! The structs and numbers are those of `src/nic/bpf/inbox.h`.

use std::cell::UnsafeCell;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use super::abi::MAX_QUEUES;
use super::mapped::MappedArray;
use crate::packet::{Frame, FramePool};

/// Frames that the queues of an interface hold together.
pub(super) const INBOX_SLOTS: u32 = 1_024;
const INBOX_BYTES: usize = 2_024;

const _: () = assert!(INBOX_SLOTS >= MAX_QUEUES && INBOX_SLOTS.is_power_of_two());

/// `struct tg_inbox`: a queue's.
#[repr(C)]
pub(super) struct InboxLine {
    head: AtomicU64,
    entered: AtomicU64,
    pad: [u64; 6],
    asleep: AtomicU32,
    first: AtomicU32,
    shift: AtomicU32,
    frame_max: AtomicU32,
    pad2: [u64; 6],
}

/// `struct tg_inbox_slot`.
#[repr(C)]
pub(super) struct InboxSlot {
    turn: AtomicU64,
    entered: AtomicU64,
    len: AtomicU32,
    pad: u32,
    bytes: UnsafeCell<[u8; INBOX_BYTES]>,
}

// SAFETY: who reads `bytes` has seen in `turn` that its writer is done, and is the only reader
// until it says in `turn` that it is, too.
unsafe impl Sync for InboxSlot {}

/// The inboxes of one interface.
#[derive(Clone)]
pub(crate) struct Inboxes {
    pub(super) lines: Arc<MappedArray<InboxLine>>,
    pub(super) slots: Arc<MappedArray<InboxSlot>>,
}

impl Inboxes {
    /// That of one of `queues`, for frames of `frame_max` bytes at most. To be called once for
    /// each, before anything is steered there.
    pub(crate) fn open(&self, queue: u32, queues: u32, frame_max: usize) -> Inbox {
        let shift = (INBOX_SLOTS / queues.clamp(1, MAX_QUEUES)).ilog2();
        let first = queue << shift;
        let inbox = Inbox { of: self.clone(), queue, first, shift, next: 0 };
        let line = inbox.line();
        line.first.store(first, Ordering::Relaxed);
        line.shift.store(shift, Ordering::Relaxed);
        let longest = frame_max.min(INBOX_BYTES) as u32;
        line.frame_max.store(longest, Ordering::Release);
        inbox
    }
}

/// One queue's, for its worker.
pub(crate) struct Inbox {
    of: Inboxes,
    queue: u32,
    first: u32,
    shift: u32,
    /// Frames taken, those that were none after all included.
    next: u64,
}

impl Inbox {
    /// Of the frame that is next: how many of the companion's come before it.
    #[inline]
    pub(crate) fn peek(&self) -> Option<u64> {
        let (slot, lap) = self.place();
        // Pairs with the writer's barrier: the rest of the slot is in place.
        let is_full = slot.turn.load(Ordering::Acquire) == 2 * lap + 1;
        is_full.then(|| slot.entered.load(Ordering::Relaxed))
    }

    /// Takes the frame that was seen by [`Inbox::peek`]. `None` where it is none after all, or
    /// `pool` is empty: it is lost then.
    pub(crate) fn take(&mut self, pool: &mut FramePool) -> Option<Frame> {
        let (slot, lap) = self.place();
        // Whoever sets it to 0 has the frame: the program may have sent it another way.
        let len = slot.len.swap(0, Ordering::AcqRel) as usize;
        // SAFETY: full, as `peek` has seen, and nobody else reads or writes it before its turn is
        // another one.
        let bytes = unsafe { &*slot.bytes.get() };
        let frame = if len == 0 { None } else { bytes.get(..len).and_then(|b| pool.take_with(b)) };
        slot.turn.store(2 * lap + 2, Ordering::Release);
        self.next += 1;
        frame
    }

    /// Frames that went to the companion so far.
    pub(crate) fn entered(&self) -> u64 {
        self.line().entered.load(Ordering::Relaxed)
    }

    /// Has the program wake the worker for the next frame, which needs a full barrier and a look at
    /// [`Inbox::peek`] before it sleeps; or no longer.
    pub(crate) fn doze(&self, asleep: bool) {
        self.line().asleep.store(u32::from(asleep), Ordering::Relaxed);
    }

    fn line(&self) -> &InboxLine {
        self.of.lines.at(self.queue as usize)
    }

    #[inline]
    fn place(&self) -> (&InboxSlot, u64) {
        let at = self.first as usize + (self.next as usize & ((1 << self.shift) - 1));
        (self.of.slots.at(at), self.next >> self.shift)
    }
}

#[cfg(test)]
impl Inboxes {
    /// Those that no program writes to.
    pub(crate) fn in_memory() -> Inboxes {
        let memory = "memory";
        Inboxes {
            lines: Arc::new(MappedArray::anonymous(MAX_QUEUES as usize).expect(memory)),
            slots: Arc::new(MappedArray::anonymous(INBOX_SLOTS as usize).expect(memory)),
        }
    }
}

#[cfg(test)]
impl Inbox {
    /// As a program that has had `frame`: sends it by the inbox where that has room.
    pub(crate) fn put(&self, frame: &[u8]) -> bool {
        let head = self.line().head.load(Ordering::Relaxed);
        let at = self.first as usize + (head as usize & ((1 << self.shift) - 1));
        let (slot, lap) = (self.of.slots.at(at), head >> self.shift);
        if slot.turn.load(Ordering::Acquire) != 2 * lap {
            return false;
        }
        self.line().head.store(head + 1, Ordering::Relaxed);
        slot.entered.store(self.entered(), Ordering::Relaxed);
        // SAFETY: the slot is vacant, and nobody else writes.
        let bytes = unsafe { &mut *slot.bytes.get() };
        bytes[..frame.len()].copy_from_slice(frame);
        slot.len.store(frame.len() as u32, Ordering::Relaxed);
        slot.turn.store(2 * lap + 1, Ordering::Release);
        true
    }

    /// Sends so many frames to the companion.
    pub(crate) fn enter(&self, frames: u64) {
        self.line().entered.fetch_add(frames, Ordering::Relaxed);
    }

    /// Takes the frame that is next back.
    pub(crate) fn cancel(&self) {
        self.place().0.len.store(0, Ordering::Relaxed);
    }

    pub(crate) fn capacity(&self) -> usize {
        1 << self.shift
    }
}
