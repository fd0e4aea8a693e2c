//! HTTP/1 heads, HTTP/2 requests and HPACK blocks.

use std::hint::black_box;

use tidegate::inspect::fields::{Fields, PATH_BYTES, Wanted};
use tidegate::inspect::h2::{self, Start};
use tidegate::inspect::hpack::{Decoder, TABLE_BYTES};
use tidegate::inspect::http1::{self, Side};

use super::{Case, time};

const RUNS: usize = 50_000;

/// What a client library sends, and what curl does.
const LIBRARY: &[u8] = b"POST /v1/chat/completions HTTP/1.1\r\nHost: api.openai.com\r\n\
    Accept-Encoding: gzip, deflate\r\nConnection: keep-alive\r\nAccept: application/json\r\n\
    Content-Type: application/json\r\nUser-Agent: OpenAI/Python 1.55.3\r\n\
    X-Stainless-Lang: python\r\nX-Stainless-Runtime: CPython\r\n\
    Authorization: Bearer sk-000000000000000000000000000000000000000000000000\r\n\
    Content-Length: 0\r\n\r\n";
const CURL: &[u8] = b"GET /v1/models HTTP/1.1\r\nHost: api.openai.com\r\n\
    User-Agent: curl/8.5.0\r\nAccept: */*\r\n\r\n";

/// RFC 7541, appendix C.6.1: four fields in Huffman codes, added to the table.
const BLOCK: &[u8] =
    b"\x48\x82\x64\x02\x58\x85\xae\xc3\x77\x1a\x4b\x61\x96\xd0\x7a\xbe\x94\x10\x54\
    \xd4\x44\xa8\x20\x05\x95\x04\x0b\x81\x66\xe0\x82\xa6\x2d\x1b\xff\x6e\x91\x9d\x29\xad\x17\x18\
    \x63\xc7\x8f\x0b\x97\xc8\xe9\xae\x82\xae\x43\xd3";
/// A request whose path and authority go into the table, and the same again by indices.
const FIRST: &[u8] = b"\0\0\x28\x01\x05\0\0\0\x01\x83\x87\x44\x14/v1/chat/completions\
    \x41\x0eapi.openai.com";
const AGAIN: &[u8] = b"\0\0\x04\x01\x05\0\0\0\x03\x83\x87\xbf\xbe";

pub fn cases() -> Vec<Case> {
    vec![
        (format!("HTTP/1 head, {} B, curl", CURL.len()), http1(CURL)),
        (format!("HTTP/1 head, {} B, client library", LIBRARY.len()), http1(LIBRARY)),
        (format!("HPACK block, {} B, Huffman", BLOCK.len()), hpack()),
        (format!("HTTP/2 request, {} B, by index", AGAIN.len()), http2()),
    ]
}

fn http1(head: &'static [u8]) -> Box<dyn FnMut() -> f64> {
    let wanted = Wanted::new([]).expect("no names");
    let mut connection = http1::Connection::new(&wanted, PATH_BYTES);
    Box::new(move || {
        connection.reset();
        let ns = time(RUNS, |_| {
            connection.feed(Side::Client, black_box(head), &wanted, |event| {
                black_box(&event);
            });
        });
        assert!(connection.requests() == RUNS as u64);
        ns
    })
}

fn hpack() -> Box<dyn FnMut() -> f64> {
    let wanted = Wanted::new([]).expect("no names");
    let (mut decoder, mut fields) = (Decoder::new(TABLE_BYTES), Fields::new(&wanted, PATH_BYTES));
    Box::new(move || {
        let ns = time(RUNS, |_| {
            decoder.begin_block();
            decoder.feed(black_box(BLOCK), &wanted, &mut fields).expect("a block");
            decoder.end_block().expect("a whole block");
        });
        assert!(black_box(&fields).status() == Some(302));
        ns
    })
}

fn http2() -> Box<dyn FnMut() -> f64> {
    let wanted = Wanted::new([]).expect("no names");
    let mut connection = h2::Connection::new(&wanted, PATH_BYTES, TABLE_BYTES);
    Box::new(move || {
        connection.reset(Start::BehindPreface);
        connection.feed(Side::Client, FIRST, &wanted, |_| {}).expect("a request");
        let mut paths = 0;
        let ns = time(RUNS, |_| {
            let done = connection.feed(Side::Client, black_box(AGAIN), &wanted, |event| {
                let h2::Event::Headers { fields, .. } = event else { return };
                paths += usize::from(fields.path() == Some(b"/v1/chat/completions"));
            });
            done.expect("a request");
        });
        assert!(paths == RUNS);
        ns
    })
}
