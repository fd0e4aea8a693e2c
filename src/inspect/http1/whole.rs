//! Lines that have come as a whole, as most do, and have nothing unusual: read at once. All others
//! are left to [`super::half`], byte by byte; what both tell is the same.

use super::METHOD_BYTES_MAX;
use super::half::{Half, Step};
use crate::inspect::fields::{Fields, NAME_BYTES_MAX, NameId, Sink, Wanted, is_blank, is_token};

const VERSION: &[u8] = b" HTTP/1.";

impl Half {
    /// A request line begins, and mostly has come as a whole.
    pub(super) fn begin_request(&mut self, part: &mut &[u8], fields: &mut Fields) {
        fields.clear();
        self.begin(Step::Method);
        match request_line(part) {
            Some((line, len)) => {
                line.tell(fields);
                *part = &part[len..];
                (self.minor_version, self.step) = (line.minor_version, Step::LineStart);
            }
            None => fields.begin(NameId::METHOD),
        }
    }

    /// Takes the fields whose lines have come.
    pub(super) fn whole_fields(&mut self, part: &mut &[u8], wanted: &Wanted, fields: &mut Fields) {
        while let Some((field, len)) = field(part) {
            self.end_field(fields);
            let kept = !self.in_trailers;
            let id = if kept { wanted.id_in_any_case(field.name) } else { NameId::OTHER };
            self.wanted = id.is_wanted();
            if self.wanted {
                fields.begin(id);
                fields.value(field.value);
            }
            // Its value may go on with the next line.
            self.field_open = true;
            *part = &part[len..];
        }
    }

    /// A piece of the name of a field whose line has come in part.
    pub(super) fn take_name(&mut self, piece: &[u8]) {
        let at = (self.name_len as usize).min(NAME_BYTES_MAX);
        let room = &mut self.name[at..];
        for (to, from) in room.iter_mut().zip(piece) {
            *to = from.to_ascii_lowercase();
        }
        self.name_len = self.name_len.saturating_add(piece.len() as u32);
    }
}

/// Method, target and version (RFC 9112, section 3).
struct RequestLine<'a> {
    method: &'a [u8],
    target: &'a [u8],
    minor_version: u8,
}

impl RequestLine<'_> {
    fn tell(&self, fields: &mut Fields) {
        for (name, value) in [(NameId::METHOD, self.method), (NameId::PATH, self.target)] {
            fields.begin(name);
            fields.value(value);
            fields.end();
        }
    }
}

/// A request line with CR LF, and how long it is.
fn request_line(bytes: &[u8]) -> Option<(RequestLine<'_>, usize)> {
    let end = memchr::memchr(b'\n', bytes)?;
    let (line, last) = bytes[..end].split_at_checked(end.checked_sub(2)?)?;
    let [digit @ b'0'..=b'9', b'\r'] = *last else { return None };
    let line = line.strip_suffix(VERSION)?;
    let space = line.iter().take(METHOD_BYTES_MAX as usize + 1).position(|b| !is_token(*b))?;
    let (method, target) = (&line[..space], &line[space + 1..]);
    let is_plain = line[space] == b' ' && !method.is_empty() && !target.is_empty();
    let is_odd = |odd: bool, &byte: &u8| odd | (byte <= b' ') | (byte == 0x7f);
    if !is_plain || target.iter().fold(false, is_odd) {
        return None;
    }
    Some((RequestLine { method, target, minor_version: digit - b'0' }, end + 1))
}

/// A field's line (RFC 9112, section 5).
struct Field<'a> {
    name: &'a [u8],
    /// Blanks may be left at its end.
    value: &'a [u8],
}

/// A field's line with CR LF, and how long it is.
#[inline]
fn field(bytes: &[u8]) -> Option<(Field<'_>, usize)> {
    let colon = bytes.iter().position(|b| !is_token(*b))?;
    if bytes[colon] != b':' || colon == 0 || colon > NAME_BYTES_MAX {
        return None;
    }
    let rest = &bytes[colon + 1..];
    let blanks = rest.iter().position(|b| !is_blank(*b))?;
    let value = &rest[blanks..];
    let end = control(value)?;
    if value.get(end..end + 2) != Some(b"\r\n") {
        return None;
    }
    Some((Field { name: &bytes[..colon], value: &value[..end] }, colon + 1 + blanks + end + 2))
}

/// The first byte below 14, if that is no tab.
#[inline]
fn control(bytes: &[u8]) -> Option<usize> {
    const LOW: u64 = u64::MAX / 255;
    // Bytes below 14, carriage returns the highest of them. Found in eights: the lowest that is
    // marked is one, whatever is marked above it.
    const BELOW: u64 = 14;
    let (eights, rest) = bytes.as_chunks::<8>();
    for (i, eight) in eights.iter().enumerate() {
        let word = u64::from_le_bytes(*eight);
        let marks = word.wrapping_sub(LOW * BELOW) & !word & (LOW << 7);
        if marks != 0 {
            let at = 8 * i + marks.trailing_zeros() as usize / 8;
            return (bytes[at] != b'\t').then_some(at);
        }
    }
    let low = rest.iter().position(|byte| u64::from(*byte) < BELOW)?;
    (rest[low] != b'\t').then_some(8 * eights.len() + low)
}
