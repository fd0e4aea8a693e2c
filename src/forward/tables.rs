//! What the balancer looks up: services, pools, backends, NAT ports, and which worker owns a flow.
//! Immutable; a reload builds a new one.

use crate::base::hash::{hash_endpoint, pick};
use crate::base::{Addr, Seed};
use crate::packet::{DropReason, FlowKey, PacketMeta};

use super::choice::{Choosing, PoolChoice, Seeker};
use super::errors::About;
use super::ports::NatPorts;
use super::spec::{BackendSpec, Delay, ForwardMode, ForwardSpec, MssClamp, PoolId, ServiceId};
use super::split::Split;
use super::table::AddrTable;
use super::tunnel::Tunnels;

mod joining;
mod members;
mod services;

/// Hashes flows onto Maglev tables. A constant: all appliances must choose the same backend for a
/// flow. The price is that clients can compute where their own flows go.
const CHOICE_SEED: Seed = Seed(0x6368_6f69_6365_7631);

/// A service, as much of it as packets need.
#[derive(Clone, Copy, Debug)]
pub struct Service {
    pub id: ServiceId,
    pub pool: PoolId,
    pub mode: ForwardMode,
    pub vip: Addr,
    pub port: u16,
    /// IP protocol number.
    pub proto: u8,
    /// Idle time after which an established flow is forgotten.
    pub idle_established_ms: u32,
    pub mss_clamp: MssClamp,
    /// `None`: bound with the first packet.
    pub delay: Option<Delay>,
    /// It gets no new flows.
    pub drained: bool,
    /// Share of its connections that are shadowed, in hundredths of a percent.
    pub shadow_share: u16,
    /// Some pool of it is judged by what its backends answer.
    pub judged: bool,
}

/// A backend, as much of it as packets need.
#[derive(Clone, Copy, Debug)]
pub struct Backend {
    pub addr: Addr,
    pub port: u16,
    /// Where it is counted, in [`crate::flow::Serving`].
    pub place: u16,
}

/// Everything of [`ForwardSpec`], made fast.
#[derive(Clone, Debug)]
pub struct Tables {
    seed: Seed,
    services: Vec<Service>,
    /// (VIP, port and protocol) to the index in `services`.
    by_vip: AddrTable,
    /// Addresses alone: for fragments, which have no ports.
    vips: AddrTable,
    backends: Vec<Backend>,
    /// By [`PoolId`]; they choose indices of `backends`.
    pools: Vec<PoolChoice>,
    /// Numbered after the pools.
    splits: Vec<Split>,
    /// Backends of `dnat` services, and the first of these: packets from them are replies.
    returns: AddrTable,
    /// Their addresses alone.
    answering: AddrTable,
    nat: Option<NatPorts>,
    tunnels: Tunnels,
    /// Connections of some service are shadowed.
    has_shadows: bool,
    /// Some service is judged by its answers.
    has_judged: bool,
}

impl Tables {
    /// `workers` is the number that [`NatPorts`] are sliced for. Each backend is counted at the
    /// place of its own number.
    pub fn build(spec: &ForwardSpec, workers: u16, seed: Seed) -> Tables {
        Tables::build_with(spec, workers, seed, |b| b.id.0)
    }

