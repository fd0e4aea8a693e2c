//! The Huffman code of header strings (RFC 7541, section 5.2 and appendix B).
//!
//! The code is canonical: its lengths say it all. Eight bits and fewer are looked up by the byte
//! that comes; the rare longer codes, by where their length begins.

/// Length of the code of each symbol, in bits; the last is EOS.
#[rustfmt::skip]
pub const LENGTHS: [u8; 257] = [
    13, 23, 28, 28, 28, 28, 28, 28, 28, 24, 30, 28, 28, 30, 28, 28, 28, 28, 28, 28,
    28, 28, 30, 28, 28, 28, 28, 28, 28, 28, 28, 28, 6, 10, 10, 12, 13, 6, 8, 11,
    10, 10, 8, 11, 8, 6, 6, 6, 5, 5, 5, 6, 6, 6, 6, 6, 6, 6, 7, 8,
    15, 6, 12, 10, 13, 6, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7,
    7, 7, 7, 7, 7, 7, 7, 7, 8, 7, 8, 13, 19, 13, 14, 6, 15, 5, 6, 5,
    6, 5, 6, 6, 6, 5, 7, 7, 6, 6, 6, 5, 6, 7, 6, 5, 5, 6, 7, 7,
    7, 7, 7, 15, 11, 14, 13, 28, 20, 22, 20, 20, 22, 22, 22, 23, 22, 23, 23, 23,
    23, 23, 24, 23, 24, 24, 22, 23, 24, 23, 23, 23, 23, 21, 22, 23, 22, 23, 23, 24,
    22, 21, 20, 22, 22, 23, 23, 21, 23, 22, 22, 24, 21, 22, 23, 23, 21, 21, 22, 21,
    23, 22, 23, 23, 20, 22, 22, 22, 23, 22, 22, 23, 26, 26, 20, 19, 22, 23, 22, 25,
    26, 26, 26, 27, 27, 26, 24, 25, 19, 21, 26, 27, 27, 26, 27, 24, 21, 21, 26, 26,
    28, 27, 27, 27, 20, 24, 20, 21, 22, 21, 21, 23, 22, 22, 25, 25, 24, 24, 26, 23,
    26, 27, 26, 26, 27, 27, 27, 27, 27, 28, 27, 27, 27, 27, 27, 26, 30,
];
const EOS: u16 = 256;
const BITS_MAX: usize = 30;
/// Codes of up to as many bits are looked up.
const LOOKUP_BITS: usize = 8;

/// Why a string can't be decoded (RFC 7541, section 5.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BadCode;

/// Decodes one string, which may come in pieces.
#[derive(Clone, Copy, Debug, Default)]
pub struct Huffman {
    /// Bits not yet decoded, the next one highest.
    bits: u64,
    count: u32,
}

impl Huffman {
    /// Decodes as much of the input as `out` has room for; tells how many bytes were written. Where
    /// they fill it, more may be there.
    #[inline]
    pub fn decode(&mut self, input: &mut &[u8], out: &mut [u8]) -> Result<usize, BadCode> {
        let mut n = 0;
        while n < out.len() {
            if self.count < BITS_MAX as u32 {
                self.refill(input);
            }
            let entry = LOOKUP[(self.bits >> 56) as usize];
            let (symbol, len) = match entry.len {
                0 => match self.long()? {
                    Some(found) => found,
                    None => break,
                },
                len => (entry.symbol, u32::from(len)),
            };
            if len > self.count {
                break;
            }
            self.bits <<= len;
            self.count -= len;
            out[n] = symbol;
            n += 1;
        }
        Ok(n)
    }

    /// The string ends: what is left must be the beginning of EOS, and less than a byte.
    pub fn end(&mut self) -> Result<(), BadCode> {
        let Huffman { bits, count } = std::mem::take(self);
        let padding = !(u64::MAX >> count);
        if count < 8 && bits == padding { Ok(()) } else { Err(BadCode) }
    }

    #[inline]
    fn refill(&mut self, input: &mut &[u8]) {
        if let Some((four, rest)) = input.split_first_chunk::<4>() {
            self.bits |= u64::from(u32::from_be_bytes(*four)) << (32 - self.count);
            self.count += 32;
            *input = rest;
            return;
        }
        while let Some((&byte, rest)) = input.split_first() {
            self.bits |= u64::from(byte) << (56 - self.count);
            self.count += 8;
            *input = rest;
        }
    }

    /// A code longer than [`LOOKUP_BITS`]; `None` where its end has not come.
    #[cold]
    fn long(&self) -> Result<Option<(u8, u32)>, BadCode> {
        for len in LOOKUP_BITS + 1..=BITS_MAX {
            if len as u32 > self.count {
                return Ok(None);
            }
            let code = (self.bits >> (64 - len)) as u32;
            let (first, at, count) = CODE.lengths[len];
            if code >= first && code - first < u32::from(count) {
                let symbol = CODE.symbols[usize::from(at) + (code - first) as usize];
                return if symbol == EOS {
                    Err(BadCode)
                } else {
                    Ok(Some((symbol as u8, len as u32)))
                };
            }
        }
        Err(BadCode)
    }
}

