//! What clients say before their connection gets a backend: a ClientHello, or a request.

use crate::flow::Note;
use crate::flow::notes::PATH_BYTES_MAX;
use crate::forward::spec::BindAt;
use crate::graph::Snapshot;
use crate::graph::stages::admission;
use crate::graph::stages::inspect::{
    TABLE_BYTES, count_app, count_failure, count_name, count_unknown, hello_note, keep_request,
};
use crate::inspect::fields::{PATH_BYTES, Wanted};
use crate::inspect::inspector::{App, Event, Inspector, Pool, Rooms, Said, Side, Unknown};
use crate::inspect::tls::{Carrier, Failure, HelloParser};
use crate::inspect::{AlpnList, Peek};
use crate::observe::Counters;
use crate::packet::ClassId;
use crate::policy::{Decision, Facts, Steps};

/// Readers of requests, where any service waits for those.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HeadLimits {
    /// Connections at once whose request is waited for. Each has parsers of about 25 KB.
    pub connections_max: u32,
    /// Header fields that rules ask for, in their order.
    pub headers: Vec<String>,
}

const TOO_LONG: Option<Unknown> = Some(Unknown::HeadTooLong);
const UNREAD: (Decision, Steps) = (Decision::UNREAD, Steps::NONE);

/// What the clients of waiting connections have said, by slot.
pub(super) struct Speech {
    read_bytes_max: u32,
    hellos: Box<[HelloParser]>,
    /// None where no service waits for requests.
    heads: Box<[Inspector]>,
    /// Which of the two reads.
    kinds: Box<[BindAt]>,
    pool: Pool,
    /// Parsers of requests that are not promised to a connection.
    heads_left: usize,
}

impl Speech {
    /// # Panics
    /// On header names that are none: the configuration is checked for them.
    pub fn new(slots: usize, read_bytes_max: u32, heads: Option<&HeadLimits>) -> Speech {
        let names = heads.iter().flat_map(|h| h.headers.iter().map(String::as_str));
        let wanted = Wanted::new(names).unwrap_or_else(|fault| panic!("header names: {fault}"));
        let parsers = heads.map_or(0, |h| (h.connections_max as usize).clamp(1, slots));
        let inspectors = if heads.is_some() { slots } else { 0 };
        let rooms = Rooms {
            greetings: inspectors,
            target: PATH_BYTES,
            first_target: PATH_BYTES_MAX,
            heads: parsers,
            table: TABLE_BYTES,
            whole_tables: parsers,
        };
        Speech {
            read_bytes_max,
            hellos: vec![HelloParser::new(read_bytes_max); slots].into_boxed_slice(),
            heads: (0..inspectors).map(|_| head(read_bytes_max)).collect(),
            kinds: vec![BindAt::Hello; slots].into_boxed_slice(),
            pool: Pool::filled(wanted, rooms, parsers),
            heads_left: parsers,
        }
    }

    /// Whether one more connection can be read.
    pub fn has_room(&self, at: BindAt) -> bool {
        at == BindAt::Hello || self.heads_left > 0
    }

    /// A connection begins. Every one ends, too.
    pub fn begin(&mut self, slot: usize, at: BindAt) {
        self.kinds[slot] = at;
        match at {
            BindAt::Hello => self.hellos[slot] = HelloParser::new(self.read_bytes_max),
            BindAt::Request => self.heads_left = self.heads_left.saturating_sub(1),
        }
    }

    pub fn end(&mut self, slot: usize) {
        if self.kinds[slot] == BindAt::Request {
            self.renew(slot);
            self.heads_left += 1;
            self.kinds[slot] = BindAt::Hello;
        }
    }

    /// The next bytes; `true` once no more are needed, whatever they were.
    pub fn hear(&mut self, slot: usize, bytes: &[u8]) -> bool {
        match self.kinds[slot] {
            BindAt::Hello => self.hellos[slot].feed(bytes) != Peek::NeedMore,
            BindAt::Request => {
                let Some(head) = self.heads.get_mut(slot) else { return true };
                let mut asked = false;
                head.read(&mut self.pool, Side::Client, bytes, &mut |event| {
                    asked |= matches!(event, Event::Request(_));
                });
                asked || head.is_done() || head.client_hello().is_some()
            }
        }
    }

    /// Whether the client has begun with the preface of HTTP/2.
    pub fn is_http2(&self, slot: usize) -> bool {
        let head = self.heads.get(slot).filter(|_| self.kinds[slot] == BindAt::Request);
        head.is_some_and(|head| head.app() == App::H2c)
    }

    /// More bytes than these are not read.
    pub fn has_said_too_much(&self, bytes: u32) -> bool {
        bytes >= self.read_bytes_max
    }

    /// No more will be heard: it stays unknown.
    pub fn give_up(&mut self, slot: usize) {
        if let Some(head) = self.heads.get_mut(slot) {
            head.give_up(Unknown::HeadTooLong);
        }
    }

