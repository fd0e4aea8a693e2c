//! One connection's inspection: finds out which protocol it speaks and follows it as far as there
//! is something to see.
//!
//! Sans-io: takes what each side sent, in order, and answers with what is known. Parsers come from
//! a [`Pool`] when a connection begins as what they read.

mod greeting;
mod kinds;
mod parts;
mod pool;
mod shortfall;
mod standing;

use super::Peek;
use super::h2::{self, Start};
use super::http1::{self, Next};
use super::quic::{self, CryptoStream, Proof};
use super::tls::{Carrier, Failure, HelloParser, Ja4, ServerHello};
use crate::flow::reassembly::Reassembler;

pub use super::http1::Side;
pub use kinds::{App, Said, Unknown};
pub use parts::{Event, On, Request};
pub use pool::{Pool, Rooms};
pub use shortfall::Shortfall;

use greeting::Greeting;
use parts::HttpPart;

/// Bytes of a ClientHello at most, record headers included.
pub const HELLO_BYTES_MAX: u32 = 1 << 17;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    /// Nothing was sent by the client.
    Start,
    Hello,
    /// The hello was read: the answer to it is looked for.
    Answer,
    Datagrams,
    Http1,
    Http2,
    /// The client's next byte is the first through a tunnel that HTTP/1 made.
    Tunnel,
    /// What goes through it is no HTTP.
    TunnelHello,
    Done,
}

/// Follows one connection.
#[derive(Debug)]
pub struct Inspector {
    stage: Stage,
    /// The stream's beginning was not seen.
    joined: bool,
    /// The server speaks HTTP/2: from its first byte on, or from an answer 101.
    server_http2: Option<bool>,
    app: App,
    unknown: Option<Unknown>,
    /// The client says something that can't be read.
    lost: Option<Said>,
    hello_bytes_max: u32,
    /// Once the client says something like a hello.
    greeting: Option<Box<Greeting>>,
    http: Option<Box<HttpPart>>,
}

impl Inspector {
    /// `joined`: what is given first may not be what was sent first.
    pub fn new(joined: bool) -> Inspector {
        Inspector::with_hello(joined, HELLO_BYTES_MAX)
    }

    /// The same, looking at fewer bytes of a ClientHello.
    pub fn with_hello(joined: bool, hello_bytes_max: u32) -> Inspector {
        Inspector {
            stage: Stage::Start,
            joined,
            server_http2: None,
            app: App::None,
            unknown: None,
            lost: None,
            hello_bytes_max,
            greeting: None,
            http: None,
        }
    }

    /// The next bytes of a TCP stream.
    pub fn stream(&mut self, pool: &mut Pool, from: Side, bytes: &[u8]) {
        self.read(pool, from, bytes, &mut |_| ());
    }

    /// The same; `on` is told of each message of HTTP whose head is complete.
    pub fn read(&mut self, pool: &mut Pool, from: Side, bytes: &[u8], on: On<'_>) {
        match (self.stage, from) {
            (Stage::Done, _) => {}
            (Stage::Start, Side::Client) => {
                let Some(&first) = bytes.first() else { return };
                self.begin(pool, first);
                if self.stage != Stage::Start {
                    self.read(pool, from, bytes, on);
                }
            }
            (Stage::Hello | Stage::TunnelHello, Side::Client) => self.hello(bytes),
            (Stage::Tunnel, Side::Client) => self.tunnel(pool, bytes, on),
            (Stage::Http1, Side::Client) => self.http1(pool, bytes, on),
            (Stage::Start | Stage::Http1 | Stage::Http2, Side::Server) => {
                self.http_answer(pool, bytes, on);
            }
            (Stage::Http2, Side::Client) => self.http2(pool, bytes, on),
            (Stage::Hello | Stage::Answer, Side::Server) => {
                let Some(greeting) = &mut self.greeting else { return };
                let peek = greeting.answer.feed(bytes);
                if self.stage == Stage::Answer && peek != Peek::NeedMore {
                    self.stage = Stage::Done;
                }
            }
            (Stage::Tunnel | Stage::TunnelHello | Stage::Datagrams, Side::Server)
            | (Stage::Answer | Stage::Datagrams, Side::Client) => {}
        }
    }

