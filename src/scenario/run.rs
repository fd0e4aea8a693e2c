//! A scenario played: events, workers and a link in the order of virtual time.

use std::sync::Arc;
use std::time::Duration;

use super::expect::judge;
use super::heap::{Event, Heap};
use super::measure::Meter;
use super::outcome::{ClassOutcome, Outcome};
use super::source::{Packet, Running};
use super::spec::{Kind, Scenario, Source};
use super::worker::{Fate, Worker};
use crate::base::{Nanos, Seed};
use crate::capture::ReadError;
use crate::packet::ClassId;
use crate::qos::{ClassStats, InFlight, Shared};
use crate::sim::LinkSpec;
use crate::sim::link::Link;

/// Packets that a greedy source keeps waiting in each worker: so many, or so many a flow, or what
/// goes in so many looks, as far as the class has room for them.
const GREEDY_PACKETS: u64 = 64;
const GREEDY_A_FLOW: u64 = 2;
const GREEDY_LOOKS: u64 = 2;
/// The part of a worker's frames that greedy sources share.
const GREEDY_FRAMES: [u64; 2] = [3, 4];

/// A capture of a scenario is damaged.
#[derive(Debug, thiserror::Error)]
#[error("source `{source_name}`: {error}")]
pub struct TraceFailed {
    source_name: String,
    error: ReadError,
}

/// Plays a scenario from its start to its end. `progress` hears of the time that has passed.
///
/// # Errors
/// A capture that is damaged.
pub fn run(
    scenario: &Scenario,
    mut progress: impl FnMut(Duration),
) -> Result<Outcome, TraceFailed> {
    let mut play = Play::new(scenario)?;
    let end = Nanos::ZERO + scenario.duration;
    loop {
        let next = play.next_at();
        let at = next.min(end);
        while let Some(border) = play.borders.pop_if(|border| *border <= at) {
            play.border(border);
            progress(border - Nanos::ZERO);
        }
        if next >= end {
            return Ok(play.outcome());
        }
        play.now = next;
        play.step()?;
    }
}

struct Play<'s> {
    scenario: &'s Scenario,
    now: Nanos,
    heap: Heap,
    sources: Vec<Running>,
    workers: Vec<Worker>,
    wire: Option<Wire>,
    ledger: Ledger,
    greedy: Vec<Greedy>,
    /// What those that have a worker's turn would have waiting.
    wanted: Vec<u64>,
    /// Ends of slices, and of the warm-up, the next one last.
    borders: Vec<Nanos>,
    packets: Vec<Packet>,
}

/// A link, and the worker whose ring has its turn.
struct Wire {
    link: Link,
    turn: usize,
}

/// Who hears of packets that leave a worker.
struct Ledger {
    meter: Meter,
    /// By source: round trips of those that wait for answers.
    round_trips: Vec<Option<Duration>>,
    /// By source and worker: packets there. Of greedy sources.
    waiting: Vec<Vec<u64>>,
}

/// A source that always has packets waiting.
struct Greedy {
    source: usize,
    /// By worker.
    flows: Vec<Vec<u32>>,
    /// By worker: the flow whose turn it is, and packets that wait at any time.
    turn: Vec<usize>,
    target: Vec<u64>,
}

impl Ledger {
    fn tell(&mut self, heap: &mut Heap, worker: usize, at: Nanos, packet: &Packet, fate: Fate) {
        let source = packet.source as usize;
        if let Some(waiting) = self.waiting[source].get_mut(worker) {
            *waiting -= 1;
        }
        let Fate::Sent { marked } = fate else {
            self.meter.dropped(packet);
            return;
        };
        self.meter.sent(packet, at, marked);
        if let Some(round_trip) = self.round_trips[source] {
            let Packet { source, flow, seq, .. } = *packet;
            heap.push(at + round_trip, Event::Ack { source, flow, seq, marked });
        }
    }
}

