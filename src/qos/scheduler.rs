//! The shaper of one port in one worker.

use std::sync::Arc;

use super::ahead::{Ahead, has_few_classes, is_in_cache};
use super::build::{Compiled, compile};
use super::codel::ticks;
use super::flows::Key;
use super::member::Member;
use super::packets::Note;
use super::queues::{Exit, NEW, Queues};
use super::serve::Allowance;
use super::shared::Shared;
use super::shed::DROPS_MAX;
use super::spec::PortQosSpec;
use super::tree::Tree;
use super::wheel::NIL;
use crate::base::mem::{Arena, prefetch};
use crate::base::{Nanos, Seed};
use crate::packet::{ClassId, DropReason, Frame};

/// Packets that the queue management drops in one call of `dequeue` at most.
const AQM_DROPS_MAX: usize = 64;
/// Classes that one call of `dequeue` wakes at most, besides some for each packet it may send. What
/// is left over is woken by the next call.
const WAKES_BASE: usize = 1024;
/// A packet sends at most each class on its way to sleep.
const WAKES_PER_PACKET: usize = super::spec::DEPTH_MAX + 1;
/// Flows that one call of `dequeue` wakes at most.
const FLOW_WAKES_MAX: usize = 1024;
/// Packets whose arrival is prepared together.
const TOGETHER: usize = 64;
/// A packet on its way into the scheduler.
#[derive(Debug)]
pub struct Queued {
    pub frame: Frame,
    /// Its leaf; the default class if this is none of the port's leaves.
    pub class: ClassId,
    /// Tells the flows of a leaf apart; packets with the same hash stay in order.
    pub flow_hash: u32,
    /// Where the IP header begins in the frame, for marking; 0: there is none.
    pub l3: u16,
}

/// A hierarchical token bucket over queues by flow.
///
/// All memory is taken by [`Scheduler::new`] and [`Successor::new`](super::Successor::new). Must be
/// [drained](Scheduler::drain) before it is dropped: frames don't like to be lost.
///
/// Any class sends, over any time `t`, at most `ceil * t + cburst`, and beyond its guarantee only
/// what others leave. (If a burst is smaller than one frame and what comes in 2 us, it counts as
/// that.)
pub struct Scheduler {
    pub(super) tree: Tree,
    pub(super) queues: Queues,
    pub(super) leaf_of: Vec<u16>,
    pub(super) default_leaf: u32,
    /// By class.
    pub(super) ids: Vec<ClassId>,
    /// Of the largest frame, as counted.
    pub(super) largest: u32,
    /// Bytes that a leaf sends in a turn.
    pub(super) turn: u32,
    seed: Seed,
    /// Where several workers share a tree; `tree` then only tells who stands below whom.
    pub(super) member: Option<Member>,
    /// The latest time seen: a clock that steps back is ignored.
    now: Nanos,
    pub(super) ahead: Ahead,
}

impl Scheduler {
    /// A scheduler for at most `packets_max` packets, buckets full. `spec` has passed
    /// [`validate`](super::validate()); another one is bent into something that works.
    pub fn new(spec: &PortQosSpec, packets_max: u32, seed: Seed) -> Scheduler {
        let now = Nanos::ZERO;
        let Compiled { tree, leaf_of, default_leaf, leaves, ids, largest, turn, .. } =
            compile(spec, now);
        let queues = Queues::new(&leaves, packets_max, largest, seed);
        Scheduler {
            tree,
            queues,
            leaf_of,
            default_leaf,
            ids,
            largest,
            turn,
            seed,
            member: None,
            now,
            ahead: Ahead::new(),
        }
    }

    /// One of several workers' schedulers for a port, with the limits of `spec` for all of them
    /// together. `shared` was made for the same `spec`. Where this one has a successor later, it
    /// sends nothing until `shared` was reconfigured, too.
    pub fn member(
        spec: &PortQosSpec,
        packets_max: u32,
        seed: Seed,
        shared: Arc<Shared>,
    ) -> Scheduler {
        let alone = Scheduler::new(spec, packets_max, seed);
        let member = Member::new(shared, spec, alone.ids.len());
        Scheduler { member: Some(member), ..alone }
    }

