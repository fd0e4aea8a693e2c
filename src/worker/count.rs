//! How many flows are left of what is being drained.

use super::command::WorkerEvent;
use super::turn::Worker;
use crate::base::Addr;
use crate::flow::{Flow, FlowKind};
use crate::nic::Port;
use crate::packet::{FlowKey, FlowRef};

/// Flows looked at in one turn of the loop at most.
const FLOWS_A_TURN: u32 = 256;

/// Whose flows are counted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FlowsOf(Ends);

/// A backend's address and port.
type End = (Addr, u16);
/// Address, port and protocol of a VIP.
type Vip = (Addr, u16, u8);

/// Sorted lists.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Ends {
    Backends { ends: Vec<End>, others: Vec<(End, Vip)> },
    Services(Vec<Vip>),
}

/// A count of the flows of some backends or services, in parts where there are many.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FlowCount {
    pub of: FlowsOf,
    /// Where it goes on.
    pub(super) cursor: u32,
    /// Counted so far.
    pub flows: u64,
}

impl FlowCount {
    pub fn new(of: FlowsOf) -> FlowCount {
        FlowCount { of, cursor: 0, flows: 0 }
    }
}

impl FlowsOf {
    /// Those that backends serve, by their address and port; without `others`, which have come by
    /// this address, port and protocol of a VIP.
    pub fn backends(mut ends: Vec<End>, mut others: Vec<(End, Vip)>) -> FlowsOf {
        ends.sort_unstable();
        others.sort_unstable();
        FlowsOf(Ends::Backends { ends, others })
    }

    /// Those of services, by address, port and protocol of the VIP.
    pub fn services(mut vips: Vec<Vip>) -> FlowsOf {
        vips.sort_unstable();
        FlowsOf(Ends::Services(vips))
    }

    /// Connections that both sides have ended, or one has reset, are no longer counted: they are
    /// kept for late packets only.
    pub fn has(&self, flow: &Flow) -> bool {
        if flow.kind == FlowKind::Transit || flow.tcp.has_ended() {
            return false;
        }
        let (client, server) = (flow.client_key(), flow.server_key());
        let end = (server.src, server.sport);
        let vip = (client.dst, client.dport, client.proto);
        match &self.0 {
            Ends::Backends { ends, others } => {
                ends.binary_search(&end).is_ok() && others.binary_search(&(end, vip)).is_err()
            }
            Ends::Services(vips) => vips.binary_search(&vip).is_ok(),
        }
    }
}

impl FlowsOf {
    /// Whether any client whose connection waits for its backend may be among them.
    pub fn awaits_some(&self) -> bool {
        matches!(self.0, Ends::Services(_))
    }

    /// Whether a client whose connection waits for its backend is among them: of a service it is.
    pub fn awaits(&self, client: &FlowKey) -> bool {
        match &self.0 {
            Ends::Backends { .. } => false,
            Ends::Services(vips) => {
                vips.binary_search(&(client.dst, client.dport, client.proto)).is_ok()
            }
        }
    }
}

impl<P: Port> Worker<P> {
    pub(super) fn count_flows(&mut self) {
        let Some(count) = &mut self.parts.control.counting else { return };
        let flows = &self.parts.flows;
        let capacity = flows.capacity() as u32;
        let end = count.cursor.saturating_add(FLOWS_A_TURN).min(capacity);
        let part = (count.cursor..end).filter_map(|at| flows.at(FlowRef(at)));
        count.flows += part.filter(|flow| count.of.has(flow)).count() as u64;
        count.cursor = end;
        if end == capacity
            && let Some(mut count) = self.parts.control.counting.take()
        {
            let of = &count.of;
            if of.awaits_some() {
                let waiting = self.parts.pipeline.waiting(|client| of.awaits(client));
                count.flows += waiting as u64;
            }
            self.parts.control.tell(WorkerEvent::Counted(count));
        }
    }
}
