//! The two token buckets of a class and their arithmetic.
//!
//! Tokens are counted in 2^-20 byte, rates in bytes per nanosecond with 40 fractional bits. The
//! bits that a refill shifts out are carried to the next one, so that no rate is lost however often
//! the bucket is looked at: a bucket that floors per packet sends 0.57 % too much at 100 Gbit/s.

use crate::base::Nanos;
use crate::base::units::BitRate;

/// Fractional bits of a token count.
const TOKEN_BITS: u32 = 20;
/// A frame of Ethernet without jumbo ones.
const FRAME_BYTES: i64 = 1_600;
/// Fractional bits of a rate in bytes per nanosecond.
const RATE_BITS: u32 = 40;
/// Bits that a refill shifts out and carries.
const CARRY_BITS: u32 = RATE_BITS - TOKEN_BITS;
const BITS_PER_SECOND_PER_BYTE_PER_NANO: u128 = 8_000_000_000;
/// While something waits for its turn, what comes in a time is kept, however small the burst is:
/// that the others are served first must not cost it its rate. The shortest of such times is 2^24
/// ns, 17 ms.
const WAITING_NS_BITS: u32 = 24;
pub(super) const WAITING_NS: u64 = 1 << WAITING_NS_BITS;
const WAITING_SHIFT: u32 = WAITING_NS_BITS + TOKEN_BITS - RATE_BITS;
/// Each [`Patience`] is longer by these bits.
const PATIENCE_BITS: u32 = 3;

/// A rate in bytes per nanosecond, 40 fractional bits: steps of 0.0073 bit/s up to 134 Pbit/s.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Rate(u64);

impl Rate {
    /// The nearest step; never 0, so that waiting for a token always ends.
    pub fn new(rate: BitRate) -> Rate {
        let scaled =
            (u128::from(rate.bits_per_sec()) << RATE_BITS) + BITS_PER_SECOND_PER_BYTE_PER_NANO / 2;
        let q = scaled / BITS_PER_SECOND_PER_BYTE_PER_NANO;
        Rate(u64::try_from(q).unwrap_or(u64::MAX).max(1))
    }

    /// Whole bytes that come in `ns`.
    pub fn bytes_in(self, ns: u64) -> u64 {
        let bytes = (u128::from(self.0) * u128::from(ns)) >> RATE_BITS;
        u64::try_from(bytes).unwrap_or(u64::MAX)
    }

    /// Whole tokens (of 2^-20 byte) that come from time 0 to `ns`.
    #[inline(always)]
    pub fn tokens_until(self, ns: u64) -> u128 {
        (u128::from(self.0) * u128::from(ns)) >> CARRY_BITS
    }
}

/// For how long a bucket keeps what comes while something waits for its turn: 17 ms, 0.13, 1.1 or
/// 8.6 s.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Patience(u8);

impl Patience {
    #[cfg(test)]
    pub const SHORTEST: Patience = Patience(0);
    const LONGEST: u8 = 3;

    /// The shortest that is no shorter than `ns`, or the longest there is.
    pub fn for_ns(ns: u64) -> Patience {
        let is_enough = |level: &u8| Patience(*level).ns() >= ns;
        Patience((0..Patience::LONGEST).find(is_enough).unwrap_or(Patience::LONGEST))
    }

    /// From two bits.
    #[inline(always)]
    pub fn from_bits(bits: u8) -> Patience {
        Patience(bits & Patience::LONGEST)
    }

    pub fn bits(self) -> u8 {
        self.0
    }

    fn ns(self) -> u64 {
        1 << (WAITING_NS_BITS + PATIENCE_BITS * u32::from(self.0))
    }
}

/// One bucket. When it was last settled is kept beside it, since a class settles both of its
/// buckets at once.
#[derive(Clone, Copy, Debug)]
pub(super) struct Bucket {
    /// In 2^-20 byte. Below zero: what was sent in advance.
    tokens: i64,
    rate: Rate,
    /// Most tokens, in bytes.
    cap: u32,
    /// Below 2^20: the fraction of a token that the last refill left over.
    carry: u32,
}

impl Bucket {
    /// A full bucket.
    pub fn new(rate: Rate, cap: u32) -> Bucket {
        Bucket { tokens: i64::from(cap) << TOKEN_BITS, rate, cap, carry: 0 }
    }

    /// Most tokens, in bytes.
    pub fn cap(&self) -> u32 {
        self.cap
    }

    /// Whole bytes that come in `ns`.
    pub fn bytes_in(&self, ns: u64) -> u64 {
        self.rate.bytes_in(ns)
    }

    /// Adds what `elapsed` nanoseconds bring. No elapsed time is too long; what is over the cap is
    /// lost, carry included.
    #[inline(always)]
    pub fn refill(&mut self, elapsed: u64) {
        self.refill_for(elapsed, None);
    }

