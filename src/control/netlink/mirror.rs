//! What the kernel is known to hold, kept up by facts read from its messages.

use std::collections::{BTreeMap, BTreeSet};

use crate::base::{Addr, Prefix};
pub use crate::forward::RouteKind;

/// A network interface.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Link {
    pub ifindex: u32,
    pub name: String,
    /// `None` where it has no Ethernet address.
    pub mac: Option<[u8; 6]>,
    /// Largest IP packet, bytes.
    pub mtu: u32,
    /// Administratively up (`IFF_UP`).
    pub up: bool,
    /// With a carrier (`IFF_LOWER_UP`).
    pub carrier: bool,
}

/// What tells two routes apart. Orders by prefix, then as the kernel prefers them: the local table
/// before main before default, then the lower metric.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct RouteKey {
    pub prefix: Prefix,
    /// 0 local, 1 main, 2 default: the order of the kernel's own rules (`ip rule`).
    pub table: u8,
    /// `RTA_PRIORITY`; the lowest wins.
    pub metric: u32,
}

/// One way of a route.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NextHop {
    pub kind: RouteKind,
    /// The gateway; `None` where the destination itself is on the link.
    pub via: Option<Addr>,
    /// 0 where the route needs no interface (blackhole).
    pub ifindex: u32,
}

/// `NUD_*` of linux/neighbour.h, as far as it matters here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NeighbourState {
    /// Asked for, no answer yet.
    Incomplete,
    /// Confirmed, or being confirmed again (reachable, delay, probe).
    Fresh,
    /// Known, unconfirmed for a while.
    Stale,
    Failed,
    /// Set by hand or needing no resolution: never to be asked for.
    Fixed,
}

impl NeighbourState {
    /// As `ip neighbour` would say it, shortened to what is kept.
    pub fn label(self) -> &'static str {
        match self {
            NeighbourState::Incomplete => "incomplete",
            NeighbourState::Fresh => "reachable",
            NeighbourState::Stale => "stale",
            NeighbourState::Failed => "failed",
            NeighbourState::Fixed => "permanent",
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Neighbour {
    pub state: NeighbourState,
    /// Usable for sending; `None` while unresolved.
    pub mac: Option<[u8; 6]>,
}

/// Whether a notified route replaces, joins or precedes what has its key (`NLM_F_*`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Insert {
    /// The first of its key.
    New,
    Replace,
    /// Another of the same key may stand before or behind it.
    Stack,
}

/// One thing the kernel said.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fact {
    Link(Link),
    LinkGone(u32),
    Address(u32, Addr),
    AddressGone(u32, Addr),
    Route(RouteKey, Vec<NextHop>, Insert),
    RouteGone(RouteKey, Vec<NextHop>),
    Neighbour(u32, Addr, Neighbour),
    NeighbourGone(u32, Addr),
}

/// What a fact did to the mirror.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Effect {
    /// Forwarding stays as it was.
    None,
    Changed,
    /// The kernel may have changed more than it told: dump everything again.
    Doubt,
}

/// The ways of one route key.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Ways {
    hops: Vec<NextHop>,
    /// Several IPv4 routes of this very key, in the kernel's order: what a removal leaves can't be
    /// told from its message.
    stacked: bool,
}

/// Links, addresses, routes of the local, main and default tables, and neighbours of one network
/// namespace.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Mirror {
    links: BTreeMap<u32, Link>,
    addresses: BTreeSet<(u32, Addr)>,
    routes: BTreeMap<RouteKey, Ways>,
    neighbours: BTreeMap<(u32, Addr), Neighbour>,
}

impl Mirror {
    /// Takes a fact of a dump: dumps list all there is, so nothing is replaced.
    pub fn load(&mut self, fact: Fact) {
        match fact {
            Fact::Route(key, hops, _) => {
                let ways = self.routes.entry(key).or_default();
                // IPv6 dumps list each way of a multipath route by itself.
                ways.stacked |= key.prefix.is_v4() && !ways.hops.is_empty();
                ways.hops.extend(hops);
            }
            fact => {
                self.apply(fact);
            }
        }
    }

