//! What the XDP programs are told: which packets are ours.

use std::collections::HashSet;

use crate::base::{Addr, Prefix};
use crate::config::Config;
use crate::control::checks::way;
use crate::control::netlink::Mirror;
use crate::forward::Routes;
use crate::forward::checks::OWN_PORTS;
use crate::forward::spec::{ForwardMode, ForwardSpec};
use crate::forward::tunnel::{IPV4_WITHIN, IPV6_WITHIN};
use crate::nic::NicError;
use crate::nic::steer::{
    Lowered, NatRange, OffloadOrder, PortRange, SHARE_ALL, SHARE_TUNNEL, Steer, VipEntry,
    check_room,
};
use crate::packet::{FlowKey, udp};
use crate::worker::spec::WorkersSpec;

/// The tables that follow from the configuration.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SteerTables {
    pub vips: Vec<VipEntry>,
    /// Backends of `dnat` services, and where tunnels lead.
    pub returns: Vec<VipEntry>,
    pub nat: Vec<NatRange>,
    pub transit: Vec<Prefix>,
    /// Ports of health checks at the box's own addresses.
    pub checks: Option<PortRange>,
}

impl SteerTables {
    pub fn of(config: &Config) -> SteerTables {
        let spec = &config.forward;
        SteerTables {
            vips: spec
                .services
                .iter()
                .map(|s| endpoint(s.vip, s.port, s.proto, s.canary_share))
                .collect(),
            returns: returns(spec),
            nat: nat(spec),
            transit: spec.transit.clone(),
            checks: way::asks_from_own_ports(config)
                .then(|| (*OWN_PORTS.start(), *OWN_PORTS.end())),
        }
    }

    /// Both together: what is steered while workers go over from one configuration to the next.
    pub fn union(&self, other: &SteerTables) -> SteerTables {
        SteerTables {
            // Of a service in both, the new share counts.
            vips: union(&other.vips, &self.vips, |a, b| at(a) == at(b)),
            returns: union(&other.returns, &self.returns, |a, b| at(a) == at(b)),
            nat: union(&other.nat, &self.nat, |a, b| a.addr == b.addr),
            transit: union(&other.transit, &self.transit, |a, b| a == b),
            checks: other.checks.or(self.checks),
        }
    }
}

fn endpoint(addr: Addr, port: u16, proto: u8, share: u16) -> VipEntry {
    VipEntry { addr, port, proto, canary_share: share }
}

fn at(e: &VipEntry) -> (Addr, u16, u8) {
    (e.addr, e.port, e.proto)
}

fn returns(spec: &ForwardSpec) -> Vec<VipEntry> {
    let dnat = spec.services.iter().filter(|s| s.mode == ForwardMode::Dnat);
    let tunnels = spec.services.iter().filter(|s| s.mode.is_tunnel());
    let ends = tunnels.flat_map(|s| {
        let backends = spec.pools_of(s).flat_map(|p| &p.backends);
        backends.flat_map(|b| match s.mode {
            ForwardMode::Gue => vec![tunnel(b.addr, spec.tunnel.gue_port, udp::PROTOCOL)],
            _ => [IPV4_WITHIN, IPV6_WITHIN].map(|proto| tunnel(b.addr, 0, proto)).to_vec(),
        })
    });
    let dnat = dnat.flat_map(|s| {
        let backends = spec.pools_of(s).flat_map(|p| &p.backends);
        backends.map(|b| endpoint(b.addr, b.port, s.proto, s.canary_share))
    });
    dnat.chain(ends).collect()
}

/// Where a tunnel leads: errors about its packets are for us.
fn tunnel(addr: Addr, port: u16, proto: u8) -> VipEntry {
    endpoint(addr, port, proto, SHARE_TUNNEL as u16)
}

fn nat(spec: &ForwardSpec) -> Vec<NatRange> {
    let Some(nat) = &spec.nat else { return Vec::new() };
    let range = |&addr| NatRange { addr, first: nat.port_first, last: nat.port_last };
    nat.addresses.iter().map(range).collect()
}

fn union<T: Clone>(first: &[T], second: &[T], same: impl Fn(&T, &T) -> bool) -> Vec<T> {
    let mut all = first.to_vec();
    for item in second {
        if !all.iter().any(|known| same(known, item)) {
            all.push(item.clone());
        }
    }
    all
}

