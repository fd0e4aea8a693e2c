//! TLS ClientHello: server name, protocols, versions; over any number of segments and records.
//!
//! RFC 8446 (TLS 1.3), 5246 (1.2), 6066 (server name), 7301 (ALPN), 8701 (GREASE), 9849 (ECH). The
//! parser keeps its place and the wanted fields, never the hello itself, so a hello of 60 KB takes
//! the same few hundred bytes as a small one.

use super::{AlpnList, Peek};

pub mod ja4;
mod message;
pub mod server;
mod sslv2;

pub use ja4::{Carrier, JA4_BYTES, Ja4};
pub use server::ServerHello;

use ja4::Offered;

/// Longest server name (RFC 1035, section 2.3.4); a longer one is malformed, as it is to servers.
pub const SNI_BYTES_MAX: usize = 255;
/// Bytes kept of the ALPN list, length bytes included; later entries are left out.
pub const ALPN_BYTES_MAX: usize = 128;
/// Offered versions that are kept, GREASE left out.
pub const VERSIONS_MAX: usize = 8;

/// Post-quantum groups of key shares that are kept.
pub const GROUPS_MAX: usize = 4;

/// Content type of handshake records (RFC 8446, section 5.1).
const HANDSHAKE: u8 = 22;
/// Plaintext bytes of a record at most (RFC 8446, section 5.1).
const RECORD_BYTES_MAX: usize = 1 << 14;
/// The end while the message's length is not known yet.
const NO_END: u32 = u32::MAX;

/// Why a stream gave no ClientHello.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Failure {
    /// The first bytes are not those of a TLS handshake record with a ClientHello.
    NotTls,
    /// A ClientHello that contradicts itself or that servers refuse.
    Malformed,
    /// Not complete within the bytes allowed.
    TooLong,
}

/// What the hello says of an encrypted inner one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Encrypted {
    #[default]
    No,
    /// encrypted_client_hello, real or GREASE: the server name seen is the outer one.
    Ech,
    /// encrypted_server_name.
    Esni,
}

/// What the next bytes of the message are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    MessageType,
    MessageLength,
    LegacyVersion,
    SessionIdLength,
    CiphersLength,
    Ciphers,
    CompressionLength,
    ExtensionsLength,
    Extension,
    NamesLength,
    NameHead,
    Name,
    ProtocolsLength,
    ProtocolLength,
    Protocol,
    VersionsLength,
    Versions,
    KeySharesLength,
    KeyShare,
    SignaturesLength,
    Signatures,
}

const PARTIAL_BYTES_MAX: usize = 11;

/// A header that may come in pieces.
#[derive(Clone, Copy, Debug, Default)]
struct Partial {
    bytes: [u8; PARTIAL_BYTES_MAX],
    len: u8,
}

/// Reads one direction of a stream up to the end of its ClientHello.
#[derive(Clone, Debug)]
pub struct HelloParser {
    outcome: Option<Result<(), Failure>>,
    bytes_max: u32,
    bytes_seen: u32,
    record_head: Partial,
    record_left: u16,
    field: Partial,
    step: Step,
    // Positions count bytes of the handshake message.
    position: u32,
    /// Nothing is wanted before this position.
    skip_to: u32,
    message_end: u32,
    extension_end: u32,
    /// End of the cipher suites, or of the list inside the extension.
    list_end: u32,
    item_end: u32,
    seen: u8,
    encrypted: Encrypted,
    resumed: bool,
    early_data: bool,
    grease: bool,
    /// A hello of SSL 2, told by its first byte.
    ssl2: bool,
    alpn_truncated: bool,
    /// Whether the protocol being read fits the buffer.
    alpn_kept: bool,
    legacy_version: u16,
    version_count: u8,
    versions: [u16; VERSIONS_MAX],
    name_len: u8,
    alpn_len: u8,
    group_count: u8,
    groups: [u16; GROUPS_MAX],
    name: [u8; SNI_BYTES_MAX],
    alpn: [u8; ALPN_BYTES_MAX],
    offered: Offered,
}

// One per flow under inspection.
const _: () = assert!(size_of::<HelloParser>() <= 1_088);
const _: () = assert!(SNI_BYTES_MAX <= u8::MAX as usize);
const _: () = assert!(ALPN_BYTES_MAX <= u8::MAX as usize);

