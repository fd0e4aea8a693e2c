//! Streams that have carried more than a test can send.

use super::*;

impl Inspect {
    /// As if a flow's stream had carried so many bytes more, of what it is amid, up to this number.
    pub(in crate::graph::stages) fn carry(&mut self, flow: &Flow, bytes: u32, next: u32) {
        let slot = self.slot_of(flow).expect("it is followed");
        self.slots[slot].bytes = self.slots[slot].bytes.saturating_add(bytes);
        self.reassembler.open(SIDES * slot, next);
    }
}
