//! TCP's header (RFC 9293, section 3.1).

use crate::base::Addr;
use crate::packet::DropReason;
use crate::packet::checksum::pseudo;
use crate::packet::field::{put_u16, put_u32, u16_at, u32_at};

/// IP protocol number.
pub const PROTOCOL: u8 = 6;
/// Without options.
pub const HEADER_LEN: usize = 20;
pub const HEADER_LEN_MAX: usize = 60;

/// Where the fields stand.
pub mod offset {
    pub const SOURCE_PORT: usize = 0;
    pub const DESTINATION_PORT: usize = 2;
    pub const SEQUENCE: usize = 4;
    pub const ACKNOWLEDGMENT: usize = 8;
    pub const DATA_OFFSET: usize = 12;
    pub const FLAGS: usize = 13;
    pub const WINDOW: usize = 14;
    pub const CHECKSUM: usize = 16;
    pub const URGENT: usize = 18;
}

/// Control bits.
pub mod flag {
    pub const FIN: u8 = 0x01;
    pub const SYN: u8 = 0x02;
    pub const RST: u8 = 0x04;
    pub const PSH: u8 = 0x08;
    pub const ACK: u8 = 0x10;
    pub const URG: u8 = 0x20;
    pub const ECE: u8 = 0x40;
    pub const CWR: u8 = 0x80;
}

/// Bit `n` is set where the control bits `n`, without PSH, ECE and CWR, may stand together: as
/// Linux's connection tracking has it (net/netfilter/nf_conntrack_proto_tcp.c, `tcp_valid_flags`).
const VALID_FLAGS: u64 = {
    use flag::{ACK, FIN, RST, SYN, URG};
    let valid =
        [SYN, SYN | URG, SYN | ACK, RST, RST | ACK, FIN | ACK, FIN | ACK | URG, ACK, ACK | URG];
    let mut bits = 0;
    let mut i = 0;
    while i < valid.len() {
        bits |= 1 << valid[i];
        i += 1;
    }
    bits
};

/// Whether a TCP would send these control bits together.
#[inline(always)]
pub const fn flags_valid(flags: u8) -> bool {
    VALID_FLAGS >> (flags & (flag::FIN | flag::SYN | flag::RST | flag::ACK | flag::URG)) & 1 != 0
}

/// A segment with a complete header.
#[derive(Clone, Copy, Debug)]
pub struct View<'a> {
    bytes: &'a [u8],
    header_len: usize,
}

impl<'a> View<'a> {
    /// `bytes` is the payload of the IP packet.
    ///
    /// # Errors
    /// `Truncated`, `BadTransportLength` where the data offset is below 5 words or beyond `bytes`,
    /// or `BadTcpFlags`.
    pub fn new_checked(bytes: &'a [u8]) -> Result<View<'a>, DropReason> {
        if bytes.len() < HEADER_LEN {
            return Err(DropReason::Truncated);
        }
        let header_len = usize::from(bytes[offset::DATA_OFFSET] >> 4) * 4;
        if header_len < HEADER_LEN || header_len > bytes.len() {
            return Err(DropReason::BadTransportLength);
        }
        if !flags_valid(bytes[offset::FLAGS]) {
            return Err(DropReason::BadTcpFlags);
        }
        Ok(View { bytes, header_len })
    }

    pub fn source_port(&self) -> u16 {
        u16_at(self.bytes, offset::SOURCE_PORT)
    }

    pub fn destination_port(&self) -> u16 {
        u16_at(self.bytes, offset::DESTINATION_PORT)
    }

    pub fn sequence(&self) -> u32 {
        u32_at(self.bytes, offset::SEQUENCE)
    }

    pub fn acknowledgment(&self) -> u32 {
        u32_at(self.bytes, offset::ACKNOWLEDGMENT)
    }

    /// Of [`flag`].
    pub fn flags(&self) -> u8 {
        self.bytes[offset::FLAGS]
    }

    /// Not scaled.
    pub fn window(&self) -> u16 {
        u16_at(self.bytes, offset::WINDOW)
    }

    pub fn urgent(&self) -> u16 {
        u16_at(self.bytes, offset::URGENT)
    }

    pub fn options(&self) -> &'a [u8] {
        &self.bytes[HEADER_LEN..self.header_len]
    }

    pub fn payload(&self) -> &'a [u8] {
        &self.bytes[self.header_len..]
    }

    pub fn checksum_ok(&self, src: Addr, dst: Addr) -> bool {
        pseudo(src, dst, PROTOCOL, self.bytes.len() as u16).bytes(self.bytes).verifies()
    }
}

