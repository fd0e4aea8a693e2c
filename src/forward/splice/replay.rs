//! Sending a backend what was held: a small TCP sender that goes back to the first byte that is
//! missing.

use super::binding::{OWED_NS, Seen};
use super::emit::{Out, Segment, Toward};
use super::options::{OptionBytes, Stamps, TIMESTAMPS_LEN};
use crate::base::Nanos;
use crate::packet::tcp::flag::{ACK, FIN, PSH};

/// First wait for an acknowledgement (Linux's shortest); doubled with every further one.
const WAIT_NS: u64 = 200_000_000;
const WAIT_NS_MAX: u64 = 3_000_000_000;
/// Waits in vain until the connection is given up: 15 s in all.
const WAITS_MAX: u8 = 8;
/// Segments sent at once at the beginning (RFC 6928).
const FIRST_FLIGHT: u32 = 10;
/// Acknowledgements of the same byte that mean a loss (RFC 5681, section 3.2).
const DUPLICATES: u8 = 3;
/// Smallest segment worth sending.
const MSS_MIN: u16 = 64;
/// Who is told of a smaller path may be told by anyone (Linux: `net.ipv4.route.min_pmtu`, 552).
const MSS_TOLD_MIN: u16 = 512;

/// Positions count bytes of the held stream; its FIN takes one.
#[derive(Clone, Debug, Default)]
pub(super) struct Replay {
    stream: u32,
    acked: u32,
    sent: u32,
    /// The backend takes no byte from here on.
    window_end: u32,
    /// Payload of a segment.
    mss: u16,
    shift: u8,
    /// Segments that may be under way.
    flight_max: u32,
    duplicates: u8,
    waits: u8,
    /// The end of the wait; zero: it begins with the next segment.
    deadline: Nanos,
    /// The next time is not the end of a wait.
    owed: bool,
    /// The backend waits for an acknowledgement of its SYN.
    must_answer: bool,
    server_next: u32,
    /// What the client has acknowledged of the backend's stream: no more may be acknowledged here,
    /// since only the backend can send the client the rest again.
    client_has: u32,
    server_stamp: u32,
}

/// What every segment says of the client's side.
pub(super) struct Stream {
    /// Sequence number of the first byte.
    pub first: u32,
    /// A FIN follows the last.
    pub finished: bool,
    /// As the backend reads it.
    pub window: u16,
    pub stamps: Option<Stamps>,
}

impl Replay {
    /// Of the held stream up to `stream`, which begins at `from`.
    pub(super) fn new(from: u32, stream: u32) -> Replay {
        Replay { stream, acked: from, sent: from, ..Replay::default() }
    }

    /// With the backend's SYN-ACK, whose own window is not scaled.
    pub(super) fn begin(&mut self, syn_ack: &Seen, mss: u16, shift: u8, stamps: bool) {
        let options = if stamps { TIMESTAMPS_LEN as u16 } else { 0 };
        self.mss = mss.saturating_sub(options).max(MSS_MIN);
        self.shift = shift;
        self.flight_max = FIRST_FLIGHT;
        self.window_end = self.acked + u32::from(syn_ack.window);
        self.must_answer = true;
        self.server_next = syn_ack.sequence.wrapping_add(1);
        self.client_has = self.server_next;
        self.server_stamp = syn_ack.stamps.map_or(0, |s| s.value);
    }

    /// Segments are no larger than this from now on, their options included.
    pub(super) fn limit(&mut self, mss: u16, stamps: bool) {
        let options = if stamps { TIMESTAMPS_LEN as u16 } else { 0 };
        self.mss = self.mss.min(mss.max(MSS_TOLD_MIN).saturating_sub(options));
    }

    pub(super) fn acked(&self) -> u32 {
        self.acked
    }

    pub(super) fn sent(&self) -> u32 {
        self.sent
    }

    /// The backend's next sequence number as far as was seen.
    pub(super) fn server_next(&self) -> u32 {
        self.server_next
    }

    /// The backend's latest timestamp.
    pub(super) fn server_stamp(&self) -> u32 {
        self.server_stamp
    }

