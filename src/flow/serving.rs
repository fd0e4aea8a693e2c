//! What each backend is busy with, as one worker sees it, and what it is told of the others.
//!
//! A backend's place is its number here. It stays over reloads for as long as flows may count on
//! it, which the numbers of a configuration do not.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicI32, AtomicU32, AtomicU64, Ordering};

use super::entry::NONE_U16;
use crate::base::Nanos;

/// Places there are: all numbers but that of none.
pub const PLACES_MAX: usize = NONE_U16 as usize;
/// Places whose memory is taken together.
const CHUNK: usize = 256;
/// Statuses from here on are the server's fault (RFC 9110, section 15.6).
const STATUS_ERROR: u16 = 500;
/// How long a peak of the time to first answers is remembered: after as long half of it is left.
const FADES_MS: u64 = 10_000;
const CHUNKS_MAX: usize = PLACES_MAX.div_ceil(CHUNK);

/// One worker's counts, by place. Written by the worker, with plain stores; read by the control
/// plane, which writes back what the other workers' counts come to.
///
/// Places without memory are not counted: the control plane reserves it before it gives a place to
/// a backend, so the worker allocates nothing.
pub struct Serving {
    chunks: Box<[OnceLock<Box<[Place]>>]>,
}

/// Two lines, because they have two writers.
#[derive(Default)]
struct Place {
    seen: Seen,
    told: Told,
}

/// Written by the worker.
#[derive(Default)]
#[repr(align(64))]
struct Seen {
    connections: AtomicU32,
    /// A [`Peak`].
    peak: AtomicU64,
    /// As [`Tally`] has them.
    taken: AtomicU32,
    failed: AtomicU32,
    asked: AtomicU32,
    firsts: AtomicU32,
    firsts_us: AtomicU64,
    answers: AtomicU32,
    errors: AtomicU32,
}

/// Written by the control plane.
#[derive(Default)]
#[repr(align(64))]
struct Told {
    connections_elsewhere: AtomicU32,
    requests_unseen: AtomicI32,
    price: AtomicU32,
    peak_us: AtomicU32,
}

/// What became of a backend's connections and requests, since the start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// Connections that it took.
    pub taken: u64,
    /// That it refused, and first packets sent again for want of an answer.
    pub failed: u64,
    /// Requests that were timed, and of those the ones whose answer has begun.
    pub asked: u64,
    pub firsts: u64,
    /// Times to those, in sum.
    pub firsts_us: u64,
    /// Answers in the clear, and of those the ones with a status of 500 and more.
    pub answers: u64,
    pub errors: u64,
}

/// The time to first answers: rises at once with a longer one, and forgets it slowly.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Peak {
    /// 0: none was seen.
    us: u32,
    /// When, in milliseconds; wraps.
    at: u32,
}

impl Serving {
    /// With memory for the first places.
    pub fn new(places: usize) -> Serving {
        let chunks = (0..CHUNKS_MAX).map(|_| OnceLock::new()).collect();
        let serving = Serving { chunks };
        serving.reserve(places);
        serving
    }

    /// Takes the memory for the places below this one; for the control plane.
    pub fn reserve(&self, places: usize) {
        for chunk in self.chunks.iter().take(places.div_ceil(CHUNK)) {
            chunk.get_or_init(|| (0..CHUNK).map(|_| Place::default()).collect());
        }
    }

    /// Flows that have begun and not ended, on all workers: exact for this one, and as of some
    /// milliseconds ago for the others.
    #[inline]
    pub fn connections(&self, place: u16) -> u32 {
        self.at(place).map_or(0, |p| {
            let elsewhere = p.told.connections_elsewhere.load(Ordering::Relaxed);
            p.seen.connections.load(Ordering::Relaxed).saturating_add(elsewhere)
        })
    }

    /// Requests that the backend has, as far as is known: those of its connections, and what its
    /// engine told beyond them.
    #[inline]
    pub fn requests(&self, place: u16) -> u32 {
        let unseen = self.at(place).map_or(0, |p| p.told.requests_unseen.load(Ordering::Relaxed));
        self.connections(place).saturating_add_signed(unseen)
    }

    /// What a request costs there by what its engine told; 0 is not known.
    #[inline]
    pub fn price(&self, place: u16) -> u32 {
        self.at(place).map_or(0, |p| p.told.price.load(Ordering::Relaxed))
    }

    /// The peak of the time to first answers of late, on all workers, in microseconds; 0: none.
    #[inline]
    pub fn peak_us(&self, place: u16, now: Nanos) -> u32 {
        let told = self.at(place).map_or(0, |p| p.told.peak_us.load(Ordering::Relaxed));
        self.own_peak_us(place, now).max(told)
    }

