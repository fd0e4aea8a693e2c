//! What has to be right before anything changes.

use std::time::Duration;

use super::{Pending, ReloadReply, Step, TakeOver, answer};
use crate::config::{self, Config};
use crate::control::checks::way;
use crate::control::difference::{is_same, settle};
use crate::control::exchanges::Loading;
use crate::control::port_plan::PortPlan;
use crate::control::reload::{ReloadError, warnings};
use crate::control::run::Control;
use crate::control::steering::SteerTables;
use crate::control::view::ReloadView;
use crate::nic::NicError;
use crate::nic::spec::PortSpec;
use crate::packet::PortId;

impl Control {
    /// Loads the configuration anew and has the workers take it over; for so long at first, where
    /// it is to be confirmed.
    pub(in crate::control) fn reload(&mut self, confirm: Option<Duration>, reply: ReloadReply) {
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
            Err(error) => self.refuse(reply, &error),
        }
    }

    fn begin_reload(&mut self) -> Result<Option<TakeOver>, ReloadError> {
        self.not_on_trial()?;
        let wanted = config::load_over(&self.appliance.config.path, &self.appliance.config.workers)
            .map_err(ReloadError::Faults)?;
        self.begin(wanted)
    }

    /// Has the workers take a configuration over; `None` where it is the one that runs.
    pub(in crate::control) fn begin(
        &mut self,
        mut wanted: Config,
    ) -> Result<Option<TakeOver>, ReloadError> {
        let Some((plan, steer)) = self.admit(&mut wanted)? else { return Ok(None) };
        let a = &mut self.appliance;
        if way::goes_by_workers(&wanted) {
            a.open_passage().map_err(ReloadError::Checks)?;
        }
        let mut warnings = warnings(&a.config, &wanted);
        warnings.extend(way::ports_warning(&wanted));
        let done = ReloadView {
            ports_opened: plan.opened_names(&wanted),
            ports_closed: plan.closed_names(&a.config),
            ..view(&wanted, warnings)
        };
        let (programs, opened) = (Vec::new(), Vec::new());
        let pending = Pending { wanted, programs, opened, plan, steer };
        a.start_threads(&pending.wanted.workers).map_err(ReloadError::Thread)?;
        let step = self.prepare(pending).inspect_err(|_| self.appliance.dismiss_threads())?;
        Ok(Some(TakeOver::new(step, self.appliance.clock.now(), done)))
    }

    /// Whether a configuration may take the place of what runs, by all that can be told before
    /// anything changes; `None` where it is the one that runs. Ports, classes and tenants have the
    /// numbers in it then that they have in what runs.
    pub(in crate::control) fn admit(
        &self,
        wanted: &mut Config,
    ) -> Result<Option<(PortPlan, SteerTables)>, ReloadError> {
        if let Some(take_over) = &self.take_over {
            return Err(take_over.occupies());
        }
        if !self.appliance.exchanges.is_idle() {
            return Err(ReloadError::Busy);
        }
        let a = &self.appliance;
        settle(&a.config, wanted, unread_tables(wanted, a.feed.tables()))?;
        let mirror = a.netlink.mirror();
        let is_lost = |id: PortId| a.feed.is_replaced(usize::from(id.0), mirror);
        let plan = PortPlan::of(&a.config, wanted, is_lost);
        if plan.is_empty() && is_same(&a.config, wanted) {
            return Ok(None);
        }
        if let Some(id) = plan.leaving().find(|id| Some(*id) == a.opener.holder()) {
            let port = a.config.ports[usize::from(id.0)].name.clone();
            return Err(ReloadError::Holder { port });
        }
        let steer = SteerTables::of(wanted);
        a.steering.check_room(&a.steering.tables().union(&steer))?;
        a.check_ports(wanted, plan.opening())?;
        Ok(Some((plan, steer)))
    }

    /// Waits for what takes its time, if anything does. Ports that make room for others may have to
    /// come back: at once, so their programs are loaded, too.
    fn prepare(&mut self, pending: Pending) -> Result<Step, ReloadError> {
        let a = &self.appliance;
        let attach = |of: &Config, id: PortId| Some(of.ports.get(usize::from(id.0))?.attach);
        let come = pending.plan.opening().filter_map(|id| attach(&pending.wanted, id));
        let come_back = pending.plan.leave_first.iter().filter_map(|id| attach(&a.config, *id));
        let programs: Vec<_> = come.chain(come_back).collect();
        if programs.is_empty() && a.crew.is_ready() {
            return self.make_room(pending);
        }
        let loading = a.load_programs(programs).map_err(ReloadError::Thread)?;
        Ok(Step::Loading(loading, Box::new(pending)))
    }

    /// The kernel has taken the programs, or not: what it refuses, it does before anything changes.
    pub(super) fn loaded(
        &mut self,
        loading: Loading,
        mut pending: Pending,
    ) -> Result<Step, ReloadError> {
        let by_a_bug = |_| Err(NicError::Load("what loads it ended by a bug".to_owned()));
        pending.programs = loading.join().unwrap_or_else(by_a_bug)?;
        self.make_room(pending)
    }

    /// Opens what needs nobody to go first; then those go that have to, if there are any, or all is
    /// handed out.
    fn make_room(&mut self, mut pending: Pending) -> Result<Step, ReloadError> {
        let Pending { wanted, programs, plan, .. } = &mut pending;
        pending.opened = self.appliance.open_ports(wanted, &plan.open_first, programs)?;
        if pending.plan.leave_first.is_empty() {
            return Ok(Step::Taking(self.hand_out(pending)?));
        }
        let ports = &self.appliance.config.ports;
        let first = pending.plan.leave_first.iter().map(|id| ports[usize::from(id.0)].clone());
        let first = first.collect();
        let leaving = self.leave(first);
        Ok(Step::Clearing(leaving, Box::new(pending)))
    }
}

/// Ports' tables of routes that nobody has read since the start.
fn unread_tables(wanted: &Config, read: &[u32]) -> Vec<String> {
    let unread = |port: &PortSpec| {
        let table = port.table.filter(|table| !read.contains(table))?;
        Some(format!("port.{}.table: {table} is none of those that are read: {read:?}", port.name))
    };
    wanted.ports.iter().filter_map(unread).collect()
}

fn view(config: &Config, warnings: Vec<String>) -> ReloadView {
    ReloadView {
        config: config.path.display().to_string(),
        pipeline: config.pipeline.name.clone(),
        services: config.forward.services.len(),
        backends: config.forward.pools.iter().map(|p| p.backends.len()).sum(),
        rules: config.rules.len(),
        ports_opened: Vec::new(),
        ports_closed: Vec::new(),
        unchanged: false,
        confirm_within_secs: None,
        blocked_us: 0,
        worked_us: 0,
        warnings,
    }
}
