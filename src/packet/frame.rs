//! A packet's bytes: a move-only handle to one slot of the arena, and the pool of free ones.

use std::sync::Arc;

use crate::base::mem::{Arena, Slot};

/// Bytes kept free before a received packet, for headers that grow (encapsulation, VLAN tags).
pub const HEADROOM: usize = 256;

/// A packet in memory: its slot, where it begins there, and how long it is.
///
/// Move-only. Ends in [`FramePool::put`] or in a port's ring; dropping one is a bug that debug
/// builds panic on and release builds count.
#[derive(Debug)]
pub struct Frame {
    slot: Slot,
    offset: u16,
    len: u16,
}

impl Frame {
    /// # Panics
    /// Where `offset + len` is over 65,535; slots are far smaller.
    #[inline]
    pub fn new(slot: Slot, offset: usize, len: usize) -> Frame {
        assert!(offset + len <= usize::from(u16::MAX), "frame at {offset}, {len} bytes");
        Frame { slot, offset: offset as u16, len: len as u16 }
    }

    /// Length of the packet in bytes, without FCS.
    #[inline]
    pub fn len(&self) -> usize {
        usize::from(self.len)
    }

    #[inline]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Where the packet begins within its slot.
    #[inline]
    pub fn offset(&self) -> usize {
        usize::from(self.offset)
    }

    #[inline]
    pub fn slot_index(&self) -> u32 {
        self.slot.index()
    }

    #[inline]
    pub fn into_slot(self) -> Slot {
        self.slot
    }

    /// The packet's bytes.
    #[inline(always)]
    pub fn bytes<'a>(&'a self, arena: &'a Arena) -> &'a [u8] {
        let (from, to) = (self.offset(), self.offset() + self.len());
        &arena.bytes(&self.slot)[from..to]
    }

    /// The packet's bytes, to rewrite.
    #[inline(always)]
    pub fn bytes_mut<'a>(&'a mut self, arena: &'a Arena) -> &'a mut [u8] {
        let (from, to) = (self.offset(), self.offset() + self.len());
        &mut arena.bytes_mut(&mut self.slot)[from..to]
    }

    /// Asks the cache for the packet's first line.
    #[inline(always)]
    pub fn prefetch(&self, arena: &Arena) {
        arena.prefetch(&self.slot, self.offset());
    }

    /// Sets the packet's extent within its slot.
    ///
    /// # Errors
    /// Returns `false`, changing nothing, where it would not fit the slot.
    #[inline]
    #[must_use]
    pub fn set_extent(&mut self, arena: &Arena, offset: usize, len: usize) -> bool {
        if offset + len > arena.slot_size() as usize {
            return false;
        }
        self.offset = offset as u16;
        self.len = len as u16;
        true
    }

    /// Grows the packet by `n` bytes at its front. `false` where the headroom is used up.
    #[inline]
    #[must_use]
    pub fn push_front(&mut self, n: usize) -> bool {
        let Some(offset) = self.offset().checked_sub(n) else { return false };
        self.offset = offset as u16;
        self.len += n as u16;
        true
    }

    /// Cuts `n` bytes off the front. `false` where the packet is shorter.
    #[inline]
    #[must_use]
    pub fn pop_front(&mut self, n: usize) -> bool {
        let Some(len) = self.len().checked_sub(n) else { return false };
        self.offset += n as u16;
        self.len = len as u16;
        true
    }

    /// Cuts the packet to `len` bytes: link padding goes. Nothing happens where it is shorter.
    #[inline]
    pub fn truncate(&mut self, len: usize) {
        if len < self.len() {
            self.len = len as u16;
        }
    }
}

/// One worker's stock of free frames. A stack, so that the frame used last, still in the cache,
/// goes out first.
pub struct FramePool {
    arena: Arc<Arena>,
    free: Vec<Slot>,
    /// Frames that belong here, in the pool or out of it.
    owned: usize,
    /// Of those, the ones that are lent for receiving.
    lent: usize,
}

