//! One class at work: its buckets, what they allow, and its place among its siblings.

use super::bucket::Bucket;
use super::spec::{DEPTH_MAX, PRIORITIES};
use super::wheel::{NIL, Timer};
use crate::base::Nanos;
use crate::packet::ClassId;

/// Index of the lists of children that send within rates at or below themselves.
pub(super) const OWN: usize = 0;
/// Index of the lists of children that need tokens from above themselves.
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
#[repr(u8)]
pub(super) enum Buckets {
    Both,
    /// The ceil is the parent's, so the parent's bucket always holds less.
    Rate,
    /// The port: rate and ceil are the same.
    Ceil,
}

/// Two cache lines: what every packet touches, and what decides on turns.
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
    pub buckets: Buckets,
    pub timer: Timer,
    /// The next in the circle of its parent's `OWN` and `LOAN` list; `NIL` when not in it. Of a
    /// leaf: an inner class is in lists of several priorities, see `Inner`.
    pub next: [u32; 2],
    /// Bytes left in this round of the `LOAN` list. Of a leaf, as above.
    pub deficit: i32,
    /// Bytes a round among its siblings.
    pub quantum: u32,
    /// Index among leaves or among inner classes.
    pub body: u32,
    pub id: ClassId,
    pub is_leaf: bool,
    /// Steps below the port.
    pub depth: u8,
}

/// What an inner class has besides.
#[derive(Clone, Debug)]
pub(super) struct Inner {
    /// The last of each circle of children.
    pub tails: [[u32; PRIORITIES]; 2],
    /// Its own places in its parent's circles, by priority.
    pub next: [[u32; PRIORITIES]; 2],
    pub deficits: [i32; PRIORITIES],
}

const _: () = assert!(size_of::<Class>() == 128);
const _: () = assert!(size_of::<Inner>() <= 192);
const _: () = assert!(PRIORITIES == 8, "sets of priorities are bytes");
const _: () = assert!(DEPTH_MAX < u8::MAX as usize);

impl Class {
    pub fn new(id: ClassId, parent: u32, depth: u8, rate: Bucket, ceil: Bucket) -> Class {
        Class {
            rate,
            ceil,
            settled: Nanos::ZERO,
            parent,
            mode: Mode::CanSend,
            want: [0; 2],
            buckets: Buckets::Both,
            timer: Timer::IDLE,
            next: [NIL; 2],
            deficit: 0,
            quantum: 0,
            body: 0,
            id,
            is_leaf: false,
            depth,
        }
    }

    #[inline(always)]
    pub fn settle(&mut self, now: Nanos) {
        let elapsed = now.since(self.settled);
        if elapsed == 0 {
            return;
        }
        if self.buckets != Buckets::Ceil {
            self.rate.refill(elapsed);
        }
        if self.buckets != Buckets::Rate {
            self.ceil.refill(elapsed);
        }
        self.settled = now;
    }

    /// Takes over the tokens of the class that this one replaces. A bucket that was not needed, or
    /// is not any more, stays full.
    pub fn inherit(&mut self, old: &Class) {
        if self.buckets != Buckets::Ceil && old.buckets != Buckets::Ceil {
            self.rate.inherit(&old.rate);
        }
        if self.buckets != Buckets::Rate && old.buckets != Buckets::Rate {
            self.ceil.inherit(&old.ceil);
        }
    }

    /// Takes a packet off the ceil, and off the rate if it goes at this class's expense.
    #[inline(always)]
    pub fn charge(&mut self, bytes: u32, pays: bool) {
        if pays && self.buckets != Buckets::Ceil {
            self.rate.charge(bytes);
        }
        if self.buckets != Buckets::Rate {
            self.ceil.charge(bytes);
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

    #[inline(always)]
    pub fn wants(&self) -> bool {
        self.want != [0, 0]
    }
}

impl Inner {
    pub fn new() -> Inner {
        Inner {
            tails: [[NIL; PRIORITIES]; 2],
            next: [[NIL; PRIORITIES]; 2],
            deficits: [0; PRIORITIES],
        }
    }
}

impl AsMut<Timer> for Class {
    #[inline(always)]
    fn as_mut(&mut self) -> &mut Timer {
        &mut self.timer
    }
}
