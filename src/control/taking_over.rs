//! A reload from the file to the last worker.
//!
//! 1. Load, validate, compare, open the ports that come: a refusal changes nothing.
//! 2. Where a port takes over another's interface, that one goes first. If the new one can't be
//!    opened then, it comes back.
//! 3. Steer what either configuration needs.
//! 4. Give each worker the new ports and a whole new snapshot; each swaps them between two polls
//!    and sends the old ones back.
//! 5. When all have, steer only what the new one needs, and close the ports that go.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use tokio::sync::oneshot;

use super::appliance::{blueprint, rules_of};
use super::ask::Refusal;
use super::checks::way;
use super::exchanges::{Opened, Programs};
use super::port_plan::{PortPlan, keep_port_numbers};
use super::reload::{
    ReloadError, fixed_differences, keep_class_ids, keep_tenant_numbers, warnings,
};
use super::run::Control;
use super::steering::SteerTables;
use super::trial::Trial;
use super::view::ReloadView;
use crate::base::Nanos;
use crate::config::{self, Config};
use crate::graph::Snapshot;
use crate::nic::spec::PortSpec;
use crate::packet::PortId;
use crate::qos::limits::Limits;
use crate::qos::meters::Meters;
use crate::worker::{Blocked, WorkerCommand};

/// A worker takes a new configuration, or other ports, within a few polls, unless it hangs. Beside
/// that there is the kernel's time to close ports, and that of a large forwarding table.
const STEP_WITHIN: Duration = Duration::from_secs(5);
/// Packets that a port's sockets have when it is detached are given this long.
const RINGS_EMPTY_WITHIN: Duration = Duration::from_millis(20);

/// Who wants to know how a reload went; nobody, where a signal asked for it.
pub(super) type ReloadReply = Option<oneshot::Sender<Result<ReloadView, Refusal>>>;

/// A new configuration on its way.
pub(super) struct TakeOver {
    step: Step,
    deadline: Nanos,
    pub(super) done: ReloadView,
    blocked: Blocked,
    pub(super) reply: ReloadReply,
    /// What is gone back to, where that is what this is.
    pub(super) back: Option<Trial>,
}

