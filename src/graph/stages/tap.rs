//! The tap: observes and transmits nothing.

use crate::graph::{Cx, Stage};
use crate::packet::{Batch, DropReason, Verdict};

/// Ends every packet's way. What the stages before it learnt stays counted.
#[derive(Debug, Default)]
pub struct Tap;

impl Stage for Tap {
    fn process(&mut self, _cx: &mut Cx<'_>, batch: &mut Batch) {
        for packet in batch.iter_mut() {
            if packet.meta.verdict == Verdict::Next {
                packet.meta.drop_for(DropReason::TapOnly);
            }
        }
    }
}
