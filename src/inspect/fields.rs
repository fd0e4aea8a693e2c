//! Fields of HTTP messages: which ones are wanted, and room for their values.
//!
//! [`Wanted`] is made once, where rules are compiled, and lent to the parsers. [`Fields`] holds the
//! wanted fields of one message, each in room of its own, so that none can push out another; all of
//! its memory is taken when it is made. Names are compared in lower case, as HTTP/2 sends them.

use super::hpack;

/// Longest name that can be wanted.
pub const NAME_BYTES_MAX: usize = 64;
/// Names that can be wanted besides the fixed ones.
pub const EXTRA_NAMES_MAX: usize = 200;
/// Room for the value of a name that a caller wants; the fixed ones have their own.
pub const EXTRA_VALUE_BYTES: usize = 256;
/// Room for a host: a name of 253 characters, brackets or a final dot, and a port.
pub const HOST_BYTES: usize = 264;
/// Room for a path that suits LLM APIs; callers may ask for more.
pub const PATH_BYTES: usize = 2_048;

/// A wanted name, or what stands for one that is not.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct NameId(u8);

impl NameId {
    pub const METHOD: NameId = NameId(0);
    pub const SCHEME: NameId = NameId(1);
    pub const AUTHORITY: NameId = NameId(2);
    /// In HTTP/1 the request target as sent.
    pub const PATH: NameId = NameId(3);
    /// Of extended CONNECT (RFC 8441).
    pub const PROTOCOL: NameId = NameId(4);
    pub const STATUS: NameId = NameId(5);
    pub const HOST: NameId = NameId(6);
    pub const CONTENT_TYPE: NameId = NameId(7);
    pub const GRPC_STATUS: NameId = NameId(8);
    pub const UPGRADE: NameId = NameId(9);
    pub const CONTENT_LENGTH: NameId = NameId(10);
    pub const TRANSFER_ENCODING: NameId = NameId(11);
    pub const HTTP2_SETTINGS: NameId = NameId(12);

    /// A name that nobody wants.
    pub const OTHER: NameId = NameId(u8::MAX);
    /// A name that HTTP/2 forbids (RFC 9113, section 8.2.1).
    pub const FORBIDDEN: NameId = NameId(u8::MAX - 1);
    /// A name that was said before the stream was joined.
    pub const UNKNOWN: NameId = NameId(u8::MAX - 2);
    /// A name that was said longer ago than is kept.
    pub const FORGOTTEN: NameId = NameId(u8::MAX - 3);

    pub fn is_wanted(self) -> bool {
        self.0 < NameId::FORGOTTEN.0
    }

    /// Whether it is one that was said and is not known.
    pub fn is_unknown(self) -> bool {
        self == NameId::UNKNOWN || self == NameId::FORGOTTEN
    }

    fn is_pseudo(self) -> bool {
        self.0 <= NameId::STATUS.0
    }
}

/// What becomes of a field that stands twice.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Repeat {
    /// The first one stays.
    First,
    /// A comma and the other value are added (RFC 9110, section 5.3).
    Join,
}

struct Fixed {
    name: &'static str,
    room: usize,
    repeat: Repeat,
}

const fn fixed(name: &'static str, room: usize, repeat: Repeat) -> Fixed {
    Fixed { name, room, repeat }
}

/// In the order of the constants of [`NameId`]. The path's room is the caller's choice.
const FIXED: [Fixed; 13] = [
    fixed(":method", 32, Repeat::First),
    fixed(":scheme", 16, Repeat::First),
    fixed(":authority", HOST_BYTES, Repeat::First),
    fixed(":path", 0, Repeat::First),
    fixed(":protocol", 32, Repeat::First),
    fixed(":status", 8, Repeat::First),
    fixed("host", HOST_BYTES, Repeat::First),
    fixed("content-type", 128, Repeat::First),
    fixed("grpc-status", 16, Repeat::First),
    fixed("upgrade", 64, Repeat::Join),
    fixed("content-length", 64, Repeat::Join),
    fixed("transfer-encoding", 64, Repeat::Join),
    fixed("http2-settings", 256, Repeat::First),
];

const _: () = assert!(FIXED.len() + EXTRA_NAMES_MAX <= NameId::FORGOTTEN.0 as usize);