    /// The next datagram of a UDP flow. The handshake stream is put in order in this slot of the
    /// reassembler, which is the connection's own.
    pub fn datagram(
        &mut self,
        pool: &mut Pool,
        reassembler: &mut Reassembler,
        slot: usize,
        from: Side,
        bytes: &[u8],
    ) {
        if self.stage == Stage::Start {
            self.greet(pool, Stage::Datagrams);
            if self.stage == Stage::Datagrams {
                reassembler.open(slot, 0);
            }
        }
        if self.stage != Stage::Datagrams {
            return;
        }
        let Some(greeting) = &mut self.greeting else { return };
        let Greeting { hello, initials, .. } = &mut **greeting;
        let mut stream = CryptoStream { reassembler, slot, hello };
        let peek = initials.datagram(from == Side::Client, bytes, &mut stream, pool.scratch());
        match peek {
            Peek::NeedMore => return,
            Peek::Found(()) => {
                self.app = App::Quic;
                self.lost = initials.is_mixed().then_some(Said::Hello);
            }
            Peek::NotThis => {
                let other = initials.failure() == Some(quic::Failure::NotQuic);
                self.app = self.unread_quic();
                self.lost = (!other).then_some(Said::Hello);
            }
        }
        reassembler.close(slot);
        self.stage = Stage::Done;
    }

    fn proof(&self) -> Proof {
        self.greeting.as_ref().map_or(Proof::None, |greeting| greeting.initials.proof())
    }

    /// What a client speaks whose hello was not read.
    fn unread_quic(&self) -> App {
        match self.proof() {
            Proof::None => App::None,
            Proof::Header => App::QuicMaybe,
            Proof::Tag => App::Quic,
        }
    }

    /// It is undecided and will not be looked at any longer.
    pub fn give_up(&mut self, why: Unknown) {
        if !self.knows() && self.stage != Stage::Start {
            self.unknown = self.unknown.or(Some(why));
        }
    }

    /// What the client says and nobody has read, if nothing more is read from here on. Of a
    /// connection joined later than its beginning that is not known, nor to be expected.
    pub fn unread(&self) -> Option<Said> {
        match self.stage {
            _ if self.joined => None,
            Stage::Done => self.lost,
            Stage::Hello => Some(Said::Hello),
            Stage::Http1 | Stage::Http2 => Some(Said::Requests),
            Stage::Datagrams => (self.proof() != Proof::None).then_some(Said::Hello),
            Stage::Start | Stage::Answer | Stage::Tunnel | Stage::TunnelHello => None,
        }
    }

    /// Whether the client speaks HTTP, which is read on.
    pub fn asks(&self) -> bool {
        matches!(self.stage, Stage::Http1 | Stage::Http2)
    }

    /// Whether nothing that the client said has come, and its beginning may still.
    pub fn is_silent(&self) -> bool {
        self.stage == Stage::Start && !self.joined
    }

    /// Whether a client of QUIC has gone on beyond a hello that was not read.
    pub fn went_on(&self) -> bool {
        self.greeting.as_ref().is_some_and(|greeting| greeting.initials.went_on())
    }

    /// Whether the protocol is known.
    pub fn knows(&self) -> bool {
        self.app != App::None
    }

    /// Nothing that follows changes what is known.
    pub fn is_done(&self) -> bool {
        self.stage == Stage::Done
    }

    pub fn app(&self) -> App {
        match self.stage {
            Stage::Datagrams => self.unread_quic(),
            // A part of a hello is of TLS too.
            Stage::Hello if self.greeting.as_ref().is_some_and(|g| g.hello.has_begun()) => App::Tls,
            _ => self.app,
        }
    }

    /// The connection id that the hello of QUIC came under.
    pub fn attempt(&self) -> Option<&[u8]> {
        self.greeting.as_ref()?.initials.attempt()
    }

    /// The version of QUIC.
    pub fn quic_version(&self) -> Option<u32> {
        self.greeting.as_ref()?.initials.version()
    }

    /// Why the protocol was not found out, where it looked like one that is known.
    pub fn unknown(&self) -> Option<Unknown> {
        self.unknown.filter(|_| !self.knows())
    }

    /// The ClientHello, once it is complete.
    pub fn client_hello(&self) -> Option<&HelloParser> {
        let greeting = self.greeting.as_ref()?;
        greeting.hello.is_complete().then_some(&greeting.hello)
    }

