//! The examples of the standard, errors, and an encoder that does all it may.

use std::collections::VecDeque;

use proptest::prelude::*;

use super::huffman::tests::encode as huffman;
use super::*;

mod rooms;

pub type Field = (Vec<u8>, Vec<u8>);

/// All fields in order, names by the set they are wanted by.
#[derive(Default)]
pub struct Collected {
    ids: Vec<NameId>,
    values: Vec<Vec<u8>>,
}

impl Sink for Collected {
    fn clear(&mut self) {
        *self = Collected::default();
    }

    fn begin(&mut self, name: NameId) {
        self.ids.push(name);
        self.values.push(Vec::new());
    }

    fn value(&mut self, piece: &[u8]) {
        self.values.last_mut().unwrap().extend_from_slice(piece);
    }

    fn end(&mut self) {}
}

impl Collected {
    pub fn fields(&self, wanted: &Wanted) -> Vec<Field> {
        let name = |id: &NameId| match *id {
            name if name.is_unknown() => b"unknown".to_vec(),
            NameId::FORBIDDEN => b"forbidden".to_vec(),
            id => wanted.name(id).unwrap_or(b"other").to_vec(),
        };
        self.ids.iter().map(name).zip(self.values.iter().cloned()).collect()
    }
}

const EXTRA: [&str; 9] = [
    "custom-key",
    "password",
    "cache-control",
    "date",
    "location",
    "content-encoding",
    "set-cookie",
    "x-a",
    "x-b",
];

fn wanted() -> Wanted {
    Wanted::new(EXTRA).unwrap()
}

fn decode(decoder: &mut Decoder, block: &[u8], piece: usize) -> Result<Vec<Field>, Error> {
    let (wanted, mut sink) = (wanted(), Collected::default());
    decoder.begin_block();
    for piece in block.chunks(piece) {
        decoder.feed(piece, &wanted, &mut sink)?;
    }
    decoder.end_block()?;
    Ok(sink.fields(&wanted))
}

fn hex(text: &str) -> Vec<u8> {
    let digits: Vec<u8> = text.bytes().filter(u8::is_ascii_hexdigit).collect();
    let byte = |d: &[u8]| u8::from_str_radix(std::str::from_utf8(d).unwrap(), 16).unwrap();
    digits.chunks(2).map(byte).collect()
}

fn pairs(fields: &[(&str, &str)]) -> Vec<Field> {
    fields.iter().map(|(n, v)| (n.as_bytes().to_vec(), v.as_bytes().to_vec())).collect()
}

const GET: (&str, &str) = (":method", "GET");
const HTTP: (&str, &str) = (":scheme", "http");
const HTTPS: (&str, &str) = (":scheme", "https");
const EXAMPLE: (&str, &str) = (":authority", "www.example.com");
const DATE: (&str, &str) = ("date", "Mon, 21 Oct 2013 20:13:21 GMT");
const DATE_2: (&str, &str) = ("date", "Mon, 21 Oct 2013 20:13:22 GMT");
const PRIVATE: (&str, &str) = ("cache-control", "private");
const LOCATION: (&str, &str) = ("location", "https://www.example.com");
const COOKIE: (&str, &str) =
    ("set-cookie", "foo=ASDJKHQKBZXOQWEOPIUAXQWEOIU; max-age=3600; version=1");

/// Blocks of one connection, and what they hold.
type Story = (&'static str, &'static [(&'static str, &'static [(&'static str, &'static str)])]);

