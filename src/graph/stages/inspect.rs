//! Reads what new flows begin with, TLS, HTTP and QUIC, on the way and without holding a packet
//! back, and has the rules decide by it.

use crate::base::Nanos;
use crate::flow::names::NAME_BYTES_MAX;
use crate::flow::reassembly::Reassembler;
use crate::flow::{Flow, Names, sightings};
use crate::graph::stages::admission;
use crate::graph::stages::verdict::Deciding;
use crate::graph::{Cx, Stage};
use crate::inspect::fields::{self, Wanted};
use crate::inspect::inspector::{App, Inspector, Pool, Rooms, Said, Unknown};
use crate::inspect::tls;
use crate::packet::batch::BATCH_MAX;
use crate::packet::tcp::{self, flag};
use crate::packet::udp;
use crate::packet::{
    Batch, Direction, DropReason, FlowKey, FlowRef, PacketFlags, PacketMeta, PacketRef, Verdict,
};
use crate::policy::{Decision, Facts, Steps};

mod counting;
mod crowding;
mod datagrams;
mod ends;
mod hiding;
mod newcomers;
mod streams;

use counting::count_end;
pub(super) use counting::{count_app, count_failure, count_name, count_unknown};
use crowding::Holders;
use datagrams::Places;
use hiding::hides;
use newcomers::{Judged, Parts};
use streams::Passage;
pub(super) use streams::{hello_note, keep_request};

/// [`Flow::inspection`] of a flow that was not looked at yet.
pub const NOT_YET: u16 = u16::MAX;
/// [`Flow::inspection`] of a flow that is not looked at any more.
pub const DONE: u16 = u16::MAX - 1;
/// As [`DONE`], once a request that waits for its token has gone on: what follows waits behind it.
const BEHIND: u16 = u16::MAX - 2;
/// As [`DONE`], of a client's further stream while its server may still have the one before.
const BESIDE: u16 = u16::MAX - 3;
/// Flows under inspection at most, whatever is configured.
pub const FLOWS_MAX: usize = BESIDE as usize;

/// A flow that is undecided and makes no progress for this long is given up.
const STALL_NS_MAX: u64 = 10_000_000_000;
/// Flows under inspection for each page in which early segments wait.
const FLOWS_PER_PAGE: usize = 4;
const PAGES_MIN: usize = 64;
/// Flows that may speak HTTP for each head of theirs that may have come in part.
const PARSERS_PER_HEAD: usize = 4;
const HEADS_MIN: usize = 16;
/// Each flow has two streams.
const SIDES: usize = 2;
/// The header table that is kept for each direction of HTTP/2: the protocol's default (RFC 9113,
/// section 6.5.2).
pub(super) const TABLE_BYTES: usize = 4_096;

// A sighting holds whatever the parser does.
const _: () = assert!(tls::SNI_BYTES_MAX == NAME_BYTES_MAX);
const _: () = assert!(tls::ALPN_BYTES_MAX == sightings::ALPN_BYTES_MAX);
const _: () = assert!(tls::JA4_BYTES == sightings::FINGERPRINT_BYTES);

/// How much is inspected.
#[derive(Clone, Debug)]
pub struct InspectLimits {
    /// Bytes of a ClientHello that are looked at.
    pub hello_bytes_max: u32,
    /// Flows at once: [`FLOWS_MAX`] at most.
    pub flows_max: u32,
    /// Those among them that may speak HTTP, whose parsers are large.
    pub http_flows_max: u32,
    /// Header fields that rules ask for, in their order.
    pub headers: Vec<String>,
}

/// The inspector: a slot for each flow under inspection, all made at construction.
///
/// A flow takes a slot with its first payload and gives it back when what it began with was read,
/// when it turned out to be something else, when it is beyond the limits, or when it is gone. From
/// then on its packets cost one look at [`Flow::inspection`]. Where rules ask for what requests
/// say, a connection of HTTP keeps its slot for as long as it has any: each of them is decided
/// anew, and the flow's class is that of the last.
pub struct Inspect {
    limits: InspectLimits,
    inspectors: Box<[Inspector]>,
    slots: Box<[Slot]>,
    pool: Pool,
    /// Streams: the client's of slot n is 2n, the server's the one after it.
    reassembler: Reassembler,
    free: Vec<u16>,
    /// Where the search for stalled flows goes on.
    hand: usize,
    holders: Holders,
    places: Places,
    judged: Judged,
}

