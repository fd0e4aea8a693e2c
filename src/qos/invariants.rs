//! What must hold between any two calls, checked after random sequences of them.

use std::collections::{HashMap, HashSet};

use proptest::prelude::*;

use super::class::Mode;
use super::flows::{Flow, Standing};
use super::queues::Queues;
use super::spec::{ClassSpec, PortQosSpec, QueueSpec};
use super::tree::ROOT;
use super::wheel::NIL;
use super::{Queued, Scheduler, Successor};
use crate::base::units::BitRate;
use crate::base::{Nanos, Seed};
use crate::packet::{ClassId, DropReason, Frame, FramePool, PortId};

const SEED: Seed = Seed(3);

impl Scheduler {
    pub(super) fn check_invariants(&mut self) {
        let (mut packets, mut bytes, mut flows, mut empty) = (0, 0, 0, 0);
        for index in 0..self.queues.leaves.len() {
            let leaf = self.queues.leaves[index].clone();
            let mut sum = Sum::default();
            for (list, standing) in [(0, Standing::New), (1, Standing::Old)] {
                let mut previous = NIL;
                let mut at = leaf.lists[list].head;
                while at != NIL {
                    let flow = self.queues.flows.at(at);
                    let is_backlog = flow.standing == Standing::Backlog && list == 0;
                    assert!(flow.standing == standing || is_backlog);
                    assert_eq!(usize::from(flow.leaf), index);
                    sum.add(&self.queues, flow);
                    (previous, at) = (at, flow.next);
                }
                assert_eq!(leaf.lists[list].tail, previous);
            }
            let awake = sum;
            for (_, flow) in self.queues.flows.all() {
                if flow.standing == Standing::Asleep && usize::from(flow.leaf) == index {
                    sum.add(&self.queues, flow);
                }
            }
            assert_eq!((leaf.packets, leaf.bytes), (sum.packets, sum.bytes));
            assert_eq!(leaf.flows, (sum.flows - sum.empty) as u16);
            let asleep = self.queues.pacing.asleep(index as u32);
            assert_eq!(asleep.bytes, sum.bytes - awake.bytes);
            let flows_asleep = (sum.flows - sum.empty) - (awake.flows - awake.empty);
            assert_eq!(u32::from(asleep.flows), flows_asleep);
            packets += sum.packets;
            bytes += sum.bytes;
            flows += sum.flows;
            empty += sum.empty;
            let class = &self.tree.classes[index];
            if class.traits.is_leaf() {
                assert_eq!(self.queues.has_ready(index as u32), awake.packets > 0);
                // One whose flows all fell asleep is found out when it has its turn.
                let may_want = awake.packets > 0 || self.queues.pace(index as u32).is_set();
                assert!(!class.wants() || may_want, "leaf {index}");
                assert!(class.wants() || awake.packets == 0, "leaf {index}");
            }
        }
        assert_eq!((self.queues.packets.len(), self.queues.bytes), (packets, bytes));
        assert_eq!((self.queues.flows.len(), self.queues.empty), (flows, empty));
        assert!(flows <= self.queues.flows.capacity());
        self.check_tree();
    }

    /// Whoever has something to offer is in its parent's sets; whoever waits has a timer.
    fn check_tree(&mut self) {
        for at in 0..self.tree.classes.len() as u32 {
            let class = self.tree.classes[at as usize].clone();
            if class.wants() && class.mode != Mode::CanSend {
                assert!(self.tree.timers[at as usize].is_armed(), "class {at} waits for ever");
            }
            if at == ROOT {
                continue;
            }
            for turn in class.offers() {
                let offered = self.tree.is_offered(at, turn);
                assert!(offered, "class {at} has to offer, and is in no set");
                assert!(self.tree.classes[class.parent() as usize].want.contains(turn));
            }
        }
    }
}

/// What flows hold, together.
#[derive(Clone, Copy, Default)]
struct Sum {
    packets: u32,
    bytes: u64,
    flows: u32,
    empty: u32,
}

