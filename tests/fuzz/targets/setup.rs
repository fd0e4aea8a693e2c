//! How the box of the `pipeline` target is configured: services in every mode, routes of every
//! kind, rules and classes.

use std::sync::{Arc, LazyLock};
use std::time::Duration;

use tidegate::base::units::BitRate;
use tidegate::base::{Addr, Seed};
use tidegate::forward::spec::{
    BackendId, BackendSpec, ForwardMode, ForwardSpec, NatSpec, PoolId, PoolSpec, ServiceId,
    ServiceSpec,
};
use tidegate::forward::{PortLink, RouteKind, RouteSpec, RoutesBuilder, Tables};
use tidegate::graph::Snapshot;
use tidegate::graph::spec::{PipelineSpec, StageSpec};
use tidegate::nic::spec::PortSpec;
use tidegate::packet::{ClassId, PortId, tcp, udp};
use tidegate::policy::spec::{NamePattern, RuleSpec};
use tidegate::qos::spec::{ClassSpec, PortQosSpec};
use tidegate::worker::Blueprint;
use tidegate::worker::spec::{IdleStrategy, OnFailure, WorkersSpec};

use super::splice::services::{add_services, rules as splice_rules};

pub const SEED: Seed = Seed(7);
pub const CLIENT_MTU: u16 = 1_500;
pub const BACKEND_MTU: u16 = 1_400;
/// MAC addresses of the box, by port.
pub const OWN_MAC: [[u8; 6]; 2] = [[2, 0, 0, 0, 0, 0x10], [2, 0, 0, 0, 0, 0x11]];
/// What the kernel would find out, by port.
pub const NEIGHBOUR_MAC: [[u8; 6]; 2] = [[2, 0, 0, 0, 0, 0x20], [2, 0, 0, 0, 0, 0x21]];
pub const NAT_PORTS: std::ops::RangeInclusive<u16> = 20_000..=20_099;

/// Ports of the services at each VIP, TCP and UDP alike.
pub const MODES: [(u16, ForwardMode); 6] = [
    (80, ForwardMode::Nat),
    (81, ForwardMode::Dnat),
    (82, ForwardMode::Dsr),
    (83, ForwardMode::Ipip),
    (84, ForwardMode::Gue),
    (443, ForwardMode::Nat),
];
/// Services that wait for what clients say, of [`super::splice`].
pub const DELAYED: usize = 3;
/// A service whose backend is no neighbour yet.
pub const UNRESOLVED_PORT: u16 = 90;
/// A service whose pool has no weight.
pub const DRAINED_PORT: u16 = 91;
/// A service whose backend no route leads to.
pub const LOST_PORT: u16 = 92;
pub const BACKEND_TCP_PORT: u16 = 8_443;

/// Few enough for scripts of a hundred packets to fill.
pub const FLOWS_MAX: u32 = 48;
const HALF_OPEN_MAX: u32 = 16;
const INSPECTED_MAX: u32 = 6;
const TIMED_MAX: u32 = 8;
const HELLO_BYTES_MAX: u32 = 2_048;
/// Few enough to run out: queues hold a little more than half of them.
pub const FRAMES: u32 = 384;
pub const FRAME_SIZE: u32 = 2_048;

