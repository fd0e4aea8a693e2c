//! However a client's bytes are cut into segments, reordered, repeated and overlapped, a capture of
//! them says the same.

use std::io::Cursor;
use std::sync::{Arc, LazyLock};

use proptest::prelude::*;
use rustls::{ClientConfig, ClientConnection, RootCertStore};
use tidegate::base::Addr;
use tidegate::base::hash::Rng;
use tidegate::capture::{CaptureFile, Seen, inspect};
use tidegate::packet::build::{TcpSpec, tcp_packet};
use tidegate::packet::tcp::flag;
use tidegate::policy::catalogue::Catalogue;

const CLIENT: (Addr, u16) = (Addr::v4(0x0a00_0001), 40_000);
const SERVER: (Addr, u16) = (Addr::v4(0x0a00_0002), 443);

static CATALOGUE: LazyLock<Catalogue> = LazyLock::new(Catalogue::builtin);

/// A part of the stream: from where, and its bytes.
type Segment<'a> = (usize, &'a [u8]);

/// What a capture says whose client sends these, after a SYN with this number.
fn told(isn: u32, segments: &[Segment<'_>]) -> Seen {
    let mut file = Vec::new();
    for n in [0xa1b2_c3d4u32, 0x0004_0002, 0, 0, 65_535, 1] {
        file.extend(n.to_le_bytes());
    }
    let mut send = |seq: u32, flags: u8, payload: &[u8]| {
        let frame = tcp_packet(&TcpSpec { seq, ..TcpSpec::new(CLIENT, SERVER, flags, payload) });
        for n in [0, 0, frame.len() as u32, frame.len() as u32] {
            file.extend(n.to_le_bytes());
        }
        file.extend(frame);
    };
    send(isn, flag::SYN, b"");
    for &(at, bytes) in segments {
        send(isn.wrapping_add(1).wrapping_add(at as u32), flag::ACK, bytes);
    }
    let mut records = Vec::new();
    let mut capture = CaptureFile::new(Cursor::new(file)).expect("a capture");
    inspect(&mut capture, &CATALOGUE, |record| records.push(record)).expect("sound");
    assert_eq!(records.len(), 1);
    records.remove(0).seen
}

fn hello() -> Vec<u8> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("versions")
        .with_root_certificates(RootCertStore::empty())
        .with_no_client_auth();
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    let name = "api.openai.com".try_into().expect("a name");
    let mut connection = ClientConnection::new(Arc::new(config), name).expect("client");
    let mut out = Vec::new();
    connection.write_tls(&mut out).expect("a Vec takes all");
    out
}

/// The hello once more, in records of a few bytes.
fn fragmented_hello() -> Vec<u8> {
    let hello = hello();
    let records = hello[5..].chunks(7);
    records.flat_map(|part| [&[22, 3, 1, 0, part.len() as u8], part].concat()).collect()
}

fn http1() -> Vec<u8> {
    b"POST /v1/chat/completions?a=b HTTP/1.1\r\nX-Host: decoy.example\r\n\
      Host: api.groq.com\r\nContent-Length: 20\r\n\r\nHost: not.this\r\n\r\n..\
      GET /v1/models HTTP/1.1\r\nHost: second.example\r\n\r\n"
        .to_vec()
}

/// The preface, SETTINGS, and a request whose path is sent as it is (RFC 7541, appendix C.3).
fn http2() -> Vec<u8> {
    let block =
        [&[0x83, 0x86, 0x04, 12][..], b"/v1/messages", &[0x01, 17], b"api.anthropic.com"].concat();
    let mut out = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0".to_vec();
    out.extend([0, 0, block.len() as u8, 1, 5, 0, 0, 0, 1]);
    [out, block].concat()
}

fn tunnel() -> Vec<u8> {
    [&b"CONNECT a.example:443 HTTP/1.1\r\nHost: a.example:443\r\n\r\n"[..], &hello()].concat()
}

