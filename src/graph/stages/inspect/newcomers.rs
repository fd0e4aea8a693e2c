//! QUIC: another connection on addresses and ports on which a hello was read already. A client may
//! have several on one socket, and a NAT before it gives ports to others.
//!
//! The flow's class follows the new hello. Where rules refuse by hellos, or the flow was bound by
//! its first one, nothing that begins a connection passes before the whole hello was read: its
//! server has none of it then, and nothing must be remembered for that to hold. Parts wait for the
//! others for a moment, then they are dropped, to be sent again. What is refused are these
//! datagrams, not the flow: anybody can send them in a client's name.

use super::datagrams::facts_told;
use super::streams::{Passage, keep_hello};
use super::{DONE, Inspect, SIDES, Slot, count_name, is_bound_later, payload_of};
use crate::base::Seed;
use crate::base::hash::hash_bytes;
use crate::flow::{Flow, FlowKind};
use crate::forward::spec::PoolId;
use crate::graph::Cx;
use crate::graph::stages::admission;
use crate::graph::stages::verdict::Deciding;
use crate::inspect::inspector::{Said, Side};
use crate::inspect::quic::Attempt;
use crate::packet::{Batch, DropReason, FlowRef, PacketFlags, PacketMeta, PacketRef};
use crate::policy::{Decision, Facts};

/// Flows whose connections are remembered, for each that may be under inspection.
const FLOWS_PER_FLOW: usize = 4;
const FLOWS_MIN: usize = 4_096;
/// Connections that are remembered of each.
const CONNECTIONS: usize = 2;
/// Datagrams of a hello that are known again when they are sent again.
const PARTS: usize = 4;
/// A connection that says nothing for so long is over: the usual idle timeout (RFC 9000, section
/// 10.1, leaves it to both ends).
const SILENCE_NS_MAX: u64 = 30_000_000_000;
/// How long a part of a hello waits for the others, which are sent at once.
const AWAITED_NS: u64 = 5_000_000;

/// The connections whose hellos were read last, by their flows: what is sent again of them is none
/// of another. That is known by what it says, not by its connection id alone: under the id of one
/// that was read a server may get another, when it has forgotten that or never had it. A later
/// flow of the same place takes it over; then a part of a hello that is sent again waits for the
/// other parts to be.
pub(super) struct Judged {
    places: Box<[Place]>,
    mask: usize,
}

#[derive(Clone, Copy, Default)]
struct Place {
    /// The half of the flow's hash that does not choose the place.
    tag: u32,
    ids: [u32; CONNECTIONS],
    parts: [Parts; CONNECTIONS],
}

/// Digests of a hello's datagrams ([`Attempt::By`]); 0 is none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Parts([u32; PARTS]);

impl Parts {
    /// Of more than there is room for, the rest is not known again.
    pub(super) fn add(&mut self, said: u32) {
        if said != 0
            && !self.0.contains(&said)
            && let Some(free) = self.0.iter_mut().find(|part| **part == 0)
        {
            *free = said;
        }
    }
}

impl Judged {
    pub(super) fn new(flows: usize) -> Judged {
        let places = (flows * FLOWS_PER_FLOW).max(FLOWS_MIN).next_power_of_two();
        Judged { mask: places - 1, places: vec![Place::default(); places].into_boxed_slice() }
    }

    /// The hello that came under this connection id was read, in these parts. `hash` is that of the
    /// client's key.
    pub(super) fn note(&mut self, hash: u64, seed: Seed, cid: &[u8], parts: Parts) {
        let (id, tag) = (id_of(seed, cid), (hash >> 32) as u32);
        let place = &mut self.places[hash as usize & self.mask];
        if place.tag != tag {
            *place = Place { tag, ..Place::default() };
        }
        let known = place.ids.iter().position(|&known| known == id);
        let at = known.unwrap_or(CONNECTIONS - 1);
        place.ids[..=at].rotate_right(1);
        place.parts[..=at].rotate_right(1);
        place.ids[0] = id;
        if known.is_none() {
            place.parts[0] = parts;
        } else {
            parts.0.iter().for_each(|&said| place.parts[0].add(said));
        }
    }

    fn has(&self, hash: u64, seed: Seed, cid: &[u8]) -> bool {
        self.ids(hash).contains(&id_of(seed, cid))
    }

