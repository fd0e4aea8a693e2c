//! SYN cookies: a handshake that costs no memory until the client has shown that it gets our
//! packets (RFC 4987, section 3.6).
//!
//! Our initial sequence number is the cookie: 24 bits of a keyed hash over the connection, the
//! client's own initial number, the time and the lower eight bits, which hold what the client
//! offered. With timestamps the exact window scale stands in the six lowest bits of our first
//! timestamp instead, where Linux has it too (net/ipv4/syncookies.c).

use super::options::Offer;
use crate::base::hash::hash1;
use crate::base::{Nanos, Seed};
use crate::packet::FlowKey;

/// Sizes of segments that a cookie can tell apart; others are rounded down.
const MSS_TABLE: [u16; 8] = [536, 1_220, 1_300, 1_360, 1_400, 1_440, 1_460, 8_940];
/// Window scales that a cookie without timestamps can tell apart; others are rounded down, which
/// makes windows look smaller than they are and does no harm. The first means none.
const SCALE_TABLE: [Option<u8>; 8] =
    [None, Some(0), Some(1), Some(4), Some(6), Some(7), Some(8), Some(10)];
/// A cookie is good for one to two of these.
const BUCKET_NS: u64 = 64_000_000_000;
/// Our timestamps count milliseconds.
const NANOS_PER_STAMP: u64 = 1_000_000;

/// Bits of a timestamp that hold options.
const STAMP_MASK: u32 = 63;
const STAMP_SCALE: u32 = 15;
const STAMP_NO_SCALE: u32 = 15;
const STAMP_SACK: u32 = 16;

/// Bits of a cookie that hold options.
const OPTIONS_MASK: u32 = 255;
const OPTION_TIMESTAMPS: u32 = 8;
const OPTION_SACK: u32 = 16;
const SCALE_SHIFT: u32 = 5;

/// What the two sides have agreed on, as far as it is the client's.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Agreed {
    /// Largest segment that the client takes.
    pub mss: u16,
    /// Shift of the client's windows; `None`: neither side scales.
    pub window_scale: Option<u8>,
    pub sack: bool,
    pub timestamps: bool,
}

impl Agreed {
    /// What a cookie can carry of a client's offer, where we offer `ours`.
    pub fn on(offer: &Offer, ours: &Promise, v4: bool) -> Agreed {
        let default = super::options::MSS_DEFAULT[usize::from(!v4)];
        let mss = MSS_TABLE[mss_index(offer.mss.unwrap_or(default))];
        let timestamps = ours.timestamps && offer.stamps.is_some();
        let window_scale = offer.window_scale.filter(|_| ours.window_scale.is_some());
        let window_scale = match timestamps {
            true => window_scale,
            false => SCALE_TABLE[scale_index(window_scale)],
        };
        Agreed { mss, window_scale, sack: ours.sack && offer.sack, timestamps }
    }
}

/// What we offer clients in the name of backends that are not chosen yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Promise {
    /// Largest segment that any of the backends takes.
    pub mss: u16,
    /// Shift of the windows that clients are told; `None`: no scaling.
    pub window_scale: Option<u8>,
    pub sack: bool,
    pub timestamps: bool,
}

impl Default for Promise {
    /// What Linux on Ethernet can keep.
    fn default() -> Promise {
        Promise { mss: 1_460, window_scale: Some(7), sack: true, timestamps: true }
    }
}

/// Makes cookies and knows them again.
#[derive(Clone, Debug)]
pub struct Cookies {
    key: [u64; 2],
}

impl Cookies {
    pub fn new(seed: Seed) -> Cookies {
        Cookies { key: [hash1(seed, 0x636f_6f6b_6965), hash1(seed, 0x736c_7469)] }
    }

    /// The cookie for a SYN with this key and sequence number.
    pub fn make(&self, now: Nanos, key: &FlowKey, isn: u32, agreed: &Agreed) -> u32 {
        let options = option_bits(agreed);
        self.mac(now.0 / BUCKET_NS, key, isn, options) << 8 | options
    }

