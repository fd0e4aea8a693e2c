//! The handshake message: a step for each of its fields.

use super::{
    ALPN_BYTES_MAX, Encrypted, Failure, GROUPS_MAX, HelloParser, SNI_BYTES_MAX, Step, VERSIONS_MAX,
    is_grease, take,
};

/// Handshake type (RFC 8446, section 4).
const CLIENT_HELLO: u8 = 1;
/// Before the message in the stream, at least.
const RECORD_HEADER_BYTES: u32 = 5;
const MESSAGE_HEADER_BYTES: u32 = 4;
const RANDOM_BYTES: u32 = 32;
const SESSION_ID_BYTES_MAX: u8 = 32;

/// Extension types (IANA registry "TLS ExtensionType Values").
mod extension {
    pub const SERVER_NAME: u16 = 0;
    pub const ALPN: u16 = 16;
    pub const SIGNATURE_ALGORITHMS: u16 = 13;
    pub const SESSION_TICKET: u16 = 35;
    pub const PRE_SHARED_KEY: u16 = 41;
    pub const EARLY_DATA: u16 = 42;
    pub const SUPPORTED_VERSIONS: u16 = 43;
    pub const KEY_SHARE: u16 = 51;
    /// encrypted_server_name, the draft before ECH.
    pub const ESNI: u16 = 0xffce;
    pub const ECH: u16 = 0xfe0d;
}

/// Bits of [`HelloParser::seen`]: extensions that may stand only once (RFC 8446, section 4.2).
const SEEN_SERVER_NAME: u8 = 1;
const SEEN_ALPN: u8 = 2;
const SEEN_VERSIONS: u8 = 4;
const SEEN_KEY_SHARE: u8 = 8;
/// A host_name within the server name list.
const SEEN_HOST_NAME: u8 = 16;
const SEEN_SIGNATURES: u8 = 32;

impl HelloParser {
    /// The next piece of the handshake message. `true` when it is complete.
    pub(super) fn message(&mut self, mut input: &[u8]) -> Result<bool, Failure> {
        loop {
            if self.position < self.skip_to {
                let n = input.len().min((self.skip_to - self.position) as usize);
                input = &input[n..];
                self.position += n as u32;
                if self.position < self.skip_to {
                    return Ok(false);
                }
            }
            let went_on = match self.step {
                Step::Extension if self.position == self.message_end => return Ok(true),
                Step::CompressionLength | Step::ExtensionsLength | Step::Extension => {
                    self.extension_steps(&mut input)?
                }
                Step::NamesLength | Step::NameHead | Step::Name => self.name_steps(&mut input)?,
                Step::ProtocolsLength | Step::ProtocolLength | Step::Protocol => {
                    self.protocol_steps(&mut input)?
                }
                Step::VersionsLength
                | Step::Versions
                | Step::KeySharesLength
                | Step::KeyShare
                | Step::SignaturesLength
                | Step::Signatures => self.list_steps(&mut input)?,
                _ => self.head_steps(&mut input)?,
            };
            if !went_on {
                return Ok(false);
            }
        }
    }

    /// From the message's type to its cipher suites. `false`: the input is used up.
    fn head_steps(&mut self, input: &mut &[u8]) -> Result<bool, Failure> {
        let end = self.message_end;
        match self.step {
            Step::MessageType => {
                let Some([kind]) = self.read(input, end)? else { return Ok(false) };
                if kind != CLIENT_HELLO {
                    return Err(Failure::NotTls);
                }
                self.step = Step::MessageLength;
            }
            Step::MessageLength => {
                let Some([a, b, c]) = self.read(input, end)? else { return Ok(false) };
                let length = u32::from_be_bytes([0, a, b, c]);
                self.message_end = MESSAGE_HEADER_BYTES + length;
                if RECORD_HEADER_BYTES + self.message_end > self.bytes_max {
                    return Err(Failure::TooLong);
                }
                self.step = Step::LegacyVersion;
            }
            Step::LegacyVersion => {
                let Some([major, minor]) = self.read(input, end)? else { return Ok(false) };
                if major != 3 {
                    return Err(Failure::Malformed);
                }
                self.legacy_version = u16::from_be_bytes([major, minor]);
                self.skip_to = inside(self.position + RANDOM_BYTES, end)?;
                self.step = Step::SessionIdLength;
            }
            Step::SessionIdLength => {
                let Some([len]) = self.read(input, end)? else { return Ok(false) };
                if len > SESSION_ID_BYTES_MAX {
                    return Err(Failure::Malformed);
                }
                self.skip_to = inside(self.position + u32::from(len), end)?;
                self.step = Step::CiphersLength;
            }
            Step::CiphersLength => {
                let Some(len) = self.read(input, end)?.map(u16::from_be_bytes) else {
                    return Ok(false);
                };
                if len < 2 || len % 2 != 0 {
                    return Err(Failure::Malformed);
                }
                self.list_end = inside(self.position + u32::from(len), end)?;
                self.step = Step::Ciphers;
            }
            _ => {
                // The list is even, so whole ones in the input end at its end at the latest.
                while self.position < self.list_end {
                    let Some(suite) = self.read(input, self.list_end)? else { return Ok(false) };
                    let suite = u16::from_be_bytes(suite);
                    self.grease |= is_grease(suite);
                    self.offered.cipher(suite);
                }
                self.step = Step::CompressionLength;
            }
        }
        Ok(true)
    }