    /// Takes a notified fact. Facts that are already known change nothing.
    pub fn apply(&mut self, fact: Fact) -> Effect {
        match fact {
            Fact::Link(link) => self.apply_link(link),
            Fact::LinkGone(ifindex) => match self.links.remove(&ifindex) {
                // The kernel flushes IPv4 routes and neighbours of a link without a word.
                Some(_) => Effect::Doubt,
                None => Effect::None,
            },
            Fact::Address(ifindex, addr) => changed(self.addresses.insert((ifindex, addr))),
            // Routes that prefer this source go with it, unannounced (fib_sync_down_addr).
            Fact::AddressGone(ifindex, addr) => match self.addresses.remove(&(ifindex, addr)) {
                true => Effect::Doubt,
                false => Effect::None,
            },
            Fact::Route(key, hops, insert) => self.apply_route(key, hops, insert),
            Fact::RouteGone(key, hops) => self.remove_route(key, &hops),
            Fact::Neighbour(ifindex, addr, neighbour) => {
                let old = self.neighbours.insert((ifindex, addr), neighbour);
                changed(old.and_then(|n| n.mac) != neighbour.mac)
            }
            Fact::NeighbourGone(ifindex, addr) => {
                let old = self.neighbours.remove(&(ifindex, addr));
                changed(old.is_some_and(|n| n.mac.is_some()))
            }
        }
    }

    pub fn links(&self) -> impl Iterator<Item = &Link> {
        self.links.values()
    }

    /// The interface of this name.
    pub fn link_named(&self, name: &str) -> Option<&Link> {
        self.links.values().find(|l| l.name == name)
    }

    pub fn link(&self, ifindex: u32) -> Option<&Link> {
        self.links.get(&ifindex)
    }

    /// Interface index and address, of all interfaces.
    pub fn addresses(&self) -> impl Iterator<Item = (u32, Addr)> {
        self.addresses.iter().copied()
    }

    /// All ways of all routes; of one prefix the preferred first.
    pub fn routes(&self) -> impl Iterator<Item = (RouteKey, NextHop)> {
        self.routes.iter().flat_map(|(key, ways)| ways.hops.iter().map(|hop| (*key, *hop)))
    }

    /// Whether nothing but neighbours differs.
    pub fn same_routes(&self, other: &Mirror) -> bool {
        self.links == other.links
            && self.addresses == other.addresses
            && self.routes == other.routes
    }

    pub fn neighbours(&self) -> impl Iterator<Item = (u32, Addr, Neighbour)> {
        self.neighbours.iter().map(|(&(ifindex, addr), &n)| (ifindex, addr, n))
    }

    pub fn neighbour(&self, ifindex: u32, addr: Addr) -> Option<Neighbour> {
        self.neighbours.get(&(ifindex, addr)).copied()
    }

    fn apply_link(&mut self, link: Link) -> Effect {
        let (up, carrier) = (link.up, link.carrier);
        match self.links.insert(link.ifindex, link.clone()) {
            None => Effect::Changed,
            Some(old) if old == link => Effect::None,
            // Going down flushes IPv4 routes silently; a carrier marks next hops dead or alive.
            Some(old) if old.up != up || old.carrier != carrier => Effect::Doubt,
            Some(_) => Effect::Changed,
        }
    }

    fn apply_route(&mut self, key: RouteKey, hops: Vec<NextHop>, insert: Insert) -> Effect {
        let v4 = key.prefix.is_v4();
        let ways = self.routes.entry(key).or_default();
        if insert == Insert::Replace {
            if ways.stacked {
                return Effect::Doubt;
            }
            let same = ways.hops == hops;
            ways.hops = hops;
            return changed(!same);
        }
        if ways.hops.is_empty() {
            ways.hops = hops;
            return Effect::Changed;
        }
        if hops.iter().all(|h| ways.hops.contains(h)) {
            return Effect::None;
        }
        if v4 {
            return Effect::Doubt;
        }
        // IPv6 routes of one key are the ways of one multipath route.
        for hop in hops {
            if !ways.hops.contains(&hop) {
                ways.hops.push(hop);
            }
        }
        Effect::Changed
    }

    fn remove_route(&mut self, key: RouteKey, hops: &[NextHop]) -> Effect {
        let Some(ways) = self.routes.get_mut(&key) else { return Effect::None };
        if ways.stacked {
            return Effect::Doubt;
        }
        if key.prefix.is_v4() {
            self.routes.remove(&key);
            return Effect::Changed;
        }
        let before = ways.hops.len();
        ways.hops.retain(|h| !hops.contains(h));
        let after = ways.hops.len();
        if after == 0 {
            self.routes.remove(&key);
        }
        if after == before { Effect::Doubt } else { Effect::Changed }
    }
}

