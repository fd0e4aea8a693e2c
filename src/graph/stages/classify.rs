//! Gives each flow its class by the rules, and has what they say come true of its packets.

use super::admission::{self, Lacking};
use super::ending::end_connection;
use super::mirror::mirror;
use super::verdict::Deciding;
use crate::flow::Treatment;
use crate::graph::{Cx, Stage};
use crate::inspect::AlpnList;
use crate::packet::batch::BATCH_MAX;
use crate::packet::tcp::flag::{ACK, RST, SYN};
use crate::packet::{Batch, FlowRef, PacketMeta, PacketMut, Verdict, ip, tcp};
use crate::policy::Facts;
use crate::qos::limits::Event;

/// The classifier. A flow is decided about on its first packet, which of QUIC may hold the whole
/// ClientHello; the inspector decides again when it knows more, and in between a packet only takes
/// over what its flow has. Where a rule drops, that goes for all packets of the flow that follow,
/// of both directions.
///
/// The stage that enters a new flow into the table copies the class of its first packet into it, so
/// that replies have it too; what else was decided this stage adds, once the flow is there.
#[derive(Debug)]
pub struct Classify {
    /// The pipeline sends packets, so that connections can be reset.
    transmits: bool,
    /// Connections whose handshake packets of this batch complete, and whose token is taken.
    begun: Vec<FlowRef>,
}

impl Classify {
    /// A classifier of a pipeline that sends packets, or of one that only watches.
    pub fn new(transmits: bool) -> Classify {
        Classify { transmits, begun: Vec::with_capacity(BATCH_MAX) }
    }
}

impl Stage for Classify {
    fn process(&mut self, cx: &mut Cx<'_>, batch: &mut Batch) {
        Deciding::of(cx).complete();
        let limits = self.transmits && cx.snapshot.limits.has(Event::Connection);
        self.begun.clear();
        let (frames, metas) = batch.parts_mut();
        for (at, (frame, meta)) in frames.iter_mut().zip(metas).enumerate() {
            if meta.verdict != Verdict::Next {
                continue;
            }
            let treatment = match meta.flow {
                FlowRef::NONE => first(cx, at, meta, limits),
                flow => {
                    if limits
                        && admission::completes(cx.flows.get(flow), meta)
                        && !self.begin(cx, meta)
                    {
                        continue;
                    }
                    known(cx, meta)
                }
            };
            if meta.class.is_refused() {
                let mut packet = PacketMut { frame, meta };
                match packet.meta.class.is_reset() && self.transmits {
                    true => end_connection(cx, &mut packet),
                    false => packet.meta.drop_for(packet.meta.class.refusal()),
                }
            } else if treatment != Treatment::NONE && self.transmits {
                treat(cx, &mut PacketMut { frame, meta }, treatment);
            }
        }
    }
}

impl Classify {
    /// Has a connection begin, if its client has a token for it. `false`: its packet waits for
    /// one, or is lost and nobody is told; the connection may still begin with a later packet.
    #[cold]
    fn begin(&mut self, cx: &mut Cx<'_>, meta: &mut PacketMeta) -> bool {
        let flow = cx.flows.get(meta.flow);
        if flow.class.is_refused() || self.begun.contains(&meta.flow) {
            return true;
        }
        match admission::begin(cx, meta) {
            Ok(()) => self.begun.push(meta.flow),
            Err(Lacking::Refused(class)) if class.is_reset() => {
                admission::end(cx.flows, meta.flow, class);
            }
            Err(lacking) => {
                if let Err(reason) = lacking.apply(meta) {
                    meta.drop_for(reason);
                }
                return false;
            }
        }
        true
    }
}

/// Decides anew about a flow that is under way, where its ends, and the server name of its hello,
/// are all that the rules ask for. `true`: something else is done with it from now on, or once it
/// has more bytes. None is ended by that.
pub(in crate::graph) fn decide_anew(cx: &mut Cx<'_>, at: FlowRef) -> bool {
    let mut deciding = Deciding::of(cx);
    deciding.complete();
    let flow = deciding.flows.get(at);
    let (key, before) = (flow.client_key(), (flow.class, flow.treatment, flow.steps));
    let sni = deciding.names.get(deciding.flows.details(at).name);
    let facts = Facts { sni, ..Facts::of_ends(&key, flow.bytes().iter().sum()) };
    let rules = &deciding.snapshot.rules;
    let decision = rules.decide_by_known(&facts).filter(|decision| !decision.class.is_refused());
    let Some(decision) = decision.filter(|_| !flow.class.is_refused()) else { return false };
    let steps = rules.steps(&facts);
    deciding.enter(at, &decision, &steps);
    let flow = deciding.flows.get(at);
    (flow.class, flow.treatment, flow.steps) != before
}

/// Completes flows that a batch has entered, before its packets are queued: what comes of one flow
/// goes with the class that the last of them has told.
#[inline]
pub(in crate::graph) fn complete(cx: &mut Cx<'_>) {
    if !cx.names.fates.is_empty() {
        Deciding::of(cx).complete();
    }
}

/// Does with a packet what a rule says.
#[inline(never)]
pub(super) fn treat(cx: &mut Cx<'_>, packet: &mut PacketMut<'_>, treatment: Treatment) {
    if let Some(port) = treatment.mirror {
        mirror(cx, packet, port);
    }
    if let Some(dscp) = treatment.dscp {
        ip::mark(packet.frame.bytes_mut(cx.arena), packet.meta, dscp);
    }
}

/// Decides about a packet that belongs to no flow yet. Returns what is to be done with it.
fn first(cx: &mut Cx<'_>, at: usize, meta: &mut PacketMeta, limits: bool) -> Treatment {
    // Told by value: what is sighted lies beside what is decided.
    let sighting = cx.names.sightings.take(at);
    let mut facts = Facts::of(&meta.key, meta.dscp_for_rules());
    if let Some(sighting) = &sighting {
        facts.sni = sighting.sni();
        facts.alpn = AlpnList::from_wire(sighting.alpn_wire());
        facts.ja4 = sighting.ja4();
    }
    let decision = Deciding::of(cx).decide_first(meta, &facts);
    meta.class = decision.class;
    if limits
        && opens(meta)
        && !decision.class.is_refused()
        && let Err(class) = admission::may_try(cx, meta, decision.rule)
    {
        meta.class = class;
    }
    Treatment { dscp: decision.mark, mirror: decision.mirror }
}

fn opens(meta: &PacketMeta) -> bool {
    meta.key.proto == tcp::PROTOCOL && meta.tcp_flags & (SYN | ACK | RST) == SYN
}

/// Gives a packet its flow's class. Returns what is to be done with it.
#[inline]
fn known(cx: &mut Cx<'_>, meta: &mut PacketMeta) -> Treatment {
    let flow = cx.flows.get(meta.flow);
    if flow.steps != 0 {
        Deciding::of(cx).grow(meta.flow);
    }
    let flow = cx.flows.get(meta.flow);
    meta.class = flow.class;
    match flow.treatment {
        0 => Treatment::NONE,
        number => cx.flows.steps().treatments.get(number),
    }
}

#[cfg(test)]
mod tests;
