//! One direction: a state machine over lines and bodies, resumable at every byte.

use super::{Failure, HEAD_BYTES_MAX, METHOD_BYTES_MAX, Next, Side, Switch};
use crate::inspect::fields::{Fields, NAME_BYTES_MAX, NameId, Sink, Wanted, is_blank, is_token};

/// The version of a message, but for its last digit (RFC 9112, section 2.3).
const VERSION: &[u8] = b"HTTP/1.";
/// What follows `PRI * HTTP/` in the preface of HTTP/2 (RFC 9113, section 3.4).
const PREFACE_REST: &[u8] = b"2.0\r\n\r\nSM\r\n\r\n";
/// Where `VERSION` and a preface part.
const VERSION_MAJOR_AT: u8 = 5;

/// What the next byte is of. Those from [`Step::Bytes`] on are of bodies.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Step {
    Start,
    Method,
    Target,
    Version,
    VersionDigit,
    VersionEnd,
    Preface,
    StatusVersion,
    StatusVersionDigit,
    StatusBlank,
    Status,
    Reason,
    LineStart,
    Name,
    ValueStart,
    Value,
    /// After a carriage return: the line's end, and what comes then.
    LineFeed,
    HeadLineFeed,
    Bytes,
    UntilClose,
    ChunkSize,
    ChunkExtension,
    ChunkSizeLineFeed,
    ChunkBytes,
    ChunkReturn,
    ChunkLineFeed,
}

#[derive(Clone, Debug)]
pub struct Half {
    side: Side,
    pub(super) step: Step,
    next: Option<Next>,
    switch: Switch,
    /// What an accepted switch leads to.
    asked: Next,
    /// Trailer fields are read, and not kept.
    pub(super) in_trailers: bool,
    /// A field whose value may go on with the next line.
    pub(super) field_open: bool,
    pub(super) wanted: bool,
    pub(super) minor_version: u8,
    /// Bytes matched of a fixed text, or digits read.
    pub(super) matched: u8,
    method_len: u32,
    pub(super) head_bytes: u32,
    /// Bytes left of a body or chunk, or the chunk's size as far as it was read.
    pub(super) left: u64,
    messages: u64,
    /// Bytes of all bodies so far, without what frames them.
    pub(super) content: u64,
    /// Of all of the name; only what fits is kept.
    pub(super) name_len: u32,
    pub(super) name: [u8; NAME_BYTES_MAX],
}

impl Half {
    pub fn new(side: Side) -> Half {
        Half {
            side,
            step: Step::Start,
            next: None,
            switch: Switch::No,
            asked: Next::Tunnel,
            in_trailers: false,
            field_open: false,
            wanted: false,
            minor_version: 0,
            matched: 0,
            method_len: 0,
            head_bytes: 0,
            left: 0,
            messages: 0,
            content: 0,
            name_len: 0,
            name: [0; NAME_BYTES_MAX],
        }
    }

    pub fn minor_version(&self) -> u8 {
        self.minor_version
    }

    pub fn is_idle(&self) -> bool {
        self.next.is_none() && self.step == Step::Start
    }

    /// Amid a body that ends with the connection.
    pub fn lasts(&self) -> bool {
        self.next.is_none() && self.step == Step::UntilClose
    }

    /// Whether a head has come in part.
    pub fn is_amid_head(&self) -> bool {
        self.next.is_none() && self.step > Step::Start && self.step < Step::Bytes
    }

    pub fn fail(&mut self, failure: Failure) {
        self.next.get_or_insert(Next::Failed(failure));
    }

    /// Nothing that follows is HTTP/1.
    pub fn switch(&mut self, next: Next) {
        self.next.get_or_insert(next);
    }

    /// Reads on, where it had become a tunnel.
    pub fn resume(&mut self) {
        if self.next == Some(Next::Tunnel) {
            (self.next, self.switch, self.asked) = (None, Switch::No, Next::Http2);
        }
    }

    /// The request just read asks for another protocol after it.
    pub fn ask_switch(&mut self, next: Next) {
        (self.switch, self.asked) = (Switch::Asked, next);
    }

