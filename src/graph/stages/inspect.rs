//! Reads the ClientHello of new flows, TLS over TCP and QUIC, on the way and without holding a
//! packet back.

use crate::base::Nanos;
use crate::flow::names::NAME_BYTES_MAX;
use crate::flow::reassembly::{Pushed, Reassembler};
use crate::flow::{Flow, FlowTable, Names, sightings};
use crate::graph::{Cx, Stage};
use crate::inspect::Peek;
use crate::inspect::tls::{self, Failure, HelloParser};
use crate::observe::Counters;
use crate::packet::tcp::{self, flag};
use crate::packet::udp;
use crate::packet::{
    Batch, Direction, FlowKey, FlowRef, PacketFlags, PacketMeta, PacketRef, Verdict,
};

mod datagrams;

use datagrams::Datagrams;

/// [`Flow::inspection`] of a flow that was not looked at yet.
pub const NOT_YET: u16 = u16::MAX;
/// [`Flow::inspection`] of a flow that is not looked at any more.
pub const DONE: u16 = u16::MAX - 1;
/// Flows under inspection at most, whatever is configured.
pub const FLOWS_MAX: usize = DONE as usize;

/// A hello that makes no progress for this long is given up.
const STALL_NS_MAX: u64 = 10_000_000_000;
/// Segments beyond the window, or without a page to wait in, until a flow is given up.
const STRAYS_MAX: u8 = 64;
/// Slots looked at for stalled flows with each batch.
const SWEEP_SLOTS: usize = 2;
/// Slots among which the one that stalls longest gives way to a new flow.
const CROWD_SLOTS: usize = 8;
/// Flows under inspection for each page in which early segments wait.
const FLOWS_PER_PAGE: usize = 4;
const PAGES_MIN: usize = 64;
/// SYNs that are remembered for each flow that may be under inspection.
const OPENINGS_PER_FLOW: usize = 4;
const OPENINGS_MIN: usize = 4_096;

// A sighting holds whatever the parser does.
const _: () = assert!(tls::SNI_BYTES_MAX == NAME_BYTES_MAX);
const _: () = assert!(tls::ALPN_BYTES_MAX == sightings::ALPN_BYTES_MAX);

/// The inspector: a slot for each flow under inspection, all made at construction.
///
/// A flow takes a slot with its first payload and gives it back when its hello was read, when it
/// turned out to be something else, when it is beyond the limits, or when it is gone. From then on
/// its packets cost one look at [`Flow::inspection`].
pub struct Inspect {
    hello_bytes_max: u32,
    parsers: Box<[HelloParser]>,
    slots: Box<[Slot]>,
    reassembler: Reassembler,
    free: Vec<u16>,
    /// Where the search for stalled flows goes on.
    hand: usize,
    openings: Openings,
    datagrams: Datagrams,
}

#[derive(Clone, Debug, Default)]
struct Slot {
    taken: bool,
    /// Of a UDP flow: its hello was read before it was in the table.
    told: bool,
    strays: u8,
    /// Sequence number of the stream's first byte.
    first: u32,
    /// Whose slot it is: flows have no lasting number.
    key: FlowKey,
    hash: u64,
    progress_at: Nanos,
}

