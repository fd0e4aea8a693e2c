//! Workers made from what is configured.

use std::sync::Arc;

use super::command::{ControlLink, EgressUpdate, Update};
use super::egress::EgressQueue;
use super::handover::Handover;
use super::leaving::Leaving;
use super::side::Side;
use super::spec::WorkersSpec;
use super::turn::{Worker, WorkerParts};
use crate::base::Nanos;
use crate::flow::{FlowLimits, FlowTable, Names, Timeouts};
use crate::forward::spec::BindAt;
use crate::forward::{IcmpLimiter, Parking, Turns};
use crate::graph::spec::{PipelineSpec, StageSpec};
use crate::graph::stages::splice::{HeadLimits, SpliceLimits};
use crate::graph::{Pipeline, Snapshot};
use crate::nic::Port;
use crate::nic::spec::PortSpec;
use crate::observe::SharedStats;
use crate::packet::batch::BATCH_MAX;
use crate::packet::{Frame, FramePool, ParseOptions, udp};
use crate::qos::delays::Delays;
use crate::qos::spec::PortQosSpec;
use crate::qos::{InFlight, Scheduler, Successor};

/// Server names that one worker remembers.
const NAMES_MAX: u32 = 16_384;
/// Packets that a port's queue holds at least, however few frames there are.
const QUEUE_PACKETS_MIN: usize = BATCH_MAX;
/// Packets that a port's queue holds at most: 40 ms of 10 Gbit/s at 1500 B.
const QUEUE_PACKETS_MAX: usize = 32_768;

/// What all workers of a process are built from. Building is the control plane's work: it
/// allocates.
#[derive(Clone, Copy)]
pub struct Blueprint<'a> {
    pub workers: &'a WorkersSpec,
    /// By [`crate::packet::PortId`].
    pub ports: &'a [PortSpec],
    pub pipeline: &'a PipelineSpec,
    /// Ports without an entry are plain queues.
    pub qos: &'a [PortQosSpec],
    pub snapshot: &'a Snapshot,
}

/// What differs from worker to worker.
pub struct Own<P> {
    pub id: u16,
    /// In the order of the blueprint's.
    pub ports: Vec<P>,
    pub pool: FramePool,
    pub handover: Handover,
    pub control: ControlLink,
    pub stats: Arc<SharedStats>,
}

/// Room for what waits for a port, whatever its queue was made for.
pub fn emptying_room() -> Vec<Frame> {
    Vec::with_capacity(QUEUE_PACKETS_MAX + 2 * BATCH_MAX)
}

