//! A client's datagrams, as they are or properly protected: a name comes only of a hello that was
//! decrypted whole, answers stay, and no page is lost.

use tidegate::base::Seed;
use tidegate::flow::reassembly::WINDOW_PAGES;
use tidegate::inspect::Peek;
use tidegate::inspect::quic::{Attempt, Proof, Scratch, may_be_quic};

use super::client_hello::ClientHello;
use super::quic_support::{Client, DRAFT_29, Initial, V1, V2, crypto};
use super::script::Input;

/// What the next datagram is. Operands are taken modulo what there is.
mod op {
    /// The bytes, from the client.
    pub const RAW: u8 = 0;
    /// The bytes, from the server.
    pub const SERVER: u8 = 1;
    /// The bytes as frames of a protected packet: see [`super::packet`].
    pub const FRAMES: u8 = 2;
    /// A piece of a hello (start and length, 16 bits each) in such a packet.
    pub const HELLO: u8 = 3;
    pub const COUNT: u8 = 4;
}

const VERSIONS: [u32; 4] = [V1, V2, DRAFT_29, 0x1a2a_3a4a];
const CIDS: [&[u8]; 4] = [b"8 bytes!", b"another one of 20 B.", b"", b"server"];

/// Input: operations, each with how many bytes it has (16 bits) and these.
pub fn run(data: &[u8]) {
    let mut input = Input::new(data);
    let hello = message();
    let (mut client, mut scratch) = (Client::new(), Scratch::new());
    let mut last = Peek::NeedMore;
    while !input.is_empty() {
        let op = input.u8() % op::COUNT;
        let len = usize::from(input.u16() % 2_048);
        let body = input.bytes(len);
        let peek = match op {
            op::RAW => {
                may_be_quic(body);
                says(&mut client, body, &mut scratch)
            }
            op::SERVER => client.gets(body),
            _ => says(&mut client, &packet(op, body, &hello), &mut scratch),
        };
        assert!(last == Peek::NeedMore || peek == last, "the answer changed: {last:?}, {peek:?}");
        last = peek;
        check(&client, peek);
    }
    client.reassembler.close(0);
    assert_eq!(client.reassembler.pages_free(), WINDOW_PAGES, "a page was lost");
}

/// Whatever is read as the beginning of a connection is one for who remembers none, too.
fn says(client: &mut Client, datagram: &[u8], scratch: &mut Scratch) -> Peek<()> {
    let before = client.reader.attempt().map(<[u8]>::to_vec);
    let attempt = Attempt::of(datagram, Seed(1), scratch);
    let peek = client.sends(datagram);
    let is_same = before.as_deref() == client.reader.attempt();
    assert!(is_same || attempt.is_some(), "a connection began unnoticed");
    peek
}

/// One byte for the version and ids, one for the number and its length, then what it holds.
fn packet(op: u8, body: &[u8], hello: &[u8]) -> Vec<u8> {
    let mut input = Input::new(body);
    let (ids, number) = (input.u8(), input.u8());
    let cid = |n: u8| CIDS[usize::from(n & 3)];
    let initial = Initial {
        key_cid: cid(ids >> 2),
        number: u32::from(number >> 2),
        number_len: usize::from(number & 3) + 1,
        ..Initial::new(VERSIONS[usize::from(ids & 3)], cid(ids >> 4))
    };
    if op == op::FRAMES {
        // Long enough for the sample that the header's protection is made of.
        return initial.seal(&[input.rest(), &[0; 4]].concat());
    }
    let mut frames = Vec::new();
    while !input.is_empty() {
        let from = usize::from(input.u16()) % hello.len();
        let len = usize::from(input.u16());
        frames.extend(crypto(from, &hello[from..(from + len).min(hello.len())]));
    }
    frames.resize(frames.len() + 4, 0);
    initial.seal(&frames)
}

