//! The answers that one server gives on a connection of HTTP/2, by stream: status, size, and how
//! long the client waited for the first byte.

use std::collections::BTreeMap;

use super::answers::{Answer, Unread};
use crate::base::Nanos;
use crate::inspect::fields::Wanted;
use crate::inspect::h2::{Block, Connection, Event, Side};

/// Streams that are open, or whose answers nobody has taken, at most.
const STREAMS_MAX: usize = 1_024;
/// What both sides may keep of header fields by default (RFC 9113, section 6.5.2).
const TABLE_BYTES: usize = 4_096;

/// Both sides of a connection, as they were sent or received.
pub struct Streams {
    http: Box<Connection>,
    wanted: Wanted,
    open: BTreeMap<u32, Open>,
    /// Answers that nobody has taken.
    done: BTreeMap<u32, Answer>,
    /// The stream that the client spoke on last.
    last: u32,
}

struct Open {
    /// When the client spoke on it last.
    asked: Nanos,
    /// 0 before the answer's head.
    status: u16,
    head: Nanos,
    first: Option<Nanos>,
    size: u64,
}

impl Streams {
    pub fn new(wanted: &Wanted) -> Streams {
        Streams {
            http: Box::new(Connection::new(wanted, 0, TABLE_BYTES)),
            wanted: wanted.clone(),
            open: BTreeMap::new(),
            done: BTreeMap::new(),
            last: 0,
        }
    }

    /// Requests whose heads were complete.
    pub fn requests(&self) -> u64 {
        self.http.requests()
    }

    /// Requests that have no complete answer.
    pub fn waiting(&self) -> usize {
        self.open.len()
    }

    /// Whether a stream's answer is not complete.
    pub fn is_awaited(&self, stream: u32) -> bool {
        self.open.contains_key(&stream)
    }

    /// The client's next bytes.
    ///
    /// # Errors
    /// [`Unread`], as [`Streams::server`].
    pub fn client(&mut self, now: Nanos, bytes: &[u8]) -> Result<(), Unread> {
        let (open, done, last) = (&mut self.open, &mut self.done, &mut self.last);
        // What goes on with a frame that began before.
        if !self.http.is_idle(Side::Client)
            && let Some(stream) = open.get_mut(last)
        {
            stream.asked = now;
        }
        let fed = self.http.feed(Side::Client, bytes, &self.wanted, |event| match event {
            Event::Headers { stream, block: Block::Request, .. } => {
                *last = stream;
                let new = Open { asked: now, status: 0, head: now, first: None, size: 0 };
                open.insert(stream, new);
            }
            Event::Headers { stream, .. } | Event::Data { stream, .. } => {
                *last = stream;
                if let Some(open) = open.get_mut(&stream) {
                    open.asked = now;
                }
            }
            // The client no longer wants to know.
            Event::Reset { stream, .. } => {
                open.remove(&stream);
                done.remove(&stream);
            }
            _ => {}
        });
        self.within(fed.is_ok())
    }

    /// The server's next bytes.
    pub fn server(&mut self, now: Nanos, bytes: &[u8]) -> Result<(), Unread> {
        let (open, done) = (&mut self.open, &mut self.done);
        let fed = self.http.feed(Side::Server, bytes, &self.wanted, |event| {
            let (id, is_end) = match event {
                Event::Headers { stream, block: Block::Response, end_stream, fields } => {
                    if let Some(open) = open.get_mut(&stream) {
                        (open.status, open.head) = (fields.status().unwrap_or(0), now);
                    }
                    (stream, end_stream)
                }
                Event::Headers { stream, block: Block::Trailers, end_stream, .. } => {
                    (stream, end_stream)
                }
                Event::Data { stream, length, end_stream } => {
                    if let Some(open) = open.get_mut(&stream)
                        && length > 0
                    {
                        open.first.get_or_insert(now);
                        open.size += u64::from(length);
                    }
                    (stream, end_stream)
                }
                Event::Reset { stream, .. } => (stream, true),
                _ => return,
            };
            if is_end && let Some(open) = open.remove(&id) {
                done.insert(id, open.complete());
            }
        });
        self.within(fed.is_ok())
    }

    /// Takes the answers to one request that both have.
    pub fn take_both(&mut self, other: &mut Streams) -> Option<[Answer; 2]> {
        let both = |id: &&u32| other.done.contains_key(id);
        let id = self.done.keys().find(both).copied()?;
        Some([self.done.remove(&id)?, other.done.remove(&id)?])
    }

    fn within(&self, is_read: bool) -> Result<(), Unread> {
        let is_within = self.open.len() + self.done.len() <= STREAMS_MAX;
        if is_read && is_within { Ok(()) } else { Err(Unread) }
    }
}

impl Open {
    fn complete(self) -> Answer {
        let first = self.first.unwrap_or(self.head);
        Answer { status: self.status, size: self.size, first_ns: first.since(self.asked) }
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::inspect::h2::PREFACE;
    use crate::inspect::h2::frame::{flag, kind};

    pub fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
        let length = (payload.len() as u32).to_be_bytes();
        let mut all = vec![length[1], length[2], length[3], kind, flags];
        all.extend_from_slice(&stream.to_be_bytes());
        all.extend_from_slice(payload);
        all
    }

