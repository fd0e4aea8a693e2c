//! QUIC: a client's first datagrams are held until its ClientHello is complete and has told where
//! the connection belongs. Then they go on as if they had just arrived, and what is left is a plain
//! flow.

mod held;
mod ids;

use super::{Link, LinkState, Splice, SpliceLimits};
use crate::base::Seed;
use crate::flow::reassembly::Reassembler;
use crate::flow::{FlowKind, FlowTable};
use crate::forward::spec::{Delay, PoolId};
use crate::forward::splice::Slots;
use crate::forward::splice::slots::SLOTS_MAX;
use crate::forward::{Backend, Choosing, Service};
use crate::graph::stages::admission::{self, Lacking};
use crate::graph::stages::balance::{forward, open};
use crate::graph::stages::classify::treat;
use crate::graph::stages::egress::may_cross;
use crate::graph::stages::inspect::{DONE, intern};
use crate::graph::stages::verdict::Deciding;
use crate::graph::{Cx, REPLIES_MAX};
use crate::inspect::inspector::Said;
use crate::inspect::quic::{Answer, CryptoStream, Failure, InitialReader, Scratch, Start};
use crate::inspect::tls::{Carrier, HelloParser};
use crate::inspect::{AlpnList, Peek};
use crate::packet::frame::HEADROOM;
use crate::packet::{
    Direction, DropReason, FlowKey, FlowRef, Packet, PacketMeta, PacketMut, Verdict,
};
use crate::policy::Facts;

use held::Datagrams;
use ids::ConnectionIds;

/// Clients for each page, of datagrams or of a hello's early pieces, beyond those that every client
/// may count on.
const CLIENTS_PER_PAGE: usize = 4;
const PAGES_MIN: usize = 64;

/// Clients of one worker that have not said yet where to, and what servers are called by those that
/// have.
pub(super) struct Quic {
    slots: Slots,
    held: Datagrams,
    /// By slot.
    readers: Box<[InitialReader]>,
    /// By slot.
    hellos: Box<[HelloParser]>,
    /// A stream for each slot.
    reassembler: Reassembler,
    scratch: Scratch,
    read_bytes_max: u32,
    ids: ConnectionIds,
}

impl Quic {
    pub(super) fn slots(&self) -> &Slots {
        &self.slots
    }
}

impl Splice {
    /// A client's datagram to a service with delayed binding that belongs to no flow.
    pub fn datagram(
        &mut self,
        cx: &mut Cx<'_>,
        packet: &mut PacketMut<'_>,
        service: &Service,
        delay: &Delay,
    ) -> Result<(), DropReason> {
        may_cross(packet.meta)?;
        let (Some(quic), links) = (&mut self.quic, &mut self.links) else {
            return Err(DropReason::BindingsFull);
        };
        let meta = &*packet.meta;
        if let Some(slot) = quic.slots.find(&meta.key, meta.hash) {
            return quic.hear(cx, packet, service, slot, links);
        }
        let start = Start::of(payload(cx, packet)).ok_or(DropReason::NoFlow)?;
        // A client that has moved is no new one.
        if service.drained && !matches!(start, Start::Short(_)) {
            return Err(DropReason::ServiceDrained);
        }
        match start {
            Start::Short(rest) => {
                let (id, before) = quic.ids.find(&meta.key, rest).ok_or(DropReason::NoFlow)?;
                let flow = follow(cx, meta, service, &before)?;
                quic.ids.learn(id, &meta.key);
                pass(cx, packet, flow)
            }
            Start::Unreadable => {
                let facts = Facts::of(&meta.key, meta.dscp_for_rules());
                let Some(flow) = bind(cx, meta, service, &facts)? else {
                    return Lacking::Waits.apply(packet.meta);
                };
                links[flow.0 as usize] = Link { state: LinkState::Unread, ..Link::default() };
                pass(cx, packet, flow)
            }
            Start::Readable => {
                let slot = quic.begin(cx, meta, delay)?;
                quic.hear(cx, packet, service, slot, links)
            }
        }
    }

