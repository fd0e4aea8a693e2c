//! Reads capture files: pcap (draft-ietf-opsawg-pcap) with its old variants, pcapng
//! (draft-ietf-opsawg-pcapng), either of them gzipped.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read};
use std::path::Path;

use flate2::read::MultiGzDecoder;

use super::link::Link;
use super::pcapng::Pcapng;

/// A packet or block longer than this is taken for damage: tcpdump's own limit, and room for
/// pcapng's options.
pub const RECORD_BYTES_MAX: usize = 1 << 19;

const BUFFER_BYTES: usize = 1 << 18;
const GZIP_MAGIC: [u8; 2] = [0x1f, 0x8b];

/// What is wrong with a capture file.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    #[error("not a capture: neither pcap nor pcapng, nor one of them gzipped")]
    NotCapture,
    #[error("the capture ends within a packet")]
    Truncated,
    #[error("the capture is damaged: {0}")]
    Damaged(&'static str),
    #[error(transparent)]
    Io(#[from] io::Error),
}

/// A packet as captured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Captured<'a> {
    pub link: Link,
    /// Nanoseconds since 1970 in the capture's clock; 0 where it has no time.
    pub at_ns: u64,
    /// Bytes that the packet had; what was captured may be less.
    pub len: u32,
    pub bytes: &'a [u8],
}

/// An open capture.
pub struct CaptureFile {
    input: Input,
    format: Format,
    record: Vec<u8>,
}

/// The file's bytes in the order of the format.
pub(super) struct Input {
    bytes: Box<dyn BufRead + Send>,
    pub(super) big_endian: bool,
}

enum Format {
    Pcap(Pcap),
    Pcapng(Pcapng),
}

struct Pcap {
    link: Link,
    /// Bytes of a packet's header that follow the two lengths.
    extra: usize,
    lengths_swapped: Swapped,
    /// Of the fraction of a second.
    ns_per_unit: u64,
}

/// Early versions wrote a packet's two lengths in the other order.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Swapped {
    No,
    Yes,
    /// Where the captured length is the larger one.
    Maybe,
}

impl CaptureFile {
    /// Opens a file; `progress` hears how many of its bytes were read with each piece.
    ///
    /// # Errors
    /// A file that can't be read or is no capture.
    pub fn open(
        path: &Path,
        progress: impl FnMut(usize) + Send + 'static,
    ) -> Result<CaptureFile, ReadError> {
        CaptureFile::new(Counted { file: File::open(path)?, progress })
    }

    /// # Errors
    /// As [`CaptureFile::open`].
    pub fn new(bytes: impl Read + Send + 'static) -> Result<CaptureFile, ReadError> {
        let mut bytes = BufReader::with_capacity(BUFFER_BYTES, bytes);
        let bytes: Box<dyn BufRead + Send> = if bytes.fill_buf()?.starts_with(&GZIP_MAGIC) {
            Box::new(BufReader::with_capacity(BUFFER_BYTES, MultiGzDecoder::new(bytes)))
        } else {
            Box::new(bytes)
        };
        let mut input = Input { bytes, big_endian: false };
        let mut magic = [0; 4];
        match input.read(&mut magic) {
            Err(ReadError::Truncated) => return Err(ReadError::NotCapture),
            read => read?,
        }
        let format = if magic == Pcapng::MAGIC {
            Format::Pcapng(Pcapng::begin(&mut input)?)
        } else {
            Format::Pcap(Pcap::begin(&mut input, magic)?)
        };
        Ok(CaptureFile { input, format, record: Vec::new() })
    }

    /// The next packet; `None` at the end.
    ///
    /// # Errors
    /// Damage: nothing can be read behind it.
    pub fn next_packet(&mut self) -> Result<Option<Captured<'_>>, ReadError> {
        match &mut self.format {
            Format::Pcap(pcap) => pcap.next(&mut self.input, &mut self.record),
            Format::Pcapng(pcapng) => pcapng.next(&mut self.input, &mut self.record),
        }
    }
}

impl Pcap {
    /// Behind the magic number: versions, two unused fields, the limit, the link type.
    const HEADER_BYTES: usize = 20;

