//! The loop's body: everything that one turn does, without a clock and without a thread.

use std::sync::Arc;

use super::command::{ControlLink, Phase};
use super::desk::PortDesk;
use super::handover::Handover;
use super::joining::{Joining, unjoined};
use super::offload::Offload;
use super::openings::set_aside;
use super::pace::Pace;
use super::side::Side;
use crate::base::Nanos;
use crate::base::mem::Arena;
use crate::flow::{FlowTable, Names};
use crate::forward::{IcmpLimiter, Parking, Turns};
use crate::graph::{Copies, Cx, Pipeline, REPLIES_MAX, Snapshot};
use crate::nic::Port;
use crate::observe::{Counters, Gauges, PortGauges, SharedStats};
use crate::packet::batch::BATCH_MAX;
use crate::packet::{
    Batch, DropReason, Frame, FramePool, Packet, PacketFlags, PacketMeta, PacketMut, PortId,
    Verdict, parse, tcp,
};
use crate::qos::Queued;
use crate::qos::delays::Delays;

/// Frames that stay out of queues, so that packets can always be received and answered.
const FRAME_RESERVE: usize = 2 * BATCH_MAX;
/// How many packets ahead a frame's header is asked for: frames lie at even distances, so that few
/// of them fit the first-level cache at once.
const AHEAD: usize = 4;
/// How often timers are looked at.
const TIMERS_EVERY_NS: u64 = 1_000_000;
/// Flows that one turn forgets at most.
const EXPIRE_BUDGET: usize = 128;
/// How often counters are published.
const PUBLISH_EVERY_NS: u64 = 1_000_000;

/// What a worker is made of. All its memory is taken by now.
pub struct WorkerParts<P> {
    pub id: u16,
    /// By [`crate::packet::PortId`].
    pub sides: Vec<Side<P>>,
    pub pool: FramePool,
    /// Packets that a port's queue holds at most, however many frames are left.
    pub queue_packets_max: usize,
    pub flows: FlowTable,
    pub names: Names,
    pub snapshot: Snapshot,
    pub pipeline: Pipeline,
    pub parking: Parking,
    pub icmp_limit: IcmpLimiter,
    pub turns: Turns,
    pub delays: Delays,
    pub handover: Handover,
    pub control: ControlLink,
    pub stats: Arc<SharedStats>,
}

/// One worker: its ports, its tables, its frames. It shares none of them.
pub struct Worker<P> {
    pub(super) parts: WorkerParts<P>,
    pub(super) arena: Arc<Arena>,
    pub(super) counters: Counters,
    pub(super) phase: Phase,
    pub(super) batch: Batch,
    pub(super) joining: Joining,
    /// What follows a SYN of its own batch.
    later: Vec<Packet>,
    received: Vec<Frame>,
    pub(super) replies: Vec<Packet>,
    pub(super) copies: Copies,
    pub(super) unparked: Vec<Packet>,
    pub(super) port_gauges: Vec<PortGauges>,
    pub(super) offload: Option<Box<Offload>>,
    pub(super) desk: Option<PortDesk<P>>,
    /// The last turn has taken a new configuration, or other ports.
    pub(super) updated: bool,
    pub(super) ports_changed: bool,
    /// The thread that the last turn was told to go to.
    pub(super) moving_to: Option<u16>,
    timers_at: Nanos,
    publish_at: Nanos,
    pub(super) pace: Pace,
}

impl<P: Port> Worker<P> {
    pub fn new(parts: WorkerParts<P>) -> Worker<P> {
        let port_gauges = vec![PortGauges::default(); parts.sides.len()];
        let unparked = Vec::with_capacity(parts.parking.capacity());
        Worker {
            joining: Joining::new(parts.snapshot.seed),
            arena: Arc::clone(parts.pool.arena()),
            parts,
            counters: Counters::default(),
            phase: Phase::Running,
            batch: Batch::new(),
            later: Vec::with_capacity(BATCH_MAX),
            received: Vec::with_capacity(BATCH_MAX),
            replies: Vec::with_capacity(REPLIES_MAX),
            copies: Copies::default(),
            unparked,
            port_gauges,
            offload: None,
            desk: None,
            updated: false,
            ports_changed: false,
            moving_to: None,
            timers_at: Nanos::ZERO,
            publish_at: Nanos::ZERO,
            pace: Pace::default(),
        }
    }

    /// Has the XDP program forward flows of which there is nothing more to decide.
    pub fn set_offload(&mut self, offload: Offload) {
        self.offload = Some(Box::new(offload));
    }

