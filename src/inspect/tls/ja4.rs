//! JA4: a fingerprint of the software that sent a hello (FoxIO's published specification, "JA4:
//! TLS Client Fingerprinting").

use ring::digest::{Context, SHA256};

use super::is_grease;

/// Cipher suites, extensions and signature algorithms that are kept, GREASE left out. A hello with
/// more has no fingerprint: it must cover all of them.
pub const CIPHERS_MAX: usize = 128;
pub const EXTENSIONS_MAX: usize = 64;
pub const SIGNATURES_MAX: usize = 64;

/// Bytes of a fingerprint in text.
pub const JA4_BYTES: usize = 36;

/// Hexadecimal digits of each hash.
const HASH_DIGITS: usize = 12;
/// Counts are written with two digits.
const COUNT_SHOWN_MAX: usize = 99;
const SERVER_NAME: u16 = 0;
const ALPN: u16 = 16;

/// What carried the hello.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Carrier {
    #[default]
    Tcp,
    Quic,
}

/// A fingerprint such as `t13d1516h2_8daaf6152771_e5627efa2ab1`.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Ja4([u8; JA4_BYTES]);

impl Ja4 {
    pub fn as_str(&self) -> &str {
        std::str::from_utf8(&self.0).unwrap_or_default()
    }
}

impl std::fmt::Debug for Ja4 {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Numbers of one kind in the order offered; it knows when one was left out.
#[derive(Clone, Debug)]
struct Numbers<const N: usize> {
    list: [u16; N],
    len: u8,
    overflown: bool,
}

impl<const N: usize> Numbers<N> {
    const EMPTY: Numbers<N> = Numbers { list: [0; N], len: 0, overflown: false };

    #[inline]
    fn push(&mut self, number: u16) {
        match self.list.get_mut(usize::from(self.len)) {
            _ if is_grease(number) => {}
            Some(place) => {
                *place = number;
                self.len += 1;
            }
            None => self.overflown = true,
        }
    }

    fn all(&self) -> Option<&[u16]> {
        (!self.overflown).then(|| &self.list[..usize::from(self.len)])
    }
}

/// What a fingerprint is made of besides names and versions.
#[derive(Clone, Debug)]
pub(super) struct Offered {
    ciphers: Numbers<CIPHERS_MAX>,
    extensions: Numbers<EXTENSIONS_MAX>,
    signatures: Numbers<SIGNATURES_MAX>,
}

const _: () = assert!(CIPHERS_MAX < 256 && EXTENSIONS_MAX < 256 && SIGNATURES_MAX < 256);

impl Offered {
    pub(super) const NOTHING: Offered =
        Offered { ciphers: Numbers::EMPTY, extensions: Numbers::EMPTY, signatures: Numbers::EMPTY };

    #[inline]
    pub(super) fn cipher(&mut self, suite: u16) {
        self.ciphers.push(suite);
    }

    #[inline]
    pub(super) fn extension(&mut self, kind: u16) {
        self.extensions.push(kind);
    }

    #[inline]
    pub(super) fn signature(&mut self, scheme: u16) {
        self.signatures.push(scheme);
    }

    /// `alpn` is the first protocol offered. `None` when a list was longer than what is kept.
    pub(super) fn ja4(&self, carrier: Carrier, version: u16, alpn: Option<&[u8]>) -> Option<Ja4> {
        let ciphers = self.ciphers.all()?;
        let extensions = self.extensions.all()?;
        let signatures = self.signatures.all()?;
        let mut text = Text { bytes: [b'0'; JA4_BYTES], len: 0 };
        text.push(&[if carrier == Carrier::Quic { b'q' } else { b't' }]);
        text.push(version_name(version));
        text.push(if extensions.contains(&SERVER_NAME) { b"d" } else { b"i" });
        text.count(ciphers.len());
        text.count(extensions.len());
        text.push(&protocol_mark(alpn));
        text.push(b"_");
        let mut sorted = self.ciphers.clone();
        let sorted = &mut sorted.list[..ciphers.len()];
        sorted.sort_unstable();
        text.hash(sorted, &[]);
        text.push(b"_");
        let (mut sorted, mut len) = ([0; EXTENSIONS_MAX], 0);
        for &kind in extensions.iter().filter(|&&kind| kind != SERVER_NAME && kind != ALPN) {
            sorted[len] = kind;
            len += 1;
        }
        let sorted = &mut sorted[..len];
        sorted.sort_unstable();
        text.hash(sorted, signatures);
        Some(Ja4(text.bytes))
    }
}

struct Text {
    bytes: [u8; JA4_BYTES],
    len: usize,
}

impl Text {
    fn push(&mut self, bytes: &[u8]) {
        for (place, &byte) in self.bytes[self.len..].iter_mut().zip(bytes) {
            *place = byte;
            self.len += 1;
        }
    }

