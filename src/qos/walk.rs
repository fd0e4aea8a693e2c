//! The walk down the class tree to the leaf that sends next, and back up to charge what it sent.
//!
//! It is made for every packet, and what it costs is instructions: so what a packet seldom needs is
//! kept out of line, and what the way down has found is noted for the way back up.

use std::num::NonZeroU64;

use super::class::{LOAN, Mode, OWN, Offers, Turn};
use super::spec::DEPTH_MAX;
use super::tree::{ROOT, ROOT_INNER, Tree};
use crate::base::Nanos;
use crate::base::mem::prefetch;

/// More than any depth: no class above the leaf lends.
const NO_LENDER: u8 = u8::MAX;
const STEPS: usize = 16;

const _: () = assert!(DEPTH_MAX < STEPS && STEPS.is_power_of_two());

/// By depth, for the leaf chosen last: how the walk came to it.
pub(super) struct Way([Step; STEPS]);

#[derive(Clone, Copy, Debug)]
struct Step {
    /// Who was chosen.
    class: u32,
    /// Index among inner classes of the one that chose.
    inner: u16,
    /// The set that it chose from. Where that is a `LOAN` set, the one chosen still stands at its
    /// cursor.
    turn: Turn,
}

/// A leaf chosen to send: one number, so that it stays in a register. Above the lowest byte, which
/// is the depth of the nearest class above (or of the leaf itself) that has tokens, stands the
/// leaf's own depth, and above that the leaf. The lender and all above it pay from their rates,
/// those below it only from their ceils.
#[derive(Clone, Copy, Debug)]
pub(super) struct Choice(NonZeroU64);

impl Choice {
    /// `None` for the port, which is no leaf.
    #[inline(always)]
    fn new(class: u32, depth: u8, lender_depth: u8) -> Option<Choice> {
        let depths = u64::from(depth) << 8 | u64::from(lender_depth);
        NonZeroU64::new(u64::from(class) << 16 | depths).map(Choice)
    }

    #[inline(always)]
    pub fn class(self) -> u32 {
        (self.0.get() >> 16) as u32
    }

    #[inline(always)]
    fn depth(self) -> u8 {
        (self.0.get() >> 8) as u8
    }

    #[inline(always)]
    fn lender_depth(self) -> u8 {
        self.0.get() as u8
    }

    /// The lender is not the leaf itself.
    #[inline(always)]
    pub fn is_borrowed(self) -> bool {
        self.lender_depth() != self.depth()
    }
}

impl Way {
    pub fn new() -> Way {
        Way([Step { class: ROOT, inner: ROOT_INNER, turn: Turn::loan(0) }; STEPS])
    }

    #[inline(always)]
    fn at(&self, depth: u8) -> Step {
        self.0[usize::from(depth) % STEPS]
    }

    #[inline(always)]
    fn set(&mut self, depth: u8, step: Step) {
        self.0[usize::from(depth) % STEPS] = step;
    }
}

impl Tree {
    /// The leaf that sends next; `None` when none may. What it sends is charged by
    /// [`Tree::charge`] before the next is chosen.
    #[inline(always)]
    pub fn choose(&mut self) -> Option<Choice> {
        if !self.is_ready() {
            return None;
        }
        self.descend(ROOT, 0, NO_LENDER).or_else(|| self.choose_again())
    }

    /// The walk ended at a class that had nothing to offer after all.
    #[cold]
    #[inline(never)]
    fn choose_again(&mut self) -> Option<Choice> {
        while self.is_ready() {
            if let Some(choice) = self.descend(ROOT, 0, NO_LENDER) {
                return Some(choice);
            }
        }
        None
    }

    /// Bytes that the leaf chosen may have sent and still send another packet at the same expense:
    /// until then nothing changes by which it was chosen.
    #[inline]
    pub fn room(&mut self, now: Nanos, choice: Choice) -> u64 {
        let (lender_depth, mut depth) = (choice.lender_depth(), choice.depth());
        let mut most = u64::MAX;
        loop {
            let Step { class: at, turn, .. } = self.way.at(depth);
            let class = &mut self.classes[at as usize];
            class.settle(now);
            if class.mode_now() != class.mode {
                return 0;
            }
            most = most.min(class.room(depth <= lender_depth));
            if depth == 0 {
                return most;
            }
            if turn.is_loan() {
                let left = *self.share(at, turn.priority()).0;
                most = most.min((left - 1).max(0) as u64);
            }
            depth -= 1;
        }
    }