    /// One turn of the loop: takes a new configuration where there is one, and does nothing else
    /// then; receives a burst from each port and from each other worker, sends what
    /// may go, and keeps the house. Returns how many packets moved; 0 means that there was nothing
    /// to do.
    pub fn poll(&mut self, now: Nanos) -> usize {
        self.updated = false;
        self.obey(now);
        if self.updated {
            return 1;
        }
        self.work(now)
    }

    /// As [`Worker::poll`], but without looking at what the control plane asks.
    pub(super) fn work(&mut self, now: Nanos) -> usize {
        let mut moved = 0;
        if self.phase == Phase::Running {
            for port in 0..self.parts.sides.len() {
                moved += self.receive(now, port);
            }
        }
        if self.parts.handover.workers() > 1 {
            moved += self.take_over(now);
        }
        if now >= self.parts.delays.next_due() {
            moved += self.go_on(now);
        }
        if now >= self.timers_at {
            self.timers(now);
        }
        for side in &mut self.parts.sides {
            moved += side.transmit(now, &mut self.parts.pool, &mut self.counters);
            side.port.poll(now, &mut self.parts.pool);
        }
        if self.offload.is_some() {
            self.settle();
        }
        self.parts.handover.settle(&mut self.parts.pool);
        self.pace.turn(moved);
        if now >= self.publish_at {
            self.publish(now);
        }
        self.check_invariants();
        moved
    }

    fn receive(&mut self, now: Nanos, port: usize) -> usize {
        let Worker { parts, arena, counters, batch, received, joining, .. } = self;
        let side = &mut parts.sides[port];
        side.port.rx_burst(now, &mut parts.pool, received, BATCH_MAX);
        let count = received.len();
        if count == 0 {
            return 0;
        }
        counters.rx_packets += count as u64;
        received.iter().take(AHEAD).for_each(|f| f.prefetch(arena));
        let (workers, me) = (parts.handover.workers() as u16, parts.id);
        let options = side.options;
        let own = parts.snapshot.routes.egress(PortId(port as u16)).map_or([0; 6], |e| e.mac);
        let mut bytes_received = 0;
        let mut frames = received.drain(..);
        while let Some(frame) = frames.next() {
            if let Some(later) = frames.as_slice().get(AHEAD - 1) {
                later.prefetch(arena);
            }
            bytes_received += frame.len() as u64;
            let PacketMut { frame, meta } = batch.push_unread(frame, PortId(port as u16));
            let bytes = frame.bytes(arena);
            let read = parse(bytes, parts.snapshot.seed, options, meta);
            // A port whose address is not known (all zero) takes everything.
            if bytes.first_chunk() != Some(&own) && own != [0; 6] {
                meta.flags.set(PacketFlags::OTHER_HOST);
            }
            if let Err(reason) = read {
                counters.drop(reason);
                batch.pop().into_iter().for_each(|p| parts.pool.put(p.frame));
                continue;
            }
            if meta.flags.has(PacketFlags::FRAGMENT) {
                joining.apart.extend(batch.pop());
                continue;
            }
            parts.flows.prefetch(meta.hash);
            let tables = &parts.snapshot.forward;
            let owner = match meta.flags.has(PacketFlags::ICMP_ERROR) {
                _ if workers == 1 => me,
                true => tables.owner_of_error(bytes, meta, workers),
                false => tables.owner(meta, workers),
            };
            if owner != me {
                batch.pop().into_iter().for_each(|p| parts.hand_over(counters, owner, p));
            }
        }
        drop(frames);
        counters.rx_bytes += bytes_received;
        let apart = !joining.apart.is_empty();
        self.process(now);
        if apart {
            self.join_fragments(now);
        }
        count
    }

    fn take_over(&mut self, now: Nanos) -> usize {
        let mut moved = 0;
        for worker in self.parts.handover.givers() {
            let taken = self.parts.handover.take(worker, &mut self.batch);
            if taken > 0 {
                self.counters.taken_over += taken as u64;
                let apart = unjoined(&self.batch);
                if apart != 0 {
                    set_aside(&mut self.batch, apart, &mut self.joining.apart);
                }
                self.process(now);
                if apart != 0 {
                    self.join_fragments(now);
                }
                moved += taken;
            }
        }
        moved
    }

