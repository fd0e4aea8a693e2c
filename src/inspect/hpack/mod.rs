//! HPACK: the header compression of HTTP/2 (RFC 7541), decoded as the bytes come.
//!
//! A [`Decoder`] follows one direction of a connection. It takes header blocks in any pieces and
//! hands wanted fields to a [`Sink`]. Neither a block nor a string is ever held as a whole, so that
//! their length costs no memory. The dynamic table holds the values of wanted fields only, and the
//! sizes of all, in memory taken when the decoder is made.
//!
//! **Joining late.** Indices count from the newest entry, so those added since the stream was
//! joined resolve exactly; older ones are told as [`NameId::UNKNOWN`]. So it is with a table larger
//! than there is room for: what does not fit is [`NameId::FORGOTTEN`]. No wrong answer is given:
//! after an [`Error`] the decoder gives none at all.

use super::fields::{NAME_BYTES_MAX, NameId, Sink, Wanted};

mod huffman;
mod room;
mod table;

pub use room::Room;
pub use table::{ENTRY_OVERHEAD, STATIC};

use huffman::Huffman;
use table::{Found, Name, Table};

/// Size of the dynamic table that both sides begin with (RFC 9113, section 6.5.2), and the room
/// that suits where a peer does not say otherwise.
pub const TABLE_BYTES: usize = 4_096;
/// The largest room there can be for a table.
pub const TABLE_BYTES_MAX: usize = 1 << 16;
/// Bytes of an integer after its prefix, at most: as many as 32 bits may take.
const INTEGER_BYTES_MAX: u8 = 5;
/// What is decoded of a Huffman string at a time.
const PIECE_BYTES: usize = 128;

/// Why a stream of header blocks can't be followed any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Error {
    /// No such entry (RFC 7541, section 2.3.3).
    BadIndex,
    /// An integer longer than 32 bits (section 5.1).
    IntegerTooLong,
    /// Section 5.2.
    BadHuffman,
    /// A size update beyond what the receiver allowed (section 6.3).
    SizeNotAllowed,
    /// A size update behind a field, or none where one is due (section 4.2).
    SizeMisplaced,
    /// The block ends within a field.
    CutOff,
}

/// What comes next of a block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    Field,
    /// The rest of an integer, and what it is.
    Integer(Integer),
    NameLength,
    Name,
    ValueLength,
    Value,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Integer {
    Index,
    /// Index of the name of a literal field.
    NameIndex,
    TableSize,
    NameLength,
    ValueLength,
}

/// Follows the header blocks of one direction.
#[derive(Clone, Debug)]
pub struct Decoder {
    table: Table,
    step: Step,
    error: Option<Error>,
    /// The block has begun with a field: no size update may come.
    field_seen: bool,
    /// What the receiver allows.
    limit: u32,
    /// The limit went below the size: the next block must begin with a size update.
    update_due: bool,
    integer: u32,
    shift: u8,
    /// The literal that is read goes into the table.
    add: bool,
    coded: bool,
    huffman: Huffman,
    /// Bytes of the string yet to come.
    left: u32,
    name: Name,
    name_bytes: [u8; NAME_BYTES_MAX],
}

impl Decoder {
    /// With room for a table of this size, from [`TABLE_BYTES`] to [`TABLE_BYTES_MAX`].
    pub fn new(table_bytes: usize) -> Decoder {
        let bytes = table_bytes.clamp(TABLE_BYTES, TABLE_BYTES_MAX);
        Decoder::with_room(bytes, Room::whole(bytes))
    }

    /// The same without that room: as much as is needed is lent, see [`Decoder::room`].
    pub fn bare(table_bytes: usize) -> Decoder {
        Decoder::with_room(table_bytes.clamp(TABLE_BYTES, TABLE_BYTES_MAX), Room::default())
    }

    fn with_room(bytes: usize, room: Room) -> Decoder {
        let mut decoder = Decoder {
            table: Table::new(bytes, room),
            step: Step::Field,
            error: None,
            field_seen: false,
            limit: 0,
            update_due: false,
            integer: 0,
            shift: 0,
            add: false,
            coded: false,
            huffman: Huffman::default(),
            left: 0,
            name: Name { id: NameId::OTHER, len: 0 },
            name_bytes: [0; NAME_BYTES_MAX],
        };
        decoder.reset(false);
        decoder
    }

    /// The room that its table has. Another may take its place before anything is read.
    pub fn room(&mut self) -> &mut Room {
        self.table.room()
    }

    /// Where larger room may be lent, which the table moves to when it outgrows its own: then its
    /// former room is here. Without it what it outgrows is forgotten.
    pub fn spare(&mut self) -> &mut Option<Room> {
        self.table.spare()
    }

    /// Begins another connection; `joined` where it has begun before.
    pub fn reset(&mut self, joined: bool) {
        // Of what was agreed before joining nothing is known.
        self.limit = if joined { u32::MAX } else { TABLE_BYTES as u32 };
        let size = if joined { self.table.limit() } else { TABLE_BYTES };
        self.table.reset(size, joined);
        (self.error, self.update_due) = (None, false);
        self.begin_block();
    }

