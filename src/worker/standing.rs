//! What a worker is given beside its parts, and what it tells of how it stands.

use std::sync::Arc;

use super::turn::Worker;
use crate::nic::Port;
use crate::observe::copies::CopyRing;

impl<P: Port> Worker<P> {
    /// Has copies go where a thread of the control plane takes them.
    pub fn set_copy_ring(&mut self, ring: Arc<CopyRing>) {
        self.copies.ring = Some(ring);
    }

    /// Connections that are being bound after what their client says.
    pub fn bindings(&self) -> usize {
        self.parts.pipeline.bindings()
    }

    /// Packets in hand-over rings toward this worker.
    pub fn handover_backlog(&self) -> usize {
        self.parts.handover.backlog()
    }

    /// Packets in ports' queues that others have taken over from.
    pub fn leaving(&self) -> usize {
        self.parts.control.leaving.iter().map(|leaving| leaving.queue.len()).sum()
    }

    /// Frames of this worker's share that are not in its pool; negative where it has others'
    /// frames.
    pub fn frames_outstanding(&self) -> isize {
        self.parts.pool.outstanding()
    }
}
