//! A table's flows as backends have them: counted, and ended from our side.

use std::sync::Arc;

use super::{FlowTable, tick};
use crate::base::Nanos;
use crate::flow::{Serving, TcpState};
use crate::packet::FlowRef;

impl FlowTable {
    /// Counts what backends serve where others see it.
    pub fn with_serving(mut self, serving: Arc<Serving>) -> FlowTable {
        self.serving = serving;
        self
    }

    /// What backends are busy with.
    #[inline]
    pub fn serving(&self) -> &Serving {
        &self.serving
    }

    /// Ends a flow from our side: packets of it find no next hop any more.
    pub fn cut(&mut self, now: Nanos, r: FlowRef) {
        let flow = &mut self.flows[r.0 as usize];
        flow.forget_hops();
        flow.last_seen = tick(now);
        self.change_state(r.0, TcpState::Cut);
    }
}
