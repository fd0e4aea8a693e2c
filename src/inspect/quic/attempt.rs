//! What tells that a client begins a connection, without any memory of those before.

use super::header::{Kind, LongHeader};
use super::keys::Keys;
use super::{PACKETS_PER_DATAGRAM_MAX, Scratch};

/// What a client's datagram says of an attempt to connect.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Attempt<'a> {
    /// It holds an Initial packet under keys of the connection id that it is sent to (RFC 9001,
    /// section 5.2), which is this one. A client's later ones are sent to its server's id, under
    /// keys of the first.
    By(&'a [u8]),
    /// It is of a version that can't be read, or of more packets than are looked at.
    Unreadable,
}

impl Attempt<'_> {
    /// `None`: it begins no connection.
    pub fn of<'a>(datagram: &'a [u8], scratch: &mut Scratch) -> Option<Attempt<'a>> {
        let mut rest = datagram;
        for _ in 0..PACKETS_PER_DATAGRAM_MAX {
            if rest.is_empty() {
                return None;
            }
            let header = LongHeader::parse(rest)?;
            rest = header.rest;
            match header.kind {
                Kind::Unreadable => return Some(Attempt::Unreadable),
                Kind::Initial if opens(&header, scratch) => {
                    return Some(Attempt::By(header.dcid));
                }
                _ => {}
            }
        }
        (!rest.is_empty()).then_some(Attempt::Unreadable)
    }
}

fn opens(header: &LongHeader<'_>, scratch: &mut Scratch) -> bool {
    let keys = header.edition.and_then(|edition| Keys::derive(edition, header.dcid));
    keys.is_some_and(|keys| {
        keys.open(header.packet, header.number_at, None, &mut scratch.packet).is_some()
    })
}
