//! HTTP/1, HTTP/2 and HPACK: streams in any pieces are read as in whole ones.

use tidegate::inspect::fields::{Fields, NameId, Sink, Wanted};
use tidegate::inspect::h2::{self, Start};
use tidegate::inspect::hpack::{Decoder, Error, TABLE_BYTES};
use tidegate::inspect::http1::{self, Side};

use super::script::Input;

/// Small enough for inputs to exceed.
const PATH_BYTES: usize = 16;
/// The bit of a segment's length that says it is the server's.
pub const SERVER: u16 = 0x8000;
const LENGTH: u16 = 0x0fff;
const PIECES_MAX: u8 = 16;

fn wanted() -> Wanted {
    Wanted::new(["x-tenant"]).expect("a name")
}

/// Lengths of pieces, and what each direction says in turn.
fn script<'a>(input: &mut Input<'a>) -> (&'a [u8], Vec<(Side, &'a [u8])>) {
    let count = usize::from(input.u8() % PIECES_MAX);
    let lengths = input.bytes(count);
    let mut segments = Vec::new();
    while !input.is_empty() {
        let head = input.u16();
        let side = if head & SERVER == 0 { Side::Client } else { Side::Server };
        segments.push((side, input.bytes(usize::from(head & LENGTH))));
    }
    (lengths, segments)
}

/// Hands a segment on in pieces of these lengths, over and over; in one where there are none.
/// `take` says whether it wants more.
fn cut(mut bytes: &[u8], lengths: &[u8], mut take: impl FnMut(&[u8]) -> bool) {
    let mut lengths = lengths.iter().cycle();
    while !bytes.is_empty() {
        let length = lengths.next().map_or(bytes.len(), |n| usize::from(*n));
        let (piece, rest) = bytes.split_at(length.clamp(1, bytes.len()));
        if !take(piece) {
            return;
        }
        bytes = rest;
    }
}

/// All that fields tell.
fn told(wanted: &Wanted, fields: &Fields) -> String {
    let names = [
        NameId::METHOD,
        NameId::PATH,
        NameId::AUTHORITY,
        NameId::STATUS,
        NameId::HOST,
        NameId::CONTENT_TYPE,
        NameId::UPGRADE,
        NameId::CONTENT_LENGTH,
        NameId::TRANSFER_ENCODING,
        wanted.id(b"x-tenant"),
    ];
    let one = |id| format!("{:?}{}{}", fields.get(id), fields.truncated(id), fields.repeated(id));
    let all: Vec<String> = names.into_iter().map(one).collect();
    assert!(fields.path().is_none_or(|path| path.len() <= PATH_BYTES));
    let authority = http1::effective_authority(fields);
    let call = tidegate::inspect::grpc::call(fields);
    let marks = (fields.is_malformed(), fields.has_unknown(), fields.is_event_stream());
    format!("{all:?} {marks:?} {authority:?} {call:?}")
}

/// Input: see [`script`].
pub fn http1(data: &[u8]) {
    let (lengths, segments) = script(&mut Input::new(data));
    let whole = read_http1(&segments, &[]);
    assert_eq!(read_http1(&segments, lengths), whole, "pieces {lengths:?}");
    assert_eq!(read_http1(&segments, &[1]), whole, "byte by byte");
}

fn read_http1(segments: &[(Side, &[u8])], lengths: &[u8]) -> Vec<String> {
    let wanted = wanted();
    let mut connection = http1::Connection::new(&wanted, PATH_BYTES);
    let (mut all, mut requests) = (Vec::new(), 0);
    let mut used = [0; 2];
    for (side, bytes) in segments {
        cut(bytes, lengths, |piece| {
            let fed = connection.feed(*side, piece, &wanted, |event| match event {
                http1::Event::Request { number, minor_version, framing, fields } => {
                    assert_eq!(number, requests);
                    requests += 1;
                    let fields = told(&wanted, fields);
                    all.push(format!("{number} 1.{minor_version} {framing:?} {fields}"));
                }
                http1::Event::Response {
                    number, status, minor_version, framing, fields, ..
                } => {
                    assert!(number.is_none_or(|n| n < requests) && status < 1_000);
                    let fields = told(&wanted, fields);
                    all.push(format!("{number:?} {status} 1.{minor_version} {framing:?} {fields}"));
                }
            });
            assert!(fed.used == piece.len() || fed.used < piece.len() && fed.next.is_some());
            used[*side as usize] += fed.used;
            match fed.next {
                None => return true,
                Some(http1::Next::Failed(failure)) => all.push(format!("{side:?} {failure:?}")),
                Some(next) => all.push(format!("{side:?} {next:?} {}", used[*side as usize])),
            }
            false
        });
    }
    assert_eq!(connection.requests(), requests);
    assert!(connection.responses() <= requests);
    all
}

