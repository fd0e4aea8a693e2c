//! What a reload would change, without any of it done.

use tokio::sync::oneshot;

use super::ask::Refusal;
use super::checks::way;
use super::port_plan::{PortPlan, keep_port_numbers};
use super::reload::{
    ReloadError, fixed_differences, keep_class_ids, keep_tenant_numbers, warnings,
};
use super::run::Control;
use super::view::DifferenceView;
use crate::config::{self, Config};

/// What a reload to `wanted` would change where `running` runs, by their files alone: a port that
/// can't be had is seen by the appliance only.
pub fn between(running: &Config, wanted: &Config) -> DifferenceView {
    let (mut running, mut wanted) = (running.clone(), wanted.clone());
    let mut view = begun(&running, &wanted);
    // Two files are compared by what they say.
    running.path.clone_from(&wanted.path);
    view.warnings = warnings(&running, &wanted);
    match settle(&running, &mut wanted, Vec::new()) {
        Ok(()) => {
            let plan = PortPlan::of(&running, &wanted, |_| false);
            view.ports_opened = plan.opened_names(&wanted);
            view.ports_closed = plan.closed_names(&running);
            view.unchanged = is_same(&running, &mut wanted);
        }
        Err(error) => refuse(&mut view, error),
    }
    view
}

impl Control {
    /// Loads the configuration anew and tells what a reload would change; nothing does. Refused is
    /// only what can't be read.
    pub(super) fn compare(&self, reply: oneshot::Sender<Result<DifferenceView, Refusal>>) {
        let running = &self.appliance.config;
        let wanted = config::load_over(&running.path, &running.workers);
        let _ = reply.send(match wanted {
            Ok(wanted) => Ok(self.difference(wanted)),
            Err(faults) => {
                let words = ReloadError::Faults(faults).to_string();
                Err(Refusal { words, bad_config: true })
            }
        });
    }

    fn difference(&self, mut wanted: Config) -> DifferenceView {
        let running = &self.appliance.config;
        let mut view = begun(running, &wanted);
        match self.admit(&mut wanted) {
            Ok(Some((plan, _))) => {
                view.ports_opened = plan.opened_names(&wanted);
                view.ports_closed = plan.closed_names(running);
                view.warnings = warnings(running, &wanted);
                view.warnings.extend(way::ports_warning(&wanted));
            }
            Ok(None) => view.unchanged = true,
            Err(error) => refuse(&mut view, error),
        }
        if let Err(error) = self.not_on_trial()
            && view.refused.is_none()
            && view.needs_restart.is_empty()
        {
            refuse(&mut view, error);
        }
        view
    }
}

fn begun(running: &Config, wanted: &Config) -> DifferenceView {
    DifferenceView {
        config: wanted.path.display().to_string(),
        changes: running.written.differences(&wanted.written),
        ..DifferenceView::default()
    }
}

fn refuse(view: &mut DifferenceView, error: ReloadError) {
    match error {
        ReloadError::Fixed { keys, .. } => view.needs_restart = keys,
        error => view.refused = Some(error.to_string()),
    }
}

/// Gives what `wanted` leaves open, and all that has a number, what it has in `running`. `fixed`:
/// keys that can't be as they are wanted, besides those that are found here.
///
/// # Errors
/// What can't change while it runs.
pub(super) fn settle(
    running: &Config,
    wanted: &mut Config,
    fixed: Vec<String>,
) -> Result<(), ReloadError> {
    if !wanted.frames_given {
        wanted.workers.frames = running.workers.frames;
    }
    let mut keys = fixed_differences(running, wanted);
    keys.extend(fixed);
    if !keys.is_empty() {
        let path = running.path.display().to_string();
        return Err(ReloadError::Fixed { path, keys });
    }
    keep_port_numbers(running, wanted)?;
    keep_class_ids(running, wanted)?;
    keep_tenant_numbers(running, wanted)
}

/// Whether both mean the same, once `wanted` is settled: what is warned of, and where, is none of
/// it.
pub(super) fn is_same(running: &Config, wanted: &mut Config) -> bool {
    let warnings = std::mem::replace(&mut wanted.warnings, running.warnings.clone());
    let is_same = wanted == running;
    wanted.warnings = warnings;
    is_same
}
