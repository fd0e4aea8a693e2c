//! The control loop: one thread beside the workers.

use std::time::Duration;

use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::{mpsc, oneshot};

use super::appliance::{Appliance, unix_seconds};
use super::ask::Ask;
use super::classes::Classes;
use super::draining::Draining;
use super::keeping::Keeping;
use super::listing::Listing;
use super::netlink::NetlinkError;
use super::pools::{Found, Scraped};
use super::taking_over::TakeOver;
use super::ticks::every;
use super::trial::Trial;
use crate::worker::WorkerEvent;

/// How often workers are listened to. A packet that waits for its neighbour waits for this, too.
const TICK: Duration = Duration::from_millis(2);
/// Flows of one worker that are handed down or taken back in a tick at most.
const ORDERS_A_TICK: usize = 1_024;
/// How often neighbours and classes are looked after.
const HOUSEKEEPING: Duration = Duration::from_secs(1);
/// Packets that are in receive rings when steering ends are given this long.
const RINGS_EMPTY_WITHIN: Duration = Duration::from_millis(20);
/// Beyond their deadline, workers are given this long to end, for each that one thread runs: the
/// kernel lets their sockets go one by one.
const END_GRACE: Duration = Duration::from_secs(1);

/// An end that nobody asked for.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    #[error("worker {worker} ended: {reason}; traffic goes by `on_failure` now")]
    WorkerDied { worker: u16, reason: String },
    #[error("{0}")]
    Netlink(#[from] NetlinkError),
    /// Which of a thread's workers it is can't be told: they take turns.
    #[error("hung: {threads} did not end within {limit:?}")]
    Hangs { threads: String, limit: Duration },
}

/// The signals that the process obeys.
#[derive(Debug)]
pub struct Signals {
    terminate: Signal,
    interrupt: Signal,
    hang_up: Signal,
}

impl Signals {
    /// From now on the signals no longer end the process by themselves: what comes while the
    /// appliance starts is obeyed once it runs. Needs a tokio runtime.
    ///
    /// # Errors
    /// The kernel refusing a handler.
    pub fn install() -> std::io::Result<Signals> {
        Ok(Signals {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            hang_up: signal(SignalKind::hangup())?,
        })
    }
}

/// Why the loop ended in order.
enum End {
    Signal(&'static str),
    Asked(oneshot::Sender<()>),
}

/// Runs until a signal or a question ends it; then drains and takes everything down.
///
/// # Errors
/// See [`RunError`]; the process is to exit, and the interfaces are released or, with `on_failure =
/// "drop"`, kept closed.
pub async fn run(
    appliance: Appliance,
    asks: mpsc::Receiver<Ask>,
    mut signals: Signals,
) -> Result<(), RunError> {
    let mut control = Control {
        appliance,
        take_over: None,
        trial: None,
        listing: Listing::default(),
        draining: Draining::default(),
        keeping: Keeping::default(),
        classes: Classes::default(),
        events: Vec::new(),
        due: Vec::new(),
    };
    match control.serve(asks, &mut signals).await {
        Ok(end) => control.finish(end).await,
        Err(error) => {
            control.appliance.abandon();
            Err(error)
        }
    }
}

/// The appliance and what is under way with it. Where a panic drops it, the appliance is abandoned.
pub(super) struct Control {
    pub(super) appliance: Appliance,
    pub(super) take_over: Option<TakeOver>,
    pub(super) trial: Option<Trial>,
    pub(super) listing: Listing,
    pub(super) draining: Draining,
    pub(super) keeping: Keeping,
    pub(super) classes: Classes,
    events: Vec<(u16, WorkerEvent)>,
    due: Vec<(u32, crate::base::Addr)>,
}

impl Drop for Control {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.appliance.abandon();
        }
    }
}

