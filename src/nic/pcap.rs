//! A port on capture files: packets of one file come in, what is sent goes into another.
//!
//! Classic pcap files (draft-ietf-opsawg-pcap) with Ethernet frames, microseconds or nanoseconds.

use std::fs::File;
use std::io::{self, BufWriter, Read, Write};
use std::path::Path;
use std::time::Duration;

use pcap_file::pcap::{PcapHeader, PcapPacket, PcapReader, PcapWriter};
use pcap_file::{DataLink, PcapError, TsResolution};

use super::port::{Port, PortStats};
use crate::base::Nanos;
use crate::packet::frame::HEADROOM;
use crate::packet::{Frame, FramePool};

/// What is wrong with a capture file.
#[derive(Debug, thiserror::Error)]
pub enum CaptureError {
    #[error("the capture ends within a packet")]
    Truncated,
    #[error("not a pcap file (a pcapng file converts with `editcap -F pcap`)")]
    NotPcap,
    #[error("its packets are {0:?}, not Ethernet frames")]
    NotEthernet(DataLink),
    #[error("invalid: {0}")]
    Invalid(String),
    #[error(transparent)]
    Io(#[from] io::Error),
}

/// When a replayed packet is received.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Pace {
    /// As soon as it is asked for.
    #[default]
    AsFast,
    /// As long after the first packet as it was captured after it.
    AsCaptured,
}

/// A port that replays one capture and writes another; either may be absent.
pub struct PcapPort {
    input: Option<PcapReader<Box<dyn Read + Send>>>,
    output: Option<PcapWriter<Box<dyn Write + Send>>>,
    pace: Pace,
    /// The packet read ahead, and when it was captured.
    next: Vec<u8>,
    next_at: Option<Duration>,
    /// When the first packet was captured and when it was replayed.
    start: Option<(Duration, Nanos)>,
    error: Option<CaptureError>,
    stats: PortStats,
}

impl PcapPort {
    /// A port on files.
    ///
    /// # Errors
    /// A file that can't be opened or made, or is no capture of Ethernet frames.
    pub fn open(
        input: Option<&Path>,
        output: Option<&Path>,
        pace: Pace,
    ) -> Result<PcapPort, CaptureError> {
        let input = input.map(File::open).transpose()?.map(|f| Box::new(f) as Box<dyn Read + Send>);
        let output = output.map(File::create).transpose()?;
        let output = output.map(|f| Box::new(BufWriter::new(f)) as Box<dyn Write + Send>);
        PcapPort::new(input, output, pace)
    }

    /// A port on streams.
    ///
    /// # Errors
    /// As [`PcapPort::open`].
    pub fn new(
        input: Option<Box<dyn Read + Send>>,
        output: Option<Box<dyn Write + Send>>,
        pace: Pace,
    ) -> Result<PcapPort, CaptureError> {
        let input = input.map(PcapReader::new).transpose().map_err(header_error)?;
        let link = input.as_ref().map_or(DataLink::ETHERNET, |i| i.header().datalink);
        if link != DataLink::ETHERNET {
            return Err(CaptureError::NotEthernet(link));
        }
        let header =
            PcapHeader { ts_resolution: TsResolution::NanoSecond, ..PcapHeader::default() };
        let output = output.map(|o| PcapWriter::with_header(o, header)).transpose();
        let mut port = PcapPort {
            input,
            output: output.map_err(CaptureError::from)?,
            pace,
            next: Vec::with_capacity(usize::from(u16::MAX)),
            next_at: None,
            start: None,
            error: None,
            stats: PortStats::default(),
        };
        port.read_ahead();
        Ok(port)
    }

    /// All packets were received, or an error has ended the replay.
    pub fn finished(&self) -> bool {
        self.next_at.is_none()
    }

    /// What has ended the replay early, or kept packets from being written.
    pub fn error(&self) -> Option<&CaptureError> {
        self.error.as_ref()
    }

    fn read_ahead(&mut self) {
        self.next_at = None;
        let Some(input) = &mut self.input else { return };
        match input.next_packet() {
            None => self.input = None,
            Some(Ok(packet)) => {
                self.next.clear();
                self.next.extend_from_slice(&packet.data);
                self.next_at = Some(packet.timestamp);
            }
            Some(Err(error)) => {
                self.error.get_or_insert(error.into());
                self.input = None;
            }
        }
    }

