//! The workers as the control plane sees them: rings, counters, threads.

use std::collections::VecDeque;
use std::sync::Arc;

use super::threads::Load;
use crate::base::Nanos;
use crate::flow::Serving;
use crate::forward::{Routes, Tables};
use crate::nic::steer::OffloadOrder;
use crate::nic::xsk::XskPort;
use crate::observe::{Latencies, SharedStats, Stats};
use crate::worker::offload::OffloadRing;
use crate::worker::{
    FlowCount, FlowsOf, PortDesk, PortOrder, WorkerCommand, WorkerEvent, WorkerLink, WorkerThread,
};

/// One worker's seat.
pub struct Seat {
    pub id: u16,
    link: WorkerLink,
    stats: Arc<SharedStats>,
    /// The thread that runs the worker, as it has told.
    pub(super) thread: u16,
    /// The one that it is to go to; the same, mostly.
    pub(super) bound_for: u16,
    /// How busy the worker was of late.
    pub(super) load: Load,
    /// Commands that found the ring full: the worker hangs or is busy. In order.
    outbox: VecDeque<WorkerCommand>,
    /// Where ports come and go.
    counter: Counter<XskPort>,
    /// What the XDP programs are to forward of its flows.
    offload: Option<OffloadRing>,
}

impl Seat {
    pub fn new(id: u16, link: WorkerLink, stats: Arc<SharedStats>, thread: u16) -> Seat {
        Seat {
            id,
            link,
            stats,
            thread,
            bound_for: thread,
            load: Load::default(),
            outbox: VecDeque::new(),
            counter: Counter::default(),
            offload: None,
        }
    }

    /// Where the worker looks for ports that come or go.
    pub fn set_desk(&mut self, desk: PortDesk<XskPort>) {
        self.counter = Counter { desk, waiting: VecDeque::new() };
    }

    /// Gives orders, at once or as soon as there is room for them. The worker does them between two
    /// turns.
    pub fn exchange(&mut self, orders: impl IntoIterator<Item = PortOrder<XskPort>>) {
        self.counter.waiting.extend(orders);
        self.order();
    }

    /// What came of the next order.
    pub fn exchanged(&self) -> Option<PortOrder<XskPort>> {
        self.counter.desk.done()
    }

    fn order(&mut self) {
        if self.counter.order() {
            self.send(WorkerCommand::Ports);
        }
    }

    /// The worker hands flows down.
    pub fn set_offload(&mut self, ring: OffloadRing) {
        self.offload = Some(ring);
    }

    /// The next order of the worker to the XDP programs.
    pub fn next_order(&self) -> Option<OffloadOrder> {
        self.offload.as_ref()?.next()
    }

    /// Gives a command; one that finds no room is given later, by [`Crew::poll`].
    pub fn send(&mut self, command: WorkerCommand) {
        // Of two states of the routes or the weights the worker needs the newer one only: a worker
        // that hangs piles up nothing.
        match &command {
            WorkerCommand::Routes(_) => {
                self.outbox.retain(|c| !matches!(c, WorkerCommand::Routes(_)));
            }
            WorkerCommand::Forward(_) => {
                self.outbox.retain(|c| !matches!(c, WorkerCommand::Forward(_)));
            }
            _ => {}
        }
        self.outbox.push_back(command);
        self.flush();
    }

    /// Whether all commands so far have reached the worker's ring.
    pub fn is_reached(&self) -> bool {
        self.outbox.is_empty()
    }

    /// What the worker published last.
    pub fn stats(&self) -> Stats {
        self.stats.read()
    }

    /// How long answers take, as the worker has seen.
    pub fn latencies(&self) -> &Latencies {
        self.stats.latencies()
    }

    /// What backends are busy with, as the worker has seen.
    pub fn serving(&self) -> &Serving {
        self.stats.serving()
    }

    fn flush(&mut self) {
        while let Some(command) = self.outbox.pop_front() {
            if let Err(command) = self.link.send(command) {
                self.outbox.push_front(command);
                return;
            }
        }
    }
}

/// The control plane's side of a desk.
struct Counter<P> {
    desk: PortDesk<P>,
    /// Orders that it had no room for. In order.
    waiting: VecDeque<PortOrder<P>>,
}

