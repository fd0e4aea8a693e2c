//! How long answers take, told from outside: the time from a request's last bytes to the answer's
//! first record, and the gaps between the records of an answer. Needs no key.
//!
//! What is timed are TLS records of application data (RFC 8446, section 5.1), HTTP/2 frames in
//! clear text that carry a message (RFC 9113, section 4.1), and segments of HTTP/1 in clear text.
//! Headers are found by the lengths that stand in them, so bytes that are missed inside a record do
//! no harm; after a missed header the next segment that begins like one is believed.
//!
//! Nothing is held back or copied but pieces of headers. Where a connection carries several
//! requests at once, its times are those of all of them together.

use crate::base::Nanos;
use crate::packet::Direction;

/// Sealed bytes of a client's record that asks for something. HTTP/2's control frames are shorter
/// (SETTINGS' acknowledgement with WINDOW_UPDATE and PING: 57), and no request to a model is.
const REQUEST_BYTES_MIN: u32 = 64;
/// Sealed bytes of a server's record that answers: a single PING or WINDOW_UPDATE of HTTP/2 has 34
/// at most, an alert 24.
const ANSWER_BYTES_MIN: u32 = 35;
/// A sealed Finished message, with hashes of 32 and 48 bytes (RFC 8446, section 4.4.4).
const FINISHED_BYTES: [u32; 2] = [53, 69];
/// What a server sends this soon after the Finished is session tickets or SETTINGS, not an answer;
/// longer where its ServerHello took longer. A server with more threads than cores leaves tickets
/// for some milliseconds; no model answers sooner, and an error that does is only not timed.
const TICKETS_NS: u64 = 10_000_000;
const TICKETS_NS_MAX: u64 = 200_000_000;
/// An answer that is silent for so long has ended.
const ANSWER_ENDS_NS: u64 = 60_000_000_000;

/// What a segment told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Heard {
    Nothing,
    /// An answer begins: nanoseconds since the request's last bytes.
    First(u64),
    /// It goes on: nanoseconds since its record before. Records that came at the same moment are
    /// one.
    Next(u64),
}

/// One connection.
#[derive(Clone, Debug)]
#[repr(C)]
pub struct AnswerTimer {
    /// When the last piece of a request or of an answer came.
    since: Nanos,
    /// When the hello came; then how long the ServerHello took; then until when what the server
    /// sends is no answer.
    quiet: Nanos,
    ways: [Way; 2],
    /// Whose timer it is: a number for whoever keeps many.
    owner: u32,
    framing: Framing,
    state: State,
    /// The client has sent records of application data.
    sealed: bool,
    /// The record that the client sends is a request.
    asking: bool,
}

/// What a stream consists of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Framing {
    Tls,
    Http2,
    /// HTTP/1: each segment counts.
    Segments,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// Nothing was asked yet, or the answer has ended.
    Quiet,
    HelloSent,
    HelloAnswered,
    Asked,
    Answering,
}

/// One direction.
#[derive(Clone, Debug, Default)]
#[repr(C)]
struct Way {
    /// Sequence number behind the last byte seen.
    next: u32,
    /// Of the next header.
    header_at: u32,
    /// The header's first bytes, where a segment ended within it.
    kept: [u8; HEADER_BYTES_MAX - 1],
    kept_len: u8,
    /// `next` counts.
    seen: bool,
    /// `header_at` counts.
    in_step: bool,
}

// One cache line is what a packet costs.
const _: () = assert!(size_of::<Option<AnswerTimer>>() == 64);

const HEADER_BYTES_MAX: usize = 9;
const TLS_HEADER_BYTES: usize = 5;
const TLS_RECORD_BYTES_MAX: u32 = (1 << 14) + 2048;
const HTTP2_PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
const HTTP2_FRAME_BYTES_MAX: u32 = 1 << 20;
const METHODS: [&[u8]; 7] =
    [b"GET ", b"POST ", b"PUT ", b"HEAD ", b"PATCH ", b"DELETE ", b"OPTIONS "];

/// Of methods, of HTTP/2's preface and of an HTTP/1 answer.
const FIRST_BYTES: [u8; 5] = *b"GPHDO";

mod record {
    pub const CHANGE_CIPHER_SPEC: u8 = 20;
    pub const HANDSHAKE: u8 = 22;
    pub const APPLICATION_DATA: u8 = 23;
}

mod frame {
    pub const DATA: u8 = 0;
    pub const HEADERS: u8 = 1;
    /// CONTINUATION: the last one of RFC 9113.
    pub const LAST: u8 = 9;
}

