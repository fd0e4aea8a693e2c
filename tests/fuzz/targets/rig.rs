//! The box that packets are thrown at: whole workers over ports in memory, and a control plane that
//! obeys.
//!
//! ```text
//! clients ── port 0, 1500 B [box] port 1, 1400 B ── backends, and routers to more networks
//! ```

use std::collections::HashMap;
use std::sync::Arc;

use tidegate::base::Nanos;
use tidegate::base::mem::Arena;
use tidegate::forward::{RoutesBuilder, Tables};
use tidegate::graph::Snapshot;
use tidegate::nic::memory::{MemoryEnd, MemoryPort};
use tidegate::nic::steer::{OffloadEntry, OffloadOrder, OffloadSlots};
use tidegate::observe::{Counters, SharedStats};
use tidegate::packet::{FlowKey, FramePool, PortId};
use tidegate::policy::Rules;
use tidegate::worker::command::control_link;
use tidegate::worker::offload::{Offload, OffloadRing};
use tidegate::worker::{Handover, Own, Phase, Worker, WorkerCommand, WorkerEvent, WorkerLink};

use super::setup::{FLOWS_MAX, FRAME_SIZE, FRAMES, Parts, SEED, Variant, routes, rules, tables};

/// When the box's time begins.
pub const START: Nanos = Nanos::from_secs(10);
const WIRE_PACKETS: usize = 96;
const HANDOVER_PACKETS: usize = 32;
/// Turns that an idle box takes at most to send or give up all it holds.
const TURNS_TO_REST_MAX: usize = 200_000;

/// One or several workers, their wires, and who commands them.
pub struct Rig {
    pub now: Nanos,
    pub variant: Variant,
    pub workers: Vec<Worker<MemoryPort>>,
    /// By worker and port.
    ends: Vec<Vec<MemoryEnd>>,
    links: Vec<WorkerLink>,
    pub routes: RoutesBuilder,
    snapshot: Snapshot,
    stats: Vec<Arc<SharedStats>>,
    generation: u32,
    offloads: Option<Offloads>,
    sent: u64,
    received: u64,
}

impl Rig {
    /// All neighbours but those of [`Family::unresolved`] are known.
    pub fn new(workers: u16, variant: Variant) -> Rig {
        let mut routes = routes();
        let snapshot = Snapshot {
            forward: tables(variant.services, workers),
            routes: Arc::new(routes.build(1)),
            rules: Arc::new(Rules::compile(&rules(variant.services))),
            seed: SEED,
            worker_count: workers,
            meters: Default::default(),
            limits: Default::default(),
            shared_ports: Default::default(),
        };
        let mut rig = Rig {
            now: START,
            variant,
            workers: Vec::new(),
            ends: Vec::new(),
            links: Vec::new(),
            routes,
            snapshot,
            stats: Vec::new(),
            generation: 1,
            offloads: None,
            sent: 0,
            received: 0,
        };
        rig.build_workers(workers);
        rig
    }

    fn build_workers(&mut self, workers: u16) {
        let frames = FRAMES * u32::from(workers);
        let (arena, mut slots) = Arena::map(frames, FRAME_SIZE, false).expect("memory for frames");
        let parts = Parts::new(self.variant, workers);
        for (id, handover) in (0..workers).zip(Handover::mesh(workers, HANDOVER_PACKETS)) {
            let rest = slots.split_off(FRAMES as usize);
            let own = std::mem::replace(&mut slots, rest);
            let (ports, ends): (Vec<_>, Vec<_>) =
                (0..2).map(|_| MemoryPort::pair(WIRE_PACKETS)).unzip();
            let (control, link) = control_link(None);
            let stats = Arc::new(SharedStats::new(2));
            self.workers.push(parts.blueprint(&self.snapshot).worker(Own {
                id,
                ports,
                pool: FramePool::new(Arc::clone(&arena), own),
                handover,
                control,
                stats: Arc::clone(&stats),
            }));
            self.ends.push(ends);
            self.links.push(link);
            self.stats.push(stats);
        }
    }

