//! The end of workers: those of one thread close together.

use super::command::Phase;
use super::turn::Worker;
use crate::base::Nanos;
use crate::nic::Port;
use crate::packet::DropReason;

impl<P: Port> Worker<P> {
    /// Whether it was told to stop and has nothing more to send, or no more time for it.
    #[inline]
    pub fn may_close(&self, now: Nanos) -> bool {
        match self.phase {
            Phase::Draining(deadline) => now >= deadline || self.is_drained(),
            Phase::Running | Phase::Stopped => false,
        }
    }

    fn is_drained(&self) -> bool {
        self.held() == 0 && self.parts.handover.backlog() == 0
    }

    /// Drops what is still held, gives every frame back, and publishes a last time. Waits for the
    /// kernel. For the loop's owner: also after a panic.
    pub fn close(&mut self) {
        let Worker { parts, counters, unparked, .. } = self;
        for side in &mut parts.sides {
            side.close(&mut parts.pool, counters);
        }
        for leaving in &mut parts.control.leaving {
            leaving.close(&mut parts.pool, counters);
        }
        parts.parking.drain(unparked);
        parts.delays.drain(unparked);
        for packet in unparked.drain(..) {
            counters.drop(DropReason::Shutdown);
            parts.pool.put(packet.frame);
        }
        self.drop_fragments();
        self.close_handover();
        self.phase = Phase::Stopped;
        self.publish(Nanos::MAX);
    }
}

/// Has nothing more delivered to any port of these workers, which are about to close.
pub(super) fn detach_all<'a, P: Port + 'a>(workers: impl Iterator<Item = &'a mut Worker<P>>) {
    let sides = workers.flat_map(|worker| &mut worker.parts.sides);
    P::detach_all(&mut sides.map(|side| &mut side.port).collect::<Vec<_>>());
}
