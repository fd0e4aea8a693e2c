//! A bench for stages that forward: a table of flows, routes, services, and the way in and out of a
//! batch. Ends by counting frames.

use std::sync::Arc;
use std::time::Duration;

use super::inspect::InspectLimits;
use crate::base::{Addr, Nanos, Seed};
use crate::flow::{FlowLimits, FlowTable, Names, Timeouts};
use crate::forward::spec::{
    BackendId, BackendSpec, ForwardMode, ForwardSpec, NatSpec, PoolId, PoolSpec, ServiceId,
    ServiceSpec,
};
use crate::forward::{IcmpLimiter, PortLink, RouteKind, RouteSpec, RoutesBuilder, Tables, Turns};
use crate::graph::{Copies, Cx, Snapshot, Stage};
use crate::observe::{Counters, Latencies};
use crate::packet::build::{ChecksumFill, LinkSpec, TcpSpec, UdpSpec, tcp_packet, udp_packet};
use crate::packet::{
    Batch, FramePool, Packet, PacketMeta, ParseOptions, PortId, Verdict, parse, tcp,
};
use crate::policy::Rules;
use crate::qos::delays::Delays;

pub(super) const CLIENT_PORT: PortId = PortId(0);
pub(super) const BACKEND_PORT: PortId = PortId(1);
/// Nothing is routed there.
pub(super) const MONITOR_PORT: PortId = PortId(2);
/// Ours.
pub(super) const CLIENT_SIDE: [u8; 6] = [2, 0, 0, 0, 0, 1];
pub(super) const BACKEND_SIDE: [u8; 6] = [2, 0, 0, 0, 0, 0x11];
/// Theirs.
pub(super) const CLIENT_MAC: [u8; 6] = [2, 0, 0, 0, 0, 0x20];
pub(super) const BACKEND_MAC: [u8; 6] = [2, 0, 0, 0, 0, 0x21];
pub(super) const BACKEND_MTU: u16 = 1400;
pub(super) const NAT_PORTS: std::ops::RangeInclusive<u16> = 20_000..=20_999;

