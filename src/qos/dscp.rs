//! Differentiated services code points (RFC 2474): which are trusted, and what they say of a
//! colour.

use super::meter::Colour;

/// Code points there are.
pub const DSCP_COUNT: usize = 64;

/// What becomes of each code point.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Remap([u8; DSCP_COUNT]);

impl Remap {
    /// Every code point is trusted, and stays.
    pub const TRUST: Remap = {
        let mut to = [0; DSCP_COUNT];
        let mut i = 0;
        while i < DSCP_COUNT {
            to[i] = i as u8;
            i += 1;
        }
        Remap(to)
    };

    /// None is trusted: all become `dscp`.
    pub const fn all_to(dscp: u8) -> Remap {
        Remap([dscp & (DSCP_COUNT - 1) as u8; DSCP_COUNT])
    }

    /// Sends one code point to another; those beyond 63 do not exist and change nothing.
    pub fn set(&mut self, from: u8, to: u8) {
        if let Some(entry) = self.0.get_mut(usize::from(from))
            && usize::from(to) < DSCP_COUNT
        {
            *entry = to;
        }
    }

    #[inline(always)]
    pub fn of(&self, dscp: u8) -> u8 {
        self.0[usize::from(dscp) & (DSCP_COUNT - 1)]
    }
}

/// The colour that a code point carries: the drop precedence of assured forwarding (RFC 2597,
/// section 6). All others are green.
#[inline]
pub fn colour_of(dscp: u8) -> Colour {
    match af_precedence(dscp) {
        Some(2) => Colour::Yellow,
        Some(3) => Colour::Red,
        _ => Colour::Green,
    }
}

/// A code point of assured forwarding with the drop precedence of `colour`; others stay.
#[inline]
pub fn with_colour(dscp: u8, colour: Colour) -> u8 {
    match af_precedence(dscp) {
        Some(_) => (dscp & !0b110) | ((colour as u8 + 1) << 1),
        None => dscp,
    }
}

/// 1 to 3 for AF11 to AF43.
fn af_precedence(dscp: u8) -> Option<u8> {
    let (class, precedence) = (dscp >> 3, (dscp >> 1) & 0b11);
    let is_af = (1..=4).contains(&class) && precedence > 0 && dscp & 1 == 0;
    is_af.then_some(precedence)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn drop_precedences_are_colours() {
        use Colour::{Green, Red, Yellow};
        for (dscp, colour) in [(10, Green), (12, Yellow), (14, Red), (36, Yellow), (38, Red)] {
            assert_eq!(colour_of(dscp), colour, "{dscp}");
        }
        // Class selectors, EF, LE, odd numbers and classes beyond AF4 have none.
        for dscp in [0, 1, 8, 11, 13, 15, 32, 40, 44, 46, 48, 54, 63] {
            assert_eq!(colour_of(dscp), Green, "{dscp}");
            assert_eq!(with_colour(dscp, Red), dscp);
        }
        for (at, colour) in Colour::ALL.into_iter().enumerate() {
            for class in [10, 18, 26, 34u8] {
                for precedence in [0, 2, 4] {
                    assert_eq!(with_colour(class + precedence, colour), class + 2 * at as u8);
                }
            }
        }
    }

    #[test]
    fn tables() {
        assert!((0..64).all(|d| Remap::TRUST.of(d) == d && Remap::all_to(8).of(d) == 8));
        let mut remap = Remap::TRUST;
        remap.set(46, 0);
        remap.set(64, 1);
        remap.set(1, 64);
        assert_eq!([46, 0, 1, 63].map(|d| remap.of(d)), [0, 0, 1, 63]);
    }
}