    /// As [`Tables::build`], with the places where backends are counted.
    pub fn build_with(
        spec: &ForwardSpec,
        workers: u16,
        seed: Seed,
        place: impl Fn(&BackendSpec) -> u16,
    ) -> Tables {
        let judged = |s| spec.pools_of(s).any(|pool| pool.judged);
        let services: Vec<_> = spec.services.iter().map(|s| Service::of(s, judged(s))).collect();
        let mut backends = Vec::new();
        let mut pools = Vec::with_capacity(spec.pools.len());
        for pool in &spec.pools {
            let first = backends.len() as u16;
            let specs = pool.backends.iter();
            let fast = |b: &BackendSpec| Backend { addr: b.addr, port: b.port, place: place(b) };
            backends.extend(specs.map(fast));
            pools.push(PoolChoice::build(pool, first, |index| backends[usize::from(index)].place));
        }
        let indexed = || (0u32..).zip(&services);
        let by_vip: Vec<_> = indexed().map(|(i, s)| (s.vip, tag(s.port, s.proto), i)).collect();
        let vips: Vec<_> = indexed().map(|(i, s)| (s.vip, 0, i)).collect();
        let mut returns = Vec::new();
        for (i, s) in (0u32..).zip(&spec.services).filter(|(_, s)| s.mode == ForwardMode::Dnat) {
            let specs = spec.pools_of(s).flat_map(|p| &p.backends);
            returns.extend(specs.map(|b| (b.addr, tag(b.port, s.proto), i)));
        }
        let answering: Vec<_> = returns.iter().map(|&(addr, _, i)| (addr, 0, i)).collect();
        let name = |pool: PoolId| spec.pools.get(usize::from(pool.0)).map_or("", |p| &p.name);
        Tables {
            seed,
            by_vip: AddrTable::new(seed, &by_vip),
            vips: AddrTable::new(seed, &vips),
            returns: AddrTable::new(seed, &returns),
            answering: AddrTable::new(seed, &answering),
            nat: spec.nat.as_ref().and_then(|n| NatPorts::new(n, workers)),
            tunnels: Tunnels::new(&spec.tunnel),
            has_shadows: services.iter().any(|s| s.shadow_share > 0),
            has_judged: services.iter().any(|s| s.judged),
            services,
            backends,
            pools,
            splits: spec.splits.iter().map(|split| Split::build(split, name)).collect(),
        }
    }

    /// Has a service take no new flows.
    pub fn drain(&mut self, service: ServiceId) {
        if let Some(service) = self.services.get_mut(usize::from(service.0)) {
            service.drained = true;
        }
    }

    /// The service that listens there.
    #[inline]
    pub fn service(&self, dst: Addr, port: u16, proto: u8) -> Option<&Service> {
        let index = self.by_vip.get(dst, tag(port, proto))?;
        self.services.get(index as usize)
    }

    /// Whether any service has this address.
    #[inline]
    pub fn is_vip(&self, addr: Addr) -> bool {
        self.vips.contains(addr, 0)
    }

    /// The backend of a pool for a new flow, by the key as the client sent it. With
    /// [`super::spec::Balance::Maglev`], and while none is full, the same on every appliance. Of a
    /// split, that of the flow's own pool, and where this has none of the next.
    ///
    /// # Errors
    /// [`DropReason::NoBackend`] where no backend of the pool has a weight above zero,
    /// [`DropReason::BackendsFull`] where none of those may take more.
    pub fn choose(
        &self,
        pool: PoolId,
        key: &FlowKey,
        by: Choosing<'_>,
    ) -> Result<&Backend, DropReason> {
        self.choose_other(pool, key, by, |_| false)
    }

    /// As [`Tables::choose`], less those that will not do.
    ///
    /// # Errors
    /// As [`Tables::choose`].
    pub fn choose_other(
        &self,
        pool: PoolId,
        key: &FlowKey,
        by: Choosing<'_>,
        avoid: impl Fn(&Backend) -> bool,
    ) -> Result<&Backend, DropReason> {
        let avoid = |index: u16| self.backends.get(usize::from(index)).is_none_or(&avoid);
        let (pool, hash) = (usize::from(pool.0), key.hash(CHOICE_SEED));
        let index = match self.split(pool) {
            None => self.choose_of(pool, hash, by, avoid)?,
            Some(split) => self.choose_of_split(split, hash, by, avoid)?,
        };
        self.backends.get(usize::from(index)).ok_or(DropReason::NoBackend)
    }

    #[inline]
    fn split(&self, pool: usize) -> Option<&Split> {
        pool.checked_sub(self.pools.len()).and_then(|split| self.splits.get(split))
    }

    #[inline]
    fn choose_of(
        &self,
        pool: usize,
        hash: u64,
        by: Choosing<'_>,
        avoid: impl Fn(u16) -> bool,
    ) -> Result<u16, DropReason> {
        let choice = self.pools.get(pool).ok_or(DropReason::NoBackend)?;
        choice.choose(&mut Seeker { pool, hash, by, avoid })
    }