/// RFC 7541, appendix C. Those of C.5 and C.6 begin with an update to the size they assume.
const STORIES: [Story; 8] = [
    (
        "C.2.1",
        &[(
            "400a 6375 7374 6f6d 2d6b 6579 0d63 7573 746f 6d2d 6865 6164 6572",
            &[("custom-key", "custom-header")],
        )],
    ),
    ("C.2.2", &[("040c 2f73 616d 706c 652f 7061 7468", &[(":path", "/sample/path")])]),
    ("C.2.3", &[("1008 7061 7373 776f 7264 0673 6563 7265 74", &[("password", "secret")])]),
    ("C.2.4", &[("82", &[GET])]),
    (
        "C.3",
        &[
            (
                "8286 8441 0f77 7777 2e65 7861 6d70 6c65 2e63 6f6d",
                &[GET, HTTP, (":path", "/"), EXAMPLE],
            ),
            (
                "8286 84be 5808 6e6f 2d63 6163 6865",
                &[GET, HTTP, (":path", "/"), EXAMPLE, ("cache-control", "no-cache")],
            ),
            (
                "8287 85bf 400a 6375 7374 6f6d 2d6b 6579 0c63 7573 746f 6d2d 7661 6c75 65",
                &[GET, HTTPS, (":path", "/index.html"), EXAMPLE, ("custom-key", "custom-value")],
            ),
        ],
    ),
    (
        "C.4",
        &[
            ("8286 8441 8cf1 e3c2 e5f2 3a6b a0ab 90f4 ff", &[GET, HTTP, (":path", "/"), EXAMPLE]),
            (
                "8286 84be 5886 a8eb 1064 9cbf",
                &[GET, HTTP, (":path", "/"), EXAMPLE, ("cache-control", "no-cache")],
            ),
            (
                "8287 85bf 4088 25a8 49e9 5ba9 7d7f 8925 a849 e95b b8e8 b4bf",
                &[GET, HTTPS, (":path", "/index.html"), EXAMPLE, ("custom-key", "custom-value")],
            ),
        ],
    ),
    (
        "C.5",
        &[
            (
                "3fe1 01 4803 3330 3258 0770 7269 7661 7465 611d 4d6f 6e2c \
                 2032 3120 4f63 7420 3230 3133 2032 303a 3133 3a32 3120 474d \
                 546e 1768 7474 7073 3a2f 2f77 7777 2e65 7861 6d70 6c65 2e63 \
                 6f6d",
                &[(":status", "302"), PRIVATE, DATE, LOCATION],
            ),
            ("4803 3330 37c1 c0bf", &[(":status", "307"), PRIVATE, DATE, LOCATION]),
            (
                "88c1 611d 4d6f 6e2c 2032 3120 4f63 7420 3230 3133 2032 303a \
                 3133 3a32 3220 474d 54c0 5a04 677a 6970 7738 666f 6f3d 4153 \
                 444a 4b48 514b 425a 584f 5157 454f 5049 5541 5851 5745 4f49 \
                 553b 206d 6178 2d61 6765 3d33 3630 303b 2076 6572 7369 6f6e \
                 3d31",
                &[
                    (":status", "200"),
                    PRIVATE,
                    DATE_2,
                    LOCATION,
                    ("content-encoding", "gzip"),
                    COOKIE,
                ],
            ),
        ],
    ),
    (
        "C.6",
        &[
            (
                "3fe1 01 4882 6402 5885 aec3 771a 4b61 96d0 7abe 9410 54d4 \
                 44a8 2005 9504 0b81 66e0 82a6 2d1b ff6e 919d 29ad 1718 63c7 \
                 8f0b 97c8 e9ae 82ae 43d3",
                &[(":status", "302"), PRIVATE, DATE, LOCATION],
            ),
            ("4883 640e ffc1 c0bf", &[(":status", "307"), PRIVATE, DATE, LOCATION]),
            (
                "88c1 6196 d07a be94 1054 d444 a820 0595 040b 8166 e084 a62d \
                 1bff c05a 839b d9ab 77ad 94e7 821d d7f2 e6c7 b335 dfdf cd5b \
                 3960 d5af 2708 7f36 72c1 ab27 0fb5 291f 9587 3160 65c0 03ed \
                 4ee5 b106 3d50 07",
                &[
                    (":status", "200"),
                    PRIVATE,
                    DATE_2,
                    LOCATION,
                    ("content-encoding", "gzip"),
                    COOKIE,
                ],
            ),
        ],
    ),
];

