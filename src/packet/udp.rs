//! UDP (RFC 768).

use crate::base::Addr;
use crate::packet::DropReason;
use crate::packet::checksum::pseudo;
use crate::packet::field::{put_u16, u16_at};

/// IP protocol number.
pub const PROTOCOL: u8 = 17;
pub const HEADER_LEN: usize = 8;

/// Where the fields stand.
pub mod offset {
    pub const SOURCE_PORT: usize = 0;
    pub const DESTINATION_PORT: usize = 2;
    pub const LENGTH: usize = 4;
    pub const CHECKSUM: usize = 6;
}

/// A whole datagram, not a fragment of one.
#[derive(Clone, Copy, Debug)]
pub struct View<'a>(&'a [u8]);

impl<'a> View<'a> {
    /// `bytes` is the payload of the IP packet; what it holds beyond the UDP length is cut off.
    ///
    /// # Errors
    /// `Truncated`, or `BadTransportLength` where the length field exceeds `bytes` or is below 8.
    pub fn new_checked(bytes: &'a [u8]) -> Result<View<'a>, DropReason> {
        if bytes.len() < HEADER_LEN {
            return Err(DropReason::Truncated);
        }
        let len = usize::from(u16_at(bytes, offset::LENGTH));
        if len < HEADER_LEN || len > bytes.len() {
            return Err(DropReason::BadTransportLength);
        }
        Ok(View(&bytes[..len]))
    }

    pub fn source_port(&self) -> u16 {
        u16_at(self.0, offset::SOURCE_PORT)
    }

    pub fn destination_port(&self) -> u16 {
        u16_at(self.0, offset::DESTINATION_PORT)
    }

    /// 0: the sender made none.
    pub fn checksum(&self) -> u16 {
        u16_at(self.0, offset::CHECKSUM)
    }

    pub fn payload(&self) -> &'a [u8] {
        &self.0[HEADER_LEN..]
    }

    /// Whether the checksum is right, or absent.
    pub fn checksum_ok(&self, src: Addr, dst: Addr) -> bool {
        self.checksum() == 0
            || pseudo(src, dst, PROTOCOL, self.0.len() as u16).bytes(self.0).verifies()
    }
}

/// A header to write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Repr {
    pub source_port: u16,
    pub destination_port: u16,
}

impl Repr {
    /// # Errors
    /// As [`View::new_checked`].
    pub fn parse(bytes: &[u8]) -> Result<Repr, DropReason> {
        let view = View::new_checked(bytes)?;
        Ok(Repr { source_port: view.source_port(), destination_port: view.destination_port() })
    }

    /// Writes the header before the payload that `datagram` already holds, with its checksum.
    ///
    /// # Panics
    /// On fewer than [`HEADER_LEN`] bytes.
    pub fn emit(&self, datagram: &mut [u8], src: Addr, dst: Addr) {
        let len = datagram.len().min(usize::from(u16::MAX)) as u16;
        put_u16(datagram, offset::SOURCE_PORT, self.source_port);
        put_u16(datagram, offset::DESTINATION_PORT, self.destination_port);
        put_u16(datagram, offset::LENGTH, len);
        put_u16(datagram, offset::CHECKSUM, 0);
        let sum = pseudo(src, dst, PROTOCOL, len).bytes(datagram).checksum();
        put_u16(datagram, offset::CHECKSUM, if sum == 0 { 0xffff } else { sum });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SRC: Addr = Addr::v4(0xc000_0201);
    const DST: Addr = Addr::v4(0xc633_6401);

    #[test]
    fn round_trip() {
        let repr = Repr { source_port: 4000, destination_port: 443 };
        let mut bytes = *b"________payload";
        repr.emit(&mut bytes, SRC, DST);
        assert_eq!(Repr::parse(&bytes), Ok(repr));
        let view = View::new_checked(&bytes).expect("valid");
        assert_eq!(view.payload(), b"payload");
        assert!(view.checksum_ok(SRC, DST));
        bytes[10] ^= 1;
        assert!(!View::new_checked(&bytes).expect("valid").checksum_ok(SRC, DST));
        for cut in 0..bytes.len() {
            assert!(View::new_checked(&bytes[..cut]).is_err(), "{cut}");
        }
    }

    #[test]
    fn lengths_are_checked() {
        for (len, ok) in [(7, false), (8, true), (12, true), (13, false)] {
            let mut bytes = [0; 12];
            put_u16(&mut bytes, offset::LENGTH, len);
            let reason = View::new_checked(&bytes).err();
            assert_eq!(reason, (!ok).then_some(DropReason::BadTransportLength), "{len}");
        }
    }

    /// A sum that comes out as 0 is sent as 0xffff.
    #[test]
    fn the_zero_checksum() {
        let repr = Repr { source_port: 1, destination_port: 2 };
        let mut bytes = [0; 10];
        repr.emit(&mut bytes, SRC, DST);
        let sum = u16_at(&bytes, offset::CHECKSUM);
        put_u16(&mut bytes, 8, sum); // adding the checksum to the data brings the sum to 0
        repr.emit(&mut bytes, SRC, DST);
        assert_eq!(u16_at(&bytes, offset::CHECKSUM), 0xffff);
        assert!(View::new_checked(&bytes).expect("valid").checksum_ok(SRC, DST));
    }
}
