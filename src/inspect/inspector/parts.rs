//! The parsers of HTTP, kept for whoever needs one next.

use crate::inspect::fields::{Fields, NameId, Wanted};
use crate::inspect::grpc;
use crate::inspect::h2::{self, Block, Start};
use crate::inspect::http1::{self, Next, Side};
use crate::inspect::quic::Scratch;

mod methods;

use methods::METHODS;

/// Room for a method and for a host: as much as the parsers keep.
const METHOD_BYTES: usize = 32;
const HOST_BYTES: usize = 264;
/// All settings that there are, twice; who has more has none.
const SETTINGS_BYTES: usize = 96;

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
    /// Room for the fields of heads. One is always here.
    #[allow(clippy::vec_box, reason = "it is lent as it is, not moved about")]
    heads: Vec<Box<Fields>>,
    /// How many more heads may be kept that have come in part.
    heads_left: usize,
    unmade_heads: usize,
    scratch: Scratch,
}

/// How much a parser keeps, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rooms {
    /// Of a request's target.
    pub target: usize,
    /// Of the first request's, which is kept on, with its method and host; 0: it is not.
    pub first_target: usize,
    /// Heads of HTTP/1 at once that have come in part: their fields are kept until the rest comes.
    pub heads: usize,
    /// Of each direction's header table (RFC 7541, section 4.2); where a connection has a larger
    /// one, it is not followed.
    pub table: usize,
}

impl Pool {
    /// At most `parts` parsers, made when they are needed first.
    pub fn growing(wanted: Wanted, rooms: Rooms, parts: usize) -> Pool {
        let (free, free_http2) = (Vec::with_capacity(parts), Vec::with_capacity(parts));
        let (heads_left, unmade_heads) = (rooms.heads, rooms.heads + 1);
        let (heads, unmade) = (Vec::with_capacity(unmade_heads), [parts; 2]);
        let scratch = Scratch::new();
        Pool { wanted, rooms, free, free_http2, unmade, heads, heads_left, unmade_heads, scratch }
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
        while let Some(head) = pool.make_head() {
            pool.heads.push(head);
        }
        pool
    }

    /// No more heads can be kept in part.
    pub fn is_out_of_heads(&self) -> bool {
        self.heads_left == 0
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
        part.release_heads(self);
        self.free_http2.extend(part.http2.take());
        self.free.push(part);
    }

    /// Room for a head that is read now. There always is: fewer are kept than are made.
    fn take_head(&mut self) -> Option<Box<Fields>> {
        self.heads.pop().or_else(|| self.make_head())
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
        let first_target = self.rooms.first_target;
        Some(Box::new(HttpPart {
            http1: http1::Connection::bare(),
            http2: None,
            has_method: false,
            first: First::new(first_target),
        }))
    }

    fn make_head(&mut self) -> Option<Box<Fields>> {
        self.unmade_heads = self.unmade_heads.checked_sub(1)?;
        Some(Box::new(Fields::new(&self.wanted, self.rooms.target)))
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
    /// What failed to be read began with a method of HTTP.
    has_method: bool,
    first: First,
}

#[derive(Debug)]
struct First {
    seen: bool,
    is_http: bool,
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
        pool: &mut Pool,
        on: On<'_>,
    ) -> http1::Fed {
        let kept = self.http1.has_room(from);
        if !kept && let Some(head) = pool.take_head() {
            self.http1.lend(from, head);
        }
        let first = &mut self.first;
        let mut fed = self.http1.feed(from, bytes, &pool.wanted, |event| match event {
            http1::Event::Request { fields, .. } => {
                first.set(fields);
                let authority = http1::effective_authority(fields);
                tell(fields, authority, on);
            }
            http1::Event::Response { status, fields, .. } => {
                on(Event::Response { status, event_stream: fields.is_event_stream() });
            }
        });
        if from == Side::Client && matches!(fed.next, Some(Next::Failed(_))) {
            self.has_method = self.http1.method().is_some_and(|method| METHODS.contains(&method));
        }
        if let Some(head) = self.http1.take_spare(from) {
            pool.heads_left += usize::from(kept);
            pool.heads.push(head);
        } else if !kept {
            match pool.heads_left.checked_sub(1) {
                Some(left) => pool.heads_left = left,
                None => {
                    pool.heads.extend(self.http1.take_room(from));
                    self.http1.give_up(from);
                    fed.next = fed.next.or(Some(Next::Failed(http1::Failure::NoRoom)));
                }
            }
        }
        fed
    }

    /// Heads that have come in part are not asked for any more.
    fn release_heads(&mut self, pool: &mut Pool) {
        for side in [Side::Client, Side::Server] {
            if let Some(head) = self.http1.take_room(side) {
                pool.heads_left += 1;
                pool.heads.push(head);
            }
        }
    }

    /// Whether a head is kept that has come in part.
    pub(super) fn keeps_head(&self) -> bool {
        self.http1.has_room(Side::Client) || self.http1.has_room(Side::Server)
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
        self.first.is_http
    }

