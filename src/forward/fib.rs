//! The forwarding table: what a destination leads to, by the kernel's routes.
//!
//! [`FibBuilder`] holds the routes in use and makes [`Fib`]s of them, which never change. Several
//! ways of one route share its flows (ECMP): each flow hashes to a bucket, and each bucket belongs
//! to the way that wins it by weighted rendezvous hashing. So when a way goes only its own flows
//! move, and when one comes only those that it gets; and the same ways give the same buckets in
//! every process.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use crate::base::hash::hash5;
use crate::base::{Addr, Prefix, Seed};
use crate::packet::{DropReason, FlowKey, PortId};

use super::lpm::{Lpm, PREFIXES_MAX};
use super::rendezvous::distance;
use super::routes::{PortLink, RouteKind, is_reserved, reserved};

/// Routes of one table at most: a prefix each, less what is added for the box's own addresses.
pub const ROUTES_MAX: usize = PREFIXES_MAX - OWN_MAX;
/// Prefixes that are the kernel's own, whatever the routes: addresses of ports beyond that are
/// forwarded as routes say.
const OWN_MAX: usize = 65_536;
/// Ways of one route at most; others are not used.
pub const WAYS_MAX: usize = 64;
/// Sets of ways at most; routes of further ones take the first of their ways.
const GROUPS_MAX: usize = 4_096;
/// By which ways share flows: 64 for each of the most that there may be.
const BUCKETS: usize = 4_096;
const _: () = assert!(WAYS_MAX <= 1 + u8::MAX as usize && BUCKETS >= 64 * WAYS_MAX);

// A constant, not the process's secret: a restart must not move flows. Who knows it can choose
// which way their own flows take, and no more.
const BUCKET_SEED: Seed = Seed(0x6563_6d70_2d62_6b74);

/// One way of a route.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Hop {
    /// Gateway; `None`: the destination is on the link.
    pub via: Option<Addr>,
    pub ifindex: u32,
    /// Share of flows, 1 at least.
    pub weight: u16,
}

/// What becomes of packets to a prefix.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Route {
    pub kind: RouteKind,
    /// Empty unless it is a unicast one.
    pub hops: Vec<Hop>,
}

impl Route {
    /// A route of one way, or none where `kind` has none.
    pub fn single(kind: RouteKind, via: Option<Addr>, ifindex: u32) -> Route {
        let hops = match kind {
            RouteKind::Unicast => vec![Hop { via, ifindex, weight: 1 }],
            _ => Vec::new(),
        };
        Route { kind, hops }
    }
}

/// An immutable forwarding table, for every table of routes one.
#[derive(Debug, Default)]
pub struct Fib {
    main: Lpm,
    others: Vec<Lpm>,
    targets: Vec<Target>,
    groups: Vec<Group>,
}

/// What a leaf of the trie stands for. Few are distinct, however many the routes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Target {
    Way(Way),
    /// Index in `groups`.
    Group(u32),
    Refused(DropReason),
}

/// A port, and the gateway behind it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Way {
    pub port: PortId,
    /// `None`: the destination itself is on the link.
    pub via: Option<Addr>,
}

#[derive(Debug)]
struct Group {
    ways: Vec<Way>,
    /// Index in `ways`, by bucket.
    buckets: Arc<[u8; BUCKETS]>,
}

impl Fib {
    /// The way of a flow to a destination, by the main table.
    ///
    /// # Errors
    /// See [`super::Routes::resolve`].
    #[inline]
    pub fn way(&self, dst: Addr, flow: &FlowKey) -> Result<Way, DropReason> {
        self.way_by(&self.main, dst, flow)
    }

    /// Asks the cache for what look-ups of these destinations by the main table will read.
    #[inline]
    pub fn ask(&self, dsts: impl Iterator<Item = Addr> + Clone) {
        self.main.ask(dsts);
    }

    /// The same by another table: 1 is the first of those that the builder was given.
    ///
    /// # Errors
    /// As above; [`DropReason::NoRoute`] by a table that does not exist.
    #[inline]
    pub fn way_in(&self, table: u8, dst: Addr, flow: &FlowKey) -> Result<Way, DropReason> {
        match table.checked_sub(1) {
            None => self.way(dst, flow),
            Some(other) => {
                let lpm = self.others.get(usize::from(other)).ok_or(DropReason::NoRoute)?;
                self.way_by(lpm, dst, flow)
            }
        }
    }

