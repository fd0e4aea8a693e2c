//! Seeds of the targets of `http`.

use super::http::SERVER;

type Named = (String, Vec<u8>);
/// Whether it is the server's, and bytes.
type Segment<'a> = (bool, &'a [u8]);
type Segments<'a> = &'a [Segment<'a>];

/// Pieces of 3, 1 and 20 bytes, then segments.
fn script(segments: Segments<'_>) -> Vec<u8> {
    let mut bytes = vec![3, 3, 1, 20];
    for (server, segment) in segments {
        let head = segment.len() as u16 | if *server { SERVER } else { 0 };
        bytes.extend(head.to_be_bytes());
        bytes.extend(*segment);
    }
    bytes
}

fn named(seeds: &[(&str, Segments<'_>)]) -> Vec<Named> {
    seeds.iter().map(|(name, segments)| (name.to_string(), script(segments))).collect()
}

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
const ANSWER: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";

/// Connections of HTTP/1.
pub fn http1() -> Vec<Named> {
    named(&[
        (
            "kept",
            &[
                (false, b"POST /v1 HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\nabc"),
                (false, b"HEAD / HTTP/1.0\r\nX-Tenant: t\r\nx-tenant:u \r\n\r\n"),
                (true, b"HTTP/1.1 100 Continue\r\n\r\n"),
                (true, ANSWER),
                (true, b"HTTP/1.1 200\nContent-Type: text/event-stream\n\n"),
            ],
        ),
        (
            "chunked",
            &[
                (false, b"GET / HTTP/1.1\r\nTransfer-Encoding: gzip, chunked\r\n\r\n"),
                (false, b"5;a=b\r\nabcde\r\n0\r\nTrailer: t\r\n\r\nGET /2 HTTP/1.1\r\n\r\n"),
                (true, b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n0\r\n\r\n"),
            ],
        ),
        ("folded", &[(false, b"\r\nGET /a b HTTP/1.1\r\nHost:\r\n\ta \r\n b\r\n\r\n")]),
        (
            "ambiguous",
            &[(
                false,
                b"GET / HTTP/1.1\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n",
            )],
        ),
        (
            "twice",
            &[(false, b"PUT / HTTP/1.1\r\nContent-Length: 1\r\nContent-Length: 1\r\n\r\nxG")],
        ),
        (
            "connect",
            &[
                (false, b"CONNECT a:443 HTTP/1.1\r\n\r\n"),
                (true, b"HTTP/1.1 200 OK\r\n\r\n\x16"),
                (false, b"\x16\x03\x01"),
            ],
        ),
        (
            "refused",
            &[(false, b"CONNECT a:1 HTTP/1.1\r\n\r\n"), (true, ANSWER), (false, b"GET / HTTP/1.1")],
        ),
        (
            "websocket",
            &[
                (false, b"GET / HTTP/1.1\r\nUpgrade: websocket\r\n\r\n"),
                (true, b"HTTP/1.1 101 Go\r\nUpgrade: websocket\r\n\r\n\x81\x01a"),
                (false, b"\x81\x81"),
            ],
        ),
        (
            "upgrade",
            &[
                (false, b"GET / HTTP/1.1\r\nUpgrade: h2c\r\nHTTP2-Settings: AAEAAAAA\r\n\r\n"),
                (true, b"HTTP/1.1 101 Go\r\nUpgrade: h2c\r\n\r\n\0"),
                (false, PREFACE),
            ],
        ),
        ("preface", &[(false, PREFACE), (true, b"\0\0\0\x04\0\0\0\0\0")]),
        ("absolute", &[(false, b"GET http://u@b:80/x?y HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n")]),
        ("no-http", &[(false, b"SSH-2.0-x\r\n"), (true, b"220 mail\r\n")]),
    ])
}

/// Blocks that use the table, one after the other.
const BLOCKS: [&[u8]; 4] = [
    // From appendix C of RFC 7541.
    b"\x82\x86\x84\x41\x0fwww.example.com",
    b"\x82\x86\x84\xbe\x58\x08no-cache",
    b"\x82\x87\x85\xbf\x40\x0acustom-key\x0ccustom-value",
    b"\x82\x86\x84\x41\x8c\xf1\xe3\xc2\xe5\xf2\x3a\x6b\xa0\xab\x90\xf4\xff",
];

/// Header blocks.
pub fn hpack() -> Vec<Named> {
    let long = [&b"\x40\x08x-tenant\x7f\x81\x07"[..], &[b'v'; 1_024]].concat();
    let four: Vec<Segment<'_>> = vec![(false, &long); 4];
    let mut all = named(&[
        ("examples", &BLOCKS.map(|block| (false, block))),
        ("resized", &[(false, BLOCKS[0]), (false, b"\x20\x3f\xe1\x1f\x82"), (false, b"\xbe")]),
        ("limited", &[(true, b"\x64"), (false, b"\x3f\x45\x82"), (false, BLOCKS[2])]),
        ("large", &[(true, b"\x01\0\0"), (false, b"\x3f\xe1\xff\x03"), (false, BLOCKS[2])]),
        ("not-added", &[(false, b"\x04\x02/x\x14\x02/y\x10\x01a\x01b\0\x01A\0")]),
        ("integer", &[(false, b"\xff\x80\x80\x80\x80\x80\0")]),
        ("padding", &[(false, b"\x41\x81\xfe")]),
        ("cut-off", &[(false, b"\x41\x05ab")]),
        ("index", &[(false, b"\x80")]),
        ("misplaced", &[(false, b"\x82\x20")]),
    ]);
    all.push(("evicting".into(), script(&[&four[..], &[(false, b"\xbe\xbf\xc0")]].concat())));
    all
}

fn frame(kind: u8, flags: u8, stream: u8, payload: &[u8]) -> Vec<u8> {
    let length = (payload.len() as u32).to_be_bytes();
    [&length[1..], &[kind, flags, 0, 0, 0, stream], payload].concat()
}

fn client(bytes: &[u8]) -> Segment<'_> {
    (false, bytes)
}

fn server(bytes: &[u8]) -> Segment<'_> {
    (true, bytes)
}

/// Connections of HTTP/2.
pub fn h2() -> Vec<Named> {
    let settings = frame(4, 0, 0, b"\0\x01\0\0\0\x64\0\x05\0\0\x40\0");
    let (ack, open) = (frame(4, 1, 0, b""), [PREFACE, &settings].concat());
    let get = frame(1, 5, 1, BLOCKS[0]);
    let again = frame(1, 4, 3, BLOCKS[1]);
    let cut = [frame(1, 1, 1, &BLOCKS[0][..6]), frame(9, 4, 1, &BLOCKS[0][6..])].concat();
    let padded = frame(1, 0x2c, 1, &[b"\x02\0\0\0\0\x10", BLOCKS[0], b"\0\0"].concat());
    let answer = [frame(1, 4, 1, b"\x88"), frame(0, 9, 1, b"\x01ab\0")].concat();
    let trailers = frame(1, 5, 1, b"\0\x0bgrpc-status\x010");
    let promise = frame(5, 4, 1, &[b"\0\0\0\x02", BLOCKS[0]].concat());
    let others = [
        frame(2, 0, 3, b"\0\0\0\x01\x10"),
        frame(3, 0, 1, b"\0\0\0\x08"),
        frame(6, 0, 0, b"12345678"),
        frame(8, 0, 0, b"\0\0\0\x01"),
        frame(99, 7, 0, b"x"),
        frame(7, 0, 0, b"\0\0\0\x01\0\0\0\0debug"),
    ]
    .concat();
    let seeds: [(&str, u8, Vec<Segment<'_>>); 12] = [
        ("requests", 0, vec![client(&open), client(&get), client(&again)]),
        ("answers", 0, vec![client(&open), client(&get), server(&answer), server(&trailers)]),
        ("continued", 0, vec![client(&open), client(&cut)]),
        ("padded", 0, vec![client(&open), client(&padded)]),
        ("others", 1, vec![client(&others), server(&others)]),
        ("promise", 1, vec![client(&get), server(&promise)]),
        ("settings", 1, vec![server(&settings), client(&ack), client(&get)]),
        ("upgraded", 2, vec![server(b"\0\0\x02\x01\x04\0\0\0\x01\x3f\x45"), client(&get)]),
        ("joined", 3, vec![client(&again), client(&get), server(&answer)]),
        ("mixed", 1, vec![client(&cut[..20]), client(&get)]),
        ("compression", 1, vec![client(b"\0\0\x01\x01\x04\0\0\0\x01\xbe")]),
        ("frame-size", 1, vec![client(b"\0\x40\x01\0\0\0\0\0\x01")]),
    ];
    let named = seeds.into_iter().map(|(name, start, segments)| {
        (name.to_string(), [&[start], &script(&segments)[..]].concat())
    });
    named.collect()
}
