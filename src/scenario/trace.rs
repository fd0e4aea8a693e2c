//! Traffic as a capture has it: when, how long, and of which flow.

use std::path::Path;

use super::spec::{PACKET_MAX, PACKET_MIN};
use crate::base::Seed;
use crate::base::hash::hash5;
use crate::capture::{CaptureFile, Fragments, ReadError, Transport, innermost};
use crate::packet::{eth, ipv4, ipv6, tcp, udp};

/// Mixed into the hash of a flow's ends.
const SEED: Seed = Seed(0);

/// Packets longer than this were not sent by any host; so much of them is played.
const MERGED_MAX: u32 = 512 << 10;

/// An open capture.
pub struct Trace {
    file: CaptureFile,
    fragments: Fragments,
    whole: Vec<u8>,
    first_ns: Option<u64>,
    last_ns: u64,
    /// Bytes of the longest frame.
    longest: u16,
    /// What is left of a packet that is longer.
    rest: Option<Rest>,
}

/// A packet of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Traced {
    /// Since the first packet; never less than the one before.
    pub after_ns: u64,
    /// As a frame of Ethernet, and brought to what frames may have.
    pub len: u16,
    /// The same for all packets of a flow; 0 for what is neither TCP nor UDP.
    pub flow: u32,
}

#[derive(Clone, Copy, Debug)]
struct Rest {
    after_ns: u64,
    flow: u32,
    /// Bytes to be sent, with headers; and those of the headers.
    len: u32,
    headers: u32,
}

impl Trace {
    /// `longest`: bytes of the longest frame, with a tag.
    pub fn open(path: &Path, longest: u16) -> Result<Trace, ReadError> {
        let file = CaptureFile::open(path, |_| ())?;
        let (fragments, whole) = (Fragments::default(), Vec::new());
        Ok(Trace { file, fragments, whole, first_ns: None, last_ns: 0, longest, rest: None })
    }

    /// From its beginning.
    pub fn again(&self, path: &Path) -> Result<Trace, ReadError> {
        Trace::open(path, self.longest)
    }

    /// The next packet; `None` at the end.
    pub fn next(&mut self) -> Result<Option<Traced>, ReadError> {
        if let Some(rest) = self.rest.take() {
            return Ok(Some(self.frame(rest)));
        }
        let Some(packet) = self.file.next_packet()? else { return Ok(None) };
        let first = *self.first_ns.get_or_insert(packet.at_ns);
        self.last_ns = self.last_ns.max(packet.at_ns.saturating_sub(first));
        let len = packet.link.frame_len(packet.bytes, packet.len).min(MERGED_MAX);
        let found = innermost(packet.link, packet.bytes, &mut self.fragments, &mut self.whole);
        let flow = found.map_or(0, |t| {
            let ports = t.bytes.first_chunk::<4>().map_or(0, |p| u32::from_be_bytes(*p));
            let upper = u64::from(ports) << 8 | u64::from(t.proto);
            hash5(SEED, t.src.hi, t.src.lo, t.dst.hi, t.dst.lo, upper) as u32
        });
        let headers = eth::HEADER_LEN as u32 + found.map_or(0, |t| headers(&t));
        Ok(Some(self.frame(Rest { after_ns: self.last_ns, flow, len, headers })))
    }

    /// The next frame of a packet. What hosts hand to their cards, or get from them, for many
    /// frames at once, was not on the wire like that: each frame has headers of its own.
    fn frame(&mut self, packet: Rest) -> Traced {
        let Rest { after_ns, flow, len, headers } = packet;
        if len <= u32::from(self.longest) {
            let len = len as u16;
            return Traced { after_ns, len: len.clamp(PACKET_MIN, PACKET_MAX), flow };
        }
        // The largest frames have a tag.
        let now = self.longest - eth::TAG_LEN as u16;
        self.rest = Some(Rest { len: len - u32::from(now) + headers, ..packet });
        Traced { after_ns, len: now, flow }
    }
}

/// Bytes of the innermost IP and transport headers.
fn headers(t: &Transport<'_>) -> u32 {
    let words = t.bytes.get(12).map_or(0, |at| usize::from(at >> 4));
    let own = match t.proto {
        tcp::PROTOCOL => (4 * words).max(tcp::HEADER_LEN),
        _ => udp::HEADER_LEN,
    };
    let ip = if t.src.is_v4() { ipv4::HEADER_LEN } else { ipv6::HEADER_LEN };
    (own + ip) as u32
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Frames of a capture with one packet of so many bytes, of which these were kept.
    fn frames(link: u32, len: u32, kept: &[u8]) -> Vec<u16> {
        let kept_len = kept.len() as u32;
        let head = [0xa1b2_c3d4, 0x0004_0002, 0, 0, 65_535, link, 100, 0, kept_len, len];
        let mut file: Vec<u8> = head.iter().flat_map(|word| word.to_le_bytes()).collect();
        file.extend(kept);
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("t.pcap");
        std::fs::write(&path, file).expect("written");
        let mut trace = Trace::open(&path, 1_518).expect("a capture");
        let mut lens = Vec::new();
        while let Some(traced) = trace.next().expect("sound") {
            assert_eq!(traced.after_ns, 0);
            lens.push(traced.len);
        }
        lens
    }

    /// An IPv4 packet of 32 bytes of TCP header, of a length that does not fit its field.
    fn merged() -> Vec<u8> {
        let ip = [0x45, 0, 0, 0, 0, 0, 0, 0, 64, 6, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2];
        let mut tcp = [0; 32];
        tcp[12] = 8 << 4;
        [&ip[..], &tcp].concat()
    }

    #[test]
    fn what_was_merged_is_played_as_the_frames_it_was() {
        // 14 + 20 + 32 bytes of headers and 1448 of each of three segments, and 10 more.
        let ethernet = [&[0; 12][..], &[8, 0], &merged()].concat();
        assert_eq!(frames(1, 66 + 3 * 1_448 + 10, &ethernet), [1_514, 1_514, 1_514, 76]);
        assert_eq!(frames(1, 1_518, &ethernet), [1_518], "with a tag");
        assert_eq!(frames(1, 42, &ethernet[..42]), [60]);
        let all: u64 = frames(1, u32::MAX, &ethernet).into_iter().map(u64::from).sum();
        assert!(all < 2 * u64::from(MERGED_MAX), "{all}");
    }

    #[test]
    fn packets_of_other_links_count_as_frames_of_ethernet() {
        assert_eq!(frames(101, 1_000, &merged()), [1_014]);
        let cooked = [&[0; 14][..], &[8, 0], &merged()].concat();
        assert_eq!(frames(113, 1_016, &cooked), [1_014]);
        assert_eq!(frames(147, 1_000, &[0; 60]), [1_000], "an unknown link");
    }
}