/// Why a set of names can't be wanted.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum WantedError {
    #[error("more than {EXTRA_NAMES_MAX} header names")]
    TooMany,
    #[error("header name {0:?} is longer than {NAME_BYTES_MAX} bytes")]
    TooLong(String),
    #[error("{0:?} is no header name")]
    NotAName(String),
}

/// The names of fields that are kept.
#[derive(Clone, Debug)]
pub struct Wanted {
    /// Lower case, by [`NameId`].
    names: Vec<Box<[u8]>>,
    /// All ids, by length of the name.
    by_length: Vec<NameId>,
    /// Where in `by_length` the names of a length begin and end.
    lengths: [(u8, u8); NAME_BYTES_MAX + 1],
    /// Ids of the names of HPACK's static table.
    of_static: [NameId; hpack::STATIC.len()],
}

impl Wanted {
    /// The fixed names and these, in any case; one that stands twice counts once.
    pub fn new<'a>(extra: impl IntoIterator<Item = &'a str>) -> Result<Wanted, WantedError> {
        let mut names: Vec<Box<[u8]>> = FIXED.iter().map(|f| f.name.as_bytes().into()).collect();
        for name in extra {
            // As pseudo-headers of HTTP/2 have it, a colon may be first.
            let token = name.strip_prefix(':').unwrap_or(name);
            if token.is_empty() || !token.bytes().all(is_token) {
                return Err(WantedError::NotAName(name.to_owned()));
            }
            if name.len() > NAME_BYTES_MAX {
                return Err(WantedError::TooLong(name.to_owned()));
            }
            let lower = name.to_ascii_lowercase().into_bytes().into_boxed_slice();
            if !names.contains(&lower) {
                names.push(lower);
            }
        }
        if names.len() > FIXED.len() + EXTRA_NAMES_MAX {
            return Err(WantedError::TooMany);
        }
        let mut by_length: Vec<NameId> = (0..names.len() as u8).map(NameId).collect();
        by_length.sort_by_key(|id| names[usize::from(id.0)].len());
        let mut lengths = [(0, 0); NAME_BYTES_MAX + 1];
        for (length, range) in lengths.iter_mut().enumerate() {
            let of = |id: &NameId| names[usize::from(id.0)].len();
            let start = by_length.partition_point(|id| of(id) < length);
            *range = (start as u8, by_length.partition_point(|id| of(id) <= length) as u8);
        }
        let of_static = [NameId::OTHER; hpack::STATIC.len()];
        let mut wanted = Wanted { names, by_length, lengths, of_static };
        wanted.of_static = hpack::STATIC.map(|(name, _)| wanted.id(name.as_bytes()));
        Ok(wanted)
    }

    /// The id of a name in lower case; [`NameId::OTHER`] where it is not wanted.
    pub fn id(&self, name: &[u8]) -> NameId {
        let (start, end) = self.lengths.get(name.len()).copied().unwrap_or_default();
        let same = self.by_length[usize::from(start)..usize::from(end)].iter();
        let mut same = same.filter(|id| &*self.names[usize::from(id.0)] == name);
        same.next().copied().unwrap_or(NameId::OTHER)
    }

    /// As [`Wanted::id`], of a name in any case.
    #[inline]
    pub(super) fn id_in_any_case(&self, name: &[u8]) -> NameId {
        let (start, end) = self.lengths.get(name.len()).copied().unwrap_or_default();
        let same = self.by_length[usize::from(start)..usize::from(end)].iter();
        let first = |name: &[u8]| name.first().map(u8::to_ascii_lowercase);
        for id in same {
            let known = &self.names[usize::from(id.0)];
            if first(known) == first(name) && known.eq_ignore_ascii_case(name) {
                return *id;
            }
        }
        NameId::OTHER
    }

    /// The id of the name of an entry of HPACK's static table, counted from 0.
    pub(super) fn static_id(&self, entry: usize) -> NameId {
        self.of_static.get(entry).copied().unwrap_or(NameId::OTHER)
    }

    /// The name of an id of this set, in lower case.
    pub fn name(&self, id: NameId) -> Option<&[u8]> {
        self.names.get(usize::from(id.0)).map(|name| &**name)
    }
}

