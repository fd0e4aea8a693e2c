//! Places for connections that are being bound: found by key, by age, and by when they want to be
//! looked at.

use crate::base::Nanos;
use crate::forward::spec::BindAt;
use crate::packet::FlowKey;

/// Connections that one worker may be binding at once: their numbers have 16 bits.
pub const SLOTS_MAX: usize = NONE as usize;
/// One slot of the timer wheel.
const TICK_NS: u64 = 4_000_000;
/// One turn takes 16 s; later times are looked at once a turn.
const BUCKETS: usize = 4_096;
const NONE: u16 = u16::MAX;

/// Which places are taken, by whom, and when they are due. All memory is taken at construction.
pub struct Slots {
    places: Box<[Place]>,
    free: Vec<u16>,
    /// First place of each chain of equal hashes.
    chains: Box<[u16]>,
    /// First place of each bucket of the wheel.
    buckets: Box<[u16]>,
    /// The next tick to look at.
    cursor: u64,
    /// Those that may be pushed out, by what they wait for.
    ages: [Age; 2],
    /// Places taken so far.
    births: u64,
}

/// A list of places, the oldest first.
#[derive(Clone, Copy)]
struct Age {
    oldest: u16,
    newest: u16,
}

#[derive(Clone)]
struct Place {
    key: FlowKey,
    hash: u64,
    taken: bool,
    /// In its chain.
    chained: u16,
    due: Nanos,
    bucket: u16,
    /// In its bucket.
    wheel: [u16; 2],
    /// What it waits for, and so in which list it is, as long as it may be pushed out.
    at: BindAt,
    listed: bool,
    age: [u16; 2],
    born: u64,
}

impl Slots {
    /// `count` places, [`SLOTS_MAX`] at most.
    pub fn new(count: usize) -> Slots {
        let count = count.clamp(1, SLOTS_MAX);
        let place = Place {
            key: FlowKey::default(),
            hash: 0,
            taken: false,
            chained: NONE,
            due: Nanos::MAX,
            bucket: NONE,
            wheel: [NONE; 2],
            at: BindAt::Hello,
            listed: false,
            age: [NONE; 2],
            born: 0,
        };
        Slots {
            places: vec![place; count].into_boxed_slice(),
            free: (0..count as u16).rev().collect(),
            chains: vec![NONE; count.next_power_of_two()].into_boxed_slice(),
            buckets: vec![NONE; BUCKETS].into_boxed_slice(),
            cursor: 0,
            ages: [Age { oldest: NONE, newest: NONE }; 2],
            births: 0,
        }
    }

    pub fn taken(&self) -> usize {
        self.places.len() - self.free.len()
    }

    pub fn capacity(&self) -> usize {
        self.places.len()
    }

    pub fn is_full(&self) -> bool {
        self.free.is_empty()
    }

    /// The key of a place and its hash.
    pub fn key(&self, slot: usize) -> (&FlowKey, u64) {
        (&self.places[slot].key, self.places[slot].hash)
    }

    /// The key of a place, if there is such a place and it is taken.
    pub fn taken_by(&self, slot: usize) -> Option<&FlowKey> {
        self.places.get(slot).filter(|place| place.taken).map(|place| &place.key)
    }

    pub fn find(&self, key: &FlowKey, hash: u64) -> Option<usize> {
        let mut at = self.chains[self.chain(hash)];
        while at != NONE {
            let place = &self.places[usize::from(at)];
            if place.hash == hash && place.key == *key {
                return Some(usize::from(at));
            }
            at = place.chained;
        }
        None
    }

    /// Takes a place for a key that has none; the newest of those that may be pushed out.
    pub fn take(&mut self, key: &FlowKey, hash: u64, at: BindAt) -> Option<usize> {
        let slot = self.free.pop()?;
        let chain = self.chain(hash);
        let place = &mut self.places[usize::from(slot)];
        (place.key, place.hash, place.taken) = (*key, hash, true);
        place.chained = std::mem::replace(&mut self.chains[chain], slot);
        let newest = std::mem::replace(&mut self.ages[at as usize].newest, slot);
        (place.at, place.listed, place.age) = (at, true, [newest, NONE]);
        place.born = self.births;
        self.births += 1;
        match newest {
            NONE => self.ages[at as usize].oldest = slot,
            newest => self.places[usize::from(newest)].age[1] = slot,
        }
        Some(usize::from(slot))
    }

