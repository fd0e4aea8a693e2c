//! The parsers of HTTP, kept for whoever needs one next.

use crate::inspect::fields::{Fields, NameId, Wanted};
use crate::inspect::grpc;
use crate::inspect::h2::{self, Block, Start};
use crate::inspect::http1::{self, Side};
use crate::inspect::quic::Scratch;

/// Room for a method and for a host: as much as the parsers keep.
const METHOD_BYTES: usize = 32;
const HOST_BYTES: usize = 264;
const SETTINGS_BYTES: usize = 256;

/// The methods that are registered (IANA registry "HTTP Method Registry").
const METHODS: [&[u8]; 40] = [
    b"ACL",
    b"BASELINE-CONTROL",
    b"BIND",
    b"CHECKIN",
    b"CHECKOUT",
    b"CONNECT",
    b"COPY",
    b"DELETE",
    b"GET",
    b"HEAD",
    b"LABEL",
    b"LINK",
    b"LOCK",
    b"MERGE",
    b"MKACTIVITY",
    b"MKCALENDAR",
    b"MKCOL",
    b"MKREDIRECTREF",
    b"MKWORKSPACE",
    b"MOVE",
    b"OPTIONS",
    b"ORDERPATCH",
    b"PATCH",
    b"POST",
    b"PROPFIND",
    b"PROPPATCH",
    b"PUT",
    b"QUERY",
    b"REBIND",
    b"REPORT",
    b"SEARCH",
    b"TRACE",
    b"UNBIND",
    b"UNCHECKOUT",
    b"UNLINK",
    b"UNLOCK",
    b"UPDATE",
    b"UPDATEREDIRECTREF",
    b"VERSION-CONTROL",
    b"PURGE",
];

/// Parsers that are not in use, and what all share.
#[derive(Debug)]
pub struct Pool {
    wanted: Wanted,
    rooms: Rooms,
    #[allow(clippy::vec_box, reason = "a parser is lent as it is, not moved about")]
    free: Vec<Box<HttpPart>>,
    #[allow(clippy::vec_box, reason = "a parser is lent as it is, not moved about")]
    free_http2: Vec<Box<h2::Connection>>,
    /// How many more may be made, of each.
    unmade: [usize; 2],
    scratch: Scratch,
}

/// How much a parser keeps, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rooms {
    /// Of a request's target.
    pub target: usize,
    /// Of the first request's, which is kept on.
    pub first_target: usize,
    /// Of each direction's header table (RFC 7541, section 4.2); where a connection has a larger
    /// one, it is not followed.
    pub table: usize,
}

impl Pool {
    /// At most `parts` parsers, made when they are needed first.
    pub fn growing(wanted: Wanted, rooms: Rooms, parts: usize) -> Pool {
        let (free, free_http2) = (Vec::with_capacity(parts), Vec::with_capacity(parts));
        Pool { wanted, rooms, free, free_http2, unmade: [parts; 2], scratch: Scratch::new() }
    }

    /// As many, all made now.
    pub fn filled(wanted: Wanted, rooms: Rooms, parts: usize) -> Pool {
        let mut pool = Pool::growing(wanted, rooms, parts);
        while let Some(part) = pool.make() {
            pool.free.push(part);
        }
        while let Some(http2) = pool.make_http2() {
            pool.free_http2.push(http2);
        }
        pool
    }

    /// All are in use.
    pub fn is_empty(&self) -> bool {
        self.free.is_empty() && self.unmade[0] == 0
    }

    pub(super) fn take(&mut self) -> Option<Box<HttpPart>> {
        let mut part = self.free.pop().or_else(|| self.make())?;
        part.reset();
        Some(part)
    }

    /// Who holds a part finds one, since there are as many.
    fn take_http2(&mut self) -> Option<Box<h2::Connection>> {
        self.free_http2.pop().or_else(|| self.make_http2())
    }

    pub(super) fn put(&mut self, mut part: Box<HttpPart>) {
        self.free_http2.extend(part.http2.take());
        self.free.push(part);
    }

    /// Memory to decrypt in.
    pub(super) fn scratch(&mut self) -> &mut Scratch {
        &mut self.scratch
    }

