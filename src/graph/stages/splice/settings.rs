//! Clients of HTTP/2 that wait for the server's SETTINGS before they ask, as gRPC's do: they are
//! sent empty ones, which are as good as those of any server, since what the backend's own say
//! later binds a client from then on (RFC 9113, section 6.5.3). The backend sees nothing of it:
//! its client's acknowledgement is taken out of what is held.

use super::{Bound, Splice};
use crate::base::Nanos;
use crate::forward::splice::Out;
use crate::graph::Cx;
use crate::inspect::h2::SETTINGS;

/// Silence after which a client is taken to wait. One that does not wait asks at once; its
/// acknowledgement would come behind all that it sends with its request.
const SILENCE_NS: u64 = 10_000_000;

impl Splice {
    /// The client's stream, which is of HTTP/2, has grown.
    pub(super) fn follow_frames(&mut self, now: Nanos, slot: usize) {
        let Splice { bound, held, .. } = self;
        let Bound { binding, walk, .. } = &mut bound[slot];
        let len = held.len(slot);
        walk.go_on(len, |at, head| held.copy(slot, at, head));
        if !binding.has_greeted() {
            let waits = walk.may_wait(len);
            binding.listen(if waits { now.saturating_add(SILENCE_NS) } else { Nanos::MAX });
        } else if binding.is_heard()
            && let Some(at) = walk.acknowledged()
        {
            binding.cut(at, SETTINGS.len() as u32, (held, slot));
        }
    }

    /// The client has been silent for a while.
    pub(super) fn greet_silent(&mut self, cx: &mut Cx<'_>, slot: usize, out: &mut Out) {
        let stamp = self.cookies.stamp(cx.now, self.slots.key(slot).0);
        let Splice { bound, held, .. } = self;
        let Bound { binding, walk, .. } = &mut bound[slot];
        // Where segments are missing, it has said more than is known.
        if walk.may_wait(held.len(slot)) && !held.has_gaps(slot) {
            binding.greet(cx.now, SETTINGS, stamp, (held, slot), out);
            cx.counters.bindings_greeted += 1;
        } else {
            binding.listen(cx.now.saturating_add(SILENCE_NS));
        }
    }

    /// Whether nothing of what we have said to the client is still to be answered.
    pub(super) fn is_settled(&self, slot: usize) -> bool {
        let binding = &self.bound[slot].binding;
        !binding.has_greeted() || binding.beginning() > 0
    }
}
