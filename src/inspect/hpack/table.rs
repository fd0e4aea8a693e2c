//! The static and the dynamic table (RFC 7541, section 2.3).

use super::TABLE_BYTES_MAX;
use super::room::Room;
use crate::inspect::fields::{NameId, Sink, Wanted};

/// What a field takes of a table besides its bytes (RFC 7541, section 4.1).
pub const ENTRY_OVERHEAD: usize = 32;

/// The static table (RFC 7541, appendix A), from index 1 on.
#[rustfmt::skip]
pub const STATIC: [(&str, &str); 61] = [
    (":authority", ""), (":method", "GET"), (":method", "POST"), (":path", "/"),
    (":path", "/index.html"), (":scheme", "http"), (":scheme", "https"), (":status", "200"),
    (":status", "204"), (":status", "206"), (":status", "304"), (":status", "400"),
    (":status", "404"), (":status", "500"), ("accept-charset", ""),
    ("accept-encoding", "gzip, deflate"), ("accept-language", ""), ("accept-ranges", ""),
    ("accept", ""), ("access-control-allow-origin", ""), ("age", ""), ("allow", ""),
    ("authorization", ""), ("cache-control", ""), ("content-disposition", ""),
    ("content-encoding", ""), ("content-language", ""), ("content-length", ""),
    ("content-location", ""), ("content-range", ""), ("content-type", ""), ("cookie", ""),
    ("date", ""), ("etag", ""), ("expect", ""), ("expires", ""), ("from", ""), ("host", ""),
    ("if-match", ""), ("if-modified-since", ""), ("if-none-match", ""), ("if-range", ""),
    ("if-unmodified-since", ""), ("last-modified", ""), ("link", ""), ("location", ""),
    ("max-forwards", ""), ("proxy-authenticate", ""), ("proxy-authorization", ""), ("range", ""),
    ("referer", ""), ("refresh", ""), ("retry-after", ""), ("server", ""), ("set-cookie", ""),
    ("strict-transport-security", ""), ("transfer-encoding", ""), ("user-agent", ""), ("vary", ""),
    ("via", ""), ("www-authenticate", ""),
];

/// What an index means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Found {
    Static(usize),
    /// The place of an entry in the ring.
    Dynamic(usize),
    /// From before the stream was joined, or beyond the room.
    Unknown,
    /// There is no such entry.
    Nothing,
}

/// The name of a field, as far as it matters here.
#[derive(Clone, Copy, Debug)]
pub struct Name {
    pub id: NameId,
    pub len: u32,
}

/// The dynamic table: sizes of all entries, bytes of the wanted values only.
#[derive(Clone, Debug)]
pub struct Table {
    /// Entries, newest first, and values, oldest first: rings.
    room: Room,
    /// Lent, for when there is more than that.
    spare: Option<Room>,
    /// Place of the newest entry, and how many there are.
    newest: u16,
    count: u16,
    /// Where the next byte goes, and how many are kept.
    head: u32,
    kept: u32,
    /// Of all entries and of the one that is being added.
    size: usize,
    size_max: usize,
    /// The largest size that is kept.
    limit: u32,
    /// What was added before the stream was joined is not known.
    joined: bool,
    /// The sender's table is larger than there is room for: its oldest entries may not be known.
    ///
    /// What is left out, for either reason, is always older than all that is known, so that the
    /// indices of the known entries are right.
    capped: bool,
    /// There was no room to keep its older entries.
    lost: bool,
    /// The entry that is being added, if it may still fit.
    adding: Option<Adding>,
}

/// What is known of a field. Of those that are not wanted the value is not kept.
#[derive(Clone, Copy, Debug)]
pub struct Entry {
    name: NameId,
    /// The value has bytes that none may have.
    bad: bool,
    name_len: u16,
    value_len: u16,
    /// Where the value begins.
    start: u16,
}

/// As [`Entry`], before it is known whether it fits.
#[derive(Clone, Copy, Debug)]
struct Adding {
    name: NameId,
    bad: bool,
    name_len: u32,
    value_len: u32,
    start: u32,
}

pub const NO_ENTRY: Entry =
    Entry { name: NameId::OTHER, bad: false, name_len: 0, value_len: 0, start: 0 };

