//! A reload from the file to the last worker.
//!
//! 1. Load, validate, compare, open the ports that come: a refusal changes nothing (`admission`).
//! 2. Where a port takes over another's interface, that one goes first. If the new one can't be
//!    opened then, it comes back (`leaving`).
//! 3. Steer what either configuration needs (`handing_out`).
//! 4. Give each worker the new ports and a whole new snapshot; each swaps them between two polls
//!    and sends the old ones back.
//! 5. When all have, steer only what the new one needs, and close the ports that go.
//!
//! Where workers hang, or the kernel, this is said after a while, and whatever was begun comes to
//! its end once they go on: forward from the moment that workers were told, before that back.

mod admission;
mod handing_out;
mod leaving;

use std::time::Duration;

use tokio::sync::oneshot;

use super::ask::Refusal;
use super::exchanges::{Loading, Opened, Programs};
use super::port_plan::PortPlan;
use super::reload::ReloadError;
use super::run::Control;
use super::steering::SteerTables;
use super::trial::Trial;
use super::view::ReloadView;
use crate::base::Nanos;
use crate::config::Config;
use crate::worker::Blocked;

use handing_out::Taking;
use leaving::Leaving;

/// A worker takes a new configuration, or other ports, within a few polls, unless it hangs. Beside
/// that there is the kernel's time to close ports, and that of a large forwarding table.
const STEP_WITHIN: Duration = Duration::from_secs(5);

/// Who wants to know how a reload went; nobody, where a signal asked for it.
pub(super) type ReloadReply = Option<oneshot::Sender<Result<ReloadView, Refusal>>>;

/// A new configuration on its way.
pub(super) struct TakeOver {
    step: Step,
    /// When it is said that workers hang, or the kernel; `None` once it is.
    deadline: Option<Nanos>,
    pub(super) done: ReloadView,
    blocked: Blocked,
    pub(super) reply: ReloadReply,
    /// What is gone back to, where that is what this is.
    pub(super) back: Option<Trial>,
}

enum Step {
    /// The kernel checks the programs of ports that come; threads begin.
    Loading(Loading, Box<Pending>),
    /// Ports go whose interfaces others take over.
    Clearing(Leaving, Box<Pending>),
    /// That took too long: they come back as soon as they are gone, with these programs.
    Returning(Leaving, Programs),
    /// Workers take the configuration.
    Taking(Taking),
    /// The ports go that nothing is sent to any more.
    Closing(Leaving),
}

/// What is handed out once there is room for it.
struct Pending {
    wanted: Config,
    programs: Programs,
    opened: Vec<Opened>,
    plan: PortPlan,
    steer: SteerTables,
}

impl TakeOver {
    fn new(step: Step, now: Nanos, done: ReloadView) -> TakeOver {
        let deadline = Some(now + STEP_WITHIN);
        TakeOver { step, deadline, done, blocked: Blocked::default(), reply: None, back: None }
    }

    /// Why nothing else is taken meanwhile.
    fn occupies(&self) -> ReloadError {
        match self.deadline {
            Some(_) => ReloadError::Busy,
            None => ReloadError::HeldUp,
        }
    }
}

impl Control {
    /// Goes on with a reload as far as it can, and ends it when all workers have what they need, or
    /// when one hangs.
    pub(super) fn check_take_over(&mut self) {
        self.appliance.poll_exchanges();
        let Some(TakeOver { step, deadline, done, blocked, reply, back }) = self.take_over.take()
        else {
            return;
        };
        let now = self.appliance.clock.now();
        let is_late = deadline.is_some_and(|deadline| now >= deadline);
        let next = match step {
            Step::Loading(loading, pending)
                if !(loading.is_finished() && self.appliance.crew.is_ready()) =>
            {
                Err(Step::Loading(loading, pending))
            }
            Step::Loading(loading, pending) => match self.loaded(loading, *pending) {
                Ok(step) => Ok(step),
                Err(error) => return self.take_back_all(&error, &done, reply, back),
            },
            Step::Clearing(mut leaving, pending) => match self.has_left(&mut leaving) {
                true => match self.cleared(leaving, *pending) {
                    Ok(taking) => Ok(Step::Taking(taking)),
                    Err(error) => return self.take_back_all(&error, &done, reply, back),
                },
                false => Err(Step::Clearing(leaving, pending)),
            },
            Step::Returning(mut leaving, programs) => {
                if self.has_left(&mut leaving) {
                    return self.returned(&leaving, programs);
                }
                Err(Step::Returning(leaving, programs))
            }
            Step::Taking(taking) if self.has_taken(&taking) => {
                Ok(Step::Closing(self.taken_over(taking)))
            }
            Step::Closing(mut leaving) => {
                if self.has_left(&mut leaving) {
                    self.appliance.forget_ports(leaving.ports());
                    return self.finish_reload(done, blocked, reply);
                }
                Err(Step::Closing(leaving))
            }
            step => Err(step),
        };
        let can_hang = |step: &Step| !matches!(step, Step::Loading(..));
        let hangs = is_late && next.as_ref().is_err_and(can_hang);
        let (step, deadline) = match next {
            Ok(next) => (next, Some(now + STEP_WITHIN)),
            Err(step) => (step, deadline),
        };
        let take_over = TakeOver { step, deadline, done, blocked, reply, back };
        self.take_over = Some(if hangs { self.hangs(take_over) } else { take_over });
    }

