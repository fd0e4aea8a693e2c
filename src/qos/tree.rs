//! The class tree at work: which leaf sends next, and at whose expense.
//!
//! Every class has two buckets: `rate`, what it is guaranteed, and `ceil`, what it never exceeds. A
//! class whose ceil bucket is below zero is blocked, and all below it with it. One whose rate bucket
//! is at zero or above sends on its own account. Any other may borrow from the nearest class above it
//! that has tokens.
//!
//! Each class passes two sets of priorities up to its parent: those at which something below it can
//! send within the class's own rate or a rate below it (`OWN`), and those at which something needs
//! the parent's tokens (`LOAN`). A parent holds two lists a priority, one for each set, of the
//! children to serve. Own rates go first everywhere, which is what keeps a guarantee from being
//! starved by another's priority; among borrowers the priority decides, and among those of the same
//! priority a deficit round robin at every level of the tree, so that a class's share does not depend
//! on how many leaves it has (the kernel's sch_htb.c counts deficits at leaves only).
//!
//! A class joins a list as soon as it has something to offer and leaves it when it is next looked at
//! and has not: joining and leaving cost the same for any number of classes.

use super::bucket::Bucket;
use super::spec::DEPTH_MAX;
use super::wheel::{NIL, Timer, Wheel};
use crate::base::Nanos;
use crate::packet::ClassId;

/// The port itself.
pub(super) const ROOT: u32 = 0;
/// Index of the lists of children that send within rates at or below themselves.
const OWN: usize = 0;
/// Index of the lists of children that need tokens from above themselves.
const LOAN: usize = 1;
/// In `Node::body`: the node is a leaf.
const LEAF: u32 = 1 << 31;

/// What a class may do now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Mode {
    /// Its ceil is used up.
    Blocked,
    /// Its rate is used up, its ceil is not.
    MayBorrow,
    /// Within its rate.
    CanSend,
}

/// What is touched for every packet that passes below or through a class: one cache line.
#[derive(Clone, Debug)]
#[repr(C, align(64))]
pub(super) struct Meter {
    pub rate: Bucket,
    pub ceil: Bucket,
    /// When both were last settled. Between that and now nothing was taken out.
    pub settled: Nanos,
    pub parent: u32,
    pub mode: Mode,
    /// Priorities at which something below wants to send, by `OWN` and `LOAN`. A leaf that holds
    /// packets wants its own priority as a `LOAN`.
    want: [u8; 2],
    /// Steps below the port.
    pub depth: u8,
}

/// The rest of a class.
#[derive(Clone, Debug)]
pub(super) struct Node {
    timer: Timer,
    pub id: ClassId,
    /// Bytes a round among its siblings.
    pub quantum: u32,
    /// Its first place: a leaf has one, an inner class one a priority.
    pub place: u32,
    /// Index among leaves (with `LEAF` set) or among inner classes.
    pub body: u32,
}

/// A class's place in its parent's lists of one priority.
#[derive(Clone, Copy, Debug)]
pub(super) struct Place {
    /// The next in the circle of the `OWN` and the `LOAN` list; `NIL` when not in it.
    next: [u32; 2],
    /// Bytes left in this round of the `LOAN` list.
    deficit: i32,
    node: u32,
}

/// The lists of an inner class's children: the last of each circle.
#[derive(Clone, Debug)]
pub(super) struct Inner {
    tails: [[u32; 8]; 2],
}

const _: () = assert!(size_of::<Meter>() == 64);
const _: () = assert!(size_of::<Node>() + size_of::<Inner>() + 8 * size_of::<Place>() <= 256);
const _: () = assert!(super::spec::PRIORITIES == 8, "sets of priorities are bytes");

pub(super) struct Tree {
    /// By node: the port, then the classes, each before its children and beside its siblings' trees.
    pub meters: Vec<Meter>,
    pub nodes: Vec<Node>,
    pub places: Vec<Place>,
    pub inners: Vec<Inner>,
    /// The node of each leaf.
    pub leaves: Vec<u32>,
    pub wheel: Wheel,
}

