//! What tells that a client begins a connection, without any memory of those before.

use super::frames::Frames;
use super::header::{Kind, LongHeader};
use super::keys::Keys;
use super::{PACKETS_PER_DATAGRAM_MAX, Scratch};
use crate::base::Seed;
use crate::base::hash::{hash_bytes, hash1};

/// What a client's datagram says of an attempt to connect.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Attempt<'a> {
    /// It holds an Initial packet under keys of the connection id that it is sent to (RFC 9001,
    /// section 5.2), which is this one. A client's later ones are sent to its server's id, under
    /// keys of the first.
    ///
    /// `said` is a digest of all that such packets of the datagram hold of the handshake, by a
    /// secret; 0 where they hold none of it.
    By { id: &'a [u8], said: u32 },
    /// It is of a version that can't be read, or of more packets than are looked at.
    Unreadable,
}

impl Attempt<'_> {
    /// `None`: it begins no connection.
    pub fn of<'a>(datagram: &'a [u8], seed: Seed, scratch: &mut Scratch) -> Option<Attempt<'a>> {
        let (mut rest, mut id, mut said) = (datagram, None, Digest(None));
        for _ in 0..PACKETS_PER_DATAGRAM_MAX {
            if rest.is_empty() {
                break;
            }
            let Some(header) = LongHeader::parse(rest) else {
                rest = &[];
                break;
            };
            rest = header.rest;
            match header.kind {
                Kind::Unreadable if id.is_none() => return Some(Attempt::Unreadable),
                Kind::Unreadable => said.add(seed, u64::MAX, header.packet),
                Kind::Initial => {
                    if let Some(frames) = open(&header, scratch) {
                        let first = *id.get_or_insert(header.dcid);
                        if first != header.dcid {
                            said.add(seed, u64::MAX, header.dcid);
                        }
                        said.add_pieces(seed, frames);
                    }
                }
                _ => {}
            }
        }
        match id {
            None => (!rest.is_empty()).then_some(Attempt::Unreadable),
            Some(id) => {
                if !rest.is_empty() {
                    said.add(seed, u64::MAX, rest);
                }
                Some(Attempt::By { id, said: said.number() })
            }
        }
    }
}

/// The frames of an Initial packet, where it opens under keys of its destination.
fn open<'a>(header: &LongHeader<'_>, scratch: &'a mut Scratch) -> Option<&'a [u8]> {
    let keys = Keys::derive(header.edition?, header.dcid)?;
    let opened = keys.open(header.packet, header.number_at, None, &mut scratch.packet)?;
    scratch.packet.get(opened.frames)
}

/// Of pieces in their order; `None` of none.
struct Digest(Option<u64>);

impl Digest {
    fn add(&mut self, seed: Seed, offset: u64, bytes: &[u8]) {
        let so_far = hash1(seed, self.0.unwrap_or_default() ^ offset.rotate_left(32));
        self.0 = Some(hash_bytes(Seed(so_far), bytes));
    }

    fn add_pieces(&mut self, seed: Seed, frames: &[u8]) {
        let mut frames = Frames::new(frames);
        while let Ok(Some(piece)) = frames.next_crypto() {
            self.add(seed, piece.offset, piece.bytes);
        }
    }

    fn number(self) -> u32 {
        self.0.map_or(0, |digest| ((digest >> 32) as u32).max(1))
    }
}
