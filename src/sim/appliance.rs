//! The box under test: real workers over ports in memory, and the part of a control plane that they
//! need.

use std::sync::Arc;
use std::time::Duration;

use crate::base::hash::{Rng, hash_bytes};
use crate::base::mem::Arena;
use crate::base::{Addr, Nanos, Seed};
use crate::forward::routes::{PortLink, RouteSpec};
use crate::forward::spec::ForwardSpec;
use crate::forward::{RoutesBuilder, Tables};
use crate::graph::Snapshot;
use crate::graph::spec::PipelineSpec;
use crate::nic::memory::{MemoryEnd, MemoryPort};
use crate::nic::spec::PortSpec;
use crate::observe::{Counters, SharedStats};
use crate::packet::{FramePool, PortId};
use crate::policy::Rules;
use crate::policy::spec::RuleSpec;
use crate::qos::limits::{Limits, LimitsSpec};
use crate::qos::meters::{MeteringSpec, Meters};
use crate::qos::spec::PortQosSpec;
use crate::worker::command::control_link;
use crate::worker::spec::{IdleStrategy, OnFailure, WorkersSpec};
use crate::worker::{
    Blueprint, Handover, Own, Phase, Worker, WorkerCommand, WorkerEvent, WorkerLink,
};

/// Packets in each direction of a port's wire.
const WIRE_PACKETS: usize = 512;
/// Bytes of a frame.
const FRAME_SIZE: u32 = 2_048;

/// Which worker's queue a packet arrives at, as a network card would choose.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Spread {
    /// By a hash of the packet's headers that differs between the directions of a flow.
    #[default]
    Hash,
    /// Anywhere, packet by packet: no card is that bad.
    Random,
}

/// What a box is like. The rest of its configuration has the values that fit a test.
#[derive(Clone)]
pub struct Setup {
    pub seed: Seed,
    pub workers: u16,
    pub spread: Spread,
    pub pipeline: PipelineSpec,
    pub forward: ForwardSpec,
    pub rules: Vec<RuleSpec>,
    pub qos: Vec<PortQosSpec>,
    pub metering: MeteringSpec,
    pub limits: LimitsSpec,
    pub ports: Vec<PortLink>,
    pub routes: Vec<RouteSpec>,
    /// (interface, address, MAC address): what the kernel can find out.
    pub neighbours: Vec<(u32, Addr, [u8; 6])>,
    /// How long the kernel takes to find a neighbour out; zero: all are known from the start.
    pub resolve_after: Duration,
    pub frames: u32,
    pub flows_max: u32,
    pub half_open_max: u32,
}

impl Setup {
    fn workers_spec(&self) -> WorkersSpec {
        WorkersSpec {
            count: self.workers,
            count_max: self.workers,
            cores: Vec::new(),
            idle: IdleStrategy::Adaptive,
            on_failure: OnFailure::Pass,
            offload: false,
            heartbeat_limit: Duration::from_millis(100),
            frames: self.frames,
            frame_size: FRAME_SIZE,
            huge_pages: false,
            flows_max: self.flows_max,
            half_open_max: self.half_open_max,
            drain_limit: Duration::from_secs(1),
        }
    }

    fn port_specs(&self) -> Vec<PortSpec> {
        let spec = |link: &PortLink| PortSpec::in_memory(link.id, &link.name);
        self.ports.iter().map(spec).collect()
    }
}

/// The box.
pub struct Appliance {
    pub workers: Vec<Worker<MemoryPort>>,
    /// The far ends of its wires, by worker and port.
    pub ends: Vec<Vec<MemoryEnd>>,
    links: Vec<WorkerLink>,
    setup: Setup,
    snapshot: Snapshot,
    routes: RoutesBuilder,
    /// Generation of the routes built last.
    generation: u32,
    /// Neighbours that the kernel was asked for, and when it answers.
    asked: Vec<(Nanos, PortId, Addr)>,
}

