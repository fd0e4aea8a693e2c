//! HTTP/1.0 and 1.1 (RFC 9112): the requests of a connection and the answers to them.
//!
//! [`Connection::feed`] takes the bytes of either direction, cut in any way, and calls back with
//! each head once it is complete; bodies are skipped by their framing, so that pipelined requests
//! and those of a kept connection all count and nothing in a body is taken for a head. Only the
//! wanted fields are kept, so heads of any length up to [`HEAD_BYTES_MAX`] take the same memory.
//! Most of it is the room for fields, which a connection may do without but while it reads a head:
//! see [`Connection::lend`].
//!
//! Where two servers might disagree about where a message ends (request smuggling), the head is
//! still told, marked [`Framing::Ambiguous`], and the direction is given up rather than guessed.
//!
//! A direction ends with a [`Next`]: it is another protocol from a byte on (HTTP/2 with prior
//! knowledge or after an upgrade, what CONNECT or another upgrade tunnels), or it failed. What
//! follows is the caller's: `Fed::used` bytes were read, the preface of HTTP/2 included.

use super::fields::{Fields, NameId, Wanted};

mod body;
mod framing;
mod half;
mod whole;

use half::Half;

/// Bytes of a head, or of a trailer section, at most.
pub const HEAD_BYTES_MAX: u32 = 1 << 18;
/// Longest method (the longest registered one has 17 bytes).
pub const METHOD_BYTES_MAX: u32 = 32;
/// Requests that wait for their answer, at most; beyond it answers are not followed any more.
pub const PENDING_MAX: usize = 64;

/// Whose bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    Client,
    Server,
}

/// How the body of a message ends (RFC 9112, section 6.3).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Framing {
    /// There is none.
    Empty,
    Length(u64),
    Chunked,
    UntilClose,
    /// Servers may differ about it.
    Ambiguous,
}

/// A head that is complete. [`Fields`] holds the method, target or status under the names of
/// HTTP/2's pseudo-headers.
#[derive(Clone, Copy, Debug)]
pub enum Event<'a> {
    Request {
        /// 0 for the connection's first.
        number: u64,
        /// Of HTTP/1.x: x.
        minor_version: u8,
        framing: Framing,
        fields: &'a Fields,
    },
    Response {
        /// Of the request that it answers; informational ones (1xx) answer it too. `None` where
        /// that request was not seen.
        number: Option<u64>,
        status: u16,
        minor_version: u8,
        framing: Framing,
        /// Bytes of the bodies of all answers before.
        content_before: u64,
        fields: &'a Fields,
    },
}

/// Why a direction was given up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Failure {
    /// Its first line is none of HTTP/1.
    NotHttp,
    /// A head or body that no server may accept.
    Malformed,
    /// Where a message ends is a matter of opinion.
    Ambiguous,
    /// A head longer than [`HEAD_BYTES_MAX`], or more than [`PENDING_MAX`] unanswered requests.
    TooLong,
    /// There is none for the fields.
    NoRoom,
}

/// What a direction became.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// HTTP/2. The client's preface has been read; of the server, the 101 answer, or nothing where
    /// its SETTINGS came before any answer.
    Http2,
    /// The tunnel that a CONNECT request asked for.
    Tunnel,
    /// Another protocol, as the `Upgrade` field named it: WebSocket for one.
    Upgraded,
    Failed(Failure),
}

/// What became of bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fed {
    /// Bytes that were read; fewer than given only where `next` is told.
    pub used: usize,
    /// The direction is no longer HTTP/1; the same with each call from then on.
    pub next: Option<Next>,
}

/// What the answer to a request depends on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Kind {
    head: bool,
    /// Another protocol that it asks for.
    switch: Option<Next>,
}

const PLAIN: Kind = Kind { head: false, switch: None };

/// What the answer to a CONNECT or an upgrade request said.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Switch {
    #[default]
    No,
    /// Asked for and not answered.
    Asked,
    Refused,
    Accepted,
}

/// Both directions of a connection.
#[derive(Clone, Debug)]
pub struct Connection {
    client: Half,
    server: Half,
    /// By side.
    fields: [Option<Box<Fields>>; 2],
    /// The requests that wait for their answer: a ring.
    pending: [Kind; PENDING_MAX],
    requests: u64,
    responses: u64,
}

