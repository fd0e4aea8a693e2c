//! The network that all simulations happen in: clients on one side, three servers on the other.
//!
//! ```text
//! clients 10.0.1.x fd00:1::x ── port 0 [box] port 1 ── 10.0.2.11-13 fd00:2::11-13 servers
//! ```

use std::time::Duration;

use tidegate::base::hash::Rng;
use tidegate::base::{Addr, Nanos, Prefix, Seed};
use tidegate::forward::spec::{
    BackendId, BackendSpec, Balance, ForwardMode, ForwardSpec, NatSpec, PoolId, PoolSpec,
    ServiceId, ServiceSpec, SplitSpec,
};
use tidegate::forward::{PortLink, RouteKind, RouteSpec};
use tidegate::graph::spec::{PipelineSpec, StageSpec};
use tidegate::observe::Counters;
use tidegate::packet::{PortId, tcp, udp};
use tidegate::sim::{
    Appliance, Client, Endpoint, Gateway, LinkSpec, Machine, Net, Server, Setup, Source, Spread,
    mac_of,
};

pub const CLIENTS: PortId = PortId(0);
pub const SERVERS: PortId = PortId(1);
pub const TCP_PORT: u16 = 443;
pub const UDP_PORT: u16 = 53;
/// Where the servers listen.
pub const SERVER_PORTS: [u16; 2] = [8_443, 8_053];
/// Virtual time that any simulation may take.
pub const LIMIT: Duration = Duration::from_secs(300);

pub const MODES: [ForwardMode; 3] = [ForwardMode::Nat, ForwardMode::Dnat, ForwardMode::Dsr];

/// Which family a simulation is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    V4,
    V6,
}

impl Family {
    pub const BOTH: [Family; 2] = [Family::V4, Family::V6];

    fn pick(self, v4: &str, v6: &str) -> Addr {
        let text = if self == Family::V4 { v4 } else { v6 };
        text.parse().expect("an address")
    }

    pub fn vip(self) -> Addr {
        self.pick("192.0.2.10", "2001:db8::10")
    }

    fn nat(self) -> Addr {
        self.pick("192.0.2.20", "2001:db8::20")
    }

    pub fn client(self, i: usize) -> Addr {
        self.pick(&format!("10.0.1.{}", i + 2), &format!("fd00:1::{:x}", i + 2))
    }

    pub fn server(self, i: usize) -> Addr {
        self.pick(&format!("10.0.2.{}", i + 11), &format!("fd00:2::{:x}", i + 11))
    }
}

/// Runs `simulation` for many seeds; `TIDEGATE_SIM_SEED` picks one, as a failure tells.
pub fn for_seeds(count: u64, mut simulation: impl FnMut(Seed)) {
    struct Told(Seed);
    impl Drop for Told {
        fn drop(&mut self) {
            if std::thread::panicking() {
                eprintln!("to see it again: TIDEGATE_SIM_SEED={}", self.0.0);
            }
        }
    }
    let only = std::env::var("TIDEGATE_SIM_SEED").ok().and_then(|s| s.parse().ok());
    for seed in only.map_or(0..count, |seed| seed..seed + 1) {
        let told = Told(Seed(seed));
        simulation(told.0);
    }
}

pub fn stages(stages: &[StageSpec]) -> PipelineSpec {
    PipelineSpec { name: "simulated".into(), stages: stages.to_vec() }
}

pub fn inspect() -> StageSpec {
    StageSpec::Inspect {
        hello_bytes_max: 16_384,
        flows_max: 64,
        http_flows_max: 64,
        headers: Vec::new(),
    }
}

pub fn timing() -> StageSpec {
    StageSpec::Timing { flows_max: 64, one_in: 1 }
}

/// A box with a TCP and a UDP service before three servers, that balances and nothing else.
pub fn setup(seed: Seed, family: Family, mode: ForwardMode) -> Setup {
    Setup {
        seed,
        workers: 1,
        spread: Spread::Hash,
        pipeline: stages(&[StageSpec::Balance]),
        forward: forward(family, mode),
        rules: vec![],
        qos: vec![],
        metering: Default::default(),
        limits: Default::default(),
        ports: vec![link(CLIENTS, "1"), link(SERVERS, "2")],
        routes: ["1", "2"].iter().flat_map(|n| connected(n)).collect(),
        neighbours: neighbours(family),
        resolve_after: Duration::ZERO,
        frames: 2_048,
        flows_max: 4_096,
        half_open_max: 1_024,
    }
}