    /// The receiver's SETTINGS_HEADER_TABLE_SIZE, from the next block on.
    pub fn set_limit(&mut self, bytes: u32) {
        self.limit = bytes;
        self.update_due |= self.table.size_max() > bytes as usize;
    }

    /// The receiver's last known limit.
    pub fn limit(&self) -> u32 {
        self.limit
    }

    pub fn error(&self) -> Option<Error> {
        self.error
    }

    pub fn begin_block(&mut self) {
        (self.step, self.field_seen) = (Step::Field, false);
    }

    /// The next piece of a block. `wanted` is the same with every call.
    ///
    /// # Errors
    /// What is wrong; the same with every later call. Fields told before were right.
    pub fn feed(
        &mut self,
        mut piece: &[u8],
        wanted: &Wanted,
        sink: &mut impl Sink,
    ) -> Result<(), Error> {
        if let Some(error) = self.error {
            return Err(error);
        }
        while !piece.is_empty() {
            let done = match self.step {
                Step::Field => self.field(&mut piece, wanted, sink),
                Step::Integer(what) => self.integer_byte(what, &mut piece, wanted, sink),
                Step::NameLength | Step::ValueLength => self.length(&mut piece, wanted, sink),
                Step::Name => self.name(&mut piece, wanted, sink),
                Step::Value => self.value(&mut piece, sink),
            };
            if let Err(error) = done {
                self.error = Some(error);
                return Err(error);
            }
        }
        Ok(())
    }

    /// The block is complete.
    ///
    /// # Errors
    /// As [`Decoder::feed`], also where it ends within a field.
    pub fn end_block(&mut self) -> Result<(), Error> {
        if self.error.is_none() && self.step != Step::Field {
            self.error = Some(Error::CutOff);
        }
        self.error.map_or(Ok(()), Err)
    }

    /// The first byte of a field (RFC 7541, section 6).
    fn field(
        &mut self,
        piece: &mut &[u8],
        wanted: &Wanted,
        sink: &mut impl Sink,
    ) -> Result<(), Error> {
        let byte = piece[0];
        let (what, prefix) = match byte {
            0x80.. => (Integer::Index, 7),
            0x40.. => (Integer::NameIndex, 6),
            0x20.. => (Integer::TableSize, 5),
            _ => (Integer::NameIndex, 4),
        };
        if what == Integer::TableSize {
            if self.field_seen {
                return Err(Error::SizeMisplaced);
            }
        } else {
            if self.update_due {
                return Err(Error::SizeMisplaced);
            }
            self.field_seen = true;
            self.add = byte & 0xc0 == 0x40;
        }
        self.integer(what, prefix, piece, wanted, sink)
    }

    /// The first byte of a string (RFC 7541, section 5.2).
    fn length(
        &mut self,
        piece: &mut &[u8],
        wanted: &Wanted,
        sink: &mut impl Sink,
    ) -> Result<(), Error> {
        self.coded = piece[0] & 0x80 != 0;
        let is_name = self.step == Step::NameLength;
        let what = if is_name { Integer::NameLength } else { Integer::ValueLength };
        self.integer(what, 7, piece, wanted, sink)
    }

    /// The first byte of an integer (RFC 7541, section 5.1).
    fn integer(
        &mut self,
        what: Integer,
        prefix: u32,
        piece: &mut &[u8],
        wanted: &Wanted,
        sink: &mut impl Sink,
    ) -> Result<(), Error> {
        let full = (1 << prefix) - 1;
        let value = u32::from(piece[0]) & full;
        *piece = &piece[1..];
        if value < full {
            return self.number(what, value, wanted, sink);
        }
        (self.integer, self.shift) = (value, 0);
        self.step = Step::Integer(what);
        Ok(())
    }

    fn integer_byte(
        &mut self,
        what: Integer,
        piece: &mut &[u8],
        wanted: &Wanted,
        sink: &mut impl Sink,
    ) -> Result<(), Error> {
        let byte = piece[0];
        *piece = &piece[1..];
        let more = u64::from(byte & 0x7f) << self.shift;
        let value = u64::from(self.integer) + more;
        self.integer = u32::try_from(value).map_err(|_| Error::IntegerTooLong)?;
        self.shift += 7;
        if byte & 0x80 == 0 {
            return self.number(what, self.integer, wanted, sink);
        }
        let longest = self.shift >= 7 * INTEGER_BYTES_MAX;
        if longest { Err(Error::IntegerTooLong) } else { Ok(()) }
    }

