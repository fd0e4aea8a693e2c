//! Where streams end and begin again, if rules may refuse by what their clients say: only as their
//! servers see it. Where answers are not seen (`dsr`, tunnels, a router past which they go another
//! way) nobody tells whether a server has believed an end. So the next stream must lie behind the
//! one before, and nothing passes that lies before its own first byte: a server that goes on with
//! the old one gets nothing more of it. Nor do streams go on so fast that they come around all
//! numbers to where that one stands, neither by many beginnings nor by what they carry.

use super::streams::{CLIENT, Passage};
use super::{DONE, Inspect, NOT_YET, SIDES};
use crate::flow::{Flow, FlowKind, TcpState};
use crate::graph::Cx;
use crate::graph::stages::admission;
use crate::inspect::inspector::Said;
use crate::packet::tcp::flag;
use crate::packet::{Direction, DropReason, PacketMeta};
use crate::policy::Facts;

/// How far behind where its stream stands a client may say something again: no window is larger
/// (RFC 7323, section 2.3).
const WINDOW_BYTES_MAX: u32 = 1 << 30;

/// How long a client must have sent nothing until its next connection may begin without an end of
/// the one before.
const GONE_NS_MIN: u64 = 60_000_000_000;

/// How long a server may have missed a client's FIN: in a little more the clocks that hosts begin
/// their streams by pass half of all numbers (Linux's in 137 s), and the next one would seem to
/// lie before this one.
const FIN_KEPT_NS: u64 = 128_000_000_000;

impl Inspect {
    /// Whether a client ends its stream at another place than where it stands, where rules may
    /// refuse what it says: its server does not believe that either, and goes on. It comes again
    /// once what is missing before it has come.
    pub(super) fn is_odd_end(&self, cx: &Cx<'_>, meta: &PacketMeta, len: usize) -> bool {
        if meta.direction != Direction::Forward || meta.tcp_flags & (flag::FIN | flag::RST) == 0 {
            return false;
        }
        let flow = cx.flows.get(meta.flow);
        if flow.kind == FlowKind::Spliced {
            return false;
        }
        // A server that still has the connection before tells so, and is told where that ends.
        let is_new = flow.tcp == TcpState::SynSent || cx.flows.details(meta.flow).is_later();
        if meta.tcp_flags & flag::RST != 0 && is_new && !self.has_said(flow) {
            return false;
        }
        let next = match self.slot_of(flow) {
            Some(slot) => Some(self.reassembler.next_seq(SIDES * slot + CLIENT)),
            None => cx.flows.details(meta.flow).first_byte(),
        };
        let ahead = |next: u32| meta.tcp_seq.wrapping_sub(next) as i32;
        let len = i32::try_from(len).unwrap_or(i32::MAX);
        let fits = |next| match meta.tcp_flags & flag::RST != 0 {
            // RFC 5961, section 3.2: only the very next number counts. A FIN has one, too.
            true => ahead(next) == 0 || ahead(next) == 1 && has_closed(flow),
            // What comes with it may have been read in part, or as a whole.
            false => (-len..=0).contains(&ahead(next)),
        };
        next.is_some_and(|next| !fits(next)) && must_read(cx, meta)
    }

    /// Whether a client has said something on its flow's stream that was read.
    pub(super) fn has_said(&self, flow: &Flow) -> bool {
        match self.slot_of(flow) {
            Some(slot) => {
                self.reassembler.next_seq(SIDES * slot + CLIENT) != self.slots[slot].first
            }
            None => flow.inspection != NOT_YET,
        }
    }

    /// Whether a SYN amid a client's connection may begin another one, where its server's answers
    /// are not seen and rules may refuse it: its server may have forgotten the one before, so that
    /// what follows would be read as more of that. `None` where its server's answer tells.
    pub(super) fn may_have_gone(&self, cx: &Cx<'_>, meta: &PacketMeta) -> Option<bool> {
        let flow = cx.flows.get(meta.flow);
        if flow.is_answered() || !must_read(cx, meta) {
            return None;
        }
        let is_joined = cx.flows.details(meta.flow).first_byte().is_none();
        Some(is_joined || cx.now.since(flow.last_seen()) >= GONE_NS_MIN)
    }

