//! Memory of dynamic tables: a little for what most senders keep there, or for all there may be.

use super::table::{ENTRY_OVERHEAD, Entry, NO_ENTRY};

/// Entries and bytes of wanted values that nearly all senders do with.
const ENTRIES_FEW: usize = 24;
const BYTES_FEW: usize = 320;

/// Room for a table's entries, and for their values. Without any at first.
#[derive(Clone, Debug, Default)]
pub struct Room {
    pub(super) entries: Box<[Entry]>,
    pub(super) bytes: Box<[u8]>,
}

impl Room {
    /// For a few entries.
    pub fn small() -> Room {
        Room::of(ENTRIES_FEW, BYTES_FEW)
    }

    /// For a table of this size, whatever it holds.
    pub fn whole(bytes: usize) -> Room {
        Room::of(bytes / ENTRY_OVERHEAD + 1, bytes)
    }

    fn of(entries: usize, bytes: usize) -> Room {
        let entries = vec![NO_ENTRY; entries].into_boxed_slice();
        Room { entries, bytes: vec![0; bytes].into_boxed_slice() }
    }

    pub fn is_none(&self) -> bool {
        self.entries.is_empty()
    }

    pub fn is_small(&self) -> bool {
        self.entries.len() == ENTRIES_FEW
    }

    pub fn is_larger_than(&self, other: &Room) -> bool {
        self.entries.len() > other.entries.len()
    }

    /// So many bytes from here on, in order.
    pub(super) fn value(&self, start: u32, len: u32) -> [&[u8]; 2] {
        let (start, end) = (start as usize, start as usize + len as usize);
        match end.checked_sub(self.bytes.len()) {
            None | Some(0) => [&self.bytes[start..end], &[]],
            Some(wrapped) => [&self.bytes[start..], &self.bytes[..wrapped]],
        }
    }

    /// Writes bytes from here on; where the next ones go.
    pub(super) fn put(&mut self, at: u32, piece: &[u8]) -> u32 {
        let at = at as usize;
        let n = piece.len().min(self.bytes.len() - at);
        let (first, wrapped) = piece.split_at(n);
        self.bytes[at..at + n].copy_from_slice(first);
        self.bytes[..wrapped.len()].copy_from_slice(wrapped);
        let end = at + piece.len();
        (if end >= self.bytes.len() { end - self.bytes.len() } else { end }) as u32
    }
}