    #[inline]
    fn way_by(&self, lpm: &Lpm, dst: Addr, flow: &FlowKey) -> Result<Way, DropReason> {
        let target = lpm.lookup(dst).and_then(|i| self.targets.get(i as usize));
        match *target.ok_or(DropReason::NoRoute)? {
            Target::Way(way) => Ok(way),
            Target::Group(index) => self.way_of_group(index, flow).ok_or(DropReason::NoRoute),
            Target::Refused(reason) => Err(reason),
        }
    }

    #[inline(never)]
    fn way_of_group(&self, index: u32, flow: &FlowKey) -> Option<Way> {
        let group = self.groups.get(index as usize)?;
        let way = group.buckets[flow.hash(BUCKET_SEED) as usize % BUCKETS];
        group.ways.get(usize::from(way)).copied()
    }

    /// Every gateway of every route, some of them repeatedly.
    pub fn gateways(&self) -> impl Iterator<Item = (PortId, Addr)> {
        let single = self.targets.iter().filter_map(|t| match t {
            Target::Way(way) => Some(*way),
            _ => None,
        });
        let ways = single.chain(self.groups.iter().flat_map(|g| g.ways.iter().copied()));
        ways.filter_map(|way| Some((way.port, way.via?)))
    }

    /// Bytes of memory it takes.
    pub fn memory_bytes(&self) -> usize {
        let tries: usize = self.others.iter().map(Lpm::memory_bytes).sum();
        tries
            + self.main.memory_bytes()
            + self.targets.capacity() * size_of::<Target>()
            + self.groups.len() * (size_of::<Group>() + BUCKETS)
    }
}

/// The routes in use.
#[derive(Debug)]
pub struct FibBuilder {
    ports: Vec<PortLink>,
    /// The main table first; by prefix the index in `known`.
    tables: Vec<BTreeMap<Prefix, u32>>,
    known: Known,
    /// Buckets of the last build.
    buckets: HashMap<Vec<Hop>, Arc<[u8; BUCKETS]>>,
    /// Of the last build; `None` after a change.
    built: Option<Arc<Fib>>,
}

/// There are [`ROUTES_MAX`] routes already.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Full;

impl FibBuilder {
    /// With so many tables beside the main one.
    pub fn new(ports: Vec<PortLink>, others: usize) -> FibBuilder {
        FibBuilder {
            ports,
            tables: vec![BTreeMap::new(); 1 + others],
            known: Known::default(),
            buckets: HashMap::new(),
            built: None,
        }
    }

    pub fn ports(&self) -> &[PortLink] {
        &self.ports
    }

    /// Replaces what is known of the links, such as after a change of address or MTU.
    pub fn set_ports(&mut self, ports: Vec<PortLink>) {
        if self.ports != ports {
            self.ports = ports;
            self.built = None;
        }
    }

    /// The route of a prefix from now on, in table 0 (the main one) or another; `None`: it has
    /// none.
    ///
    /// # Errors
    /// [`Full`]; nothing has changed then.
    pub fn set(&mut self, table: u8, prefix: Prefix, route: Option<&Route>) -> Result<(), Full> {
        let Some(routes) = self.tables.get_mut(usize::from(table)) else { return Ok(()) };
        let before = routes.get(&prefix).copied();
        match (route, before) {
            (None, None) => return Ok(()),
            (None, Some(_)) => drop(routes.remove(&prefix)),
            (Some(_), None) if routes.len() >= ROUTES_MAX => return Err(Full),
            (Some(route), _) => {
                // Taken before the old one is given back, which may be the same.
                routes.insert(prefix, self.known.take(route));
            }
        }
        before.into_iter().for_each(|index| self.known.give_back(index));
        self.built = None;
        Ok(())
    }

    /// Forgets all routes.
    pub fn clear(&mut self) {
        self.tables.iter_mut().for_each(BTreeMap::clear);
        self.known = Known::default();
        self.built = None;
    }