    /// From the compression methods to the head of each extension.
    fn extension_steps(&mut self, input: &mut &[u8]) -> Result<bool, Failure> {
        let end = self.message_end;
        match self.step {
            Step::CompressionLength => {
                let Some([len]) = self.read(input, end)? else { return Ok(false) };
                if len == 0 {
                    return Err(Failure::Malformed);
                }
                self.skip_to = inside(self.position + u32::from(len), end)?;
                // Old hellos end here (RFC 5246, section 7.4.1.2).
                let over = self.skip_to == end;
                self.step = if over { Step::Extension } else { Step::ExtensionsLength };
            }
            Step::ExtensionsLength => {
                let Some(len) = self.read(input, end)?.map(u16::from_be_bytes) else {
                    return Ok(false);
                };
                if self.position + u32::from(len) != end {
                    return Err(Failure::Malformed);
                }
                self.step = Step::Extension;
            }
            _ => {
                let Some([a, b, c, d]) = self.read(input, end)? else { return Ok(false) };
                let length = u32::from(u16::from_be_bytes([c, d]));
                self.extension_end = inside(self.position + length, end)?;
                self.begin_extension(u16::from_be_bytes([a, b]))?;
            }
        }
        Ok(true)
    }

    fn begin_extension(&mut self, kind: u16) -> Result<(), Failure> {
        self.offered.extension(kind);
        let (once, step) = match kind {
            extension::SERVER_NAME => (SEEN_SERVER_NAME, Step::NamesLength),
            extension::ALPN => (SEEN_ALPN, Step::ProtocolsLength),
            extension::SUPPORTED_VERSIONS => (SEEN_VERSIONS, Step::VersionsLength),
            extension::KEY_SHARE => (SEEN_KEY_SHARE, Step::KeySharesLength),
            extension::SIGNATURE_ALGORITHMS => (SEEN_SIGNATURES, Step::SignaturesLength),
            _ => {
                match kind {
                    extension::ECH => self.encrypted = Encrypted::Ech,
                    extension::ESNI if self.encrypted == Encrypted::No => {
                        self.encrypted = Encrypted::Esni;
                    }
                    extension::PRE_SHARED_KEY => self.resumed = true,
                    // Empty, it asks for a ticket.
                    extension::SESSION_TICKET => self.resumed |= self.extension_end > self.position,
                    extension::EARLY_DATA => self.early_data = true,
                    _ => self.grease |= is_grease(kind),
                }
                self.skip_to = self.extension_end;
                return Ok(());
            }
        };
        // A second one could say something else than what the server reads.
        if self.seen & once != 0 {
            return Err(Failure::Malformed);
        }
        self.seen |= once;
        self.step = step;
        Ok(())
    }

    /// server_name (RFC 6066, section 3): a list of names of which only host_name is defined.
    fn name_steps(&mut self, input: &mut &[u8]) -> Result<bool, Failure> {
        match self.step {
            Step::NamesLength => return self.list_length(input, Step::NameHead),
            Step::NameHead => {
                if self.position == self.list_end {
                    self.step = Step::Extension;
                    return Ok(true);
                }
                let Some([kind, a, b]) = self.read(input, self.list_end)? else { return Ok(false) };
                let len = u16::from_be_bytes([a, b]);
                self.item_end = inside(self.position + u32::from(len), self.list_end)?;
                if kind != 0 {
                    self.skip_to = self.item_end;
                    return Ok(true);
                }
                let again = self.seen & SEEN_HOST_NAME != 0;
                if again || len == 0 || usize::from(len) > SNI_BYTES_MAX {
                    return Err(Failure::Malformed);
                }
                self.seen |= SEEN_HOST_NAME;
                self.step = Step::Name;
            }
            _ => {
                let part = self.item_part(input);
                // Letters, digits, hyphens, dots; whatever else is printable is reported as sent.
                if !part.iter().all(u8::is_ascii_graphic) {
                    return Err(Failure::Malformed);
                }
                let from = usize::from(self.name_len);
                self.name[from..from + part.len()].copy_from_slice(part);
                self.name_len += part.len() as u8;
                if self.position < self.item_end {
                    return Ok(false);
                }
                self.step = Step::NameHead;
            }
        }
        Ok(true)
    }

