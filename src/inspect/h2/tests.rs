//! Connections made of frames, each cut in many ways.

use proptest::prelude::*;

use super::Side::{Client, Server};
use super::*;
use crate::inspect::fields::PATH_BYTES;
use crate::inspect::grpc;
use crate::inspect::hpack::TABLE_BYTES;

type Script = Vec<(Side, Vec<u8>)>;

fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = (payload.len() as u32).to_be_bytes();
    let mut bytes = length[1..].to_vec();
    bytes.extend([kind, flags]);
    bytes.extend(stream.to_be_bytes());
    bytes.extend(payload);
    bytes
}

fn headers(flags: u8, stream: u32, block: &[u8]) -> Vec<u8> {
    frame(kind::HEADERS, flags | flag::END_HEADERS, stream, block)
}

fn settings(entries: &[(u16, u32)]) -> Vec<u8> {
    let bytes = |(id, value): &(u16, u32)| [&id.to_be_bytes()[..], &value.to_be_bytes()].concat();
    frame(kind::SETTINGS, 0, 0, &entries.iter().flat_map(bytes).collect::<Vec<_>>())
}

/// A literal with an indexed name, not added to the table.
fn literal(index: u8, value: &str) -> Vec<u8> {
    let mut bytes = if index < 15 { vec![index] } else { vec![15, index - 15] };
    bytes.push(value.len() as u8);
    bytes.extend(value.bytes());
    bytes
}

/// `:method: GET`, `:path` and `:authority`.
fn get(path: &str) -> Vec<u8> {
    [vec![0x82], literal(4, path), literal(1, "a.test")].concat()
}

fn text(value: Option<&[u8]>) -> String {
    String::from_utf8_lossy(value.unwrap_or(b"-")).into_owned()
}

fn line(event: Event<'_>) -> String {
    match event {
        Event::Headers { stream, block, end_stream, fields } => {
            let end = if end_stream { " end" } else { "" };
            let marks = if fields.is_malformed() { " malformed" } else { "" };
            let unknown = if fields.has_unknown() { " unknown" } else { "" };
            let what = match block {
                Block::Request | Block::Promise { .. } => {
                    let call =
                        grpc::call(fields).map(|c| format!(" calls {}", text(Some(c.method))));
                    let (method, authority) = (text(fields.method()), text(fields.authority()));
                    let path = text(fields.path());
                    format!("{method} {authority} {path}{}", call.unwrap_or_default())
                }
                _ => format!("{:?} {:?}", fields.status(), grpc::status(fields)),
            };
            format!("{stream} {block:?} {what}{end}{marks}{unknown}")
        }
        other => format!("{other:?}"),
    }
}

/// In pieces of these sizes, over and over; 0 is all at once.
fn read(start: Start<'_>, script: &Script, sizes: &[usize]) -> Vec<String> {
    let wanted = Wanted::new([]).unwrap();
    let mut connection = Connection::new(&wanted, PATH_BYTES, TABLE_BYTES);
    connection.reset(start);
    let mut told = Vec::new();
    let mut sizes = sizes.iter().cycle();
    for (side, bytes) in script {
        let mut rest = &bytes[..];
        while !rest.is_empty() {
            let size = sizes.next().filter(|n| **n > 0).map_or(rest.len(), |n| *n);
            let (piece, after) = rest.split_at(size.min(rest.len()));
            rest = after;
            let done = connection.feed(*side, piece, &wanted, |event| told.push(line(event)));
            if let Err(failure) = done {
                told.push(format!("{side:?} {failure:?}"));
                assert_eq!(connection.feed(*side, piece, &wanted, |_| panic!()), Err(failure));
                break;
            }
        }
    }
    told.push(format!("{} requests", connection.requests()));
    told
}

fn expect(start: Start<'_>, script: &Script, told: &[&str]) {
    assert_eq!(read(start, script, &[0]), told, "in one piece");
    for size in 1..60 {
        assert_eq!(read(start, script, &[size]), told, "in pieces of {size} bytes");
    }
}

fn client(frames: &[Vec<u8>]) -> Script {
    vec![(Client, [PREFACE, &settings(&[]), &frames.concat()].concat())]
}

fn both(requests: &[Vec<u8>], answers: &[Vec<u8>]) -> Script {
    let mut script = client(requests);
    script.push((Server, [settings(&[]), answers.concat()].concat()));
    script
}

