//! Frames and their payloads (RFC 9113, sections 4 and 6), told in parts as the bytes come.

use super::ErrorCode;

/// Bytes of a frame's header.
pub const HEAD_BYTES: usize = 9;
/// Payload that every receiver takes (RFC 9113, section 4.2).
pub const FRAME_BYTES_MAX: u32 = 1 << 14;
/// The largest that one may allow.
pub const FRAME_BYTES_LIMIT: u32 = (1 << 24) - 1;
const FIXED_BYTES_MAX: usize = 9;

/// Types of frames.
pub mod kind {
    pub const DATA: u8 = 0;
    pub const HEADERS: u8 = 1;
    pub const PRIORITY: u8 = 2;
    pub const RST_STREAM: u8 = 3;
    pub const SETTINGS: u8 = 4;
    pub const PUSH_PROMISE: u8 = 5;
    pub const PING: u8 = 6;
    pub const GOAWAY: u8 = 7;
    pub const WINDOW_UPDATE: u8 = 8;
    pub const CONTINUATION: u8 = 9;
}

/// Flags of frames.
pub mod flag {
    pub const ACK: u8 = 1;
    pub const END_STREAM: u8 = 1;
    pub const END_HEADERS: u8 = 4;
    pub const PADDED: u8 = 8;
    pub const PRIORITY: u8 = 32;
}

/// Settings (RFC 9113, section 6.5.2).
pub mod setting {
    pub const HEADER_TABLE_SIZE: u16 = 1;
    pub const ENABLE_PUSH: u16 = 2;
    pub const INITIAL_WINDOW_SIZE: u16 = 4;
    pub const MAX_FRAME_SIZE: u16 = 5;
}

/// A frame's header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Head {
    /// Of the payload.
    pub length: u32,
    pub kind: u8,
    pub flags: u8,
    /// Without the reserved bit.
    pub stream: u32,
}

impl Head {
    pub fn read(bytes: &[u8; HEAD_BYTES]) -> Head {
        let [a, b, c, kind, flags, stream @ ..] = *bytes;
        let stream = u32::from_be_bytes(stream) & (u32::MAX >> 1);
        Head { length: u32::from_be_bytes([0, a, b, c]), kind, flags, stream }
    }

    pub fn has(&self, flag: u8) -> bool {
        self.flags & flag != 0
    }

    /// Whether it carries a piece of a header block.
    pub fn is_block(&self) -> bool {
        matches!(self.kind, kind::HEADERS | kind::PUSH_PROMISE | kind::CONTINUATION)
    }

    fn is_padded(&self) -> bool {
        let may = matches!(self.kind, kind::DATA | kind::HEADERS | kind::PUSH_PROMISE);
        may && self.has(flag::PADDED)
    }

    /// Bytes of the payload that have a meaning of their own, before the rest.
    fn fixed(&self) -> u32 {
        match self.kind {
            kind::HEADERS if self.has(flag::PRIORITY) => 5,
            kind::PRIORITY => 5,
            kind::RST_STREAM | kind::PUSH_PROMISE | kind::WINDOW_UPDATE => 4,
            kind::PING | kind::GOAWAY => 8,
            // One setting; more follow.
            kind::SETTINGS if self.length > 0 => 6,
            _ => 0,
        }
    }

    /// What the header alone shows to be wrong.
    fn check(&self, bytes_max: u32) -> Result<(), Fault> {
        let on_stream = match self.kind {
            kind::SETTINGS | kind::PING | kind::GOAWAY => Some(false),
            kind::DATA..=kind::PUSH_PROMISE | kind::CONTINUATION => Some(true),
            _ => None,
        };
        let length = self.length;
        let fits = match self.kind {
            kind::RST_STREAM | kind::WINDOW_UPDATE => length == 4,
            kind::SETTINGS => length.is_multiple_of(6) && (length == 0 || !self.has(flag::ACK)),
            kind::PING => length == 8,
            kind::GOAWAY => length >= 8,
            kind::PRIORITY => true,
            _ => length >= self.fixed() + u32::from(self.is_padded()),
        };
        if length > bytes_max || !fits {
            return Err(Fault::Connection(ErrorCode::FRAME_SIZE_ERROR));
        }
        if on_stream.is_some_and(|on| on != (self.stream != 0)) {
            return Err(Fault::Connection(ErrorCode::PROTOCOL_ERROR));
        }
        if self.kind == kind::PRIORITY && length != 5 {
            return Err(Fault::Stream(ErrorCode::FRAME_SIZE_ERROR));
        }
        Ok(())
    }