impl Appliance {
    pub fn new(setup: Setup) -> Appliance {
        let mut routes = RoutesBuilder::new(setup.ports.clone(), setup.seed);
        setup.routes.iter().for_each(|r| routes.add_route(*r));
        if setup.resolve_after.is_zero() {
            for (ifindex, addr, mac) in &setup.neighbours {
                routes.set_neighbour(*ifindex, *addr, *mac);
            }
        }
        let snapshot = Snapshot {
            forward: Arc::new(Tables::build(&setup.forward, setup.workers, setup.seed)),
            routes: Arc::new(routes.build(1)),
            rules: Arc::new(Rules::compile(&setup.rules)),
            seed: setup.seed,
            worker_count: setup.workers,
            meters: Arc::new(Meters::build(&setup.metering, None)),
            limits: Arc::new(Limits::build(&setup.limits, setup.seed, None, Nanos(0))),
            shared_ports: Default::default(),
        };
        let mut appliance = Appliance {
            workers: Vec::new(),
            ends: Vec::new(),
            links: Vec::new(),
            setup,
            snapshot,
            routes,
            generation: 1,
            asked: Vec::new(),
        };
        appliance.build_workers();
        appliance
    }

    fn build_workers(&mut self) {
        let setup = &self.setup;
        let (workers, ports) = (setup.workers_spec(), setup.port_specs());
        let blueprint = Blueprint {
            workers: &workers,
            ports: &ports,
            pipeline: &setup.pipeline,
            qos: &setup.qos,
            snapshot: &self.snapshot,
        };
        let slots = setup.frames * u32::from(setup.workers);
        let (arena, mut slots) = Arena::map(slots, FRAME_SIZE, false).expect("memory for frames");
        let mesh = Handover::mesh(setup.workers, 256);
        for (id, handover) in (0..setup.workers).zip(mesh) {
            let rest = slots.split_off(setup.frames as usize);
            let own = std::mem::replace(&mut slots, rest);
            let (memory, ends): (Vec<_>, Vec<_>) =
                ports.iter().map(|_| MemoryPort::pair(WIRE_PACKETS)).unzip();
            let (control, link) = control_link(None);
            self.workers.push(blueprint.worker(Own {
                id,
                ports: memory,
                pool: FramePool::new(Arc::clone(&arena), own),
                handover,
                control,
                stats: Arc::new(SharedStats::new(ports.len())),
            }));
            self.ends.push(ends);
            self.links.push(link);
        }
    }

    /// The queue at which a packet arrives.
    pub fn queue_of(&self, port: usize, frame: &[u8], rng: &mut Rng) -> usize {
        let queues = self.workers.len() as u64;
        match self.setup.spread {
            Spread::Hash => {
                let seed = Seed(self.setup.seed.0 ^ (port as u64) << 32);
                (hash_bytes(seed, addresses_and_ports(frame)) % queues) as usize
            }
            Spread::Random => rng.below(queues as u32) as usize,
        }
    }

    /// One turn of every worker and of the control plane; returns how many packets moved.
    pub fn poll(&mut self, now: Nanos) -> usize {
        let mut moved = 0;
        for worker in &mut self.workers {
            if worker.may_close(now) {
                worker.close();
            } else if worker.phase() != Phase::Stopped {
                moved += worker.poll(now);
            }
        }
        self.control(now);
        moved
    }

    fn control(&mut self, now: Nanos) {
        for link in &self.links {
            while let Some(event) = link.recv() {
                if let WorkerEvent::Wanted(port, addr) = event {
                    self.asked.push((now + self.setup.resolve_after, port, addr));
                }
            }
        }
        let due = |&(at, ..): &(Nanos, PortId, Addr)| at <= now;
        if !self.asked.iter().any(due) {
            return;
        }
        for (_, port, addr) in self.asked.extract_if(.., |a| due(a)) {
            let ifindex = self.snapshot.routes.port(port).ifindex;
            let mut neighbours = self.setup.neighbours.iter();
            if let Some((_, _, mac)) = neighbours.find(|n| n.0 == ifindex && n.1 == addr) {
                self.routes.set_neighbour(ifindex, addr, *mac);
            }
        }
        self.reroute();
    }

