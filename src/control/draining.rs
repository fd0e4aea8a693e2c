//! `drain` and `undrain`: done at once, answered with the flows that are left.

use std::collections::{BTreeSet, VecDeque};
use std::time::Duration;

use tokio::sync::oneshot;

use super::ask::Refusal;
use super::pools::{DrainTarget, flows_of};
use super::run::Control;
use super::view::DrainView;
use crate::base::Nanos;
use crate::worker::{FlowCount, FlowsOf, WorkerCommand};

/// Workers that have not counted by then hang: the answer is an error.
const COUNTED_WITHIN: Duration = Duration::from_secs(5);
/// Counts that wait for the one under way.
const WAITING_MAX: usize = 16;

type DrainReply = oneshot::Sender<Result<DrainView, Refusal>>;

/// A count of what is left under way, and those that wait for it.
#[derive(Default)]
pub(super) struct Draining {
    now: Option<UnderWay>,
    waiting: VecDeque<(FlowsOf, DrainView, DrainReply)>,
}

struct UnderWay {
    of: FlowsOf,
    awaited: BTreeSet<u16>,
    deadline: Nanos,
    view: DrainView,
    reply: DrainReply,
}

impl Control {
    pub(super) fn drain(
        &mut self,
        target: &DrainTarget,
        (drained, flush): (bool, bool),
        reply: DrainReply,
    ) {
        let a = &mut self.appliance;
        if flows_of(&a.config, target).is_ok() && a.pools.drained.set(target, drained) {
            tracing::info!(drained, "{target}");
            if !drained {
                a.pools.ease_in(a.clock.now(), &a.config, target);
            }
            a.reweigh();
        }
        self.count_left(target, flush.then_some(0), reply);
    }

    /// Has the flows counted that are left; before that they are cut, where `cut` is to be told.
    pub(super) fn count_left(&mut self, target: &DrainTarget, cut: Option<u64>, reply: DrainReply) {
        let a = &mut self.appliance;
        let of = match flows_of(&a.config, target) {
            Ok(of) => of,
            Err(words) => {
                let _ = reply.send(Err(Refusal { words, bad_config: false }));
                return;
            }
        };
        let drained = a.pools.drained.has(target);
        let still_drained = a.pools.drained.beside(&a.config, target);
        let target = target.to_string();
        let view = DrainView { target, drained, flows: 0, cut, still_drained };
        match self.draining.now {
            None => self.count(of, view, reply),
            Some(_) if self.draining.waiting.len() < WAITING_MAX => {
                self.draining.waiting.push_back((of, view, reply));
            }
            Some(_) => {
                let words = "too many ask at once for the flows that are left".to_string();
                let _ = reply.send(Err(Refusal { words, bad_config: false }));
            }
        }
    }

    fn count(&mut self, of: FlowsOf, view: DrainView, reply: DrainReply) {
        let a = &mut self.appliance;
        if view.cut.is_some() {
            a.crew.cut(&of);
        }
        // Each worker counts when it has cut.
        for seat in &mut a.crew.seats {
            seat.send(WorkerCommand::CountFlows(Box::new(FlowCount::new(of.clone()))));
        }
        let awaited = a.crew.seats.iter().map(|s| s.id).collect();
        let deadline = a.clock.now() + COUNTED_WITHIN;
        self.draining.now = Some(UnderWay { of, awaited, deadline, view, reply });
    }

    /// A worker has counted.
    pub(super) fn flows_counted(&mut self, worker: u16, count: &FlowCount) {
        // A worker that hung tells of a count that nobody awaits any more.
        if let Some(now) = self.draining.now.as_mut().filter(|now| now.of == count.of)
            && now.awaited.remove(&worker)
        {
            now.view.flows += count.flows;
        }
    }

    /// A worker has cut flows: some that were flushed, or those of a backend that is down.
    pub(super) fn flows_cut(&mut self, worker: u16, cut: &FlowCount) {
        if let Some(now) = self.draining.now.as_mut().filter(|now| now.of == cut.of)
            && now.awaited.contains(&worker)
            && let Some(sum) = &mut now.view.cut
        {
            *sum += cut.flows;
        }
        if cut.flows > 0 {
            tracing::info!(worker, flows = cut.flows, "flows cut");
        }
    }

    /// Answers when all workers have counted, or one hangs; then the next may ask.
    pub(super) fn check_draining(&mut self) {
        let time = self.appliance.clock.now();
        let over = |u: &mut UnderWay| u.awaited.is_empty() || time >= u.deadline;
        let Some(done) = self.draining.now.take_if(over) else { return };
        let answer = match done.awaited.is_empty() {
            true => Ok(done.view),
            false => {
                let words = format!("workers {:?} hang: they don't count", done.awaited);
                Err(Refusal { words, bad_config: false })
            }
        };
        let _ = done.reply.send(answer);
        if let Some((of, view, reply)) = self.draining.waiting.pop_front() {
            self.count(of, view, reply);
        }
    }
}
