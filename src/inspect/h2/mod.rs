//! HTTP/2 in the clear (RFC 9113): the messages of all streams of a connection.
//!
//! [`Connection::feed`] takes the bytes of either direction, cut in any way, and calls back with
//! each complete header block, with resets, GOAWAY and the sizes of data. A connection begins
//! ([`Start`]) with the preface, behind a preface that `http1` has read, behind an upgrade, or
//! somewhere at a frame's beginning: then some fields may be unknown, none is wrong.
//!
//! The two directions need each other's settings; they may be fed in any order that keeps each
//! one's own. Of streams nothing is kept but the highest number. `wanted` is the same set with
//! every call. gRPC is read off a request's fields by [`super::grpc::call`].
//!
//! What a receiver must treat as a connection error ends its direction ([`Failure`], with the code
//! that the RFC names); what is wrong for one stream alone is told and the rest goes on.

use super::fields::{Fields, NameId, Sink, Wanted};
use super::hpack::{self, Decoder};

mod base64url;
pub mod frame;
mod lent;
mod walk;

use frame::{FRAME_BYTES_LIMIT, FRAME_BYTES_MAX, Frames, Head, Part, flag, kind, setting};

pub use super::http1::Side;
pub use walk::{SETTINGS, Walk};

/// What a client that knows begins with (RFC 9113, section 3.4).
pub const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// Bytes of a header block at most, as they are sent; a longer one ends its direction.
pub const BLOCK_BYTES_MAX: u32 = 1 << 18;

/// An error code (RFC 9113, section 7).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ErrorCode(pub u32);

impl ErrorCode {
    pub const NO_ERROR: ErrorCode = ErrorCode(0);
    pub const PROTOCOL_ERROR: ErrorCode = ErrorCode(1);
    pub const FLOW_CONTROL_ERROR: ErrorCode = ErrorCode(3);
    pub const FRAME_SIZE_ERROR: ErrorCode = ErrorCode(6);
    pub const COMPRESSION_ERROR: ErrorCode = ErrorCode(9);
    pub const ENHANCE_YOUR_CALM: ErrorCode = ErrorCode(11);
}

/// Where a connection begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Start<'a> {
    /// With the client's preface.
    Preface,
    /// Behind the client's preface.
    BehindPreface,
    /// Behind the answer 101 and the client's preface; the request is stream 1. With the value of
    /// the request's `HTTP2-Settings` field (RFC 7540, section 3.2.1).
    Upgraded(&'a [u8]),
    /// At any frame.
    Joined,
}

/// Why a direction is not followed any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Failure {
    /// Its first bytes are none of HTTP/2.
    NotHttp2,
    /// Its receiver must end the connection with this code.
    Connection(ErrorCode),
    /// There is no room for the fields.
    NoRoom,
}

/// What a block of header fields is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Block {
    Request,
    /// An informational answer.
    Interim,
    Response,
    Trailers,
    /// A request that the server makes up, and the stream of the answer to it.
    Promise {
        promised: u32,
    },
}

/// What happens on a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event<'a, F = Fields> {
    /// A header block is complete.
    Headers {
        stream: u32,
        block: Block,
        end_stream: bool,
        fields: &'a F,
    },
    /// A DATA frame begins. Bytes without padding are fewer.
    Data {
        stream: u32,
        length: u32,
        end_stream: bool,
    },
    /// RST_STREAM.
    Reset {
        stream: u32,
        code: ErrorCode,
    },
    GoAway {
        last_stream: u32,
        code: ErrorCode,
    },
    /// What its receiver must answer with RST_STREAM.
    StreamError {
        stream: u32,
        code: ErrorCode,
    },
}

/// Where the fields of a block go.
pub trait Message: Sink {
    fn has(&self, name: NameId) -> bool;
    fn has_unknown(&self) -> bool;
    fn status(&self) -> Option<u16>;
}

impl Message for Fields {
    fn has(&self, name: NameId) -> bool {
        self.get(name).is_some()
    }

    fn has_unknown(&self) -> bool {
        Fields::has_unknown(self)
    }

    fn status(&self) -> Option<u16> {
        Fields::status(self)
    }
}

/// Both directions of a connection.
#[derive(Clone, Debug)]
pub struct Connection<F = Fields> {
    client: Half<F>,
    server: Half<F>,
    requests: u64,
}

