//! Seeded hashing for tables that strangers can choose the keys of.
//!
//! Folded 64x64 -> 128-bit multiplication: the construction behind wyhash and ahash's fallback.
//! Not cryptographic; the per-process seed keeps bucket collisions from being computed off line.

use std::hash::{BuildHasher, RandomState};

use super::Addr;

/// A secret chosen at start (or fixed by a test), mixed into every hash.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Seed(pub u64);

impl Seed {
    /// A fresh seed from the standard library's own randomness.
    pub fn random() -> Seed {
        Seed(RandomState::new().hash_one(0u64))
    }
}

const K0: u64 = 0x9e37_79b9_7f4a_7c15;
const K1: u64 = 0xd6e8_feb8_6659_fd93;
const K2: u64 = 0xa076_1d64_78bd_642f;

/// Both halves of `a * b`, xored together.
#[inline(always)]
pub const fn fold(a: u64, b: u64) -> u64 {
    let p = (a as u128) * (b as u128);
    (p >> 64) as u64 ^ p as u64
}

/// A hash of five words: the layout of a flow's 5-tuple.
#[inline(always)]
pub const fn hash5(seed: Seed, a: u64, b: u64, c: u64, d: u64, e: u64) -> u64 {
    let x = fold(a ^ seed.0 ^ K0, b ^ K1);
    let y = fold(c ^ seed.0 ^ K2, d ^ K0);
    fold(x ^ e ^ K1, y ^ seed.0.rotate_left(32) ^ K2)
}

/// A hash of one endpoint: the owner of a client's flows follows from it.
#[inline(always)]
pub const fn hash_endpoint(seed: Seed, addr: Addr, port: u16) -> u64 {
    let x = fold(addr.hi ^ seed.0 ^ K0, addr.lo ^ K1);
    fold(x ^ port as u64 ^ K2, seed.0.rotate_left(17) ^ K0)
}

/// Where a client is among all of them: it belongs to a canary share, in hundredths of a percent,
/// that is larger. The hash is that of `src/nic/bpf/parse.h`, the same in every process.
pub const fn canary_place(addr: Addr, port: u16) -> u16 {
    const fn mix(mut h: u64) -> u64 {
        h ^= h >> 33;
        h = h.wrapping_mul(0xff51_afd7_ed55_8ccd);
        h ^= h >> 33;
        h = h.wrapping_mul(0xc4ce_b9fe_1a85_ec53);
        h ^ (h >> 33)
    }
    let hash = mix(mix(mix(addr.hi ^ 0x9e37_79b9_7f4a_7c15) ^ addr.lo) ^ port as u64);
    (((hash >> 32) * 10_000) >> 32) as u16
}

/// A hash of one word.
#[inline(always)]
pub const fn hash1(seed: Seed, a: u64) -> u64 {
    fold(fold(a ^ seed.0 ^ K0, K1), seed.0.rotate_left(29) ^ K2)
}

/// A hash of bytes, for names at load time and for Maglev's two permutations.
pub const fn hash_bytes(seed: Seed, bytes: &[u8]) -> u64 {
    let mut h = seed.0 ^ K0;
    let mut i = 0;
    while i < bytes.len() {
        let mut w = 0u64;
        let mut j = 0;
        while j < 8 && i + j < bytes.len() {
            w |= (bytes[i + j] as u64) << (8 * j);
            j += 1;
        }
        h = fold(h ^ w, K1) ^ h.rotate_left(23);
        i += 8;
    }
    fold(h ^ bytes.len() as u64, K2)
}

/// Maps a hash onto `0..n` without a division (Lemire's multiply-shift). 0 when `n` is 0.
#[inline(always)]
pub const fn pick(hash: u64, n: u32) -> u32 {
    (((hash >> 32) * n as u64) >> 32) as u32
}

/// xorshift64*: the generator of simulations and of port choice; never of secrets.
#[derive(Clone, Debug)]
pub struct Rng(u64);

impl Rng {
    pub fn new(seed: Seed) -> Rng {
        Rng(fold(seed.0 ^ K0, K1) | 1)
    }

    #[inline]
    pub fn next_u64(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    /// Uniform in `0..n`; 0 when `n` is 0.
    #[inline]
    pub fn below(&mut self, n: u32) -> u32 {
        pick(self.next_u64(), n)
    }

    /// True with probability `p` (clamped to 0..=1).
    #[inline]
    pub fn chance(&mut self, p: f64) -> bool {
        ((self.next_u64() >> 11) as f64) < p * (1u64 << 53) as f64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pick_covers_the_range_evenly() {
        let mut rng = Rng::new(Seed(7));
        let mut seen = [0u32; 10];
        for _ in 0..100_000 {
            seen[rng.below(10) as usize] += 1;
        }
        assert!(seen.iter().all(|&n| (9_000..11_000).contains(&n)), "{seen:?}");
        assert_eq!(pick(u64::MAX, 0), 0);
        assert_eq!(pick(u64::MAX, 3), 2);
    }

    #[test]
    fn neighbouring_tuples_spread() {
        let mut buckets = [0u32; 64];
        for port in 0..64_000u64 {
            buckets[(hash5(Seed(1), 0, 1, 0, 2, port) & 63) as usize] += 1;
        }
        assert!(buckets.iter().all(|&n| (800..1_200).contains(&n)), "{buckets:?}");
    }

    #[test]
    fn seeds_matter() {
        assert_ne!(hash1(Seed(1), 42), hash1(Seed(2), 42));
        assert_ne!(hash_bytes(Seed(1), b"abc"), hash_bytes(Seed(1), b"abd"));
        assert_ne!(hash_bytes(Seed(1), b"abc"), hash_bytes(Seed(1), b"abc\0"));
    }

    #[test]
    fn chance_is_about_right() {
        let mut rng = Rng::new(Seed(3));
        let hits = (0..100_000).filter(|_| rng.chance(0.05)).count();
        assert!((4_500..5_500).contains(&hits), "{hits}");
        assert!(!rng.chance(0.0) && rng.chance(1.0));
    }
}