    /// The ServerHello, as far as it was seen.
    pub fn server_hello(&self) -> Option<&ServerHello> {
        let greeting = self.greeting.as_ref()?;
        greeting.hello.is_complete().then_some(&greeting.answer)
    }

    pub fn ja4(&self) -> Option<Ja4> {
        let carrier = if self.app == App::Quic { Carrier::Quic } else { Carrier::Tcp };
        self.client_hello()?.ja4(carrier)
    }

    /// The first request.
    pub fn request(&self) -> Option<Request<'_>> {
        let known = self.knows();
        self.http.as_ref().filter(|_| known)?.first()
    }

    /// Requests seen.
    pub fn requests(&self) -> u64 {
        let [http1, http2] = self.http.as_ref().map_or([0; 2], |http| http.requests());
        match self.app {
            // HTTP/2 within a tunnel counts on.
            App::Http1 | App::ConnectTls => http1 + http2,
            // The one of HTTP/1 counts among those of HTTP/2, but not those before it.
            App::H2cUpgrade => http1.saturating_sub(1) + http2,
            _ => http2,
        }
    }

    /// Whether it has taken parsers of HTTP from the pool.
    pub fn has_parsers(&self) -> bool {
        self.http.is_some()
    }

    /// Whether it keeps a head of HTTP/1 that has come in part.
    pub fn keeps_head(&self) -> bool {
        self.http.as_ref().is_some_and(|http| http.keeps_head())
    }

    /// Ends, and gives the parsers back.
    pub fn give_back(self, pool: &mut Pool) {
        if let Some(http) = self.http {
            pool.put(http);
        }
        if let Some(greeting) = self.greeting {
            pool.put_greeting(greeting);
        }
    }

    /// The client's first byte tells TLS and HTTP apart.
    fn begin(&mut self, pool: &mut Pool, first: u8) {
        const HANDSHAKE: u8 = 22;
        self.stage = match first {
            HANDSHAKE | 0x80.. => return self.greet(pool, Stage::Hello),
            _ if begins_http1(first) => match self.http.take().or_else(|| pool.take()) {
                Some(http) => {
                    self.http = Some(http);
                    Stage::Http1
                }
                None => {
                    self.unknown = Some(Unknown::Crowded);
                    self.lost = Some(Said::Requests);
                    Stage::Done
                }
            },
            // The length of a frame that isn't huge.
            0 if self.joined => match self.http.take().or_else(|| pool.take()) {
                Some(mut http) => {
                    http.begin_http2(pool, Start::Joined);
                    self.http = Some(http);
                    self.server_http2 = Some(true);
                    Stage::Http2
                }
                None => Stage::Done,
            },
            _ => Stage::Done,
        };
    }

    /// Something like a hello is to be read from here on.
    fn greet(&mut self, pool: &mut Pool, stage: Stage) {
        self.greeting = self.greeting.take().or_else(|| pool.take_greeting());
        self.stage = stage;
        match &mut self.greeting {
            Some(greeting) => greeting.begin(self.hello_bytes_max),
            None => {
                self.unknown = Some(Unknown::Crowded);
                self.lost = Some(Said::Hello);
                self.stage = Stage::Done;
            }
        }
    }

    fn hello(&mut self, bytes: &[u8]) {
        let Some(greeting) = &mut self.greeting else { return };
        match greeting.hello.feed(bytes) {
            Peek::NeedMore => {}
            Peek::Found(()) => {
                let tunnel = self.stage == Stage::TunnelHello;
                self.app = if tunnel { App::ConnectTls } else { App::Tls };
                let answered = greeting.answer.feed(&[]) != Peek::NeedMore;
                self.stage = if tunnel || answered { Stage::Done } else { Stage::Answer };
            }
            Peek::NotThis => {
                match greeting.hello.failure() {
                    // It is TLS, and nothing that it says can be trusted.
                    Some(Failure::Malformed) if self.stage == Stage::Hello => {
                        self.app = App::Tls;
                        self.lost = Some(Said::Hello);
                    }
                    Some(Failure::TooLong) => {
                        self.unknown = Some(Unknown::HelloTooLong);
                        self.lost = Some(Said::Hello);
                    }
                    _ => {}
                }
                self.stage = Stage::Done;
            }
        }
    }

    fn http1(&mut self, pool: &mut Pool, bytes: &[u8], on: On<'_>) {
        let Some(http) = &mut self.http else { return };
        let fed = http.feed_http1(Side::Client, bytes, pool, on);
        if self.app == App::None && http.is_http() {
            self.app = App::Http1;
        }
        let Some(next) = fed.next else { return };
        let rest = bytes.get(fed.used..).unwrap_or_default();
        match next {
            Next::Tunnel => {
                self.stage = Stage::Tunnel;
                self.tunnel(pool, rest, on);
            }
            Next::Http2 => {
                self.begin_http2(pool);
                self.http2(pool, rest, on);
            }
            Next::Upgraded => self.stage = Stage::Done,
            Next::Failed(failure) => {
                // Without a version it may be a request all the same (RFC 1945, section 4.1).
                if failure != http1::Failure::NotHttp || http.asks() {
                    self.lost = Some(Said::Requests);
                }
                self.unknown = match failure {
                    http1::Failure::NotHttp => None,
                    http1::Failure::Malformed | http1::Failure::Ambiguous => {
                        Some(Unknown::HeadMalformed)
                    }
                    http1::Failure::TooLong => Some(Unknown::HeadTooLong),
                    http1::Failure::NoRoom => Some(Unknown::Crowded),
                };
                self.stage = Stage::Done;
            }
        }
    }

    /// What a client sends through a tunnel: TLS, or requests in the clear. A server that opened
    /// none, whatever it answered, reads them as its own.
    fn tunnel(&mut self, pool: &mut Pool, bytes: &[u8], on: On<'_>) {
        let Some(&first) = bytes.first() else { return };
        if let Some(http) = self.http.as_mut().filter(|_| begins_http1(first)) {
            http.resume();
            self.stage = Stage::Http1;
            return self.http1(pool, bytes, on);
        }
        self.greet(pool, Stage::TunnelHello);
        self.hello(bytes);
    }

    /// The client's preface was read: what follows is HTTP/2.
    fn begin_http2(&mut self, pool: &mut Pool) {
        let Some(http) = &mut self.http else { return };
        self.stage = Stage::Http2;
        if self.app == App::None {
            self.app = App::H2c;
            http.begin_http2(pool, Start::Preface);
            let _ = http.feed_http2(Side::Client, h2::PREFACE, pool, &mut |_| ());
        } else if http.is_resumed() {
            self.server_http2 = None;
            http.begin_http2(pool, Start::BehindPreface);
        } else {
            self.app = App::H2cUpgrade;
            if self.server_http2 != Some(true) {
                http.upgrade(pool);
                self.server_http2 = Some(true);
            }
        }
    }

    fn http2(&mut self, pool: &mut Pool, bytes: &[u8], on: On<'_>) {
        let Some(http) = &mut self.http else { return };
        let failed = http.feed_http2(Side::Client, bytes, pool, on).is_err();
        if self.app == App::None && http.is_http() {
            self.app = App::H2cMid;
        }
        if failed {
            self.lost = Some(Said::Requests);
            self.stage = Stage::Done;
        }
    }

    /// The server's bytes, of HTTP/1 or 2.
    fn http_answer(&mut self, pool: &mut Pool, bytes: &[u8], on: On<'_>) {
        let Some(first) = bytes.first() else { return };
        // The length of a frame that isn't huge; an answer of HTTP/1 begins with a letter.
        let is_http2 = *self.server_http2.get_or_insert(*first == 0);
        // A server of HTTP/2 may send its settings before the client says anything.
        if self.stage == Stage::Start && self.http.is_none() && is_http2 && !self.joined {
            self.http = pool.take();
        }
        let Some(http) = &mut self.http else { return };
        if is_http2 {
            http.begin_http2(pool, Start::Preface);
            // Damage in the answers changes nothing about the requests.
            let _ = http.feed_http2(Side::Server, bytes, pool, on);
            return;
        }
        let fed = http.feed_http1(Side::Server, bytes, pool, on);
        if fed.next == Some(Next::Http2) && self.stage == Stage::Http1 {
            self.server_http2 = Some(true);
            http.upgrade(pool);
            let rest = bytes.get(fed.used..).unwrap_or_default();
            let _ = http.feed_http2(Side::Server, rest, pool, on);
        }
    }
}

/// A token, or empty lines before it (RFC 9112, sections 2.2 and 3.1).
fn begins_http1(first: u8) -> bool {
    matches!(first, b'\r' | b'\n' | b'!'..=b'~')
}
