//! The class tree at work: which leaf sends next, and at whose expense.
//!
//! Every class has two buckets: `rate`, what it is guaranteed, and `ceil`, what it never exceeds. A
//! class whose ceil bucket is below zero is blocked, and all below it with it. One whose rate
//! bucket is at zero or above sends on its own account. Any other may borrow from the nearest class
//! above it that has tokens.
//!
//! Each class passes two sets of priorities up to its parent: those at which something below it can
//! send within the class's own rate or a rate below it (`OWN`), and those at which something needs
//! the parent's tokens (`LOAN`). A parent holds two lists a priority, one for each set, of the
//! children to serve. Own rates go first everywhere, which is what keeps a guarantee from being
//! starved by another's priority; among borrowers the priority decides, and among those of the same
//! priority a deficit round robin at every level of the tree, so that a class's share does not
//! depend on how many leaves it has (the kernel's sch_htb.c counts deficits at leaves only).
//!
//! A class joins a list as soon as it has something to offer and leaves it when it is next looked
//! at and has not: joining and leaving cost the same for any number of classes.

use super::class::{Class, Inner, LOAN, Mode, OWN};
use super::spec::DEPTH_MAX;
use super::wheel::{NIL, Wheel};
use crate::base::Nanos;

/// The port itself.
pub(super) const ROOT: u32 = 0;

pub(super) struct Tree {
    /// The port, then its classes, each before those below it and these before its next sibling.
    pub classes: Vec<Class>,
    pub inners: Vec<Inner>,
    /// The class of each leaf.
    pub leaves: Vec<u32>,
    pub wheel: Wheel,
    /// By depth, for the leaf chosen last: the list it was chosen from at each level.
    turns: [Turn; DEPTH_MAX + 1],
}

/// A leaf chosen to send.
#[derive(Clone, Copy, Debug)]
pub(super) struct Choice {
    pub class: u32,
    /// Index among leaves.
    pub leaf: u32,
    /// Depth of the nearest class above (or of the leaf itself) that has tokens: it and all above
    /// it pay from their rates, those below it only from their ceils.
    lender_depth: u8,
    /// The lender is not the leaf itself.
    pub is_borrowed: bool,
}

/// Whose round pays at one level.
#[derive(Clone, Copy)]
struct Turn {
    priority: u8,
    /// From a `LOAN` list, at whose front the class still stands.
    is_loan: bool,
}

impl Tree {
    pub fn new(classes: Vec<Class>, inners: Vec<Inner>, leaves: Vec<u32>, wheel: Wheel) -> Tree {
        let turns = [Turn { priority: 0, is_loan: false }; DEPTH_MAX + 1];
        Tree { classes, inners, leaves, wheel, turns }
    }

    /// A leaf has packets again.
    #[inline]
    pub fn activate(&mut self, now: Nanos, class: u32, priority: u8) {
        self.classes[class as usize].want[LOAN] = 1 << priority;
        self.look_again(now, class);
        self.announce(now, class);
    }

    /// A leaf lost its last packet.
    #[inline]
    pub fn deactivate(&mut self, class: u32) {
        self.classes[class as usize].want = [0, 0];
    }

    /// Whether a packet may go now, as far as is known before trying.
    #[inline]
    pub fn is_ready(&self) -> bool {
        let root = &self.classes[ROOT as usize];
        root.mode != Mode::Blocked && root.wants()
    }