#[test]
fn requests_answers_and_trailers() {
    let grpc = [get("/s.S/M"), literal(31, "application/grpc+proto")].concat();
    let status = [&[0u8, 11][..], b"grpc-status", &[1], b"7"].concat();
    expect(
        Start::Preface,
        &both(
            &[
                headers(flag::END_STREAM, 1, &get("/x")),
                headers(0, 3, &grpc),
                frame(kind::DATA, flag::END_STREAM, 3, b"request"),
                headers(flag::END_STREAM, 3, &[]),
            ],
            &[
                headers(0, 1, &literal(8, "103")),
                headers(0, 1, &[0x88]),
                frame(kind::DATA, flag::PADDED, 1, b"\x02abc\0\0"),
                headers(flag::END_STREAM, 3, &status),
                frame(kind::RST_STREAM, 0, 1, &[0, 0, 0, 8]),
                frame(kind::GOAWAY, 0, 0, &[0x80, 0, 0, 3, 0, 0, 0, 0, b'd']),
            ],
        ),
        &[
            "1 Request GET a.test /x end",
            "3 Request GET a.test /s.S/M calls M",
            "Data { stream: 3, length: 7, end_stream: true }",
            "3 Trailers None None end",
            "1 Interim Some(103) None",
            "1 Response Some(200) None",
            "Data { stream: 1, length: 6, end_stream: false }",
            "3 Trailers None Some(7) end",
            "Reset { stream: 1, code: ErrorCode(8) }",
            "GoAway { last_stream: 3, code: ErrorCode(0) }",
            "2 requests",
        ],
    );
}

#[test]
fn blocks_over_frames_with_padding_and_priority() {
    let block = get("/x");
    for at in 0..=block.len() {
        let first = [&[3, 0x80, 0, 0, 5, 200][..], &block[..at], &[0; 3]].concat();
        let flags = flag::PADDED | flag::PRIORITY | flag::END_STREAM;
        let script = client(&[
            frame(kind::PRIORITY, 0, 9, &[0, 0, 0, 1, 16]),
            frame(99, 0xff, 7, b"unknown"),
            frame(kind::PING, 0, 0, b"12345678"),
            frame(kind::HEADERS, flags, 1, &first),
            frame(kind::CONTINUATION, 0, 1, &block[at..]),
            frame(kind::CONTINUATION, flag::END_HEADERS, 1, &[]),
            frame(kind::WINDOW_UPDATE, 0, 0, &[0x80, 0, 0, 1]),
        ]);
        expect(Start::Preface, &script, &["1 Request GET a.test /x end", "1 requests"]);
    }
}

#[test]
fn pushed_requests() {
    let promise = [&[0, 0, 0, 2][..], &get("/pushed")].concat();
    let promise = frame(kind::PUSH_PROMISE, flag::END_HEADERS, 1, &promise);
    let told = "1 Promise { promised: 2 } GET a.test /pushed";
    let script = both(&[headers(0, 1, &get("/"))], std::slice::from_ref(&promise));
    expect(Start::Preface, &script, &["1 Request GET a.test /", told, "1 requests"]);
    let told = [told, "Client Connection(ErrorCode(1))", "0 requests"];
    expect(Start::Preface, &client(&[promise]), &told);
}