#[derive(Clone, Debug)]
struct Half<F> {
    side: Side,
    /// Lent: at least amid a block.
    fields: Option<Box<F>>,
    frames: Frames,
    decoder: Decoder,
    failure: Option<Failure>,
    /// Bytes of the preface that have come.
    preface: u8,
    joined: bool,
    /// What the other side allows may not be seen.
    limits_unseen: bool,
    /// The block that is being read.
    block: Option<Open>,
    block_bytes: u32,
    highest_stream: u32,
    /// What the other side allows.
    frame_bytes_max: u32,
    /// SETTINGS of the other side that this one has not acknowledged, and the size of the header
    /// table that the last one set.
    unacknowledged: u32,
    table_bytes: Option<u32>,
    frames_read: u64,
}

#[derive(Clone, Copy, Debug)]
struct Open {
    stream: u32,
    end_stream: bool,
    promised: Option<u32>,
}

impl Connection<Fields> {
    /// Room for the wanted fields, paths of `path_bytes`, and header tables of `table_bytes` (see
    /// [`Decoder::new`]). It awaits a preface.
    pub fn new(wanted: &Wanted, path_bytes: usize, table_bytes: usize) -> Connection {
        let (request, response) =
            (Fields::new(wanted, path_bytes), Fields::new(wanted, path_bytes));
        Connection::with(request, response, table_bytes)
    }
}

impl<F: Message> Connection<F> {
    /// As [`Connection::new`], with fields going elsewhere.
    pub fn with(request: F, response: F, table_bytes: usize) -> Connection<F> {
        Connection {
            client: Half::new(Side::Client, Some(request.into()), Decoder::new(table_bytes)),
            server: Half::new(Side::Server, Some(response.into()), Decoder::new(table_bytes)),
            requests: 0,
        }
    }

    /// Has clients keep to no limits that their server may have set where it is not seen: it would
    /// end the connection itself.
    pub fn with_unseen_limits(mut self) -> Connection<F> {
        self.client.limits_unseen = true;
        self.client.reset(false, true);
        self
    }

    /// Begins another connection in the same memory.
    pub fn reset(&mut self, start: Start<'_>) {
        let joined = start == Start::Joined;
        self.client.reset(joined, start == Start::Preface);
        self.server.reset(joined, false);
        self.requests = 0;
        if let Start::Upgraded(settings) = start {
            self.client.highest_stream = 1;
            self.requests = 1;
            let mut payload = [0; base64url::BYTES_MAX];
            // What can't be read says nothing: the size stays as agreed by default.
            let n = base64url::decode(settings, &mut payload).unwrap_or(0);
            for entry in payload[..n].chunks_exact(6) {
                let id = u16::from_be_bytes([entry[0], entry[1]]);
                let value = u32::from_be_bytes([entry[2], entry[3], entry[4], entry[5]]);
                self.server.take_setting(id, value);
            }
            // They hold at once (RFC 7540, section 3.2.1).
            self.server.acknowledge();
        }
    }

    /// Requests so far; after an upgrade the one of HTTP/1 counts.
    pub fn requests(&self) -> u64 {
        self.requests
    }

    /// Complete frames of one side. Where a stream was joined, the more the surer it is HTTP/2.
    pub fn frames(&self, side: Side) -> u64 {
        match side {
            Side::Client => self.client.frames_read,
            Side::Server => self.server.frames_read,
        }
    }

    /// Whether this direction is between two frames and two blocks.
    pub fn is_idle(&self, side: Side) -> bool {
        match side {
            Side::Client => self.client.is_idle(),
            Side::Server => self.server.is_idle(),
        }
    }

