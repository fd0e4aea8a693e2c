//! Gives each flow its class by the rules.

use crate::flow::Sighting;
use crate::graph::{Cx, Stage};
use crate::inspect::AlpnList;
use crate::observe::Counters;
use crate::packet::{Batch, ClassId, Verdict};
use crate::policy::{Facts, Rules};

/// The classifier. A flow's class is decided on its first packet, which of QUIC may hold the whole
/// ClientHello, and again when that has been read; in between a packet only takes over what its
/// flow has.
///
/// The stage that enters a new flow into the table copies the class of its first packet into both
/// directions, so that replies have it too.
#[derive(Clone, Debug, Default)]
pub struct Classify;

impl Classify {
    pub fn new() -> Classify {
        Classify
    }
}

impl Stage for Classify {
    fn process(&mut self, cx: &mut Cx<'_>, batch: &mut Batch) {
        for sighting in cx.names.sightings.iter() {
            let flow = cx.flows.get_mut(sighting.flow);
            let facts = Facts {
                key: &flow.key[0],
                dscp: sighting.dscp,
                sni: sighting.sni(),
                alpn: AlpnList::from_wire(sighting.alpn_wire()),
            };
            flow.class = [class_by(&cx.snapshot.rules, &facts, cx.counters); 2];
        }
        for (at, meta) in batch.metas_mut().iter_mut().enumerate() {
            if meta.verdict != Verdict::Next {
                continue;
            }
            if meta.flow.is_some() {
                meta.class = cx.flows.get(meta.flow).class[meta.direction as usize];
                continue;
            }
            let sighting = cx.names.sightings.of_packet(at);
            let facts = Facts {
                key: &meta.key,
                dscp: meta.dscp(),
                sni: sighting.and_then(Sighting::sni),
                alpn: sighting.map_or(AlpnList::EMPTY, |s| AlpnList::from_wire(s.alpn_wire())),
            };
            meta.class = class_by(&cx.snapshot.rules, &facts, cx.counters);
        }
    }
}

fn class_by(rules: &Rules, facts: &Facts<'_>, counters: &mut Counters) -> ClassId {
    match rules.decide(facts) {
        Some(decision) => {
            counters.classifications += 1;
            decision.class
        }
        None => ClassId::UNSET,
    }
}
