//! Routes, neighbours and ports as the kernel has them, ready for lookup.
//!
//! [`RoutesBuilder`] mirrors what netlink tells, change by change; [`Routes`] is an immutable copy
//! for the workers. The trie is shared between copies as long as no route changes.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use crate::base::{Addr, Prefix, Seed};
use crate::packet::{DropReason, PortId};

use super::lpm::Lpm;
use super::table::AddrTable;

/// A port's link as the kernel has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PortLink {
    pub id: PortId,
    pub ifindex: u32,
    /// The kernel's name for it.
    pub name: String,
    pub mac: [u8; 6],
    /// Largest IP packet, bytes.
    pub mtu: u16,
    /// Our own addresses on it: sources of ICMP answers, and never forwarded to.
    pub addrs: Vec<Addr>,
}

/// What becomes of packets that match a route (rtnetlink(7), `rtm_type`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum RouteKind {
    #[default]
    Unicast,
    Blackhole,
    Unreachable,
    Prohibit,
    /// For the kernel itself: its own, broadcast and multicast addresses.
    Local,
}

/// One route of the kernel's table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RouteSpec {
    pub prefix: Prefix,
    /// Gateway; `None`: the destination is on the link.
    pub via: Option<Addr>,
    /// 0 where the kind has none.
    pub ifindex: u32,
    pub kind: RouteKind,
    /// Of equal prefixes the lowest wins; local ones before all.
    pub metric: u32,
}

/// Where a packet is to go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Resolved {
    pub port: PortId,
    /// The gateway, or the destination itself on its own link.
    pub next_hop: Addr,
    /// `None`: the neighbour is to be resolved first.
    pub mac: Option<[u8; 6]>,
    /// Largest IP packet on the link, bytes.
    pub mtu: u16,
}

/// What a packet needs to know of the port it leaves by.
#[derive(Clone, Copy, Debug)]
pub struct Egress {
    pub mac: [u8; 6],
    /// Largest IP packet, bytes.
    pub mtu: u16,
}

/// One immutable state of routes, neighbours and ports.
#[derive(Debug)]
pub struct Routes {
    generation: u32,
    fib: Arc<Fib>,
    /// (address, port) to the index in `macs`.
    neighbours: AddrTable,
    macs: Vec<[u8; 6]>,
    egress: Vec<Egress>,
    ports: Vec<PortLink>,
}

#[derive(Debug)]
struct Fib {
    lpm: Lpm,
    targets: Vec<Target>,
}

/// What a leaf of the trie stands for. Few are distinct, however many the routes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Target {
    Port(PortId, Option<Addr>),
    Refused(DropReason),
}

impl Routes {
    /// Differs from that of every other state; never 0, which stands for "not cached" in flows.
    #[inline]
    pub fn generation(&self) -> u32 {
        self.generation
    }

    /// The next hop for a destination.
    ///
    /// # Errors
    /// [`DropReason::NoRoute`], [`DropReason::RouteForbids`], [`DropReason::NotOurPort`]; and
    /// [`DropReason::NotHandled`] for what is the kernel's own: local, link-local, multicast and
    /// broadcast addresses.
    #[inline]
    pub fn resolve(&self, dst: Addr) -> Result<Resolved, DropReason> {
        let index = self.fib.lpm.lookup(dst);
        let target = index.and_then(|i| self.fib.targets.get(i as usize));
        match *target.ok_or(DropReason::NoRoute)? {
            Target::Refused(reason) => Err(reason),
            Target::Port(port, via) => {
                let next_hop = via.unwrap_or(dst);
                let egress = self.egress(port).ok_or(DropReason::NotOurPort)?;
                Ok(Resolved {
                    port,
                    next_hop,
                    mac: self.neighbour(port, next_hop),
                    mtu: egress.mtu,
                })
            }
        }
    }

    /// The MAC address of a neighbour, if known.
    #[inline]
    pub fn neighbour(&self, port: PortId, addr: Addr) -> Option<[u8; 6]> {
        let index = self.neighbours.get(addr, u32::from(port.0))?;
        self.macs.get(index as usize).copied()
    }

    #[inline]
    pub fn egress(&self, port: PortId) -> Option<&Egress> {
        self.egress.get(usize::from(port.0))
    }

    /// # Panics
    /// On an id that the builder was not given: ids come from the same configuration.
    pub fn port(&self, id: PortId) -> &PortLink {
        &self.ports[usize::from(id.0)]
    }

    /// All ports, by id.
    pub fn ports(&self) -> &[PortLink] {
        &self.ports
    }

