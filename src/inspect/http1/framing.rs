//! How long a body is, by its head (RFC 9112, section 6.3).

use super::Framing;
use crate::inspect::fields::{Fields, NameId};

/// Digits of a length at most: as many as surely fit 64 bits.
const LENGTH_DIGITS_MAX: usize = 19;

pub fn of_request(fields: &Fields, minor_version: u8) -> Framing {
    match (codings(fields, minor_version), length(fields)) {
        (Codings::None, Length::None) => Framing::Empty,
        (Codings::None, Length::Bytes(0)) => Framing::Empty,
        (Codings::None, Length::Bytes(n)) => Framing::Length(n),
        (Codings::Chunked, Length::None) => Framing::Chunked,
        _ => Framing::Ambiguous,
    }
}

pub fn of_response(fields: &Fields, minor_version: u8) -> Framing {
    match (codings(fields, minor_version), length(fields)) {
        (Codings::None, Length::None) | (Codings::Other, Length::None) => Framing::UntilClose,
        (Codings::None, Length::Bytes(0)) => Framing::Empty,
        (Codings::None, Length::Bytes(n)) => Framing::Length(n),
        (Codings::Chunked, Length::None) => Framing::Chunked,
        _ => Framing::Ambiguous,
    }
}

enum Codings {
    None,
    /// The last one, and only that, is `chunked`.
    Chunked,
    Other,
    Unclear,
}

fn codings(fields: &Fields, minor_version: u8) -> Codings {
    let Some(value) = fields.get(NameId::TRANSFER_ENCODING) else { return Codings::None };
    // HTTP/1.0 has no transfer codings: its servers and those of HTTP/1.1 read on differently.
    if minor_version == 0 || fields.truncated(NameId::TRANSFER_ENCODING) {
        return Codings::Unclear;
    }
    let chunked = |coding: &[u8]| coding.trim_ascii().eq_ignore_ascii_case(b"chunked");
    let mut codings = value.rsplit(|b| *b == b',');
    let last = codings.next().unwrap_or_default();
    match (chunked(last), codings.any(chunked)) {
        (true, false) => Codings::Chunked,
        (false, false) if !last.trim_ascii().is_empty() => Codings::Other,
        _ => Codings::Unclear,
    }
}

enum Length {
    None,
    Bytes(u64),
    Unclear,
}

fn length(fields: &Fields) -> Length {
    let Some(value) = fields.get(NameId::CONTENT_LENGTH) else { return Length::None };
    if fields.truncated(NameId::CONTENT_LENGTH) {
        return Length::Unclear;
    }
    // Several times the same number is one (RFC 9110, section 8.6).
    let mut agreed = None;
    for item in value.split(|b| *b == b',') {
        match number(item) {
            Some(n) if agreed.is_none_or(|other| other == n) => agreed = Some(n),
            _ => return Length::Unclear,
        }
    }
    agreed.map_or(Length::Unclear, Length::Bytes)
}

/// Digits and nothing else but blanks around them.
fn number(item: &[u8]) -> Option<u64> {
    let digits = item.trim_ascii();
    if digits.is_empty() || digits.len() > LENGTH_DIGITS_MAX {
        return None;
    }
    digits
        .iter()
        .try_fold(0u64, |n, byte| byte.is_ascii_digit().then(|| n * 10 + u64::from(byte - b'0')))
}
