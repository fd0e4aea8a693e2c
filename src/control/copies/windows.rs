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
    /// The last stream that the client has opened, as it was sent.
    highest: u32,
    /// The same, of what may go.
    allowed: u32,
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
            allowed: 0,
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
            if head.kind == kind::HEADERS && head.stream > self.allowed {
                self.allowed = head.stream;
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

    /// Whether one side can't go on before it is granted more. A client that has not had its own
    /// answer on a stream, which `is_awaited` tells, may yet grant more there: it may have paused.
    pub fn is_stalled(&self, is_awaited: impl Fn(u32) -> bool) -> bool {
        let answers = &self.answers;
        let is_over = |stream: &u32| !is_awaited(*stream);
        let whole = answers.connection <= 0 && !answers.streams.is_empty();
        let used_up = |used: &i64| answers.initial + used <= 0;
        let mut streams = answers.streams.iter();
        self.is_full && self.free == 0
            || whole && answers.streams.keys().all(is_over)
            || streams.any(|(stream, used)| used_up(used) && is_over(stream))
    }
}

impl Window {
    /// Uses up room, where there is enough. On a stream that the receiver has reset it is only the
    /// connection's: nothing more is granted there (RFC 9113, sections 5.1 and 6.9).
    fn take(&mut self, stream: u32, length: u32) -> bool {
        let length = i64::from(length);
        let used = self.streams.get_mut(&stream);
        let initial = self.initial;
        if length > self.connection || used.as_ref().is_some_and(|u| length > initial + **u) {
            return false;
        }
        self.connection -= length;
        if let Some(used) = used {
            *used -= length;
        }
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

    /// Where the client has all its own answers.
    fn is_stalled(windows: &Windows) -> bool {
        windows.is_stalled(|_| false)
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
        assert!(w.is_stalled(|_| true), "whatever the client does");
        w.received(&update(0, 100_000));
        send(&mut w, &mut waiting);
        assert_eq!(waiting.len(), rest, "the stream's own window");
        let grants = update(1, 100_000);
        for part in grants.chunks(3) {
            w.received(part);
        }
        send(&mut w, &mut waiting);
        assert!(waiting.is_empty() && !is_stalled(&w));
    }

    #[test]
    fn what_goes_to_a_stream_that_the_server_has_reset_is_the_connections_alone() {
        let mut w = Windows::new();
        let mut waiting = [preface(), post(1)].concat();
        send(&mut w, &mut waiting);
        w.received(&frame(kind::RST_STREAM, 0, 1, &[0, 0, 0, 8]));
        // The client has not heard of it: its own server has not reset anything.
        for _ in 0..10 {
            let mut body = data(1, 16_000, 0);
            send(&mut w, &mut body);
            assert!(body.is_empty() && !is_stalled(&w));
            w.received(&update(0, 16_000));
        }
        let trailers = frame(kind::HEADERS, flag::END_HEADERS, 1, &[0x83]);
        let mut rest = [trailers, data(1, 16_000, 0).repeat(5)].concat();
        send(&mut w, &mut rest);
        assert_eq!(rest.len(), data(1, 16_000, 0).len(), "what the connection has no room for");
        assert!(is_stalled(&w) && w.requests.streams.is_empty());
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
        assert!(is_stalled(&w), "stream and connection are used up");
        assert!(!w.is_stalled(|stream| stream == 1), "so they are for the client's own answers");
        assert!(w.is_stalled(|stream| stream == 3), "the client has all of stream 1");
        let mut more = update(1, 1_000);
        send(&mut w, &mut more);
        assert!(is_stalled(&w), "the connection still is");
        assert!(!w.is_stalled(|stream| stream == 3), "which it grants more of for stream 3");
        send(&mut w, &mut update(0, 1_000));
        assert!(!is_stalled(&w));
        w.received(&data(1, 1_000, flag::END_STREAM));
        assert!(is_stalled(&w), "stream 3 has no room on the connection");
        w.received(&[head(3, true), data(3, 0, flag::END_STREAM)].concat());
        assert!(!is_stalled(&w) && w.answers.streams.is_empty());
    }
}
