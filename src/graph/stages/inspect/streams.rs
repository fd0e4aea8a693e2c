//! TCP: both directions of a connection, put in order and looked into.

use super::datagrams::facts_told;
use super::ends::{beside, is_too_early, must_read};
use super::{
    BEHIND, BESIDE, DONE, Given, Inspect, NOT_YET, SIDES, Slot, count_app, count_name, intern,
    opens, payload_of,
};
use crate::base::Nanos;
use crate::flow::reassembly::Pushed;
use crate::flow::{FlowKind, HelloNote, Note, TcpState};
use crate::graph::Cx;
use crate::graph::stages::admission;
use crate::graph::stages::verdict::Deciding;
use crate::inspect::inspector::{App, Event, Inspector, Request, Side, Unknown};
use crate::inspect::tls::{Encrypted, HelloParser};
use crate::packet::tcp::flag;
use crate::packet::{Direction, DropReason, FlowKey, FlowRef, PacketMeta, PacketRef};
use crate::policy::Facts;
use crate::policy::catalogue::bare_path;

/// Segments beyond the window, or without a page to wait in, until a stream is given up.
pub(super) const STRAYS_MAX: u8 = 64;
/// Bytes of both sides that are looked at while it isn't decided what they are: more than a head
/// may have.
const UNDECIDED_BYTES_MAX: u32 = 1 << 19;

pub(super) const CLIENT: usize = Direction::Forward as usize;
pub(super) const SERVER: usize = Direction::Reply as usize;

impl Inspect {
    /// A segment of a known flow whose inspection is not done, or that opens it again.
    pub(super) fn segment(&mut self, cx: &mut Cx<'_>, packet: PacketRef<'_>) -> Passage {
        let meta = packet.meta;
        if meta.tcp_flags & flag::SYN != 0 {
            return self.opening(cx, meta);
        }
        let payload = payload_of(cx, &packet);
        if cx.flows.get(meta.flow).inspection == BESIDE {
            return beside(cx, meta, payload);
        }
        if self.is_odd_end(cx, meta, payload.len()) {
            return Passage::Refused(DropReason::Unread);
        }
        // Without ACK, or with RST, a receiver takes no data (RFC 9293, section 3.10.7.4).
        let wanted = flag::ACK | flag::RST | flag::SYN;
        if payload.is_empty() || meta.tcp_flags & wanted != flag::ACK {
            let flow = cx.flows.get(meta.flow);
            if flow.tcp.has_ended()
                && let Some(slot) = self.slot_of(flow)
                && (self.may_begin_anew(slot, Given::Stalled) || self.has_ended(cx, slot))
            {
                self.end(cx, meta.flow, slot, Given::Stalled);
            }
            return Passage::On;
        }
        if is_too_early(cx, meta) {
            return Passage::TooEarly;
        }
        // Behind a request that waits, or that request again.
        if cx.delays.until(meta.hash).is_some() {
            return Passage::Waits;
        }
        let flow = cx.flows.get(meta.flow);
        let slot = match (flow.inspection, self.slot_of(flow)) {
            (_, Some(slot)) => slot,
            (NOT_YET, None) => self.begin(cx, meta),
            // The request still waits, or has not passed yet.
            (BEHIND, None) if meta.direction == Direction::Reply => return Passage::On,
            // It has gone on; or its slot went with an inspector of another size.
            _ => {
                let is_later = cx.flows.details(meta.flow).is_later();
                cx.flows.get_mut(meta.flow).inspection = if is_later { BESIDE } else { DONE };
                return Passage::On;
            }
        };
        // HTTP begins with text.
        let is_text = payload.first().is_some_and(u8::is_ascii_graphic);
        if is_text && self.pool.is_empty() && !self.inspectors[slot].has_parsers() {
            self.free_parsers(cx, Inspector::has_parsers);
        }
        if self.pool.is_out_of_heads() && !self.inspectors[slot].keeps_head() {
            self.free_parsers(cx, Inspector::keeps_head);
        }
        if meta.direction == Direction::Reply && !self.slots[slot].server_open {
            self.open_server(slot, meta.tcp_seq);
        }
        if self.is_before_its_stream(cx, meta, slot) {
            return Passage::Refused(DropReason::Unread);
        }
        if self.slots[slot].later && self.has_gone_too_far(cx, meta, slot) {
            return Passage::Refused(DropReason::PortReused);
        }
        self.feed(cx, meta, slot, payload)
    }