    /// Whether a connection that is joined in its midst may go on with this frame.
    pub fn is_plausible(&self, first: &[u8; HEAD_BYTES]) -> bool {
        let flags = match self.kind {
            kind::DATA => flag::END_STREAM | flag::PADDED,
            kind::HEADERS => flag::END_STREAM | flag::END_HEADERS | flag::PADDED | flag::PRIORITY,
            kind::SETTINGS | kind::PING => flag::ACK,
            kind::PUSH_PROMISE => flag::END_HEADERS | flag::PADDED,
            kind::PRIORITY | kind::RST_STREAM | kind::GOAWAY | kind::WINDOW_UPDATE => 0,
            _ => return false,
        };
        let reserved = first[5] & 0x80 != 0;
        !reserved && self.flags & !flags == 0 && self.check(FRAME_BYTES_MAX).is_ok()
    }
}

/// Whom an error ends (RFC 9113, section 5.4).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    Connection(ErrorCode),
    /// The connection goes on.
    Stream(ErrorCode),
}

/// A part of a frame, in the order they come: the head, what is fixed, the rest in any number of
/// pieces, the end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part<'a> {
    Head(Head),
    Priority {
        exclusive: bool,
        depends_on: u32,
        weight: u16,
    },
    Promised {
        stream: u32,
    },
    Setting {
        id: u16,
        value: u32,
    },
    Reset {
        code: u32,
    },
    Ping([u8; 8]),
    GoAway {
        last_stream: u32,
        code: u32,
    },
    WindowUpdate {
        increment: u32,
    },
    /// Of a header block, of data, of a GOAWAY's debug data or of an unknown frame.
    Payload(&'a [u8]),
    /// Wrong, but for its stream alone. The frame goes on.
    StreamFault(ErrorCode),
    End(Head),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    Head,
    PadLength,
    Fixed,
    Rest,
    Padding,
    /// A frame whose payload makes no sense.
    Skip,
}

/// Takes a stream apart into frames.
#[derive(Clone, Debug)]
pub struct Frames {
    step: Step,
    head: Head,
    /// Bytes of the payload yet to come, padding left out.
    left: u32,
    padding: u32,
    /// A header or fixed bytes that come in pieces.
    fixed: [u8; FIXED_BYTES_MAX],
    have: u8,
    /// The first header must be plausible.
    doubted: bool,
}

impl Frames {
    /// `doubted`: the stream may be none of frames.
    pub fn new(doubted: bool) -> Frames {
        Frames {
            step: Step::Head,
            head: Head { length: 0, kind: 0, flags: 0, stream: 0 },
            left: 0,
            padding: 0,
            fixed: [0; FIXED_BYTES_MAX],
            have: 0,
            doubted,
        }
    }

