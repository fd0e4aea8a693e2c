//! One class at work: its buckets and what they allow.

use super::bucket::{Bucket, Patience};
use super::spec::PRIORITIES;
use crate::base::Nanos;

/// Index of the sets of children that send within rates at or below themselves.
pub(super) const OWN: usize = 0;
/// Index of the sets of children that need tokens from above themselves.
pub(super) const LOAN: usize = 1;

/// At which priorities something is to be sent: a byte of bits `OWN`, above it one `LOAN`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Offers(u16);

/// One of them: whose turn, and at which priority.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Turn(u8);

impl Offers {
    pub const NONE: Offers = Offers(0);

    /// The first turn: own rates before loans, and then by priority. `None` if there is none.
    #[inline(always)]
    pub fn first(self) -> Option<Turn> {
        (self.0 != 0).then(|| Turn(self.0.trailing_zeros() as u8))
    }

    #[inline(always)]
    pub fn contains(self, turn: Turn) -> bool {
        self.0 & turn.bit() != 0
    }

    #[inline(always)]
    pub fn add(&mut self, turn: Turn) {
        self.0 |= turn.bit();
    }

    #[inline(always)]
    pub fn add_all(&mut self, other: Offers) {
        self.0 |= other.0;
    }

    #[inline(always)]
    pub fn remove(&mut self, turn: Turn) {
        self.0 &= !turn.bit();
    }

    /// What a class in this mode passes up of what those below it offer.
    #[inline(always)]
    pub fn passed(self, mode: Mode) -> Offers {
        // By mode: what it passes on as it is, and what of loans it turns into its own.
        const PASSED: [u16; 3] = [0, u16::MAX, u8::MAX as u16];
        const OWNED: [u16; 3] = [0, 0, u8::MAX as u16];
        let (want, mode) = (self.0, mode as usize);
        Offers(want & PASSED[mode] | want >> PRIORITIES & OWNED[mode])
    }

    /// Those in one of the two but not in both.
    #[inline(always)]
    pub fn differing(self, other: Offers) -> Offers {
        Offers(self.0 ^ other.0)
    }
}

impl Iterator for Offers {
    type Item = Turn;

    #[inline(always)]
    fn next(&mut self) -> Option<Turn> {
        let turn = self.first()?;
        self.0 &= self.0 - 1;
        Some(turn)
    }
}

impl Turn {
    #[inline(always)]
    pub fn loan(priority: u8) -> Turn {
        Turn(priority % PRIORITIES as u8 + PRIORITIES as u8)
    }

    #[inline(always)]
    pub fn priority(self) -> usize {
        usize::from(self.0) % PRIORITIES
    }

    /// `OWN` or `LOAN`.
    #[inline(always)]
    pub fn kind(self) -> usize {
        usize::from(self.0) / PRIORITIES % 2
    }

    #[inline(always)]
    pub fn is_loan(self) -> bool {
        self.kind() == LOAN
    }

    #[inline(always)]
    fn bit(self) -> u16 {
        1 << (self.0 % 16)
    }
}

/// What a class may do now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Mode {
    /// Its ceil is used up.
    Blocked,
    /// Its rate is used up, its ceil is not.
    MayBorrow,
    /// Within its rate.
    CanSend,
}

/// Which of its buckets a class needs: one that can never be the first to run dry is left alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Buckets {
    Both,
    /// The ceil is the parent's, so the parent's bucket always holds less.
    Rate,
    /// The port: rate and ceil are the same.
    Ceil,
}

/// What never changes of a class, in one byte.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Traits(u8);

impl Traits {
    const LEAF: u8 = 1;
    /// The ceil is the parent's, so the parent's bucket always holds less: rate only.
    const NO_CEIL: u8 = 2;
    /// The port, whose rate is its ceil: ceil only.
    const NO_RATE: u8 = 4;
    const PRIORITY_SHIFT: u32 = 3;
    const PATIENCE_SHIFT: u32 = 6;

    pub fn new(is_leaf: bool, buckets: Buckets, priority: u8, patience: Patience) -> Traits {
        let buckets = match buckets {
            Buckets::Both => 0,
            Buckets::Rate => Traits::NO_CEIL,
            Buckets::Ceil => Traits::NO_RATE,
        };
        let priority = priority.min(PRIORITIES as u8 - 1) << Traits::PRIORITY_SHIFT;
        let patience = patience.bits() << Traits::PATIENCE_SHIFT;
        Traits(u8::from(is_leaf) | buckets | priority | patience)
    }

    #[inline(always)]
    pub fn is_leaf(self) -> bool {
        self.0 & Traits::LEAF != 0
    }

    #[inline(always)]
    fn has_rate(self) -> bool {
        self.0 & Traits::NO_RATE == 0
    }

    #[inline(always)]
    fn has_ceil(self) -> bool {
        self.0 & Traits::NO_CEIL == 0
    }

