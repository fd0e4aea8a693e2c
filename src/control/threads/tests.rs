//! Workers that share threads and go from one to another, on wires in memory.

use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::*;
use crate::base::hash::Rng;
use crate::base::{Addr, Nanos, Seed};
use crate::config;
use crate::control::appliance::blueprint;
use crate::control::crew::Seat;
use crate::forward::{PortLink, RouteKind, RouteSpec, RoutesBuilder, Tables};
use crate::graph::Snapshot;
use crate::nic::memory::{MemoryEnd, MemoryPort};
use crate::nic::wake::Sleeper;
use crate::nic::{Port, PortStats};
use crate::observe::{Counters, SharedStats};
use crate::packet::build::{UdpSpec, udp_packet};
use crate::packet::{Frame, FramePool, PortId};
use crate::policy::Rules;
use crate::worker::command::control_link;
use crate::worker::spec::IdleStrategy;
use crate::worker::{Clock, Handover, Heartbeat, Own, Runnable, Threads, WorkerEvent};

const TEXT: &str = "pipeline = \"router\"\n[workers]\ncount = 1\ncount_max = 4\nflows_max = 1000\n\
                    [port.a]\ninterface = \"a\"\n[transit]\nprefixes = [\"10.0.0.0/8\"]\n";
const WORKERS: u16 = 4;
const LIMIT: Duration = Duration::from_secs(20);
const SEED: Seed = Seed(1);
const FRAMES: u32 = 512;

/// A port that may have a bug.
struct Fused<P> {
    port: P,
    burns: bool,
    ended: Arc<Ended>,
}

/// How ports end.
#[derive(Default)]
struct Ended {
    closed: AtomicU64,
    /// How many at once, each time that it was before any was closed.
    detached: Mutex<Vec<usize>>,
}

impl Ended {
    fn closed(&self) -> u64 {
        self.closed.load(Ordering::SeqCst)
    }

