//! The parsers and the memory that they need, kept for whoever needs it next.

use super::greeting::Greeting;
use super::parts::HttpPart;
use crate::inspect::fields::{Fields, Wanted};
use crate::inspect::h2;
use crate::inspect::hpack::{Room, TABLE_BYTES, TABLE_BYTES_MAX};
use crate::inspect::http1::Side;
use crate::inspect::quic::Scratch;

/// Parsers that are not in use, and what all share.
#[derive(Debug)]
pub struct Pool {
    wanted: Wanted,
    rooms: Rooms,
    greetings: Stock<Box<Greeting>>,
    parts: Stock<Box<HttpPart>>,
    http2: Stock<Box<h2::Connection>>,
    /// Room for the fields of heads. One is always here.
    heads: Stock<Box<Fields>>,
    /// How many more heads may be kept that have come in part.
    heads_left: usize,
    /// Room for header tables: for few entries, one for each direction of a parser, and for all.
    small_tables: Stock<Room>,
    whole_tables: Stock<Room>,
    scratch: Scratch,
}

/// How many there are beside those of HTTP, and how much a parser keeps, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rooms {
    /// Readers of hellos, of TLS or QUIC.
    pub greetings: usize,
    /// Of a request's target.
    pub target: usize,
    /// Of the first request's, which is kept on, with its method and host; 0: it is not.
    pub first_target: usize,
    /// Heads at once that have come in part: their fields are kept until the rest comes.
    pub heads: usize,
    /// Of each direction's header table (RFC 7541, section 4.2); where a connection has a larger
    /// one, its older entries are not known.
    pub table: usize,
    /// Header tables at once that hold more than a few entries. Of others that outgrow these the
    /// older ones are not known.
    pub whole_tables: usize,
}

/// Things of a kind that are not in use, and how many more may be made.
#[derive(Debug)]
struct Stock<T> {
    free: Vec<T>,
    unmade: usize,
}

impl Pool {
    /// At most `parts` parsers, made when they are needed first.
    pub fn growing(wanted: Wanted, mut rooms: Rooms, parts: usize) -> Pool {
        // As decoders take it.
        rooms.table = rooms.table.clamp(TABLE_BYTES, TABLE_BYTES_MAX);
        Pool {
            wanted,
            rooms,
            greetings: Stock::of(rooms.greetings),
            parts: Stock::of(parts),
            http2: Stock::of(parts),
            heads: Stock::of(rooms.heads + 1),
            heads_left: rooms.heads,
            small_tables: Stock::of(2 * parts),
            whole_tables: Stock::of(rooms.whole_tables),
            scratch: Scratch::new(),
        }
    }

    /// As many, all made now.
    pub fn filled(wanted: Wanted, rooms: Rooms, parts: usize) -> Pool {
        let mut pool = Pool::growing(wanted, rooms, parts);
        let Rooms { target, first_target, table, .. } = pool.rooms;
        pool.greetings.fill(|| Box::new(Greeting::new()));
        pool.parts.fill(|| Box::new(HttpPart::new(first_target)));
        pool.http2.fill(|| new_http2(table));
        pool.heads.fill(|| Box::new(Fields::new(&pool.wanted, target)));
        pool.small_tables.fill(Room::small);
        pool.whole_tables.fill(|| Room::whole(table));
        pool
    }

    /// No more heads can be kept in part.
    pub fn is_out_of_heads(&self) -> bool {
        self.heads_left == 0
    }

    /// All are in use.
    pub fn is_empty(&self) -> bool {
        self.parts.is_empty()
    }

    /// Memory to decrypt in.
    pub fn scratch(&mut self) -> &mut Scratch {
        &mut self.scratch
    }

    pub(super) fn wanted(&self) -> &Wanted {
        &self.wanted
    }

    pub(super) fn take(&mut self) -> Option<Box<HttpPart>> {
        let first_target = self.rooms.first_target;
        let mut part = self.parts.take(|| Box::new(HttpPart::new(first_target)))?;
        part.reset();
        Some(part)
    }

