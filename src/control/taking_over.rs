//! A reload from the file to the last worker.
//!
//! 1. Load, validate, compare: a refusal changes nothing.
//! 2. Steer what either configuration needs.
//! 3. Give each worker a whole new snapshot; each swaps it between two polls and sends the old one
//!    back.
//! 4. When all have, steer only what the new one needs.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::oneshot;

use super::appliance::{blueprint, rules_of};
use super::ask::Refusal;
use super::reload::{
    ReloadError, fixed_differences, keep_class_ids, keep_tenant_numbers, warnings,
};
use super::run::Control;
use super::steering::SteerTables;
use super::view::ReloadView;
use crate::base::Nanos;
use crate::config::{self, Config};
use crate::graph::Snapshot;
use crate::qos::limits::Limits;
use crate::qos::meters::Meters;
use crate::worker::{Blocked, WorkerCommand};

/// A worker takes a new configuration within a few polls, unless it hangs.
const TAKE_OVER_WITHIN: Duration = Duration::from_secs(2);

/// Who wants to know how a reload went; nobody, where a signal asked for it.
pub(super) type ReloadReply = Option<oneshot::Sender<Result<ReloadView, Refusal>>>;

/// Workers are taking a new configuration over.
pub(super) struct TakeOver {
    awaited: BTreeSet<u16>,
    deadline: Nanos,
    steer: SteerTables,
    done: ReloadView,
    blocked: Blocked,
    reply: ReloadReply,
}

impl Control {
    /// Loads the configuration anew and has the workers take it over; for so long at first, where
    /// it is to be confirmed.
    pub(super) fn reload(&mut self, confirm: Option<Duration>, reply: ReloadReply) {
        let before = confirm.map(|within| (within, self.appliance.config.clone()));
        match self.begin_reload() {
            Ok(None) => {
                let mut done = view(&self.appliance.config, Vec::new());
                done.unchanged = true;
                tracing::info!("configuration unchanged");
                answer(reply, Ok(done));
            }
            Ok(Some(mut take_over)) => {
                take_over.reply = reply;
                take_over.done.confirm_within_secs = confirm.map(|within| within.as_secs());
                self.take_over = Some(take_over);
                self.begin_trial(before);
            }
            Err(error) => {
                self.appliance.reloads_refused += 1;
                tracing::error!("configuration refused, nothing has changed: {error}");
                let bad_config =
                    matches!(error, ReloadError::Faults(_) | ReloadError::Fixed { .. });
                answer(reply, Err(Refusal { words: error.to_string(), bad_config }));
            }
        }
    }

    fn begin_reload(&mut self) -> Result<Option<TakeOver>, ReloadError> {
        if self.take_over.is_some() {
            return Err(ReloadError::Busy);
        }
        if let Some(trial) = &self.trial {
            let left = trial.left(self.appliance.clock.now());
            return Err(ReloadError::OnTrial { secs: left.as_secs() });
        }
        let wanted = config::load(&self.appliance.config.path).map_err(ReloadError::Faults)?;
        self.begin(wanted)
    }