impl Connection {
    /// Room for the wanted fields, with targets of this many bytes.
    pub fn new(wanted: &Wanted, target_bytes: usize) -> Connection {
        let fields = [target_bytes, 0].map(|bytes| Some(Box::new(Fields::new(wanted, bytes))));
        Connection { fields, ..Connection::bare() }
    }

    /// Without room for fields: that is lent for each call of [`Connection::feed`].
    pub fn bare() -> Connection {
        Connection {
            client: Half::new(Side::Client),
            server: Half::new(Side::Server),
            fields: [None, None],
            pending: [PLAIN; PENDING_MAX],
            requests: 0,
            responses: 0,
        }
    }

    /// Begins another connection in the same memory.
    pub fn reset(&mut self) {
        self.client = Half::new(Side::Client);
        self.server = Half::new(Side::Server);
        (self.requests, self.responses) = (0, 0);
    }

    /// Goes on behind a tunnel's beginning, where requests may follow, or HTTP/2.
    pub fn resume(&mut self) {
        self.client.resume();
        self.server.resume();
    }

    /// Requests whose heads were complete.
    pub fn requests(&self) -> u64 {
        self.requests
    }

    /// Method of the request that is read, or was read last, as far as it has come, and while there
    /// is room for it.
    pub fn method(&self) -> Option<&[u8]> {
        self.fields[0].as_ref()?.method()
    }

    /// Whether that is longer than what is kept of it.
    pub fn is_method_cut(&self) -> bool {
        self.fields[0].as_ref().is_some_and(|fields| fields.truncated(NameId::METHOD))
    }

    /// Whether this direction has room for fields.
    pub fn has_room(&self, side: Side) -> bool {
        self.fields[side as usize].is_some()
    }

    /// Lends room for fields, which may hold anything, to a direction.
    pub fn lend(&mut self, side: Side, room: Box<Fields>) {
        self.fields[side as usize] = Some(room);
    }

    /// Takes the room of a direction back, unless it is still needed: amid a head.
    pub fn take_spare(&mut self, side: Side) -> Option<Box<Fields>> {
        match self.half(side).is_amid_head() {
            true => None,
            false => self.take_room(side),
        }
    }

    /// Takes it back in any case: the direction is not read any more.
    pub fn take_room(&mut self, side: Side) -> Option<Box<Fields>> {
        self.fields[side as usize].take()
    }

    /// There is no room for what this direction still says.
    pub fn give_up(&mut self, side: Side) {
        match side {
            Side::Client => self.client.fail(Failure::NoRoom),
            Side::Server => self.server.fail(Failure::NoRoom),
        }
    }

    /// Final answers whose heads were complete.
    pub fn responses(&self) -> u64 {
        self.responses
    }

    /// Bytes of all bodies of one side so far, without what frames them.
    pub fn content(&self, side: Side) -> u64 {
        match side {
            Side::Client => self.client.content,
            Side::Server => self.server.content,
        }
    }

    /// Whether this direction is between two messages.
    pub fn is_idle(&self, side: Side) -> bool {
        self.half(side).is_idle()
    }

    /// Whether this direction is amid a body that ends with the connection.
    pub fn lasts(&self, side: Side) -> bool {
        self.half(side).lasts()
    }

    fn half(&self, side: Side) -> &Half {
        match side {
            Side::Client => &self.client,
            Side::Server => &self.server,
        }
    }