    /// A packet of a flow whose server has not said yet what it is called.
    pub(super) fn early_datagram(
        &mut self,
        cx: &mut Cx<'_>,
        packet: &mut PacketMut<'_>,
        flow: FlowRef,
    ) -> Result<(), DropReason> {
        if packet.meta.direction == Direction::Forward {
            return match self.begins_anew(cx, packet, flow) {
                Some(done) => done,
                None => forward(cx, packet, flow),
            };
        }
        match Answer::of(payload(cx, packet)) {
            Answer::Else => {}
            Answer::Short => settle(cx.flows, flow),
            Answer::CalledBy(id) => {
                if let Some(quic) = &mut self.quic {
                    quic.ids.learn(id, &cx.flows.get(flow).client_key());
                }
                settle(cx.flows, flow);
            }
        }
        forward(cx, packet, flow)
    }
}

impl Splice {
    /// A client whose version nobody could read may come with another one (RFC 9000, section 6):
    /// then it is bound by what it says. `None`: it does not.
    fn begins_anew(
        &mut self,
        cx: &mut Cx<'_>,
        packet: &mut PacketMut<'_>,
        flow: FlowRef,
    ) -> Option<Result<(), DropReason>> {
        let state = self.links.get(flow.0 as usize)?.state;
        if state != LinkState::Unread || Start::of(payload(cx, packet)) != Some(Start::Readable) {
            return None;
        }
        let key = &packet.meta.key;
        let service = *cx.snapshot.forward.service(key.dst, key.dport, key.proto)?;
        let delay = service.delay?;
        cx.flows.remove(flow);
        packet.meta.flow = FlowRef::NONE;
        Some(self.datagram(cx, packet, &service, &delay))
    }
}

impl Quic {
    pub fn new(limits: &SpliceLimits, read_bytes_max: u32, seed: Seed) -> Quic {
        let count = (limits.bindings_max as usize).clamp(1, SLOTS_MAX);
        let spare = (count / CLIENTS_PER_PAGE).max(PAGES_MIN);
        Quic {
            slots: Slots::new(count),
            held: Datagrams::new(count, count + spare),
            readers: vec![InitialReader::new(); count].into_boxed_slice(),
            hellos: vec![HelloParser::new(read_bytes_max); count].into_boxed_slice(),
            reassembler: Reassembler::new(count, spare),
            scratch: Scratch::new(),
            read_bytes_max,
            ids: ConnectionIds::new(limits.flows_max as usize, seed),
        }
    }

    /// Clients that are being bound now.
    pub fn bindings(&self) -> usize {
        self.slots.taken()
    }

    /// Goes on with the clients of one that this one replaces. Where their sizes differ, those that
    /// wait are given up: they send again.
    pub fn take_over(&mut self, old: &mut Quic) {
        let sizes = |quic: &Quic| (quic.slots.capacity(), quic.read_bytes_max);
        if sizes(self) == sizes(old) {
            std::mem::swap(self, old);
        } else {
            std::mem::swap(&mut self.ids, &mut old.ids);
        }
    }

    /// Forgets the clients whose time is over.
    pub fn tick(&mut self, cx: &mut Cx<'_>) {
        while let Some(slot) = self.slots.next_due(cx.now) {
            cx.counters.bindings_timed_out += 1;
            self.release(slot);
        }
    }

    /// Takes a slot for a new client; the one that has waited longest gives way.
    fn begin(
        &mut self,
        cx: &mut Cx<'_>,
        meta: &PacketMeta,
        delay: &Delay,
    ) -> Result<usize, DropReason> {
        if self.slots.is_full()
            && let Some(oldest) = self.slots.oldest()
        {
            cx.counters.bindings_crowded_out += 1;
            self.release(oldest);
        }
        let slot =
            self.slots.take(&meta.key, meta.hash, delay.at).ok_or(DropReason::BindingsFull)?;
        let until = cx.now.saturating_add(u64::from(delay.timeout_ms) * 1_000_000);
        self.slots.arm(slot, until);
        self.readers[slot] = InitialReader::new();
        self.hellos[slot] = HelloParser::new(self.read_bytes_max);
        self.reassembler.open(slot, 0);
        cx.counters.bindings_begun += 1;
        Ok(slot)
    }

