//! The demo's network: users behind a narrow link, the appliance, three servers.
//!
//! ```text
//! users ── uplink ══ wan [appliance] be0 ── server 0
//!           50 Mbit/s             be1 ── server 1
//!           towards the users     be2 ── server 2
//! ```
//! The uplink stands for a provider's line: a plain FIFO of half a megabyte in front of the narrow
//! direction, as such lines have. It is the same in both runs.

use std::fmt::Write as _;
use std::net::TcpListener;

use anyhow::{Context, Result};

use crate::base::units::BitRate;
use crate::lab::{Namespace, Veth, VethEnd};

/// Where users connect.
pub const VIP: &str = "203.0.113.10";
pub const PORT: u16 = 443;
pub const CHAT_NAME: &str = "chat.demo.example";
pub const BULK_NAME: &str = "files.demo.example";
/// Source of all packets to the servers.
const NAT_ADDRESS: &str = "10.77.255.1";
/// What the line towards the users carries.
pub const LINE: BitRate = BitRate(50_000_000);
/// What the appliance is told to send: a little less, so that the queue stands where the classes
/// are.
pub const CEIL: BitRate = BitRate(48_000_000);
const LINE_FIFO_BYTES: u32 = 512 * 1024;
const SERVERS: u8 = 3;

/// The namespaces; gone when dropped.
pub struct Topology {
    pub users: Namespace,
    _uplink: Namespace,
    pub appliance: Namespace,
    servers: Vec<Namespace>,
}

impl Topology {
    /// # Errors
    /// Without root, or where `ip`, `tc` or `ethtool` is missing.
    pub fn build() -> Result<Topology> {
        let users = Namespace::new("users")?;
        let uplink = Namespace::new("uplink")?;
        let appliance = Namespace::new("appliance")?;
        pair((&users, "line", &["192.0.2.2/24"]), (&uplink, "users", &["192.0.2.1/24"]))?;
        pair((&uplink, "wan", &["198.51.100.1/24"]), (&appliance, "wan", &["198.51.100.2/24"]))?;
        users.ip("route add default via 192.0.2.1")?;
        uplink.sysctl("net.ipv4.ip_forward", "1")?;
        uplink.ip(&format!("route add {VIP}/32 via 198.51.100.2"))?;
        appliance.ip("route add default via 198.51.100.1")?;
        let narrow = format!(
            "qdisc add dev users root tbf rate {}bit burst 16kb limit {LINE_FIFO_BYTES}",
            LINE.0
        );
        uplink
            .run("tc", &narrow.split(' ').collect::<Vec<_>>())
            .context("the narrow line needs the kernel's tbf queue (sch_tbf)")?;
        let mut servers = Vec::new();
        for n in 0..SERVERS {
            let server = Namespace::new(&format!("server{n}"))?;
            let (ours, theirs) = (format!("10.77.{n}.1/24"), format!("{}/24", server_address(n)));
            pair((&server, "eth0", &[&theirs]), (&appliance, &format!("be{n}"), &[&ours]))?;
            server.ip(&format!("route add default via 10.77.{n}.1"))?;
            servers.push(server);
        }
        Ok(Topology { users, _uplink: uplink, appliance, servers })
    }

    /// A listener in each server's namespace.
    ///
    /// # Errors
    /// An address can't be bound.
    pub fn listeners(&self) -> Result<Vec<TcpListener>> {
        let bind = |(n, ns): (u8, &Namespace)| {
            let address = (server_address(n), 8443);
            Ok(ns.enter(move || TcpListener::bind((address.0.as_str(), address.1)))??)
        };
        (0..).zip(&self.servers).map(bind).collect()
    }
}

fn server_address(n: u8) -> String {
    format!("10.77.{n}.10")
}

type End<'a> = (&'a Namespace, &'a str, &'a [&'a str]);

fn pair(a: End<'_>, b: End<'_>) -> Result<()> {
    let end = |(namespace, name, addresses)| VethEnd { namespace, name, addresses };
    Veth { a: end(a), b: end(b), queues: 1, wire_like: true }.create()?;
    Ok(())
}

/// The appliance's configuration, with or without its class tree: nothing else differs.
pub fn config(qos: bool, socket: &str) -> String {
    let mut text = format!(
        "pipeline = \"{}\"\n\
         [workers]\nflows_max = 65536\nheartbeat_limit = \"2s\"\n\
         [admin]\nsocket = \"{socket}\"\nmetrics = false\n\
         [port.wan]\ninterface = \"wan\"\n",
        if qos { "llm-edge" } else { "./unshaped.toml" }
    );
    for n in 0..SERVERS {
        let _ = writeln!(text, "[port.be{n}]\ninterface = \"be{n}\"");
    }
    let _ = write!(
        text,
        "[nat]\naddresses = [\"{NAT_ADDRESS}\"]\n\
         [service.inference]\nvip = \"{VIP}\"\nport = {PORT}\npool = \"servers\"\nmode = \"nat\"\n"
    );
    for n in 0..SERVERS {
        let address = server_address(n);
        let _ = write!(text, "[[pool.servers.backend]]\naddress = \"{address}\"\nport = 8443\n");
    }
    if qos {
        text.push_str(&classes());
    }
    text
}

/// Streams first, new connections next, downloads with what is left.
fn classes() -> String {
    format!(
        "[qos.wan]\nrate = \"{CEIL}\"\noverhead = 0\ndefault = \"new\"\n\
         [qos.wan.class.chat]\nrate = \"20Mbit/s\"\nceil = \"100%\"\npriority = 0\n\
         [qos.wan.class.new]\nrate = \"10Mbit/s\"\nceil = \"100%\"\npriority = 1\n\
         [qos.wan.class.bulk]\nrate = \"2Mbit/s\"\nceil = \"100%\"\npriority = 2\n\
         [[rule]]\nsni = \"{CHAT_NAME}\"\nclass = \"chat\"\n\
         [[rule]]\nsni = \"{BULK_NAME}\"\nclass = \"bulk\"\n"
    )
}

/// The pipeline of the run without QoS: `llm-edge` less its class tree.
pub const UNSHAPED_PIPELINE: &str = "name = \"unshaped\"\n[[stage]]\nbalance = {}\n";
