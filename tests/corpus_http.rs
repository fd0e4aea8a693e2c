//! Every header block of cleartext HTTP/2 and every request of HTTP/1 in public captures, where
//! `TIDEGATE_CORPUS` names a directory that holds them. Nothing is tested without it.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use serde_json::Value;
use tidegate::base::Addr;
use tidegate::capture::{CaptureFile, Fragments, innermost};
use tidegate::flow::reassembly::Reassembler;
use tidegate::inspect::fields::{NameId, Sink, Wanted};
use tidegate::inspect::h2::{self, Block, Failure, Message, Start};
use tidegate::inspect::hpack::TABLE_BYTES_MAX;
use tidegate::inspect::http1::{self, Next, Side};

const PAGES: usize = 64;
const TARGET_BYTES: usize = 16_384;
const TCP: u8 = 6;
const SYN: u8 = 2;
const ACK: u8 = 16;

type Endpoint = (Addr, u16);
type Field = (String, String);

/// A flow: client, server, and which of those on these addresses.
type Key = (Endpoint, Endpoint, u64);

/// All fields of a block in order.
#[derive(Clone, Default)]
struct Told {
    fields: Vec<(NameId, Vec<u8>)>,
}

impl Sink for Told {
    fn clear(&mut self) {
        self.fields.clear();
    }

    fn begin(&mut self, name: NameId) {
        self.fields.push((name, Vec::new()));
    }

    fn value(&mut self, piece: &[u8]) {
        self.fields.last_mut().expect("a field").1.extend_from_slice(piece);
    }

    fn end(&mut self) {}
}

impl Message for Told {
    fn has(&self, name: NameId) -> bool {
        self.fields.iter().any(|(id, _)| *id == name)
    }

    fn has_unknown(&self) -> bool {
        self.has(NameId::UNKNOWN) || self.has(NameId::FORGOTTEN)
    }

    fn status(&self) -> Option<u16> {
        let (_, value) = self.fields.iter().find(|(id, _)| *id == NameId::STATUS)?;
        std::str::from_utf8(value).ok()?.parse().ok()
    }
}

/// One connection, read as far as it is HTTP.
struct Flow {
    reassembler: Reassembler,
    open: [bool; 2],
    http1: http1::Connection,
    http2: h2::Connection<Told>,
    /// What a direction has become.
    next: [Option<Next>; 2],
    requests: Vec<[String; 3]>,
    /// Of each direction: stream (the promised one), whether it was promised, fields.
    blocks: [Vec<(u32, bool, Vec<Field>)>; 2],
    settings: Vec<u8>,
    /// Receivers end this direction with an error.
    refused: [bool; 2],
}

impl Flow {
    fn new(wanted: &Wanted) -> Flow {
        Flow {
            reassembler: Reassembler::new(2, PAGES),
            open: [false; 2],
            http1: http1::Connection::new(wanted, TARGET_BYTES),
            http2: h2::Connection::with(Told::default(), Told::default(), TABLE_BYTES_MAX),
            next: [None; 2],
            requests: Vec::new(),
            blocks: Default::default(),
            settings: Vec::new(),
            refused: [false; 2],
        }
    }

    fn take(&mut self, side: Side, seq: u32, syn: bool, payload: &[u8], wanted: &Wanted) {
        let slot = side as usize;
        if !std::mem::replace(&mut self.open[slot], true) {
            self.reassembler.open(slot, seq.wrapping_add(u32::from(syn)));
        }
        let mut pieces: Vec<Vec<u8>> = Vec::new();
        self.reassembler.push(slot, seq, syn, payload, |bytes| pieces.push(bytes.to_vec()));
        pieces.iter().for_each(|piece| self.deliver(side, piece, wanted));
    }

