//! Traffic as a capture has it: when, how long, and of which flow.

use std::path::Path;

use super::spec::{PACKET_MAX, PACKET_MIN};
use crate::base::Seed;
use crate::base::hash::hash5;
use crate::capture::{CaptureFile, Fragments, ReadError, innermost};

/// Mixed into the hash of a flow's ends.
const SEED: Seed = Seed(0);

/// An open capture.
pub struct Trace {
    file: CaptureFile,
    fragments: Fragments,
    whole: Vec<u8>,
    first_ns: Option<u64>,
    last_ns: u64,
}

/// A packet of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Traced {
    /// Since the first packet; never less than the one before.
    pub after_ns: u64,
    /// Brought to what frames may have.
    pub len: u16,
    /// The same for all packets of a flow; 0 for what is neither TCP nor UDP.
    pub flow: u32,
}

impl Trace {
    pub fn open(path: &Path) -> Result<Trace, ReadError> {
        let file = CaptureFile::open(path, |_| ())?;
        let (fragments, whole) = (Fragments::default(), Vec::new());
        Ok(Trace { file, fragments, whole, first_ns: None, last_ns: 0 })
    }

    /// The next packet; `None` at the end.
    pub fn next(&mut self) -> Result<Option<Traced>, ReadError> {
        let Some(packet) = self.file.next_packet()? else { return Ok(None) };
        let first = *self.first_ns.get_or_insert(packet.at_ns);
        self.last_ns = self.last_ns.max(packet.at_ns.saturating_sub(first));
        let len = u16::try_from(packet.len).unwrap_or(PACKET_MAX).clamp(PACKET_MIN, PACKET_MAX);
        let found = innermost(packet.link, packet.bytes, &mut self.fragments, &mut self.whole);
        let flow = found.map_or(0, |t| {
            let ports = t.bytes.first_chunk::<4>().map_or(0, |p| u32::from_be_bytes(*p));
            let upper = u64::from(ports) << 8 | u64::from(t.proto);
            hash5(SEED, t.src.hi, t.src.lo, t.dst.hi, t.dst.lo, upper) as u32
        });
        Ok(Some(Traced { after_ns: self.last_ns, len, flow }))
    }
}
