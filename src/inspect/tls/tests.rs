//! Hellos of real stacks and made-up ones, whole, cut, split over records, contradictory, damaged.

use std::sync::Arc;

use proptest::prelude::*;
use rustls::{ClientConfig, ClientConnection, RootCertStore, SupportedProtocolVersion};

use super::*;

const LIMIT: u32 = 1 << 16;

/// Type and data.
type Extension = (u16, Vec<u8>);

/// The first flight of a real stack.
pub(crate) fn rustls_hello(
    name: &str,
    versions: &[&'static SupportedProtocolVersion],
    alpn: &[&str],
) -> Vec<u8> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(versions)
        .expect("versions")
        .with_root_certificates(RootCertStore::empty())
        .with_no_client_auth();
    config.alpn_protocols = alpn.iter().map(|p| p.as_bytes().to_vec()).collect();
    let name = name.to_owned().try_into().expect("a server name");
    let mut connection = ClientConnection::new(Arc::new(config), name).expect("client");
    let mut out = Vec::new();
    connection.write_tls(&mut out).expect("a Vec takes all");
    out
}

fn u16_list(items: &[u16]) -> Vec<u8> {
    items.iter().flat_map(|v| v.to_be_bytes()).collect()
}

fn with_len16(body: &[u8]) -> Vec<u8> {
    [&(body.len() as u16).to_be_bytes(), body].concat()
}

fn server_name(name: &[u8]) -> Extension {
    (0, with_len16(&[&[0][..], &with_len16(name)].concat()))
}

fn alpn(protocols: &[&str]) -> Extension {
    let list: Vec<u8> =
        protocols.iter().flat_map(|p| [&[p.len() as u8], p.as_bytes()].concat()).collect();
    (16, with_len16(&list))
}

fn versions(list: &[u16]) -> Extension {
    (43, [&[list.len() as u8 * 2][..], &u16_list(list)].concat())
}

fn key_shares(shares: &[(u16, usize)]) -> Extension {
    let list: Vec<u8> = shares
        .iter()
        .flat_map(|&(group, len)| [&group.to_be_bytes()[..], &with_len16(&vec![7; len])].concat())
        .collect();
    (51, with_len16(&list))
}

/// A hello's handshake message with these extensions.
fn message(extensions: &[Extension]) -> Vec<u8> {
    let mut body = vec![3, 3];
    body.extend([0xab; 32]);
    body.push(32);
    body.extend([0xcd; 32]);
    body.extend(with_len16(&u16_list(&[0x1301, 0x1302, 0xc02b])));
    body.extend([1, 0]);
    let extensions: Vec<u8> = extensions
        .iter()
        .flat_map(|(kind, data)| [&kind.to_be_bytes()[..], &with_len16(data)].concat())
        .collect();
    body.extend(with_len16(&extensions));
    let length = (body.len() as u32).to_be_bytes();
    [&[1], &length[1..], &body].concat()
}

/// The message in records of the given payload sizes, the last size repeated.
fn records(message: &[u8], sizes: &[usize]) -> Vec<u8> {
    let mut out = Vec::new();
    let (mut rest, mut sizes) = (message, sizes.iter());
    let mut size = message.len();
    while !rest.is_empty() {
        size = sizes.next().copied().unwrap_or(size).min(rest.len());
        out.extend([22, 3, 1]);
        out.extend(with_len16(&rest[..size]));
        rest = &rest[size..];
    }
    out
}

/// What browsers send: GREASE, ECH, a hybrid key share.
fn browser_message(name: &str) -> Vec<u8> {
    message(&[
        (0x3a3a, vec![]),
        (0xfe0d, vec![0; 180]),
        key_shares(&[(0x4a4a, 1), (0x11ec, 1216), (0x001d, 32)]),
        versions(&[0x5a5a, 0x0304, 0x0303]),
        alpn(&["h2", "http/1.1"]),
        server_name(name.as_bytes()),
        (0x7a7a, vec![0]),
    ])
}

