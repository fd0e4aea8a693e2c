//! Packets of health checks, which the control plane has a worker send.

use std::sync::Arc;

use super::turn::Worker;
use crate::base::Nanos;
use crate::forward::checks::{CheckPacket, CheckRing};
use crate::graph::stages::checks::send_check;
use crate::nic::Port;

impl<P: Port> Worker<P> {
    /// Gives answers to health checks there, and packets of theirs that were sent.
    pub fn set_check_ring(&mut self, ring: Arc<CheckRing>) {
        self.copies.checks = Some(ring);
    }

    /// Sends one, or says why that can't be.
    #[cold]
    pub(super) fn send_check(&mut self, now: Nanos, mut packet: Box<CheckPacket>) {
        let Worker { parts, arena, counters, replies, copies, .. } = self;
        let (mut cx, _) = parts.lend(now, arena, counters, (&mut *replies, &mut *copies));
        packet.failed = send_check(&mut cx, &packet).err();
        parts.send_made(now, counters, replies);
        // Without a ring there are no such packets.
        let Some(ring) = &copies.checks else { return };
        match packet.failed {
            Some(_) => ring.give(packet),
            None => ring.recycle(packet),
        }
    }
}
