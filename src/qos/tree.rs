//! The class tree at work: which leaf sends next, and at whose expense.
//!
//! Every class has two buckets: `rate`, what it is guaranteed, and `ceil`, what it never exceeds. A
//! class whose ceil bucket is below zero is blocked, and all below it with it. One whose rate
//! bucket is at zero or above sends on its own account. Any other may borrow from the nearest class
//! above it that has tokens.
//!
//! Each class passes two sets of priorities up to its parent: those at which something below it can
//! send within the class's own rate or a rate below it (`OWN`), and those at which something needs
//! the parent's tokens (`LOAN`). A parent holds two sets of children a priority, one of each kind.
//! Own rates go first everywhere, which is what keeps a guarantee from being starved by another's
//! priority; among borrowers the priority decides, and among those of the same priority a deficit
//! round robin at every level of the tree, so that a class's share does not depend on how many
//! leaves it has (the kernel's sch_htb.c counts deficits at leaves only).
//!
//! A class joins a set as soon as it has something to offer. It leaves it when what it sent makes
//! it so, or when it is next looked at and has nothing to offer: joining and leaving cost the same
//! for any number of classes. Siblings lie side by side, so that whose turn is next is known
//! without touching them, and they are fetched ahead.

use super::class::{Class, Mode, Offers, Turn};
use super::inner::{Inner, Round};
use super::sets::Sets;
use super::spec::PRIORITIES;
use super::walk::Way;
use super::wheel::{Timer, Wheel};
use crate::base::Nanos;
use crate::base::mem::{Table, prefetch};

/// The port itself.
pub(super) const ROOT: u32 = 0;
/// Its index among inner classes.
pub(super) const ROOT_INNER: u16 = 0;

pub(super) struct Tree {
    /// The port, then its classes level by level, siblings side by side.
    pub classes: Table<Class>,
    /// By class, as all that follow.
    pub timers: Table<Timer>,
    pub shares: Table<Share>,
    pub inners: Vec<Inner>,
    pub lent: Lent,
    pub sets: Sets,
    pub wheel: Wheel,
    /// When classes were last woken.
    pub now: Nanos,
    pub way: Way,
}

/// A class in the rounds of its parent's `LOAN` sets.
#[derive(Clone, Copy, Debug)]
pub(super) struct Share {
    /// Bytes left in this round. Of a leaf: an inner class has one a priority.
    deficit: i32,
    /// Bytes a round.
    quantum: u32,
}

/// Bytes that a class above paid for, those aside that are still owed. In a worker that shares the
/// tree: as it was told last.
#[derive(Debug, Default)]
pub(super) struct Lent {
    /// By inner class.
    pub inner: Vec<u64>,
    /// Leaves that were inner classes once, in order, with what they were lent then.
    before: Vec<(u32, u64)>,
}

impl Lent {
    fn new(classes: usize) -> Lent {
        Lent { inner: Vec::with_capacity(classes), before: Vec::with_capacity(classes) }
    }

    /// What a class was lent, now or once. `inner`: its number among inner classes.
    pub fn to(&self, class: u32, inner: u16) -> u64 {
        let before = || self.before.binary_search_by_key(&class, |&(leaf, _)| leaf);
        match self.inner.get(usize::from(inner)) {
            Some(bytes) => *bytes,
            None => before().map_or(0, |i| self.before[i].1),
        }
    }

    /// So much was lent to a class of another tree that is this one here; classes come in order.
    fn inherit(&mut self, class: u32, inner: u16, bytes: u64) {
        match self.inner.get_mut(usize::from(inner)) {
            Some(own) => *own = bytes,
            None if bytes > 0 => self.before.push((class, bytes)),
            None => {}
        }
    }

    /// Takes over what the same tree knows elsewhere. Takes no memory.
    pub fn learn(&mut self, other: &Lent) {
        self.inner.clone_from(&other.inner);
        self.before.clone_from(&other.before);
    }
}

impl Tree {
    /// A tree of the port alone, with room for `classes` in all.
    pub fn new(root: Class, classes: usize, now: Nanos) -> Tree {
        let mut tree = Tree {
            classes: Table::with_room(classes),
            timers: Table::with_room(classes),
            shares: Table::with_room(classes),
            inners: Vec::new(),
            lent: Lent::new(classes),
            sets: Sets::default(),
            wheel: Wheel::new(now),
            now,
            way: Way::new(),
        };
        tree.add(root, 0);
        tree
    }

    /// Adds a class after its parent and its elder siblings. Returns its index.
    pub fn add(&mut self, class: Class, quantum: u32) -> u32 {
        let at = self.classes.len() as u32;
        self.classes.push(class);
        self.timers.push(Timer::IDLE);
        self.shares.push(Share { deficit: 0, quantum });
        at
    }

    /// Makes a class the parent of the `count` classes from `first` on. `priorities`: those of the
    /// leaves anywhere below.
    pub fn adopt(&mut self, parent: u32, first: u32, count: u32, priorities: u8) {
        let mut rounds = [Round::default(); PRIORITIES];
        let mut stride = 0;
        for (priority, round) in rounds.iter_mut().enumerate() {
            if priorities & (1 << priority) != 0 {
                round.sets = self.sets.add(count);
                stride = self.sets.add(count) - round.sets;
            }
        }
        debug_assert_eq!(parent == ROOT, self.inners.len() == usize::from(ROOT_INNER));
        self.classes[parent as usize].inner = self.inners.len() as u16;
        let last = priorities.checked_ilog2().unwrap_or(0);
        let children = &self.classes[first as usize..][..count as usize];
        let has_leaves_only = children.iter().all(|child| child.traits.is_leaf());
        let early = priorities & !(1 << last);
        self.inners.push(Inner { first, count, stride, early, owes: 0, has_leaves_only, rounds });
        self.lent.inner.push(0);
    }