    /// Whether a datagram under this connection id says nothing but what was read.
    fn has_read(&self, hash: u64, seed: Seed, cid: &[u8], said: u32) -> bool {
        let id = id_of(seed, cid);
        let at = self.ids(hash).iter().position(|&known| known == id);
        at.is_some_and(|at| {
            let parts = self.places[hash as usize & self.mask].parts[at];
            said == 0 || parts.0.contains(&said)
        })
    }

    /// Whether some hello of the flow's was read.
    pub(super) fn knows(&self, hash: u64) -> bool {
        self.ids(hash) != [0; CONNECTIONS]
    }

    fn ids(&self, hash: u64) -> [u32; CONNECTIONS] {
        let place = self.places[hash as usize & self.mask];
        if u64::from(place.tag) == hash >> 32 { place.ids } else { Default::default() }
    }
}

/// By a secret, so that nobody can make up two ids that are taken for one. 0 is none.
fn id_of(seed: Seed, cid: &[u8]) -> u32 {
    (hash_bytes(seed, cid) as u32).max(1)
}

impl Inspect {
    /// A client's datagram on a flow that nothing more is read of, or only another connection.
    pub(super) fn newcomer(&mut self, cx: &mut Cx<'_>, packet: PacketRef<'_>) -> Passage {
        let meta = packet.meta;
        let payload = payload_of(cx, &packet);
        // What has no long header begins nothing.
        if payload.first().is_none_or(|first| first & 0x80 == 0) {
            return Passage::On;
        }
        let seed = cx.snapshot.seed;
        let Some(attempt) = Attempt::of(payload, seed, self.pool.scratch()) else {
            return Passage::On;
        };
        let flow = cx.flows.get(meta.flow);
        let (is_refused, kind) = (flow.class.is_refused(), flow.kind);
        let silent = cx.now.since(flow.last_seen()) > SILENCE_NS_MAX;
        let is_bound = is_bound_later(cx, meta);
        // The balancer binds it anew: nobody could read what it began with.
        let unbound = is_bound && kind == FlowKind::Spliced && !self.judged.knows(meta.hash);
        if is_refused || unbound {
            return Passage::On;
        }
        let is_guarded = admission::must_read(
            cx.snapshot,
            &Facts::of(&meta.key, meta.dscp_for_rules()),
            Said::Hello,
        );
        match attempt {
            Attempt::Unreadable if is_guarded => Passage::Refused(DropReason::Unread),
            Attempt::Unreadable => Passage::On,
            Attempt::By { id, said } if self.judged.has_read(meta.hash, seed, id, said) => {
                Passage::On
            }
            Attempt::By { id, .. }
                if !is_guarded && !is_bound && self.judged.has(meta.hash, seed, id) =>
            {
                Passage::On
            }
            Attempt::By { .. } if is_bound && silent => Passage::Anew,
            Attempt::By { said, .. } => {
                self.hear_newcomer(cx, meta, (payload, said), (is_guarded, is_bound))
            }
        }
    }

    /// A datagram that is of none of the connections whose hellos were read, before its flow is in
    /// the table: the earlier one must be entered first.
    pub(super) fn is_second(
        &mut self,
        cx: &Cx<'_>,
        meta: &PacketMeta,
        slot: usize,
        payload: &[u8],
    ) -> bool {
        let other = match Attempt::of(payload, cx.snapshot.seed, self.pool.scratch()) {
            Some(Attempt::By { id, said }) => {
                self.inspectors[slot].attempt() != Some(id)
                    || said != 0 && !self.slots[slot].parts.0.contains(&said)
            }
            Some(Attempt::Unreadable) => true,
            None => false,
        };
        let facts = Facts::of(&meta.key, meta.dscp_for_rules());
        other
            && (admission::must_read(cx.snapshot, &facts, Said::Hello) || is_bound_later(cx, meta))
    }

    /// Keeps what a datagram says of a hello, where that may have to be known again.
    pub(super) fn keep_part(&mut self, cx: &Cx<'_>, meta: &PacketMeta, slot: usize, said: &[u8]) {
        let facts = Facts::of(&meta.key, meta.dscp_for_rules());
        if (admission::must_read(cx.snapshot, &facts, Said::Hello) || is_bound_later(cx, meta))
            && let Some(Attempt::By { said, .. }) =
                Attempt::of(said, cx.snapshot.seed, self.pool.scratch())
        {
            self.slots[slot].parts.add(said);
        }
    }