    /// Gives a place back.
    pub fn release(&mut self, slot: usize) {
        debug_assert!(self.places[slot].taken, "a place given back twice");
        self.keep(slot);
        self.disarm(slot);
        let chain = self.chain(self.places[slot].hash);
        let next = self.places[slot].chained;
        let mut at = self.chains[chain];
        if at == slot as u16 {
            self.chains[chain] = next;
        }
        while at != NONE {
            let place = &mut self.places[usize::from(at)];
            if place.chained == slot as u16 {
                place.chained = next;
                break;
            }
            at = place.chained;
        }
        self.places[slot].taken = false;
        self.free.push(slot as u16);
    }

    /// The oldest place that may be pushed out.
    pub fn oldest(&self) -> Option<usize> {
        let both = [BindAt::Hello, BindAt::Request].into_iter();
        both.filter_map(|at| self.oldest_at(at)).min_by_key(|&slot| self.places[slot].born)
    }

    /// The oldest among those that wait for the same.
    pub fn oldest_at(&self, at: BindAt) -> Option<usize> {
        let oldest = self.ages[at as usize].oldest;
        (oldest != NONE).then_some(usize::from(oldest))
    }

    /// Those that may be pushed out.
    pub fn listed(&self) -> impl Iterator<Item = usize> {
        let place = |at: u16| (at != NONE).then_some(usize::from(at));
        self.ages.into_iter().flat_map(move |age| {
            std::iter::successors(place(age.oldest), move |&at| place(self.places[at].age[1]))
        })
    }

    /// The place may not be pushed out any more.
    pub fn keep(&mut self, slot: usize) {
        if !std::mem::take(&mut self.places[slot].listed) {
            return;
        }
        let Place { age: [older, newer], at, .. } = self.places[slot];
        let ages = &mut self.ages[at as usize];
        match older {
            NONE => ages.oldest = newer,
            older => self.places[usize::from(older)].age[1] = newer,
        }
        match newer {
            NONE => ages.newest = older,
            newer => self.places[usize::from(newer)].age[0] = older,
        }
    }

    /// Has a place looked at when its time comes, or soon after.
    pub fn arm(&mut self, slot: usize, due: Nanos) {
        self.disarm(slot);
        let tick = (due.0 / TICK_NS).clamp(self.cursor, self.cursor + BUCKETS as u64 - 1);
        let bucket = tick as usize % BUCKETS;
        let next = std::mem::replace(&mut self.buckets[bucket], slot as u16);
        let place = &mut self.places[slot];
        (place.due, place.bucket, place.wheel) = (due, bucket as u16, [NONE, next]);
        if next != NONE {
            self.places[usize::from(next)].wheel[0] = slot as u16;
        }
    }

    fn disarm(&mut self, slot: usize) {
        let place = &mut self.places[slot];
        let bucket = std::mem::replace(&mut place.bucket, NONE);
        if bucket == NONE {
            return;
        }
        let [before, after] = place.wheel;
        match before {
            NONE => self.buckets[usize::from(bucket)] = after,
            before => self.places[usize::from(before)].wheel[1] = after,
        }
        if after != NONE {
            self.places[usize::from(after)].wheel[0] = before;
        }
    }

    /// The next place that is due, disarmed. The wheel turns on as far as nothing is due.
    pub fn next_due(&mut self, now: Nanos) -> Option<usize> {
        let last = now.0 / TICK_NS;
        if last.saturating_sub(self.cursor) > BUCKETS as u64 {
            // Every bucket is looked at in one turn.
            self.cursor = last - BUCKETS as u64;
        }
        while self.cursor <= last {
            let mut at = self.buckets[self.cursor as usize % BUCKETS];
            while at != NONE {
                let slot = usize::from(at);
                at = self.places[slot].wheel[1];
                if self.places[slot].due <= now {
                    self.disarm(slot);
                    return Some(slot);
                }
                let due = self.places[slot].due;
                if due.0 / TICK_NS > self.cursor {
                    self.arm_after(slot, due);
                }
            }
            if self.cursor == last {
                return None;
            }
            self.cursor += 1;
        }
        None
    }

    /// As [`Slots::arm`], behind the bucket that is being looked at.
    fn arm_after(&mut self, slot: usize, due: Nanos) {
        self.cursor += 1;
        self.arm(slot, due);
        self.cursor -= 1;
    }