fn forward(family: Family, mode: ForwardMode) -> ForwardSpec {
    // With DSR the packet's addresses stay, so the servers listen where the clients call.
    let dsr = mode == ForwardMode::Dsr;
    let ports = if dsr { [TCP_PORT, UDP_PORT] } else { SERVER_PORTS };
    let service = |i: usize, port, proto| ServiceSpec {
        id: ServiceId(i as u16),
        name: format!("s{i}"),
        vip: family.vip(),
        port,
        proto,
        pool: PoolId(i as u16),
        mode,
        canary_share: 10_000,
        idle_established: Duration::from_secs(7_440),
        mss_clamp: Default::default(),
        delay: None,
        rule_pools: Vec::new(),
        shadow: None,
    };
    let backend = |pool: usize, i: usize| BackendSpec {
        id: BackendId((pool * 3 + i) as u16),
        name: format!("b{pool}{i}"),
        addr: family.server(i),
        port: ports[pool],
        weight: 10,
        ..BackendSpec::default()
    };
    let pool = |p: usize| PoolSpec {
        id: PoolId(p as u16),
        name: format!("p{p}"),
        backends: (0..3).map(|i| backend(p, i)).collect(),
        ..PoolSpec::default()
    };
    ForwardSpec {
        services: vec![service(0, TCP_PORT, tcp::PROTOCOL), service(1, UDP_PORT, udp::PROTOCOL)],
        pools: vec![pool(0), pool(1)],
        nat: Some(NatSpec {
            addresses: vec![family.nat()],
            port_first: 20_000,
            port_last: 29_999,
            check_ports: 0,
        }),
        ..ForwardSpec::default()
    }
}

/// Has the TCP service choose by all that there is: two pools with shares, a zone that spills, a
/// group that waits for its flows.
pub fn share_out(forward: &mut ForwardSpec) {
    for (pool, balance) in
        forward.pools.iter_mut().zip([Balance::LeastConnections, Balance::RoundRobin])
    {
        pool.balance = balance;
        pool.backends[1].is_away = true;
        pool.backends[2].priority = 1;
        pool.groups[0].spills_percent = 40;
    }
    let mut third = PoolSpec { id: PoolId(2), name: "p2".into(), ..forward.pools[0].clone() };
    (third.balance, third.groups[0].waits) = (Balance::Maglev, true);
    forward.pools.push(third);
    forward.splits = vec![SplitSpec { parts: vec![(PoolId(0), 7), (PoolId(2), 3)] }];
    forward.services[0].pool = PoolId(3);
}

fn link(id: PortId, net: &str) -> PortLink {
    let addr = |text: String| text.parse::<Addr>().expect("an address");
    let addrs = vec![addr(format!("10.0.{net}.1")), addr(format!("fd00:{net}::1"))];
    PortLink {
        id,
        ifindex: ifindex(id),
        name: format!("port{}", id.0),
        mac: box_mac(id),
        mtu: 1_500,
        addrs,
    }
}

fn ifindex(port: PortId) -> u32 {
    10 + u32::from(port.0)
}

/// The box's own address on a port.
pub fn box_mac(port: PortId) -> [u8; 6] {
    [0x02, 0xb0, 0, 0, 0, port.0 as u8]
}

fn connected(net: &str) -> Vec<RouteSpec> {
    let port = if net == "1" { CLIENTS } else { SERVERS };
    let route = |prefix: String| RouteSpec {
        prefix: prefix.parse::<Prefix>().expect("a prefix"),
        via: None,
        ifindex: ifindex(port),
        kind: RouteKind::Unicast,
    };
    vec![route(format!("10.0.{net}.0/24")), route(format!("fd00:{net}::/64"))]
}