#[derive(Clone, Debug, Default)]
struct Slot {
    taken: bool,
    /// Of another connection of QUIC on a flow that is known by one before.
    newcomer: bool,
    /// Of a UDP flow: its hello was read before it was in the table.
    told: bool,
    /// What its datagrams said.
    parts: Parts,
    /// The ClientHello was read, and decided by.
    hello_read: bool,
    /// An answer's head was read.
    answered: bool,
    /// The protocol was counted.
    counted: bool,
    /// The server's stream is followed.
    server_open: bool,
    /// Segments of each side that there was no room for.
    strays: [u8; SIDES],
    /// Bytes read of it, of both sides.
    bytes: u32,
    /// Its client has begun other streams before, which its server may still have.
    later: bool,
    /// Code point that the flow began to be read with.
    dscp: u8,
    /// Sequence number of the client's first byte.
    first: u32,
    /// Whose slot it is: flows have no lasting number.
    key: FlowKey,
    hash: u64,
    progress_at: Nanos,
}

impl Inspect {
    /// # Panics
    /// On header names that are none: the configuration is checked for them.
    pub fn new(limits: &InspectLimits) -> Inspect {
        let flows = (limits.flows_max as usize).clamp(1, FLOWS_MAX);
        let wanted = Wanted::new(limits.headers.iter().map(String::as_str))
            .unwrap_or_else(|fault| panic!("header names: {fault}"));
        let parsers = (limits.http_flows_max as usize).clamp(1, flows);
        let heads = (parsers / PARSERS_PER_HEAD).max(HEADS_MIN.min(SIDES * parsers));
        let target = fields::PATH_BYTES;
        let whole_tables = SIDES * parsers;
        let (greetings, table) = (flows, TABLE_BYTES);
        let rooms = Rooms { greetings, target, first_target: 0, heads, table, whole_tables };
        let inspectors =
            (0..flows).map(|_| Inspector::with_hello(false, limits.hello_bytes_max)).collect();
        Inspect {
            limits: limits.clone(),
            inspectors,
            slots: vec![Slot::default(); flows].into_boxed_slice(),
            pool: Pool::filled(wanted, rooms, parsers),
            reassembler: Reassembler::new(SIDES * flows, (flows / FLOWS_PER_PAGE).max(PAGES_MIN)),
            free: (0..flows as u16).rev().collect(),
            hand: 0,
            holders: Holders::new(flows),
            places: Places::new(flows),
            judged: Judged::new(flows),
        }
    }

    /// Flows under inspection now.
    pub fn flows(&self) -> usize {
        self.slots.len() - self.free.len()
    }

    /// The flow left the table.
    pub fn forget(&mut self, flow: &Flow) {
        if let Some(slot) = self.slot_of(flow) {
            self.release(slot);
        }
    }

    /// The same, of one that is gone already and named this place.
    pub(super) fn forget_client(&mut self, key: &FlowKey, inspection: u16) {
        if let Some(slot) = self.slot_at(inspection, key) {
            self.release(slot);
        }
    }

    /// Goes on with the flows of an inspector that this one replaces. Where their sizes differ, or
    /// the header fields that are read, these flows are given up instead: each is told from its
    /// slot's key.
    pub fn take_over(&mut self, old: &mut Inspect) {
        let (new, had) = (&self.limits, &old.limits);
        if self.slots.len() == old.slots.len()
            && (new.http_flows_max, &new.headers) == (had.http_flows_max, &had.headers)
        {
            std::mem::swap(self, old);
            std::mem::swap(&mut self.limits, &mut old.limits);
        }
    }

    /// A free slot, or that of a flow which stalls, for one whose stream begins at `first`; where
    /// that is not known, it was joined later than its beginning.
    fn take_slot(
        &mut self,
        cx: &mut Cx<'_>,
        (key, hash): (FlowKey, u64),
        dscp: u8,
        first: Option<u32>,
    ) -> usize {
        let slot = match self.free.pop() {
            Some(slot) => usize::from(slot),
            None => self.crowd_out(cx),
        };
        self.slots[slot] = Slot {
            taken: true,
            first: first.unwrap_or_default(),
            dscp,
            key,
            hash,
            progress_at: cx.now,
            ..Slot::default()
        };
        self.inspectors[slot] = Inspector::with_hello(first.is_none(), self.limits.hello_bytes_max);
        slot
    }

    /// Frees a slot whose flow is not at hand and may be gone.
    fn give_up(&mut self, cx: &mut Cx<'_>, slot: usize, why: Given) {
        match self.flow_of(cx, slot) {
            Some(flow) => self.end(cx, flow, slot, why),
            None => {
                let Slot { told, key, hash, .. } = self.slots[slot];
                count_end(&self.inspectors[slot], &self.slots[slot], why, cx.counters);
                // What was told of it before it was in the table is all there is to read.
                if told && let Some((flow, _)) = cx.flows.lookup(&key, hash) {
                    cx.flows.get_mut(flow).inspection = DONE;
                }
                self.release(slot);
            }
        }
    }

