//! Gives each flow its class by the rules, and has what they say come true of its packets.

use super::ending::end_connection;
use super::mirror::mirror;
use super::verdict::Deciding;
use crate::flow::Treatment;
use crate::graph::{Cx, Stage};
use crate::inspect::AlpnList;
use crate::packet::{Batch, ClassId, PacketMeta, PacketMut, Verdict, ip};
use crate::policy::Facts;

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
}

impl Classify {
    /// A classifier of a pipeline that sends packets, or of one that only watches.
    pub fn new(transmits: bool) -> Classify {
        Classify { transmits }
    }
}

impl Stage for Classify {
    fn process(&mut self, cx: &mut Cx<'_>, batch: &mut Batch) {
        Deciding::of(cx).complete();
        let (frames, metas) = batch.parts_mut();
        for (at, (frame, meta)) in frames.iter_mut().zip(metas).enumerate() {
            if meta.verdict != Verdict::Next {
                continue;
            }
            let treatment = if meta.flow.is_some() { known(cx, meta) } else { first(cx, at, meta) };
            if meta.class.is_refused() {
                let mut packet = PacketMut { frame, meta };
                match packet.meta.class != ClassId::REFUSED && self.transmits {
                    true => end_connection(cx, &mut packet),
                    false => packet.meta.drop_for(packet.meta.class.refusal()),
                }
            } else if treatment != Treatment::NONE && self.transmits {
                treat(cx, &mut PacketMut { frame, meta }, treatment);
            }
        }
    }
}

/// Does with a packet what a rule says.
#[inline(never)]
pub(super) fn treat(cx: &mut Cx<'_>, packet: &mut PacketMut<'_>, treatment: Treatment) {
    if let Some(port) = treatment.mirror {
        mirror(cx, packet, port);
    }
    if let Some(dscp) = treatment.dscp {
        ip::set_dscp(packet.frame.bytes_mut(cx.arena), packet.meta, dscp);
    }
}

/// Decides about a packet that belongs to no flow yet. Returns what is to be done with it.
fn first(cx: &mut Cx<'_>, at: usize, meta: &mut PacketMeta) -> Treatment {
    // Told by value: what is sighted lies beside what is decided.
    let sighting = cx.names.sightings.take(at);
    let mut facts = Facts::of(&meta.key, meta.dscp());
    if let Some(sighting) = &sighting {
        facts.sni = sighting.sni();
        facts.alpn = AlpnList::from_wire(sighting.alpn_wire());
        facts.ja4 = sighting.ja4();
    }
    let decision = Deciding::of(cx).decide_first(meta, &facts);
    meta.class = decision.class;
    Treatment { dscp: decision.mark, mirror: decision.mirror }
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
