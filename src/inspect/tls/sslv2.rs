//! The ClientHello that SSL 2 clients send and that offers newer versions too (RFC 5246, appendix
//! E.2). It names no server.

use super::{Failure, HelloParser, take};

/// Record length, message type, version, and the lengths of what follows.
const HEAD_BYTES: usize = 11;
const CLIENT_HELLO: u8 = 1;
/// Bytes of the head behind the record's length.
const BODY_HEAD_BYTES: u16 = 9;
const CHALLENGE_BYTES: std::ops::RangeInclusive<u16> = 16..=32;

/// Whether a stream begins as such a hello's: a record of two bytes' length without padding.
pub(super) fn begins(first: u8) -> bool {
    first & 0x80 != 0
}

impl HelloParser {
    /// `true` when the hello is complete.
    pub(super) fn sslv2(&mut self, mut bytes: &[u8]) -> Result<bool, Failure> {
        if self.message_end == super::NO_END {
            let Some(head) = take::<HEAD_BYTES>(&mut self.field, &mut bytes) else {
                let p = self.field;
                check_start(&p.bytes[..usize::from(p.len)])?;
                return Ok(false);
            };
            self.message_end = check_head(&head)?;
            self.legacy_version = u16::from_be_bytes([head[3], head[4]]);
        }
        let left = self.message_end - self.position;
        self.position += left.min(bytes.len() as u32);
        Ok(self.position == self.message_end)
    }
}

/// Refused at the first byte that rules it out.
fn check_start(start: &[u8]) -> Result<(), Failure> {
    let kind_bad = start.get(2).is_some_and(|&kind| kind != CLIENT_HELLO);
    let version_bad = match start.get(3..) {
        Some([0, 2, ..] | [0] | [3] | [3, 0..=4, ..] | []) | None => false,
        Some(_) => true,
    };
    if kind_bad || version_bad { Err(Failure::NotTls) } else { Ok(()) }
}

/// The bytes behind the head.
fn check_head(head: &[u8; HEAD_BYTES]) -> Result<u32, Failure> {
    check_start(head)?;
    let number = |at: usize| u16::from_be_bytes([head[at], head[at + 1]]);
    let (record, ciphers, session, challenge) =
        (number(0) & 0x7fff, number(5), number(7), number(9));
    let fits = ciphers > 0
        && ciphers.is_multiple_of(3)
        && (session == 0 || session == 16)
        && CHALLENGE_BYTES.contains(&challenge)
        && u32::from(ciphers) + u32::from(session) + u32::from(challenge)
            == u32::from(record.saturating_sub(BODY_HEAD_BYTES));
    if fits { Ok(u32::from(record - BODY_HEAD_BYTES)) } else { Err(Failure::NotTls) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::inspect::Peek;

    fn hello() -> Vec<u8> {
        let body = [&[1, 3, 1, 0, 6, 0, 0, 0, 16, 0, 0, 0x35, 7, 0, 0xc0][..], &[9; 16]].concat();
        [&[0x80, body.len() as u8], &body[..]].concat()
    }

    #[test]
    fn read_over_any_cut() {
        let hello = hello();
        for cut in 0..hello.len() {
            let mut parser = HelloParser::new(1 << 14);
            assert_eq!(parser.feed(&hello[..cut]), Peek::NeedMore, "{cut}");
            assert_eq!(parser.feed(&hello[cut..]), Peek::Found(()), "{cut}");
            assert_eq!((parser.sni(), parser.legacy_version()), (None, 0x0301));
            assert_eq!(parser.ja4(crate::inspect::tls::Carrier::Tcp), None);
        }
    }

    #[test]
    fn lengths_must_agree() {
        for (at, value) in [(1, 30), (2, 4), (3, 1), (4, 9), (6, 5), (8, 1), (10, 15)] {
            let mut hello = hello();
            hello[at] = value;
            let mut parser = HelloParser::new(1 << 14);
            assert_eq!(parser.feed(&hello), Peek::NotThis, "{at}");
            assert_eq!(parser.failure(), Some(Failure::NotTls));
        }
    }
}
