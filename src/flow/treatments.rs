//! What is done with each packet of a flow besides what its class says.
//!
//! What a rule says is the same for many flows, so each treatment is kept once, and a flow holds
//! its number.

use crate::packet::CopyTo;

/// Different treatments that are kept: a flow holds their number in 8 bits, of which 0 is none.
pub const TREATMENTS_MAX: usize = u8::MAX as usize;

/// What is done with a packet.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Treatment {
    /// Code point that it leaves with.
    pub dscp: Option<u8>,
    /// Where a copy of it goes.
    pub mirror: Option<CopyTo>,
}

impl Treatment {
    /// It is left as it is.
    pub const NONE: Treatment = Treatment { dscp: None, mirror: None };
}

/// Treatments by number. All memory is taken at the start, and treatments stay for good: they come
/// from rules.
#[derive(Debug)]
pub struct Treatments {
    list: Vec<Treatment>,
}

impl Default for Treatments {
    fn default() -> Treatments {
        Treatments { list: Vec::with_capacity(TREATMENTS_MAX) }
    }
}

impl Treatments {
    /// The number of a treatment; `None` where there are too many.
    pub fn intern(&mut self, treatment: Treatment) -> Option<u8> {
        if treatment == Treatment::NONE {
            return Some(0);
        }
        let known = self.list.iter().position(|known| *known == treatment);
        if known.is_none() {
            if self.list.len() == TREATMENTS_MAX {
                return None;
            }
            self.list.push(treatment);
        }
        Some((known.unwrap_or(self.list.len() - 1) + 1) as u8)
    }

    /// The treatment with this number.
    #[inline]
    pub fn get(&self, number: u8) -> Treatment {
        let place = usize::from(number).checked_sub(1);
        place.and_then(|place| self.list.get(place)).copied().unwrap_or(Treatment::NONE)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::packet::PortId;

    #[test]
    fn equal_treatments_are_kept_once_and_no_more_than_fit() {
        let treatment = |i: u16| {
            let mirror = Some(CopyTo::Port(PortId(i / 64)));
            Treatment { dscp: Some((i % 64) as u8), mirror }
        };
        let mut treatments = Treatments::default();
        assert_eq!(treatments.intern(Treatment::NONE), Some(0));
        for round in 0..2 {
            for i in 0..TREATMENTS_MAX as u16 {
                assert_eq!(treatments.intern(treatment(i)), Some(i as u8 + 1), "round {round}");
            }
        }
        assert_eq!(treatments.intern(treatment(TREATMENTS_MAX as u16)), None);
        assert_eq!((treatments.get(0), treatments.get(7)), (Treatment::NONE, treatment(6)));
    }
}