    /// Has the workers take a configuration over; `None` where it is the one that runs.
    pub(super) fn begin(&mut self, mut wanted: Config) -> Result<Option<TakeOver>, ReloadError> {
        let a = &mut self.appliance;
        let keys = fixed_differences(&a.config, &wanted);
        if !keys.is_empty() {
            let path = a.config.path.display().to_string();
            return Err(ReloadError::Fixed { path, keys });
        }
        keep_class_ids(&a.config, &mut wanted)?;
        keep_tenant_numbers(&a.config, &mut wanted)?;
        if wanted == a.config {
            return Ok(None);
        }
        let steer = SteerTables::of(&wanted);
        a.steering.set_limits(&wanted.workers)?;
        let both = a.steering.tables().union(&steer);
        let before = a.steering.tables().clone();
        if let Err(error) = a.steering.set_tables(both) {
            // As it was, as far as the kernel lets us.
            let _ = a.steering.set_tables(before);
            return Err(error.into());
        }
        let crew = &a.crew;
        a.pools.set_config(&wanted, |place| crew.connections(place) > 0);
        a.crew.reserve(a.pools.places_count());
        let (now, seed) = (a.clock.now(), a.snapshot.seed);
        let snapshot = Snapshot {
            forward: Arc::new(a.pools.tables(now, &wanted, seed)),
            rules: Arc::new(rules_of(&wanted)),
            meters: Arc::new(Meters::build(&wanted.metering, Some(&a.snapshot.meters))),
            limits: Arc::new(Limits::build(&wanted.limits, seed, Some(&a.snapshot.limits), now)),
            ..a.snapshot.clone()
        };
        let new = blueprint(&wanted, &snapshot);
        let old = blueprint(&a.config, &a.snapshot);
        // All is made before anybody has to wait for it.
        let updates: Vec<_> =
            a.crew.seats.iter().map(|_| Box::new(new.update(now, &old))).collect();
        new.share();
        for (seat, update) in a.crew.seats.iter_mut().zip(updates) {
            seat.send(WorkerCommand::Update(update));
        }
        let done = view(&wanted, warnings(&a.config, &wanted));
        if let Err(error) = a.copies.set_config(&wanted) {
            tracing::error!(%error, "copies are not taken: no thread can be started");
        }
        a.snapshot = snapshot;
        a.config = wanted;
        a.refresh_kept();
        a.renew_offload();
        a.refresh_offload();
        Ok(Some(TakeOver {
            awaited: self.appliance.crew.seats.iter().map(|s| s.id).collect(),
            deadline: self.appliance.clock.now() + TAKE_OVER_WITHIN,
            steer,
            done,
            blocked: Blocked::default(),
            reply: None,
        }))
    }

    /// A worker has swapped its snapshot, which has cost so much.
    pub(super) fn taken_over(&mut self, worker: u16, blocked: Blocked) {
        if let Some(take_over) = &mut self.take_over {
            take_over.awaited.remove(&worker);
            let most = &mut take_over.blocked;
            most.ns = most.ns.max(blocked.ns);
            most.worked_ns = most.worked_ns.max(blocked.worked_ns);
        }
    }

    /// Ends a reload when all workers have the new configuration, or when one hangs.
    pub(super) fn check_take_over(&mut self) {
        let now = self.appliance.clock.now();
        let over = |t: &mut TakeOver| t.awaited.is_empty() || now >= t.deadline;
        let Some(take_over) = self.take_over.take_if(over) else { return };
        let a = &mut self.appliance;
        if !take_over.awaited.is_empty() {
            // It takes the configuration over when it goes on: both are steered until the next
            // reload.
            let text = format!("workers {:?} hang: they don't take it over", take_over.awaited);
            tracing::error!("{text}");
            answer(take_over.reply, Err(Refusal { words: text, bad_config: false }));
            return;
        }
        if let Err(error) = a.steering.set_tables(take_over.steer) {
            tracing::warn!(%error, "what is no longer ours is still steered here");
        }
        a.reloads += 1;
        // What is no longer ours may have been handed down meanwhile.
        a.renew_offload();
        for warning in &take_over.done.warnings {
            tracing::warn!("{warning}");
        }
        let Blocked { ns, worked_ns } = take_over.blocked;
        let (blocked_us, worked_us) = (ns / 1_000, worked_ns / 1_000);
        let done = ReloadView { blocked_us, worked_us, ..take_over.done };
        tracing::info!(config = done.config, blocked_us, worked_us, "configuration taken over");
        answer(take_over.reply, Ok(done));
    }
}

fn answer(reply: ReloadReply, result: Result<ReloadView, Refusal>) {
    if let Some(reply) = reply {
        let _ = reply.send(result);
    }
}

fn view(config: &Config, warnings: Vec<String>) -> ReloadView {
    ReloadView {
        config: config.path.display().to_string(),
        pipeline: config.pipeline.name.clone(),
        services: config.forward.services.len(),
        backends: config.forward.pools.iter().map(|p| p.backends.len()).sum(),
        rules: config.rules.len(),
        unchanged: false,
        confirm_within_secs: None,
        blocked_us: 0,
        worked_us: 0,
        warnings,
    }
}