    fn chain(&self, hash: u64) -> usize {
        hash as usize & (self.chains.len() - 1)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use super::*;
    use crate::base::Seed;
    use crate::base::hash::Rng;

    fn key(n: u32) -> (FlowKey, u64) {
        let key = FlowKey { sport: n as u16, ..FlowKey::default() };
        (key, u64::from(n) / 3) // some share a hash, all a chain or two
    }

    fn ms(n: u64) -> Nanos {
        Nanos(n * 1_000_000)
    }

    #[test]
    fn places_are_found_and_given_back() {
        let mut slots = Slots::new(64);
        let mut known: HashMap<u32, usize> = HashMap::new();
        let mut rng = Rng::new(Seed(1));
        for _ in 0..20_000 {
            let n = rng.below(100);
            let (k, h) = key(n);
            assert_eq!(slots.find(&k, h), known.get(&n).copied());
            match known.remove(&n) {
                Some(slot) => slots.release(slot),
                None if slots.is_full() => assert_eq!(slots.take(&k, h, BindAt::Hello), None),
                None => {
                    let slot = slots.take(&k, h, BindAt::Hello).expect("a place");
                    assert_eq!(slots.key(slot), (&k, h));
                    known.insert(n, slot);
                }
            }
            assert_eq!(slots.taken(), known.len());
        }
    }

    #[test]
    fn the_oldest_goes_first_unless_it_is_kept() {
        let mut slots = Slots::new(8);
        let all: Vec<_> =
            (0..4).map(|n| slots.take(&key(n).0, 0, BindAt::Hello).expect("a place")).collect();
        slots.keep(all[0]);
        slots.keep(all[2]);
        assert_eq!(slots.oldest(), Some(all[1]));
        slots.release(all[1]);
        assert_eq!(slots.oldest(), Some(all[3]));
        slots.release(all[3]);
        assert_eq!(slots.oldest(), None);
        let fresh = slots.take(&key(9).0, 0, BindAt::Hello).expect("a place");
        assert_eq!(slots.oldest(), Some(fresh));
        slots.release(all[0]);
        assert_eq!(slots.taken(), 2);
    }

    #[test]
    fn what_waits_for_the_same_is_listed_together() {
        let mut slots = Slots::new(8);
        let both = [BindAt::Hello, BindAt::Request];
        let mut take = |n: u32| slots.take(&key(n).0, 0, both[n as usize % 2]).expect("a place");
        let all = [0, 1, 2, 3].map(&mut take);
        let oldest = |slots: &Slots| (slots.oldest(), both.map(|at| slots.oldest_at(at)));
        assert_eq!(oldest(&slots), (Some(all[0]), [Some(all[0]), Some(all[1])]));
        slots.keep(all[0]);
        assert_eq!(oldest(&slots), (Some(all[1]), [Some(all[2]), Some(all[1])]));
        slots.release(all[1]);
        assert_eq!(oldest(&slots), (Some(all[2]), [Some(all[2]), Some(all[3])]));
        assert_eq!(slots.listed().collect::<Vec<_>>(), [all[2], all[3]]);
        slots.release(all[3]);
        assert_eq!(oldest(&slots), (Some(all[2]), [Some(all[2]), None]));
    }

    #[test]
    fn each_is_due_once_and_in_time() {
        let mut slots = Slots::new(512);
        let mut rng = Rng::new(Seed(2));
        let mut due: HashMap<usize, Nanos> = HashMap::new();
        for n in 0..512 {
            let slot = slots.take(&key(n).0, u64::from(n), BindAt::Hello).expect("a place");
            let at = ms(u64::from(rng.below(60_000)));
            slots.arm(slot, ms(5));
            slots.arm(slot, at);
            due.insert(slot, at);
        }
        let mut now = Nanos::ZERO;
        while !due.is_empty() {
            let before = now;
            now = Nanos(now.0 + ms(u64::from(rng.below(20))).0);
            while let Some(slot) = slots.next_due(now) {
                let at = due.remove(&slot).expect("due once");
                assert!(at <= now && at.0 + TICK_NS >= before.0, "{at:?} at {now:?}");
            }
            assert!(due.values().all(|&at| at.0 + TICK_NS > now.0), "one was missed");
            assert!(now < ms(70_000));
        }
    }

    #[test]
    fn a_long_sleep_misses_nothing() {
        let mut slots = Slots::new(4);
        let slot = slots.take(&key(1).0, 1, BindAt::Hello).expect("a place");
        slots.arm(slot, ms(100));
        assert_eq!(slots.next_due(Nanos::from_secs(1_000_000)), Some(slot));
        assert_eq!(slots.next_due(Nanos::from_secs(1_000_000)), None);
        slots.arm(slot, Nanos::ZERO);
        assert_eq!(slots.next_due(Nanos::from_secs(1_000_000)), Some(slot));
    }
}
