//! Gives workers a new configuration, and sees when all have it.

use std::collections::BTreeSet;
use std::sync::Arc;

use super::leaving::Leaving;
use super::{Pending, Step, TakeOver};
use crate::config::Config;
use crate::control::appliance::{blueprint, rules_of};
use crate::control::reload::ReloadError;
use crate::control::run::Control;
use crate::control::steering::SteerTables;
use crate::graph::Snapshot;
use crate::nic::spec::PortSpec;
use crate::qos::limits::Limits;
use crate::qos::meters::Meters;
use crate::worker::{Blocked, WorkerCommand};

/// What workers are waited for with.
pub(super) struct Taking {
    awaited: BTreeSet<u16>,
    /// Those whose old configuration is back, but who have not told what it took.
    taken: BTreeSet<u16>,
    steer: SteerTables,
    leave: Vec<PortSpec>,
    /// The orders that the forwarding table has to know: it leads to ports by their numbers.
    orders: u64,
}

impl Taking {
    /// Workers that have not taken it.
    pub(super) fn awaited(&self) -> &BTreeSet<u16> {
        &self.awaited
    }

    pub(super) fn is_awaited(&self) -> bool {
        !self.awaited.is_empty()
    }
}

impl Control {
    /// Gives all workers the new ports and the new configuration. What was opened is closed where
    /// it fails.
    pub(super) fn hand_out(&mut self, pending: Pending) -> Result<Taking, ReloadError> {
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
        a.move_workers(&wanted.workers);
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
    pub(in crate::control) fn given_back(&mut self, worker: u16) {
        if let Some(TakeOver { step: Step::Taking(taking), .. }) = &mut self.take_over {
            taking.taken.insert(worker);
        }
    }

    /// A worker has swapped its snapshot, or ports, which has cost so much.
    pub(in crate::control) fn blocked(&mut self, worker: u16, blocked: Blocked) {
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

    pub(super) fn has_taken(&self, taking: &Taking) -> bool {
        let a = &self.appliance;
        taking.awaited.is_empty() && a.is_settled() && a.feed.knows(taking.orders)
    }

    /// All workers have the new configuration: what only the one before needs goes.
    pub(super) fn taken_over(&mut self, taking: Taking) -> Leaving {
        let a = &mut self.appliance;
        if let Err(error) = a.steering.set_tables(taking.steer) {
            tracing::warn!(%error, "what is no longer ours is still steered here");
        }
        // What is no longer ours may have been handed down meanwhile.
        a.renew_offload();
        self.leave(taking.leave)
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::base::{Nanos, Seed};
    use crate::forward::{RoutesBuilder, Tables};
    use crate::policy::Rules;
    use crate::worker::Update;
    use crate::worker::command::EgressUpdate;

    fn load(ports: &[&str]) -> Config {
        let port = |name: &&str| format!("[port.{name}]\ninterface = \"{name}\"\n");
        let ports: String = ports.iter().map(port).collect();
        let text = format!(
            "pipeline = \"router\"\n[workers]\nframes = 32768\n{ports}\
             [qos.b]\nrate = \"1Gbit/s\"\ndefault = \"c\"\n[qos.b.class.c]\nrate = \"10%\"\n\
             [transit]\nprefixes = [\"10.0.0.0/8\"]\n"
        );
        crate::config::load_text(Path::new("t.toml"), &text).expect("a good file")
    }

    fn snapshot(config: &Config) -> Snapshot {
        let seed = Seed(1);
        Snapshot {
            forward: Arc::new(Tables::build(&config.forward, 1, seed)),
            routes: Arc::new(RoutesBuilder::new(Vec::new(), seed).build(1)),
            rules: Arc::new(Rules::compile(&config.rules)),
            seed,
            worker_count: 1,
            meters: Default::default(),
            limits: Default::default(),
            shared_ports: Default::default(),
        }
    }

    #[test]
    fn what_a_reload_waits_for_is_named() {
        let words = |awaited: &[u16], unsettled: &[u16]| {
            let awaited = awaited.iter().copied().collect();
            let (taken, steer) = (BTreeSet::new(), SteerTables::default());
            let taking = Taking { awaited, taken, steer, leave: Vec::new(), orders: 0 };
            Step::Taking(taking).held_up_by(unsettled)
        };
        assert_eq!(words(&[1], &[2]), "workers {1} hang: they don't take it over");
        assert_eq!(words(&[], &[2, 3]), "workers [2, 3] hang: they don't go to their threads");
        assert!(words(&[], &[]).contains("ports are not exchanged"));
    }

    /// All queues together must leave frames to the receive rings, however many ports come.
    #[test]
    fn queues_of_ports_that_stay_shrink_and_grow_with_the_number_of_ports() {
        let [two, five] = [&["a", "b"][..], &["a", "b", "c", "d", "e"]].map(load);
        let snapshot = snapshot(&two);
        let update = |old: &Config, new: &Config| {
            let (old, new) = (blueprint(old, &snapshot), blueprint(new, &snapshot));
            new.update(Nanos::ZERO, &old)
        };
        let holds = |config: &Config| {
            let update = update(config, config);
            assert!(update.egress.iter().all(|e| matches!(e, EgressUpdate::Keep)));
            update.queue_packets_max
        };
        let (of_two, of_five) = (holds(&two), holds(&five));
        let rings =
            |config: &Config| config.ports.iter().map(|p| p.rx_ring as usize).sum::<usize>();
        assert!(5 * of_five + rings(&five) <= 32_768 && of_five < of_two, "{of_two}, {of_five}");
        // A class tree keeps what it was made with; a worker bounds both kinds.
        let grown = |update: &Update| {
            let grows = |e: &EgressUpdate| matches!(e, EgressUpdate::Grow(_));
            update.egress.iter().map(grows).collect::<Vec<_>>()
        };
        let more = update(&two, &five);
        assert_eq!(more.queue_packets_max, of_five);
        assert_eq!(grown(&more), [true, false, false, false, false]);
        let fewer = update(&five, &two);
        assert_eq!((fewer.queue_packets_max, grown(&fewer)), (of_two, vec![true, false]));
    }
}
