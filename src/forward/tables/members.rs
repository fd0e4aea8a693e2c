//! Which backends a pool may lead to.

use super::Tables;
use crate::base::Addr;
use crate::forward::spec::PoolId;

impl Tables {
    /// Whether a new flow for a pool, or for a split between pools, may be given this backend, as
    /// far as weights tell.
    pub fn is_among(&self, pool: PoolId, addr: Addr, port: u16) -> bool {
        let is = |index: u16| {
            let backend = self.backends.get(usize::from(index));
            backend.is_some_and(|backend| (backend.addr, backend.port) == (addr, port))
        };
        let has = |pool: PoolId| self.pools.get(usize::from(pool.0)).is_some_and(|p| p.has(is));
        match self.split(usize::from(pool.0)) {
            None => has(pool),
            Some(split) => split.order(0).any(has),
        }
    }
}