impl Control {
    async fn serve(
        &mut self,
        mut asks: mpsc::Receiver<Ask>,
        signals: &mut Signals,
    ) -> Result<End, RunError> {
        let (mut tick, mut housekeeping) = (every(TICK), every(HOUSEKEEPING));
        loop {
            tokio::select! {
                heard = self.appliance.netlink.heard() => {
                    heard?;
                    let changes = self.appliance.netlink.take_changes();
                    if !changes.is_empty() {
                        self.appliance.changed(changes);
                    }
                }
                () = self.appliance.feed.built() => self.appliance.reroute(),
                found = self.appliance.pools.prober.found() => self.checked(found),
                scraped = self.appliance.pools.scraper.scraped() => self.scraped(scraped),
                _ = tick.tick() => self.listen()?,
                _ = housekeeping.tick() => self.keep_house()?,
                _ = signals.terminate.recv() => return Ok(End::Signal("SIGTERM")),
                _ = signals.interrupt.recv() => return Ok(End::Signal("SIGINT")),
                _ = signals.hang_up.recv() => self.reload(None, None),
                Some(ask) = asks.recv() => match ask {
                    Ask::Overview(reply) => drop(reply.send(self.overview())),
                    Ask::Flows { limit, reply } => self.list_flows(limit, reply),
                    Ask::Reload { confirm, reply } => self.reload(confirm, Some(reply)),
                    Ask::Compare(reply) => self.compare(reply),
                    Ask::Confirm(reply) => self.confirm(reply),
                    Ask::Drain { target, drained, flush, reply } => {
                        self.drain(&target, (drained, flush), reply);
                    }
                    Ask::Drained { target, reply } => self.count_left(&target, None, reply),
                    Ask::Stop(reply) => return Ok(End::Asked(reply)),
                },
            }
        }
    }

    /// Hears what workers have to tell, and whether they live.
    fn listen(&mut self) -> Result<(), RunError> {
        #[cfg(test)]
        super::fuse::burn(super::fuse::CONTROL);
        let mut events = std::mem::take(&mut self.events);
        self.appliance.crew.poll(&mut events);
        for (worker, event) in events.drain(..) {
            match event {
                WorkerEvent::Old(update) => {
                    self.given_back(worker);
                    drop(update);
                }
                WorkerEvent::Blocked(blocked) => self.blocked(worker, blocked),
                WorkerEvent::Moved { thread, blocked } => self.moved(worker, thread, blocked),
                WorkerEvent::OldEgress(queue) => drop(queue),
                WorkerEvent::OldRoutes(routes) => drop(routes),
                WorkerEvent::OldTables(tables) => drop(tables),
                WorkerEvent::Counted(count) => self.flows_counted(worker, &count),
                WorkerEvent::Keys(list) => self.keys_listed(worker, list),
                WorkerEvent::Cut(count) => self.flows_cut(worker, &count),
                WorkerEvent::Flows(list) => self.flows_listed(worker, list),
                WorkerEvent::Classes(at, rows) => self.classes.take(worker, at, rows),
                WorkerEvent::Wanted(port, addr) => self.wanted(port, addr)?,
            }
        }
        self.events = events;
        self.obey_orders();
        let a = &mut self.appliance;
        let now = a.clock.now();
        a.pools.share_counts(now, &a.crew);
        if a.pools.look_for_outliers(now, &a.config, &a.crew) {
            a.reweigh();
        }
        self.check_take_over();
        self.check_trial();
        self.check_listing();
        self.check_draining();
        self.check_keeping();
        self.appliance.crew.fallen().map_or(Ok(()), |(worker, words)| Err(died(worker, &words)))
    }

    /// Has the XDP programs forward what workers hand down.
    fn obey_orders(&mut self) {
        let a = &mut self.appliance;
        for seat in &a.crew.seats {
            for order in std::iter::from_fn(|| seat.next_order()).take(ORDERS_A_TICK) {
                a.steering.offload(&order);
            }
        }
    }

    fn wanted(
        &mut self,
        port: crate::packet::PortId,
        addr: crate::base::Addr,
    ) -> Result<(), NetlinkError> {
        let a = &mut self.appliance;
        let Some(link) = a.snapshot.routes.ports().get(usize::from(port.0)) else { return Ok(()) };
        let (now, ifindex) = (a.clock.now(), link.ifindex);
        if ifindex != 0 && a.keeper.wanted(now, a.netlink.mirror(), ifindex, addr) {
            a.netlink.resolve(ifindex, addr)?;
        }
        Ok(())
    }