/// Input: where it begins, then see [`script`].
pub fn h2(data: &[u8]) {
    let mut input = Input::new(data);
    let start = match input.u8() % 4 {
        0 => Start::Preface,
        1 => Start::BehindPreface,
        2 => Start::Upgraded(b"AAEAAABkAAQAAP__"),
        _ => Start::Joined,
    };
    let (lengths, segments) = script(&mut input);
    let whole = read_h2(start, &segments, &[]);
    assert_eq!(read_h2(start, &segments, lengths), whole, "pieces {lengths:?}");
    assert_eq!(read_h2(start, &segments, &[1]), whole, "byte by byte");
}

fn read_h2(start: Start<'_>, segments: &[(Side, &[u8])], lengths: &[u8]) -> Vec<String> {
    let wanted = wanted();
    let mut connection = h2::Connection::new(&wanted, PATH_BYTES, TABLE_BYTES);
    connection.reset(start);
    let mut all = Vec::new();
    for (side, bytes) in segments {
        cut(bytes, lengths, |piece| {
            let done = connection.feed(*side, piece, &wanted, |event| match event {
                h2::Event::Headers { stream, block, end_stream, fields } => {
                    let fields = told(&wanted, fields);
                    all.push(format!("{stream} {block:?} {end_stream} {fields}"));
                }
                other => all.push(format!("{other:?}")),
            });
            let Err(failure) = done else { return true };
            all.push(format!("{side:?} {failure:?}"));
            assert_eq!(connection.feed(*side, piece, &wanted, |_| panic!()), Err(failure));
            false
        });
    }
    all.push(connection.requests().to_string());
    all
}

/// Names and values.
#[derive(Default)]
struct Collected(Vec<(NameId, Vec<u8>)>);

impl Sink for Collected {
    fn clear(&mut self) {
        self.0.clear();
    }

    fn begin(&mut self, name: NameId) {
        self.0.push((name, Vec::new()));
    }

    fn value(&mut self, piece: &[u8]) {
        let (name, value) = self.0.last_mut().expect("a field has begun");
        assert!(name.is_wanted());
        value.extend_from_slice(piece);
    }

    fn end(&mut self) {}
}

/// Input: see [`script`]. What the client says are blocks, the server sets the limit. A decoder that
/// joins late tells the same of what it knows.
pub fn hpack(data: &[u8]) {
    let (lengths, segments) = script(&mut Input::new(data));
    let mut whole = Decoder::new(TABLE_BYTES);
    let mut pieces = Decoder::new(TABLE_BYTES);
    let mut late: Option<Decoder> = None;
    for (side, bytes) in segments {
        if side == Side::Server {
            let limit = bytes.iter().fold(0u32, |n, byte| n << 8 | u32::from(*byte));
            whole.set_limit(limit);
            pieces.set_limit(limit);
            continue;
        }
        let expected = block(&mut whole, bytes, &[]);
        assert_eq!(block(&mut pieces, bytes, lengths), expected, "pieces {lengths:?}");
        let Ok(expected) = expected else { return };
        match &mut late {
            None => {
                let mut joined = Decoder::new(TABLE_BYTES);
                joined.reset(true);
                late = Some(joined);
            }
            Some(late) => {
                let told = block(late, bytes, lengths).expect("no error that only it sees");
                assert_eq!(told.len(), expected.len());
                for (told, expected) in told.iter().zip(&expected) {
                    assert!(told == expected || told.0.is_unknown(), "{told:?} {expected:?}");
                }
            }
        }
    }
}

fn block(
    decoder: &mut Decoder,
    bytes: &[u8],
    lengths: &[u8],
) -> Result<Vec<(NameId, Vec<u8>)>, Error> {
    let (wanted, mut sink) = (wanted(), Collected::default());
    decoder.begin_block();
    let mut done = Ok(());
    cut(bytes, lengths, |piece| {
        done = decoder.feed(piece, &wanted, &mut sink);
        done.is_ok()
    });
    done?;
    decoder.end_block()?;
    Ok(sink.0)
}
