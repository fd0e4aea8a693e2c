//! The cells that queued packets lie in, linked to one queue a flow.

use super::codel::Ticks;
use super::wheel::NIL;
use crate::base::mem::{Table, prefetch};
use crate::packet::Frame;

/// Cells that are looked at for each packet that may be taken out, where any will do.
const LOOKED_AT: usize = 16;

/// Aligned so that it never lies in two cache lines.
#[repr(align(32))]
struct Cell {
    /// `None` in a free cell.
    frame: Option<Frame>,
    /// The next packet of the flow, or the next free cell.
    next: u32,
    note: Note,
}

/// What is kept beside a queued frame.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Note {
    /// When it came.
    pub since: Ticks,
    /// Where its IP header begins; 0 where there is none.
    pub l3: u16,
}

const _: () = assert!(size_of::<Cell>() == 32);

/// A fixed number of cells.
pub(super) struct Packets {
    cells: Table<Cell>,
    free: u32,
    used: u32,
    /// Cells that may be in use.
    used_max: u32,
}

impl Packets {
    pub fn new(packets_max: u32) -> Packets {
        let next = |i| if i + 1 < packets_max { i + 1 } else { NIL };
        let cell = |i| Cell { frame: None, next: next(i), note: Note::default() };
        let free = if packets_max > 0 { 0 } else { NIL };
        let mut cells = Table::with_room(packets_max as usize);
        cells.extend((0..packets_max).map(cell));
        Packets { cells, free, used: 0, used_max: packets_max }
    }

    /// Changes how many may be held, as far as there are cells. Those that are stay.
    pub fn set_max(&mut self, packets_max: u32) {
        self.used_max = packets_max.min(self.cells.len() as u32);
    }

    #[inline(always)]
    pub fn len(&self) -> u32 {
        self.used
    }

    #[inline(always)]
    pub fn is_full(&self) -> bool {
        self.used >= self.used_max
    }

    /// Puts a frame into a free cell. Gives it back where there is none.
    #[inline]
    pub fn insert(&mut self, frame: Frame, note: Note) -> Result<u32, Frame> {
        let at = self.free;
        let Some(cell) = self.cells.get_mut(at as usize) else { return Err(frame) };
        self.free = std::mem::replace(&mut cell.next, NIL);
        cell.frame = Some(frame);
        cell.note = note;
        self.used += 1;
        Ok(at)
    }

    /// Takes the frame out of a cell and frees the cell. Returns what was noted with it, too, and
    /// the cell that followed it.
    #[inline(always)]
    pub fn remove(&mut self, at: u32) -> (Option<Frame>, Note, u32) {
        let cell = &mut self.cells[at as usize];
        let frame = cell.frame.take();
        debug_assert!(frame.is_some(), "cell {at} is free");
        let next = std::mem::replace(&mut cell.next, self.free);
        self.free = at;
        self.used -= 1;
        (frame, cell.note, next)
    }

    /// When the packet in a cell came.
    #[inline(always)]
    pub fn since(&self, at: u32) -> Ticks {
        self.cells[at as usize].note.since
    }

    #[inline(always)]
    pub fn link(&mut self, tail: u32, next: u32) {
        self.cells[tail as usize].next = next;
    }

    #[inline(always)]
    pub fn next(&self, at: u32) -> u32 {
        self.cells[at as usize].next
    }

    /// Asks the cache for a cell.
    #[inline(always)]
    pub fn prefetch(&self, at: u32) {
        prefetch(&self.cells, at as usize);
    }

    /// Length of a queued frame; 0 for a free cell.
    #[inline(always)]
    pub fn frame_len(&self, at: u32) -> usize {
        self.cells[at as usize].frame.as_ref().map_or(0, Frame::len)
    }

    #[cfg(test)]
    pub fn set_since(&mut self, at: u32, since: Ticks) {
        self.cells[at as usize].note.since = since;
    }

    #[cfg(test)]
    pub fn frame(&self, at: u32) -> &Frame {
        self.cells[at as usize].frame.as_ref().expect("a cell in use")
    }

    /// Takes frames out of the cells from `from` on, so many at most and of no more
    /// cells than [`LOOKED_AT`] times as many. In no order.
    pub fn take_some(&mut self, from: &mut u32, frames_max: usize, out: &mut Vec<Frame>) {
        let cells = self.cells.len() as u32;
        let end = from.saturating_add((frames_max * LOOKED_AT) as u32).min(cells);
        let mut left = frames_max;
        while *from < end && left > 0 {
            if self.cells[*from as usize].frame.is_some() {
                out.extend(self.remove(*from).0);
                left -= 1;
            }
            *from += 1;
        }
    }

    /// Takes every frame out, in no order.
    pub fn drain(&mut self, out: &mut Vec<Frame>) {
        let cells = self.cells.len() as u32;
        for at in 0..cells {
            if self.cells[at as usize].frame.is_some() {
                out.extend(self.remove(at).0);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::packet::FramePool;

    #[test]
    fn cells_are_used_again_and_never_more_of_them() {
        let mut pool = FramePool::standalone(4, 512);
        let mut packets = Packets::new(2);
        let a =
            packets.insert(pool.take_with(b"a").expect("stock"), Note::default()).expect("room");
        let b =
            packets.insert(pool.take_with(b"bb").expect("stock"), Note::default()).expect("room");
        packets.link(a, b);
        assert!(packets.is_full());
        let refused =
            packets.insert(pool.take().expect("stock"), Note::default()).expect_err("full");
        pool.put(refused);
        assert_eq!((packets.frame_len(b), packets.next(a)), (2, b));
        let (frame, _, next) = packets.remove(a);
        assert_eq!(next, b);
        pool.put(frame.expect("queued"));
        assert_eq!(packets.insert(pool.take().expect("stock"), Note::default()).expect("room"), a);
        let mut out = Vec::new();
        packets.drain(&mut out);
        assert_eq!((out.len(), packets.len()), (2, 0));
        out.into_iter().for_each(|f| pool.put(f));
        assert_eq!(pool.outstanding(), 0);
    }

    #[test]
    fn fewer_may_be_held_and_no_more_than_there_are_cells() {
        let mut pool = FramePool::standalone(4, 512);
        let mut packets = Packets::new(2);
        let mut put = |packets: &mut Packets| {
            let frame = pool.take().expect("stock");
            packets.insert(frame, Note::default()).expect("room");
            packets.is_full()
        };
        assert!(!put(&mut packets));
        packets.set_max(1);
        assert!(packets.is_full());
        packets.set_max(9);
        assert!(!packets.is_full() && put(&mut packets), "two cells");
        let mut out = Vec::new();
        packets.drain(&mut out);
        out.into_iter().for_each(|f| pool.put(f));
    }
}
