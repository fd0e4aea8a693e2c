//! What a QUIC client says first: the ClientHello in its Initial packets (RFC 9000, RFC 9001, and
//! RFC 9369 for version 2).
//!
//! Initial packets are protected with keys that anyone can derive from the connection id that the
//! client made up. A packet counts once its tag is verified: nothing is told of one that is forged,
//! damaged or cut. CRYPTO frames may come in any order and any number of packets and datagrams.

mod attempt;
mod frames;
mod header;
mod keys;

use std::ops::Range;

use super::Peek;
use super::tls::HelloParser;
use crate::base::Seed;
use crate::base::hash::hash_bytes;
use crate::flow::reassembly::{Pushed, Reassembler};

pub use attempt::Attempt;
pub use header::CID_BYTES_MAX;

use frames::Frames;
use header::{ConnectionId, Kind, LongHeader};
use keys::Keys;

/// Bytes of one packet at most; longer ones are passed over.
pub const PACKET_BYTES_MAX: usize = 1 << 14;
/// Coalesced packets of one datagram that are looked at.
pub const PACKETS_PER_DATAGRAM_MAX: usize = 8;
/// Datagrams of a client that are looked at before it is given up.
pub const DATAGRAMS_MAX: u16 = 128;
/// Datagrams without any sign of QUIC before a client is taken to speak something else.
pub const STRANGERS_MAX: u16 = 8;
/// Packets that can't be decrypted, or are of a version that can't be read, before a client is
/// given up. A server that does not know the version either says so at once (RFC 9000, section 6),
/// but that may be lost some times.
pub const UNDECRYPTABLE_MAX: u16 = 32;
/// Attempts of a client to connect that are told apart; one that is given up may come again late.
pub const ATTEMPTS_MAX: usize = 4;
/// The handshake stream is read up to here.
pub const CRYPTO_BYTES_MAX: u64 = 1 << 16;

/// Why a client's datagrams gave no ClientHello.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Failure {
    NotQuic,
    /// Long headers of QUIC, but no packet whose tag is right.
    Undecryptable,
    /// A packet that is right holds frames that it must not hold.
    Malformed,
    /// [`HelloParser::failure`] has the reason.
    Hello,
    /// A piece came early and there was no memory to keep it.
    NoPage,
    /// Not complete within [`DATAGRAMS_MAX`].
    TooLong,
}

/// How sure it is that this is QUIC.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Proof {
    #[default]
    None,
    /// A long header of a known version.
    Header,
    /// An Initial packet of the client was decrypted.
    Tag,
}

/// Memory to decrypt in, for any number of clients.
#[derive(Debug)]
pub struct Scratch {
    packet: Box<[u8]>,
}

impl Scratch {
    pub fn new() -> Scratch {
        Scratch { packet: vec![0; PACKET_BYTES_MAX].into_boxed_slice() }
    }
}

impl Default for Scratch {
    fn default() -> Scratch {
        Scratch::new()
    }
}

/// Where the handshake stream of one client goes: an open slot of the reassembler, whose first
/// sequence number is 0, and a new parser.
pub struct CryptoStream<'a> {
    pub reassembler: &'a mut Reassembler,
    pub slot: usize,
    pub hello: &'a mut HelloParser,
}

impl CryptoStream<'_> {
    fn restart(&mut self) {
        self.reassembler.open(self.slot, 0);
        self.hello.restart();
    }
}

/// Reads the datagrams of one client up to the end of its ClientHello.
#[derive(Clone, Debug, Default)]
pub struct InitialReader {
    outcome: Option<Result<(), Failure>>,
    proof: Proof,
    /// Of the first Initial packet decrypted, as are the keys.
    version: u32,
    keys: Option<Keys>,
    /// What the keys come from.
    dcid: ConnectionId,
    /// The same of attempts before this one, whose packets may come late: hashes.
    retired: [u32; ATTEMPTS_MAX],
    retired_count: u8,
    /// Attempts went on side by side, or contradict themselves: which of them its server believes
    /// is not known.
    mixed: bool,
    client_cid: ConnectionId,
    server_cid: Option<ConnectionId>,
    largest_number: Option<u64>,
    /// The client has sent something in a version that can't be read.
    unreadable: bool,
    /// The client has gone on to what comes behind its hello, or its server has taken one that
    /// can't be read.
    went_on: bool,
    datagrams: u16,
    undecryptable: u16,
    initials: u16,
    crypto_frames: u16,
}