    /// Refuses what could not be had after all.
    fn take_back_all(
        &mut self,
        error: &ReloadError,
        done: &ReloadView,
        reply: ReloadReply,
        back: Option<Trial>,
    ) {
        self.appliance.dismiss_threads();
        self.undo_trial(done, back);
        self.refuse(reply, error);
    }

    fn finish_reload(&mut self, mut done: ReloadView, blocked: Blocked, reply: ReloadReply) {
        let a = &mut self.appliance;
        a.reloads += 1;
        done.warnings.extend(a.crew.misplaced(&a.config.workers.cores));
        for warning in &done.warnings {
            tracing::warn!("{warning}");
        }
        let Blocked { ns, worked_ns } = blocked;
        let (blocked_us, worked_us) = (ns / 1_000, worked_ns / 1_000);
        let done = ReloadView { blocked_us, worked_us, ..done };
        tracing::info!(config = done.config, blocked_us, worked_us, "configuration taken over");
        answer(reply, Ok(done));
    }

    /// Says that workers hang. Those that have been given the configuration take it when they go
    /// on, and the rest of this follows; ports that were to make room only come back.
    fn hangs(&mut self, take_over: TakeOver) -> TakeOver {
        let TakeOver { step, done, blocked, reply, mut back, .. } = take_over;
        let words = step.held_up_by(&self.appliance.crew.unsettled());
        tracing::error!("{words}");
        answer(reply, Err(Refusal { words, bad_config: false }));
        let step = match step {
            Step::Clearing(leaving, pending) => {
                self.appliance.reloads_refused += 1;
                self.appliance.close_opened(pending.opened);
                self.appliance.dismiss_threads();
                self.undo_trial(&done, back.take());
                Step::Returning(leaving, pending.programs)
            }
            step => step,
        };
        TakeOver { step, deadline: None, done, blocked, reply: None, back }
    }

    fn refuse(&mut self, reply: ReloadReply, error: &ReloadError) {
        self.appliance.reloads_refused += 1;
        tracing::error!("configuration refused, nothing has changed: {error}");
        let bad_config = matches!(error, ReloadError::Faults(_) | ReloadError::Fixed { .. });
        answer(reply, Err(Refusal { words: error.to_string(), bad_config }));
    }
}

impl Step {
    /// What it waits for; `unsettled` are workers that are on their way to other threads.
    fn held_up_by(&self, unsettled: &[u16]) -> String {
        match self {
            Step::Taking(taking) if taking.is_awaited() => {
                format!("workers {:?} hang: they don't take it over", taking.awaited())
            }
            Step::Taking(_) if !unsettled.is_empty() => {
                format!("workers {unsettled:?} hang: they don't go to their threads")
            }
            Step::Loading(..) | Step::Clearing(..) | Step::Returning(..) => {
                "workers hang, or the kernel: ports are not exchanged, and come back".to_string()
            }
            Step::Taking(_) | Step::Closing(_) => {
                "workers hang, or the kernel: ports are not exchanged".to_string()
            }
        }
    }
}

fn answer(reply: ReloadReply, result: Result<ReloadView, Refusal>) {
    if let Some(reply) = reply {
        let _ = reply.send(result);
    }
}