/// A leaf chosen to send, with what its packet will be charged to.
pub(super) struct Choice {
    pub node: u32,
    /// Index among leaves.
    pub leaf: u32,
    /// Nearest class above (or the leaf itself) that has tokens: it and all above it pay from their
    /// rates, those below it only from their ceils.
    lender_depth: u8,
    /// By depth: the places whose round pays, `NIL` where no round does, and the list they lead.
    rounds: [(u32, u8); DEPTH_MAX + 1],
}

impl Choice {
    pub fn is_borrowed(&self, tree: &Tree) -> bool {
        self.lender_depth < tree.meters[self.node as usize].depth
    }
}

impl Meter {
    pub fn new(rate: Bucket, ceil: Bucket, parent: u32, depth: u8) -> Meter {
        let (mode, settled) = (Mode::CanSend, Nanos::ZERO);
        Meter { rate, ceil, settled, parent, mode, want: [0; 2], depth }
    }

    #[inline(always)]
    pub fn settle(&mut self, now: Nanos) {
        let elapsed = now.since(self.settled);
        if elapsed > 0 {
            self.rate.refill(elapsed);
            self.ceil.refill(elapsed);
            self.settled = now;
        }
    }

    #[inline(always)]
    fn mode_now(&self) -> Mode {
        if !self.ceil.is_open() {
            Mode::Blocked
        } else if self.rate.is_open() {
            Mode::CanSend
        } else {
            Mode::MayBorrow
        }
    }

    /// The sets of priorities this class belongs to at its parent.
    #[inline(always)]
    pub fn offers(&self) -> [u8; 2] {
        match self.mode {
            Mode::Blocked => [0, 0],
            Mode::MayBorrow => self.want,
            Mode::CanSend => [self.want[OWN] | self.want[LOAN], 0],
        }
    }

    #[cfg(test)]
    pub fn wants_at(&self, kind: usize, priority: u32) -> bool {
        self.want[kind] & (1 << priority) != 0
    }

    #[inline(always)]
    pub fn wants(&self) -> bool {
        self.want != [0, 0]
    }
}

impl Node {
    pub fn inner(id: ClassId, quantum: u32, place: u32, index: u32) -> Node {
        Node { timer: Timer::IDLE, id, quantum, place, body: index }
    }

    pub fn leaf(id: ClassId, quantum: u32, place: u32, index: u32) -> Node {
        Node { timer: Timer::IDLE, id, quantum, place, body: index | LEAF }
    }

    #[inline(always)]
    pub fn leaf_index(&self) -> Option<u32> {
        (self.body & LEAF != 0).then_some(self.body & !LEAF)
    }

    #[cfg(test)]
    pub fn is_waiting(&self) -> bool {
        self.timer.is_armed()
    }

    #[inline(always)]
    pub fn place_at(&self, priority: u32) -> u32 {
        if self.body & LEAF != 0 { self.place } else { self.place + priority }
    }
}

impl Place {
    pub fn new(node: u32) -> Place {
        Place { next: [NIL; 2], deficit: 0, node }
    }

    #[cfg(test)]
    pub fn is_on(&self, kind: usize) -> bool {
        self.next[kind] != NIL
    }
}

impl Inner {
    pub fn new() -> Inner {
        Inner { tails: [[NIL; 8]; 2] }
    }
}

impl AsMut<Timer> for Node {
    #[inline(always)]
    fn as_mut(&mut self) -> &mut Timer {
        &mut self.timer
    }
}

impl Tree {
    /// A leaf has packets again.
    #[inline]
    pub fn activate(&mut self, now: Nanos, node: u32, priority: u8) {
        self.meters[node as usize].want[LOAN] = 1 << priority;
        self.look_again(now, node);
        self.announce(now, node);
    }