/// The programs and what they were told last.
pub struct Steering {
    steer: Steer,
    tables: SteerTables,
    /// The last attempt failed half way: what the programs have may be anything of its tables and
    /// of those before.
    is_unsure: bool,
    local: Vec<Addr>,
    /// Services whose share is smaller than it was when some of their flows began.
    lowered: Lowered,
}

impl Steering {
    pub fn new(steer: Steer) -> Steering {
        Steering {
            steer,
            tables: SteerTables::default(),
            is_unsure: false,
            local: Vec::new(),
            lowered: Lowered::default(),
        }
    }

    pub fn steer(&self) -> &Steer {
        &self.steer
    }

    pub fn steer_mut(&mut self) -> &mut Steer {
        &mut self.steer
    }

    /// See [`Steer::leave`].
    pub fn leave(&mut self) {
        self.steer.leave();
    }

    /// The tables that the programs were given last as a whole.
    pub fn tables(&self) -> &SteerTables {
        &self.tables
    }

    /// Whether the programs have room for such tables.
    ///
    /// # Errors
    /// [`NicError::TooMany`].
    pub fn check_room(&self, tables: &SteerTables) -> Result<(), NicError> {
        let SteerTables { vips, returns, nat, transit, checks } = tables;
        check_room(returns, transit, vips, (&self.local, nat, *checks))
    }

    /// Tells the programs the limits of a worker's heartbeat.
    ///
    /// # Errors
    /// The kernel refusing a map update.
    pub fn set_limits(&mut self, workers: &WorkersSpec) -> Result<(), NicError> {
        self.steer.set_config(workers.heartbeat_limit, workers.on_failure, SHARE_ALL as u16)
    }

    /// From now on the programs forward only what workers hand down by these routes.
    ///
    /// # Errors
    /// The kernel refusing a map update.
    pub fn resume_offload(&mut self, routes: &Routes) -> Result<(), NicError> {
        self.steer.set_generation(routes.generation())
    }

    /// The programs forward nothing by themselves, until [`Steering::resume_offload`].
    ///
    /// # Errors
    /// The kernel refusing a map update.
    pub fn pause_offload(&mut self) -> Result<(), NicError> {
        self.steer.set_generation(0)
    }

    /// See [`Steer::refresh_targets`].
    ///
    /// # Errors
    /// The kernel refusing to tell or to be told.
    pub fn refresh_targets(&mut self) -> Result<(), NicError> {
        self.steer.refresh_targets()
    }

    /// Does what a worker asks for. What fails leaves the flow with its worker.
    pub fn offload(&mut self, order: &OffloadOrder) {
        if let Err(error) = self.steer.offload(order) {
            tracing::debug!(%error, "a flow could not be offloaded");
        }
    }

    /// Tells the programs what is ours. Replies before requests: no flow begins whose answers would
    /// go elsewhere. After a failure everything is told anew by the next call, so that the tables
    /// of before can be had back.
    ///
    /// # Errors
    /// The kernel refusing a map update.
    pub fn set_tables(&mut self, wanted: SteerTables) -> Result<(), NicError> {
        let (vips, returns) = (&self.tables.vips, &self.tables.returns);
        let lowered = Lowered::of((&wanted.vips, vips), (&wanted.returns, returns), &self.lowered);
        self.tell(wanted, lowered)
    }

    /// Services whose share is smaller than it was when some of their flows began.
    pub fn lowered(&self) -> &Lowered {
        &self.lowered
    }

    /// These flows of services whose share was lowered stay ours. If they are `all`, no others of
    /// them do, and of services of which none stays nothing is known any more; else those, too,
    /// that have come since. The answer is how many there was no room for.
    ///
    /// # Errors
    /// The kernel refusing a map update.
    pub fn keep(&mut self, flows: &HashSet<FlowKey>, are_all: bool) -> Result<usize, NicError> {
        let refused = self.steer.keep(flows, are_all)?;
        let ends: HashSet<_> = flows.iter().map(|k| (k.dst, k.dport, k.proto)).collect();
        let mut lowered = self.lowered.known();
        lowered.vips.retain(|at, _| !are_all || ends.contains(at));
        lowered.returns.retain(|at, _| !are_all || ends.contains(at));
        self.tell(self.tables.clone(), lowered)?;
        Ok(refused)
    }