    /// Reads what the client of a flow has said so far, and follows it as others. `first` is of the
    /// client: what it says begins with that sequence number, and comes in pieces with theirs.
    pub(in crate::graph::stages) fn follow<'a>(
        &mut self,
        cx: &mut Cx<'_>,
        first: &PacketMeta,
        said: impl Iterator<Item = (u32, &'a [u8])>,
    ) {
        cx.flows.details_mut(first.flow).begin_at(first.tcp_seq);
        if self.pool.is_empty() {
            self.free_parsers(cx, Inspector::has_parsers);
        }
        if self.pool.is_out_of_heads() {
            self.free_parsers(cx, Inspector::keeps_head);
        }
        let slot = self.begin(cx, first);
        for (tcp_seq, piece) in said {
            if usize::from(cx.flows.get(first.flow).inspection) != slot {
                return;
            }
            self.feed(cx, &PacketMeta { tcp_seq, ..first.clone() }, slot, piece);
        }
    }

    /// A client's SYN on a known flow, sent again or because the same addresses are used anew; or
    /// its server's answer, which tells for sure where the stream begins, also where it has
    /// forgotten the one before. Amid a connection a SYN changes nothing for its server either
    /// (RFC 5961, section 4). Where answers are not seen, a second beginning does not pass if rules
    /// may refuse by what follows, except where the stream before has ended, or its client has been
    /// silent for long (see [`super::ends`]).
    fn opening(&mut self, cx: &mut Cx<'_>, meta: &PacketMeta) -> Passage {
        let flow = cx.flows.get(meta.flow);
        let (tcp, forward) = (flow.tcp, meta.direction == Direction::Forward);
        let first = match forward {
            _ if flow.kind == FlowKind::Spliced => return Passage::On,
            true if opens(meta) => meta.tcp_seq.wrapping_add(1),
            false if meta.tcp_flags & flag::ACK != 0 => meta.tcp_ack,
            _ => return Passage::On,
        };
        let slot = self.slot_of(flow);
        let known = match slot {
            Some(slot) => Some(self.slots[slot].first),
            None => cx.flows.details(meta.flow).first_byte(),
        };
        let is_done = flow.inspection == DONE;
        let is_open = tcp.is_half_open() || tcp == TcpState::Established;
        // Of one of which only the client is seen, the next one may stand there, too.
        let is_open = is_open || matches!(tcp, TcpState::FinForward | TcpState::OneWay);
        let has_said = self.has_said(flow);
        if known == Some(first) && (is_open || !has_said) {
            // Sent again. Who has said something does not do that: it would be read once more by a
            // server that has forgotten it, but not here.
            let is_odd = forward && has_said && must_read(cx, meta);
            return if is_odd { Passage::Refused(DropReason::PortReused) } else { Passage::On };
        }
        let begins = match tcp {
            TcpState::SynSent if forward => {
                if !is_done && !flow.is_answered() && must_read(cx, meta) {
                    return Passage::Refused(DropReason::PortReused);
                }
                true
            }
            // The SYN took another way.
            TcpState::SynReceived if !forward && known.is_none() => true,
            // Of two answers nobody knows which one the client goes by.
            TcpState::SynReceived if !forward && must_read(cx, meta) => {
                return Passage::Refused(DropReason::Unread);
            }
            TcpState::SynReceived => false,
            TcpState::Established | TcpState::OneWay if forward => {
                match self.may_have_gone(cx, meta) {
                    Some(false) => return Passage::Refused(DropReason::PortReused),
                    may => may.is_some(),
                }
            }
            TcpState::FinForward => !forward || !flow.is_answered(),
            _ => true,
        };
        if !begins {
            return Passage::On;
        }
        let begun = match forward && !is_done {
            true => self.begin_behind(cx, meta, first),
            false => None,
        };
        match begun {
            Some(true) => {}
            Some(false) => return Passage::Refused(DropReason::PortReused),
            None => cx.flows.details_mut(meta.flow).begin_at(first),
        }
        if let Some(slot) = slot {
            self.release(slot);
        }
        cx.flows.get_mut(meta.flow).inspection = NOT_YET;
        Passage::On
    }

