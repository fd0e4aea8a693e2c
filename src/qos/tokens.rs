//! Tokens of clients: how many times a second each may do something, and how many at once.
//!
//! A client's bucket is one number, as in the generic cell rate algorithm (ITU-T I.371): the count
//! of tokens that will have come by when the bucket is full again. So a take is one
//! compare-and-swap, nothing runs in between, and all workers share the buckets without a lock. A
//! table has a fixed number of them, eight a cache line, found by a keyed hash of the client: who
//! is idle, and so has a full bucket, gives way. Where none is, a new client takes over the bucket
//! that is nearest to full, with what is lacking in it: so that nobody ever gets more than the rate
//! and the burst, however many clients there are.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use crate::base::Nanos;

/// Buckets of one table at most.
pub const CLIENTS_MAX: u32 = 1 << 24;
/// Tokens a second at most.
pub const RATE_MAX: u64 = 100_000;
/// Tokens at once at most.
pub const BURST_MAX: u32 = 10_000_000;

/// Parts of a token that are counted.
const ONE: u64 = 1 << ONE_BITS;
const ONE_BITS: u32 = 4;
/// Bits of a bucket that tell whose it is; the others are its count.
const TAG_BITS: u32 = 16;
const COUNT_BITS: u32 = u64::BITS - TAG_BITS;
const COUNT_MASK: u64 = (1 << COUNT_BITS) - 1;
/// Buckets among which a client has one.
const WAYS: usize = 8;
/// Attempts at a bucket that others change at the same time.
const TRIES_MAX: usize = 64;

// At the highest rate a count lasts for five years from the clock's start.
const _: () = assert!(COUNT_MASK / ONE / RATE_MAX > 5 * 365 * 24 * 3_600);

/// How often something may happen.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Pace {
    /// So many times ...
    pub count: u32,
    /// ... in this time.
    pub per_ns: u64,
    /// So many times at once after idling; 1 at least.
    pub burst: u32,
}

impl Pace {
    /// What has come by a time, in parts of a token. Differences of such sums lose nothing.
    #[inline]
    fn come(&self, now: Nanos) -> u64 {
        let parts = (u128::from(now.0) * u128::from(self.count)) << ONE_BITS;
        let come = parts / u128::from(self.per_ns.max(1));
        u64::try_from(come).unwrap_or(u64::MAX).min(COUNT_MASK)
    }

    /// The count after one more, and how long that one's token is still to come.
    #[inline]
    fn after(&self, count: u64, come: u64) -> (u64, u64) {
        let next = count.max(come) + ONE;
        let full = come + (u64::from(self.burst.max(1)) << ONE_BITS);
        if next <= full {
            return (next, 0);
        }
        let lacking = u128::from(next - full) * u128::from(self.per_ns.max(1));
        let wait = lacking.div_ceil(u128::from(self.count.max(1)) << ONE_BITS);
        (next, u64::try_from(wait).unwrap_or(u64::MAX))
    }
}

/// Whose tokens one bucket holds.
#[derive(Debug)]
pub struct Tokens {
    pace: Pace,
    /// Of 8 each; one alone where all clients share one.
    sets: Box<[Set]>,
    /// A client's bucket is being chosen in this set.
    choosing: Box<[AtomicBool]>,
    is_shared: bool,
    /// Buckets that were not full when another client took them over.
    crowded: AtomicU64,
}

/// One cache line.
#[derive(Debug, Default)]
#[repr(align(64))]
struct Set([AtomicU64; WAYS]);

impl Tokens {
    /// Full buckets for so many clients, rounded up; `None`: one for all.
    pub fn new(pace: Pace, clients_max: Option<u32>) -> Tokens {
        let clients = clients_max.map_or(1, |n| n.clamp(1, CLIENTS_MAX) as usize);
        let sets = clients.div_ceil(WAYS).next_power_of_two();
        Tokens {
            pace,
            sets: (0..sets).map(|_| Set::default()).collect(),
            choosing: (0..sets).map(|_| AtomicBool::new(false)).collect(),
            is_shared: clients_max.is_none(),
            crowded: AtomicU64::new(0),
        }
    }

