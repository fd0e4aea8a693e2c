//! IPv6 (RFC 8200) and its extension headers.

use crate::base::Addr;
use crate::packet::DropReason;
use crate::packet::field::{addr6_at, put_u16, put_u32, u16_at, u32_at};

/// Where the fields stand.
pub mod offset {
    pub const VERSION_CLASS_LABEL: usize = 0;
    pub const PAYLOAD_LENGTH: usize = 4;
    pub const NEXT_HEADER: usize = 6;
    pub const HOP_LIMIT: usize = 7;
    pub const SOURCE: usize = 8;
    pub const DESTINATION: usize = 24;
}

pub const HEADER_LEN: usize = 40;
/// Extension headers that are followed. RFC 8200 foresees each kind once, destination options
/// twice: six in all.
pub const EXTENSION_HEADERS_MAX: usize = 8;

/// Extension header kinds: IP protocol numbers.
pub mod extension {
    pub const HOP_BY_HOP: u8 = 0;
    pub const ROUTING: u8 = 43;
    pub const FRAGMENT: u8 = 44;
    pub const AUTHENTICATION: u8 = 51;
    pub const DESTINATION_OPTIONS: u8 = 60;
    /// Nothing follows.
    pub const NONE: u8 = 59;
}

/// What a walk over the extension headers found.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Upper {
    /// The protocol behind them.
    pub protocol: u8,
    /// Where it begins, in bytes from the first byte walked over.
    pub at: usize,
    /// A fragment header's fields, unless it makes the packet an "atomic fragment" (RFC 6946),
    /// which is whole.
    pub fragment: Option<Fragment>,
    /// A routing header names further destinations: checksums cover the last of them, not the one
    /// in the IP header.
    pub source_routed: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fragment {
    /// In units of eight bytes.
    pub offset: u16,
    pub more: bool,
    pub identification: u32,
    /// Where what is fragmented begins, as [`Upper::at`]: before the extension headers that belong
    /// to it.
    pub behind: usize,
}

/// Follows extension headers from the start of `payload`, the first of kind `next`. Stops behind
/// the fragment header of a later fragment, whose contents are the middle of something.
///
/// # Errors
/// `Truncated` where one is incomplete; `BadExtensionHeader` on more than
/// [`EXTENSION_HEADERS_MAX`], hop-by-hop options that are not first, a second fragment header, or
/// the routing type 0 that RFC 5095 forbids.
pub fn follow(payload: &[u8], next: u8) -> Result<Upper, DropReason> {
    let mut upper = Upper { protocol: next, ..Upper::default() };
    let mut fragmented = false;
    for count in 0..=EXTENSION_HEADERS_MAX {
        let kind = upper.protocol;
        if !is_extension(kind) {
            return Ok(upper);
        }
        if count == EXTENSION_HEADERS_MAX || kind == extension::HOP_BY_HOP && count > 0 {
            break;
        }
        let rest = payload.get(upper.at..).unwrap_or(&[]);
        let Some(head) = rest.first_chunk::<8>() else { return Err(DropReason::Truncated) };
        let len = match kind {
            extension::FRAGMENT => 8,
            extension::AUTHENTICATION => (usize::from(head[1]) + 2) * 4,
            _ => (usize::from(head[1]) + 1) * 8,
        };
        if rest.len() < len {
            return Err(DropReason::Truncated);
        }
        upper.protocol = head[0];
        upper.at += len;
        match kind {
            extension::ROUTING if head[3] != 0 => {
                if head[2] == 0 {
                    break;
                }
                upper.source_routed = true;
            }
            extension::FRAGMENT => {
                if std::mem::replace(&mut fragmented, true) {
                    break;
                }
                let field = u16_at(head, 2);
                let (offset, more) = (field >> 3, field & 1 != 0);
                if offset != 0 || more {
                    let identification = u32_at(head, 4);
                    upper.fragment =
                        Some(Fragment { offset, more, identification, behind: upper.at });
                }
                if offset != 0 {
                    return Ok(upper);
                }
            }
            _ => {}
        }
    }
    Err(DropReason::BadExtensionHeader)
}

