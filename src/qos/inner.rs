//! What a class has that has classes below it: whose turn it is among them.

use std::mem::offset_of;

use super::class::Turn;
use super::sets::Set;
use super::spec::PRIORITIES;

/// What an inner class has besides. The first two priorities lie in its first cache line.
#[derive(Clone, Debug)]
#[repr(C, align(64))]
pub(super) struct Inner {
    /// Its first child.
    pub first: u32,
    /// Its children, and with that the size of its sets.
    pub count: u32,
    /// Words from a priority's first set to its second.
    pub stride: u32,
    /// Priorities before others of those below it.
    pub early: u8,
    /// Priorities of which it has debts.
    pub owes: u8,
    /// No child has children.
    pub has_leaves_only: bool,
    pub rounds: [Round; PRIORITIES],
}

/// One priority below an inner class.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Round {
    /// Where the sets of children with something to offer begin, if any child can offer this.
    pub sets: u32,
    /// Whose turn it is, as a distance from the first child.
    pub cursors: [u32; 2],
    /// Bytes left in its own round among its siblings.
    pub deficit: i32,
    /// Bytes that it owes; see [`super::debts`].
    pub debt: u32,
    /// Of these, what the class above it did not pay for either.
    pub deep: u32,
}

const _: () = assert!(offset_of!(Inner, rounds) + 2 * size_of::<Round>() == 64);

impl Inner {
    /// The children with something to offer in a turn.
    #[inline(always)]
    pub fn set(&self, turn: Turn) -> Set {
        let stride = if turn.is_loan() { self.stride } else { 0 };
        Set::at(self.rounds[turn.priority()].sets + stride, self.count)
    }

    /// Whether a class that is about to lend to a priority has debts of one before it.
    #[inline(always)]
    pub fn owes_before(&self, priority: usize) -> bool {
        self.owes & ((1 << priority) - 1) != 0
    }
}