fn check(client: &Client, peek: Peek<()>) {
    let reader = &client.reader;
    assert_eq!(reader.failure().is_some(), peek == Peek::NotThis);
    assert_eq!(reader.version().is_some(), reader.proof() == Proof::Tag);
    assert!(reader.proof() == Proof::Tag || reader.initials() == 0);
    assert!(reader.initials() <= reader.crypto_frames());
    assert!(peek == Peek::Found(()) || client.name().is_none(), "a name before its hello");
    assert!(peek != Peek::Found(()) || reader.proof() == Proof::Tag && reader.initials() > 0);
}

/// A hello's handshake message.
fn message() -> Vec<u8> {
    let hello = ClientHello {
        name: Some(b"api.example.com"),
        protocols: &[b"h3"],
        padding: 1_200,
        record_len: usize::MAX,
    };
    hello.bytes()[5..].to_vec()
}

fn step(op: u8, body: &[u8]) -> Vec<u8> {
    [&[op][..], &(body.len() as u16).to_be_bytes(), body].concat()
}

/// Pieces of the hello in one packet.
fn pieces(ids: u8, number: u8, pieces: &[(u16, u16)]) -> Vec<u8> {
    let places = pieces.iter().flat_map(|(at, len)| [at.to_be_bytes(), len.to_be_bytes()]);
    let mut body = vec![ids, number];
    body.extend(places.flatten());
    step(op::HELLO, &body)
}

/// Seeds by name.
pub fn seeds() -> Vec<(String, Vec<u8>)> {
    const ALL: u16 = 4_000;
    let moved = 0x30;
    let retry = [&[0xf0, 0, 0, 0, 1, 2][..], b"me\x06servertoken", &[0; 16]].concat();
    let sealed = Initial::new(V1, CIDS[0]).seal(&crypto(0, &message()[..900]));
    let seeds = [
        ("whole", pieces(0, 0, &[(0, ALL)])),
        ("version-2", pieces(1, 3, &[(0, ALL)])),
        ("draft", pieces(2, 2, &[(0, ALL)])),
        ("unknown-version", [pieces(3, 0, &[(0, ALL)]), pieces(0, 0, &[(0, ALL)])].concat()),
        ("shuffled", pieces(0, 1, &[(900, ALL), (100, 500), (0, 100), (550, 360)])),
        ("two-packets", [pieces(0, 4, &[(700, ALL)]), pieces(0, 0, &[(0, 700)])].concat()),
        ("moved", [pieces(0, 0, &[(0, 700)]), pieces(moved, 4, &[(700, ALL)])].concat()),
        (
            "retry",
            [
                pieces(0, 0, &[(0, 700)]),
                step(op::SERVER, &retry),
                pieces(0x3c, 4, &[(0, ALL)]),
                pieces(0, 8, &[(700, ALL)]),
            ]
            .concat(),
        ),
        ("two-connections", [pieces(0, 0, &[(0, 700)]), pieces(0x15, 0, &[(0, ALL)])].concat()),
        ("raw", [step(op::RAW, &sealed), step(op::SERVER, &sealed)].concat()),
        ("raw-twice", step(op::RAW, &[&sealed[..], &sealed].concat())),
        ("stun", step(op::RAW, b"\0\x01\0\0\x21\x12\xa4\x42never quic")),
        (
            "acknowledgements",
            step(op::FRAMES, &[0, 0, 1, 2, 9, 0, 1, 0, 0, 0, 3, 4, 0, 0, 0, 1, 1, 1, 6, 0, 1, 1]),
        ),
        ("closed", step(op::FRAMES, &[0, 0, 0x1c, 10, 6, 3, b'w', b'h', b'y', 6, 0x40, 0, 0])),
        ("forbidden", step(op::FRAMES, &[1, 0, 8, 0, 1, b'x'])),
        ("far", step(op::FRAMES, &[0, 0, 6, 0xc0, 0, 0, 1, 0, 0, 0, 0, 1, 1])),
    ];
    seeds.map(|(name, bytes)| (name.to_owned(), bytes)).into()
}