    /// Takes packets in, in order, as [`Scheduler::enqueue`] does. What they will touch is fetched
    /// into the cache for all of them first.
    pub fn enqueue_all(
        &mut self,
        now: Nanos,
        packets: &mut Vec<Queued>,
        arena: &Arena,
        dropped: &mut Vec<(Frame, DropReason)>,
    ) {
        let now = self.advance(now);
        let looks_ahead = !is_in_cache(&self.tree, &self.queues);
        let (made, all) = (self.queues.made, packets.len());
        while !packets.is_empty() {
            let count = packets.len().min(TOGETHER);
            if looks_ahead {
                self.prefetch_arrivals(&packets[..count]);
            } else if self.ahead.flows_come {
                self.prefetch_places(&packets[..count]);
            }
            for q in packets.drain(..count) {
                self.take_in(now, q, arena, dropped);
            }
        }
        self.ahead.flows_come = 2 * self.queues.made.wrapping_sub(made) as usize > all;
    }

    /// Asks the cache for all that these packets will touch, for all of them step by step: the leaf
    /// tells where to find the flow, and that its last packet.
    #[inline(never)]
    fn prefetch_arrivals(&self, packets: &[Queued]) {
        let Scheduler { queues, tree, .. } = self;
        let (mut keys, mut flows) = ([Key::default(); TOGETHER], [NIL; TOGETHER]);
        if !has_few_classes(tree) {
            for q in packets {
                prefetch(&self.leaf_of, usize::from(q.class.0));
            }
        }
        for (q, key) in packets.iter().zip(&mut keys) {
            key.leaf = self.leaf(q.class);
            queues.prefetch_leaf(key.leaf);
        }
        for ((q, key), flow) in packets.iter().zip(&mut keys).zip(&mut flows) {
            *key = queues.key(key.leaf, q.flow_hash);
            let held = &queues.leaves[key.leaf as usize];
            *flow = held.only_flow();
            queues.flows.prefetch_likely(*key, *flow);
            if held.packets == 0 {
                tree.prefetch(key.leaf);
            }
        }
        for (key, flow) in keys.iter().zip(&mut flows).take(packets.len()) {
            *flow = queues.flows.prefetch_known(*key, *flow);
            if *flow == NIL {
                // Behind it the new one will stand.
                queues.flows.prefetch(queues.leaves[key.leaf as usize].lists[NEW].tail);
            }
        }
        for &flow in &flows[..packets.len()] {
            queues.packets.prefetch(queues.flows.tail(flow));
        }
    }

    /// Takes a packet in. Where the leaf is then over its limit, its fattest flow loses half of
    /// what it holds, the oldest first (RFC 8290, section 4.1), 64 packets at most; where the
    /// scheduler is full, the fattest leaf's fattest flow does. What is lost, this packet perhaps,
    /// goes to `dropped`.
    pub fn enqueue(
        &mut self,
        now: Nanos,
        q: Queued,
        arena: &Arena,
        dropped: &mut Vec<(Frame, DropReason)>,
    ) {
        let now = self.advance(now);
        self.take_in(now, q, arena, dropped);
    }

    #[inline(always)]
    fn take_in(
        &mut self,
        now: Nanos,
        q: Queued,
        arena: &Arena,
        dropped: &mut Vec<(Frame, DropReason)>,
    ) {
        let leaf = self.leaf(q.class);
        let held = &self.queues.leaves[leaf as usize];
        let manner = &self.queues.manners[usize::from(held.manner)];
        let (bytes, was_idle) = (manner.counting.counted(q.frame.len()), held.packets == 0);
        let key = self.queues.flows.key(leaf, if manner.is_fifo() { 0 } else { q.flow_hash });
        let (sum, limit) = (held.bytes + u64::from(bytes), u64::from(manner.limit));
        // What all may hold is not looked at before this one holds its part of it.
        let sharers = self.member.as_ref().map_or(1, Member::present);
        let is_over = sum * u64::from(sharers) > limit && sum > self.most(now, leaf, limit);
        if is_over || self.queues.packets.is_full() || self.queues.has_paces {
            let is_fifo = manner.is_fifo();
            let mut exit = Exit::new(now, arena, dropped);
            return self.enqueue_with_care(q, key, bytes, is_fifo, is_over, &mut exit);
        }
        let note = Note { since: ticks(now), l3: q.l3 };
        if let Err(frame) = self.queues.push(key, q.frame, bytes, note, now) {
            self.queues.refuse(key.leaf, frame, bytes, dropped);
        } else if let Some(member) = &mut self.member {
            member.changed(key.leaf);
        } else if was_idle {
            self.tree.activate(now, key.leaf);
        }
    }

