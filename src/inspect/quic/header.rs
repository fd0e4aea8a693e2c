//! Long headers (RFC 9000, section 17.2) and the versions whose Initial packets can be read.

use super::keys::Edition;

/// Bytes of a connection id at most (RFC 9000, section 17.2).
pub const CID_BYTES_MAX: usize = 20;

/// A connection id.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct ConnectionId {
    len: u8,
    bytes: [u8; CID_BYTES_MAX],
}

impl ConnectionId {
    /// `None` if it is longer than version 1 allows.
    pub fn new(cid: &[u8]) -> Option<ConnectionId> {
        let mut bytes = [0; CID_BYTES_MAX];
        bytes.get_mut(..cid.len())?.copy_from_slice(cid);
        Some(ConnectionId { len: cid.len() as u8, bytes })
    }

    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes[..usize::from(self.len)]
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Initial,
    ZeroRtt,
    Handshake,
    Retry,
    VersionNegotiation,
    /// Of a version that is known by its number only.
    Unreadable,
}

/// A packet with a long header, and what follows it in the datagram.
#[derive(Clone, Copy, Debug)]
pub(super) struct LongHeader<'a> {
    pub kind: Kind,
    pub version: u32,
    pub edition: Option<&'static Edition>,
    pub dcid: &'a [u8],
    pub scid: &'a [u8],
    /// The whole packet, protected.
    pub packet: &'a [u8],
    /// Where in the packet its number is; that of an Initial only.
    pub number_at: usize,
    pub rest: &'a [u8],
}

impl<'a> LongHeader<'a> {
    /// `None` unless a packet with a long header of a version that is known begins here, complete.
    ///
    /// The fixed bit is not asked for: it may be sent as 0 (RFC 9287), and a packet that decrypts
    /// is one whatever its value.
    pub fn parse(bytes: &'a [u8]) -> Option<LongHeader<'a>> {
        let mut cursor = bytes;
        let [first] = take(&mut cursor)?;
        if first & 0x80 == 0 {
            return None;
        }
        let version = u32::from_be_bytes(take(&mut cursor)?);
        let dcid = short_bytes(&mut cursor)?;
        let scid = short_bytes(&mut cursor)?;
        let edition = Edition::of(version);
        let kind = kind(first, version, edition)?;
        let limited = kind != Kind::VersionNegotiation;
        if limited && (dcid.len() > CID_BYTES_MAX || scid.len() > CID_BYTES_MAX) {
            return None;
        }
        if kind == Kind::Initial {
            let token_len = varint(&mut cursor)?;
            take_slice(&mut cursor, token_len)?;
        }
        let mut rest = &bytes[..0];
        let mut end = bytes.len();
        let mut number_at = 0;
        if matches!(kind, Kind::Initial | Kind::ZeroRtt | Kind::Handshake) {
            let len = varint(&mut cursor)?;
            number_at = bytes.len() - cursor.len();
            take_slice(&mut cursor, len)?;
            end = bytes.len() - cursor.len();
            rest = cursor;
        }
        let packet = &bytes[..end];
        Some(LongHeader { kind, version, edition, dcid, scid, packet, number_at, rest })
    }

    /// Whether a packet that begins with these bytes, of which more follow, may have a long header
    /// of a version that is known.
    pub fn may_begin(start: &[u8]) -> bool {
        let Some(&[first, ref version @ ..]) = start.first_chunk::<5>() else { return true };
        let version = u32::from_be_bytes(*version);
        let kind = kind(first, version, Edition::of(version));
        first & 0x80 != 0 && kind.is_some_and(|kind| kind != Kind::VersionNegotiation)
    }
}

fn kind(first: u8, version: u32, edition: Option<&Edition>) -> Option<Kind> {
    if version == 0 {
        return Some(Kind::VersionNegotiation);
    }
    let Some(edition) = edition else {
        return is_named(version).then_some(Kind::Unreadable);
    };
    let kinds = [Kind::Initial, Kind::ZeroRtt, Kind::Handshake, Kind::Retry];
    let code = first >> 4 & 3;
    kinds.get(usize::from(code.wrapping_sub(edition.initial_code) & 3)).copied()
}

/// Versions that are told by their number: reserved ones (RFC 9000, section 15), drafts of the
/// IETF, and those of Google and Facebook.
fn is_named(version: u32) -> bool {
    version & 0x0f0f_0f0f == 0x0a0a_0a0a
        || matches!(version >> 8, 0xff_0000 | 0xfa_ceb0)
        || matches!(version >> 16, 0x5130 | 0x5430)
        // The drafts of version 2.
        || matches!(version, 0x709a_50c4 | 0xff02_0000)
}

pub(super) fn take<const N: usize>(cursor: &mut &[u8]) -> Option<[u8; N]> {
    let (taken, rest) = cursor.split_first_chunk::<N>()?;
    *cursor = rest;
    Some(*taken)
}

pub(super) fn take_slice<'a>(cursor: &mut &'a [u8], len: u64) -> Option<&'a [u8]> {
    let (taken, rest) = cursor.split_at_checked(usize::try_from(len).ok()?)?;
    *cursor = rest;
    Some(taken)
}

