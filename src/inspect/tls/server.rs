//! TLS ServerHello: the version chosen, and the protocol where it is in the clear (RFC 8446,
//! section 4.1.3; RFC 5246, section 7.4.1.3; RFC 7301, section 3.1).

use super::{HANDSHAKE, Partial, RECORD_BYTES_MAX, take};
use crate::inspect::Peek;

/// Longest protocol name that is kept.
pub const PROTOCOL_BYTES_MAX: usize = 32;

const SERVER_HELLO: u8 = 2;
const RANDOM_BYTES: u32 = 32;
/// Far beyond any real one, a post-quantum key share included.
const MESSAGE_BYTES_MAX: u32 = 1 << 14;
const ALPN: u16 = 16;
const SUPPORTED_VERSIONS: u16 = 43;
/// The lengths of the list and of its only entry.
const ALPN_HEAD_BYTES: u32 = 3;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    Head,
    Version,
    SessionIdLength,
    Cipher,
    ExtensionsLength,
    Extension,
    ChosenVersion,
    ProtocolHead,
    Protocol,
    Done,
}

/// Reads the server's direction of a TCP stream up to the end of its ServerHello, cut in any way.
#[derive(Clone, Debug)]
pub struct ServerHello {
    step: Step,
    failed: bool,
    record_head: Partial,
    record_left: u16,
    field: Partial,
    position: u32,
    skip_to: u32,
    message_end: u32,
    extension_end: u32,
    version: u16,
    cipher: u16,
    protocol_len: u8,
    protocol: [u8; PROTOCOL_BYTES_MAX],
}

impl Default for ServerHello {
    fn default() -> ServerHello {
        ServerHello {
            step: Step::Head,
            failed: false,
            record_head: Partial::default(),
            record_left: 0,
            field: Partial::default(),
            position: 0,
            skip_to: 0,
            message_end: 0,
            extension_end: 0,
            version: 0,
            cipher: 0,
            protocol_len: 0,
            protocol: [0; PROTOCOL_BYTES_MAX],
        }
    }
}

impl ServerHello {
    /// Takes the next bytes of the stream, of any number. `Found` once the message has been read.
    pub fn feed(&mut self, bytes: &[u8]) -> Peek<()> {
        if !self.failed && self.step != Step::Done {
            self.failed = self.records(bytes).is_none();
        }
        match (self.failed, self.step) {
            (true, _) => Peek::NotThis,
            (false, Step::Done) => Peek::Found(()),
            (false, _) => Peek::NeedMore,
        }
    }

    /// The version chosen: 0x0304 is TLS 1.3. `None` before the message is complete.
    pub fn version(&self) -> Option<u16> {
        (self.step == Step::Done).then_some(self.version)
    }

    /// The cipher suite chosen.
    pub fn cipher(&self) -> Option<u16> {
        (self.step == Step::Done).then_some(self.cipher)
    }

    /// The protocol chosen. TLS 1.3 encrypts it; one longer than [`PROTOCOL_BYTES_MAX`] is left
    /// out.
    pub fn alpn(&self) -> Option<&[u8]> {
        let seen = self.step == Step::Done && self.protocol_len > 0;
        seen.then(|| &self.protocol[..usize::from(self.protocol_len)])
    }

    /// `None`: no ServerHello.
    fn records(&mut self, mut bytes: &[u8]) -> Option<()> {
        while !bytes.is_empty() && self.step != Step::Done {
            if self.record_left == 0 {
                let Some(head) = take::<5>(&mut self.record_head, &mut bytes) else {
                    return (self.record_head.bytes[0] == HANDSHAKE).then_some(());
                };
                self.record_left = u16::from_be_bytes([head[3], head[4]]);
                let long = usize::from(self.record_left) > RECORD_BYTES_MAX;
                if head[0] != HANDSHAKE || head[1] != 3 || long {
                    return None;
                }
                continue;
            }
            let n = bytes.len().min(usize::from(self.record_left));
            let (payload, rest) = bytes.split_at(n);
            self.record_left -= n as u16;
            bytes = rest;
            self.message(payload)?;
        }
        Some(())
    }

    fn message(&mut self, mut input: &[u8]) -> Option<()> {
        loop {
            let n = input.len().min(self.skip_to.saturating_sub(self.position) as usize);
            self.position += n as u32;
            input = &input[n..];
            if self.position < self.skip_to {
                return Some(());
            }
            let hello_over = matches!(self.step, Step::ExtensionsLength | Step::Extension);
            if hello_over && self.position == self.message_end {
                self.step = Step::Done;
            }
            let went_on = match self.step {
                Step::Done => return Some(()),
                Step::ChosenVersion | Step::ProtocolHead | Step::Protocol => {
                    self.extension(&mut input)?
                }
                _ => self.fields(&mut input)?,
            };
            if !went_on {
                return Some(());
            }
        }
    }

