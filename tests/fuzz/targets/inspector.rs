//! A connection in any pieces says the same as byte by byte, and all parsers are given back.

use tidegate::flow::reassembly::Reassembler;
use tidegate::inspect::fields::Wanted;
use tidegate::inspect::inspector::{App, Inspector, Pool, Rooms, Side, Unknown};
use tidegate::inspect::tls::Ja4;

use super::client_hello::ClientHello;
use super::script::Input;

const JOINED: u8 = 1;
const DATAGRAMS: u8 = 2;
const SERVER: u8 = 1;
const ROOMS: Rooms =
    Rooms { greetings: 1, target: 64, first_target: 64, heads: 2, table: 4_096, whole_tables: 1 };

/// All that an inspector tells.
#[derive(Debug, PartialEq, Eq)]
struct Answer {
    app: App,
    unknown: Option<Unknown>,
    done: bool,
    sni: Option<Vec<u8>>,
    ja4: Option<Ja4>,
    chosen: Option<u16>,
    request: Option<[Vec<u8>; 3]>,
    requests: u64,
}

/// Input: whether the beginning was missed, or these are datagrams; then pieces: whose, how long
/// (16 bits), and the bytes.
pub fn run(data: &[u8]) {
    let mut input = Input::new(data);
    let mode = input.u8();
    let mut pieces = Vec::new();
    while !input.is_empty() {
        let side = if input.u8() & SERVER != 0 { Side::Server } else { Side::Client };
        let len = usize::from(input.u16() % 2_048);
        pieces.push((side, input.bytes(len)));
    }
    if mode & DATAGRAMS != 0 {
        read(mode, &pieces);
        return;
    }
    let bytes = |&(side, piece): &(Side, &'_ [u8])| -> Vec<(Side, u8)> {
        piece.iter().map(|byte| (side, *byte)).collect()
    };
    let single: Vec<(Side, u8)> = pieces.iter().flat_map(bytes).collect();
    let single: Vec<(Side, &[u8])> =
        single.iter().map(|(side, byte)| (*side, std::slice::from_ref(byte))).collect();
    assert_eq!(read(mode, &pieces), read(mode, &single), "mode {mode}");
}

fn read(mode: u8, pieces: &[(Side, &[u8])]) -> Answer {
    let wanted = Wanted::new([]).expect("no more names");
    let mut pool = Pool::filled(wanted, ROOMS, 1);
    let mut reassembler = Reassembler::new(1, 32);
    let mut inspector = Inspector::new(mode & JOINED != 0);
    for &(side, piece) in pieces {
        if mode & DATAGRAMS != 0 {
            inspector.datagram(&mut pool, &mut reassembler, 0, side, piece);
        } else {
            inspector.stream(&mut pool, side, piece);
        }
    }
    let answer = Answer {
        app: inspector.app(),
        unknown: inspector.unknown(),
        done: inspector.is_done(),
        sni: inspector.client_hello().and_then(|hello| hello.sni()).map(<[u8]>::to_vec),
        ja4: inspector.ja4(),
        chosen: inspector.server_hello().and_then(|hello| hello.version()),
        request: inspector.request().map(|request| {
            let text = |value: Option<&[u8]>| value.unwrap_or(b"-").to_vec();
            [request.method.to_vec(), text(request.authority), text(request.path)]
        }),
        requests: inspector.requests(),
    };
    assert!(answer.sni.is_none() || answer.app != App::None);
    assert!(answer.request.is_none() || inspector.knows());
    inspector.give_back(&mut pool);
    assert!(!pool.is_empty(), "a parser is lost");
    answer
}

fn piece(side: u8, bytes: &[u8]) -> Vec<u8> {
    [&[side][..], &(bytes.len() as u16).to_be_bytes(), bytes].concat()
}

/// Seeds by name.
pub fn seeds() -> Vec<(String, Vec<u8>)> {
    let name = Some(&b"a.example"[..]);
    let hello = ClientHello { name, protocols: &[b"h2"], padding: 99, record_len: 60 }.bytes();
    let server = [&[22, 3, 3, 0, 42, 2, 0, 0, 38, 3, 3][..], &[7; 32], &[0, 0x13, 1, 0]].concat();
    let get = b"GET /a HTTP/1.1\r\nHost: a.example\r\n\r\n";
    let ok = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";
    let connect = b"CONNECT a.example:443 HTTP/1.1\r\nHost: a.example\r\n\r\n";
    let upgrade = b"GET / HTTP/1.1\r\nHost: b\r\nConnection: Upgrade, HTTP2-Settings\r\n\
        Upgrade: h2c\r\nHTTP2-Settings: AAMAAABk\r\n\r\n";
    let switching = b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: h2c\r\n\r\n\0\0\0\x04\0\0\0\0\0";
    let preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
    let settings = b"\0\0\0\x04\0\0\0\0\0";
    let headers = b"\0\0\x04\x01\x05\0\0\0\x01\x82\x84\x86\x41";
    let mixed = b"\0\0\x0b\x01\x05\0\0\0\x03\x82\x84\x86\x01\x06c.test";
    let seeds = [
        ("tls", vec![vec![0], piece(0, &hello[..100]), piece(0, &hello[100..]), piece(1, &server)]),
        (
            "ssl2",
            vec![
                vec![0],
                piece(0, b"\x80\x1c\x01\x03\x01\0\x03\0\0\0\x10\0\0\x35"),
                piece(0, &[9; 16]),
            ],
        ),
        ("http1", vec![vec![0], piece(0, get), piece(1, ok), piece(0, get), piece(1, ok)]),
        ("http1-joined", vec![vec![1], piece(1, ok), piece(0, get)]),
        (
            "connect",
            vec![
                vec![0],
                piece(0, connect),
                piece(1, b"HTTP/1.1 200 OK\r\n\r\n"),
                piece(0, &hello),
            ],
        ),
        (
            "upgrade",
            vec![
                vec![0],
                piece(0, upgrade),
                piece(1, switching),
                piece(0, preface),
                piece(0, settings),
            ],
        ),
        (
            "h2c",
            vec![
                vec![0],
                piece(0, preface),
                piece(0, settings),
                piece(0, mixed),
                piece(1, settings),
            ],
        ),
        ("h2c-server-first", vec![vec![0], piece(1, settings), piece(0, preface), piece(0, mixed)]),
        ("h2c-joined", vec![vec![1], piece(1, settings), piece(0, settings), piece(0, mixed)]),
        ("h2c-damaged", vec![vec![0], piece(0, preface), piece(0, headers)]),
        ("not-http", vec![vec![0], piece(0, b"REQ /x HTTP/1.0\r\n\r\n"), piece(1, b"RSP")]),
        ("datagrams", vec![vec![2], piece(0, b"\xc0\0\0\0\x01\x08abcdefgh\0\0\0"), piece(1, b"x")]),
    ];
    seeds.map(|(name, parts)| (name.to_owned(), parts.concat())).into()
}
