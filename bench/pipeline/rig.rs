//! A worker with everything around it that a measurement needs.

use std::cell::RefCell;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use tidegate::base::units::BitRate;
use tidegate::base::{Addr, Prefix, Seed};
use tidegate::forward::fib::{FibBuilder, Route};
use tidegate::forward::spec::{
    BackendId, BackendSpec, ForwardMode, ForwardSpec, NatSpec, PoolId, PoolSpec, ServiceId,
    ServiceSpec,
};
use tidegate::forward::{PortLink, RouteKind, Routes, Tables};
use tidegate::graph::Snapshot;
use tidegate::graph::spec::{PipelineSpec, StageSpec};
use tidegate::nic::Port;
use tidegate::nic::memory::RecyclePort;
use tidegate::nic::spec::PortSpec;
use tidegate::observe::SharedStats;
use tidegate::packet::batch::BATCH_MAX;
use tidegate::packet::build::LinkSpec;
use tidegate::packet::{ClassId, FramePool, PortId, tcp};
use tidegate::policy::Rules;
use tidegate::policy::spec::RuleSpec;
use tidegate::qos::SharedPorts;
use tidegate::qos::spec::{ClassSpec, PortQosSpec};
use tidegate::worker::command::control_link;
use tidegate::worker::spec::{IdleStrategy, OnFailure, WorkersSpec};
use tidegate::worker::{
    Blueprint, Clock, Handover, Own, Worker, WorkerCommand, WorkerEvent, WorkerLink,
};

use crate::traffic::{BACKENDS, CLIENTS, Mode, NAT, SERVERS, SERVICE_PORT, Traffic, VIP};

const SEED: Seed = Seed(42);
const GATEWAY: u32 = u32::from_be_bytes([192, 0, 2, 1]);
const FRAMES: u32 = 4_096;
/// Flows that are opened together: fewer than may be half open.
const OPEN_AT_ONCE: u32 = 4_096;
const RATE: BitRate = BitRate(400_000_000_000);

pub type Shared = Rc<RefCell<Traffic>>;

/// A port on the clients' side (0) or on the servers' side (1).
pub fn port(traffic: &Shared, id: usize) -> impl Port + use<> {
    let (rx, tx) = (Rc::clone(traffic), Rc::clone(traffic));
    let fill = move |out: &mut [u8]| {
        let mut traffic = rx.borrow_mut();
        if id == 0 { traffic.client_packet(out) } else { traffic.server_packet(out) }
    };
    let sink = move |frame: &[u8]| {
        if id == 1 {
            tx.borrow_mut().learn_nat(frame);
        }
    };
    RecyclePort::new(BATCH_MAX, fill, sink)
}

fn forward() -> ForwardSpec {
    let backend = |i: u32| BackendSpec {
        id: BackendId(i as u16),
        name: format!("b{i}"),
        addr: Addr::v4(SERVERS + i),
        port: SERVICE_PORT,
        weight: 1,
        ..BackendSpec::default()
    };
    ForwardSpec {
        services: vec![ServiceSpec {
            id: ServiceId(0),
            name: "s".into(),
            vip: Addr::v4(VIP),
            port: SERVICE_PORT,
            proto: tcp::PROTOCOL,
            pool: PoolId(0),
            mode: ForwardMode::Nat,
            canary_share: 10_000,
            idle_established: Duration::from_secs(7_440),
            mss_clamp: Default::default(),
            delay: None,
            rule_pools: Vec::new(),
            shadow: None,
        }],
        pools: vec![PoolSpec {
            id: PoolId(0),
            name: "p".into(),
            backends: (0..BACKENDS).map(backend).collect(),
            ..PoolSpec::default()
        }],
        nat: Some(NatSpec {
            addresses: vec![Addr::v4(NAT)],
            port_first: 1_024,
            port_last: 65_535,
            check_ports: 0,
        }),
        ..ForwardSpec::default()
    }
}

fn routes() -> Routes {
    let link = |id: u16| PortLink {
        id: PortId(id),
        ifindex: u32::from(id) + 1,
        name: format!("p{id}"),
        // Where the traffic's packets are addressed to.
        mac: LinkSpec::default().destination,
        mtu: 1_500,
        addrs: vec![],
    };
    let fib = {
        let mut builder = FibBuilder::new(vec![link(0), link(1)], 0);
        for (prefix, route) in routes_of_traffic() {
            builder.set(0, prefix, Some(&route)).expect("room");
        }
        builder.build()
    };
    let links = vec![link(0), link(1)];
    Routes::new(1, SEED, fib, links, neighbours_of_traffic().into_iter())
}

