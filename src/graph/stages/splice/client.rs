//! Clients' packets before their connection is joined: SYNs, cookies that come back, what is held.

use super::send::send_in;
use super::{Bound, LinkState, Splice};
use crate::flow::Fate;
use crate::forward::mss;
use crate::forward::spec::Delay;
use crate::forward::splice::binding::{reset, syn_ack};
use crate::forward::splice::options::{Offer, stamps_of};
use crate::forward::splice::{
    Agreed, Binding, Cookies, FromClient, Out, Phase, Seen, Segment, Toward,
};
use crate::graph::stages::admission::{self, Lacking};
use crate::graph::stages::egress::may_cross;
use crate::graph::stages::ending;
use crate::graph::{Cx, REPLIES_MAX};
use crate::packet::field::u16_at;
use crate::packet::tcp::flag::{ACK, RST, SYN};
use crate::packet::{Direction, DropReason, FlowRef, PacketMeta, PacketMut, PacketRef, tcp};

impl Splice {
    /// A client's packet to a service with delayed binding that belongs to no flow.
    pub fn unbound(
        &mut self,
        cx: &mut Cx<'_>,
        packet: &mut PacketMut<'_>,
        delay: &Delay,
    ) -> Result<(), DropReason> {
        let meta = &*packet.meta;
        if let Some(slot) = self.slots.find(&meta.key, meta.hash) {
            return self.waiting(cx, packet, slot);
        }
        may_cross(meta)?;
        if meta.tcp_flags & (SYN | ACK | RST) == SYN {
            return self.greet(cx, packet, delay);
        }
        if cx.delays.until(meta.hash).is_some() {
            // What brought the cookie waits for its token, and this came behind it.
            return Lacking::Waits.apply(packet.meta);
        }
        let seen = seen(cx, packet.as_ref());
        let agreed = self.cookie(cx, meta, &seen).ok_or(DropReason::BadCookie)?;
        if let Err(lacking) = admission::begin(cx, meta) {
            if matches!(lacking, Lacking::Refused(class) if class.is_reset()) {
                ending::answer(cx, packet.as_ref());
            }
            return lacking.apply(packet.meta);
        }
        if !self.speech.has_room(delay.at) {
            self.push_out(cx, self.slots.oldest_at(delay.at))?;
        } else if self.slots.is_full() {
            self.push_out(cx, self.slots.oldest())?;
        }
        let (key, hash) = (meta.key, meta.hash);
        let slot = self.slots.take(&key, hash, delay.at).ok_or(DropReason::BindingsFull)?;
        cx.counters.bindings_begun += 1;
        let (dscp, marking) = code_points(cx, meta);
        let until = cx.now.saturating_add(u64::from(delay.timeout_ms) * 1_000_000);
        self.bound[slot] = Bound {
            binding: Binding::accept(&seen, agreed, &delay.promise, self.hold_max, until),
            class: meta.class,
            dscp,
            marking,
            ..Bound::default()
        };
        self.speech.begin(slot, delay.at);
        self.waiting(cx, packet, slot)
    }

    /// Answers a SYN, and keeps nothing.
    pub(super) fn greet(
        &mut self,
        cx: &mut Cx<'_>,
        packet: &mut PacketMut<'_>,
        delay: &Delay,
    ) -> Result<(), DropReason> {
        let (seen, offer) = (seen(cx, packet.as_ref()), offer(cx, packet.as_ref()));
        let key = packet.meta.key;
        let mut promise = delay.promise;
        promise.mss = promise.mss.min(mss_of_link(cx, packet.meta));
        let agreed = Agreed::on(&offer, &promise, key.dst.is_v4());
        let cookie = self.cookies.make(cx.now, &key, seen.sequence, &agreed);
        let stamp = Cookies::first_stamp(self.cookies.stamp(cx.now, &key), &agreed);
        let answer = syn_ack(&seen, cookie, &agreed, &promise, stamp, self.hold_max);
        let marking = code_points(cx, packet.meta).1.unwrap_or(0);
        send_in(cx, packet, &answer, (&key.reversed(), marking), None)?;
        cx.counters.cookies_sent += 1;
        Ok(())
    }

