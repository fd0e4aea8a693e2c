//! The appliance as a whole: made, changed, taken down.

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use super::announce::{self, Announcer};
use super::checks::{Passage, way};
use super::copies::Copies;
use super::crew::{Crew, Seat};
use super::exchanges::Exchanges;
use super::netlink::{self, Keeper, Netlink, NetlinkError, NetlinkOptions};
use super::pools::Pools;
use super::port_state::PortState;
use super::routes::{RouteFeed, kept_neighbours, other_tables};
use super::steering::{SteerTables, Steering};
use super::threads::thread_of;
use crate::base::Seed;
use crate::config::Config;
use crate::flow::table::FLOW_BYTES_MAX;
use crate::forward::spec::ServiceSpec;
use crate::graph::Snapshot;
use crate::nic::restore::{Changes, STATE_DIR, restore_leftovers};
use crate::nic::spec::PORTS_MAX;
use crate::nic::steer::{self, kernel_now};
use crate::nic::wake::Sleeper;
use crate::nic::xsk::XskPort;
use crate::nic::{Nic, NicError, Opener};
use crate::observe::SharedStats;
use crate::packet::CopyTo;
use crate::policy::Rules;
use crate::qos::limits::Limits;
use crate::qos::meters::Meters;
use crate::worker::command::control_link;
use crate::worker::handover::RING_PACKETS;
use crate::worker::offload::{Offload, OffloadRing};
use crate::worker::spec::{OnFailure, WorkersSpec};
use crate::worker::{Blueprint, Clock, Handover, Heartbeat, Own, PortDesk, Runnable, Threads};

