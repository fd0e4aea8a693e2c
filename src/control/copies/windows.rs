//! Flow control of a shadow's connection of HTTP/2 (RFC 9113, section 5.2). The client grants and
//! uses what its own server and it have agreed on; the shadow's server may allow less, and send
//! more.

use std::collections::BTreeMap;

use crate::inspect::h2::PREFACE;
use crate::inspect::h2::frame::{
    FRAME_BYTES_LIMIT, Frames, HEAD_BYTES, Head, Part, flag, kind, setting,
};

/// Of a connection, and of each stream as long as no setting says otherwise.
const WINDOW: i64 = 65_535;

/// The windows of both directions, by the frames that were sent and received.
pub struct Windows {
    /// What the shadow's server takes of requests.
    requests: Window,
    /// What the client has granted for answers.
    answers: Window,
    /// Bytes of the preface that were not sent.
    preface: usize,
    sent: Frames,
    received: Frames,
    /// Bytes at the front of what waits that may go.
    free: usize,
    /// The last stream that the client has opened.
    highest: u32,
    /// What comes next waits for room.
    is_full: bool,
}

struct Window {
    connection: i64,
    /// Of streams.
    initial: i64,
    /// By open stream: what was granted beyond that, less what was used.
    streams: BTreeMap<u32, i64>,
}

impl Windows {
    pub fn new() -> Windows {
        let window = || Window { connection: WINDOW, initial: WINDOW, streams: BTreeMap::new() };
        Windows {
            requests: window(),
            answers: window(),
            preface: PREFACE.len(),
            sent: Frames::new(false),
            received: Frames::new(false),
            free: PREFACE.len(),
            highest: 0,
            is_full: false,
        }
    }

    /// How many of the bytes that wait may be sent now; `copy` fills in those from a place on.
    pub fn allow(&mut self, len: usize, copy: impl Fn(usize, &mut [u8; HEAD_BYTES])) -> usize {
        self.is_full = false;
        while self.free + HEAD_BYTES <= len {
            let mut bytes = [0; HEAD_BYTES];
            copy(self.free, &mut bytes);
            let head = Head::read(&bytes);
            if head.kind == kind::DATA && !self.requests.take(head.stream, head.length) {
                self.is_full = true;
                break;
            }
            if head.kind == kind::HEADERS {
                self.requests.streams.entry(head.stream).or_default();
            }
            self.requests.close(&head);
            self.free += HEAD_BYTES + head.length as usize;
        }
        self.free.min(len)
    }

    /// So much was sent: what the client grants counts from now on.
    pub fn sent(&mut self, mut bytes: &[u8]) {
        self.free = self.free.saturating_sub(bytes.len());
        let preface = self.preface.min(bytes.len());
        self.preface -= preface;
        bytes = &bytes[preface..];
        // Whoever reads the messages says what is wrong.
        while let Ok(Some(part)) = self.sent.next(&mut bytes, FRAME_BYTES_LIMIT) {
            self.answers.grant(part, self.sent.head());
            if let Part::Head(head) = part
                && head.kind == kind::HEADERS
                && head.stream > self.highest
            {
                self.highest = head.stream;
                self.answers.streams.entry(head.stream).or_default();
            }
            if let Part::Reset { .. } = part {
                self.answers.streams.remove(&self.sent.head().stream);
            }
        }
    }

    /// The shadow's server has said so much.
    pub fn received(&mut self, mut bytes: &[u8]) {
        while let Ok(Some(part)) = self.received.next(&mut bytes, FRAME_BYTES_LIMIT) {
            let head = self.received.head();
            self.requests.grant(part, head);
            match part {
                Part::Head(head) if head.kind == kind::DATA => {
                    let length = i64::from(head.length);
                    self.answers.connection -= length;
                    if let Some(stream) = self.answers.streams.get_mut(&head.stream) {
                        *stream -= length;
                    }
                    self.answers.close(&head);
                }
                Part::Head(head) => self.answers.close(&head),
                Part::Reset { .. } => {
                    self.answers.streams.remove(&head.stream);
                    self.requests.streams.remove(&head.stream);
                }
                _ => {}
            }
        }
    }

    /// Whether one side can't go on before it is granted more.
    pub fn is_stalled(&self) -> bool {
        let answers = &self.answers;
        let mut rooms = answers.streams.values().map(|used| answers.initial + used);
        self.is_full && self.free == 0
            || !answers.streams.is_empty() && answers.connection <= 0
            || rooms.any(|room| room <= 0)
    }
}