pub(super) type Endpoint = (&'static str, u16);

/// The addresses of one family.
pub(super) struct Family {
    pub client: Endpoint,
    /// Ports 80 (nat), 81 (dnat) and 82 (dsr), TCP and UDP each.
    pub vip: &'static str,
    pub nat: &'static str,
    pub backend: Endpoint,
    /// Behind a route that has no neighbour yet.
    pub unresolved: Endpoint,
    pub own: &'static str,
}

pub(super) const V4: Family = Family {
    client: ("198.51.100.7", 40_000),
    vip: "192.0.2.1",
    nat: "10.1.0.9",
    backend: ("10.1.0.7", 8443),
    unresolved: ("10.1.0.8", 8443),
    own: "198.51.100.1",
};

pub(super) const V6: Family = Family {
    client: ("2001:db8:c::7", 40_000),
    vip: "2001:db8::1",
    nat: "2001:db8:b::9",
    backend: ("2001:db8:b::7", 8443),
    unresolved: ("2001:db8:b::8", 8443),
    own: "2001:db8:c::1",
};

pub(super) fn addr(s: &str) -> Addr {
    s.parse().expect(s)
}

/// Service ports by mode.
pub(super) const MODES: [(ForwardMode, u16); 3] =
    [(ForwardMode::Nat, 80), (ForwardMode::Dnat, 81), (ForwardMode::Dsr, 82)];
/// Service ports of tunnels, to a backend of the other family where so marked.
pub(super) const TUNNELS: [(ForwardMode, u16, bool); 4] = [
    (ForwardMode::Ipip, 83, false),
    (ForwardMode::Gue, 84, false),
    (ForwardMode::Ipip, 85, true),
    (ForwardMode::Gue, 86, true),
];
/// TCP and UDP to a pool whose only backend is [`Family::unresolved`], full NAT.
pub(super) const UNRESOLVED_PORT: u16 = 90;
/// TCP and UDP to a pool without a weight.
pub(super) const DRAINED_PORT: u16 = 91;

pub(super) fn inspect_limits(hello_bytes_max: u32, flows_max: u32) -> InspectLimits {
    InspectLimits { hello_bytes_max, flows_max, http_flows_max: flows_max, headers: Vec::new() }
}

pub(super) struct Rig {
    pub now: Nanos,
    pub worker: u16,
    pub pool: FramePool,
    pub flows: FlowTable,
    pub routes: RoutesBuilder,
    pub snapshot: Snapshot,
    pub counters: Counters,
    pub latencies: Latencies,
    pub names: Names,
    replies: Vec<Packet>,
    pub copies: Copies,
    icmp_limit: IcmpLimiter,
    turns: Turns,
    pub delays: Delays,
}

/// What became of a packet.
#[derive(Debug)]
pub(super) struct Outcome {
    pub verdict: Verdict,
    pub bytes: Vec<u8>,
    pub meta: PacketMeta,
}

impl Rig {
    pub fn new(limits: FlowLimits) -> Rig {
        let seed = Seed(7);
        let mut routes = routes(seed);
        Rig {
            now: Nanos::from_secs(1),
            worker: 0,
            pool: FramePool::standalone(256, 2048),
            flows: FlowTable::new(limits, Timeouts::default(), seed),
            snapshot: Snapshot {
                forward: Arc::new(Tables::build(&services(), 2, seed)),
                routes: Arc::new(routes.build(1)),
                rules: Arc::new(Rules::compile(&[])),
                seed,
                worker_count: 2,
                meters: Default::default(),
                limits: Default::default(),
                shared_ports: Default::default(),
            },
            routes,
            counters: Counters::default(),
            latencies: Latencies::new(),
            names: Names::new(16, seed),
            replies: Vec::with_capacity(64),
            copies: Copies::default(),
            icmp_limit: IcmpLimiter::new(),
            turns: Turns::new(0, 1),
            delays: Delays::default(),
        }
    }

    /// Rebuilds the snapshot's routes after a change.
    pub fn publish(&mut self) {
        let generation = self.snapshot.routes.generation() + 1;
        self.snapshot.routes = Arc::new(self.routes.build(generation));
    }

    /// Runs packets as one batch; `prepare` may change what was parsed.
    pub fn run_with(
        &mut self,
        stage: &mut impl Stage,
        packets: &[Vec<u8>],
        prepare: impl Fn(&mut PacketMeta),
    ) -> (Vec<Outcome>, Vec<Outcome>) {
        let arena = self.pool.arena().clone();
        let before = self.pool.outstanding() - self.copies.packets.len() as isize;
        let mut batch = Batch::new();
        for bytes in packets {
            let frame = self.pool.take_with(bytes).expect("stock");
            let in_port = if bytes.starts_with(&BACKEND_SIDE) { BACKEND_PORT } else { CLIENT_PORT };
            let mut meta = PacketMeta { in_port, ..PacketMeta::default() };
            let options = ParseOptions { verify_transport_checksum: true };
            parse(frame.bytes(&arena), self.snapshot.seed, options, &mut meta).expect("good");
            prepare(&mut meta);
            batch.push(Packet { frame, meta });
        }
        self.flows.lookup_batch(&mut batch);
        let mut cx = Cx {
            now: self.now,
            worker: self.worker,
            arena: &arena,
            pool: &mut self.pool,
            flows: &mut self.flows,
            names: &mut self.names,
            snapshot: &self.snapshot,
            counters: &mut self.counters,
            latencies: &self.latencies,
            replies: &mut self.replies,
            copies: &mut self.copies,
            icmp_limit: &mut self.icmp_limit,
            turns: &mut self.turns,
            delays: &mut self.delays,
        };
        stage.process(&mut cx, &mut batch);
        let mut collect = |Packet { frame, meta }: Packet| {
            let bytes = frame.bytes(&arena).to_vec();
            self.pool.put(frame);
            Outcome { verdict: meta.verdict, bytes, meta }
        };
        let out = batch.drain().map(&mut collect).collect();
        let replies = self.replies.drain(..).map(&mut collect).collect();
        let copies = self.copies.packets.len() as isize;
        assert_eq!(self.pool.outstanding(), before + copies, "a frame was kept");
        (out, replies)
    }

    /// The copies made since, as they leave; their frames go back.
    pub fn copied(&mut self) -> Vec<Outcome> {
        let arena = self.pool.arena().clone();
        let pool = &mut self.pool;
        let collect = |Packet { frame, meta }: Packet| {
            let bytes = frame.bytes(&arena).to_vec();
            pool.put(frame);
            Outcome { verdict: meta.verdict, bytes, meta }
        };
        self.copies.packets.drain(..).map(collect).collect()
    }

    /// Runs one packet that is not answered.
    pub fn run(&mut self, stage: &mut impl Stage, packet: Vec<u8>) -> Outcome {
        let (mut out, replies) = self.run_with(stage, &[packet], |_| {});
        assert!(replies.is_empty(), "answered");
        out.pop().expect("one packet")
    }

    /// Runs a UDP datagram of a client with this TOS byte or traffic class.
    pub fn run_tos(&mut self, stage: &mut impl Stage, family: &Family, tos: u8) -> Outcome {
        let end = |(host, port): Endpoint| (addr(host), port);
        let mut spec = UdpSpec::new(end(family.client), (addr(family.vip), 80), b"payload");
        spec.ip.tos = tos;
        spec.link.destination = CLIENT_SIDE;
        self.run(stage, udp_packet(&spec))
    }

    /// Runs one packet that may be answered.
    pub fn run_answered(
        &mut self,
        stage: &mut impl Stage,
        packet: Vec<u8>,
    ) -> (Outcome, Option<Outcome>) {
        let (mut out, mut replies) = self.run_with(stage, &[packet], |_| {});
        (out.pop().expect("one packet"), replies.pop())
    }
}

/// A packet as described, between two hosts and through two MAC addresses.
#[derive(Clone, Copy)]
pub(super) struct Shape {
    pub proto: u8,
    pub flags: u8,
    pub ttl: u8,
    pub payload: usize,
    /// Destination and source.
    pub macs: ([u8; 6], [u8; 6]),
    pub sum: ChecksumFill,
}

impl Shape {
    pub fn tcp(flags: u8) -> Shape {
        let macs = (CLIENT_SIDE, CLIENT_MAC);
        let sum = ChecksumFill::Full;
        Shape { proto: tcp::PROTOCOL, flags, ttl: 64, payload: 6, macs, sum }
    }

    pub fn syn() -> Shape {
        Shape::tcp(tcp::flag::SYN)
    }

    pub fn udp() -> Shape {
        Shape { proto: crate::packet::udp::PROTOCOL, ..Shape::tcp(0) }
    }

    /// As it leaves: a hop less, and between other MAC addresses.
    pub fn after(self, destination: [u8; 6], source: [u8; 6]) -> Shape {
        Shape { ttl: self.ttl - 1, macs: (destination, source), ..self }
    }

    pub fn at_backend(self) -> Shape {
        Shape { macs: (BACKEND_SIDE, BACKEND_MAC), ..self }
    }

    pub fn between(&self, src: Endpoint, dst: Endpoint) -> Vec<u8> {
        let (src, dst) = ((addr(src.0), src.1), (addr(dst.0), dst.1));
        let (destination, source) = self.macs;
        let link = LinkSpec { destination, source, ..LinkSpec::default() };
        let payload = vec![b'x'; self.payload];
        if self.proto == tcp::PROTOCOL {
            let mut spec = TcpSpec::new(src, dst, self.flags, &payload);
            (spec.link, spec.ip.ttl, spec.checksum) = (link, self.ttl, self.sum);
            tcp_packet(&spec)
        } else {
            let mut spec = UdpSpec::new(src, dst, &payload);
            (spec.link, spec.ip.ttl, spec.checksum) = (link, self.ttl, self.sum);
            udp_packet(&spec)
        }
    }
}

const POOLS_EACH: u16 = 3;

/// The services of both families.
pub(super) fn services() -> ForwardSpec {
    let mut spec = ForwardSpec {
        nat: Some(NatSpec {
            addresses: vec![addr(V4.nat), addr(V6.nat)],
            port_first: *NAT_PORTS.start(),
            port_last: *NAT_PORTS.end(),
            check_ports: 0,
        }),
        ..ForwardSpec::default()
    };
    for family in [&V4, &V6] {
        for (backend, weight) in [(family.backend, 1), (family.unresolved, 1), (family.backend, 0)]
        {
            let id = spec.pools.len() as u16;
            let backend = BackendSpec {
                id: BackendId(id),
                name: format!("backend {id}"),
                addr: addr(backend.0),
                port: backend.1,
                weight,
                ..BackendSpec::default()
            };
            spec.pools.push(PoolSpec {
                id: PoolId(id),
                name: format!("pool {id}"),
                backends: vec![backend],
                ..PoolSpec::default()
            });
        }
        let pool = spec.pools.len() as u16 - POOLS_EACH;
        for proto in [tcp::PROTOCOL, crate::packet::udp::PROTOCOL] {
            for (mode, port) in MODES {
                add_service(&mut spec, family.vip, port, proto, mode, pool);
            }
            for (mode, port, across) in TUNNELS {
                let of = if across { POOLS_EACH - pool } else { pool };
                add_service(&mut spec, family.vip, port, proto, mode, of);
            }
            let (vip, mode) = (family.vip, ForwardMode::Nat);
            add_service(&mut spec, vip, UNRESOLVED_PORT, proto, mode, pool + 1);
            add_service(&mut spec, vip, DRAINED_PORT, proto, mode, pool + 2);
        }
    }
    spec
}

fn add_service(
    spec: &mut ForwardSpec,
    vip: &str,
    port: u16,
    proto: u8,
    mode: ForwardMode,
    pool: u16,
) {
    let id = spec.services.len() as u16;
    spec.services.push(ServiceSpec {
        id: ServiceId(id),
        name: format!("service {id}"),
        vip: addr(vip),
        port,
        proto,
        pool: PoolId(pool),
        mode,
        canary_share: 10_000,
        idle_established: Duration::from_secs(7440),
        mss_clamp: Default::default(),
        delay: None,
        rule_pools: Vec::new(),
        shadow: None,
    });
}

fn routes(seed: Seed) -> RoutesBuilder {
    let link = |id: PortId, mac, mtu, addrs: [&str; 2]| PortLink {
        id,
        ifindex: 10 + u32::from(id.0),
        name: format!("veth{}", id.0),
        mac,
        mtu,
        addrs: addrs.map(addr).to_vec(),
    };
    let ports = vec![
        link(CLIENT_PORT, CLIENT_SIDE, 1500, [V4.own, V6.own]),
        link(BACKEND_PORT, BACKEND_SIDE, BACKEND_MTU, ["10.1.0.1", "2001:db8:b::1"]),
        link(MONITOR_PORT, [2, 0, 0, 0, 0, 0x30], BACKEND_MTU, ["10.3.0.1", "2001:db8:e::1"]),
    ];
    let mut routes = RoutesBuilder::new(ports, seed);
    for (prefix, ifindex) in [
        ("198.51.100.0/24", 10),
        ("2001:db8:c::/64", 10),
        ("10.1.0.0/24", 11),
        ("2001:db8:b::/64", 11),
    ] {
        let prefix = prefix.parse().expect(prefix);
        let kind = RouteKind::Unicast;
        routes.add_route(RouteSpec { prefix, via: None, ifindex, kind });
    }
    for family in [&V4, &V6] {
        routes.set_neighbour(10, addr(family.client.0), CLIENT_MAC);
        routes.set_neighbour(11, addr(family.backend.0), BACKEND_MAC);
    }
    routes
}