    /// Whether the packet read ahead is due; the first one always is.
    fn is_due(&mut self, now: Nanos) -> bool {
        let Some(at) = self.next_at else { return false };
        let (first, began) = *self.start.get_or_insert((at, now));
        self.pace == Pace::AsFast || now >= began + at.saturating_sub(first)
    }

    fn write(&mut self, now: Nanos, bytes: &[u8]) {
        let Some(output) = &mut self.output else { return };
        let at = Duration::from_nanos(now.0);
        let packet = PcapPacket::new(at, bytes.len() as u32, bytes);
        if let Err(error) = output.write_packet(&packet) {
            self.error.get_or_insert(error.into());
            self.stats.tx_errors += 1;
        }
    }
}

impl Port for PcapPort {
    fn rx_burst(
        &mut self,
        now: Nanos,
        pool: &mut FramePool,
        out: &mut Vec<Frame>,
        max: usize,
    ) -> usize {
        let mut got = 0;
        while got < max && self.is_due(now) {
            if HEADROOM + self.next.len() > pool.arena().slot_size() as usize {
                self.stats.rx_missed += 1; // it never fits
            } else {
                // Without a free frame the file waits, as no wire would.
                let Some(frame) = pool.take_with(&self.next) else { break };
                out.push(frame);
                got += 1;
                self.stats.rx_packets += 1;
                self.stats.rx_bytes += self.next.len() as u64;
            }
            self.read_ahead();
        }
        got
    }

    fn tx_burst(&mut self, now: Nanos, pool: &mut FramePool, frames: &mut Vec<Frame>) -> usize {
        let n = frames.len();
        for frame in frames.drain(..) {
            self.write(now, frame.bytes(pool.arena()));
            self.stats.tx_packets += 1;
            self.stats.tx_bytes += frame.len() as u64;
            pool.put(frame);
        }
        n
    }

    fn tx_room(&self) -> usize {
        usize::MAX
    }

    fn poll(&mut self, _now: Nanos, _pool: &mut FramePool) {}

    fn tx_in_flight_bytes(&self) -> u64 {
        0
    }

    fn stats(&self) -> PortStats {
        self.stats
    }

    /// Completes the output file; see [`PcapPort::error`] for whether that went well.
    fn close(&mut self, _pool: &mut FramePool) {
        self.input = None;
        self.next_at = None;
        if let Some(Err(error)) = self.output.take().map(|o| o.into_writer().flush()) {
            self.error.get_or_insert(error.into());
        }
    }
}

impl From<PcapError> for CaptureError {
    fn from(error: PcapError) -> CaptureError {
        match error {
            PcapError::IncompleteBuffer => CaptureError::Truncated,
            PcapError::IoError(e) if e.kind() == io::ErrorKind::UnexpectedEof => {
                CaptureError::Truncated
            }
            PcapError::IoError(e) => CaptureError::Io(e),
            other => CaptureError::Invalid(other.to_string()),
        }
    }
}

fn header_error(error: PcapError) -> CaptureError {
    match error {
        PcapError::InvalidField(_) => CaptureError::NotPcap,
        other => other.into(),
    }
}

#[cfg(test)]
mod tests {
    use std::io::Cursor;
    use std::sync::{Arc, Mutex};

    use super::*;

    /// A writer whose bytes can be read afterwards.
    #[derive(Clone, Default)]
    struct Shared(Arc<Mutex<Vec<u8>>>);

    impl Write for Shared {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().expect("lock").extend_from_slice(bytes);
            Ok(bytes.len())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    /// A capture with packets of these sizes, a millisecond apart.
    fn capture(sizes: &[usize]) -> Vec<u8> {
        let bytes = Shared::default();
        let mut port = PcapPort::new(None, Some(Box::new(bytes.clone())), Pace::AsFast)
            .expect("a writing port");
        let mut pool = FramePool::standalone(4, 2048);
        for (i, &size) in sizes.iter().enumerate() {
            let frame = pool.take_with(&vec![i as u8; size]).expect("a frame");
            port.tx_burst(Nanos::from_millis(1000 + i as u64), &mut pool, &mut vec![frame]);
        }
        port.close(&mut pool);
        assert!(port.error().is_none());
        assert_eq!(pool.outstanding(), 0);
        let bytes = bytes.0.lock().expect("lock");
        bytes.clone()
    }

