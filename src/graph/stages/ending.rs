//! Ends connections because a rule says so.

use super::splice::{Made, send_fresh};
use crate::forward::splice::Segment;
use crate::graph::Cx;
use crate::packet::tcp::flag::{ACK, FIN, RST, SYN};
use crate::packet::{ClassId, FlowRef, PacketFlags, PacketMeta, PacketMut, PacketRef, ip, tcp};

/// A packet of a flow that is to be reset: its sender is told so, and so is whom it was for, to
/// whom the packet itself goes on as a reset. Other protocols have no resets: their packets are
/// dropped.
#[cold]
pub(super) fn end_connection(cx: &mut Cx<'_>, packet: &mut PacketMut<'_>) {
    let meta = &*packet.meta;
    let (flags, reason) = (meta.flags, meta.class.refusal());
    let foreign = flags.has(PacketFlags::FRAGMENT) || flags.has(PacketFlags::OTHER_HOST);
    if meta.key.proto != tcp::PROTOCOL || foreign {
        return packet.meta.drop_for(reason);
    }
    let known = meta.flow != FlowRef::NONE;
    if meta.tcp_flags & RST == 0 {
        answer(cx, packet.as_ref());
        let told = !known || cx.flows.get(packet.meta.flow).tcp.has_ended();
        if told || !ip::make_reset(packet.frame, cx.arena, packet.meta) {
            return packet.meta.drop_for(reason);
        }
        cx.counters.resets_sent += 1;
    } else if !known {
        return packet.meta.drop_for(reason);
    }
    packet.meta.class = ClassId::UNSET;
}

/// As a host answers that knows of no such connection (RFC 9293, section 3.10.7.1).
pub(super) fn answer(cx: &mut Cx<'_>, packet: PacketRef<'_>) {
    let meta = packet.meta;
    let segment = match meta.tcp_flags & ACK {
        0 => Segment {
            acknowledgment: meta.tcp_seq.wrapping_add(length(meta)),
            flags: RST | ACK,
            ..Segment::default()
        },
        _ => Segment { sequence: meta.tcp_ack, flags: RST, ..Segment::default() },
    };
    let made = Made { hash: meta.hash, class: ClassId::UNSET, dscp: 0 };
    if send_fresh(cx, &segment, &meta.key.reversed(), made, None) {
        cx.counters.resets_sent += 1;
    }
}

/// Sequence numbers that a segment takes.
fn length(meta: &PacketMeta) -> u32 {
    let marks = u32::from(meta.tcp_flags & SYN != 0) + u32::from(meta.tcp_flags & FIN != 0);
    meta.payload_len() as u32 + marks
}
