//! Datagrams that are held, one behind the other, with what was read of their headers.

use crate::forward::splice::Held;
use crate::forward::splice::held::{PAGE_BYTES, Put, STREAM_BYTES_MAX};
use crate::packet::PacketMeta;

/// Datagrams of one client at most: a hello of four, and all of them once again.
pub const DATAGRAMS_MAX: usize = 8;

/// Datagrams by slot number. All memory is taken at construction.
pub struct Datagrams {
    held: Held,
    metas: Box<[[PacketMeta; DATAGRAMS_MAX]]>,
    counts: Box<[u8]>,
}

impl Datagrams {
    /// `pages` are shared by all `slots`, as those of [`Held`] are.
    pub fn new(slots: usize, pages: usize) -> Datagrams {
        Datagrams {
            held: Held::new(slots, pages),
            metas: vec![[PacketMeta::UNREAD; DATAGRAMS_MAX]; slots].into_boxed_slice(),
            counts: vec![0; slots].into_boxed_slice(),
        }
    }

    pub fn count(&self, slot: usize) -> usize {
        usize::from(self.counts[slot])
    }

    /// Keeps a whole packet; `false` where there is no room for it.
    pub fn put(&mut self, slot: usize, packet: &[u8], meta: &PacketMeta) -> bool {
        let (at, count) = (self.held.len(slot) as usize, self.count(slot));
        let Some(bytes) = packet.get(..usize::from(meta.end)) else { return false };
        let pages = |len: usize| len.div_ceil(PAGE_BYTES);
        let wanted = pages(at + bytes.len()) - pages(at);
        if count == DATAGRAMS_MAX
            || at + bytes.len() > STREAM_BYTES_MAX as usize
            || wanted > self.held.pages_free()
        {
            return false;
        }
        let put = self.held.put(slot, at as u32, bytes, STREAM_BYTES_MAX);
        debug_assert_eq!(put, Put::Grown((at + bytes.len()) as u32));
        self.metas[slot][count] = meta.clone();
        self.counts[slot] += 1;
        true
    }

    /// What was read of the headers of one that is held.
    pub fn meta(&self, slot: usize, index: usize) -> &PacketMeta {
        &self.metas[slot][index]
    }

    /// Copies a packet, which has as many bytes as its headers say.
    pub fn copy(&self, slot: usize, index: usize, out: &mut [u8]) {
        let before = &self.metas[slot][..index];
        let at = before.iter().map(|meta| u32::from(meta.end)).sum();
        self.held.copy(slot, at, out);
    }

    /// Forgets all of a slot's.
    pub fn clear(&mut self, slot: usize) {
        self.held.clear(slot);
        self.counts[slot] = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn put(held: &mut Datagrams, slot: usize, byte: u8, len: u16) -> bool {
        let meta = PacketMeta { end: len, ..PacketMeta::UNREAD };
        // With some padding of the link.
        held.put(slot, &vec![byte; usize::from(len) + 7], &meta)
    }

    fn got(held: &Datagrams, slot: usize, index: usize) -> Vec<u8> {
        let mut out = vec![0; usize::from(held.meta(slot, index).end)];
        held.copy(slot, index, &mut out);
        out
    }

    #[test]
    fn packets_come_back_whole_and_in_order() {
        let mut held = Datagrams::new(2, 5);
        for (byte, len) in [(1, 1_242), (2, 60), (3, 1_400)] {
            assert!(put(&mut held, 1, byte, len));
        }
        assert_eq!(held.count(1), 3);
        assert_eq!(got(&held, 1, 0), [1; 1_242]);
        assert_eq!(got(&held, 1, 1), [2; 60]);
        assert_eq!(got(&held, 1, 2), [3; 1_400]);
        held.clear(1);
        assert_eq!((held.count(1), held.held.pages_free()), (0, 5));
    }

    #[test]
    fn limits_hold() {
        let mut held = Datagrams::new(2, 3);
        assert!(put(&mut held, 0, 1, 4_000));
        assert!(!put(&mut held, 0, 2, 2_200), "two pages more");
        assert!(put(&mut held, 0, 3, 2_000), "what fits still does");
        assert!(!put(&mut held, 1, 4, 1), "no page");
        held.clear(0);
        for byte in 0..DATAGRAMS_MAX as u8 {
            assert!(put(&mut held, 1, byte, 10));
        }
        assert!(!put(&mut held, 1, 9, 10), "too many");
        assert!(!held.put(0, &[0; 5], &PacketMeta { end: 6, ..PacketMeta::UNREAD }), "cut");
    }
}