    /// What the rules say of it. `begun` is what was known before it spoke; `said` is all that was
    /// heard, in pieces: a request's header fields are there while it is read only.
    pub fn decide<'a>(
        &mut self,
        slot: usize,
        said: impl Iterator<Item = &'a [u8]>,
        begun: &Facts<'_>,
        snapshot: &Snapshot,
    ) -> (Decision, Steps) {
        let rules = &snapshot.rules;
        let of = |facts: &Facts<'_>| (rules.decide(facts), rules.steps(facts));
        if self.kinds[slot] == BindAt::Request && self.heads.get(slot).is_some() {
            let mut decided = None;
            let was = &self.heads[slot];
            let (unknown, unread) = (was.unknown(), was.unread());
            self.renew(slot);
            let Speech { heads, pool, .. } = self;
            for piece in said {
                heads[slot].read(pool, Side::Client, piece, &mut |event| {
                    if let Event::Request(request) = event {
                        let facts = Facts { request: Some(request), ..*begun };
                        decided.get_or_insert_with(|| of(&facts));
                    }
                });
            }
            // What follows a request that was read is of the flow.
            let unread = unread.filter(|_| decided.is_none() || heads[slot].is_done());
            let minds = unread.is_some_and(|said| admission::must_read(snapshot, begun, said));
            if minds && unknown != TOO_LONG {
                return UNREAD;
            }
            if let Some(decided) = decided {
                return decided;
            }
            // A head that is too long to be read must not lead around who asks for it.
            if unknown == TOO_LONG && (minds || rules.follows_requests()) {
                let class = ClassId::TOO_LONG;
                return (Decision { class, ..Decision::NONE }, Steps::NONE);
            }
        }
        let hello = match self.kinds[slot] {
            BindAt::Hello => &self.hellos[slot],
            BindAt::Request => match self.hello(slot) {
                Some(hello) => hello,
                None => return of(begun),
            },
        };
        let is_other = hello.is_complete() || hello.failure() == Some(Failure::NotTls);
        if !is_other && admission::must_read(snapshot, begun, Said::Hello) {
            return UNREAD;
        }
        let alpn = AlpnList::from_wire(hello.alpn().wire());
        let ja4 = hello.ja4(Carrier::Tcp);
        let ja4 = ja4.as_ref().map(|ja4| ja4.as_str().as_bytes());
        of(&Facts { sni: hello.sni(), alpn, ja4, ..*begun })
    }

    /// The server's name, where a hello named one.
    pub fn name(&self, slot: usize) -> Option<&[u8]> {
        self.hello(slot)?.sni()
    }

    /// Keeps what was said with its flow.
    pub fn note(&self, slot: usize, note: &mut Note) {
        if let Some(head) = self.heads.get(slot).filter(|_| self.kinds[slot] == BindAt::Request) {
            note.app = head.app().name();
            if let Some(request) = head.request() {
                keep_request(note, &request);
            }
        } else if self.hello(slot).is_some_and(HelloParser::is_complete) {
            note.app = App::Tls.name();
        }
        if let Some(hello) = self.hello(slot).filter(|hello| hello.is_complete()) {
            note.alpn.set(hello.alpn().wire());
            let ja4 = hello.ja4(Carrier::Tcp);
            note.ja4.set(ja4.as_ref().map_or(&[], |ja4| ja4.as_str().as_bytes()));
            note.hello = hello_note(hello, None);
        }
    }

    /// Whether it began with no ClientHello: what follows may be requests.
    pub fn may_ask(&self, slot: usize) -> bool {
        match self.kinds[slot] {
            BindAt::Hello => self.hellos[slot].failure() == Some(Failure::NotTls),
            BindAt::Request => {
                let head = self.heads.get(slot).filter(|head| head.unknown().is_none());
                head.is_some_and(Inspector::asks)
            }
        }
    }

    /// Counts what it was; of what is followed from its first byte on, whoever does so counts.
    pub fn count(&self, slot: usize, counters: &mut Counters) {
        if self.may_ask(slot) {
            return;
        }
        match (self.kinds[slot], self.heads.get(slot)) {
            (BindAt::Request, Some(head)) => {
                count_app(head.app(), counters);
                counters.requests_read += head.requests();
                if let Some(hello) = head.client_hello() {
                    count_name(hello.sni(), counters);
                }
                match head.unknown() {
                    Some(unknown) => count_unknown(unknown, counters),
                    None if !head.knows() => counters.apps_other += 1,
                    None => {}
                }
            }
            _ => match self.hellos[slot].failure() {
                Some(failure) => count_failure(Some(failure), counters),
                None => {
                    count_name(self.hellos[slot].sni(), counters);
                    counters.apps_tls += 1;
                }
            },
        }
    }

    fn hello(&self, slot: usize) -> Option<&HelloParser> {
        match self.kinds[slot] {
            BindAt::Hello => self.hellos.get(slot),
            BindAt::Request => self.heads.get(slot)?.client_hello(),
        }
    }

    /// Reads a connection from its beginning.
    fn renew(&mut self, slot: usize) {
        if let Some(place) = self.heads.get_mut(slot) {
            std::mem::replace(place, head(self.read_bytes_max)).give_back(&mut self.pool);
        }
    }
}

fn head(read_bytes_max: u32) -> Inspector {
    Inspector::with_hello(false, read_bytes_max)
}
