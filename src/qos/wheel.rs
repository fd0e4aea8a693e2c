//! A bitmap timer wheel for classes that wait for tokens. Arming, disarming and firing cost the
//! same whether eight classes wait or 64 thousand.

use crate::base::Nanos;

/// "None" among indices.
pub(super) const NIL: u32 = u32::MAX;

/// A tick is 2^10 ns. A class wakes up to one tick late, which its bucket makes up for.
pub(super) const TICK_BITS: u32 = 10;
pub(super) const TICK_NS: u64 = 1 << TICK_BITS;
/// Slots of one tick: 4.2 ms.
const NEAR_BITS: u32 = 12;
const NEAR: u64 = 1 << NEAR_BITS;
/// Slots of `NEAR` ticks: 1.07 s. What is due later waits in the last slot and is placed again.
const FAR: u64 = 256;
const SLOTS: usize = (NEAR + FAR) as usize;
const UNARMED: u16 = u16::MAX;
/// Slots that are foreseen at most.
const FORESEEN_MAX: u64 = 8;
/// Ticks ahead that a timer is set to at most (18 min): whoever it wakes looks again.
const TICKS_MAX: u64 = 1 << 30;

/// A class's place in the wheel.
#[derive(Clone, Copy, Debug)]
pub(super) struct Timer {
    /// Its low half: due within half its range, see `TICKS_MAX`.
    tick: u32,
    prev: u32,
    next: u32,
    slot: u16,
}

const _: () = assert!(size_of::<Timer>() == 16);

impl Timer {
    pub const IDLE: Timer = Timer { tick: 0, prev: NIL, next: NIL, slot: UNARMED };

    #[inline(always)]
    pub fn is_armed(&self) -> bool {
        self.slot != UNARMED
    }

    /// Who is behind it in its slot.
    #[inline(always)]
    pub fn next(&self) -> u32 {
        self.next
    }
}

/// The slots. The timers themselves are kept by the caller, one an id, and passed to each call.
pub(super) struct Wheel {
    heads: Box<[u32; SLOTS]>,
    /// One bit a slot: the near ones, then the far ones.
    used: [u64; SLOTS / 64],
    /// Timers in near slots.
    near: u32,
    /// Timers in far slots.
    far: u32,
    /// Ticks below this have fired; those at it may still be firing.
    at: u64,
}

impl Wheel {
    pub fn new(now: Nanos) -> Wheel {
        Wheel {
            heads: Box::new([NIL; SLOTS]),
            used: [0; SLOTS / 64],
            near: 0,
            far: 0,
            at: now.0 >> TICK_BITS,
        }
    }

    /// Lets `id` fire at `due`, rounded up to a tick. An armed timer stays as it is where it fires
    /// earlier: whoever it wakes looks again.
    #[inline]
    pub fn arm(&mut self, timers: &mut [Timer], id: u32, due: Nanos) {
        let tick = due.0.div_ceil(TICK_NS).clamp(self.at, self.at + TICKS_MAX);
        let timer = &timers[id as usize];
        if timer.is_armed() {
            if self.whole(timer.tick) <= tick {
                return;
            }
            self.disarm(timers, id);
        }
        self.place(timers, id, tick);
    }

    /// Calls `see` with those at the heads of the slots that are due by `now`, or some of them.
    #[inline(always)]
    pub fn foresee(&self, now: Nanos, see: impl Fn(u32)) {
        let due = (now.0 >> TICK_BITS).saturating_sub(self.at).min(FORESEEN_MAX);
        (0..=due).for_each(|ticks| see(self.heads[((self.at + ticks) % NEAR) as usize]));
    }

    /// The next timer due by `now`, disarmed.
    pub fn pop(&mut self, timers: &mut [Timer], now: Nanos) -> Option<u32> {
        let target = now.0 >> TICK_BITS;
        loop {
            let id = self.heads[(self.at % NEAR) as usize];
            if id != NIL {
                self.disarm(timers, id);
                return Some(id);
            }
            if self.at >= target {
                return None;
            }
            self.step(timers, target);
        }
    }

    /// The timer that fires after the one that just did, if in the same tick; else `NIL`.
    #[inline(always)]
    pub fn first(&self) -> u32 {
        self.heads[(self.at % NEAR) as usize]
    }

    /// Until when timers have fired.
    pub fn now(&self) -> Nanos {
        Nanos(self.at << TICK_BITS)
    }

    /// When [`Wheel::pop`] next has something to do; it may turn out to be nothing.
    pub fn next(&self) -> Option<Nanos> {
        let near = (self.near > 0).then(|| self.next_near()).flatten();
        let far = (self.far > 0).then(|| self.next_far()).flatten();
        let tick = match (near, far) {
            (Some(a), Some(b)) => a.min(b),
            (a, b) => a.or(b)?,
        };
        Some(Nanos(tick.saturating_mul(TICK_NS)))
    }

    /// Moves on to the next tick at which anything can happen, `target` at most.
    fn step(&mut self, timers: &mut [Timer], target: u64) {
        let boundary = (self.at | (NEAR - 1)) + 1;
        let next = if self.near > 0 {
            self.next_used((self.at % NEAR) as usize + 1, NEAR as usize)
                .map_or(boundary, |slot| boundary - NEAR + slot as u64)
        } else {
            self.next_far().unwrap_or(u64::MAX)
        };
        self.at = next.min(target);
        if self.at.is_multiple_of(NEAR) {
            self.cascade(timers);
        }
    }

    /// Brings the far slot whose time has begun near.
    fn cascade(&mut self, timers: &mut [Timer]) {
        let slot = (NEAR + (self.at >> NEAR_BITS) % FAR) as usize;
        let mut id = std::mem::replace(&mut self.heads[slot], NIL);
        self.used[slot / 64] &= !(1 << (slot % 64));
        while id != NIL {
            let timer = &timers[id as usize];
            let (next, tick) = (timer.next, self.whole(timer.tick));
            self.far -= 1;
            self.place(timers, id, tick);
            id = next;
        }
    }