    /// Has workers hand flows down.
    pub fn offload(&mut self) {
        let workers = self.workers.len() as u16;
        let slots = OffloadSlots::in_memory(2).expect("memory for slots");
        let rings: Vec<_> = (0..workers).map(|_| OffloadRing::new()).collect();
        for (id, (worker, ring)) in (0..).zip(self.workers.iter_mut().zip(&rings)) {
            let flows = FLOWS_MAX as usize;
            // As one of many workers: few slots, which run out.
            let few = Offload::new(id, 4_096, flows, ring.clone(), slots.clone());
            worker.set_offload(few);
        }
        self.offloads = Some(Offloads { rings, slots, table: HashMap::new() });
    }

    /// What the program still has to forward.
    pub fn offloaded(&self) -> usize {
        self.offloads.as_ref().map_or(0, |offloads| offloads.table.len())
    }

    /// Puts a packet on a wire toward the box; lost where the wire is full.
    pub fn send(&mut self, worker: usize, port: usize, packet: &[u8]) -> bool {
        let end = &self.ends[worker % self.ends.len()][port % 2];
        let sent = end.send(packet);
        self.sent += u64::from(sent);
        sent
    }

    /// The next packet that the box has sent by a port.
    pub fn recv(&mut self, worker: usize, port: usize) -> Option<Vec<u8>> {
        let packet = self.ends[worker % self.ends.len()][port % 2].recv()?;
        self.received += 1;
        Some(packet)
    }

    /// One turn of every worker, and of whoever commands them.
    pub fn poll(&mut self) -> usize {
        let mut moved = 0;
        for worker in self.workers.iter_mut().filter(|w| w.phase() != Phase::Stopped) {
            if worker.may_close(self.now) {
                worker.close();
                continue;
            }
            moved += worker.poll(self.now);
            let counters = worker.counters();
            assert_eq!(counters.held(), worker.held() as i128, "{counters:?}");
        }
        if let Some(offloads) = &mut self.offloads {
            offloads.obey(self.generation);
        }
        for link in &self.links {
            while let Some(event) = link.recv() {
                if let WorkerEvent::Wanted(port, addr) = event {
                    assert!(usize::from(port.0) < 2 && !addr.is_unspecified());
                }
            }
        }
        moved
    }

    /// Gives the present state of [`Rig::routes`] to all workers.
    pub fn publish_routes(&mut self) {
        self.generation += 1;
        self.snapshot.routes = Arc::new(self.routes.build(self.generation));
        for worker in 0..self.links.len() {
            let routes = Arc::clone(&self.snapshot.routes);
            self.command(worker, WorkerCommand::Routes(routes));
        }
    }

    /// Changes the configuration, as a reload does.
    pub fn reload(&mut self, variant: Variant) {
        let workers = self.workers.len() as u16;
        let (old_parts, old_snapshot) = (Parts::new(self.variant, workers), self.snapshot.clone());
        // What is received is read as before: only new ports could change that.
        self.variant = Variant { verify_checksums: self.variant.verify_checksums, ..variant };
        self.snapshot.forward = tables(self.variant.services, workers);
        let parts = Parts::new(self.variant, workers);
        parts.blueprint(&self.snapshot).share();
        for worker in 0..self.links.len() {
            let (new, old) = (parts.blueprint(&self.snapshot), old_parts.blueprint(&old_snapshot));
            let update = Box::new(new.update(Nanos::ZERO, &old));
            self.command(worker, WorkerCommand::Update(update));
        }
    }

    /// Other services and weights than the box has.
    pub fn tables(&self, services: usize) -> Arc<Tables> {
        tables(services, self.links.len() as u16)
    }

    /// Has one worker do something at its next turn; a worker that has too much to do is left
    /// alone.
    pub fn command(&mut self, worker: usize, command: WorkerCommand) {
        let _ = self.links[worker % self.links.len()].send(command);
    }

    /// The counters of all workers together.
    pub fn counters(&self) -> Counters {
        let mut sum = Counters::default();
        self.workers.iter().for_each(|w| sum.add(w.counters()));
        sum
    }

    /// What running workers hold; a stopped one takes nothing over any more.
    fn held(&self) -> usize {
        let running = self.workers.iter().filter(|w| w.phase() != Phase::Stopped);
        running.map(|w| w.held() + w.handover_backlog()).sum()
    }