    /// Runs the batch through the pipeline and sends each packet its way.
    pub(super) fn process(&mut self, now: Nanos) {
        let Worker { parts, arena, counters, batch, later, replies, copies, offload, .. } = self;
        let mut opens = parts.make_room(batch, counters) > 0;
        loop {
            parts.flows.lookup_batch(batch);
            if opens && let which @ 1.. = parts.openings(now, offload, batch) {
                set_aside(batch, which, later);
            }
            let (mut cx, pipeline) = parts.lend(now, arena, counters, (replies, copies));
            pipeline.run(&mut cx, batch);
            if !parts.names.reclassed.is_empty() {
                parts.take_along(now, counters, batch.metas_mut());
            }
            for (frame, meta) in batch.drain_frames() {
                if let Some(offload) = offload {
                    parts.offload(now, offload, meta);
                }
                parts.dispatch(now, counters, frame, meta);
            }
            parts.send_made(now, counters, replies);
            parts.send_made(now, counters, &mut copies.packets);
            if later.is_empty() {
                break;
            }
            later.drain(..).for_each(|packet| batch.push(packet));
            opens = false;
        }
    }

    /// Drops what other workers still have for this one, and gives back what it owes them.
    pub(super) fn close_handover(&mut self) {
        let Worker { parts, counters, batch, .. } = self;
        for worker in 0..parts.handover.workers() {
            while parts.handover.take(worker, batch) > 0 {
                counters.taken_over += batch.len() as u64;
                for packet in batch.drain() {
                    counters.drop(DropReason::Shutdown);
                    parts.pool.put(packet.frame);
                }
            }
        }
        parts.handover.close(&mut parts.pool);
    }

    fn timers(&mut self, now: Nanos) {
        self.timers_at = now.saturating_add(TIMERS_EVERY_NS);
        let Worker { parts, arena, counters, replies, copies, unparked, offload, .. } = self;
        if let Some(offload) = offload {
            offload.follow(now, &mut parts.flows);
        }
        let (pipeline, seed) = (&mut parts.pipeline, parts.snapshot.seed);
        parts.flows.expire(now, EXPIRE_BUDGET, |at, flow| {
            if let Some(offload) = offload {
                if offload.count_flow(now, at, flow) {
                    return false;
                }
                offload.take_back(now, at, flow);
            }
            counters.flows_expired += 1;
            pipeline.forget(flow, seed);
            true
        });
        parts.tick(now, arena, counters, (replies, copies));
        parts.parking.expire(now, unparked);
        for packet in unparked.drain(..) {
            counters.drop(DropReason::NeighbourUnresolved);
            parts.pool.put(packet.frame);
        }
        if !self.joining.fragments.is_empty() {
            self.expire_fragments(now);
        }
        self.ask_for_neighbours();
    }

    /// Publishes the counters; the loop's owner calls it before it sleeps.
    pub fn publish(&mut self, now: Nanos) {
        let parts = &self.parts;
        self.publish_at = now.saturating_add(PUBLISH_EVERY_NS);
        for (gauges, side) in self.port_gauges.iter_mut().zip(&parts.sides) {
            *gauges = side.gauges();
        }
        let gauges = Gauges {
            flows: parts.flows.len() as u64,
            flows_max: parts.flows.capacity() as u64,
            flows_offloaded: self.offload.as_ref().map_or(0, |offload| offload.len() as u64),
            frames_available: parts.pool.available() as u64,
            frames_owned: parts.pool.owned() as u64,
            parked_now: parts.parking.len() as u64,
            handover_backlog: parts.handover.backlog() as u64,
            ..self.pace.gauges()
        };
        parts.stats.publish(&self.counters, &gauges, &self.port_gauges);
    }

    /// When there is something to send although nothing arrives. Timers of flows and of parked
    /// packets are not that precise: they are looked at with the next turn, whenever that is.
    pub fn next_event(&self, now: Nanos) -> Option<Nanos> {
        let tokens = Some(self.parts.delays.next_due()).filter(|&at| at != Nanos::MAX);
        self.parts.sides.iter().filter_map(|s| s.next_event(now)).chain(tokens).min()
    }

    pub fn phase(&self) -> Phase {
        self.phase
    }

    /// Whether another thread has given something that is not yet looked at.
    pub fn is_called(&self) -> bool {
        self.parts.handover.backlog() > 0 || self.parts.control.is_called()
    }

    /// What was counted so far.
    pub fn counters(&self) -> &Counters {
        &self.counters
    }

    /// Packets waiting here: in queues, in front of ports, for a neighbour, for a first fragment,
    /// for a token.
    pub fn held(&self) -> usize {
        let queued: usize = self.parts.sides.iter().map(Side::held).sum();
        let waiting = self.parts.parking.len() + self.parts.delays.len() + self.leaving();
        queued + waiting + self.joining.fragments.len()
    }