/// Whether a next header is one that [`follow`] walks over. ESP hides what follows it; mobility,
/// HIP and shim6 headers are rare enough to be opaque.
#[inline(always)]
pub const fn is_extension(kind: u8) -> bool {
    matches!(
        kind,
        extension::HOP_BY_HOP
            | extension::ROUTING
            | extension::FRAGMENT
            | extension::AUTHENTICATION
            | extension::DESTINATION_OPTIONS
    )
}

/// A packet with a complete header and all the bytes it announces.
#[derive(Clone, Copy, Debug)]
pub struct View<'a>(&'a [u8]);

impl<'a> View<'a> {
    /// Link padding behind the packet is allowed and cut off.
    ///
    /// # Errors
    /// `Truncated`, `BadIpVersion` or `BadIpLength`.
    pub fn new_checked(bytes: &'a [u8]) -> Result<View<'a>, DropReason> {
        if bytes.len() < HEADER_LEN {
            return Err(DropReason::Truncated);
        }
        if bytes[0] >> 4 != 6 {
            return Err(DropReason::BadIpVersion);
        }
        let total = HEADER_LEN + usize::from(u16_at(bytes, offset::PAYLOAD_LENGTH));
        if total > bytes.len() {
            return Err(DropReason::BadIpLength);
        }
        Ok(View(&bytes[..total]))
    }

    pub fn traffic_class(&self) -> u8 {
        (u16_at(self.0, 0) >> 4) as u8
    }

    pub fn flow_label(&self) -> u32 {
        u32_at(self.0, 0) & 0xf_ffff
    }

    pub fn next_header(&self) -> u8 {
        self.0[offset::NEXT_HEADER]
    }

    pub fn hop_limit(&self) -> u8 {
        self.0[offset::HOP_LIMIT]
    }

    pub fn source(&self) -> Addr {
        addr6_at(self.0, offset::SOURCE)
    }

    pub fn destination(&self) -> Addr {
        addr6_at(self.0, offset::DESTINATION)
    }

    /// Extension headers and what follows them.
    pub fn payload(&self) -> &'a [u8] {
        &self.0[HEADER_LEN..]
    }

    /// # Errors
    /// As [`follow`].
    pub fn upper(&self) -> Result<Upper, DropReason> {
        follow(self.payload(), self.next_header())
    }
}

/// A header to write, without extension headers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Repr {
    pub traffic_class: u8,
    /// 20 bits.
    pub flow_label: u32,
    /// Extension headers and what follows them.
    pub payload_len: u16,
    pub next_header: u8,
    pub hop_limit: u8,
    pub source: Addr,
    pub destination: Addr,
}

impl Repr {
    /// # Errors
    /// As [`View::new_checked`].
    pub fn parse(bytes: &[u8]) -> Result<Repr, DropReason> {
        let view = View::new_checked(bytes)?;
        Ok(Repr {
            traffic_class: view.traffic_class(),
            flow_label: view.flow_label(),
            payload_len: view.payload().len() as u16,
            next_header: view.next_header(),
            hop_limit: view.hop_limit(),
            source: view.source(),
            destination: view.destination(),
        })
    }