    fn detached(&self) -> Vec<usize> {
        self.detached.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl<P: Port> Port for Fused<P> {
    fn rx_burst(
        &mut self,
        now: Nanos,
        pool: &mut FramePool,
        out: &mut Vec<Frame>,
        max: usize,
    ) -> usize {
        assert!(!self.burns, "the fuse burnt down");
        self.port.rx_burst(now, pool, out, max)
    }
    fn tx_burst(&mut self, now: Nanos, pool: &mut FramePool, frames: &mut Vec<Frame>) -> usize {
        self.port.tx_burst(now, pool, frames)
    }
    fn tx_room(&self) -> usize {
        self.port.tx_room()
    }
    fn poll(&mut self, now: Nanos, pool: &mut FramePool) {
        self.port.poll(now, pool);
    }
    fn tx_in_flight_bytes(&self) -> u64 {
        self.port.tx_in_flight_bytes()
    }
    fn stats(&self) -> PortStats {
        self.port.stats()
    }
    fn detach_all(ports: &mut [&mut Self]) {
        if let Some(first) = ports.first().filter(|port| port.ended.closed() == 0) {
            let mut detached = first.ended.detached.lock().expect("no panic");
            detached.push(ports.len());
        }
    }
    fn close(&mut self, pool: &mut FramePool) {
        self.ended.closed.fetch_add(1, Ordering::SeqCst);
        self.port.close(pool);
    }
}

/// Counts beats.
struct Beats(Arc<AtomicU64>);

impl Heartbeat for Beats {
    fn beat(&mut self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}

/// Four workers, each with a port, and the threads that run them.
struct Rig {
    crew: Crew,
    threads: Threads<Fused<MemoryPort>>,
    ends: Vec<MemoryEnd>,
    beats: Vec<Arc<AtomicU64>>,
    ended: Arc<Ended>,
    clock: Clock,
    events: Vec<(u16, WorkerEvent)>,
}

impl Rig {
    /// With a bug in the port of `burning`, if of any.
    fn new(count: u16, burning: Option<u16>) -> Rig {
        let config = config::load_text(Path::new("t.toml"), TEXT).expect("a good file");
        let snapshot = Snapshot {
            forward: Arc::new(Tables::build(&config.forward, WORKERS, SEED)),
            routes: Arc::new(RoutesBuilder::new(Vec::new(), SEED).build(1)),
            rules: Arc::new(Rules::compile(&config.rules)),
            seed: SEED,
            worker_count: WORKERS,
            meters: Default::default(),
            limits: Default::default(),
            shared_ports: Default::default(),
        };
        let threads = Threads::new(WORKERS).expect("places");
        let (clock, ended) = (Clock::new(), Arc::<Ended>::default());
        let mut rig = Rig {
            crew: Crew::default(),
            threads,
            ends: Vec::new(),
            beats: Vec::new(),
            ended,
            clock,
            events: Vec::new(),
        };
        let wakers = [(); WORKERS as usize].map(|()| Sleeper::new().expect("eventfd").waker());
        let (arena, mut slots) =
            crate::base::mem::Arena::map(FRAMES * u32::from(WORKERS), 2_048, false)
                .expect("memory");
        let mut shares: Vec<_> = (0..count).map(|_| Vec::new()).collect();
        for (id, mut handover) in (0..WORKERS).zip(Handover::mesh(WORKERS, 64)) {
            handover.set_wakers(&wakers);
            let waker = wakers[usize::from(id)].clone();
            let (control, link) = control_link(Some(waker.clone()));
            let stats = Arc::new(SharedStats::new(1));
            let (port, end) = MemoryPort::pair(256);
            let ended = Arc::clone(&rig.ended);
            let port = Fused { port, burns: burning == Some(id), ended };
            let rest = slots.split_off(slots.len().min(FRAMES as usize));
            let pool = FramePool::new(Arc::clone(&arena), std::mem::replace(&mut slots, rest));
            let ports = vec![port];
            let own = Own { id, ports, pool, handover, control, stats: Arc::clone(&stats) };
            let worker = blueprint(&config, &snapshot).worker(own);
            let beats = Arc::new(AtomicU64::new(0));
            let runnable = Runnable::new(worker, Box::new(Beats(Arc::clone(&beats))), waker);
            let thread = thread_of(id, count);
            shares[usize::from(thread)].push(runnable);
            rig.crew.seats.push(Seat::new(id, link, stats, thread));
            rig.ends.push(end);
            rig.beats.push(beats);
        }
        for (number, share) in (0..).zip(shares) {
            let thread = rig.threads.spawn(rig.parts(number), share).expect("a thread");
            rig.crew.add_thread(number, thread);
        }
        rig
    }

    fn parts(&self, number: u16) -> ThreadParts {
        let (idle, clock) = (IdleStrategy::Adaptive, self.clock.clone());
        ThreadParts { number, core: None, idle, clock }
    }

    /// Shares the workers out among so many threads.
    fn share_out(&mut self, count: u16) {
        for number in 0..count {
            let thread = self.crew.threads.get_mut(usize::from(number)).and_then(Option::as_mut);
            if !thread.is_some_and(WorkerThread::keep) {
                let thread = self.threads.spawn(self.parts(number), Vec::new()).expect("a thread");
                self.crew.add_thread(number, thread);
            }
        }
        self.crew.share_out(count);
    }

    fn listen(&mut self) {
        let from = self.events.len();
        self.crew.poll(&mut self.events);
        for (worker, event) in &self.events[from..] {
            if let WorkerEvent::Moved { thread, .. } = event {
                self.crew.moved(*worker, *thread);
            }
        }
    }

    fn wait(&mut self, for_what: &str, done: impl Fn(&mut Rig) -> bool) {
        let start = Instant::now();
        while !done(self) {
            self.listen();
            assert!(self.crew.fallen().is_none(), "a bug");
            assert!(start.elapsed() < LIMIT, "no {for_what}");
            std::thread::sleep(Duration::from_micros(200));
        }
    }

    /// Waits until so many packets are where they belong.
    fn all_taken(&mut self, packets: u64) {
        let all = |rig: &Rig, of: fn(&Counters) -> u64| -> u64 {
            rig.crew.seats.iter().map(|seat| of(&seat.stats().counters)).sum()
        };
        self.wait("packets", |rig| all(rig, |c| c.rx_packets) == packets);
        self.wait("hand-over", |rig| all(rig, |c| c.handed_over) == all(rig, |c| c.taken_over));
    }

    fn stop(&mut self) -> Counters {
        self.crew.stop(self.clock.now());
        self.wait("end", |rig| rig.crew.fallen().is_none() && rig.crew.is_empty());
        let mut all = Counters::default();
        for seat in &self.crew.seats {
            let stats = seat.stats();
            all.add(&stats.counters);
            // Each pays back what it has taken from others, as far as these still look.
            assert_eq!(stats.gauges.handover_backlog, 0, "of {}", seat.id);
        }
        all
    }
}

/// Of a flow that belongs to any of the workers; nobody knows a route for it.
fn packet(flow: u16) -> Vec<u8> {
    let (src, dst) = (Addr::v4(0x0a00_0001), Addr::v4(0x0a01_0002));
    udp_packet(&UdpSpec::new((src, 1_024 + flow), (dst, 53), b"lost"))
}

fn sent(end: &MemoryEnd, flow: u16) {
    let start = Instant::now();
    while !end.send(&packet(flow)) {
        assert!(start.elapsed() < LIMIT, "nobody takes packets");
        std::thread::yield_now();
    }
}

#[test]
fn a_load_is_that_since_the_last_look() {
    let mut load = Load::default();
    let shares = [(1, 500_000), (2, 750_000), (4, 750_000), (5, 9_750_000)].map(|(secs, busy)| {
        load.look(Nanos::from_secs(secs), busy);
        load.percent
    });
    assert_eq!(shares, [0.0, 25.0, 0.0, 100.0]);
}

#[test]
fn workers_of_one_thread_have_turns_beats_and_each_others_packets() {
    let mut rig = Rig::new(1, None);
    for flow in 0..200 {
        sent(&rig.ends[usize::from(flow % WORKERS)], flow);
    }
    rig.all_taken(200);
    // They sleep by now, and each one's command wakes the thread.
    let before: Vec<_> = rig.beats.iter().map(|b| b.load(Ordering::Relaxed)).collect();
    let routes = Arc::new(RoutesBuilder::new(Vec::new(), SEED).build(2));
    rig.crew.reroute(&routes);
    let answered = |(_, event): &&(u16, WorkerEvent)| matches!(event, WorkerEvent::OldRoutes(_));
    rig.wait("answers", |rig| rig.events.iter().filter(answered).count() == rig.ends.len());
    rig.wait("beats", |rig| {
        rig.beats.iter().zip(&before).all(|(b, before)| b.load(Ordering::Relaxed) > *before)
    });
    let counters = rig.stop();
    assert!(counters.handed_over > 0 && counters.handed_over == counters.taken_over);
    assert_eq!((counters.rx_packets, counters.held()), (200, 0));
}

/// Packets all the time, commands all the time, and threads that come and go.
#[test]
fn workers_go_to_other_threads_and_lose_nothing() {
    const MOVES: usize = 150;
    let mut rig = Rig::new(2, None);
    let ends = rig.ends.clone();
    let stop = Arc::new(AtomicU64::new(0));
    let done = Arc::clone(&stop);
    let load = std::thread::spawn(move || {
        let mut count = 0u64;
        while done.load(Ordering::Relaxed) == 0 || count < 1_000 {
            sent(&ends[(count % 4) as usize], (count % 1_000) as u16);
            count += 1;
            if count.is_multiple_of(64) {
                std::thread::sleep(Duration::from_micros(100));
            }
        }
        count
    });
    let mut rng = Rng::new(Seed(17));
    for generation in 0..MOVES {
        let routes = RoutesBuilder::new(Vec::new(), SEED).build(2 + generation as u32);
        rig.crew.reroute(&Arc::new(routes));
        rig.share_out(1 + rng.below(WORKERS.into()) as u16);
        // Now and then the next comes before they are where they should be.
        if rng.chance(0.7) {
            rig.wait("settling", |rig| rig.crew.is_settled());
        } else {
            rig.listen();
        }
    }
    rig.wait("settling", |rig| rig.crew.is_settled());
    stop.store(1, Ordering::Relaxed);
    let count = load.join().expect("sent");
    rig.all_taken(count);
    for worker in 0..WORKERS {
        let mine = rig.events.iter().filter(|(id, _)| *id == worker);
        let generations = mine.filter_map(|(_, event)| match event {
            WorkerEvent::OldRoutes(routes) => Some(routes.generation()),
            _ => None,
        });
        assert!(generations.is_sorted_by(|a, b| a < b), "commands of {worker} are out of order");
    }
    let moves = rig.events.iter().filter(|(_, e)| matches!(e, WorkerEvent::Moved { .. })).count();
    assert!(moves > MOVES / 2, "{moves} moves");
    rig.events.clear();
    let counters = rig.stop();
    assert_eq!((counters.rx_packets, counters.held()), (count, 0));
    assert_eq!(counters.handed_over, counters.taken_over);
}

#[test]
fn a_panic_closes_the_ports_of_all_that_the_thread_runs() {
    let mut rig = Rig::new(2, Some(3));
    let start = Instant::now();
    let fallen = loop {
        if let Some(fallen) = rig.crew.fallen() {
            break fallen;
        }
        assert!(start.elapsed() < LIMIT, "no panic");
        std::thread::sleep(Duration::from_millis(1));
    };
    assert_eq!(fallen, (3, "the fuse burnt down".into()));
    assert_eq!((rig.ended.closed(), rig.ended.detached()), (2, vec![2]), "1 and 3");
    assert_eq!(rig.crew.going_on(), "thread 0 (workers 0, 2)", "who would hang");
    rig.crew.stop(rig.clock.now());
}

/// A core that this process may use, and one that no machine has.
fn cores() -> [usize; 2] {
    let set = nix::sched::sched_getaffinity(nix::unistd::Pid::from_raw(0)).expect("a set");
    let first = (0..nix::sched::CpuSet::count()).find(|core| set.is_set(*core) == Ok(true));
    [first.expect("it runs on one"), nix::sched::CpuSet::count() - 1]
}

#[test]
fn a_core_that_can_not_be_had_is_told() {
    let [core, none] = cores();
    let rig = Rig::new(2, None);
    let start = Instant::now();
    while !rig.crew.is_ready() {
        assert!(start.elapsed() < LIMIT, "threads begin");
        std::thread::sleep(Duration::from_millis(1));
    }
    assert_eq!(rig.crew.misplaced(&[]), Vec::<String>::new());
    rig.crew.pin(&[core, none]);
    assert_eq!([0, 1].map(|thread| rig.crew.core_of(thread)), [Some(core), None]);
    let [told] = &rig.crew.misplaced(&[core, none])[..] else { panic!("one of them") };
    assert!(told.starts_with(&format!("thread 1 runs on any core: core {none} of")), "{told}");
    rig.crew.pin(&[none, core]);
    let told = rig.crew.misplaced(&[none, core]);
    assert!(told.len() == 1 && told[0].starts_with(&format!("thread 0 runs on core {core}: ")));
    let parts = ThreadParts { core: Some(none), ..rig.parts(3) };
    let thread = rig.threads.spawn(parts, Vec::new()).expect("a thread");
    while !thread.is_ready() {
        assert!(start.elapsed() < LIMIT, "it begins");
        std::thread::sleep(Duration::from_millis(1));
    }
    assert_eq!(thread.core(), None, "from its beginning");
}

/// On the link of port 0, where neighbours are known or not.
fn routes(neighbour: Option<Addr>) -> Arc<crate::forward::Routes> {
    const IFINDEX: u32 = 7;
    let (name, addrs) = ("a".into(), Vec::new());
    let link = PortLink { id: PortId(0), ifindex: IFINDEX, name, mac: [0; 6], mtu: 1_500, addrs };
    let mut routes = RoutesBuilder::new(vec![link], SEED);
    let prefix = "10.0.0.0/8".parse().expect("a prefix");
    let kind = RouteKind::Unicast;
    routes.add_route(RouteSpec { prefix, via: None, ifindex: IFINDEX, kind });
    neighbour.into_iter().for_each(|addr| routes.set_neighbour(IFINDEX, addr, [2; 6]));
    Arc::new(routes.build(2 + u32::from(neighbour.is_some())))
}

/// One waits for a neighbour: the others have nothing to send, and go on.
#[test]
fn workers_of_one_thread_close_together_when_the_last_has_sent_what_it_held() {
    let mut rig = Rig::new(1, None);
    assert_eq!((rig.crew.workers_of_one(), Rig::new(3, None).crew.workers_of_one()), (4, 2));
    rig.crew.reroute(&routes(None));
    rig.listen();
    rig.wait("routes", |rig| rig.events.len() == usize::from(WORKERS));
    sent(&rig.ends[0], 1);
    let parked = |rig: &Rig| rig.crew.seats.iter().map(|s| s.stats().gauges.parked_now).sum();
    rig.wait("a packet that waits", |rig| 1u64 == parked(rig));
    rig.crew.stop(rig.clock.now() + LIMIT);
    for _ in 0..3 {
        let before: Vec<_> = rig.beats.iter().map(|b| b.load(Ordering::Relaxed)).collect();
        rig.wait("beats", |rig| {
            let beats = rig.beats.iter().zip(&before);
            let all = beats.into_iter().all(|(b, before)| b.load(Ordering::Relaxed) > *before);
            all || rig.ended.closed() > 0
        });
    }
    assert_eq!((rig.ended.closed(), parked(&rig)), (0, 1u64));
    rig.crew.reroute(&routes(Some(Addr::v4(0x0a01_0002))));
    rig.wait("end", |rig| rig.crew.is_empty());
    assert_eq!((rig.ended.closed(), rig.ended.detached()), (4, vec![4]));
    assert_eq!(rig.ends.iter().filter_map(MemoryEnd::recv).count(), 1, "it was sent");
}