/// The addresses of one family.
pub struct Family {
    pub clients: [&'static str; 3],
    pub vip: &'static str,
    pub nat: &'static str,
    pub backends: [&'static str; 2],
    pub unresolved: &'static str,
    pub own: [&'static str; 2],
    /// Behind the gateway of port 1.
    pub beyond: &'static str,
    pub gateway: &'static str,
    /// No route leads there.
    pub lost: &'static str,
    pub blackhole: &'static str,
    /// Its route leaves by an interface that is no port.
    pub elsewhere: &'static str,
    /// Prefixes: clients, backends, beyond, blackhole, elsewhere.
    prefixes: [&'static str; 5],
}

impl Family {
    pub fn is_v4(&self) -> bool {
        addr(self.vip).is_v4()
    }
}

pub const V4: Family = Family {
    clients: ["198.51.100.7", "198.51.100.8", "198.51.100.9"],
    vip: "192.0.2.1",
    nat: "10.1.0.9",
    backends: ["10.1.0.7", "10.1.0.8"],
    unresolved: "10.1.0.77",
    own: ["198.51.100.1", "10.1.0.1"],
    beyond: "10.2.3.4",
    gateway: "10.1.0.254",
    lost: "192.0.2.200",
    blackhole: "203.0.113.7",
    elsewhere: "203.0.113.200",
    prefixes: [
        "198.51.100.0/24",
        "10.1.0.0/24",
        "10.2.0.0/16",
        "203.0.113.0/25",
        "203.0.113.128/25",
    ],
};

pub const V6: Family = Family {
    clients: ["2001:db8:c::7", "2001:db8:c::8", "2001:db8:c::9"],
    vip: "2001:db8::1",
    nat: "2001:db8:b::9",
    backends: ["2001:db8:b::7", "2001:db8:b::8"],
    unresolved: "2001:db8:b::77",
    own: ["2001:db8:c::1", "2001:db8:b::1"],
    beyond: "2001:db8:d::4",
    gateway: "2001:db8:b::fe",
    lost: "2001:db8:ffff::1",
    blackhole: "2001:db8:bad::7",
    elsewhere: "2001:db8:e::7",
    prefixes: [
        "2001:db8:c::/64",
        "2001:db8:b::/64",
        "2001:db8:d::/48",
        "2001:db8:bad::/48",
        "2001:db8:e::/48",
    ],
};

pub fn addr(text: &str) -> Addr {
    text.parse().expect(text)
}

/// Which of the configurations a box has; they can be changed under way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Variant {
    /// 0: all backends; 1: the first one drained; 2: no services at all; [`DELAYED`].
    pub services: usize,
    /// Ports are shaped, and the pipeline inspects and classifies.
    pub whole: bool,
    /// The pipeline ends with [`StageSpec::Route`].
    pub route: bool,
    pub verify_checksums: bool,
}

impl Variant {
    /// `llm-edge` with a router behind it.
    pub const WHOLE: Variant =
        Variant { services: 0, whole: true, route: true, verify_checksums: true };

    fn pipeline(self) -> PipelineSpec {
        let inspect = StageSpec::Inspect {
            hello_bytes_max: HELLO_BYTES_MAX,
            flows_max: INSPECTED_MAX,
            http_flows_max: INSPECTED_MAX,
            headers: Vec::new(),
        };
        let mut stages = vec![StageSpec::Balance];
        if self.whole {
            let timing = StageSpec::Timing { flows_max: TIMED_MAX, one_in: 1 };
            stages = vec![inspect, StageSpec::Classify, timing, StageSpec::Balance];
        }
        if self.route {
            stages.push(StageSpec::Route);
        }
        if self.whole {
            stages.push(StageSpec::Shape);
        }
        PipelineSpec { name: "fuzzed".into(), stages }
    }
}

/// What a [`Blueprint`] borrows.
pub struct Parts {
    workers: WorkersSpec,
    ports: [PortSpec; 2],
    pipeline: PipelineSpec,
    qos: [PortQosSpec; 2],
}

impl Parts {
    pub fn new(variant: Variant, workers: u16) -> Parts {
        let workers = WorkersSpec {
            count: workers,
            count_max: workers,
            cores: Vec::new(),
            idle: IdleStrategy::Busy,
            on_failure: OnFailure::Pass,
            offload: false,
            heartbeat_limit: Duration::from_millis(100),
            frames: FRAMES,
            frame_size: FRAME_SIZE,
            huge_pages: false,
            flows_max: FLOWS_MAX,
            half_open_max: HALF_OPEN_MAX,
            drain_limit: Duration::from_secs(1),
        };
        let port = |id: u16| PortSpec {
            verify_checksums: variant.verify_checksums,
            ..PortSpec::in_memory(PortId(id), format!("p{id}"))
        };
        let qos = [qos(0, variant.services), qos(1, variant.services)];
        Parts { workers, ports: [port(0), port(1)], pipeline: variant.pipeline(), qos }
    }

    pub fn blueprint<'a>(&'a self, snapshot: &'a Snapshot) -> Blueprint<'a> {
        Blueprint {
            workers: &self.workers,
            ports: &self.ports,
            pipeline: &self.pipeline,
            qos: &self.qos,
            snapshot,
        }
    }
}

/// By variant and number of workers: Maglev tables are dear to build.
pub fn tables(services: usize, workers: u16) -> Arc<Tables> {
    static TABLES: LazyLock<Vec<Arc<Tables>>> = LazyLock::new(|| {
        let build = |i: usize| Tables::build(&forward(i / 2), 1 + (i % 2) as u16, SEED);
        (0..8).map(|i| Arc::new(build(i))).collect()
    });
    Arc::clone(&TABLES[(services % 4) * 2 + usize::from(workers > 1)])
}

fn forward(variant: usize) -> ForwardSpec {
    let mut spec = ForwardSpec {
        nat: Some(NatSpec {
            addresses: vec![addr(V4.nat), addr(V6.nat)],
            port_first: *NAT_PORTS.start(),
            port_last: *NAT_PORTS.end(),
            check_ports: 0,
        }),
        ..ForwardSpec::default()
    };
    if variant == 2 {
        return spec;
    }
    if variant == DELAYED {
        add_services(&mut spec);
        return spec;
    }
    for family in [&V4, &V6] {
        let [one, two] = family.backends;
        let weight = u16::from(variant == 0);
        let first = spec.pools.len() as u16;
        add_pool(&mut spec, &[(one, weight), (two, 1)]);
        add_pool(&mut spec, &[(family.unresolved, 1)]);
        add_pool(&mut spec, &[(one, 0)]);
        add_pool(&mut spec, &[(family.lost, 1)]);
        for proto in [tcp::PROTOCOL, udp::PROTOCOL] {
            let mut add = |port, mode, pool| {
                spec.services.push(ServiceSpec {
                    id: ServiceId(spec.services.len() as u16),
                    name: format!("s{}", spec.services.len()),
                    vip: addr(family.vip),
                    port,
                    proto,
                    pool: PoolId(pool),
                    mode,
                    canary_share: 10_000,
                    idle_established: Duration::from_secs(600),
                    mss_clamp: Default::default(),
                    delay: None,
                    rule_pools: Vec::new(),
                    shadow: None,
                });
            };
            MODES.iter().for_each(|(port, mode)| add(*port, *mode, first));
            add(UNRESOLVED_PORT, ForwardMode::Nat, first + 1);
            add(DRAINED_PORT, ForwardMode::Nat, first + 2);
            add(LOST_PORT, ForwardMode::Dnat, first + 3);
        }
    }
    spec
}

pub fn add_pool(spec: &mut ForwardSpec, backends: &[(&str, u16)]) {
    let known = spec.pools.iter().map(|p| p.backends.len()).sum::<usize>();
    let backend = |(i, (at, weight)): (usize, &(&str, u16))| BackendSpec {
        id: BackendId((known + i) as u16),
        name: format!("b{}", known + i),
        addr: addr(at),
        port: BACKEND_TCP_PORT,
        weight: *weight,
        ..BackendSpec::default()
    };
    let id = PoolId(spec.pools.len() as u16);
    let backends = backends.iter().enumerate().map(backend).collect();
    let name = format!("pool {}", id.0);
    spec.pools.push(PoolSpec { id, name, backends, ..PoolSpec::default() });
}

pub fn routes() -> RoutesBuilder {
    let link = |id: usize, mtu| PortLink {
        id: PortId(id as u16),
        ifindex: id as u32 + 1,
        name: format!("p{id}"),
        mac: OWN_MAC[id],
        mtu,
        addrs: vec![addr(V4.own[id]), addr(V6.own[id])],
    };
    let mut builder = RoutesBuilder::new(vec![link(0, CLIENT_MTU), link(1, BACKEND_MTU)], SEED);
    for family in [&V4, &V6] {
        for i in 0..ROUTES {
            builder.add_route(route(family, i));
        }
        for known in 0..NEIGHBOURS {
            let (ifindex, addr, mac) = neighbour(family, known);
            builder.set_neighbour(ifindex, addr, mac);
        }
    }
    builder
}

/// Routes of one family.
pub const ROUTES: usize = 5;

/// One of [`ROUTES`].
pub fn route(family: &Family, index: usize) -> RouteSpec {
    let (kind, ifindex, via) = [
        (RouteKind::Unicast, 1, None),
        (RouteKind::Unicast, 2, None),
        (RouteKind::Unicast, 2, Some(addr(family.gateway))),
        (RouteKind::Blackhole, 0, None),
        (RouteKind::Unicast, 99, None),
    ][index % ROUTES];
    let prefix = family.prefixes[index % ROUTES].parse().expect("a prefix");
    RouteSpec { prefix, via, ifindex, kind }
}

/// Neighbours of one family that are known at the start; one more is not.
pub const NEIGHBOURS: usize = 6;

/// One of [`NEIGHBOURS`], or the one that is not known.
pub fn neighbour(family: &Family, index: usize) -> (u32, Addr, [u8; 6]) {
    let [a, b, c] = family.clients;
    let [d, e] = family.backends;
    let at = [a, b, c, d, e, family.gateway, family.unresolved][index % (NEIGHBOURS + 1)];
    let port = usize::from(index % (NEIGHBOURS + 1) > 2);
    (port as u32 + 1, addr(at), NEIGHBOUR_MAC[port])
}

pub fn rules(services: usize) -> Vec<RuleSpec> {
    if services == DELAYED {
        return splice_rules();
    }
    vec![
        RuleSpec {
            name: "named".into(),
            sni: vec![
                NamePattern::Exact("api.example.com".into()),
                NamePattern::Suffix("chat.example.com".into()),
            ],
            class: ClassId(0),
            ..RuleSpec::default()
        },
        RuleSpec {
            name: "web".into(),
            alpn: vec!["h2".into()],
            class: ClassId(2),
            ..RuleSpec::default()
        },
        RuleSpec {
            name: "marked".into(),
            dscp: vec![46, 10],
            class: ClassId(1),
            ..RuleSpec::default()
        },
        RuleSpec {
            name: "ported".into(),
            port: vec![81],
            class: ClassId(3),
            ..RuleSpec::default()
        },
    ]
}

/// Slow enough for queues to build up; `variant` changes rates and adds a class.
fn qos(port: u16, variant: usize) -> PortQosSpec {
    let rate = BitRate(20_000_000);
    let class = |id: u16, parent: Option<u16>, part: u64| ClassSpec {
        id: ClassId(id),
        name: format!("c{id}"),
        parent: parent.map(ClassId),
        rate: BitRate(rate.0 / part),
        ceil: if id == 2 { BitRate(rate.0 / 2) } else { rate },
        burst: 3_000,
        cburst: 3_000,
        priority: (id % 3) as u8,
        weight: 1 + u32::from(id),
        quantum: None,
        overhead: None,
        mpu: None,
        flow_rate: None,
        limit: 40_000,
        queue: Default::default(),
    };
    let mut classes =
        vec![class(4, None, 2), class(0, Some(4), 4), class(1, Some(4), 8), class(2, None, 8)];
    if variant == 1 {
        classes.push(class(3, None, 10));
    }
    PortQosSpec {
        port: PortId(port),
        rate,
        burst: 3_000,
        overhead: 24,
        mpu: 84,
        mtu: 1_514,
        default_class: ClassId(2),
        classes,
    }
}