    /// # Panics
    /// On fewer than [`HEADER_LEN`] bytes.
    pub fn emit(&self, bytes: &mut [u8]) {
        let word = 6 << 28 | u32::from(self.traffic_class) << 20 | self.flow_label & 0xf_ffff;
        put_u32(bytes, offset::VERSION_CLASS_LABEL, word);
        put_u16(bytes, offset::PAYLOAD_LENGTH, self.payload_len);
        bytes[offset::NEXT_HEADER] = self.next_header;
        bytes[offset::HOP_LIMIT] = self.hop_limit;
        bytes[offset::SOURCE..offset::DESTINATION].copy_from_slice(&self.source.to_bytes());
        bytes[offset::DESTINATION..HEADER_LEN].copy_from_slice(&self.destination.to_bytes());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn round_trip() {
        let repr = Repr {
            traffic_class: 0xb9,
            flow_label: 0xf_1234,
            payload_len: 3,
            next_header: 17,
            hop_limit: 64,
            source: Addr::from_v6_bytes([0x20; 16]),
            destination: Addr::from_v6_bytes([0x21; 16]),
        };
        let mut bytes = [0; HEADER_LEN + 3];
        repr.emit(&mut bytes);
        assert_eq!(Repr::parse(&bytes), Ok(repr));
        for cut in 0..bytes.len() {
            let reason =
                if cut < HEADER_LEN { DropReason::Truncated } else { DropReason::BadIpLength };
            assert_eq!(Repr::parse(&bytes[..cut]), Err(reason), "{cut}");
        }
        bytes[0] = 0x45;
        assert_eq!(Repr::parse(&bytes), Err(DropReason::BadIpVersion));
    }

    /// `count` destination option headers, then `last`.
    fn chain(count: usize, last: u8) -> Vec<u8> {
        let mut bytes = Vec::new();
        for i in 0..count {
            let next = if i + 1 == count { last } else { extension::DESTINATION_OPTIONS };
            bytes.extend_from_slice(&[next, 0, 1, 4, 0, 0, 0, 0]);
        }
        bytes
    }

    #[test]
    fn a_bounded_number_of_headers_is_followed() {
        let most = chain(EXTENSION_HEADERS_MAX, 6);
        let upper = follow(&most, extension::DESTINATION_OPTIONS).expect("as many as allowed");
        assert_eq!((upper.protocol, upper.at), (6, 8 * EXTENSION_HEADERS_MAX));
        let more = chain(EXTENSION_HEADERS_MAX + 1, 6);
        let reason = follow(&more, extension::DESTINATION_OPTIONS);
        assert_eq!(reason, Err(DropReason::BadExtensionHeader));
        let late = chain(2, extension::HOP_BY_HOP);
        let reason = follow(&late, extension::DESTINATION_OPTIONS);
        assert_eq!(reason, Err(DropReason::BadExtensionHeader));
        for cut in 0..most.len() {
            let reason = follow(&most[..cut], extension::DESTINATION_OPTIONS);
            assert_eq!(reason, Err(DropReason::Truncated), "{cut}");
        }
    }

    #[test]
    fn fragments_routing_and_authentication() {
        let first = [17, 0, 0, 1, 0, 0, 0, 9];
        let fragment = Fragment { offset: 0, more: true, identification: 9, behind: 8 };
        let upper = follow(&first, extension::FRAGMENT).expect("first fragment");
        assert_eq!((upper.protocol, upper.at, upper.fragment), (17, 8, Some(fragment)));

        let atomic = [17, 0, 0, 0, 0, 0, 0, 9];
        let upper = follow(&atomic, extension::FRAGMENT).expect("atomic fragment");
        assert_eq!((upper.protocol, upper.fragment), (17, None));

        // The next header of a later fragment is not walked into, whatever it is.
        let later = [extension::DESTINATION_OPTIONS, 0, 0, 8, 0, 0, 0, 9];
        let upper = follow(&later, extension::FRAGMENT).expect("later fragment");
        assert_eq!(upper.protocol, extension::DESTINATION_OPTIONS);
        assert_eq!(upper.fragment.map(|f| (f.offset, f.more)), Some((1, false)));

        let twice = [[extension::FRAGMENT, 0, 0, 1, 0, 0, 0, 9], first].concat();
        let reason = follow(&twice, extension::FRAGMENT);
        assert_eq!(reason, Err(DropReason::BadExtensionHeader));

        let routing = |kind, left| [6, 0, kind, left, 0, 0, 0, 0];
        assert!(follow(&routing(4, 1), extension::ROUTING).expect("segments").source_routed);
        assert!(!follow(&routing(0, 0), extension::ROUTING).expect("arrived").source_routed);
        let reason = follow(&routing(0, 1), extension::ROUTING);
        assert_eq!(reason, Err(DropReason::BadExtensionHeader));

        let mut ah = [0; 24];
        (ah[0], ah[1]) = (17, 4);
        let upper = follow(&ah, extension::AUTHENTICATION).expect("authentication header");
        assert_eq!((upper.protocol, upper.at), (17, 24));
    }
}