    /// A leaf lost its last packet to an overload.
    #[inline]
    pub fn deactivate(&mut self, node: u32) {
        self.meters[node as usize].want = [0, 0];
    }

    /// Whether a packet may go now, as far as is known before trying.
    pub fn is_ready(&self) -> bool {
        let root = &self.meters[ROOT as usize];
        root.mode != Mode::Blocked && root.wants()
    }

    /// Wakes classes whose tokens have come, `budget` at most.
    pub fn wake(&mut self, now: Nanos, budget: usize) {
        for _ in 0..budget {
            let Some(node) = self.wheel.pop(&mut self.nodes, now) else { return };
            if self.meters[node as usize].wants() {
                self.look_again(now, node);
                self.announce(now, node);
            }
        }
    }

    /// The leaf that sends next; `None` when none may.
    pub fn choose(&mut self) -> Option<Choice> {
        loop {
            if !self.is_ready() {
                return None;
            }
            if let Some(choice) = self.descend() {
                return Some(choice);
            }
        }
    }

    /// Charges `bytes` for the packet that `choice` sent. `emptied`: it was the leaf's last.
    #[inline]
    pub fn charge(&mut self, now: Nanos, choice: &Choice, bytes: u32, emptied: bool) {
        if emptied {
            self.deactivate(choice.node);
        }
        let mut at = choice.node;
        let mut news = false;
        loop {
            let meter = &mut self.meters[at as usize];
            let (depth, parent, before) = (meter.depth, meter.parent, meter.mode);
            meter.settle(now);
            meter.ceil.charge(bytes);
            if depth <= choice.lender_depth {
                meter.rate.charge(bytes);
            }
            meter.mode = meter.mode_now();
            let changed = meter.mode != before;
            if meter.mode != Mode::CanSend && meter.wants() {
                self.await_tokens(at, changed);
            }
            if at == ROOT {
                return;
            }
            let (round, priority) = choice.rounds[usize::from(depth)];
            if round != NIL {
                self.pay_round(parent, round, priority, bytes);
            }
            news = (changed || news) && self.offer(at);
            at = parent;
        }
    }

    /// One walk from the port down. `None`: it ended at a class that had nothing to offer after all,
    /// and took it off a list.
    fn descend(&mut self) -> Option<Choice> {
        let rounds = [(NIL, 0); DEPTH_MAX + 1];
        let mut choice = Choice { node: ROOT, leaf: 0, lender_depth: 0, rounds };
        let mut lent = false;
        let mut at = ROOT;
        loop {
            let node = &self.nodes[at as usize];
            if let Some(leaf) = node.leaf_index() {
                if !lent {
                    choice.lender_depth = self.meters[at as usize].depth;
                }
                (choice.node, choice.leaf) = (at, leaf);
                return Some(choice);
            }
            let meter = &self.meters[at as usize];
            let want = meter.want;
            let kind = if want[OWN] != 0 { OWN } else { LOAN };
            if want[kind] == 0 || (kind == LOAN && !lent && meter.mode != Mode::CanSend) {
                return None;
            }
            let priority = want[kind].trailing_zeros();
            let Some(place) = self.front(at, kind, priority) else { continue };
            if kind == LOAN && !lent {
                lent = true;
                choice.lender_depth = self.meters[at as usize].depth;
            }
            at = self.places[place as usize].node;
            if kind == LOAN {
                choice.rounds[usize::from(self.meters[at as usize].depth)] =
                    (place, priority as u8);
            }
        }
    }