    pub(super) fn wanted(&self) -> &Wanted {
        &self.wanted
    }

    fn make(&mut self) -> Option<Box<HttpPart>> {
        self.unmade[0] = self.unmade[0].checked_sub(1)?;
        let Rooms { target, first_target, .. } = self.rooms;
        Some(Box::new(HttpPart {
            http1: http1::Connection::new(&self.wanted, target),
            http2: None,
            first: First::new(first_target),
        }))
    }

    fn make_http2(&mut self) -> Option<Box<h2::Connection>> {
        self.unmade[1] = self.unmade[1].checked_sub(1)?;
        let Rooms { target, table, .. } = self.rooms;
        // Nothing is told of what servers push.
        let fields = [target, 0].map(|path| Fields::new(&self.wanted, path));
        let [request, response] = fields;
        Some(Box::new(h2::Connection::with(request, response, table).with_unseen_limits()))
    }
}

/// What a request asks for.
#[derive(Clone, Copy, Debug)]
pub struct Request<'a> {
    pub method: &'a [u8],
    /// `Host`, or `:authority` of HTTP/2; `None` where it is absent.
    pub authority: Option<&'a [u8]>,
    /// The target as sent, or `:path`; `None` where it is absent, as CONNECT of HTTP/2 has it.
    pub path: Option<&'a [u8]>,
    /// All that was kept of it; `None` once it is past.
    pub fields: Option<&'a Fields>,
}

/// What is read of HTTP, message by message.
#[derive(Clone, Copy, Debug)]
pub enum Event<'a> {
    Request(Request<'a>),
    Response {
        /// 0 where it is not known.
        status: u16,
        /// It comes as server-sent events.
        event_stream: bool,
    },
    /// How a gRPC call ended; 0 is well.
    GrpcStatus(u32),
}

/// Who is told of messages.
pub type On<'a> = &'a mut dyn FnMut(Event<'_>);

/// The parsers of HTTP, and the first request that they read.
#[derive(Debug)]
pub(super) struct HttpPart {
    http1: http1::Connection,
    /// Once either side speaks it: its header tables are most of the memory.
    http2: Option<Box<h2::Connection>>,
    first: First,
}

#[derive(Debug)]
struct First {
    seen: bool,
    method: Text,
    authority: Text,
    path: Text,
    /// Of HTTP/2, where it asks for that.
    settings: Text,
}

/// A value that may be absent.
#[derive(Debug, Default)]
struct Text {
    bytes: Box<[u8]>,
    len: usize,
    present: bool,
}

impl HttpPart {
    pub(super) fn feed_http1(
        &mut self,
        from: Side,
        bytes: &[u8],
        wanted: &Wanted,
        on: On<'_>,
    ) -> http1::Fed {
        let first = &mut self.first;
        self.http1.feed(from, bytes, wanted, |event| match event {
            http1::Event::Request { fields, .. } => {
                first.set(fields);
                let authority = http1::effective_authority(fields);
                tell(fields, authority, on);
            }
            http1::Event::Response { status, fields, .. } => {
                on(Event::Response { status, event_stream: fields.is_event_stream() });
            }
        })
    }

    pub(super) fn feed_http2(
        &mut self,
        from: Side,
        bytes: &[u8],
        wanted: &Wanted,
        on: On<'_>,
    ) -> Result<(), h2::Failure> {
        let first = &mut self.first;
        let Some(http2) = &mut self.http2 else { return Err(h2::Failure::NotHttp2) };
        http2.feed(from, bytes, wanted, |event| {
            let h2::Event::Headers { block, fields, .. } = event else { return };
            match block {
                Block::Request => {
                    first.set(fields);
                    tell(fields, fields.authority(), on);
                }
                Block::Response => {
                    let status = fields.status().unwrap_or_default();
                    on(Event::Response { status, event_stream: fields.is_event_stream() });
                }
                Block::Interim | Block::Trailers | Block::Promise { .. } => {}
            }
            if matches!(block, Block::Response | Block::Trailers)
                && let Some(status) = grpc::status(fields)
            {
                on(Event::GrpcStatus(status));
            }
        })
    }

    /// Reads HTTP/2 from here on, unless it does already.
    pub(super) fn begin_http2(&mut self, pool: &mut Pool, start: Start<'_>) {
        if self.http2.is_none() {
            self.reset_http2(pool, start);
        }
    }

    /// Reads HTTP/2 from here on, behind an upgrade.
    pub(super) fn upgrade(&mut self, pool: &mut Pool) {
        let settings = std::mem::take(&mut self.first.settings);
        self.reset_http2(pool, Start::Upgraded(settings.get().unwrap_or_default()));
        self.first.settings = settings;
    }

    fn reset_http2(&mut self, pool: &mut Pool, start: Start<'_>) {
        self.http2 = self.http2.take().or_else(|| pool.take_http2());
        if let Some(http2) = &mut self.http2 {
            http2.reset(start);
        }
    }

    /// A request was read. One by a method that nobody has registered, for no host, is of some
    /// other protocol that looks alike. Nobody may ask by the method of HTTP/2's preface (RFC 9113,
    /// section 11.6).
    pub(super) fn is_http(&self) -> bool {
        self.first.is_http()
    }

    /// Whether what is read as HTTP/1 has begun as HTTP does: with requests, or with a method.
    pub(super) fn asks(&self) -> bool {
        let method = self.http1.method();
        self.http1.requests() > 0 || method.is_some_and(|method| METHODS.contains(&method))
    }

    /// Whether all that was asked in HTTP/1 has its answer.
    pub(super) fn is_between_http1(&self) -> bool {
        let is_idle = self.http1.is_idle(Side::Client) && self.http1.is_idle(Side::Server);
        is_idle && self.http1.requests() == self.http1.responses()
    }

    /// Requests of HTTP/1, and of HTTP/2.
    pub(super) fn requests(&self) -> [u64; 2] {
        [self.http1.requests(), self.http2.as_ref().map_or(0, |http2| http2.requests())]
    }

    pub(super) fn first(&self) -> Option<Request<'_>> {
        let First { seen, method, authority, path, .. } = &self.first;
        seen.then(|| Request {
            method: method.get().unwrap_or_default(),
            authority: authority.get(),
            path: path.get(),
            fields: None,
        })
    }

    fn reset(&mut self) {
        self.http1.reset();
        self.first.seen = false;
    }
}