    /// A datagram of a client that has a slot: read, and held until the hello is complete.
    fn hear(
        &mut self,
        cx: &mut Cx<'_>,
        packet: &mut PacketMut<'_>,
        service: &Service,
        slot: usize,
        links: &mut [Link],
    ) -> Result<(), DropReason> {
        let (reassembler, hello) = (&mut self.reassembler, &mut self.hellos[slot]);
        let mut stream = CryptoStream { reassembler, slot, hello };
        let said = payload(cx, packet);
        // What has waited for its token was read when it came: again changes nothing. Or its slot
        // has gone meanwhile, and it is read in its new one.
        let peek = self.readers[slot].datagram(true, said, &mut stream, &mut self.scratch);
        if peek == Peek::NeedMore {
            let kept = self.held.put(slot, packet.frame.bytes(cx.arena), packet.meta);
            packet.meta.verdict = Verdict::Absorb;
            return if kept { Ok(()) } else { Err(DropReason::HoldFull) };
        }
        let bound = self.decide(cx, packet.meta, service, slot);
        let flow = match bound {
            Ok(Some(flow)) => flow,
            Ok(None) => return Lacking::Waits.apply(packet.meta),
            Err(reason) => {
                cx.counters.bindings_unserved += 1;
                self.release(slot);
                return Err(reason);
            }
        };
        cx.counters.bindings_joined += 1;
        links[flow.0 as usize] = Link::default();
        // Behind what it came after, where something is held.
        let behind = self.held.count(slot) > 0
            && self.held.put(slot, packet.frame.bytes(cx.arena), packet.meta);
        for index in 0..self.held.count(slot) {
            self.send_again(cx, slot, index, flow);
        }
        self.release(slot);
        if behind {
            packet.meta.verdict = Verdict::Absorb;
            return Ok(());
        }
        pass(cx, packet, flow)
    }

    /// By what the hello says; a client that says none gets whom the rules name without.
    fn decide(
        &self,
        cx: &mut Cx<'_>,
        meta: &PacketMeta,
        service: &Service,
        slot: usize,
    ) -> Result<Option<FlowRef>, DropReason> {
        let hello = &self.hellos[slot];
        let mut facts = Facts::of(&meta.key, meta.dscp_for_rules());
        let ja4 = hello.is_complete().then(|| hello.ja4(Carrier::Quic)).flatten();
        let is_other = self.readers[slot].failure() == Some(Failure::NotQuic);
        let is_read = hello.is_complete() && !self.readers[slot].is_mixed();
        if !(is_other || is_read) && admission::must_read(cx.snapshot, &facts, Said::Hello) {
            cx.counters.flows_unread += 1;
            return Err(DropReason::Unread);
        }
        if hello.is_complete() {
            facts.sni = hello.sni();
            facts.alpn = AlpnList::from_wire(hello.alpn().wire());
            facts.ja4 = ja4.as_ref().map(|ja4| ja4.as_str().as_bytes());
        }
        bind(cx, meta, service, &facts)
    }

    /// Has a held datagram go on. What can't be sent is as good as lost on its way.
    fn send_again(&self, cx: &mut Cx<'_>, slot: usize, index: usize, flow: FlowRef) {
        if cx.replies.len() >= REPLIES_MAX {
            return;
        }
        let Some(mut frame) = cx.pool.take() else { return };
        let mut meta = self.held.meta(slot, index).clone();
        let fits = frame.set_extent(cx.arena, HEADROOM, usize::from(meta.end));
        if fits {
            self.held.copy(slot, index, frame.bytes_mut(cx.arena));
        }
        let mut packet = PacketMut { frame: &mut frame, meta: &mut meta };
        if fits && pass(cx, &mut packet, flow).is_ok() {
            cx.replies.push(Packet { frame, meta });
        } else {
            cx.pool.put(frame);
        }
    }

    fn release(&mut self, slot: usize) {
        self.held.clear(slot);
        self.reassembler.close(slot);
        self.slots.release(slot);
    }
}