    /// application_layer_protocol_negotiation (RFC 7301, section 3.1).
    fn protocol_steps(&mut self, input: &mut &[u8]) -> Result<bool, Failure> {
        match self.step {
            Step::ProtocolsLength => return self.list_length(input, Step::ProtocolLength),
            Step::ProtocolLength => {
                if self.position == self.list_end {
                    self.step = Step::Extension;
                    return Ok(true);
                }
                let Some([len]) = self.read(input, self.list_end)? else { return Ok(false) };
                if len == 0 {
                    return Err(Failure::Malformed);
                }
                self.item_end = inside(self.position + u32::from(len), self.list_end)?;
                let at = usize::from(self.alpn_len);
                self.alpn_kept =
                    !self.alpn_truncated && at + 1 + usize::from(len) <= ALPN_BYTES_MAX;
                if self.alpn_kept {
                    self.alpn[at] = len;
                    self.alpn_len += 1;
                } else {
                    self.alpn_truncated = true;
                }
                self.step = Step::Protocol;
            }
            _ => {
                let part = self.item_part(input);
                if self.alpn_kept {
                    let from = usize::from(self.alpn_len);
                    self.alpn[from..from + part.len()].copy_from_slice(part);
                    self.alpn_len += part.len() as u8;
                }
                if self.position < self.item_end {
                    return Ok(false);
                }
                self.step = Step::ProtocolLength;
            }
        }
        Ok(true)
    }

    /// supported_versions, signature_algorithms and key_share (RFC 8446, sections 4.2.1, 4.2.3 and
    /// 4.2.8).
    fn list_steps(&mut self, input: &mut &[u8]) -> Result<bool, Failure> {
        match self.step {
            Step::VersionsLength => {
                let Some([len]) = self.read(input, self.extension_end)? else { return Ok(false) };
                return self.begin_list(u32::from(len), Step::Versions);
            }
            Step::KeySharesLength => return self.list_length(input, Step::KeyShare),
            Step::SignaturesLength => return self.list_length(input, Step::Signatures),
            _ if self.position == self.list_end => self.step = Step::Extension,
            // Half a version says nothing, and other readers pass over it too.
            Step::Versions if self.position + 1 == self.list_end => self.skip_to = self.list_end,
            Step::Versions => {
                let Some(version) = self.read(input, self.list_end)?.map(u16::from_be_bytes) else {
                    return Ok(false);
                };
                let count = usize::from(self.version_count);
                if is_grease(version) {
                    self.grease = true;
                } else if count < VERSIONS_MAX {
                    self.versions[count] = version;
                    self.version_count += 1;
                }
            }
            Step::Signatures => {
                let Some(scheme) = self.read(input, self.list_end)? else { return Ok(false) };
                self.offered.signature(u16::from_be_bytes(scheme));
            }
            _ => {
                let Some([a, b, c, d]) = self.read(input, self.list_end)? else { return Ok(false) };
                let (group, len) = (u16::from_be_bytes([a, b]), u16::from_be_bytes([c, d]));
                self.skip_to = inside(self.position + u32::from(len), self.list_end)?;
                let count = usize::from(self.group_count);
                if is_post_quantum(group) && count < GROUPS_MAX {
                    self.groups[count] = group;
                    self.group_count += 1;
                }
                self.grease |= is_grease(group);
            }
        }
        Ok(true)
    }

    /// The two-byte length of a list that must fill its extension.
    fn list_length(&mut self, input: &mut &[u8], step: Step) -> Result<bool, Failure> {
        let Some(len) = self.read(input, self.extension_end)?.map(u16::from_be_bytes) else {
            return Ok(false);
        };
        self.begin_list(u32::from(len), step)
    }

    fn begin_list(&mut self, len: u32, step: Step) -> Result<bool, Failure> {
        self.list_end = self.position + len;
        if self.list_end != self.extension_end {
            return Err(Failure::Malformed);
        }
        self.step = step;
        Ok(true)
    }

    /// What the input holds of the item that ends at `item_end`.
    #[inline]
    fn item_part<'i>(&mut self, input: &mut &'i [u8]) -> &'i [u8] {
        let n = input.len().min((self.item_end - self.position) as usize);
        let (part, rest) = input.split_at(n);
        *input = rest;
        self.position += n as u32;
        part
    }

    /// A field of `N` bytes that must end at `end` at the latest; `None` while bytes are missing.
    #[inline(always)]
    fn read<const N: usize>(
        &mut self,
        input: &mut &[u8],
        end: u32,
    ) -> Result<Option<[u8; N]>, Failure> {
        let after = inside(self.position + N as u32, end)?;
        let field = take::<N>(&mut self.field, input);
        if field.is_some() {
            self.position = after;
        }
        Ok(field)
    }
}

/// `to`, unless it is beyond `end`.
#[inline(always)]
fn inside(to: u32, end: u32) -> Result<u32, Failure> {
    if to <= end { Ok(to) } else { Err(Failure::Malformed) }
}

/// ML-KEM alone and hybrids with it or with its draft Kyber (IANA registry "TLS Supported Groups").
fn is_post_quantum(group: u16) -> bool {
    matches!(group, 0x0200..=0x0202 | 0x11eb..=0x11ed | 0x6399 | 0x639a)
}
