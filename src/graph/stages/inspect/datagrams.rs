//! QUIC: the hello in a UDP flow's first datagrams.
//!
//! A client's first datagram comes before its flow is in the table, and mostly holds the whole
//! hello. So slots of UDP flows are found by the packet's key until a later stage has entered the
//! flow; what was read by then is told of the packet itself, and the name is kept for the flow.

use super::streams::{Passage, keep_hello};
use super::{
    DONE, Given, Inspect, NOT_YET, SIDES, count_app, count_name, is_bound_later, payload_of,
};
use crate::flow::{FlowKind, FlowTable};
use crate::graph::Cx;
use crate::graph::stages::verdict::Deciding;
use crate::inspect::inspector::{Inspector, Side};
use crate::inspect::quic::may_be_quic;
use crate::packet::{DropReason, FlowKey, PacketMeta, PacketRef};
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

    fn at(&self, hash: u64) -> u16 {
        self.slots[hash as usize & self.mask]
    }

    fn set(&mut self, hash: u64, slot: u16) {
        self.slots[hash as usize & self.mask] = slot;
    }
}

impl Inspect {
    /// A client's datagram; `at` is its place in the batch.
    pub(super) fn datagram(
        &mut self,
        cx: &mut Cx<'_>,
        at: usize,
        packet: PacketRef<'_>,
    ) -> Passage {
        let meta = packet.meta;
        let known = meta.flow.is_some();
        if known && self.is_over(cx, meta) {
            return match cx.snapshot.rules.reads_hellos() {
                true => self.newcomer(cx, packet),
                false => Passage::On,
            };
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
            return Passage::On;
        };
        if known {
            cx.flows.get_mut(meta.flow).inspection = slot as u16;
        }
        if !self.slots[slot].told {
            return self.feed_datagram(cx, at, meta, slot, payload);
        }
        if !known && self.is_second(cx, meta, slot, payload) {
            return Passage::Refused(DropReason::HelloAwaited);
        }
        self.tell(cx, at, meta, slot);
        if known { self.newcomer(cx, packet) } else { Passage::On }
    }

    /// A server's datagram: where rules refuse by hellos, it may show that one was read which was
    /// not read here.
    pub(super) fn answer(&mut self, cx: &Cx<'_>, packet: PacketRef<'_>) -> Passage {
        let at = packet.meta.flow;
        if !at.is_some() || !cx.snapshot.rules.refuses_hellos() {
            return Passage::On;
        }
        let flow = cx.flows.get(at);
        if flow.inspection == DONE {
            return Passage::On;
        }
        // No packet of the client's may have come since the flow was entered.
        let client = || (flow.client_key(), flow.client_key().hash(cx.snapshot.seed));
        let slot = self.slot_of(flow).or_else(|| self.slot_of_key(client()));
        if let Some(slot) = slot.filter(|&slot| !self.slots[slot].newcomer) {
            let Inspect { inspectors, reassembler, pool, .. } = self;
            let said = payload_of(cx, &packet);
            inspectors[slot].datagram(pool, reassembler, SIDES * slot, Side::Server, said);
        }
        Passage::On
    }

    /// Whether nothing more is read of a flow but what begins another connection.
    fn is_over(&self, cx: &mut Cx<'_>, meta: &PacketMeta) -> bool {
        let flow = cx.flows.get(meta.flow);
        if flow.inspection == DONE {
            return true;
        }
        match self.slot_of_packet(cx.flows, meta) {
            Some(slot) => self.slots[slot].newcomer,
            // The balancer has read its hello, too.
            None if (flow.kind != FlowKind::Spliced || self.judged.knows(meta.hash))
                && is_bound_later(cx, meta) =>
            {
                cx.flows.get_mut(meta.flow).inspection = DONE;
                true
            }
            None => false,
        }
    }