impl Sum {
    fn add(&mut self, queues: &Queues, flow: &Flow) {
        let (mut cell, mut last, mut bytes) = (flow.head, NIL, 0);
        while cell != NIL {
            bytes += queues.counted(u32::from(flow.leaf), queues.packets.frame_len(cell));
            self.packets += 1;
            (last, cell) = (cell, queues.packets.next(cell));
        }
        assert_eq!((flow.tail, flow.bytes), (last, bytes));
        assert!(flow.is_of_size(), "{bytes} bytes on list {}", flow.fat);
        self.bytes += u64::from(bytes);
        self.flows += 1;
        self.empty += u32::from(flow.head == NIL);
    }
}

#[derive(Clone, Debug)]
enum Step {
    Enqueue { class: u16, flow: u32, len: u16 },
    Dequeue { packets: usize },
    Wait { ns: u64 },
    Reclass { class: u16, flow: u32, to: u16 },
    Reconfigure { tree: usize },
    Hold { packets_max: u32 },
    Drain,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        60 => (0..14u16, 0..6u32, prop_oneof![14..64u16, 1_400..1_500u16, 60..9_000u16])
            .prop_map(|(class, flow, len)| Step::Enqueue { class, flow, len }),
        30 => (0..8usize).prop_map(|packets| Step::Dequeue { packets }),
        20 => prop_oneof![0..3_000u64, 0..200_000u64, 0..2_000_000_000u64]
            .prop_map(|ns| Step::Wait { ns }),
        4 => (0..14u16, 0..6u32, 0..14u16)
            .prop_map(|(class, flow, to)| Step::Reclass { class, flow, to }),
        1 => (0..2usize).prop_map(|tree| Step::Reconfigure { tree }),
        1 => (0..60u32).prop_map(|packets_max| Step::Hold { packets_max }),
        1 => Just(Step::Drain),
    ]
}

/// Trees of any shape, valid or not: nothing but the promises on rates depends on that.
fn tree() -> impl Strategy<Value = PortQosSpec> {
    let class = (0..12u16, 0..12u16, 1..900_000_000u64, 1..1_000_000_000u64, 0..9u8, 0..300u32);
    let sizes = (0..20_000u32, 0..40_000u32, 0..60_000u32);
    let classes = proptest::collection::vec((class, sizes), 0..14);
    (classes, 1_000_000..1_000_000_000u64, 0..40u16, 0..13u16).prop_map(|(list, rate, extra, d)| {
        let classes =
            list.into_iter().map(|((id, parent, rate, ceil, priority, weight), sizes)| ClassSpec {
                id: ClassId(id),
                name: format!("c{id}"),
                parent: (parent < 8).then_some(ClassId(parent)),
                rate: BitRate(rate),
                ceil: BitRate(ceil),
                burst: sizes.0,
                cburst: sizes.1,
                priority,
                weight,
                quantum: (sizes.2 % 5 == 0).then_some(sizes.0),
                overhead: (sizes.0 % 3 == 0).then_some((sizes.0 % 300) as u16),
                mpu: (sizes.1 % 3 == 0).then_some((sizes.1 % 2_000) as u16),
                limit: sizes.2,
                queue: queue(sizes.1),
                flow_rate: (sizes.2 % 2 == 0).then_some(BitRate(u64::from(sizes.2) * 2_000)),
            });
        PortQosSpec {
            port: PortId(0),
            rate: BitRate(rate),
            burst: 20_000,
            overhead: extra,
            mpu: extra * 3,
            mtu: 1_518,
            default_class: ClassId(d),
            classes: classes.collect(),
        }
    })
}

fn queue(any: u32) -> QueueSpec {
    match any % 3 {
        0 => QueueSpec::Fifo,
        1 => QueueSpec::FqCodel { target: 20_000, interval: 100_000 },
        _ => QueueSpec::INTERNET,
    }
}

/// Flows that share a leaf must not share a hash, or their order could not be told.
fn hash(class: u16, flow: u32) -> u32 {
    flow << 8 | u32::from(class)
}

/// The scheduler with what a run keeps beside it.
struct Run {
    scheduler: Scheduler,
    /// Which of the specifications it goes by.
    tree: usize,
    packets_max: u32,
    pool: FramePool,
    now: Nanos,
    next_seq: u32,
    /// By class and flow, the last number sent. Numbers rise in the order of arrival.
    last: HashMap<(u16, u32), u32>,
    /// By class and flow, the class that it has now where that is another.
    moved: HashMap<(u16, u32), u16>,
    /// Flows of which something may wait in another leaf than what comes: their order is lost until
    /// nothing waits of them.
    torn: HashSet<(u16, u32)>,
    /// Frames lost or sent, to be checked against those that came.
    gone: u64,
}