    /// Whether what failed to be read as HTTP/1 had begun as HTTP does: with requests, or with a
    /// method.
    pub(super) fn asks(&self) -> bool {
        self.http1.requests() > 0 || self.has_method
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
        (*seen && method.has_room()).then(|| Request {
            method: method.get().unwrap_or_default(),
            authority: authority.get(),
            path: path.get(),
            fields: None,
        })
    }

    fn reset(&mut self) {
        self.http1.reset();
        self.has_method = false;
        (self.first.seen, self.first.is_http) = (false, false);
    }
}

impl First {
    fn new(target_bytes: usize) -> First {
        let room = |bytes| Text::new(if target_bytes == 0 { 0 } else { bytes });
        let (method, authority) = (room(METHOD_BYTES), room(HOST_BYTES));
        let (path, settings) = (Text::new(target_bytes), Text::new(SETTINGS_BYTES));
        First { seen: false, is_http: false, method, authority, path, settings }
    }

    /// A request; one joined in its midst may say nothing of what it asks for. As long as none
    /// has shown that this is HTTP, the next may.
    fn set(&mut self, fields: &Fields) {
        let Some(method) = fields.method().filter(|_| !self.is_http) else { return };
        self.seen = true;
        let named = fields.authority().is_some() || METHODS.contains(&method);
        self.is_http = named && method != b"PRI";
        self.method.set(fields.method());
        self.authority.set(fields.authority());
        self.path.set(fields.path());
        let settings = fields.get(NameId::HTTP2_SETTINGS);
        self.settings.set(settings.filter(|settings| settings.len() <= SETTINGS_BYTES));
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

    fn has_room(&self) -> bool {
        !self.bytes.is_empty()
    }

    fn get(&self) -> Option<&[u8]> {
        self.present.then(|| &self.bytes[..self.len])
    }
}

#[cfg(test)]
mod tests {
    use super::super::{App, Inspector, Said, Unknown};
    use super::*;

    const ROOMS: Rooms = Rooms { target: 64, first_target: 0, heads: 1, table: 4_096 };
    const PART: &[u8] = b"GET /a HTTP/1.1\r\nHost: a.exa";
    const REST: &[u8] = b"mple\r\nContent-Length: 3\r\n\r\n";

    /// What is told of the requests that these bytes complete.
    fn say(inspector: &mut Inspector, pool: &mut Pool, bytes: &[u8]) -> Vec<Vec<u8>> {
        let mut hosts = Vec::new();
        inspector.read(pool, Side::Client, bytes, &mut |event| {
            let Event::Request(request) = event else { return };
            hosts.push(request.authority.unwrap_or_default().to_vec());
        });
        hosts
    }

    #[test]
    fn room_for_fields_is_kept_amid_a_head_only() {
        let mut pool = Pool::filled(Wanted::new([]).expect("no names"), ROOMS, 3);
        let mut all: Vec<_> = (0..3).map(|_| Inspector::new(false)).collect();
        assert!(say(&mut all[0], &mut pool, PART).is_empty());
        assert!(pool.is_out_of_heads() && all[0].keeps_head());
        // Whole heads and bodies need none of their own, before and behind.
        for _ in 0..3 {
            let whole = [PART, REST, b"bo"].concat();
            assert_eq!(say(&mut all[1], &mut pool, &whole), [b"a.example"]);
            assert!(say(&mut all[1], &mut pool, b"d").is_empty() && !all[1].keeps_head());
        }
        assert!(say(&mut all[2], &mut pool, PART).is_empty());
        assert_eq!(all[2].unknown(), Some(Unknown::Crowded));
        assert_eq!((all[2].unread(), all[2].keeps_head()), (Some(Said::Requests), false));
        assert_eq!(say(&mut all[0], &mut pool, REST), [b"a.example"]);
        assert_eq!((all[0].app(), pool.is_out_of_heads()), (App::Http1, false));
        // A part that is given up gives its room back.
        say(&mut all[1], &mut pool, PART);
        assert!(pool.is_out_of_heads());
        all.remove(1).give_back(&mut pool);
        assert_eq!((pool.heads_left, pool.heads.len()), (1, 2));
    }

    #[test]
    fn a_server_whose_head_finds_no_room_is_not_read_on() {
        let mut pool = Pool::filled(Wanted::new([]).expect("no names"), ROOMS, 2);
        let mut all = [Inspector::new(false), Inspector::new(false)];
        let whole = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n";
        assert_eq!(say(&mut all[1], &mut pool, whole), [b"a"]);
        say(&mut all[0], &mut pool, PART);
        let mut answers = 0;
        for part in ["HTTP/1.1 200 OK\r\n", "Content-Length: 0\r\n\r\n"] {
            let told = &mut |event: Event<'_>| {
                answers += u32::from(matches!(event, Event::Response { .. }));
            };
            all[1].read(&mut pool, Side::Server, part.as_bytes(), told);
        }
        assert_eq!(answers, 0);
        assert_eq!(say(&mut all[1], &mut pool, whole), [b"a"], "requests go on");
    }
}