    /// Bytes of memory that routes take; shared with other states of the same routes.
    pub fn memory_bytes(&self) -> usize {
        self.fib.lpm.memory_bytes()
    }

    /// The address to send ICMP from: of the port the packet came in by (RFC 1812, 4.3.2.4), else
    /// of any. Link-local ones would not be answerable from beyond the link.
    pub fn own_address(&self, in_port: PortId, v4: bool) -> Option<Addr> {
        let first = self.ports.get(usize::from(in_port.0));
        let addrs = first.into_iter().chain(&self.ports).flat_map(|p| &p.addrs);
        addrs.copied().find(|a| a.is_v4() == v4 && !is_link_local(*a))
    }
}

/// Mirrors the kernel's state and makes [`Routes`] of it.
#[derive(Debug)]
pub struct RoutesBuilder {
    seed: Seed,
    ports: Vec<PortLink>,
    routes: BTreeMap<RouteKey, RouteKind>,
    neighbours: HashMap<(u32, Addr), [u8; 6]>,
    /// Of the last build; `None` after a change of routes or ports.
    fib: Option<Arc<Fib>>,
}

/// Ordered so that of one prefix the route to use comes first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct RouteKey {
    prefix: Prefix,
    not_local: bool,
    metric: u32,
    ifindex: u32,
    via: Option<Addr>,
}

impl RouteKey {
    fn of(r: &RouteSpec) -> RouteKey {
        RouteKey {
            prefix: r.prefix,
            not_local: r.kind != RouteKind::Local,
            metric: r.metric,
            ifindex: r.ifindex,
            via: r.via,
        }
    }
}

impl RoutesBuilder {
    /// `ports` in the order of their ids, 0 first.
    pub fn new(ports: Vec<PortLink>, seed: Seed) -> RoutesBuilder {
        debug_assert!((0u16..).zip(&ports).all(|(i, p)| p.id == PortId(i)));
        RoutesBuilder {
            seed,
            ports,
            routes: BTreeMap::new(),
            neighbours: HashMap::new(),
            fib: None,
        }
    }

    /// Replaces what is known of the links, such as after a change of address or MTU.
    pub fn set_ports(&mut self, ports: Vec<PortLink>) {
        debug_assert!((0u16..).zip(&ports).all(|(i, p)| p.id == PortId(i)));
        if self.ports != ports {
            self.ports = ports;
            self.fib = None;
        }
    }

    pub fn add_route(&mut self, route: RouteSpec) {
        let before = self.routes.insert(RouteKey::of(&route), route.kind);
        if before != Some(route.kind) {
            self.fib = None;
        }
    }

    /// Nothing happens where there is no such route.
    pub fn remove_route(&mut self, route: &RouteSpec) {
        if self.routes.remove(&RouteKey::of(route)).is_some() {
            self.fib = None;
        }
    }

    /// Forgets all routes: before a full resync.
    pub fn clear_routes(&mut self) {
        self.routes.clear();
        self.fib = None;
    }

    pub fn set_neighbour(&mut self, ifindex: u32, addr: Addr, mac: [u8; 6]) {
        self.neighbours.insert((ifindex, addr), mac);
    }

    pub fn remove_neighbour(&mut self, ifindex: u32, addr: Addr) {
        self.neighbours.remove(&(ifindex, addr));
    }

    /// Forgets all neighbours: before a full resync.
    pub fn clear_neighbours(&mut self) {
        self.neighbours.clear();
    }

    pub fn routes_len(&self) -> usize {
        self.routes.len()
    }

    /// Neighbours as (interface index, address, MAC address), in no order.
    pub fn neighbours(&self) -> impl Iterator<Item = (u32, Addr, [u8; 6])> {
        self.neighbours.iter().map(|(&(ifindex, addr), &mac)| (ifindex, addr, mac))
    }

    /// The present state. `generation` must differ from that of the builds before; 0 counts as 1.
    pub fn build(&mut self, generation: u32) -> Routes {
        let fib = self.fib.take().unwrap_or_else(|| Arc::new(self.build_fib()));
        self.fib = Some(Arc::clone(&fib));
        let mut entries = Vec::with_capacity(self.neighbours.len());
        let mut macs = Vec::with_capacity(self.neighbours.len());
        for (&(ifindex, addr), &mac) in &self.neighbours {
            if let Some(port) = self.port_of(ifindex) {
                entries.push((addr, u32::from(port.0), macs.len() as u32));
                macs.push(mac);
            }
        }
        Routes {
            generation: generation.max(1),
            fib,
            neighbours: AddrTable::new(self.seed, &entries),
            macs,
            egress: self.ports.iter().map(|p| Egress { mac: p.mac, mtu: p.mtu }).collect(),
            ports: self.ports.clone(),
        }
    }