#[test]
fn examples_of_the_standard_in_any_pieces() {
    for (name, blocks) in STORIES {
        for piece in 1..100 {
            let mut decoder = Decoder::new(TABLE_BYTES);
            for (i, (block, fields)) in blocks.iter().enumerate() {
                let got = decode(&mut decoder, &hex(block), piece);
                assert_eq!(got, Ok(pairs(fields)), "{name} block {i}, pieces of {piece}");
            }
        }
    }
}

#[test]
fn errors_are_named_and_last() {
    for (block, error) in [
        ("80", Error::BadIndex),
        ("be", Error::BadIndex),
        ("ff 80 80 80 80 10", Error::IntegerTooLong),
        ("ff 80 80 80 80 80 00", Error::IntegerTooLong),
        ("7f 00", Error::BadIndex),
        ("41 81 fe", Error::BadHuffman),
        ("41 84 ff ff ff ff", Error::BadHuffman),
        ("40 81 00 00", Error::BadHuffman),
        ("41 05 61", Error::CutOff),
        ("41", Error::CutOff),
        ("3f e2 1f", Error::SizeNotAllowed),
        ("82 20", Error::SizeMisplaced),
    ] {
        for piece in [1, 64] {
            let mut decoder = Decoder::new(TABLE_BYTES);
            assert_eq!(decode(&mut decoder, &hex(block), piece), Err(error), "{block}");
            assert_eq!(decode(&mut decoder, &[0x82], 1), Err(error), "no answer after {block}");
            assert_eq!(decoder.error(), Some(error));
            decoder.reset(false);
            assert_eq!(decode(&mut decoder, &[0x82], 1), Ok(pairs(&[GET])));
        }
    }
}

#[test]
fn limits_of_the_receiver() {
    let mut decoder = Decoder::new(TABLE_BYTES);
    decoder.set_limit(100);
    assert_eq!(decode(&mut decoder, &[0x82], 1), Err(Error::SizeMisplaced));
    decoder.reset(false);
    decoder.set_limit(100);
    decoder.set_limit(5_000);
    // 100, then 4096.
    assert_eq!(decode(&mut decoder, &hex("3f 45 3f e1 1f 82"), 1), Ok(pairs(&[GET])));
    assert_eq!(decode(&mut decoder, &hex("3f ea 26 82"), 1), Err(Error::SizeNotAllowed));
}

#[test]
fn a_late_join_resolves_what_came_since() {
    let mut decoder = Decoder::new(TABLE_BYTES);
    decoder.reset(true);
    // 62 from before; x-a added; an unknown name, added; both indexed.
    let block = hex("be 40 03 782d61 01 31 ff00 7f00 01 32 be bf 84");
    let unknown = ("unknown", "");
    let fields = [unknown, ("x-a", "1"), unknown, unknown, unknown, ("x-a", "1")];
    let mut expected = pairs(&fields);
    expected.push((b":path".to_vec(), b"/".to_vec()));
    assert_eq!(decode(&mut decoder, &block, 1), Ok(expected));
    // Emptied, everything is known.
    assert_eq!(decode(&mut decoder, &hex("20 3f e1 1f be"), 1), Err(Error::BadIndex));
}

#[test]
fn of_a_table_beyond_the_room_the_oldest_entries_are_unknown() {
    let mut decoder = Decoder::new(TABLE_BYTES);
    decoder.set_limit(65_536);
    let resized = decode(&mut decoder, &hex("40 03 782d61 01 31 be 82"), 1);
    assert_eq!(resized, Ok(pairs(&[("x-a", "1"), ("x-a", "1"), GET])));
    // 65536; an entry of 4,099 bytes; a small one.
    let mut block = hex("3f e1 ff 03 40 03 782d61 7f e1 1e");
    block.extend([b'v'; 4_064]);
    block.extend(hex("40 03 782d62 01 32 be bf c0"));
    let told = decode(&mut decoder, &block, 50).unwrap();
    let unknown = ("unknown", "");
    assert_eq!(told[1..], pairs(&[("x-b", "2"), ("x-b", "2"), unknown, unknown]));
    // Back to 4096, all is known again.
    assert_eq!(decode(&mut decoder, &hex("3f e1 1f be"), 1), Ok(pairs(&[("x-b", "2")])));
    assert_eq!(decode(&mut decoder, &hex("bf"), 1), Err(Error::BadIndex));
}