/// What takes the fields of a message, in order.
///
/// A value comes in pieces whose number says nothing.
pub trait Sink {
    /// A message begins.
    fn clear(&mut self);
    fn begin(&mut self, name: NameId);
    /// Only of wanted names.
    fn value(&mut self, piece: &[u8]);
    fn end(&mut self);
    /// The value has bytes that none may have (RFC 9113, section 8.2.1).
    fn reject(&mut self) {}
}

/// The wanted fields of one message.
#[derive(Clone, Debug)]
pub struct Fields {
    bytes: Box<[u8]>,
    slots: Box<[Slot]>,
    /// Whose value comes; [`NameId::OTHER`] where it is not kept.
    open: NameId,
    /// A field has come that is no pseudo-header.
    regular: bool,
    malformed: bool,
    unknown: bool,
    forgotten: bool,
}

#[derive(Clone, Copy, Debug)]
struct Slot {
    start: u32,
    room: u32,
    len: u32,
    /// Where the value that comes begins: after that of an earlier field.
    from: u32,
    repeat: Repeat,
    present: bool,
    truncated: bool,
    repeated: bool,
}

impl Fields {
    /// Room for all that is wanted, and for this many bytes of a path or target.
    pub fn new(wanted: &Wanted, path_bytes: usize) -> Fields {
        let mut start = 0;
        let mut slot = |room: usize, repeat| {
            let (at, room) = (start, room as u32);
            start += room;
            let (present, truncated, repeated) = (false, false, false);
            Slot { start: at, room, len: 0, from: 0, repeat, present, truncated, repeated }
        };
        let mut slots = Vec::with_capacity(wanted.names.len());
        for i in 0..wanted.names.len() {
            slots.push(match FIXED.get(i) {
                Some(_) if i == usize::from(NameId::PATH.0) => slot(path_bytes, Repeat::First),
                Some(fixed) => slot(fixed.room, fixed.repeat),
                None => slot(EXTRA_VALUE_BYTES, Repeat::Join),
            });
        }
        Fields {
            bytes: vec![0; start as usize].into_boxed_slice(),
            slots: slots.into_boxed_slice(),
            open: NameId::OTHER,
            regular: false,
            malformed: false,
            unknown: false,
            forgotten: false,
        }
    }

    /// The value; its beginning, where it was longer than its room.
    pub fn get(&self, name: NameId) -> Option<&[u8]> {
        let slot = self.slots.get(usize::from(name.0)).filter(|slot| slot.present)?;
        self.bytes.get(slot.start as usize..(slot.start + slot.len) as usize)
    }

    /// The value was longer than its room: [`Fields::get`] has its beginning.
    pub fn truncated(&self, name: NameId) -> bool {
        self.slots.get(usize::from(name.0)).is_some_and(|slot| slot.truncated)
    }

    /// The field stood more than once.
    pub fn repeated(&self, name: NameId) -> bool {
        self.slots.get(usize::from(name.0)).is_some_and(|slot| slot.repeated)
    }

    pub fn method(&self) -> Option<&[u8]> {
        self.get(NameId::METHOD)
    }

    pub fn path(&self) -> Option<&[u8]> {
        self.get(NameId::PATH)
    }

    /// `:authority`, else `host` (RFC 9113, section 8.3.1): as sent, port included.
    pub fn authority(&self) -> Option<&[u8]> {
        self.get(NameId::AUTHORITY).or_else(|| self.get(NameId::HOST))
    }

    /// The status code; `None` also where it is not three digits.
    pub fn status(&self) -> Option<u16> {
        match self.get(NameId::STATUS)? {
            digits @ [_, _, _] if digits.iter().all(u8::is_ascii_digit) => {
                Some(digits.iter().fold(0, |n, d| n * 10 + u16::from(d - b'0')))
            }
            _ => None,
        }
    }

    /// The content type is of server-sent events: an answer that comes as it is made.
    pub fn is_event_stream(&self) -> bool {
        self.get(NameId::CONTENT_TYPE)
            .is_some_and(|value| media_type_is(value, "text/event-stream"))
    }

    /// The message breaks a rule of RFC 9113, sections 8.2 and 8.3: a pseudo-header twice or behind
    /// other fields, a forbidden name, a value with a NUL or a line's end.
    pub fn is_malformed(&self) -> bool {
        self.malformed
    }