    fn tell(&mut self, wanted: SteerTables, lowered: Lowered) -> Result<(), NicError> {
        let is_unsure = std::mem::replace(&mut self.is_unsure, true);
        let other_shares = is_unsure || self.lowered != lowered;
        self.steer.set_lowered(lowered.clone());
        self.lowered = lowered;
        if other_shares || self.tables.returns != wanted.returns {
            self.steer.set_returns(&wanted.returns)?;
        }
        if is_unsure || self.tables.nat != wanted.nat {
            self.steer.set_nat(&wanted.nat)?;
        }
        if is_unsure || self.tables.checks != wanted.checks {
            self.steer.set_checks(wanted.checks)?;
        }
        if is_unsure || self.tables.transit != wanted.transit {
            self.steer.set_transit(&wanted.transit)?;
        }
        if other_shares || self.tables.vips != wanted.vips {
            self.steer.set_vips(&wanted.vips)?;
        }
        self.tables = wanted;
        self.is_unsure = false;
        Ok(())
    }

    /// Tells the programs the box's own addresses, as the kernel has them.
    ///
    /// # Errors
    /// The kernel refusing a map update.
    pub fn set_local(&mut self, mirror: &Mirror) -> Result<(), NicError> {
        let mut local: Vec<Addr> = mirror.addresses().map(|(_, addr)| addr).collect();
        local.sort_unstable();
        local.dedup();
        if local != self.local {
            self.steer.set_local(&local)?;
            self.local = local;
        }
        Ok(())
    }

    /// Hands everything to the kernel from now on. What fails is logged: this is the end.
    pub fn release(&mut self) {
        let ended = self.pause_offload().and_then(|()| self.set_tables(SteerTables::default()));
        if let Err(error) = ended {
            tracing::warn!(%error, "steering could not be ended in order");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config;
    use std::path::Path;

    const TEXT: &str = r#"
pipeline = "l4-balancer"
[port.wan]
interface = "wan"
[nat]
addresses = ["192.0.2.9"]
ports = "20000-29999"
[service.a]
vip = "203.0.113.1"
port = 443
pool = "one"
mode = "dnat"
canary_percent = 5
[service.b]
vip = "203.0.113.2"
port = 443
pool = "one"
mode = "nat"
[[pool.one.backend]]
address = "10.0.0.1"
port = 8443
[[pool.one.backend]]
address = "10.0.0.2"
port = 8443
"#;

    fn tables(text: &str) -> SteerTables {
        match config::load_text(Path::new("test.toml"), text) {
            Ok(config) => SteerTables::of(&config),
            Err(e) => panic!("{:#?}", e.into_vec()),
        }
    }

    #[test]
    fn services_returns_and_nat_ranges_are_steered() {
        let t = tables(TEXT);
        let vips: Vec<_> = t.vips.iter().map(|v| (v.addr.to_string(), v.canary_share)).collect();
        assert_eq!(vips, [("203.0.113.1".into(), 500), ("203.0.113.2".into(), 10_000)]);
        let returns: Vec<_> =
            t.returns.iter().map(|r| (r.addr.to_string(), r.canary_share)).collect();
        assert_eq!(returns, [("10.0.0.1".into(), 500), ("10.0.0.2".into(), 500)]);
        assert_eq!((t.nat[0].first, t.nat[0].last), (20_000, 29_999));
    }

    #[test]
    fn while_going_over_both_are_steered_and_the_new_share_counts() {
        let old = tables(TEXT);
        let new = tables(&TEXT.replace("203.0.113.2", "203.0.113.3").replace("= 5\n", "= 50\n"));
        let both = old.union(&new);
        let mut vips: Vec<_> =
            both.vips.iter().map(|v| (v.addr.to_string(), v.canary_share)).collect();
        vips.sort();
        let want = [("203.0.113.1", 5_000), ("203.0.113.2", 10_000), ("203.0.113.3", 10_000)];
        assert_eq!(vips, want.map(|(a, s)| (a.to_string(), s)));
        assert_eq!(both.returns.len(), 2);
    }
}