    /// The flow whose slot it is, if it is in the table and names it.
    fn flow_of(&self, cx: &Cx<'_>, slot: usize) -> Option<FlowRef> {
        let Slot { key, hash, .. } = self.slots[slot];
        let (flow, _) = cx.flows.lookup(&key, hash)?;
        (usize::from(cx.flows.get(flow).inspection) == slot).then_some(flow)
    }

    /// Looks no more into a flow: what was seen stays with it. Where it is read no further though
    /// its client may say more, it does not get around rules that refuse by that.
    fn end(&mut self, cx: &mut Cx<'_>, at: FlowRef, slot: usize, why: Given) {
        if self.slots[slot].newcomer {
            return self.leave(cx, at, slot);
        }
        let waits = matches!(why, Given::Stalled | Given::Up(Unknown::Crowded));
        if waits && self.may_begin_anew(slot, why) {
            return self.put_off(cx, at, slot);
        }
        let refused = cx.flows.get(at).class.is_refused();
        if !refused && self.is_guarded(cx, slot) && !self.has_ended(cx, slot) {
            cx.counters.flows_unread += 1;
            Deciding::of(cx).enter(at, &Decision::UNREAD, &Steps::NONE);
        }
        let inspector = &self.inspectors[slot];
        // Of those whose requests are followed: the last one's class stays.
        let is_cut_short = why == Given::Up(Unknown::Crowded) && inspector.asks();
        let is_cut_short = is_cut_short && !self.has_ended(cx, slot);
        cx.counters.flows_unfollowed += u64::from(is_cut_short);
        let unknown = count_end(inspector, &self.slots[slot], why, cx.counters);
        let is_held = cx.delays.until(self.slots[slot].hash).is_some();
        cx.flows.get_mut(at).inspection = match self.slots[slot].later {
            _ if is_held => BEHIND,
            true => BESIDE,
            false => DONE,
        };
        let app = inspector.app();
        if (app != App::None || unknown.is_some())
            && let Some(note) = cx.names.notes.of(at, cx.flows.details_mut(at))
        {
            note.app = if app == App::None { "" } else { app.name() };
            note.unknown = unknown.unwrap_or_default();
        }
        self.release(slot);
    }

    /// Gives the slot of a flow back that is to be read on, once its client says more.
    fn put_off(&mut self, cx: &mut Cx<'_>, at: FlowRef, slot: usize) {
        if self.slots[slot].key.proto == tcp::PROTOCOL {
            let (next, bytes) = (self.reassembler.next_seq(SIDES * slot), self.slots[slot].bytes);
            cx.flows.details_mut(at).go_on_at(cx.now, bytes, next);
        }
        cx.flows.get_mut(at).inspection = NOT_YET;
        self.release(slot);
    }

    /// Whether its client has said nothing that is still to be read, and nothing is lost by reading
    /// it anew from here.
    fn may_begin_anew(&self, slot: usize, why: Given) -> bool {
        let is_whole = match self.slots[slot].key.proto {
            tcp::PROTOCOL => !self.reassembler.has_gap(SIDES * slot),
            // Whoever is crowded out could begin anew for ever.
            _ => why == Given::Stalled,
        };
        is_whole && self.inspectors[slot].may_begin_anew()
    }

    /// Whether rules might refuse the flow by what its client says and is not read, or that is
    /// counted.
    #[cold]
    fn is_guarded(&self, cx: &Cx<'_>, slot: usize) -> bool {
        let (inspector, Slot { key, dscp, .. }) = (&self.inspectors[slot], &self.slots[slot]);
        let has_gap = key.proto == tcp::PROTOCOL && self.reassembler.has_gap(SIDES * slot);
        let unread = match inspector.is_silent() && has_gap {
            true => Some(Said::Anything),
            false => inspector.unread(),
        };
        let must_read = |said| admission::must_read(cx.snapshot, &Facts::of(key, *dscp), said);
        unread.is_some_and(must_read)
    }

    fn release(&mut self, slot: usize) {
        debug_assert!(self.slots[slot].taken, "slot {slot} is free already");
        self.slots[slot].taken = false;
        self.holders.forget(slot);
        let next = Inspector::with_hello(false, self.limits.hello_bytes_max);
        std::mem::replace(&mut self.inspectors[slot], next).give_back(&mut self.pool);
        for side in 0..SIDES {
            self.reassembler.close(SIDES * slot + side);
        }
        self.free.push(slot as u16);
    }