    fn hear_newcomer(
        &mut self,
        cx: &mut Cx<'_>,
        meta: &PacketMeta,
        (payload, said): (&[u8], u32),
        (is_guarded, is_bound): (bool, bool),
    ) -> Passage {
        let slot = match self.slot_of(cx.flows.get(meta.flow)) {
            Some(slot) => slot,
            None => {
                let slot =
                    self.take_slot(cx, (meta.key, meta.hash), meta.dscp_for_rules(), Some(0));
                self.slots[slot].newcomer = true;
                cx.flows.get_mut(meta.flow).inspection = slot as u16;
                slot
            }
        };
        self.slots[slot].parts.add(said);
        let Inspect { inspectors, reassembler, pool, .. } = self;
        let inspector = &mut inspectors[slot];
        inspector.datagram(pool, reassembler, SIDES * slot, Side::Client, payload);
        if !(inspector.is_done() || inspector.went_on() && is_guarded) {
            self.slots[slot].progress_at = cx.now;
            return match is_guarded || is_bound {
                true => await_rest(cx, meta),
                false => Passage::On,
            };
        }
        let is_read = inspector.client_hello().is_some() && inspector.unread().is_none();
        let passage = match is_read || !is_guarded {
            true => self.judge(cx, meta, slot, is_bound),
            false => Passage::Refused(DropReason::Unread),
        };
        self.leave(cx, meta.flow, slot);
        passage
    }

    /// The newcomer's hello was read: the flow goes on as the rules say of it, if it may be here.
    fn judge(
        &mut self,
        cx: &mut Cx<'_>,
        meta: &PacketMeta,
        slot: usize,
        is_bound: bool,
    ) -> Passage {
        let inspector = &self.inspectors[slot];
        let Slot { key, parts, .. } = self.slots[slot];
        let judged = &mut self.judged;
        let passage = facts_told(inspector, &key, meta.dscp_for_rules(), |facts| {
            let flow = cx.flows.get(meta.flow);
            let bytes = flow.bytes().iter().sum();
            let decision = cx.snapshot.rules.decide(&Facts { bytes, ..*facts });
            if decision.class.is_refused() {
                return Passage::Refused(decision.class.refusal());
            }
            if is_bound && !leads_to(cx, &decision, flow) {
                return Passage::Refused(DropReason::BoundElsewhere);
            }
            count_name(facts.sni, cx.counters);
            keep_hello(cx, meta.flow, facts, inspector);
            Deciding::of(cx).decide(meta.flow, facts);
            if let Some(cid) = inspector.attempt() {
                judged.note(meta.hash, cx.snapshot.seed, cid, parts);
            }
            Passage::On
        });
        passage.unwrap_or(Passage::On)
    }

    /// Reads no further of a newcomer. Its flow stays as it is.
    pub(super) fn leave(&mut self, cx: &mut Cx<'_>, at: FlowRef, slot: usize) {
        cx.flows.get_mut(at).inspection = DONE;
        self.release(slot);
    }

    /// Forgets the flows of these packets, whose connections are over: others begin with them.
    #[cold]
    pub(super) fn renew(&mut self, cx: &mut Cx<'_>, batch: &mut Batch, mut packets: u64) {
        while packets != 0 {
            let at = packets.trailing_zeros() as usize;
            packets &= packets - 1;
            let flow = batch.metas_mut()[at].flow;
            if !flow.is_some() {
                continue;
            }
            self.forget(cx.flows.get(flow));
            cx.flows.remove(flow);
            batch.forget(flow);
        }
    }
}

/// A part of a hello waits for the others, for a moment; then it must be sent again.
fn await_rest(cx: &mut Cx<'_>, meta: &PacketMeta) -> Passage {
    if meta.flags.has(PacketFlags::DELAYED) || !cx.may_delay() {
        return Passage::Refused(DropReason::HelloAwaited);
    }
    cx.delays.begin(meta.hash, cx.now.saturating_add(AWAITED_NS), false);
    Passage::Waits
}

/// Whether the flow's backend is of the pool that is decided on.
fn leads_to(cx: &Cx<'_>, decision: &Decision, flow: &Flow) -> bool {
    let (key, server) = (flow.client_key(), flow.server_key());
    let service = cx.snapshot.forward.service(key.dst, key.dport, key.proto);
    let pool = decision.pool.map(PoolId).or(service.map(|service| service.pool));
    pool.is_none_or(|pool| cx.snapshot.forward.is_among(pool, server.src, server.sport))
}