    /// The client has acknowledged the backend's stream up to here.
    pub(super) fn client_acknowledged(&mut self, sequence: u32) {
        let news = sequence.wrapping_sub(self.client_has);
        if news <= self.server_next.wrapping_sub(self.client_has) {
            self.client_has = sequence;
        }
    }

    pub(super) fn is_over(&self) -> bool {
        self.acked >= self.stream
    }

    /// Bytes that the backend takes behind the held stream.
    pub(super) fn window_behind_stream(&self) -> u32 {
        self.window_end.saturating_sub(self.stream)
    }

    pub(super) fn gives_up(&self) -> bool {
        self.waits >= WAITS_MAX && !self.owed
    }

    /// A segment of the backend that acknowledges everything before `acked` and takes up `space`
    /// sequence numbers.
    pub(super) fn acknowledged(&mut self, seen: &Seen, acked: u32, space: u32) {
        let end = seen.sequence.wrapping_add(space);
        if end.wrapping_sub(self.server_next) as i32 > 0 {
            self.server_next = end;
        }
        if let Some(stamps) = seen.stamps
            && stamps.value.wrapping_sub(self.server_stamp) as i32 > 0
        {
            self.server_stamp = stamps.value;
        }
        let ahead = acked.wrapping_sub(self.acked) as i32;
        if ahead < 0 {
            return;
        }
        let window_end = acked.saturating_add(u32::from(seen.window) << self.shift);
        if ahead > 0 {
            self.acked = acked;
            self.sent = self.sent.max(acked);
            (self.duplicates, self.waits, self.deadline) = (0, 0, Nanos::ZERO);
            self.flight_max += 1;
        } else if space == 0 && window_end == self.window_end && self.sent > self.acked {
            self.duplicates = self.duplicates.saturating_add(1);
            if self.duplicates == DUPLICATES {
                self.flight_max = (self.flight_max / 2).max(1);
                self.sent = self.acked;
            }
        }
        self.window_end = window_end;
    }

    /// The backend has not heard us.
    pub(super) fn rewind(&mut self) {
        self.sent = self.acked;
        self.must_answer = true;
    }

    pub(super) fn timeout(&mut self) {
        if !std::mem::take(&mut self.owed) {
            self.waits += 1;
            self.flight_max = 1;
            self.sent = self.acked;
            self.deadline = Nanos::ZERO;
        }
    }

    /// Puts out what may be sent now. Returns when [`Replay::timeout`] is to be called.
    pub(super) fn send(&mut self, now: Nanos, what: &Stream, out: &mut Out) -> Nanos {
        let bytes = self.stream - u32::from(what.finished);
        // A closed window is asked about with a byte whenever a wait is over.
        let probe = u32::from(self.waits > 0 && self.sent == self.acked);
        let flight_end = self.acked.saturating_add(self.flight_max * u32::from(self.mss));
        let end = self.window_end.max(self.acked + probe).min(flight_end).min(self.stream);
        while self.sent < end {
            let to = (self.sent + u32::from(self.mss)).min(end);
            let data = to.min(bytes).saturating_sub(self.sent) as u16;
            let fin = if to > bytes { FIN } else { 0 };
            let push = if to >= bytes && data > 0 { PSH } else { 0 };
            if !out.push(self.segment(what, push | fin, data)) {
                self.owed = true;
                return now.saturating_add(OWED_NS);
            }
            (self.sent, self.must_answer) = (to, false);
        }
        if self.must_answer {
            self.must_answer = !out.push(self.segment(what, 0, 0));
        }
        if self.deadline == Nanos::ZERO {
            self.deadline = now.saturating_add((WAIT_NS << self.waits.min(8)).min(WAIT_NS_MAX));
        }
        self.deadline
    }

    fn segment(&self, what: &Stream, flags: u8, data: u16) -> Segment {
        Segment {
            toward: Toward::Backend,
            sequence: what.first.wrapping_add(self.sent),
            acknowledgment: self.client_has,
            flags: ACK | flags,
            window: what.window,
            options: OptionBytes::of_segment(what.stamps),
            payload: (self.sent, data),
            greeting: &[],
        }
    }
}