#[test]
fn forbidden_names() {
    let mut decoder = Decoder::new(TABLE_BYTES);
    let block = hex("40 04 486f7374 01 61 be 00 00 00 00 02 613a 00");
    let forbidden = ("forbidden", "");
    assert_eq!(decode(&mut decoder, &block, 3), Ok(pairs(&[forbidden; 4])));
}

#[test]
fn an_entry_larger_than_the_table_empties_it() {
    let mut decoder = Decoder::new(TABLE_BYTES);
    let mut block = hex("40 03 782d61 01 31 40 03 782d62 7f a1 1f");
    block.extend([b'v'; 4_128]);
    assert_eq!(decode(&mut decoder, &block, 100).unwrap().len(), 2);
    assert_eq!(decode(&mut decoder, &[0xbe], 1), Err(Error::BadIndex));
}

// ---- an encoder ----

/// How a field is written; what can't be done is done otherwise.
#[derive(Clone, Copy, Debug)]
pub struct How {
    /// An index where there is one.
    index: bool,
    index_name: bool,
    add: bool,
    never: bool,
    code: bool,
}

#[derive(Default)]
pub struct Encoder {
    table: VecDeque<Field>,
    size_max: usize,
}

impl Encoder {
    pub fn new(size_max: usize) -> Encoder {
        Encoder { table: VecDeque::new(), size_max }
    }

    fn lookup(&self, same: impl Fn(&[u8], &[u8]) -> bool) -> Option<usize> {
        let fixed = STATIC.iter().position(|(n, v)| same(n.as_bytes(), v.as_bytes()));
        let dynamic = || self.table.iter().position(|(n, v)| same(n, v)).map(|i| 62 + i);
        fixed.map(|i| i + 1).or_else(dynamic)
    }

    pub fn resize(&mut self, size: usize, out: &mut Vec<u8>) {
        self.size_max = size;
        self.evict();
        integer(size, 5, 0x20, out);
    }

    fn evict(&mut self) {
        let size = |(n, v): &Field| n.len() + v.len() + ENTRY_OVERHEAD;
        while self.table.iter().map(size).sum::<usize>() > self.size_max {
            self.table.pop_back();
        }
    }

    pub fn field(&mut self, field: &Field, how: How, out: &mut Vec<u8>) {
        let (name, value) = field;
        if how.index
            && let Some(index) = self.lookup(|n, v| n == name && v == value)
        {
            return integer(index, 7, 0x80, out);
        }
        let index = self.lookup(|n, _| n == name).filter(|_| how.index_name).unwrap_or(0);
        match how.add {
            true => integer(index, 6, 0x40, out),
            false => integer(index, 4, if how.never { 0x10 } else { 0 }, out),
        }
        if index == 0 {
            string(name, how.code, out);
        }
        string(value, how.code, out);
        if how.add {
            self.table.push_front(field.clone());
            self.evict();
        }
    }
}

fn integer(value: usize, prefix: u32, first: u8, out: &mut Vec<u8>) {
    let full = (1 << prefix) - 1;
    if value < full {
        return out.push(first | value as u8);
    }
    out.push(first | full as u8);
    let mut rest = value - full;
    while rest >= 128 {
        out.push(rest as u8 | 0x80);
        rest >>= 7;
    }
    out.push(rest as u8);
}

fn string(text: &[u8], code: bool, out: &mut Vec<u8>) {
    let coded = if code { huffman(text) } else { text.to_vec() };
    integer(coded.len(), 7, if code { 0x80 } else { 0 }, out);
    out.extend(coded);
}

