//! What the rules say of a flow, and how it comes true.

use crate::flow::entry::NONE_U16;
use crate::flow::{Fate, FlowTable, Names, Reclassed, Step, TooMany, Treatment};
use crate::graph::{Cx, Snapshot};
use crate::observe::Counters;
use crate::packet::{ClassId, FlowRef, PacketMeta};
use crate::policy::{Decision, Facts, Steps};

// Each result of a rule by size takes a step at least.
const _: () = assert!(crate::policy::spec::OUTCOMES_MAX <= crate::flow::steps::STEPS_MAX);

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
        let facts = Facts { bytes: known.bytes().iter().sum(), ..*facts };
        let rules = &self.snapshot.rules;
        let decision = rules.decide(&facts);
        self.counters.classifications += u64::from(decision.rule.is_some());
        self.counters.flows_unread += u64::from(decision.class == ClassId::UNREAD);
        self.counters.requests_too_long += u64::from(decision.class == ClassId::TOO_LONG);
        self.enter(at, &decision, &rules.steps(&facts));
        decision
    }

    /// Has a flow go on as was decided.
    pub fn enter(&mut self, at: FlowRef, decision: &Decision, steps: &Steps) {
        let (steps, treatment) = (self.chain(steps), self.treatment(decision));
        self.flows.set_steps(at, steps);
        self.set(at, decision.class, treatment);
        self.belongs_to(at, decision.tenant.unwrap_or(NONE_U16));
    }

    /// Takes the steps that a flow's bytes lead to.
    pub fn grow(&mut self, at: FlowRef) {
        let flow = self.flows.get(at);
        let (bytes, mut next) = (flow.bytes().iter().sum::<u64>(), flow.steps);
        let mut taken = None;
        while let Some(step) = self.flows.steps().get(next).filter(|step| bytes > step.bytes) {
            (taken, next) = (Some(*step), step.next);
        }
        if let Some(step) = taken {
            self.flows.steps_mut().hold(next);
            self.flows.set_steps(at, next);
            self.set(at, step.class, step.treatment);
            self.belongs_to(at, step.tenant);
        }
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
        // The class comes to the flow with the packet that it is entered for, which may be one
        // before that of a hello.
        let told = facts.sni.is_some() || facts.ja4.is_some() || facts.alpn.iter().next().is_some();
        let more = treatment != 0 || steps != 0 || tenant != NONE_U16 || told;
        if more && fates.len() < fates.capacity() {
            let (key, hash, class) = (meta.key, meta.hash, decision.class);
            fates.push(Fate { key, hash, class, treatment, steps, tenant, dscp: facts.dscp });
        } else {
            self.flows.steps_mut().release(steps);
        }
        decision
    }

    /// Completes flows that were entered with this batch, or the last: before anything else is
    /// decided about them. Where packets of one flow came together the last one knew most.
    pub fn complete(&mut self) {
        for i in 0..self.names.fates.len() {
            let Fate { key, hash, class, treatment, steps, tenant, .. } = self.names.fates[i];
            if let Some((at, _)) = self.flows.lookup(&key, hash) {
                self.flows.set_steps(at, steps);
                // It has the class of the packet that it was entered for, and that waits in it.
                self.set(at, class, treatment);
                self.belongs_to(at, tenant);
            } else {
                self.flows.steps_mut().release(steps);
            }
        }
        self.names.fates.clear();
    }

    fn set(&mut self, at: FlowRef, class: ClassId, treatment: u8) {
        let flow = self.flows.get_mut(at);
        let before = std::mem::replace(&mut flow.class, class);
        flow.treatment = treatment;
        if before != class {
            self.take_along(at, before);
        }
    }

    /// What waits of a flow goes with it to its new class.
    #[cold]
    fn take_along(&mut self, at: FlowRef, from: ClassId) {
        let flow = self.flows.get(at);
        let (to, list) = (flow.class, &mut self.names.reclassed);
        let is_under_way = flow.bytes() != [0; 2] && !from.is_refused() && !to.is_refused();
        if !is_under_way {
            return;
        }
        let keys = [flow.client_key(), flow.server_key()];
        let hashes = keys.map(|key| key.hash(self.snapshot.seed));
        // One move a flow, however many of its requests come at once.
        if let Some(known) = list.iter_mut().find(|known| known.hashes == hashes) {
            known.to = to;
        } else if list.len() < list.capacity() {
            list.push(Reclassed { hashes, from, to });
        }
    }

    fn belongs_to(&mut self, at: FlowRef, tenant: u16) {
        let (details, notes) = (self.flows.details_mut(at), &mut self.names.notes);
        if (tenant != NONE_U16 || notes.get(at, details).is_some())
            && let Some(note) = notes.of(at, details)
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

    /// The number of the first step, held.
    fn chain(&mut self, steps: &Steps) -> u8 {
        let mut next = 0;
        for (bytes, decision) in steps.iter().rev() {
            let (class, treatment) = (decision.class, self.treatment(&decision));
            let tenant = decision.tenant.unwrap_or(NONE_U16);
            match self.flows.steps_mut().intern(Step { bytes, class, treatment, tenant, next }) {
                Ok(number) => next = number,
                Err(TooMany) => self.counters.steps_refused += 1,
            }
        }
        next
    }
}