    /// What was agreed on, where `cookie` answers a SYN with this key and sequence number.
    /// `echo` is the timestamp that comes back with it.
    pub fn check(
        &self,
        now: Nanos,
        key: &FlowKey,
        isn: u32,
        cookie: u32,
        echo: Option<u32>,
    ) -> Option<Agreed> {
        let options = cookie & OPTIONS_MASK;
        let bucket = now.0 / BUCKET_NS;
        let good = [bucket, bucket.saturating_sub(1)]
            .into_iter()
            .any(|bucket| self.mac(bucket, key, isn, options) == cookie >> 8);
        if !good {
            return None;
        }
        let mut agreed = Agreed {
            mss: MSS_TABLE[(options & 7) as usize],
            window_scale: SCALE_TABLE[(options >> SCALE_SHIFT & 7) as usize],
            sack: options & OPTION_SACK != 0,
            timestamps: options & OPTION_TIMESTAMPS != 0,
        };
        if agreed.timestamps {
            // A client that has agreed to timestamps sends them always (RFC 7323, section 3.2).
            let bits = echo?;
            let scale = bits & STAMP_SCALE;
            agreed.window_scale = (scale != STAMP_NO_SCALE).then_some(scale as u8);
            agreed.sack = bits & STAMP_SACK != 0;
        }
        Some(agreed)
    }

    /// Our timestamp toward a client: its clock begins at a point that only we can know.
    pub fn stamp(&self, now: Nanos, key: &FlowKey) -> u32 {
        let ms = (now.0 / NANOS_PER_STAMP) as u32;
        ms.wrapping_add(siphash(self.key, &words(key, 1, 0)) as u32)
    }

    /// The timestamp of a SYN-ACK: the last one, not later than `stamp`, that says what was agreed
    /// on.
    pub fn first_stamp(stamp: u32, agreed: &Agreed) -> u32 {
        let scale = agreed.window_scale.map_or(STAMP_NO_SCALE, u32::from);
        let bits = scale | if agreed.sack { STAMP_SACK } else { 0 };
        let first = stamp & !STAMP_MASK | bits;
        if stamp & STAMP_MASK < bits { first.wrapping_sub(STAMP_MASK + 1) } else { first }
    }

    fn mac(&self, bucket: u64, key: &FlowKey, isn: u32, options: u32) -> u32 {
        let rest = u64::from(isn) << 32 | u64::from(options);
        (siphash(self.key, &words(key, bucket << 1, rest)) >> 40) as u32
    }
}

fn words(key: &FlowKey, purpose: u64, rest: u64) -> [u64; 7] {
    let ports = u64::from(key.sport) << 16 | u64::from(key.dport);
    [key.src.hi, key.src.lo, key.dst.hi, key.dst.lo, ports, purpose, rest]
}

fn option_bits(agreed: &Agreed) -> u32 {
    let mut bits = mss_index(agreed.mss) as u32;
    if agreed.timestamps {
        return bits | OPTION_TIMESTAMPS;
    }
    bits |= (scale_index(agreed.window_scale) as u32) << SCALE_SHIFT;
    bits | if agreed.sack { OPTION_SACK } else { 0 }
}

fn mss_index(mss: u16) -> usize {
    MSS_TABLE.iter().rposition(|&known| known <= mss).unwrap_or(0)
}

fn scale_index(scale: Option<u8>) -> usize {
    match scale {
        None => 0,
        Some(_) => SCALE_TABLE.iter().rposition(|&known| known <= scale).unwrap_or(0),
    }
}

/// SipHash-2-4 of whole words (J.-P. Aumasson, D. J. Bernstein, "SipHash: a fast short-input
/// PRF", 2012).
fn siphash(key: [u64; 2], message: &[u64]) -> u64 {
    let mut v = [
        key[0] ^ 0x736f_6d65_7073_6575,
        key[1] ^ 0x646f_7261_6e64_6f6d,
        key[0] ^ 0x6c79_6765_6e65_7261,
        key[1] ^ 0x7465_6462_7974_6573,
    ];
    let length = (message.len() as u64 * 8) << 56;
    for &word in message.iter().chain([&length]) {
        v[3] ^= word;
        sip_rounds(&mut v, 2);
        v[0] ^= word;
    }
    v[2] ^= 0xff;
    sip_rounds(&mut v, 4);
    v[0] ^ v[1] ^ v[2] ^ v[3]
}