/// A hello with ECH that goes on with a session and has data behind it.
pub(crate) fn resuming_hello(name: &str) -> Vec<u8> {
    let extensions = [
        (0xfe0d, vec![0; 180]),
        key_shares(&[(0x11ec, 1216), (0x001d, 32)]),
        versions(&[0x5a5a, 0x0304, 0x0303]),
        server_name(name.as_bytes()),
        (42, vec![]),
        (41, vec![0; 40]),
    ];
    records(&message(&extensions), &[1 << 14])
}

fn feed_in(pieces: &[&[u8]], limit: u32) -> HelloParser {
    let mut parser = HelloParser::new(limit);
    for (i, piece) in pieces.iter().enumerate() {
        let last = i + 1 == pieces.len();
        let peek = parser.feed(piece);
        assert!(last || peek != Peek::Found(()) || pieces[i + 1..].concat().is_empty(), "early");
    }
    parser
}

fn whole(bytes: &[u8]) -> HelloParser {
    let mut parser = HelloParser::new(LIMIT);
    parser.feed(bytes);
    parser
}

/// Everything that is told of a hello.
fn answer(p: &HelloParser) -> impl PartialEq + std::fmt::Debug + use<> {
    (
        (p.outcome, p.sni().map(<[u8]>::to_vec), p.alpn().wire().to_vec(), p.alpn_truncated()),
        (p.versions().to_vec(), p.legacy_version(), p.encrypted()),
        (p.post_quantum(), p.grease()),
    )
}

#[test]
fn a_real_tls13_hello_is_read() {
    let hello = rustls_hello("api.openai.com", rustls::ALL_VERSIONS, &["h2", "http/1.1"]);
    let p = whole(&hello);
    assert_eq!(p.sni(), Some(&b"api.openai.com"[..]));
    assert_eq!(p.alpn().iter().collect::<Vec<_>>(), [&b"h2"[..], b"http/1.1"]);
    assert_eq!(p.versions(), [0x0304, 0x0303]);
    assert_eq!((p.legacy_version(), p.encrypted()), (0x0303, Encrypted::No));
    assert!(!p.post_quantum() && !p.grease() && !p.alpn_truncated());
}

#[test]
fn a_real_tls12_hello_is_read() {
    let p = whole(&rustls_hello("backend.internal", &[&rustls::version::TLS12], &[]));
    assert_eq!(p.sni(), Some(&b"backend.internal"[..]));
    assert!(p.alpn().is_empty());
    assert!(p.is_complete());
}

#[test]
fn an_address_is_no_server_name() {
    let p = whole(&rustls_hello("192.0.2.1", rustls::ALL_VERSIONS, &["h2"]));
    assert!(p.is_complete() && p.alpn().contains(b"h2"));
    assert_eq!(p.sni(), None);
}

#[test]
fn what_browsers_send_is_marked() {
    let p = whole(&records(&browser_message("claude.ai"), &[]));
    assert_eq!(p.sni(), Some(&b"claude.ai"[..]));
    assert_eq!(p.versions(), [0x0304, 0x0303]);
    assert!(p.post_quantum() && p.grease());
    assert_eq!(p.encrypted(), Encrypted::Ech);
}

#[test]
fn a_hello_without_extensions_is_one() {
    let mut bare = message(&[]);
    bare.truncate(bare.len() - 2);
    bare[3] -= 2;
    let p = whole(&records(&bare, &[]));
    assert!(p.is_complete() && p.sni().is_none());
}

#[test]
fn cut_anywhere_it_says_the_same() {
    let hello = rustls_hello("api.anthropic.com", rustls::ALL_VERSIONS, &["h2", "http/1.1"]);
    let want = answer(&whole(&hello));
    let bytes: Vec<&[u8]> = hello.chunks(1).collect();
    assert_eq!(answer(&feed_in(&bytes, LIMIT)), want);
    for i in 0..=hello.len() {
        for j in i..=hello.len() {
            let p = feed_in(&[&hello[..i], &hello[i..j], &hello[j..]], LIMIT);
            assert_eq!(answer(&p), want, "cut at {i} and {j}");
        }
    }
}

