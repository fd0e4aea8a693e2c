//! A port's queue that another has taken over from, in a reload: its packets go over, some a turn.

use super::command::WorkerEvent;
use super::egress::EgressQueue;
use super::turn::Worker;
use crate::base::Nanos;
use crate::nic::Port;
use crate::observe::Counters;
use crate::packet::{ClassId, DropReason, Frame, FramePool};
use crate::qos::Queued;

/// Packets that go over in one turn of the loop at most.
pub const PACKETS_A_TURN: usize = 256;

/// The queue, and what it takes to empty it.
pub struct Leaving {
    port: usize,
    pub(super) queue: EgressQueue,
    /// Where it goes on.
    at: u32,
    /// With room for a turn's packets.
    frames: Vec<Frame>,
}

impl Leaving {
    /// With the queue that is to be the port's.
    pub fn new(port: usize, queue: EgressQueue) -> Leaving {
        Leaving { port, queue, at: 0, frames: Vec::with_capacity(PACKETS_A_TURN) }
    }

    /// Drops what is left, for a stop.
    pub(super) fn close(&mut self, pool: &mut FramePool, counters: &mut Counters) {
        while !self.queue.is_empty() {
            self.queue.take_some(&mut self.at, PACKETS_A_TURN, &mut self.frames);
            for frame in self.frames.drain(..) {
                counters.drop(DropReason::Shutdown);
                pool.put(frame);
            }
        }
    }
}

impl<P: Port> Worker<P> {
    /// Moves packets of queues that leave. A packet that comes meanwhile may leave before one of
    /// these: they are of no class any more.
    pub(super) fn move_packets(&mut self, now: Nanos) {
        let Worker { parts, counters, .. } = self;
        let Some(mut leaving) = parts.control.leaving.pop() else { return };
        let Leaving { port, queue, at, frames } = &mut leaving;
        queue.take_some(at, PACKETS_A_TURN, frames);
        for frame in frames.drain(..) {
            match parts.sides.get_mut(*port) {
                Some(side) => {
                    let packet = Queued { frame, class: ClassId::UNSET, flow_hash: 0, l3: 0 };
                    side.enqueue(now, packet, &mut parts.pool, counters);
                }
                None => parts.discard(counters, DropReason::NotOurPort, frame),
            }
        }
        match leaving.queue.is_empty() && parts.control.has_room(0) {
            true => parts.control.tell(WorkerEvent::OldEgress(leaving)),
            // Another's turn comes when this one is done: it stays the last.
            false => parts.control.leaving.push(leaving),
        }
    }
}