    fn count(&mut self, count: usize) {
        let count = count.min(COUNT_SHOWN_MAX) as u8;
        self.push(&[b'0' + count / 10, b'0' + count % 10]);
    }

    /// The first digits of SHA-256 over the numbers in hexadecimal, with commas between; zeros
    /// where there are none. `more` follow behind an underscore.
    fn hash(&mut self, numbers: &[u16], more: &[u16]) {
        if numbers.is_empty() {
            return self.push(&[b'0'; HASH_DIGITS]);
        }
        let mut context = Context::new(&SHA256);
        for (list, mut before) in [(numbers, &b""[..]), (more, b"_")] {
            for &number in list {
                context.update(before);
                context.update(&hex4(number));
                before = b",";
            }
        }
        let digest = context.finish();
        for &byte in digest.as_ref().iter().take(HASH_DIGITS / 2) {
            self.push(&[hex(byte >> 4), hex(byte & 15)]);
        }
    }
}

fn version_name(version: u16) -> &'static [u8] {
    match version {
        0x0304 => b"13",
        0x0303 => b"12",
        0x0302 => b"11",
        0x0301 => b"10",
        0x0300 => b"s3",
        0x0002 => b"s2",
        _ => b"00",
    }
}

/// First and last character of a protocol's name; of its hexadecimal form where one of them is
/// neither letter nor digit.
fn protocol_mark(alpn: Option<&[u8]>) -> [u8; 2] {
    let Some((&first, &last)) = alpn.and_then(|name| name.first().zip(name.last())) else {
        return *b"00";
    };
    if first.is_ascii_alphanumeric() && last.is_ascii_alphanumeric() {
        return [first, last];
    }
    [hex(first >> 4), hex(last & 15)]
}

fn hex4(number: u16) -> [u8; 4] {
    [12, 8, 4, 0].map(|shift| hex((number >> shift & 15) as u8))
}

fn hex(digit: u8) -> u8 {
    b"0123456789abcdef"[usize::from(digit & 15)]
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Chrome's hello as the specification gives it, GREASE included.
    fn chrome() -> Offered {
        let mut offered = Offered::NOTHING;
        for suite in [
            0x2a2a, 0x1301, 0x1302, 0x1303, 0xc02b, 0xc02f, 0xc02c, 0xc030, 0xcca9, 0xcca8, 0xc013,
            0xc014, 0x009c, 0x009d, 0x002f, 0x0035,
        ] {
            offered.cipher(suite);
        }
        for kind in [
            0x0a0a, 0x001b, 0x0000, 0x0033, 0x0010, 0x4469, 0x0017, 0x002d, 0x000d, 0x0005, 0x0023,
            0x0012, 0x002b, 0xff01, 0x000b, 0x000a, 0x0015,
        ] {
            offered.extension(kind);
        }
        for scheme in [0x0403, 0x0804, 0x0401, 0x0503, 0x0805, 0x0501, 0x0806, 0x0601] {
            offered.signature(scheme);
        }
        offered
    }

    #[test]
    fn the_specifications_example() {
        let ja4 = chrome().ja4(Carrier::Tcp, 0x0304, Some(b"h2")).expect("within the limits");
        assert_eq!(ja4.as_str(), "t13d1516h2_8daaf6152771_e5627efa2ab1");
        let quic = chrome().ja4(Carrier::Quic, 0x0304, Some(b"h3")).expect("within the limits");
        assert_eq!(quic.as_str(), "q13d1516h3_8daaf6152771_e5627efa2ab1");
    }

    #[test]
    fn what_is_absent_is_zeros() {
        let ja4 = Offered::NOTHING.ja4(Carrier::Tcp, 0x0301, None).expect("within the limits");
        assert_eq!(ja4.as_str(), "t10i000000_000000000000_000000000000");
    }

    #[test]
    fn odd_protocols_are_marked_in_hexadecimal() {
        assert_eq!(protocol_mark(Some(b"http/1.1")), *b"h1");
        assert_eq!(protocol_mark(Some(b"h")), *b"hh");
        assert_eq!(protocol_mark(Some(&[0xab])), *b"ab");
        assert_eq!(protocol_mark(Some(&[0x30, 0xab])), *b"3b");
        assert_eq!(protocol_mark(Some(b"")), *b"00");
    }

    #[test]
    fn no_fingerprint_of_a_part() {
        let mut offered = chrome();
        (0..200).for_each(|n| offered.cipher(n));
        assert_eq!(offered.ja4(Carrier::Tcp, 0x0304, None), None);
    }
}