    /// Bytes that a leaf may hold here now, a frame at least; `limit`: in all workers.
    #[inline]
    pub(super) fn most(&self, now: Nanos, leaf: u32, limit: u64) -> u64 {
        match &self.member {
            Some(member) => member.most(ticks(now), leaf, limit).max(self.largest.into()),
            None => limit,
        }
    }

    /// As above where a limit is reached, or where flows sleep.
    #[inline(never)]
    fn enqueue_with_care(
        &mut self,
        q: Queued,
        key: Key,
        bytes: u32,
        is_fifo: bool,
        is_over: bool,
        exit: &mut Exit<'_>,
    ) {
        let leaf = key.leaf;
        // Where fewer may be held than are, it is one for another until enough have been sent.
        let is_refused =
            is_fifo && is_over || self.queues.packets.is_full() && self.make_room(leaf, exit) == 0;
        let was_idle = !self.queues.has_ready(leaf);
        let note = Note { since: exit.now, l3: q.l3 };
        let refused = if is_refused {
            Some(q.frame)
        } else {
            self.queues.push(key, q.frame, bytes, note, exit.at).err()
        };
        if let Some(frame) = refused {
            self.queues.refuse(leaf, frame, bytes, exit.dropped);
            // What others hold is asked anew, lest it be forgotten while nothing is let in.
            self.member.iter_mut().for_each(|member| member.changed(leaf));
            return;
        }
        if is_over {
            let most = self.most(exit.at, leaf, u64::from(self.queues.manner(leaf).limit));
            self.queues.shed_to_limit(key, most, exit);
        }
        if let Some(member) = &mut self.member {
            member.changed(leaf);
            return;
        }
        match (was_idle, !self.queues.has_ready(leaf)) {
            (true, false) => self.tree.activate(exit.at, leaf),
            (false, true) => self.tree.deactivate(leaf),
            _ => {}
        }
    }

    /// Moves packets that may go now to `out`, until there are none, or `packets_max` have gone, or
    /// at least `bytes_max` bytes (of frames, without overhead) have. Returns how many. What the
    /// queue management drops goes to `dropped`, at most 64 packets. `out` must have room for
    /// `packets_max`, or it allocates.
    pub fn dequeue(
        &mut self,
        now: Nanos,
        packets_max: usize,
        bytes_max: u64,
        arena: &Arena,
        out: &mut Vec<Frame>,
        dropped: &mut Vec<(Frame, DropReason)>,
    ) -> usize {
        let now = self.advance(now);
        let mut exit = Exit::new(now, arena, dropped);
        if self.queues.has_paces {
            self.wake_flows(now);
        }
        if self.member.is_some() {
            return self.dequeue_leased(now, packets_max, bytes_max, &mut exit, out);
        }
        if self.is_empty() {
            return 0;
        }
        let looks_ahead = !is_in_cache(&self.tree, &self.queues);
        if looks_ahead {
            self.tree.foresee_wakes(now);
        }
        let wakes = packets_max.saturating_mul(WAKES_PER_PACKET).saturating_add(WAKES_BASE);
        self.tree.wake(now, wakes);
        let scouts = looks_ahead && has_few_classes(&self.tree);
        let (mut packets, mut bytes) = (0, 0);
        while packets < packets_max && bytes < bytes_max {
            let Some(choice) = self.tree.choose() else { break };
            if looks_ahead && !scouts {
                self.ahead.look(&self.tree, &self.queues);
            }
            let Scheduler { tree, queues, turn, .. } = self;
            let leaf = choice.class();
            let allowed = Allowance::new(packets_max - packets, bytes_max - bytes, *turn);
            let of = (leaf, choice.is_borrowed());
            let served = queues.serve(of, allowed, &mut exit, out, || tree.room(now, choice));
            packets += served.packets;
            bytes += served.len;
            if scouts {
                self.ahead.scout(leaf, served.packets, &self.tree, &self.queues);
            }
            match served.packets {
                0 => self.tree.deactivate(leaf),
                _ => self.tree.charge(now, choice, served.bytes, served.emptied),
            }
        }
        packets
    }

