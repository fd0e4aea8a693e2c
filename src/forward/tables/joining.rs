//! What is known of a flow that is seen in the middle: as much as follows from its key.

use super::{Service, Tables, tag};
use crate::flow::FlowKind;
use crate::forward::choice::PoolChoice;
use crate::forward::spec::ForwardMode;
use crate::packet::FlowKey;

impl Tables {
    /// How a service's packets reach a backend that every appliance, and this one started anew,
    /// would choose for the same key. `None` where only who has the flow knows its backend: with
    /// NAT (the port toward the backend is its own), delayed binding, or another choice than by
    /// hash.
    pub fn adopts(&self, service: &Service) -> Option<FlowKind> {
        let by_hash = |pool: usize| self.pools.get(pool).is_some_and(PoolChoice::is_by_hash);
        let chosen = usize::from(service.pool.0);
        let alike = match self.split(chosen) {
            Some(split) => split.order(0).all(|pool| by_hash(usize::from(pool.0))),
            None => by_hash(chosen),
        };
        if service.delay.is_some() || !alike {
            return None;
        }
        match service.mode {
            ForwardMode::Nat => None,
            ForwardMode::Dnat => Some(FlowKind::Dnat),
            ForwardMode::Dsr => Some(FlowKind::Dsr),
            ForwardMode::Ipip => Some(FlowKind::Ipip),
            ForwardMode::Gue => Some(FlowKind::Gue),
        }
    }

    /// The key that a client has, whom a `dnat` backend answers with this one; and the service. Of
    /// several services with this backend the first.
    pub fn answered(&self, reply: &FlowKey) -> Option<(FlowKey, &Service)> {
        let index = self.returns.get(reply.src, tag(reply.sport, reply.proto))?;
        let service = self.services.get(index as usize)?;
        let (src, sport) = (reply.dst, reply.dport);
        let (dst, dport) = (service.vip, service.port);
        Some((FlowKey { src, sport, dst, dport, proto: reply.proto }, service))
    }
}
