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

use super::class::{Class, LOAN, Mode, OWN, Offers, Turn};
use super::inner::{Inner, Round};
use super::sets::Sets;
use super::spec::{DEPTH_MAX, PRIORITIES};
use super::wheel::{NIL, Timer, Wheel};
use crate::base::Nanos;
use crate::base::mem::{huge_table, prefetch};

/// The port itself.
pub(super) const ROOT: u32 = 0;

pub(super) struct Tree {
    /// The port, then its classes level by level, siblings side by side.
    pub classes: Vec<Class>,
    /// By class, as all that follow.
    pub timers: Vec<Timer>,
    shares: Vec<Share>,
    /// Index among inner classes; `NIL` for leaves.
    pub inner_of: Vec<u32>,
    pub inners: Vec<Inner>,
    sets: Sets,
    pub wheel: Wheel,
    /// When classes were last woken.
    pub now: Nanos,
    /// By depth, for the leaf chosen last: the set it was chosen from at each level. Where that is
    /// a `LOAN` set, the class still stands at its cursor.
    turns: [Turn; DEPTH_MAX + 1],
}

/// A class in the rounds of its parent's `LOAN` sets.
#[derive(Clone, Copy, Debug)]
struct Share {
    /// Bytes left in this round. Of a leaf: an inner class has one a priority.
    deficit: i32,
    /// Bytes a round.
    quantum: u32,
}

/// A leaf chosen to send.
#[derive(Clone, Copy, Debug)]
pub(super) struct Choice {
    pub class: u32,
    depth: u8,
    /// Depth of the nearest class above (or of the leaf itself) that has tokens: it and all above
    /// it pay from their rates, those below it only from their ceils.
    lender_depth: u8,
}

impl Choice {
    /// The lender is not the leaf itself.
    #[inline(always)]
    pub fn is_borrowed(self) -> bool {
        self.lender_depth != self.depth
    }
}