impl Run {
    fn step(&mut self, step: &Step, specs: &[PortQosSpec]) {
        match *step {
            Step::Enqueue { class, flow, len } => self.enqueue(class, flow, len),
            Step::Dequeue { packets } => {
                let mut out = Vec::new();
                let ready = self.scheduler.next_event(self.now);
                let arena = self.pool.arena().clone();
                let mut dropped = Vec::new();
                let sent = self.scheduler.dequeue(
                    self.now,
                    packets,
                    u64::MAX,
                    &arena,
                    &mut out,
                    &mut dropped,
                );
                for (frame, reason) in dropped {
                    assert_eq!(reason, DropReason::AqmDrop);
                    self.put(frame);
                }
                assert_eq!(sent, out.len());
                assert!(
                    sent == 0 || ready.is_some_and(|at| at <= self.now),
                    "sent before its time"
                );
                for frame in out {
                    let (class, flow, seq) = self.read(&frame);
                    let last = self.last.entry((class, flow)).or_default();
                    assert!(
                        *last < seq || self.torn.contains(&(class, flow)),
                        "flow {flow} of class {class} out of order"
                    );
                    *last = seq.max(*last);
                    self.put(frame);
                }
                self.forget_torn();
            }
            Step::Reclass { class, flow, to } => self.reclass(class, flow, to),
            Step::Wait { ns } => self.now = self.now.saturating_add(ns),
            Step::Reconfigure { tree } => {
                let before = self.scheduler.len();
                let (now, packets_max) = (self.now, self.packets_max);
                let both = (&specs[self.tree], &specs[tree]);
                let mut next = Successor::new(now, both, packets_max, SEED);
                self.scheduler.succeed(now, &mut next);
                self.tree = tree;
                assert_eq!(self.scheduler.len(), before);
                self.tear();
            }
            Step::Hold { packets_max } => self.scheduler.set_packets_max(packets_max),
            Step::Drain => {
                self.drain();
                self.torn.clear();
            }
        }
    }

    fn reclass(&mut self, class: u16, flow: u32, to: u16) {
        let from = self.moved.insert((class, flow), to).unwrap_or(class);
        let ids = (ClassId(from), ClassId(to));
        let leaf = self.scheduler.leaf(ids.0);
        // A FIFO, or the rest of one, keeps what it has, and so does who moves too often.
        let of_many =
            |flow: &Flow| flow.standing == Standing::Backlog && u32::from(flow.leaf) == leaf;
        let may_stay = self.scheduler.queues.manner(leaf).is_fifo()
            || self.scheduler.queues.flows.all().any(|(_, flow)| of_many(flow));
        let unmoved = self.scheduler.queues.moves[leaf as usize].flows_unmoved;
        let mut lost = Vec::new();
        self.scheduler.reclass(self.now, hash(class, flow), ids, &mut lost);
        for (frame, reason) in lost {
            assert_eq!(reason, DropReason::QueueFull);
            self.put(frame);
        }
        let new = self.tear();
        let unmoved = unmoved != self.scheduler.queues.moves[leaf as usize].flows_unmoved;
        let only = |of: &(u16, u32)| *of == (class, flow) && (may_stay || unmoved);
        assert!(new.iter().all(only), "{new:?} stayed");
    }

    /// Flows that wait, each with a leaf that holds some of it.
    fn waiting(&self) -> HashSet<((u16, u32), u32)> {
        let queues = &self.scheduler.queues;
        let mut waiting = HashSet::new();
        for (_, flow) in queues.flows.all().filter(|(_, flow)| flow.standing != Standing::Free) {
            let mut cell = flow.head;
            while cell != NIL {
                let (class, number, _) = self.read(queues.packets.frame(cell));
                waiting.insert(((class, number), u32::from(flow.leaf)));
                cell = queues.packets.next(cell);
            }
        }
        waiting
    }