#[test]
fn connection_errors_have_the_codes_of_the_standard() {
    let block = get("/x");
    let open = frame(kind::HEADERS, 0, 1, &block);
    let cases = [
        ("data on stream 0", vec![frame(kind::DATA, 0, 0, b"x")], 1),
        ("headers on stream 0", vec![headers(0, 0, &block)], 1),
        ("headers on an even stream", vec![headers(0, 2, &block)], 1),
        ("priority on stream 0", vec![frame(kind::PRIORITY, 0, 0, &[0; 5])], 1),
        ("reset of stream 0", vec![frame(kind::RST_STREAM, 0, 0, &[0; 4])], 1),
        ("reset of 3 bytes", vec![frame(kind::RST_STREAM, 0, 1, &[0; 3])], 6),
        ("settings on a stream", vec![frame(kind::SETTINGS, 0, 1, &[])], 1),
        ("settings of 7 bytes", vec![frame(kind::SETTINGS, 0, 0, &[0; 7])], 6),
        ("acknowledged settings", vec![frame(kind::SETTINGS, flag::ACK, 0, &[0; 6])], 6),
        ("push neither on nor off", vec![settings(&[(setting::ENABLE_PUSH, 2)])], 1),
        ("window too large", vec![settings(&[(setting::INITIAL_WINDOW_SIZE, 1 << 31)])], 3),
        ("frames too small", vec![settings(&[(setting::MAX_FRAME_SIZE, 16_383)])], 1),
        ("frames too large", vec![settings(&[(setting::MAX_FRAME_SIZE, 1 << 24)])], 1),
        ("promise on stream 0", vec![frame(kind::PUSH_PROMISE, 4, 0, &[0, 0, 0, 2])], 1),
        ("promise of stream 0", vec![frame(kind::PUSH_PROMISE, 4, 1, &[0; 4])], 1),
        ("promise of 3 bytes", vec![frame(kind::PUSH_PROMISE, 4, 1, &[0; 3])], 6),
        ("ping on a stream", vec![frame(kind::PING, 0, 1, &[0; 8])], 1),
        ("ping of 7 bytes", vec![frame(kind::PING, 0, 0, &[0; 7])], 6),
        ("goaway on a stream", vec![frame(kind::GOAWAY, 0, 1, &[0; 8])], 1),
        ("goaway of 7 bytes", vec![frame(kind::GOAWAY, 0, 0, &[0; 7])], 6),
        ("window of 5 bytes", vec![frame(kind::WINDOW_UPDATE, 0, 0, &[0; 5])], 6),
        ("window by 0", vec![frame(kind::WINDOW_UPDATE, 0, 0, &[0; 4])], 1),
        ("padding of all", vec![frame(kind::DATA, flag::PADDED, 1, &[3, 0, 0])], 1),
        ("padding over priority", vec![frame(kind::HEADERS, 0x28, 1, &[2, 0, 0, 0, 0, 0])], 1),
        ("no padding", vec![frame(kind::DATA, flag::PADDED, 1, &[])], 6),
        ("continuation of nothing", vec![frame(kind::CONTINUATION, 4, 1, &block)], 1),
        ("data in a block", vec![open.clone(), frame(kind::DATA, 0, 1, b"x")], 1),
        ("unknown in a block", vec![open.clone(), frame(99, 0, 1, b"x")], 1),
        ("another block in it", vec![open.clone(), frame(kind::CONTINUATION, 4, 3, b"")], 1),
        ("headers in a block", vec![open, headers(0, 1, &block)], 1),
        ("a frame too long", vec![frame(kind::DATA, 0, 1, &[0; 16_385])], 6),
        ("no such index", vec![headers(0, 1, &[0xbe])], 9),
        ("a field cut off", vec![headers(0, 1, &[0x41])], 9),
    ];
    for (what, frames, code) in cases {
        for size in [0, 1, 5] {
            let told = read(Start::Preface, &client(&frames), &[size]);
            let failure = format!("Client Connection(ErrorCode({code}))");
            assert!(told.contains(&failure), "{what}: {told:?}");
        }
    }
}

#[test]
fn errors_of_one_stream_leave_the_others_alone() {
    expect(
        Start::Preface,
        &client(&[
            frame(kind::PRIORITY, 0, 3, &[0; 4]),
            frame(kind::WINDOW_UPDATE, 0, 5, &[0; 4]),
            headers(0, 7, &get("/x")),
            headers(0, 9, &[literal(31, "a"), get("/x")].concat()),
        ]),
        &[
            "StreamError { stream: 3, code: ErrorCode(6) }",
            "StreamError { stream: 5, code: ErrorCode(1) }",
            "7 Request GET a.test /x",
            "9 Request GET a.test /x malformed",
            "2 requests",
        ],
    );
}

#[test]
fn settings_bound_the_other_side() {
    let larger = settings(&[(setting::MAX_FRAME_SIZE, 20_000), (setting::HEADER_TABLE_SIZE, 100)]);
    let ack = frame(kind::SETTINGS, flag::ACK, 0, &[]);
    let resized = [&[0x3f, 0x45][..], &get("/x")].concat();
    let preface = (Client, [PREFACE, &settings(&[])].concat());
    let long = frame(kind::DATA, 0, 1, &[0; 17_000]);
    let long_told = "Data { stream: 1, length: 17000, end_stream: false }";
    let script = |frames: &[Vec<u8>]| {
        vec![preface.clone(), (Server, larger.clone()), (Client, frames.concat())]
    };
    expect(
        Start::Preface,
        &script(&[long, headers(0, 1, &get("/x")), ack.clone(), headers(0, 3, &resized)]),
        &[long_told, "1 Request GET a.test /x", "3 Request GET a.test /x", "2 requests"],
    );
    // Acknowledged, a smaller table must be said to be used.
    let told = ["Client Connection(ErrorCode(9))", "0 requests"];
    expect(Start::Preface, &script(&[ack, headers(0, 1, &get("/x"))]), &told);
}

#[test]
fn of_a_table_beyond_the_room_old_fields_are_unknown() {
    let large = settings(&[(setting::HEADER_TABLE_SIZE, 1 << 20)]);
    let mut script = vec![(Server, large)];
    // 4097, then an index that only that size could have.
    let resized = [&[0x3f, 0xe2, 0x1f, 0xbe][..], &get("/x")].concat();
    script.extend(client(&[headers(0, 1, &resized)]));
    expect(Start::Preface, &script, &["1 Request GET a.test /x unknown", "1 requests"]);
}