impl Window {
    /// Uses up room, where there is enough.
    fn take(&mut self, stream: u32, length: u32) -> bool {
        let length = i64::from(length);
        let used = self.streams.get(&stream).copied().unwrap_or_default();
        if length > self.connection || length > self.initial + used {
            return false;
        }
        self.connection -= length;
        self.streams.insert(stream, used - length);
        true
    }

    /// Forgets a stream with its last frame.
    fn close(&mut self, head: &Head) {
        let ends = head.has(flag::END_STREAM) && matches!(head.kind, kind::DATA | kind::HEADERS);
        if ends || head.kind == kind::RST_STREAM {
            self.streams.remove(&head.stream);
        }
    }

    /// What the receiver grants.
    fn grant(&mut self, part: Part<'_>, head: Head) {
        match part {
            Part::WindowUpdate { increment } if head.stream == 0 => {
                self.connection += i64::from(increment);
            }
            Part::WindowUpdate { increment } => {
                if let Some(stream) = self.streams.get_mut(&head.stream) {
                    *stream += i64::from(increment);
                }
            }
            Part::Setting { id: setting::INITIAL_WINDOW_SIZE, value } => {
                self.initial = i64::from(value);
            }
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::streams::tests::{data, frame, get, head, preface};
    use super::*;

    fn allow(windows: &mut Windows, waiting: &[u8]) -> usize {
        windows.allow(waiting.len(), |from, room| {
            room.copy_from_slice(&waiting[from..from + HEAD_BYTES]);
        })
    }

    fn send(windows: &mut Windows, waiting: &mut Vec<u8>) {
        loop {
            let count = allow(windows, waiting).min(5_000);
            if count == 0 {
                return;
            }
            windows.sent(&waiting[..count]);
            waiting.drain(..count);
        }
    }

    fn update(stream: u32, by: u32) -> Vec<u8> {
        frame(kind::WINDOW_UPDATE, 0, stream, &by.to_be_bytes())
    }

    fn initial(size: u32) -> Vec<u8> {
        let [a, b, c, d] = size.to_be_bytes();
        frame(kind::SETTINGS, 0, 0, &[0, 4, a, b, c, d])
    }

    fn post(stream: u32) -> Vec<u8> {
        frame(kind::HEADERS, flag::END_HEADERS, stream, &[0x83, 0x86, 0x84])
    }

    #[test]
    fn data_waits_for_the_shadows_window_and_what_is_behind_it_too() {
        let mut w = Windows::new();
        let body = data(1, 16_000, 0).repeat(5);
        let mut waiting = [preface(), post(1), body, get(3)].concat();
        let rest = data(1, 16_000, 0).len() + get(3).len();
        send(&mut w, &mut waiting);
        assert_eq!(waiting.len(), rest, "65,535 bytes are four such frames");
        assert!(w.is_stalled());
        w.received(&update(0, 100_000));
        send(&mut w, &mut waiting);
        assert_eq!(waiting.len(), rest, "the stream's own window");
        let grants = update(1, 100_000);
        for part in grants.chunks(3) {
            w.received(part);
        }
        send(&mut w, &mut waiting);
        assert!(waiting.is_empty() && !w.is_stalled());
    }

    #[test]
    fn a_servers_setting_counts_for_streams_that_are_open() {
        let mut w = Windows::new();
        w.received(&initial(10));
        let mut waiting = [preface(), post(1), data(1, 20, flag::END_STREAM)].concat();
        send(&mut w, &mut waiting);
        assert_eq!(waiting.len(), HEAD_BYTES + 20);
        w.received(&initial(20));
        send(&mut w, &mut waiting);
        assert!(waiting.is_empty() && w.requests.streams.is_empty());
    }

    #[test]
    fn an_answer_stalls_where_the_client_has_not_granted_more() {
        let mut w = Windows::new();
        let mut waiting = [preface(), get(1), get(3)].concat();
        send(&mut w, &mut waiting);
        w.received(&[head(1, true), data(1, 16_000, 0).repeat(4), data(1, 1_535, 0)].concat());
        assert!(w.is_stalled(), "stream and connection are used up");
        let mut more = update(1, 1_000);
        send(&mut w, &mut more);
        assert!(w.is_stalled(), "the connection still is");
        send(&mut w, &mut update(0, 1_000));
        assert!(!w.is_stalled());
        w.received(&data(1, 1_000, flag::END_STREAM));
        assert!(w.is_stalled(), "stream 3 has no room on the connection");
        w.received(&[head(3, true), data(3, 0, flag::END_STREAM)].concat());
        assert!(!w.is_stalled() && w.answers.streams.is_empty());
    }
}
