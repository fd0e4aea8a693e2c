//! A configuration on trial: unless it is confirmed in time, the one before comes back. So a change
//! that locks its operator out undoes itself.

use std::time::Duration;

use tokio::sync::oneshot;

use super::ask::Refusal;
use super::reload::ReloadError;
use super::run::Control;
use super::view::ReloadView;
use crate::base::Nanos;
use crate::config::Config;

/// Where going back fails it is tried again after this.
const AGAIN_AFTER: Duration = Duration::from_secs(1);

/// What is gone back to, and when.
pub(super) struct Trial {
    before: Config,
    deadline: Nanos,
}

impl Trial {
    pub(super) fn left(&self, now: Nanos) -> Duration {
        Duration::from_nanos(self.deadline.since(now))
    }
}

impl Control {
    /// Has what is being taken over be on trial, for as long as is given with what ran before.
    pub(super) fn begin_trial(&mut self, before: Option<(Duration, Config)>) {
        let now = self.appliance.clock.now();
        self.trial = before.map(|(within, before)| Trial { before, deadline: now + within });
    }

    /// Until it is gone back, if it is.
    pub(super) fn on_trial_secs(&self) -> Option<u64> {
        let now = self.appliance.clock.now();
        self.trial.as_ref().map(|trial| trial.left(now).as_secs())
    }

    /// It would not be clear what to go back to.
    pub(super) fn not_on_trial(&self) -> Result<(), ReloadError> {
        let Some(secs) = self.on_trial_secs() else { return Ok(()) };
        Err(ReloadError::OnTrial { secs })
    }

    /// Keeps what is on trial.
    pub(super) fn confirm(&mut self, reply: oneshot::Sender<Result<(), Refusal>>) {
        let result = match self.trial.take() {
            Some(_) => {
                tracing::info!("configuration confirmed");
                Ok(())
            }
            None => {
                let words = "no configuration is on trial: nothing to confirm".to_string();
                Err(Refusal { words, bad_config: false })
            }
        };
        let _ = reply.send(result);
    }

    /// What was to be tried, or gone back to, could not be had after all.
    pub(super) fn undo_trial(&mut self, done: &ReloadView, back: Option<Trial>) {
        if done.confirm_within_secs.is_some() {
            self.trial = None;
        }
        if let Some(trial) = back {
            self.appliance.rollbacks -= 1;
            let deadline = self.appliance.clock.now() + AGAIN_AFTER;
            self.trial = Some(Trial { deadline, ..trial });
        }
    }

    /// Goes back when the time is over.
    pub(super) fn check_trial(&mut self) {
        let now = self.appliance.clock.now();
        if self.take_over.is_some() {
            return;
        }
        let Some(trial) = self.trial.take_if(|trial| now >= trial.deadline) else { return };
        // Before what it goes back to is looked through for what is gone.
        self.appliance.pools.drained.bring_back();
        match self.begin(trial.before.clone()) {
            Ok(mut take_over) => {
                self.appliance.rollbacks += 1;
                let path = trial.before.path.display().to_string();
                tracing::warn!(
                    path,
                    "not confirmed in time: what ran before is back; the file is as it was"
                );
                if let Some(take_over) = &mut take_over {
                    take_over.back = Some(trial);
                }
                self.take_over = take_over;
            }
            Err(error) => {
                tracing::error!("not confirmed in time, but there is no way back yet: {error}");
                self.trial = Some(Trial { deadline: now + AGAIN_AFTER, ..trial });
            }
        }
    }
}