    /// Bytes left of the rounds that the leaf chosen has its turn in.
    pub fn left_of_rounds(&mut self, choice: Choice) -> u32 {
        let mut most = u32::MAX;
        for depth in 1..=choice.depth() {
            let Step { class: at, turn, .. } = self.way.at(depth);
            if turn.is_loan() {
                most = most.min((*self.share(at, turn.priority()).0).max(0) as u32);
            }
        }
        most
    }

    /// Charges `bytes` for what `choice` sent. `emptied`: the leaf has no more.
    #[inline(always)]
    pub fn charge(&mut self, now: Nanos, choice: Choice, bytes: u32, emptied: bool) {
        if emptied {
            self.withdraw(choice.class());
        }
        let (lender_depth, mut depth) = (choice.lender_depth(), choice.depth());
        loop {
            let Step { class: at, inner, turn } = self.way.at(depth);
            let class = &mut self.classes[at as usize];
            class.settle(now);
            class.charge(bytes, depth <= lender_depth);
            let mode = class.mode_now();
            if mode != class.mode {
                self.change_mode(at, mode);
            }
            if depth == 0 {
                return;
            }
            if turn.is_loan() {
                self.pay_round(inner, at, turn.priority(), bytes);
                if depth < choice.depth() {
                    let is_deep = lender_depth + 1 < depth;
                    self.owe(at, turn.priority(), bytes, is_deep);
                }
            }
            depth -= 1;
        }
    }

    /// A leaf that is likely to have its turn `ahead` turns later, fetched into the cache;
    /// `None` where none is in sight.
    #[inline]
    pub fn foresee(&self, mut ahead: u32) -> Option<u32> {
        let mut at = ROOT;
        loop {
            let class = &self.classes[at as usize];
            let turn = class.want.first()?;
            let inner = &self.inners[usize::from(class.inner)];
            // As if each of those below had a turn. Divided only where it must be.
            let size = inner.count;
            let (rounds, rest) =
                if ahead < size { (0, ahead) } else { (ahead / size, ahead % size) };
            let from = inner.rounds[turn.priority()].cursors[turn.kind()] + rest;
            let from = if from < size { from } else { from - size };
            at = inner.first + self.sets.next(inner.set(turn), from)?;
            ahead = rounds;
            if inner.has_leaves_only || self.classes[at as usize].traits.is_leaf() {
                prefetch(&self.classes, at as usize);
                if turn.is_loan() {
                    prefetch(&self.shares, at as usize);
                }
                return Some(at);
            }
        }
    }

    /// A walk down from a class at some depth. `None`: it ended at one that had nothing to offer
    /// after all, and took it off a set.
    #[inline(always)]
    fn descend(&mut self, from: u32, depth: u8, lender_depth: u8) -> Option<Choice> {
        let (mut at, mut depth, mut lender_depth) = (from, depth, lender_depth);
        loop {
            let class = &self.classes[at as usize];
            let (turn, inner) = (class.want.first()?, class.inner);
            let next = if turn.is_loan() {
                if lender_depth == NO_LENDER {
                    if class.mode != Mode::CanSend || self.repays(at, inner, turn) {
                        return None;
                    }
                    lender_depth = depth;
                }
                self.next_loan(inner, turn)
            } else {
                self.next_own(inner, turn)
            };
            let Some(next) = next else { return self.go_on(at, depth, lender_depth, turn) };
            depth += 1;
            self.way.set(depth, Step { class: next, inner, turn });
            at = next;
            if self.classes[at as usize].traits.is_leaf() {
                return Choice::new(at, depth, lender_depth.min(depth));
            }
        }
    }

    /// None of those below a class has anything to offer in a turn after all. The walk goes on from
    /// it if it still has what it was chosen for.
    #[cold]
    #[inline(never)]
    fn go_on(&mut self, at: u32, depth: u8, lender_depth: u8, turn: Turn) -> Option<Choice> {
        let class = &mut self.classes[at as usize];
        class.want.remove(turn);
        if at != ROOT && !class.offers().contains(self.way.at(depth).turn) {
            return None;
        }
        self.descend(at, depth, if lender_depth == depth { NO_LENDER } else { lender_depth })
    }

    /// Whether a class that is about to lend has to pay debts of an earlier priority before.
    #[inline(always)]
    fn repays(&mut self, at: u32, inner: u16, turn: Turn) -> bool {
        let owes = self.inners[usize::from(inner)].owes_before(turn.priority());
        if owes {
            self.repay_before(at, turn.priority());
        }
        owes
    }

