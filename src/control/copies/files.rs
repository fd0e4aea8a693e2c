//! Copies in files: a ring of captures of a bounded size and number.
//!
//! Classic pcap (draft-ietf-opsawg-pcap) with Ethernet frames and nanoseconds, little-endian.

use std::collections::BTreeSet;
use std::fs::{File, OpenOptions};
use std::io::{self, BufWriter, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};

use super::plan::FilesPlan;
use crate::base::Nanos;

const MAGIC_NANOSECONDS: u32 = 0xa1b2_3c4d;
const LINK_ETHERNET: u32 = 1;
const SNAP_BYTES: u32 = 1 << 16;
const HEADER_BYTES: u64 = 24;
const RECORD_HEADER_BYTES: u64 = 16;
/// What can't be written is tried again after this.
const RETRY_AFTER_NS: u64 = 1_000_000_000;

/// What is told of a collector's files.
#[derive(Debug, Default)]
pub struct FilesTold {
    /// Frames written.
    pub packets: AtomicU64,
    /// Frames that could not be: the disk is full, or the directory is gone.
    pub failed: AtomicU64,
}

/// The files of one collector.
pub struct Files {
    pub plan: FilesPlan,
    open: Option<(BufWriter<File>, u64)>,
    /// Numbers of all files there are, those of runs before included.
    numbers: BTreeSet<u64>,
    retry_at: Nanos,
}

impl Files {
    /// Goes on behind the files that are there.
    pub fn new(plan: FilesPlan) -> Files {
        let mut files = Files { plan, open: None, numbers: BTreeSet::new(), retry_at: Nanos::ZERO };
        files.numbers = files.found();
        files
    }

    /// Writes a frame, or counts one that can't be. `unix_ns` is when it was received.
    pub fn write(&mut self, now: Nanos, unix_ns: u64, length: usize, bytes: &[u8]) {
        let told = &self.plan.told;
        if now < self.retry_at {
            told.failed.fetch_add(1, Ordering::Relaxed);
            return;
        }
        match self.try_write(unix_ns, length, bytes) {
            Ok(()) => {
                self.plan.told.packets.fetch_add(1, Ordering::Relaxed);
            }
            Err(error) => self.fail(now, &error),
        }
    }

    /// Has readers see what was written.
    pub fn flush(&mut self, now: Nanos) {
        if let Some((writer, _)) = &mut self.open
            && let Err(error) = writer.flush()
        {
            self.fail(now, &error);
        }
    }

    fn fail(&mut self, now: Nanos, error: &io::Error) {
        let spec = &self.plan.spec;
        let dir = spec.dir.display().to_string();
        tracing::warn!(collector = spec.name, dir, %error, "copies can't be written");
        self.plan.told.failed.fetch_add(1, Ordering::Relaxed);
        // What is buffered is lost with it: writing that again would fail again.
        if let Some((writer, _)) = self.open.take() {
            drop(writer.into_parts());
        }
        self.retry_at = now.saturating_add(RETRY_AFTER_NS);
    }

    fn try_write(&mut self, unix_ns: u64, length: usize, bytes: &[u8]) -> io::Result<()> {
        let needed = RECORD_HEADER_BYTES + bytes.len() as u64;
        if self.open.as_ref().is_some_and(|(_, written)| written + needed > self.plan.spec.size)
            && let Some((mut writer, _)) = self.open.take()
        {
            writer.flush()?;
        }
        let (writer, written) = match &mut self.open {
            Some(open) => open,
            None => {
                let open = self.next_file()?;
                self.open.insert(open)
            }
        };
        let (secs, nanos) = (unix_ns / 1_000_000_000, unix_ns % 1_000_000_000);
        for field in [secs as u32, nanos as u32, bytes.len() as u32, length as u32] {
            writer.write_all(&field.to_le_bytes())?;
        }
        writer.write_all(bytes)?;
        *written += needed;
        Ok(())
    }