    pub(super) fn take_greeting(&mut self) -> Option<Box<Greeting>> {
        self.greetings.take(|| Box::new(Greeting::new()))
    }

    pub(super) fn put_greeting(&mut self, greeting: Box<Greeting>) {
        self.greetings.put(greeting);
    }

    pub(super) fn put(&mut self, mut part: Box<HttpPart>) {
        part.release(self);
        self.parts.put(part);
    }

    /// Who holds a part finds one, since there are as many.
    pub(super) fn take_http2(&mut self) -> Option<Box<h2::Connection>> {
        let table = self.rooms.table;
        self.http2.take(|| new_http2(table))
    }

    pub(super) fn put_http2(&mut self, mut http2: Box<h2::Connection>) {
        for side in [Side::Client, Side::Server] {
            if let Some(head) = http2.fields(side).take() {
                self.put_head(head, true);
            }
            let room = std::mem::take(http2.decoder(side).room());
            self.put_table(room);
        }
        self.http2.put(http2);
    }

    /// Room for a head that is read now. There always is: fewer are kept than are made.
    pub(super) fn take_head(&mut self) -> Option<Box<Fields>> {
        let (wanted, target) = (&self.wanted, self.rooms.target);
        self.heads.take(|| Box::new(Fields::new(wanted, target)))
    }

    /// Takes it back; `kept`: it held a head that had come in part.
    pub(super) fn put_head(&mut self, head: Box<Fields>, kept: bool) {
        self.heads_left += usize::from(kept);
        self.heads.put(head);
    }

    /// Whether a head that has come in part may be kept.
    pub(super) fn keep_head(&mut self) -> bool {
        let left = self.heads_left.checked_sub(1);
        self.heads_left = left.unwrap_or_default();
        left.is_some()
    }

    /// Lends what a direction of HTTP/2 may need to be read on. Returns whether it had kept a head,
    /// for [`Pool::take_back`].
    pub(super) fn lend(&mut self, http2: &mut h2::Connection, side: Side) -> bool {
        let kept = http2.has_fields(side);
        if !kept {
            *http2.fields(side) = self.take_head();
        }
        let table = self.rooms.table;
        let decoder = http2.decoder(side);
        if decoder.room().is_none() {
            *decoder.room() = self.small_tables.take(Room::small).unwrap_or_default();
        }
        if decoder.room().is_small() {
            *decoder.spare() = self.whole_tables.take(|| Room::whole(table));
        }
        kept
    }

    /// Takes back what it does without. `false`: a head that has come in part can't be kept.
    pub(super) fn take_back(&mut self, http2: &mut h2::Connection, side: Side, kept: bool) -> bool {
        if let Some(room) = http2.decoder(side).spare().take() {
            self.put_table(room);
        }
        let keeps = http2.is_amid_block(side);
        let may_keep = !keeps || kept || self.keep_head();
        if !may_keep {
            http2.give_up(side);
        }
        if !(keeps && may_keep)
            && let Some(head) = http2.fields(side).take()
        {
            self.put_head(head, kept);
        }
        may_keep
    }

    fn put_table(&mut self, room: Room) {
        match (room.is_none(), room.is_small()) {
            (true, _) => {}
            (false, true) => self.small_tables.put(room),
            (false, false) => self.whole_tables.put(room),
        }
    }
}

impl<T> Stock<T> {
    fn of(count: usize) -> Stock<T> {
        Stock { free: Vec::with_capacity(count), unmade: count }
    }

    fn fill(&mut self, make: impl Fn() -> T) {
        self.free.extend((0..std::mem::take(&mut self.unmade)).map(|_| make()));
    }

    fn is_empty(&self) -> bool {
        self.free.is_empty() && self.unmade == 0
    }

    fn take(&mut self, make: impl FnOnce() -> T) -> Option<T> {
        self.free.pop().or_else(|| {
            self.unmade = self.unmade.checked_sub(1)?;
            Some(make())
        })
    }

    fn put(&mut self, one: T) {
        self.free.push(one);
    }
}

