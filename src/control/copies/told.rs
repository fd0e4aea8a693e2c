//! What shadows are told of: how many there were, how their answers compare, why they were cut.

use super::answers::Answer;
use crate::control::view::ShadowView;
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
    /// One of the two speaks neither HTTP/1 nor HTTP/2, or not any more.
    Unread,
    /// Flow control of HTTP/2 has held it up for long: its server takes less than the original's,
    /// or answers with more than the client has taken.
    Window,
    /// Too many connections were shadowed.
    Crowded,
    /// The configuration has changed.
    Reloaded,
}

impl Cut {
    pub const COUNT: usize = 10;

    /// Names, in the order of their numbers; part of metrics.
    pub const NAMES: [&str; Cut::COUNT] = [
        "refused", "silent", "slow", "closed", "late", "gap", "unread", "window", "crowded",
        "reloaded",
    ];
}

const _: () = assert!(Cut::Reloaded as usize + 1 == Cut::COUNT);

/// What is told of the shadows of one service.
#[derive(Clone, Debug)]
pub struct Told {
    /// As it is shown; whose it is, and what follows from the rest, is filled in there.
    pub counts: ShadowView,
    pub cuts: [u64; Cut::COUNT],
    /// Times to the first byte, of answers that were compared: the original's and the shadow's.
    pub first: [Histogram; 2],
}

impl Default for Told {
    fn default() -> Told {
        Told { counts: ShadowView::default(), cuts: [0; Cut::COUNT], first: [Histogram::EMPTY; 2] }
    }
}

impl Told {
    /// Counts two answers to one request: the original's and the shadow's.
    pub fn compare(&mut self, answers: [Answer; 2]) {
        let [original, shadow] = answers;
        let counts = &mut self.counts;
        let is_same = original.status == shadow.status;
        counts.status_same += u64::from(is_same);
        counts.status_different += u64::from(!is_same);
        let is_same = original.size == shadow.size;
        counts.size_same += u64::from(is_same);
        counts.size_different += u64::from(!is_same);
        counts.original_bytes += original.size;
        counts.shadow_bytes += shadow.size;
        for (first, answer) in self.first.iter_mut().zip(answers) {
            first.record(answer.first_ns);
        }
    }
}
