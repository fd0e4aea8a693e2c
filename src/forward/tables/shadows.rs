//! Which connections are shadowed.

use super::Tables;
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
}