    /// Routes of all tables.
    pub fn len(&self) -> usize {
        self.tables.iter().map(BTreeMap::len).sum()
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The present state.
    pub fn build(&mut self) -> Arc<Fib> {
        if let Some(fib) = &self.built {
            return Arc::clone(fib);
        }
        let mut fib = Fib::default();
        let mut buckets = HashMap::new();
        for known in &self.known.list {
            let target = match &known.route {
                Some(route) => self.target(route, &mut fib.groups, &mut buckets),
                None => Target::Refused(DropReason::NoRoute),
            };
            fib.targets.push(target);
        }
        self.buckets = buckets;
        // Last, so that they win over routes of the same prefix.
        let own = self.ports.iter().flat_map(|p| &p.addrs).map(|a| Prefix::host(*a));
        let refused = fib.targets.len() as u32;
        fib.targets.push(Target::Refused(DropReason::NotHandled));
        let own: Vec<_> = reserved().chain(own).take(OWN_MAX).map(|p| (p, refused)).collect();
        let mut tries = self.tables.iter().map(|routes| {
            let usable = routes.iter().filter(|(p, _)| !is_reserved(**p));
            let mut all: Vec<_> = usable.map(|(p, index)| (*p, *index)).collect();
            all.extend_from_slice(&own);
            Lpm::build(&all)
        });
        fib.main = tries.next().unwrap_or_default();
        fib.others = tries.collect();
        let fib = Arc::new(fib);
        self.built = Some(Arc::clone(&fib));
        fib
    }

    fn target(
        &self,
        route: &Route,
        groups: &mut Vec<Group>,
        buckets: &mut HashMap<Vec<Hop>, Arc<[u8; BUCKETS]>>,
    ) -> Target {
        match route.kind {
            RouteKind::Unicast => {}
            RouteKind::Blackhole => return Target::Refused(DropReason::RouteBlackhole),
            RouteKind::Unreachable => return Target::Refused(DropReason::RouteUnreachable),
            RouteKind::Prohibit => return Target::Refused(DropReason::RouteForbids),
            RouteKind::Local => return Target::Refused(DropReason::NotHandled),
        }
        let mut hops: Vec<Hop> = route.hops.clone();
        hops.retain(|hop| self.port_of(hop.ifindex).is_some());
        hops.sort_unstable();
        hops.dedup();
        hops.truncate(WAYS_MAX);
        let way = |hop: &Hop| {
            let via = hop.via.filter(|via| !via.is_unspecified());
            self.port_of(hop.ifindex).map(|port| Way { port, via })
        };
        let ways: Vec<Way> = hops.iter().filter_map(way).collect();
        match ways[..] {
            [] => Target::Refused(DropReason::NotOurPort),
            [only] => Target::Way(only),
            [first, ..] if groups.len() >= GROUPS_MAX => Target::Way(first),
            _ => {
                let known = buckets.get(&hops).or_else(|| self.buckets.get(&hops)).cloned();
                let shared = known.unwrap_or_else(|| Arc::new(share(&hops)));
                buckets.insert(hops, Arc::clone(&shared));
                groups.push(Group { ways, buckets: shared });
                Target::Group(groups.len() as u32 - 1)
            }
        }
    }

    fn port_of(&self, ifindex: u32) -> Option<PortId> {
        self.ports.iter().find(|p| p.ifindex == ifindex).map(|p| p.id)
    }
}

/// Which way each bucket belongs to: weighted rendezvous hashing.
fn share(hops: &[Hop]) -> [u8; BUCKETS] {
    let mut buckets = [0; BUCKETS];
    for (bucket, owner) in (0u64..).zip(&mut buckets) {
        let mut least = f64::INFINITY;
        for (way, hop) in (0u8..).zip(hops) {
            let via = hop.via.unwrap_or_default();
            let hash = hash5(BUCKET_SEED, via.hi, via.lo, u64::from(hop.ifindex), bucket, 0);
            let distance = distance(hash, hop.weight.max(1));
            if distance < least {
                (least, *owner) = (distance, way);
            }
        }
    }
    buckets
}

/// Distinct routes, each once, with a number that stays while it is in use.
#[derive(Debug, Default)]
struct Known {
    list: Vec<Counted>,
    numbers: HashMap<Arc<Route>, u32>,
    free: Vec<u32>,
}

#[derive(Debug)]
struct Counted {
    /// `None`: the number is free.
    route: Option<Arc<Route>>,
    users: u32,
}

impl Known {
    fn take(&mut self, route: &Route) -> u32 {
        if let Some(&number) = self.numbers.get(route) {
            self.list[number as usize].users += 1;
            return number;
        }
        let route = Arc::new(route.clone());
        let counted = Counted { route: Some(Arc::clone(&route)), users: 1 };
        let number = match self.free.pop() {
            Some(number) => {
                self.list[number as usize] = counted;
                number
            }
            None => {
                self.list.push(counted);
                self.list.len() as u32 - 1
            }
        };
        self.numbers.insert(route, number);
        number
    }

    fn give_back(&mut self, number: u32) {
        let Some(counted) = self.list.get_mut(number as usize) else { return };
        counted.users -= 1;
        if counted.users == 0
            && let Some(route) = counted.route.take()
        {
            self.numbers.remove(&route);
            self.free.push(number);
        }
    }
}

#[cfg(test)]
mod tests;