    fn choose_of_split(
        &self,
        split: &Split,
        hash: u64,
        by: Choosing<'_>,
        avoid: impl Fn(u16) -> bool,
    ) -> Result<u16, DropReason> {
        let Choosing { now, turns, serving } = by;
        let mut refusal = DropReason::NoBackend;
        for pool in split.order(hash) {
            let by = Choosing { now, turns: &mut *turns, serving };
            match self.choose_of(usize::from(pool.0), hash, by, &avoid) {
                Ok(index) => return Ok(index),
                Err(DropReason::BackendsFull) => refusal = DropReason::BackendsFull,
                Err(_) => {}
            }
        }
        Err(refusal)
    }

    /// NAT addresses and port slices, where configured.
    #[inline]
    pub fn nat(&self) -> Option<&NatPorts> {
        self.nat.as_ref()
    }

    /// This side's ends of tunnels.
    pub fn tunnels(&self) -> &Tunnels {
        &self.tunnels
    }

    /// Services, by [`ServiceId`].
    pub fn services(&self) -> &[Service] {
        &self.services
    }

    /// Backends of all pools, by [`super::spec::BackendId`].
    pub fn backends(&self) -> &[Backend] {
        &self.backends
    }

    /// The worker, below `workers`, that both directions of the packet's flow belong to.
    ///
    /// A service's flows follow from the client's endpoint, which every packet shows: toward the
    /// VIP as its source, from a `dnat` backend as its destination, and from a `nat` backend
    /// through the slice its port was taken from. Flows of no service follow from both endpoints
    /// alike. Fragments have been put to their datagrams before.
    #[inline]
    pub fn owner(&self, meta: &PacketMeta, workers: u16) -> u16 {
        if workers <= 1 {
            return 0;
        }
        self.owner_of(&meta.key, workers)
    }

    /// Whether a packet can't be forwarded without its ports: it may be for a service, or an answer
    /// for a client of one.
    pub fn needs_ports(&self, key: &FlowKey) -> bool {
        self.is_vip(key.dst)
            || self.nat.as_ref().is_some_and(|nat| nat.is_source(key.dst))
            || self.answering.contains(key.src, 0)
    }

    /// As [`Tables::owner`], for an ICMP error: the worker of the flow that it is about.
    #[cold]
    pub fn owner_of_error(&self, bytes: &[u8], meta: &PacketMeta, workers: u16) -> u16 {
        match About::read(bytes, meta, &self.tunnels) {
            Some(about) if workers > 1 => self.owner_of(&about.key(), workers),
            _ => self.owner(meta, workers),
        }
    }

    #[inline(always)]
    fn owner_of(&self, k: &FlowKey, workers: u16) -> u16 {
        let (src, dst) = (tag(k.sport, k.proto), tag(k.dport, k.proto));
        let hash = if self.by_vip.contains(k.dst, dst) || self.returns.contains(k.dst, dst) {
            self.endpoint(k.src, k.sport)
        } else if let Some(worker) = self.nat.as_ref().and_then(|n| n.owner(k.dst, k.dport)) {
            return worker.min(workers - 1);
        } else if self.returns.contains(k.src, src) {
            self.endpoint(k.dst, k.dport)
        } else {
            self.endpoint(k.src, k.sport) ^ self.endpoint(k.dst, k.dport)
        };
        pick(hash, u32::from(workers)) as u16
    }

    #[inline]
    fn endpoint(&self, addr: Addr, port: u16) -> u64 {
        hash_endpoint(self.seed, addr, port)
    }
}