    /// Begins a file, once there is room for it in the ring.
    fn next_file(&mut self) -> io::Result<(BufWriter<File>, u64)> {
        while self.numbers.len() >= self.plan.spec.count as usize
            && let Some(&oldest) = self.numbers.first()
        {
            match std::fs::remove_file(self.path(oldest)) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => drop(self.numbers.remove(&oldest)),
            }
        }
        let last = self.numbers.last().copied().unwrap_or_default();
        let number = last.checked_add(1).ok_or(io::ErrorKind::InvalidData)?;
        // Only for whoever runs the appliance: it is what its users say. And only files of our own:
        // what somebody else has put there meanwhile is neither followed nor written over.
        let mut options = OpenOptions::new();
        options.write(true).create_new(true).mode(0o600);
        let opened = options.open(self.path(number));
        if opened.as_ref().is_err_and(|e| e.kind() == io::ErrorKind::AlreadyExists) {
            self.numbers = self.found();
        }
        let mut writer = BufWriter::new(opened?);
        self.numbers.insert(number);
        writer.write_all(&MAGIC_NANOSECONDS.to_le_bytes())?;
        for field in [2u16, 4] {
            writer.write_all(&field.to_le_bytes())?;
        }
        for field in [0, 0, SNAP_BYTES, LINK_ETHERNET] {
            writer.write_all(&field.to_le_bytes())?;
        }
        Ok((writer, HEADER_BYTES))
    }

    fn path(&self, number: u64) -> PathBuf {
        self.plan.spec.dir.join(format!("{}-{number:06}.pcap", self.plan.spec.name))
    }

    fn found(&self) -> BTreeSet<u64> {
        let number = |entry: io::Result<std::fs::DirEntry>| {
            let name = entry.ok()?.file_name().into_string().ok()?;
            let rest = name.strip_prefix(&self.plan.spec.name)?.strip_prefix('-')?;
            rest.strip_suffix(".pcap")?.parse().ok()
        };
        let entries = std::fs::read_dir(&self.plan.spec.dir).into_iter().flatten();
        entries.filter_map(number).collect()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::config::FilesSpec;
    use crate::packet::FilesId;

    fn plan(dir: PathBuf) -> FilesPlan {
        let spec = FilesSpec { id: FilesId(1), name: "ring".into(), dir, count: 3, size: 1_000 };
        FilesPlan { spec, told: Arc::default() }
    }

    fn frames(path: &std::path::Path) -> Vec<Vec<u8>> {
        use pcap_file::pcap::PcapReader;
        let mut reader = PcapReader::new(File::open(path).expect("there")).expect("a capture");
        let mut all = Vec::new();
        while let Some(packet) = reader.next_packet() {
            let packet = packet.expect("whole");
            assert_eq!(packet.timestamp.as_nanos(), 1_700_000_000_000_000_007);
            assert_eq!(packet.orig_len, 1_500);
            all.push(packet.data.to_vec());
        }
        all
    }

    #[test]
    fn the_ring_keeps_the_newest_frames_in_files_of_a_bounded_size() {
        let dir = tempfile::tempdir().expect("a directory");
        std::fs::write(dir.path().join("ring-000041.pcap"), "of a run before").expect("written");
        std::fs::write(dir.path().join("other-1.pcap"), "not ours").expect("written");
        let mut files = Files::new(plan(dir.path().into()));
        for n in 0..40u8 {
            files.write(Nanos(1), 1_700_000_000_000_000_007, 1_500, &[n; 100]);
        }
        files.flush(Nanos(1));
        let mut names: Vec<_> = std::fs::read_dir(dir.path())
            .expect("there")
            .map(|entry| entry.expect("one").file_name().into_string().expect("text"))
            .collect();
        names.sort();
        // 8 frames a file of 1,000 bytes: five files, of which three are kept.
        let kept = ["other-1.pcap", "ring-000044.pcap", "ring-000045.pcap", "ring-000046.pcap"];
        assert_eq!(names, kept);
        let all: Vec<_> = kept[1..].iter().flat_map(|n| frames(&dir.path().join(n))).collect();
        let wanted: Vec<_> = (16..40).map(|n| vec![n; 100]).collect();
        assert_eq!(all, wanted);
        assert_eq!(files.plan.told.packets.load(Ordering::Relaxed), 40);
    }

    #[test]
    fn files_that_others_have_put_there_are_left_alone() {
        let dir = tempfile::tempdir().expect("a directory");
        let mut files = Files::new(plan(dir.path().into()));
        let theirs = dir.path().join("ring-000001.pcap");
        std::fs::write(&theirs, "theirs").expect("written");
        files.write(Nanos(1), 0, 9, b"x");
        files.write(Nanos(1 + RETRY_AFTER_NS), 1_700_000_000_000_000_007, 1_500, b"x");
        files.flush(Nanos(1 + RETRY_AFTER_NS));
        assert_eq!(std::fs::read(&theirs).expect("there"), b"theirs");
        assert_eq!(frames(&dir.path().join("ring-000002.pcap")), [b"x"]);
    }

    #[test]
    fn what_cannot_be_written_is_counted_and_tried_again_later() {
        let dir = tempfile::tempdir().expect("a directory");
        let missing = dir.path().join("missing");
        let mut files = Files::new(plan(missing.clone()));
        let told = Arc::clone(&files.plan.told);
        let count = || [&told.packets, &told.failed].map(|n| n.load(Ordering::Relaxed));
        files.write(Nanos(5), 0, 9, b"x");
        std::fs::create_dir(&missing).expect("made");
        files.write(Nanos(6), 0, 9, b"x");
        assert_eq!(count(), [0, 2], "too soon");
        files.write(Nanos(5 + RETRY_AFTER_NS), 0, 9, b"x");
        assert_eq!(count(), [1, 2]);
    }
}
