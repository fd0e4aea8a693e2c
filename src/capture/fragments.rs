//! Puts IP packets together from their fragments (RFC 791, section 3.2; RFC 8200, section 4.5).

use std::collections::HashMap;

use crate::base::Addr;

/// Packets that are put together at once; then the one begun first is given up.
pub const PACKETS_MAX: usize = 256;
/// Bytes of an IP packet at most.
const PACKET_BYTES_MAX: usize = 65_535;
/// All fragments but the last are multiples of this.
const UNIT: usize = 8;

/// Source, destination, protocol and identification.
pub type Key = (Addr, Addr, u8, u32);

/// Where a fragment belongs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Piece {
    pub id: u32,
    /// Bytes from the packet's payload's begin.
    pub offset: usize,
    pub more: bool,
}

/// Packets of which fragments are missing.
#[derive(Default)]
pub struct Fragments {
    packets: HashMap<Key, Partial>,
    begun: u64,
}

struct Partial {
    number: u64,
    bytes: Vec<u8>,
    /// Units that are there.
    units: Vec<bool>,
    units_there: usize,
    /// Known from the last fragment.
    len: Option<usize>,
}

impl Fragments {
    /// Adds a fragment's payload; where that completes the packet, its payload is put into `whole`.
    /// Of bytes that come twice the first copy counts.
    pub fn add(&mut self, key: Key, piece: Piece, bytes: &[u8], whole: &mut Vec<u8>) -> bool {
        let end = piece.offset + bytes.len();
        if end > PACKET_BYTES_MAX || piece.more && !bytes.len().is_multiple_of(UNIT) {
            return false;
        }
        if !self.packets.contains_key(&key) {
            self.make_room();
            let number = self.begun;
            self.begun += 1;
            let empty = Partial { number, bytes: vec![], units: vec![], units_there: 0, len: None };
            self.packets.insert(key, empty);
        }
        let Some(partial) = self.packets.get_mut(&key) else { return false };
        if !piece.more {
            partial.len = partial.len.or(Some(end));
        }
        partial.fill(piece.offset, bytes);
        let complete = partial.len.is_some_and(|len| partial.units_there == len.div_ceil(UNIT));
        if complete && let Some(mut packet) = self.packets.remove(&key) {
            packet.bytes.truncate(packet.len.unwrap_or_default());
            *whole = packet.bytes;
        }
        complete
    }

    /// Packets of which fragments are missing.
    pub fn len(&self) -> usize {
        self.packets.len()
    }

    pub fn is_empty(&self) -> bool {
        self.packets.is_empty()
    }

    fn make_room(&mut self) {
        if self.packets.len() >= PACKETS_MAX
            && let Some(&oldest) =
                self.packets.iter().min_by_key(|(_, partial)| partial.number).map(|(key, _)| key)
        {
            self.packets.remove(&oldest);
        }
    }
}

impl Partial {
    fn fill(&mut self, offset: usize, bytes: &[u8]) {
        let end = offset + bytes.len();
        if self.bytes.len() < end {
            self.bytes.resize(end, 0);
            self.units.resize(end.div_ceil(UNIT), false);
        }
        for (i, unit) in bytes.chunks(UNIT).enumerate() {
            let there = &mut self.units[offset / UNIT + i];
            if !*there {
                *there = true;
                self.units_there += 1;
                let at = offset + i * UNIT;
                self.bytes[at..at + unit.len()].copy_from_slice(unit);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: Key = (Addr { hi: 0, lo: 1 }, Addr { hi: 0, lo: 2 }, 17, 9);

    fn piece(offset: usize, more: bool) -> Piece {
        Piece { id: 9, offset, more }
    }

    #[test]
    fn any_order_and_repetition_gives_the_packet() {
        let data: Vec<u8> = (0..45).collect();
        for order in [[0, 1, 2], [2, 1, 0], [1, 2, 0]] {
            let (mut fragments, mut whole) = (Fragments::default(), Vec::new());
            for (n, i) in order.into_iter().enumerate() {
                let (from, to) = (i * 16, (i * 16 + 16).min(data.len()));
                let done = fragments.add(KEY, piece(from, i < 2), &data[from..to], &mut whole);
                assert_eq!(done, n == 2);
                if !done {
                    let changed = vec![0xff; to - from];
                    assert!(!fragments.add(KEY, piece(from, i < 2), &changed, &mut whole));
                }
            }
            assert_eq!(whole, data);
            assert!(fragments.is_empty());
        }
    }

    #[test]
    fn limits_hold() {
        let (mut fragments, mut whole) = (Fragments::default(), Vec::new());
        assert!(!fragments.add(KEY, piece(65_528, false), &[0; 9], &mut whole));
        assert!(!fragments.add(KEY, piece(0, true), &[0; 9], &mut whole));
        assert!(fragments.is_empty());
        for id in 0..1_000 {
            let key = (KEY.0, KEY.1, KEY.2, id);
            fragments.add(key, piece(0, true), &[0; 8], &mut whole);
        }
        assert_eq!(fragments.len(), PACKETS_MAX);
        assert!(fragments.add((KEY.0, KEY.1, KEY.2, 999), piece(8, false), &[1], &mut whole));
        assert_eq!(whole, [0, 0, 0, 0, 0, 0, 0, 0, 1]);
    }
}