impl AnswerTimer {
    /// Of a connection whose segment begins like one of those that are timed. The segment is still
    /// to be fed.
    #[inline]
    pub fn begin(
        owner: u32,
        direction: Direction,
        now: Nanos,
        payload: &[u8],
    ) -> Option<AnswerTimer> {
        // Most bytes begin none of them, and this is asked for each packet of all other flows.
        let first = payload.first()?;
        if !FIRST_BYTES.contains(first) && !(20..=23).contains(first) {
            return None;
        }
        let framing = match direction {
            _ if Header::of_record(payload).is_some() => Framing::Tls,
            Direction::Forward if payload.starts_with(&HTTP2_PREFACE[..3]) => Framing::Http2,
            Direction::Forward if METHODS.iter().any(|m| payload.starts_with(m)) => {
                Framing::Segments
            }
            Direction::Reply if payload.starts_with(b"HTTP/1") => Framing::Segments,
            _ => return None,
        };
        let ways = [Way::default(), Way::default()];
        let (state, quiet) = (State::Quiet, Nanos::ZERO);
        let (sealed, asking) = (false, false);
        Some(AnswerTimer { since: now, quiet, ways, owner, framing, state, sealed, asking })
    }

    /// As given at the beginning.
    #[inline]
    pub fn owner(&self) -> u32 {
        self.owner
    }

    /// Whether a request waits for its answer.
    #[inline]
    pub fn is_asked(&self) -> bool {
        self.state == State::Asked
    }

    /// Whether the byte with this sequence number was passed already.
    pub fn has_passed(&self, direction: Direction, seq: u32) -> bool {
        let way = &self.ways[direction as usize];
        way.seen && (seq.wrapping_sub(way.next) as i32) < 0
    }

    /// When a request or an answer last went on, or the connection began.
    pub fn since(&self) -> Nanos {
        self.since
    }

    /// Takes a segment's payload; segments that were seen before tell nothing.
    #[inline]
    pub fn feed(&mut self, direction: Direction, now: Nanos, seq: u32, payload: &[u8]) -> Heard {
        let way = &mut self.ways[direction as usize];
        let end = seq.wrapping_add(payload.len() as u32);
        if payload.is_empty() || way.seen && end.wrapping_sub(way.next) as i32 <= 0 {
            return Heard::Nothing;
        }
        let first = !way.seen;
        (way.seen, way.next) = (true, end);
        if self.framing == Framing::Segments {
            return self.message(direction, now);
        }
        if first && direction == Direction::Forward && payload.starts_with(HTTP2_PREFACE) {
            way.header_at = seq.wrapping_add(HTTP2_PREFACE.len() as u32);
            way.in_step = true;
        }
        self.walk(direction, now, seq, payload)
    }

    /// From header to header.
    fn walk(&mut self, direction: Direction, now: Nanos, seq: u32, payload: &[u8]) -> Heard {
        let mut heard = Heard::Nothing;
        let framing = self.framing;
        let mut at = self.ways[direction as usize].enter(framing, seq, payload);
        // Of a long request the last bytes count.
        let goes_on = direction == Direction::Forward && self.asking && at.is_some_and(|at| at > 0);
        if goes_on && self.state == State::Asked {
            self.since = now;
        }
        while let Some(rest) = at.and_then(|at| payload.get(at..)).filter(|rest| !rest.is_empty()) {
            let Some(header) = self.ways[direction as usize].header(framing, rest) else { break };
            let told = match framing {
                Framing::Tls => self.record(direction, now, header),
                _ if header.is_message() => self.message(direction, now),
                _ => Heard::Nothing,
            };
            if heard == Heard::Nothing {
                heard = told;
            }
            let way = &self.ways[direction as usize];
            at = Some(way.header_at.wrapping_sub(seq) as usize);
        }
        heard
    }

    fn record(&mut self, direction: Direction, now: Nanos, header: Header) -> Heard {
        match (direction, header.kind) {
            (Direction::Forward, record::HANDSHAKE) => {
                if self.state == State::Quiet && !self.sealed {
                    (self.state, self.quiet) = (State::HelloSent, now);
                }
                Heard::Nothing
            }
            (Direction::Reply, record::HANDSHAKE) => {
                if self.state == State::HelloSent {
                    (self.state, self.quiet) = (State::HelloAnswered, Nanos(now.since(self.quiet)));
                }
                Heard::Nothing
            }
            (Direction::Forward, record::APPLICATION_DATA) => {
                let first = !std::mem::replace(&mut self.sealed, true);
                if first && FINISHED_BYTES.contains(&header.len) {
                    let known = self.state == State::HelloAnswered;
                    let hello_ns = if known { self.quiet.0 } else { 0 };
                    self.quiet = now.saturating_add(hello_ns.clamp(TICKETS_NS, TICKETS_NS_MAX));
                    self.state = State::Quiet;
                    return Heard::Nothing;
                }
                self.asking = header.len >= REQUEST_BYTES_MIN;
                if self.asking { self.message(direction, now) } else { Heard::Nothing }
            }
            (Direction::Reply, record::APPLICATION_DATA)
                if header.len >= ANSWER_BYTES_MIN && now >= self.quiet =>
            {
                self.message(direction, now)
            }
            _ => Heard::Nothing,
        }
    }

