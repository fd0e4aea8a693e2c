//! Which backend: by the rules that know what the client said, and the next one where one is
//! unwilling.

use super::datagrams::forget_fates;
use super::{Link, LinkState, Splice};
use crate::base::Addr;
use crate::flow::FlowKind;
use crate::forward::spec::PoolId;
use crate::forward::splice::Out;
use crate::forward::{Backend, Choosing};
use crate::graph::Cx;
use crate::graph::stages::balance::open;
use crate::graph::stages::inspect::{DONE, intern};
use crate::graph::stages::verdict::Deciding;
use crate::packet::{ClassId, Direction, FlowRef, PacketMeta, tcp};
use crate::policy::{Decision, Facts, Steps};

/// Times that a connection is offered to a backend.
const BACKENDS_TRIED_MAX: usize = 3;

/// The backends that a connection was offered to.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Tried {
    ends: [(Addr, u16); BACKENDS_TRIED_MAX],
    count: usize,
}

impl Tried {
    fn has(&self, backend: &Backend) -> bool {
        self.ends[..self.count].contains(&(backend.addr, backend.port))
    }

    fn add(&mut self, backend: &Backend) {
        if let Some(end) = self.ends.get_mut(self.count) {
            *end = (backend.addr, backend.port);
            self.count += 1;
        }
    }
}

impl Splice {
    /// The client has said enough, or something that is not understood: the first backend. `false`
    /// where there is none.
    pub(super) fn decide(&mut self, cx: &mut Cx<'_>, slot: usize, out: &mut Out) -> bool {
        self.speech.count(slot, cx.counters);
        self.slots.keep(slot);
        self.open_next(cx, slot, out).is_some()
    }

    /// Enters the flow toward a backend that was not tried yet, and sends it a SYN.
    pub(super) fn open_next(&mut self, cx: &mut Cx<'_>, slot: usize, out: &mut Out) -> Option<()> {
        let (&key, hash) = self.slots.key(slot);
        let service = *cx.snapshot.forward.service(key.dst, key.dport, key.proto)?;
        let (decision, steps) = self.choice(cx, slot);
        if decision.class.is_refused() {
            return None;
        }
        let (class, pool) = (decision.class, decision.pool.map_or(service.pool, PoolId));
        let tried = self.bound[slot].tried;
        if tried.count >= BACKENDS_TRIED_MAX {
            return None;
        }
        let tables = &cx.snapshot.forward;
        let (now, serving) = (cx.now, cx.flows.serving());
        let unfit = |b: &Backend| b.addr.is_v4() != key.dst.is_v4();
        let used = |b: &Backend| unfit(b) || tried.has(b);
        // Where all were tried, one of them again: its answers may have been lost.
        let by = Choosing { now, turns: cx.turns, serving };
        let fresh = tables.choose_other(pool, &key, by, used);
        let by = Choosing { now, turns: cx.turns, serving };
        let chosen = fresh.or_else(|_| tables.choose_other(pool, &key, by, unfit));
        let backend = *chosen.ok()?;
        // As the packet that shows the client to be real.
        let tcp_flags = tcp::flag::ACK;
        let meta = PacketMeta { key, hash, class, tcp_flags, ..PacketMeta::default() };
        let bound = &mut self.bound[slot];
        bound.tried.add(&backend);
        let flow = open(cx, &meta, &service, &backend).ok()?;
        (bound.class, bound.flow) = (class, Some(flow));
        let our_isn = bound.binding.our_isn();
        let state = LinkState::Binding(slot as u16);
        self.links[flow.0 as usize] = Link { state, our_isn, ..Link::default() };
        self.enter(cx, slot, flow);
        self.have_followed(slot);
        Deciding::of(cx).enter(flow, &decision, &steps);
        forget_fates(cx, &key);
        let bound = &mut self.bound[slot];
        bound.binding.open(cx.now, out);
        Some(())
    }

    /// What else the flow is known by.
    fn enter(&mut self, cx: &mut Cx<'_>, slot: usize, flow: FlowRef) {
        let name = self.speech.name(slot).map(|sni| intern(cx.names, sni));
        let known = cx.flows.get_mut(flow);
        known.kind = FlowKind::Spliced;
        known.inspection = DONE;
        let details = cx.flows.details_mut(flow);
        if let Some(name) = name {
            details.name = name;
        }
        // What is followed is noted as it is read.
        if !self.speech.may_ask(slot)
            && let Some(note) = cx.names.notes.of(flow, details)
        {
            self.speech.note(slot, note);
        }
        if self.bound[slot].binding.is_finished() {
            let direction = Direction::Forward;
            let flags = tcp::flag::FIN | tcp::flag::ACK;
            let mut fin = PacketMeta { tcp_flags: flags, direction, ..PacketMeta::default() };
            cx.flows.touch(cx.now, flow, &mut fin, 0);
        }
    }

    /// What the rules say, now that the client has spoken. Whom they refuse gets no backend.
    fn choice(&mut self, cx: &mut Cx<'_>, slot: usize) -> (Decision, Steps) {
        let from = self.bound[slot].binding.beginning();
        let said = self.held.pieces(slot, from, self.held.len(slot));
        let begun = Facts::of(self.slots.key(slot).0, self.bound[slot].dscp);
        let decided = self.speech.decide(slot, said, &begun, cx.snapshot);
        cx.counters.classifications += u64::from(decided.0.rule.is_some());
        cx.counters.flows_unread += u64::from(decided.0.class == ClassId::UNREAD);
        cx.counters.requests_too_long += u64::from(decided.0.class == ClassId::TOO_LONG);
        decided
    }
}
