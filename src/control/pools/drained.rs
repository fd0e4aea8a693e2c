//! What the operator has drained, by name: it outlives reloads.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

use crate::base::Addr;
use crate::config::Config;
use crate::forward::spec::{BackendSpec, PoolId, PoolSpec};
use crate::worker::FlowsOf;

/// What can be drained.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase", deny_unknown_fields)]
pub enum DrainTarget {
    /// One backend of one pool.
    Backend {
        pool: String,
        name: String,
    },
    Pool(String),
    Service(String),
    /// All services.
    Appliance,
}

impl std::fmt::Display for DrainTarget {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            DrainTarget::Backend { pool, name } => write!(f, "backend {pool}/{name}"),
            DrainTarget::Pool(name) => write!(f, "pool {name}"),
            DrainTarget::Service(name) => write!(f, "service {name}"),
            DrainTarget::Appliance => f.write_str("the appliance"),
        }
    }
}

/// Everything that gets no new flows by the operator's word.
#[derive(Clone, Debug, Default)]
pub struct Drained {
    targets: BTreeSet<DrainTarget>,
    /// What the last change of the configuration had forgotten.
    gone: BTreeSet<DrainTarget>,
}

impl Drained {
    /// Drains, or ends it; whether that is a change.
    pub fn set(&mut self, target: &DrainTarget, drained: bool) -> bool {
        match drained {
            true => self.targets.insert(target.clone()),
            false => self.targets.remove(target),
        }
    }

    pub fn has(&self, target: &DrainTarget) -> bool {
        self.targets.contains(target)
    }

    pub fn backend(&self, pool: &PoolSpec, backend: &BackendSpec) -> bool {
        let (pool, name) = (pool.name.clone(), backend.name.clone());
        self.targets.contains(&DrainTarget::Pool(pool.clone()))
            || self.targets.contains(&DrainTarget::Backend { pool, name })
    }

    pub fn service(&self, name: &str) -> bool {
        self.targets.contains(&DrainTarget::Appliance)
            || self.targets.contains(&DrainTarget::Service(name.to_string()))
    }

    /// What else is drained of that which leads to `target`, or to which it leads.
    pub fn beside(&self, config: &Config, target: &DrainTarget) -> Vec<String> {
        let mine = pools_of(config, target);
        // Of two backends, or two services, neither leads to the other.
        let alike =
            |other: &DrainTarget| std::mem::discriminant(other) == std::mem::discriminant(target);
        let meets = |other: &&DrainTarget| {
            !alike(other) && pools_of(config, other).iter().any(|pool| mine.contains(pool))
        };
        self.targets.iter().filter(meets).map(ToString::to_string).collect()
    }

    /// Forgets what a new configuration no longer has; gives it back.
    pub fn keep_known(&mut self, config: &Config) -> Vec<DrainTarget> {
        let gone = |t: &DrainTarget| flows_of(config, t).is_err();
        let gone: Vec<_> = self.targets.iter().filter(|t| gone(t)).cloned().collect();
        self.targets.retain(|t| !gone.contains(t));
        self.gone = gone.iter().cloned().collect();
        gone
    }

    /// What the last change has forgotten is drained again: the one before comes back.
    pub fn bring_back(&mut self) {
        self.targets.append(&mut self.gone);
    }
}

/// The pools that a target is of, or leads to.
fn pools_of(config: &Config, target: &DrainTarget) -> Vec<usize> {
    let forward = &config.forward;
    let of_services = |wanted: Option<&str>| {
        let of = forward.services.iter().filter(|s| wanted.is_none_or(|name| s.name == name));
        of.flat_map(|s| forward.pools_of(s)).map(|pool| usize::from(pool.id.0)).collect()
    };
    match target {
        DrainTarget::Backend { pool: name, .. } | DrainTarget::Pool(name) => {
            let named = forward.pools.iter().filter(|pool| pool.name == *name);
            named.map(|pool| usize::from(pool.id.0)).collect()
        }
        DrainTarget::Service(name) => of_services(Some(name)),
        DrainTarget::Appliance => of_services(None),
    }
}

/// Whose flows are left when this is drained.
///
/// # Errors
/// One sentence for the operator: there is no such thing.
pub fn flows_of(config: &Config, target: &DrainTarget) -> Result<FlowsOf, String> {
    let forward = &config.forward;
    let pool = |name: &str| {
        let found = forward.pools.iter().find(|p| p.name == name);
        found.ok_or_else(|| format!("there is no pool `{name}`"))
    };
    let ends = |backends: &[BackendSpec], wanted: Option<&str>| {
        let of = backends.iter().filter(|b| wanted.is_none_or(|name| b.name == name));
        of.map(|b| (b.addr, b.port)).collect::<Vec<_>>()
    };
    let vips = |wanted: Option<&str>| {
        let of = forward.services.iter().filter(|s| wanted.is_none_or(|name| s.name == name));
        of.map(|s| (s.vip, s.port, s.proto)).collect::<Vec<_>>()
    };
    match target {
        DrainTarget::Backend { pool: of, name } => {
            let ends = ends(&pool(of)?.backends, Some(name));
            match ends.is_empty() {
                true => Err(format!("pool `{of}` has no backend `{name}`")),
                false => Ok(flows_at(config, pool(of)?.id, ends)),
            }
        }
        DrainTarget::Pool(name) => {
            let pool = pool(name)?;
            Ok(flows_at(config, pool.id, ends(&pool.backends, None)))
        }
        DrainTarget::Service(name) => {
            let vips = vips(Some(name));
            match vips.is_empty() {
                true => Err(format!("there is no service `{name}`")),
                false => Ok(FlowsOf::services(vips)),
            }
        }
        DrainTarget::Appliance => Ok(FlowsOf::services(vips(None))),
    }
}

/// The flows that backends at these addresses and ports serve as a pool's: what has come by a
/// service that leads to another pool with such a backend, but not to this one, is the other's.
pub fn flows_at(config: &Config, pool: PoolId, ends: Vec<(Addr, u16)>) -> FlowsOf {
    let forward = &config.forward;
    let others = forward.services.iter().filter(|s| !forward.leads_to(s, pool));
    let others = others.flat_map(|s| {
        let pools = forward.pools.iter().filter(|p| forward.leads_to(s, p.id));
        let theirs = pools.flat_map(|p| &p.backends).map(|b| (b.addr, b.port));
        theirs.filter(|end| ends.contains(end)).map(|end| (end, (s.vip, s.port, s.proto)))
    });
    let others = others.collect();
    FlowsOf::backends(ends, others)
}
