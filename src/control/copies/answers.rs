//! The answers that one server gives on a connection of HTTP/1: status, size, and how long the
//! client waited for the first byte.

use std::collections::VecDeque;

use crate::base::Nanos;
use crate::inspect::fields::Wanted;
use crate::inspect::http1::{Connection, Event, PENDING_MAX, Side};

/// A complete answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Answer {
    pub status: u16,
    /// Of its body, without what frames it, bytes.
    pub size: u64,
    /// From the request's last byte to the body's first, or to the head's last where there is none.
    pub first_ns: u64,
}

/// It is none of the protocols that are read, not any more, or can't be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Unread;

/// Both sides of a connection, as they were sent or received.
pub struct Answers {
    http: Box<Connection>,
    wanted: Wanted,
    /// When the last byte of each request came that has no answer yet.
    asked: VecDeque<Nanos>,
    /// The answer that is read.
    open: Option<Open>,
    /// Those that nobody has taken.
    done: VecDeque<Answer>,
}

#[derive(Clone, Copy)]
struct Open {
    status: u16,
    asked: Nanos,
    head: Nanos,
    first: Option<Nanos>,
    content_before: u64,
}

impl Answers {
    pub fn new(wanted: &Wanted) -> Answers {
        Answers {
            http: Box::new(Connection::new(wanted, 0)),
            wanted: wanted.clone(),
            asked: VecDeque::new(),
            open: None,
            done: VecDeque::new(),
        }
    }

    /// Requests whose heads were complete.
    pub fn requests(&self) -> u64 {
        self.http.requests()
    }

    /// Requests that have no complete answer.
    pub fn waiting(&self) -> usize {
        self.asked.len() + usize::from(self.open.is_some())
    }

    /// The client's next bytes.
    ///
    /// # Errors
    /// [`Unread`], as [`Answers::server`].
    pub fn client(&mut self, now: Nanos, bytes: &[u8]) -> Result<(), Unread> {
        // What goes on with a request that began before.
        if !self.http.is_idle(Side::Client)
            && let Some(asked) = self.asked.back_mut()
        {
            *asked = now;
        }
        let asked = &mut self.asked;
        let fed = self.http.feed(Side::Client, bytes, &self.wanted, |event| {
            if let Event::Request { .. } = event {
                asked.push_back(now);
            }
        });
        match fed.next.is_some() || self.asked.len() > PENDING_MAX {
            true => Err(Unread),
            false => Ok(()),
        }
    }

    /// The server's next bytes.
    pub fn server(&mut self, now: Nanos, bytes: &[u8]) -> Result<(), Unread> {
        let (asked, open, done) = (&mut self.asked, &mut self.open, &mut self.done);
        let mut unasked = false;
        let fed = self.http.feed(Side::Server, bytes, &self.wanted, |event| {
            let Event::Response { status, content_before, .. } = event else { return };
            if let Some(before) = open.take() {
                done.push_back(before.complete(now, content_before));
            }
            if matches!(status, 100..=199) {
                return;
            }
            match asked.pop_front() {
                Some(asked) => {
                    *open = Some(Open { status, asked, head: now, first: None, content_before });
                }
                None => unasked = true,
            }
        });
        let content = self.http.content(Side::Server);
        if let Some(open) = &mut self.open
            && content > open.content_before
        {
            open.first.get_or_insert(now);
        }
        if self.http.is_idle(Side::Server) {
            self.complete(now);
        }
        if fed.next.is_some() || unasked { Err(Unread) } else { Ok(()) }
    }

    /// The server sends nothing more: what lasts until then is complete. What was cut off is no
    /// answer.
    pub fn end(&mut self, now: Nanos) {
        if self.http.lasts(Side::Server) {
            self.complete(now);
        }
    }

    /// The oldest answer that was not taken.
    pub fn front(&self) -> Option<&Answer> {
        self.done.front()
    }

    pub fn take(&mut self) -> Option<Answer> {
        self.done.pop_front()
    }

