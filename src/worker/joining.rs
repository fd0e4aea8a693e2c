//! Fragments on their way to the worker that owns their flow.
//!
//! Only first fragments show to which flow they belong, so all fragments of a datagram meet at one
//! worker, by a hash of what they have in common. It knows or waits for the first one's ports, and
//! hands them on, in order, as packets of a flow. That worker does the rest.

use super::turn::Worker;
use crate::base::hash::pick;
use crate::base::{Nanos, Seed};
use crate::forward::Fragments;
use crate::forward::fragments::HELD_MAX;
use crate::nic::Port;
use crate::packet::batch::BATCH_MAX;
use crate::packet::{Batch, DropReason, Fragment, Packet, PacketFlags, Verdict};

/// What a worker joins fragments with.
pub(super) struct Joining {
    pub fragments: Fragments,
    /// Fragments of this turn that are yet to be joined.
    pub apart: Vec<Packet>,
    /// Those that go on, or are to be dropped.
    ready: Vec<Packet>,
}

impl Joining {
    pub fn new(seed: Seed) -> Joining {
        Joining {
            fragments: Fragments::new(seed),
            apart: Vec::with_capacity(BATCH_MAX),
            ready: Vec::with_capacity(BATCH_MAX + HELD_MAX),
        }
    }
}

/// Which packets of a batch that another worker gave are fragments to be joined here, a bit each.
#[inline]
pub(super) fn unjoined(batch: &Batch) -> u64 {
    let bits = batch.metas().iter().enumerate().map(|(at, meta)| {
        let apart = meta.flags.has(PacketFlags::FRAGMENT) && !meta.flags.has(PacketFlags::JOINED);
        u64::from(apart) << at
    });
    bits.fold(0, |all, bit| all | bit)
}

impl<P: Port> Worker<P> {
    /// Puts the fragments of this turn to their datagrams, and sends what may go on to its flow.
    #[cold]
    pub(super) fn join_fragments(&mut self, now: Nanos) {
        let Worker { parts, arena, counters, joining, .. } = self;
        let (workers, me) = (parts.handover.workers() as u32, parts.id);
        let mut apart = std::mem::take(&mut joining.apart);
        for packet in apart.drain(..) {
            let Some(fragment) = Fragment::read(packet.frame.bytes(arena), &packet.meta) else {
                parts.discard(counters, DropReason::Truncated, packet.frame);
                continue;
            };
            let key = fragment.key(&packet.meta);
            let meeting = pick(key.hash(parts.snapshot.seed), workers) as u16;
            if meeting == me {
                let waits = parts.snapshot.forward.needs_ports(&packet.meta.key);
                joining.fragments.admit(now, packet, fragment, waits, &mut joining.ready);
            } else {
                parts.hand_over(counters, meeting, packet);
            }
        }
        joining.apart = apart;
        self.send_joined(now);
    }

    /// Drops fragments whose first one did not come.
    pub(super) fn expire_fragments(&mut self, now: Nanos) {
        let Joining { fragments, ready, .. } = &mut self.joining;
        fragments.expire(now, ready);
        self.send_joined(now);
    }

    /// Drops all that wait, for a stop.
    pub(super) fn drop_fragments(&mut self) {
        let Worker { parts, counters, joining, .. } = self;
        joining.fragments.drain(&mut joining.ready);
        for packet in joining.ready.drain(..) {
            parts.discard(counters, DropReason::Shutdown, packet.frame);
        }
    }

    fn send_joined(&mut self, now: Nanos) {
        let mut ready = std::mem::take(&mut self.joining.ready);
        for packet in ready.drain(..) {
            let Worker { parts, counters, batch, .. } = self;
            if let Verdict::Drop(reason) = packet.meta.verdict {
                parts.discard(counters, reason, packet.frame);
                continue;
            }
            let workers = parts.handover.workers() as u16;
            let owner = parts.snapshot.forward.owner(&packet.meta, workers);
            if owner != parts.id {
                parts.hand_over(counters, owner, packet);
                continue;
            }
            batch.push(packet);
            if batch.room() == 0 {
                self.process(now);
            }
        }
        self.joining.ready = ready;
        if !self.batch.is_empty() {
            self.process(now);
        }
    }
}