    /// Wakes classes whose tokens have come, `budget` at most.
    pub fn wake(&mut self, now: Nanos, budget: usize) {
        for _ in 0..budget {
            let Some(class) = self.wheel.pop(&mut self.classes, now) else { return };
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
        if emptied {
            self.deactivate(choice.class);
        }
        let mut at = choice.class;
        let mut news = false;
        loop {
            let class = &mut self.classes[at as usize];
            let (depth, parent, before) = (class.depth, class.parent, class.mode);
            class.settle(now);
            class.charge(bytes, depth <= choice.lender_depth);
            class.mode = class.mode_now();
            let changed = class.mode != before;
            if class.mode != Mode::CanSend && (changed || !class.timer.is_armed()) && class.wants()
            {
                let due = class.opens_at();
                self.wheel.arm(&mut self.classes, at, due);
            }
            if at == ROOT {
                return;
            }
            let turn = self.turns[usize::from(depth)];
            if turn.is_loan {
                self.pay_round(parent, at, turn.priority, bytes);
            }
            news = (changed || news) && self.offer(at);
            at = parent;
        }
    }

    /// Settles a class and, where it must wait, sets its timer. One that is set already stays if it
    /// fires earlier: whatever was charged meanwhile makes it fire too early, never too late.
    pub fn look_again(&mut self, now: Nanos, at: u32) {
        let class = &mut self.classes[at as usize];
        class.settle(now);
        class.mode = class.mode_now();
        if class.mode != Mode::CanSend {
            let due = class.opens_at();
            self.wheel.arm(&mut self.classes, at, due);
        }
    }

    /// One walk from the port down. `None`: it ended at a class that had nothing to offer after
    /// all, and took it off a list.
    #[inline]
    fn descend(&mut self) -> Option<Choice> {
        let mut lender_depth = None;
        let mut at = ROOT;
        loop {
            let class = &self.classes[at as usize];
            if class.is_leaf {
                return Some(Choice {
                    class: at,
                    leaf: class.body,
                    lender_depth: lender_depth.unwrap_or(class.depth),
                    is_borrowed: lender_depth.is_some(),
                });
            }
            let (depth, body) = (class.depth, class.body);
            let (kind, set) = if class.want[OWN] != 0 {
                (OWN, class.want[OWN])
            } else if lender_depth.is_some() || class.mode == Mode::CanSend {
                (LOAN, class.want[LOAN])
            } else {
                return None;
            };
            if set == 0 {
                return None;
            }
            let priority = set.trailing_zeros();
            let Some(front) = self.front(at, body, kind, priority as usize) else { continue };
            if kind == LOAN {
                lender_depth = lender_depth.or(Some(depth));
            }
            self.turns[usize::from(depth) + 1] =
                Turn { priority: priority as u8, is_loan: kind == LOAN };
            at = front;
        }
    }

    /// The child to serve next in one list of `at`, whose inner part is `body`. `None` when the
    /// list has run empty: what it held had nothing to offer.
    #[inline]
    fn front(&mut self, at: u32, body: u32, kind: usize, priority: usize) -> Option<u32> {
        let tail = self.inners[body as usize].tails[kind][priority];
        let mut tail = tail;
        loop {
            let front = *self.next(tail, kind, priority);
            let class = &self.classes[front as usize];
            if class.offers()[kind] & (1 << priority) == 0 {
                let after = std::mem::replace(self.next(front, kind, priority), NIL);
                if front == tail {
                    self.inners[body as usize].tails[kind][priority] = NIL;
                    self.classes[at as usize].want[kind] &= !(1 << priority);
                    return None;
                }
                *self.next(tail, kind, priority) = after;
                continue;
            }
            // Own rates bound themselves: a packet in turn is enough.
            let turn_over = kind == OWN || {
                let quantum = class.quantum as i32;
                let deficit = self.deficit(front, priority);
                if *deficit > 0 {
                    self.inners[body as usize].tails[kind][priority] = tail;
                    return Some(front);
                }
                *deficit += quantum;
                false
            };
            tail = front;
            if turn_over {
                self.inners[body as usize].tails[kind][priority] = tail;
                return Some(front);
            }
        }
    }

    /// Takes a packet off the round of `front`, at the front of its parent's list. When the round
    /// is used up, the next begins, at the end of the list: a class that is now blocked keeps that
    /// turn if it can send again by then.
    #[inline]
    fn pay_round(&mut self, parent: u32, front: u32, priority: u8, bytes: u32) {
        let priority = usize::from(priority);
        let quantum = self.classes[front as usize].quantum as i32;
        let deficit = self.deficit(front, priority);
        *deficit -= bytes as i32;
        if *deficit <= 0 {
            *deficit += quantum;
            let body = self.classes[parent as usize].body as usize;
            self.inners[body].tails[LOAN][priority] = front;
        }
    }

    /// Puts a class on the lists it belongs on, and so upward as long as that is news to the
    /// parent.
    fn announce(&mut self, now: Nanos, class: u32) {
        let mut at = class;
        while at != ROOT {
            let parent = self.classes[at as usize].parent;
            let idle = !self.classes[parent as usize].wants();
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
    fn offer(&mut self, at: u32) -> bool {
        let class = &self.classes[at as usize];
        let (offers, parent) = (class.offers(), class.parent as usize);
        let body = self.classes[parent].body as usize;
        let mut grew = false;
        for (kind, mut set) in offers.into_iter().enumerate() {
            while set != 0 {
                let priority = set.trailing_zeros() as usize;
                set &= set - 1;
                if *self.next(at, kind, priority) != NIL {
                    continue;
                }
                let last = std::mem::replace(&mut self.inners[body].tails[kind][priority], at);
                let after = if last == NIL {
                    self.classes[parent].want[kind] |= 1 << priority;
                    grew = true;
                    at
                } else {
                    std::mem::replace(self.next(last, kind, priority), at)
                };
                *self.next(at, kind, priority) = after;
            }
        }
        grew
    }

    /// Who follows a class in one of its parent's circles.
    #[inline(always)]
    pub fn next(&mut self, at: u32, kind: usize, priority: usize) -> &mut u32 {
        let class = &mut self.classes[at as usize];
        if class.is_leaf {
            &mut class.next[kind]
        } else {
            &mut self.inners[class.body as usize].next[kind][priority]
        }
    }

    #[inline(always)]
    fn deficit(&mut self, at: u32, priority: usize) -> &mut i32 {
        let class = &mut self.classes[at as usize];
        if class.is_leaf {
            &mut class.deficit
        } else {
            &mut self.inners[class.body as usize].deficits[priority]
        }
    }
}