    fn feed_datagram(
        &mut self,
        cx: &mut Cx<'_>,
        at: usize,
        meta: &PacketMeta,
        slot: usize,
        payload: &[u8],
    ) -> Passage {
        self.keep_part(cx, meta, slot, payload);
        let Inspect { inspectors, reassembler, pool, .. } = self;
        let inspector = &mut inspectors[slot];
        inspector.datagram(pool, reassembler, SIDES * slot, Side::Client, payload);
        let (done, went_on) = (inspector.is_done(), inspector.went_on());
        if !(done || went_on && self.is_guarded(cx, slot)) {
            self.slots[slot].progress_at = cx.now;
            return Passage::On;
        }
        let refused = self.is_guarded(cx, slot);
        if self.inspectors[slot].client_hello().is_some() && !refused {
            self.slots[slot].progress_at = cx.now;
            if let Some(cid) = self.inspectors[slot].attempt() {
                self.judged.note(meta.hash, cx.snapshot.seed, cid, self.slots[slot].parts);
            }
            self.tell(cx, at, meta, slot);
            return Passage::On;
        }
        if meta.flow.is_some() {
            self.end(cx, meta.flow, slot, Given::Done);
            return Passage::On;
        }
        // There is no flow yet that could be refused.
        self.give_up(cx, slot, Given::Done);
        if refused { Passage::Refused(DropReason::Unread) } else { Passage::On }
    }

    /// The hello was read: tells the flow, or the packet that the flow will be entered for.
    fn tell(&mut self, cx: &mut Cx<'_>, at: usize, meta: &PacketMeta, slot: usize) {
        let (inspector, key) = (&self.inspectors[slot], self.slots[slot].key);
        let known = meta.flow.is_some();
        facts_told(inspector, &key, meta.dscp_for_rules(), |facts| {
            if !known {
                let Facts { sni, alpn, ja4, .. } = *facts;
                return cx.names.sightings.report(at, sni, alpn.wire(), ja4);
            }
            count_name(facts.sni, cx.counters);
            count_app(inspector.app(), cx.counters);
            keep_hello(cx, meta.flow, facts, inspector);
            // Also where the packet was told before: the flow may have been entered for an earlier
            // one.
            Deciding::of(cx).decide(meta.flow, facts);
        });
        if known {
            self.slots[slot].counted = true;
            self.end(cx, meta.flow, slot, Given::Done);
        } else {
            self.slots[slot].told = true;
        }
    }

    /// The slot of a packet's flow, whether or not the flow is in the table.
    fn slot_of_packet(&self, flows: &FlowTable, meta: &PacketMeta) -> Option<usize> {
        if meta.flow.is_some()
            && let Some(slot) = self.slot_of(flows.get(meta.flow))
        {
            return Some(slot);
        }
        self.slot_of_key((meta.key, meta.hash))
    }

    fn slot_of_key(&self, (key, hash): (FlowKey, u64)) -> Option<usize> {
        let slot = self.places.at(hash);
        let taken = self.slots.get(usize::from(slot))?;
        (taken.taken && taken.key == key).then_some(usize::from(slot))
    }

    fn begin_datagrams(&mut self, cx: &mut Cx<'_>, meta: &PacketMeta) -> usize {
        let slot = self.take_slot(cx, (meta.key, meta.hash), meta.dscp_for_rules(), Some(0));
        self.places.set(meta.hash, slot as u16);
        slot
    }
}

/// What a hello that was read tells of its flow; `None` where none was.
pub(super) fn facts_told<R>(
    inspector: &Inspector,
    key: &FlowKey,
    dscp: u8,
    tell: impl FnOnce(&Facts<'_>) -> R,
) -> Option<R> {
    let hello = inspector.client_hello()?;
    let ja4 = inspector.ja4();
    let ja4 = ja4.as_ref().map(|ja4| ja4.as_str().as_bytes());
    let facts = Facts { sni: hello.sni(), alpn: hello.alpn(), ja4, ..Facts::of(key, dscp) };
    Some(tell(&facts))
}

// A flow without a slot is told from all slots.
const _: () = assert!(NO_SLOT == NOT_YET);
