//! Packets that wait: for their neighbour, or for a client's token, with which they pass the stages
//! again.

use super::turn::{Worker, WorkerParts};
use crate::base::Nanos;
use crate::nic::Port;
use crate::observe::Counters;
use crate::packet::Packet;

impl<P: Port> Worker<P> {
    /// Has what tokens have come for pass the stages again, as if it had just arrived. Returns how
    /// many packets that are.
    #[cold]
    pub(super) fn go_on(&mut self, now: Nanos) -> usize {
        let mut moved = 0;
        self.parts.delays.release(now);
        while let Some(packet) = self.parts.delays.pop() {
            moved += 1;
            self.batch.push(packet);
            if self.batch.room() == 0 {
                self.process(now);
            }
        }
        if !self.batch.is_empty() {
            self.process(now);
        }
        self.parts.delays.settle();
        moved
    }
}

impl<P: Port> WorkerParts<P> {
    #[cold]
    pub(super) fn park(&mut self, now: Nanos, counters: &mut Counters, packet: Packet) {
        let (port, next_hop) = (packet.meta.out_port, packet.meta.key.dst);
        match self.parking.park(now, packet, port, next_hop) {
            Ok(()) => counters.parked += 1,
            Err((packet, reason)) => {
                counters.drop(reason);
                self.pool.put(packet.frame);
            }
        }
    }

    #[cold]
    pub(super) fn delay(&mut self, counters: &mut Counters, packet: Packet) {
        match self.delays.hold(packet) {
            Ok(()) => counters.delayed += 1,
            Err((packet, reason)) => {
                counters.drop(reason);
                self.pool.put(packet.frame);
            }
        }
    }
}
