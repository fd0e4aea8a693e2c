//! IPv4 (RFC 791), options and fragments included.

use crate::base::Addr;
use crate::packet::DropReason;
use crate::packet::checksum::Sum;
use crate::packet::field::{addr4_at, put_u16, put_u32, u16_at};

/// Where the fields stand.
pub mod offset {
    pub const VERSION_IHL: usize = 0;
    pub const TOS: usize = 1;
    pub const TOTAL_LENGTH: usize = 2;
    pub const IDENTIFICATION: usize = 4;
    pub const FRAGMENT: usize = 6;
    pub const TTL: usize = 8;
    pub const PROTOCOL: usize = 9;
    pub const CHECKSUM: usize = 10;
    pub const SOURCE: usize = 12;
    pub const DESTINATION: usize = 16;
}

/// Without options.
pub const HEADER_LEN: usize = 20;
pub const HEADER_LEN_MAX: usize = 60;
pub const DONT_FRAGMENT: u16 = 0x4000;
pub const MORE_FRAGMENTS: u16 = 0x2000;
/// Of the fragment field: the offset in units of eight bytes.
pub const OFFSET_MASK: u16 = 0x1fff;

/// A packet with a complete, intact header and all the bytes it announces.
#[derive(Clone, Copy, Debug)]
pub struct View<'a> {
    bytes: &'a [u8],
    header_len: usize,
}

impl<'a> View<'a> {
    /// Link padding behind the packet is allowed and cut off.
    ///
    /// # Errors
    /// `Truncated`, `BadIpVersion`, `BadIpHeaderLength`, `BadIpLength` or `BadIpChecksum`.
    pub fn new_checked(bytes: &'a [u8]) -> Result<View<'a>, DropReason> {
        if bytes.len() < HEADER_LEN {
            return Err(DropReason::Truncated);
        }
        if bytes[0] >> 4 != 4 {
            return Err(DropReason::BadIpVersion);
        }
        let header_len = usize::from(bytes[0] & 15) * 4;
        let total = usize::from(u16_at(bytes, offset::TOTAL_LENGTH));
        if header_len < HEADER_LEN || header_len > total {
            return Err(DropReason::BadIpHeaderLength);
        }
        if header_len > bytes.len() {
            return Err(DropReason::Truncated);
        }
        if total > bytes.len() {
            return Err(DropReason::BadIpLength);
        }
        if !Sum::of(&bytes[..header_len]).verifies() {
            return Err(DropReason::BadIpChecksum);
        }
        Ok(View { bytes: &bytes[..total], header_len })
    }

    pub fn tos(&self) -> u8 {
        self.bytes[offset::TOS]
    }

    /// Bytes of header and payload.
    pub fn total_len(&self) -> usize {
        self.bytes.len()
    }

    pub fn identification(&self) -> u16 {
        u16_at(self.bytes, offset::IDENTIFICATION)
    }

    pub fn dont_fragment(&self) -> bool {
        u16_at(self.bytes, offset::FRAGMENT) & DONT_FRAGMENT != 0
    }

    pub fn more_fragments(&self) -> bool {
        u16_at(self.bytes, offset::FRAGMENT) & MORE_FRAGMENTS != 0
    }

    /// Where this fragment's payload stands in the whole one, in units of eight bytes.
    pub fn fragment_offset(&self) -> u16 {
        u16_at(self.bytes, offset::FRAGMENT) & OFFSET_MASK
    }

    pub fn ttl(&self) -> u8 {
        self.bytes[offset::TTL]
    }

    pub fn protocol(&self) -> u8 {
        self.bytes[offset::PROTOCOL]
    }

    pub fn source(&self) -> Addr {
        addr4_at(self.bytes, offset::SOURCE)
    }

    pub fn destination(&self) -> Addr {
        addr4_at(self.bytes, offset::DESTINATION)
    }

    pub fn options(&self) -> &'a [u8] {
        &self.bytes[HEADER_LEN..self.header_len]
    }

    pub fn payload(&self) -> &'a [u8] {
        &self.bytes[self.header_len..]
    }
}

