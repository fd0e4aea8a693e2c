//! Where streams begin whose SYN was seen.

use crate::packet::PacketMeta;

/// SYNs that are remembered for each flow that may be under inspection.
const OPENINGS_PER_FLOW: usize = 4;
const OPENINGS_MIN: usize = 4_096;

/// Where streams begin whose SYN was seen, while their flow is not in the table: it is entered
/// behind this stage. A later SYN of the same place takes over, so a flood of them costs no memory;
/// a flow that lost its place is read from the first segment that comes.
pub(super) struct Openings {
    places: Box<[Opening]>,
    mask: usize,
}

#[derive(Clone, Copy, Default)]
struct Opening {
    /// The half of the flow's hash that does not choose the place.
    tag: u32,
    first_byte: u32,
}

impl Openings {
    pub(super) fn new(flows: usize) -> Openings {
        let places = (flows * OPENINGS_PER_FLOW).max(OPENINGS_MIN).next_power_of_two();
        let places = vec![Opening::default(); places].into_boxed_slice();
        Openings { mask: places.len() - 1, places }
    }

    pub(super) fn note(&mut self, meta: &PacketMeta) {
        self.note_at(meta.hash, meta.tcp_seq.wrapping_add(1));
    }

    /// The flow whose client's key has this hash is to be read from this byte on.
    pub(super) fn note_at(&mut self, hash: u64, first_byte: u32) {
        let tag = (hash >> 32) as u32;
        self.places[hash as usize & self.mask] = Opening { tag, first_byte };
    }

    /// The sequence number of the first byte of a flow whose client's key has this hash.
    pub(super) fn first_byte(&self, hash: u64) -> Option<u32> {
        let opening = self.places[hash as usize & self.mask];
        (u64::from(opening.tag) == hash >> 32).then_some(opening.first_byte)
    }
}
