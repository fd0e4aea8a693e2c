//! From the mirror of the kernel's tables to the routes that workers forward by.
//!
//! ```text
//! mirror ── routes that changed ──► thread that builds forwarding tables ──┐
//!    └───── links, neighbours ────────────────► RouteFeed ◄────────────────┘ ──► Routes
//! ```
//! A table of a million routes takes a tenth of a second to build: neighbours, which packets wait
//! for, don't wait for it.

use std::collections::BTreeSet;
use std::sync::Arc;

use crate::base::{Addr, Seed};
use crate::control::fib_thread::{Built, FibThread};
use crate::control::netlink::{Changes, Link, Mirror, TablePrefix};
use crate::forward::fib::Fib;
use crate::forward::{PortLink, Routes};
use crate::nic::spec::PortSpec;
use crate::packet::{FlowKey, PortId};

/// Builds [`Routes`] anew after changes of the mirror.
pub struct RouteFeed {
    seed: Seed,
    /// By port.
    ports: Vec<PortSpec>,
    /// By port: the interface that it was opened on, which a later one of that name is not.
    devices: Vec<Option<u32>>,
    /// The kernel's tables beside the usual ones, in the order of their own numbers from 1 on.
    tables: Vec<u32>,
    generation: u32,
    thread: FibThread,
    /// What the thread was told of last.
    links: Vec<PortLink>,
    /// Orders given, and those that the forwarding table knows.
    ordered: u64,
    built: u64,
    fib: Arc<Fib>,
    routes: usize,
    refused: usize,
}

impl RouteFeed {
    /// # Errors
    /// The system refusing a thread.
    pub fn new(ports: &[PortSpec], seed: Seed) -> std::io::Result<RouteFeed> {
        let tables = other_tables(ports);
        Ok(RouteFeed {
            seed,
            ports: ports.to_vec(),
            devices: vec![None; ports.len()],
            generation: 0,
            thread: FibThread::start(tables.len())?,
            tables,
            links: Vec::new(),
            ordered: 0,
            built: 0,
            fib: Arc::default(),
            routes: 0,
            refused: 0,
        })
    }

    /// Ports come and go; those that `opened` says were opened just now, on the interfaces that
    /// have their names. Returns what is to be asked [`RouteFeed::knows`] before anybody relies on
    /// routes leading to no other.
    pub fn set_ports(
        &mut self,
        ports: &[PortSpec],
        mirror: &Mirror,
        opened: impl Fn(PortId) -> bool,
    ) -> u64 {
        self.devices.resize(ports.len(), None);
        for (port, device) in ports.iter().zip(&mut self.devices) {
            if port.is_vacant() || opened(port.id) {
                *device = mirror.link_named(&port.interface).map(|link| link.ifindex);
            }
        }
        self.ports = ports.to_vec();
        if self.links(mirror) == self.links {
            return 0;
        }
        self.order(mirror, BTreeSet::new());
        self.ordered
    }

    /// The kernel's tables beside the usual ones that are mirrored.
    pub fn tables(&self) -> &[u32] {
        &self.tables
    }

    /// Whether the forwarding table knows so many orders.
    pub fn knows(&self, orders: u64) -> bool {
        self.built >= orders
    }

    /// The link of a port; `None` while its interface is gone.
    pub fn link<'a>(&self, port: usize, mirror: &'a Mirror) -> Option<&'a Link> {
        match self.devices.get(port).copied().flatten() {
            Some(device) => mirror.link(device),
            None => mirror.link_named(&self.ports.get(port)?.interface),
        }
    }

    /// Whether a port's interface is gone for good: another one has its name now.
    pub fn is_replaced(&self, port: usize, mirror: &Mirror) -> bool {
        let named = self.ports.get(port).and_then(|p| mirror.link_named(&p.interface));
        named.is_some() && self.link(port, mirror).is_none()
    }

    /// Has a forwarding table built of all that the mirror holds, and waits for it.
    pub async fn start(&mut self, mirror: &Mirror) {
        let index = |port: &PortSpec| mirror.link_named(&port.interface).map(|l| l.ifindex);
        self.devices = self.ports.iter().map(index).collect();
        self.order(mirror, mirror.places());
        self.built().await;
    }

    /// Has a forwarding table built if that is needed: [`RouteFeed::built`] tells when it is there.
    pub fn update(&mut self, mirror: &Mirror, changes: Changes) {
        if !changes.places.is_empty() || self.links(mirror) != self.links {
            self.order(mirror, changes.places);
        }
    }

    fn order(&mut self, mirror: &Mirror, places: BTreeSet<TablePrefix>) {
        self.links = self.links(mirror);
        let route = |place: TablePrefix| (place, mirror.route(place));
        self.ordered += 1;
        self.thread.order(self.links.clone(), places.into_iter().map(route).collect());
    }

    /// Waits for the next forwarding table and takes it over. Safe to cancel.
    pub async fn built(&mut self) {
        let Built { fib, routes, refused, orders } = self.thread.built().await;
        (self.fib, self.routes, self.built) = (fib, routes, orders);
        if refused > self.refused {
            tracing::error!(refused, "routes beyond the most that there is room for are not used");
        }
        self.refused = refused;
    }

    /// The routes by the mirror's present links and neighbours, and the last forwarding table.
    pub fn routes(&mut self, mirror: &Mirror) -> Routes {
        // 0 is no generation: flows have it that have cached nothing.
        self.generation = self.generation.checked_add(1).unwrap_or(1);
        let resolved = |(ifindex, addr, n): (u32, Addr, super::netlink::Neighbour)| {
            Some((ifindex, addr, n.mac?))
        };
        let neighbours = mirror.neighbours().filter_map(resolved);
        let fib = Arc::clone(&self.fib);
        let routes = Routes::new(self.generation, self.seed, fib, self.links(mirror), neighbours);
        let number = |port: &PortSpec| {
            let table = self.tables.iter().position(|t| Some(*t) == port.table);
            table.map_or(0, |at| at as u8 + 1)
        };
        routes.with_tables(self.ports.iter().map(number).collect())
    }

    /// Routes in use.
    pub fn routes_len(&self) -> usize {
        self.routes
    }

    /// Interface indexes of the ports that exist.
    pub fn ifindexes(&self, mirror: &Mirror) -> Vec<u32> {
        self.links(mirror).iter().map(|l| l.ifindex).filter(|i| *i != 0).collect()
    }

    fn links(&self, mirror: &Mirror) -> Vec<PortLink> {
        let of = |(at, port)| link(port, self.link(at, mirror), mirror);
        self.ports.iter().enumerate().map(of).collect()
    }
}

