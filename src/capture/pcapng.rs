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

/// An option of interfaces, and what it is where it is left out.
const TIME_RESOLUTION: u16 = 9;
const TICKS_PER_SECOND: u64 = 1_000_000;

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
    /// Of its packets' times.
    ticks_per_second: u64,
}

/// A packet's place in its block.
struct Placed {
    link: Link,
    at_ns: u64,
    len: u32,
    from: usize,
    captured: usize,
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
        let Placed { link, at_ns, len, from, captured } = loop {
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
        let bytes = record.get(from..from + captured);
        let bytes = bytes.ok_or(ReadError::Damaged("a packet is longer than its block"))?;
        Ok(Some(Captured { link, at_ns, len, bytes }))
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
    ) -> Result<Option<Placed>, ReadError> {
        let short = ReadError::Damaged("a short block");
        let number =
            |at: usize| body.get(at..at + 4).map_or(0, |field| input.u32(field, 0)) as usize;
        let half = |at: usize| body.get(at..at + 2).map_or(0, |field| input.u16(field, 0));
        let time = || (number(4) as u64) << 32 | number(8) as u64;
        let (interface, ticks, from, captured, len) = match kind {
            INTERFACE if body.len() < 8 || self.interfaces.len() == INTERFACES_MAX => {
                return Err(ReadError::Damaged("an interface too many or too short"));
            }
            INTERFACE => {
                let link = Link(u32::from(half(0)));
                let ticks_per_second = ticks_per_second(input, &body[8..])?;
                self.interfaces.push(Interface { link, snap: number(4), ticks_per_second });
                return Ok(None);
            }
            ENHANCED_PACKET if body.len() >= 20 => (number(0), time(), 20, number(12), number(16)),
            OLD_PACKET if body.len() >= 20 => {
                (usize::from(half(0)), time(), 20, number(12), number(16))
            }
            SIMPLE_PACKET if body.len() >= 4 => {
                let snap = self.interfaces.first().map_or(0, |i| i.snap);
                let limit = if snap == 0 { usize::MAX } else { snap };
                (0, 0, 4, number(0).min(body.len() - 4).min(limit), number(0))
            }
            ENHANCED_PACKET | OLD_PACKET | SIMPLE_PACKET => return Err(short),
            _ => return Ok(None),
        };
        let known = self.interfaces.get(interface);
        let known = known.ok_or(ReadError::Damaged("a packet of an unknown interface"))?;
        let at_ns = u128::from(ticks) * 1_000_000_000 / u128::from(known.ticks_per_second);
        let at_ns = u64::try_from(at_ns).unwrap_or(u64::MAX);
        let len = u32::try_from(len).unwrap_or(u32::MAX);
        Ok(Some(Placed { link: known.link, at_ns, len, from, captured }))
    }
}

/// An interface's resolution of time, from its options: a negative power of ten, or of two.
fn ticks_per_second(input: &Input, mut options: &[u8]) -> Result<u64, ReadError> {
    while let [_, _, _, _, rest @ ..] = options {
        let (code, len) = (input.u16(options, 0), usize::from(input.u16(options, 2)));
        match (code, rest.first()) {
            (0, _) => break,
            (TIME_RESOLUTION, Some(power)) => {
                let (base, power) = (if power & 0x80 == 0 { 10u64 } else { 2 }, power & 0x7f);
                let bad = ReadError::Damaged("an interface with an impossible clock");
                return base.checked_pow(u32::from(power)).ok_or(bad);
            }
            _ => options = rest.get(len.next_multiple_of(4)..).unwrap_or_default(),
        }
    }
    Ok(TICKS_PER_SECOND)
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
    fn times_are_in_the_interfaces_steps() {
        let cases =
            [(None, 5_000_007_000), (Some(9), 5_000_007), (Some(3), u64::MAX), (Some(0x94), 0)];
        for (resolution, want) in cases {
            let ticks: u64 = match resolution {
                None | Some(9) => 5_000_007,
                Some(0x94) => 1 << 19,
                _ => u64::MAX,
            };
            let options = resolution.map_or(Vec::new(), |r: u8| {
                [&[1, 0, 1, 0, b'x', 0, 0, 0][..], &[9, 0, 1, 0, r, 0, 0, 0]].concat()
            });
            let interface =
                block(INTERFACE, &[&[1, 0, 0, 0, 0, 0, 0, 0][..], &options].concat(), false);
            let body = words(&[0, (ticks >> 32) as u32, ticks as u32, 1, 77, 0], false);
            let file = [section(false), interface, block(ENHANCED_PACKET, &body, false)].concat();
            let mut file = CaptureFile::new(Cursor::new(file)).expect("a capture");
            let packet = file.next_packet().expect("sound").expect("a packet");
            let want = if resolution == Some(0x94) { 500_000_000 } else { want };
            assert_eq!((packet.at_ns, packet.len), (want, 77), "{resolution:?}");
        }
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