    /// The answer to what was asked for last.
    pub fn answer_switch(&mut self, accepted: bool) {
        if self.switch == Switch::Asked {
            self.switch = if accepted { Switch::Accepted } else { Switch::Refused };
        }
    }

    /// `true` where a head is complete, `false` where the input is used up.
    pub fn run(
        &mut self,
        input: &mut &[u8],
        wanted: &Wanted,
        fields: &mut Fields,
    ) -> Result<bool, Next> {
        if let Some(next) = self.next {
            return Err(next);
        }
        while !input.is_empty() {
            let done = if self.step >= Step::Bytes {
                self.body(input).map(|()| false).map_err(Next::Failed)
            } else {
                self.head(input, wanted, fields)
            };
            match done {
                Ok(true) => return Ok(true),
                Ok(false) => {}
                Err(next) => {
                    self.next = Some(next);
                    return Err(next);
                }
            }
        }
        Ok(false)
    }

    /// A step of a head, within its limit.
    fn head(
        &mut self,
        input: &mut &[u8],
        wanted: &Wanted,
        fields: &mut Fields,
    ) -> Result<bool, Next> {
        let room = (HEAD_BYTES_MAX - self.head_bytes) as usize;
        if room == 0 {
            return Err(Next::Failed(Failure::TooLong));
        }
        let mut part = &input[..input.len().min(room)];
        let before = part.len();
        let done = match self.step {
            Step::LineStart | Step::Name | Step::ValueStart | Step::Value => {
                self.field_line(&mut part, wanted, fields).map_err(Next::Failed)
            }
            Step::LineFeed | Step::HeadLineFeed => self.line_feed(&mut part).map_err(Next::Failed),
            _ if self.side == Side::Client => self.request_line(&mut part, fields),
            _ => self.status_line(&mut part, fields),
        };
        let used = before - part.len();
        self.head_bytes += used as u32;
        *input = &input[used..];
        done
    }

    /// Between messages. `Ok(true)`: one begins with the byte that comes.
    fn start(&mut self, part: &mut &[u8]) -> Result<bool, Next> {
        let byte = part[0];
        if self.side == Side::Client && self.switch != Switch::No {
            let asked = self.asked;
            let is_request = is_token(byte);
            let gone = match self.switch {
                Switch::Accepted => asked != Next::Http2,
                // The answer was not seen: what no request begins with decides.
                Switch::Asked => !is_request && byte != b'\r' && byte != b'\n',
                _ => false,
            };
            if gone {
                return Err(asked);
            }
        }
        // Empty lines before a message (RFC 9112, section 2.2).
        if byte == b'\r' || byte == b'\n' {
            *part = &part[1..];
            return Ok(false);
        }
        Ok(true)
    }

    pub(super) fn begin(&mut self, step: Step) {
        (self.head_bytes, self.matched, self.method_len) = (0, 0, 0);
        self.step = step;
    }

    fn request_line(&mut self, part: &mut &[u8], fields: &mut Fields) -> Result<bool, Next> {
        const NOT_HTTP: Result<bool, Next> = Err(Next::Failed(Failure::NotHttp));
        match self.step {
            Step::Start => {
                if self.start(part)? {
                    self.begin_request(part, fields);
                }
            }
            Step::Method => {
                let n = part.iter().position(|b| !is_token(*b)).unwrap_or(part.len());
                fields.value(&part[..n]);
                self.method_len = self.method_len.saturating_add(n as u32);
                *part = &part[n..];
                if self.method_len > METHOD_BYTES_MAX {
                    return NOT_HTTP;
                }
                if let Some(&byte) = part.first() {
                    if byte != b' ' || self.method_len == 0 {
                        return NOT_HTTP;
                    }
                    *part = &part[1..];
                    fields.end();
                    fields.begin(NameId::PATH);
                    (self.matched, self.step) = (0, Step::Target);
                }
            }
            Step::Target => {
                let n = part.iter().position(|b| *b <= b' ' || *b == 0x7f).unwrap_or(part.len());
                fields.value(&part[..n]);
                self.matched |= u8::from(n > 0);
                *part = &part[n..];
                if let Some(&byte) = part.first() {
                    // An empty target is none.
                    if byte != b' ' || self.matched == 0 {
                        return NOT_HTTP;
                    }
                    *part = &part[1..];
                    (self.matched, self.step) = (0, Step::Version);
                }
            }
            Step::Version => self.request_version(part, fields)?,
            Step::VersionDigit => {
                let [digit @ b'0'..=b'9', ..] = **part else { return NOT_HTTP };
                *part = &part[1..];
                fields.end();
                (self.minor_version, self.step) = (digit - b'0', Step::VersionEnd);
            }
            Step::VersionEnd => self.line_end(part, Failure::NotHttp).map_err(Next::Failed)?,
            _ => {
                // Step::Preface
                if part[0] != PREFACE_REST[usize::from(self.matched)] {
                    return NOT_HTTP;
                }
                *part = &part[1..];
                self.matched += 1;
                if usize::from(self.matched) == PREFACE_REST.len() {
                    return Err(Next::Http2);
                }
            }
        }
        Ok(false)
    }