    /// Knows all neighbours from now on, as after some traffic.
    pub fn learn_neighbours(&mut self) {
        for (ifindex, addr, mac) in &self.setup.neighbours {
            self.routes.set_neighbour(*ifindex, *addr, *mac);
        }
        self.reroute();
    }

    /// Hands the present routes and neighbours to all workers.
    pub fn reroute(&mut self) {
        self.generation += 1;
        self.snapshot.routes = Arc::new(self.routes.build(self.generation));
        for link in &self.links {
            let routes = WorkerCommand::Routes(Arc::clone(&self.snapshot.routes));
            assert!(link.send(routes).is_ok(), "a worker doesn't obey");
        }
    }

    /// Changes the configuration under way, as a reload does.
    pub fn reload(&mut self, change: impl FnOnce(&mut Setup)) {
        let old = self.setup.clone();
        let old_snapshot = self.snapshot.clone();
        change(&mut self.setup);
        let setup = &self.setup;
        self.generation += 1;
        self.snapshot = Snapshot {
            forward: Arc::new(Tables::build(&setup.forward, setup.workers, setup.seed)),
            rules: Arc::new(Rules::compile(&setup.rules)),
            routes: Arc::new(self.routes.build(self.generation)),
            ..old_snapshot.clone()
        };
        let (workers, ports) = (setup.workers_spec(), setup.port_specs());
        let (old_workers, old_ports) = (old.workers_spec(), old.port_specs());
        let new = Blueprint {
            workers: &workers,
            ports: &ports,
            pipeline: &setup.pipeline,
            qos: &setup.qos,
            snapshot: &self.snapshot,
        };
        let old = Blueprint {
            workers: &old_workers,
            ports: &old_ports,
            pipeline: &old.pipeline,
            qos: &old.qos,
            snapshot: &old_snapshot,
        };
        new.share();
        for link in &self.links {
            let update = Box::new(new.update(Nanos::ZERO, &old));
            assert!(link.send(WorkerCommand::Update(update)).is_ok(), "a worker doesn't obey");
        }
    }

    /// Asks one worker for something.
    pub fn command(&self, worker: usize, command: WorkerCommand) {
        assert!(self.links[worker].send(command).is_ok(), "a worker doesn't obey");
    }

    /// The counters of all workers together.
    pub fn counters(&self) -> Counters {
        let mut sum = Counters::default();
        self.workers.iter().for_each(|w| sum.add(w.counters()));
        sum
    }

    /// What limits did.
    pub fn limits(&self) -> &Limits {
        &self.snapshot.limits
    }

    /// Packets that the box holds, those between workers included.
    pub fn held(&self) -> usize {
        self.workers.iter().map(|w| w.held() + w.handover_backlog()).sum()
    }

    /// Stops all workers and checks that every packet and every frame is accounted for. Returns the
    /// counters.
    ///
    /// # Panics
    /// Where they are not.
    pub fn finish(&mut self) -> Counters {
        for _ in 0..2 {
            // Twice: what one worker pays back to another reaches it with the second.
            self.workers.iter_mut().for_each(Worker::close);
        }
        let counters = self.counters();
        assert_eq!(counters.held(), 0, "packets are missing: {counters:?}");
        assert_eq!(counters.handed_over, counters.taken_over, "{counters:?}");
        for worker in &self.workers {
            assert_eq!(worker.frames_outstanding(), 0, "frames are missing");
        }
        counters
    }
}

/// What a card hashes: addresses and ports of an untagged packet without options. Of all else
/// nothing, so that it arrives at one queue.
fn addresses_and_ports(frame: &[u8]) -> &[u8] {
    const IPV4: &[u8] = &[0x08, 0x00, 0x45];
    const IPV6: &[u8] = &[0x86, 0xdd];
    match frame.get(12..).unwrap_or_default() {
        rest if rest.starts_with(IPV4) => frame.get(26..38).unwrap_or_default(),
        rest if rest.starts_with(IPV6) => frame.get(22..58).unwrap_or_default(),
        _ => &[],
    }
}