fn sip_rounds(v: &mut [u64; 4], rounds: u32) {
    for _ in 0..rounds {
        v[0] = v[0].wrapping_add(v[1]);
        v[2] = v[2].wrapping_add(v[3]);
        v[1] = v[1].rotate_left(13) ^ v[0];
        v[3] = v[3].rotate_left(16) ^ v[2];
        v[0] = v[0].rotate_left(32);
        v[2] = v[2].wrapping_add(v[1]);
        v[0] = v[0].wrapping_add(v[3]);
        v[1] = v[1].rotate_left(17) ^ v[2];
        v[3] = v[3].rotate_left(21) ^ v[0];
        v[2] = v[2].rotate_left(32);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::forward::splice::options::Stamps;

    const NOW: Nanos = Nanos::from_secs(1_000);

    fn key() -> FlowKey {
        let addr = |s: &str| s.parse().expect("a literal");
        FlowKey {
            src: addr("198.51.100.7"),
            dst: addr("192.0.2.1"),
            sport: 40_000,
            dport: 443,
            proto: 6,
        }
    }

    fn offer(mss: u16, window_scale: Option<u8>, sack: bool, stamps: bool) -> Offer {
        let stamps = stamps.then_some(Stamps { value: 5, echo: 0 });
        Offer { mss: Some(mss), window_scale, sack, stamps }
    }

    /// SipHash-2-4's published value for the 8 bytes 00 to 07 under the key 00 to 0f.
    #[test]
    fn siphash_is_as_published() {
        let key = [0x0706_0504_0302_0100, 0x0f0e_0d0c_0b0a_0908];
        assert_eq!(siphash(key, &[0x0706_0504_0302_0100]), 0x93f5_f579_9a93_2462);
        assert_eq!(siphash(key, &[]), 0x726f_db47_dd0e_0e31);
    }

    #[test]
    fn a_cookie_brings_back_what_was_agreed_on() {
        let cookies = Cookies::new(Seed(1));
        let ours = Promise::default();
        for scale in (0..=14).map(Some).chain([None]) {
            for sack in [false, true] {
                for stamps in [false, true] {
                    let agreed = Agreed::on(&offer(1_450, scale, sack, stamps), &ours, true);
                    let cookie = cookies.make(NOW, &key(), 77, &agreed);
                    let stamp = cookies.stamp(NOW, &key());
                    let first = Cookies::first_stamp(stamp, &agreed);
                    assert!(stamp.wrapping_sub(first) < 64 || !stamps);
                    let later = NOW + std::time::Duration::from_secs(60);
                    let echo = stamps.then_some(first);
                    let back = cookies.check(later, &key(), 77, cookie, echo);
                    assert_eq!(back, Some(agreed), "{scale:?} {sack} {stamps}");
                    assert_eq!((agreed.mss, agreed.sack), (1_440, sack));
                    if stamps {
                        assert_eq!(agreed.window_scale, scale);
                    } else {
                        assert!(agreed.window_scale <= scale);
                        assert_eq!(agreed.window_scale.is_some(), scale.is_some());
                    }
                }
            }
        }
    }

    #[test]
    fn we_agree_to_nothing_that_we_do_not_offer() {
        let none = Promise { mss: 1_400, window_scale: None, sack: false, timestamps: false };
        let agreed = Agreed::on(&offer(9_000, Some(7), true, true), &none, true);
        let want = Agreed { mss: 8_940, window_scale: None, sack: false, timestamps: false };
        assert_eq!(agreed, want);
        assert_eq!(Agreed::on(&Offer::default(), &none, true).mss, 536);
        assert_eq!(Agreed::on(&Offer::default(), &none, false).mss, 1_220);
        assert_eq!(Agreed::on(&offer(100, None, false, false), &none, true).mss, 536);
    }

    #[test]
    fn strange_and_stale_cookies_are_refused() {
        let cookies = Cookies::new(Seed(1));
        let agreed = Agreed::on(&offer(1_460, Some(7), true, false), &Promise::default(), true);
        let cookie = cookies.make(NOW, &key(), 77, &agreed);
        let check = |cookies: &Cookies, after, key: &FlowKey, isn, cookie| {
            let at = NOW + std::time::Duration::from_secs(after);
            cookies.check(at, key, isn, cookie, None).is_some()
        };
        assert!(check(&cookies, 0, &key(), 77, cookie));
        assert!(!check(&cookies, 130, &key(), 77, cookie), "stale");
        assert!(!check(&cookies, 0, &key(), 78, cookie), "another connection");
        assert!(!check(&Cookies::new(Seed(2)), 0, &key(), 77, cookie), "another seed");
        for bit in 0..32 {
            assert!(!check(&cookies, 0, &key(), 77, cookie ^ 1 << bit), "bit {bit}");
        }
        let mut other = key();
        other.sport += 1;
        assert!(!check(&cookies, 0, &other, 77, cookie));
        let stamped = Agreed { timestamps: true, ..agreed };
        let cookie = cookies.make(NOW, &key(), 77, &stamped);
        assert!(!check(&cookies, 0, &key(), 77, cookie), "its timestamp is missing");
    }
}
