//! What the kernel is known to hold, kept up by facts read from its messages.

use std::cmp::Ordering;
use std::collections::{BTreeMap, BTreeSet};
use std::ops::RangeInclusive;

use crate::base::{Addr, Prefix};
pub use crate::forward::RouteKind;
use crate::forward::fib::{Hop, Route};

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
    /// 0 local, 1 main, 2 default: the order of the kernel's own rules (`ip rule`). From
    /// [`OTHER_TABLES`] on those that were asked for besides.
    pub table: u8,
    /// `RTA_PRIORITY`; the lowest wins.
    pub metric: u32,
}

/// [`RouteKey::table`] of the first table beside the kernel's usual ones.
pub const OTHER_TABLES: u8 = 3;

/// A prefix in a table of the forwarding table: 0 is what the kernel's usual tables make together,
/// 1 the first other one.
pub type TablePrefix = (u8, Prefix);

impl RouteKey {
    /// Where the route counts.
    pub fn place(&self) -> TablePrefix {
        (self.table.saturating_sub(OTHER_TABLES - 1), self.prefix)
    }
}

/// [`RouteKey::table`] of what makes a table of the forwarding table.
fn sources(table: u8) -> RangeInclusive<u8> {
    match table {
        0 => 0..=OTHER_TABLES - 1,
        other => other.saturating_add(OTHER_TABLES - 1)..=other.saturating_add(OTHER_TABLES - 1),
    }
}

/// One way of a route.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NextHop {
    pub kind: RouteKind,
    /// The gateway; `None` where the destination itself is on the link.
    pub via: Option<Addr>,
    /// 0 where the route needs no interface (blackhole).
    pub ifindex: u32,
    /// Share of flows among several ways, 1 at least.
    pub weight: u16,
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
    /// told from its message. So many of the hops are the first one's, the only one in use.
    stacked: Option<usize>,
}

impl Ways {
    fn route(&self) -> Option<Route> {
        let in_use = &self.hops[..self.stacked.unwrap_or(self.hops.len()).min(self.hops.len())];
        let kind = in_use.first()?.kind;
        let hop = |h: &NextHop| Hop { via: h.via, ifindex: h.ifindex, weight: h.weight };
        let hops = match kind {
            RouteKind::Unicast => in_use.iter().map(hop).collect(),
            _ => Vec::new(),
        };
        Some(Route { kind, hops })
    }
}

/// Links, addresses, routes of the local, main and default tables and of those asked for, and
/// neighbours of one network namespace.
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
                if key.prefix.is_v4() && !ways.hops.is_empty() {
                    ways.stacked.get_or_insert(ways.hops.len());
                }
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

    /// The route of a prefix that the kernel follows: it looks no further than the preferred one,
    /// nor do we. Its others take over when the kernel drops that.
    pub fn route(&self, (table, prefix): TablePrefix) -> Option<Route> {
        let tables = sources(table);
        let first = RouteKey { prefix, table: *tables.start(), metric: 0 };
        let last = RouteKey { prefix, table: *tables.end(), metric: u32::MAX };
        self.routes.range(first..=last).next().and_then(|(_, ways)| ways.route())
    }

    /// Every prefix that has a route.
    pub fn places(&self) -> BTreeSet<TablePrefix> {
        self.routes.keys().map(RouteKey::place).collect()
    }

    /// Where routes differ from those of another state.
    pub fn places_unlike(&self, other: &Mirror) -> BTreeSet<TablePrefix> {
        let mut places = BTreeSet::new();
        let (mut ours, mut theirs) = (self.routes.iter(), other.routes.iter());
        let (mut a, mut b) = (ours.next(), theirs.next());
        loop {
            let order = match (a, b) {
                (None, None) => return places,
                (Some(_), None) => Ordering::Less,
                (None, Some(_)) => Ordering::Greater,
                (Some((x, _)), Some((y, _))) => x.cmp(y),
            };
            let differs = a.map(|(_, ways)| ways) != b.map(|(_, ways)| ways);
            let key = if order == Ordering::Greater { b } else { a };
            if let Some((key, _)) = key.filter(|_| order != Ordering::Equal || differs) {
                places.insert(key.place());
            }
            if order != Ordering::Greater {
                a = ours.next();
            }
            if order != Ordering::Less {
                b = theirs.next();
            }
        }
    }

    /// Whether nothing but routes differs.
    pub fn same_but_routes(&self, other: &Mirror) -> bool {
        self.links == other.links
            && self.addresses == other.addresses
            && self.neighbours == other.neighbours
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
            if ways.stacked.is_some() {
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
        if ways.stacked.is_some() {
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
mod tests;