    /// Notes of which flows something waits where what comes next does not go. Returns new ones.
    fn tear(&mut self) -> Vec<(u16, u32)> {
        let goes_to = |of: &(u16, u32)| {
            self.scheduler.leaf(ClassId(self.moved.get(of).copied().unwrap_or(of.0)))
        };
        let torn = |(of, leaf): ((u16, u32), u32)| (leaf != goes_to(&of)).then_some(of);
        let torn: HashSet<_> = self.waiting().into_iter().filter_map(torn).collect();
        torn.into_iter().filter(|of| self.torn.insert(*of)).collect()
    }

    fn forget_torn(&mut self) {
        if !self.torn.is_empty() {
            let waiting: HashSet<_> = self.waiting().into_iter().map(|(of, _)| of).collect();
            self.torn.retain(|of| waiting.contains(of));
        }
    }

    fn enqueue(&mut self, class: u16, flow: u32, len: u16) {
        let arena = self.pool.arena().clone();
        let mut frame = self.pool.take().expect("more frames than the scheduler holds");
        let offset = frame.offset();
        assert!(frame.set_extent(&arena, offset, usize::from(len)));
        let bytes = frame.bytes_mut(&arena);
        bytes[..2].copy_from_slice(&class.to_be_bytes());
        bytes[2..6].copy_from_slice(&flow.to_be_bytes());
        bytes[6..10].copy_from_slice(&self.next_seq.to_be_bytes());
        self.next_seq += 1;
        let mut dropped = Vec::new();
        let class_now = self.moved.get(&(class, flow)).copied().unwrap_or(class);
        let flow_hash = hash(class, flow);
        let q = Queued { frame, class: ClassId(class_now), flow_hash, l3: 14 };
        self.scheduler.enqueue(self.now, q, &arena, &mut dropped);
        for (frame, reason) in dropped {
            assert_eq!(reason, DropReason::QueueFull);
            self.put(frame);
        }
    }

    fn drain(&mut self) {
        let mut out = Vec::new();
        self.scheduler.drain(&mut out);
        assert!(self.scheduler.is_empty() && self.scheduler.next_event(self.now).is_none());
        for frame in out {
            self.put(frame);
        }
    }

    fn read(&self, frame: &Frame) -> (u16, u32, u32) {
        let b = frame.bytes(self.pool.arena());
        let word = |at: usize| u32::from_be_bytes([b[at], b[at + 1], b[at + 2], b[at + 3]]);
        (u16::from_be_bytes([b[0], b[1]]), word(2), word(6))
    }

    fn put(&mut self, frame: Frame) {
        self.gone += 1;
        self.pool.put(frame);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, failure_persistence: None,
        ..ProptestConfig::default() })]

    #[test]
    fn hold_after_any_calls(
        specs in [tree(), tree()],
        steps in proptest::collection::vec(step(), 1..250),
        packets_max in prop_oneof![0..4u32, 20..60u32],
    ) {
        let mut run = Run {
            scheduler: Scheduler::new(&specs[0], packets_max, SEED),
            tree: 0,
            packets_max,
            pool: FramePool::standalone(packets_max + 1, 16_384),
            now: Nanos::ZERO,
            next_seq: 1,
            last: HashMap::new(),
            moved: HashMap::new(),
            torn: HashSet::new(),
            gone: 0,
        };
        for step in &steps {
            run.step(step, &specs);
            run.scheduler.check_invariants();
            prop_assert_eq!(run.gone + run.scheduler.len() as u64, u64::from(run.next_seq) - 1);
        }
        // Left alone, everything goes in the end: no class waits for ever.
        let (mut out, mut idle) = (Vec::new(), 0);
        while let Some(at) = run.scheduler.next_event(run.now) {
            let arena = run.pool.arena().clone();
            let mut dropped = Vec::new();
            let sent =
                run.scheduler.dequeue(at, 8, u64::MAX, &arena, &mut out, &mut dropped);
            out.extend(dropped.into_iter().map(|(frame, _)| frame));
            idle = if sent == 0 && at <= run.now { idle + 1 } else { 0 };
            prop_assert!(idle < 3, "nothing goes and no time passes");
            run.now = at;
        }
        prop_assert!(run.scheduler.is_empty());
        run.scheduler.check_invariants();
        for frame in out {
            run.put(frame);
        }
        prop_assert_eq!(run.pool.outstanding(), 0);
    }
}