    /// The slot that the flow names, if it is really its own.
    fn slot_of(&self, flow: &Flow) -> Option<usize> {
        self.slot_at(flow.inspection, &flow.client_key())
    }

    fn slot_at(&self, inspection: u16, client: &FlowKey) -> Option<usize> {
        let slot = usize::from(inspection);
        let s = self.slots.get(slot)?;
        (s.taken && s.key == *client).then_some(slot)
    }
}

impl Stage for Inspect {
    fn process(&mut self, cx: &mut Cx<'_>, batch: &mut Batch) {
        cx.names.sightings.clear();
        Deciding::of(cx).complete();
        self.sweep(cx);
        let mut anew = self.look_at(cx, batch, u64::MAX);
        if anew != 0 {
            self.renew(cx, batch, anew);
            anew = self.look_at(cx, batch, anew);
        }
        debug_assert_eq!(anew, 0, "without a flow there is none to be over");
    }
}

impl Inspect {
    /// Looks at these packets of a batch. Returns those whose flows are over.
    fn look_at(&mut self, cx: &mut Cx<'_>, batch: &mut Batch, packets: u64) -> u64 {
        let (mut changed, mut anew) = (0_u64, 0_u64);
        let mut verdicts = [Verdict::Next; BATCH_MAX];
        for (at, packet) in batch.iter().enumerate() {
            if packet.meta.verdict != Verdict::Next || packets >> at & 1 == 0 {
                continue;
            }
            verdicts[at] = match self.packet(cx, at, packet) {
                Passage::On => continue,
                Passage::Anew => {
                    anew |= 1 << at;
                    continue;
                }
                Passage::TooEarly => Verdict::Drop(DropReason::TooFarAhead),
                Passage::Waits => Verdict::Wait,
                Passage::Refused(reason) => Verdict::Drop(reason),
            };
            changed |= 1 << at;
        }
        while changed != 0 {
            let at = changed.trailing_zeros() as usize;
            batch.metas_mut()[at].verdict = verdicts[at];
            changed &= changed - 1;
        }
        anew
    }

    #[inline]
    fn packet(&mut self, cx: &mut Cx<'_>, at: usize, packet: PacketRef<'_>) -> Passage {
        let meta = packet.meta;
        if meta.flags.has(PacketFlags::FRAGMENT) {
            return match hides(cx, &packet) {
                true => Passage::Refused(DropReason::Fragment),
                false => Passage::On,
            };
        }
        if meta.key.proto == udp::PROTOCOL {
            return match meta.direction {
                Direction::Forward => self.datagram(cx, at, packet),
                Direction::Reply => self.answer(cx, packet),
            };
        }
        if meta.key.proto != tcp::PROTOCOL {
            return Passage::On;
        }
        if opens(meta) && meta.payload < meta.end && !is_bound_later(cx, meta) {
            return Passage::Refused(DropReason::SynData);
        }
        if !meta.flow.is_some() {
            return Passage::On;
        }
        let done = cx.flows.get(meta.flow).inspection == DONE;
        match !done || meta.tcp_flags & flag::SYN != 0 {
            true => self.segment(cx, packet),
            false => Passage::On,
        }
    }
}

/// Whether a client's SYN is answered here, without what it brings.
#[cold]
fn is_bound_later(cx: &Cx<'_>, meta: &PacketMeta) -> bool {
    let service = cx.snapshot.forward.service(meta.key.dst, meta.key.dport, meta.key.proto);
    service.is_some_and(|service| service.delay.is_some())
}

fn opens(meta: &PacketMeta) -> bool {
    meta.tcp_flags & (flag::SYN | flag::ACK) == flag::SYN
}

fn payload_of<'a>(cx: &Cx<'a>, packet: &PacketRef<'a>) -> &'a [u8] {
    let bytes = packet.frame.bytes(cx.arena);
    let meta = packet.meta;
    bytes.get(usize::from(meta.payload)..usize::from(meta.end)).unwrap_or_default()
}

/// Why a flow is not looked at any longer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Given {
    /// Everything was read that is wanted.
    Done,
    Stalled,
    Up(Unknown),
}

/// Names are kept in one spelling: lower case, without the dot that may end them.
pub(super) fn intern(names: &mut Names, sni: &[u8]) -> u32 {
    let sni = sni.strip_suffix(b".").unwrap_or(sni);
    let mut lower = [0; NAME_BYTES_MAX];
    let Some(lower) = lower.get_mut(..sni.len()) else { return Names::NONE };
    lower.copy_from_slice(sni);
    lower.make_ascii_lowercase();
    names.intern(lower)
}

#[cfg(test)]
mod tests;
