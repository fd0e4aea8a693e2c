//! What every forwarder stands in: a generator's, a router's and a sink's namespace in a row.
//!
//! ```text
//! [generator] g0 ── wan [router] lan ── s0 [sink]
//!             198.18.0.1   10.0.2.1      10.0.2.11-13, 203.0.113.10
//! ```

use std::net::{Ipv4Addr, SocketAddr};
use std::thread::JoinHandle;

use anyhow::{Context, anyhow};
use tidegate::admin::pktgen::{Attach, Engine, Mode, PktgenArgs, Report, measure};
use tidegate::lab::{Namespace, Veth, VethEnd};
use tidegate::nic::link::{index_of, mac_of};

/// What the generator sends to: a service where the forwarder balances, else a host behind it.
pub const VIP: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 10);
pub const VIP_PORT: u16 = 443;
/// Where forwarders that translate send to.
pub const BACKENDS: [&str; 3] = ["10.0.2.11", "10.0.2.12", "10.0.2.13"];
pub const BACKEND_PORT: u16 = 8443;
/// The source that full NAT puts in.
pub const NAT: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 2);
/// The generator's addresses (RFC 2544).
pub const CLIENTS: [u8; 2] = [198, 18];
/// Nobody's: where the sink's stack sees what comes, it drops it at once.
pub const SINK_MAC: [u8; 6] = [2, 0, 0, 0, 0, 0xfe];
pub const GENERATOR_CORE: usize = 0;
pub const ROUTER_CORE: usize = 1;

/// What is sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Traffic {
    /// Bytes of a frame with its check sequence, as sizes are given by RFC 2544.
    pub size: u16,
    pub flows: u32,
}

/// The three namespaces and the links between them.
pub struct Bed {
    pub generator: Namespace,
    pub router: Namespace,
    pub sink: Namespace,
    wan_mac: [u8; 6],
}

impl Bed {
    pub fn new() -> anyhow::Result<Bed> {
        let generator = quiet("generator")?;
        let router = quiet("router")?;
        let sink = quiet("sink")?;
        let end = |namespace, name, addresses| VethEnd { namespace, name, addresses };
        let (a, b) = (end(&generator, "g0", &["198.18.0.1/16"]), end(&router, "wan", WAN));
        Veth { a, b, queues: 1, wire_like: true }.create()?;
        let (a, b) = (end(&router, "lan", LAN), end(&sink, "s0", &["10.0.2.11/24"]));
        Veth { a, b, queues: 1, wire_like: true }.create()?;
        let wan_mac = mac(&router, "wan")?;
        let bed = Bed { generator, router, sink, wan_mac };
        bed.set_routes()?;
        Ok(bed)
    }

    /// Neighbours are fixed: the measurement is of forwarding, and the sink answers nobody.
    fn set_routes(&self) -> anyhow::Result<()> {
        let lan = show_mac(SINK_MAC);
        for backend in BACKENDS {
            self.router
                .ip(&format!("neigh replace {backend} lladdr {lan} nud permanent dev lan"))?;
        }
        self.router.ip(&format!("route add {VIP}/32 via {} dev lan", BACKENDS[0]))?;
        let generator = show_mac(mac(&self.generator, "g0")?);
        self.router
            .ip(&format!("neigh replace 198.18.0.1 lladdr {generator} nud permanent dev wan"))?;
        Ok(())
    }

    /// Sends for so many seconds, or so many packets, from the generator's core.
    pub fn send(&self, traffic: Traffic, amount: Amount) -> anyhow::Result<Sending> {
        let args = pktgen(traffic, amount, self.wan_mac);
        let thread = self.generator.thread("generator", move || measure(&args, None))?;
        Ok(Sending { thread })
    }
}

/// How much to send, as fast as can be.
#[derive(Clone, Copy, Debug)]
pub enum Amount {
    Seconds(f64),
    Packets(u64),
}

/// A generator at work.
pub struct Sending {
    thread: JoinHandle<anyhow::Result<Report>>,
}

impl Sending {
    pub fn is_over(&self) -> bool {
        self.thread.is_finished()
    }

    pub fn finish(self) -> anyhow::Result<Report> {
        let joined = self.thread.join().map_err(|_| anyhow!("the generator panicked"))?;
        joined.context("the generator")
    }
}

/// The kernel makes the packets: no socket could send more than the forwarders take.
fn pktgen(traffic: Traffic, amount: Amount, dst_mac: [u8; 6]) -> PktgenArgs {
    const FCS: u16 = 4;
    let (seconds, count) = match amount {
        Amount::Seconds(s) => (s, 0),
        Amount::Packets(n) => (0.0, n),
    };
    PktgenArgs {
        interface: "g0".to_owned(),
        mode: Mode::Tx,
        engine: Engine::Xdp,
        dst: Some(SocketAddr::new(VIP.into(), VIP_PORT)),
        dst_mac: Some(dst_mac),
        src: None,
        flows: traffic.flows,
        size: traffic.size - FCS,
        rate: 0,
        seconds,
        count,
        receive: Vec::new(),
        latency: false,
        attach: Attach::Auto,
        core: Some(GENERATOR_CORE),
        ring: 0,
        json: false,
        quiet: true,
    }
}

const WAN: &[&str] = &["198.18.255.1/16"];
const LAN: &[&str] = &["10.0.2.1/24"];

/// A namespace in which the kernel sends nothing of its own, and believes every source address.
fn quiet(name: &str) -> anyhow::Result<Namespace> {
    let ns = Namespace::new(name)?;
    ns.sysctl("net.ipv6.conf.default.disable_ipv6", "1")?;
    for which in ["all", "default"] {
        ns.sysctl(&format!("net.ipv4.conf.{which}.rp_filter"), "0")?;
    }
    Ok(ns)
}

fn mac(ns: &Namespace, interface: &'static str) -> anyhow::Result<[u8; 6]> {
    let mac = ns.enter(move || index_of(interface).and_then(mac_of))?;
    mac.with_context(|| format!("interface {interface}"))
}

pub fn show_mac(mac: [u8; 6]) -> String {
    mac.map(|b| format!("{b:02x}")).join(":")
}