    /// Of a leaf.
    #[inline(always)]
    pub fn priority(self) -> u8 {
        self.0 >> Traits::PRIORITY_SHIFT & (PRIORITIES as u8 - 1)
    }

    /// For how long what waits keeps its rate.
    #[inline(always)]
    fn patience(self) -> Patience {
        Patience::from_bits(self.0 >> Traits::PATIENCE_SHIFT)
    }
}

/// One cache line: all that a packet touches of a class beside the rounds of its parent.
#[derive(Clone, Debug)]
#[repr(C, align(64))]
pub(super) struct Class {
    pub rate: Bucket,
    pub ceil: Bucket,
    /// When both were last settled. Between that and now nothing was taken out.
    pub settled: Nanos,
    above: u16,
    /// Index among inner classes; [`Class::LEAF`] for leaves.
    pub inner: u16,
    /// What those below it offer. A leaf that holds packets offers its own priority as a `LOAN`.
    pub want: Offers,
    pub mode: Mode,
    pub traits: Traits,
}

const _: () = assert!(size_of::<Class>() == 64);
const _: () = assert!(PRIORITIES == 8, "sets of priorities are bytes, a priority is three bits");
const _: () = assert!(OWN == 0 && LOAN == 1, "bytes of `Offers`");

impl Class {
    pub fn new(parent: u32, rate: Bucket, ceil: Bucket, traits: Traits) -> Class {
        Class {
            rate,
            ceil,
            settled: Nanos::ZERO,
            above: parent as u16,
            inner: Class::LEAF,
            mode: Mode::CanSend,
            want: Offers::NONE,
            traits,
        }
    }

    /// No class has so many others beside it.
    pub const LEAF: u16 = u16::MAX;

    #[inline(always)]
    pub fn parent(&self) -> u32 {
        u32::from(self.above)
    }

    /// To be called before what is below the class begins to want something, too: the time in which
    /// nothing waited brings no more than a burst.
    #[inline(always)]
    pub fn settle(&mut self, now: Nanos) {
        let elapsed = now.since(self.settled);
        if elapsed != 0 {
            self.refill(now, elapsed);
        }
    }

    #[inline(always)]
    fn refill(&mut self, now: Nanos, elapsed: u64) {
        if self.traits.has_rate() {
            // What is guaranteed is not lost to whoever is served first. The ceil, which bounds
            // what the class may send at once, is not kept in the same way.
            let waits = self.wants().then(|| self.traits.patience());
            self.rate.refill_for(elapsed, waits);
        }
        if self.traits.has_ceil() {
            self.ceil.refill(elapsed);
        }
        self.settled = now;
    }

    /// Takes over the tokens of the class that this one replaces. A bucket that was not needed, or
    /// is not any more, stays full.
    pub fn inherit(&mut self, old: &Class) {
        if self.traits.has_rate() && old.traits.has_rate() {
            self.rate.inherit(&old.rate);
        }
        if self.traits.has_ceil() && old.traits.has_ceil() {
            self.ceil.inherit(&old.ceil);
        }
    }

    /// Takes a packet off the ceil, and off the rate if it goes at this class's expense.
    #[inline(always)]
    pub fn charge(&mut self, bytes: u32, pays: bool) {
        if pays && self.traits.has_rate() {
            self.rate.charge(bytes);
        }
        if self.traits.has_ceil() {
            self.ceil.charge(bytes);
        }
    }

    /// Bytes that may be taken off before one of the buckets that a packet is taken off closes, and
    /// one packet more. A bucket that is closed stays so, whatever is taken off.
    #[inline(always)]
    pub fn room(&self, pays: bool) -> u64 {
        let rate = if pays && self.traits.has_rate() { self.rate.room() } else { u64::MAX };
        let ceil = if self.traits.has_ceil() { self.ceil.room() } else { u64::MAX };
        rate.min(ceil)
    }

    /// Takes off the rate what was sent at the expense of a class above.
    pub fn pay(&mut self, bytes: u32) {
        if self.traits.has_rate() {
            self.rate.charge(bytes);
        }
    }

    #[inline(always)]
    pub fn mode_now(&self) -> Mode {
        if !self.ceil.is_open() {
            Mode::Blocked
        } else if self.rate.is_open() {
            Mode::CanSend
        } else {
            Mode::MayBorrow
        }
    }

    /// When the bucket that it waits for opens.
    #[inline]
    pub fn opens_at(&self) -> Nanos {
        let bucket = if self.mode == Mode::Blocked { &self.ceil } else { &self.rate };
        bucket.opens_at(self.settled)
    }

    /// The sets of priorities this class belongs to at its parent.
    #[inline(always)]
    pub fn offers(&self) -> Offers {
        self.want.passed(self.mode)
    }

    #[inline(always)]
    pub fn wants(&self) -> bool {
        self.want != Offers::NONE
    }
}