    /// Takes a slot for a flow that sends its first payload, in either direction.
    fn begin(&mut self, cx: &mut Cx<'_>, meta: &PacketMeta) -> usize {
        let key = cx.flows.get(meta.flow).client_key();
        let hash = key.hash(cx.flows.seed());
        let first = cx.flows.details(meta.flow).first_byte();
        let slot = self.take_slot(cx, (key, hash), meta.dscp_for_rules(), first);
        let from_client = meta.direction == Direction::Forward;
        // Without a SYN that was seen, the stream begins here as far as can be told.
        let here = if from_client { meta.tcp_seq } else { meta.tcp_ack };
        let first = first.unwrap_or(here);
        self.slots[slot].first = first;
        self.slots[slot].later = cx.flows.details(meta.flow).is_later();
        let note = cx.names.notes.get(meta.flow, cx.flows.details(meta.flow));
        self.slots[slot].counted = note.is_some_and(|note| !note.app.is_empty());
        self.reassembler.open(SIDES * slot + CLIENT, first);
        // Of a spliced flow the client counts otherwise than its server.
        if from_client && cx.flows.get(meta.flow).kind != FlowKind::Spliced {
            // What the client has acknowledged it has before it speaks.
            self.open_server(slot, meta.tcp_ack);
        }
        cx.flows.get_mut(meta.flow).inspection = slot as u16;
        slot
    }

    fn open_server(&mut self, slot: usize, first: u32) {
        self.slots[slot].server_open = true;
        self.reassembler.open(SIDES * slot + SERVER, first);
    }

    fn feed(&mut self, cx: &mut Cx<'_>, meta: &PacketMeta, at: usize, payload: &[u8]) -> Passage {
        let may_wait = cx.may_delay();
        let Inspect { inspectors, reassembler, pool, slots, .. } = self;
        let (slot, inspector) = (&mut slots[at], &mut inspectors[at]);
        let from = match meta.direction {
            Direction::Forward => Side::Client,
            Direction::Reply => Side::Server,
        };
        let mut teller = Teller {
            now: cx.now,
            deciding: Deciding::of(cx),
            flow: meta.flow,
            key: slot.key,
            dscp: meta.dscp_for_rules(),
            may_wait,
            wait_ns: 0,
        };
        let (answered, bytes) = (&mut slot.answered, &mut slot.bytes);
        let stream = SIDES * at + meta.direction as usize;
        let pushed = reassembler.push(stream, meta.tcp_seq, false, payload, |part| {
            *bytes = bytes.saturating_add(part.len() as u32);
            inspector.read(pool, from, part, &mut |event| {
                *answered |= matches!(event, Event::Response { .. });
                teller.tell(event);
            });
        });
        let wait_ns = teller.wait_ns;
        if inspector.has_parsers() {
            self.holders.note(at);
        }
        if wait_ns > 0 {
            cx.delays.begin(meta.hash, cx.now.saturating_add(wait_ns), false);
        }
        let strays = &mut slot.strays[meta.direction as usize];
        let is_whole = reassembler.holds(stream, meta.tcp_seq, payload.len());
        let conflicts = reassembler.conflicts(stream);
        if conflicts
            && let Some(note) = cx.names.notes.of(meta.flow, cx.flows.details_mut(meta.flow))
        {
            note.conflicts = true;
        }
        match pushed {
            Pushed::Old => return Passage::On,
            Pushed::Delivered => (slot.progress_at, *strays) = (cx.now, 0),
            Pushed::Held if is_whole => slot.progress_at = cx.now,
            Pushed::Held | Pushed::OutOfWindow | Pushed::NoPage => {
                *strays = strays.saturating_add(1);
                // What is not kept must not pass unread, if that matters.
                if meta.direction == Direction::Forward && *strays < STRAYS_MAX {
                    return if self.is_guarded(cx, at) { Passage::TooEarly } else { Passage::On };
                }
            }
        }
        // Of two copies of the same bytes nobody knows which one its server believes.
        let client = meta.direction == Direction::Forward;
        if client && conflicts && self.is_guarded(cx, at) {
            self.end(cx, meta.flow, at, Given::Up(Unknown::Gaps));
            return Passage::On;
        }
        self.look(cx, meta, at);
        match wait_ns > 0 && !cx.flows.get(meta.flow).class.is_refused() {
            true => Passage::Waits,
            false => Passage::On,
        }
    }

