//! A rule as compiled.

use super::kinds::Kinds;
use super::spec::RuleSpec;
use crate::packet::ClassId;

/// What becomes of a flow that a rule matches, and what else it asks for than tables tell. Among
/// many rules the one that matches is one more line of memory to wait for: a small one.
pub struct Rule {
    /// Kinds of condition that it has.
    pub needs: Kinds,
    pub class: ClassId,
    pub pool: Place,
    pub tenant: Place,
    /// In the schedule.
    pub time: Place,
    /// In [`super::Rules::mirrors`].
    pub mirror: Place,
    mark: u8,
    /// Of [`super::Rules::sizes`]; 0: of any size.
    pub level: u8,
}

const _: () = assert!(size_of::<Rule>() == 16);

/// No code point has as many bits.
const NO_MARK: u8 = u8::MAX;

/// A place in a list of at most [`super::spec::RULES_MAX`], or none.
#[derive(Clone, Copy)]
pub struct Place(u16);

impl Rule {
    pub fn new(spec: &RuleSpec, needs: Kinds, level: u8, time: Place, mirror: Place) -> Rule {
        Rule {
            needs,
            class: spec.class,
            pool: Place::of(spec.pool),
            tenant: Place::of(spec.tenant),
            time,
            mirror,
            mark: spec.mark.unwrap_or(NO_MARK),
            level,
        }
    }

    /// Code point that packets leave with.
    #[inline]
    pub fn mark(&self) -> Option<u8> {
        (self.mark != NO_MARK).then_some(self.mark)
    }
}

impl Place {
    /// # Panics
    /// On the one place that stands for none: no list is as long.
    pub fn of(place: Option<u16>) -> Place {
        assert!(place != Some(u16::MAX), "a list of more than {} entries", u16::MAX);
        Place(place.unwrap_or(u16::MAX))
    }

    #[inline]
    pub fn get(self) -> Option<u16> {
        (self.0 != u16::MAX).then_some(self.0)
    }
}