    #[inline]
    fn place(&mut self, timers: &mut [Timer], id: u32, tick: u64) {
        let slot = if tick - self.at < NEAR {
            self.near += 1;
            tick % NEAR
        } else {
            self.far += 1;
            NEAR + (tick >> NEAR_BITS).min((self.at >> NEAR_BITS) + FAR - 1) % FAR
        } as usize;
        let head = std::mem::replace(&mut self.heads[slot], id);
        self.used[slot / 64] |= 1 << (slot % 64);
        timers[id as usize] = Timer { tick: tick as u32, prev: NIL, next: head, slot: slot as u16 };
        if head != NIL {
            timers[head as usize].prev = id;
        }
    }

    #[inline]
    pub fn disarm(&mut self, timers: &mut [Timer], id: u32) {
        let timer = &mut timers[id as usize];
        let Timer { prev, next, slot, .. } = *timer;
        timer.slot = UNARMED;
        let slot = usize::from(slot);
        if prev != NIL {
            timers[prev as usize].next = next;
        } else {
            self.heads[slot] = next;
            if next == NIL {
                self.used[slot / 64] &= !(1 << (slot % 64));
            }
        }
        if next != NIL {
            timers[next as usize].prev = prev;
        }
        if slot < NEAR as usize {
            self.near -= 1;
        } else {
            self.far -= 1;
        }
    }

    /// A tick from its low half: the armed ones lie within `TICKS_MAX` of `at`.
    #[inline(always)]
    fn whole(&self, tick: u32) -> u64 {
        self.at.wrapping_add_signed(i64::from(tick.wrapping_sub(self.at as u32) as i32))
    }

    fn next_near(&self) -> Option<u64> {
        let here = (self.at % NEAR) as usize;
        let base = self.at - here as u64;
        match self.next_used(here, NEAR as usize) {
            Some(slot) => Some(base + slot as u64),
            None => self.next_used(0, here).map(|slot| base + NEAR + slot as u64),
        }
    }

    /// The tick at which the next used far slot begins.
    fn next_far(&self) -> Option<u64> {
        let granule = self.at >> NEAR_BITS;
        let (first, start) = (NEAR as usize, ((granule + 1) % FAR) as usize);
        let slot = self
            .next_used(first + start, SLOTS)
            .or_else(|| self.next_used(first, first + start))?;
        let ahead = (slot - first + FAR as usize - start) as u64 % FAR;
        Some((granule + 1 + ahead) << NEAR_BITS)
    }

    /// The first used slot of `from..to`.
    #[inline]
    fn next_used(&self, from: usize, to: usize) -> Option<usize> {
        let mut word = from / 64;
        let mut bits = *self.used.get(word)? & (u64::MAX << (from % 64));
        while bits == 0 {
            word += 1;
            if word * 64 >= to {
                return None;
            }
            bits = self.used[word];
        }
        let slot = word * 64 + bits.trailing_zeros() as usize;
        (slot < to).then_some(slot)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::Seed;
    use crate::base::hash::Rng;

    #[test]
    fn each_fires_once_and_never_early() {
        let mut rng = Rng::new(Seed(11));
        for round in 0..50u64 {
            let start = Nanos(rng.next_u64() >> 20);
            let mut wheel = Wheel::new(start);
            let mut timers = vec![Timer::IDLE; 200];
            let mut due: Vec<Option<Nanos>> = vec![None; 200];
            let mut now = start;
            for _ in 0..2_000 {
                let id = rng.below(200);
                let wait = rng.next_u64()
                    % [2_000, 3_000_000, 900_000_000, 5_000_000_000][rng.below(4) as usize];
                let at = now.saturating_add(wait + 1);
                wheel.arm(&mut timers, id, at);
                let kept = due[id as usize].map_or(at, |d| {
                    if d.0.div_ceil(TICK_NS) <= at.0.div_ceil(TICK_NS) { d } else { at }
                });
                due[id as usize] = Some(kept);
                now = now.saturating_add(rng.next_u64() % (1_000 << (round % 16)));
                while let Some(id) = wheel.pop(&mut timers, now) {
                    let at = due[id as usize].take().expect("armed");
                    assert!(at <= now, "{at:?} fired at {now:?}");
                }
                let tick = Nanos(now.0 / TICK_NS * TICK_NS);
                assert!(due.iter().flatten().all(|&d| d > tick), "one was missed");
                let first = due.iter().flatten().min();
                let next = wheel.next();
                assert_eq!(first.is_some(), next.is_some());
                if let (Some(first), Some(next)) = (first, next) {
                    assert!(next > tick && next.0 < first.0 + TICK_NS, "{next:?} {first:?}");
                }
            }
        }
    }

    #[test]
    fn a_long_jump_takes_no_time() {
        let mut wheel = Wheel::new(Nanos(0));
        let mut timers = vec![Timer::IDLE; 1];
        wheel.arm(&mut timers, 0, Nanos::from_secs(1_000));
        let mut woken = 0;
        let mut now = Nanos(0);
        while let Some(next) = wheel.next() {
            now = next;
            woken += 1;
            if wheel.pop(&mut timers, now).is_some() {
                break;
            }
        }
        assert_eq!(now.0.div_ceil(TICK_NS), Nanos::from_secs(1_000).0.div_ceil(TICK_NS));
        assert!(woken < 10_000, "{woken}");
        assert_eq!(wheel.pop(&mut timers, Nanos(u64::MAX)), None);
        assert_eq!(wheel.next(), None);
    }
}
