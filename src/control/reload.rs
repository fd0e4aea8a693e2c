//! What a reload may change, and what has to stay for flows to live on.

use std::collections::HashMap;

use super::view::protocol_text;
use crate::config::{Config, Diagnostics};
use crate::forward::spec::{ForwardMode, ForwardSpec, ServiceSpec};
use crate::nic::spec::PORTS_MAX;
use crate::packet::ClassId;

/// Classes known over a process's life, those of earlier configurations included.
pub const CLASSES_MAX: usize = 65_000;
/// The same for tenants.
pub const TENANTS_MAX: usize = 65_000;

/// Why a configuration was not taken. Nothing has changed then.
#[derive(Debug, thiserror::Error)]
pub enum ReloadError {
    /// Every fault with its place, a line each.
    #[error("{}", lines(.0))]
    Faults(Diagnostics),
    #[error("{}: can't change while running, restart instead:\n  {}", .path, .keys.join("\n  "))]
    Fixed { path: String, keys: Vec<String> },
    #[error("a reload is under way")]
    Busy,
    #[error(
        "a reload is held up by workers that hang, or by the kernel: it comes to its end when they \
         go on; if they don't, restart"
    )]
    HeldUp,
    #[error(
        "a configuration is on trial for {secs} s more: `tidegate confirm` it first, or wait until \
         the one before is back"
    )]
    OnTrial { secs: u64 },
    #[error("too many classes have come and gone ({CLASSES_MAX}): restart to forget the old ones")]
    TooManyClasses,
    #[error("too many tenants have come and gone ({TENANTS_MAX}): restart to forget the old ones")]
    TooManyTenants,
    #[error(
        "more than {PORTS_MAX} ports, those that go included: let some go first, by a reload of \
         its own"
    )]
    TooManyPorts,
    #[error("port {port}: {source}")]
    Port { port: String, source: crate::nic::NicError },
    #[error(
        "port {port} can't go while the process runs: its first queue holds the memory of all \
         ports (zero-copy, or no AF_XDP socket on `lo`): restart instead"
    )]
    Holder { port: String },
    #[error("health checks can't go the way of real traffic, for want of {0}")]
    Checks(#[source] std::io::Error),
    #[error("can't start a thread: {0}")]
    Thread(#[source] std::io::Error),
    #[error("{0}")]
    Steering(#[from] crate::nic::NicError),
}

fn lines(faults: &Diagnostics) -> String {
    let all: Vec<_> = faults.iter().map(ToString::to_string).collect();
    all.join("\n")
}

/// The keys that differ and can't while running, each with what runs and what was asked for.
pub fn fixed_differences(running: &Config, wanted: &Config) -> Vec<String> {
    let mut keys = Vec::new();
    workers(running, wanted, &mut keys);
    let (a, b) = (&running.admin, &wanted.admin);
    differs(&mut keys, "admin.socket", &a.socket, &b.socket);
    differs(&mut keys, "admin.socket_mode", &a.socket_mode, &b.socket_mode);
    differs(&mut keys, "admin.metrics", &a.metrics, &b.metrics);
    // Which worker a reply belongs to follows from its port's place in the range.
    if let (Some(a), Some(b)) = (&running.forward.nat, &wanted.forward.nat) {
        differs(&mut keys, "nat.addresses", &a.addresses, &b.addresses);
        let range = |n: &crate::forward::spec::NatSpec| (n.port_first, n.port_last);
        differs(&mut keys, "nat.ports", &range(a), &range(b));
    }
    keys
}

fn workers(running: &Config, wanted: &Config, keys: &mut Vec<String>) {
    let (a, b) = (&running.workers, &wanted.workers);
    if b.count > a.count_max {
        keys.push(format!(
            "workers.count: {} runs, {} wanted, {} at most since the start: a restart with \
             `count_max = {}` or more makes room",
            a.count, b.count, a.count_max, b.count
        ));
    } else {
        differs(keys, "workers.count_max", &a.count_max, &b.count_max);
    }
    differs(keys, "workers.idle", &a.idle, &b.idle);
    differs(keys, "workers.on_failure", &a.on_failure, &b.on_failure);
    differs(keys, "workers.offload", &a.offload, &b.offload);
    differs(keys, "workers.frames", &a.frames, &b.frames);
    differs(keys, "workers.frame_size", &a.frame_size, &b.frame_size);
    differs(keys, "workers.huge_pages", &a.huge_pages, &b.huge_pages);
    differs(keys, "workers.flows_max", &a.flows_max, &b.flows_max);
    differs(keys, "workers.half_open_max", &a.half_open_max, &b.half_open_max);
}

fn differs<T: PartialEq + std::fmt::Debug>(keys: &mut Vec<String>, key: &str, a: &T, b: &T) {
    if a != b {
        keys.push(format!("{key}: {a:?} runs, {b:?} wanted"));
    }
}

/// Renumbers the classes of `wanted` so that those of `running` keep their numbers: flows hold the
/// number of their class. Names that are gone keep theirs, unused.
///
/// # Errors
/// [`ReloadError::TooManyClasses`].
pub fn keep_class_ids(running: &Config, wanted: &mut Config) -> Result<(), ReloadError> {
    let mut names = running.class_names.clone();
    let mut known: HashMap<String, ClassId> =
        (0u16..).zip(&names).map(|(i, name)| (name.clone(), ClassId(i))).collect();
    let mut new_id = Vec::with_capacity(wanted.class_names.len());
    for name in &wanted.class_names {
        if names.len() >= CLASSES_MAX && !known.contains_key(name) {
            return Err(ReloadError::TooManyClasses);
        }
        let id = *known.entry(name.clone()).or_insert_with(|| {
            names.push(name.clone());
            ClassId((names.len() - 1) as u16)
        });
        new_id.push(id);
    }
    let renumber = |id: &mut ClassId| {
        if let Some(new) = new_id.get(usize::from(id.0)) {
            *id = *new;
        }
    };
    for port in &mut wanted.qos {
        renumber(&mut port.default_class);
        for class in &mut port.classes {
            renumber(&mut class.id);
            class.parent.iter_mut().for_each(renumber);
        }
    }
    wanted.metering.meters.iter_mut().flat_map(|m| &mut m.classes).for_each(renumber);
    wanted.rules.iter_mut().for_each(|rule| renumber(&mut rule.class));
    wanted.class_names = names;
    Ok(())
}

/// The same for tenants.
///
/// # Errors
/// [`ReloadError::TooManyTenants`].
pub fn keep_tenant_numbers(running: &Config, wanted: &mut Config) -> Result<(), ReloadError> {
    let mut names = running.tenant_names.clone();
    let mut known: HashMap<String, u16> = names.iter().cloned().zip(0u16..).collect();
    let mut new_number = Vec::with_capacity(wanted.tenant_names.len());
    for name in &wanted.tenant_names {
        let number = known.get(name).copied().unwrap_or(names.len() as u16);
        if usize::from(number) == names.len() {
            if names.len() >= TENANTS_MAX {
                return Err(ReloadError::TooManyTenants);
            }
            names.push(name.clone());
            known.insert(name.clone(), number);
        }
        new_number.push(number);
    }
    for tenant in wanted.rules.iter_mut().filter_map(|rule| rule.tenant.as_mut()) {
        *tenant = new_number.get(usize::from(*tenant)).copied().unwrap_or(*tenant);
    }
    wanted.tenant_names = names;
    Ok(())
}

/// What the operator should know of a change that was taken.
pub fn warnings(running: &Config, wanted: &Config) -> Vec<String> {
    let mut all: Vec<_> = wanted.warnings.iter().map(ToString::to_string).collect();
    let dnat = |f: &ForwardSpec| {
        let services = f.services.iter().filter(|s| s.mode == ForwardMode::Dnat);
        let pools = services.flat_map(|s| f.pools_of(s));
        let backends = pools.flat_map(|p| p.backends.iter().map(|b| (b.addr, b.port)));
        backends.collect::<Vec<_>>()
    };
    let kept = dnat(&wanted.forward);
    for (addr, port) in dnat(&running.forward) {
        if !kept.contains(&(addr, port)) {
            all.push(format!(
                "backend {} of a `dnat` service is gone: answers of its open flows are no longer \
                 ours. `weight = 0` drains a backend before it is removed",
                std::net::SocketAddr::new(addr.to_ip(), port)
            ));
        }
    }
    all.extend(running.forward.services.iter().filter_map(|s| stranded(s, &wanted.forward)));
    all.sort();
    all.dedup();
    all
}

/// What becomes of a service's open flows that are no longer ours.
fn stranded(service: &ServiceSpec, wanted: &ForwardSpec) -> Option<String> {
    let of = |s: &ServiceSpec| (s.vip, s.port, s.proto);
    let kept = wanted.services.iter().find(|s| of(s) == of(service));
    let (name, proto) = (&service.name, protocol_text(service.proto));
    let address = std::net::SocketAddr::new(service.vip.to_ip(), service.port);
    let percent = |share: u16| f64::from(share) / 100.0;
    match kept {
        None => Some(format!(
            "service `{name}` at {address} ({proto}) is gone: packets of its open flows go to the \
             kernel. `tidegate drain service {name} --wait` lets them end before"
        )),
        Some(kept) if kept.canary_share > service.canary_share => Some(format!(
            "service `{name}`: `canary_percent` was {} and is {}: connections that the kernel has \
             with the clients between are not known here, and break",
            percent(service.canary_share),
            percent(kept.canary_share)
        )),
        Some(_) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config;
    use std::path::Path;

    const TEXT: &str = r#"
pipeline = "llm-edge"
[workers]
count = 1
count_max = 2
[port.wan]
interface = "wan"
[port.lan]
interface = "lan"
[nat]
addresses = ["192.0.2.9"]
ports = "20000-29999"
[service.a]
vip = "203.0.113.1"
port = 443
pool = "one"
mode = "dnat"
[[pool.one.backend]]
address = "10.0.0.1"
port = 8443
[[pool.one.backend]]
address = "10.0.0.2"
port = 8443
[qos.wan]
rate = "100Mbit/s"
default = "rest"
[qos.wan.class.rest]
rate = "10Mbit/s"
[qos.wan.class.fast]
rate = "20Mbit/s"
[[rule]]
client = "10.0.0.0/8"
class = "fast"
"#;

    fn load(text: &str) -> Config {
        match config::load_text(Path::new("test.toml"), text) {
            Ok(config) => config,
            Err(e) => panic!("{}", lines(&e)),
        }
    }

    #[test]
    fn what_is_fixed_is_named_with_both_values() {
        let running = load(TEXT);
        assert_eq!(fixed_differences(&running, &running), Vec::<String>::new());
        for (from, to, key) in [
            (
                "count = 1\ncount_max = 2",
                "count = 3",
                "workers.count: 1 runs, 3 wanted, 2 at most since the start",
            ),
            ("count_max = 2", "count_max = 3", "workers.count_max: 2 runs, 3 wanted"),
            ("20000-", "20001-", "nat.ports: (20000, 29999) runs, (20001, 29999) wanted"),
            ("192.0.2.9", "192.0.2.8", "nat.addresses: [192.0.2.9] runs"),
        ] {
            let wanted = load(&TEXT.replace(from, to));
            let keys = fixed_differences(&running, &wanted);
            assert_eq!(keys.len(), 1, "{keys:?}");
            assert!(keys[0].starts_with(key), "{keys:?}");
        }
    }

    #[test]
    fn the_rest_may_change() {
        let running = load(TEXT);
        for (from, to) in [
            ("20Mbit/s", "30Mbit/s"),
            ("count = 1", "count = 1\ncores = [0]"),
            ("count = 1", "count = 2"),
            ("10.0.0.2", "10.0.0.3"),
            ("203.0.113.1", "203.0.113.7"),
            ("llm-edge", "l4-balancer"),
            ("interface = \"lan\"", "interface = \"l2\""),
            ("[port.lan]\ninterface = \"lan\"\n", ""),
            ("client = \"10.0.0.0/8\"", "client = \"10.0.0.0/9\""),
        ] {
            let wanted = load(&TEXT.replace(from, to));
            assert_eq!(fixed_differences(&running, &wanted), Vec::<String>::new(), "{from}");
            assert_ne!(running, wanted);
        }
    }

    #[test]
    fn classes_keep_their_numbers_by_name() {
        let running = load(TEXT);
        let id = |c: &Config, name: &str| {
            let at = c.class_names.iter().position(|n| n == name).expect(name);
            ClassId(at as u16)
        };
        let (rest, fast) = (id(&running, "rest"), id(&running, "fast"));
        let text = TEXT
            .replace(
                "[qos.wan.class.rest]",
                "[qos.wan.class.new]\nrate = \"1Mbit/s\"\n[qos.wan.class.rest]",
            )
            .replace("[qos.wan.class.fast]\nrate = \"20Mbit/s\"\n", "")
            .replace("class = \"fast\"", "class = \"new\"");
        let mut wanted = load(&text);
        keep_class_ids(&running, &mut wanted).expect("room");
        assert_eq!((id(&wanted, "rest"), id(&wanted, "fast")), (rest, fast));
        let new = id(&wanted, "new");
        assert!(usize::from(new.0) >= running.class_names.len());
        assert_eq!(wanted.rules[0].class, new);
        assert_eq!(wanted.qos[0].default_class, rest);
        let ids: Vec<_> = wanted.qos[0].classes.iter().map(|c| (c.name.clone(), c.id)).collect();
        assert!(ids.contains(&("new".into(), new)) && ids.contains(&("rest".into(), rest)));
        // Back again: the numbers of the first configuration still hold.
        let mut back = load(TEXT);
        keep_class_ids(&wanted, &mut back).expect("room");
        assert_eq!(back.rules[0].class, fast);
    }

    #[test]
    fn a_dnat_backend_that_goes_is_warned_of() {
        let running = load(TEXT);
        let wanted = load(&TEXT.replace("10.0.0.2", "10.0.0.3"));
        let said = warnings(&running, &wanted);
        assert!(said.iter().any(|w| w.contains("10.0.0.2:8443")), "{said:?}");
        assert!(!warnings(&running, &running).iter().any(|w| w.contains("gone")));
    }

    #[test]
    fn flows_of_a_service_that_goes_or_of_which_more_is_taken_are_warned_of() {
        let running = load(TEXT);
        let said = |from, to| {
            let said = warnings(&running, &load(&TEXT.replace(from, to)));
            said.into_iter().filter(|w| w.starts_with("service `a`")).collect::<Vec<_>>().join("; ")
        };
        for (from, to) in [
            ("203.0.113.1\"", "203.0.113.2\""),
            ("port = 443", "port = 444"),
            ("mode = \"dnat\"", "mode = \"dnat\"\nprotocol = \"udp\""),
        ] {
            let said = said(from, to);
            assert!(said.contains("`a` at 203.0.113.1:443 (tcp) is gone"), "{to}: {said}");
        }
        assert_eq!(said("[service.a]", "[service.b]"), "", "another name is no other service");
        let canary = TEXT.replace("mode = \"dnat\"", "mode = \"dnat\"\ncanary_percent = 25");
        let canary = load(&canary);
        let canaries =
            |a, b| warnings(a, b).into_iter().filter(|w| w.contains("was ")).collect::<Vec<_>>();
        assert_eq!(canaries(&running, &canary), Vec::<String>::new(), "flows stay");
        let more = canaries(&canary, &running);
        assert!(more.len() == 1 && more[0].contains("was 25 and is 100"), "{more:?}");
    }
}
