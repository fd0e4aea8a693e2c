//! The blocks of pcapng (draft-ietf-opsawg-pcapng): sections, interfaces, packets.

use super::file::{Captured, Input, ReadError};
use super::link::Link;

/// Interfaces of a section that are known; packets of later ones are taken for damage.
const INTERFACES_MAX: usize = 4_096;

const SECTION: u32 = 0x0a0d_0d0a;
const INTERFACE: u32 = 1;
const OLD_PACKET: u32 = 2;
const SIMPLE_PACKET: u32 = 3;
const ENHANCED_PACKET: u32 = 6;

const BYTE_ORDER: u32 = 0x1a2b_3c4d;
/// A block's type and length, and the length once more at its end.
const FRAME_BYTES: usize = 12;

#[derive(Default)]
pub(super) struct Pcapng {
    interfaces: Vec<Interface>,
}

#[derive(Clone, Copy)]
struct Interface {
    link: Link,
    /// Bytes captured of a packet at most; 0: no limit.
    snap: usize,
}

impl Pcapng {
    pub(super) const MAGIC: [u8; 4] = SECTION.to_be_bytes();

    /// Reads the first section's header behind its type.
    pub(super) fn begin(input: &mut Input) -> Result<Pcapng, ReadError> {
        let mut pcapng = Pcapng::default();
        pcapng.section(input, &mut Vec::new())?;
        Ok(pcapng)
    }

    pub(super) fn next<'a>(
        &mut self,
        input: &mut Input,
        record: &'a mut Vec<u8>,
    ) -> Result<Option<Captured<'a>>, ReadError> {
        let (link, from, len) = loop {
            let mut kind = [0; 4];
            if !input.read_or_end(&mut kind)? {
                return Ok(None);
            }
            if kind == Pcapng::MAGIC {
                self.section(input, record)?;
                continue;
            }
            let mut len = [0; 4];
            input.read(&mut len)?;
            let len = input.u32(&len, 0) as usize;
            self.body(input, record, len)?;
            if let Some(packet) = self.block(input, input.u32(&kind, 0), record)? {
                break packet;
            }
        };
        let bytes = record.get(from..from + len);
        let bytes = bytes.ok_or(ReadError::Damaged("a packet is longer than its block"))?;
        Ok(Some(Captured { link, bytes }))
    }

    /// A section's header, behind its type: it tells the byte order of all that follow.
    fn section(&mut self, input: &mut Input, record: &mut Vec<u8>) -> Result<(), ReadError> {
        let mut head = [0; 8];
        input.read(&mut head)?;
        input.big_endian = false;
        if input.u32(&head, 4) != BYTE_ORDER {
            input.big_endian = true;
            if input.u32(&head, 4) != BYTE_ORDER {
                return Err(ReadError::Damaged("a section without byte order"));
            }
        }
        self.interfaces.clear();
        // The byte order was read.
        let len = (input.u32(&head, 0) as usize).saturating_sub(4);
        self.body(input, record, len)
    }

    /// What a block holds behind its type and length.
    fn body(
        &self,
        input: &mut Input,
        record: &mut Vec<u8>,
        block_len: usize,
    ) -> Result<(), ReadError> {
        let len = block_len.checked_sub(FRAME_BYTES).ok_or(ReadError::Damaged("a short block"))?;
        input.read_into(record, len.next_multiple_of(4))?;
        input.read(&mut [0; 4])
    }

    /// Where a packet lies in its block; `None` for other blocks.
    fn block(
        &mut self,
        input: &Input,
        kind: u32,
        body: &[u8],
    ) -> Result<Option<(Link, usize, usize)>, ReadError> {
        let short = ReadError::Damaged("a short block");
        let number =
            |at: usize| body.get(at..at + 4).map_or(0, |field| input.u32(field, 0)) as usize;
        let half = |at: usize| body.get(at..at + 2).map_or(0, |field| input.u16(field, 0));
        let (interface, from, len) = match kind {
            INTERFACE if body.len() < 8 || self.interfaces.len() == INTERFACES_MAX => {
                return Err(ReadError::Damaged("an interface too many or too short"));
            }
            INTERFACE => {
                let link = Link(u32::from(half(0)));
                self.interfaces.push(Interface { link, snap: number(4) });
                return Ok(None);
            }
            ENHANCED_PACKET if body.len() >= 20 => (number(0), 20, number(12)),
            OLD_PACKET if body.len() >= 20 => (usize::from(half(0)), 20, number(12)),
            SIMPLE_PACKET if body.len() >= 4 => {
                let snap = self.interfaces.first().map_or(0, |i| i.snap);
                let limit = if snap == 0 { usize::MAX } else { snap };
                (0, 4, number(0).min(body.len() - 4).min(limit))
            }
            ENHANCED_PACKET | OLD_PACKET | SIMPLE_PACKET => return Err(short),
            _ => return Ok(None),
        };
        let known = self.interfaces.get(interface);
        let known = known.ok_or(ReadError::Damaged("a packet of an unknown interface"))?;
        Ok(Some((known.link, from, len)))
    }
}