impl FramePool {
    pub fn new(arena: Arc<Arena>, slots: Vec<Slot>) -> FramePool {
        let owned = slots.len();
        let mut free = slots;
        // Frames of other workers may end here: room for all keeps `put` from ever allocating.
        free.reserve_exact(arena.slots() as usize - owned);
        FramePool { arena, free, owned, lent: 0 }
    }

    /// Maps an arena of its own: for tests, simulation and memory ports.
    ///
    /// # Panics
    /// Where the memory can't be had.
    pub fn standalone(frames: u32, frame_size: u32) -> FramePool {
        let (arena, slots) = Arena::map(frames, frame_size, false).expect("memory for frames");
        FramePool::new(arena, slots)
    }

    #[inline]
    pub fn arena(&self) -> &Arc<Arena> {
        &self.arena
    }

    /// Frames in stock now.
    #[inline]
    pub fn available(&self) -> usize {
        self.free.len()
    }

    /// Frames that were given to this pool at the start.
    pub fn owned(&self) -> usize {
        self.owned
    }

    /// So many frames are lent for receiving for as long as nothing arrives.
    pub fn set_lent(&mut self, lent: usize) {
        self.lent = lent;
    }

    /// Whether frames may be kept for what can do without: of those that are not lent for receiving
    /// more than half are free.
    #[inline]
    pub fn is_rich(&self) -> bool {
        self.available() > self.owned.saturating_sub(self.lent) / 2
    }

    /// Frames of this pool's share that are elsewhere: in rings, queues, or with another worker
    /// (negative where this pool holds other workers' frames).
    pub fn outstanding(&self) -> isize {
        self.owned as isize - self.free.len() as isize
    }

    #[inline]
    pub fn take_slot(&mut self) -> Option<Slot> {
        self.free.pop()
    }

    #[inline]
    pub fn put_slot(&mut self, slot: Slot) {
        debug_assert!(self.free.len() < self.free.capacity(), "more slots than the arena has");
        self.free.push(slot);
    }

    /// An empty frame with its headroom before it. `None` when the stock is used up.
    #[inline]
    pub fn take(&mut self) -> Option<Frame> {
        self.free.pop().map(|slot| Frame::new(slot, HEADROOM, 0))
    }

    /// A frame holding a copy of `bytes`. `None` when the stock is used up or a slot is too small.
    pub fn take_with(&mut self, bytes: &[u8]) -> Option<Frame> {
        if HEADROOM + bytes.len() > self.arena.slot_size() as usize {
            return None;
        }
        let mut frame = self.take()?;
        let fits = frame.set_extent(&self.arena, HEADROOM, bytes.len());
        debug_assert!(fits);
        frame.bytes_mut(&self.arena).copy_from_slice(bytes);
        Some(frame)
    }

    #[inline]
    pub fn put(&mut self, frame: Frame) {
        self.put_slot(frame.into_slot());
    }
}

impl Drop for FramePool {
    fn drop(&mut self) {
        for slot in self.free.drain(..) {
            slot.into_raw();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_go_out_and_come_back() {
        let mut pool = FramePool::standalone(2, 2048);
        let a = pool.take_with(b"hello").expect("stock");
        assert_eq!(a.bytes(pool.arena()), b"hello");
        let b = pool.take().expect("stock");
        assert!(pool.take().is_none());
        assert_eq!(pool.outstanding(), 2);
        pool.put(a);
        pool.put(b);
        assert_eq!(pool.outstanding(), 0);
        assert!(pool.take_with(&[0; 2048]).is_none(), "no room for headroom and data");
    }

    #[test]
    fn headers_grow_into_the_headroom_and_no_further() {
        let mut pool = FramePool::standalone(1, 2048);
        let mut f = pool.take_with(b"payload").expect("stock");
        assert!(f.push_front(HEADROOM));
        assert_eq!(f.len(), HEADROOM + 7);
        assert!(!f.push_front(1));
        assert!(f.pop_front(HEADROOM));
        assert_eq!(f.bytes(pool.arena()), b"payload");
        assert!(!f.pop_front(8));
        f.truncate(3);
        assert_eq!(f.bytes(pool.arena()), b"pay");
        pool.put(f);
    }
}
