//! Workers as real threads, which meet at one class tree as the machine's scheduler lets them.
//!
//! Nothing here is timed: a thread that loses its core for a while only finds the clock, which all
//! of them drive, further on.

mod qos_support;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::thread;

use qos_support::{class, port, tag, tagged};
use tidegate::base::{Nanos, Seed};
use tidegate::packet::{ClassId, FramePool};
use tidegate::qos::spec::PortQosSpec;
use tidegate::qos::{Queued, Scheduler, Shared};

const LEN: usize = 1_000;
const CLASSES: [u16; 2] = [1, 2];
const FRAMES: u32 = 256;
/// Packets of each class that wait in a worker.
const WAITING: usize = 32;
/// Packets of each class that each worker sends at least: whoever starves never gets there.
const GOAL: u64 = 2_000;
/// Turns of a thread after which it has starved.
const TURNS_MAX: u64 = 50_000_000;
/// Nanoseconds that the clock goes on with each turn of a thread.
const TURN_NS: u64 = 500;

struct Meeting {
    shared: Arc<Shared>,
    clock: AtomicU64,
    /// Threads that have reached their goal; the others' limits hold beside them.
    done: AtomicUsize,
    starved: AtomicBool,
}

/// One worker: bytes that it sent by class.
fn work(meeting: &Meeting, spec: &PortQosSpec, workers: usize) -> [u64; 2] {
    let mut scheduler = Scheduler::member(spec, FRAMES - 64, Seed(1), Arc::clone(&meeting.shared));
    let mut pool = FramePool::standalone(FRAMES, 2_048);
    let arena = pool.arena().clone();
    let (mut out, mut dropped) = (Vec::new(), Vec::new());
    let (mut packets, mut waiting, mut next) = ([0u64; 2], [0usize; 2], [[0u64; 4]; 2]);
    let (mut offered, mut turns, mut told) = (0u64, 0, false);
    while meeting.done.load(Ordering::Relaxed) < workers {
        let now = Nanos(meeting.clock.fetch_add(TURN_NS, Ordering::Relaxed));
        for (c, waiting) in waiting.iter_mut().enumerate() {
            while *waiting < WAITING {
                let (class, flow) = (ClassId(CLASSES[c]), (offered % 4) as u32);
                let frame = tagged(&mut pool, class, flow, offered, LEN);
                let q = Queued { frame, class, flow_hash: flow, l3: 0 };
                scheduler.enqueue(now, q, &arena, &mut dropped);
                offered += 1;
                *waiting += 1;
            }
        }
        scheduler.dequeue(now, 32, u64::MAX, &arena, &mut out, &mut dropped);
        assert!(dropped.is_empty());
        for frame in out.drain(..) {
            let (class, flow, number, _) = tag(&frame, &pool);
            let c = CLASSES.iter().position(|id| ClassId(*id) == class).expect("known");
            let expected = &mut next[c][flow as usize];
            assert!(number >= *expected, "a flow's packets changed places");
            *expected = number + 1;
            waiting[c] -= 1;
            packets[c] += 1;
            pool.put(frame);
        }
        if !told && packets.iter().all(|&n| n >= GOAL) {
            told = true;
            meeting.done.fetch_add(1, Ordering::Relaxed);
        }
        turns += 1;
        if turns > TURNS_MAX {
            meeting.starved.store(true, Ordering::Relaxed);
            meeting.done.fetch_add(workers, Ordering::Relaxed);
        }
    }
    for (c, id) in CLASSES.iter().enumerate() {
        let stats = scheduler.class_stats(ClassId(*id));
        assert_eq!(stats.sent_packets, packets[c], "of class {id}");
        assert_eq!(stats.backlog_packets, waiting[c] as u64, "of class {id}");
    }
    scheduler.drain(&mut out);
    out.into_iter().for_each(|frame| pool.put(frame));
    assert_eq!(pool.outstanding(), 0, "frames leaked");
    packets.map(|n| n * LEN as u64)
}

#[test]
fn threads_at_one_tree_keep_its_limits_and_none_starves() {
    const BURST: u32 = 20_000;
    for workers in [2, 3, 4] {
        // The first class has a ceil of its own; both together have the port's.
        let classes = [class(1, 30.0).ceil(40.0).bursts(BURST), class(2, 50.0).bursts(BURST)];
        let spec = port(100.0, &classes);
        let meeting = Meeting {
            shared: Shared::new(&spec),
            clock: AtomicU64::new(1_000_000_000),
            done: AtomicUsize::new(0),
            starved: AtomicBool::new(false),
        };
        let sent: Vec<[u64; 2]> = thread::scope(|scope| {
            let start = |_| scope.spawn(|| work(&meeting, &spec, workers));
            let threads: Vec<_> = (0..workers).map(start).collect();
            threads.into_iter().map(|t| t.join().expect("worker")).collect()
        });
        assert!(!meeting.starved.load(Ordering::Relaxed), "one of {workers} starved: {sent:?}");
        assert!(sent.iter().flatten().all(|&bytes| bytes >= GOAL * LEN as u64), "{sent:?}");
        let ns = meeting.clock.load(Ordering::Relaxed) - 1_000_000_000;
        let total = |c: usize| sent.iter().map(|s| s[c]).sum::<u64>();
        // R t + B + a frame for each worker's lease; MB/s are bytes a microsecond.
        let most = |rate: u64, burst: u64| rate * ns / 1_000 + burst + (workers * 2 * 1_538) as u64;
        assert!(total(0) <= most(40, BURST.into()), "{sent:?} in {ns} ns");
        let burst = u64::from(spec.burst);
        assert!(total(0) + total(1) <= most(100, burst), "{sent:?} in {ns} ns");
    }
}