#[test]
fn upgraded_from_http1() {
    // The client's table is to be 0: the server says so at once.
    let script = vec![
        (Server, [settings(&[]), headers(0, 1, &[0x20, 0x88])].concat()),
        (Client, [settings(&[]), headers(0, 3, &get("/2"))].concat()),
    ];
    let told = ["1 Response Some(200) None", "3 Request GET a.test /2", "2 requests"];
    expect(Start::Upgraded(b"AAEAAAAA"), &script, &told);
    let script = vec![(Server, headers(0, 1, &[0x88]))];
    let told = ["Server Connection(ErrorCode(9))", "1 requests"];
    expect(Start::Upgraded(b"AAEAAAAA"), &script, &told);
}

#[test]
fn joined_in_its_midst() {
    let block = [0x82, 0xbf, 0x44, 2, b'/', b'x'];
    let script = vec![(Client, [headers(0, 7, &block), headers(0, 9, &[0x83, 0xbe])].concat())];
    let told = ["7 Request GET - /x unknown", "9 Request POST - /x", "2 requests"];
    expect(Start::Joined, &script, &told);
    let trailers = vec![(Client, headers(flag::END_STREAM, 7, &literal(31, "x")))];
    expect(Start::Joined, &trailers, &["7 Trailers None None end", "0 requests"]);
    for first in [&b"GET / HTTP/1.1\r\n"[..], &frame(kind::DATA, 2, 1, b"x"), &frame(10, 0, 1, b"")]
    {
        let told = ["Client NotHttp2", "0 requests"];
        expect(Start::Joined, &vec![(Client, first.to_vec())], &told);
    }
}

#[test]
fn prefaces() {
    let mut wrong = PREFACE.to_vec();
    wrong[23] = b' ';
    expect(Start::Preface, &vec![(Client, wrong)], &["Client NotHttp2", "0 requests"]);
    let behind = vec![(Client, headers(0, 1, &get("/x")))];
    expect(Start::BehindPreface, &behind, &["1 Request GET a.test /x", "1 requests"]);
}

#[test]
fn blocks_have_a_limit_and_long_ones_below_it_are_read() {
    let cookie = |bytes: usize| {
        let mut block = vec![0x0f, 17, 0x7f];
        let mut rest = bytes - 127;
        while rest >= 128 {
            block.push(rest as u8 | 0x80);
            rest >>= 7;
        }
        block.push(rest as u8);
        block.resize(block.len() + bytes, b'c');
        let mut frames = vec![frame(kind::HEADERS, 0, 1, &get("/x"))];
        frames.extend(block.chunks(16_000).map(|c| frame(kind::CONTINUATION, 0, 1, c)));
        frames.push(frame(kind::CONTINUATION, flag::END_HEADERS, 1, &[]));
        client(&frames)
    };
    let long = read(Start::Preface, &cookie(200_000), &[1_400]);
    assert_eq!(long, ["1 Request GET a.test /x", "1 requests"]);
    let longer = read(Start::Preface, &cookie(300_000), &[1_400]);
    assert_eq!(longer, ["Client Connection(ErrorCode(11))", "0 requests"]);
}

#[derive(Clone, Debug)]
struct AnyFrame {
    server: bool,
    kind: u8,
    flags: u8,
    stream: u32,
    payload: Vec<u8>,
}

fn any_frame() -> impl Strategy<Value = AnyFrame> {
    let payload = prop_oneof![
        Just(get("/x")),
        Just(vec![0x88]),
        Just(vec![0xbe]),
        Just(vec![0x40, 1, b'a', 1, b'b', 0x44, 1, b'/']),
        prop::collection::vec(any::<u8>(), 0..12),
        prop::collection::vec(0u8..3, 4..=8),
    ];
    let flags = prop::sample::select(vec![0, 1, 4, 5, 8, 12, 32, 44]);
    (any::<bool>(), 0u8..11, flags, 0u32..5, payload).prop_map(
        |(server, kind, flags, stream, payload)| AnyFrame { server, kind, flags, stream, payload },
    )
}

proptest! {
    #[test]
    fn any_cut_tells_the_same(
        frames in prop::collection::vec(any_frame(), 1..20),
        start in 0usize..3,
        sizes in prop::collection::vec(1usize..30, 1..6),
    ) {
        let mut script = Script::new();
        for AnyFrame { server, kind, flags, stream, payload } in frames {
            let side = if server { Server } else { Client };
            script.push((side, frame(kind, flags, stream, &payload)));
        }
        let start = [Start::BehindPreface, Start::Joined, Start::Upgraded(b"AAEAAAAA")][start];
        let whole = read(start, &script, &[0]);
        prop_assert_eq!(&read(start, &script, &sizes), &whole);
        prop_assert_eq!(&read(start, &script, &[1]), &whole);
    }
}