    /// `Some(false)`: the input is used up.
    fn fields(&mut self, input: &mut &[u8]) -> Option<bool> {
        match self.step {
            Step::Head => {
                let Some([kind, a, b, c]) = self.read_head(input) else { return Some(false) };
                self.message_end = 4 + u32::from_be_bytes([0, a, b, c]);
                if kind != SERVER_HELLO || self.message_end > MESSAGE_BYTES_MAX {
                    return None;
                }
                self.step = Step::Version;
            }
            Step::Version => {
                let Some(version) = self.read(input)? else { return Some(false) };
                self.version = u16::from_be_bytes(version);
                self.skip(RANDOM_BYTES)?;
                self.step = Step::SessionIdLength;
            }
            Step::SessionIdLength => {
                let Some([len]) = self.read(input)? else { return Some(false) };
                self.skip(u32::from(len))?;
                self.step = Step::Cipher;
            }
            Step::Cipher => {
                let Some([a, b, _compression]) = self.read(input)? else { return Some(false) };
                self.cipher = u16::from_be_bytes([a, b]);
                self.step = Step::ExtensionsLength;
            }
            Step::ExtensionsLength => {
                let Some(len) = self.read(input)? else { return Some(false) };
                if self.position + u32::from(u16::from_be_bytes(len)) != self.message_end {
                    return None;
                }
                self.step = Step::Extension;
            }
            _ => {
                let Some([a, b, c, d]) = self.read(input)? else { return Some(false) };
                let len = u32::from(u16::from_be_bytes([c, d]));
                self.extension_end = self.position + len;
                match u16::from_be_bytes([a, b]) {
                    SUPPORTED_VERSIONS if len == 2 => self.step = Step::ChosenVersion,
                    ALPN if len > ALPN_HEAD_BYTES => self.step = Step::ProtocolHead,
                    _ => self.skip(len)?,
                }
            }
        }
        Some(true)
    }

    fn extension(&mut self, input: &mut &[u8]) -> Option<bool> {
        match self.step {
            Step::ChosenVersion => {
                let Some(version) = self.read(input)? else { return Some(false) };
                self.version = u16::from_be_bytes(version);
                self.step = Step::Extension;
            }
            Step::ProtocolHead => {
                let Some([a, b, len]) = self.read(input)? else { return Some(false) };
                let list = u32::from(u16::from_be_bytes([a, b]));
                let fits = list == u32::from(len) + 1
                    && self.position + u32::from(len) == self.extension_end;
                if !fits {
                    return None;
                }
                self.step = Step::Protocol;
                if usize::from(len) > PROTOCOL_BYTES_MAX {
                    self.skip(u32::from(len))?;
                    self.step = Step::Extension;
                }
            }
            _ => {
                if self.position == self.extension_end {
                    self.step = Step::Extension;
                    return Some(true);
                }
                let Some([byte]) = self.read(input)? else { return Some(false) };
                *self.protocol.get_mut(usize::from(self.protocol_len))? = byte;
                self.protocol_len += 1;
            }
        }
        Some(true)
    }

    fn read_head(&mut self, input: &mut &[u8]) -> Option<[u8; 4]> {
        let field = take::<4>(&mut self.field, input);
        self.position += field.map_or(0, |_| 4);
        field
    }

    /// `None`: beyond the message's end; `Some(None)`: not all there yet.
    fn read<const N: usize>(&mut self, input: &mut &[u8]) -> Option<Option<[u8; N]>> {
        if self.position + N as u32 > self.message_end {
            return None;
        }
        let field = take::<N>(&mut self.field, input);
        self.position += field.map_or(0, |_| N as u32);
        Some(field)
    }

    fn skip(&mut self, len: u32) -> Option<()> {
        self.skip_to = self.position + len;
        (self.skip_to <= self.message_end).then_some(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hello(extensions: &[u8]) -> Vec<u8> {
        let mut body = vec![3, 3];
        body.extend([7; 32]);
        body.extend([2, 1, 1, 0x13, 1, 0]);
        if !extensions.is_empty() {
            body.extend((extensions.len() as u16).to_be_bytes());
            body.extend(extensions);
        }
        let message = [&[2, 0, 0, body.len() as u8], &body[..]].concat();
        // Two records, the first of three bytes.
        let (a, b) = message.split_at(3);
        let record = |part: &[u8]| [&[22, 3, 3, 0, part.len() as u8], part].concat();
        [record(a), record(b)].concat()
    }

    fn read(bytes: &[u8], cut: usize) -> ServerHello {
        let mut parser = ServerHello::default();
        parser.feed(&bytes[..cut]);
        assert_eq!(parser.feed(&bytes[cut..]), Peek::Found(()), "cut at {cut}");
        parser
    }

    #[test]
    fn version_and_protocol_over_any_cut() {
        let wire = hello(&[0, 16, 0, 5, 0, 3, 2, b'h', b'2', 0, 51, 0, 1, 9, 0, 43, 0, 2, 3, 4]);
        for cut in 0..wire.len() {
            let parser = read(&wire, cut);
            assert_eq!((parser.version(), parser.cipher()), (Some(0x0304), Some(0x1301)));
            assert_eq!(parser.alpn(), Some(&b"h2"[..]));
        }
        let parser = read(&hello(&[]), 9);
        assert_eq!((parser.version(), parser.alpn()), (Some(0x0303), None));
    }

    #[test]
    fn other_streams_are_refused() {
        let mut wrong = vec![b"HTTP/1.1 200 OK".to_vec(), vec![22, 3, 3, 0, 4, 1, 0, 0, 0]];
        let good = hello(&[0, 16, 0, 5, 0, 3, 2, b'h', b'2']);
        for (at, value) in [(good.len() - 3, 3), (good.len() - 7, 9), (7, 9)] {
            let mut bad = good.clone();
            bad[at] = value;
            wrong.push(bad);
        }
        for bytes in wrong {
            assert_eq!(ServerHello::default().feed(&bytes), Peek::NotThis, "{bytes:x?}");
        }
    }
}