    /// Takes over the tokens of the classes of another tree that are in this one, and what they
    /// were lent as inner ones. `from`: by class, the one that it was there; beyond the end where
    /// there was none.
    pub fn inherit(&mut self, now: Nanos, from: &[u32], old: &mut Tree) {
        for ((at, class), from) in (0..).zip(&mut self.classes[..]).zip(from) {
            class.settled = now;
            if let Some(before) = old.classes.get_mut(*from as usize) {
                before.settle(now);
                class.inherit(before);
                let bytes = old.lent.to(*from, before.inner);
                self.lent.inherit(at, class.inner, bytes);
            }
        }
        self.look_again(now, ROOT);
    }

    /// A leaf has packets again.
    #[inline]
    pub fn activate(&mut self, now: Nanos, class: u32) {
        let leaf = &mut self.classes[class as usize];
        leaf.settle(now);
        leaf.want.add(Turn::loan(leaf.traits.priority()));
        self.look_again(now, class);
        self.announce(now, class);
    }

    /// A leaf lost its last packet.
    #[inline]
    pub fn deactivate(&mut self, class: u32) {
        self.classes[class as usize].want = Offers::NONE;
    }

    /// Whether a packet may go now, as far as is known before trying.
    #[inline]
    pub fn is_ready(&self) -> bool {
        let root = &self.classes[ROOT as usize];
        root.mode != Mode::Blocked && root.wants()
    }

    /// Wakes classes whose tokens have come, `budget` at most.
    pub fn wake(&mut self, now: Nanos, budget: usize) {
        self.now = now;
        for _ in 0..budget {
            let Some(class) = self.wheel.pop(&mut self.timers, now) else { return };
            // The next one's timer is here by now, and tells the one after it.
            let next = self.wheel.first();
            let later = self.timers.get(next as usize).map_or(next, |timer| timer.next());
            self.prefetch(later);
            if self.classes[class as usize].wants() {
                self.look_again(now, class);
                self.announce(now, class);
            }
        }
    }

    /// Asks the cache for those that wake first.
    #[inline]
    pub fn foresee_wakes(&self, now: Nanos) {
        self.wheel.foresee(now, |class| self.prefetch(class));
    }

    /// Asks the cache for a class.
    #[inline(always)]
    pub fn prefetch(&self, class: u32) {
        prefetch(&self.classes, class as usize);
        prefetch(&self.timers, class as usize);
    }

    /// Settles a class and, where it must wait, sets its timer. One that is set already stays if it
    /// fires earlier: whatever was charged meanwhile makes it fire too early, never too late.
    pub fn look_again(&mut self, now: Nanos, at: u32) {
        let class = &mut self.classes[at as usize];
        class.settle(now);
        class.mode = class.mode_now();
        if class.mode != Mode::CanSend {
            let due = class.opens_at();
            self.wheel.arm(&mut self.timers, at, due);
        }
    }

    /// Puts a class in the sets it belongs in, and so upward as long as that is news to the
    /// parent.
    fn announce(&mut self, now: Nanos, class: u32) {
        let mut at = class;
        while at != ROOT {
            let parent = self.classes[at as usize].parent();
            let above = &mut self.classes[parent as usize];
            let idle = !above.wants();
            if idle {
                above.settle(now);
            }
            if !self.offer(at) {
                return;
            }
            if idle {
                self.look_again(now, parent);
            }
            at = parent;
        }
    }

    /// Puts a class in its parent's sets. Whether the parent's own wants grew by that.
    #[inline(always)]
    pub fn offer(&mut self, at: u32) -> bool {
        let class = &self.classes[at as usize];
        let (offers, parent) = (class.offers(), class.parent() as usize);
        let inner = &self.inners[usize::from(self.classes[parent].inner)];
        let want = &mut self.classes[parent].want;
        let before = *want;
        for turn in offers {
            self.sets.insert(inner.set(turn), at - inner.first);
        }
        want.add_all(offers);
        *want != before
    }

    /// What a class has left of its round among its siblings, and what it gets a round.
    #[inline(always)]
    pub fn share(&mut self, at: u32, priority: usize) -> (&mut i32, u32) {
        let Share { deficit, quantum } = &mut self.shares[at as usize];
        let class = &self.classes[at as usize];
        if class.traits.is_leaf() {
            (deficit, *quantum)
        } else {
            let inner = &mut self.inners[usize::from(class.inner)];
            (&mut inner.rounds[priority].deficit, *quantum)
        }
    }

    /// The children of the classes of a range, which lie side by side too.
    pub fn children(&self, of: std::ops::Range<usize>) -> std::ops::Range<usize> {
        let inner = |at: &usize| !self.classes[*at].traits.is_leaf();
        let first_of = |at: usize| self.inners[usize::from(self.classes[at].inner)].first as usize;
        let Some(first) = of.clone().find(inner) else { return 0..0 };
        // Blocks of children lie in the order of their parents.
        let after = (of.end..self.classes.len()).find(inner);
        first_of(first)..after.map_or(self.classes.len(), first_of)
    }

    /// Whether a class is in a set of its parent.
    #[cfg(test)]
    pub fn is_offered(&self, at: u32, turn: Turn) -> bool {
        let parent = self.classes[at as usize].parent() as usize;
        let inner = &self.inners[usize::from(self.classes[parent].inner)];
        let i = at - inner.first;
        self.sets.next(inner.set(turn), i) == Some(i)
    }
}
