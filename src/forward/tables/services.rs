//! What services ask of their connections: which are shadowed, and whose answers are judged.

use super::{Service, Tables};
use crate::forward::spec::ServiceSpec;
use crate::packet::FlowKey;

impl Tables {
    /// Whether any connection may be shadowed.
    #[inline]
    pub fn has_shadows(&self) -> bool {
        self.has_shadows
    }

    /// Whether this one is, by the key as the client sends.
    #[inline]
    pub fn shadows(&self, key: &FlowKey) -> bool {
        let share = || self.service(key.dst, key.dport, key.proto).map_or(0, |s| s.shadow_share);
        self.has_shadows && key.is_among(share())
    }

    /// Whether answers to a client are counted for as long as it asks, by the key as it sends.
    #[inline]
    pub fn judges(&self, key: &FlowKey) -> bool {
        let judged = || self.service(key.dst, key.dport, key.proto).is_some_and(|s| s.judged);
        self.has_judged && judged()
    }
}

impl Service {
    pub(super) fn of(s: &ServiceSpec, judged: bool) -> Service {
        Service {
            id: s.id,
            pool: s.pool,
            mode: s.mode,
            vip: s.vip,
            port: s.port,
            proto: s.proto,
            idle_established_ms: s.idle_established.as_millis().try_into().unwrap_or(u32::MAX),
            mss_clamp: s.mss_clamp,
            delay: s.delay,
            drained: false,
            shadow_share: s.shadow.map_or(0, |shadow| shadow.share),
            judged,
        }
    }
}
