//! What is to become of copies, as the configuration has it.

use std::net::SocketAddr;
use std::sync::Arc;

use super::files::FilesTold;
use super::pair::SharedTold;
use crate::base::hash::pick;
use crate::base::{Addr, Seed};
use crate::config::{Config, FilesSpec};
use crate::forward::spec::{ServiceSpec, ShadowSpec};
use crate::packet::FlowKey;

/// Chooses the server of a shadow.
const CHOICE_SEED: Seed = Seed(0x7368_6164_6f77_7631);

/// All of it.
#[derive(Clone, Default)]
pub struct Plan {
    pub shadows: Vec<ShadowPlan>,
    pub files: Vec<FilesPlan>,
}

/// One service's shadow.
#[derive(Clone)]
pub struct ShadowPlan {
    pub vip: Addr,
    pub port: u16,
    pub proto: u8,
    /// With their weights.
    pub backends: Vec<(SocketAddr, u16)>,
    pub told: SharedTold,
}

/// Files of one collector.
#[derive(Clone)]
pub struct FilesPlan {
    pub spec: FilesSpec,
    pub told: Arc<FilesTold>,
}

impl Plan {
    pub fn is_empty(&self) -> bool {
        self.shadows.is_empty() && self.files.is_empty()
    }
}

impl ShadowPlan {
    pub fn new(
        config: &Config,
        service: &ServiceSpec,
        shadow: &ShadowSpec,
        told: SharedTold,
    ) -> ShadowPlan {
        let pool = config.forward.pools.get(usize::from(shadow.pool.0));
        let backends = pool.into_iter().flat_map(|pool| &pool.backends);
        let end = |addr: Addr, port| SocketAddr::new(addr.to_ip(), port);
        ShadowPlan {
            vip: service.vip,
            port: service.port,
            proto: service.proto,
            backends: backends.map(|b| (end(b.addr, b.port), b.weight)).collect(),
            told,
        }
    }

    pub fn is_of(&self, key: &FlowKey) -> bool {
        (self.vip, self.port, self.proto) == (key.dst, key.dport, key.proto)
    }

    /// The server that hears a connection, by its weight; the same for all of its packets.
    pub fn backend(&self, key: &FlowKey) -> Option<SocketAddr> {
        let total: u32 = self.backends.iter().map(|(_, weight)| u32::from(*weight)).sum();
        if total == 0 {
            return None;
        }
        let mut left = pick(key.hash(CHOICE_SEED), total);
        let found = self.backends.iter().find(|(_, weight)| {
            let is_here = left < u32::from(*weight);
            left = left.saturating_sub(u32::from(*weight));
            is_here
        });
        found.map(|(end, _)| *end)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn servers_are_chosen_by_their_weights() {
        let end = |n: u8| SocketAddr::from(([10, 0, 0, n], 80));
        let plan = ShadowPlan {
            vip: Addr::v4(1),
            port: 80,
            proto: 6,
            backends: vec![(end(1), 1), (end(2), 0), (end(3), 3)],
            told: SharedTold::default(),
        };
        let mut counts = [0; 4];
        for sport in 0..10_000 {
            let key = FlowKey { src: Addr::v4(9), sport, ..FlowKey::default() };
            let Some(SocketAddr::V4(to)) = plan.backend(&key) else { panic!("{sport}") };
            counts[usize::from(to.ip().octets()[3])] += 1;
        }
        assert!(counts[2] == 0 && (2_300..2_700).contains(&counts[1]), "{counts:?}");
        let nobody = ShadowPlan { backends: vec![(end(1), 0)], ..plan };
        assert_eq!(nobody.backend(&FlowKey::default()), None);
    }
}
