//! Routes, neighbours and ports as the kernel has them, ready for lookup.
//!
//! [`Routes`] is an immutable copy for the workers. The forwarding table is shared between copies
//! as long as no route changes. Where nobody mirrors a kernel, [`RoutesBuilder`] makes them.

use std::collections::HashMap;
use std::sync::Arc;

use crate::base::{Addr, Prefix, Seed};
use crate::packet::{DropReason, FlowKey, PortId};

use super::fib::{Fib, FibBuilder, Full, Route, Way};
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
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum RouteKind {
    #[default]
    Unicast,
    Blackhole,
    Unreachable,
    Prohibit,
    /// For the kernel itself: its own, broadcast and multicast addresses.
    Local,
}

/// A route of one way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RouteSpec {
    pub prefix: Prefix,
    /// Gateway; `None`: the destination is on the link.
    pub via: Option<Addr>,
    /// 0 where the kind has none.
    pub ifindex: u32,
    pub kind: RouteKind,
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
    /// The table of routes for transit packets that come in, by port; 0, the main one, beyond.
    tables: Vec<u8>,
    /// (address, port) to the index in `macs`.
    neighbours: AddrTable,
    macs: Vec<[u8; 6]>,
    egress: Vec<Egress>,
    ports: Vec<PortLink>,
}

impl Routes {
    /// Differs from that of every other state; never 0, which stands for "not cached" in flows.
    #[inline]
    pub fn generation(&self) -> u32 {
        self.generation
    }

    /// Routes of `ports`, in the order of their ids, 0 first. `generation` must differ from that of
    /// other states; 0 counts as 1. `neighbours` are by interface index; those beyond other
    /// interfaces are left out.
    pub fn new(
        generation: u32,
        seed: Seed,
        fib: Arc<Fib>,
        ports: Vec<PortLink>,
        neighbours: impl Iterator<Item = (u32, Addr, [u8; 6])>,
    ) -> Routes {
        debug_assert!((0u16..).zip(&ports).all(|(i, p)| p.id == PortId(i)));
        let (mut entries, mut macs) = (Vec::new(), Vec::new());
        for (ifindex, addr, mac) in neighbours {
            if let Some(port) = ports.iter().find(|p| p.ifindex == ifindex) {
                entries.push((addr, u32::from(port.id.0), macs.len() as u32));
                macs.push(mac);
            }
        }
        Routes {
            generation: generation.max(1),
            fib,
            tables: Vec::new(),
            neighbours: AddrTable::new(seed, &entries),
            macs,
            egress: ports.iter().map(|p| Egress { mac: p.mac, mtu: p.mtu }).collect(),
            ports,
        }
    }

    /// Gives ports tables of their own: by port, 0 for the main one.
    pub fn with_tables(self, tables: Vec<u8>) -> Routes {
        Routes { tables, ..self }
    }

    /// The next hop of a flow for a destination.
    ///
    /// # Errors
    /// [`DropReason::NoRoute`], [`DropReason::RouteBlackhole`], [`DropReason::RouteUnreachable`],
    /// [`DropReason::RouteForbids`], [`DropReason::NotOurPort`]; and [`DropReason::NotHandled`] for
    /// what is the kernel's own: local, link-local, multicast and broadcast addresses.
    #[inline]
    pub fn resolve(&self, dst: Addr, flow: &FlowKey) -> Result<Resolved, DropReason> {
        self.reach(self.fib.way(dst, flow)?, dst)
    }

    /// Asks the cache for what look-ups of these destinations will read.
    #[inline]
    pub fn ask(&self, dsts: impl Iterator<Item = Addr> + Clone) {
        self.fib.ask(dsts);
    }

    /// The way of a transit packet that came in by a port, which may have a table of its own.
    ///
    /// # Errors
    /// As [`Routes::resolve`].
    #[inline]
    pub fn resolve_transit(
        &self,
        in_port: PortId,
        dst: Addr,
        flow: &FlowKey,
    ) -> Result<Resolved, DropReason> {
        self.reach(self.fib.way_in(self.table_of(in_port), dst, flow)?, dst)
    }

    #[inline(always)]
    fn reach(&self, way: Way, dst: Addr) -> Result<Resolved, DropReason> {
        let (port, next_hop) = (way.port, way.via.unwrap_or(dst));
        let egress = self.egress(port).ok_or(DropReason::NotOurPort)?;
        Ok(Resolved { port, next_hop, mac: self.neighbour(port, next_hop), mtu: egress.mtu })
    }

    /// The table for transit packets that come in by a port; 0: the main one.
    #[inline]
    pub fn table_of(&self, in_port: PortId) -> u8 {
        self.tables.get(usize::from(in_port.0)).copied().unwrap_or(0)
    }

    /// Every gateway of every route, some of them repeatedly.
    pub fn gateways(&self) -> impl Iterator<Item = (PortId, Addr)> {
        self.fib.gateways()
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
        self.fib.memory_bytes()
    }

    /// The address to send ICMP from: of the port the packet came in by (RFC 1812, 4.3.2.4), else
    /// of any. Link-local ones would not be answerable from beyond the link.
    pub fn own_address(&self, in_port: PortId, v4: bool) -> Option<Addr> {
        self.own_addresses(in_port, v4).next()
    }