/// Why the appliance can't start.
#[derive(Debug, thiserror::Error)]
pub enum BootError {
    #[error("{0}")]
    Nic(#[from] NicError),
    #[error("{0}")]
    Netlink(#[from] NetlinkError),
    #[error(
        "no memory for the tables of {workers} x {flows} flows, {bytes} bytes: lower \
         `workers.flows_max`, or give this process more"
    )]
    Memory { workers: u16, flows: u32, bytes: usize },
    #[error("routes to VIPs can't be announced over netlink: {0}")]
    Announce(#[source] std::io::Error),
    #[error("health checks can't go the way of real traffic, for want of {0}")]
    Checks(#[source] std::io::Error),
    #[error("can't start a thread: {0}")]
    Thread(#[source] std::io::Error),
    #[error("worker {worker}: {source}")]
    Worker { worker: u16, source: std::io::Error },
}

/// Everything that runs. Made by [`Appliance::boot`], driven by [`super::run`].
pub struct Appliance {
    pub(super) config: Config,
    pub(super) netlink: Netlink,
    pub(super) feed: RouteFeed,
    pub(super) keeper: Keeper,
    pub(super) snapshot: Snapshot,
    pub(super) pools: Pools,
    passage: Passage,
    pub(super) crew: Crew,
    pub(super) threads: Threads<XskPort>,
    announcer: Announcer,
    pub(super) copies: Copies,
    /// By [`crate::packet::PortId`]; `None` where there is none.
    pub(super) ports: Vec<Option<PortState>>,
    pub(super) exchanges: Exchanges,
    pub(super) clock: Clock,
    pub(super) started: Instant,
    pub(super) reloads: u64,
    pub(super) reloads_refused: u64,
    /// Configurations that nobody has confirmed in time.
    pub(super) rollbacks: u64,
    // Dropped in this order: the sockets, the programs, then what was changed on the interfaces.
    pub(super) opener: Opener,
    pub(super) steering: Steering,
    pub(super) changes: Changes,
}

impl Appliance {
    /// Opens the ports, fills the tables, starts the workers. Needs a tokio runtime on this thread.
    ///
    /// # Errors
    /// See [`BootError`]; everything is undone then.
    pub async fn boot(config: Config) -> Result<Appliance, BootError> {
        check_memory(&config.workers)?;
        let state_dir = Path::new(STATE_DIR);
        restore(state_dir);
        let tables = other_tables(&config.ports);
        let options = NetlinkOptions { tables, ..NetlinkOptions::default() };
        let netlink = Netlink::connect(options).await?;
        let Nic { ports, pools, modes, opener, steer, changes } =
            crate::nic::open(&config.ports, &config.workers, state_dir)?;
        let states: Vec<_> = modes.into_iter().map(PortState::new).collect();
        states.iter().zip(&config.ports).for_each(|(state, port)| state.log(port));
        let seed = Seed::random();
        let mut feed = RouteFeed::new(&config.ports, seed).map_err(BootError::Thread)?;
        feed.start(netlink.mirror()).await;
        let routes = feed.routes(netlink.mirror());
        let clock = Clock::new();
        let announcer = Announcer::new(&config.announce).map_err(BootError::Announce)?;
        let mut standing = Pools::new(&config);
        let snapshot = Snapshot {
            forward: Arc::new(standing.tables(clock.now(), &config, seed)),
            routes: Arc::new(routes),
            rules: Arc::new(rules_of(&config)),
            seed,
            worker_count: config.workers.count_max,
            meters: Arc::new(Meters::build(&config.metering, None)),
            limits: Arc::new(Limits::build(&config.limits, seed, None, clock.now())),
            shared_ports: Default::default(),
        };
        let threads = Threads::new(config.workers.count_max).map_err(BootError::Thread)?;
        let mut appliance = Appliance {
            config,
            netlink,
            feed,
            keeper: Keeper::default(),
            snapshot,
            pools: standing,
            passage: Passage::new().map_err(BootError::Thread)?,
            crew: Crew::default(),
            threads,
            announcer,
            copies: Copies::new(clock.clone()),
            ports: states.into_iter().map(Some).collect(),
            exchanges: Exchanges::default(),
            clock,
            started: Instant::now(),
            reloads: 0,
            reloads_refused: 0,
            rollbacks: 0,
            opener,
            steering: Steering::new(steer),
            changes,
        };
        appliance.log_links();
        appliance.refresh_kept();
        appliance.spawn_workers(ports, pools)?;
        appliance.copies.set_config(&appliance.config).map_err(BootError::Thread)?;
        appliance.steering.set_local(appliance.netlink.mirror())?;
        let tables = SteerTables::of(&appliance.config);
        appliance.steering.check_room(&tables)?;
        appliance.steering.set_tables(tables)?;
        appliance.refresh_offload();
        appliance.steering.resume_offload(&appliance.snapshot.routes)?;
        appliance.begin_checks()?;
        Ok(appliance)
    }

    /// Lets health checks out by the workers, where any goes that way.
    fn begin_checks(&mut self) -> Result<(), BootError> {
        if way::goes_by_workers(&self.config) {
            self.open_passage().map_err(BootError::Checks)?;
        }
        if let Some(warning) = way::ports_warning(&self.config) {
            tracing::warn!("{warning}");
        }
        self.set_passage();
        self.pools.prober.set_door(self.passage.door());
        Ok(())
    }

    fn spawn_workers(
        &mut self,
        ports: Vec<Vec<XskPort>>,
        pools: Vec<crate::packet::FramePool>,
    ) -> Result<(), BootError> {
        let spec = &self.config.workers;
        let blueprint = blueprint(&self.config, &self.snapshot);
        let failed = |worker| move |source| BootError::Worker { worker, source };
        let mut sleepers = Vec::new();
        for worker in 0..spec.count_max {
            sleepers.push(Sleeper::new().map_err(failed(worker))?);
        }
        let wakers: Vec<_> = sleepers.iter().map(Sleeper::waker).collect();
        let slots = self.steering.steer().offload_slots();
        let mesh = Handover::mesh(spec.count_max, RING_PACKETS);
        let mut shares: Vec<_> = (0..spec.count).map(|_| Vec::new()).collect();
        let owned = ports.into_iter().zip(pools).zip(mesh).zip(sleepers);
        for (id, (((ports, pool), mut handover), sleeper)) in (0u16..).zip(owned) {
            handover.set_wakers(&wakers);
            let (control, link) = control_link(Some(sleeper.waker()));
            let stats = Arc::new(SharedStats::new(PORTS_MAX));
            stats.serving().reserve(self.pools.places_count());
            let own = Own { id, ports, pool, handover, control, stats: Arc::clone(&stats) };
            let mut worker = blueprint.worker(own);
            let desk = PortDesk::default();
            worker.set_desk(desk.clone());
            worker.set_copy_ring(self.copies.ring(spec.frame_size as usize));
            worker.set_check_ring(self.passage.ring());
            let ring = slots.clone().map(|slots| {
                let (ring, flows) = (OffloadRing::new(), spec.flows_max as usize);
                worker.set_offload(Offload::new(id, spec.count_max, flows, ring.clone(), slots));
                ring
            });
            let beat = Box::new(Beat(self.steering.steer().heartbeat(id)));
            let thread = thread_of(id, spec.count);
            shares[usize::from(thread)].push(Runnable::new(worker, beat, sleeper.waker()));
            let mut seat = Seat::new(id, link, stats, thread);
            seat.set_desk(desk);
            ring.into_iter().for_each(|ring| seat.set_offload(ring));
            self.crew.seats.push(seat);
        }
        for (number, share) in (0u16..).zip(shares) {
            let parts = self.thread_parts(number, spec);
            let thread = self.threads.spawn(parts, share).map_err(BootError::Thread)?;
            self.crew.add_thread(number, thread);
        }
        Ok(())
    }

    /// Opens the way of checks through the workers, where it is not open yet.
    ///
    /// # Errors
    /// The kernel having no place for their sockets.
    pub(super) fn open_passage(&mut self) -> std::io::Result<()> {
        self.passage.open(self.crew.links())
    }

    /// Says which ports of `[nat]` are for checks.
    pub(super) fn set_passage(&self) {
        self.passage.set_config(&self.config.forward);
    }

    /// Takes in what the kernel told. Other routes take effect once a forwarding table is built.
    pub(super) fn changed(&mut self, changes: netlink::Changes) {
        let rest = changes.rest;
        self.feed.update(self.netlink.mirror(), changes);
        if rest {
            self.log_links();
            self.reroute();
        }
    }

    /// Hands out routes by the mirror's present state and the last forwarding table.
    pub(super) fn reroute(&mut self) {
        self.snapshot.routes = Arc::new(self.feed.routes(self.netlink.mirror()));
        if let Err(error) = self.steering.resume_offload(&self.snapshot.routes) {
            tracing::error!(%error, "new routes could not be told to the XDP program");
        }
        self.crew.reroute(&self.snapshot.routes);
        self.refresh_kept();
        if let Err(error) = self.steering.set_local(self.netlink.mirror()) {
            tracing::error!(%error, "the box's own addresses could not be told to the XDP program");
        }
    }

    /// Hands out new weights, where the state of things asks for other ones.
    pub(super) fn reweigh(&mut self) {
        let (now, seed) = (self.clock.now(), self.snapshot.seed);
        if let Some(tables) = self.pools.renewed(now, &self.config, seed) {
            self.snapshot.forward = Arc::new(tables);
            self.crew.reweigh(&self.snapshot.forward);
        }
        self.announce();
    }

    /// Has those addresses announced that somebody serves.
    fn announce(&mut self) {
        let spec = &self.config.announce;
        if !self.announcer.is_for(spec) {
            match Announcer::new(spec) {
                Ok(announcer) => self.announcer = announcer,
                Err(error) => return tracing::error!(%error, "routes to VIPs can't be announced"),
            }
        }
        let wanted = announce::wanted(&self.config, &self.pools);
        if let Err(error) = self.announcer.set(&wanted) {
            tracing::error!(%error, "a route to a VIP could not be announced or withdrawn");
        }
    }

    /// Announces anew what somebody else has withdrawn.
    pub(super) fn renew_announced(&mut self) {
        if let Err(error) = self.announcer.renew() {
            tracing::error!(%error, "a route to a VIP could not be announced anew");
        }
    }

    /// Whether a service's VIP is announced; `None` where it is not to be.
    pub(super) fn is_announced(&self, service: &ServiceSpec) -> Option<bool> {
        let is_wanted = self.config.announce.services.contains(&service.id);
        is_wanted.then(|| self.announcer.announced().contains(&service.vip))
    }

    /// Background work that has ended by a bug.
    pub(super) fn dead(&self) -> u64 {
        let pools = self.pools.prober.dead() + self.pools.scraper.dead();
        pools as u64 + u64::from(self.copies.is_dead())
    }

    /// Withdraws all addresses; returns how long others may take to hear of it.
    pub(super) fn withdraw(&mut self) -> Duration {
        let announced = !self.announcer.announced().is_empty();
        if let Err(error) = self.announcer.set(&BTreeSet::new()) {
            tracing::error!(%error, "a route to a VIP could not be withdrawn");
        }
        if announced { self.config.announce.withdraw_wait } else { Duration::ZERO }
    }

    /// Cuts the flows of backends that have gone down, where their pools say so.
    pub(super) fn cut_downed(&mut self) {
        for of in self.pools.take_downed(&self.config) {
            self.crew.cut(&of);
        }
    }

    /// Backends, collectors and gateways are resolved ahead of need.
    pub(super) fn refresh_kept(&mut self) {
        let pools = self.config.forward.pools.iter();
        let backends = pools.flat_map(|p| p.backends.iter().map(|b| b.addr));
        let collectors = self.config.rules.iter().filter_map(|rule| match rule.mirror?.to {
            CopyTo::Host(host) => Some(host),
            CopyTo::Port(_) | CopyTo::Files(_) => None,
        });
        let kept = kept_neighbours(&self.snapshot.routes, backends.chain(collectors));
        self.keeper.set_kept(kept);
    }

    /// Lets the XDP programs outlive this process, where the configuration wants our traffic
    /// dropped rather than passed on: for an end that nobody asked for. The next start clears up.
    pub(super) fn abandon(&mut self) {
        if self.config.workers.on_failure == OnFailure::Drop {
            self.steering.leave();
            self.changes.leave();
        }
    }
}

/// Whether the flow tables can be had: refused here, it is an error and not an abort later.
fn check_memory(workers: &WorkersSpec) -> Result<(), BootError> {
    let (count, flows) = (workers.count_max, workers.flows_max);
    let bytes = usize::from(count) * flows as usize * FLOW_BYTES_MAX;
    let refused = |_| BootError::Memory { workers: count, flows, bytes };
    Vec::<u8>::new().try_reserve_exact(bytes).map_err(refused)
}

/// The rules of a configuration, ready for use.
pub(super) fn rules_of(config: &Config) -> Rules {
    // Classes that have others below them carry no packets.
    let mut class_names = config.class_names.clone();
    for inner in config.qos.iter().flat_map(|q| &q.classes).filter_map(|class| class.parent) {
        if let Some(name) = class_names.get_mut(usize::from(inner.0)) {
            name.clear();
        }
    }
    let rules = Rules::compile(&config.rules);
    let rules = rules.with_catalogue(config.catalogue.clone(), &class_names);
    rules.set_time(unix_seconds());
    rules
}

/// The time of day, which rules may depend on.
pub(super) fn unix_seconds() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.map_or(0, |since| since.as_secs() as i64)
}

/// What workers are built from, and compared by in a reload.
pub(super) fn blueprint<'a>(config: &'a Config, snapshot: &'a Snapshot) -> Blueprint<'a> {
    Blueprint {
        workers: &config.workers,
        ports: &config.ports,
        pipeline: &config.pipeline,
        qos: &config.qos,
        snapshot,
    }
}

/// A worker's sign of life, on the clock that the XDP programs read.
struct Beat(steer::Heartbeat);

impl Heartbeat for Beat {
    fn beat(&mut self) {
        #[cfg(test)]
        super::fuse::burn(super::fuse::WORKER);
        self.0.stamp(kernel_now());
    }
}

/// Undoes what a killed run has left changed.
fn restore(state_dir: &Path) {
    let restored = match restore_leftovers(state_dir) {
        Ok(restored) => restored,
        Err(error) => {
            return tracing::warn!(%error, "could not look for leftovers of a killed run");
        }
    };
    for r in restored {
        tracing::info!(
            interface = r.interface,
            switched_on = ?r.switched_on,
            detached = r.detached,
            companion_removed = r.companion,
            "restored what a killed run had left changed"
        );
    }
}
