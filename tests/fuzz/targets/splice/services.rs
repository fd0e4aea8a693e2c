//! Services that wait for what clients say: by hello and by request, with full NAT and DNAT.

use std::time::Duration;

use tidegate::forward::spec::{BindAt, Delay, ForwardMode, ForwardSpec, PoolId};
use tidegate::forward::spec::{ServiceId, ServiceSpec};
use tidegate::forward::splice::Promise;
use tidegate::packet::{ClassId, tcp};
use tidegate::policy::spec::{NamePattern, RuleSpec};

use crate::targets::setup::{V4, V6, add_pool, addr};

/// Ports of the services at each VIP.
pub const PORTS: [(u16, ForwardMode, BindAt); 4] = [
    (443, ForwardMode::Nat, BindAt::Hello),
    (444, ForwardMode::Dnat, BindAt::Hello),
    (80, ForwardMode::Nat, BindAt::Request),
    (81, ForwardMode::Dnat, BindAt::Request),
];
/// Who names this is led to the second backend; everybody else to either.
pub const NAMED: &str = "b.example";

pub fn add_services(spec: &mut ForwardSpec) {
    for family in [&V4, &V6] {
        let [one, two] = family.backends;
        let pool = spec.pools.len() as u16;
        add_pool(spec, &[(one, 1), (two, 1)]);
        add_pool(spec, &[(two, 1)]);
        for (port, mode, at) in PORTS {
            let promise = Promise { mss: 1_300, ..Promise::default() };
            spec.services.push(ServiceSpec {
                id: ServiceId(spec.services.len() as u16),
                name: format!("s{}", spec.services.len()),
                vip: addr(family.vip),
                port,
                proto: tcp::PROTOCOL,
                pool: PoolId(pool),
                mode,
                canary_share: 10_000,
                idle_established: Duration::from_secs(600),
                mss_clamp: Default::default(),
                delay: Some(Delay { at, timeout_ms: 10_000, promise }),
                rule_pools: vec![PoolId(pool + 1)],
                shadow: None,
            });
        }
    }
}

pub fn rules() -> Vec<RuleSpec> {
    let name = || vec![NamePattern::Exact(NAMED.into())];
    let of = |vip: &str, pool| RuleSpec {
        vip: vec![addr(vip)],
        class: ClassId(1),
        pool: Some(pool),
        ..RuleSpec::default()
    };
    let both = [(V4.vip, 1), (V6.vip, 3)].into_iter().flat_map(|(vip, pool)| {
        [RuleSpec { sni: name(), ..of(vip, pool) }, RuleSpec { authority: name(), ..of(vip, pool) }]
    });
    both.collect()
}
