//! What a stage works with: the worker's own state, lent for one batch.

use std::sync::Arc;

use crate::base::mem::Arena;
use crate::base::{Addr, Nanos, Seed};
use crate::flow::{FlowTable, Names};
use crate::forward::checks::CheckRing;
use crate::forward::{IcmpLimiter, Routes, Tables, Turns};
use crate::observe::copies::CopyRing;
use crate::observe::{Counters, Latencies};
use crate::packet::{Batch, FramePool, Packet, PacketMeta, PortId, Verdict};
use crate::policy::Rules;
use crate::qos::SharedPorts;
use crate::qos::delays::Delays;
use crate::qos::limits::Limits;
use crate::qos::meters::Meters;

/// Packets that the stages may make for one batch: one answer to each packet.
pub const REPLIES_MAX: usize = crate::packet::batch::BATCH_MAX;

/// Copies of packets made for one batch at most.
pub const COPIES_MAX: usize = crate::packet::batch::BATCH_MAX;

/// Copies of packets: those that leave by mirrors' ports go as `replies` of [`Cx`] do.
pub struct Copies {
    pub packets: Vec<Packet>,
    /// For those that a thread of the control plane takes.
    pub ring: Option<Arc<CopyRing>>,
    /// Where answers to health checks go.
    pub checks: Option<Arc<CheckRing>>,
    /// Packets of this batch are to be copied as they leave.
    pub later: bool,
}

impl Default for Copies {
    fn default() -> Copies {
        Copies { packets: Vec::with_capacity(COPIES_MAX), ring: None, checks: None, later: false }
    }
}

/// What all workers agree on: built by the control plane, never changed, swapped as a whole.
///
/// Routes change far more often than the rest, so they can be swapped on their own.
#[derive(Clone)]
pub struct Snapshot {
    pub forward: Arc<Tables>,
    pub routes: Arc<Routes>,
    pub rules: Arc<Rules>,
    /// The process's seed: the same in every snapshot, since hashes of flows depend on it.
    pub seed: Seed,
    pub worker_count: u16,
    /// Meters, which workers share, and the code points that ports trust.
    pub meters: Arc<Meters>,
    /// How many connections and requests clients may begin; tokens are all workers' too.
    pub limits: Arc<Limits>,
    /// What workers of one port have in common when they shape its egress.
    pub shared_ports: SharedPorts,
}

/// The worker's state, lent to a stage for one batch.
pub struct Cx<'a> {
    /// When the batch was received.
    pub now: Nanos,
    /// This worker's number.
    pub worker: u16,
    pub arena: &'a Arena,
    pub pool: &'a mut FramePool,
    pub flows: &'a mut FlowTable,
    /// Server names that flows carry.
    pub names: &'a mut Names,
    pub snapshot: &'a Snapshot,
    pub counters: &'a mut Counters,
    /// Where times of answers are counted.
    pub latencies: &'a Latencies,
    /// Packets made by stages: ICMP answers. Their verdict is [`Verdict::Output`], their frames are
    /// from `pool`, and no more than [`REPLIES_MAX`] are made a batch. The worker counts them as
    /// `created` when it sends them.
    pub replies: &'a mut Vec<Packet>,
    pub copies: &'a mut Copies,
    pub icmp_limit: &'a mut IcmpLimiter,
    /// Whose turn it is among the backends of each pool.
    pub turns: &'a mut Turns,
    /// What waits for a client's token.
    pub delays: &'a mut Delays,
}

impl Cx<'_> {
    /// Whether one more connection may wait for its token: packets that wait hold frames.
    pub fn may_delay(&self) -> bool {
        self.delays.has_room() && self.pool.is_rich()
    }
}

/// One step of a pipeline. It looks only at packets whose verdict is still [`Verdict::Next`], and
/// allocates nothing.
pub trait Stage {
    fn process(&mut self, cx: &mut Cx<'_>, batch: &mut Batch);
}

/// Has a rewritten packet wait until `next_hop` on `port` is resolved: the destination MAC is all
/// that it lacks.
///
/// The next hop takes the place of the key's destination, which nobody needs any more: with DSR
/// it can't be told from the packet itself.
#[inline]
pub fn park(meta: &mut PacketMeta, port: PortId, next_hop: Addr) {
    meta.out_port = port;
    meta.key.dst = next_hop;
    meta.verdict = Verdict::Park;
}