/// A header to write.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Repr<'a> {
    pub source_port: u16,
    pub destination_port: u16,
    pub sequence: u32,
    pub acknowledgment: u32,
    /// Of [`flag`].
    pub flags: u8,
    pub window: u16,
    pub urgent: u16,
    /// Padded to whole words, 40 bytes at most.
    pub options: &'a [u8],
}

impl<'a> Repr<'a> {
    /// # Errors
    /// As [`View::new_checked`].
    pub fn parse(bytes: &'a [u8]) -> Result<Repr<'a>, DropReason> {
        let view = View::new_checked(bytes)?;
        Ok(Repr {
            source_port: view.source_port(),
            destination_port: view.destination_port(),
            sequence: view.sequence(),
            acknowledgment: view.acknowledgment(),
            flags: view.flags(),
            window: view.window(),
            urgent: view.urgent(),
            options: view.options(),
        })
    }

    /// Bytes of the header.
    pub fn len(&self) -> usize {
        HEADER_LEN + self.options.len()
    }

    pub fn is_empty(&self) -> bool {
        false
    }

    /// Writes the header before the payload that `segment` already holds, with its checksum.
    ///
    /// # Panics
    /// On fewer bytes than [`Repr::len`], options that are no whole words or over 40 bytes.
    pub fn emit(&self, segment: &mut [u8], src: Addr, dst: Addr) {
        let len = self.len();
        assert!(self.options.len().is_multiple_of(4) && len <= HEADER_LEN_MAX, "options");
        put_u16(segment, offset::SOURCE_PORT, self.source_port);
        put_u16(segment, offset::DESTINATION_PORT, self.destination_port);
        put_u32(segment, offset::SEQUENCE, self.sequence);
        put_u32(segment, offset::ACKNOWLEDGMENT, self.acknowledgment);
        segment[offset::DATA_OFFSET] = ((len / 4) << 4) as u8;
        segment[offset::FLAGS] = self.flags;
        put_u16(segment, offset::WINDOW, self.window);
        put_u16(segment, offset::CHECKSUM, 0);
        put_u16(segment, offset::URGENT, self.urgent);
        segment[HEADER_LEN..len].copy_from_slice(self.options);
        let total = segment.len().min(usize::from(u16::MAX)) as u16;
        let sum = pseudo(src, dst, PROTOCOL, total).bytes(segment).checksum();
        put_u16(segment, offset::CHECKSUM, sum);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SRC: Addr = Addr::v4(0xc000_0201);
    const DST: Addr = Addr::v4(0xc633_6401);

    #[test]
    fn round_trip() {
        let mss = [2, 4, 5, 0xb4];
        for options in [&[][..], &mss, &[1; 40]] {
            let repr = Repr {
                source_port: 40_000,
                destination_port: 443,
                sequence: 0x0102_0304,
                acknowledgment: 0xfffe_fdfc,
                flags: flag::ACK | flag::PSH,
                window: 0x7210,
                urgent: 9,
                options,
            };
            let mut bytes = vec![0x55; repr.len() + 5];
            repr.emit(&mut bytes, SRC, DST);
            assert_eq!(Repr::parse(&bytes), Ok(repr));
            let view = View::new_checked(&bytes).expect("valid");
            assert_eq!(view.payload(), [0x55; 5]);
            assert!(view.checksum_ok(SRC, DST));
            for cut in 0..repr.len() {
                assert!(View::new_checked(&bytes[..cut]).is_err(), "{cut}");
            }
        }
    }

    #[test]
    fn flag_combinations() {
        use flag::{ACK, CWR, ECE, FIN, PSH, RST, SYN, URG};
        for good in [SYN, SYN | ECE | CWR, SYN | ACK, ACK | PSH, FIN | ACK | PSH, RST, RST | ACK] {
            assert!(flags_valid(good), "{good:#x}");
        }
        for bad in [0, PSH, FIN, SYN | FIN, SYN | RST, FIN | RST, FIN | PSH | URG, URG, 0xff] {
            assert!(!flags_valid(bad), "{bad:#x}");
        }
    }

    #[test]
    fn data_offsets_are_checked() {
        for (words, ok) in [(0, false), (4, false), (5, true), (6, true), (7, false), (15, false)] {
            let mut bytes = [0; 24];
            bytes[offset::DATA_OFFSET] = words << 4;
            bytes[offset::FLAGS] = flag::ACK;
            let reason = View::new_checked(&bytes).err();
            assert_eq!(reason, (!ok).then_some(DropReason::BadTransportLength), "{words}");
        }
    }
}