    /// All those, some perhaps twice.
    pub fn own_addresses(&self, in_port: PortId, v4: bool) -> impl Iterator<Item = Addr> {
        let first = self.ports.get(usize::from(in_port.0));
        let addrs = first.into_iter().chain(&self.ports).flat_map(|p| &p.addrs);
        addrs.copied().filter(move |a| a.is_v4() == v4 && !is_link_local(*a))
    }
}

/// Makes [`Routes`] of single facts, where nobody mirrors a kernel.
#[derive(Debug)]
pub struct RoutesBuilder {
    seed: Seed,
    fib: FibBuilder,
    neighbours: HashMap<(u32, Addr), [u8; 6]>,
}

impl RoutesBuilder {
    /// `ports` in the order of their ids, 0 first.
    pub fn new(ports: Vec<PortLink>, seed: Seed) -> RoutesBuilder {
        RoutesBuilder { seed, fib: FibBuilder::new(ports, 0), neighbours: HashMap::new() }
    }

    /// Replaces what is known of the links, such as after a change of address or MTU.
    pub fn set_ports(&mut self, ports: Vec<PortLink>) {
        self.fib.set_ports(ports);
    }

    /// Of one prefix the last one given counts. One too many is not taken.
    pub fn add_route(&mut self, route: RouteSpec) {
        let ways = Route::single(route.kind, route.via, route.ifindex);
        let _: Result<(), Full> = self.fib.set(0, route.prefix, Some(&ways));
    }

    /// Nothing happens where the prefix has no route.
    pub fn remove_route(&mut self, prefix: Prefix) {
        let _: Result<(), Full> = self.fib.set(0, prefix, None);
    }

    pub fn clear_routes(&mut self) {
        self.fib.clear();
    }

    pub fn set_neighbour(&mut self, ifindex: u32, addr: Addr, mac: [u8; 6]) {
        self.neighbours.insert((ifindex, addr), mac);
    }

    pub fn remove_neighbour(&mut self, ifindex: u32, addr: Addr) {
        self.neighbours.remove(&(ifindex, addr));
    }

    /// The present state. `generation` must differ from that of the builds before; 0 counts as 1.
    pub fn build(&mut self, generation: u32) -> Routes {
        let neighbours =
            self.neighbours.iter().map(|(&(ifindex, addr), &mac)| (ifindex, addr, mac));
        let ports = self.fib.ports().to_vec();
        let fib = self.fib.build();
        Routes::new(generation, self.seed, fib, ports, neighbours)
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

pub(super) fn reserved() -> impl Iterator<Item = Prefix> {
    RESERVED.iter().filter_map(|s| s.parse().ok())
}

pub(super) fn is_reserved(p: Prefix) -> bool {
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
        let far = routes.resolve(addr("192.0.2.1"), &FlowKey::default()).expect("default route");
        let want = Resolved {
            port: PortId(0),
            next_hop: addr("10.0.0.254"),
            mac: Some([4; 6]),
            mtu: 1500,
        };
        assert_eq!(far, want);
        let near = routes.resolve(addr("10.1.0.7"), &FlowKey::default()).expect("on link");
        let want =
            Resolved { port: PortId(1), next_hop: addr("10.1.0.7"), mac: Some([5; 6]), mtu: 1499 };
        assert_eq!(near, want);
        assert_eq!(
            routes.resolve(addr("10.1.0.8"), &FlowKey::default()).expect("on link").mac,
            None
        );
    }

    #[test]
    fn what_is_the_kernels_own_is_not_handled() {
        let routes = builder().build(1);
        let own = ["10.0.0.1", "10.1.0.1", "2001:db8::1", "fe80::9", "fe80::1"];
        let special = ["127.0.0.1", "224.0.0.5", "255.255.255.255", "ff02::1", "::1"];
        for a in own.iter().chain(&special) {
            assert_eq!(
                routes.resolve(addr(a), &FlowKey::default()),
                Err(DropReason::NotHandled),
                "{a}"
            );
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
        let broadcast = route("10.1.0.255/32", None, 11);
        b.add_route(RouteSpec { kind: RouteKind::Local, ..broadcast });
        let routes = b.build(1);
        for (a, reason) in [
            ("10.20.0.1", DropReason::RouteBlackhole),
            ("10.21.0.1", DropReason::RouteUnreachable),
            ("10.22.0.1", DropReason::RouteForbids),
        ] {
            assert_eq!(routes.resolve(addr(a), &FlowKey::default()), Err(reason), "{a}");
        }
        assert_eq!(
            routes.resolve(addr("10.30.0.1"), &FlowKey::default()),
            Err(DropReason::NotOurPort)
        );
        assert_eq!(
            routes.resolve(addr("10.1.0.255"), &FlowKey::default()),
            Err(DropReason::NotHandled)
        );
        assert_eq!(
            routes.resolve(addr("2001:db9::1"), &FlowKey::default()),
            Err(DropReason::NoRoute)
        );
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