#[inline]
fn tag(port: u16, proto: u8) -> u32 {
    u32::from(port) | u32::from(proto) << 16
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::Nanos;
    use crate::flow::Serving;
    use crate::forward::Turns;
    use std::time::Duration;

    use crate::forward::spec::{BackendId, BackendSpec, NatSpec, PoolSpec, ServiceSpec, SplitSpec};

    const TCP: u8 = 6;
    const UDP: u8 = 17;

    fn addr(s: &str) -> Addr {
        s.parse().expect("literal")
    }

    fn service(id: u16, vip: &str, proto: u8, mode: ForwardMode) -> ServiceSpec {
        ServiceSpec {
            id: ServiceId(id),
            name: format!("s{id}"),
            vip: addr(vip),
            port: 443,
            proto,
            pool: PoolId(id % 2),
            mode,
            canary_share: 10_000,
            idle_established: Duration::from_secs(7440),
            mss_clamp: MssClamp::Mtu,
            delay: None,
            rule_pools: Vec::new(),
            shadow: None,
        }
    }

    fn spec() -> ForwardSpec {
        let backend = |id: u16, weight| BackendSpec {
            id: BackendId(id),
            name: format!("b{id}"),
            addr: Addr::v4(0x0a01_0000 + u32::from(id)),
            port: 8443,
            weight,
            ..BackendSpec::default()
        };
        let pool = |id, backends| {
            let (id, name) = (PoolId(id), format!("p{id}"));
            PoolSpec { id, name, backends, ..PoolSpec::default() }
        };
        ForwardSpec {
            services: vec![
                service(0, "192.0.2.1", TCP, ForwardMode::Nat),
                service(1, "192.0.2.1", UDP, ForwardMode::Nat),
                service(2, "2001:db8::1", TCP, ForwardMode::Dnat),
            ],
            pools: vec![pool(0, vec![backend(0, 1), backend(1, 1)]), pool(1, vec![backend(2, 0)])],
            nat: Some(NatSpec {
                addresses: vec![addr("192.0.2.9")],
                port_first: 1024,
                port_last: 65535,
                check_ports: 0,
            }),
            ..ForwardSpec::default()
        }
    }

    fn meta(src: &str, sport: u16, dst: &str, dport: u16) -> PacketMeta {
        let key = FlowKey { src: addr(src), dst: addr(dst), sport, dport, proto: TCP };
        PacketMeta { key, ..PacketMeta::default() }
    }

    #[test]
    fn services_are_found_by_address_port_and_protocol() {
        let t = Tables::build(&spec(), 1, Seed(1));
        assert_eq!(t.service(addr("192.0.2.1"), 443, TCP).map(|s| s.id), Some(ServiceId(0)));
        assert_eq!(t.service(addr("192.0.2.1"), 443, UDP).map(|s| s.id), Some(ServiceId(1)));
        assert_eq!(t.service(addr("2001:db8::1"), 443, TCP).map(|s| s.id), Some(ServiceId(2)));
        assert!(t.service(addr("192.0.2.1"), 444, TCP).is_none());
        assert!(t.service(addr("192.0.2.2"), 443, TCP).is_none());
        assert!(t.service(addr("2001:db8::1"), 443, UDP).is_none());
        assert!(t.is_vip(addr("192.0.2.1")) && !t.is_vip(addr("192.0.2.9")));
    }

    #[test]
    fn choice_depends_on_the_flow_only() {
        let a = Tables::build(&spec(), 1, Seed(1));
        let b = Tables::build(&spec(), 4, Seed(2));
        let (mut turns, serving) = (Turns::new(3, 4), Serving::new(8));
        let mut seen = [0u32; 2];
        for port in 1024..3072 {
            let m = meta("198.51.100.7", port, "192.0.2.1", 443);
            let s = a.service(m.key.dst, 443, TCP).expect("service");
            let of = |t: &Tables, turns: &mut Turns| {
                let by = Choosing { now: Nanos::ZERO, turns, serving: &serving };
                t.choose(s.pool, &m.key, by).expect("backend").place
            };
            let chosen = of(&a, &mut Turns::new(0, 1));
            assert_eq!(chosen, of(&b, &mut turns));
            seen[usize::from(chosen)] += 1;
        }
        assert!(seen.iter().all(|n| (900..1150).contains(n)), "{seen:?}");
        let drained = a.service(addr("192.0.2.1"), 443, UDP).expect("service");
        let key = meta("198.51.100.7", 1, "192.0.2.1", 443).key;
        let by = Choosing { now: Nanos::ZERO, turns: &mut turns, serving: &serving };
        let chosen = a.choose(drained.pool, &key, by);
        assert_eq!(chosen.err(), Some(DropReason::NoBackend));
    }

    #[test]
    fn both_directions_have_one_owner() {
        let workers = 4;
        let t = Tables::build(&spec(), workers, Seed(1));
        let nat = t.nat().expect("nat");
        let mut seen = [0u32; 4];
        for port in 1024..2048u16 {
            let owner = t.owner(&meta("198.51.100.7", port, "192.0.2.1", 443), workers);
            seen[usize::from(owner)] += 1;
            for nat_port in nat.probes(owner, Seed(1), u64::from(port)).take(4) {
                let reply = meta("10.1.0.0", 8443, "192.0.2.9", nat_port);
                assert_eq!(t.owner(&reply, workers), owner);
            }

            let owner = t.owner(&meta("2001:db8:1::7", port, "2001:db8::1", 443), workers);
            let mut reply = meta("10.1.0.0", 8443, "2001:db8:1::7", port);
            assert_eq!(t.owner(&reply, workers), owner, "from a dnat backend");
            reply.key = reply.key.reversed();
            assert_eq!(t.owner(&reply, workers), owner, "to the backend's own address");

            let transit = meta("198.51.100.7", port, "203.0.113.1", 80);
            let mut back = transit.clone();
            back.key = transit.key.reversed();
            assert_eq!(t.owner(&transit, workers), t.owner(&back, workers));
        }
        assert!(seen.iter().all(|n| (190..330).contains(n)), "{seen:?}");
    }

    #[test]
    fn a_split_shares_flows_out_and_lets_no_flow_down() {
        let mut spec = spec();
        spec.pools[1].backends[0].weight = 1;
        spec.splits = vec![SplitSpec { parts: vec![(PoolId(0), 3), (PoolId(1), 1)] }];
        spec.services[2].pool = PoolId(2);
        let to_second = |spec: &ForwardSpec, avoid: &dyn Fn(&Backend) -> bool| {
            let (t, serving) = (Tables::build(spec, 1, Seed(1)), Serving::new(8));
            let mut turns = Turns::new(0, 1);
            let second = (0..4000u16).filter(|port| {
                let key = meta("198.51.100.7", *port, "2001:db8::1", 443).key;
                let by = Choosing { now: Nanos(0), turns: &mut turns, serving: &serving };
                t.choose_other(PoolId(2), &key, by, avoid).expect("one serves").place == 2
            });
            second.count()
        };
        let quarter = to_second(&spec, &|_| false);
        assert!((930..1070).contains(&quarter), "{quarter} of 4000");
        assert_eq!(to_second(&spec, &|b| b.place == 2), 0, "tried already");
        assert_eq!(to_second(&spec, &|b| b.place < 2), 4000);
        spec.pools[1].backends[0].weight = 0;
        assert_eq!(to_second(&spec, &|_| false), 0, "nobody there");
        // Its backends are told by what comes from them, as those of the service's only pool are.
        let t = Tables::build(&spec, 4, Seed(1));
        let own = t.owner(&meta("2001:db8:1::7", 9, "2001:db8::1", 443), 4);
        for backend in ["10.1.0.0", "10.1.0.2"] {
            assert_eq!(t.owner(&meta(backend, 8443, "2001:db8:1::7", 9), 4), own);
        }
    }

    #[test]
    fn what_needs_ports_is_for_services_or_from_their_backends() {
        let t = Tables::build(&spec(), 4, Seed(1));
        for (src, dst, needs) in [
            ("198.51.100.7", "192.0.2.1", true),
            ("10.0.0.0", "198.51.100.7", false),
            ("10.1.0.0", "198.51.100.7", true),
            ("198.51.100.7", "203.0.113.1", false),
        ] {
            assert_eq!(t.needs_ports(&meta(src, 0, dst, 0).key), needs, "{src} to {dst}");
        }
    }
}
