//! What the queue management does with a packet that leaves its flow.

use super::ecn;
use super::queues::{Exit, Queues};
use crate::packet::{DropReason, Frame};

impl Queues {
    #[cold]
    pub fn count_aqm_drop(&mut self, leaf: u32, frame: Frame, bytes: u32, exit: &mut Exit<'_>) {
        let losses = &mut self.losses[leaf as usize];
        losses.dropped.add(bytes);
        losses.aqm_dropped += 1;
        exit.drops_left -= 1;
        exit.dropped.push((frame, DropReason::AqmDrop));
    }

    /// Whether the queue management has something to tell the flow that a packet was taken from.
    #[cold]
    pub fn signals(&mut self, leaf: u32, flow: u32, late: bool, exit: &Exit<'_>) -> bool {
        // What is left of a frame or less does not stand.
        let late = late && self.leaves[leaf as usize].bytes > u64::from(self.quantum);
        let interval = self.manner(leaf).interval;
        let (above, codel) = self.flows.codel_mut(flow);
        codel.signals(above, late, exit.now, interval)
    }

    /// Marks a packet to tell its flow; one that can't be dropped any more is sent as it is.
    /// `false`: drop it.
    #[cold]
    pub fn mark(&mut self, leaf: u32, frame: &mut Frame, l3: u16, exit: &Exit<'_>) -> bool {
        if l3 > 0 && ecn::mark(frame.bytes_mut(exit.arena), usize::from(l3)) {
            self.losses[leaf as usize].marked += 1;
            return true;
        }
        exit.drops_left == 0
    }
}