#[derive(Clone, Copy)]
struct Entry {
    symbol: u8,
    /// 0: the code is longer.
    len: u8,
}

struct Code {
    /// By length: the first code, where its symbol is, and how many codes there are.
    lengths: [(u32, u16, u16); BITS_MAX + 1],
    /// By length and then by value.
    symbols: [u16; 257],
    /// By symbol.
    codes: [u32; 257],
}

const CODE: Code = {
    let mut code = Code { lengths: [(0, 0, 0); BITS_MAX + 1], symbols: [0; 257], codes: [0; 257] };
    let (mut next, mut at, mut len) = (0u32, 0u16, 1);
    while len <= BITS_MAX {
        next <<= 1;
        code.lengths[len] = (next, at, 0);
        let mut symbol = 0;
        while symbol < LENGTHS.len() {
            if LENGTHS[symbol] as usize == len {
                code.symbols[at as usize] = symbol as u16;
                code.codes[symbol] = next;
                code.lengths[len].2 += 1;
                next += 1;
                at += 1;
            }
            symbol += 1;
        }
        len += 1;
    }
    code
};

const LOOKUP: [Entry; 1 << LOOKUP_BITS] = {
    let mut table = [Entry { symbol: 0, len: 0 }; 1 << LOOKUP_BITS];
    let mut symbol = 0;
    while symbol < 256 {
        let len = LENGTHS[symbol] as usize;
        if len <= LOOKUP_BITS {
            let first = (CODE.codes[symbol] as usize) << (LOOKUP_BITS - len);
            let mut i = 0;
            while i < 1 << (LOOKUP_BITS - len) {
                table[first + i] = Entry { symbol: symbol as u8, len: len as u8 };
                i += 1;
            }
        }
        symbol += 1;
    }
    table
};

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// Encodes a string, padded with ones.
    pub fn encode(text: &[u8]) -> Vec<u8> {
        let (mut bits, mut count, mut out) = (0u64, 0, Vec::new());
        for byte in text {
            let len = u32::from(LENGTHS[usize::from(*byte)]);
            bits = bits << len | u64::from(CODE.codes[usize::from(*byte)]);
            count += len;
            while count >= 8 {
                count -= 8;
                out.push((bits >> count) as u8);
            }
        }
        if count > 0 {
            out.push((bits << (8 - count)) as u8 | (0xff >> count) as u8);
        }
        out
    }

    fn decode(wire: &[u8], piece: usize, room: usize) -> Result<Vec<u8>, BadCode> {
        let (mut huffman, mut out) = (Huffman::default(), Vec::new());
        for mut input in wire.chunks(piece.max(1)) {
            loop {
                let mut buffer = [0; 64];
                let n = huffman.decode(&mut input, &mut buffer[..room])?;
                out.extend_from_slice(&buffer[..n]);
                if n < room {
                    break;
                }
            }
            assert!(input.is_empty());
        }
        huffman.end().map(|()| out)
    }

    #[test]
    fn codes_are_those_of_the_standard() {
        // A few from each end of appendix B.
        for (symbol, code) in [(b'0', 0x0), (b'a', 0x3), (b' ', 0x14), (b'Z', 0xfd), (b'!', 0x3f8)]
        {
            assert_eq!(CODE.codes[usize::from(symbol)], code);
        }
        assert_eq!(CODE.codes[0], 0x1ff8);
        assert_eq!(CODE.codes[22], 0x3ffffffe);
        assert_eq!(CODE.codes[256], 0x3fffffff);
        let all: f64 = LENGTHS.iter().map(|len| 0.5f64.powi(i32::from(*len))).sum();
        assert!((all - 1.0).abs() < 1e-12);
    }

    #[test]
    fn every_symbol_comes_back_in_any_pieces() {
        let text: Vec<u8> = (0..=255).chain((0..=255).rev()).chain(*b"www.example.com").collect();
        let wire = encode(&text);
        for piece in [1, 2, 3, 5, 64, wire.len()] {
            for room in [1, 2, 64] {
                assert_eq!(decode(&wire, piece, room), Ok(text.clone()), "{piece} {room}");
            }
        }
        assert_eq!(decode(&[], 1, 1), Ok(vec![]));
    }

    #[test]
    fn bad_endings_are_refused() {
        let bad = [
            &[0xff, 0xff, 0xff, 0xff][..], // EOS
            &[0xff],                       // padding of a byte
            &[0x07, 0xff],                 // padding of a byte after a symbol
            &[0x00],                       // padding of zeros
            &[0x1e],                       // padding with a zero at its end
            &[0xfe],                       // a code that does not end
        ];
        for wire in bad {
            for piece in [1, 8] {
                assert_eq!(decode(wire, piece, 64), Err(BadCode), "{wire:02x?}");
            }
        }
        assert_eq!(decode(&[0x1f], 1, 64), Ok(b"a".to_vec()));
    }
}
