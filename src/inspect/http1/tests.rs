//! A table of connections, each cut everywhere, and rules one by one.

use proptest::prelude::*;

use super::Side::{Client, Server};
use super::*;
use crate::inspect::fields::PATH_BYTES;

type Script<'a> = &'a [(Side, &'a [u8])];

/// Feeds a script in pieces of these sizes, over and over; 0 is all at once.
fn read(script: Script<'_>, sizes: &[usize]) -> Vec<String> {
    let wanted = Wanted::new(["X-Tenant"]).unwrap();
    let mut connection = Connection::new(&wanted, PATH_BYTES);
    let mut told = Vec::new();
    let mut sizes = sizes.iter().cycle();
    let mut ended = [None; 2];
    for (side, bytes) in script {
        let mut rest = *bytes;
        while !rest.is_empty() && ended[*side as usize].is_none() {
            let size = sizes.next().filter(|n| **n > 0).map_or(rest.len(), |n| *n);
            let (piece, after) = rest.split_at(size.min(rest.len()));
            let fed =
                connection.feed(*side, piece, &wanted, |event| told.push(line(&wanted, event)));
            rest = after;
            if let Some(next) = fed.next {
                ended[*side as usize] = Some(next);
                let left = &bytes[bytes.len() - rest.len() - (piece.len() - fed.used)..];
                let left = String::from_utf8_lossy(left);
                told.push(match next {
                    Next::Failed(failure) => format!("{side:?} {failure:?}"),
                    next => format!("{side:?} {next:?}: {left}"),
                });
            }
        }
    }
    told
}

fn line(wanted: &Wanted, event: Event<'_>) -> String {
    let text = |value: Option<&[u8]>| String::from_utf8_lossy(value.unwrap_or(b"-")).into_owned();
    match event {
        Event::Request { number, framing, fields, .. } => {
            let host = text(fields.get(NameId::HOST));
            let tenant = fields.get(wanted.id(b"x-tenant"));
            let tenant = tenant.map(|t| format!(" {}", text(Some(t)))).unwrap_or_default();
            let (method, path) = (text(fields.method()), text(fields.path()));
            format!("{number} {method} {path} {host} {framing:?}{tenant}")
        }
        Event::Response { number, status, framing, fields, .. } => {
            let sse = if fields.is_event_stream() { " events" } else { "" };
            format!("{number:?} {status} {framing:?}{sse}")
        }
    }
}

/// The same told for every cut in two and for single bytes.
fn expect(script: Script<'_>, told: &[&str]) {
    assert_eq!(read(script, &[0]), told, "in one piece");
    for size in 1..=script.iter().map(|(_, bytes)| bytes.len()).max().unwrap_or(1).min(300) {
        assert_eq!(read(script, &[size]), told, "in pieces of {size} bytes");
    }
}

fn client(bytes: &[u8], told: &[&str]) {
    expect(&[(Client, bytes)], told);
}

#[test]
fn requests_of_a_kept_connection_and_their_answers() {
    let requests = b"POST /v1/chat/completions HTTP/1.1\r\nHost: a\r\ncontent-LENGTH:11\r\n\r\n\
        GET / HTTP/HEAD /x HTTP/1.1\r\nHOST:\tb \r\nX-Tenant: t \r\nx-tenant:u\r\n\r\n\
        GET * HTTP/1.0\r\n\r\n";
    let answers = b"HTTP/1.1 100 Continue\r\n\r\n\
        HTTP/1.1 200 OK\r\nContent-Type: text/event-stream; charset=utf-8\r\n\
        Transfer-Encoding: gzip, chunked\r\n\r\n\
        5;x=y\r\nHTTP/\r\n00\r\nTrailer: Content-Length: 5\r\n\r\n\
        HTTP/1.1 200\r\nContent-Length: 500\r\n\r\n\
        HTTP/1.0 304 Not Modified\r\nContent-Length: 5\r\n\r\n";
    expect(
        &[(Client, requests), (Server, answers)],
        &[
            "0 POST /v1/chat/completions a Length(11)",
            "1 HEAD /x b Empty t, u",
            "2 GET * - Empty",
            "Some(0) 100 Empty",
            "Some(0) 200 Chunked events",
            "Some(1) 200 Empty",
            "Some(2) 304 Empty",
        ],
    );
}

#[test]
fn odd_but_legal() {
    client(
        b"\r\n\n\r\nGET /a b HTTP/x HTTP/ HTTP/1.1\nHost: a\n\n",
        &["0 GET /a b HTTP/x HTTP/ a Empty"],
    );
    client(
        b"GET /?q=\xe9%00 HTTP/1.1\r\nX-Tenant: a\r\n \t b\r\nhost:\r\n [::1]:80 \r\n\r\n",
        &["0 GET /?q=\u{fffd}%00 [::1]:80 Empty a b"],
    );
    client(
        b"GET http://u@c/x HTTP/1.1\r\nX-Host: x\r\nHost: a\r\nHost: b\r\nHostx: c\r\n\r\n",
        &["0 GET http://u@c/x a Empty"],
    );
    client(b"M-SEARCH * HTTP/1.9\r\nHost:\r\n\r\n", &["0 M-SEARCH *  Empty"]);
}

#[test]
fn bodies_without_length_last_to_the_end() {
    let answer = b"HTTP/1.1 500 \r\nTransfer-Encoding: gzip\r\n\r\nHTTP/1.1 200 OK\r\n\r\n";
    expect(&[(Server, answer)], &["None 500 UntilClose"]);
}

#[test]
fn framing_that_servers_may_differ_about_is_given_up() {
    for fields in [
        "Content-Length: 5\r\nTransfer-Encoding: chunked\r\n",
        "Content-Length: 5\r\nContent-Length: 6\r\n",
        "Content-Length: 5, 6\r\n",
        "Content-Length: +5\r\n",
        "Content-Length: 0x5\r\n",
        "Content-Length:\r\n",
        "Content-Length: 5 5\r\n",
        "Content-Length: 5\r\n 5\r\n",
        "Content-Length: 99999999999999999999\r\n",
        "Transfer-Encoding: chunked, gzip\r\n",
        "Transfer-Encoding: chunked, chunked\r\n",
        "Transfer-Encoding: xchunked\r\n",
        "Transfer-Encoding: \x0bchunked\r\n",
        "Transfer-Encoding: chunked,\r\n",
        "Transfer-Encoding:\r\n",
    ] {
        let head = format!("POST / HTTP/1.1\r\nHost: a\r\n{fields}\r\nGET /2 HTTP/1.1\r\n\r\n");
        client(head.as_bytes(), &["0 POST / a Ambiguous", "Client Ambiguous"]);
    }
    let old = b"POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n";
    client(old, &["0 POST / - Ambiguous", "Client Ambiguous"]);
    for fields in ["Content-Length : 5\r\n", " Host: a\r\n", "\tx\r\n"] {
        let head = format!("POST / HTTP/1.1\r\n{fields}\r\n");
        client(head.as_bytes(), &["Client Ambiguous"]);
    }
    for chunk in ["5\nGET /\r\n", "5;\nx", "x", "0\r\n\n", "12345678901234567", "\r\n"] {
        let message = format!("POST / HTTP/1.1\r\nTransfer-Encoding: Chunked\r\n\r\n{chunk}");
        let told = read(&[(Client, message.as_bytes())], &[0]);
        let failed = told.last().is_some_and(|t| t == "Client Ambiguous");
        assert!(failed || chunk == "0\r\n\n", "{chunk:?}: {told:?}");
        client(message.as_bytes(), &told.iter().map(String::as_str).collect::<Vec<_>>());
    }
}

#[test]
fn the_same_length_twice_is_one() {
    client(
        b"PUT / HTTP/1.1\r\nContent-Length: 2\r\nContent-Length: 2, 02\r\n\r\nab\
          GET /2 HTTP/1.1\r\n\r\n",
        &["0 PUT / - Length(2)", "1 GET /2 - Empty"],
    );
}

#[test]
fn what_is_no_http() {
    for bytes in [
        &b"\x16\x03\x01\x00\x05"[..],
        b"SSH-2.0-x\r\n",
        b"GET /\r\n",
        b"GET  / HTTP/1.1\r\n",
        b"GET / HTTP/2.0\r\n",
        b"GET / RTSP/1.0\r\n",
        b"GET / HTTP/1.1 \r\n",
        b"GET / HTTP/1.12\r\n",
        b"GET /\x00 HTTP/1.1\r\n",
        b"METHODMETHODMETHODMETHODMETHODMETHOD",
        b"PRI * HTTP/2.0\r\n\r\nSN",
        b" GET / HTTP/1.1\r\n",
        b"then GET / HTTP/1.1\r\nHost: a\r\n\r\n",
    ] {
        client(bytes, &["Client NotHttp"]);
    }
    for bytes in [&b"HTTP/1.1 2x0 OK\r\n"[..], b"HTTP/1.1 2000\r\n", b"HTTP/2 200", b"220 smtp"] {
        expect(&[(Server, bytes)], &["Server NotHttp"]);
    }
    for rest in ["nocolon\r\n", "a: b\rc", "a: \0\r\n", ":a\r\n", "\r\r", "a: b\r\r\n"] {
        client(format!("GET / HTTP/1.1\r\n{rest}").as_bytes(), &["Client Malformed"]);
    }
}

#[test]
fn http2_with_prior_knowledge() {
    let preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0";
    client(preface, &["Client Http2: \0\0\0"]);
    let settings = b"\0\0\0\x04\0\0\0\0\0";
    let told = "Server Http2: \0\0\0\u{4}\0\0\0\0\0";
    expect(&[(Server, settings)], &[told]);
    let late = [&b"GET / HTTP/1.1\r\n\r\n"[..], preface].concat();
    client(&late, &["0 GET / - Empty", "Client NotHttp"]);
}

#[test]
fn http2_by_upgrade() {
    let ask = b"POST / HTTP/1.1\r\nUpgrade: x, H2C\r\nContent-Length: 1\r\n\r\nb";
    let preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n..";
    let accepted = b"HTTP/1.1 101 Switching\r\nUpgrade: h2c\r\n\r\n\0\0";
    expect(
        &[(Client, ask), (Server, accepted), (Client, preface)],
        &["0 POST / - Length(1)", "Some(0) 101 Empty", "Server Http2: \0\0", "Client Http2: .."],
    );
    let refused = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n";
    let more = b"GET /2 HTTP/1.1\r\n\r\n";
    let told = ["0 POST / - Length(1)", "Some(0) 200 Empty", "1 GET /2 - Empty"];
    expect(&[(Client, ask), (Server, refused), (Client, more)], &told);
    expect(&[(Client, ask), (Client, preface)], &["0 POST / - Length(1)", "Client Http2: .."]);
}

#[test]
fn a_head_request_that_offers_an_upgrade_has_an_answer_without_body() {
    let ask = b"HEAD / HTTP/1.1\r\nUpgrade: h2c\r\n\r\n";
    let answer = b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n";
    expect(&[(Client, ask), (Server, answer)], &["0 HEAD / - Empty", "Some(0) 200 Empty"]);
}

#[test]
fn tunnels() {
    let connect = b"CONNECT a:443 HTTP/1.1\r\nHost: a:443\r\nContent-Length: 0\r\n\r\n";
    let established = b"HTTP/1.1 200 Connection established\r\n\r\n\x16\x03";
    let asked = "0 CONNECT a:443 a:443 Empty";
    expect(
        &[(Client, connect), (Server, established), (Client, b"GET x")],
        &[asked, "Some(0) 200 Empty", "Server Tunnel: \u{16}\u{3}", "Client Tunnel: GET x"],
    );
    let refused = b"HTTP/1.1 407 No\r\nContent-Length: 2\r\n\r\nno";
    let again = b"CONNECT b:1 HTTP/1.1\r\n\r\n";
    expect(
        &[(Client, connect), (Server, refused), (Client, again), (Client, b"\x16\x03\x01")],
        &[
            asked,
            "Some(0) 407 Length(2)",
            "1 CONNECT b:1 - Empty",
            "Client Tunnel: \u{16}\u{3}\u{1}",
        ],
    );
    let with_body = b"CONNECT a:443 HTTP/1.1\r\nHost: a:443\r\nContent-Length: 4\r\n\r\n";
    expect(
        &[(Client, with_body), (Client, b"GET x")],
        &["0 CONNECT a:443 a:443 Ambiguous", "Client Ambiguous"],
    );
}

#[test]
fn web_sockets() {
    let ask = b"GET /chat HTTP/1.1\r\nUpgrade: websocket\r\n\r\n";
    let accepted = b"HTTP/1.1 101 Switching\r\nUpgrade: websocket\r\n\r\n\x81";
    expect(
        &[(Client, ask), (Server, accepted), (Client, b"GET")],
        &[
            "0 GET /chat - Empty",
            "Some(0) 101 Empty",
            "Server Upgraded: \u{fffd}",
            "Client Upgraded: GET",
        ],
    );
    let framed = [(Client, &ask[..]), (Client, b"\x81x")];
    expect(&framed, &["0 GET /chat - Empty", "Client Upgraded: \u{fffd}x"]);
    // Methods are any tokens: a server that does not switch goes on with this one.
    let more = b"get / HTTP/1.1\r\nHost: a\r\n\r\n";
    expect(&[(Client, ask), (Client, more)], &["0 GET /chat - Empty", "1 get / a Empty"]);
    let old = b"GET /chat HTTP/1.0\r\nUpgrade: websocket\r\n\r\n\x81";
    client(old, &["0 GET /chat - Empty", "Client NotHttp"]);
}

#[test]
fn heads_have_a_limit_and_long_fields_before_it_do_no_harm() {
    let with = |bytes: usize| {
        let cookie = "c".repeat(bytes);
        format!("GET / HTTP/1.1\r\nCookie: {cookie}\r\nHost: a\r\n\r\n").into_bytes()
    };
    assert_eq!(read(&[(Client, &with(20_000))], &[1_000]), ["0 GET / a Empty"]);
    let rest = with(0).len();
    let most = with(HEAD_BYTES_MAX as usize - rest);
    assert_eq!(read(&[(Client, &most)], &[7_777]), ["0 GET / a Empty"]);
    let more = with(HEAD_BYTES_MAX as usize - rest + 1);
    assert_eq!(read(&[(Client, &more)], &[7_777]), ["Client TooLong"]);
    assert_eq!(read(&[(Client, &more)], &[0]), ["Client TooLong"]);
}

#[test]
fn long_targets_are_cut_and_marked() {
    let wanted = Wanted::new([]).unwrap();
    let mut connection = Connection::new(&wanted, 8);
    let mut seen = 0;
    connection.feed(Client, b"GET /12345678 HTTP/1.1\r\n\r\n", &wanted, |event| {
        let Event::Request { fields, .. } = event else { return };
        assert_eq!(fields.path(), Some(&b"/1234567"[..]));
        assert!(fields.truncated(NameId::PATH));
        seen += 1;
    });
    assert_eq!((seen, connection.requests()), (1, 1));
    assert!(connection.is_idle(Client));
    connection.reset();
    assert_eq!(connection.requests(), 0);
}

#[test]
fn answers_to_too_many_requests_are_not_followed() {
    let requests = b"GET / HTTP/1.1\r\n\r\n".repeat(PENDING_MAX + 1);
    let told = read(&[(Client, &requests), (Server, b"HTTP/1.1 200 OK\r\n\r\n")], &[0]);
    assert_eq!(told.last().unwrap(), "Server TooLong");
    assert_eq!(told.len(), PENDING_MAX + 2);
}

#[test]
fn authorities() {
    let authority = |head: &[u8]| {
        let wanted = Wanted::new([]).unwrap();
        let mut found = None;
        Connection::new(&wanted, PATH_BYTES).feed(Client, head, &wanted, |event| {
            let Event::Request { fields, .. } = event else { return };
            found = effective_authority(fields).map(|a| String::from_utf8_lossy(a).into_owned());
        });
        found
    };
    let of =
        |target: &str| authority(format!("GET {target} HTTP/1.1\r\nHost: h\r\n\r\n").as_bytes());
    assert_eq!(of("/x").as_deref(), Some("h"));
    assert_eq!(of("/x?http://b/").as_deref(), Some("h"));
    assert_eq!(of("http://u:p@b:80/x").as_deref(), Some("b:80"));
    assert_eq!(of("HTTP://b?x@y").as_deref(), Some("b"));
    assert_eq!(authority(b"CONNECT c:1 HTTP/1.1\r\n\r\n").as_deref(), Some("c:1"));
    assert_eq!(authority(b"GET / HTTP/1.0\r\n\r\n"), None);
}

/// Lines that make heads, bodies and mischief.
const PARTS: [&str; 26] = [
    "GET / HTTP/1.1\r\n",
    "HEAD /x HTTP/1.1\r\n",
    "POST /v1 HTTP/1.0\n",
    "CONNECT a:1 HTTP/1.1\r\n",
    "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "HTTP/1.1 200 OK\r\n",
    "HTTP/1.1 101 \r\n",
    "HTTP/1.1 204\r\n",
    "HTTP/1.1 100 C\r\n",
    "Host: a\r\n",
    "Host: b\n",
    "X-Tenant: t \r\n",
    " folded\r\n",
    "Content-Length: 5\r\n",
    "Content-Length: 0\r\n",
    "Transfer-Encoding: chunked\r\n",
    "Upgrade: h2c\r\n",
    "Upgrade: websocket\r\n",
    "\r\n",
    "\r\n",
    "\n",
    "0\r\n",
    "5\r\nabcde\r\n",
    "abcde",
    "\x16\x03",
    "x",
];

proptest! {
    #[test]
    fn any_cut_tells_the_same(
        parts in prop::collection::vec((any::<bool>(), 0..PARTS.len()), 1..40),
        sizes in prop::collection::vec(1usize..40, 1..8),
    ) {
        let mut script: Vec<(Side, Vec<u8>)> = Vec::new();
        for (server, part) in parts {
            let (side, bytes) = (if server { Server } else { Client }, PARTS[part].as_bytes());
            match script.last_mut() {
                Some((last, all)) if *last == side => all.extend_from_slice(bytes),
                _ => script.push((side, bytes.to_vec())),
            }
        }
        let script: Vec<_> = script.iter().map(|(side, bytes)| (*side, &bytes[..])).collect();
        let whole = read(&script, &[0]);
        prop_assert_eq!(&read(&script, &sizes), &whole);
        prop_assert_eq!(&read(&script, &[1]), &whole);
    }
}
