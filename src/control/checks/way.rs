//! Which way the checks of a pool's backends take: that of the first service that uses the pool.

use std::net::SocketAddr;

use super::local_ports_warning;
use crate::config::Config;
use crate::config::health::HealthSpec;
use crate::forward::checks::CheckWay;
use crate::forward::spec::{BackendSpec, ForwardMode, PoolSpec};

/// Whom a check asks, and how it gets there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Target {
    /// What is connected to: with `nat` and `dnat` the backend's own address, else the VIP.
    pub end: SocketAddr,
    /// Through the workers; `None`: by a socket of the box, as a `dnat` client's packets would
    /// arrive, and where no service says how.
    pub way: Option<CheckWay>,
}

impl Target {
    pub fn of(
        config: &Config,
        pool: &PoolSpec,
        backend: &BackendSpec,
        spec: &HealthSpec,
    ) -> Target {
        let own = SocketAddr::new(backend.addr.to_ip(), spec.port.unwrap_or(backend.port));
        let Some(service) = config.forward.checked_by(pool.id) else {
            return Target { end: own, way: None };
        };
        let way = Some(CheckWay { mode: service.mode, backend: backend.addr });
        match service.mode {
            ForwardMode::Dnat => Target { end: own, way: None },
            ForwardMode::Nat => Target { end: own, way },
            ForwardMode::Dsr | ForwardMode::Ipip | ForwardMode::Gue => {
                let port = spec.port.unwrap_or(service.port);
                Target { end: SocketAddr::new(service.vip.to_ip(), port), way }
            }
        }
    }
}

/// Whether checks need ports of the box's own addresses.
pub fn asks_from_own_ports(config: &Config) -> bool {
    modes(config).any(ForwardMode::is_one_way)
}

/// What is to be said of these.
pub fn ports_warning(config: &Config) -> Option<String> {
    if asks_from_own_ports(config) { local_ports_warning() } else { None }
}

/// Whether checks go through the workers.
pub fn goes_by_workers(config: &Config) -> bool {
    modes(config).any(|mode| mode != ForwardMode::Dnat)
}

fn modes(config: &Config) -> impl Iterator<Item = ForwardMode> {
    let pools = config.forward.pools.iter().zip(&config.health);
    let checked = pools.filter(|(_, health)| health.check.is_some());
    checked.filter_map(|(pool, _)| config.forward.checked_by(pool.id)).map(|s| s.mode)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Path;

    const TEXT: &str = r#"
pipeline = "l4-balancer"
[port.p]
interface = "p"
[service.s]
vip = "203.0.113.1"
port = 443
pool = "a"
mode = "MODE"
[[pool.a.backend]]
address = "10.0.0.1"
port = 443
[pool.a.health]
type = "tcp"
[nat]
addresses = ["192.0.2.9"]
"#;

    fn target(mode: &str, more: &str) -> (String, Option<ForwardMode>, [bool; 2]) {
        let text = TEXT.replace("MODE", mode).replace("type = \"tcp\"\n", more);
        let config = crate::config::load_text(Path::new("t.toml"), &text);
        let config = config.unwrap_or_else(|faults| panic!("{faults}"));
        let pool = &config.forward.pools[0];
        let spec = config.health[0].check.clone().expect("a check");
        let target = Target::of(&config, pool, &pool.backends[0], &spec);
        let way = target.way.map(|way| way.mode);
        (target.end.to_string(), way, [goes_by_workers(&config), asks_from_own_ports(&config)])
    }

    #[test]
    fn checks_go_where_clients_connections_go() {
        let tcp = "type = \"tcp\"\n";
        let other = "type = \"tcp\"\nport = 9000\n";
        let own = || "10.0.0.1:443".to_string();
        assert_eq!(target("nat", tcp), (own(), Some(ForwardMode::Nat), [true, false]));
        assert_eq!(target("dnat", tcp), (own(), None, [false, false]));
        for (mode, is) in
            [("dsr", ForwardMode::Dsr), ("ipip", ForwardMode::Ipip), ("gue", ForwardMode::Gue)]
        {
            assert_eq!(target(mode, tcp), ("203.0.113.1:443".into(), Some(is), [true, true]));
            assert_eq!(target(mode, other).0, "203.0.113.1:9000");
        }
        assert_eq!(target("nat", other).0, "10.0.0.1:9000");
    }
}