#[cfg(test)]
mod tests {
    use std::io::Cursor;

    use super::*;
    use crate::capture::file::CaptureFile;

    fn block(kind: u32, body: &[u8], big_endian: bool) -> Vec<u8> {
        let number = |n: u32| if big_endian { n.to_be_bytes() } else { n.to_le_bytes() };
        let mut padded = body.to_vec();
        padded.resize(body.len().next_multiple_of(4), 0);
        let len = number((padded.len() + FRAME_BYTES) as u32);
        [&number(kind)[..], &len, &padded, &len].concat()
    }

    fn words(numbers: &[u32], big_endian: bool) -> Vec<u8> {
        let number = |&n: &u32| if big_endian { n.to_be_bytes() } else { n.to_le_bytes() };
        numbers.iter().flat_map(number).collect()
    }

    fn section(big_endian: bool) -> Vec<u8> {
        block(SECTION, &words(&[BYTE_ORDER, 1, u32::MAX, u32::MAX], big_endian), big_endian)
    }

    fn interface(link: u16, big_endian: bool) -> Vec<u8> {
        let link = if big_endian { link.to_be_bytes() } else { link.to_le_bytes() };
        let body = [&link[..], &[0, 0], &words(&[0], big_endian)].concat();
        block(INTERFACE, &body, big_endian)
    }

    fn packet(interface: u32, data: &[u8], big_endian: bool) -> Vec<u8> {
        let len = data.len() as u32;
        let body = [&words(&[interface, 0, 0, len, len], big_endian)[..], data].concat();
        block(ENHANCED_PACKET, &body, big_endian)
    }

    fn read(bytes: Vec<u8>) -> Result<Vec<(u32, Vec<u8>)>, ReadError> {
        let mut file = CaptureFile::new(Cursor::new(bytes))?;
        let mut got = Vec::new();
        while let Some(packet) = file.next_packet()? {
            got.push((packet.link.0, packet.bytes.to_vec()));
        }
        Ok(got)
    }

    #[test]
    fn sections_of_both_byte_orders_and_several_interfaces() {
        let mut file = Vec::new();
        for big_endian in [false, true] {
            file.extend(section(big_endian));
            file.extend(interface(1, big_endian));
            file.extend(block(5, &[1, 2, 3], big_endian));
            file.extend(interface(113, big_endian));
            file.extend(packet(1, b"abc", big_endian));
            let simple = [&words(&[2], big_endian)[..], b"de"].concat();
            file.extend(block(SIMPLE_PACKET, &simple, big_endian));
        }
        let once = [(113, b"abc".to_vec()), (1, b"de".to_vec())];
        assert_eq!(read(file).expect("sound"), [&once[..], &once].concat());
    }

    #[test]
    fn damage_is_told() {
        let good = [section(false), interface(1, false), packet(0, b"abc", false)].concat();
        assert_eq!(read(good.clone()).expect("sound").len(), 1);
        assert!(matches!(read(good[..good.len() - 2].to_vec()), Err(ReadError::Truncated)));
        let unknown = [section(false), packet(0, b"abc", false)].concat();
        assert!(matches!(read(unknown), Err(ReadError::Damaged(_))));
        let mut long = good;
        let at = long.len() - 16;
        long[at] = 200;
        assert!(matches!(read(long), Err(ReadError::Damaged(_))));
    }
}