    fn begin(input: &mut Input, magic: [u8; 4]) -> Result<Pcap, ReadError> {
        let number = u32::from_be_bytes(magic);
        let known = |n| matches!(n, 0xa1b2_c3d4 | 0xa1b2_3c4d | 0xa1b2_cd34);
        input.big_endian = known(number);
        if !known(number) && !known(number.swap_bytes()) {
            return Err(ReadError::NotCapture);
        }
        // Kuznetzov's variant has an interface, a protocol and a type with each packet.
        let modified = [number, number.swap_bytes()].contains(&0xa1b2_cd34);
        let mut header = [0; Pcap::HEADER_BYTES];
        input.read(&mut header)?;
        let minor = input.u16(&header, 2);
        let lengths_swapped = match (input.u16(&header, 0), minor) {
            (2, 0..=2) => Swapped::Yes,
            (2, 3) | (543, _) => Swapped::Maybe,
            _ => Swapped::No,
        };
        // The upper half tells of a frame check sequence, or is reserved and not to be looked at.
        let link = Link(input.u32(&header, 16) & 0xffff);
        let in_nanos = [number, number.swap_bytes()].contains(&0xa1b2_3c4d);
        let ns_per_unit = if in_nanos { 1 } else { 1_000 };
        Ok(Pcap { link, extra: if modified { 8 } else { 0 }, lengths_swapped, ns_per_unit })
    }

    fn next<'a>(
        &mut self,
        input: &mut Input,
        record: &'a mut Vec<u8>,
    ) -> Result<Option<Captured<'a>>, ReadError> {
        let mut header = [0; 24];
        let header = &mut header[..16 + self.extra];
        if !input.read_or_end(header)? {
            return Ok(None);
        }
        let (first, second) = (input.u32(header, 8), input.u32(header, 12));
        let swap = match self.lengths_swapped {
            Swapped::No => false,
            Swapped::Yes => true,
            Swapped::Maybe => first > second,
        };
        let (captured, len) = if swap { (second, first) } else { (first, second) };
        let (seconds, fraction) = (input.u32(header, 0), input.u32(header, 4));
        let at_ns = u64::from(seconds) * 1_000_000_000 + u64::from(fraction) * self.ns_per_unit;
        input.read_into(record, captured as usize)?;
        Ok(Some(Captured { link: self.link, at_ns, len, bytes: record }))
    }
}

impl Input {
    /// # Errors
    /// `Truncated` where the file ends before.
    pub(super) fn read(&mut self, into: &mut [u8]) -> Result<(), ReadError> {
        self.bytes.read_exact(into).map_err(read_error)
    }

    /// `false` where the file ends here.
    pub(super) fn read_or_end(&mut self, into: &mut [u8]) -> Result<bool, ReadError> {
        if self.bytes.fill_buf().map_err(read_error)?.is_empty() {
            return Ok(false);
        }
        self.read(into).map(|()| true)
    }

    pub(super) fn read_into(&mut self, record: &mut Vec<u8>, len: usize) -> Result<(), ReadError> {
        if len > RECORD_BYTES_MAX {
            return Err(ReadError::Damaged("a packet of impossible length"));
        }
        record.resize(len, 0);
        self.read(record)
    }

    /// # Panics
    /// Beyond the slice, as the next one.
    pub(super) fn u16(&self, bytes: &[u8], at: usize) -> u16 {
        let field = [bytes[at], bytes[at + 1]];
        if self.big_endian { u16::from_be_bytes(field) } else { u16::from_le_bytes(field) }
    }

    pub(super) fn u32(&self, bytes: &[u8], at: usize) -> u32 {
        let field = [bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]];
        if self.big_endian { u32::from_be_bytes(field) } else { u32::from_le_bytes(field) }
    }
}

fn read_error(error: io::Error) -> ReadError {
    match error.kind() {
        io::ErrorKind::UnexpectedEof => ReadError::Truncated,
        io::ErrorKind::InvalidInput | io::ErrorKind::InvalidData => {
            ReadError::Damaged("it does not unpack")
        }
        _ => ReadError::Io(error),
    }
}

/// Tells of what is read.
struct Counted<F> {
    file: File,
    progress: F,
}