    fn build_fib(&self) -> Fib {
        let mut targets = Vec::new();
        let mut index_of = HashMap::new();
        let mut index = |target: Target| {
            *index_of.entry(target).or_insert_with(|| {
                targets.push(target);
                targets.len() as u32 - 1
            })
        };
        let mut prefixes = Vec::with_capacity(self.routes.len());
        let mut last = None;
        for (key, kind) in &self.routes {
            if last == Some(key.prefix) || is_reserved(key.prefix) {
                continue;
            }
            last = Some(key.prefix);
            prefixes.push((key.prefix, index(self.target(key, *kind))));
        }
        // Last, so that they win over routes of the same prefix.
        let own = self.ports.iter().flat_map(|p| &p.addrs).map(|a| Prefix::host(*a));
        let refused = index(Target::Refused(DropReason::NotHandled));
        prefixes.extend(reserved().chain(own).map(|p| (p, refused)));
        Fib { lpm: Lpm::build(&prefixes), targets }
    }

    fn target(&self, key: &RouteKey, kind: RouteKind) -> Target {
        match kind {
            RouteKind::Unicast => match self.port_of(key.ifindex) {
                Some(port) => Target::Port(port, key.via.filter(|via| !via.is_unspecified())),
                None => Target::Refused(DropReason::NotOurPort),
            },
            RouteKind::Blackhole | RouteKind::Unreachable | RouteKind::Prohibit => {
                Target::Refused(DropReason::RouteForbids)
            }
            RouteKind::Local => Target::Refused(DropReason::NotHandled),
        }
    }

    fn port_of(&self, ifindex: u32) -> Option<PortId> {
        self.ports.iter().find(|p| p.ifindex == ifindex).map(|p| p.id)
    }
}

/// Never forwarded to, whatever the routes say.
const RESERVED: [&str; 7] = [
    "127.0.0.0/8",        // loopback, RFC 1122, 3.2.1.3
    "169.254.0.0/16",     // link-local, RFC 3927, 7
    "224.0.0.0/4",        // multicast, RFC 5771
    "255.255.255.255/32", // limited broadcast, RFC 919
    "::1/128",            // loopback, RFC 4291, 2.5.3
    "fe80::/10",          // link-local, RFC 4291, 2.5.6
    "ff00::/8",           // multicast, RFC 4291, 2.7
];

fn reserved() -> impl Iterator<Item = Prefix> {
    RESERVED.iter().filter_map(|s| s.parse().ok())
}

fn is_reserved(p: Prefix) -> bool {
    reserved().any(|r| r.len() <= p.len() && r.contains(p.addr()))
}

/// RFC 4291, 2.5.6: `fe80::/10`.
fn is_link_local(a: Addr) -> bool {
    a.hi >> 54 == 0xfe80 >> 6
}

#[cfg(test)]
mod tests {
    use super::*;

    fn addr(s: &str) -> Addr {
        s.parse().expect(s)
    }

    fn port(id: u16, addrs: &[&str]) -> PortLink {
        PortLink {
            id: PortId(id),
            ifindex: 10 + u32::from(id),
            name: format!("veth{id}"),
            mac: [2, 0, 0, 0, 0, id as u8],
            mtu: 1500 - id,
            addrs: addrs.iter().map(|a| addr(a)).collect(),
        }
    }

    fn route(prefix: &str, via: Option<&str>, ifindex: u32) -> RouteSpec {
        RouteSpec {
            prefix: prefix.parse().expect(prefix),
            via: via.map(addr),
            ifindex,
            kind: RouteKind::Unicast,
            metric: 100,
        }
    }

    fn builder() -> RoutesBuilder {
        let ports = vec![port(0, &["10.0.0.1", "fe80::1", "2001:db8::1"]), port(1, &["10.1.0.1"])];
        let mut b = RoutesBuilder::new(ports, Seed(5));
        b.add_route(route("10.0.0.0/24", None, 10));
        b.add_route(route("10.1.0.0/24", None, 11));
        b.add_route(route("0.0.0.0/0", Some("10.0.0.254"), 10));
        b.add_route(route("2001:db8::/64", None, 10));
        b.add_route(route("fe80::/64", None, 10));
        b.set_neighbour(10, addr("10.0.0.254"), [4; 6]);
        b.set_neighbour(11, addr("10.1.0.7"), [5; 6]);
        b.set_neighbour(99, addr("10.1.0.8"), [6; 6]);
        b
    }

