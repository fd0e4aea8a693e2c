//! The static and the dynamic table (RFC 7541, section 2.3).

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
    entries: Box<[Entry]>,
    /// Place of the newest entry, and how many there are.
    newest: usize,
    count: usize,
    /// Values, oldest first: a ring.
    bytes: Box<[u8]>,
    /// Where the next byte goes.
    head: usize,
    /// Of all entries and of the one that is being added.
    size: usize,
    size_max: usize,
    /// What was added before the stream was joined is not known.
    joined: bool,
    /// The sender's table is larger than there is room for: its oldest entries may not be known.
    ///
    /// What is left out, for either reason, is always older than all that is known, so that the
    /// indices of the known entries are right.
    capped: bool,
    /// The entry that is being added, if it may still fit.
    adding: Option<Entry>,
}

#[derive(Clone, Copy, Debug)]
struct Entry {
    name: NameId,
    name_len: u32,
    value_len: u32,
    /// Where the value begins and how much of it is in the ring: all or nothing.
    start: u32,
    kept: u32,
    /// The value has bytes that none may have.
    bad: bool,
}

const NO_ENTRY: Entry =
    Entry { name: NameId::OTHER, name_len: 0, value_len: 0, start: 0, kept: 0, bad: false };

impl Entry {
    fn size(&self) -> usize {
        ENTRY_OVERHEAD + self.name_len as usize + self.value_len as usize
    }
}

impl Table {
    /// Room for a table of this size at most.
    pub fn new(bytes: usize) -> Table {
        Table {
            entries: vec![NO_ENTRY; bytes / ENTRY_OVERHEAD + 1].into_boxed_slice(),
            newest: 0,
            count: 0,
            bytes: vec![0; bytes].into_boxed_slice(),
            head: 0,
            size: 0,
            size_max: bytes,
            joined: false,
            capped: false,
            adding: None,
        }
    }

    pub fn reset(&mut self, size_max: usize, joined: bool) {
        (self.newest, self.count, self.head, self.size) = (0, 0, 0, 0);
        (self.size_max, self.joined, self.capped) = (size_max, joined, false);
        self.adding = None;
    }

    /// The largest size there is room for.
    pub fn room(&self) -> usize {
        self.bytes.len()
    }

    pub fn size_max(&self) -> usize {
        self.size_max
    }

    pub fn resize(&mut self, size_max: usize) {
        // Evicted to a size that there is room for, both tables hold the same again.
        self.capped = size_max > self.room();
        self.size_max = size_max.min(self.room());
        self.evict();
        // Of an empty table, everything is known.
        self.joined &= size_max > 0;
    }

    /// The entry of an index (RFC 7541, section 2.3.3).
    pub fn find(&self, index: u32) -> Found {
        let Some(index) = (index as usize).checked_sub(1) else { return Found::Nothing };
        if index < STATIC.len() {
            return Found::Static(index);
        }
        let age = index - STATIC.len();
        if age < self.count {
            return Found::Dynamic(self.place(age));
        }
        if self.joined || self.capped { Found::Unknown } else { Found::Nothing }
    }

    pub fn name(&self, found: Found, wanted: &Wanted) -> Name {
        match found {
            Found::Static(i) => {
                let (name, _) = STATIC[i];
                Name { id: wanted.static_id(i), len: name.len() as u32 }
            }
            Found::Dynamic(place) => {
                let entry = &self.entries[place];
                Name { id: entry.name, len: entry.name_len }
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
                let Entry { start, kept, .. } = self.entries[place];
                let (start, end) = (start as usize, (start + kept) as usize);
                if end <= self.bytes.len() {
                    sink.value(&self.bytes[start..end]);
                } else {
                    sink.value(&self.bytes[start..]);
                    sink.value(&self.bytes[..end - self.bytes.len()]);
                }
            }
            Found::Unknown | Found::Nothing => {}
        }
    }

    /// Whether the value of a known entry has bytes that none may have.
    pub fn is_bad(&self, found: Found) -> bool {
        matches!(found, Found::Dynamic(place) if self.entries[place].bad)
    }

    /// The value of the entry that is being added has bytes that none may have.
    pub fn mark_bad(&mut self) {
        if let Some(entry) = &mut self.adding {
            entry.bad = true;
        }
    }

    /// Begins to add an entry, before all others.
    pub fn begin(&mut self, name: Name) {
        let start = self.head as u32;
        self.adding = Some(Entry { name: name.id, name_len: name.len, start, ..NO_ENTRY });
        self.size += ENTRY_OVERHEAD + name.len as usize;
        self.evict();
    }

    /// More of the value of the entry that is being added.
    ///
    /// Room is made as the value grows: what it pushes out would have to go anyway, however long
    /// the value becomes (RFC 7541, section 4.4).
    pub fn push(&mut self, piece: &[u8]) {
        let Some(entry) = &mut self.adding else { return };
        entry.value_len += piece.len() as u32;
        let keep = entry.name.is_wanted();
        self.size += piece.len();
        self.evict();
        let Some(entry) = &mut self.adding else { return };
        if keep {
            entry.kept += piece.len() as u32;
            let n = piece.len().min(self.bytes.len() - self.head);
            let (first, wrapped) = piece.split_at(n);
            self.bytes[self.head..self.head + n].copy_from_slice(first);
            self.bytes[..wrapped.len()].copy_from_slice(wrapped);
            self.head += piece.len();
            if self.head >= self.bytes.len() {
                self.head -= self.bytes.len();
            }
        }
    }

    /// The entry that is being added is complete.
    pub fn end(&mut self) {
        let Some(entry) = self.adding.take() else { return };
        self.newest = if self.newest == 0 { self.entries.len() - 1 } else { self.newest - 1 };
        self.entries[self.newest] = entry;
        self.count += 1;
    }

    /// The oldest entries go until the size is allowed; if need be the one that is being added too
    /// (RFC 7541, section 4.4).
    fn evict(&mut self) {
        while self.size > self.size_max {
            if self.count > 0 {
                let oldest = self.place(self.count - 1);
                self.size -= self.entries[oldest].size();
                self.count -= 1;
            } else if let Some(entry) = self.adding.take() {
                self.size -= entry.size();
            } else {
                return;
            }
        }
    }

    fn place(&self, age: usize) -> usize {
        let place = self.newest + age;
        if place < self.entries.len() { place } else { place - self.entries.len() }
    }
}