    /// The same buckets at another pace, with as many tokens lacking as lack in `old` now.
    pub fn replacing(pace: Pace, clients_max: Option<u32>, old: &Tokens, now: Nanos) -> Tokens {
        let new = Tokens::new(pace, clients_max);
        if (new.sets.len(), new.is_shared) != (old.sets.len(), old.is_shared) {
            return new;
        }
        let (came, come) = (old.pace.come(now), pace.come(now));
        for (new, old) in new.sets.iter().zip(&old.sets) {
            for (new, old) in new.0.iter().zip(&old.0) {
                let word = old.load(Ordering::Relaxed);
                let lacking = (word & COUNT_MASK).saturating_sub(came);
                let count = (come + lacking).min(COUNT_MASK);
                new.store(word & !COUNT_MASK | count, Ordering::Relaxed);
            }
        }
        new
    }

    /// Nanoseconds until a client, known by this hash, has a token; 0: it has one. Takes none, and
    /// keeps nothing.
    #[inline]
    pub fn wait(&self, now: Nanos, hash: u64) -> u64 {
        let (set, tag) = self.place(hash);
        let word = self.find(set, tag).map_or_else(|| self.fullest(set).1, |(_, word)| word);
        self.pace.after(word & COUNT_MASK, self.pace.come(now)).1
    }

    /// Takes a client's token, which may be one that comes within `wait_ns_max`. Returns in how
    /// many nanoseconds it does; `None`: later, and none is taken.
    #[inline]
    pub fn take(&self, now: Nanos, hash: u64, wait_ns_max: u64) -> Option<u64> {
        let (set, tag) = self.place(hash);
        let come = self.pace.come(now);
        for _ in 0..TRIES_MAX {
            let Some((way, word)) = self.find(set, tag).or_else(|| self.choose(set, tag, come))
            else {
                continue;
            };
            let (next, wait) = self.pace.after(word & COUNT_MASK, come);
            if wait > wait_ns_max {
                return None;
            }
            let new = word & !COUNT_MASK | next.min(COUNT_MASK);
            let (bucket, relaxed) = (&self.sets[set].0[way], Ordering::Relaxed);
            if bucket.compare_exchange(word, new, relaxed, relaxed).is_ok() {
                return Some(wait);
            }
        }
        None
    }

    pub fn pace(&self) -> Pace {
        self.pace
    }

    /// Clients whose bucket is not full.
    pub fn busy(&self, now: Nanos) -> u64 {
        let come = self.pace.come(now);
        let words = self.sets.iter().flat_map(|set| &set.0);
        let busy = words.filter(|word| word.load(Ordering::Relaxed) & COUNT_MASK > come);
        busy.count() as u64
    }

    /// Buckets taken over by another client before they were full.
    pub fn crowded(&self) -> u64 {
        self.crowded.load(Ordering::Relaxed)
    }

    /// Where a client's bucket is: the set, and what it is marked by there.
    #[inline]
    fn place(&self, hash: u64) -> (usize, u64) {
        if self.is_shared {
            return (0, 1);
        }
        let set = hash as usize & (self.sets.len() - 1);
        (set, (hash >> COUNT_BITS).max(1))
    }

    /// A client's bucket and what is in it.
    #[inline]
    fn find(&self, set: usize, tag: u64) -> Option<(usize, u64)> {
        let words = self.sets[set].0.iter().map(|word| word.load(Ordering::Relaxed));
        words.enumerate().find(|(_, word)| word >> COUNT_BITS == tag)
    }

    /// The bucket of a set that is nearest to full.
    fn fullest(&self, set: usize) -> (usize, u64) {
        let words = self.sets[set].0.iter().map(|word| word.load(Ordering::Relaxed));
        words.enumerate().min_by_key(|(_, word)| word & COUNT_MASK).unwrap_or_default()
    }

    /// A bucket for a client that has none: one at a time in each set, so that none gets two.
    #[cold]
    fn choose(&self, set: usize, tag: u64, come: u64) -> Option<(usize, u64)> {
        if self.choosing[set].swap(true, Ordering::Acquire) {
            std::hint::spin_loop();
            return None;
        }
        let chosen = self.find(set, tag).or_else(|| {
            let (way, word) = self.fullest(set);
            let mine = tag << COUNT_BITS | word & COUNT_MASK;
            let (bucket, relaxed) = (&self.sets[set].0[way], Ordering::Relaxed);
            bucket.compare_exchange(word, mine, relaxed, relaxed).ok()?;
            if word & COUNT_MASK > come {
                self.crowded.fetch_add(1, Ordering::Relaxed);
            }
            Some((way, mine))
        });
        self.choosing[set].store(false, Ordering::Release);
        chosen
    }
}

#[cfg(test)]
mod tests;