#[test]
fn split_over_records_it_says_the_same() {
    let message = browser_message("api.mistral.ai");
    let want = answer(&whole(&records(&message, &[])));
    for first in 1..message.len() {
        assert_eq!(answer(&whole(&records(&message, &[first, usize::MAX]))), want, "{first}");
    }
    for size in 1..20 {
        let split = records(&message, &[size]);
        assert_eq!(answer(&whole(&split)), want, "records of {size}");
        let single: Vec<&[u8]> = split.chunks(1).collect();
        assert_eq!(answer(&feed_in(&single, LIMIT)), want, "records of {size} in single bytes");
    }
}

/// Messages without records, in pieces of the given size.
fn bare(message: &[u8], size: usize, limit: u32) -> HelloParser {
    let mut parser = HelloParser::new(limit);
    for piece in message.chunks(size) {
        parser.feed_message(piece);
    }
    parser
}

#[test]
fn without_records_it_says_the_same() {
    let message = browser_message("api.deepseek.com");
    let enough = records(&message, &[]).len() as u32;
    let want = answer(&whole(&records(&message, &[])));
    for size in [1, 2, 3, 5, 7, 100, message.len()] {
        assert_eq!(answer(&bare(&message, size, enough)), want, "pieces of {size}");
        let p = bare(&message, size, enough - 1);
        assert_eq!(p.failure(), Some(Failure::TooLong), "pieces of {size}");
        let p = bare(&[&message[..], b"\x02\0\0\x04more"].concat(), size, LIMIT);
        assert_eq!(answer(&p), want, "pieces of {size}, another message behind");
    }
    let mut server_hello = message.clone();
    server_hello[0] = 2;
    assert_eq!(bare(&server_hello, 1, LIMIT).failure(), Some(Failure::NotTls));
    let twice = super::tests::message(&[server_name(b"a.test"), server_name(b"b.test")]);
    assert_eq!(bare(&twice, 1, LIMIT).failure(), Some(Failure::Malformed));
    assert!(!bare(&message[..message.len() - 1], 1, LIMIT).is_complete());
}

#[test]
fn what_follows_the_hello_is_left_alone() {
    let mut stream = rustls_hello("api.groq.com", rustls::ALL_VERSIONS, &["h2"]);
    let want = answer(&whole(&stream));
    stream.extend([20, 3, 3, 0, 1, 1, 0xff, 0xff, 0xff]);
    assert_eq!(answer(&whole(&stream)), want);
}

#[test]
fn other_protocols_are_refused_at_the_first_byte_that_tells() {
    let cases: [(&[u8], usize); 7] = [
        (b"GET / HTTP/1.1\r\n", 1),
        (b"SSH-2.0-OpenSSH", 1),
        (&[0x80, 0x2e, 2], 3),
        (&[23, 3, 3, 0, 20], 1),
        (&[22, 2, 0, 0, 20], 2),
        (&[22, 3, 1, 0x40, 1], 5),
        (&[22, 3, 3, 0, 90, 2, 0, 0, 86], 6),
    ];
    for (bytes, at) in cases {
        let mut p = HelloParser::new(LIMIT);
        for (i, byte) in bytes.iter().enumerate() {
            let want = if i + 1 < at { Peek::NeedMore } else { Peek::NotThis };
            assert_eq!(p.feed(&[*byte]), want, "byte {i} of {bytes:x?}");
        }
        assert_eq!(p.failure(), Some(Failure::NotTls));
    }
}