impl Inspect {
    /// Looks at `hello_bytes_max` bytes of a flow and at `flows_max` flows at once, [`FLOWS_MAX`]
    /// at most.
    pub fn new(hello_bytes_max: u32, flows_max: u32) -> Inspect {
        let flows = (flows_max as usize).clamp(1, FLOWS_MAX);
        Inspect {
            hello_bytes_max,
            parsers: vec![HelloParser::new(hello_bytes_max); flows].into_boxed_slice(),
            slots: vec![Slot::default(); flows].into_boxed_slice(),
            reassembler: Reassembler::new(flows, (flows / FLOWS_PER_PAGE).max(PAGES_MIN)),
            free: (0..flows as u16).rev().collect(),
            hand: 0,
            openings: Openings::new(flows),
            datagrams: Datagrams::new(flows),
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

    /// Goes on with the flows of an inspector that this one replaces. Where their sizes differ
    /// these flows are given up instead: each is told from its slot's key.
    pub fn take_over(&mut self, old: &mut Inspect) {
        if self.slots.len() == old.slots.len() {
            let hello_bytes_max = self.hello_bytes_max;
            std::mem::swap(self, old);
            self.hello_bytes_max = hello_bytes_max;
        }
    }

    /// A client's packet of a known flow whose inspection is not done, or that opens it again.
    fn look(&mut self, cx: &mut Cx<'_>, packet: PacketRef<'_>) {
        let meta = packet.meta;
        if opens(meta) {
            self.reopen(cx.flows.get_mut(meta.flow), meta);
            return;
        }
        let bytes = packet.frame.bytes(cx.arena);
        let payload = bytes.get(usize::from(meta.payload)..usize::from(meta.end));
        let payload = payload.unwrap_or_default();
        // Without ACK, or with RST, a receiver takes no data (RFC 9293, section 3.10.7.4).
        let wanted = flag::ACK | flag::RST | flag::SYN;
        if payload.is_empty() || meta.tcp_flags & wanted != flag::ACK {
            return;
        }
        let flow = cx.flows.get(meta.flow);
        let slot = match (flow.inspection, self.slot_of(flow)) {
            (_, Some(slot)) => slot,
            (NOT_YET, None) => self.begin(cx, meta),
            // Its slot went with an inspector of another size.
            _ => {
                cx.flows.get_mut(meta.flow).inspection = DONE;
                return;
            }
        };
        self.feed(cx, meta, slot, payload);
    }

    fn feed(&mut self, cx: &mut Cx<'_>, meta: &PacketMeta, slot: usize, payload: &[u8]) {
        let (parser, mut peek) = (&mut self.parsers[slot], Peek::NeedMore);
        let pushed = self
            .reassembler
            .push(slot, meta.tcp_seq, false, payload, |bytes| peek = parser.feed(bytes));
        match peek {
            Peek::Found(()) => {
                let flow = cx.flows.get_mut(meta.flow);
                found(&self.parsers[slot], flow, meta, cx.names, cx.counters);
                self.release(slot);
            }
            Peek::NotThis => {
                count_failure(self.parsers[slot].failure(), cx.counters);
                self.end(cx.flows, meta.flow, slot);
            }
            Peek::NeedMore => match pushed {
                Pushed::Delivered | Pushed::Held => self.slots[slot].progress_at = cx.now,
                Pushed::Old => {}
                Pushed::OutOfWindow | Pushed::NoPage => {
                    self.slots[slot].strays += 1;
                    if self.slots[slot].strays >= STRAYS_MAX {
                        cx.counters.hellos_stalled += 1;
                        self.end(cx.flows, meta.flow, slot);
                    }
                }
            },
        }
    }

    /// A SYN on a known flow: sent again, or the same addresses used anew.
    fn reopen(&mut self, flow: &mut Flow, meta: &PacketMeta) {
        self.openings.note(meta);
        match self.slot_of(flow) {
            Some(slot) if self.slots[slot].first == meta.tcp_seq.wrapping_add(1) => {}
            Some(slot) => {
                self.release(slot);
                flow.inspection = NOT_YET;
            }
            None => flow.inspection = NOT_YET,
        }
    }

    /// Takes a slot for a flow that sends its first payload.
    fn begin(&mut self, cx: &mut Cx<'_>, meta: &PacketMeta) -> usize {
        // Without a SYN that was seen, the stream begins here as far as can be told.
        let first = self.openings.first_byte(meta).unwrap_or(meta.tcp_seq);
        let slot = self.take_slot(cx, meta, first);
        cx.flows.get_mut(meta.flow).inspection = slot as u16;
        slot
    }

    /// A free slot, or that of a flow which stalls, for one whose stream begins at `first`.
    fn take_slot(&mut self, cx: &mut Cx<'_>, meta: &PacketMeta, first: u32) -> usize {
        let slot = match self.free.pop() {
            Some(slot) => usize::from(slot),
            None => self.crowd_out(cx),
        };
        let (key, hash, progress_at) = (meta.key, meta.hash, cx.now);
        self.slots[slot] =
            Slot { taken: true, told: false, strays: 0, first, key, hash, progress_at };
        self.parsers[slot] = HelloParser::new(self.hello_bytes_max);
        self.reassembler.open(slot, first);
        slot
    }

    /// All slots are taken: of the next few, the flow that stalls longest gives way. Real hellos
    /// come within moments, so that whoever opens flows and sends nothing more can't keep others
    /// out.
    fn crowd_out(&mut self, cx: &mut Cx<'_>) -> usize {
        let from = self.hand;
        self.hand = (from + CROWD_SLOTS) % self.slots.len();
        let next = (from..from + CROWD_SLOTS).map(|i| i % self.slots.len());
        let slot = next.min_by_key(|&slot| self.slots[slot].progress_at).unwrap_or(from);
        cx.counters.hellos_crowded_out += 1;
        self.give_up(cx.flows, slot);
        self.free.pop().map_or(slot, usize::from)
    }

    /// Gives up a few of the flows that stall.
    fn sweep(&mut self, cx: &mut Cx<'_>) {
        for _ in 0..SWEEP_SLOTS.min(self.slots.len()) {
            self.hand = (self.hand + 1) % self.slots.len();
            let slot = &self.slots[self.hand];
            if slot.taken && cx.now.since(slot.progress_at) > STALL_NS_MAX {
                cx.counters.hellos_stalled += u64::from(!slot.told);
                self.give_up(cx.flows, self.hand);
            }
        }
    }

    /// Frees a slot whose flow is not at hand and may be gone.
    fn give_up(&mut self, flows: &mut FlowTable, slot: usize) {
        let Slot { key, hash, .. } = self.slots[slot];
        match flows.lookup(&key, hash) {
            Some((flow, _)) if usize::from(flows.get(flow).inspection) == slot => {
                self.end(flows, flow, slot);
            }
            _ => self.release(slot),
        }
    }

    fn end(&mut self, flows: &mut FlowTable, flow: FlowRef, slot: usize) {
        flows.get_mut(flow).inspection = DONE;
        self.release(slot);
    }

    fn release(&mut self, slot: usize) {
        debug_assert!(self.slots[slot].taken, "slot {slot} is free already");
        self.slots[slot].taken = false;
        self.reassembler.close(slot);
        self.free.push(slot as u16);
    }

    /// The slot that the flow names, if it is really its own.
    fn slot_of(&self, flow: &Flow) -> Option<usize> {
        let slot = usize::from(flow.inspection);
        let s = self.slots.get(slot)?;
        (s.taken && s.key == flow.key[0]).then_some(slot)
    }
}

impl Stage for Inspect {
    fn process(&mut self, cx: &mut Cx<'_>, batch: &mut Batch) {
        cx.names.sightings.clear();
        self.sweep(cx);
        for (at, packet) in batch.iter().enumerate() {
            let meta = packet.meta;
            if meta.verdict != Verdict::Next || meta.flags.has(PacketFlags::FRAGMENT) {
                continue;
            }
            if meta.key.proto == udp::PROTOCOL && meta.direction == Direction::Forward {
                self.datagram(cx, at, packet);
            }
            if meta.key.proto != tcp::PROTOCOL {
                continue;
            }
            if !meta.flow.is_some() {
                if opens(meta) {
                    self.openings.note(meta);
                }
                continue;
            }
            let done = cx.flows.get(meta.flow).inspection == DONE;
            if meta.direction == Direction::Forward && (!done || opens(meta)) {
                self.look(cx, packet);
            }
        }
    }
}

fn opens(meta: &PacketMeta) -> bool {
    meta.tcp_flags & (flag::SYN | flag::ACK) == flag::SYN
}

/// Keeps what the hello says: the name with the flow, all of it for the classifier.
fn found(
    hello: &HelloParser,
    flow: &mut Flow,
    meta: &PacketMeta,
    names: &mut Names,
    counters: &mut Counters,
) {
    flow.inspection = DONE;
    flow.name = Names::NONE;
    match hello.sni() {
        Some(sni) => {
            counters.names_found += 1;
            flow.name = intern(names, sni);
        }
        None => counters.hellos_without_name += 1,
    }
    names.sightings.report(meta.flow, meta.dscp(), hello.sni(), hello.alpn().wire());
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

pub(super) fn count_failure(failure: Option<Failure>, counters: &mut Counters) {
    match failure {
        Some(Failure::Malformed) => counters.hellos_malformed += 1,
        Some(Failure::TooLong) => counters.hellos_too_long += 1,
        Some(Failure::NotTls) | None => counters.flows_not_tls += 1,
    }
}

/// Where streams begin whose SYN was seen, while their flow is not in the table: it is entered
/// behind this stage. A later SYN of the same place takes over, so a flood of them costs no memory;
/// a flow that lost its place is read from the first segment that comes.
struct Openings {
    places: Box<[Opening]>,
    mask: usize,
}

#[derive(Clone, Copy, Default)]
struct Opening {
    /// The half of the flow's hash that does not choose the place.
    tag: u32,
    first_byte: u32,
}

impl Openings {
    fn new(flows: usize) -> Openings {
        let places = (flows * OPENINGS_PER_FLOW).max(OPENINGS_MIN).next_power_of_two();
        let places = vec![Opening::default(); places].into_boxed_slice();
        Openings { mask: places.len() - 1, places }
    }

    fn note(&mut self, meta: &PacketMeta) {
        let first_byte = meta.tcp_seq.wrapping_add(1);
        let tag = (meta.hash >> 32) as u32;
        self.places[meta.hash as usize & self.mask] = Opening { tag, first_byte };
    }

    fn first_byte(&self, meta: &PacketMeta) -> Option<u32> {
        let opening = self.places[meta.hash as usize & self.mask];
        (u64::from(opening.tag) == meta.hash >> 32).then_some(opening.first_byte)
    }
}

#[cfg(test)]
mod tests;
