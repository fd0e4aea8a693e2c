//! Several workers under one port's limits: who is served, what idle and hanging ones cost, and
//! what a new tree finds. (That classes get their shares is what `qos_scenarios` shows.)

mod qos_support;

use std::sync::Arc;

use qos_support::{Class, assert_borrowed, class, port, tag, tagged, two_tenants};
use tidegate::base::hash::Rng;
use tidegate::base::{Nanos, Seed};
use tidegate::packet::{ClassId, Frame, FramePool};
use tidegate::qos::spec::{PortQosSpec, QueueSpec};
use tidegate::qos::{ClassStats, Queued, Scheduler, Shared, Successor};

const W: u16 = 1;
const O: u16 = 2;
const B: u16 = 3;
const LEN: usize = 1_500;
/// Packets of a class that wait in a worker at any time, a flow of it at least one.
const WAITING: usize = 40;
/// Packets that come between two looks where more comes than goes.
const FLOODED: usize = 4;
const FRAMES: u32 = 2_048;
/// One more than the largest class id.
const CLASSES: usize = 16;

/// A class's flows in each worker.
type Spread<'a> = &'a [(u16, &'a [u32])];

struct Worker {
    scheduler: Scheduler,
    pool: FramePool,
    /// Nanoseconds between two looks.
    every: u64,
    at: Nanos,
    offered: u32,
    /// Packets of each class.
    waiting: [usize; CLASSES],
}

struct Workers {
    all: Vec<Worker>,
    shared: Arc<Shared>,
    now: Nanos,
}

impl Workers {
    /// Workers that look every 11 us, 18 us, 25 us, and so on.
    fn new(spec: &PortQosSpec, count: usize) -> Workers {
        let shared = Shared::new(spec);
        let all = (0..count).map(|i| Workers::worker(spec, &shared, i)).collect();
        Workers { all, shared, now: Nanos::from_secs(1) }
    }

    fn worker(spec: &PortQosSpec, shared: &Arc<Shared>, i: usize) -> Worker {
        Worker {
            scheduler: Scheduler::member(spec, FRAMES - 64, Seed(1), Arc::clone(shared)),
            pool: FramePool::standalone(FRAMES, 2_048),
            every: 11_000 + 7_000 * i as u64,
            waiting: [0; CLASSES],
            at: Nanos::from_secs(1),
            offered: 0,
        }
    }

    /// Runs for so long with all flows of `spread` backlogged; bytes sent by worker and class.
    fn run(&mut self, ns: u64, spread: Spread<'_>) -> Vec<Vec<u64>> {
        let until = self.now.saturating_add(ns);
        let mut sent = vec![vec![0; spread.len()]; self.all.len()];
        while self.now < until {
            for (i, worker) in self.all.iter_mut().enumerate() {
                if worker.at > self.now {
                    continue;
                }
                worker.at = self.now.saturating_add(worker.every);
                for &(class, flows) in spread {
                    worker.offer(self.now, class, flows[i]);
                }
                for frame in worker.take(self.now, 64) {
                    let class = tag(&frame, &worker.pool).0;
                    worker.waiting[usize::from(class.0)] -= 1;
                    let c = spread.iter().position(|s| ClassId(s.0) == class).expect("known");
                    sent[i][c] += frame.len() as u64;
                    worker.pool.put(frame);
                }
            }
            self.now = self.all.iter().map(|w| w.at).min().expect("a worker");
        }
        sent
    }

    /// Runs for so long while more comes to the first `busy` workers than goes: the most bytes
    /// that all hold at a time.
    fn flood(&mut self, ns: u64, class: u16, busy: usize) -> u64 {
        let (until, mut most) = (self.now.saturating_add(ns), 0);
        while self.now < until {
            for (i, worker) in self.all.iter_mut().enumerate() {
                if worker.at > self.now {
                    continue;
                }
                worker.at = self.now.saturating_add(worker.every);
                (i < busy).then(|| worker.flood(self.now, class));
                for frame in worker.take(self.now, 64) {
                    worker.pool.put(frame);
                }
            }
            most = most.max(self.all.iter().map(|w| w.scheduler.backlog_bytes()).sum());
            self.now = self.all.iter().map(|w| w.at).min().expect("a worker");
        }
        most
    }

    fn finish(self) {
        for Worker { scheduler, mut pool, .. } in self.all {
            release(scheduler, &mut pool);
        }
    }
}

fn release(mut scheduler: Scheduler, pool: &mut FramePool) {
    let mut out = Vec::new();
    scheduler.drain(&mut out);
    out.into_iter().for_each(|frame| pool.put(frame));
    assert_eq!(pool.outstanding(), 0, "frames leaked");
}

impl Worker {
    fn offer(&mut self, now: Nanos, class: u16, flows: u32) {
        if flows == 0 {
            return;
        }
        let arena = self.pool.arena().clone();
        let mut dropped = Vec::new();
        let waiting = &mut self.waiting[usize::from(class)];
        while *waiting < WAITING.max(flows as usize * 2) {
            let (class, flow) = (ClassId(class), self.offered % flows);
            let frame = tagged(&mut self.pool, class, flow, u64::from(self.offered), LEN);
            let q = Queued { frame, class, flow_hash: flow.wrapping_mul(0x9e37_79b9), l3: 0 };
            self.scheduler.enqueue(now, q, &arena, &mut dropped);
            self.offered += 1;
            *waiting += 1;
        }
        assert!(dropped.is_empty());
    }

    /// As [`Worker::offer`], a few packets of three flows, whatever waits.
    fn flood(&mut self, now: Nanos, class: u16) {
        let arena = self.pool.arena().clone();
        let mut dropped = Vec::new();
        for _ in 0..FLOODED {
            let (class, flow) = (ClassId(class), self.offered % 3);
            let frame = tagged(&mut self.pool, class, flow, u64::from(self.offered), LEN);
            let q = Queued { frame, class, flow_hash: flow.wrapping_mul(0x9e37_79b9), l3: 0 };
            self.scheduler.enqueue(now, q, &arena, &mut dropped);
            self.offered += 1;
        }
        dropped.into_iter().for_each(|(frame, _)| self.pool.put(frame));
    }

    fn take(&mut self, now: Nanos, packets_max: usize) -> Vec<Frame> {
        let arena = self.pool.arena().clone();
        let (mut out, mut dropped) = (Vec::new(), Vec::new());
        self.scheduler.dequeue(now, packets_max, u64::MAX, &arena, &mut out, &mut dropped);
        assert!(dropped.is_empty());
        out
    }
}

fn w() -> Class {
    class(W, 30.0).weight(3)
}
fn o() -> Class {
    class(O, 10.0).weight(1)
}
fn b() -> Class {
    class(B, 60.0).weight(6)
}

#[test]
fn workers_are_served_by_their_flows_and_an_idle_one_costs_nothing() {
    let spec = port(100.0, &[class(W, 60.0), class(O, 40.0)]);
    let mut workers = Workers::new(&spec, 3);
    let spread: Spread<'_> = &[(W, &[6, 5, 1])];
    workers.run(100_000_000, spread);
    let sent = workers.run(500_000_000, spread);
    let all: u64 = sent.iter().map(|s| s[0]).sum();
    for (bytes, flows) in sent.iter().map(|s| s[0]).zip([6.0, 5.0, 1.0]) {
        let (share, want) = (bytes as f64 / all as f64, flows / 12.0);
        assert!((share - want).abs() < 0.01 * want, "{share} of {flows} flows");
    }
    // All but one fall silent: what they still hold goes out, and the one has it all.
    workers.run(300_000_000, &[(W, &[0, 0, 1])]);
    let sent = workers.run(500_000_000, &[(W, &[0, 0, 1])]);
    assert!((49_750_000..50_250_000).contains(&sent[2][0]), "{sent:?}");
    workers.finish();
}

#[test]
fn a_priority_holds_across_workers_within_200_us() {
    const WITHIN: u64 = 200_000;
    const WINDOW: u64 = 5_000_000;
    for (rate_mb, count) in [(100.0, 2), (100.0, 4), (1_000.0, 2), (1_000.0, 4)] {
        let guarantee = rate_mb / 100.0;
        // Of what a class may send at once a worker is owed an eighth at most, which should last
        // from one look to the next.
        let burst = (rate_mb * 400.0) as u32;
        let classes = [(O, 0), (B, 1)]
            .map(|(id, priority)| class(id, guarantee).priority(priority).bursts(burst));
        let spec = PortQosSpec { burst, ..port(rate_mb, &classes) };
        let mut workers = Workers::new(&spec, count);
        workers.run(50_000_000, &[(B, &[4, 4, 4, 4])]);
        // From now on the first worker has packets that go first; it alone.
        let both: Spread<'_> = &[(O, &[200, 0, 0, 0]), (B, &[4, 4, 4, 4])];
        workers.run(WITHIN, both);
        let sent = workers.run(WINDOW, both);
        let bytes = |c: usize| sent.iter().map(|s| s[c]).sum::<u64>();
        // What B is guaranteed, and a frame for each worker's lease of that.
        let most = (guarantee * WINDOW as f64 / 1e3) as u64 + (count * 2 * LEN) as u64;
        let all = bytes(0) + bytes(1);
        assert!(bytes(1) <= most, "{rate_mb} MB/s, {count} workers: {} of {all}", bytes(1));
        let least = (rate_mb * WINDOW as f64 / 1e3 * 0.9) as u64;
        assert!(all >= least, "{rate_mb} MB/s, {count} workers: the link idles: {all} of {least}");
        workers.finish();
    }
}

#[test]
fn what_a_worker_was_granted_while_it_was_away_it_sends_at_once() {
    let spec = port(1.0, &[class(W, 0.6), class(O, 0.4)]);
    let mut workers = Workers::new(&spec, 2);
    let mut now = workers.now;
    let take_all = |worker: &mut Worker, now: Nanos| {
        let frames = worker.take(now, 64);
        let sent = frames.len();
        frames.into_iter().for_each(|frame| worker.pool.put(frame));
        sent
    };
    workers.all[0].offer(now, W, 2);
    workers.all[1].offer(now, W, 2);
    // Until the burst is gone, and both wait for tokens.
    while workers.all.iter_mut().map(|worker| take_all(worker, now)).sum::<usize>() > 0 {}
    let asleep_until = workers.all[0].scheduler.next_event(now).expect("packets wait");
    assert!(asleep_until > now, "nothing may go");
    // The second looks twice as late as it could, and serves the first with it.
    now = Nanos(2 * asleep_until.0 - now.0 + 10_000_000);
    take_all(&mut workers.all[1], now);
    let next = workers.all[0].scheduler.next_event(now);
    assert!(next <= Some(now), "{next:?} at {now:?}");
    assert!(take_all(&mut workers.all[0], now) > 0, "it was granted nothing");
    workers.finish();
}

#[test]
fn a_worker_that_hangs_holds_nobody_up() {
    let spec = port(100.0, &[class(W, 60.0), class(O, 40.0)]);
    let mut workers = Workers::new(&spec, 2);
    let spread: Spread<'_> = &[(W, &[2, 2]), (O, &[2, 2])];
    workers.run(100_000_000, spread);
    workers.all[1].at = Nanos::MAX;
    workers.run(50_000_000, spread);
    let sent = workers.run(500_000_000, spread);
    let got = [sent[0][0] as f64 / 5e5, sent[0][1] as f64 / 5e5];
    assert!((got[0] - 60.0).abs() < 0.3 && (got[1] - 40.0).abs() < 0.2, "{got:?}");
    workers.finish();
}

#[test]
fn who_takes_the_place_of_one_that_hung_is_served() {
    let spec = port(100.0, &[class(W, 60.0), class(O, 40.0)]);
    let mut workers = Workers::new(&spec, 2);
    let spread: Spread<'_> = &[(W, &[2, 2])];
    workers.run(50_000_000, spread);
    workers.all[1].at = Nanos::MAX;
    workers.run(50_000_000, spread);
    let fresh = Workers::worker(&spec, &workers.shared, 1);
    let Worker { scheduler, mut pool, .. } = std::mem::replace(&mut workers.all[1], fresh);
    workers.all[1].at = workers.now;
    release(scheduler, &mut pool);
    // The number of the one before is free now, and is taken by the next.
    let fresh = Workers::worker(&spec, &workers.shared, 1);
    let Worker { scheduler, mut pool, .. } = std::mem::replace(&mut workers.all[1], fresh);
    workers.all[1].at = workers.now;
    release(scheduler, &mut pool);
    workers.run(50_000_000, spread);
    let sent = workers.run(500_000_000, spread);
    let got = [0, 1].map(|i| sent[i][0] as f64 / 5e5);
    assert!(got.iter().all(|share| (share - 50.0).abs() < 0.5), "{got:?}");
    workers.finish();
}

#[test]
fn together_they_never_exceed_a_limit_in_any_window() {
    // Bursts at random, and silence: sent <= R t + B + N L at any time after any other.
    let spec = port(50.0, &[class(W, 20.0).ceil(25.0), class(O, 20.0)]);
    let mut workers = Workers::new(&spec, 4);
    let mut rng = Rng::new(Seed(5));
    let (start, mut sent, mut low) = (workers.now, [0f64; 2], [0f64; 2]);
    for _ in 0..3_000 {
        let flows = [rng.below(3), rng.below(2), rng.below(2), 0];
        let step = workers.run(10_000 + u64::from(rng.below(200_000)), &[(W, &flows), (O, &flows)]);
        let of_w: u64 = step.iter().map(|s| s[0]).sum();
        let all: u64 = step.iter().map(|s| s[0] + s[1]).sum();
        let t = workers.now.since(start) as f64 / 1e3;
        for (i, (bytes, rate, burst)) in [(of_w, 25.0, 20e3), (all, 50.0, 40e3)].iter().enumerate()
        {
            sent[i] += *bytes as f64;
            let over = sent[i] - rate * t;
            let leases = 4.0 * (burst / 8.0 + LEN as f64);
            // A step begins where the one before ended, up to a look later.
            assert!(over - low[i] <= burst + leases + rate * 33.0, "{i}: {over} over {}", low[i]);
            low[i] = low[i].min(over);
        }
    }
    assert!(sent[1] > 5e6, "{sent:?}");
    workers.finish();
}

#[test]
fn a_new_tree_finds_packets_and_tokens_where_they_were() {
    let before = port(100.0, &[w(), o(), b()]);
    let after = port(100.0, &[w().weight(1), b().weight(1), class(9, 10.0)]);
    let mut workers = Workers::new(&before, 2);
    let spread: Spread<'_> = &[(W, &[3, 2]), (B, &[1, 4])];
    workers.run(100_000_000, spread);
    let succeed = |worker: &mut Worker, now, both| {
        let mut next = Successor::new(now, both, FRAMES - 64, Seed(1));
        worker.scheduler.succeed(now, &mut next);
    };
    for round in 0..20 {
        let (old, spec) = if round % 2 == 0 { (&before, &after) } else { (&after, &before) };
        workers.shared.reconfigure(spec);
        // One hears of it later than the other.
        for i in 0..2 {
            let held = workers.all[i].scheduler.len();
            succeed(&mut workers.all[i], workers.now, (old, spec));
            assert_eq!(workers.all[i].scheduler.len(), held);
            workers.run(1_000_000, spread);
        }
    }
    workers.shared.reconfigure(&after);
    for worker in &mut workers.all {
        succeed(worker, workers.now, (&before, &after));
    }
    workers.run(100_000_000, spread);
    let sent = workers.run(500_000_000, spread);
    let got = [0, 1].map(|c| sent.iter().map(|s| s[c]).sum::<u64>() as f64 / 5e5);
    assert!((got[0] - 35.0).abs() < 0.35 && (got[1] - 65.0).abs() < 0.5, "{got:?}");
    workers.finish();
}

#[test]
fn a_limit_holds_for_all_workers_together() {
    const LIMIT: u64 = 150_000;
    const MS: u64 = 1_000_000;
    let codel = class(W, 10.0).0.queue;
    for (queue, count) in [(QueueSpec::Fifo, 2), (QueueSpec::Fifo, 4), (codel, 2), (codel, 4)] {
        let spec = port(10.0, &[class(W, 10.0).limit(LIMIT as u32).queue(queue)]);
        let mut workers = Workers::new(&spec, count);
        // One alone has it all, to the packet.
        let most = workers.flood(30 * MS, W, 1);
        assert!(
            (LIMIT - LEN as u64..=LIMIT).contains(&most),
            "{queue:?}: {most} in one of {count}"
        );
        // The others take their parts, and what the first has beyond its own goes.
        workers.flood(70 * MS, W, count);
        let most = workers.flood(30 * MS, W, count);
        // What comes between two looks, and two leases that are not used yet.
        let beyond = count as u64 * ((FLOODED + 2) * LEN) as u64;
        assert!((LIMIT..=LIMIT + beyond).contains(&most), "{queue:?}: {most} in {count}");
        // None is left without, however little that is.
        let held = workers.all.iter().map(|w| w.scheduler.backlog_bytes()).min();
        assert!(held > Some(LIMIT / count as u64 / 2), "{queue:?}: {held:?} in one of {count}");
        // All but one fall silent.
        workers.flood(70 * MS, W, 1);
        let held = workers.all[0].scheduler.backlog_bytes();
        assert!(held > LIMIT / 2, "{queue:?}: {held} in one of {count}");
        workers.finish();
    }
}

/// What a worker sends of it less often than it forgets what the others hold.
#[test]
fn a_limit_holds_for_all_workers_of_a_slow_class() {
    const LIMIT: u64 = 150_000;
    for queue in [QueueSpec::Fifo, class(W, 10.0).0.queue] {
        let spec = port(10.0, &[class(W, 0.05).ceil(0.05).limit(LIMIT as u32).queue(queue)]);
        let mut workers = Workers::new(&spec, 4);
        workers.flood(200_000_000, W, 4);
        let most = workers.flood(300_000_000, W, 4);
        // Each takes what comes between two looks; forgetful ones would hold four times the limit.
        assert!((LIMIT / 2..=LIMIT * 3 / 2).contains(&most), "{queue:?}: {most}");
        workers.finish();
    }
}

#[test]
fn a_limit_of_a_frame_leaves_each_worker_one() {
    for queue in [QueueSpec::Fifo, class(W, 10.0).0.queue] {
        let spec = port(100.0, &[class(W, 10.0).limit(LEN as u32).queue(queue)]);
        let mut workers = Workers::new(&spec, 4);
        let most = workers.flood(20_000_000, W, 4);
        assert!((2 * LEN as u64..=4 * LEN as u64).contains(&most), "{queue:?}: {most}");
        workers.finish();
    }
}

#[test]
fn what_inner_classes_borrow_is_told_once_for_all_workers() {
    const NS: u64 = 300_000_000;
    let alone = [[100.0, 60.0], [95.0, 90.0], [5.0, 0.0], [0.0; 2], [0.0; 2]];
    let both = [[40.0, 0.0], [35.0, 30.0], [5.0, 0.0], [60.0, 0.0], [60.0, 59.0]];
    for count in [1, 2, 4] {
        let mut workers = Workers::new(&two_tenants(0), count);
        let sums = |workers: &mut Workers| {
            let mut sums = vec![ClassStats::default(); 5];
            for worker in &mut workers.all {
                for (id, stats) in worker.scheduler.classes() {
                    sums[usize::from(id.0) - 1] += stats;
                }
            }
            sums
        };
        let told = |workers: &mut Workers| -> Vec<[u64; 2]> {
            let told = |stats: &ClassStats| [stats.sent_bytes, stats.borrowed_bytes()];
            sums(workers).iter().map(told).collect()
        };
        let one: Spread<'_> = &[(2, &[2, 2, 2, 2]), (3, &[2, 2, 2, 2])];
        let all: Spread<'_> = &[one[0], one[1], (5, &[2, 2, 2, 2])];
        for (spread, want) in [(one, alone), (all, both)] {
            workers.run(50_000_000, spread);
            let before = told(&mut workers);
            let start = workers.now;
            workers.run(NS, spread);
            let since = |(now, before): (&[u64; 2], &[u64; 2])| [0, 1].map(|i| now[i] - before[i]);
            let told: Vec<_> = told(&mut workers).iter().zip(&before).map(since).collect();
            assert_borrowed(&told, workers.now.since(start), want);
        }
        // One leaves, whose last words stay for a time, and another takes its place.
        let before = sums(&mut workers);
        if count > 1 {
            let Worker { scheduler, mut pool, .. } = workers.all.remove(0);
            release(scheduler, &mut pool);
            let mut after = sums(&mut workers)[0];
            assert_eq!(after.borrowed_bytes(), before[0].borrowed_bytes());
            after += before[0];
            assert_eq!(after.borrowed_bytes(), before[0].borrowed_bytes());
            let shared = Arc::clone(&workers.shared);
            workers.all.insert(0, Workers::worker(&two_tenants(0), &shared, 0));
            assert_eq!(told(&mut workers)[0][1], before[0].borrowed_bytes());
        }
        workers.finish();
    }
}

/// Through reloads, too, of which workers hear one after the other and the shared tree last.
#[test]
fn what_all_have_borrowed_never_falls_as_a_class_turns_from_leaf_to_inner_and_back() {
    const MS: u64 = 1_000_000;
    let inner = two_tenants(0);
    let leaf = port(100.0, &[class(1, 40.0), class(4, 60.0), class(5, 1.0).below(4)]);
    let mut workers = Workers::new(&inner, 2);
    let told = |workers: &mut Workers| {
        let mut sum = ClassStats::default();
        for worker in &mut workers.all {
            sum += worker.scheduler.class_stats(ClassId(1));
        }
        sum.borrowed_bytes()
    };
    let mut last = 0;
    for (old, spec, busy) in
        [(&inner, &inner, [0, 3]), (&inner, &leaf, [3, 0]), (&leaf, &inner, [0, 3])].repeat(3)
    {
        for i in 0..2 {
            let mut next = Successor::new(workers.now, (old, spec), FRAMES - 64, Seed(1));
            workers.all[i].scheduler.succeed(workers.now, &mut next);
            let now = told(&mut workers);
            assert!(now >= last, "{last}, and then {now}");
            last = now;
        }
        workers.shared.reconfigure(spec);
        let flows = busy.map(|n| [n, n]);
        workers.run(30 * MS, &[(1, &flows[0]), (2, &flows[1])]);
        let now = told(&mut workers);
        // Class 1 has 40 of 100 MB/s, and all that it wants.
        assert!(now - last > 1_600_000, "it borrowed {}", now - last);
        last = now;
        // What is left goes.
        workers.run(30 * MS, &[(1, &[0; 2]), (2, &[0; 2])]);
        last = last.max(told(&mut workers));
    }
    workers.finish();
}
