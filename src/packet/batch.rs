//! The unit of work: up to [`BATCH_MAX`] packets that pass the stages together.

use super::{Direction, FlowRef, Frame, PacketMeta, PortId};

/// Packets in a batch at most: enough to spread a stage's cost, few enough to stay in the
/// first-level cache.
pub const BATCH_MAX: usize = 64;

/// A frame and what is known of it.
#[derive(Debug)]
pub struct Packet {
    pub frame: Frame,
    pub meta: PacketMeta,
}

/// A packet of a batch, to look at.
#[derive(Clone, Copy, Debug)]
pub struct PacketRef<'a> {
    pub frame: &'a Frame,
    pub meta: &'a PacketMeta,
}

/// A packet of a batch, to change.
#[derive(Debug)]
pub struct PacketMut<'a> {
    pub frame: &'a mut Frame,
    pub meta: &'a mut PacketMeta,
}

impl PacketMut<'_> {
    #[inline(always)]
    pub fn as_ref(&self) -> PacketRef<'_> {
        PacketRef { frame: self.frame, meta: self.meta }
    }
}

/// Packets in arrival order. Its storage is made once and used again for every burst.
///
/// What is known of a packet is written and read where it lies; frames come and go apart from it,
/// because moving both costs as much as reading a header.
#[derive(Debug)]
pub struct Batch {
    frames: Vec<Frame>,
    /// Of each frame, and old ones behind them.
    metas: Box<[PacketMeta; BATCH_MAX]>,
}

impl Default for Batch {
    fn default() -> Batch {
        Batch::new()
    }
}

impl Batch {
    pub fn new() -> Batch {
        Batch {
            frames: Vec::with_capacity(BATCH_MAX),
            metas: Box::new([const { PacketMeta::UNREAD }; BATCH_MAX]),
        }
    }

    #[inline]
    pub fn len(&self) -> usize {
        self.frames.len()
    }

    #[inline]
    pub fn is_empty(&self) -> bool {
        self.frames.is_empty()
    }

    /// Room left.
    #[inline]
    pub fn room(&self) -> usize {
        BATCH_MAX - self.frames.len()
    }

    /// # Panics
    /// When full: callers ask [`Batch::room`] first.
    #[inline]
    pub fn push(&mut self, packet: Packet) {
        self.metas[self.frames.len()] = packet.meta;
        self.frames.push(packet.frame);
    }

    /// Adds a frame whose headers are yet to be read: until then what is said of them is another
    /// packet's.
    ///
    /// # Panics
    /// When full.
    #[inline(always)]
    pub fn push_unread(&mut self, frame: Frame, in_port: PortId) -> PacketMut<'_> {
        let at = self.frames.len();
        let meta = &mut self.metas[at];
        meta.begin(in_port);
        self.frames.push(frame);
        PacketMut { frame: &mut self.frames[at], meta }
    }

    /// Takes the last packet out.
    #[inline]
    pub fn pop(&mut self) -> Option<Packet> {
        let frame = self.frames.pop()?;
        Some(Packet { frame, meta: self.metas[self.frames.len()].clone() })
    }

    /// What is known of each packet.
    #[inline]
    pub fn metas(&self) -> &[PacketMeta] {
        &self.metas[..self.frames.len()]
    }

    #[inline]
    pub fn metas_mut(&mut self) -> &mut [PacketMeta] {
        &mut self.metas[..self.frames.len()]
    }

    /// Packets of this flow, which has been forgotten, belong to none.
    pub fn forget(&mut self, flow: FlowRef) {
        for meta in self.metas_mut().iter_mut().filter(|meta| meta.flow == flow) {
            (meta.flow, meta.direction) = (FlowRef::NONE, Direction::Forward);
        }
    }

    /// Frames, and what is known of them.
    #[inline]
    pub fn parts_mut(&mut self) -> (&mut [Frame], &mut [PacketMeta]) {
        let n = self.frames.len();
        (&mut self.frames, &mut self.metas[..n])
    }

    #[inline]
    pub fn iter(&self) -> impl Iterator<Item = PacketRef<'_>> {
        self.frames.iter().zip(&self.metas[..]).map(|(frame, meta)| PacketRef { frame, meta })
    }

    /// Takes all packets out, in order.
    #[inline]
    pub fn drain(&mut self) -> impl Iterator<Item = Packet> {
        self.drain_frames().map(|(frame, meta)| Packet { frame, meta: meta.clone() })
    }

    /// Takes all frames out, in order; what is known of them can still be read.
    #[inline]
    pub fn drain_frames(&mut self) -> impl Iterator<Item = (Frame, &PacketMeta)> {
        self.frames.drain(..).zip(&self.metas[..])
    }
}
