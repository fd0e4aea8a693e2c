//! How many connections and requests clients may begin: who is limited is asked here.
//!
//! A connection costs its client a token once its address is shown to be its own: with the packet
//! that completes the handshake, or brings a SYN cookie back. A SYN is only asked whether there is
//! a token left, so that SYNs from addresses that are not their sender's cost nobody anything.

use crate::base::Nanos;
use crate::flow::{Flow, FlowKind, FlowTable, TcpState};
use crate::graph::{Cx, Snapshot};
use crate::inspect::inspector::Said;
use crate::packet::tcp::flag::{ACK, RST, SYN};
use crate::packet::{ClassId, Direction, FlowKey, FlowRef, PacketMeta, tcp};
use crate::policy::Facts;
use crate::qos::limits::{Event, Excess};

/// Whether a new connection of a SYN's sender may be tried.
pub(super) fn may_try(cx: &Cx<'_>, meta: &PacketMeta, rule: Option<u16>) -> Result<(), ClassId> {
    let by = (rule, service(cx.snapshot, &meta.key));
    let limits = &cx.snapshot.limits;
    limits.may(cx.now, meta.key.src, by, Event::Connection).map_err(class)
}

/// Takes the token for a connection, whose client's key and first code point are these.
pub(super) fn begin(cx: &Cx<'_>, key: &FlowKey, dscp: u8) -> Result<(), ClassId> {
    let snapshot = cx.snapshot;
    if !snapshot.limits.has(Event::Connection) {
        return Ok(());
    }
    // As for its SYN, with what was known of it.
    let rule = snapshot.rules.decide(&Facts::of(key, dscp)).rule;
    let by = (rule, service(snapshot, key));
    snapshot.limits.take(cx.now, key.src, by, Event::Connection).map_err(class)
}

/// Takes the token for a request of a connection, about which this rule has decided.
pub(super) fn ask(
    snapshot: &Snapshot,
    now: Nanos,
    key: &FlowKey,
    rule: Option<u16>,
) -> Result<(), ClassId> {
    if !snapshot.limits.has(Event::Request) {
        return Ok(());
    }
    let by = (rule, service(snapshot, key));
    snapshot.limits.take(now, key.src, by, Event::Request).map_err(class)
}

/// Whether requests are to be followed for as long as a connection has any: for rules, or to be
/// counted.
pub(super) fn follows(snapshot: &Snapshot) -> bool {
    snapshot.rules.follows_requests() || snapshot.limits.has(Event::Request)
}

/// Whether a client must not say anything that can't be read: rules might refuse its connection by
/// that, or its requests are counted.
#[cold]
pub(super) fn must_read(snapshot: &Snapshot, facts: &Facts<'_>, said: Said) -> bool {
    let (key, limits) = (facts.key, &snapshot.limits);
    let counted = || limits.holds(key.src, service(snapshot, key), Event::Request);
    said != Said::Hello && counted() || snapshot.rules.must_read(facts, said)
}

/// Has the rules' say about a flow end with this one: its packets are dropped.
pub(super) fn end(flows: &mut FlowTable, at: FlowRef, class: ClassId) {
    flows.set_steps(at, 0);
    flows.get_mut(at).class = class;
}

/// Whether a packet completes its connection's handshake: its sender has seen the answer to its
/// SYN. Connections that were bound later have shown it by their cookie.
#[inline]
pub(super) fn completes(flow: &Flow, meta: &PacketMeta) -> bool {
    flow.tcp.is_half_open()
        && meta.direction == Direction::Forward
        && meta.tcp_flags & (SYN | ACK | RST) == ACK
        && meta.key.proto == tcp::PROTOCOL
        && flow.kind != FlowKind::Spliced
        // Answers of `dsr` backends do not come by here.
        && (flow.tcp == TcpState::SynReceived || flow.kind == FlowKind::Dsr)
}

/// A service's number, where the key leads to one.
fn service(snapshot: &Snapshot, key: &FlowKey) -> Option<u16> {
    snapshot.forward.service(key.dst, key.dport, key.proto).map(|service| service.id.0)
}

/// What becomes of the packets of whom is beyond its limit.
fn class(excess: Excess) -> ClassId {
    match excess {
        Excess::Drop => ClassId::OVER_LIMIT,
        Excess::Reset => ClassId::OVER_LIMIT_RESET,
    }
}
