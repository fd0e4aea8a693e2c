//! Looks into the beginning of byte streams: sans-io, without allocation, bounded.
//!
//! Each parser is a state machine that takes the bytes of one direction in order, cut in any way,
//! and keeps what it wants of them. It gives the same answer for every cut.

pub mod fields;
pub mod grpc;
pub mod h2;
pub mod hpack;
pub mod http1;
pub mod inspector;
pub mod quic;
pub mod timing;
pub mod tls;

/// What a look at the bytes so far gave.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Peek<T> {
    Found(T),
    /// Undecided: more bytes of the stream may tell.
    NeedMore,
    /// Another protocol, damaged, or beyond the limits: more bytes will not change it.
    NotThis,
}

/// Protocol names of ALPN in the order offered, as on the wire: each after its length byte.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct AlpnList<'a> {
    wire: &'a [u8],
}

impl<'a> AlpnList<'a> {
    pub const EMPTY: AlpnList<'static> = AlpnList { wire: &[] };

    /// Entries of one length byte and as many bytes each; a cut last entry is left out.
    pub fn from_wire(wire: &'a [u8]) -> AlpnList<'a> {
        AlpnList { wire }
    }

    pub fn wire(self) -> &'a [u8] {
        self.wire
    }

    pub fn is_empty(self) -> bool {
        self.iter().next().is_none()
    }

    pub fn contains(self, protocol: &[u8]) -> bool {
        self.iter().any(|p| p == protocol)
    }

    pub fn iter(self) -> impl Iterator<Item = &'a [u8]> {
        let mut rest = self.wire;
        std::iter::from_fn(move || {
            let (&len, after) = rest.split_first()?;
            let (protocol, after) = after.split_at_checked(usize::from(len))?;
            rest = after;
            Some(protocol)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn protocols_are_walked_and_a_cut_one_is_left_out() {
        let list = AlpnList::from_wire(b"\x02h2\x08http/1.1\x05cut");
        assert_eq!(list.iter().collect::<Vec<_>>(), [&b"h2"[..], b"http/1.1"]);
        assert!(list.contains(b"h2") && !list.contains(b"H2") && !list.contains(b"cut"));
        assert!(AlpnList::EMPTY.is_empty() && AlpnList::from_wire(b"\x05x").is_empty());
    }
}