#[test]
fn contradictions_are_malformed() {
    let name = || server_name(b"api.openai.com");
    let nul = b"api.openai.com\0.evil.test";
    let two_names = [&[0][..], &with_len16(b"a.test"), &[0], &with_len16(b"b.test")].concat();
    let cases: Vec<(&str, Vec<Extension>)> = vec![
        ("NUL in the name", vec![server_name(nul)]),
        ("a space in the name", vec![server_name(b"api.openai .com")]),
        ("a byte beyond ASCII", vec![server_name(b"api\xe9.test")]),
        ("an empty name", vec![server_name(b"")]),
        ("256 bytes of name", vec![server_name(&[b'a'; 256])]),
        ("two server_name extensions", vec![name(), server_name(b"evil.test")]),
        ("two host_names", vec![(0, with_len16(&two_names))]),
        ("two ALPN extensions", vec![alpn(&["h2"]), name(), alpn(&["http/1.1"])]),
        ("an empty protocol", vec![name(), alpn(&["h2", ""])]),
        ("a list shorter than its extension", vec![(0, [&name().1[..], b"x"].concat())]),
        ("a list longer than its extension", vec![(0, vec![0, 9, 0, 0, 1, b'a'])]),
        ("a name longer than its list", vec![(0, vec![0, 4, 0, 0, 9, b'a'])]),
        ("an extension of half a length", vec![(0, vec![0])]),
        ("a key share beyond its list", vec![name(), (51, vec![0, 4, 0, 29, 0, 1])]),
    ];
    for (what, extensions) in cases {
        let stream = records(&message(&extensions), &[]);
        let p = whole(&stream);
        assert_eq!(p.failure(), Some(Failure::Malformed), "{what}");
        assert_eq!((p.sni(), p.alpn().is_empty()), (None, true), "{what}");
        let single: Vec<&[u8]> = stream.chunks(1).collect();
        assert_eq!(answer(&feed_in(&single, LIMIT)), answer(&p), "{what}");
    }
}

#[test]
fn half_a_version_is_passed_over() {
    let odd = (43, vec![3, 3, 4, 3]);
    let stream = records(&message(&[odd, server_name(b"api.openai.com")]), &[]);
    let p = whole(&stream);
    assert_eq!((p.sni(), p.versions()), (Some(&b"api.openai.com"[..]), &[0x0304][..]));
    let single: Vec<&[u8]> = stream.chunks(1).collect();
    assert_eq!(answer(&feed_in(&single, LIMIT)), answer(&p));
}

#[test]
fn wrong_lengths_outside_extensions_are_malformed() {
    let good = message(&[server_name(b"api.openai.com")]);
    // Offset of a length byte, and what to make of it.
    for (at, value) in [(3, 60), (4, 2), (38, 33), (72, 1), (72, 0), (71, 255), (79, 0), (82, 9)] {
        let mut bad = good.clone();
        assert_ne!(bad[at], value);
        bad[at] = value;
        let p = whole(&records(&bad, &[]));
        assert!(p.sni().is_none(), "byte {at} = {value}: {:?}", p.outcome);
    }
    let mut interleaved = records(&good, &[20, usize::MAX]);
    interleaved[25] = 21;
    assert_eq!(whole(&interleaved).failure(), Some(Failure::Malformed));
}

#[test]
fn the_name_may_be_as_long_as_dns_allows_and_is_kept_as_sent() {
    let long = [b'a'; SNI_BYTES_MAX];
    assert_eq!(whole(&records(&message(&[server_name(&long)]), &[])).sni(), Some(&long[..]));
    let mixed = records(&message(&[server_name(b"API.OpenAI.com.")]), &[]);
    assert_eq!(whole(&mixed).sni(), Some(&b"API.OpenAI.com."[..]));
    let other_kind = [&[9][..], &with_len16(b"\0x"), &[0], &with_len16(b"a.test")].concat();
    let p = whole(&records(&message(&[(0, with_len16(&other_kind))]), &[]));
    assert_eq!(p.sni(), Some(&b"a.test"[..]));
}

#[test]
fn a_long_list_of_protocols_is_cut_at_an_entry() {
    let long = "x".repeat(100);
    let p = whole(&records(&message(&[alpn(&["h2", &long, &long, "h3"])]), &[]));
    assert_eq!(p.alpn().iter().collect::<Vec<_>>(), [b"h2", long.as_bytes()]);
    assert!(p.alpn_truncated());
}

#[test]
fn a_hello_of_60_kilobytes_with_its_name_last_is_read() {
    let message = message(&[(21, vec![0; 60_000]), server_name(b"last.test")]);
    let stream = records(&message, &[RECORD_BYTES_MAX]);
    assert_eq!(whole(&stream).sni(), Some(&b"last.test"[..]));
}

