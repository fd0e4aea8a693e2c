//! Copies that a worker makes for a thread of the control plane: of frames, for files, and of what
//! shadowed connections say.
//!
//! The worker never waits and allocates nothing: records of a fixed size go round between two
//! queues, and where none is free the copy is not made.

use crossbeam::queue::ArrayQueue;

use crate::base::Nanos;
use crate::packet::{Direction, FilesId, FlowKey};

/// Records of one worker.
pub const RECORDS_MAX: usize = 1_024;

/// The two queues of one worker.
pub struct CopyRing {
    free: ArrayQueue<Box<CopyRecord>>,
    full: ArrayQueue<Box<CopyRecord>>,
}

/// One copy.
pub struct CopyRecord {
    pub about: CopyAbout,
    /// When the packet was received, on the workers' clock.
    pub at: Nanos,
    /// Bytes that there were: more than [`CopyRecord::bytes`], where it was cut.
    pub length: usize,
    kept: usize,
    bytes: Box<[u8]>,
}

/// What is copied.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CopyAbout {
    /// A frame, for files.
    Frame(FilesId),
    /// The payload of a TCP segment.
    Segment(CopiedSegment),
}

/// A segment of a shadowed connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CopiedSegment {
    /// As the client sends.
    pub key: FlowKey,
    pub direction: Direction,
    pub seq: u32,
    pub ack: u32,
    /// Of [`crate::packet::tcp::flag`].
    pub flags: u8,
    /// The connection has a backend.
    pub is_bound: bool,
}

impl CopyRing {
    /// Room for so many copies of so many bytes each.
    pub fn new(records: usize, record_bytes: usize) -> CopyRing {
        let (free, full) = (ArrayQueue::new(records.max(1)), ArrayQueue::new(records.max(1)));
        for _ in 0..records {
            let _ = free.push(Box::new(CopyRecord {
                about: CopyAbout::Frame(FilesId(0)),
                at: Nanos::ZERO,
                length: 0,
                kept: 0,
                bytes: vec![0; record_bytes].into_boxed_slice(),
            }));
        }
        CopyRing { free, full }
    }

    /// Copies as much as fits a record. `false`: none is free.
    pub fn push(&self, at: Nanos, about: CopyAbout, bytes: &[u8]) -> bool {
        self.push_edited(at, about, bytes, |_| ())
    }

    /// The same with what `edit` changes of the copy, where it is whole.
    pub fn push_edited(
        &self,
        at: Nanos,
        about: CopyAbout,
        bytes: &[u8],
        edit: impl FnOnce(&mut [u8]),
    ) -> bool {
        let Some(mut record) = self.free.pop() else { return false };
        let kept = bytes.len().min(record.bytes.len());
        record.bytes[..kept].copy_from_slice(&bytes[..kept]);
        if kept == bytes.len() {
            edit(&mut record.bytes[..kept]);
        }
        (record.about, record.at, record.length, record.kept) = (about, at, bytes.len(), kept);
        // There is room for all records there are.
        self.full.push(record).is_ok()
    }

    /// The next copy, which is to be given back.
    pub fn take(&self) -> Option<Box<CopyRecord>> {
        self.full.pop()
    }

    pub fn give_back(&self, record: Box<CopyRecord>) {
        let _ = self.free.push(record);
    }
}

impl CopyRecord {
    /// As much as was kept.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes[..self.kept]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn copies_come_in_order_are_cut_to_their_room_and_missed_where_there_is_none() {
        let ring = CopyRing::new(2, 4);
        let about = |n| CopyAbout::Frame(FilesId(n));
        assert!(ring.take().is_none());
        assert!(ring.push(Nanos(5), about(1), b"abcdef"));
        assert!(ring.push(Nanos(6), about(2), b"xy"));
        assert!(!ring.push(Nanos(7), about(3), b"z"), "both wait");
        let first = ring.take().expect("a copy");
        assert_eq!((first.about, first.at, first.length), (about(1), Nanos(5), 6));
        assert_eq!(first.bytes(), b"abcd");
        assert!(!ring.push(Nanos(7), about(3), b"z"), "one waits, one is looked at");
        ring.give_back(first);
        assert!(ring.push(Nanos(8), about(4), b"z"));
        let rest: Vec<_> = std::iter::from_fn(|| ring.take()).map(|r| r.bytes().to_vec()).collect();
        assert_eq!(rest, [b"xy".to_vec(), b"z".to_vec()]);
    }
}
