//! A receive queue: its sockets, and how many packets have come to it.

use xsk_rs::{CompQueue, FillQueue, RxQueue, TxQueue};

use super::opener::Bound;
use super::ways::Ways;

/// One receive queue and its socket.
pub(super) struct Queue {
    pub(super) id: u32,
    pub(super) tx: TxQueue,
    pub(super) rx: RxQueue,
    pub(super) fill: FillQueue,
    pub(super) completion: CompQueue,
    /// What is not used where one interface receives and another one sends.
    pub(super) _idle: Option<Bound>,
    /// Of a program for tc: the other way to the worker, and both in order.
    pub(super) ways: Option<Box<Ways>>,
    /// Frames that the fill ring should be given.
    pub(super) missing: u32,
    /// Frames that its fill ring holds at most.
    pub(super) rx_ring: u32,
    /// Packets taken from the receive ring.
    pub(super) taken: u64,
    /// Packets lost before it, as the kernel told last.
    pub(super) lost_told: u64,
    /// As it had told when the ring was last seen empty: none of the ring's stands before those.
    pub(super) lost: u64,
    /// `taken` as the ring was last seen empty.
    pub(super) drained: u64,
    /// Behind a companion: what the program had steered here as the kernel's statistics were last
    /// read, and how much of that has got lost between it and the ring.
    pub(super) steered: u64,
    pub(super) strayed: u64,
}

impl Queue {
    /// Packets that the worker was given.
    pub(super) fn given(&self) -> u64 {
        self.ways.as_ref().map_or(self.taken, |ways| ways.given(self.taken))
    }

    /// Between a companion's program and its ring the kernel loses packets and tells nobody: where
    /// nothing was steered for a whole interval, and nothing is left to take, the others are gone.
    pub(super) fn miss_strayed(&mut self, steered: u64) {
        let Some(ways) = &self.ways else { return };
        let is_quiet = std::mem::replace(&mut self.steered, steered) == steered;
        if is_quiet && self.drained == self.taken && ways.is_empty() {
            self.strayed = steered.saturating_sub(self.given() + self.lost_told);
        }
    }
}
