//! Flows outside of their service's share by now, and connections that are being bound, of which
//! there is no flow yet, listed a bounded number a turn.

use std::sync::Arc;

use super::command::WorkerEvent;
use super::turn::Worker;
use crate::base::Addr;
use crate::base::hash::canary_place;
use crate::flow::{Flow, FlowKind};
use crate::nic::Port;
use crate::packet::{FlowKey, FlowRef};

/// Flows and places for bindings looked at in one turn of the loop at most.
const FLOWS_A_TURN: u32 = 256;
/// A flow is listed by both its ends.
const KEYS_A_FLOW: usize = 2;

/// Services whose share was lowered, by address, port and protocol, with the share in hundredths of
/// a percent.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Outside(Vec<((Addr, u16, u8), u16)>);

/// Keys of flows, in parts where there are many.
#[derive(Clone, Debug)]
pub struct KeyList {
    pub of: Arc<Outside>,
    /// Where to begin; where it ended, once answered. 0 at first, and at the end of the table.
    /// Bindings come first: what is bound meanwhile is found among the flows.
    pub cursor: u32,
    /// As the client sends, and where answers come from the backend itself, as if it sent there;
    /// filled as far as there is capacity.
    pub keys: Vec<FlowKey>,
    /// As clients send whose connections are being bound; as far as there is capacity, too.
    pub binding: Vec<FlowKey>,
}

impl KeyList {
    /// With room for so many flows a part.
    pub fn new(of: Arc<Outside>, flows: usize) -> KeyList {
        let flows = flows.max(1);
        let (keys, binding) = (Vec::with_capacity(flows * KEYS_A_FLOW), Vec::with_capacity(flows));
        KeyList { of, cursor: 0, keys, binding }
    }

    pub(super) fn clear(&mut self) {
        self.keys.clear();
        self.binding.clear();
    }

    fn has_room(&self) -> bool {
        self.keys.len() + KEYS_A_FLOW <= self.keys.capacity()
            && self.binding.len() < self.binding.capacity()
    }

    fn add(&mut self, flow: &Flow) {
        let (client, server) = (flow.client_key(), flow.server_key());
        self.keys.push(client);
        if (server.dst, server.dport) == (client.src, client.sport) {
            self.keys.push(FlowKey { dst: server.src, dport: server.sport, ..client });
        }
    }
}

impl Outside {
    pub fn new(mut services: Vec<((Addr, u16, u8), u16)>) -> Outside {
        services.sort_unstable();
        Outside(services)
    }

    fn has(&self, flow: &Flow) -> bool {
        let may_stay = flow.kind != FlowKind::Transit && !flow.tcp.has_ended();
        may_stay && self.has_client(&flow.client_key())
    }

    fn has_client(&self, key: &FlowKey) -> bool {
        let at = (key.dst, key.dport, key.proto);
        let Ok(found) = self.0.binary_search_by_key(&at, |s| s.0) else { return false };
        canary_place(key.src, key.sport) >= self.0[found].1
    }
}

impl<P: Port> Worker<P> {
    /// Goes on with the list that is under way.
    pub(super) fn list_keys(&mut self) {
        let Some(list) = &mut self.parts.control.keys else { return };
        let (flows, pipeline) = (&self.parts.flows, &self.parts.pipeline);
        let places = pipeline.binding_places() as u32;
        let capacity = places + flows.capacity() as u32;
        let end = list.cursor.saturating_add(FLOWS_A_TURN).min(capacity);
        while list.cursor < end && list.has_room() {
            match list.cursor.checked_sub(places) {
                None => {
                    let client = pipeline.binding_at(list.cursor as usize);
                    list.binding.extend(client.filter(|client| list.of.has_client(client)));
                }
                Some(at) => {
                    if let Some(flow) = flows.at(FlowRef(at)).filter(|flow| list.of.has(flow)) {
                        list.add(flow);
                    }
                }
            }
            list.cursor += 1;
        }
        let at_end = list.cursor >= capacity;
        if at_end {
            list.cursor = 0;
        }
        if (at_end || !list.has_room())
            && let Some(list) = self.parts.control.keys.take()
        {
            self.parts.control.tell(WorkerEvent::Keys(list));
        }
    }
}