    /// The child to serve next on its own account. `None` when none has anything to offer after
    /// all.
    #[inline(always)]
    fn next_own(&mut self, inner: u16, turn: Turn) -> Option<u32> {
        let chooser = &mut self.inners[usize::from(inner)];
        let (first, set) = (chooser.first, chooser.set(turn));
        let cursor = &mut chooser.rounds[turn.priority()].cursors[OWN];
        let i = self.sets.next(set, *cursor)?;
        let child = first + i;
        if !self.classes[child as usize].offers().contains(turn) {
            return self.search(inner, turn);
        }
        // Own rates bound themselves: a turn each is enough.
        *cursor = i + 1;
        Some(child)
    }

    /// The child to serve next with tokens from above it. `None` as above.
    #[inline(always)]
    fn next_loan(&mut self, inner: u16, turn: Turn) -> Option<u32> {
        let chooser = &mut self.inners[usize::from(inner)];
        let (first, set) = (chooser.first, chooser.set(turn));
        let cursor = &mut chooser.rounds[turn.priority()].cursors[LOAN];
        let i = self.sets.next(set, *cursor)?;
        let child = first + i;
        if !self.classes[child as usize].offers().contains(turn) {
            return self.search(inner, turn);
        }
        *cursor = i;
        if *self.share(child, turn.priority()).0 <= 0 {
            return self.search(inner, turn);
        }
        Some(child)
    }

    /// As the two above, where it is not the first that is looked at.
    #[cold]
    #[inline(never)]
    fn search(&mut self, inner: u16, turn: Turn) -> Option<u32> {
        let (priority, kind) = (turn.priority(), turn.kind());
        let chooser = &self.inners[usize::from(inner)];
        let (first, set) = (chooser.first, chooser.set(turn));
        let mut cursor = chooser.rounds[priority].cursors[kind];
        while let Some(i) = self.sets.next(set, cursor) {
            if !self.classes[(first + i) as usize].offers().contains(turn) {
                self.sets.remove(set, i);
                continue;
            }
            let (deficit, quantum) = self.share(first + i, priority);
            if !turn.is_loan() || *deficit > 0 {
                let next = if turn.is_loan() { i } else { i + 1 };
                self.inners[usize::from(inner)].rounds[priority].cursors[kind] = next;
                return Some(first + i);
            }
            *deficit += quantum as i32;
            cursor = i + 1;
        }
        None
    }

    /// Takes what was sent off the round of `child`, whose turn it is. When the round is used up,
    /// the next begins: a class that is now blocked keeps that turn if it can send again by then.
    #[inline(always)]
    fn pay_round(&mut self, inner: u16, child: u32, priority: usize, bytes: u32) {
        let (deficit, quantum) = self.share(child, priority);
        *deficit -= bytes as i32;
        if *deficit <= 0 {
            *deficit += quantum as i32;
            let inner = &mut self.inners[usize::from(inner)];
            inner.rounds[priority].cursors[LOAN] = child - inner.first + 1;
        }
    }

    /// A leaf has sent its last packet.
    #[cold]
    #[inline(never)]
    fn withdraw(&mut self, leaf: u32) {
        let offered = self.classes[leaf as usize].offers();
        self.deactivate(leaf);
        self.change_offers(leaf, offered, Offers::NONE);
    }

    /// What a class has sent changes what it may do.
    #[inline(never)]
    fn change_mode(&mut self, at: u32, mode: Mode) {
        let class = &mut self.classes[at as usize];
        let offered = class.offers();
        class.mode = mode;
        let (offers, wants) = (class.offers(), class.wants());
        if mode != Mode::CanSend && wants {
            // While it waits, the timer stays set.
            let due = class.opens_at();
            self.wheel.arm(&mut self.timers, at, due);
        }
        self.change_offers(at, offered, offers);
    }

    /// Moves a class between its parent's sets, so that nobody looks at it in vain where it was,
    /// and those above it as far as that is news to them.
    fn change_offers(&mut self, at: u32, from: Offers, to: Offers) {
        let (mut at, mut from, mut to) = (at, from, to);
        while from != to && at != ROOT {
            let parent = self.classes[at as usize].parent();
            let above = &mut self.classes[parent as usize];
            let inner = &self.inners[usize::from(above.inner)];
            for turn in from.differing(to) {
                self.sets.put(inner.set(turn), at - inner.first, to.contains(turn));
            }
            from = above.offers();
            above.want.add_all(to);
            to = above.offers();
            at = parent;
        }
    }
}
