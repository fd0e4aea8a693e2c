//! QUIC: the hello in a UDP flow's first datagrams.
//!
//! A client's first datagram comes before its flow is in the table, and mostly holds the whole
//! hello. So slots of UDP flows are found by the packet's key until a later stage has entered the
//! flow; what was read by then is told of the packet itself, and the name is kept for the flow.

use super::{DONE, Inspect, NOT_YET, count_failure, found, intern};
use crate::flow::{FlowTable, Names};
use crate::graph::Cx;
use crate::inspect::Peek;
use crate::inspect::quic::{CryptoStream, Failure, InitialReader, Scratch, may_be_quic};
use crate::packet::{PacketMeta, PacketRef};

/// Places among which slots are found, for each flow that may be under inspection.
const PLACES_PER_FLOW: usize = 2;
const NO_SLOT: u16 = u16::MAX;

/// What reading datagrams takes besides the slots.
pub(super) struct Datagrams {
    /// One a slot.
    readers: Box<[InitialReader]>,
    scratch: Scratch,
    /// Slots by their flow's hash. A later flow of the same place takes it over; the other is then
    /// not found until it is in the table, and stalls otherwise.
    places: Box<[u16]>,
    mask: usize,
}

impl Datagrams {
    pub(super) fn new(flows: usize) -> Datagrams {
        let places = (flows * PLACES_PER_FLOW).next_power_of_two();
        Datagrams {
            readers: vec![InitialReader::new(); flows].into_boxed_slice(),
            scratch: Scratch::new(),
            places: vec![NO_SLOT; places].into_boxed_slice(),
            mask: places - 1,
        }
    }
}

impl Inspect {
    /// A client's datagram; `at` is its place in the batch.
    pub(super) fn datagram(&mut self, cx: &mut Cx<'_>, at: usize, packet: PacketRef<'_>) {
        let meta = packet.meta;
        let known = meta.flow.is_some();
        if known && cx.flows.get(meta.flow).inspection == DONE {
            return;
        }
        let bytes = packet.frame.bytes(cx.arena);
        let payload = bytes.get(usize::from(meta.payload)..usize::from(meta.end));
        let payload = payload.unwrap_or_default();
        let Some(slot) = self.slot_of_packet(cx.flows, meta).or_else(|| {
            let wanted = !payload.is_empty() && may_be_quic(payload);
            wanted.then(|| self.begin_datagrams(cx, meta))
        }) else {
            if known {
                cx.flows.get_mut(meta.flow).inspection = DONE;
            }
            return;
        };
        if known {
            cx.flows.get_mut(meta.flow).inspection = slot as u16;
        }
        if self.slots[slot].told {
            self.tell(cx, at, meta, slot);
        } else {
            self.feed_datagram(cx, at, meta, slot, payload);
        }
    }

    fn feed_datagram(
        &mut self,
        cx: &mut Cx<'_>,
        at: usize,
        meta: &PacketMeta,
        slot: usize,
        payload: &[u8],
    ) {
        let Inspect { parsers, reassembler, datagrams, .. } = self;
        let reader = &mut datagrams.readers[slot];
        let mut stream = CryptoStream { reassembler, slot, hello: &mut parsers[slot] };
        match reader.datagram(true, payload, &mut stream, &mut datagrams.scratch) {
            Peek::NeedMore => self.slots[slot].progress_at = cx.now,
            Peek::Found(()) => {
                self.slots[slot].progress_at = cx.now;
                self.tell(cx, at, meta, slot);
            }
            Peek::NotThis => {
                match reader.failure() {
                    Some(Failure::Hello) => {
                        count_failure(self.parsers[slot].failure(), cx.counters)
                    }
                    Some(Failure::TooLong) => cx.counters.hellos_too_long += 1,
                    Some(Failure::NoPage) => cx.counters.hellos_stalled += 1,
                    Some(Failure::Malformed) => cx.counters.hellos_malformed += 1,
                    Some(Failure::NotQuic | Failure::Undecryptable) | None => {
                        cx.counters.flows_not_tls += 1;
                    }
                }
                match meta.flow.is_some() {
                    true => self.end(cx.flows, meta.flow, slot),
                    false => self.release(slot),
                }
            }
        }
    }

    /// The hello was read: tells the flow, or the packet that the flow will be entered for.
    fn tell(&mut self, cx: &mut Cx<'_>, at: usize, meta: &PacketMeta, slot: usize) {
        let hello = &self.parsers[slot];
        if !meta.flow.is_some() {
            self.slots[slot].told = true;
            let (sni, alpn) = (hello.sni(), hello.alpn().wire());
            cx.names.sightings.report_packet(at, meta.dscp(), sni, alpn);
            return;
        }
        let flow = cx.flows.get_mut(meta.flow);
        if self.slots[slot].told {
            // Its class came with the packet that it was entered for.
            flow.inspection = DONE;
            flow.name = hello.sni().map_or(Names::NONE, |sni| intern(cx.names, sni));
            match hello.sni() {
                Some(_) => cx.counters.names_found += 1,
                None => cx.counters.hellos_without_name += 1,
            }
        } else {
            found(hello, flow, meta, cx.names, cx.counters);
        }
        self.release(slot);
    }

    /// The slot of a packet's flow, whether or not the flow is in the table.
    fn slot_of_packet(&self, flows: &FlowTable, meta: &PacketMeta) -> Option<usize> {
        if meta.flow.is_some()
            && let Some(slot) = self.slot_of(flows.get(meta.flow))
        {
            return Some(slot);
        }
        let slot = self.datagrams.places[meta.hash as usize & self.datagrams.mask];
        let taken = self.slots.get(usize::from(slot))?;
        (taken.taken && taken.key == meta.key).then_some(usize::from(slot))
    }

    fn begin_datagrams(&mut self, cx: &mut Cx<'_>, meta: &PacketMeta) -> usize {
        let slot = self.take_slot(cx, meta, 0);
        self.datagrams.readers[slot] = InitialReader::new();
        self.datagrams.places[meta.hash as usize & self.datagrams.mask] = slot as u16;
        slot
    }
}

// A flow without a slot is told from all slots.
const _: () = assert!(NO_SLOT == NOT_YET);