// Lengths of what is within a table fit 16 bits, and so do places.
const _: () = assert!(TABLE_BYTES_MAX - ENTRY_OVERHEAD <= u16::MAX as usize);
const _: () = assert!(TABLE_BYTES_MAX / ENTRY_OVERHEAD < u16::MAX as usize);
const _: () = assert!(size_of::<Entry>() == 8);

impl Entry {
    fn size(&self) -> usize {
        ENTRY_OVERHEAD + usize::from(self.name_len) + usize::from(self.value_len)
    }

    /// Bytes of the value that are in the ring.
    fn kept(&self) -> u32 {
        if self.name.is_wanted() { u32::from(self.value_len) } else { 0 }
    }
}

impl Adding {
    fn size(&self) -> usize {
        ENTRY_OVERHEAD + self.name_len as usize + self.value_len as usize
    }

    fn kept(&self) -> u32 {
        if self.name.is_wanted() { self.value_len } else { 0 }
    }
}

impl Table {
    /// A table of this size at most, in this room to begin with.
    pub fn new(bytes: usize, room: Room) -> Table {
        Table {
            room,
            spare: None,
            newest: 0,
            count: 0,
            head: 0,
            kept: 0,
            size: 0,
            size_max: bytes,
            limit: bytes as u32,
            joined: false,
            capped: false,
            lost: false,
            adding: None,
        }
    }

    pub fn reset(&mut self, size_max: usize, joined: bool) {
        (self.newest, self.count, self.head) = (0, 0, 0);
        (self.size, self.kept, self.adding) = (0, 0, None);
        (self.size_max, self.joined) = (size_max, joined);
        (self.capped, self.lost) = (false, false);
    }

    /// The largest size that is kept.
    pub fn limit(&self) -> usize {
        self.limit as usize
    }

    /// The room that it has now.
    pub fn room(&mut self) -> &mut Room {
        &mut self.room
    }

    /// Where room for when it outgrows its own is lent.
    pub fn spare(&mut self) -> &mut Option<Room> {
        &mut self.spare
    }

    pub fn size_max(&self) -> usize {
        self.size_max
    }

    pub fn resize(&mut self, size_max: usize) {
        // Evicted to a size that there is room for, both tables hold the same again.
        self.capped = size_max > self.limit();
        self.size_max = size_max.min(self.limit());
        self.evict();
        // Of an empty table, everything is known.
        self.joined &= size_max > 0;
        self.lost &= size_max > 0;
    }

    /// The entry of an index (RFC 7541, section 2.3.3).
    pub fn find(&self, index: u32) -> Found {
        let Some(index) = (index as usize).checked_sub(1) else { return Found::Nothing };
        if index < STATIC.len() {
            return Found::Static(index);
        }
        let age = index - STATIC.len();
        if age < usize::from(self.count) {
            return Found::Dynamic(self.place(age));
        }
        if self.joined || self.capped || self.lost { Found::Unknown } else { Found::Nothing }
    }

    pub fn name(&self, found: Found, wanted: &Wanted) -> Name {
        match found {
            Found::Static(i) => {
                let (name, _) = STATIC[i];
                Name { id: wanted.static_id(i), len: name.len() as u32 }
            }
            Found::Dynamic(place) => {
                let entry = &self.room.entries[place];
                Name { id: entry.name, len: u32::from(entry.name_len) }
            }
            // Its length counts as 0, so that nothing is evicted too early.
            Found::Unknown | Found::Nothing => {
                let id = if self.joined { NameId::UNKNOWN } else { NameId::FORGOTTEN };
                Name { id, len: 0 }
            }
        }
    }

    pub fn tell_value(&self, found: Found, sink: &mut impl Sink) {
        match found {
            Found::Static(i) => sink.value(STATIC[i].1.as_bytes()),
            Found::Dynamic(place) => {
                let entry = self.room.entries[place];
                let [a, b] = self.room.value(u32::from(entry.start), entry.kept());
                sink.value(a);
                if !b.is_empty() {
                    sink.value(b);
                }
            }
            Found::Unknown | Found::Nothing => {}
        }
    }

    /// Whether the value of a known entry has bytes that none may have.
    pub fn is_bad(&self, found: Found) -> bool {
        matches!(found, Found::Dynamic(place) if self.room.entries[place].bad)
    }