    /// The place to serve next in one list of `at`. `None` when the list has run empty: what it held
    /// had nothing to offer.
    #[inline]
    fn front(&mut self, at: u32, kind: usize, priority: u32) -> Option<u32> {
        let body = self.nodes[at as usize].body as usize;
        loop {
            let tail = self.inners[body].tails[kind][priority as usize];
            let front = self.places[tail as usize].next[kind];
            let place = &mut self.places[front as usize];
            if self.meters[place.node as usize].offers()[kind] & (1 << priority) == 0 {
                let next = std::mem::replace(&mut place.next[kind], NIL);
                if front == tail {
                    self.inners[body].tails[kind][priority as usize] = NIL;
                    self.meters[at as usize].want[kind] &= !(1 << priority);
                    return None;
                }
                self.places[tail as usize].next[kind] = next;
                continue;
            }
            if kind == OWN {
                // Own rates bound themselves: a packet in turn is enough.
                self.inners[body].tails[kind][priority as usize] = front;
                return Some(front);
            }
            if place.deficit > 0 {
                return Some(front);
            }
            place.deficit += self.nodes[place.node as usize].quantum as i32;
            self.inners[body].tails[kind][priority as usize] = front;
        }
    }

    /// Takes a packet off a place's round, at the front of its list. When the round is used up, the
    /// next begins, at the end of the list: a class that is now blocked keeps that turn if it can
    /// send again by then.
    #[inline]
    fn pay_round(&mut self, parent: u32, front: u32, priority: u8, bytes: u32) {
        let place = &mut self.places[front as usize];
        place.deficit -= bytes as i32;
        if place.deficit <= 0 {
            place.deficit += self.nodes[place.node as usize].quantum as i32;
            let body = self.nodes[parent as usize].body as usize;
            self.inners[body].tails[LOAN][usize::from(priority)] = front;
        }
    }

    /// Settles a class and, where it must wait, sets its timer.
    pub fn look_again(&mut self, now: Nanos, node: u32) {
        let meter = &mut self.meters[node as usize];
        meter.settle(now);
        meter.mode = meter.mode_now();
        if meter.mode != Mode::CanSend {
            self.await_tokens(node, true);
        }
    }

    /// Sets the timer of a class that is blocked or out of tokens. One that is set already stays
    /// unless the class waits for something else now: what was charged meanwhile makes it fire too
    /// early, never too late.
    #[inline]
    fn await_tokens(&mut self, node: u32, mode_changed: bool) {
        if self.nodes[node as usize].timer.is_armed() && !mode_changed {
            return;
        }
        let meter = &self.meters[node as usize];
        let bucket = if meter.mode == Mode::Blocked { &meter.ceil } else { &meter.rate };
        let due = bucket.opens_at(meter.settled);
        self.wheel.arm(&mut self.nodes, node, due);
    }

    /// Puts a class on the lists it belongs on, and so upward as long as that is news to the parent.
    fn announce(&mut self, now: Nanos, node: u32) {
        let mut at = node;
        while at != ROOT {
            let parent = self.meters[at as usize].parent;
            let idle = !self.meters[parent as usize].wants();
            if !self.offer(at) {
                return;
            }
            if idle {
                self.look_again(now, parent);
            }
            at = parent;
        }
    }

    /// Puts a class on its parent's lists. Whether the parent's sets grew by that.
    #[inline]
    fn offer(&mut self, node: u32) -> bool {
        let meter = &self.meters[node as usize];
        let (offers, parent) = (meter.offers(), meter.parent as usize);
        let mut grew = false;
        for (kind, mut set) in offers.into_iter().enumerate() {
            while set != 0 {
                let priority = set.trailing_zeros();
                set &= set - 1;
                let place = self.nodes[node as usize].place_at(priority);
                if self.places[place as usize].next[kind] != NIL {
                    continue;
                }
                let body = self.nodes[parent].body as usize;
                let tail = &mut self.inners[body].tails[kind][priority as usize];
                let last = std::mem::replace(tail, place);
                let next = if last == NIL {
                    self.meters[parent].want[kind] |= 1 << priority;
                    grew = true;
                    place
                } else {
                    std::mem::replace(&mut self.places[last as usize].next[kind], place)
                };
                self.places[place as usize].next[kind] = next;
            }
        }
        grew
    }
}
