//! The shaper of one port in one worker.

use super::build::{Compiled, Lengths, compile};
use super::queues::{Leaf, Queues};
use super::spec::PortQosSpec;
use super::stats::ClassStats;
use super::tree::{ROOT, Tree};
use crate::base::{Nanos, Seed};
use crate::packet::{ClassId, DropReason, Frame};

/// Packets that one arrival may push out of a leaf that is over its limit.
const DROPS_MAX: usize = 64;
/// Classes that one call of `dequeue` wakes at most, besides some for each packet it may send. What
/// is left over is woken by the next call.
const WAKES_BASE: usize = 1024;
/// A packet sends at most each class on its way to sleep.
const WAKES_PER_PACKET: usize = super::spec::DEPTH_MAX + 1;

/// A packet on its way into the scheduler.
#[derive(Debug)]
pub struct Queued {
    pub frame: Frame,
    /// Its leaf; the default class if this is none of the port's leaves.
    pub class: ClassId,
    /// Tells the flows of a leaf apart; packets with the same hash stay in order.
    pub flow_hash: u32,
}

/// A hierarchical token bucket over queues by flow.
///
/// All memory is taken by [`Scheduler::new`] and [`Scheduler::reconfigure`]. Must be
/// [drained](Scheduler::drain) before it is dropped: frames don't like to be lost.
///
/// Any class sends, over any time `t`, at most `ceil * t + cburst`, and beyond its guarantee only
/// what others leave. (If a burst is smaller than one frame and what comes in 2 us, it counts as
/// that.)
pub struct Scheduler {
    pub(super) tree: Tree,
    pub(super) queues: Queues,
    leaf_of: Vec<u32>,
    default_leaf: u32,
    pub(super) lengths: Lengths,
    seed: Seed,
    /// The latest time seen: a clock that steps back is ignored.
    now: Nanos,
}

impl Scheduler {
    /// A scheduler for at most `packets_max` packets, buckets full. `spec` has passed
    /// [`validate`](super::validate()); another one is bent into something that works.
    pub fn new(spec: &PortQosSpec, packets_max: u32, seed: Seed) -> Scheduler {
        let now = Nanos::ZERO;
        let Compiled { tree, leaf_of, default_leaf, leaves, lengths } = compile(spec, now);
        let queues = Queues::new(&leaves, packets_max, lengths.largest, seed);
        Scheduler { tree, queues, leaf_of, default_leaf, lengths, seed, now }
    }

    /// Takes a packet in. Where the leaf is then over its limit, its fattest flow loses packets,
    /// the oldest first (RFC 8290, section 4.1); where the scheduler is full, the fattest leaf's
    /// fattest flow loses one. What is lost, this packet perhaps, goes to `dropped`.
    pub fn enqueue(&mut self, now: Nanos, q: Queued, dropped: &mut Vec<(Frame, DropReason)>) {
        let now = self.advance(now);
        let leaf = self.leaf(q.class);
        let lengths = self.lengths;
        let bytes = lengths.counted(q.frame.len());
        if self.queues.packets.is_full() {
            self.make_room(leaf, dropped);
        }
        let was_idle = self.queues.leaves[leaf as usize].packets == 0;
        if let Err(frame) = self.queues.push(leaf, q.flow_hash, q.frame, bytes) {
            self.queues.leaves[leaf as usize].dropped.add(bytes);
            dropped.push((frame, DropReason::QueueFull));
            return;
        }
        for _ in 0..DROPS_MAX {
            let held = &self.queues.leaves[leaf as usize];
            if held.bytes <= u64::from(held.settings.limit) {
                break;
            }
            let Some(frame) = self.queues.shed(leaf, |len| lengths.counted(len)) else { break };
            dropped.push((frame, DropReason::QueueFull));
        }
        let held = &self.queues.leaves[leaf as usize];
        let node = self.tree.leaves[leaf as usize];
        match (was_idle, held.packets == 0) {
            (true, false) => self.tree.activate(now, node, held.settings.priority),
            (false, true) => self.tree.deactivate(node),
            _ => {}
        }
    }

    /// Moves packets that may go now to `out`, until there are none, or `packets_max` have gone, or
    /// at least `bytes_max` bytes (of frames, without overhead) have. Returns how many. `out` must
    /// have room for `packets_max`, or it allocates.
    pub fn dequeue(
        &mut self,
        now: Nanos,
        packets_max: usize,
        bytes_max: u64,
        out: &mut Vec<Frame>,
    ) -> usize {
        let now = self.advance(now);
        if self.is_empty() {
            return 0;
        }
        let wakes = packets_max.saturating_mul(WAKES_PER_PACKET).saturating_add(WAKES_BASE);
        self.tree.wake(now, wakes);
        let lengths = self.lengths;
        let (mut packets, mut bytes) = (0, 0);
        while packets < packets_max && bytes < bytes_max {
            let Some(choice) = self.tree.choose() else { break };
            let Some((frame, counted)) = self.queues.pop(choice.leaf, |len| lengths.counted(len))
            else {
                debug_assert!(false, "a leaf that wants to send holds nothing");
                self.tree.deactivate(choice.class);
                continue;
            };
            let leaf = &mut self.queues.leaves[choice.leaf as usize];
            leaf.sent.add(counted);
            if choice.is_borrowed {
                leaf.borrowed_bytes += u64::from(counted);
            }
            self.tree.charge(now, choice, counted, leaf.packets == 0);
            packets += 1;
            bytes += frame.len() as u64;
            out.push(frame);
        }
        packets
    }