    /// A piece of a request or of an answer.
    fn message(&mut self, direction: Direction, now: Nanos) -> Heard {
        let ns = now.since(self.since);
        let heard = match (direction, self.state) {
            (Direction::Forward, _) => {
                self.state = State::Asked;
                Heard::Nothing
            }
            (Direction::Reply, State::Asked) => {
                self.state = State::Answering;
                Heard::First(ns)
            }
            (Direction::Reply, State::Answering) if ns > ANSWER_ENDS_NS => {
                self.state = State::Quiet;
                Heard::Nothing
            }
            (Direction::Reply, State::Answering) if ns > 0 => Heard::Next(ns),
            (Direction::Reply, State::Answering) => Heard::Nothing,
            (Direction::Reply, _) => return Heard::Nothing,
        };
        self.since = now;
        heard
    }
}

impl Way {
    /// Where in the segment the next header, or the rest of it, begins. `None` where that is not
    /// known; beyond the segment where it lies within a record.
    #[inline]
    fn enter(&mut self, framing: Framing, seq: u32, payload: &[u8]) -> Option<usize> {
        let ahead = self.header_at.wrapping_add(u32::from(self.kept_len)).wrapping_sub(seq) as i32;
        if self.in_step && ahead >= 0 {
            return Some(ahead as usize);
        }
        // Bytes with a header were missed, or nothing was seen before.
        self.in_step = Header::of(framing, payload).is_some();
        (self.header_at, self.kept_len) = (seq, 0);
        self.in_step.then_some(0)
    }

    /// Reads a header that `rest` begins with, or the rest of it; moves on behind its record.
    /// `None` where it isn't complete, or is none.
    #[inline]
    fn header(&mut self, framing: Framing, rest: &[u8]) -> Option<Header> {
        let size = framing.header_bytes();
        let kept = usize::from(self.kept_len);
        let mut bytes = [0; HEADER_BYTES_MAX];
        let whole = if kept == 0 && rest.len() >= size {
            &rest[..size]
        } else {
            let taken = rest.len().min(size - kept);
            bytes[..kept].copy_from_slice(&self.kept[..kept]);
            bytes[kept..kept + taken].copy_from_slice(&rest[..taken]);
            if kept + taken < size {
                self.kept[kept..kept + taken].copy_from_slice(&rest[..taken]);
                self.kept_len += taken as u8;
                return None;
            }
            &bytes[..size]
        };
        self.kept_len = 0;
        let Some(header) = Header::of(framing, whole) else {
            self.in_step = false;
            return None;
        };
        self.header_at = self.header_at.wrapping_add(size as u32 + header.len);
        Some(header)
    }
}

impl Framing {
    fn header_bytes(self) -> usize {
        if self == Framing::Tls { TLS_HEADER_BYTES } else { HEADER_BYTES_MAX }
    }
}

/// Of a record or a frame.
#[derive(Clone, Copy, Debug)]
struct Header {
    kind: u8,
    /// Bytes behind the header.
    len: u32,
}

impl Header {
    fn of(framing: Framing, bytes: &[u8]) -> Option<Header> {
        if framing == Framing::Tls { Header::of_record(bytes) } else { Header::of_frame(bytes) }
    }

    #[inline]
    fn of_record(bytes: &[u8]) -> Option<Header> {
        let &[kind, major, minor, high, low] = bytes.first_chunk()?;
        let len = u32::from(u16::from_be_bytes([high, low]));
        let kinds = record::CHANGE_CIPHER_SPEC..=record::APPLICATION_DATA;
        let plausible = kinds.contains(&kind) && major == 3 && minor <= 4;
        (plausible && len <= TLS_RECORD_BYTES_MAX).then_some(Header { kind, len })
    }

    fn of_frame(bytes: &[u8]) -> Option<Header> {
        let &[a, b, c, kind, _flags, stream, ..] = bytes.first_chunk::<HEADER_BYTES_MAX>()?;
        let len = u32::from_be_bytes([0, a, b, c]);
        let plausible = kind <= frame::LAST && stream < 0x80 && len <= HTTP2_FRAME_BYTES_MAX;
        plausible.then_some(Header { kind, len })
    }

    /// Of HTTP/2: whether the frame carries a message.
    fn is_message(&self) -> bool {
        self.kind == frame::HEADERS || self.kind == frame::DATA && self.len > 0
    }
}

#[cfg(test)]
mod tests;