/// Bytes after one byte that counts them.
fn short_bytes<'a>(cursor: &mut &'a [u8]) -> Option<&'a [u8]> {
    let [len] = take(cursor)?;
    take_slice(cursor, u64::from(len))
}

/// A variable-length integer (RFC 9000, section 16).
#[inline]
pub(super) fn varint(cursor: &mut &[u8]) -> Option<u64> {
    let first = *cursor.first()?;
    Some(match first >> 6 {
        0 => u64::from(take::<1>(cursor)?[0]),
        1 => u64::from(u16::from_be_bytes(take(cursor)?) & 0x3fff),
        2 => u64::from(u32::from_be_bytes(take(cursor)?) & 0x3fff_ffff),
        _ => u64::from_be_bytes(take(cursor)?) & 0x3fff_ffff_ffff_ffff,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn integers_of_every_length() {
        // RFC 9000, appendix A.1.
        let cases: [(&[u8], u64); 5] = [
            (&[0xc2, 0x19, 0x7c, 0x5e, 0xff, 0x14, 0xe8, 0x8c], 151_288_809_941_952_652),
            (&[0x9d, 0x7f, 0x3e, 0x7d], 494_878_333),
            (&[0x7b, 0xbd], 15_293),
            (&[0x25], 37),
            (&[0x40, 0x25], 37),
        ];
        for (bytes, value) in cases {
            assert_eq!(varint(&mut &bytes[..]), Some(value));
            assert_eq!(varint(&mut &bytes[..bytes.len() - 1]), None, "cut");
        }
    }

    fn initial(version: u32, first: u8) -> Vec<u8> {
        let mut bytes = vec![first];
        bytes.extend(version.to_be_bytes());
        bytes.extend([2, 0xd1, 0xd2, 1, 0x51, 3, 7, 7, 7, 0x40, 4, 9, 9, 9, 9, 0xaa]);
        bytes
    }

    #[test]
    fn headers_are_walked_to_the_number_and_cut_ones_refused() {
        for (version, first) in [(1, 0xc0), (1, 0x80), (0xff00_001d, 0xcf), (0x6b33_43cf, 0xd0)] {
            let bytes = initial(version, first);
            let header = LongHeader::parse(&bytes).expect("a header");
            assert_eq!((header.kind, header.version), (Kind::Initial, version));
            assert_eq!((header.dcid, header.scid), (&[0xd1, 0xd2][..], &[0x51][..]));
            assert_eq!(header.packet[header.number_at..], [9; 4]);
            assert_eq!(header.rest, [0xaa]);
            for end in 0..bytes.len() - 1 {
                assert!(LongHeader::parse(&bytes[..end]).is_none(), "cut at {end}");
            }
        }
    }

    #[test]
    fn the_kinds_of_version_2_have_other_codes() {
        let kinds = |version, codes: [u8; 4]| {
            codes.map(|code| LongHeader::parse(&initial(version, 0xc0 | code << 4)).map(|h| h.kind))
        };
        let all = [Kind::Initial, Kind::ZeroRtt, Kind::Handshake, Kind::Retry].map(Some);
        assert_eq!(kinds(1, [0, 1, 2, 3]), all);
        assert_eq!(kinds(0x6b33_43cf, [1, 2, 3, 0]), all);
    }

    #[test]
    fn versions_without_a_name_are_not_quic() {
        let named = [0x1a2a_3a4a, 0xff00_0099, 0xface_b010, 0x5130_3436, 0x709a_50c4];
        for version in named {
            let kind = LongHeader::parse(&initial(version, 0xc0)).map(|h| h.kind);
            assert_eq!(kind, Some(Kind::Unreadable), "{version:x}");
        }
        for version in [2, 0xdead_beef, 0x8060_1234] {
            assert!(LongHeader::parse(&initial(version, 0xc0)).is_none(), "{version:x}");
        }
        assert!(LongHeader::parse(&initial(1, 0x40)).is_none(), "a short header");
        let mut long_id = initial(1, 0xc0);
        long_id[5] = 21;
        long_id.splice(6..8, [1; 21]);
        assert!(LongHeader::parse(&long_id).is_none());
    }
}