fn neighbours(family: Family) -> Vec<(u32, Addr, [u8; 6])> {
    let clients = (0..64).map(|i| (ifindex(CLIENTS), family.client(i)));
    let servers = (0..3).map(|i| (ifindex(SERVERS), family.server(i)));
    clients.chain(servers).map(|(ifindex, addr)| (ifindex, addr, mac_of(addr))).collect()
}

pub type World = Net<Machine>;

/// The box between two cables, with its servers.
pub fn world(setup: Setup, family: Family, mode: ForwardMode, cable: LinkSpec) -> World {
    world_between(setup, family, mode, [cable, cable])
}

/// The box between a cable to the clients and one to the servers.
pub fn world_between(
    setup: Setup,
    family: Family,
    mode: ForwardMode,
    cables: [LinkSpec; 2],
) -> World {
    let seed = setup.seed;
    let mut net = Net::new(Appliance::new(setup), &cables, seed);
    for i in 0..3 {
        let addr = family.server(i);
        let (gateway, addrs) = match mode {
            ForwardMode::Dsr => (Gateway::Direct, vec![addr, family.vip()]),
            _ => (Gateway::Router(box_mac(SERVERS)), vec![addr]),
        };
        net.add(SERVERS, Server::machine(mac_of(addr), gateway, &addrs));
    }
    net
}

pub fn client_end(family: Family, i: usize, port: u16) -> Endpoint {
    let addr = family.client(i);
    Endpoint { mac: mac_of(addr), addr, port }
}

/// Adds clients of the TCP service that start within the first second, each with a request of a
/// size of its own.
pub fn add_clients(net: &mut World, family: Family, to: Addr, port: u16, count: usize) {
    let mut rng = Rng::new(Seed(count as u64));
    // Several calls add different clients, each a host of its own.
    let before = net.hosts().filter(|h| matches!(h, Machine::Client(_))).count();
    for i in before..before + count {
        let local = client_end(family, i, 40_000 + rng.below(1_000) as u16);
        let remote = Endpoint { mac: box_mac(CLIENTS), addr: to, port };
        let start = net.now.saturating_add(u64::from(rng.below(1_000_000_000)));
        let bytes = 4 + rng.below(6_000) as usize;
        net.add(CLIENTS, Client::machine(local, remote, start, bytes));
    }
}

/// Adds a source of datagrams to the UDP service.
pub fn add_source(net: &mut World, family: Family, i: usize, every_ns: u64, count: u64) {
    let local = client_end(family, i, 5_000 + i as u16);
    let remote = Endpoint { mac: box_mac(CLIENTS), addr: family.vip(), port: UDP_PORT };
    net.add(CLIENTS, Source::machine(local, remote, every_ns, count, 100));
}

/// Runs until every client is served.
pub fn serve_all(net: &mut World) {
    let limit = net.now + LIMIT;
    let served = net.run_until(limit, |net| net.hosts().all(Machine::is_content));
    let states: Vec<_> = net
        .hosts()
        .filter_map(|h| match h {
            Machine::Client(c) if !c.is_served() => c.state(),
            _ => None,
        })
        .collect();
    assert!(served, "not served: {states:?}; {:?}", net.appliance.counters());
    no_damage(net);
}

/// No server saw a packet that was damaged or not for it, and none went astray.
pub fn no_damage(net: &World) {
    for host in net.hosts() {
        if let Machine::Server(server) = host {
            assert_eq!(server.refused, 0, "damaged or misdirected packets at a server");
        }
    }
    assert_eq!(net.stray, 0, "packets to nobody's MAC address");
}

/// Lets everything come to rest, and checks that no packet or frame is missing.
pub fn finish(mut net: World) -> Counters {
    net.run_for(Duration::from_secs(5));
    let end = net.now;
    assert_eq!(net.appliance.held(), 0, "the box still holds packets at {end:?}");
    net.appliance.finish()
}

/// A moment within the next `ms` milliseconds.
pub fn soon(rng: &mut Rng, now: Nanos, ms: u32) -> Nanos {
    now.saturating_add(u64::from(rng.below(ms * 1_000_000)))
}
