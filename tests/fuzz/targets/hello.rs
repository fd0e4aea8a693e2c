//! A TLS stream in any pieces is read as in one piece.

use tidegate::inspect::Peek;
use tidegate::inspect::tls::{
    ALPN_BYTES_MAX, Carrier, Encrypted, Failure, HelloParser, Ja4, SNI_BYTES_MAX, VERSIONS_MAX,
};

use super::script::Input;

/// Bytes that the parser may take, by the first byte of the input.
const LIMITS: [u32; 4] = [16_384, 512, 64, 0];

/// All that a parser tells.
#[derive(Debug, PartialEq, Eq)]
struct Answer {
    found: Option<bool>,
    failure: Option<Failure>,
    sni: Option<Vec<u8>>,
    alpn: Vec<Vec<u8>>,
    alpn_truncated: bool,
    versions: Vec<u16>,
    legacy_version: u16,
    encrypted: Encrypted,
    groups: Vec<u16>,
    marks: [bool; 3],
    ja4: Option<Ja4>,
}

/// Input: the limit, how many pieces' lengths follow, these, and the stream.
pub fn run(data: &[u8]) {
    let mut input = Input::new(data);
    let limit = LIMITS[usize::from(input.u8()) % LIMITS.len()];
    let count = usize::from(input.u8() % 32);
    let lengths = input.bytes(count);
    let stream = input.rest();
    let whole = read(limit, &[stream]);
    assert_eq!(read(limit, &pieces(stream, lengths)), whole, "limit {limit}, pieces {lengths:?}");
    let single: Vec<_> = stream.chunks(1).collect();
    assert_eq!(read(limit, &single), whole, "limit {limit}, byte by byte");
}

/// Cuts the stream into pieces of these lengths, over and over.
fn pieces<'a>(mut stream: &'a [u8], lengths: &[u8]) -> Vec<&'a [u8]> {
    let mut pieces = Vec::new();
    let mut lengths = lengths.iter().cycle();
    while !stream.is_empty() {
        let wanted = lengths.next().map_or(stream.len(), |n| usize::from(*n));
        // An empty piece now and then does no harm, but no others would never end.
        if wanted == 0 {
            pieces.push(&stream[..0]);
        }
        let (piece, rest) = stream.split_at(wanted.clamp(1, stream.len()));
        pieces.push(piece);
        stream = rest;
    }
    pieces
}

fn read(limit: u32, pieces: &[&[u8]]) -> Answer {
    let mut parser = HelloParser::new(limit);
    let mut found = None;
    // A limit of 0 is noticed with the first piece, were it empty.
    for piece in std::iter::once(&&[][..]).chain(pieces) {
        let now = match parser.feed(piece) {
            Peek::Found(()) => Some(true),
            Peek::NotThis => Some(false),
            Peek::NeedMore => None,
        };
        assert!(found.is_none() || now == found, "the answer changed from {found:?} to {now:?}");
        found = now;
    }
    let answer = Answer {
        found,
        failure: parser.failure(),
        sni: parser.sni().map(<[u8]>::to_vec),
        alpn: parser.alpn().iter().map(<[u8]>::to_vec).collect(),
        alpn_truncated: parser.alpn_truncated(),
        versions: parser.versions().to_vec(),
        legacy_version: parser.legacy_version(),
        encrypted: parser.encrypted(),
        groups: parser.post_quantum_groups().to_vec(),
        marks: [parser.grease(), parser.resumed(), parser.early_data()],
        ja4: parser.ja4(Carrier::Tcp),
    };
    check(&answer, &parser);
    answer
}

fn check(answer: &Answer, parser: &HelloParser) {
    assert_eq!(answer.failure.is_some(), answer.found == Some(false));
    assert!(answer.found == Some(true) || answer.sni.is_none() && answer.alpn.is_empty());
    assert!(answer.sni.as_ref().is_none_or(|n| (1..=SNI_BYTES_MAX).contains(&n.len())));
    assert!(answer.versions.len() <= VERSIONS_MAX);
    assert!(answer.ja4.is_none_or(|ja4| answer.found == Some(true) && ja4.as_str().len() == 36));
    let wire: usize = answer.alpn.iter().map(|p| 1 + p.len()).sum();
    assert_eq!(wire, parser.alpn().wire().len(), "entries do not fill the list");
    assert!(wire <= ALPN_BYTES_MAX);
    assert!(answer.alpn.iter().all(|p| !p.is_empty() && parser.alpn().contains(p)));
}