/// Enters the flow of a client whose facts are known. `None`: it waits for a token.
fn bind(
    cx: &mut Cx<'_>,
    meta: &PacketMeta,
    service: &Service,
    facts: &Facts<'_>,
) -> Result<Option<FlowRef>, DropReason> {
    let rules = &cx.snapshot.rules;
    let (decision, steps) = (rules.decide(facts), rules.steps(facts));
    if decision.class.is_refused() {
        return Err(DropReason::PolicyDrop);
    }
    match admission::begin(cx, meta) {
        Ok(()) => {}
        Err(Lacking::Waits) => return Ok(None),
        Err(Lacking::Refused(class)) => return Err(class.refusal()),
    }
    let pool = decision.pool.map_or(service.pool, PoolId);
    let tables = &cx.snapshot.forward;
    let by = Choosing { now: cx.now, turns: cx.turns, serving: cx.flows.serving() };
    let backend = *tables.choose(pool, &meta.key, by)?;
    if backend.addr.is_v4() != meta.key.dst.is_v4() {
        return Err(DropReason::NoBackend);
    }
    let class = decision.class;
    let flow = open(cx, &PacketMeta { class, ..meta.clone() }, service, &backend)?;
    cx.flows.get_mut(flow).kind = FlowKind::Spliced;
    if let Some(sni) = facts.sni {
        cx.flows.details_mut(flow).name = intern(cx.names, sni);
    }
    Deciding::of(cx).enter(flow, &decision, &steps);
    forget_fates(cx, &meta.key);
    Ok(Some(flow))
}

/// Enters a flow that goes on with another of the same client, whose address has changed.
fn follow(
    cx: &mut Cx<'_>,
    meta: &PacketMeta,
    service: &Service,
    before: &FlowKey,
) -> Result<FlowRef, DropReason> {
    let found = cx.flows.lookup(before, before.hash(cx.flows.seed()));
    let (old, _) = found.ok_or(DropReason::NoFlow)?;
    let (known, details) = (cx.flows.get(old), *cx.flows.details(old));
    let server = known.server_key();
    let backend = Backend { addr: server.src, port: server.sport, place: details.backend };
    let (class, treatment, steps) = (known.class, known.treatment, known.steps);
    let note = cx.names.notes.get(old, &details).cloned();
    let flow = open(cx, &PacketMeta { class, ..meta.clone() }, service, &backend)?;
    cx.flows.steps_mut().hold(steps);
    cx.flows.set_steps(flow, steps);
    let known = cx.flows.get_mut(flow);
    (known.treatment, known.inspection) = (treatment, DONE);
    let entered = cx.flows.details_mut(flow);
    entered.name = details.name;
    if let Some(note) = note
        && let Some(place) = cx.names.notes.of(flow, entered)
    {
        *place = note;
    }
    forget_fates(cx, &meta.key);
    cx.counters.clients_followed += 1;
    Ok(flow)
}

/// What was decided by less, earlier in the batch, is outdated.
pub(super) fn forget_fates(cx: &mut Cx<'_>, client: &FlowKey) {
    let steps = cx.flows.steps_mut();
    cx.names.fates.retain(|fate| {
        let stays = fate.key != *client;
        if !stays {
            steps.release(fate.steps);
        }
        stays
    });
}

/// The first packets of a flow, as if it had been known when they came.
fn pass(cx: &mut Cx<'_>, packet: &mut PacketMut<'_>, flow: FlowRef) -> Result<(), DropReason> {
    let known = cx.flows.get(flow);
    let meta = &mut *packet.meta;
    (meta.flow, meta.direction, meta.class) = (flow, Direction::Forward, known.class);
    let treatment = cx.flows.steps().treatments.get(known.treatment);
    treat(cx, packet, treatment);
    forward(cx, packet, flow)
}

/// Nothing more is to be learned: a flow like any other.
fn settle(flows: &mut FlowTable, flow: FlowRef) {
    let known = flows.get_mut(flow);
    let (client, server) = (known.client_key(), known.server_key());
    let kind = if server.dst == client.src { FlowKind::Dnat } else { FlowKind::Nat };
    known.kind = kind;
}

fn payload<'a>(cx: &Cx<'a>, packet: &'a PacketMut<'_>) -> &'a [u8] {
    let bytes = packet.frame.bytes(cx.arena);
    let meta = &*packet.meta;
    bytes.get(usize::from(meta.payload)..usize::from(meta.end)).unwrap_or_default()
}