impl Tree {
    /// A tree of the port alone, with room for `classes` in all.
    pub fn new(root: Class, classes: usize, now: Nanos) -> Tree {
        let mut tree = Tree {
            classes: huge_table(classes),
            timers: huge_table(classes),
            shares: huge_table(classes),
            inner_of: huge_table(classes),
            inners: Vec::new(),
            sets: Sets::default(),
            wheel: Wheel::new(now),
            now,
            turns: [Turn::loan(0); DEPTH_MAX + 1],
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
        self.inner_of.push(NIL);
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
        self.inner_of[parent as usize] = self.inners.len() as u32;
        let last = priorities.checked_ilog2().unwrap_or(0);
        let children = &self.classes[first as usize..][..count as usize];
        let has_leaves_only = children.iter().all(|child| child.traits.is_leaf());
        let early = priorities & !(1 << last);
        self.inners.push(Inner { first, count, stride, early, owes: 0, has_leaves_only, rounds });
    }

    /// Takes over the tokens of the classes of another tree that are in this one too. `from`: by
    /// class, the one that it was there; beyond the end where there was none.
    pub fn inherit(&mut self, now: Nanos, from: &[u32], old: &mut Tree) {
        for (class, from) in self.classes.iter_mut().zip(from) {
            class.settled = now;
            if let Some(old) = old.classes.get_mut(*from as usize) {
                old.settle(now);
                class.inherit(old);
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

    /// The leaf that sends next; `None` when none may. What it sends is charged by
    /// [`Tree::charge`] before the next is chosen.
    #[inline]
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
    pub fn charge(&mut self, now: Nanos, choice: Choice, bytes: u32, emptied: bool) {
        let (mut at, mut depth) = (choice.class, choice.depth);
        // What the class wanted before this.
        let mut wanted = self.classes[at as usize].want;
        if emptied {
            self.deactivate(at);
        }
        loop {
            let class = &mut self.classes[at as usize];
            let (parent, before, want) = (class.parent, class.mode, class.want);
            class.settle(now);
            class.charge(bytes, depth <= choice.lender_depth);
            let mode = class.mode_now();
            class.mode = mode;
            if mode != Mode::CanSend
                && want != Offers::NONE
                && (mode != before || !self.timers[at as usize].is_armed())
            {
                let due = class.opens_at();
                self.wheel.arm(&mut self.timers, at, due);
            }
            if depth == 0 {
                return;
            }
            let turn = self.turns[usize::from(depth)];
            if turn.is_loan() {
                self.pay_round(parent, at, turn.priority(), bytes);
                if depth < choice.depth {
                    let is_deep = choice.lender_depth + 1 < depth;
                    self.owe(at, turn.priority(), bytes, is_deep);
                }
            }
            let wanted_above = self.classes[parent as usize].want;
            if mode != before || want != wanted {
                let (offered, offers) = (wanted.passed(before), want.passed(mode));
                if offers != offered {
                    self.change_offers(at, offered, offers);
                }
            }
            wanted = wanted_above;
            (at, depth) = (parent, depth - 1);
        }
    }

    /// Asks the cache for those that wake first.
    #[inline]
    pub fn foresee_wakes(&self, now: Nanos) {
        self.wheel.foresee(now, |class| self.prefetch(class));
    }

    /// A leaf that is likely to have its turn `ahead` packets later, fetched into the cache;
    /// `None` where none is in sight.
    #[inline]
    pub fn foresee(&self, mut ahead: u32) -> Option<u32> {
        let mut at = ROOT;
        loop {
            let turn = self.classes[at as usize].want.first()?;
            let inner = &self.inners[self.inner_of[at as usize] as usize];
            // As if each of those below had a packet in turn. Divided only where it must be.
            let size = inner.count;
            let (rounds, rest) =
                if ahead < size { (0, ahead) } else { (ahead / size, ahead % size) };
            let from = inner.rounds[turn.priority()].cursors[turn.kind()] + rest;
            let from = if from < size { from } else { from - size };
            at = inner.first + self.sets.next(inner.set(turn), from)?;
            ahead = rounds;
            if inner.has_leaves_only || self.inner_of[at as usize] == NIL {
                self.prefetch(at);
                if turn.is_loan() {
                    prefetch(&self.shares, at as usize);
                }
                return Some(at);
            }
        }
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

    /// One walk from the port down. `None`: it ended at a class that had nothing to offer after
    /// all, and took it off a set.
    #[inline]
    fn descend(&mut self) -> Option<Choice> {
        let mut lender_depth = None;
        let (mut at, mut depth) = (ROOT, 0);
        loop {
            let class = &self.classes[at as usize];
            if class.traits.is_leaf() {
                let lender_depth = lender_depth.unwrap_or(depth);
                return Some(Choice { class: at, depth, lender_depth });
            }
            let turn = class.want.first()?;
            let is_loan = turn.is_loan();
            if is_loan && lender_depth.is_none() {
                if class.mode != Mode::CanSend {
                    return None;
                }
                if self.owes_before(at, turn.priority()) {
                    self.repay_before(at, turn.priority());
                    return None;
                }
            }
            let next = if is_loan { self.next_loan(at, turn) } else { self.next_own(at, turn) };
            let Some(next) = next else {
                let chosen_for = self.turns[usize::from(depth)];
                if at != ROOT && !self.classes[at as usize].offers().contains(chosen_for) {
                    return None;
                }
                continue;
            };
            if is_loan {
                lender_depth = lender_depth.or(Some(depth));
            }
            depth += 1;
            self.turns[usize::from(depth)] = turn;
            at = next;
        }
    }

    /// The child of `at` to serve next on its own account. `None` when none has anything to offer
    /// after all.
    #[inline(always)]
    fn next_own(&mut self, at: u32, turn: Turn) -> Option<u32> {
        let inner = &mut self.inners[self.inner_of[at as usize] as usize];
        let (first, set) = (inner.first, inner.set(turn));
        let round = &mut inner.rounds[turn.priority()];
        loop {
            let Some(i) = self.sets.next(set, round.cursors[OWN]) else {
                self.classes[at as usize].want.remove(turn);
                return None;
            };
            if self.classes[(first + i) as usize].offers().contains(turn) {
                // Own rates bound themselves: a packet in turn is enough.
                round.cursors[OWN] = i + 1;
                return Some(first + i);
            }
            self.sets.remove(set, i);
        }
    }

    /// The child of `at` to serve next with tokens from above it. `None` as above.
    #[inline(always)]
    fn next_loan(&mut self, at: u32, turn: Turn) -> Option<u32> {
        let priority = turn.priority();
        let inner = self.inner_of[at as usize] as usize;
        let Inner { first, ref rounds, .. } = self.inners[inner];
        let mut cursor = rounds[priority].cursors[LOAN];
        let set = self.inners[inner].set(turn);
        loop {
            let Some(i) = self.sets.next(set, cursor) else {
                self.classes[at as usize].want.remove(turn);
                return None;
            };
            let child = first + i;
            if !self.classes[child as usize].offers().contains(turn) {
                self.sets.remove(set, i);
                continue;
            }
            let quantum = self.shares[child as usize].quantum as i32;
            let deficit = self.deficit(child, priority);
            if *deficit > 0 {
                self.inners[inner].rounds[priority].cursors[LOAN] = i;
                return Some(child);
            }
            *deficit += quantum;
            cursor = i + 1;
        }
    }

    /// Takes a packet off the round of `child`, whose turn it is. When the round is used up, the
    /// next begins: a class that is now blocked keeps that turn if it can send again by then.
    #[inline]
    fn pay_round(&mut self, parent: u32, child: u32, priority: usize, bytes: u32) {
        let quantum = self.shares[child as usize].quantum as i32;
        let deficit = self.deficit(child, priority);
        *deficit -= bytes as i32;
        if *deficit <= 0 {
            *deficit += quantum;
            let inner = &mut self.inners[self.inner_of[parent as usize] as usize];
            inner.rounds[priority].cursors[LOAN] = child - inner.first + 1;
        }
    }

    /// Puts a class in the sets it belongs in, and so upward as long as that is news to the
    /// parent.
    fn announce(&mut self, now: Nanos, class: u32) {
        let mut at = class;
        while at != ROOT {
            let parent = self.classes[at as usize].parent;
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
    #[inline]
    pub fn offer(&mut self, at: u32) -> bool {
        let class = &self.classes[at as usize];
        let (offers, parent) = (class.offers(), class.parent as usize);
        let inner = &self.inners[self.inner_of[parent] as usize];
        let want = &mut self.classes[parent].want;
        let before = *want;
        for turn in offers {
            self.sets.insert(inner.set(turn), at - inner.first);
        }
        want.add_all(offers);
        *want != before
    }

    /// Moves a class between its parent's sets, so that nobody looks at it in vain where it was.
    #[inline]
    fn change_offers(&mut self, at: u32, from: Offers, to: Offers) {
        let parent = self.classes[at as usize].parent as usize;
        let inner = &self.inners[self.inner_of[parent] as usize];
        let want = &mut self.classes[parent].want;
        for turn in from.differing(to) {
            self.sets.put(inner.set(turn), at - inner.first, to.contains(turn));
        }
        want.add_all(to);
    }

    #[inline(always)]
    fn deficit(&mut self, at: u32, priority: usize) -> &mut i32 {
        if self.classes[at as usize].traits.is_leaf() {
            &mut self.shares[at as usize].deficit
        } else {
            &mut self.inners[self.inner_of[at as usize] as usize].rounds[priority].deficit
        }
    }

    /// The children of the classes of a range, which lie side by side too.
    pub fn children(&self, of: std::ops::Range<usize>) -> std::ops::Range<usize> {
        let inner = |at: &usize| !self.classes[*at].traits.is_leaf();
        let first_of = |at: usize| self.inners[self.inner_of[at] as usize].first as usize;
        let Some(first) = of.clone().find(inner) else { return 0..0 };
        // Blocks of children lie in the order of their parents.
        let after = (of.end..self.classes.len()).find(inner);
        first_of(first)..after.map_or(self.classes.len(), first_of)
    }

    /// Whether a class is in a set of its parent.
    #[cfg(test)]
    pub fn is_offered(&self, at: u32, turn: Turn) -> bool {
        let parent = self.classes[at as usize].parent as usize;
        let inner = &self.inners[self.inner_of[parent] as usize];
        let i = at - inner.first;
        self.sets.next(inner.set(turn), i) == Some(i)
    }
}
