//! What both sides of a connection say: of HTTP/1 or HTTP/2, by how the client begins.

use super::answers::{Answer, Answers, Unread};
use super::streams::Streams;
use crate::base::Nanos;
use crate::inspect::fields::Wanted;
use crate::inspect::h2::PREFACE;

/// No request of HTTP/1 begins like this: it is kept for the preface (RFC 9113, section 11.6).
const MARK: &[u8] = PREFACE.split_at(3).0;
/// What a server says before its client has said so much: settings.
const GREETING_MAX: usize = 1_024;

/// A connection, as its protocol has it.
pub struct Speech {
    wanted: Wanted,
    kind: Kind,
}

enum Kind {
    Unknown { client: Vec<u8>, server: Vec<u8> },
    Http1(Answers),
    Http2(Streams),
}

/// Whether bytes begin a connection of HTTP/2; `None` while nobody can tell.
pub fn is_http2(begins: &[u8]) -> Option<bool> {
    let common = begins.iter().zip(MARK).take_while(|(a, b)| a == b).count();
    match common {
        _ if common == MARK.len() => Some(true),
        _ if common < begins.len() => Some(false),
        _ => None,
    }
}

impl Speech {
    pub fn new(wanted: &Wanted) -> Speech {
        let kind = Kind::Unknown { client: Vec::new(), server: Vec::new() };
        Speech { wanted: wanted.clone(), kind }
    }

    /// Requests whose heads were complete.
    pub fn requests(&self) -> u64 {
        match &self.kind {
            Kind::Unknown { .. } => 0,
            Kind::Http1(answers) => answers.requests(),
            Kind::Http2(streams) => streams.requests(),
        }
    }

    /// Requests that have no complete answer.
    pub fn waiting(&self) -> usize {
        match &self.kind {
            Kind::Unknown { .. } => 0,
            Kind::Http1(answers) => answers.waiting(),
            Kind::Http2(streams) => streams.waiting(),
        }
    }

    /// Whether the answer on a stream of HTTP/2 is not complete.
    pub fn is_awaited(&self, stream: u32) -> bool {
        matches!(&self.kind, Kind::Http2(streams) if streams.is_awaited(stream))
    }

    /// The client's next bytes.
    ///
    /// # Errors
    /// [`Unread`], as [`Speech::server`].
    pub fn client(&mut self, now: Nanos, bytes: &[u8]) -> Result<(), Unread> {
        match &mut self.kind {
            Kind::Http1(answers) => return answers.client(now, bytes),
            Kind::Http2(streams) => return streams.client(now, bytes),
            Kind::Unknown { client, .. } => client.extend_from_slice(bytes),
        }
        let Kind::Unknown { client, server } = &mut self.kind else { return Ok(()) };
        let Some(is_http2) = is_http2(client) else { return Ok(()) };
        let (client, server) = (std::mem::take(client), std::mem::take(server));
        self.kind = match is_http2 {
            true => Kind::Http2(Streams::new(&self.wanted)),
            false => Kind::Http1(Answers::new(&self.wanted)),
        };
        self.client(now, &client)?;
        if server.is_empty() { Ok(()) } else { self.server(now, &server) }
    }

    /// The server's next bytes.
    pub fn server(&mut self, now: Nanos, bytes: &[u8]) -> Result<(), Unread> {
        match &mut self.kind {
            Kind::Http1(answers) => answers.server(now, bytes),
            Kind::Http2(streams) => streams.server(now, bytes),
            Kind::Unknown { server, .. } if server.len() + bytes.len() <= GREETING_MAX => {
                server.extend_from_slice(bytes);
                Ok(())
            }
            Kind::Unknown { .. } => Err(Unread),
        }
    }

    /// The server sends nothing more: what lasts until then is complete.
    pub fn end(&mut self, now: Nanos) {
        if let Kind::Http1(answers) = &mut self.kind {
            answers.end(now);
        }
    }

    /// Takes the answers to one request that both have.
    pub fn take_both(&mut self, other: &mut Speech) -> Option<[Answer; 2]> {
        match (&mut self.kind, &mut other.kind) {
            (Kind::Http1(one), Kind::Http1(other)) => {
                one.front().and(other.front())?;
                Some([one.take()?, other.take()?])
            }
            (Kind::Http2(one), Kind::Http2(other)) => one.take_both(other),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::streams::tests::{data, frame, get, head, preface};
    use super::*;
    use crate::inspect::h2::frame::{flag, kind};

    #[test]
    fn the_first_bytes_tell_and_a_server_may_speak_before() {
        assert_eq!([&b"P"[..], b"PR", b""].map(is_http2), [None; 3]);
        assert_eq!([&b"PO"[..], b"PRO", b"\x16"].map(is_http2), [Some(false); 3]);
        let wanted = Wanted::new([]).expect("the fixed names");
        let speak = |asks: &[u8], says: &[u8]| {
            let mut s = Speech::new(&wanted);
            let greets = frame(kind::SETTINGS, 0, 0, &[]);
            if asks[1] == b'R' {
                s.server(Nanos(1), &greets).expect("kept");
            }
            asks.chunks(1).for_each(|part| s.client(Nanos(2), part).expect("read"));
            s.server(Nanos(3), says).expect("read");
            (s.requests(), s.waiting(), s)
        };
        let asks = [preface(), get(1)].concat();
        let says = [head(1, true), data(1, 3, flag::END_STREAM)].concat();
        let (requests, waiting, mut one) = speak(&asks, &says);
        assert_eq!((requests, waiting), (1, 0));
        let (.., mut other) = speak(&asks, &says);
        let both = one.take_both(&mut other).expect("both have it");
        assert_eq!(both[0], both[1]);
        let answer = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok";
        let (requests, waiting, mut one) = speak(b"GET / HTTP/1.1\r\nhost: a\r\n\r\n", answer);
        assert_eq!((requests, waiting), (1, 0));
        assert_eq!(one.take_both(&mut other), None, "of another kind");
        let mut mute = Speech::new(&wanted);
        assert_eq!(mute.server(Nanos(0), &[0; GREETING_MAX + 1]), Err(Unread));
    }
}
