//! The kernel as a forwarder, with the best that it has for one core.

use anyhow::Context;
use tidegate::lab::Namespace;

use crate::bed::{BACKEND_PORT, BACKENDS, ROUTER_CORE, VIP, VIP_PORT};
use crate::napi;

/// Where the kernel does its work.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Placement {
    /// As it comes: in the sender's softirq, on the generator's core.
    SameCore,
    /// Receive packet steering to the router's core.
    Rps,
    /// Threaded NAPI, its thread on the router's core.
    Threaded,
}

impl Placement {
    pub const ALL: [Placement; 3] = [Placement::SameCore, Placement::Rps, Placement::Threaded];

    pub fn name(self) -> &'static str {
        match self {
            Placement::SameCore => "sender's core",
            Placement::Rps => "RPS",
            Placement::Threaded => "threaded NAPI",
        }
    }
}

/// Switches forwarding on, and destination NAT if asked for. Returns the threads that the kernel
/// forwards with.
///
/// # Errors
/// What `nft` or the kernel say.
pub fn forward(router: &Namespace, placement: Placement, dnat: bool) -> anyhow::Result<Vec<i32>> {
    router.sysctl("net.ipv4.ip_forward", "1")?;
    // Without GRO or a program a veth device has no NAPI, and takes no XDP frames.
    router.run("ethtool", &["-K", "wan", "gro", "on"])?;
    if dnat {
        let rules = dnat_rules();
        router.run("nft", &[&rules]).context("`nft` is of the package nftables")?;
    }
    match placement {
        Placement::SameCore => Ok(Vec::new()),
        Placement::Rps => {
            napi::steer(router, "wan", ROUTER_CORE)?;
            Ok(Vec::new())
        }
        Placement::Threaded => napi::thread(router, "wan", ROUTER_CORE),
    }
}

/// Each flow to one of the backends, as the balancers do it.
fn dnat_rules() -> String {
    let backends: Vec<String> =
        BACKENDS.iter().enumerate().map(|(i, b)| format!("{i} : {b}")).collect();
    format!(
        "table ip bench {{ chain in {{ type nat hook prerouting priority dstnat; \
         ip daddr {VIP} udp dport {VIP_PORT} \
         dnat to jhash ip saddr . udp sport mod {} map {{ {} }} : {BACKEND_PORT}; }}; }}",
        BACKENDS.len(),
        backends.join(", ")
    )
}