    /// The value of the entry that is being added has bytes that none may have.
    pub fn mark_bad(&mut self) {
        if let Some(entry) = &mut self.adding {
            entry.bad = true;
        }
    }

    /// Begins to add an entry, before all others.
    pub fn begin(&mut self, name: Name) {
        let (start, name_len) = (self.head, name.len);
        self.adding = Some(Adding { name: name.id, bad: false, name_len, value_len: 0, start });
        self.size += ENTRY_OVERHEAD + name.len as usize;
        self.evict();
    }

    /// More of the value of the entry that is being added.
    ///
    /// Room is made as the value grows: what it pushes out would have to go anyway, however long
    /// the value becomes (RFC 7541, section 4.4).
    pub fn push(&mut self, piece: &[u8]) {
        let Some(entry) = &mut self.adding else { return };
        let keep = entry.name.is_wanted();
        entry.value_len += piece.len() as u32;
        self.kept += if keep { piece.len() as u32 } else { 0 };
        self.size += piece.len();
        self.evict();
        if keep && self.adding.is_some() {
            if self.kept as usize > self.room.bytes.len() {
                self.grow(piece.len() as u32);
            }
            if self.adding.is_some_and(|adding| adding.name.is_wanted()) {
                self.head = self.room.put(self.head, piece);
            }
        }
    }

    /// The entry that is being added is complete.
    pub fn end(&mut self) {
        if self.adding.is_some() && usize::from(self.count) == self.room.entries.len() {
            self.grow(0);
        }
        let Some(Adding { name, bad, name_len, value_len, start }) = self.adding.take() else {
            return;
        };
        let Some(last) = self.room.entries.len().checked_sub(1) else { return };
        self.newest = if self.newest == 0 { last as u16 } else { self.newest - 1 };
        let (name_len, value_len, start) = (name_len as u16, value_len as u16, start as u16);
        let entry = Entry { name, bad, name_len, value_len, start };
        self.room.entries[usize::from(self.newest)] = entry;
        self.count += 1;
    }

    /// The oldest entries go until the size is allowed; if need be the one that is being added too
    /// (RFC 7541, section 4.4).
    fn evict(&mut self) {
        while self.size > self.size_max {
            if let Some(oldest) = usize::from(self.count).checked_sub(1) {
                let oldest = self.room.entries[self.place(oldest)];
                self.size -= oldest.size();
                self.kept -= oldest.kept();
                self.count -= 1;
            } else if let Some(entry) = self.adding.take() {
                self.size -= entry.size();
                self.kept -= entry.kept();
            } else {
                return;
            }
        }
    }

    /// Moves to the larger room that was lent. `unwritten` bytes of the value that is being added
    /// are not there yet. Where none was lent the older entries are forgotten, all of them: indices
    /// count from the newest.
    fn grow(&mut self, unwritten: u32) {
        let larger = self.spare.take_if(|spare| spare.is_larger_than(&self.room));
        let Some(mut larger) = larger else {
            return self.forget();
        };
        let mut head = 0;
        for age in (0..usize::from(self.count)).rev() {
            let mut entry = self.room.entries[self.place(age)];
            let value = self.room.value(u32::from(entry.start), entry.kept());
            entry.start = head as u16;
            head = value.iter().fold(head, |head, part| larger.put(head, part));
            larger.entries[age] = entry;
        }
        if let Some(adding) = &mut self.adding {
            let written = adding.kept().saturating_sub(unwritten);
            let value = self.room.value(adding.start, written);
            adding.start = head;
            head = value.iter().fold(head, |head, part| larger.put(head, part));
        }
        (self.newest, self.head) = (0, head);
        self.spare = Some(std::mem::replace(&mut self.room, larger));
    }

    /// Knows of no entry any more but of the one that is being added; what does not fit of that one
    /// is not known either. Later ones are known for longer than their sender knows them.
    fn forget(&mut self) {
        (self.count, self.size, self.kept, self.lost) = (0, 0, 0, true);
        if let Some(adding) = &mut self.adding {
            if adding.kept() as usize > self.room.bytes.len() {
                adding.name = NameId::FORGOTTEN;
            }
            (self.size, self.kept) = (adding.size(), adding.kept());
        }
    }

    fn place(&self, age: usize) -> usize {
        let place = usize::from(self.newest) + age;
        let count = self.room.entries.len();
        if place < count { place } else { place - count }
    }
}