impl First {
    fn new(target_bytes: usize) -> First {
        First {
            seen: false,
            method: Text::new(METHOD_BYTES),
            authority: Text::new(HOST_BYTES),
            path: Text::new(target_bytes),
            settings: Text::new(SETTINGS_BYTES),
        }
    }

    fn is_http(&self) -> bool {
        let First { seen, method, authority, .. } = self;
        let Some(method) = method.get().filter(|_| *seen) else { return false };
        method != b"PRI" && (authority.get().is_some() || METHODS.contains(&method))
    }

    /// A request; one joined in its midst may say nothing of what it asks for. As long as none
    /// has shown that this is HTTP, the next may.
    fn set(&mut self, fields: &Fields) {
        if self.is_http() || fields.method().is_none() {
            return;
        }
        self.seen = true;
        self.method.set(fields.method());
        self.authority.set(fields.authority());
        self.path.set(fields.path());
        self.settings.set(fields.get(NameId::HTTP2_SETTINGS));
    }
}

/// Tells of a request, whatever its method: who it is for may understand it.
fn tell(fields: &Fields, authority: Option<&[u8]>, on: On<'_>) {
    if let Some(method) = fields.method() {
        let path = fields.path();
        on(Event::Request(Request { method, authority, path, fields: Some(fields) }));
    }
}

impl Text {
    fn new(room: usize) -> Text {
        Text { bytes: vec![0; room].into_boxed_slice(), len: 0, present: false }
    }

    fn set(&mut self, value: Option<&[u8]>) {
        self.present = value.is_some();
        let value = value.unwrap_or_default();
        self.len = value.len().min(self.bytes.len());
        self.bytes[..self.len].copy_from_slice(&value[..self.len]);
    }

    fn get(&self) -> Option<&[u8]> {
        self.present.then(|| &self.bytes[..self.len])
    }
}