    /// As [`Scheduler::dequeue`], on what the shared tree grants.
    fn dequeue_leased(
        &mut self,
        now: Nanos,
        packets_max: usize,
        bytes_max: u64,
        exit: &mut Exit<'_>,
        out: &mut Vec<Frame>,
    ) -> usize {
        let Scheduler { member, queues, largest, .. } = self;
        let Some(member) = member else { return 0 };
        if queues.packets.len() == 0 && !member.has_news() {
            return 0;
        }
        let room = (packets_max as u64).saturating_mul(u64::from(*largest));
        member.visit(now, queues, room.min(bytes_max));
        let (mut packets, mut bytes, mut has_more) = (0, 0, false);
        while packets < packets_max && bytes < bytes_max {
            let Some((lease, left)) = member.current() else {
                // Flows with a pace ask for a frame each: those that may send more ask again.
                if !std::mem::take(&mut has_more) {
                    break;
                }
                member.visit(now, queues, room.min(bytes_max - bytes));
                continue;
            };
            if left <= 0 {
                member.finish();
                continue;
            }
            let drops_left = exit.drops_left;
            let is_paced = queues.pace(lease.leaf).is_set();
            let most = if is_paced { 1 } else { packets_max - packets };
            let allowed = Allowance::new(most, bytes_max - bytes, u32::MAX);
            let of = (lease.leaf, lease.is_borrowed);
            let served = queues.serve(of, allowed, exit, out, || left as u64 - 1);
            if exit.drops_left < drops_left || is_paced {
                member.changed(lease.leaf);
            }
            has_more |= is_paced && !served.emptied;
            packets += served.packets;
            bytes += served.len;
            if served.packets > 0 {
                member.pay(lease.leaf, served.bytes);
            }
            if served.emptied {
                member.finish();
            }
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
        let wakes = self.queues.pacing.next();
        if let Some(member) = &self.member {
            let next = member.next_event(now);
            return Some(wakes.map_or(next, |at| at.clamp(now, next)));
        }
        if self.tree.is_ready() {
            return Some(now);
        }
        let next = [self.tree.wheel.next(), wakes].into_iter().flatten().min();
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

    /// Holds so many packets at most from now on, or as many as it was made for. Those that are
    /// held stay; while they are more, each that arrives takes the place of one or more of them.
    pub fn set_packets_max(&mut self, packets_max: u32) {
        self.queues.packets.set_max(packets_max);
    }

    /// Bytes held, counted with overhead.
    pub fn backlog_bytes(&self) -> u64 {
        self.queues.bytes
    }

    /// Takes packets out, so many at most, in no order, and leaves the rest as it is: no more may
    /// come, and nothing may be asked but how many are left. `at` is where it goes on, 0 at first.
    pub fn take_some(&mut self, at: &mut u32, packets_max: usize, out: &mut Vec<Frame>) {
        self.queues.packets.take_some(at, packets_max, out);
    }

    /// Takes all packets out, in no order, whatever the rates say. Allocates.
    pub fn drain(&mut self, out: &mut Vec<Frame>) {
        self.queues.drain(self.seed, out);
        for at in 0..self.ids.len() as u32 {
            if self.tree.classes[at as usize].traits.is_leaf() {
                self.tree.deactivate(at);
                if let Some(member) = &mut self.member {
                    member.changed(at);
                }
            }
        }
    }

    /// Flows that may send again join the rounds of their leaves.
    #[cold]
    fn wake_flows(&mut self, now: Nanos) {
        let Scheduler { queues, tree, member, .. } = self;
        queues.wake(now, FLOW_WAKES_MAX, |leaf, was_idle| match member {
            Some(member) => member.changed(leaf),
            None if was_idle => tree.activate(now, leaf),
            None => {}
        });
    }

    #[inline]
    pub(super) fn advance(&mut self, now: Nanos) -> Nanos {
        self.now = self.now.max(now);
        self.now
    }

    #[inline]
    pub(super) fn leaf(&self, class: ClassId) -> u32 {
        self.leaf_of.get(usize::from(class.0)).map_or(self.default_leaf, |&leaf| u32::from(leaf))
    }

    /// Returns how many packets had to go.
    #[cold]
    fn make_room(&mut self, arriving: u32, exit: &mut Exit<'_>) -> usize {
        let Some(donor) = self.queues.donor(arriving) else {
            return 0;
        };
        let shed = self.queues.shed(donor, None, DROPS_MAX, exit.dropped);
        if let Some(member) = &mut self.member {
            member.changed(donor);
        } else if !self.queues.has_ready(donor) {
            self.tree.deactivate(donor);
        }
        shed
    }
}

impl<'a> Exit<'a> {
    fn new(now: Nanos, arena: &'a Arena, dropped: &'a mut Vec<(Frame, DropReason)>) -> Exit<'a> {
        Exit { now: ticks(now), at: now, arena, dropped, drops_left: AQM_DROPS_MAX }
    }
}