    /// Every packet that came is sent, dropped, handed over or held (debug builds).
    fn check_invariants(&self) {
        debug_assert_eq!(self.counters.held(), self.held() as i128, "{:?}", self.counters);
    }
}

impl<P: Port> WorkerParts<P> {
    /// What stages work with, and the stages.
    #[inline(always)]
    pub(super) fn lend<'a>(
        &'a mut self,
        now: Nanos,
        arena: &'a Arena,
        counters: &'a mut Counters,
        (replies, copies): (&'a mut Vec<Packet>, &'a mut Copies),
    ) -> (Cx<'a>, &'a mut Pipeline) {
        let cx = Cx {
            now,
            worker: self.id,
            arena,
            pool: &mut self.pool,
            flows: &mut self.flows,
            names: &mut self.names,
            snapshot: &self.snapshot,
            counters,
            latencies: self.stats.latencies(),
            replies,
            copies,
            icmp_limit: &mut self.icmp_limit,
            turns: &mut self.turns,
            delays: &mut self.delays,
        };
        (cx, &mut self.pipeline)
    }

    /// Has the stages do what is due without a packet.
    fn tick(
        &mut self,
        now: Nanos,
        arena: &Arena,
        counters: &mut Counters,
        (replies, copies): (&mut Vec<Packet>, &mut Copies),
    ) {
        let (mut cx, pipeline) = self.lend(now, arena, counters, (&mut *replies, &mut *copies));
        pipeline.tick(&mut cx);
        self.send_made(now, counters, replies);
        self.send_made(now, counters, &mut copies.packets);
    }

    #[inline]
    pub(super) fn send_made(
        &mut self,
        now: Nanos,
        counters: &mut Counters,
        made: &mut Vec<Packet>,
    ) {
        counters.created += made.len() as u64;
        for Packet { frame, meta } in made.drain(..) {
            self.dispatch(now, counters, frame, &meta);
        }
    }

    /// Forgets the oldest handshakes where this batch begins more than may be in progress. Returns
    /// how many it begins.
    #[inline]
    fn make_room(&mut self, batch: &Batch, counters: &mut Counters) -> u32 {
        use tcp::flag::{ACK, SYN};
        let begins = |meta: &&PacketMeta| meta.tcp_flags & (SYN | ACK) == SYN;
        let handshakes = batch.metas().iter().filter(begins).count() as u32;
        if handshakes > 0 {
            let (pipeline, seed) = (&mut self.pipeline, self.snapshot.seed);
            self.flows.make_room(handshakes, |flow| {
                counters.handshakes_evicted += 1;
                pipeline.forget(flow, seed);
            });
        }
        handshakes
    }

    #[cold]
    pub(super) fn hand_over(&mut self, counters: &mut Counters, owner: u16, packet: Packet) {
        match self.handover.give(owner, packet) {
            Ok(()) => counters.handed_over += 1,
            Err(packet) => {
                counters.drop(DropReason::HandoverFull);
                self.pool.put(packet.frame);
            }
        }
    }

    /// Sends a packet the way that was decided.
    #[inline(always)]
    pub(super) fn dispatch(
        &mut self,
        now: Nanos,
        counters: &mut Counters,
        frame: Frame,
        meta: &PacketMeta,
    ) {
        match meta.verdict {
            Verdict::Output => {
                let (class, flow_hash, l3) = (meta.class, meta.hash as u32, meta.l3);
                let packet = Queued { frame, class, flow_hash, l3 };
                self.output(now, counters, meta.out_port, packet);
            }
            Verdict::Park => self.park(now, counters, Packet { frame, meta: meta.clone() }),
            Verdict::Wait => self.delay(counters, Packet { frame, meta: meta.clone() }),
            Verdict::Drop(reason) => self.discard(counters, reason, frame),
            Verdict::Absorb => {
                counters.absorbed += 1;
                self.pool.put(frame);
            }
            Verdict::Next => self.discard(counters, DropReason::NotHandled, frame),
        }
    }

    #[inline(always)]
    fn output(&mut self, now: Nanos, counters: &mut Counters, port: PortId, packet: Queued) {
        let reason = match self.sides.get_mut(usize::from(port.0)) {
            Some(side) if self.pool.available() >= FRAME_RESERVE || side.held() == 0 => {
                return side.enqueue(now, packet, &mut self.pool, counters);
            }
            Some(_) => DropReason::NoFrames,
            None => DropReason::NotOurPort,
        };
        self.discard(counters, reason, packet.frame);
    }

    pub(super) fn discard(&mut self, counters: &mut Counters, reason: DropReason, frame: Frame) {
        counters.drop(reason);
        self.pool.put(frame);
    }
}
