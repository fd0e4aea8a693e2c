//! QUIC: the hello in a UDP flow's first datagrams.
//!
//! A client's first datagram comes before its flow is in the table, and mostly holds the whole
//! hello. So slots of UDP flows are found by the packet's key until a later stage has entered the
//! flow; what was read by then is told of the packet itself, and the name is kept for the flow.

use super::streams::keep_hello;
use super::{DONE, Given, Inspect, NOT_YET, SIDES, count_app, count_name, payload_of};
use crate::flow::FlowTable;
use crate::graph::Cx;
use crate::graph::stages::verdict::Deciding;
use crate::inspect::inspector::Side;
use crate::inspect::quic::may_be_quic;
use crate::packet::{PacketMeta, PacketRef};
use crate::policy::Facts;

/// Places among which slots are found, for each flow that may be under inspection.
const PLACES_PER_FLOW: usize = 2;
const NO_SLOT: u16 = u16::MAX;

/// Slots of UDP flows by their hash. A later flow of the same place takes it over; the other is
/// then not found until it is in the table, and stalls otherwise.
pub(super) struct Places {
    slots: Box<[u16]>,
    mask: usize,
}

impl Places {
    pub(super) fn new(flows: usize) -> Places {
        let places = (flows * PLACES_PER_FLOW).next_power_of_two();
        Places { slots: vec![NO_SLOT; places].into_boxed_slice(), mask: places - 1 }
    }

    fn of(&mut self, hash: u64) -> &mut u16 {
        &mut self.slots[hash as usize & self.mask]
    }
}

impl Inspect {
    /// A client's datagram; `at` is its place in the batch. `true`: it can't be read, and must be.
    pub(super) fn datagram(&mut self, cx: &mut Cx<'_>, at: usize, packet: PacketRef<'_>) -> bool {
        let meta = packet.meta;
        let known = meta.flow.is_some();
        if known && cx.flows.get(meta.flow).inspection == DONE {
            return false;
        }
        let payload = payload_of(cx, &packet);
        let Some(slot) = self.slot_of_packet(cx.flows, meta).or_else(|| {
            let wanted = !payload.is_empty() && may_be_quic(payload);
            wanted.then(|| self.begin_datagrams(cx, meta))
        }) else {
            // Behind something else a hello must not be overlooked where rules refuse by one.
            if known && !cx.snapshot.rules.refuses_hellos() {
                cx.flows.get_mut(meta.flow).inspection = DONE;
            }
            return false;
        };
        if known {
            cx.flows.get_mut(meta.flow).inspection = slot as u16;
        }
        if self.slots[slot].told {
            self.tell(cx, at, meta, slot);
            false
        } else {
            self.feed_datagram(cx, at, meta, slot, payload)
        }
    }

    fn feed_datagram(
        &mut self,
        cx: &mut Cx<'_>,
        at: usize,
        meta: &PacketMeta,
        slot: usize,
        payload: &[u8],
    ) -> bool {
        let Inspect { inspectors, reassembler, pool, .. } = self;
        let inspector = &mut inspectors[slot];
        inspector.datagram(pool, reassembler, SIDES * slot, Side::Client, payload);
        let (done, went_on) = (inspector.is_done(), inspector.went_on());
        if !(done || went_on && self.is_guarded(cx, slot)) {
            self.slots[slot].progress_at = cx.now;
            return false;
        }
        if self.inspectors[slot].client_hello().is_some() {
            self.slots[slot].progress_at = cx.now;
            self.tell(cx, at, meta, slot);
            return false;
        }
        if meta.flow.is_some() {
            self.end(cx, meta.flow, slot, Given::Done);
            return false;
        }
        // There is no flow yet that could be refused.
        let refused = self.is_guarded(cx, slot);
        self.give_up(cx, slot, Given::Done);
        refused
    }

    /// The hello was read: tells the flow, or the packet that the flow will be entered for.
    fn tell(&mut self, cx: &mut Cx<'_>, at: usize, meta: &PacketMeta, slot: usize) {
        let inspector = &self.inspectors[slot];
        let Some(hello) = inspector.client_hello() else { return };
        let ja4 = inspector.ja4();
        let ja4 = ja4.as_ref().map(|ja4| ja4.as_str().as_bytes());
        let (key, alpn) = (self.slots[slot].key, hello.alpn());
        let facts = Facts { sni: hello.sni(), alpn, ja4, ..Facts::of(&key, meta.dscp()) };
        if !meta.flow.is_some() {
            self.slots[slot].told = true;
            cx.names.sightings.report(at, facts.sni, alpn.wire(), ja4);
            return;
        }
        count_name(facts.sni, cx.counters);
        count_app(inspector.app(), cx.counters);
        keep_hello(cx, meta.flow, &facts);
        // Also where the packet was told before: the flow may have been entered for an earlier one.
        Deciding::of(cx).decide(meta.flow, &facts);
        self.slots[slot].counted = true;
        self.end(cx, meta.flow, slot, Given::Done);
    }

    /// The slot of a packet's flow, whether or not the flow is in the table.
    fn slot_of_packet(&mut self, flows: &FlowTable, meta: &PacketMeta) -> Option<usize> {
        if meta.flow.is_some()
            && let Some(slot) = self.slot_of(flows.get(meta.flow))
        {
            return Some(slot);
        }
        let slot = *self.places.of(meta.hash);
        let taken = self.slots.get(usize::from(slot))?;
        (taken.taken && taken.key == meta.key).then_some(usize::from(slot))
    }

    fn begin_datagrams(&mut self, cx: &mut Cx<'_>, meta: &PacketMeta) -> usize {
        let slot = self.take_slot(cx, (meta.key, meta.hash), meta.dscp(), Some(0));
        *self.places.of(meta.hash) = slot as u16;
        slot
    }
}

// A flow without a slot is told from all slots.
const _: () = assert!(NO_SLOT == NOT_YET);
