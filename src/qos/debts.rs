//! What a class's own tokens pay for what was lent from above it.
//!
//! A class's guarantee is for all below it, first for those first in priority. But these send when
//! they have something, and by then those after them may have used the class's tokens up. They do
//! not wait for more: they borrow further above, as they would if the class had nothing. So the
//! class would get its whole guarantee for those last in priority, and on top of it what its first
//! ones borrow, where it should have to lend its last ones less.
//!
//! That is put right afterwards: what a priority below a class was lent from above it, the class
//! owes, up to a burst, and before it lends to a later priority it pays that from its tokens, and
//! the classes above it that did not pay either, up to the one that did. How much of its debts its
//! parent did not pay for is kept beside them, since the parent may owe for others, too. What is
//! paid was no loan after all, and is given back to the class's round among its siblings. So
//! lasting demand of a priority is met by the class itself as far as its rate goes, and order in
//! time does not matter. Own rates below a class are no loans, and pay nothing of this.
//!
//! What a class borrowed is what it was lent and has not paid itself. It is counted once that is
//! certain: at once where it is not owed, and else when the debt is forgotten. So what is counted
//! never goes back, and is behind by a burst a priority at most.

use super::class::Mode;
use super::inner::Round;
use super::spec::PRIORITIES;
use super::tree::{ROOT, Tree};

/// Bytes that a class pays more than it has: about what it would have lent.
const REPAID_BEYOND: u32 = 1_538;

impl Tree {
    /// Notes that not the tokens of an inner class paid for something below it, but those of one
    /// above it. `is_deep`: those of its parent did not pay either.
    #[inline(always)]
    pub(super) fn owe(&mut self, at: u32, priority: usize, bytes: u32, is_deep: bool) {
        let number = usize::from(self.classes[at as usize].inner);
        let (inner, lent) = (&mut self.inners[number], &mut self.lent.inner[number]);
        if inner.early & (1 << priority) == 0 {
            *lent += u64::from(bytes);
            return;
        }
        let most = self.classes[at as usize].rate.cap();
        let Round { debt, deep, .. } = &mut inner.rounds[priority];
        let all = debt.saturating_add(bytes);
        *deep = deep.saturating_add(if is_deep { bytes } else { 0 });
        if all > most {
            // What is forgotten is of either kind.
            *lent += u64::from(all - most);
            *deep = share(*deep, most, all);
        }
        *debt = all.min(most);
        inner.owes |= 1 << priority;
    }

    /// Pays debts of the priorities before this one with the tokens of a class that has some, and
    /// about a frame more. It does not pay all that it owes: what was lent on top of all its own
    /// tokens would count, too, whenever those first in priority pause for a moment.
    #[cold]
    pub(super) fn repay_before(&mut self, at: u32, priority: usize) {
        let mut left = self.classes[at as usize].rate.bytes().saturating_add(REPAID_BEYOND);
        let mut debts = [0; PRIORITIES];
        let inner = &self.inners[usize::from(self.classes[at as usize].inner)];
        for (part, round) in debts.iter_mut().zip(&inner.rounds[..priority]) {
            *part = round.debt.min(left);
            left -= *part;
        }
        let (mut at, mut news) = (at, false);
        while at != ROOT {
            let bytes = self.settle_debts(at, &mut debts);
            let class = &mut self.classes[at as usize];
            let (parent, before) = (class.parent(), class.mode);
            class.settle(self.now);
            class.pay(bytes);
            class.mode = class.mode_now();
            let changed = class.mode != before;
            if class.mode != Mode::CanSend && class.wants() {
                let due = class.opens_at();
                self.wheel.arm(&mut self.timers, at, due);
            }
            news = (changed || news) && self.offer(at);
            at = parent;
        }
    }

    /// Takes off a class's debts what is in `debts`, and leaves there what of that the class above
    /// owes, too. Returns the sum.
    fn settle_debts(&mut self, at: u32, debts: &mut [u32; PRIORITIES]) -> u32 {
        let inner = &mut self.inners[usize::from(self.classes[at as usize].inner)];
        let mut bytes = 0u32;
        for (priority, (part, round)) in debts.iter_mut().zip(&mut inner.rounds).enumerate() {
            let paid = round.debt.min(*part);
            *part = share(round.deep, paid, round.debt);
            round.deep -= *part;
            round.debt -= paid;
            // It is no loan any more, and so takes nothing of the class's share in those.
            round.deficit = round.deficit.saturating_add_unsigned(paid);
            bytes = bytes.saturating_add(paid);
            if round.debt == 0 {
                inner.owes &= !(1 << priority);
            }
        }
        bytes
    }
}

/// `whole` parts of a number, of `of`; no more than it.
fn share(number: u32, whole: u32, of: u32) -> u32 {
    (u64::from(number) * u64::from(whole)).checked_div(u64::from(of)).unwrap_or(0) as u32
}
