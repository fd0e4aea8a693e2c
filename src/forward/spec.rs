//! Services and pools as configured. Built by `config`, compiled by [`super`].

use std::time::Duration;

pub use super::splice::Promise;
use crate::base::{Addr, Prefix};

/// A pool: its index in the configuration's order. Where new flows go to, splits have those numbers
/// that follow the last pool's.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PoolId(pub u16);

/// A service: its index in the configuration's order.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ServiceId(pub u16);

/// A backend: its index among the backends of all pools, in the configuration's order.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct BackendId(pub u16);

/// How packets reach a backend.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ForwardMode {
    /// Source and destination are translated: the backend answers to us whatever its routes.
    #[default]
    Nat,
    /// The destination is translated: the backend's route to the client must lead through us.
    Dnat,
    /// Only the MAC address is rewritten: the backend holds the VIP and answers the client
    /// directly.
    Dsr,
    /// Within an IP packet to the backend, which holds the VIP and answers the client directly.
    Ipip,
    /// The same within UDP (Generic UDP Encapsulation).
    Gue,
}

impl ForwardMode {
    /// The backend holds the VIP and answers the client directly, past the appliance.
    pub fn is_one_way(self) -> bool {
        matches!(self, ForwardMode::Dsr) || self.is_tunnel()
    }

    /// As it is written in files.
    pub const fn word(self) -> &'static str {
        match self {
            ForwardMode::Nat => "nat",
            ForwardMode::Dnat => "dnat",
            ForwardMode::Dsr => "dsr",
            ForwardMode::Ipip => "ipip",
            ForwardMode::Gue => "gue",
        }
    }

    /// Packets travel within others, and need not be of the backend's family.
    pub fn is_tunnel(self) -> bool {
        matches!(self, ForwardMode::Ipip | ForwardMode::Gue)
    }
}

/// What a client must have sent before its connection gets a backend.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BindAt {
    /// A whole TLS ClientHello; over UDP, that of QUIC.
    Hello,
    /// The head of a request in the clear, of HTTP/1 or HTTP/2; or a ClientHello.
    Request,
}

/// Delayed binding of a service's connections.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Delay {
    pub at: BindAt,
    /// A client that has not sent it by then is reset (of QUIC: forgotten), milliseconds.
    pub timeout_ms: u32,
    /// What clients are told before a backend is known.
    pub promise: Promise,
}

/// What SYNs and SYN-ACKs that pass may announce for the largest segment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum MssClamp {
    /// As they like.
    Off,
    /// What fits the links of both ports.
    #[default]
    Mtu,
    /// No more than this, besides.
    AtMost(u16),
}

/// A virtual address and port that clients connect to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServiceSpec {
    pub id: ServiceId,
    pub name: String,
    pub vip: Addr,
    pub port: u16,
    /// IP protocol number: 6 (TCP) or 17 (UDP).
    pub proto: u8,
    /// Or a split.
    pub pool: PoolId,
    pub mode: ForwardMode,
    /// Share of clients that the appliance takes, in hundredths of a percent (0 to 10,000); the
    /// rest goes to the kernel as if the appliance were not there.
    pub canary_share: u16,
    /// Idle time after which an established flow is forgotten (RFC 5382 REQ-5: at least 2 h 4 min).
    pub idle_established: Duration,
    pub mss_clamp: MssClamp,
    /// `None`: a backend is chosen with the first packet.
    pub delay: Option<Delay>,
    /// Pools that rules may choose instead of `pool`, none of them a split; empty without delay.
    pub rule_pools: Vec<PoolId>,
    pub shadow: Option<ShadowSpec>,
}

/// Who hears a service's requests beside the one that answers them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ShadowSpec {
    /// No split.
    pub pool: PoolId,
    /// Share of the connections, in hundredths of a percent.
    pub share: u16,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct BackendSpec {
    pub id: BackendId,
    pub name: String,
    pub addr: Addr,
    pub port: u16,
    /// Share of new flows relative to the pool's other backends; 0 drains.
    pub weight: u16,
    /// Backends of a higher number get flows only where none of a lower one may take more.
    pub priority: u8,
    /// It gets no new flows while it has so many, of all pools together.
    pub connections_max: Option<u32>,
    pub zone: Option<String>,
    /// The appliance is in a zone, and this is not.
    pub is_away: bool,
}

/// Priorities that backends may have: 0 to one less.
pub const PRIORITIES: usize = 16;

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PoolSpec {
    pub id: PoolId,
    pub name: String,
    pub balance: Balance,
    pub backends: Vec<BackendSpec>,
    /// Share of the weight in the appliance's zone that must be well for all flows to stay there.
    pub need_percent: u8,
    /// For how long backends must be well before flows come back to their group or zone.
    pub return_after: Duration,
    /// What spills goes to the nearest of the other zones first, by round trips.
    pub by_rtt: bool,
    /// Its backends are judged by what they answer: what passes in the clear is read for as long
    /// as a connection has requests.
    pub judged: bool,
    /// By priority, as things stand.
    pub groups: [GroupState; PRIORITIES],
}