    fn replay(bytes: Vec<u8>, pace: Pace) -> Result<PcapPort, CaptureError> {
        PcapPort::new(Some(Box::new(Cursor::new(bytes))), None, pace)
    }

    fn receive(port: &mut PcapPort, now: Nanos, pool: &mut FramePool, max: usize) -> Vec<usize> {
        let mut frames = Vec::new();
        port.rx_burst(now, pool, &mut frames, max);
        let sizes = frames.iter().map(Frame::len).collect();
        frames.into_iter().for_each(|f| pool.put(f));
        sizes
    }

    #[test]
    fn what_is_written_is_replayed() {
        let mut pool = FramePool::standalone(4, 2048);
        let mut port = replay(capture(&[60, 1500, 61]), Pace::AsFast).expect("a capture");
        assert_eq!(receive(&mut port, Nanos(5), &mut pool, 2), [60, 1500]);
        assert!(!port.finished());
        assert_eq!(receive(&mut port, Nanos(5), &mut pool, 9), [61]);
        assert!(port.finished() && port.error().is_none());
        assert_eq!(port.stats().rx_bytes, 1621);
    }

    #[test]
    fn packets_come_when_they_were_captured() {
        let mut pool = FramePool::standalone(4, 2048);
        let mut port = replay(capture(&[60, 61, 62]), Pace::AsCaptured).expect("a capture");
        let start = Nanos::from_secs(77);
        assert_eq!(receive(&mut port, start, &mut pool, 9), [60]);
        assert!(receive(&mut port, start.saturating_add(999_999), &mut pool, 9).is_empty());
        assert_eq!(receive(&mut port, start.saturating_add(1_000_000), &mut pool, 9), [61]);
        assert_eq!(receive(&mut port, start.saturating_add(9_000_000), &mut pool, 9), [62]);
    }

    #[test]
    fn a_full_pool_loses_nothing_and_a_giant_is_counted() {
        let mut pool = FramePool::standalone(1, 2048);
        let mut port = replay(capture(&[60, 61]), Pace::AsFast).expect("a capture");
        let held = pool.take().expect("the only frame");
        assert!(receive(&mut port, Nanos(1), &mut pool, 9).is_empty());
        pool.put(held);
        assert_eq!(receive(&mut port, Nanos(1), &mut pool, 9), [60]);
        assert_eq!(receive(&mut port, Nanos(1), &mut pool, 9), [61]);
        let mut small = FramePool::standalone(2, 512);
        let mut port = replay(capture(&[60, 1500, 61]), Pace::AsFast).expect("a capture");
        assert_eq!(receive(&mut port, Nanos(1), &mut small, 9), [60, 61]);
        assert_eq!(port.stats().rx_missed, 1);
    }

    #[test]
    fn a_file_cut_anywhere_is_an_error_value() {
        let whole = capture(&[60, 100]);
        for len in 0..whole.len() {
            let mut pool = FramePool::standalone(4, 2048);
            let ends = [24, 24 + 16 + 60];
            match replay(whole[..len].to_vec(), Pace::AsFast) {
                Err(CaptureError::Truncated) => assert!(len < 24, "{len}"),
                Err(other) => panic!("{len}: {other}"),
                Ok(mut port) => {
                    let got = receive(&mut port, Nanos(1), &mut pool, 9);
                    assert_eq!(got.len(), usize::from(len >= ends[1]), "{len}");
                    let truncated = matches!(port.error(), Some(CaptureError::Truncated));
                    assert_eq!(truncated, !ends.contains(&len), "{len}");
                    assert!(port.finished());
                }
            }
        }
    }

    #[test]
    fn other_files_are_refused() {
        let garbage = replay(vec![0x55; 64], Pace::AsFast).err();
        assert!(matches!(garbage, Some(CaptureError::NotPcap)), "{garbage:?}");
        let mut loopback = capture(&[60]);
        loopback[20..24].copy_from_slice(&101u32.to_be_bytes());
        let error = replay(loopback, Pace::AsFast).err();
        assert!(matches!(error, Some(CaptureError::NotEthernet(_))), "{error:?}");
        let absent = PcapPort::open(Some(Path::new("/no/such/file")), None, Pace::AsFast).err();
        assert!(matches!(absent, Some(CaptureError::Io(_))), "{absent:?}");
    }
}