/// Nothing is held against a client that its server may have allowed unseen.
fn new_http2(table: usize) -> Box<h2::Connection> {
    Box::new(h2::Connection::bare(table).with_unseen_limits())
}

#[cfg(test)]
mod tests {
    use super::super::{App, Event, Inspector, Said, Unknown};
    use super::*;

    const ROOMS: Rooms = Rooms {
        greetings: 1,
        target: 64,
        first_target: 0,
        heads: 1,
        table: 4_096,
        whole_tables: 1,
    };
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
        assert_eq!((pool.heads_left, pool.heads.free.len()), (1, 2));
    }

    #[test]
    fn readers_of_hellos_are_taken_where_one_begins() {
        let mut pool = Pool::filled(Wanted::new([]).expect("no names"), ROOMS, 3);
        let mut all: Vec<_> = (0..3).map(|_| Inspector::new(false)).collect();
        assert_eq!(say(&mut all[0], &mut pool, &[PART, REST].concat()), [b"a.example"]);
        assert_eq!(pool.greetings.free.len(), 1, "requests need none");
        say(&mut all[1], &mut pool, &[22, 3, 1, 0, 100, 1]);
        assert_eq!((all[1].app(), pool.greetings.free.len()), (App::Tls, 0));
        say(&mut all[2], &mut pool, &[22, 3, 1, 0, 100, 1]);
        assert!(all[2].is_done() && all[2].client_hello().is_none());
        assert_eq!(
            (all[2].unknown(), all[2].unread()),
            (Some(Unknown::Crowded), Some(Said::Hello))
        );
        all.into_iter().for_each(|one| one.give_back(&mut pool));
        assert_eq!(pool.greetings.free.len(), 1);
    }

    /// A direction of HTTP/2 whose block can't be kept does not go on in room of another's.
    #[test]
    fn a_block_that_finds_no_room_is_not_read_on() {
        let mut pool = Pool::filled(Wanted::new([]).expect("no names"), ROOMS, 2);
        let mut all = [Inspector::new(false), Inspector::new(false)];
        let frame = |stream, block: &[u8]| {
            [&[0, 0, block.len() as u8, 1, 5, 0, 0, 0, stream][..], block].concat()
        };
        let begins = [h2::PREFACE, &[0, 0, 0, 4, 0, 0, 0, 0, 0]].concat();
        let asks = frame(1, b"\x82\x86\x04\x02/a\x01\x01b");
        let whole = [&begins[..], &asks].concat();
        assert_eq!(say(&mut all[1], &mut pool, &whole), [b"b"]);
        assert!(say(&mut all[0], &mut pool, &whole[..whole.len() - 1]).is_empty());
        assert!(pool.is_out_of_heads() && all[0].keeps_head());
        let answer = [&begins[h2::PREFACE.len()..], &frame(1, b"\x88\x0f\x10\x01a")].concat();
        let (mut statuses, cut) = (Vec::new(), answer.len() - 3);
        for part in [&answer[..cut], &answer[cut..], &frame(3, b"\x88")] {
            all[1].read(&mut pool, Side::Server, part, &mut |event| {
                statuses.extend(matches!(event, Event::Response { .. }).then_some(()));
            });
        }
        assert!(statuses.is_empty());
        assert_eq!(say(&mut all[1], &mut pool, &frame(3, &asks[9..])), [b"b"], "requests go on");
        // A client's is unread.
        let second = frame(5, &asks[9..]);
        assert!(say(&mut all[1], &mut pool, &second[..12]).is_empty());
        assert_eq!(all[1].unread(), Some(Said::Requests));
        assert_eq!(say(&mut all[0], &mut pool, &whole[whole.len() - 1..]), [b"b"]);
        all.into_iter().for_each(|one| one.give_back(&mut pool));
        assert_eq!((pool.heads_left, pool.heads.free.len()), (1, 2));
        assert_eq!((pool.small_tables.free.len(), pool.whole_tables.free.len()), (4, 1));
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