    /// As above. `waits`: something waits for its turn, and keeps what comes meanwhile for a time.
    #[inline(always)]
    pub fn refill_for(&mut self, elapsed: u64, waits: Option<Patience>) {
        let (cap, carry) = (self.most(waits), u64::from(self.carry));
        let grown = self.rate.0.checked_mul(elapsed).and_then(|grown| grown.checked_add(carry));
        let Some(grown) = grown else { return self.refill_long(elapsed, cap) };
        let tokens = self.tokens.saturating_add((grown >> CARRY_BITS) as i64);
        let is_full = tokens >= cap;
        self.tokens = if is_full { cap } else { tokens };
        self.carry = if is_full { 0 } else { grown as u32 & ((1 << CARRY_BITS) - 1) };
    }

    /// As above where it takes more than 64 bits: the product of two such numbers fits 128.
    #[cold]
    #[inline(never)]
    fn refill_long(&mut self, elapsed: u64, cap: i64) {
        let grown = u128::from(elapsed) * u128::from(self.rate.0) + u128::from(self.carry);
        let whole = (grown >> CARRY_BITS) as i128;
        if whole >= i128::from(cap.saturating_sub(self.tokens)) {
            self.tokens = cap;
            self.carry = 0;
        } else {
            self.tokens += whole as i64;
            self.carry = grown as u32 & ((1 << CARRY_BITS) - 1);
        }
    }

    /// The most tokens; while something waits, what is kept beside a burst.
    #[inline(always)]
    fn most(&self, waits: Option<Patience>) -> i64 {
        let cap = i64::from(self.cap) << TOKEN_BITS;
        let Some(patience) = waits else { return cap };
        let shift = WAITING_SHIFT + PATIENCE_BITS * u32::from(patience.0);
        let kept = (self.rate.0.min(u64::MAX >> (shift + 1)) << shift) as i64;
        cap.max(kept)
    }

    #[inline(always)]
    pub fn charge(&mut self, bytes: u32) {
        self.tokens -= i64::from(bytes) << TOKEN_BITS;
    }

    /// Whole bytes that may be taken out until it is closed; without bound where it is already.
    #[inline(always)]
    pub fn room(&self) -> u64 {
        if self.tokens < 0 { u64::MAX } else { (self.tokens >> TOKEN_BITS) as u64 }
    }

    /// Whole bytes that it holds; 0 below zero.
    pub fn bytes(&self) -> u32 {
        u32::try_from(self.tokens >> TOKEN_BITS).unwrap_or(0)
    }

    /// Sending is allowed at zero and above, and may then go below.
    #[inline(always)]
    pub fn is_open(&self) -> bool {
        self.tokens >= 0
    }

    /// When the bucket opens, if it was settled at `settled` and is left alone.
    #[inline]
    pub fn opens_at(&self, settled: Nanos) -> Nanos {
        if self.tokens >= 0 {
            return settled;
        }
        let lacking = (u128::from(self.tokens.unsigned_abs()) << CARRY_BITS)
            .saturating_sub(u128::from(self.carry));
        // Nearly always below 2^64 (a debt of 16 MB), where the machine divides at once.
        let ns = match u64::try_from(lacking) {
            Ok(lacking) => lacking.div_ceil(self.rate.0),
            Err(_) => u64::try_from(lacking.div_ceil(u128::from(self.rate.0))).unwrap_or(u64::MAX),
        };
        settled.saturating_add(ns)
    }

    /// Whether it holds as much as `other` at any time, if both begin full and everything that is
    /// charged to this one is charged to `other` too.
    pub fn is_at_least(&self, other: &Bucket) -> bool {
        self.rate.0 >= other.rate.0 && self.cap >= other.cap
    }