    /// Begins another stream of a client whose server's answers are not seen, where rules may
    /// refuse it: `None` where that is not so. `Some(false)`: it would begin at a number that the
    /// one before has used, or may have, or streams would go on faster than by any clock. Clients'
    /// numbers grow from one connection to the next (RFC 9293, section 3.4.1); for those whose do
    /// not the flow's time must be over, which what is refused does not prolong.
    pub(super) fn begin_behind(
        &self,
        cx: &mut Cx<'_>,
        meta: &PacketMeta,
        first: u32,
    ) -> Option<bool> {
        let flow = cx.flows.get(meta.flow);
        // Of one that was joined in its midst nothing is known that would matter.
        let first_byte = cx.flows.details(meta.flow).first_byte()?;
        let (next, bytes) = match self.slot_of(flow) {
            Some(slot) => {
                (self.reassembler.next_seq(SIDES * slot + CLIENT), self.slots[slot].bytes)
            }
            None => (first_byte, 0),
        };
        let is_forgotten =
            flow.tcp == TcpState::FinForward && cx.now.since(flow.last_seen()) >= FIN_KEPT_NS;
        if flow.is_answered() || is_forgotten || !must_read(cx, meta) {
            return None;
        }
        let step = first.wrapping_sub(next);
        // Not right behind it: a probe's byte may fill what is between.
        let is_behind = step as i32 <= 1;
        let details = cx.flows.details_mut(meta.flow);
        Some(!is_behind && details.begin_behind(cx.now, bytes, step, first))
    }

    /// Whether a client says what comes before its stream's first byte, where its server's answers
    /// are not seen: of some other connection, then, which that server may still have. A probe may
    /// lie one byte before it (RFC 9293, section 3.8.4).
    #[inline]
    pub(super) fn is_before_its_stream(&self, cx: &Cx<'_>, meta: &PacketMeta, slot: usize) -> bool {
        let next = self.reassembler.next_seq(SIDES * slot + CLIENT);
        let behind = next.wrapping_sub(meta.tcp_seq) as i32;
        behind > self.slots[slot].bytes.min(WINDOW_BYTES_MAX) as i32 + 1
            && meta.direction == Direction::Forward
            // One that was joined in its midst may have begun anywhere.
            && cx.flows.details(meta.flow).first_byte().is_some()
            && !cx.flows.get(meta.flow).is_answered()
            && must_read(cx, meta)
    }

    /// Whether another stream than a client's first would come around to where a server may still
    /// stand that has believed no end, by what it carries. It goes on once that is forgotten.
    #[cold]
    pub(super) fn has_gone_too_far(
        &mut self,
        cx: &mut Cx<'_>,
        meta: &PacketMeta,
        slot: usize,
    ) -> bool {
        let (slot, details) = (&mut self.slots[slot], cx.flows.details_mut(meta.flow));
        slot.later = !details.forget_before(cx.now);
        meta.direction == Direction::Forward
            && !details.advance().has_room(cx.now, slot.bytes)
            && !cx.flows.get(meta.flow).is_answered()
            && must_read(cx, meta)
    }
}

/// What becomes of a segment of a client's further stream that is read no more, no HTTP say. What
/// lies before that stream is of the one before, for as long as that is not forgotten: behind two
/// GiB nobody can tell, so what goes on so fast waits until it is.
pub(super) fn beside(cx: &mut Cx<'_>, meta: &PacketMeta, says: &[u8]) -> Passage {
    let details = cx.flows.details_mut(meta.flow);
    if details.forget_before(cx.now) {
        cx.flows.get_mut(meta.flow).inspection = DONE;
        return Passage::On;
    }
    let ahead = |first: u32| meta.tcp_seq.wrapping_sub(first) as i32;
    let is_before = details.first_byte().is_some_and(|first| ahead(first) < -1);
    let is_refused = is_before
        && !says.is_empty()
        && meta.direction == Direction::Forward
        && !cx.flows.get(meta.flow).is_answered()
        && must_read(cx, meta);
    if is_refused { Passage::Refused(DropReason::Unread) } else { Passage::On }
}

/// Whether the client has closed its direction.
fn has_closed(flow: &Flow) -> bool {
    use TcpState::{FinForward, LastAck, Reset, TimeWait};
    matches!(flow.tcp, FinForward | TimeWait | LastAck | Reset)
}

/// Whether a client says something before its server has answered its SYN: where its stream begins
/// is not known for sure then, and what rules might refuse must not pass beside it.
pub(super) fn is_too_early(cx: &Cx<'_>, meta: &PacketMeta) -> bool {
    let flow = cx.flows.get(meta.flow);
    flow.tcp == TcpState::SynSent
        && meta.direction == Direction::Forward
        && flow.is_answered()
        && must_read(cx, meta)
}

/// Whether rules might refuse the client of this packet by what it says, or count that.
pub(super) fn must_read(cx: &Cx<'_>, meta: &PacketMeta) -> bool {
    let client = cx.flows.get(meta.flow).client_key();
    let facts = Facts::of(&client, meta.dscp_for_rules());
    admission::must_read(cx.snapshot, &facts, Said::Anything)
}