    /// The next bytes of one direction. `wanted` is the set that the connection was made for. What
    /// `on` is told of does not depend on how each direction is cut.
    pub fn feed(
        &mut self,
        side: Side,
        bytes: &[u8],
        wanted: &Wanted,
        mut on: impl FnMut(Event<'_>),
    ) -> Fed {
        let mut rest = bytes;
        // Lent for the call, so that what a head brings about can be entered meanwhile.
        let Some(mut fields) = self.take_room(side) else {
            return Fed { used: 0, next: Some(Next::Failed(Failure::NoRoom)) };
        };
        let next = match side {
            Side::Client => loop {
                match self.client.run(&mut rest, wanted, &mut fields) {
                    Ok(true) => self.end_request_head(&fields, &mut on),
                    Ok(false) => break None,
                    Err(next) => break Some(next),
                }
            },
            Side::Server => loop {
                match self.server.run(&mut rest, wanted, &mut fields) {
                    Ok(true) => self.end_response_head(&fields, &mut on),
                    Ok(false) => break None,
                    Err(next) => break Some(next),
                }
            },
        };
        self.lend(side, fields);
        Fed { used: bytes.len() - rest.len(), next }
    }

    fn end_request_head(&mut self, fields: &Fields, on: &mut impl FnMut(Event<'_>)) {
        let minor_version = self.client.minor_version();
        let kind = kind_of(fields, minor_version);
        let framing = match (kind.switch, framing::of_request(fields, minor_version)) {
            (_, Framing::Empty) => Framing::Empty,
            // There is none (RFC 9110, section 9.3.6), but for a server that knows no CONNECT.
            (Some(Next::Tunnel), _) => Framing::Ambiguous,
            (_, framing) => framing,
        };
        on(Event::Request { number: self.requests, minor_version, framing, fields });
        let unanswered = self.requests.saturating_sub(self.responses);
        if unanswered >= PENDING_MAX as u64 {
            self.server.fail(Failure::TooLong);
        }
        self.pending[self.requests as usize % PENDING_MAX] = kind;
        self.requests += 1;
        self.client.enter_body(framing);
        if let Some(next) = kind.switch {
            self.client.ask_switch(next);
        }
    }

    fn end_response_head(&mut self, fields: &Fields, on: &mut impl FnMut(Event<'_>)) {
        let minor_version = self.server.minor_version();
        // The status line had three digits.
        let status = fields.status().unwrap_or_default();
        let number = (self.responses < self.requests).then_some(self.responses);
        let kind = number.map_or(PLAIN, |n| self.pending[n as usize % PENDING_MAX]);
        let informational = matches!(status, 100..=199) && status != 101;
        let tunnel = kind.switch == Some(Next::Tunnel) && matches!(status, 200..=299);
        let framing = match status {
            100..=199 | 204 | 304 => Framing::Empty,
            _ if kind.head || tunnel => Framing::Empty,
            _ => framing::of_response(fields, minor_version),
        };
        let content_before = self.server.content;
        on(Event::Response { number, status, minor_version, framing, content_before, fields });
        if informational {
            return self.server.enter_body(Framing::Empty);
        }
        self.responses += u64::from(number.is_some());
        let switch = match status {
            101 if names_http2(fields) => Some(Next::Http2),
            101 => Some(Next::Upgraded),
            _ => tunnel.then_some(Next::Tunnel),
        };
        match switch {
            Some(next) => self.server.switch(next),
            None => self.server.enter_body(framing),
        }
        // Of pipelined requests, only the last can have asked for it.
        if self.responses == self.requests {
            self.client.answer_switch(switch.is_some());
        }
    }
}

/// The authority that a request of HTTP/1 is for: that of an absolute target, else `Host` (RFC
/// 9112, section 3.2.2); that of CONNECT's target.
pub fn effective_authority(fields: &Fields) -> Option<&[u8]> {
    let target = fields.path()?;
    if fields.method() == Some(b"CONNECT") {
        return Some(target);
    }
    let host = fields.get(NameId::HOST);
    let Some(at) = target.windows(3).position(|w| w == b"://") else { return host };
    let scheme = &target[..at];
    if !scheme.first().is_some_and(u8::is_ascii_alphabetic)
        || !scheme.iter().all(|b| b.is_ascii_alphanumeric() || b"+-.".contains(b))
    {
        return host;
    }
    let rest = &target[at + 3..];
    let end = rest.iter().position(|b| b"/?#".contains(b)).unwrap_or(rest.len());
    let authority = &rest[..end];
    let user = authority.iter().rposition(|b| *b == b'@').map_or(0, |at| at + 1);
    Some(&authority[user..])
}

fn kind_of(fields: &Fields, minor_version: u8) -> Kind {
    let switch = match fields.method() {
        Some(b"CONNECT") => Some(Next::Tunnel),
        // An HTTP/1.0 request's Upgrade is to be ignored (RFC 9110, section 7.8).
        _ if minor_version == 0 => None,
        _ if names_http2(fields) => Some(Next::Http2),
        _ => fields.get(NameId::UPGRADE).map(|_| Next::Upgraded),
    };
    Kind { head: fields.method() == Some(b"HEAD"), switch }
}

fn names_http2(fields: &Fields) -> bool {
    let upgrade = fields.get(NameId::UPGRADE).unwrap_or_default();
    upgrade.split(|b| *b == b',').any(|token| token.trim_ascii().eq_ignore_ascii_case(b"h2c"))
}

#[cfg(test)]
mod tests;