impl Blueprint<'_> {
    /// A worker with all its memory.
    pub fn worker<P: Port>(&self, own: Own<P>) -> Worker<P> {
        let seed = self.snapshot.seed;
        let limits = FlowLimits {
            flows_max: self.workers.flows_max,
            half_open_max: self.workers.half_open_max,
        };
        let sides = own.ports.into_iter().enumerate().map(|(i, port)| self.side(i, port)).collect();
        let parking = Parking::new(Arc::clone(own.pool.arena()));
        let mut worker = Worker::new(WorkerParts {
            id: own.id,
            sides,
            pool: own.pool,
            queue_packets_max: self.queue_packets_max(),
            flows: FlowTable::new(limits, Timeouts::default(), seed)
                .with_serving(Arc::clone(own.stats.serving())),
            names: Names::new(NAMES_MAX, seed),
            snapshot: self.snapshot.clone(),
            pipeline: self.compile(),
            parking,
            icmp_limit: IcmpLimiter::default(),
            turns: Turns::new(own.id, self.workers.count_max),
            delays: Delays::default(),
            handover: own.handover,
            control: own.control,
            stats: own.stats,
        });
        worker.share_frames();
        worker
    }

    /// What makes a running worker like a new one: `old` is what it was built from. The pipeline
    /// stays where its stages are the same.
    pub fn update(&self, now: Nanos, old: &Blueprint<'_>) -> Update {
        let same = self.pipeline.stages == old.pipeline.stages
            && self
                .splice()
                .is_none_or(|new| old.splice().is_some_and(|old| old.datagrams || !new.datagrams));
        let pipeline = (!same).then(|| self.compile());
        // What one queue may hold follows from how many there are.
        let resized = self.ports != old.ports;
        let queue_packets_max = self.queue_packets_max();
        let egress =
            (0..self.ports.len()).map(|port| match (self.shaper(port), old.shaper(port)) {
                // Its queue comes or goes with it.
                _ if self.is_vacant(port) || old.is_vacant(port) => EgressUpdate::Keep,
                (None, None) if resized => EgressUpdate::Grow(EgressQueue::fifo(queue_packets_max)),
                (None, None) => EgressUpdate::Keep,
                (Some(new), Some(old)) if new == old => EgressUpdate::Keep,
                (Some(new), Some(of)) => {
                    let (packets, seed) = (queue_packets_max as u32, self.snapshot.seed);
                    let next = Successor::new(now, (of, new), packets, seed);
                    EgressUpdate::Succeed(Box::new(next))
                }
                _ => EgressUpdate::Replace(Leaving::new(port, self.egress(port))),
            });
        let (snapshot, egress) = (self.snapshot.clone(), egress.collect());
        let in_flight = (0..self.ports.len()).map(|port| self.in_flight(port)).collect();
        Update { snapshot, pipeline, egress, queue_packets_max, in_flight }
    }

    /// Changes the class trees that workers share, just before they get their updates: until then
    /// what they hold waits.
    pub fn share(&self) {
        for port in (0..self.ports.len()).filter(|_| self.shares()) {
            if let Some(spec) = self.shaper(port) {
                self.snapshot.shared_ports.tree(port, spec);
            }
        }
    }

    fn compile(&self) -> Pipeline {
        let splice = self.splice().map(|limits| (limits, self.snapshot.seed));
        Pipeline::compile(self.pipeline, splice)
    }

    /// How much of delayed binding there may be, where any service wants it and the pipeline
    /// inspects.
    fn splice(&self) -> Option<SpliceLimits> {
        let services = self.snapshot.forward.services();
        let delayed = || services.iter().filter(|s| s.delay.is_some());
        delayed().next()?;
        let datagrams = delayed().any(|s| s.proto == udp::PROTOCOL);
        let requests = delayed().any(|s| s.delay.is_some_and(|d| d.at == BindAt::Request));
        self.pipeline.stages.iter().find_map(|stage| match stage {
            StageSpec::Inspect { hello_bytes_max, flows_max, http_flows_max, headers } => {
                Some(SpliceLimits {
                    flows_max: self.workers.flows_max,
                    bindings_max: *flows_max,
                    read_bytes_max: *hello_bytes_max,
                    datagrams,
                    heads: requests.then(|| HeadLimits {
                        connections_max: *http_flows_max,
                        headers: headers.clone(),
                    }),
                })
            }
            _ => None,
        })
    }

    /// A port and what waits for it.
    pub fn side<P: Port>(&self, index: usize, port: P) -> Side<P> {
        let verify = self.ports.get(index).is_some_and(|p| p.verify_checksums);
        let options = ParseOptions { verify_transport_checksum: verify };
        if self.is_vacant(index) {
            return Side::vacant(port);
        }
        Side::new(port, self.egress(index), options, self.in_flight(index))
    }

    fn in_flight(&self, port: usize) -> InFlight {
        let workers = self.workers.count_max.into();
        match self.shaper(port) {
            _ if self.is_vacant(port) => InFlight::of_bytes(0),
            Some(spec) => InFlight::of(spec, workers),
            None => InFlight::UNBOUNDED,
        }
    }

    fn is_vacant(&self, port: usize) -> bool {
        self.ports.get(port).is_none_or(PortSpec::is_vacant)
    }

    fn egress(&self, port: usize) -> EgressQueue {
        let packets_max = self.queue_packets_max();
        match self.shaper(port) {
            Some(spec) => {
                let (packets_max, seed) = (packets_max as u32, self.snapshot.seed);
                let tree = if self.shares() {
                    let shared = self.snapshot.shared_ports.tree(port, spec);
                    Scheduler::member(spec, packets_max, seed, shared)
                } else {
                    Scheduler::new(spec, packets_max, seed)
                };
                EgressQueue::Tree(Box::new(tree))
            }
            None => EgressQueue::fifo(packets_max),
        }
    }

    /// The class tree of a port, where there is one and the pipeline sends through it.
    fn shaper(&self, port: usize) -> Option<&PortQosSpec> {
        let shaped = self.pipeline.stages.contains(&crate::graph::spec::StageSpec::Shape);
        self.qos.iter().find(|q| shaped && usize::from(q.port.0) == port)
    }

    /// Whether several workers shape a port together.
    fn shares(&self) -> bool {
        self.workers.count_max > 1
    }

    /// What queues may hold beside a receive ring of each port: less, where a worker has several
    /// of a port, which it finds out itself.
    fn queue_packets_max(&self) -> usize {
        let rings: usize = self.ports.iter().map(|p| p.rx_ring as usize).sum();
        let ports = self.ports.iter().filter(|p| !p.is_vacant()).count();
        queue_part(self.workers.frames as usize, rings, ports)
    }
}

/// Packets that each port's queue may hold without starving the rings, to which so many frames are
/// lent, and the reserve.
pub(super) fn queue_part(frames: usize, lent: usize, ports: usize) -> usize {
    let free = frames.saturating_sub(lent + 4 * BATCH_MAX);
    (free / ports.max(1)).clamp(QUEUE_PACKETS_MIN, QUEUE_PACKETS_MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn full_queues_leave_frames_for_all_rings() {
        for (frames, ring, rings, ports) in
            [(16_384, 2_048, 2, 2), (16_384, 2_048, 6, 2), (32_768, 4_096, 4, 1), (9_000, 64, 9, 9)]
        {
            let held = queue_part(frames, ring * rings, ports) * ports;
            assert!(held + ring * rings + 4 * BATCH_MAX <= frames, "{rings} rings of {ring}");
            assert!(held + ring * rings + 4 * BATCH_MAX + ports > frames, "and none is idle");
        }
        assert_eq!(queue_part(1_000, 4_096, 2), QUEUE_PACKETS_MIN);
    }
}