fn changed(yes: bool) -> Effect {
    if yes { Effect::Changed } else { Effect::None }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(prefix: &str, metric: u32) -> RouteKey {
        RouteKey { prefix: prefix.parse().expect("literal"), table: 1, metric }
    }

    fn hop(via: &str, ifindex: u32) -> NextHop {
        let via = Some(via.parse().expect("literal"));
        NextHop { kind: RouteKind::Unicast, via, ifindex }
    }

    fn link(up: bool) -> Link {
        Link { ifindex: 2, name: "a".into(), mac: None, mtu: 1500, up, carrier: up }
    }

    #[test]
    fn known_facts_change_nothing() {
        let mut m = Mirror::default();
        let route = Fact::Route(key("10.0.0.0/8", 0), vec![hop("192.0.2.1", 2)], Insert::New);
        for fact in [Fact::Link(link(true)), Fact::Address(2, Addr::v4(1)), route] {
            assert_eq!(m.apply(fact.clone()), Effect::Changed, "{fact:?}");
            assert_eq!(m.apply(fact.clone()), Effect::None, "{fact:?}");
        }
        assert_eq!(m.apply(Fact::LinkGone(9)), Effect::None);
        assert_eq!(m.apply(Fact::RouteGone(key("11.0.0.0/8", 0), vec![])), Effect::None);
    }

    #[test]
    fn what_the_kernel_flushes_silently_raises_doubt() {
        let mut m = Mirror::default();
        m.apply(Fact::Link(link(true)));
        m.apply(Fact::Address(2, Addr::v4(1)));
        assert_eq!(m.apply(Fact::Link(link(false))), Effect::Doubt);
        assert_eq!(m.apply(Fact::AddressGone(2, Addr::v4(1))), Effect::Doubt);
        assert_eq!(m.apply(Fact::LinkGone(2)), Effect::Doubt);
    }

    #[test]
    fn a_second_ipv4_route_of_a_key_raises_doubt_and_ipv6_gains_a_way() {
        let mut m = Mirror::default();
        let (k4, k6) = (key("10.0.0.0/8", 0), key("2001:db8::/32", 1024));
        m.apply(Fact::Route(k4, vec![hop("192.0.2.1", 2)], Insert::New));
        let second = Fact::Route(k4, vec![hop("192.0.2.2", 2)], Insert::Stack);
        assert_eq!(m.apply(second), Effect::Doubt);

        m.apply(Fact::Route(k6, vec![hop("fe80::1", 2)], Insert::New));
        let second = Fact::Route(k6, vec![hop("fe80::2", 2)], Insert::Stack);
        assert_eq!(m.apply(second), Effect::Changed);
        assert_eq!(m.routes().filter(|(k, _)| *k == k6).count(), 2);
        let gone = Fact::RouteGone(k6, vec![hop("fe80::1", 2)]);
        assert_eq!(m.apply(gone.clone()), Effect::Changed);
        assert_eq!(m.apply(gone), Effect::Doubt, "a way nobody told us of");
        assert_eq!(m.routes().filter(|(k, _)| *k == k6).count(), 1);
    }

    #[test]
    fn replaced_routes_are_replaced_unless_stacked() {
        let mut m = Mirror::default();
        let k = key("10.0.0.0/8", 0);
        m.load(Fact::Route(k, vec![hop("192.0.2.1", 2)], Insert::New));
        let replace = Fact::Route(k, vec![hop("192.0.2.9", 2)], Insert::Replace);
        assert_eq!(m.apply(replace.clone()), Effect::Changed);
        assert_eq!(m.routes().map(|r| r.1).collect::<Vec<_>>(), [hop("192.0.2.9", 2)]);
        m.load(Fact::Route(k, vec![hop("192.0.2.3", 2)], Insert::New));
        assert_eq!(m.apply(replace), Effect::Doubt);
        assert_eq!(m.apply(Fact::RouteGone(k, vec![])), Effect::Doubt);
    }

    #[test]
    fn the_preferred_route_of_a_prefix_comes_first() {
        let mut m = Mirror::default();
        for (table, metric) in [(2, 0), (1, 100), (1, 50), (0, 0)] {
            let k = RouteKey { table, ..key("10.0.0.0/8", metric) };
            m.load(Fact::Route(k, vec![hop("192.0.2.1", 2)], Insert::New));
        }
        let order: Vec<_> = m.routes().map(|(k, _)| (k.table, k.metric)).collect();
        assert_eq!(order, [(0, 0), (1, 50), (1, 100), (2, 0)]);
    }

    #[test]
    fn only_a_changed_address_of_a_neighbour_matters_to_forwarding() {
        let mut m = Mirror::default();
        let at = |state, mac| Fact::Neighbour(2, Addr::v4(7), Neighbour { state, mac });
        let mac = Some([2, 0, 0, 0, 0, 1]);
        assert_eq!(m.apply(at(NeighbourState::Incomplete, None)), Effect::None);
        assert_eq!(m.apply(at(NeighbourState::Fresh, mac)), Effect::Changed);
        assert_eq!(m.apply(at(NeighbourState::Stale, mac)), Effect::None);
        assert_eq!(m.neighbour(2, Addr::v4(7)).map(|n| n.state), Some(NeighbourState::Stale));
        assert_eq!(m.apply(at(NeighbourState::Failed, None)), Effect::Changed);
        assert_eq!(m.apply(Fact::NeighbourGone(2, Addr::v4(7))), Effect::None);
    }
}