    /// Lets the box send what it holds, or give it up, however long that takes; nothing arrives any
    /// more. Each packet that it sends is handed to `look`.
    pub fn rest(&mut self, mut look: impl FnMut(usize, &[u8])) {
        for turn in 0.. {
            assert!(turn < TURNS_TO_REST_MAX, "{} packets never leave", self.held());
            let moved = self.poll() + self.carry_off(&mut look);
            if moved > 0 {
                continue;
            }
            if self.held() == 0 {
                return;
            }
            // What is parked has its own time, looked at every millisecond.
            let soon = self.now.saturating_add(10_000_000);
            let next = self.workers.iter().filter_map(|w| w.next_event(self.now)).min();
            self.now = next.unwrap_or(soon).clamp(self.now.saturating_add(1), soon);
        }
    }

    fn carry_off(&mut self, look: &mut impl FnMut(usize, &[u8])) -> usize {
        let mut carried = 0;
        for worker in 0..self.ends.len() {
            for port in 0..2 {
                while let Some(packet) = self.recv(worker, port) {
                    look(port, &packet);
                    self.ends[worker][port].recycle(packet);
                    carried += 1;
                }
            }
        }
        carried
    }

    /// Ends the box and accounts for every packet and every frame. Returns the counters.
    ///
    /// # Panics
    /// Where something is missing.
    pub fn finish(&mut self) -> Counters {
        for _ in 0..2 {
            // Twice: what one worker pays back to another reaches it with the second.
            self.workers.iter_mut().for_each(Worker::close);
        }
        self.carry_off(&mut |_, _| {});
        let counters = self.counters();
        let waiting: usize = self.ends.iter().flatten().map(MemoryEnd::pending).sum();
        let (mut missed, mut flows) = (0, 0);
        for stats in self.stats.iter().map(|s| s.read()) {
            missed += stats.ports.iter().map(|p| p.rx_missed).sum::<u64>();
            flows += stats.gauges.flows;
        }
        assert_eq!(self.sent, counters.rx_packets + missed + waiting as u64, "{counters:?}");
        assert_eq!(self.received, counters.tx_packets, "{counters:?}");
        assert_eq!(counters.handed_over, counters.taken_over, "{counters:?}");
        assert_eq!(counters.held(), 0, "{counters:?}");
        assert!(flows <= u64::from(FLOWS_MAX) * self.workers.len() as u64);
        let outstanding: Vec<_> = self.workers.iter().map(Worker::frames_outstanding).collect();
        assert!(outstanding.iter().all(|n| *n == 0), "frames outstanding: {outstanding:?}");
        counters
    }

    /// Flows in the tables, as published last.
    pub fn flows(&self) -> u64 {
        self.stats.iter().map(|s| s.read().gauges.flows).sum()
    }
}

/// The XDP program's table, and whose orders fill it.
struct Offloads {
    rings: Vec<OffloadRing>,
    slots: OffloadSlots,
    table: HashMap<(PortId, FlowKey), OffloadEntry>,
}

impl Offloads {
    fn obey(&mut self, generation: u32) {
        for order in self.rings.iter().flat_map(|ring| std::iter::from_fn(|| ring.next())) {
            match order {
                OffloadOrder::Forward { port, key, entry } => {
                    self.table.insert((port, key), entry);
                }
                OffloadOrder::Forget { port, key } => {
                    self.table.remove(&(port, key));
                }
            }
        }
        // Two entries of one slot would count for one another.
        let mut slots = Vec::new();
        for (&(port, key), entry) in &self.table {
            if self.slots.stamp(port, entry.slot) == entry.stamp {
                assert!(entry.generation <= generation, "by routes that there are none of yet");
                assert!(
                    usize::from(port.0) < 2 && entry.port < 2 && key.src.is_v4() == key.dst.is_v4()
                );
                slots.push((port.0, entry.slot));
            }
        }
        let live = slots.len();
        slots.sort_unstable();
        slots.dedup();
        assert_eq!(slots.len(), live, "a slot is two flows'");
    }
}
