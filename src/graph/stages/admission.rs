//! How many connections and requests clients may begin: who is limited is asked here.
//!
//! A connection costs its client a token once its address is shown to be its own: with the packet
//! that completes the handshake, or brings a SYN cookie back. A SYN is only asked whether there is
//! a token left, so that SYNs from addresses that are not their sender's cost nobody anything. For
//! the same reason it is not the SYN that waits for a token which is still to come, but what takes
//! that token.

use crate::base::Nanos;
use crate::flow::{Flow, FlowKind, FlowTable, TcpState};
use crate::graph::{Cx, Snapshot};
use crate::inspect::inspector::Said;
use crate::packet::tcp::flag::{ACK, RST, SYN};
use crate::packet::{ClassId, Direction, DropReason, FlowKey, FlowRef, PacketMeta, Verdict, tcp};
use crate::policy::Facts;
use crate::qos::limits::{Asker, Event, Excess};

/// What becomes of whom has no token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Lacking {
    /// The packet waits for the one that it has taken.
    Waits,
    /// It is refused, as packets of this class.
    Refused(ClassId),
}

impl Lacking {
    /// Has a packet wait; an error where it is to be dropped.
    pub fn apply(self, meta: &mut PacketMeta) -> Result<(), DropReason> {
        match self {
            Lacking::Waits => {
                meta.verdict = Verdict::Wait;
                Ok(())
            }
            Lacking::Refused(class) => Err(class.refusal()),
        }
    }
}

/// Whether a new connection of a SYN's sender may be tried.
pub(super) fn may_try(cx: &Cx<'_>, meta: &PacketMeta, rule: Option<u16>) -> Result<(), ClassId> {
    let asker = asker(cx.snapshot, &meta.key, rule, cx.may_delay());
    let limits = &cx.snapshot.limits;
    limits.may(cx.now, &asker, Event::Connection).map_err(|e| class(e, Event::Connection))
}

/// Takes the token for a connection that begins with this packet.
pub(super) fn begin(cx: &mut Cx<'_>, meta: &PacketMeta) -> Result<(), Lacking> {
    const EVENT: Event = Event::Connection;
    let snapshot = cx.snapshot;
    if !snapshot.limits.has(EVENT) || cx.delays.has_paid(meta.hash) {
        return Ok(());
    }
    if cx.delays.until(meta.hash).is_some() {
        return Err(Lacking::Waits);
    }
    // As for its SYN, with what was known of it.
    let rule = snapshot.rules.decide(&Facts::of(&meta.key, meta.dscp_for_rules())).rule;
    let asker = asker(snapshot, &meta.key, rule, cx.may_delay());
    match snapshot.limits.take(cx.now, &asker, EVENT) {
        Ok(0) => Ok(()),
        Ok(wait_ns) => {
            cx.delays.begin(meta.hash, cx.now.saturating_add(wait_ns), true);
            Err(Lacking::Waits)
        }
        Err(excess) => Err(Lacking::Refused(class(excess, EVENT))),
    }
}

/// Takes the token for a request of a connection, about which this rule has decided. Returns in how
/// many nanoseconds it comes.
pub(super) fn ask(
    snapshot: &Snapshot,
    now: Nanos,
    key: &FlowKey,
    rule: Option<u16>,
    may_wait: bool,
) -> Result<u64, ClassId> {
    const EVENT: Event = Event::Request;
    if !snapshot.limits.has(EVENT) {
        return Ok(0);
    }
    let asker = asker(snapshot, key, rule, may_wait);
    snapshot.limits.take(now, &asker, EVENT).map_err(|e| class(e, EVENT))
}

fn asker(snapshot: &Snapshot, key: &FlowKey, rule: Option<u16>, may_wait: bool) -> Asker {
    let service = snapshot.forward.service(key.dst, key.dport, key.proto);
    Asker { client: key.src, rule, service: service.map(|service| service.id.0), may_wait }
}

/// Whether a client's requests are to be followed for as long as its connection has any: for
/// rules, to be counted, or because its servers are judged by their answers.
pub(super) fn follows(snapshot: &Snapshot, client: &FlowKey) -> bool {
    snapshot.rules.follows_requests()
        || snapshot.limits.has(Event::Request)
        || snapshot.forward.judges(client)
}

/// Whether a client must not say anything that can't be read: rules might refuse its connection by
/// that, or its requests are counted.
#[cold]
pub(super) fn must_read(snapshot: &Snapshot, facts: &Facts<'_>, said: Said) -> bool {
    let (key, limits) = (facts.key, &snapshot.limits);
    let counted = || limits.holds(&asker(snapshot, key, None, false), Event::Request);
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

/// What becomes of the packets of whom is beyond its limit. A request can't come again on its own,
/// so that what has waited in vain ends its connection.
fn class(excess: Excess, event: Event) -> ClassId {
    match (excess, event) {
        (Excess::Drop, _) | (Excess::Delay(_), Event::Connection) => ClassId::OVER_LIMIT,
        (Excess::Reset, _) | (Excess::Delay(_), Event::Request) => ClassId::OVER_LIMIT_RESET,
    }
}
