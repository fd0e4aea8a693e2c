//! One class at work: its buckets and what they allow.

use super::bucket::Bucket;
use super::spec::PRIORITIES;
use crate::base::Nanos;

/// Index of the sets of children that send within rates at or below themselves.
pub(super) const OWN: usize = 0;
/// Index of the sets of children that need tokens from above themselves.
pub(super) const LOAN: usize = 1;

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

    pub fn new(is_leaf: bool, buckets: Buckets, priority: u8) -> Traits {
        let buckets = match buckets {
            Buckets::Both => 0,
            Buckets::Rate => Traits::NO_CEIL,
            Buckets::Ceil => Traits::NO_RATE,
        };
        let priority = priority.min(PRIORITIES as u8 - 1) << Traits::PRIORITY_SHIFT;
        Traits(u8::from(is_leaf) | buckets | priority)
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
        self.0 >> Traits::PRIORITY_SHIFT
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
    pub parent: u32,
    pub mode: Mode,
    /// Priorities at which something below wants to send, by `OWN` and `LOAN`. A leaf that holds
    /// packets wants its own priority as a `LOAN`.
    pub want: [u8; 2],
    pub traits: Traits,
}

const _: () = assert!(size_of::<Class>() == 64);
const _: () = assert!(PRIORITIES == 8, "sets of priorities are bytes, a priority is three bits");

impl Class {
    pub fn new(parent: u32, rate: Bucket, ceil: Bucket, traits: Traits) -> Class {
        Class {
            rate,
            ceil,
            settled: Nanos::ZERO,
            parent,
            mode: Mode::CanSend,
            want: [0; 2],
            traits,
        }
    }

    #[inline(always)]
    pub fn settle(&mut self, now: Nanos) {
        let elapsed = now.since(self.settled);
        if elapsed == 0 {
            return;
        }
        if self.traits.has_rate() {
            self.rate.refill(elapsed);
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
    pub fn offers(&self) -> [u8; 2] {
        match self.mode {
            Mode::Blocked => [0, 0],
            Mode::MayBorrow => self.want,
            Mode::CanSend => [self.want[OWN] | self.want[LOAN], 0],
        }
    }

    /// Whether it belongs to its parent's `OWN` set of one priority.
    #[inline(always)]
    pub fn offers_own(&self, priority: u8) -> bool {
        match self.mode {
            Mode::Blocked => false,
            Mode::MayBorrow => self.want[OWN] & priority != 0,
            Mode::CanSend => (self.want[OWN] | self.want[LOAN]) & priority != 0,
        }
    }

    /// Whether it belongs to its parent's `LOAN` set of one priority.
    #[inline(always)]
    pub fn offers_loan(&self, priority: u8) -> bool {
        self.mode == Mode::MayBorrow && self.want[LOAN] & priority != 0
    }

    #[inline(always)]
    pub fn wants(&self) -> bool {
        self.want != [0, 0]
    }
}