impl<P> Default for Counter<P> {
    fn default() -> Counter<P> {
        Counter { desk: PortDesk::default(), waiting: VecDeque::new() }
    }
}

impl<P> Counter<P> {
    /// Leaves orders as far as there is room; whether there are new ones at the desk.
    fn order(&mut self) -> bool {
        let before = self.waiting.len();
        while let Some(order) = self.waiting.pop_front() {
            if let Err(order) = self.desk.order(order) {
                self.waiting.push_front(order);
                break;
            }
        }
        self.waiting.len() < before
    }
}

/// All workers, in the order of their numbers, and the threads that run them.
#[derive(Default)]
pub struct Crew {
    pub seats: Vec<Seat>,
    /// By number.
    pub(super) threads: Vec<Option<WorkerThread>>,
}

impl Crew {
    /// Gives routes to all.
    pub fn reroute(&mut self, routes: &Arc<Routes>) {
        for seat in &mut self.seats {
            seat.send(WorkerCommand::Routes(Arc::clone(routes)));
        }
    }

    /// Gives new weights to all.
    pub fn reweigh(&mut self, tables: &Arc<Tables>) {
        for seat in &mut self.seats {
            seat.send(WorkerCommand::Forward(Arc::clone(tables)));
        }
    }

    /// Ways to give the workers commands past their seats.
    pub fn links(&self) -> impl Iterator<Item = WorkerLink> {
        self.seats.iter().map(|seat| seat.link.clone())
    }

    /// Has all count at places below this.
    pub fn reserve(&self, places: usize) {
        self.seats.iter().for_each(|seat| seat.serving().reserve(places));
    }

    /// Flows that count at a place, on all workers.
    pub fn connections(&self, place: u16) -> u64 {
        self.seats.iter().map(|s| u64::from(s.serving().own_connections(place))).sum()
    }

    /// Has all cut the flows of some backends or services.
    pub fn cut(&mut self, of: &FlowsOf) {
        for seat in &mut self.seats {
            seat.send(WorkerCommand::CutFlows(Box::new(FlowCount::new(of.clone()))));
        }
    }

    /// Takes what workers told, into `events`, and gives what could not be given before.
    pub fn poll(&mut self, events: &mut Vec<(u16, WorkerEvent)>) {
        for seat in &mut self.seats {
            while let Some(event) = seat.link.recv() {
                events.push((seat.id, event));
            }
            seat.order();
            seat.flush();
        }
    }

    /// Asks all to send what waits, until the deadline, and end.
    pub fn stop(&mut self, deadline: Nanos) {
        for seat in &mut self.seats {
            seat.send(WorkerCommand::Stop { deadline });
        }
        self.dismiss(0);
    }
}

#[cfg(test)]
pub(super) mod tests {
    use std::path::Path;
    use std::time::{Duration, Instant};

    use super::*;
    use crate::base::Seed;
    use crate::config;
    use crate::control::appliance::blueprint;
    use crate::forward::RoutesBuilder;
    use crate::forward::Tables;
    use crate::graph::Snapshot;
    use crate::nic::memory::MemoryPort;
    use crate::nic::wake::Sleeper;
    use crate::nic::{Port, PortStats};
    use crate::packet::{Frame, FramePool, PortId};
    use crate::policy::Rules;
    use crate::worker::command::control_link;
    use crate::worker::spec::IdleStrategy;
    use crate::worker::{
        Clock, Exchange, Frames, Handover, NoHeartbeat, Own, Runnable, Side, ThreadParts, Threads,
        Update,
    };

    const TEXT: &str = "pipeline = \"router\"\n[workers]\nflows_max = 1000\n\
                        [port.a]\ninterface = \"a\"\n[transit]\nprefixes = [\"10.0.0.0/8\"]\n";
    const LIMIT: Duration = Duration::from_secs(20);

    /// A port with a bug.
    pub struct Bomb;

    impl Port for Bomb {
        fn rx_burst(&mut self, _: Nanos, _: &mut FramePool, _: &mut Vec<Frame>, _: usize) -> usize {
            panic!("the fuse burnt down")
        }
        fn tx_burst(&mut self, _: Nanos, _: &mut FramePool, _: &mut Vec<Frame>) -> usize {
            0
        }
        fn tx_room(&self) -> usize {
            0
        }
        fn poll(&mut self, _: Nanos, _: &mut FramePool) {}
        fn tx_in_flight_bytes(&self) -> u64 {
            0
        }
        fn stats(&self) -> PortStats {
            PortStats::default()
        }
        fn close(&mut self, _: &mut FramePool) {}
    }

