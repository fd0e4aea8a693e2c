//! From the mirror of the kernel's tables to the routes that workers forward by.

use crate::base::{Addr, Seed};
use crate::control::netlink::{Mirror, RouteKind};
use crate::forward::{PortLink, RouteSpec, Routes, RoutesBuilder};
use crate::nic::spec::PortSpec;

/// Builds [`Routes`] anew after changes of the mirror.
pub struct RouteFeed {
    builder: RoutesBuilder,
    /// Interface names by port.
    interfaces: Vec<PortSpec>,
    generation: u32,
    /// [`super::netlink::Netlink::routes_version`] of what the builder holds.
    version: Option<u64>,
}

impl RouteFeed {
    pub fn new(ports: &[PortSpec], seed: Seed) -> RouteFeed {
        RouteFeed {
            builder: RoutesBuilder::new(Vec::new(), seed),
            interfaces: ports.to_vec(),
            generation: 0,
            version: None,
        }
    }

    /// The routes by the mirror's present state. While `version` stays the same only neighbours are
    /// read from it.
    pub fn build(&mut self, mirror: &Mirror, version: u64) -> Routes {
        if self.version != Some(version) {
            self.version = Some(version);
            self.builder.set_ports(self.links(mirror));
            self.read_routes(mirror);
        }
        self.builder.clear_neighbours();
        for (ifindex, addr, neighbour) in mirror.neighbours() {
            if let Some(mac) = neighbour.mac {
                self.builder.set_neighbour(ifindex, addr, mac);
            }
        }
        // 0 is no generation: flows have it that have cached nothing.
        self.generation = self.generation.checked_add(1).unwrap_or(1);
        self.builder.build(self.generation)
    }

    /// Prefixes that there is a route for.
    pub fn routes_len(&self) -> usize {
        self.builder.routes_len()
    }

    /// Interface indexes of the ports that exist.
    pub fn ifindexes(&self, mirror: &Mirror) -> Vec<u32> {
        self.links(mirror).iter().map(|l| l.ifindex).filter(|i| *i != 0).collect()
    }

    fn links(&self, mirror: &Mirror) -> Vec<PortLink> {
        self.interfaces.iter().map(|port| link(port, mirror)).collect()
    }

    /// The kernel looks no further than the preferred route of a prefix, nor do we: its other
    /// routes take over when the kernel drops the first.
    fn read_routes(&mut self, mirror: &Mirror) {
        self.builder.clear_routes();
        let mut last = None;
        for (key, hop) in mirror.routes() {
            if last == Some(key.prefix) {
                continue;
            }
            last = Some(key.prefix);
            self.builder.add_route(RouteSpec {
                prefix: key.prefix,
                via: hop.via,
                ifindex: hop.ifindex,
                kind: hop.kind,
                metric: key.metric,
            });
        }
    }
}

/// The link of a port; one that leads nowhere where the interface is gone.
fn link(port: &PortSpec, mirror: &Mirror) -> PortLink {
    let mut link = PortLink {
        id: port.id,
        ifindex: 0,
        name: port.interface.clone(),
        mac: [0; 6],
        mtu: 0,
        addrs: Vec::new(),
    };
    if let Some(found) = mirror.link_named(&port.interface) {
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
    mirror: &Mirror,
    routes: &Routes,
    destinations: impl Iterator<Item = Addr>,
) -> Vec<(u32, Addr)> {
    let ports = routes.ports();
    let is_port = |ifindex: u32| ports.iter().any(|p| p.ifindex == ifindex);
    let gateways = mirror.routes().filter_map(|(_, hop)| match hop.kind {
        RouteKind::Unicast => hop.via.filter(|_| is_port(hop.ifindex)).map(|a| (hop.ifindex, a)),
        _ => None,
    });
    let next_hops = destinations.filter_map(|dst| {
        let to = routes.resolve(dst).ok()?;
        Some((routes.port(to.port).ifindex, to.next_hop))
    });
    gateways.chain(next_hops).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::netlink::mirror::{Fact, Insert};
    use crate::control::netlink::{Link, Neighbour, NeighbourState, NextHop, RouteKey};
    use crate::packet::{DropReason, PortId};

    fn addr(s: &str) -> Addr {
        s.parse().expect("literal")
    }

    fn port(id: u16, interface: &str) -> PortSpec {
        let spec = PortSpec::in_memory(PortId(id), format!("p{id}"));
        PortSpec { interface: interface.into(), ..spec }
    }

    fn route(prefix: &str, table: u8, metric: u32, kind: RouteKind, via: Option<&str>) -> Fact {
        let key = RouteKey { prefix: prefix.parse().expect("literal"), table, metric };
        let hop = NextHop { kind, via: via.map(addr), ifindex: 7 };
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

    #[test]
    fn the_preferred_route_is_followed_and_neighbours_are_known() {
        let mut feed = RouteFeed::new(&[port(0, "e7"), port(1, "gone")], Seed(1));
        let mut m = mirror();
        let routes = feed.build(&m, 0);
        let to = routes.resolve(addr("198.51.100.1")).expect("a route");
        assert_eq!((to.next_hop, to.mac), (addr("10.0.0.10"), Some([9; 6])));
        assert_eq!(to.mtu, u16::MAX);
        // The main table is asked before the default one, whatever the metric.
        assert_eq!(routes.resolve(addr("192.0.2.1")), Err(DropReason::RouteForbids));
        assert_eq!(routes.port(PortId(1)).ifindex, 0);
        assert_eq!(feed.ifindexes(&m), [7]);

        let moved = Neighbour { state: NeighbourState::Fresh, mac: Some([8; 6]) };
        m.apply(Fact::Neighbour(7, addr("10.0.0.10"), moved));
        let again = feed.build(&m, 0);
        assert_eq!(again.resolve(addr("198.51.100.1")).expect("a route").mac, Some([8; 6]));
        assert_ne!(routes.generation(), again.generation());
        m.apply(Fact::LinkGone(7));
        let none = feed.build(&m, 1);
        assert_eq!(none.resolve(addr("198.51.100.1")), Err(DropReason::NotOurPort));
    }

    #[test]
    fn gateways_and_backends_are_kept() {
        let mut feed = RouteFeed::new(&[port(0, "e7")], Seed(1));
        let m = mirror();
        let routes = feed.build(&m, 0);
        let wanted = ["10.0.0.77", "198.51.100.1", "192.0.2.1"].map(addr);
        let mut kept = kept_neighbours(&m, &routes, wanted.into_iter());
        kept.sort();
        kept.dedup();
        let want = ["10.0.0.9", "10.0.0.10", "10.0.0.20", "10.0.0.77"].map(|a| (7, addr(a)));
        assert_eq!(kept, want);
    }
}