    fn keep_house(&mut self) -> Result<(), NetlinkError> {
        let a = &mut self.appliance;
        let ifindexes = a.feed.ifindexes(a.netlink.mirror());
        self.due.clear();
        a.keeper.due(a.clock.now(), a.netlink.mirror(), &ifindexes, &mut self.due);
        for &(ifindex, addr) in &self.due {
            a.netlink.resolve(ifindex, addr)?;
        }
        a.crew.look_at_loads(a.clock.now());
        self.classes.ask(&mut a.crew, &a.config);
        a.refresh_offload();
        a.snapshot.rules.set_time(unix_seconds());
        a.pools.tell_loads(a.clock.now(), &a.config, &a.crew);
        a.renew_announced();
        // Weights of backends that have returned grow with time.
        a.reweigh();
        Ok(())
    }

    /// Takes in what checks found, all that wait together.
    fn checked(&mut self, found: Found) {
        let a = &mut self.appliance;
        let now = a.clock.now();
        let mut next = Some(found);
        while let Some(found) = next {
            a.pools.found(now, &a.config, found);
            next = a.pools.prober.waiting();
        }
        a.reweigh();
        a.cut_downed();
    }

    /// Takes in what an engine has told.
    fn scraped(&mut self, scraped: Scraped) {
        let a = &mut self.appliance;
        a.pools.scraped(a.clock.now(), &a.config, &a.crew, scraped);
    }

    /// The end in order: nothing more is steered here, what waits is sent, then all is released.
    async fn finish(mut self, end: End) -> Result<(), RunError> {
        let (cause, reply) = match end {
            End::Signal(name) => (name, None),
            End::Asked(reply) => ("stop", Some(reply)),
        };
        let limit = self.appliance.config.workers.drain_limit;
        tracing::info!(cause, ?limit, "draining");
        // Traffic goes elsewhere before it is refused here.
        let wait = self.appliance.withdraw();
        self.go_on_for(wait).await?;
        self.appliance.steering.release();
        tokio::time::sleep(RINGS_EMPTY_WITHIN.min(limit)).await;
        let deadline = self.appliance.clock.now() + limit;
        self.appliance.crew.stop(deadline);
        let limit = limit + END_GRACE * self.appliance.crew.workers_of_one();
        let ended = tokio::time::timeout(limit, self.all_ended()).await;
        match ended {
            Ok(Ok(())) => {}
            Ok(Err(error)) => return Err(error),
            Err(_) => {
                let threads = self.appliance.crew.going_on();
                return Err(RunError::Hangs { threads, limit });
            }
        }
        // Detaches the programs and restores the interfaces, then tells who asked.
        drop(self);
        tracing::info!("stopped");
        if let Some(reply) = reply {
            let _ = reply.send(());
        }
        Ok(())
    }

    /// Listens to the workers for so long, and does nothing else.
    async fn go_on_for(&mut self, wait: Duration) -> Result<(), RunError> {
        let end = tokio::time::sleep(wait);
        tokio::pin!(end);
        let mut tick = every(TICK);
        loop {
            tokio::select! {
                () = &mut end => return Ok(()),
                _ = tick.tick() => self.listen()?,
            }
        }
    }

    async fn all_ended(&mut self) -> Result<(), RunError> {
        let mut tick = every(TICK);
        loop {
            tick.tick().await;
            self.appliance.crew.poll(&mut self.events);
            self.events.clear();
            if let Some((worker, words)) = self.appliance.crew.fallen() {
                return Err(died(worker, &words));
            }
            if self.appliance.crew.is_empty() {
                return Ok(());
            }
        }
    }
}

fn died(worker: u16, words: &str) -> RunError {
    RunError::WorkerDied { worker, reason: format!("panicked: {words}") }
}