impl<'s> Play<'s> {
    fn new(scenario: &'s Scenario) -> Result<Play<'s>, TraceFailed> {
        let count = scenario.workers.count;
        let shared = (count > 1).then(|| Shared::new(&scenario.tree));
        let ring = in_flight(scenario);
        let worker = |i| Worker::new(scenario, i, shared.as_ref().map(Arc::clone).as_ref(), ring);
        let mut sources = Vec::with_capacity(scenario.sources.len());
        let mut heap = Heap::default();
        for (i, spec) in scenario.sources.iter().enumerate() {
            let failed = |error| TraceFailed { source_name: spec.name.clone(), error };
            let mut source = Running::new(scenario, i, count).map_err(failed)?;
            source.begin(&mut heap);
            sources.push(source);
        }
        let round_trip = |s: &Running| match s.spec.kind {
            Kind::Tcp { rtt, .. } => Some(rtt),
            _ => None,
        };
        let waiting = |s: &Running| if s.is_greedy() { vec![0; count] } else { Vec::new() };
        let ledger = Ledger {
            meter: Meter::new(scenario),
            round_trips: sources.iter().map(round_trip).collect(),
            waiting: sources.iter().map(waiting).collect(),
        };
        let greedy = sources.iter().enumerate().filter(|(_, s)| s.is_greedy());
        let greedy = greedy.map(|(i, s)| Greedy::new(scenario, i, s)).collect();
        let wire = scenario.link.rate.map(|rate| {
            let spec = LinkSpec { rate: Some(rate), ..LinkSpec::default() };
            Wire { link: Link::new(spec, Seed(scenario.seed.0)), turn: 0 }
        });
        Ok(Play {
            scenario,
            now: Nanos::ZERO,
            heap,
            workers: (0..count).map(worker).collect(),
            sources,
            wire,
            ledger,
            greedy,
            wanted: Vec::new(),
            borders: borders(scenario),
            packets: Vec::new(),
        })
    }

    /// When something happens next.
    fn next_at(&self) -> Nanos {
        let woken = self.workers.iter().filter_map(|w| w.wakes_at).min();
        let wire = self.wire.as_ref().and_then(|wire| {
            let waits = self.workers.iter().any(|w| w.ahead().is_some());
            waits.then(|| wire.link.free_at().max(self.now))
        });
        [self.heap.next_at(), woken, wire].into_iter().flatten().min().unwrap_or(Nanos::MAX)
    }

    /// All that happens now: what comes first, since a worker takes in all that has come.
    fn step(&mut self) -> Result<(), TraceFailed> {
        while let Some((at, event)) = self.heap.pop(self.now) {
            self.event(at, event)?;
        }
        self.transmit();
        for i in 0..self.workers.len() {
            if self.workers[i].wakes_at.is_some_and(|at| at <= self.now) {
                self.look(i);
            }
        }
        Ok(())
    }

    fn event(&mut self, at: Nanos, event: Event) -> Result<(), TraceFailed> {
        let (Event::Send { source, flow }
        | Event::Ack { source, flow, .. }
        | Event::Timeout { source, flow }) = event;
        let running = &mut self.sources[source as usize];
        let (heap, packets) = (&mut self.heap, &mut self.packets);
        match event {
            Event::Send { .. } if running.is_greedy() => {
                self.workers.iter_mut().for_each(|w| w.wake(at));
            }
            Event::Send { .. } => running
                .send(at, flow, heap, packets)
                .map_err(|error| TraceFailed { source_name: running.spec.name.clone(), error })?,
            Event::Ack { seq, marked, .. } => {
                running.acknowledge(at, flow, seq, marked, heap, packets);
            }
            Event::Timeout { .. } => running.time_out(at, flow, heap, packets),
        }
        for packet in self.packets.drain(..) {
            self.ledger.meter.offered(&packet);
            let worker = running.worker_of(packet.flow, self.workers.len());
            self.workers[worker].arrive(packet);
        }
        Ok(())
    }

    /// The link takes the next frame, if it is free: rings have their turns.
    fn transmit(&mut self) {
        let Some(wire) = &mut self.wire else { return };
        if wire.link.free_at() > self.now {
            return;
        }
        let count = self.workers.len();
        let turns = (0..count).map(|i| (wire.turn + i) % count);
        let ahead = |i: usize| self.workers[i].ahead().map(|len| (i, len));
        let Some((i, len)) = turns.filter_map(ahead).next() else { return };
        wire.turn = i + 1;
        let on_wire = self.scenario.tree.counting().counted(usize::from(len));
        let [arrival, _] = wire.link.send(self.now, on_wire as usize);
        let at = arrival.unwrap_or(self.now);
        let (ledger, heap) = (&mut self.ledger, &mut self.heap);
        self.workers[i].transmitted(&mut |packet, fate| ledger.tell(heap, i, at, &packet, fate));
        self.workers[i].settle(self.now, count == 1);
    }

    fn look(&mut self, i: usize) {
        let (sources, now) = (&self.sources, self.now);
        let is_here = |g: &Greedy, sources: &[Running]| {
            !g.flows[i].is_empty() && sources[g.source].is_active(now)
        };
        let here = self.greedy.iter().filter(|g| is_here(g, sources)).map(|g| g.target[i]);
        self.wanted.clear();
        self.wanted.extend(here);
        // More would push each other out, look by look.
        let frames = u64::from(self.scenario.workers.frames);
        let most = share_out(frames / GREEDY_FRAMES[1] * GREEDY_FRAMES[0], &mut self.wanted);
        for greedy in &mut self.greedy {
            if !is_here(greedy, &self.sources) {
                continue;
            }
            let source = &mut self.sources[greedy.source];
            let waiting = &mut self.ledger.waiting[greedy.source][i];
            while *waiting < greedy.target[i].min(most) {
                let flows = &greedy.flows[i];
                let flow = flows[greedy.turn[i] % flows.len()];
                greedy.turn[i] += 1;
                let packet = source.packet_of(flow, self.now);
                self.ledger.meter.offered(&packet);
                self.workers[i].arrive(packet);
                *waiting += 1;
            }
        }
        let (ledger, heap, now) = (&mut self.ledger, &mut self.heap, self.now);
        let is_wired = self.wire.is_some();
        self.workers[i].look(now, is_wired, &mut |packet, fate| {
            ledger.tell(heap, i, now, &packet, fate);
        });
        let is_alone = self.workers.len() == 1;
        self.workers[i].settle(now, is_alone);
        if !self.wanted.is_empty() && self.workers[i].scheduler.is_empty() {
            self.workers[i].wake(now);
        }
    }

    /// A slice or the warm-up is over.
    fn border(&mut self, at: Nanos) {
        let warmup = Nanos::ZERO + self.scenario.warmup;
        let stats = self.stats();
        if at == warmup && at > Nanos::ZERO {
            self.ledger.meter.begin(stats.clone());
        }
        let slice = self.scenario.slice.as_nanos() as u64;
        if at.0.is_multiple_of(slice) || at == Nanos::ZERO + self.scenario.duration {
            self.ledger.meter.slice(at, stats);
        }
    }

    /// What classes have done, by their position in the tree: sums over the workers.
    fn stats(&mut self) -> Vec<ClassStats> {
        let mut sums = vec![ClassStats::default(); self.scenario.tree.classes.len()];
        for worker in &mut self.workers {
            for (id, stats) in worker.scheduler.classes() {
                sums[self.ledger.meter.position(id)] += stats;
            }
        }
        sums
    }

    fn outcome(mut self) -> Outcome {
        let stats = self.stats();
        let scenario = self.scenario;
        let Ledger { meter, .. } = self.ledger;
        let seconds = (scenario.duration - scenario.warmup).as_secs_f64();
        let bps = |now: u64, before: u64| (now - before) as f64 * 8.0 / seconds;
        let top = |id: &ClassId| {
            let class = scenario.tree.classes.iter().find(|c| c.id == *id);
            class.is_some_and(|c| c.parent.is_none())
        };
        let ids: Vec<ClassId> = scenario.tree.classes.iter().map(|c| c.id).collect();
        let sent = |i: usize| stats[i].sent_bytes - meter.at_warmup[i].sent_bytes;
        let all: u64 = (0..ids.len()).filter(|i| top(&ids[*i])).map(sent).sum();
        let class = |i: usize| {
            let (spec, now, before) = (&scenario.tree.classes[i], &stats[i], &meter.at_warmup[i]);
            let aqm = now.aqm_dropped_packets - before.aqm_dropped_packets;
            let sent = now.sent_bytes - before.sent_bytes;
            let borrowed = now.borrowed_bytes() - before.borrowed_bytes();
            let is_leaf = scenario.tree.classes.iter().all(|c| c.parent != Some(spec.id));
            ClassOutcome {
                name: scenario.class_name(spec.id).to_string(),
                parent: spec.parent.map(|p| scenario.class_name(p).to_string()),
                is_leaf,
                rate_bps: spec.rate.0,
                ceil_bps: spec.ceil.0,
                offered_packets: now.enqueued_packets - before.enqueued_packets,
                offered_bps: bps(now.enqueued_bytes, before.enqueued_bytes),
                granted_packets: now.sent_packets - before.sent_packets,
                granted_bps: bps(now.sent_bytes, before.sent_bytes),
                share: sent as f64 / all.max(1) as f64,
                borrowed: (borrowed as f64 / sent.max(1) as f64).min(1.0),
                dropped_overload: now.dropped_packets - before.dropped_packets - aqm,
                dropped_aqm: aqm,
                marked_packets: now.marked_packets - before.marked_packets,
                backlog_packets: now.backlog_packets,
                delay: meter.delays(i),
            }
        };
        let classes: Vec<ClassOutcome> = (0..ids.len()).map(class).collect();
        let judged = scenario.expectations.iter();
        let judged = judged.flat_map(|e| judge(e, &classes[meter.position(e.class)])).collect();
        Outcome {
            scenario: scenario.name.clone(),
            seed: scenario.seed.0,
            workers: scenario.workers.count,
            duration_s: scenario.duration.as_secs_f64(),
            warmup_s: scenario.warmup.as_secs_f64(),
            rate_bps: scenario.tree.rate.0,
            link_bps: scenario.link.rate.map(|r| r.0),
            granted_bps: bps(all, 0),
            not_simulated: scenario.not_simulated.clone(),
            classes,
            sources: meter.source_outcomes(),
            over_time: meter.slices,
            expectations: judged,
        }
    }
}

impl Greedy {
    fn new(scenario: &Scenario, source: usize, running: &Running) -> Greedy {
        let count = scenario.workers.count;
        let mut flows = vec![Vec::new(); count];
        for flow in 0..running.spec.flows {
            flows[running.worker_of(flow, count)].push(flow);
        }
        let lengths = running.spec.packets.iter().map(|&len| u64::from(running.counted(len)));
        let shortest = lengths.clone().min().unwrap_or(1).max(1);
        let most = room(scenario, running) / lengths.max().unwrap_or(1).max(1);
        let poll = &scenario.workers.poll;
        let target = (0..count).map(|i| {
            let looks_ns = poll[i % poll.len()].as_nanos() as u64 * GREEDY_LOOKS;
            let bytes = u128::from(scenario.tree.rate.bytes_per_sec()) * u128::from(looks_ns);
            let packets = (bytes / 1_000_000_000) as u64 / shortest;
            let packets = packets.max(GREEDY_PACKETS).max(GREEDY_A_FLOW * flows[i].len() as u64);
            packets.min(most).max(1)
        });
        Greedy { source, turn: vec![0; count], target: target.collect(), flows }
    }
}

/// Bytes that a class holds of a greedy source in each worker, of whatever others hold, before it
/// drops some.
fn room(scenario: &Scenario, running: &Running) -> u64 {
    let class = running.spec.class;
    let limit = scenario.tree.classes.iter().find(|c| c.id == class).map_or(0, |c| c.limit);
    let is_greedy = |s: &&Source| s.class == class && matches!(s.kind, Kind::Greedy);
    let sharers = scenario.sources.iter().filter(is_greedy).count() * scenario.workers.count;
    u64::from(limit) / (sharers as u64).max(1)
}

/// What each worker's ring may hold: where the scenario does not say, as much as in the appliance.
fn in_flight(scenario: &Scenario) -> InFlight {
    let workers = u32::try_from(scenario.workers.count).unwrap_or(u32::MAX);
    match scenario.link.ring {
        Some(bytes) => InFlight::of_bytes(bytes.max(1)),
        None => InFlight::of(&scenario.tree, workers),
    }
}

/// The next one last.
fn borders(scenario: &Scenario) -> Vec<Nanos> {
    let (end, slice) = (scenario.duration.as_nanos() as u64, scenario.slice.as_nanos() as u64);
    let mut borders: Vec<u64> = (1..=end / slice).map(|i| i * slice).collect();
    borders.extend([scenario.warmup.as_nanos() as u64, end]);
    borders.retain(|&border| border > 0);
    borders.sort_unstable();
    borders.dedup();
    borders.into_iter().rev().map(Nanos).collect()
}

/// The most that each may have so that all of them together have so much: who wants less leaves
/// the rest to the others. One at least.
fn share_out(mut left: u64, wanted: &mut [u64]) -> u64 {
    wanted.sort_unstable();
    for (at, &wants) in wanted.iter().enumerate() {
        let part = left / (wanted.len() - at) as u64;
        if wants > part {
            return part.max(1);
        }
        left -= wants;
    }
    u64::MAX
}

#[cfg(test)]
mod tests {
    use super::share_out;

    #[test]
    fn who_wants_less_leaves_the_rest_to_the_others() {
        for (left, wanted, most) in [
            (100, &mut [30, 30, 40][..], u64::MAX),
            (99, &mut [40, 30, 30], 39),
            (100, &mut [1_000, 10, 70, 10], 40),
            (2, &mut [5, 5, 5], 1),
            (0, &mut [], u64::MAX),
        ] {
            assert_eq!(share_out(left, wanted), most, "{left} for {wanted:?}");
            let taken = wanted.iter().map(|wants| (*wants).min(most)).sum::<u64>();
            assert!(taken <= left.max(wanted.len() as u64));
        }
    }
}
