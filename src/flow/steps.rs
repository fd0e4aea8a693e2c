//! What becomes of flows once they have more bytes.
//!
//! What a rule says is the same for many flows, so each chain of steps is kept once, for as long as
//! a flow holds its number.

use super::treatments::Treatments;
use crate::packet::ClassId;

/// Different steps that are kept at once: a flow holds their number in 8 bits, of which 0 is none.
pub const STEPS_MAX: usize = u8::MAX as usize;

/// What becomes of a flow beyond a number of bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Step {
    /// More than these, both directions together.
    pub bytes: u64,
    pub class: ClassId,
    /// As [`super::Flow::treatment`].
    pub treatment: u8,
    /// As [`super::Note::tenant`].
    pub tenant: u16,
    /// The step after it, at more bytes; 0 for none.
    pub next: u8,
}

/// Steps by number. All memory is taken at the start.
#[derive(Debug)]
pub struct Steps {
    /// What is done with packets of flows: steps change it, too.
    pub treatments: Treatments,
    list: Vec<Kept>,
    free: Vec<u8>,
}

#[derive(Debug)]
struct Kept {
    step: Step,
    /// Flows, and steps before it, that hold its number; none of a place that is free.
    holders: u32,
}

impl Default for Steps {
    fn default() -> Steps {
        let (list, free) = (Vec::with_capacity(STEPS_MAX), Vec::with_capacity(STEPS_MAX));
        Steps { treatments: Treatments::default(), list, free }
    }
}

impl Steps {
    /// The number of a step, for one who holds it from now on and gives up `step.next` for it.
    ///
    /// # Errors
    /// There are too many: the caller still holds `step.next`.
    pub fn intern(&mut self, step: Step) -> Result<u8, TooMany> {
        let known = self.list.iter().position(|kept| kept.holders > 0 && kept.step == step);
        if let Some(at) = known {
            self.list[at].holders += 1;
            self.release(step.next);
            return Ok(at as u8 + 1);
        }
        let kept = Kept { step, holders: 1 };
        if let Some(at) = self.free.pop() {
            self.list[usize::from(at)] = kept;
            return Ok(at + 1);
        }
        if self.list.len() == STEPS_MAX {
            return Err(TooMany);
        }
        self.list.push(kept);
        Ok(self.list.len() as u8)
    }

    /// The step with this number.
    #[inline]
    pub fn get(&self, number: u8) -> Option<&Step> {
        Some(&self.list.get(usize::from(number).checked_sub(1)?)?.step)
    }

    /// One more holds a number.
    pub fn hold(&mut self, number: u8) {
        if let Some(kept) = usize::from(number).checked_sub(1).and_then(|at| self.list.get_mut(at))
        {
            kept.holders += 1;
        }
    }

    /// One holds it no longer; with the last it goes, and lets go of the next.
    pub fn release(&mut self, mut number: u8) {
        while let Some(at) = number.checked_sub(1)
            && let Some(kept) = self.list.get_mut(usize::from(at))
        {
            debug_assert!(kept.holders > 0, "step {number} is held by nobody");
            kept.holders = kept.holders.saturating_sub(1);
            if kept.holders > 0 {
                break;
            }
            self.free.push(at);
            number = kept.step.next;
        }
    }

    /// Steps that are held.
    pub fn len(&self) -> usize {
        self.list.len() - self.free.len()
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// No more steps are kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TooMany;

#[cfg(test)]
mod tests {
    use super::*;

    fn step(bytes: u64, next: u8) -> Step {
        Step { bytes, class: ClassId(1), treatment: 0, tenant: 0, next }
    }

    #[test]
    fn equal_steps_are_kept_once_and_no_more_than_fit() {
        let mut steps = Steps::default();
        for round in 0..2 {
            for i in 0..STEPS_MAX {
                assert_eq!(steps.intern(step(i as u64, 0)), Ok(i as u8 + 1), "round {round}");
            }
        }
        assert_eq!(steps.intern(step(1 << 40, 0)), Err(TooMany));
        assert_eq!((steps.get(0), steps.get(7)), (None, Some(&step(6, 0))));
        steps.release(7);
        assert_eq!(steps.intern(step(1 << 40, 0)), Err(TooMany), "one holds it still");
        steps.release(7);
        assert_eq!(steps.intern(step(1 << 40, 0)), Ok(7));
        assert_eq!(steps.get(7), Some(&step(1 << 40, 0)));
    }

    #[test]
    fn a_chain_goes_with_the_last_that_holds_it() {
        let mut steps = Steps::default();
        let chain = |steps: &mut Steps| {
            let last = steps.intern(step(9, 0)).expect("room");
            steps.intern(step(5, last)).expect("room")
        };
        let (one, two) = (chain(&mut steps), chain(&mut steps));
        assert_eq!((one, steps.len()), (two, 2));
        // The first flow takes its first step.
        let next = steps.get(one).expect("held").next;
        steps.hold(next);
        steps.release(one);
        steps.release(two);
        assert_eq!((steps.len(), steps.get(next)), (1, Some(&step(9, 0))));
        steps.release(next);
        assert!(steps.is_empty());
    }
}