    /// What was agreed on with the client, where the packet brings back a cookie of ours.
    pub(super) fn cookie(&self, cx: &Cx<'_>, meta: &PacketMeta, seen: &Seen) -> Option<Agreed> {
        if seen.flags & (SYN | ACK | RST) != ACK {
            return None;
        }
        let (isn, cookie) = (seen.sequence.wrapping_sub(1), seen.acknowledgment.wrapping_sub(1));
        let echo = seen.stamps.map(|s| s.echo);
        self.cookies.check(cx.now, &meta.key, isn, cookie, echo)
    }

    /// Makes room: the connection that has waited longest is reset.
    fn push_out(&mut self, cx: &mut Cx<'_>, oldest: Option<usize>) -> Result<(), DropReason> {
        let oldest = oldest.ok_or(DropReason::BindingsFull)?;
        let mut out = Out::new(REPLIES_MAX - cx.replies.len());
        out.push(self.bound[oldest].binding.reset_client(&self.held, oldest));
        self.send_all(cx, oldest, &out);
        cx.counters.bindings_crowded_out += 1;
        self.release(oldest);
        Ok(())
    }

    /// A client's packet of a connection that has a slot.
    pub(super) fn waiting(
        &mut self,
        cx: &mut Cx<'_>,
        packet: &mut PacketMut<'_>,
        slot: usize,
    ) -> Result<(), DropReason> {
        let seen = seen(cx, packet.as_ref());
        let arena = cx.arena;
        let meta = &*packet.meta;
        let bytes = packet.frame.bytes(arena);
        let payload = bytes.get(usize::from(meta.payload)..usize::from(meta.end));
        let payload = payload.unwrap_or_default();
        let stamp = self.cookies.stamp(cx.now, &meta.key);
        let mut out = Out::new(REPLIES_MAX - cx.replies.len());
        let bound = &mut self.bound[slot];
        let held = (&mut self.held, slot);
        let from = bound.binding.client(&seen, payload, stamp, held, &mut out);
        if let Some(flow) = bound.flow {
            cx.flows.touch(cx.now, flow, packet.meta, packet.frame.len() as u32);
        }
        match from {
            FromClient::Pass => {
                self.send_all(cx, slot, &out);
                return self.pass_early(cx, packet, slot);
            }
            FromClient::Refused(reason) if out.segments().is_empty() => return Err(reason),
            FromClient::Taken | FromClient::Refused(_) => {}
            FromClient::Grown(before) => {
                if !self.read(cx, slot, before, &mut out) {
                    out.push(self.bound[slot].binding.reset_client(&self.held, slot));
                    cx.counters.bindings_unserved += 1;
                    let sent = self.answer(cx, packet, slot, &out);
                    self.kill(cx, slot);
                    return sent;
                }
            }
            FromClient::Gone => {
                cx.counters.bindings_abandoned += 1;
                self.answer(cx, packet, slot, &out)?;
                self.kill(cx, slot);
                return Ok(());
            }
        }
        self.end_or_go_on(cx, packet, slot, &mut out)
    }

    fn end_or_go_on(
        &mut self,
        cx: &mut Cx<'_>,
        packet: &mut PacketMut<'_>,
        slot: usize,
        out: &mut Out,
    ) -> Result<(), DropReason> {
        let binding = &self.bound[slot].binding;
        let over = binding.is_finished() && binding.phase() == Phase::Waiting;
        if over {
            // It has closed before it has said where to.
            out.push(binding.reset_client(&self.held, slot));
            cx.counters.bindings_abandoned += 1;
        }
        let sent = self.answer(cx, packet, slot, out);
        match over {
            true => self.kill(cx, slot),
            false => self.arm(slot),
        }
        sent
    }

    /// Reads on where the stream has grown, and chooses once it is clear; `false` where there is no
    /// backend to be had.
    fn read(&mut self, cx: &mut Cx<'_>, slot: usize, before: u32, out: &mut Out) -> bool {
        if self.bound[slot].binding.phase() != Phase::Waiting {
            return true;
        }
        let len = self.held.len(slot);
        let mut clear = self.bound[slot].is_clear;
        for piece in self.held.pieces(slot, before, len) {
            clear |= self.speech.hear(slot, piece);
        }
        if !clear && self.speech.has_said_too_much(len) {
            self.speech.give_up(slot);
            clear = true;
        }
        self.bound[slot].is_clear = clear;
        if self.speech.is_http2(slot) {
            self.follow_frames(cx.now, slot);
        }
        !clear || !self.is_settled(slot) || self.decide(cx, slot, out)
    }
}