// One per flow under inspection.
const _: () = assert!(size_of::<InitialReader>() <= 184);

/// Whether a datagram begins with a long header of a known version. A look at a few bytes, for
/// deciding whether a client gets an [`InitialReader`] at all.
pub fn may_be_quic(datagram: &[u8]) -> bool {
    LongHeader::parse(datagram).is_some_and(|h| h.kind != Kind::VersionNegotiation)
}

/// The same of a datagram of which only the first bytes are seen: whether that may be so.
pub fn may_begin_quic(start: &[u8]) -> bool {
    LongHeader::may_begin(start)
}

/// What a client's datagram is, as far as one that knows no connection can tell.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Start<'a> {
    /// A long header of a version that an [`InitialReader`] reads.
    Readable,
    /// A long header of another version: the server will say which ones it has.
    Unreadable,
    /// A short header, and what follows its first byte: the connection id, whose length only the
    /// server knows (RFC 9000, section 17.3.1).
    Short(&'a [u8]),
}

impl Start<'_> {
    /// `None`: there is nothing in it.
    pub fn of(datagram: &[u8]) -> Option<Start<'_>> {
        let (first, rest) = datagram.split_first()?;
        if first & 0x80 == 0 {
            return Some(Start::Short(rest));
        }
        let readable = LongHeader::parse(datagram).is_some_and(|header| header.edition.is_some());
        Some(if readable { Start::Readable } else { Start::Unreadable })
    }
}

/// What a server's datagram tells whoever has no keys.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer<'a> {
    /// The connection id by which the server will be called (RFC 9000, section 7.2). Of no bytes,
    /// where it does without.
    CalledBy(&'a [u8]),
    /// The handshake is over.
    Short,
    /// Nothing, such as Retry and version negotiation.
    Else,
}

impl Answer<'_> {
    pub fn of(datagram: &[u8]) -> Answer<'_> {
        match (LongHeader::parse(datagram), datagram.first()) {
            (Some(header), _) => match header.kind {
                Kind::Initial | Kind::Handshake => Answer::CalledBy(header.scid),
                _ => Answer::Else,
            },
            (None, Some(first)) if first & 0x80 == 0 => Answer::Short,
            _ => Answer::Else,
        }
    }
}

impl InitialReader {
    pub fn new() -> InitialReader {
        InitialReader::default()
    }

    /// Takes a UDP payload of either side. `Found` once the whole hello has been read; `stream`
    /// then holds what it says. The answer does not depend on the order in which frames, packets
    /// and datagrams of one attempt to connect come.
    ///
    /// A client that has to begin anew, after Retry or a change of the version, sends its hello
    /// from the start under new keys; so does one that uses its addresses for another connection.
    /// What was read until then is forgotten.
    pub fn datagram(
        &mut self,
        from_client: bool,
        payload: &[u8],
        stream: &mut CryptoStream<'_>,
        scratch: &mut Scratch,
    ) -> Peek<()> {
        if self.outcome.is_none() {
            if from_client {
                self.outcome = self.client(payload, stream, &mut scratch.packet).transpose();
            } else {
                self.server(payload);
            }
        }
        match self.outcome {
            None => Peek::NeedMore,
            Some(Ok(())) => Peek::Found(()),
            Some(Err(_)) => Peek::NotThis,
        }
    }

    /// Why [`InitialReader::datagram`] answered [`Peek::NotThis`].
    pub fn failure(&self) -> Option<Failure> {
        self.outcome.and_then(Result::err)
    }

    pub fn proof(&self) -> Proof {
        self.proof
    }