fn streams() -> Vec<(&'static str, Vec<u8>)> {
    vec![
        ("tls api.openai.com openai", hello()),
        ("tls api.openai.com openai", fragmented_hello()),
        ("http1 api.groq.com groq", http1()),
        ("h2c api.anthropic.com anthropic", http2()),
        ("http1-connect+tls api.openai.com openai", tunnel()),
    ]
}

fn summary(seen: &Seen) -> String {
    let name = if seen.sni.is_empty() { &seen.http_authority } else { &seen.sni };
    format!("{} {name} {}", seen.app, seen.provider)
}

#[test]
fn cut_at_every_byte() {
    for (want, stream) in streams() {
        let whole = told(u32::MAX - 40, &[(0, &stream)]);
        assert_eq!(summary(&whole), want);
        for cut in 1..stream.len() {
            let (a, b) = stream.split_at(cut);
            let early = cut.saturating_sub(9);
            let late = (cut + 9).min(stream.len());
            for segments in [
                vec![(0, a), (cut, b)],
                vec![(cut, b), (0, a)],
                vec![(0, a), (0, a), (cut, b), (cut, b)],
                vec![(0, &stream[..late]), (early, &stream[early..])],
                vec![(early, &stream[early..]), (0, &stream[..late])],
            ] {
                assert_eq!(told(u32::MAX - 40, &segments), whole, "{want} cut at {cut}");
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]
    #[test]
    fn in_any_pieces_and_order(
        which in 0..5usize,
        isn in any::<u32>(),
        cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..40),
        repeats in prop::collection::vec(any::<(prop::sample::Index, u8)>(), 0..12),
        order in any::<u64>(),
    ) {
        let (want, stream) = streams().swap_remove(which);
        let len = stream.len();
        let mut cuts: Vec<usize> = cuts.iter().map(|c| c.index(len)).chain([0, len]).collect();
        cuts.sort_unstable();
        let mut parts: Vec<Segment<'_>> =
            cuts.windows(2).map(|w| (w[0], &stream[w[0]..w[1]])).collect();
        for (from, size) in repeats {
            let from = from.index(len);
            parts.push((from, &stream[from..(from + usize::from(size)).min(len)]));
        }
        let mut rng = Rng::new(tidegate::base::Seed(order));
        for i in (1..parts.len()).rev() {
            parts.swap(i, rng.below(i as u32 + 1) as usize);
        }
        let seen = told(isn, &parts);
        prop_assert_eq!(summary(&seen), want);
        prop_assert!(!seen.conflicts);
    }
}

#[test]
fn what_is_missing_is_told() {
    let said = |stream: &[u8]| {
        let seen = told(7, &[(0, stream)]);
        (seen.app, seen.reason, seen.truncated)
    };
    let hello = hello();
    assert_eq!(said(&hello), ("tls", None, false));
    assert_eq!(said(&hello[..60]), ("tls", Some("hello-cut"), false));
    let mut damaged = hello.clone();
    // The session id, in a message of 32 random bytes, may have 32 bytes (RFC 8446, section 4.1.2).
    damaged[5 + 4 + 2 + 32] = 33;
    assert_eq!(said(&damaged), ("tls", Some("hello-malformed"), false));
    let tunnel = tunnel();
    assert_eq!(said(&tunnel[..tunnel.len() - 9]), ("http1", Some("hello-cut"), false));
    let http1 = http1();
    assert_eq!(said(&http1[..60]), ("unknown", Some("head-cut"), false));
    assert_eq!(said(&http1), ("http1", None, false));
    assert_eq!(said(b"SSH-2.0-OpenSSH_9.6\r\n"), ("none", None, false));
    assert_eq!(said(b"EHLO a.example"), ("none", None, false));
    for (path, cut) in [(16_384, false), (16_385, true)] {
        let head = format!("GET /{} HTTP/1.1\r\nHost: h\r\n\r\n", "x".repeat(path - 1));
        assert_eq!(said(head.as_bytes()), ("http1", None, cut), "{path}");
    }
}
