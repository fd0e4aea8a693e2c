//! The unit of work: up to [`BATCH_MAX`] packets that pass the stages together.

use super::{Frame, PacketMeta};

/// Packets in a batch at most: enough to spread a stage's cost, few enough to stay in the
/// first-level cache.
pub const BATCH_MAX: usize = 64;

/// A frame and what is known of it.
#[derive(Debug)]
pub struct Packet {
    pub frame: Frame,
    pub meta: PacketMeta,
}

/// Packets in arrival order. Its storage is made once and used again for every burst.
#[derive(Debug)]
pub struct Batch {
    packets: Vec<Packet>,
}

impl Default for Batch {
    fn default() -> Batch {
        Batch::new()
    }
}

impl Batch {
    pub fn new() -> Batch {
        Batch { packets: Vec::with_capacity(BATCH_MAX) }
    }

    #[inline]
    pub fn len(&self) -> usize {
        self.packets.len()
    }

    #[inline]
    pub fn is_empty(&self) -> bool {
        self.packets.is_empty()
    }

    /// Room left.
    #[inline]
    pub fn room(&self) -> usize {
        BATCH_MAX - self.packets.len()
    }

    /// # Panics
    /// When full: callers ask [`Batch::room`] first.
    #[inline]
    pub fn push(&mut self, packet: Packet) {
        assert!(self.packets.len() < BATCH_MAX, "batch is full");
        self.packets.push(packet);
    }

    #[inline]
    pub fn as_slice(&self) -> &[Packet] {
        &self.packets
    }

    #[inline]
    pub fn as_mut_slice(&mut self) -> &mut [Packet] {
        &mut self.packets
    }

    #[inline]
    pub fn iter(&self) -> std::slice::Iter<'_, Packet> {
        self.packets.iter()
    }

    #[inline]
    pub fn iter_mut(&mut self) -> std::slice::IterMut<'_, Packet> {
        self.packets.iter_mut()
    }

    /// Takes all packets out, in order.
    #[inline]
    pub fn drain(&mut self) -> std::vec::Drain<'_, Packet> {
        self.packets.drain(..)
    }
}