/// Backends of one priority, as things stand.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct GroupState {
    /// Share of new flows that goes to backends of other zones.
    pub spills_percent: u8,
    /// It has just become well again, and gets flows only where no other group may take more.
    pub waits: bool,
}

/// Pools of one split at most.
pub const PARTS_MAX: usize = 16;

/// New flows shared out between pools.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SplitSpec {
    /// Each pool, none of them a split, with its share relative to the others.
    pub parts: Vec<(PoolId, u16)>,
}

/// How a pool's backends are chosen from, in proportion to their weights.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Balance {
    /// By the flow's hash: appliances agree, and few flows change their backend with the pool.
    #[default]
    Maglev,
    /// One after the other, each worker for itself.
    RoundRobin,
    /// Whoever has the fewest connections.
    LeastConnections,
    /// Whose engine has the least to do, of two that are drawn: by what it tells of itself, and by
    /// what has changed since.
    LeastLoad,
    /// Who has answered soonest of late for what it has to do, of two that are drawn.
    PeakEwma,
}

/// Ports of `[nat]` that are kept for health checks at most ...
pub const NAT_CHECK_PORTS_MAX: u32 = 512;
/// ... and as a part of all: one in so many.
pub const NAT_CHECK_PORTS_ONE_IN: u32 = 8;

/// Source addresses and ports for [`ForwardMode::Nat`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NatSpec {
    /// One per family at most is used for a backend of that family; they must be routed to us.
    pub addresses: Vec<Addr>,
    /// First and last port; every worker owns an equal slice of those that clients' flows get.
    pub port_first: u16,
    pub port_last: u16,
    /// So many of them, the last ones, are for health checks.
    pub check_ports: u16,
}

impl NatSpec {
    /// The first and the last port of health checks; none where the last is below the first.
    pub fn check_range(&self) -> (u16, u16) {
        match self.port_last.checked_sub(self.check_ports) {
            Some(before) if self.check_ports > 0 => (before + 1, self.port_last),
            _ => (1, 0),
        }
    }
}

/// This side of the tunnels of [`ForwardMode::Ipip`] and [`ForwardMode::Gue`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TunnelSpec {
    /// Where outer packets come from, one prefix per family at most: each flow has an address of
    /// it. Without one they come from the port's own address.
    pub sources: Vec<Prefix>,
    /// The UDP port that backends take GUE at.
    pub gue_port: u16,
}

impl Default for TunnelSpec {
    /// The port's own addresses, and the port that IANA has assigned.
    fn default() -> TunnelSpec {
        TunnelSpec { sources: Vec::new(), gue_port: 6080 }
    }
}

/// Everything the forward room is configured with.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ForwardSpec {
    pub services: Vec<ServiceSpec>,
    pub pools: Vec<PoolSpec>,
    /// Where the appliance is.
    pub zone: Option<String>,
    /// Numbered after the pools.
    pub splits: Vec<SplitSpec>,
    /// Needed where a service uses [`ForwardMode::Nat`].
    pub nat: Option<NatSpec>,
    pub tunnel: TunnelSpec,
    /// Destinations that the XDP program steers to us for plain routing.
    pub transit: Vec<Prefix>,
}

impl ForwardSpec {
    /// The split of a number, where it is one.
    pub fn split(&self, id: PoolId) -> Option<&SplitSpec> {
        self.splits.get(usize::from(id.0).checked_sub(self.pools.len())?)
    }

    /// What new flows may go to: the pool, or the split's pools that have a weight.
    pub fn parts(&self, id: PoolId) -> impl Iterator<Item = &PoolSpec> {
        let parts = self.split(id).map(|split| split.parts.as_slice()).unwrap_or_default();
        let weighted = parts.iter().filter(|(_, weight)| *weight > 0).map(|(pool, _)| *pool);
        let pools = std::iter::once(id).chain(weighted);
        pools.filter_map(|pool| self.pools.get(usize::from(pool.0)))
    }

    /// The first service whose connections may go to a pool: checks take their way.
    pub fn checked_by(&self, pool: PoolId) -> Option<&ServiceSpec> {
        self.services.iter().find(|service| self.pools_of(service).any(|p| p.id == pool))
    }

    /// Whether a service's connections may go to a pool, or could while a split gave it a share.
    pub fn leads_to(&self, service: &ServiceSpec, pool: PoolId) -> bool {
        let parts = self.split(service.pool).map(|split| split.parts.as_slice());
        let mut parts = parts.unwrap_or_default().iter().map(|(part, _)| *part);
        service.pool == pool || parts.any(|part| part == pool) || service.rule_pools.contains(&pool)
    }

    /// All pools that a service's connections may go to, some perhaps twice.
    pub fn pools_of(&self, service: &ServiceSpec) -> impl Iterator<Item = &PoolSpec> {
        let by_rules = service.rule_pools.iter();
        let by_rules = by_rules.filter_map(|pool| self.pools.get(usize::from(pool.0)));
        self.parts(service.pool).chain(by_rules)
    }
}
