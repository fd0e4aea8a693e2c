//! What every router stands in: clients, the router, servers, in namespaces in a row.
//!
//! ```text
//! [clients] g0 ── wan [router] lan ── s0 [servers]
//! 198.18.0.1     203.0.113.10         10.0.2.11-14
//! ```
//!
//! Clients and servers have the first core, the router has the second one for all it does: frames
//! are taken in by threads of the kernel on that core (threaded NAPI), and what it sends is taken
//! from it by the first core at once, by threads there or, where a router sends 64 KB at a time,
//! which veth does not give to NAPI, by steering (RPS). So no work of the ends counts for a router,
//! and all of a router's does. The far ends send frames as wires carry them, and merged ones where
//! a test says so; the router's own ends have what their router can make use of: for those without
//! an XDP program merging of what comes in (GRO), segmentation of what goes out, and no checksums.

use std::net::{Ipv4Addr, SocketAddr};

use tidegate::lab::{Namespace, Veth, VethEnd};

use crate::napi;

pub const VIP: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 10);
pub const PORT: u16 = 443;
pub const SERVER_PORT: u16 = 8443;
/// Names and the last bytes of the servers behind each.
pub const NAMES: [(&str, [u8; 2]); 2] =
    [("api.example.com", [11, 12]), ("files.example.com", [13, 14])];
/// The source that full NAT puts in.
pub const NAT: &str = "10.9.0.1";
pub const LAN: &str = "10.0.2.1";
/// Clients' addresses.
pub const CLIENTS: [[u8; 4]; 16] = clients();
pub const FAR_CORE: usize = 0;
pub const ROUTER_CORE: usize = 1;

pub struct Bed {
    pub clients: Namespace,
    pub router: Namespace,
    pub servers: Namespace,
}

impl Bed {
    pub fn new() -> anyhow::Result<Bed> {
        let [clients, router, servers] = ["clients", "router", "servers"].map(namespace);
        let (clients, router, servers) = (clients?, router?, servers?);
        let end = |namespace, name, addresses| VethEnd { namespace, name, addresses };
        let (a, b) = (
            end(&clients, "g0", &["198.18.0.1/16"][..]),
            end(&router, "wan", &["198.18.255.1/16"][..]),
        );
        Veth { a, b, queues: 1, wire_like: true }.create()?;
        let all = ["10.0.2.11/24", "10.0.2.12/24", "10.0.2.13/24", "10.0.2.14/24"];
        let (a, b) = (end(&router, "lan", &["10.0.2.1/24"][..]), end(&servers, "s0", &all[..]));
        Veth { a, b, queues: 1, wire_like: true }.create()?;
        for [a, b, c, d] in CLIENTS.into_iter().skip(1) {
            clients.ip(&format!("addr add {a}.{b}.{c}.{d}/16 dev g0"))?;
        }
        clients.ip("route add default via 198.18.255.1")?;
        servers.ip(&format!("route add default via {LAN}"))?;
        for (ns, interface) in [(&clients, "g0"), (&servers, "s0")] {
            // As on any host; and XDP frames are taken so.
            ns.run("ethtool", &["-K", interface, "gro", "on"])?;
            napi::thread(ns, interface, FAR_CORE)?;
            napi::steer(ns, interface, FAR_CORE)?;
        }
        Ok(Bed { clients, router, servers })
    }

    /// Gives the router's ends all that a router without an XDP program profits by: merged frames
    /// in, large ones out, and no checksums to compute.
    ///
    /// # Errors
    /// As `ethtool` says.
    pub fn offload(&self) -> anyhow::Result<()> {
        for interface in ["wan", "lan"] {
            for on in ["rx", "tx", "sg", "tso", "gso", "gro"] {
                self.router.run("ethtool", &["-K", interface, on, "on"])?;
            }
        }
        Ok(())
    }

    /// Has servers and clients send as much at a time as veth takes, or as wires carry it. The
    /// kernel allows the first only where no XDP program takes the frames.
    ///
    /// # Errors
    /// As `ethtool` says, or the kernel not taking it.
    pub fn merge(&self, on: bool) -> anyhow::Result<()> {
        let to = if on { "on" } else { "off" };
        let pairs = [(&self.clients, "g0", "wan"), (&self.servers, "s0", "lan")];
        for (ns, interface, routers) in pairs {
            for feature in ["rx", "tx", "sg", "tso", "gso"] {
                ns.run("ethtool", &["-K", interface, feature, to])?;
            }
            // They don't go by NAPI, and are the router's work all the same.
            match on {
                true => napi::steer(&self.router, routers, ROUTER_CORE)?,
                false => napi::let_go(&self.router, routers)?,
            }
        }
        Ok(())
    }

    /// Has the router's frames taken in on its core; returns the threads.
    ///
    /// # Errors
    /// Of [`napi::thread`].
    pub fn place(&self) -> anyhow::Result<Vec<i32>> {
        let mut threads = napi::thread(&self.router, "wan", ROUTER_CORE)?;
        threads.extend(napi::thread(&self.router, "lan", ROUTER_CORE)?);
        Ok(threads)
    }
}

/// A server's address.
pub fn server(last: u8) -> SocketAddr {
    SocketAddr::new(Ipv4Addr::new(10, 0, 2, last).into(), SERVER_PORT)
}

const fn clients() -> [[u8; 4]; 16] {
    let mut all = [[198, 18, 0, 1]; 16];
    let mut i = 0;
    while i < all.len() {
        all[i][3] += i as u8;
        i += 1;
    }
    all
}

fn namespace(name: &str) -> anyhow::Result<Namespace> {
    let ns = Namespace::new(name)?;
    for (key, value) in [
        ("net.ipv6.conf.default.disable_ipv6", "1"),
        ("net.ipv4.ip_local_port_range", "1024 65000"),
        // Ports of closed connections can be used again after a second.
        ("net.ipv4.tcp_tw_reuse", "1"),
        ("net.core.somaxconn", "65535"),
        ("net.ipv4.tcp_max_syn_backlog", "65535"),
        ("net.ipv4.tcp_syncookies", "1"),
    ] {
        ns.sysctl(key, value)?;
    }
    Ok(ns)
}