    /// Has what was read of a flow come true.
    fn look(&mut self, cx: &mut Cx<'_>, meta: &PacketMeta, at: usize) {
        let Inspect { inspectors, slots, .. } = self;
        let (slot, inspector) = (&mut slots[at], &mut inspectors[at]);
        if !slot.hello_read && inspector.client_hello().is_some() {
            slot.hello_read = true;
            read_hello(cx, meta, slot.key, inspector);
        }
        if !slot.counted && inspector.knows() {
            slot.counted = true;
            count_app(inspector.app(), cx.counters);
            let details = cx.flows.details_mut(meta.flow);
            if let Some(note) = cx.names.notes.of(meta.flow, details) {
                note.app = inspector.app().name();
            }
        }
        let follows = admission::follows(cx.snapshot, &slot.key);
        if let Some(why) = over(slot, inspector, follows) {
            keep_answer(cx, meta.flow, inspector);
            self.end(cx, meta.flow, at, why);
        } else if cx.flows.get(meta.flow).class.is_refused() {
            self.end(cx, meta.flow, at, Given::Done);
        }
    }
}

/// What becomes of a packet that was looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Passage {
    On,
    /// It is too early to be read, and must come again.
    TooEarly,
    /// Its request's token is still to come.
    Waits,
    Refused(DropReason),
    /// Its flow is over: another one begins with it.
    Anew,
}

/// Whether nothing more is to be read, and why.
fn over(slot: &Slot, inspector: &Inspector, follows: bool) -> Option<Given> {
    if inspector.is_done() {
        return Some(Given::Done);
    }
    if slot.strays[CLIENT] >= STRAYS_MAX {
        return Some(Given::Up(Unknown::Gaps));
    }
    // Of the server nothing is wanted that something else would depend on for long.
    let server_lost = slot.strays[SERVER] >= STRAYS_MAX;
    if !inspector.knows() {
        let long = slot.bytes > UNDECIDED_BYTES_MAX;
        return long.then_some(Given::Up(Unknown::StreamTooLong));
    }
    let read = match inspector.app() {
        App::Tls => inspector.client_hello().is_some() && server_lost,
        App::H2cUpgrade | App::H2c | App::H2cMid | App::Http1 => {
            !follows && inspector.requests() > 0 && (slot.answered || server_lost)
        }
        _ => false,
    };
    read.then_some(Given::Done)
}

/// The ClientHello was read: the rules decide, and what it says is kept.
fn read_hello(cx: &mut Cx<'_>, meta: &PacketMeta, key: FlowKey, inspector: &Inspector) {
    if cx.flows.get(meta.flow).class.is_refused() {
        return; // what has ended stays ended
    }
    facts_told(inspector, &key, meta.dscp_for_rules(), |facts| {
        count_name(facts.sni, cx.counters);
        keep_hello(cx, meta.flow, facts, inspector);
        Deciding::of(cx).decide(meta.flow, facts);
    });
}

