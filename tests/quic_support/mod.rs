//! Datagrams of QUIC clients and servers, protected as RFC 9001 says, and a reader for them.

use ring::aead::{AES_128_GCM, Aad, LessSafeKey, Nonce, UnboundKey, quic};
use ring::hkdf::{HKDF_SHA256, KeyType, Prk, Salt};
use tidegate::flow::reassembly::{Reassembler, WINDOW_PAGES};
use tidegate::inspect::Peek;
use tidegate::inspect::quic::{CryptoStream, InitialReader, Scratch};
use tidegate::inspect::tls::HelloParser;

pub const V1: u32 = 1;
pub const V2: u32 = 0x6b33_43cf;
pub const DRAFT_29: u32 = 0xff00_001d;
/// What the reader takes of a handshake stream.
pub const HELLO_BYTES_MAX: u32 = 1 << 16;

/// A packet with a long header to be.
#[derive(Clone, Debug)]
pub struct Initial<'a> {
    pub version: u32,
    /// What the keys come from: the first id that the client sent to.
    pub key_cid: &'a [u8],
    pub dcid: &'a [u8],
    pub scid: &'a [u8],
    pub token: &'a [u8],
    pub number: u32,
    /// 1 to 4.
    pub number_len: usize,
    pub from_client: bool,
}

impl<'a> Initial<'a> {
    /// A client's first.
    pub fn new(version: u32, dcid: &'a [u8]) -> Initial<'a> {
        Initial {
            version,
            key_cid: dcid,
            dcid,
            scid: b"me",
            token: &[],
            number: 0,
            number_len: 1,
            from_client: true,
        }
    }

    /// The protected packet around these frames.
    pub fn seal(&self, frames: &[u8]) -> Vec<u8> {
        let code = if self.version == V2 { 0x10 } else { 0 };
        let mut packet = vec![0xc0 | code | (self.number_len as u8 - 1)];
        packet.extend(self.version.to_be_bytes());
        for cid in [self.dcid, self.scid] {
            packet.push(cid.len() as u8);
            packet.extend(cid);
        }
        packet.extend(varint(self.token.len() as u64));
        packet.extend(self.token);
        // As the appendices of the RFCs have it: two bytes of length.
        let len = self.number_len + frames.len() + 16;
        packet.extend((0x4000 | len as u16).to_be_bytes());
        let number_at = packet.len();
        packet.extend(&self.number.to_be_bytes()[4 - self.number_len..]);
        let keys = Keys::new(self.version, self.key_cid, self.from_client);
        let mut body = frames.to_vec();
        let nonce = Nonce::assume_unique_for_key(keys.nonce(self.number));
        keys.aead
            .seal_in_place_append_tag(nonce, Aad::from(&packet), &mut body)
            .expect("the packet is short");
        packet.extend(body);
        let mask = keys.hp.new_mask(&packet[number_at + 4..number_at + 20]).expect("a sample");
        packet[0] ^= mask[0] & 0x0f;
        for (byte, mask) in
            packet[number_at..number_at + self.number_len].iter_mut().zip(&mask[1..])
        {
            *byte ^= mask;
        }
        packet
    }
}

struct Keys {
    aead: LessSafeKey,
    iv: [u8; 12],
    hp: quic::HeaderProtectionKey,
}

impl Keys {
    fn new(version: u32, cid: &[u8], from_client: bool) -> Keys {
        // RFC 9001 section 5.2, RFC 9369 section 3.3.1, draft-ietf-quic-tls-29 section 5.2.
        let (salt, prefix) = match version {
            V2 => ("0dede3def700a6db819381be6e269dcbf9bd2ed9", "quicv2"),
            DRAFT_29 => ("afbfec289993d24c9e9786f19c6111e04390a899", "quic"),
            _ => ("38762cf7f55934b34d179ae6a4c80cadccbb7f0a", "quic"),
        };
        let initial = Salt::new(HKDF_SHA256, &hex(salt)).extract(cid);
        let side = if from_client { "client in" } else { "server in" };
        let secret = Prk::new_less_safe(HKDF_SHA256, &expand::<32>(&initial, side));
        let key: [u8; 16] = expand(&secret, &format!("{prefix} key"));
        let hp: [u8; 16] = expand(&secret, &format!("{prefix} hp"));
        Keys {
            aead: LessSafeKey::new(UnboundKey::new(&AES_128_GCM, &key).expect("16 bytes")),
            iv: expand(&secret, &format!("{prefix} iv")),
            hp: quic::HeaderProtectionKey::new(&quic::AES_128, &hp).expect("16 bytes"),
        }
    }

    fn nonce(&self, number: u32) -> [u8; 12] {
        let mut nonce = self.iv;
        for (byte, n) in nonce[8..].iter_mut().zip(number.to_be_bytes()) {
            *byte ^= n;
        }
        nonce
    }
}

fn expand<const N: usize>(secret: &Prk, label: &str) -> [u8; N] {
    struct Bytes(usize);
    impl KeyType for Bytes {
        fn len(&self) -> usize {
            self.0
        }
    }
    let info = [&[0, N as u8, 6 + label.len() as u8][..], b"tls13 ", label.as_bytes(), &[0]];
    let mut out = [0; N];
    secret.expand(&info, Bytes(N)).expect("short").fill(&mut out).expect("as long");
    out
}

pub fn hex(text: &str) -> Vec<u8> {
    let digits: Vec<u8> = text.bytes().filter(|b| !b.is_ascii_whitespace()).collect();
    let byte = |pair: &[u8]| u8::from_str_radix(std::str::from_utf8(pair).expect("text"), 16);
    digits.chunks(2).map(|pair| byte(pair).expect("hex")).collect()
}

/// The shortest form.
pub fn varint(n: u64) -> Vec<u8> {
    match n {
        0..0x40 => vec![n as u8],
        0x40..0x4000 => (0x4000 | n as u16).to_be_bytes().to_vec(),
        0x4000..0x4000_0000 => (0x8000_0000 | n as u32).to_be_bytes().to_vec(),
        _ => (0xc000_0000_0000_0000 | n).to_be_bytes().to_vec(),
    }
}

/// A CRYPTO frame.
pub fn crypto(offset: usize, bytes: &[u8]) -> Vec<u8> {
    [&[6][..], &varint(offset as u64), &varint(bytes.len() as u64), bytes].concat()
}

/// One client under inspection.
pub struct Client {
    pub reader: InitialReader,
    pub hello: HelloParser,
    pub reassembler: Reassembler,
    scratch: Scratch,
}

impl Client {
    pub fn new() -> Client {
        let mut reassembler = Reassembler::new(1, WINDOW_PAGES);
        reassembler.open(0, 0);
        Client {
            reader: InitialReader::new(),
            hello: HelloParser::new(HELLO_BYTES_MAX),
            reassembler,
            scratch: Scratch::new(),
        }
    }

    pub fn sends(&mut self, payload: &[u8]) -> Peek<()> {
        self.datagram(true, payload)
    }

    pub fn gets(&mut self, payload: &[u8]) -> Peek<()> {
        self.datagram(false, payload)
    }

    fn datagram(&mut self, from_client: bool, payload: &[u8]) -> Peek<()> {
        let (reassembler, hello) = (&mut self.reassembler, &mut self.hello);
        let mut stream = CryptoStream { reassembler, slot: 0, hello };
        self.reader.datagram(from_client, payload, &mut stream, &mut self.scratch)
    }

    pub fn name(&self) -> Option<&str> {
        self.hello.sni().and_then(|name| std::str::from_utf8(name).ok())
    }
}