impl HelloParser {
    /// Takes at most `bytes_max` bytes of the stream, record headers included.
    pub fn new(bytes_max: u32) -> HelloParser {
        HelloParser {
            outcome: None,
            bytes_max,
            bytes_seen: 0,
            record_head: Partial::default(),
            record_left: 0,
            field: Partial::default(),
            step: Step::MessageType,
            position: 0,
            skip_to: 0,
            message_end: NO_END,
            extension_end: 0,
            list_end: 0,
            item_end: 0,
            seen: 0,
            encrypted: Encrypted::No,
            resumed: false,
            early_data: false,
            grease: false,
            ssl2: false,
            alpn_truncated: false,
            alpn_kept: false,
            legacy_version: 0,
            version_count: 0,
            versions: [0; VERSIONS_MAX],
            name_len: 0,
            alpn_len: 0,
            group_count: 0,
            groups: [0; GROUPS_MAX],
            name: [0; SNI_BYTES_MAX],
            alpn: [0; ALPN_BYTES_MAX],
            offered: Offered::NOTHING,
        }
    }

    /// Forgets what was read: another stream begins, under the same limit.
    pub fn restart(&mut self) {
        *self = HelloParser::new(self.bytes_max);
    }

    /// Takes the next bytes of the stream, of any number. `Found` once the whole hello has been
    /// read; what follows it is not looked at. The answer does not depend on how the stream is cut.
    pub fn feed(&mut self, bytes: &[u8]) -> Peek<()> {
        self.feed_to(bytes, HelloParser::stream)
    }

    /// The same for a stream of handshake messages without a record layer, which is what QUIC's
    /// CRYPTO frames carry (RFC 9001, section 4.1.3). The limit is that of a hello in one record.
    /// A parser takes all of its bytes by the same one of the two.
    pub fn feed_message(&mut self, bytes: &[u8]) -> Peek<()> {
        self.feed_to(bytes, HelloParser::message)
    }

    fn feed_to(
        &mut self,
        bytes: &[u8],
        read: impl FnOnce(&mut HelloParser, &[u8]) -> Result<bool, Failure>,
    ) -> Peek<()> {
        if self.outcome.is_none() {
            let allowed = (self.bytes_max - self.bytes_seen) as usize;
            let taken = &bytes[..bytes.len().min(allowed)];
            self.bytes_seen += taken.len() as u32;
            self.outcome = match read(self, taken) {
                Ok(true) => Some(Ok(())),
                Ok(false) if self.bytes_seen < self.bytes_max => None,
                Ok(false) => Some(Err(Failure::TooLong)),
                Err(failure) => Some(Err(failure)),
            };
        }
        match self.outcome {
            None => Peek::NeedMore,
            Some(Ok(())) => Peek::Found(()),
            Some(Err(_)) => Peek::NotThis,
        }
    }

    /// Why [`HelloParser::feed`] answered [`Peek::NotThis`].
    pub fn failure(&self) -> Option<Failure> {
        self.outcome.and_then(Result::err)
    }

    /// Whether the whole hello was read, and found sound.
    pub fn is_complete(&self) -> bool {
        self.outcome == Some(Ok(()))
    }

    /// Whether what was read begins as a ClientHello does, whatever became of it.
    pub fn has_begun(&self) -> bool {
        self.step != Step::MessageType || self.ssl2 && self.message_end != NO_END
    }

    /// The server name as sent; `None` where the hello has none or is not complete.
    pub fn sni(&self) -> Option<&[u8]> {
        let found = self.is_complete() && self.name_len > 0;
        found.then(|| &self.name[..usize::from(self.name_len)])
    }