    /// The version, or what is no version and so still of a target with spaces in it.
    fn request_version(&mut self, part: &mut &[u8], fields: &mut Fields) -> Result<(), Next> {
        let (byte, at) = (part[0], usize::from(self.matched));
        if byte == VERSION[at] {
            *part = &part[1..];
            self.matched += 1;
            if at + 1 == VERSION.len() {
                self.step = Step::VersionDigit;
            }
            return Ok(());
        }
        let may_switch = self.messages == 0 || self.asked == Next::Http2;
        let is_preface = self.matched == VERSION_MAJOR_AT
            && byte == PREFACE_REST[0]
            && fields.method() == Some(b"PRI")
            && fields.path() == Some(b"*");
        if is_preface && may_switch {
            (self.matched, self.step) = (0, Step::Preface);
            return Ok(());
        }
        // Of a text that ends as a request does, the second word is no target.
        if !fields.path().is_none_or(|word| word.starts_with(b"/") || word.contains(&b':')) {
            return Err(Next::Failed(Failure::NotHttp));
        }
        fields.value(b" ");
        fields.value(&VERSION[..at]);
        (self.matched, self.step) = (1, Step::Target);
        Ok(())
    }

    fn status_line(&mut self, part: &mut &[u8], fields: &mut Fields) -> Result<bool, Next> {
        match self.step {
            // A server of HTTP/2 may speak first. Its SETTINGS begin with a zero, no answer does.
            Step::Start if part[0] == 0 && self.messages == 0 => return Err(Next::Http2),
            Step::Start => {
                if self.start(part)? {
                    fields.clear();
                    self.begin(Step::StatusVersion);
                }
                return Ok(false);
            }
            Step::StatusVersion if part[0] == VERSION[usize::from(self.matched)] => {
                self.matched += 1;
                if usize::from(self.matched) == VERSION.len() {
                    self.step = Step::StatusVersionDigit;
                }
            }
            Step::StatusVersionDigit if part[0].is_ascii_digit() => {
                self.minor_version = part[0] - b'0';
                self.step = Step::StatusBlank;
            }
            Step::StatusBlank if part[0] == b' ' => {
                fields.begin(NameId::STATUS);
                (self.matched, self.step) = (0, Step::Status);
            }
            Step::Status if self.matched < 3 && part[0].is_ascii_digit() => {
                fields.value(&part[..1]);
                self.matched += 1;
            }
            // Without a reason, some servers leave out the blank before it too.
            Step::Status if self.matched == 3 && matches!(part[0], b' ' | b'\r' | b'\n') => {
                fields.end();
                self.step = Step::Reason;
                return Ok(false);
            }
            Step::Reason => {
                let end = memchr::memchr2(b'\r', b'\n', part).unwrap_or(part.len());
                *part = &part[end..];
                if !part.is_empty() {
                    self.line_end(part, Failure::Malformed).map_err(Next::Failed)?;
                }
                return Ok(false);
            }
            _ => return Err(Next::Failed(Failure::NotHttp)),
        }
        *part = &part[1..];
        Ok(false)
    }

