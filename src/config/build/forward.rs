//! `[pool.NAME]`, `[nat]` and `[transit]`, and the services against them.

use std::collections::{HashMap, HashSet};
use std::ops::Range;

use toml::Spanned;

use super::services::{Draft, check_unicast, services};
use super::splits::target;
use super::tunnel::tunnel;
use super::{Build, id16, shadow, zones};
use crate::base::tomlfile::ROOT;
use crate::base::{Addr, Prefix};
use crate::config::atoms::PortRange;
use crate::config::file::{FileBackend, FileBalance, FileConfig, FileNat, FilePool, FileRule};
use crate::forward::spec::{
    BackendId, BackendSpec, Balance, ForwardMode, ForwardSpec, NAT_CHECK_PORTS_MAX,
    NAT_CHECK_PORTS_ONE_IN, NatSpec, PRIORITIES, PoolId, PoolSpec,
};

pub const POOLS_MAX: usize = 65_000;
/// Of all pools together: ids have 16 bits.
pub const BACKENDS_MAX: usize = 65_000;
/// Of one pool: a hundredth of the Maglev table, so that weights hold to about a percent.
pub const POOL_BACKENDS_MAX: usize = 655;
const WEIGHT_MAX: i64 = 65_535;
const PRIORITY_MAX: i64 = PRIORITIES as i64 - 1;
const CONNECTIONS_MAX: i64 = 1_000_000_000;
/// Below Linux's ephemeral ports (32768 to 60999), so that a NAT address may be one of the box's.
const NAT_PORTS_DEFAULT: PortRange = PortRange(1_024, 32_767);

pub fn forward(b: &mut Build<'_>, file: &FileConfig, workers: u16) -> ForwardSpec {
    let drafts = services(b, file);
    if let Some((key, _)) = file.pool.0.get(POOLS_MAX) {
        b.error(&key.span(), format!("there are {POOLS_MAX} pools at most"));
    }
    let mut users: Vec<Vec<&Draft>> = vec![Vec::new(); file.pool.0.len()];
    for d in &drafts {
        for &(pool, _) in &d.parts {
            if let Some(list) = users.get_mut(pool) {
                list.push(d);
            }
        }
    }
    let zone = zones::own(b, file);
    let mut backends = 0;
    let mut pools = Vec::with_capacity(file.pool.0.len());
    for (i, (key, table)) in file.pool.0.iter().enumerate() {
        b.name(key);
        let users = users.get_mut(i).map(std::mem::take).unwrap_or_default();
        let named = |r: &Spanned<FileRule>| {
            let given = r.get_ref().pool.as_ref();
            given.is_some_and(|p| p.get_ref().names().any(|name| name == key.get_ref()))
        };
        let by_rules = file.rule.iter().any(named);
        let by_shadow = shadow::uses(file, key.get_ref());
        let pool = Pool { name: key.get_ref(), table, users, by_rules, by_shadow };
        let mut list = pool.backends(b, backends);
        backends += list.len();
        let (id, name) = (PoolId(id16(i)), key.get_ref().clone());
        let balance = balance(table.get_ref().balance);
        zones::mark(b, table, zone, &mut list);
        let (need_percent, return_after) = zones::coming_back(b, table);
        pools.push(PoolSpec {
            id,
            name,
            balance,
            backends: list,
            need_percent,
            return_after,
            by_rtt: zones::by_rtt(b, table, zone),
            judged: false,
            groups: Default::default(),
        });
    }
    let nat = file.nat.as_ref().map(|table| nat(b, table, workers));
    check_nat(b, file, &drafts, nat.as_ref());
    let tunnel = tunnel(b, file, &drafts);
    let transit = transit(b, file);
    let zone = zone.map(|zone| zone.get_ref().clone());
    let mut forward = ForwardSpec { pools, zone, nat, tunnel, transit, ..ForwardSpec::default() };
    for (mut draft, (_, table)) in drafts.into_iter().zip(&file.service.0) {
        if let Some(given) = &table.get_ref().pool {
            draft.spec.pool = target(b, given, &draft.parts, &mut forward);
        }
        forward.services.push(draft.spec);
    }
    shadow::check(b, file, &forward);
    forward
}

fn transit(b: &mut Build<'_>, file: &FileConfig) -> Vec<Prefix> {
    let Some(table) = &file.transit else { return Vec::new() };
    let (at, prefixes) = (table.span(), &table.get_ref().prefixes);
    b.need(&at, "prefixes", prefixes, "the destinations to forward");
    b.list(&at, "prefixes", prefixes, |prefix| *prefix)
}