/// To clients by a gateway, to servers on the link.
pub fn routes_of_traffic() -> [(Prefix, Route); 2] {
    let route = |addr: u32, len: u8, via: Option<u32>, ifindex: u32| {
        let prefix = Prefix::new(Addr::v4(addr), len).expect("a prefix");
        (prefix, Route::single(RouteKind::Unicast, via.map(Addr::v4), ifindex))
    };
    [route(CLIENTS, 9, Some(GATEWAY), 1), route(SERVERS, 24, None, 2)]
}

pub fn neighbours_of_traffic() -> Vec<(u32, Addr, [u8; 6])> {
    let server = |i: u32| (2, Addr::v4(SERVERS + i), [2, 0, 0, 0, 8, i as u8]);
    let gateway = (1, Addr::v4(GATEWAY), [2, 0, 0, 0, 9, 1]);
    (0..BACKENDS).map(server).chain([gateway]).collect()
}

/// Ten classes a port, all with more than enough.
fn qos(port: u16) -> PortQosSpec {
    let class = |id: u16| ClassSpec {
        id: ClassId(id),
        name: format!("c{id}"),
        parent: None,
        rate: BitRate(RATE.0 / 10),
        ceil: RATE,
        burst: 1 << 20,
        cburst: 1 << 20,
        priority: (id % 4) as u8,
        weight: 1,
        quantum: None,
        overhead: None,
        mpu: None,
        flow_rate: None,
        limit: 4 << 20,
        queue: Default::default(),
    };
    PortQosSpec {
        port: PortId(port),
        rate: RATE,
        burst: 1 << 20,
        overhead: 24,
        mpu: 84,
        mtu: 1_514,
        default_class: ClassId(9),
        classes: (0..10).map(class).collect(),
    }
}

/// Rules that look at everything and match by the last: the dearest case.
fn rules() -> Vec<RuleSpec> {
    let client = |i: u8| RuleSpec {
        name: format!("r{i}"),
        client: vec![Prefix::new(Addr::v4(CLIENTS + (u32::from(i) << 16)), 16).expect("prefix")],
        class: ClassId(u16::from(i % 9)),
        ..RuleSpec::default()
    };
    (0..32).map(client).collect()
}

pub fn inspect() -> StageSpec {
    StageSpec::Inspect {
        hello_bytes_max: 16_384,
        flows_max: 4_096,
        http_flows_max: 1_024,
        headers: Vec::new(),
    }
}

pub fn timing() -> StageSpec {
    StageSpec::Timing { flows_max: 65_536, one_in: 1 }
}

fn workers(count: u16, flows: u32) -> WorkersSpec {
    WorkersSpec {
        count,
        count_max: count,
        cores: vec![],
        idle: IdleStrategy::Busy,
        on_failure: OnFailure::Pass,
        heartbeat_limit: Duration::from_millis(100),
        offload: false,
        frames: FRAMES,
        frame_size: 2_048,
        huge_pages: false,
        flows_max: flows,
        half_open_max: 2 * OPEN_AT_ONCE,
        drain_limit: Duration::from_secs(1),
    }
}

fn port_spec(id: u16) -> PortSpec {
    PortSpec::in_memory(PortId(id), format!("p{id}"))
}

/// Whether packets are addressed to a service in this pipeline.
fn is_balanced(stages: &[StageSpec]) -> bool {
    !stages.iter().any(|stage| matches!(stage, StageSpec::Route | StageSpec::Tap))
}

/// A worker, its traffic, and its clock.
pub struct Rig<P> {
    worker: Worker<P>,
    link: WorkerLink,
    traffic: Shared,
    clock: Clock,
}

/// A worker whose pipeline is `stages`, with `flows` flows open.
pub fn rig(stages: &[StageSpec], flows: u32, flows_max: u32) -> Rig<impl Port + use<>> {
    rig_beside(stages, flows, flows_max, Others::new(1))
}

/// Workers that shape the same ports.
#[derive(Clone)]
pub struct Others {
    /// How many there are in all.
    pub workers: u16,
    pub shared: SharedPorts,
    /// One for all, as in a process: a tree goes by the latest time that it was told.
    pub clock: Clock,
}

impl Others {
    pub fn new(workers: u16) -> Others {
        Others { workers, shared: SharedPorts::default(), clock: Clock::new() }
    }
}

