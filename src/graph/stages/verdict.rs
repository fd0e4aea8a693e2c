//! What the rules say of a flow, and how it comes true.

use crate::flow::entry::NONE_U16;
use crate::flow::{Fate, FlowTable, Names, Step, Treatment};
use crate::graph::{Cx, Snapshot};
use crate::observe::Counters;
use crate::packet::{FlowRef, PacketMeta};
use crate::policy::{Decision, Facts, Steps};

/// The worker's state that a decision changes.
pub(super) struct Deciding<'a> {
    pub snapshot: &'a Snapshot,
    pub flows: &'a mut FlowTable,
    pub names: &'a mut Names,
    pub counters: &'a mut Counters,
}

impl<'a> Deciding<'a> {
    pub fn of(cx: &'a mut Cx<'_>) -> Deciding<'a> {
        let Cx { snapshot, flows, names, counters, .. } = cx;
        Deciding { snapshot, flows, names, counters }
    }

    /// Decides about a flow by what is known of it, besides how much it has carried.
    pub fn decide(&mut self, at: FlowRef, facts: &Facts<'_>) -> Decision {
        let known = self.flows.get(at);
        let facts = Facts { bytes: known.bytes.iter().sum(), ..*facts };
        let rules = &self.snapshot.rules;
        let decision = rules.decide(&facts);
        self.counters.classifications += u64::from(decision.rule.is_some());
        self.enter(at, &decision, &rules.steps(&facts));
        decision
    }

    /// Has a flow go on as was decided.
    pub fn enter(&mut self, at: FlowRef, decision: &Decision, steps: &Steps) {
        let (steps, treatment) = (self.chain(steps), self.treatment(decision));
        let flow = self.flows.get_mut(at);
        (flow.class, flow.treatment, flow.steps) = (decision.class, treatment, steps);
        self.belongs_to(at, decision.tenant.unwrap_or(NONE_U16));
    }

    /// Decides about a packet that belongs to no flow yet, but may get one.
    pub fn decide_first(&mut self, meta: &PacketMeta, facts: &Facts<'_>) -> Decision {
        let rules = &self.snapshot.rules;
        let decision = rules.decide(facts);
        let steps = self.chain(&rules.steps(facts));
        self.counters.classifications += u64::from(decision.rule.is_some());
        let tenant = decision.tenant.unwrap_or(NONE_U16);
        let treatment = self.treatment(&decision);
        let fates = &mut self.names.fates;
        // The class comes to the flow with the packet.
        let more = treatment != 0 || steps != 0 || tenant != NONE_U16;
        if more && fates.len() < fates.capacity() {
            fates.push(Fate { key: meta.key, hash: meta.hash, treatment, steps, tenant });
        }
        decision
    }

    /// Completes flows that were entered with the last batch: before anything else is decided about
    /// them.
    pub fn complete(&mut self) {
        while let Some(Fate { key, hash, treatment, steps, tenant }) = self.names.fates.pop() {
            if let Some((at, _)) = self.flows.lookup(&key, hash) {
                let flow = self.flows.get_mut(at);
                (flow.treatment, flow.steps) = (treatment, steps);
                self.belongs_to(at, tenant);
            }
        }
    }

    fn belongs_to(&mut self, at: FlowRef, tenant: u16) {
        let (flow, notes) = (self.flows.get_mut(at), &mut self.names.notes);
        if (tenant != NONE_U16 || notes.get(at, flow).is_some())
            && let Some(note) = notes.of(at, flow)
        {
            note.tenant = tenant;
        }
    }

    /// The number of what is to be done with packets.
    fn treatment(&mut self, decision: &Decision) -> u8 {
        let treatment = Treatment { dscp: decision.mark, mirror: decision.mirror };
        let number = self.flows.steps_mut().treatments.intern(treatment);
        self.counters.treatments_refused += u64::from(number.is_none());
        number.unwrap_or(0)
    }

    /// The number of the first step.
    fn chain(&mut self, steps: &Steps) -> u8 {
        let mut list = [Step::NONE; crate::policy::spec::SIZES_MAX];
        let mut count = 0;
        for (place, (bytes, decision)) in list.iter_mut().zip(steps.iter()) {
            let treatment = self.treatment(&decision);
            *place = Step { bytes, class: decision.class, treatment, next: 0 };
            count += 1;
        }
        let mut next = 0;
        for step in list[..count].iter().rev() {
            match self.flows.steps_mut().intern(Step { next, ..*step }) {
                Some(number) => next = number,
                None => self.counters.steps_refused += 1,
            }
        }
        next
    }
}
