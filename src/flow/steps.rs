//! What becomes of flows once they have more bytes.
//!
//! What a rule says is the same for many flows, so each chain of steps is kept once, and a flow
//! holds its number.

use super::treatments::Treatments;
use crate::packet::ClassId;

/// Different steps that are kept: a flow holds their number in 8 bits, of which 0 is none.
pub const STEPS_MAX: usize = u8::MAX as usize;

/// What becomes of a flow beyond a number of bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Step {
    /// More than these, both directions together.
    pub bytes: u64,
    pub class: ClassId,
    /// As [`super::Flow::treatment`].
    pub treatment: u8,
    /// The step after it, at more bytes; 0 for none.
    pub next: u8,
}

impl Step {
    pub const NONE: Step = Step { bytes: 0, class: ClassId::UNSET, treatment: 0, next: 0 };
}

/// Steps by number. All memory is taken at the start, and steps stay for good: they come from
/// rules.
#[derive(Debug)]
pub struct Steps {
    /// What is done with packets of flows: steps change it, too.
    pub treatments: Treatments,
    list: Vec<Step>,
}

impl Default for Steps {
    fn default() -> Steps {
        Steps { treatments: Treatments::default(), list: Vec::with_capacity(STEPS_MAX) }
    }
}

impl Steps {
    /// The number of a step; `None` where there are too many.
    pub fn intern(&mut self, step: Step) -> Option<u8> {
        let known = self.list.iter().position(|known| *known == step);
        if known.is_none() {
            if self.list.len() == STEPS_MAX {
                return None;
            }
            self.list.push(step);
        }
        Some((known.unwrap_or(self.list.len() - 1) + 1) as u8)
    }

    /// The step with this number.
    #[inline]
    pub fn get(&self, number: u8) -> Option<&Step> {
        self.list.get(usize::from(number).checked_sub(1)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_steps_are_kept_once_and_no_more_than_fit() {
        let step = |bytes| Step { bytes, class: ClassId(1), treatment: 0, next: 0 };
        let mut steps = Steps::default();
        for round in 0..2 {
            for i in 0..STEPS_MAX {
                assert_eq!(steps.intern(step(i as u64)), Some(i as u8 + 1), "round {round}");
            }
        }
        assert_eq!(steps.intern(step(1 << 40)), None);
        assert_eq!((steps.get(0), steps.get(7)), (None, Some(&step(6))));
    }
}