    #[test]
    fn resolves_to_gateways_and_neighbours() {
        let routes = builder().build(7);
        assert_eq!(routes.generation(), 7);
        let far = routes.resolve(addr("192.0.2.1")).expect("default route");
        let want = Resolved {
            port: PortId(0),
            next_hop: addr("10.0.0.254"),
            mac: Some([4; 6]),
            mtu: 1500,
        };
        assert_eq!(far, want);
        let near = routes.resolve(addr("10.1.0.7")).expect("on link");
        let want =
            Resolved { port: PortId(1), next_hop: addr("10.1.0.7"), mac: Some([5; 6]), mtu: 1499 };
        assert_eq!(near, want);
        assert_eq!(routes.resolve(addr("10.1.0.8")).expect("on link").mac, None);
    }

    #[test]
    fn what_is_the_kernels_own_is_not_handled() {
        let routes = builder().build(1);
        let own = ["10.0.0.1", "10.1.0.1", "2001:db8::1", "fe80::9", "fe80::1"];
        let special = ["127.0.0.1", "224.0.0.5", "255.255.255.255", "ff02::1", "::1"];
        for a in own.iter().chain(&special) {
            assert_eq!(routes.resolve(addr(a)), Err(DropReason::NotHandled), "{a}");
        }
    }

    #[test]
    fn kinds_of_routes() {
        let mut b = builder();
        for (i, kind) in
            [RouteKind::Blackhole, RouteKind::Unreachable, RouteKind::Prohibit].iter().enumerate()
        {
            let r = route(&format!("10.{}.0.0/16", 20 + i), None, 0);
            b.add_route(RouteSpec { kind: *kind, ..r });
        }
        b.add_route(route("10.30.0.0/16", None, 77));
        // The kernel looks local routes up first, whatever the metric.
        let broadcast = route("10.1.0.255/32", None, 11);
        b.add_route(RouteSpec { metric: 0, ..broadcast });
        b.add_route(RouteSpec { kind: RouteKind::Local, ..broadcast });
        let routes = b.build(1);
        for a in ["10.20.0.1", "10.21.0.1", "10.22.0.1"] {
            assert_eq!(routes.resolve(addr(a)), Err(DropReason::RouteForbids), "{a}");
        }
        assert_eq!(routes.resolve(addr("10.30.0.1")), Err(DropReason::NotOurPort));
        assert_eq!(routes.resolve(addr("10.1.0.255")), Err(DropReason::NotHandled));
        assert_eq!(routes.resolve(addr("2001:db9::1")), Err(DropReason::NoRoute));
    }

    #[test]
    fn the_lowest_metric_wins_and_the_next_takes_over() {
        let mut b = builder();
        let better = RouteSpec { metric: 50, ..route("0.0.0.0/0", Some("10.1.0.7"), 11) };
        b.add_route(better);
        assert_eq!(b.build(1).resolve(addr("192.0.2.1")).expect("route").port, PortId(1));
        b.remove_route(&better);
        assert_eq!(b.build(2).resolve(addr("192.0.2.1")).expect("route").port, PortId(0));
        b.clear_routes();
        assert_eq!(b.build(3).resolve(addr("192.0.2.1")), Err(DropReason::NoRoute));
    }

    #[test]
    fn neighbours_change_without_a_new_trie() {
        let mut b = builder();
        let before = b.build(1);
        b.set_neighbour(11, addr("10.1.0.8"), [8; 6]);
        b.remove_neighbour(11, addr("10.1.0.7"));
        let after = b.build(2);
        assert!(Arc::ptr_eq(&before.fib, &after.fib));
        assert_eq!(after.neighbour(PortId(1), addr("10.1.0.8")), Some([8; 6]));
        assert_eq!(after.neighbour(PortId(1), addr("10.1.0.7")), None);
        assert_eq!(before.neighbour(PortId(1), addr("10.1.0.7")), Some([5; 6]));
    }

    #[test]
    fn answers_come_from_an_address_that_can_be_answered() {
        let routes = builder().build(1);
        assert_eq!(routes.own_address(PortId(1), true), Some(addr("10.1.0.1")));
        assert_eq!(routes.own_address(PortId(0), false), Some(addr("2001:db8::1")));
        assert_eq!(routes.own_address(PortId(1), false), Some(addr("2001:db8::1")));
    }
}