    /// Takes over the tokens of a bucket that this one replaces, both being settled. What it owes,
    /// for what was granted in advance, it pays in the time that the old one would have taken; but
    /// a frame, which has gone, in full.
    pub fn inherit(&mut self, old: &Bucket) {
        let cap = i64::from(self.cap) << TOKEN_BITS;
        self.tokens = old.tokens.min(cap);
        self.carry = old.carry;
        if self.tokens < 0 && self.rate.0 < old.rate.0 {
            let slower = i128::from(self.rate.0) * i128::from(self.tokens);
            let owed = (slower / i128::from(old.rate.0)) as i64;
            let frame = (-(FRAME_BYTES << TOKEN_BITS)).max(self.tokens);
            self.tokens = owed.min(frame);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slower_bucket_pays_debts_in_the_same_time() {
        for (owed, left) in [(1_000_000, 10_000), (100_000, 1_600), (900, 900)] {
            let mut old = Bucket::new(mbit(1_000), 10_000);
            old.charge(10_000 + owed);
            let mut next = Bucket::new(mbit(10), 10_000);
            next.inherit(&old);
            let off = next.tokens + (i64::from(left) << TOKEN_BITS);
            assert!(off.abs() < 100, "{owed}: {off}");
            let mut faster = Bucket::new(mbit(2_000), 10_000);
            faster.inherit(&old);
            assert_eq!(faster.tokens, old.tokens);
        }
    }

    fn mbit(n: u64) -> Rate {
        Rate::new(BitRate(n * 1_000_000))
    }

    #[test]
    fn no_rate_is_lost_however_often_it_is_settled() {
        // 88 bytes at 100 Gbit/s last 7.04 ns: flooring would lose the .04 (and more) each time.
        let mut b = Bucket::new(Rate::new(BitRate(100_000_000_000)), 1_000_000_000);
        b.charge(1_000_000_000);
        let mut now = 0u64;
        for step in (1..=9u64).cycle().take(9_000_000) {
            b.refill(step);
            now += step;
        }
        let exact = now as f64 * 12.5;
        assert!((b.bytes() as f64 - exact).abs() <= 2.0, "{} against {exact}", b.bytes());
    }

    #[test]
    fn it_opens_exactly_when_it_said() {
        for bits in [1u64, 999, 64_000, 7_777_777, 100_000_000, 99_999_999_999] {
            for debt in [1u32, 64, 1_538, 9_038] {
                let rate = Rate::new(BitRate(bits));
                let mut b = Bucket::new(rate, 0);
                b.charge(debt);
                let at = b.opens_at(Nanos(5)).since(Nanos(5));
                let exact = f64::from(debt) * 8e9 / bits as f64;
                assert!((at as f64 - exact).abs() <= 1.0 + exact * 0.005, "{bits} {debt}: {at}");
                let (mut early, mut late) = (b, b);
                early.refill(at - 1);
                late.refill(at);
                assert!(!early.is_open() && late.is_open(), "{bits} {debt}");
            }
        }
    }

    #[test]
    fn ages_of_idling_fill_it_and_no_more() {
        let mut b = Bucket::new(mbit(400_000), 3_000);
        b.charge(2_000);
        b.refill(u64::MAX);
        assert_eq!(b.bytes(), 3_000);
        b.refill(u64::MAX);
        assert_eq!(b.bytes(), 3_000);
    }

    #[test]
    fn what_waits_keeps_what_comes_for_a_time_and_no_longer() {
        // 8 Mbit/s, a byte a microsecond.
        let mut b = Bucket::new(mbit(8), 1_500);
        let shortest = Some(Patience::SHORTEST);
        b.refill_for(10_000_000, shortest);
        assert_eq!(b.bytes(), 11_500);
        b.refill_for(1_000_000_000, shortest);
        assert_eq!(b.bytes(), 16_777);
        b.charge(1_777);
        b.refill_for(1_000, None);
        assert_eq!(b.bytes(), 1_500, "once it idles the burst is all");
        let mut large = Bucket::new(mbit(8), 50_000);
        large.refill_for(1_000_000, shortest);
        assert_eq!(large.bytes(), 50_000);
        let longest = Patience::for_ns(u64::MAX);
        for patience in [Patience::SHORTEST, longest] {
            let mut fastest = Bucket::new(Rate(u64::MAX), 0);
            fastest.refill_for(u64::MAX, Some(patience));
            assert!(fastest.is_open());
        }
    }

    #[test]
    fn patience_is_as_long_as_is_asked_for() {
        for (ns, kept) in [
            (0, 16_777),
            (16_777_216, 16_777),
            (16_777_217, 134_217),
            (500_000_000, 1_073_741),
            (1_100_000_000, 8_589_934),
            (u64::MAX, 8_589_934),
        ] {
            let mut b = Bucket::new(mbit(8), 1_500);
            let patience = Patience::from_bits(Patience::for_ns(ns).bits());
            b.refill_for(60_000_000_000, Some(patience));
            assert_eq!(b.bytes(), kept, "{ns}");
        }
    }

    #[test]
    fn rates_at_the_ends_of_their_range() {
        assert_eq!(Rate::new(BitRate(0)), Rate(1), "0 is never configured, and would never end");
        for bits in [1_000u64, 99_999_999, 100_000_000, 400_000_000_000, 1_000_000_000_000_000] {
            let a_day = 86_400_000_000_000;
            let (exact, got) = (bits * 10_800, Rate::new(BitRate(bits)).bytes_in(a_day));
            // Half a step, 0.0037 bit/s, is 40 bytes a day.
            assert!(got.abs_diff(exact) <= 40, "{bits} bit/s: {got}, want {exact}");
        }
    }
}
