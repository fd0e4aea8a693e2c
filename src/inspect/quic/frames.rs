//! The frames of an Initial packet (RFC 9000, sections 12.4 and 19).

use super::header::{take_slice, varint};

/// Frame types that an Initial packet may hold (RFC 9000, table 3).
mod frame {
    pub const PADDING: u64 = 0;
    pub const PING: u64 = 1;
    pub const ACK: u64 = 2;
    pub const ACK_ECN: u64 = 3;
    pub const CRYPTO: u64 = 6;
    pub const CONNECTION_CLOSE: u64 = 0x1c;
}

/// A frame of another type than those, or one that does not end within its packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Malformed;

/// A piece of the handshake.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Crypto<'a> {
    pub offset: u64,
    pub bytes: &'a [u8],
}

/// The CRYPTO frames of a packet, in its order; the others are passed over.
pub(super) struct Frames<'a> {
    rest: &'a [u8],
}

impl<'a> Frames<'a> {
    pub fn new(payload: &'a [u8]) -> Frames<'a> {
        Frames { rest: payload }
    }

    pub fn next_crypto(&mut self) -> Result<Option<Crypto<'a>>, Malformed> {
        loop {
            if self.rest.first() == Some(&(frame::PADDING as u8)) {
                let end = self.rest.iter().position(|&b| b != 0).unwrap_or(self.rest.len());
                self.rest = &self.rest[end..];
            }
            if self.rest.is_empty() {
                return Ok(None);
            }
            if let Some(crypto) = self.frame().ok_or(Malformed)? {
                return Ok(Some(crypto));
            }
        }
    }

    /// Takes one frame. `None` if that does not work out.
    fn frame(&mut self) -> Option<Option<Crypto<'a>>> {
        let rest = &mut self.rest;
        let kind = varint(rest)?;
        match kind {
            frame::PADDING | frame::PING => {}
            frame::ACK | frame::ACK_ECN => {
                let (_largest, _delay) = (varint(rest)?, varint(rest)?);
                let (ranges, _first) = (varint(rest)?, varint(rest)?);
                // As many as are announced: each takes bytes of the packet, so it ends with it.
                for _ in 0..ranges {
                    let (_gap, _length) = (varint(rest)?, varint(rest)?);
                }
                if kind == frame::ACK_ECN {
                    let (_ect0, _ect1, _ce) = (varint(rest)?, varint(rest)?, varint(rest)?);
                }
            }
            frame::CRYPTO => {
                let offset = varint(rest)?;
                let len = varint(rest)?;
                return Some(Some(Crypto { offset, bytes: take_slice(rest, len)? }));
            }
            frame::CONNECTION_CLOSE => {
                let (_error, _frame) = (varint(rest)?, varint(rest)?);
                let reason = varint(rest)?;
                take_slice(rest, reason)?;
            }
            _ => return None,
        }
        Some(None)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// All pieces, and whether the packet is sound.
    fn walk(payload: &[u8]) -> (Vec<(u64, Vec<u8>)>, bool) {
        let mut frames = Frames::new(payload);
        let mut pieces = Vec::new();
        loop {
            match frames.next_crypto() {
                Ok(Some(c)) => pieces.push((c.offset, c.bytes.to_vec())),
                Ok(None) => return (pieces, true),
                Err(Malformed) => return (pieces, false),
            }
        }
    }

    #[test]
    fn other_frames_are_passed_over() {
        let payload: Vec<u8> = [
            &[0, 0, 0, 1][..],
            &[2, 9, 0, 2, 1, 0, 0, 3, 4],
            &[6, 0x40, 5, 2, b'a', b'b'],
            &[3, 9, 0, 0, 1, 7, 7, 7],
            &[0x1c, 10, 6, 3, b'w', b'h', b'y'],
            &[6, 0, 1, b'c', 0, 0],
        ]
        .concat();
        let want = vec![(5, b"ab".to_vec()), (0, b"c".to_vec())];
        assert_eq!(walk(&payload), (want, true));
        assert_eq!(walk(&[]), (vec![], true));
    }

    #[test]
    fn frames_beyond_their_packet_and_foreign_ones_end_it() {
        let cases: [&[u8]; 8] = [
            &[6, 0],
            &[6, 0, 2, b'a'],
            &[6, 0, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff],
            &[2, 9, 0, 0xbf, 0xff, 0xff, 0xff, 0, 0],
            &[3, 9, 0, 0, 1, 7, 7],
            &[0x1c, 0, 0, 4, b'x'],
            &[8, 0, 0],
            &[0x40],
        ];
        for payload in cases {
            assert_eq!(walk(payload), (vec![], false), "{payload:x?}");
        }
    }
}