    /// `:method GET`, `:scheme http`, `:path /` (RFC 7541, appendix A).
    pub fn get(stream: u32) -> Vec<u8> {
        frame(kind::HEADERS, flag::END_HEADERS | flag::END_STREAM, stream, &[0x82, 0x86, 0x84])
    }

    pub fn preface() -> Vec<u8> {
        [PREFACE, &frame(kind::SETTINGS, 0, 0, &[])].concat()
    }

    /// Status 200, or 500.
    pub fn head(stream: u32, is_good: bool) -> Vec<u8> {
        let status = if is_good { 0x88 } else { 0x8e };
        frame(kind::HEADERS, flag::END_HEADERS, stream, &[status])
    }

    pub fn data(stream: u32, bytes: usize, flags: u8) -> Vec<u8> {
        frame(kind::DATA, flags, stream, &vec![b'x'; bytes])
    }

    fn at(ms: u64) -> Nanos {
        Nanos(ms * 1_000_000)
    }

    fn streams() -> Streams {
        Streams::new(&Wanted::new([]).expect("the fixed names"))
    }

    fn taken(a: &mut Streams) -> Vec<(u32, u16, u64, u64)> {
        let all = std::mem::take(&mut a.done).into_iter();
        all.map(|(id, a)| (id, a.status, a.size, a.first_ns / 1_000_000)).collect()
    }

    #[test]
    fn answers_are_told_by_stream_however_they_are_cut_and_mixed() {
        let asks = [preface(), get(1), get(3), get(5)].concat();
        let says = [
            frame(kind::SETTINGS, 0, 0, &[]),
            head(3, false),
            head(1, true),
            data(1, 10, 0),
            data(3, 4, flag::END_STREAM),
            data(1, 20, 0),
            frame(kind::HEADERS, flag::END_HEADERS | flag::END_STREAM, 1, &[]),
            frame(kind::RST_STREAM, 0, 5, &[0, 0, 0, 7]),
        ]
        .concat();
        for cut in 1..says.len() {
            let mut a = streams();
            for part in asks.chunks(cut) {
                a.client(at(0), part).expect("read");
            }
            assert_eq!((a.requests(), a.waiting()), (3, 3));
            for part in says.chunks(cut) {
                a.server(at(7), part).expect("read");
            }
            assert_eq!(taken(&mut a), [(1, 200, 30, 7), (3, 500, 4, 7), (5, 0, 0, 0)], "{cut}");
            assert_eq!(a.waiting(), 0);
        }
    }

    #[test]
    fn the_time_begins_with_the_requests_last_byte() {
        let mut a = streams();
        let post = frame(kind::HEADERS, flag::END_HEADERS, 1, &[0x83, 0x86, 0x84]);
        a.client(at(0), &[preface(), post].concat()).expect("read");
        let body = data(1, 100, flag::END_STREAM);
        a.client(at(10), &body[..50]).expect("read");
        a.client(at(20), &body[50..]).expect("read");
        a.server(at(21), &frame(kind::SETTINGS, 0, 0, &[])).expect("read");
        a.server(at(30), &head(1, true)).expect("read");
        a.server(at(45), &data(1, 3, flag::END_STREAM)).expect("read");
        assert_eq!(taken(&mut a), [(1, 200, 3, 25)]);
    }

    #[test]
    fn what_the_client_takes_back_is_no_answer_and_others_are_limited() {
        let mut a = streams();
        a.client(at(0), &[preface(), get(1), get(3)].concat()).expect("read");
        a.server(at(1), &[frame(kind::SETTINGS, 0, 0, &[]), head(1, true)].concat()).expect("read");
        let cancel = |stream| frame(kind::RST_STREAM, 0, stream, &[0, 0, 0, 8]);
        a.client(at(2), &[cancel(1), cancel(3)].concat()).expect("read");
        a.server(at(3), &data(1, 3, flag::END_STREAM)).expect("read");
        assert_eq!((a.waiting(), taken(&mut a)), (0, vec![]));
        let flood: Result<Vec<_>, _> =
            (0..=STREAMS_MAX as u32).map(|n| a.client(at(4), &get(5 + 2 * n))).collect();
        assert_eq!(flood, Err(Unread));
        assert_eq!(streams().client(at(0), b"PRI * HTTP/1.1\r\n\r\n"), Err(Unread));
    }

    #[test]
    fn only_what_both_have_is_taken() {
        let (mut a, mut b) = (streams(), streams());
        for (s, order) in [(&mut a, [3, 1]), (&mut b, [1, 5])] {
            s.client(at(0), &[preface(), get(1), get(3), get(5)].concat()).expect("read");
            s.server(at(1), &frame(kind::SETTINGS, 0, 0, &[])).expect("read");
            for id in order {
                let says = [head(id, id != 5), data(id, id as usize, flag::END_STREAM)].concat();
                s.server(at(2), &says).expect("read");
            }
        }
        let [one, other] = a.take_both(&mut b).expect("stream 1");
        assert_eq!((one.size, other.size), (1, 1));
        assert_eq!(a.take_both(&mut b), None);
    }
}