    /// The next bytes of one direction. What `on` is told of does not depend on how it is cut.
    ///
    /// # Errors
    /// Why the direction is not followed any more; the same with every later call.
    pub fn feed(
        &mut self,
        side: Side,
        bytes: &[u8],
        wanted: &Wanted,
        mut on: impl FnMut(Event<'_, F>),
    ) -> Result<(), Failure> {
        let (half, other) = match side {
            Side::Client => (&mut self.client, &mut self.server),
            Side::Server => (&mut self.server, &mut self.client),
        };
        if let Some(failure) = half.failure {
            return Err(failure);
        }
        let requests = &mut self.requests;
        let done = half.run(bytes, wanted, other, &mut |event| {
            let is_request = matches!(event, Event::Headers { block: Block::Request, .. });
            *requests += u64::from(is_request);
            on(event);
        });
        half.failure = done.err();
        done
    }
}

impl<F: Message> Half<F> {
    fn new(side: Side, fields: Option<Box<F>>, decoder: Decoder) -> Half<F> {
        let mut half = Half {
            side,
            fields,
            frames: Frames::new(false),
            decoder,
            failure: None,
            preface: 0,
            joined: false,
            limits_unseen: false,
            block: None,
            block_bytes: 0,
            highest_stream: 0,
            frame_bytes_max: FRAME_BYTES_MAX,
            unacknowledged: 0,
            table_bytes: None,
            frames_read: 0,
        };
        half.reset(false, side == Side::Client);
        half
    }

    fn reset(&mut self, joined: bool, preface: bool) {
        self.frames = Frames::new(joined);
        self.decoder.reset(joined);
        (self.failure, self.block, self.table_bytes) = (None, None, None);
        (self.joined, self.highest_stream, self.unacknowledged) = (joined, 0, 0);
        self.preface = if preface { 0 } else { PREFACE.len() as u8 };
        // What was allowed before joining is not known.
        let unknown = joined || self.limits_unseen;
        self.frame_bytes_max = if unknown { FRAME_BYTES_LIMIT } else { FRAME_BYTES_MAX };
        if unknown {
            self.decoder.set_limit(u32::MAX);
        }
        (self.block_bytes, self.frames_read) = (0, 0);
    }

    fn is_idle(&self) -> bool {
        self.failure.is_none() && self.frames.is_idle() && self.block.is_none()
    }