    /// Whether the client has sent what only follows a hello that its server has read, though it
    /// was not read here (RFC 9001, section 4.1.4), or goes on with several, or its server has
    /// answered in a version that can't be read.
    pub fn went_on(&self) -> bool {
        self.outcome.is_none() && (self.went_on || self.mixed)
    }

    /// Whether its server may have read another hello than the one that was read here: more than
    /// one was on its way, or copies of the same bytes differed.
    pub fn is_mixed(&self) -> bool {
        self.mixed
    }

    /// The connection id that the hello came under: of two attempts these are different.
    pub fn attempt(&self) -> Option<&[u8]> {
        self.keys.map(|_| self.dcid.as_bytes())
    }

    /// Version of the first Initial packet that was decrypted.
    pub fn version(&self) -> Option<u32> {
        self.keys.map(|_| self.version)
    }

    /// Decrypted Initial packets that held a piece of the hello.
    pub fn initials(&self) -> u16 {
        self.initials
    }

    /// CRYPTO frames up to the end of the hello.
    pub fn crypto_frames(&self) -> u16 {
        self.crypto_frames
    }

    /// The connection id that the server chose for itself in answer to this client. Packets that
    /// bear it belong to this connection, also those from another address of the client
    /// (RFC 9000, section 9.3), until the client takes one that was given to it in secret.
    pub fn server_cid(&self) -> Option<&[u8]> {
        self.server_cid.as_ref().map(ConnectionId::as_bytes)
    }

    fn client(
        &mut self,
        payload: &[u8],
        stream: &mut CryptoStream<'_>,
        scratch: &mut [u8],
    ) -> Result<Option<()>, Failure> {
        self.datagrams += 1;
        let mut rest = payload;
        let mut dcid = None;
        for _ in 0..PACKETS_PER_DATAGRAM_MAX {
            let Some(header) = LongHeader::parse(rest) else { break };
            rest = header.rest;
            self.proof = self.proof.max(Proof::Header);
            // Packets for someone else are not the server's business (RFC 9000, section 12.2).
            let same = *dcid.get_or_insert(header.dcid) == header.dcid;
            match header.kind {
                Kind::Initial if same && self.initial(&header, stream, scratch)? => {
                    return Ok(Some(()));
                }
                Kind::Handshake => self.went_on = true,
                Kind::Unreadable => {
                    self.undecryptable += 1;
                    self.unreadable = true;
                }
                _ => {}
            }
        }
        // Short headers come after a handshake.
        let is_short = payload.first().is_some_and(|first| first & 0x80 == 0);
        self.went_on |= is_short && self.unreadable;
        let strange = self.proof == Proof::None;
        if strange && self.datagrams >= STRANGERS_MAX {
            Err(Failure::NotQuic)
        } else if self.undecryptable >= UNDECRYPTABLE_MAX {
            Err(Failure::Undecryptable)
        } else if self.datagrams >= DATAGRAMS_MAX {
            let read = self.proof == Proof::Tag;
            Err(if read { Failure::TooLong } else { Failure::Undecryptable })
        } else {
            Ok(None)
        }
    }

    /// `true` when the hello is complete.
    fn initial(
        &mut self,
        header: &LongHeader<'_>,
        stream: &mut CryptoStream<'_>,
        scratch: &mut [u8],
    ) -> Result<bool, Failure> {
        let Some(payload) = self.decrypt(header, stream, scratch) else {
            self.undecryptable += 1;
            return Ok(false);
        };
        let mut frames = Frames::new(scratch.get(payload).unwrap_or_default());
        let mut first = true;
        while let Some(crypto) = frames.next_crypto().map_err(|_| Failure::Malformed)? {
            self.initials += u16::from(std::mem::take(&mut first));
            self.crypto_frames = self.crypto_frames.saturating_add(1);
            // No server keeps as much; what lies beyond is not the hello.
            let end = crypto.offset + crypto.bytes.len() as u64;
            if end > CRYPTO_BYTES_MAX {
                continue;
            }
            let (hello, mut peek) = (&mut *stream.hello, Peek::NeedMore);
            let pushed = stream.reassembler.push(
                stream.slot,
                crypto.offset as u32,
                false,
                crypto.bytes,
                |bytes| peek = hello.feed_message(bytes),
            );
            match (peek, pushed) {
                (Peek::Found(()), _) => {
                    self.mixed |= stream.reassembler.conflicts(stream.slot);
                    return Ok(true);
                }
                (Peek::NotThis, _) => return Err(Failure::Hello),
                (Peek::NeedMore, Pushed::NoPage) => return Err(Failure::NoPage),
                (Peek::NeedMore, _) => {}
            }
        }
        Ok(false)
    }