#[test]
fn limits_hold() {
    let stream = records(&message(&[server_name(b"api.openai.com")]), &[]);
    let enough = stream.len() as u32;
    assert!(feed_in(&[&stream], enough).is_complete());
    let announced = feed_in(&[&stream[..9]], enough - 1);
    assert_eq!(announced.failure(), Some(Failure::TooLong));
    // Headers of tiny records count too.
    let tiny = records(&stream[5..], &[1]);
    assert_eq!(feed_in(&[&tiny], enough).failure(), Some(Failure::TooLong));
    let empty_records = [22, 3, 1, 0, 0].repeat(1_000);
    assert_eq!(feed_in(&[&empty_records], 1_000).failure(), Some(Failure::TooLong));
}

proptest! {
    #[test]
    fn any_cut_of_records_and_segments_says_the_same(
        sizes in prop::collection::vec(1usize..700, 1..8),
        cuts in prop::collection::vec(0usize..4_000, 0..12),
    ) {
        let message = browser_message("generativelanguage.googleapis.com");
        let want = answer(&whole(&records(&message, &[])));
        let stream = records(&message, &sizes);
        let mut parser = HelloParser::new(LIMIT);
        let mut cuts: Vec<usize> = cuts.iter().map(|c| c % stream.len()).collect();
        cuts.extend([0, stream.len()]);
        cuts.sort_unstable();
        for pair in cuts.windows(2) {
            parser.feed(&stream[pair[0]..pair[1]]);
        }
        prop_assert_eq!(answer(&parser), want);
    }

    #[test]
    fn damaged_hellos_never_panic_and_say_the_same_however_cut(
        damage in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
        length in any::<prop::sample::Index>(),
        size in 1usize..300,
    ) {
        let mut stream = records(&browser_message("api.cohere.com"), &[size]);
        for (at, value) in damage {
            let at = at.index(stream.len());
            stream[at] = value;
        }
        stream.truncate(length.index(stream.len()) + 1);
        let mut single = HelloParser::new(LIMIT);
        for byte in &stream {
            single.feed(std::slice::from_ref(byte));
        }
        prop_assert_eq!(answer(&single), answer(&whole(&stream)));
    }

    #[test]
    fn noise_never_panics(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        let framed = records(&[&[1, 0, 1, 0, 3, 3][..], &bytes].concat(), &[]);
        prop_assert!(whole(&framed).sni().is_none_or(|name| !name.is_empty()));
        whole(&bytes);
    }
}

#[test]
fn session_marks_and_groups_are_seen() {
    let plain = message(&[server_name(b"a.example"), (35, vec![])]);
    let resumed = message(&[
        key_shares(&[(0x0a0a, 1), (0x11ec, 1216), (0x1d, 32), (0x6399, 9)]),
        (42, vec![]),
        (41, vec![0; 40]),
    ]);
    let ticket = message(&[(35, vec![1; 9])]);
    for (message, resumes, early, groups) in [
        (plain, false, false, &[][..]),
        (resumed, true, true, &[0x11ec, 0x6399]),
        (ticket, true, false, &[]),
    ] {
        let mut parser = HelloParser::new(LIMIT);
        assert_eq!(parser.feed(&records(&message, &[1 << 14])), Peek::Found(()));
        assert_eq!((parser.resumed(), parser.early_data()), (resumes, early));
        assert_eq!(parser.post_quantum_groups(), groups);
    }
}

#[test]
fn the_fingerprint_names_what_was_offered() {
    let sent = [
        server_name(b"a.example"),
        alpn(&["http/1.1", "h2"]),
        versions(&[0x2a2a, 0x0304, 0x0303]),
        (13, with_len16(&u16_list(&[0x0403, 0x0804]))),
        (0x3a3a, vec![]),
    ];
    let mut parser = HelloParser::new(LIMIT);
    assert_eq!(parser.feed(&records(&message(&sent), &[100])), Peek::Found(()));
    let ja4 = parser.ja4(Carrier::Tcp).expect("within the limits");
    // printf 1301,1302,c02b | sha256sum; printf 000d,002b_0403,0804 | sha256sum
    assert_eq!(ja4.as_str(), "t13d0304h1_5559582ccdc4_ef5f37ab036a");
}