    /// The protocols offered, in order; empty before the hello is complete.
    pub fn alpn(&self) -> AlpnList<'_> {
        let len = if self.is_complete() { usize::from(self.alpn_len) } else { 0 };
        AlpnList::from_wire(&self.alpn[..len])
    }

    /// More protocols were offered than [`ALPN_BYTES_MAX`] holds.
    pub fn alpn_truncated(&self) -> bool {
        self.alpn_truncated
    }

    /// The first [`VERSIONS_MAX`] of supported_versions, in order, GREASE left out.
    pub fn versions(&self) -> &[u16] {
        &self.versions[..usize::from(self.version_count)]
    }

    pub fn legacy_version(&self) -> u16 {
        self.legacy_version
    }

    pub fn encrypted(&self) -> Encrypted {
        self.encrypted
    }

    /// A key share of a post-quantum or hybrid group is among those sent.
    pub fn post_quantum(&self) -> bool {
        self.group_count > 0
    }

    /// The first [`GROUPS_MAX`] post-quantum or hybrid groups among the key shares sent.
    pub fn post_quantum_groups(&self) -> &[u16] {
        &self.groups[..usize::from(self.group_count)]
    }

    /// The client asks to go on with an earlier session: by a pre-shared key (RFC 8446, section
    /// 4.2.11) or a ticket (RFC 5077).
    pub fn resumed(&self) -> bool {
        self.resumed
    }

    /// Data follows before the server has answered: 0-RTT (RFC 8446, section 4.2.10).
    pub fn early_data(&self) -> bool {
        self.early_data
    }

    /// The fingerprint; `None` before the hello is complete, for a hello of SSL 2, and for one that
    /// offers more than can be kept.
    pub fn ja4(&self, carrier: Carrier) -> Option<Ja4> {
        let alpn_cut = self.alpn_truncated && self.alpn_len == 0;
        if !self.is_complete() || self.ssl2 || alpn_cut {
            return None;
        }
        let version = self.versions().iter().max().copied().unwrap_or(self.legacy_version);
        self.offered.ja4(carrier, version, self.alpn().iter().next())
    }

    /// GREASE (RFC 8701) among cipher suites, extensions, versions or key shares.
    pub fn grease(&self) -> bool {
        self.grease
    }

    /// Tells the two kinds of hello apart by the stream's first byte.
    fn stream(&mut self, bytes: &[u8]) -> Result<bool, Failure> {
        if self.bytes_seen == bytes.len() as u32 {
            self.ssl2 = bytes.first().is_some_and(|&first| sslv2::begins(first));
        }
        if self.ssl2 { self.sslv2(bytes) } else { self.records(bytes) }
    }

    /// The record layer: hands the payload of handshake records on. `true` when the hello is
    /// complete.
    fn records(&mut self, mut bytes: &[u8]) -> Result<bool, Failure> {
        while !bytes.is_empty() {
            if self.record_left == 0 {
                let Some(head) = take::<5>(&mut self.record_head, &mut bytes) else {
                    // Refused at the first byte that rules it out.
                    let p = self.record_head;
                    self.check_record(&p.bytes[..usize::from(p.len)])?;
                    return Ok(false);
                };
                self.check_record(&head)?;
                // An empty record carries nothing and some servers put up with it.
                self.record_left = u16::from_be_bytes([head[3], head[4]]);
                continue;
            }
            let n = bytes.len().min(usize::from(self.record_left));
            let (payload, rest) = bytes.split_at(n);
            self.record_left -= n as u16;
            bytes = rest;
            if self.message(payload)? {
                return Ok(true);
            }
        }
        Ok(false)
    }

    fn check_record(&self, head: &[u8]) -> Result<(), Failure> {
        let bad = head.first().is_some_and(|&t| t != HANDSHAKE)
            // The minor version is to be ignored (RFC 8446, section 5.1).
            || head.get(1).is_some_and(|&major| major != 3)
            || head.len() == 5
                && usize::from(u16::from_be_bytes([head[3], head[4]])) > RECORD_BYTES_MAX;
        match (bad, self.step) {
            (false, _) => Ok(()),
            (true, Step::MessageType) => Err(Failure::NotTls),
            (true, _) => Err(Failure::Malformed),
        }
    }
}

/// Both bytes equal, and of the form 0x?a (RFC 8701, section 2).
fn is_grease(value: u16) -> bool {
    value & 0x0f0f == 0x0a0a && value >> 8 == value & 0xff
}

/// Takes `N` bytes off the input, together with those that came before.
#[inline(always)]
fn take<const N: usize>(partial: &mut Partial, input: &mut &[u8]) -> Option<[u8; N]> {
    if partial.len == 0
        && let Some((field, rest)) = input.split_first_chunk::<N>()
    {
        *input = rest;
        return Some(*field);
    }
    take_pieces(partial, input)
}

#[cold]
fn take_pieces<const N: usize>(partial: &mut Partial, input: &mut &[u8]) -> Option<[u8; N]> {
    const { assert!(N <= PARTIAL_BYTES_MAX) };
    while usize::from(partial.len) < N {
        let (&byte, rest) = input.split_first()?;
        *input = rest;
        partial.bytes[usize::from(partial.len)] = byte;
        partial.len += 1;
    }
    partial.len = 0;
    partial.bytes.first_chunk::<N>().copied()
}

#[cfg(test)]
pub(crate) mod tests;