    fn deliver(&mut self, side: Side, bytes: &[u8], wanted: &Wanted) {
        let mut rest = bytes;
        let prior = self.next[0] == Some(Next::Http2) && self.requests.is_empty();
        if self.next[side as usize].is_none() && !(side == Side::Server && prior) {
            let (requests, settings) = (&mut self.requests, &mut self.settings);
            let fed = self.http1.feed(side, bytes, wanted, |event| {
                let http1::Event::Request { fields, .. } = event else { return };
                let text = |name| fields.get(name).map_or("-".to_owned(), lossy);
                requests.push([text(NameId::METHOD), text(NameId::PATH), text(NameId::HOST)]);
                settings.clear();
                settings.extend(fields.get(NameId::HTTP2_SETTINGS).unwrap_or_default());
            });
            let Some(next) = fed.next else { return };
            self.next[side as usize] = Some(next);
            rest = &bytes[fed.used..];
            let other = self.next[1 - side as usize];
            if next == Next::Http2 && other != Some(Next::Http2) {
                let upgraded = !self.requests.is_empty();
                let start = Start::Upgraded(&self.settings);
                self.http2.reset(if upgraded { start } else { Start::BehindPreface });
            }
        }
        let blocks = &mut self.blocks[side as usize];
        let done = self.http2.feed(side, rest, wanted, |event| {
            let h2::Event::Headers { stream, block, fields, .. } = event else { return };
            let name = |id| wanted.name(id).map_or("?".to_owned(), lossy);
            let fields = fields.fields.iter().map(|(id, value)| (name(*id), lossy(value)));
            let (stream, promised) = match block {
                Block::Promise { promised } => (promised, true),
                _ => (stream, false),
            };
            blocks.push((stream, promised, fields.collect()));
        });
        self.refused[side as usize] |= matches!(done, Err(Failure::Connection(_)));
    }
}