enum Step {
    /// The kernel checks the programs of ports that come.
    Loading(JoinHandle<Programs>, Box<Pending>),
    /// Ports go whose interfaces others take over.
    Clearing(Leaving, Box<Pending>),
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

struct Taking {
    awaited: BTreeSet<u16>,
    /// Those whose old configuration is back, but who have not told what it took.
    taken: BTreeSet<u16>,
    steer: SteerTables,
    leave: Vec<PortSpec>,
    /// The orders that the forwarding table has to know: it leads to ports by their numbers.
    orders: u64,
}

/// Ports that are detached, and go to their ends.
struct Leaving {
    ports: Vec<PortSpec>,
    /// What was on its way when they were detached is taken in until then; `None`: they are asked
    /// for.
    not_before: Option<Nanos>,
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
            Err(error) => self.refuse(reply, &error),
        }
    }

    fn refuse(&mut self, reply: ReloadReply, error: &ReloadError) {
        self.appliance.reloads_refused += 1;
        tracing::error!("configuration refused, nothing has changed: {error}");
        let bad_config = matches!(error, ReloadError::Faults(_) | ReloadError::Fixed { .. });
        answer(reply, Err(Refusal { words: error.to_string(), bad_config }));
    }

    fn begin_reload(&mut self) -> Result<Option<TakeOver>, ReloadError> {
        if let Some(trial) = &self.trial {
            let left = trial.left(self.appliance.clock.now());
            return Err(ReloadError::OnTrial { secs: left.as_secs() });
        }
        let wanted = config::load(&self.appliance.config.path).map_err(ReloadError::Faults)?;
        self.begin(wanted)
    }

    /// Has the workers take a configuration over; `None` where it is the one that runs.
    pub(super) fn begin(&mut self, mut wanted: Config) -> Result<Option<TakeOver>, ReloadError> {
        if self.take_over.is_some() || !self.appliance.exchanges.is_idle() {
            return Err(ReloadError::Busy);
        }
        let a = &mut self.appliance;
        if !wanted.frames_given {
            wanted.workers.frames = a.config.workers.frames;
        }
        let mut keys = fixed_differences(&a.config, &wanted);
        keys.extend(unread_tables(&wanted, a.feed.tables()));
        if !keys.is_empty() {
            let path = a.config.path.display().to_string();
            return Err(ReloadError::Fixed { path, keys });
        }
        keep_port_numbers(&a.config, &mut wanted)?;
        keep_class_ids(&a.config, &mut wanted)?;
        keep_tenant_numbers(&a.config, &mut wanted)?;
        let mirror = a.netlink.mirror();
        let is_lost = |id: PortId| a.feed.is_replaced(usize::from(id.0), mirror);
        let plan = PortPlan::of(&a.config, &wanted, is_lost);
        if wanted == a.config && plan.is_empty() {
            return Ok(None);
        }
        if let Some(id) = plan.leaving().find(|id| Some(*id) == a.opener.holder()) {
            let port = a.config.ports[usize::from(id.0)].name.clone();
            return Err(ReloadError::Holder { port });
        }
        a.check_ports(&wanted, plan.opening())?;
        if way::goes_by_workers(&wanted) {
            a.open_passage().map_err(ReloadError::Checks)?;
        }
        let named = |config: &Config, ids: &mut dyn Iterator<Item = PortId>| {
            ids.map(|id| config.ports[usize::from(id.0)].name.clone()).collect()
        };
        let done = ReloadView {
            ports_opened: named(&wanted, &mut plan.opening()),
            ports_closed: named(&a.config, &mut plan.leaving()),
            ..view(&wanted, warnings(&a.config, &wanted))
        };
        let steer = SteerTables::of(&wanted);
        let (programs, opened) = (Vec::new(), Vec::new());
        let pending = Pending { wanted, programs, opened, plan, steer };
        let step = match pending.plan.opening().count() {
            0 => self.make_room(pending)?,
            count => {
                let loading = a.load_programs(count).map_err(ReloadError::Thread)?;
                Step::Loading(loading, Box::new(pending))
            }
        };
        Ok(Some(TakeOver {
            step,
            deadline: self.appliance.clock.now() + STEP_WITHIN,
            done,
            blocked: Blocked::default(),
            reply: None,
            back: None,
        }))
    }

    /// Opens what needs nobody to go first; then those go that have to, if there are any, or all is
    /// handed out.
    fn make_room(&mut self, mut pending: Pending) -> Result<Step, ReloadError> {
        let Pending { wanted, programs, plan, .. } = &mut pending;
        pending.opened = self.appliance.open_ports(wanted, &plan.open_first, programs)?;
        if pending.plan.leave_first.is_empty() {
            return Ok(Step::Taking(self.hand_out(pending)?));
        }
        let leaving = self.leave(&pending.plan.leave_first);
        Ok(Step::Clearing(leaving, Box::new(pending)))
    }

    /// Detaches ports.
    fn leave(&mut self, ids: &[PortId]) -> Leaving {
        let a = &mut self.appliance;
        ids.iter().for_each(|id| a.detach(*id));
        let ports = ids.iter().map(|id| a.config.ports[usize::from(id.0)].clone()).collect();
        Leaving { ports, not_before: Some(a.clock.now() + RINGS_EMPTY_WITHIN) }
    }

    /// Gives all workers the new ports and the new configuration. What was opened is closed where
    /// it fails.
    fn hand_out(&mut self, pending: Pending) -> Result<Taking, ReloadError> {
        let Pending { wanted, opened, plan, steer, .. } = pending;
        let a = &mut self.appliance;
        let both = a.steering.tables().union(&steer);
        let before = a.steering.tables().clone();
        let told = a.steering.set_limits(&wanted.workers);
        if let Err(error) = told.and_then(|()| a.steering.set_tables(both)) {
            // As it was, as far as the kernel lets us.
            let _ = a.steering.set_limits(&a.config.workers);
            let _ = a.steering.set_tables(before);
            a.close_opened(opened);
            return Err(error.into());
        }
        let leave = plan.leave_last.iter().map(|id| a.config.ports[usize::from(id.0)].clone());
        let leave = leave.collect();
        a.hand_over(&wanted, opened);
        let opened = |id| plan.opening().any(|o| o == id);
        let orders = a.feed.set_ports(&wanted.ports, a.netlink.mirror(), opened);
        self.give_config(wanted);
        let awaited = self.appliance.crew.seats.iter().map(|s| s.id).collect();
        Ok(Taking { awaited, taken: BTreeSet::new(), steer, leave, orders })
    }

    fn give_config(&mut self, wanted: Config) {
        let a = &mut self.appliance;
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
        if let Err(error) = a.copies.set_config(&wanted) {
            tracing::error!(%error, "copies are not taken: no thread can be started");
        }
        let ports_differ = wanted.ports != a.config.ports;
        if wanted.workers.cores != a.config.workers.cores {
            for seat in &a.crew.seats {
                let core = wanted.workers.cores.get(usize::from(seat.id)).copied();
                if let Err(error) = seat.pin(core) {
                    tracing::warn!(worker = seat.id, core, %error, "can't be pinned to its core");
                }
            }
        }
        a.snapshot = snapshot;
        a.config = wanted;
        a.set_passage();
        a.refresh_kept();
        if ports_differ {
            a.reroute();
        }
        a.renew_offload();
        a.refresh_offload();
    }

    /// A worker has sent back what it had before.
    pub(super) fn given_back(&mut self, worker: u16) {
        if let Some(TakeOver { step: Step::Taking(taking), .. }) = &mut self.take_over {
            taking.taken.insert(worker);
        }
    }

    /// A worker has swapped its snapshot, or ports, which has cost so much.
    pub(super) fn blocked(&mut self, worker: u16, blocked: Blocked) {
        let Some(take_over) = &mut self.take_over else { return };
        let most = &mut take_over.blocked;
        most.ns = most.ns.max(blocked.ns);
        most.worked_ns = most.worked_ns.max(blocked.worked_ns);
        if let Step::Taking(taking) = &mut take_over.step
            && taking.taken.remove(&worker)
        {
            taking.awaited.remove(&worker);
        }
    }

    /// Goes on with a reload as far as it can, and ends it when all workers have what they need, or
    /// when one hangs.
    pub(super) fn check_take_over(&mut self) {
        self.appliance.poll_exchanges();
        let Some(TakeOver { step, deadline, done, blocked, reply, back }) = self.take_over.take()
        else {
            return;
        };
        let now = self.appliance.clock.now();
        let (is_late, again) = (now >= deadline, now + STEP_WITHIN);
        let next = match step {
            Step::Loading(loading, pending) if !loading.is_finished() => {
                Err(Step::Loading(loading, pending))
            }
            Step::Loading(loading, mut pending) => {
                // Those that it could not load are loaded once more, for their error.
                pending.programs = loading.join().unwrap_or_default();
                match self.make_room(*pending) {
                    Ok(step) => Ok((step, again)),
                    Err(error) => return self.take_back_all(&error, &done, reply, back),
                }
            }
            Step::Clearing(mut leaving, pending) => match self.has_left(&mut leaving) {
                true => match self.cleared(leaving, *pending) {
                    Ok(taking) => Ok((Step::Taking(taking), again)),
                    Err(error) => return self.take_back_all(&error, &done, reply, back),
                },
                false => Err(Step::Clearing(leaving, pending)),
            },
            Step::Taking(taking) if self.has_taken(&taking) => {
                let leave = self.taken_over(taking);
                Ok((Step::Closing(leave), again))
            }
            Step::Closing(mut leaving) => {
                if self.has_left(&mut leaving) {
                    self.appliance.forget_ports(&leaving.ports);
                    return self.finish_reload(done, blocked, reply);
                }
                Err(Step::Closing(leaving))
            }
            step => Err(step),
        };
        let (step, deadline) = match next {
            Ok(next) => next,
            Err(step) if is_late && !matches!(step, Step::Loading(..)) => {
                return self.hangs(&step, reply);
            }
            Err(step) => (step, deadline),
        };
        self.take_over = Some(TakeOver { step, deadline, done, blocked, reply, back });
    }

    /// Refuses what could not be had after all.
    fn take_back_all(
        &mut self,
        error: &ReloadError,
        done: &ReloadView,
        reply: ReloadReply,
        back: Option<Trial>,
    ) {
        self.undo_trial(done, back);
        self.refuse(reply, error);
    }

    /// Asks for ports when what was on its way to them has come; whether all are closed.
    fn has_left(&mut self, leaving: &mut Leaving) -> bool {
        let a = &mut self.appliance;
        if leaving.ports.is_empty() {
            return true;
        }
        match leaving.not_before {
            Some(at) if a.clock.now() < at => false,
            Some(_) => {
                leaving.not_before = None;
                let ids: Vec<_> = leaving.ports.iter().map(|port| port.id).collect();
                a.take_back(&ids);
                false
            }
            None => a.exchanges.is_idle(),
        }
    }

    /// Opens what has taken the place of those that went, and hands everything out. If that fails,
    /// those come back.
    fn cleared(&mut self, gone: Leaving, mut pending: Pending) -> Result<Taking, ReloadError> {
        let a = &mut self.appliance;
        a.forget_ports(&gone.ports);
        let before = a.config.clone();
        for port in &gone.ports {
            a.config.ports[usize::from(port.id.0)] = PortSpec::vacant(port.id);
        }
        let ids = std::mem::take(&mut pending.plan.open_then);
        let taking = match a.open_ports(&pending.wanted, &ids, &mut pending.programs) {
            Ok(opened) => {
                pending.opened.extend(opened);
                pending.plan.open_then = ids;
                self.hand_out(pending)
            }
            Err(error) => {
                a.close_opened(pending.opened);
                Err(error)
            }
        };
        taking.inspect_err(|_| {
            let a = &mut self.appliance;
            for port in &gone.ports {
                match a.open_ports(&before, &[port.id], &mut Vec::new()) {
                    Ok(opened) => {
                        a.config.ports[usize::from(port.id.0)] = port.clone();
                        a.hand_over(&before, opened);
                    }
                    Err(error) => tracing::error!("it was closed, and can't be opened: {error}"),
                }
            }
        })
    }

    fn has_taken(&self, taking: &Taking) -> bool {
        let a = &self.appliance;
        taking.awaited.is_empty() && a.exchanges.is_idle() && a.feed.knows(taking.orders)
    }

    /// All workers have the new configuration: what only the one before needs goes.
    fn taken_over(&mut self, taking: Taking) -> Leaving {
        let a = &mut self.appliance;
        if let Err(error) = a.steering.set_tables(taking.steer) {
            tracing::warn!(%error, "what is no longer ours is still steered here");
        }
        // What is no longer ours may have been handed down meanwhile.
        a.renew_offload();
        taking.leave.iter().for_each(|port| a.detach(port.id));
        let not_before = Some(a.clock.now() + RINGS_EMPTY_WITHIN);
        Leaving { ports: taking.leave, not_before }
    }

    fn finish_reload(&mut self, done: ReloadView, blocked: Blocked, reply: ReloadReply) {
        self.appliance.reloads += 1;
        for warning in &done.warnings {
            tracing::warn!("{warning}");
        }
        let Blocked { ns, worked_ns } = blocked;
        let (blocked_us, worked_us) = (ns / 1_000, worked_ns / 1_000);
        let done = ReloadView { blocked_us, worked_us, ..done };
        tracing::info!(config = done.config, blocked_us, worked_us, "configuration taken over");
        answer(reply, Ok(done));
    }

    /// Workers take things over when they go on: both configurations are steered until the next
    /// reload.
    fn hangs(&mut self, step: &Step, reply: ReloadReply) {
        let text = match step {
            Step::Taking(Taking { awaited, .. }) if !awaited.is_empty() => {
                format!("workers {awaited:?} hang: they don't take it over")
            }
            _ => "workers hang, or the kernel: ports are not exchanged".to_string(),
        };
        tracing::error!("{text}");
        answer(reply, Err(Refusal { words: text, bad_config: false }));
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
        ports_opened: Vec::new(),
        ports_closed: Vec::new(),
        unchanged: false,
        confirm_within_secs: None,
        blocked_us: 0,
        worked_us: 0,
        warnings,
    }
}