    /// An integer is complete.
    fn number(
        &mut self,
        what: Integer,
        value: u32,
        wanted: &Wanted,
        sink: &mut impl Sink,
    ) -> Result<(), Error> {
        match what {
            Integer::Index => {
                let found = self.table.find(value);
                if found == Found::Nothing {
                    return Err(Error::BadIndex);
                }
                let id = self.table.name(found, wanted).id;
                sink.begin(id);
                if self.table.is_bad(found) {
                    sink.reject();
                }
                if id.is_wanted() {
                    self.table.tell_value(found, sink);
                }
                sink.end();
                self.step = Step::Field;
            }
            Integer::NameIndex if value == 0 => self.step = Step::NameLength,
            Integer::NameIndex => {
                let found = self.table.find(value);
                if found == Found::Nothing {
                    return Err(Error::BadIndex);
                }
                self.name = self.table.name(found, wanted);
                self.begin_value(sink);
            }
            Integer::TableSize => self.resize(value)?,
            Integer::NameLength => {
                (self.left, self.name.len, self.step) = (value, 0, Step::Name);
                self.huffman = Huffman::default();
                if value == 0 {
                    self.end_name(wanted, sink)?;
                }
            }
            Integer::ValueLength => {
                (self.left, self.step) = (value, Step::Value);
                self.huffman = Huffman::default();
                if value == 0 {
                    self.end_value(sink)?;
                }
            }
        }
        Ok(())
    }

    fn resize(&mut self, size: u32) -> Result<(), Error> {
        if size > self.limit {
            return Err(Error::SizeNotAllowed);
        }
        self.table.resize(size as usize);
        self.update_due = false;
        self.step = Step::Field;
        Ok(())
    }

    fn name(
        &mut self,
        piece: &mut &[u8],
        wanted: &Wanted,
        sink: &mut impl Sink,
    ) -> Result<(), Error> {
        let mut input = self.take(piece);
        if self.coded {
            let mut text = [0; PIECE_BYTES];
            loop {
                let n =
                    self.huffman.decode(&mut input, &mut text).map_err(|_| Error::BadHuffman)?;
                self.take_name(&text[..n]);
                if n < text.len() {
                    break;
                }
            }
        } else {
            self.take_name(input);
        }
        if self.left == 0 { self.end_name(wanted, sink) } else { Ok(()) }
    }

    fn take_name(&mut self, text: &[u8]) {
        let at = (self.name.len as usize).min(NAME_BYTES_MAX);
        let n = text.len().min(NAME_BYTES_MAX - at);
        self.name_bytes[at..at + n].copy_from_slice(&text[..n]);
        self.name.len = self.name.len.saturating_add(text.len() as u32);
    }

    fn end_name(&mut self, wanted: &Wanted, sink: &mut impl Sink) -> Result<(), Error> {
        if self.coded {
            self.huffman.end().map_err(|_| Error::BadHuffman)?;
        }
        let name = self.name_bytes.get(..self.name.len as usize);
        self.name.id = match name {
            Some(name) if is_forbidden(name) => NameId::FORBIDDEN,
            Some(name) => wanted.id(name),
            None => NameId::OTHER,
        };
        self.begin_value(sink);
        Ok(())
    }

    fn begin_value(&mut self, sink: &mut impl Sink) {
        sink.begin(self.name.id);
        if self.add {
            self.table.begin(self.name);
        }
        self.step = Step::ValueLength;
    }

    fn value(&mut self, piece: &mut &[u8], sink: &mut impl Sink) -> Result<(), Error> {
        let mut input = self.take(piece);
        if self.coded {
            let mut text = [0; PIECE_BYTES];
            loop {
                let n =
                    self.huffman.decode(&mut input, &mut text).map_err(|_| Error::BadHuffman)?;
                self.tell(&text[..n], sink);
                if n < text.len() {
                    break;
                }
            }
        } else {
            self.tell(input, sink);
        }
        if self.left == 0 { self.end_value(sink) } else { Ok(()) }
    }

    fn tell(&mut self, text: &[u8], sink: &mut impl Sink) {
        if memchr::memchr3(0, b'\r', b'\n', text).is_some() {
            sink.reject();
            self.table.mark_bad();
        }
        if self.name.id.is_wanted() {
            sink.value(text);
        }
        if self.add {
            self.table.push(text);
        }
    }

    fn end_value(&mut self, sink: &mut impl Sink) -> Result<(), Error> {
        if self.coded {
            self.huffman.end().map_err(|_| Error::BadHuffman)?;
        }
        if self.add {
            self.table.end();
        }
        sink.end();
        self.step = Step::Field;
        Ok(())
    }

    /// What the piece has of the string.
    fn take<'a>(&mut self, piece: &mut &'a [u8]) -> &'a [u8] {
        let n = piece.len().min(self.left as usize);
        let (taken, rest) = piece.split_at(n);
        *piece = rest;
        self.left -= n as u32;
        taken
    }
}

/// A name that makes a message malformed (RFC 9113, section 8.2.1).
fn is_forbidden(name: &[u8]) -> bool {
    let colon_behind = name.iter().skip(1).any(|b| *b == b':');
    name.is_empty()
        || colon_behind
        || name.iter().any(|b| matches!(b, 0..=b' ' | b'A'..=b'Z' | 0x7f..))
}

#[cfg(test)]
pub(crate) mod tests;