    /// Reads on until there is something to tell. `None`: the input is used up.
    ///
    /// # Errors
    /// What ends the connection. [`ErrorCode::NO_ERROR`] where the first frame is not plausible.
    pub fn next<'a>(
        &mut self,
        input: &mut &'a [u8],
        bytes_max: u32,
    ) -> Result<Option<Part<'a>>, ErrorCode> {
        loop {
            match self.step {
                Step::Head => {
                    let Some(bytes) = self.take::<HEAD_BYTES>(input) else { return Ok(None) };
                    return self.begin(bytes, bytes_max).map(Some);
                }
                Step::PadLength => {
                    let Some([padding]) = self.take::<1>(input) else { return Ok(None) };
                    self.left -= 1;
                    self.padding = u32::from(padding);
                    // The fixed bytes and the padding must fit (sections 6.1, 6.2 and 6.6).
                    if self.head.fixed() + self.padding > self.left {
                        return Err(ErrorCode::PROTOCOL_ERROR);
                    }
                    self.left -= self.padding;
                    self.step = Step::Fixed;
                }
                Step::Fixed if self.head.fixed() == 0 => self.step = Step::Rest,
                Step::Fixed => return self.fixed_part(input),
                Step::Rest if self.left > 0 => {
                    let piece = take_up_to(&mut self.left, input);
                    return Ok((!piece.is_empty()).then_some(Part::Payload(piece)));
                }
                Step::Rest => self.step = Step::Padding,
                Step::Padding if self.padding > 0 => {
                    if take_up_to(&mut self.padding, input).is_empty() {
                        return Ok(None);
                    }
                }
                Step::Skip if self.left > 0 => {
                    if take_up_to(&mut self.left, input).is_empty() {
                        return Ok(None);
                    }
                }
                Step::Padding | Step::Skip => {
                    self.step = Step::Head;
                    return Ok(Some(Part::End(self.head)));
                }
            }
        }
    }

    /// Header of the frame that is being read.
    pub fn head(&self) -> Head {
        self.head
    }

    /// Between two frames.
    pub fn is_idle(&self) -> bool {
        self.step == Step::Head && self.have == 0
    }

    fn begin(&mut self, bytes: [u8; HEAD_BYTES], max: u32) -> Result<Part<'static>, ErrorCode> {
        let head = Head::read(&bytes);
        if std::mem::take(&mut self.doubted) && !head.is_plausible(&bytes) {
            return Err(ErrorCode::NO_ERROR);
        }
        (self.head, self.left, self.padding) = (head, head.length, 0);
        match head.check(max) {
            Ok(()) => {
                self.step = if head.is_padded() { Step::PadLength } else { Step::Fixed };
                Ok(Part::Head(head))
            }
            Err(Fault::Connection(code)) => Err(code),
            Err(Fault::Stream(code)) => {
                self.step = Step::Skip;
                Ok(Part::StreamFault(code))
            }
        }
    }

    fn fixed_part<'a>(&mut self, input: &mut &[u8]) -> Result<Option<Part<'a>>, ErrorCode> {
        const STREAM: u32 = u32::MAX >> 1;
        let word = u32::from_be_bytes;
        self.step = Step::Rest;
        let part = match self.head.kind {
            kind::HEADERS | kind::PRIORITY => self.take::<5>(input).map(|[a, b, c, d, weight]| {
                let exclusive = a & 0x80 != 0;
                let depends_on = word([a, b, c, d]) & STREAM;
                Ok(Part::Priority { exclusive, depends_on, weight: u16::from(weight) + 1 })
            }),
            kind::RST_STREAM => self.take::<4>(input).map(|b| Ok(Part::Reset { code: word(b) })),
            kind::PUSH_PROMISE => self.take::<4>(input).map(|bytes| {
                let stream = word(bytes) & STREAM;
                // Streams that servers open have even numbers (section 5.1.1).
                let valid = stream != 0 && stream.is_multiple_of(2);
                if valid { Ok(Part::Promised { stream }) } else { Err(ErrorCode::PROTOCOL_ERROR) }
            }),
            kind::SETTINGS => self
                .take::<6>(input)
                .map(|[a, b, value @ ..]| check_setting(u16::from_be_bytes([a, b]), word(value))),
            kind::PING => self.take::<8>(input).map(|bytes| Ok(Part::Ping(bytes))),
            kind::GOAWAY => self.take::<8>(input).map(|[a, b, c, d, code @ ..]| {
                let last_stream = word([a, b, c, d]) & STREAM;
                Ok(Part::GoAway { last_stream, code: word(code) })
            }),
            _ => self.take::<4>(input).map(|bytes| {
                let increment = word(bytes) & STREAM;
                match (increment, self.head.stream) {
                    // Section 6.9.
                    (0, 0) => Err(ErrorCode::PROTOCOL_ERROR),
                    (0, _) => Ok(Part::StreamFault(ErrorCode::PROTOCOL_ERROR)),
                    _ => Ok(Part::WindowUpdate { increment }),
                }
            }),
        };
        let Some(part) = part.transpose()? else {
            self.step = Step::Fixed;
            return Ok(None);
        };
        self.left -= self.head.fixed();
        if self.head.kind == kind::SETTINGS && self.left > 0 {
            self.step = Step::Fixed;
        }
        Ok(Some(part))
    }

    /// Takes `N` bytes, together with those that came before.
    fn take<const N: usize>(&mut self, input: &mut &[u8]) -> Option<[u8; N]> {
        const { assert!(N <= FIXED_BYTES_MAX) };
        if self.have == 0
            && let Some((whole, rest)) = input.split_first_chunk::<N>()
        {
            *input = rest;
            return Some(*whole);
        }
        while usize::from(self.have) < N {
            let (&byte, rest) = input.split_first()?;
            *input = rest;
            self.fixed[usize::from(self.have)] = byte;
            self.have += 1;
        }
        self.have = 0;
        self.fixed.first_chunk::<N>().copied()
    }
}

fn take_up_to<'a>(left: &mut u32, input: &mut &'a [u8]) -> &'a [u8] {
    let n = input.len().min(*left as usize);
    let (piece, rest) = input.split_at(n);
    *input = rest;
    *left -= n as u32;
    piece
}

fn check_setting(id: u16, value: u32) -> Result<Part<'static>, ErrorCode> {
    match (id, value) {
        (setting::ENABLE_PUSH, 2..) => Err(ErrorCode::PROTOCOL_ERROR),
        (setting::INITIAL_WINDOW_SIZE, 0x8000_0000..) => Err(ErrorCode::FLOW_CONTROL_ERROR),
        (setting::MAX_FRAME_SIZE, _) if !(FRAME_BYTES_MAX..=FRAME_BYTES_LIMIT).contains(&value) => {
            Err(ErrorCode::PROTOCOL_ERROR)
        }
        _ => Ok(Part::Setting { id, value }),
    }
}
