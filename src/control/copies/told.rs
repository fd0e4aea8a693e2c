//! What shadows are told of: how many there were, how their answers compare, why they were cut.

use super::answers::Answer;
use crate::observe::latency::Histogram;

/// Why a shadow ended before its original.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(usize)]
pub enum Cut {
    /// Its server refused the connection, or can't be reached.
    Refused,
    /// Its server did not take the connection in time.
    Silent,
    /// More of the original's bytes waited for it than may.
    Slow,
    /// Its server closed the connection, or reset it.
    Closed,
    /// The original has ended long ago, and answers are still missing.
    Late,
    /// Segments of the original were missed: packets came faster than copies were taken.
    Gap,
    /// One of the two speaks no HTTP/1, or not any more.
    Unread,
    /// Too many connections were shadowed.
    Crowded,
    /// The configuration has changed.
    Reloaded,
}

impl Cut {
    pub const COUNT: usize = 9;

    /// Names, in the order of their numbers; part of metrics.
    pub const NAMES: [&str; Cut::COUNT] =
        ["refused", "silent", "slow", "closed", "late", "gap", "unread", "crowded", "reloaded"];
}

const _: () = assert!(Cut::Reloaded as usize + 1 == Cut::COUNT);

/// What is told of the shadows of one service.
#[derive(Clone, Debug)]
pub struct Told {
    /// Shadows that were begun.
    pub connections: u64,
    /// That go on.
    pub open: u64,
    /// Requests sent whose heads were complete.
    pub requests: u64,
    pub status_same: u64,
    pub status_different: u64,
    pub size_same: u64,
    pub size_different: u64,
    /// Bytes of the bodies that were compared, the original's and the shadow's.
    pub bytes: [u64; 2],
    pub cuts: [u64; Cut::COUNT],
    /// Times to the first byte, of answers that were compared: the original's and the shadow's.
    pub first: [Histogram; 2],
}

impl Default for Told {
    fn default() -> Told {
        Told {
            connections: 0,
            open: 0,
            requests: 0,
            status_same: 0,
            status_different: 0,
            size_same: 0,
            size_different: 0,
            bytes: [0; 2],
            cuts: [0; Cut::COUNT],
            first: [Histogram::EMPTY; 2],
        }
    }
}

impl Told {
    /// Counts two answers to one request: the original's and the shadow's.
    pub fn compare(&mut self, answers: [Answer; 2]) {
        let [original, shadow] = answers;
        let is_same = original.status == shadow.status;
        self.status_same += u64::from(is_same);
        self.status_different += u64::from(!is_same);
        let is_same = original.size == shadow.size;
        self.size_same += u64::from(is_same);
        self.size_different += u64::from(!is_same);
        for (at, answer) in answers.iter().enumerate() {
            self.bytes[at] += answer.size;
            self.first[at].record(answer.first_ns);
        }
    }
}
