//! What a flow's state becomes, and what that means to those who count flows.

use std::mem;

use super::{FlowTable, TCP};
use crate::flow::TcpState;
use crate::packet::PacketMeta;

impl FlowTable {
    /// The state after a packet that may change it.
    #[inline(never)]
    pub(super) fn advance(&mut self, at: u32, meta: &PacketMeta) {
        let flow = &self.flows[at as usize];
        let (before, tcp) = (flow.tcp, flow.proto == TCP);
        let after = before.after(tcp, meta.tcp_flags, meta.direction, flow.has_reply_key());
        match before.taken(after, meta.tcp_flags, meta.direction) {
            Some(true) => self.serving.took(self.details[at as usize].backend),
            Some(false) => self.serving.failed(self.details[at as usize].backend),
            None => {}
        }
        if after != before {
            self.change_state(at, after);
        }
    }

    pub(super) fn change_state(&mut self, at: u32, after: TcpState) {
        let flow = &mut self.flows[at as usize];
        let before = mem::replace(&mut flow.tcp, after);
        let backend = self.details[at as usize].backend;
        match (before.has_ended(), after.has_ended()) {
            (false, true) => self.serving.end(backend),
            (true, false) => self.serving.begin(backend),
            _ => {}
        }
        match (before.is_half_open(), after.is_half_open()) {
            (true, true) => return, // keeps its place: its time runs from the SYN
            (true, false) => self.half_open -= 1,
            _ => {}
        }
        self.schedule(at);
    }
}