fn any_field() -> impl Strategy<Value = Field> {
    let name = prop::sample::select(vec![
        ":method",
        ":path",
        ":authority",
        "host",
        "content-type",
        "x-a",
        "x-b",
        "cookie",
        "other",
    ]);
    let value = prop_oneof![
        6 => prop::sample::select(vec!["", "GET", "/", "a", "text/event-stream"])
            .prop_map(|v| v.as_bytes().to_vec()),
        3 => prop::collection::vec(any::<u8>(), 0..60),
        1 => prop::collection::vec(b'a'..b'f', 0..1_500),
    ];
    (name, value).prop_map(|(name, value)| (name.as_bytes().to_vec(), value))
}

fn any_how() -> impl Strategy<Value = How> {
    (any::<bool>(), any::<bool>(), any::<bool>(), any::<bool>(), any::<bool>()).prop_map(
        |(index, index_name, add, never, code)| How { index, index_name, add, never, code },
    )
}

type Blocks = Vec<(Option<usize>, Vec<(Field, How)>)>;

fn any_blocks(size_max: usize) -> impl Strategy<Value = Blocks> {
    let fields = prop::collection::vec((any_field(), any_how()), 0..12);
    let resize = prop::option::weighted(0.2, 0..=size_max);
    prop::collection::vec((resize, fields), 1..20)
}

fn write(encoder: &mut Encoder, (resize, fields): &(Option<usize>, Vec<(Field, How)>)) -> Vec<u8> {
    let mut block = Vec::new();
    if let Some(size) = resize {
        encoder.resize(*size, &mut block);
    }
    for (field, how) in fields {
        encoder.field(field, *how, &mut block);
    }
    block
}

/// What a decoder tells of a field: unwanted names and their values are not told.
fn told(wanted: &Wanted, (name, value): &Field) -> Field {
    match wanted.id(name) {
        NameId::OTHER => (b"other".to_vec(), vec![]),
        _ => (name.clone(), value.clone()),
    }
}

proptest! {
    #[test]
    fn what_was_encoded_comes_back(blocks in any_blocks(TABLE_BYTES), piece in 1usize..300) {
        let (wanted, mut encoder) = (wanted(), Encoder::new(TABLE_BYTES));
        let mut decoder = Decoder::new(TABLE_BYTES);
        for blocks in &blocks {
            let block = write(&mut encoder, blocks);
            let expected: Vec<_> = blocks.1.iter().map(|(f, _)| told(&wanted, f)).collect();
            prop_assert_eq!(decode(&mut decoder, &block, piece), Ok(expected));
        }
    }

    /// Joined with the block `from`, or from the first one with tables beyond the room.
    #[test]
    fn what_is_not_known_is_never_told_wrong(
        blocks in any_blocks(3 * TABLE_BYTES),
        from in 0usize..10,
    ) {
        let (wanted, mut encoder) = (wanted(), Encoder::new(TABLE_BYTES));
        let mut decoder = Decoder::new(TABLE_BYTES);
        decoder.reset(from > 0);
        decoder.set_limit(u32::MAX);
        for (i, blocks) in blocks.iter().enumerate() {
            let block = write(&mut encoder, blocks);
            if i < from {
                continue;
            }
            let got = decode(&mut decoder, &block, 7).unwrap();
            prop_assert_eq!(got.len(), blocks.1.len());
            for (got, (field, _)) in got.iter().zip(&blocks.1) {
                if got.0 != b"unknown" {
                    prop_assert_eq!(got, &told(&wanted, field));
                }
            }
        }
    }

    #[test]
    fn any_bytes_in_any_pieces_are_the_same(
        blocks in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..60), 1..6),
        piece in 1usize..20,
    ) {
        let mut decoders = [Decoder::new(TABLE_BYTES), Decoder::new(TABLE_BYTES)];
        for block in &blocks {
            let [whole, cut] = &mut decoders;
            prop_assert_eq!(decode(whole, block, 1_000), decode(cut, block, piece));
        }
    }
}