impl Splice {
    /// A client's packet of a flow that has ended: it may open the next one from the same port.
    /// `None`: it does not.
    pub(super) fn reopened(
        &mut self,
        cx: &mut Cx<'_>,
        packet: &mut PacketMut<'_>,
        flow: FlowRef,
    ) -> Option<Result<(), DropReason>> {
        let known = cx.flows.get(flow);
        let link = self.links[flow.0 as usize];
        if !known.tcp.has_ended() && link.state != LinkState::Dead {
            return None;
        }
        let meta = &*packet.meta;
        let key = &meta.key;
        let service = *cx.snapshot.forward.service(key.dst, key.dport, key.proto)?;
        let delay = service.delay?;
        if meta.tcp_flags & (SYN | ACK | RST) == SYN {
            return Some(self.greet(cx, packet, &delay));
        }
        let seen = seen(cx, packet.as_ref());
        if seen.acknowledgment.wrapping_sub(1) == link.our_isn {
            return None; // of the connection that has ended
        }
        self.cookie(cx, meta, &seen)?;
        if let LinkState::Binding(slot) = link.state {
            self.release(usize::from(slot));
        }
        self.forget_ended(cx, flow);
        packet.meta.flow = FlowRef::NONE;
        Some(self.unbound(cx, packet, &delay))
    }

    /// Answers a packet of a connection that is no more (RFC 9293, section 3.10.7.1).
    pub(super) fn refuse(
        &mut self,
        cx: &mut Cx<'_>,
        packet: &mut PacketMut<'_>,
        flow: FlowRef,
    ) -> Result<(), DropReason> {
        let meta = &*packet.meta;
        if meta.tcp_flags & (RST | ACK) != ACK {
            return Err(DropReason::NoFlow);
        }
        let toward = match meta.direction {
            Direction::Forward => Toward::Client,
            Direction::Reply => Toward::Backend,
        };
        let key = cx.flows.get(flow).key(meta.direction).reversed();
        let segment = Segment { toward, ..reset(meta.tcp_ack) };
        send_in(cx, packet, &segment, (&key, 0), None)
    }
}

/// What of a packet the state machine looks at.
pub(super) fn seen(cx: &Cx<'_>, packet: PacketRef<'_>) -> Seen {
    let meta = packet.meta;
    let segment = packet.frame.bytes(cx.arena).get(usize::from(meta.l4)..).unwrap_or_default();
    let window = match segment.len() {
        tcp::HEADER_LEN.. => u16_at(segment, tcp::offset::WINDOW),
        _ => 0,
    };
    Seen {
        sequence: meta.tcp_seq,
        acknowledgment: meta.tcp_ack,
        flags: meta.tcp_flags,
        window,
        stamps: stamps_of(options(cx, packet)),
    }
}

/// The code point that a packet of no flow came with, and the one that a rule gave it.
fn code_points(cx: &Cx<'_>, meta: &PacketMeta) -> (u8, Option<u8>) {
    let of_it = |fate: &&Fate| fate.key == meta.key;
    let Some(fate) = cx.names.fates.iter().rfind(of_it) else {
        return (meta.dscp_for_rules(), None);
    };
    (fate.dscp, cx.flows.steps().treatments.get(fate.treatment).dscp)
}

pub(super) fn offer(cx: &Cx<'_>, packet: PacketRef<'_>) -> Offer {
    Offer::parse(options(cx, packet))
}

fn options<'a>(cx: &Cx<'a>, packet: PacketRef<'a>) -> &'a [u8] {
    let from = usize::from(packet.meta.l4) + tcp::HEADER_LEN;
    packet.frame.bytes(cx.arena).get(from..usize::from(packet.meta.payload)).unwrap_or_default()
}

/// Largest segment that the link takes by which the packet came.
fn mss_of_link(cx: &Cx<'_>, meta: &PacketMeta) -> u16 {
    let mtu = cx.snapshot.routes.egress(meta.in_port).map_or(u16::MAX, |e| e.mtu);
    mss::of_mtu(mtu, meta.is_v4())
}