    /// A line's end must come: CR LF, or LF alone (RFC 9112, section 2.2).
    fn line_end(&mut self, part: &mut &[u8], otherwise: Failure) -> Result<(), Failure> {
        self.step = match part[0] {
            b'\r' => Step::LineFeed,
            b'\n' => Step::LineStart,
            _ => return Err(otherwise),
        };
        *part = &part[1..];
        Ok(())
    }

    /// After CR. `true` where that was the end of the head.
    fn line_feed(&mut self, part: &mut &[u8]) -> Result<bool, Failure> {
        if part[0] != b'\n' {
            return Err(Failure::Malformed);
        }
        *part = &part[1..];
        if self.step == Step::HeadLineFeed {
            return Ok(self.end_section());
        }
        self.step = Step::LineStart;
        Ok(false)
    }

    /// The empty line. `true` where it ends a head, not trailers.
    fn end_section(&mut self) -> bool {
        self.step = Step::Start;
        if std::mem::take(&mut self.in_trailers) {
            return false;
        }
        self.messages += 1;
        (self.switch, self.asked) = (Switch::No, Next::Tunnel);
        true
    }

    fn field_line(
        &mut self,
        part: &mut &[u8],
        wanted: &Wanted,
        fields: &mut Fields,
    ) -> Result<bool, Failure> {
        match self.step {
            Step::LineStart => return self.line_start(part, wanted, fields),
            Step::Name => {
                let n = part.iter().position(|b| !is_token(*b)).unwrap_or(part.len());
                self.take_name(&part[..n]);
                *part = &part[n..];
                match part.first() {
                    None => return Ok(false),
                    Some(b':') => {}
                    // A blank before the colon hides a field from some (RFC 9112, section 5.1).
                    Some(b' ' | b'\t') => return Err(Failure::Ambiguous),
                    Some(_) => return Err(Failure::Malformed),
                }
                *part = &part[1..];
                let name = self.name.get(..self.name_len as usize);
                let id = match name.map(|name| wanted.id(name)) {
                    Some(id) if id.is_wanted() && !self.in_trailers => id,
                    _ => NameId::OTHER,
                };
                self.wanted = id.is_wanted();
                if self.wanted {
                    fields.begin(id);
                }
                (self.field_open, self.step) = (true, Step::ValueStart);
            }
            Step::ValueStart => {
                let n = part.iter().position(|b| !is_blank(*b)).unwrap_or(part.len());
                *part = &part[n..];
                if !part.is_empty() {
                    self.step = Step::Value;
                }
            }
            _ => {
                // Step::Value
                let end = memchr::memchr3(b'\r', b'\n', 0, part).unwrap_or(part.len());
                if self.wanted {
                    fields.value(&part[..end]);
                }
                *part = &part[end..];
                if !part.is_empty() {
                    self.line_end(part, Failure::Malformed)?;
                }
            }
        }
        Ok(false)
    }

    fn line_start(
        &mut self,
        part: &mut &[u8],
        wanted: &Wanted,
        fields: &mut Fields,
    ) -> Result<bool, Failure> {
        self.whole_fields(part, wanted, fields);
        let Some(&byte) = part.first() else { return Ok(false) };
        if is_blank(byte) {
            // A folded line goes on with the value (RFC 9112, section 5.2); before the first
            // field it is a way to hide one (section 2.2).
            if !std::mem::take(&mut self.field_open) {
                return Err(Failure::Ambiguous);
            }
            self.field_open = true;
            if self.wanted {
                fields.fold();
            }
            self.step = Step::ValueStart;
            return Ok(false);
        }
        self.end_field(fields);
        match byte {
            b'\r' => self.step = Step::HeadLineFeed,
            b'\n' => {
                *part = &part[1..];
                return Ok(self.end_section());
            }
            _ if is_token(byte) => {
                (self.name_len, self.step) = (0, Step::Name);
                return Ok(false);
            }
            _ => return Err(Failure::Malformed),
        }
        *part = &part[1..];
        Ok(false)
    }

    pub(super) fn end_field(&mut self, fields: &mut Fields) {
        if std::mem::take(&mut self.field_open) && self.wanted {
            fields.end_trimmed();
        }
    }
}