    pub fn crew<P: Port + Send + 'static>(port: P, clock: &Clock) -> (Crew, Snapshot) {
        crew_at(PortDesk::default(), port, clock)
    }

    fn crew_at<P: Port + Send + 'static>(
        desk: PortDesk<P>,
        port: P,
        clock: &Clock,
    ) -> (Crew, Snapshot) {
        let config = config::load_text(Path::new("t.toml"), TEXT).expect("a good file");
        let seed = Seed(1);
        let routes = RoutesBuilder::new(Vec::new(), seed).build(1);
        let snapshot = Snapshot {
            forward: Arc::new(Tables::build(&config.forward, 1, seed)),
            routes: Arc::new(routes),
            rules: Arc::new(Rules::compile(&config.rules)),
            seed,
            worker_count: 1,
            meters: Default::default(),
            limits: Default::default(),
            shared_ports: Default::default(),
        };
        let sleeper = Sleeper::new().expect("eventfd");
        let (control, link) = control_link(Some(sleeper.waker()));
        let stats = Arc::new(SharedStats::new(1));
        let own = Own {
            id: 0,
            ports: vec![port],
            pool: FramePool::standalone(256, 2048),
            handover: Handover::mesh(1, 4).remove(0),
            control,
            stats: Arc::clone(&stats),
        };
        let (idle, clock) = (IdleStrategy::Adaptive, clock.clone());
        let parts = ThreadParts { number: 0, core: None, idle, clock };
        let mut worker = blueprint(&config, &snapshot).worker(own);
        worker.set_desk(desk);
        let runnable = Runnable::new(worker, Box::new(NoHeartbeat), sleeper.waker());
        let threads = Threads::new(1).expect("a place");
        let thread = threads.spawn(parts, vec![runnable]).expect("a thread");
        let mut crew = Crew { seats: vec![Seat::new(0, link, stats, 0)], ..Crew::default() };
        crew.add_thread(0, thread);
        (crew, snapshot)
    }

    /// Polls until all threads have ended, or a worker by a bug; what was told is added to
    /// `events`.
    fn end(crew: &mut Crew, events: &mut Vec<(u16, WorkerEvent)>) -> Option<(u16, String)> {
        let start = Instant::now();
        loop {
            crew.poll(events);
            let fallen = crew.fallen();
            if fallen.is_some() || crew.is_empty() {
                return fallen;
            }
            assert!(start.elapsed() < LIMIT, "the worker goes on");
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    #[test]
    fn a_worker_that_panics_is_told_of_once_in_its_own_words() {
        let (mut crew, _) = crew(Bomb, &Clock::new());
        let fallen = end(&mut crew, &mut Vec::new());
        assert_eq!(fallen, Some((0, "the fuse burnt down".into())));
        assert!(crew.fallen().is_none() && crew.is_empty());
    }

    #[test]
    fn routes_go_out_old_ones_come_back_and_a_stop_ends_it() {
        let clock = Clock::new();
        let (mut crew, snapshot) = crew(MemoryPort::pair(8).0, &clock);
        assert!(crew.going_on() == "thread 0 (worker 0)" && !crew.is_empty());
        let old = Arc::downgrade(&snapshot.routes);
        let fresh = RoutesBuilder::new(Vec::new(), Seed(1)).build(2);
        crew.reroute(&Arc::new(fresh));
        crew.stop(clock.now());
        let mut events = Vec::new();
        assert_eq!(end(&mut crew, &mut events), None);
        let came_back = |(_, event): &(u16, WorkerEvent)| match event {
            WorkerEvent::OldRoutes(routes) => Arc::as_ptr(routes) == old.as_ptr(),
            _ => false,
        };
        crew.poll(&mut events);
        assert!(events.iter().any(came_back), "the routes that it started with");
        assert!(crew.seats[0].is_reached());
    }

    /// What it replaced, and how long it took: one place for an answer is too few.
    #[test]
    fn an_update_waits_until_there_is_room_for_all_that_answers_it() {
        const EVENTS_MAX: usize = 256;
        let (mut crew, snapshot) = crew(MemoryPort::pair(8).0, &Clock::new());
        let start = Instant::now();
        let mut commands: Vec<_> =
            (1..EVENTS_MAX).map(|_| WorkerCommand::ListClasses(Vec::new())).collect();
        let (pipeline, egress, queue_packets_max) = (None, Vec::new(), 8);
        let in_flight = Box::default();
        let update = Update { snapshot, pipeline, egress, queue_packets_max, in_flight };
        commands.insert(0, WorkerCommand::Update(Box::new(update)));
        while let Some(mut command) = commands.pop() {
            while let Err(refused) = crew.seats[0].link.send(command) {
                command = refused;
                assert!(start.elapsed() < LIMIT, "the worker hangs");
                std::thread::yield_now();
            }
        }
        std::thread::sleep(Duration::from_millis(50));
        let mut told = [0; 2];
        while told != [1, 1] {
            assert!(crew.fallen().is_none() && start.elapsed() < LIMIT, "{told:?}");
            while let Some(event) = crew.seats[0].link.recv() {
                told[0] += usize::from(matches!(event, WorkerEvent::Old(_)));
                told[1] += usize::from(matches!(event, WorkerEvent::Blocked(_)));
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        crew.stop(Nanos::ZERO);
        assert_eq!(end(&mut crew, &mut Vec::new()), None);
    }

    #[test]
    fn a_port_takes_the_next_number_or_comes_back() {
        let clock = Clock::new();
        let desk = PortDesk::default();
        let (mut crew, _) = crew_at(desk.clone(), MemoryPort::pair(8).0, &clock);
        let mut comes_back = |id| {
            let side = Some(Side::vacant(MemoryPort::pair(8).0));
            let exchange = Exchange { id: PortId(id), side, slots: None, room: Vec::new() };
            assert!(desk.order(PortOrder::Exchange(Box::new(exchange))).is_ok());
            crew.seats[0].send(WorkerCommand::Ports);
            let start = Instant::now();
            loop {
                match desk.done() {
                    Some(PortOrder::Exchange(done)) => return done.side.is_some(),
                    _ => assert!(start.elapsed() < LIMIT, "the worker hangs"),
                }
                std::thread::sleep(Duration::from_millis(1));
            }
        };
        assert_eq!([2, 1, 2, 0].map(&mut comes_back), [true, false, false, true]);
        crew.stop(clock.now());
        assert_eq!(end(&mut crew, &mut Vec::new()), None);
    }

    /// More than the desk has room for: the worker does them all, in the end.
    #[test]
    fn orders_that_find_no_room_are_given_later() {
        const ORDERS: usize = 1_000;
        let clock = Clock::new();
        let desk = PortDesk::default();
        let (mut crew, _) = crew_at(desk.clone(), MemoryPort::pair(8).0, &clock);
        let orders = (0..ORDERS).map(|_| PortOrder::Frames(Frames(Vec::new())));
        let mut counter = Counter { desk, waiting: orders.collect() };
        assert!(counter.order() && !counter.order() && !counter.waiting.is_empty());
        let (mut done, start) = (0, Instant::now());
        while done < ORDERS {
            crew.seats[0].send(WorkerCommand::Ports);
            done += std::iter::from_fn(|| counter.desk.done()).count();
            counter.order();
            assert!(start.elapsed() < LIMIT, "{done} orders are done");
            std::thread::sleep(Duration::from_millis(1));
        }
        crew.stop(clock.now());
        assert_eq!(end(&mut crew, &mut Vec::new()), None);
    }

    #[test]
    fn of_routes_that_wait_only_the_newest_is_kept() {
        let (mut crew, snapshot) = crew(Bomb, &Clock::new());
        let _ = end(&mut crew, &mut Vec::new());
        // Nobody takes commands any more: the ring fills up.
        for _ in 0..1_000 {
            crew.reroute(&snapshot.routes);
        }
        assert!(!crew.seats[0].is_reached());
        assert_eq!(crew.seats[0].outbox.len(), 1);
        for _ in 0..100 {
            crew.reweigh(&snapshot.forward);
            crew.reroute(&snapshot.routes);
        }
        assert_eq!(crew.seats[0].outbox.len(), 2, "the newest of each");
    }
}