fn lossy(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// The lines of a file of the corpus by capture and flow.
fn lines(corpus: &Path, file: &str) -> BTreeMap<String, HashMap<Key, Vec<Value>>> {
    let text = std::fs::read_to_string(corpus.join(file)).expect(file);
    let mut by_file: BTreeMap<String, HashMap<Key, Vec<Value>>> = BTreeMap::new();
    for line in text.lines() {
        let value: Value = serde_json::from_str(line).expect("JSON");
        let flow = value["flow"].as_array().expect("a flow");
        let end = |at: usize| -> Endpoint {
            let addr: IpAddr = flow[at].as_str().expect("text").parse().expect("an address");
            (Addr::from(addr), flow[at + 1].as_u64().expect("a port") as u16)
        };
        let key = (end(2), end(4), flow[6].as_u64().expect("a number"));
        let capture = flow[0].as_str().expect("a name").to_owned();
        by_file.entry(capture).or_default().entry(key).or_default().push(value);
    }
    by_file
}

/// Follows the flows of a capture that are asked for.
fn read(path: &Path, asked: &HashMap<Key, Vec<Value>>, wanted: &Wanted) -> HashMap<Key, Flow> {
    let mut flows: HashMap<Key, Flow> = HashMap::new();
    let mut latest: HashMap<(Endpoint, Endpoint), (u64, Option<u32>)> = HashMap::new();
    let mut file = CaptureFile::open(path, |_| {}).expect("a capture");
    let (mut fragments, mut whole) = (Fragments::default(), Vec::new());
    while let Ok(Some(packet)) = file.next_packet() {
        let transport = innermost(packet.link, packet.bytes, &mut fragments, &mut whole);
        let Some(transport) = transport.filter(|t| t.proto == TCP && t.bytes.len() >= 20) else {
            continue;
        };
        let tcp = transport.bytes;
        let port = |at: usize| u16::from_be_bytes([tcp[at], tcp[at + 1]]);
        let (from, to) = ((transport.src, port(0)), (transport.dst, port(2)));
        let seq = u32::from_be_bytes([tcp[4], tcp[5], tcp[6], tcp[7]]);
        let syn = tcp[13] & SYN != 0;
        let payload = tcp.get(usize::from(tcp[12] >> 4) * 4..).unwrap_or_default();
        let is_client = |n| asked.contains_key(&(from, to, n));
        let side = if (0..50).any(is_client) { Side::Client } else { Side::Server };
        let ends = if side == Side::Client { (from, to) } else { (to, from) };
        let current = latest.entry(ends).or_insert((0, None));
        if syn && tcp[13] & ACK == 0 && current.1 != Some(seq) {
            current.0 += u64::from(current.1.is_some());
            current.1 = Some(seq);
        }
        let key = (ends.0, ends.1, current.0);
        if asked.contains_key(&key) {
            let flow = flows.entry(key).or_insert_with(|| Flow::new(wanted));
            flow.take(side, seq, syn, payload, wanted);
        }
    }
    flows
}

#[test]
fn requests_of_kept_connections() {
    let Some(corpus) = std::env::var_os("TIDEGATE_CORPUS").map(PathBuf::from) else { return };
    let wanted = Wanted::new([]).expect("no names");
    let mut flows = 0;
    for (file, asked) in lines(&corpus, "http1_requests.jsonl") {
        let read = read(&corpus.join(&file), &asked, &wanted);
        for (key, lines) in &asked {
            let requests = serde_json::to_value(&read[key].requests).expect("JSON");
            assert_eq!(requests, lines[0]["requests"], "{file} {key:?}");
            flows += 1;
        }
    }
    eprintln!("{flows} flows");
    assert!(flows >= 15, "{flows} flows");
}

#[test]
fn header_blocks_of_http2() {
    let Some(corpus) = std::env::var_os("TIDEGATE_CORPUS").map(PathBuf::from) else { return };
    let by_file = lines(&corpus, "h2_headers.jsonl");
    let all = by_file.values().flat_map(HashMap::values).flatten();
    let names: BTreeSet<String> = all.flat_map(fields).map(|(name, _)| name).collect();
    let wanted = Wanted::new(names.iter().map(|name| &**name)).expect("names");
    let (mut right, mut open, mut wrong) = (0, 0, Vec::new());
    for (file, asked) in &by_file {
        let read = read(&corpus.join(file), asked, &wanted);
        for (key, lines) in asked {
            for line in lines {
                let side = if line["dir"] == "c2s" { 0 } else { 1 };
                let n = line["n"].as_u64().expect("a number") as usize;
                let stream = line["stream"].as_u64().expect("a number") as u32;
                let fields = fields(line).into_iter().map(allowed).collect();
                let expected = (stream, line["type"] == "PUSH_PROMISE", fields);
                let flow = read.get(key);
                let got = flow.and_then(|flow| flow.blocks[side].get(n));
                let refused = flow.is_some_and(|flow| flow.refused[side]);
                match got {
                    Some(got) if *got == expected => right += 1,
                    // Damaged streams and those joined late may stay unread.
                    None if line["level"] == "info" => open += 1,
                    // Fuzzed: frames too long, or on streams where they may not be.
                    None if line["level"] == "should" && refused => open += 1,
                    got => wrong.push(format!("{file} {line}: {got:?}")),
                }
            }
        }
    }
    eprintln!("{right} blocks right, {open} not read, {} wrong", wrong.len());
    assert!(open <= 10, "{open} blocks of damaged streams not read");
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert!(right > 1_000, "only {right} blocks");
}

/// A name in upper case makes a message malformed (RFC 9113, section 8.2.1), and is not told.
fn allowed((name, value): Field) -> Field {
    match name.bytes().any(|b| b.is_ascii_uppercase()) {
        true => ("?".to_owned(), String::new()),
        false => (name, value),
    }
}

fn fields(line: &Value) -> Vec<Field> {
    let pair = |field: &Value| {
        let text = |at: usize| field[at].as_str().expect("text").to_owned();
        (text(0), text(1))
    };
    line["headers"].as_array().expect("fields").iter().map(pair).collect()
}
