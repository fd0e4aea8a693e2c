//! Transit flows: those of packets that nothing translates.

use crate::flow::entry::NONE_U16;
use crate::flow::{FlowKind, InsertError, NewFlow};
use crate::graph::Cx;
use crate::packet::{FlowRef, PacketFlags, PacketMeta, icmp, tcp, udp};

/// Whether a packet belongs to a flow: errors, other protocols and most fragments don't show which.
/// Of datagrams in fragments the first one does, and those that come behind it.
pub(super) fn has_flow(meta: &PacketMeta) -> bool {
    let flags = meta.flags;
    let joined = flags.has(PacketFlags::JOINED) && meta.key.proto == udp::PROTOCOL;
    let echo = meta.key.sport != 0;
    !flags.has(PacketFlags::ICMP_ERROR)
        && (!flags.has(PacketFlags::FRAGMENT) || joined && meta.key.sport != 0)
        && match meta.key.proto {
            tcp::PROTOCOL => meta.tcp_flags & tcp::flag::RST == 0,
            udp::PROTOCOL => true,
            icmp::PROTOCOL | icmp::PROTOCOL_V6 => echo,
            _ => false,
        }
}

/// Takes the flow of this first packet in, with the packet's class for both directions.
///
/// # Errors
/// As [`crate::flow::FlowTable::insert`].
pub(super) fn open(cx: &mut Cx<'_>, meta: &PacketMeta) -> Result<FlowRef, InsertError> {
    let new = NewFlow {
        key: meta.key,
        reply: Some(meta.key.reversed()),
        kind: FlowKind::Transit,
        backend: NONE_U16,
        class: meta.class,
        idle_established_ms: None,
    };
    let flow = cx.flows.insert(cx.now, &new, meta)?;
    cx.counters.flows_opened += 1;
    Ok(flow)
}