    fn run(
        &mut self,
        bytes: &[u8],
        wanted: &Wanted,
        other: &mut Half<F>,
        on: &mut impl FnMut(Event<'_, F>),
    ) -> Result<(), Failure> {
        let left = &PREFACE[usize::from(self.preface)..];
        let n = left.len().min(bytes.len());
        if bytes[..n] != left[..n] {
            return Err(Failure::NotHttp2);
        }
        self.preface += n as u8;
        let mut input = &bytes[n..];
        let failed = |code| match code {
            ErrorCode::NO_ERROR => Failure::NotHttp2,
            code => Failure::Connection(code),
        };
        while let Some(part) = self.frames.next(&mut input, self.frame_bytes_max).map_err(failed)? {
            match part {
                Part::Head(head) => self.begin(head, on)?,
                Part::Promised { stream } => {
                    if let Some(block) = &mut self.block {
                        block.promised = Some(stream);
                    }
                }
                Part::Setting { id, value } => other.take_setting(id, value),
                Part::Reset { code } => {
                    let (stream, code) = (self.frames.head().stream, ErrorCode(code));
                    on(Event::Reset { stream, code });
                }
                Part::GoAway { last_stream, code } => {
                    on(Event::GoAway { last_stream, code: ErrorCode(code) });
                }
                Part::Payload(piece) if self.frames.head().is_block() => {
                    self.fragment(piece, wanted)?;
                }
                Part::StreamFault(code) => {
                    on(Event::StreamError { stream: self.frames.head().stream, code });
                }
                Part::End(head) => {
                    self.frames_read += 1;
                    self.end(head, other, on)?;
                }
                Part::Priority { .. } | Part::Ping(_) | Part::WindowUpdate { .. } => {}
                Part::Payload(_) => {}
            }
        }
        Ok(())
    }

    fn begin(&mut self, head: Head, on: &mut impl FnMut(Event<'_, F>)) -> Result<(), Failure> {
        const PROTOCOL_ERROR: Failure = Failure::Connection(ErrorCode::PROTOCOL_ERROR);
        let goes_on = self.block.is_some_and(|block| block.stream == head.stream);
        // Nothing may come within a block (section 6.10).
        if (head.kind == kind::CONTINUATION) != self.block.is_some()
            || self.block.is_some() && !goes_on
        {
            return Err(PROTOCOL_ERROR);
        }
        let end_stream = head.has(flag::END_STREAM);
        match head.kind {
            kind::HEADERS => {
                // Clients open streams of odd numbers only (section 5.1.1).
                if self.side == Side::Client && head.stream.is_multiple_of(2) {
                    return Err(PROTOCOL_ERROR);
                }
                self.open(Open { stream: head.stream, end_stream, promised: None })?;
            }
            kind::PUSH_PROMISE => {
                self.open(Open { stream: head.stream, end_stream: false, promised: None })?;
            }
            kind::DATA => {
                on(Event::Data { stream: head.stream, length: head.length, end_stream });
            }
            _ => {}
        }
        Ok(())
    }

    fn open(&mut self, block: Open) -> Result<(), Failure> {
        self.fields.as_mut().ok_or(Failure::NoRoom)?.clear();
        self.block = Some(block);
        self.block_bytes = 0;
        self.decoder.begin_block();
        Ok(())
    }

    fn fragment(&mut self, piece: &[u8], wanted: &Wanted) -> Result<(), Failure> {
        // No more is read than the limit allows, however the stream is cut.
        let room = (BLOCK_BYTES_MAX - self.block_bytes) as usize;
        let allowed = &piece[..piece.len().min(room)];
        self.block_bytes += allowed.len() as u32;
        let fields = self.fields.as_deref_mut().ok_or(Failure::NoRoom)?;
        self.decoder.feed(allowed, wanted, fields).map_err(compression)?;
        if allowed.len() < piece.len() {
            return Err(Failure::Connection(ErrorCode::ENHANCE_YOUR_CALM));
        }
        Ok(())
    }

    fn end(
        &mut self,
        head: Head,
        other: &mut Half<F>,
        on: &mut impl FnMut(Event<'_, F>),
    ) -> Result<(), Failure> {
        match head.kind {
            kind::SETTINGS if head.has(flag::ACK) => self.acknowledge(),
            kind::SETTINGS => other.unacknowledged = other.unacknowledged.saturating_add(1),
            _ if head.is_block() && head.has(flag::END_HEADERS) => return self.end_block(on),
            _ => {}
        }
        Ok(())
    }

    fn end_block(&mut self, on: &mut impl FnMut(Event<'_, F>)) -> Result<(), Failure> {
        self.decoder.end_block().map_err(compression)?;
        let Some(Open { stream, end_stream, promised }) = self.block.take() else { return Ok(()) };
        let is_new = stream > self.highest_stream;
        self.highest_stream = self.highest_stream.max(stream);
        let fields = self.fields.as_deref().ok_or(Failure::NoRoom)?;
        let block = match (promised, self.side) {
            (Some(promised), _) => Block::Promise { promised },
            (None, Side::Client) => {
                // Joined amid a stream, the first block may be its trailers.
                let begins = !self.joined || fields.has(NameId::METHOD) || fields.has_unknown();
                if is_new && begins { Block::Request } else { Block::Trailers }
            }
            (None, Side::Server) => match fields.status() {
                Some(100..=199) => Block::Interim,
                Some(_) => Block::Response,
                None if fields.has_unknown() && !end_stream => Block::Response,
                None => Block::Trailers,
            },
        };
        on(Event::Headers { stream, block, end_stream, fields });
        // Clients can't push (section 8.4).
        if promised.is_some() && self.side == Side::Client {
            return Err(Failure::Connection(ErrorCode::PROTOCOL_ERROR));
        }
        Ok(())
    }

    /// The other side's setting.
    fn take_setting(&mut self, id: u16, value: u32) {
        match id {
            // What is allowed may come into use before it is acknowledged; what no longer is, not.
            setting::HEADER_TABLE_SIZE if !self.limits_unseen => {
                self.table_bytes = Some(value);
                if value > self.decoder.limit() {
                    self.decoder.set_limit(value);
                }
            }
            setting::MAX_FRAME_SIZE => self.frame_bytes_max = self.frame_bytes_max.max(value),
            _ => {}
        }
    }

    /// This side has acknowledged the other's settings.
    fn acknowledge(&mut self) {
        self.unacknowledged = self.unacknowledged.saturating_sub(1);
        if self.unacknowledged == 0
            && let Some(bytes) = self.table_bytes.take()
        {
            self.decoder.set_limit(bytes);
        }
    }
}

/// Any error of decoding ends the connection (RFC 9113, section 4.3).
fn compression(_: hpack::Error) -> Failure {
    Failure::Connection(ErrorCode::COMPRESSION_ERROR)
}

#[cfg(test)]
mod tests;
