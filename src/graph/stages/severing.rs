//! Flows that are cut: both ends are told so, each with numbers that it believes.
//!
//! A reset counts only with the number that its receiver waits for (RFC 5961, section 3.2), and
//! no flow's numbers are kept. So each end is sent an acknowledgement that fits no connection,
//! which it must answer with one that does (RFC 9293, section 3.10.7.4); that answer, or whatever
//! else comes of the flow, is met by the reset. It carries a byte, as keep-alive probes may
//! (RFC 1122, section 4.2.3.6): Linux answers those without data twice a second at most.

use super::ending::answer;
use super::splice::{Made, send_fresh};
use crate::forward::splice::Segment;
use crate::graph::Cx;
use crate::packet::tcp::flag::{ACK, RST, SYN};
use crate::packet::{ClassId, Direction, DropReason, FlowRef, PacketMut};

/// Answers that cutting one flow makes at most.
pub const PROBES_MAX: usize = 2;

/// Ends a TCP connection whose handshake is over.
pub(in crate::graph) fn cut(cx: &mut Cx<'_>, at: FlowRef) {
    cx.flows.cut(cx.now, at);
    let flow = cx.flows.get(at);
    let ways: &[Direction] = match flow.kind {
        // The server sends nothing this way.
        kind if kind.is_one_way() => &[Direction::Forward],
        _ => &[Direction::Forward, Direction::Reply],
    };
    let keys = [flow.client_key(), flow.server_key()];
    for &way in ways {
        let sent = &keys[way as usize];
        let hash = sent.hash(cx.flows.seed());
        let probe = Segment { flags: ACK, greeting: &[0], ..Segment::default() };
        let made = Made { hash, class: ClassId::UNSET, dscp: 0 };
        // One that gets lost leaves the next packet of that end to be answered.
        send_fresh(cx, &probe, &sent.reversed(), made, None);
    }
}

/// A packet of a flow that was cut.
#[cold]
pub(super) fn severed(cx: &mut Cx<'_>, packet: &mut PacketMut<'_>, at: FlowRef) -> DropReason {
    let meta = &*packet.meta;
    if meta.tcp_flags & (SYN | ACK | RST) == SYN {
        // A new connection from the port of the old one: it begins when the SYN comes again.
        cx.flows.remove(at);
    } else if meta.tcp_flags & RST == 0 {
        answer(cx, packet.as_ref());
    }
    DropReason::FlowCut
}