    /// The same, on this worker alone.
    pub fn own_peak_us(&self, place: u16, now: Nanos) -> u32 {
        let peak = |p: &Place| Peak::from_word(p.seen.peak.load(Ordering::Relaxed));
        self.at(place).map_or(0, |p| peak(p).faded(now))
    }

    /// As [`Serving::connections`], on this worker alone.
    pub fn own_connections(&self, place: u16) -> u32 {
        self.at(place).map_or(0, |p| p.seen.connections.load(Ordering::Relaxed))
    }

    /// What the other workers have; for the control plane.
    pub fn tell_connections(&self, place: u16, elsewhere: u32) {
        let Some(place) = self.at(place) else { return };
        let cell = &place.told.connections_elsewhere;
        // Most are what they were: their lines stay with the worker.
        if cell.load(Ordering::Relaxed) != elsewhere {
            cell.store(elsewhere, Ordering::Relaxed);
        }
    }

    /// What a backend's engine has told; for the control plane.
    pub fn tell_load(&self, place: u16, price: u32, requests_unseen: i32) {
        let Some(place) = self.at(place) else { return };
        place.told.price.store(price, Ordering::Relaxed);
        place.told.requests_unseen.store(requests_unseen, Ordering::Relaxed);
    }

    /// The peak that all workers' come to; for the control plane.
    pub fn tell_peak(&self, place: u16, us: u32) {
        if let Some(place) = self.at(place) {
            place.told.peak_us.store(us, Ordering::Relaxed);
        }
    }

    /// An answer has begun so long after its request. Only ever called by the one worker that this
    /// belongs to, as are [`Serving::begin`] and [`Serving::end`].
    #[inline]
    pub fn answered(&self, place: u16, now: Nanos, ns: u64) {
        let Some(place) = self.at(place) else { return };
        let peak = Peak::from_word(place.seen.peak.load(Ordering::Relaxed));
        place.seen.peak.store(peak.after(now, ns).word(), Ordering::Relaxed);
        change(&place.seen.firsts, |n| n.wrapping_add(1));
        let sum = place.seen.firsts_us.load(Ordering::Relaxed);
        place.seen.firsts_us.store(sum.wrapping_add(ns / 1_000), Ordering::Relaxed);
    }

    /// It took a connection.
    #[inline]
    pub fn took(&self, place: u16) {
        self.count(place, |seen| &seen.taken);
    }

    /// It refused one, or did not answer.
    #[inline]
    pub fn failed(&self, place: u16) {
        self.count(place, |seen| &seen.failed);
    }

    /// It was asked something.
    #[inline]
    pub fn asked(&self, place: u16) {
        self.count(place, |seen| &seen.asked);
    }

    /// It gave an answer with this status.
    #[inline]
    pub fn gave(&self, place: u16, status: u16) {
        self.count(place, |seen| &seen.answers);
        if status >= STATUS_ERROR {
            self.count(place, |seen| &seen.errors);
        }
    }

    /// What became of its connections and requests on this worker. Each count starts again at
    /// 2^32, which looks like nothing new once.
    pub fn tally(&self, place: u16) -> Tally {
        let Some(Place { seen, .. }) = self.at(place) else { return Tally::default() };
        let of = |cell: &AtomicU32| u64::from(cell.load(Ordering::Relaxed));
        Tally {
            taken: of(&seen.taken),
            failed: of(&seen.failed),
            asked: of(&seen.asked),
            firsts: of(&seen.firsts),
            firsts_us: seen.firsts_us.load(Ordering::Relaxed),
            answers: of(&seen.answers),
            errors: of(&seen.errors),
        }
    }

    #[inline]
    fn count(&self, place: u16, cell: impl Fn(&Seen) -> &AtomicU32) {
        if let Some(place) = self.at(place) {
            change(cell(&place.seen), |n| n.wrapping_add(1));
        }
    }

    /// A flow begins.
    #[inline]
    pub fn begin(&self, place: u16) {
        if let Some(place) = self.at(place) {
            change(&place.seen.connections, |n| n.saturating_add(1));
        }
    }

    /// A flow has ended.
    #[inline]
    pub fn end(&self, place: u16) {
        if let Some(place) = self.at(place) {
            change(&place.seen.connections, |n| n.saturating_sub(1));
        }
    }

    #[inline]
    fn at(&self, place: u16) -> Option<&Place> {
        if place == NONE_U16 {
            return None;
        }
        let place = usize::from(place);
        self.chunks.get(place / CHUNK)?.get()?.get(place % CHUNK)
    }
}