    /// When `dequeue` can next have something to do: `now` if it can at once, `None` if nothing
    /// waits. It may turn out that nothing may go yet; then the next answer is later.
    pub fn next_event(&self, now: Nanos) -> Option<Nanos> {
        if self.is_empty() {
            return None;
        }
        let now = now.max(self.now);
        if self.tree.is_ready() {
            return Some(now);
        }
        let next = self.tree.wheel.next();
        debug_assert!(next.is_some(), "packets wait for nothing");
        Some(next.unwrap_or(now).max(now))
    }

    /// Packets held.
    pub fn len(&self) -> usize {
        self.queues.packets.len() as usize
    }

    pub fn is_empty(&self) -> bool {
        self.queues.packets.len() == 0
    }

    /// Bytes held, counted with overhead.
    pub fn backlog_bytes(&self) -> u64 {
        self.queues.bytes
    }

    /// What a class has done; zeros for a class that is not under this port. Takes time in
    /// proportion to the port's classes: for many of them use [`Scheduler::classes`].
    pub fn class_stats(&self, class: ClassId) -> ClassStats {
        self.classes().find(|&(id, _)| id == class).map_or(ClassStats::default(), |(_, s)| s)
    }

    /// All classes of the port with what they have done, each before those below it.
    pub fn classes(&self) -> impl Iterator<Item = (ClassId, ClassStats)> {
        let first = ROOT as usize + 1;
        (first..self.tree.classes.len()).map(|at| (self.tree.classes[at].id, self.stats_below(at)))
    }

    /// Takes all packets out, in no order, whatever the rates say. Allocates.
    pub fn drain(&mut self, out: &mut Vec<Frame>) {
        self.queues.drain(self.seed, out);
        for at in 0..self.tree.leaves.len() {
            self.tree.deactivate(self.tree.leaves[at]);
        }
    }

    /// Changes to another tree. Classes are matched by id: they keep their packets, their tokens
    /// (the new burst at most) and their counters. Packets of leaves that are gone, or now have
    /// classes below them, move to the default leaf, behind packets there of the same flow; nothing
    /// is dropped, and limits count again with the next arrival. How many packets may be held stays
    /// as it is. Allocates, and takes time in proportion to classes and packets.
    pub fn reconfigure(&mut self, now: Nanos, spec: &PortQosSpec) {
        let now = self.advance(now);
        let Compiled { mut tree, leaf_of, default_leaf, leaves, lengths } = compile(spec, now);
        let mut leaves: Vec<Leaf> = leaves.into_iter().map(Leaf::new).collect();
        let mut map = vec![default_leaf; self.tree.leaves.len()];
        let mut old_by_id = vec![None; usize::from(u16::MAX) + 1];
        for (at, class) in self.tree.classes.iter().enumerate() {
            old_by_id[usize::from(class.id.0)].get_or_insert(at);
        }
        for class in &mut tree.classes {
            class.settled = now;
            let Some(old) = old_by_id[usize::from(class.id.0)] else { continue };
            let old = &mut self.tree.classes[old];
            old.settle(now);
            class.inherit(old);
            if old.is_leaf && class.is_leaf {
                let (from, to) = (old.body as usize, class.body as usize);
                map[from] = class.body;
                leaves[to].take_counters(&self.queues.leaves[from]);
            }
        }
        self.queues.quantum = lengths.largest;
        self.queues.rehouse(leaves, &map, self.seed, |len| lengths.counted(len));
        (self.tree, self.leaf_of, self.default_leaf) = (tree, leaf_of, default_leaf);
        self.lengths = lengths;
        self.tree.look_again(now, ROOT);
        for (leaf, held) in self.queues.leaves.iter().enumerate() {
            if held.packets > 0 {
                let node = self.tree.leaves[leaf];
                self.tree.activate(now, node, held.settings.priority);
            }
        }
    }

    #[inline]
    fn advance(&mut self, now: Nanos) -> Nanos {
        self.now = self.now.max(now);
        self.now
    }

    #[inline]
    fn leaf(&self, class: ClassId) -> u32 {
        self.leaf_of.get(usize::from(class.0)).copied().unwrap_or(self.default_leaf)
    }

    fn make_room(&mut self, arriving: u32, dropped: &mut Vec<(Frame, DropReason)>) {
        let Some(donor) = self.queues.donor(arriving) else { return };
        let lengths = self.lengths;
        if let Some(frame) = self.queues.shed(donor, |len| lengths.counted(len)) {
            dropped.push((frame, DropReason::QueueFull));
        }
        if self.queues.leaves[donor as usize].packets == 0 {
            self.tree.deactivate(self.tree.leaves[donor as usize]);
        }
    }

    fn stats_below(&self, at: usize) -> ClassStats {
        let classes = &self.tree.classes[at..];
        let depth = classes[0].depth;
        let below = classes.iter().skip(1).take_while(|c| c.depth > depth);
        let mut sum = ClassStats::default();
        for leaf in classes.iter().take(1).chain(below).filter(|c| c.is_leaf) {
            sum += self.queues.leaves[leaf.body as usize].stats();
        }
        sum
    }
}