/// The kernel's tables that ports have of their own, each once.
pub fn other_tables(ports: &[PortSpec]) -> Vec<u32> {
    let mut tables = Vec::new();
    for table in ports.iter().filter_map(|p| p.table) {
        if !tables.contains(&table) {
            tables.push(table);
        }
    }
    tables
}

/// The link of a port; one that leads nowhere where the interface is gone.
fn link(port: &PortSpec, found: Option<&Link>, mirror: &Mirror) -> PortLink {
    let mut link = PortLink {
        id: port.id,
        ifindex: 0,
        name: port.interface.clone(),
        mac: [0; 6],
        mtu: 0,
        addrs: Vec::new(),
    };
    if let Some(found) = found {
        link.ifindex = found.ifindex;
        link.mac = found.mac.unwrap_or_default();
        link.mtu = u16::try_from(found.mtu).unwrap_or(u16::MAX);
        let of_port = mirror.addresses().filter(|(ifindex, _)| *ifindex == found.ifindex);
        link.addrs = of_port.map(|(_, addr)| addr).collect();
    }
    link
}

/// Neighbours to keep resolved: next hops of `destinations`, and all gateways reached by a port.
pub fn kept_neighbours(
    routes: &Routes,
    destinations: impl Iterator<Item = Addr>,
) -> Vec<(u32, Addr)> {
    let next_hops = destinations.filter_map(|dst| {
        let to = routes.resolve(dst, &FlowKey::default()).ok()?;
        Some((to.port, to.next_hop))
    });
    let all = routes.gateways().chain(next_hops);
    let mut kept: Vec<_> = all.map(|(port, addr)| (routes.port(port).ifindex, addr)).collect();
    kept.sort_unstable();
    kept.dedup();
    kept
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::netlink::mirror::{Fact, Insert};
    use crate::control::netlink::{Link, Neighbour, NeighbourState, NextHop, RouteKey, RouteKind};
    use crate::packet::DropReason;

    fn addr(s: &str) -> Addr {
        s.parse().expect("literal")
    }

    fn port(id: u16, interface: &str) -> PortSpec {
        let spec = PortSpec::in_memory(PortId(id), format!("p{id}"));
        PortSpec { interface: interface.into(), ..spec }
    }

    fn route(prefix: &str, table: u8, metric: u32, kind: RouteKind, via: Option<&str>) -> Fact {
        let key = RouteKey { prefix: prefix.parse().expect("literal"), table, metric };
        let hop = NextHop { kind, via: via.map(addr), ifindex: 7, weight: 1 };
        Fact::Route(key, vec![hop], Insert::New)
    }

    fn mirror() -> Mirror {
        let mut m = Mirror::default();
        let mac = Some([2, 0, 0, 0, 0, 7]);
        let link =
            Link { ifindex: 7, name: "e7".into(), mac, mtu: 70_000, up: true, carrier: true };
        m.load(Fact::Link(link));
        m.load(Fact::Address(7, addr("10.0.0.1")));
        m.load(route("10.0.0.0/24", 1, 0, RouteKind::Unicast, None));
        m.load(route("0.0.0.0/0", 1, 20, RouteKind::Unicast, Some("10.0.0.20")));
        m.load(route("0.0.0.0/0", 1, 10, RouteKind::Unicast, Some("10.0.0.10")));
        m.load(route("192.0.2.0/24", 2, 0, RouteKind::Unicast, Some("10.0.0.9")));
        m.load(route("192.0.2.0/24", 1, 500, RouteKind::Blackhole, None));
        let known = Neighbour { state: NeighbourState::Stale, mac: Some([9; 6]) };
        m.load(Fact::Neighbour(7, addr("10.0.0.10"), known));
        m
    }

    async fn feed(mirror: &Mirror, ports: &[PortSpec]) -> RouteFeed {
        let mut feed = RouteFeed::new(ports, Seed(1)).expect("a thread");
        feed.start(mirror).await;
        feed
    }

    fn run(test: impl Future<Output = ()>) {
        let runtime = tokio::runtime::Builder::new_current_thread().build();
        runtime.expect("a runtime").block_on(test);
    }

    fn to(routes: &Routes, dst: &str) -> Result<crate::forward::Resolved, DropReason> {
        routes.resolve(addr(dst), &FlowKey::default())
    }

    #[test]
    fn the_preferred_route_is_followed_and_neighbours_are_known() {
        run(async {
            let mut m = mirror();
            let mut feed = feed(&m, &[port(0, "e7"), port(1, "gone")]).await;
            let routes = feed.routes(&m);
            let far = to(&routes, "198.51.100.1").expect("a route");
            assert_eq!((far.next_hop, far.mac), (addr("10.0.0.10"), Some([9; 6])));
            assert_eq!(far.mtu, u16::MAX);
            // The main table is asked before the default one, whatever the metric.
            assert_eq!(to(&routes, "192.0.2.1"), Err(DropReason::RouteBlackhole));
            assert_eq!(routes.port(PortId(1)).ifindex, 0);
            assert_eq!((feed.ifindexes(&m), feed.routes_len()), (vec![7], 3));

            let moved = Neighbour { state: NeighbourState::Fresh, mac: Some([8; 6]) };
            m.apply(Fact::Neighbour(7, addr("10.0.0.10"), moved));
            feed.update(&m, Changes { rest: true, ..Changes::default() });
            let again = feed.routes(&m);
            assert_eq!(to(&again, "198.51.100.1").expect("a route").mac, Some([8; 6]));
            assert_ne!(routes.generation(), again.generation());
            m.apply(Fact::LinkGone(7));
            feed.update(&m, Changes { rest: true, ..Changes::default() });
            feed.built().await;
            assert_eq!(to(&feed.routes(&m), "198.51.100.1"), Err(DropReason::NotOurPort));
        });
    }

    /// Its sockets and its program are those of the interface that it was opened on.
    #[test]
    fn a_port_does_not_go_over_to_another_interface_of_its_name() {
        run(async {
            let mut m = mirror();
            let feed = feed(&m, &[port(0, "e7")]).await;
            let known = m.link(7).cloned().expect("the link");
            assert_eq!(feed.link(0, &m), Some(&known));
            let renamed = Link { name: "other".into(), ..known.clone() };
            m.apply(Fact::Link(renamed.clone()));
            assert_eq!((feed.link(0, &m), feed.is_replaced(0, &m)), (Some(&renamed), false));
            m.apply(Fact::LinkGone(7));
            assert_eq!((feed.link(0, &m), feed.is_replaced(0, &m)), (None, false));
            m.apply(Fact::Link(Link { ifindex: 8, ..known }));
            assert_eq!((feed.link(0, &m), feed.is_replaced(0, &m)), (None, true));
            assert!(feed.ifindexes(&m).is_empty());
        });
    }

    #[test]
    fn a_port_may_have_a_table_of_its_own() {
        run(async {
            let mut m = mirror();
            m.load(route("198.51.100.0/24", 3, 0, RouteKind::Unicast, Some("10.0.0.30")));
            let ports = [port(0, "e7"), PortSpec { table: Some(100), ..port(1, "gone") }];
            let mut feed = feed(&m, &ports).await;
            let routes = feed.routes(&m);
            let transit = |port, dst: &str| {
                let to = routes.resolve_transit(PortId(port), addr(dst), &FlowKey::default());
                to.map(|to| to.next_hop)
            };
            assert_eq!(transit(0, "198.51.100.1"), Ok(addr("10.0.0.10")));
            assert_eq!(transit(1, "198.51.100.1"), Ok(addr("10.0.0.30")));
            assert_eq!(transit(1, "10.0.0.7"), Err(DropReason::NoRoute));
            assert_eq!(transit(1, "10.0.0.1"), Err(DropReason::NotHandled), "the box's own");
            assert_eq!((routes.table_of(PortId(0)), routes.table_of(PortId(1))), (0, 1));
        });
    }

    #[test]
    fn gateways_and_backends_are_kept() {
        run(async {
            let m = mirror();
            let routes = feed(&m, &[port(0, "e7")]).await.routes(&m);
            let wanted = ["10.0.0.77", "198.51.100.1", "192.0.2.1"].map(addr);
            let kept = kept_neighbours(&routes, wanted.into_iter());
            assert_eq!(kept, ["10.0.0.10", "10.0.0.77"].map(|a| (7, addr(a))));
        });
    }
}