    /// Finds the keys that fit, beginning anew where these are others than before. Where the
    /// frames are in `scratch`.
    fn decrypt(
        &mut self,
        header: &LongHeader<'_>,
        stream: &mut CryptoStream<'_>,
        scratch: &mut [u8],
    ) -> Option<Range<usize>> {
        let edition = header.edition?;
        let dcid = ConnectionId::new(header.dcid)?;
        if let Some(keys) = self.keys {
            // The keys outlast the change to the server's connection id (RFC 9001, section 5.2),
            // and come from the same id after a compatible change of version (RFC 9368).
            let keys = match header.version == self.version {
                true => keys,
                false => Keys::derive(edition, self.dcid.as_bytes())?,
            };
            let largest = self.largest_number;
            if let Some(opened) = keys.open(header.packet, header.number_at, largest, scratch) {
                // A server discards what comes under another id of its client's (RFC 9000,
                // section 7.2).
                self.mixed |= header.scid != self.client_cid.as_bytes();
                self.largest_number = largest.max(Some(opened.number));
                return (header.scid == self.client_cid.as_bytes()).then_some(opened.frames);
            }
            if dcid == self.dcid {
                return None;
            }
        }
        let keys = Keys::derive(edition, header.dcid)?;
        if self.has_retired(header.dcid) {
            self.mixed |= keys.open(header.packet, header.number_at, None, scratch).is_some();
            return None;
        }
        // Numbers go on after Retry (RFC 9000, section 17.2.5.3), and begin at 0 otherwise.
        let mut open = |largest| keys.open(header.packet, header.number_at, largest, scratch);
        let opened = open(None).or_else(|| open(Some(self.largest_number?)))?;
        if self.keys.is_some() {
            stream.restart();
            self.retire();
            self.server_cid = None;
            (self.initials, self.crypto_frames) = (0, 0);
        }
        self.proof = Proof::Tag;
        self.version = header.version;
        self.keys = Some(keys);
        self.dcid = dcid;
        self.client_cid = ConnectionId::new(header.scid)?;
        self.largest_number = Some(opened.number);
        Some(opened.frames)
    }

    fn has_retired(&self, dcid: &[u8]) -> bool {
        self.retired[..usize::from(self.retired_count)].contains(&tag(dcid))
    }

    /// The attempt is given up for another one.
    fn retire(&mut self) {
        match self.retired.get_mut(usize::from(self.retired_count)) {
            Some(place) => {
                *place = tag(self.dcid.as_bytes());
                self.retired_count += 1;
            }
            None => self.mixed = true,
        }
    }

    /// Learns the server's connection id: that of its first packet under the handshake, which the
    /// client must then use (RFC 9000, section 7.2). Retry and version negotiation change nothing
    /// here: the client's next Initial tells what became of them.
    fn server(&mut self, payload: &[u8]) {
        let Some(header) = LongHeader::parse(payload) else { return };
        let knows_it = header.kind == Kind::Unreadable;
        self.went_on |= knows_it && self.unreadable;
        let answers = matches!(header.kind, Kind::Initial | Kind::Handshake)
            && self.proof == Proof::Tag
            && header.dcid == self.client_cid.as_bytes();
        if answers && self.server_cid.is_none() {
            self.server_cid = ConnectionId::new(header.scid);
        }
    }
}

/// Who makes two ids of the same hash harms only its own connections.
fn tag(dcid: &[u8]) -> u32 {
    hash_bytes(Seed(0), dcid) as u32
}
