//! What the queue management does with a packet that leaves its flow.

use super::ecn;
use super::queues::{Exit, Queues};
use crate::packet::{DropReason, Frame};

impl Queues {
    /// Marks a packet that was taken from a flow, or drops it: with its bytes as counted and where
    /// its IP header begins. `None`: it was dropped.
    #[cold]
    #[inline(never)]
    pub fn signal(
        &mut self,
        leaf: u32,
        (mut frame, bytes, l3): (Frame, u32, u16),
        exit: &mut Exit<'_>,
    ) -> Option<Frame> {
        let losses = &mut self.losses[leaf as usize];
        if l3 > 0 && ecn::mark(frame.bytes_mut(exit.arena), usize::from(l3)) {
            losses.marked += 1;
            return Some(frame);
        }
        if exit.drops_left == 0 {
            return Some(frame);
        }
        losses.dropped.add(bytes);
        losses.aqm_dropped += 1;
        exit.drops_left -= 1;
        exit.dropped.push((frame, DropReason::AqmDrop));
        None
    }

    /// Whether the queue management has something to tell the flow that a packet was taken from.
    #[inline(always)]
    pub fn signals(&mut self, leaf: u32, flow: u32, late: bool, exit: &Exit<'_>) -> bool {
        // What is left of a frame or less does not stand.
        let late = late && self.leaves[leaf as usize].bytes > u64::from(self.quantum);
        let interval = self.manner(leaf).interval;
        let (above, codel) = self.flows.codel_mut(flow);
        codel.signals(above, late, exit.now, interval)
    }
}
