//! Fragments, which are not read.

use super::{is_bound_later, payload_of};
use crate::flow::Flow;
use crate::graph::Cx;
use crate::graph::stages::admission;
use crate::inspect::inspector::Said;
use crate::inspect::quic::may_begin_quic;
use crate::packet::{Direction, PacketFlags, PacketRef, tcp, udp};
use crate::policy::Facts;

/// Whether a client's fragment may hold what rules refuse or limits count, since fragments are not
/// read. No TCP that looks for its path's MTU sends any, and no QUIC may (RFC 9000, section 14).
#[cold]
pub(super) fn hides(cx: &Cx<'_>, packet: &PacketRef<'_>) -> bool {
    let meta = packet.meta;
    let flow = meta.flow.is_some().then(|| cx.flows.get(meta.flow));
    let may_hold = match meta.key.proto {
        tcp::PROTOCOL => true,
        udp::PROTOCOL if meta.flags.has(PacketFlags::LATER_FRAGMENT) => false,
        udp::PROTOCOL => may_begin_quic(payload_of(cx, packet)),
        _ => false,
    };
    let key = flow.map_or(meta.key, Flow::client_key);
    let facts = Facts::of(&key, meta.dscp_for_rules());
    let client = meta.direction == Direction::Forward;
    let said = if meta.key.proto == tcp::PROTOCOL { Said::Anything } else { Said::Hello };
    // What was bound by its hello is not to get another one in pieces.
    let is_bound = || flow.is_some() && said == Said::Hello && is_bound_later(cx, meta);
    may_hold && client && (admission::must_read(cx.snapshot, &facts, said) || is_bound())
}
