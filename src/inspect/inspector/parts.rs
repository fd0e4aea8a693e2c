//! The parsers of HTTP that one connection has, and what they tell.

use super::pool::Pool;
use crate::inspect::fields::{Fields, NameId};
use crate::inspect::grpc;
use crate::inspect::h2::{self, Block, Start};
use crate::inspect::http1::{self, Next, Side};

mod ended;
mod methods;

use ended::Ended;
use methods::METHODS;

/// Room for a method and for a host: as much as the parsers keep.
const METHOD_BYTES: usize = 32;
const HOST_BYTES: usize = 264;
/// All settings that there are, twice; who has more has none.
const SETTINGS_BYTES: usize = 96;

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
    /// What failed to be read began with a method of HTTP, or with what is too long for one.
    has_method: bool,
    /// Requests before the tunnel through which this is sent.
    before_tunnel: Option<u64>,
    ended: Ended,
    first: First,
}

#[derive(Debug)]
struct First {
    seen: bool,
    is_http: bool,
    /// Some part of it was longer than its room.
    cut: bool,
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
        let mut fed = self.http1.feed(from, bytes, pool.wanted(), |event| match event {
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
            // Servers may take any token for a method, however long.
            self.has_method = self.has_method() || self.http1.is_method_cut();
        }
        if let Some(head) = self.http1.take_spare(from) {
            pool.put_head(head, kept);
        } else if !kept && !pool.keep_head() {
            if let Some(head) = self.http1.take_room(from) {
                pool.put_head(head, false);
            }
            self.http1.give_up(from);
            fed.next = fed.next.or(Some(Next::Failed(http1::Failure::NoRoom)));
        }
        fed
    }

    /// What is kept of heads and header tables is not asked for any more.
    pub(super) fn release(&mut self, pool: &mut Pool) {
        for side in [Side::Client, Side::Server] {
            if let Some(head) = self.http1.take_room(side) {
                pool.put_head(head, true);
            }
        }
        if let Some(http2) = self.http2.take() {
            pool.put_http2(http2);
        }
    }

    /// Whether a head is kept that has come in part.
    pub(super) fn keeps_head(&self) -> bool {
        let http2 = self.http2.as_ref();
        let any = |side| self.http1.has_room(side) || http2.is_some_and(|h| h.has_fields(side));
        any(Side::Client) || any(Side::Server)
    }

    pub(super) fn feed_http2(
        &mut self,
        from: Side,
        bytes: &[u8],
        pool: &mut Pool,
        on: On<'_>,
    ) -> Result<(), h2::Failure> {
        let (first, ended) = (&mut self.first, &mut self.ended);
        let Some(http2) = &mut self.http2 else { return Err(h2::Failure::NotHttp2) };
        let kept = pool.lend(http2, from);
        let done = http2.feed(from, bytes, pool.wanted(), |event| {
            if let Some(stream) = ended::by(from, &event) {
                ended.note(stream);
            }
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
        });
        match pool.take_back(http2, from, kept) {
            true => done,
            false => done.and(Err(h2::Failure::NoRoom)),
        }
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
        self.ended = Ended::default();
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
        self.http1.requests() > self.before_tunnel.unwrap_or_default() || self.has_method
    }

    /// Whether a head that has come in part begins with a method.
    pub(super) fn has_method(&self) -> bool {
        self.http1.method().is_some_and(|method| METHODS.contains(&method))
    }

    /// Whether the first request is longer than what is kept of it.
    pub(super) fn first_is_cut(&self) -> bool {
        self.first.seen && self.first.cut
    }

    /// Reads HTTP/1 again, through a tunnel that it has made.
    pub(super) fn resume(&mut self) {
        self.before_tunnel = Some(self.http1.requests());
        self.http1.resume();
    }

    /// Whether this is read through a tunnel.
    pub(super) fn is_resumed(&self) -> bool {
        self.before_tunnel.is_some()
    }

    /// Whether all that was asked in HTTP/1 has its answer.
    pub(super) fn is_between_http1(&self) -> bool {
        let is_idle = self.http1.is_idle(Side::Client) && self.http1.is_idle(Side::Server);
        is_idle && self.http1.requests() == self.http1.responses()
    }

    /// Whether all that was asked in HTTP/2 has its whole answer, as far as can be told without
    /// keeping streams.
    pub(super) fn is_between_http2(&self) -> bool {
        let between =
            |h: &h2::Connection| h.is_idle(Side::Client) && h.requests() <= self.ended.count();
        self.http2.as_deref().is_some_and(between)
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

    pub(super) fn new(first_target: usize) -> HttpPart {
        HttpPart {
            http1: http1::Connection::bare(),
            http2: None,
            has_method: false,
            before_tunnel: None,
            ended: Ended::default(),
            first: First::new(first_target),
        }
    }

    pub(super) fn reset(&mut self) {
        self.http1.reset();
        (self.has_method, self.before_tunnel, self.ended) = (false, None, Ended::default());
        (self.first.seen, self.first.is_http) = (false, false);
    }
}

impl First {
    fn new(target_bytes: usize) -> First {
        let room = |bytes| Text::new(if target_bytes == 0 { 0 } else { bytes });
        let (method, authority) = (room(METHOD_BYTES), room(HOST_BYTES));
        let (path, settings) = (Text::new(target_bytes), Text::new(SETTINGS_BYTES));
        First { seen: false, is_http: false, cut: false, method, authority, path, settings }
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
        let longer = |text: &Text, value: Option<&[u8]>| value.is_some_and(|v| v.len() > text.len);
        let names = [NameId::METHOD, NameId::PATH, NameId::AUTHORITY, NameId::HOST];
        self.cut = names.iter().any(|&name| fields.truncated(name))
            || longer(&self.authority, fields.authority())
            || longer(&self.path, fields.path());
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