/// A header to write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Repr<'a> {
    pub tos: u8,
    pub payload_len: u16,
    pub identification: u16,
    /// Flags and offset: [`DONT_FRAGMENT`], [`MORE_FRAGMENTS`], [`OFFSET_MASK`].
    pub fragment: u16,
    pub ttl: u8,
    pub protocol: u8,
    pub source: Addr,
    pub destination: Addr,
    /// Padded to whole words, 40 bytes at most.
    pub options: &'a [u8],
}

impl<'a> Repr<'a> {
    /// # Errors
    /// As [`View::new_checked`].
    pub fn parse(bytes: &'a [u8]) -> Result<Repr<'a>, DropReason> {
        let view = View::new_checked(bytes)?;
        Ok(Repr {
            tos: view.tos(),
            payload_len: view.payload().len() as u16,
            identification: view.identification(),
            fragment: u16_at(bytes, offset::FRAGMENT),
            ttl: view.ttl(),
            protocol: view.protocol(),
            source: view.source(),
            destination: view.destination(),
            options: view.options(),
        })
    }

    /// Bytes that [`Repr::emit`] writes.
    pub fn len(&self) -> usize {
        HEADER_LEN + self.options.len()
    }

    pub fn is_empty(&self) -> bool {
        false
    }

    /// Writes the header with its checksum.
    ///
    /// # Panics
    /// On fewer bytes than [`Repr::len`], options that are no whole words or over 40 bytes.
    pub fn emit(&self, bytes: &mut [u8]) {
        let len = self.len();
        assert!(self.options.len().is_multiple_of(4) && len <= HEADER_LEN_MAX, "options");
        bytes[offset::VERSION_IHL] = 0x40 | (len / 4) as u8;
        bytes[offset::TOS] = self.tos;
        put_u16(bytes, offset::TOTAL_LENGTH, (len as u16).saturating_add(self.payload_len));
        put_u16(bytes, offset::IDENTIFICATION, self.identification);
        put_u16(bytes, offset::FRAGMENT, self.fragment);
        bytes[offset::TTL] = self.ttl;
        bytes[offset::PROTOCOL] = self.protocol;
        put_u16(bytes, offset::CHECKSUM, 0);
        put_u32(bytes, offset::SOURCE, self.source.v4_bits());
        put_u32(bytes, offset::DESTINATION, self.destination.v4_bits());
        bytes[HEADER_LEN..len].copy_from_slice(self.options);
        let sum = Sum::of(&bytes[..len]).checksum();
        put_u16(bytes, offset::CHECKSUM, sum);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn repr(options: &[u8]) -> Repr<'_> {
        Repr {
            tos: 0xb8,
            payload_len: 4,
            identification: 0x1234,
            fragment: MORE_FRAGMENTS | 185,
            ttl: 64,
            protocol: 17,
            source: Addr::v4(0xc000_0201),
            destination: Addr::v4(0xc000_0202),
            options,
        }
    }

    #[test]
    fn round_trip_with_and_without_options() {
        for options in [&[][..], &[7, 7, 4, 0, 0, 0, 0, 0], &[1; 40]] {
            let repr = repr(options);
            let mut bytes = vec![0xee; repr.len() + 4 + 6]; // payload, then link padding
            repr.emit(&mut bytes);
            assert_eq!(Repr::parse(&bytes), Ok(repr));
            assert_eq!(View::new_checked(&bytes).map(|v| v.payload().len()), Ok(4));
            for cut in 0..repr.len() {
                assert_eq!(Repr::parse(&bytes[..cut]), Err(DropReason::Truncated), "{cut}");
            }
        }
    }

    #[test]
    fn each_broken_field_has_its_reason() {
        let repr = repr(&[]);
        let mut good = vec![0; repr.len() + 4];
        repr.emit(&mut good);
        for (at, value, reason) in [
            (0, 0x65, DropReason::BadIpVersion),
            (0, 0x44, DropReason::BadIpHeaderLength),
            (0, 0x4f, DropReason::BadIpHeaderLength),
            (3, 19, DropReason::BadIpHeaderLength),
            (3, 25, DropReason::BadIpLength),
            (8, 63, DropReason::BadIpChecksum),
            (10, 0, DropReason::BadIpChecksum),
        ] {
            let mut bytes = good.clone();
            bytes[at] = value;
            assert_eq!(Repr::parse(&bytes), Err(reason), "byte {at} = {value:#x}");
        }
    }
}