impl<F: FnMut(usize)> Read for Counted<F> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let n = self.file.read(into)?;
        (self.progress)(n);
        Ok(n)
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Cursor, Write};

    use super::*;

    /// A capture of two packets.
    fn pcap(magic: u32, minor: u16, big_endian: bool, extra: usize) -> Vec<u8> {
        let mut out = Vec::new();
        let mut put = |n: u32, len: usize| {
            let be = n.to_be_bytes();
            let mut bytes = be[4 - len..].to_vec();
            if !big_endian {
                bytes.reverse();
            }
            out.extend(bytes);
        };
        put(magic, 4);
        put(2, 2);
        put(u32::from(minor), 2);
        [0, 0, 65_535, 101 | 0x2401_0000].iter().for_each(|&n| put(n, 4));
        for (captured, len) in [(3, 9), (1, 1)] {
            put(7, 4);
            put(8, 4);
            let lengths = if minor < 4 { [len, captured] } else { [captured, len] };
            lengths.iter().for_each(|&n| put(n, 4));
            (0..extra + captured as usize).for_each(|i| put(i as u32, 1));
        }
        out
    }

    fn packets(bytes: Vec<u8>) -> (Vec<(u32, Vec<u8>)>, Option<ReadError>) {
        let mut file = CaptureFile::new(Cursor::new(bytes)).expect("a capture");
        let mut got = Vec::new();
        loop {
            match file.next_packet() {
                Ok(Some(packet)) => got.push((packet.link.0, packet.bytes.to_vec())),
                Ok(None) => return (got, None),
                Err(error) => return (got, Some(error)),
            }
        }
    }

    #[test]
    fn all_variants_of_pcap_are_read() {
        for big_endian in [false, true] {
            for (magic, minor, extra) in
                [(0xa1b2_c3d4, 4, 0), (0xa1b2_3c4d, 4, 0), (0xa1b2_cd34, 4, 8), (0xa1b2_c3d4, 2, 0)]
            {
                let (got, error) = packets(pcap(magic, minor, big_endian, extra));
                let from = extra as u8;
                let want = [(101, vec![from, from + 1, from + 2]), (101, vec![from])];
                assert_eq!(got, want, "{magic:x} {minor}");
                assert!(error.is_none());
            }
        }
    }

    #[test]
    fn packets_have_times_and_the_lengths_they_had() {
        for (magic, minor, extra, ns) in [
            (0xa1b2_c3d4, 4, 0, 8_000),
            (0xa1b2_3c4d, 4, 0, 8),
            (0xa1b2_cd34, 4, 8, 8_000),
            (0xa1b2_c3d4, 2, 0, 8_000),
        ] {
            let bytes = pcap(magic, minor, true, extra);
            let mut file = CaptureFile::new(Cursor::new(bytes)).expect("a capture");
            let packet = file.next_packet().expect("sound").expect("a packet");
            assert_eq!((packet.at_ns, packet.len), (7_000_000_000 + ns, 9), "{magic:x} {minor}");
        }
    }

    #[test]
    fn gzipped_captures_are_unpacked() {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        encoder.write_all(&pcap(0xa1b2_c3d4, 4, false, 0)).expect("a Vec takes all");
        let packed = encoder.finish().expect("packed");
        assert_eq!(packets(packed.clone()).0.len(), 2);
        let (_, error) = packets(packed[..packed.len() - 9].to_vec());
        assert!(matches!(error, Some(ReadError::Truncated)));
    }

    #[test]
    fn what_was_read_before_the_damage_counts() {
        let whole = pcap(0xa1b2_c3d4, 4, false, 0);
        let (got, error) = packets(whole[..whole.len() - 1].to_vec());
        assert!(got.len() == 1 && matches!(error, Some(ReadError::Truncated)));
        let mut long = whole;
        long[24 + 16 + 3 + 11] = 0x7f;
        let (got, error) = packets(long);
        assert!(got.len() == 1 && matches!(error, Some(ReadError::Damaged(_))));
    }

    #[test]
    fn other_files_are_told() {
        for bytes in [&b""[..], b"abc", b"GET / HTTP/1.1\r\n\r\n"] {
            let opened = CaptureFile::new(Cursor::new(bytes.to_vec()));
            assert!(matches!(opened.err(), Some(ReadError::NotCapture)));
        }
    }
}