fn balance(given: Option<FileBalance>) -> Balance {
    match given {
        None | Some(FileBalance::Maglev) => Balance::Maglev,
        Some(FileBalance::RoundRobin) => Balance::RoundRobin,
        Some(FileBalance::LeastConnections) => Balance::LeastConnections,
        Some(FileBalance::LeastLoad) => Balance::LeastLoad,
        Some(FileBalance::PeakEwma) => Balance::PeakEwma,
    }
}

/// A pool and the services that it serves.
struct Pool<'a> {
    name: &'a str,
    table: &'a Spanned<FilePool>,
    users: Vec<&'a Draft>,
    /// A rule chooses it.
    by_rules: bool,
    /// It hears a service's requests besides.
    by_shadow: bool,
}

impl Pool<'_> {
    fn backends(&self, b: &mut Build<'_>, first_id: usize) -> Vec<BackendSpec> {
        let at = self.table.span();
        let list = &self.table.get_ref().backend;
        if list.is_empty() && !b.faulty.contains(&at, "backend") {
            let what =
                format!("pool `{0}` has no backend: add a `[[pool.{0}.backend]]`", self.name);
            b.error(&at, what);
        }
        if let Some(one_too_many) = list.get(POOL_BACKENDS_MAX) {
            let what = format!("a pool has {POOL_BACKENDS_MAX} backends at most");
            b.error(&one_too_many.span(), what);
        } else if first_id + list.len() > BACKENDS_MAX {
            b.error(&at, format!("there are {BACKENDS_MAX} backends at most in all pools"));
        }
        if self.users.is_empty() && !self.by_rules && !self.by_shadow {
            b.warning(&at, format!("no service uses pool `{}`", self.name));
        }
        let mut names: HashMap<String, u32> = HashMap::new();
        let mut ends: HashSet<(Addr, u16)> = HashSet::new();
        let mut specs = Vec::with_capacity(list.len());
        for (i, table) in list.iter().enumerate() {
            let spec = self.backend(b, first_id + i, table);
            let backend = table.get_ref();
            if backend.address.is_some() && !ends.insert((spec.addr, spec.port)) {
                let what = format!("{} stands in pool `{}` twice", spec.name, self.name);
                b.error(&table.span(), what);
            } else if let Some(line) = names.insert(spec.name.clone(), b.line(&table.span()))
                && let Some(name) = &backend.name
            {
                let what = format!("the name `{}` is taken (line {line})", spec.name);
                b.error(&name.span(), what);
            }
            specs.push(spec);
        }
        if !specs.is_empty() && specs.iter().all(|s| s.weight == 0) {
            b.warning(&at, format!("every backend of pool `{}` has weight 0", self.name));
        }
        specs
    }

    fn backend(&self, b: &mut Build<'_>, id: usize, table: &Spanned<FileBackend>) -> BackendSpec {
        let f = table.get_ref();
        let at = table.span();
        let addr = b.need(&at, "address", &f.address, "where the backend is reached");
        if let Some(a) = addr {
            check_unicast(b, a.get_ref().0, &a.span());
        }
        let port = match &f.port {
            Some(p) => p.get_ref().0.0,
            None => self.port_of_services(b, &at),
        };
        if let Some(a) = addr {
            self.check_users(b, a.get_ref().0, port, f, &a.span());
        }
        let addr = addr.map(|a| a.get_ref().0).unwrap_or_default();
        if let Some(name) = &f.name {
            b.name(name);
        }
        BackendSpec {
            id: BackendId(id16(id)),
            name: f.name.as_ref().map_or_else(
                || std::net::SocketAddr::new(addr.to_ip(), port).to_string(),
                |n| n.get_ref().clone(),
            ),
            addr,
            port,
            weight: b.number(&f.weight, 0..=WEIGHT_MAX, 1u16),
            priority: b.number(&f.priority, 0..=PRIORITY_MAX, 0u8),
            connections_max: f
                .max_connections
                .is_some()
                .then(|| b.number(&f.max_connections, 1..=CONNECTIONS_MAX, 1u32)),
            zone: f.zone.as_ref().map(|zone| zone.get_ref().clone()),
            is_away: false,
        }
    }

    /// A backend without a port of its own listens where its service does. 0 in a pool that nothing
    /// uses.
    fn port_of_services(&self, b: &mut Build<'_>, at: &Range<usize>) -> u16 {
        let mut ports = self.users.iter().filter_map(|d| d.port.map(|p| (p, d)));
        let Some((port, first)) = ports.next() else {
            if self.by_rules {
                b.error(at, "`port` is missing: rules choose this pool, but it is no service's");
            } else if self.by_shadow {
                b.error(at, "`port` is missing: a service has this pool for its `shadow` only");
            }
            return 0;
        };
        if let Some((other, second)) = ports.find(|(p, _)| *p != port) {
            let what = format!(
                "`port` is missing: services `{}` and `{}` of this pool have different ones \
                 ({port} and {other})",
                first.spec.name, second.spec.name,
            );
            b.error(at, what);
        }
        port
    }

    /// Whether this backend can serve what the pool's services send it.
    fn check_users(
        &self,
        b: &mut Build<'_>,
        addr: Addr,
        port: u16,
        f: &FileBackend,
        span: &Range<usize>,
    ) {
        let family = |a: Addr| if a.is_v4() { "IPv4" } else { "IPv6" };
        for user in &self.users {
            let Some(vip) = user.vip else { continue };
            let name = &user.spec.name;
            if vip.is_v4() != addr.is_v4() && !user.spec.mode.is_tunnel() {
                let what = format!(
                    "{addr} is {}, but service `{name}` is {}: families can't be mixed",
                    family(addr),
                    family(vip),
                );
                b.error(span, what);
                return;
            }
            if vip == addr {
                b.error(span, format!("{addr} is the VIP of service `{name}`: packets would loop"));
                return;
            }
            let mode = user.spec.mode;
            if let (true, Some(p)) = (mode.is_one_way(), &f.port)
                && user.port.is_some_and(|service| service != port)
            {
                let what = format!(
                    "service `{name}` uses {}, which leaves ports as they are: the backend must \
                     listen on {}",
                    mode.word(),
                    user.spec.port,
                );
                b.error(&p.span(), what);
                return;
            }
        }
    }
}