/// As [`rig`], one of several workers. Each gets packets of flows of its own only.
pub fn rig_beside(
    stages: &[StageSpec],
    flows: u32,
    flows_max: u32,
    others: Others,
) -> Rig<impl Port + use<>> {
    let traffic = Rc::new(RefCell::new(Traffic::new(flows, is_balanced(stages))));
    let snapshot = Snapshot {
        forward: Arc::new(Tables::build(&forward(), 1, SEED)),
        routes: Arc::new(routes()),
        rules: Arc::new(Rules::compile(&rules())),
        seed: SEED,
        worker_count: 1,
        meters: Default::default(),
        limits: Default::default(),
        shared_ports: others.shared,
    };
    let pipeline = PipelineSpec { name: "bench".into(), stages: stages.to_vec() };
    let (workers, ports) =
        (workers(others.workers, flows_max.max(flows)), [port_spec(0), port_spec(1)]);
    let qos = [qos(0), qos(1)];
    let blueprint = Blueprint {
        workers: &workers,
        ports: &ports,
        pipeline: &pipeline,
        qos: &qos,
        snapshot: &snapshot,
    };
    let (control, link) = control_link(None);
    let worker = blueprint.worker(Own {
        id: 0,
        ports: vec![port(&traffic, 0), port(&traffic, 1)],
        pool: FramePool::standalone(FRAMES, 2_048),
        handover: Handover::mesh(1, 1).remove(0),
        control,
        stats: Arc::new(SharedStats::new(2)),
    });
    let mut rig = Rig { worker, link, traffic, clock: others.clock };
    if stages.contains(&StageSpec::Tap) {
        rig.traffic.borrow_mut().overhear();
    } else {
        rig.open(flows);
    }
    rig.traffic.borrow_mut().set(Mode::Data, 0);
    rig
}

impl<P: Port> Rig<P> {
    /// Opens all flows, with a handshake each.
    fn open(&mut self, flows: u32) {
        for first in (0..flows).step_by(OPEN_AT_ONCE as usize) {
            let end = (first + OPEN_AT_ONCE).min(flows);
            for mode in [Mode::Open(end), Mode::Accept(end), Mode::Confirm(end)] {
                self.traffic.borrow_mut().set(mode, first);
                // What waits for its turn at a tree is no end of the work.
                while self.worker.poll(self.clock.now()) > 0 || self.worker.held() > 0 {}
            }
        }
        let seen = self.traffic.borrow().seen;
        let counters = self.worker.counters();
        assert_eq!(seen, u64::from(flows), "flows were not opened: {counters:?}");
        assert_eq!(counters.drops_total(), 0, "{counters:?}");
    }

    /// Nanoseconds a packet, over `packets` packets at least; also their number.
    pub fn measure(&mut self, packets: u64) -> f64 {
        let start = self.clock.now();
        let done = self.run(packets);
        self.clock.now().since(start) as f64 / done as f64
    }

    /// Moves `packets` packets at least. Returns how many.
    pub fn run(&mut self, packets: u64) -> u64 {
        let before = self.worker.counters().rx_packets;
        while self.worker.counters().rx_packets - before < packets {
            let now = self.clock.now();
            self.worker.poll(now);
        }
        self.worker.counters().rx_packets - before
    }

    /// Packets dropped so far.
    pub fn dropped(&self) -> u64 {
        self.worker.counters().drops_total()
    }

    /// The longest turns of the worker's loop over so many packets, longest first, in nanoseconds.
    /// Each of `routes` takes its turn to replace what the worker has, every `every` packets.
    pub fn turns(&mut self, packets: u64, routes: &[Arc<Routes>], every: u64) -> (Vec<u64>, u64) {
        let begin = self.worker.counters().rx_packets;
        let (mut turns, mut next, mut swaps) = (Vec::new(), begin + every, 0);
        loop {
            let done = self.worker.counters().rx_packets;
            if done - begin >= packets {
                break;
            }
            if done >= next && !routes.is_empty() {
                let fresh = Arc::clone(&routes[swaps as usize % routes.len()]);
                assert!(self.link.send(WorkerCommand::Routes(fresh)).is_ok(), "room");
                (next, swaps) = (done + every, swaps + 1);
            }
            let start = self.clock.now();
            self.worker.poll(start);
            turns.push(self.clock.now().since(start));
            while let Some(event) = self.link.recv() {
                assert!(!matches!(event, WorkerEvent::Old(_)), "only routes go out");
            }
        }
        turns.sort_unstable_by_key(|ns| std::cmp::Reverse(*ns));
        (turns, swaps)
    }

    /// Ends, whatever was lost: who gets no core for a while may find its queues full.
    pub fn close(mut self) {
        self.worker.close();
        assert_eq!(self.worker.frames_outstanding(), 0);
    }

    /// Checks that what was measured is what should have happened, and ends.
    pub fn finish(mut self, transmits: bool) {
        self.worker.close();
        let counters = self.worker.counters();
        let expected = if transmits { counters.rx_packets } else { 0 };
        let shutdown = tidegate::packet::DropReason::Shutdown as usize;
        let sent = counters.tx_packets + counters.drops[shutdown];
        assert_eq!(sent, expected, "{counters:?}");
        assert_eq!(self.worker.frames_outstanding(), 0);
    }
}