impl Tally {
    /// What has come since an earlier look.
    pub fn less(&self, before: &Tally) -> Tally {
        self.with(before, u64::saturating_sub)
    }

    /// The sum of two.
    pub fn and(&self, other: &Tally) -> Tally {
        self.with(other, u64::saturating_add)
    }

    fn with(&self, other: &Tally, op: impl Fn(u64, u64) -> u64) -> Tally {
        Tally {
            taken: op(self.taken, other.taken),
            failed: op(self.failed, other.failed),
            asked: op(self.asked, other.asked),
            firsts: op(self.firsts, other.firsts),
            firsts_us: op(self.firsts_us, other.firsts_us),
            answers: op(self.answers, other.answers),
            errors: op(self.errors, other.errors),
        }
    }
}

impl Peak {
    fn word(self) -> u64 {
        u64::from(self.us) << 32 | u64::from(self.at)
    }

    fn from_word(word: u64) -> Peak {
        Peak { us: (word >> 32) as u32, at: word as u32 }
    }

    /// What is left of it.
    fn faded(self, now: Nanos) -> u32 {
        let left = u64::from(self.us) * FADES_MS / (FADES_MS + self.age_ms(now));
        left as u32
    }

    fn age_ms(self, now: Nanos) -> u64 {
        u64::from(millis(now).wrapping_sub(self.at))
    }

    fn after(self, now: Nanos, ns: u64) -> Peak {
        let us = (ns / 1_000).clamp(1, u64::from(u32::MAX));
        let (before, age) = (u64::from(self.us), self.age_ms(now));
        // A shorter one counts for the more, the longer ago the last one is.
        let mixed = (before * FADES_MS + us * age) / (FADES_MS + age);
        Peak { us: mixed.max(us) as u32, at: millis(now) }
    }
}

fn millis(now: Nanos) -> u32 {
    (now.0 / 1_000_000) as u32
}

/// One writer: no other change can come between.
#[inline]
fn change(cell: &AtomicU32, to: impl FnOnce(u32) -> u32) {
    cell.store(to(cell.load(Ordering::Relaxed)), Ordering::Relaxed);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_counted_each_for_itself() {
        let serving = Serving::new(1);
        serving.begin(3);
        serving.begin(3);
        serving.end(4);
        assert_eq!((serving.connections(3), serving.connections(4)), (2, 0));
        serving.tell_connections(3, 5);
        assert_eq!((serving.connections(3), serving.own_connections(3)), (7, 2));
        serving.end(3);
        assert_eq!(serving.connections(3), 6);
    }

    #[test]
    fn peaks_rise_at_once_and_fade() {
        let serving = Serving::new(1);
        let at = Nanos::from_secs;
        assert_eq!(serving.peak_us(0, at(1)), 0);
        serving.answered(0, at(1), 1_000_000);
        serving.answered(0, at(1), 80_000_000);
        assert_eq!(serving.peak_us(0, at(1)), 80_000);
        assert_eq!(serving.peak_us(0, at(11)), 40_000, "half of it is left");
        serving.answered(0, at(11), 20_000_000);
        assert_eq!(serving.peak_us(0, at(11)), 50_000);
        serving.tell_peak(0, 70_000);
        assert_eq!(serving.peak_us(0, at(11)), 70_000);
        assert_eq!(serving.own_peak_us(0, at(11)), 50_000);
        // 50 days later the clock of the peak has wrapped.
        serving.answered(0, at(50 * 86_400), 1_000);
        assert!(serving.own_peak_us(0, at(50 * 86_400)) < 100);
    }

    #[test]
    fn an_engines_requests_are_those_of_connections_and_others() {
        let serving = Serving::new(1);
        serving.begin(0);
        serving.tell_load(0, 9, 4);
        assert_eq!((serving.requests(0), serving.price(0)), (5, 9));
        serving.tell_load(0, 9, -4);
        assert_eq!(serving.requests(0), 0);
    }

    #[test]
    fn what_has_no_memory_is_not_counted() {
        let serving = Serving::new(0);
        serving.begin(0);
        assert_eq!(serving.connections(0), 0);
        serving.reserve(PLACES_MAX);
        for place in [0, 255, 256, PLACES_MAX as u16 - 1] {
            serving.begin(place);
            assert_eq!(serving.connections(place), 1, "{place}");
        }
        serving.begin(NONE_U16);
        assert_eq!(serving.own_connections(NONE_U16), 0, "transit");
    }
}