fn nat(b: &mut Build<'_>, table: &Spanned<FileNat>, workers: u16) -> NatSpec {
    let n = table.get_ref();
    let what = "the source addresses toward backends";
    let addresses = b.need(&table.span(), "addresses", &n.addresses, what);
    let list = addresses.map(|a| a.get_ref().0.clone()).unwrap_or_default();
    if let Some(given) = addresses {
        for a in &list {
            check_unicast(b, *a, &given.span());
        }
        let v4 = list.iter().filter(|a| a.is_v4()).count();
        if v4 > 1 || list.len() - v4 > 1 {
            b.error(&given.span(), "one address per family at most");
        } else if list.is_empty() && !b.faulty.contains(&table.span(), "addresses") {
            b.error(&given.span(), "the list is empty: give one address per family in use");
        }
    }
    let PortRange(first, last) = n.ports.as_ref().map_or(NAT_PORTS_DEFAULT, |p| p.get_ref().0);
    if let Some(ports) = &n.ports
        && last - first < workers - 1
    {
        let what = format!("{} ports can't be shared by {workers} workers", last - first + 1);
        b.error(&ports.span(), what);
    }
    let ports = u32::from(last - first) + 1;
    // Every worker has at least one left.
    let spare = ports.saturating_sub(u32::from(workers));
    let check_ports = (ports / NAT_CHECK_PORTS_ONE_IN).min(NAT_CHECK_PORTS_MAX).min(spare) as u16;
    NatSpec { addresses: list, port_first: first, port_last: last, check_ports }
}

/// Each service that translates sources needs a source, and replies must not look like requests.
fn check_nat(b: &mut Build<'_>, file: &FileConfig, drafts: &[Draft], nat: Option<&NatSpec>) {
    let given_well = match (&file.nat, nat) {
        (None, _) => !b.faulty.contains(&ROOT, "nat"),
        (Some(_), Some(n)) => !n.addresses.is_empty(),
        (Some(_), None) => false,
    };
    let mut used = false;
    for d in drafts {
        let (Some(vip), Some(mode_span)) = (d.vip, &d.mode_span) else {
            used = true; // for all that is known
            continue;
        };
        if d.spec.mode == ForwardMode::Nat {
            used = true;
            let has = nat.is_some_and(|n| n.addresses.iter().any(|a| a.is_v4() == vip.is_v4()));
            if given_well && !has {
                let family = if vip.is_v4() { "IPv4" } else { "IPv6" };
                let what = format!(
                    "service `{}` uses nat, but `[nat]` has no {family} address: add one, or set \
                     `mode` to \"dnat\" or \"dsr\"",
                    d.spec.name,
                );
                b.error(mode_span, what);
            }
        }
        if let (Some(n), Some(port)) = (nat, d.port)
            && n.addresses.contains(&vip)
            && (n.port_first..=n.port_last).contains(&port)
        {
            let what = format!(
                "{vip} port {port} is within the `ports` of `[nat]`: give `[nat]` another address \
                 or range",
            );
            b.error(&d.table, what);
        }
    }
    if let Some(table) = &file.nat
        && !used
    {
        b.warning(&table.span(), "no service uses nat");
    }
}