    fn complete(&mut self, now: Nanos) {
        let content = self.http.content(Side::Server);
        self.done.extend(self.open.take().map(|open| open.complete(now, content)));
    }
}

impl Open {
    fn complete(self, now: Nanos, content: u64) -> Answer {
        let size = content.saturating_sub(self.content_before);
        // Its body may have come with the head of the next.
        let first = self.first.unwrap_or(if size > 0 { now } else { self.head });
        Answer { status: self.status, size, first_ns: first.since(self.asked) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answers() -> Answers {
        Answers::new(&Wanted::new([]).expect("the fixed names"))
    }

    fn at(ms: u64) -> Nanos {
        Nanos(ms * 1_000_000)
    }

    fn taken(answers: &mut Answers) -> Vec<(u16, u64, u64)> {
        let all = std::iter::from_fn(|| answers.take());
        all.map(|a| (a.status, a.size, a.first_ns / 1_000_000)).collect()
    }

    const GET: &[u8] = b"GET / HTTP/1.1\r\nhost: a\r\n\r\n";

    #[test]
    fn the_first_byte_is_the_bodys_and_the_time_begins_with_the_requests_end() {
        let mut a = answers();
        a.client(at(0), b"POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 4\r\n\r\nab")
            .expect("read");
        a.client(at(10), b"cd").expect("read");
        a.server(at(15), b"HTTP/1.1 100 Continue\r\n\r\n").expect("read");
        a.server(at(20), b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n").expect("read");
        assert_eq!((a.waiting(), a.front()), (1, None));
        a.server(at(50), b"5\r\nhello\r\n").expect("read");
        a.server(at(90), b"3\r\nyou\r\n0\r\n\r\n").expect("read");
        assert_eq!(taken(&mut a), [(200, 8, 40)]);
        assert_eq!((a.waiting(), a.requests()), (0, 1));
    }

    #[test]
    fn pipelined_answers_are_told_apart_however_they_are_cut() {
        let said: &[u8] = b"HTTP/1.1 200 OK\r\ncontent-length: 3\r\n\r\nabcHTTP/1.1 204 No\r\n\r\n\
              HTTP/1.1 500 No\r\ncontent-length: 1\r\n\r\nxHTTP/1.1 200 OK\r\n\r\nrest";
        for cut in 1..said.len() {
            let mut a = answers();
            for _ in 0..4 {
                a.client(at(0), GET).expect("read");
            }
            for part in said.chunks(cut) {
                a.server(at(5), part).expect("read");
            }
            a.end(at(9));
            let wanted = [(200, 3, 5), (204, 0, 5), (500, 1, 5), (200, 4, 5)];
            assert_eq!(taken(&mut a), wanted, "{cut}");
        }
    }

    #[test]
    fn what_is_cut_off_is_no_answer() {
        for head in ["content-length: 9", "transfer-encoding: chunked"] {
            let mut a = answers();
            a.client(at(0), GET).expect("read");
            let said = format!("HTTP/1.1 200 OK\r\n{head}\r\n\r\n4\r\nhel");
            a.server(at(5), said.as_bytes()).expect("read");
            a.end(at(9));
            assert_eq!((taken(&mut a), a.waiting()), (vec![], 1), "{head}");
        }
    }

    #[test]
    fn what_is_no_http1_or_was_not_asked_for_is_unread() {
        assert_eq!(answers().client(at(0), b"\x16\x03\x01"), Err(Unread));
        assert_eq!(answers().client(at(0), b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"), Err(Unread));
        let mut a = answers();
        assert_eq!(a.server(at(0), b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n"), Err(Unread));
        let mut a = answers();
        a.client(at(0), b"GET / HTTP/1.1\r\nhost: a\r\nupgrade: websocket\r\n\r\n").expect("read");
        assert_eq!(a.server(at(0), b"HTTP/1.1 101 Yes\r\n\r\n"), Err(Unread));
        let mut a = answers();
        let flood: Result<Vec<_>, _> = (0..=PENDING_MAX).map(|_| a.client(at(0), GET)).collect();
        assert_eq!(flood, Err(Unread));
    }
}