    /// Some fields were said before the stream was joined, or longer ago than is kept: what is
    /// absent may be among them.
    pub fn has_unknown(&self) -> bool {
        self.unknown
    }

    /// Some were said longer ago than is kept.
    pub fn has_forgotten(&self) -> bool {
        self.forgotten
    }

    /// The value goes on with another line: a blank, unless it is empty so far.
    pub(super) fn fold(&mut self) {
        if self.slots.get(usize::from(self.open.0)).is_some_and(|slot| slot.len > slot.from) {
            self.value(b" ");
        }
    }

    /// As [`Sink::end`], without the blanks that the value ends with.
    pub(super) fn end_trimmed(&mut self) {
        if let Some(slot) = self.slots.get_mut(usize::from(self.open.0)) {
            let value = &self.bytes[slot.start as usize..(slot.start + slot.len) as usize];
            let kept = value[slot.from as usize..].iter().rposition(|b| !is_blank(*b));
            slot.len = slot.from + kept.map_or(0, |last| last as u32 + 1);
        }
        self.open = NameId::OTHER;
    }
}

impl Sink for Fields {
    fn clear(&mut self) {
        for slot in &mut self.slots {
            (slot.len, slot.from) = (0, 0);
            (slot.present, slot.truncated, slot.repeated) = (false, false, false);
        }
        self.open = NameId::OTHER;
        (self.regular, self.malformed) = (false, false);
        (self.unknown, self.forgotten) = (false, false);
    }

    #[inline]
    fn begin(&mut self, name: NameId) {
        self.open = NameId::OTHER;
        self.unknown |= name.is_unknown();
        self.forgotten |= name == NameId::FORGOTTEN;
        self.malformed |= name == NameId::FORBIDDEN || name.is_pseudo() && self.regular;
        self.regular |= !name.is_pseudo() && !name.is_unknown();
        let Some(slot) = self.slots.get_mut(usize::from(name.0)) else { return };
        if !slot.present {
            slot.present = true;
            self.open = name;
            return;
        }
        slot.repeated = true;
        self.malformed |= name.is_pseudo();
        if slot.repeat == Repeat::Join {
            self.open = name;
            self.value(b", ");
            let slot = &mut self.slots[usize::from(name.0)];
            slot.from = slot.len;
        }
    }

    #[inline]
    fn value(&mut self, piece: &[u8]) {
        let Some(slot) = self.slots.get_mut(usize::from(self.open.0)) else { return };
        let n = piece.len().min((slot.room - slot.len) as usize);
        let at = (slot.start + slot.len) as usize;
        self.bytes[at..at + n].copy_from_slice(&piece[..n]);
        slot.len += n as u32;
        // Blanks at the end of a value are not part of it.
        slot.truncated |= piece[n..].iter().any(|b| !is_blank(*b));
    }

    #[inline]
    fn end(&mut self) {
        self.open = NameId::OTHER;
    }

    fn reject(&mut self) {
        self.malformed = true;
    }
}

/// Whether a content type is `kind`, in any case and with any parameters (RFC 9110, section 8.3.1).
pub fn media_type_is(value: &[u8], kind: &str) -> bool {
    let bare = value.split(|b| *b == b';').next().unwrap_or_default();
    bare.trim_ascii().eq_ignore_ascii_case(kind.as_bytes())
}

/// A byte of a token (RFC 9110, section 5.6.2).
pub(super) fn is_token(byte: u8) -> bool {
    TOKEN[usize::from(byte)]
}

/// Blanks around field values (RFC 9110, section 5.6.3).
pub(super) fn is_blank(byte: u8) -> bool {
    byte == b' ' || byte == b'\t'
}

const TOKEN: [bool; 256] = {
    let mut table = [false; 256];
    let marks = b"!#$%&'*+-.^_`|~";
    let mut i = 0;
    while i < marks.len() {
        table[marks[i] as usize] = true;
        i += 1;
    }
    let mut byte = 0;
    while byte < 128u8 {
        table[byte as usize] |= byte.is_ascii_alphanumeric();
        byte += 1;
    }
    table
};

#[cfg(test)]
mod tests;