/// Keeps what the server has chosen with its flow.
fn keep_answer(cx: &mut Cx<'_>, at: FlowRef, inspector: &Inspector) {
    if let Some(hello) = inspector.server_hello()
        && let Some(version) = hello.version()
        && let Some(note) = cx.names.notes.of(at, cx.flows.details_mut(at))
    {
        note.tls_version = version;
        note.alpn_chosen.set(hello.alpn().unwrap_or_default());
    }
}

/// Keeps what a hello says with its flow.
pub(super) fn keep_hello(cx: &mut Cx<'_>, at: FlowRef, facts: &Facts<'_>, inspector: &Inspector) {
    let details = cx.flows.details_mut(at);
    details.name = facts.sni.map_or(crate::flow::Names::NONE, |sni| intern(cx.names, sni));
    if let Some(note) = cx.names.notes.of(at, details) {
        note.alpn.set(facts.alpn.wire());
        note.ja4.set(facts.ja4.unwrap_or_default());
        let version = inspector.quic_version();
        note.hello = inspector.client_hello().map(|h| hello_note(h, version)).unwrap_or_default();
    }
}

/// What is kept of a hello beside its name, its protocols and its fingerprint.
pub(in crate::graph::stages) fn hello_note(hello: &HelloParser, quic: Option<u32>) -> HelloNote {
    HelloNote {
        versions: first(hello.versions()),
        groups: first(hello.post_quantum_groups()),
        quic_version: quic.unwrap_or_default(),
        encrypted: Some(match hello.encrypted() {
            Encrypted::No => 0,
            Encrypted::Ech => 1,
            Encrypted::Esni => 2,
        }),
        resumed: hello.resumed(),
        early_data: hello.early_data(),
    }
}

fn first<const N: usize>(numbers: &[u16]) -> [u16; N] {
    let mut kept = [0; N];
    kept.iter_mut().zip(numbers).for_each(|(kept, number)| *kept = *number);
    kept
}

/// Hears of messages of HTTP, and has the rules decide.
struct Teller<'a> {
    now: Nanos,
    deciding: Deciding<'a>,
    flow: FlowRef,
    key: FlowKey,
    dscp: u8,
    may_wait: bool,
    /// How long the last request's token is still to come.
    wait_ns: u64,
}

impl Teller<'_> {
    fn tell(&mut self, event: Event<'_>) {
        match event {
            Event::Request(request) => {
                self.deciding.counters.requests_read += 1;
                self.note(|note| keep_request(note, &request));
                // What a rule has ended stays ended.
                if self.deciding.flows.get(self.flow).class.is_refused() {
                    return;
                }
                let request = Some(request);
                let facts = Facts { request, ..Facts::of(&self.key, self.dscp) };
                let rule = self.deciding.decide(self.flow, &facts).rule;
                let Deciding { snapshot, flows, .. } = &mut self.deciding;
                match admission::ask(snapshot, self.now, &self.key, rule, self.may_wait) {
                    Ok(wait_ns) => self.wait_ns = self.wait_ns.max(wait_ns),
                    Err(class) => admission::end(flows, self.flow, class),
                }
            }
            Event::Response { status, event_stream } => {
                self.deciding.counters.responses_read += 1;
                let flows = &self.deciding.flows;
                flows.serving().gave(flows.details(self.flow).backend, status);
                self.note(|note| (note.status, note.event_stream) = (status, event_stream));
            }
            Event::GrpcStatus(status) => self.note(|note| note.grpc_status = Some(status)),
        }
    }

    fn note(&mut self, keep: impl FnOnce(&mut Note)) {
        let details = self.deciding.flows.details_mut(self.flow);
        if let Some(note) = self.deciding.names.notes.of(self.flow, details) {
            keep(note);
        }
    }
}

pub(in crate::graph::stages) fn keep_request(note: &mut Note, request: &Request<'_>) {
    note.requests = note.requests.saturating_add(1);
    note.method.set(request.method);
    note.authority.set(request.authority.unwrap_or_default());
    // A query may hold what is not to be shown.
    note.path.set(request.path.map(bare_path).unwrap_or_default());
}
