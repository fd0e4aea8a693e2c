//! However the hellos and request heads of public captures are cut, delivered out of order, twice
//! or with overlaps, the answer is that of the whole. Reads the folder that `TIDEGATE_CORPUS`
//! names; nothing is tested without it.
//!
//! `TIDEGATE_SPLITS` gives the seed of the places where streams are cut; `all` cuts at every byte
//! (of long streams: of their first ones, and at many beyond).

#[path = "common/corpus.rs"]
mod folder;
#[allow(dead_code, reason = "other tests use it")]
mod quic_support;

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use quic_support::{DRAFT_29, Initial, V1, V2, crypto};
use tidegate::base::hash::Rng;
use tidegate::base::{Addr, Seed};
use tidegate::capture::{CaptureFile, Fragments, Transport, innermost};
use tidegate::flow::reassembly::{Reassembler, WINDOW_PAGES};
use tidegate::inspect::Peek;
use tidegate::inspect::fields::Wanted;
use tidegate::inspect::inspector::{Inspector, Pool, Rooms, Side};
use tidegate::inspect::quic::{CryptoStream, InitialReader, Scratch};
use tidegate::inspect::tls::HelloParser;

const TCP: u8 = 6;
const UDP: u8 = 17;
/// Of a stream, so that all of it may wait in the window at once.
const STREAM_BYTES_MAX: usize = 48 << 10;
const DATAGRAMS_MAX: usize = 16;
/// Bytes of a hello in one packet.
const CRYPTO_BYTES_MAX: usize = 1_100;
/// Each of them is a place to cut at.
const EVERY_BYTE_OF: usize = 700;
const BEYOND: usize = 200;
/// Places to cut at, where not all are.
const SAMPLE: usize = 6;
/// Bytes that overlapping parts have in common, on either side of a cut.
const OVERLAP: usize = 9;
const METHODS: [&str; 9] =
    ["GET", "POST", "PUT", "HEAD", "OPTIONS", "DELETE", "PATCH", "CONNECT", "PRI"];

type Endpoint = (Addr, u16);
/// From where in the stream, and the bytes.
type Part<'a> = (usize, &'a [u8]);

/// Datagrams in order, each with whether its flow's first sender sent it.
type Conversation = Vec<(bool, Vec<u8>)>;

/// One direction of a connection as captured.
#[derive(Default)]
struct Captured {
    /// Number of its first byte.
    first: Option<u32>,
    segments: Vec<(u32, Vec<u8>)>,
}

/// What the captures hold.
#[derive(Default)]
struct Corpus {
    /// Beginnings of streams, each once.
    streams: BTreeSet<Vec<u8>>,
    quic: Vec<Conversation>,
}

#[test]
fn streams_cut_anywhere_say_the_same() {
    let Some(corpus) = read_corpus() else { return };
    let mut rig = Rig::new();
    let mut runs = 0;
    for stream in &corpus.streams {
        let whole = rig.tcp(&[(0, stream)]);
        let bytes: Vec<Part<'_>> = stream.chunks(1).enumerate().collect();
        assert_eq!(rig.tcp(&bytes), whole, "byte by byte: {}", start(stream));
        for cut in cuts(stream) {
            let (a, b) = stream.split_at(cut);
            let early = cut.saturating_sub(OVERLAP);
            let late = (cut + OVERLAP).min(stream.len());
            for parts in [
                vec![(0, a), (cut, b)],
                vec![(cut, b), (0, a)],
                vec![(0, a), (0, a), (cut, b), (cut, b)],
                vec![(0, &stream[..late]), (early, &stream[early..])],
                vec![(early, &stream[early..]), (0, &stream[..late])],
            ] {
                let order: Vec<usize> = parts.iter().map(|part| part.0).collect();
                let told = rig.tcp(&parts);
                assert_eq!(told, whole, "cut at {cut}, sent {order:?}: {}", start(stream));
                runs += 1;
            }
        }
    }
    eprintln!("{} streams, {runs} deliveries", corpus.streams.len());
    assert!(corpus.streams.len() > 500, "only {} streams", corpus.streams.len());
}

#[test]
fn initials_cut_anywhere_say_the_same() {
    let Some(corpus) = read_corpus() else { return };
    let mut rig = Rig::new();
    let (mut hellos, mut runs) = (BTreeSet::new(), 0);
    for datagrams in &corpus.quic {
        let Some((version, hello)) = hello_of(datagrams) else { continue };
        runs += repeated(&mut rig, datagrams);
        hellos.insert((version, hello));
    }
    for (version, hello) in &hellos {
        let pieces: Vec<Part<'_>> = (0..hello.len())
            .step_by(CRYPTO_BYTES_MAX)
            .zip(hello.chunks(CRYPTO_BYTES_MAX))
            .collect();
        let whole = rig.quic(&sealed(*version, &pieces, false));
        for cut in cuts(hello) {
            let mut parts = Vec::new();
            for &(at, piece) in &pieces {
                match cut.checked_sub(at).filter(|&cut| 0 < cut && cut < piece.len()) {
                    Some(within) => {
                        let (a, b) = piece.split_at(within);
                        let early = within.saturating_sub(OVERLAP);
                        parts.extend([(at, a), (at + early, &piece[early..]), (cut, b)]);
                    }
                    None => parts.push((at, piece)),
                }
            }
            for (reversed, together) in [(false, false), (true, false), (false, true), (true, true)]
            {
                let mut parts = parts.clone();
                if reversed {
                    parts.reverse();
                }
                let told = rig.quic(&sealed(*version, &parts, together));
                assert_eq!(told, whole, "{version:x} cut at {cut}, reversed: {reversed}");
                runs += 1;
            }
        }
    }
    eprintln!("{} hellos, {runs} deliveries", hellos.len());
    assert!(hellos.len() > 100, "only {} hellos", hellos.len());
}

/// The datagrams as captured, each twice, and where nothing is answered before the last of them
/// backwards.
fn repeated(rig: &mut Rig, datagrams: &[(bool, Vec<u8>)]) -> usize {
    let whole = rig.quic(datagrams);
    let twice: Vec<_> = datagrams.iter().flat_map(|d| [d.clone(), d.clone()]).collect();
    assert_eq!(rig.quic(&twice), whole, "each datagram twice");
    let flight = (1..=datagrams.len())
        .take_while(|&n| datagrams[n - 1].0)
        .find(|&n| hello_of(&datagrams[..n]).is_some());
    let Some(flight) = flight else { return 1 };
    let mut backwards = datagrams[..flight].to_vec();
    let whole = rig.quic(&backwards);
    backwards.reverse();
    assert_eq!(rig.quic(&backwards), whole, "{flight} datagrams backwards");
    2
}

/// Packets of these parts of a hello, as datagrams; `together`: two frames in each packet.
fn sealed(version: u32, parts: &[Part<'_>], together: bool) -> Conversation {
    let frames: Vec<Vec<u8>> = parts.iter().map(|&(at, bytes)| crypto(at, bytes)).collect();
    let packets = frames.chunks(if together { 2 } else { 1 }).map(<[Vec<u8>]>::concat);
    let seal = |(number, frames): (usize, Vec<u8>)| {
        let initial = Initial { number: number as u32, ..Initial::new(version, b"8 bytes!") };
        (true, initial.seal(&[&frames[..], &[0; 8]].concat()))
    };
    packets.enumerate().map(seal).collect()
}

/// The handshake stream up to the hello's end, and the version that it is sent with here.
fn hello_of(datagrams: &[(bool, Vec<u8>)]) -> Option<(u32, Vec<u8>)> {
    let (mut reader, mut scratch) = (InitialReader::new(), Scratch::new());
    let mut hello = HelloParser::new(1 << 16);
    // As one byte is missing before the stream, all of it is kept.
    let mut reassembler = Reassembler::new(1, WINDOW_PAGES);
    reassembler.open(0, u32::MAX);
    for (from_client, datagram) in datagrams {
        let mut stream = CryptoStream { reassembler: &mut reassembler, slot: 0, hello: &mut hello };
        let _ = reader.datagram(*from_client, datagram, &mut stream, &mut scratch);
    }
    let mut bytes = Vec::new();
    reassembler.push(0, u32::MAX, false, &[0], |part| bytes.extend_from_slice(part));
    let message = bytes.get(1..)?;
    let mut whole = HelloParser::new(1 << 16);
    let is_whole = |at: &usize| whole.feed_message(&message[*at..=*at]) == Peek::Found(());
    let end = (0..message.len()).find(is_whole)?;
    let version = reader.version().filter(|v| [V1, V2, DRAFT_29].contains(v)).unwrap_or(V1);
    Some((version, message[..=end].to_vec()))
}

/// Where to cut.
fn cuts(stream: &[u8]) -> BTreeSet<usize> {
    let setting = std::env::var("TIDEGATE_SPLITS").unwrap_or_default();
    let seed = setting.parse().unwrap_or(1);
    let mut rng = Rng::new(Seed(seed ^ (stream.len() as u64) << 32));
    let all = setting == "all";
    let first = stream.len().min(EVERY_BYTE_OF);
    let mut cuts: BTreeSet<usize> = if all { (1..first).collect() } else { BTreeSet::new() };
    if stream.len() > 1 {
        let sample = if all { BEYOND } else { SAMPLE };
        cuts.extend((0..sample).map(|_| 1 + rng.below(stream.len() as u32 - 1) as usize));
    }
    cuts
}

fn start(stream: &[u8]) -> String {
    stream[..stream.len().min(48)].escape_ascii().to_string()
}

/// Reads connections, one after the other.
struct Rig {
    reassembler: Reassembler,
    pool: Pool,
}

impl Rig {
    fn new() -> Rig {
        let rooms = Rooms {
            greetings: 1,
            target: 1 << 14,
            first_target: 1 << 14,
            heads: 2,
            table: 1 << 16,
            whole_tables: 2,
        };
        let wanted = Wanted::new([]).expect("the fixed names");
        let reassembler = Reassembler::new(1, 2 * WINDOW_PAGES);
        Rig { reassembler, pool: Pool::growing(wanted, rooms, 1) }
    }

    /// What a client says that sends these parts.
    fn tcp(&mut self, parts: &[Part<'_>]) -> String {
        const FIRST: u32 = u32::MAX - 40;
        let Rig { reassembler, pool } = self;
        let mut inspector = Inspector::new(false);
        reassembler.open(0, FIRST);
        for &(at, bytes) in parts {
            let seq = FIRST.wrapping_add(at as u32);
            reassembler.push(0, seq, false, bytes, |part| {
                inspector.stream(pool, Side::Client, part);
            });
        }
        reassembler.close(0);
        self.answer(inspector)
    }

    /// What a client says that sends these datagrams, and gets the others.
    fn quic(&mut self, datagrams: &[(bool, Vec<u8>)]) -> String {
        let mut inspector = Inspector::new(false);
        for (from_client, bytes) in datagrams {
            let from = if *from_client { Side::Client } else { Side::Server };
            inspector.datagram(&mut self.pool, &mut self.reassembler, 0, from, bytes);
        }
        if !inspector.is_done() {
            self.reassembler.close(0);
        }
        self.answer(inspector)
    }

    /// All that is told of a connection.
    fn answer(&mut self, inspector: Inspector) -> String {
        let hello = inspector.client_hello().map(|hello| {
            let offers = (hello.alpn(), hello.versions(), hello.encrypted(), hello.grease());
            let groups = hello.post_quantum_groups();
            let session = (hello.resumed(), hello.early_data(), hello.legacy_version());
            let name = hello.sni().map(|name| name.escape_ascii().to_string());
            format!("{name:?} {offers:x?} {groups:x?} {session:x?}")
        });
        let ja4 = inspector.ja4().map(|ja4| ja4.as_str().to_owned());
        let request = inspector.request().map(|request| {
            let text = |bytes: &[u8]| bytes.escape_ascii().to_string();
            (text(request.method), request.authority.map(text), request.path.map(text))
        });
        let kind = (inspector.app(), inspector.unknown(), inspector.shortfall());
        let told = format!(
            "{kind:?} {:?} {hello:?} {ja4:?} {request:?} {} {}",
            inspector.quic_version(),
            inspector.requests(),
            inspector.is_truncated()
        );
        inspector.give_back(&mut self.pool);
        told
    }
}

fn read_corpus() -> Option<Corpus> {
    let mut corpus = Corpus::default();
    let folder = folder::corpus()?.join("pcap");
    let mut files: Vec<_> = walk(&folder);
    files.sort();
    for file in files {
        read_capture(&file, &mut corpus);
    }
    Some(corpus)
}

fn walk(folder: &Path) -> Vec<std::path::PathBuf> {
    let entries = std::fs::read_dir(folder).expect("a folder");
    let paths = entries.map(|entry| entry.expect("readable").path());
    paths.flat_map(|path| if path.is_dir() { walk(&path) } else { vec![path] }).collect()
}

fn read_capture(path: &Path, corpus: &mut Corpus) {
    let Ok(mut file) = CaptureFile::open(path, |_| ()) else { return };
    let (mut fragments, mut whole) = (Fragments::default(), Vec::new());
    let mut tcp: BTreeMap<(Endpoint, Endpoint), Captured> = BTreeMap::new();
    let mut udp: BTreeMap<[Endpoint; 2], (Endpoint, Conversation)> = BTreeMap::new();
    while let Ok(Some(packet)) = file.next_packet() {
        let Some(transport) = innermost(packet.link, packet.bytes, &mut fragments, &mut whole)
        else {
            continue;
        };
        let Some((from, to)) = ends(&transport) else { continue };
        if transport.proto == UDP {
            let mut key = [from, to];
            key.sort();
            let (first, list) = udp.entry(key).or_insert((from, Vec::new()));
            if let Some(payload) = transport.bytes.get(8..)
                && list.len() < DATAGRAMS_MAX
            {
                list.push((*first == from, payload.to_vec()));
            }
        } else if transport.proto == TCP {
            segment(&transport, (from, to), &mut tcp, corpus);
        }
    }
    tcp.into_values().for_each(|captured| corpus.keep(captured));
    corpus.quic.extend(udp.into_values().map(|(_, list)| list));
}

fn ends(transport: &Transport<'_>) -> Option<(Endpoint, Endpoint)> {
    let port =
        |at: usize| transport.bytes.get(at..)?.first_chunk().map(|port| u16::from_be_bytes(*port));
    Some(((transport.src, port(0)?), (transport.dst, port(2)?)))
}

fn segment(
    transport: &Transport<'_>,
    key: (Endpoint, Endpoint),
    tcp: &mut BTreeMap<(Endpoint, Endpoint), Captured>,
    corpus: &mut Corpus,
) {
    const SYN: u8 = 2;
    let bytes = transport.bytes;
    let Some(&[a, b, c, d]) = bytes.get(4..8) else { return };
    let (Some(length), Some(flags)) = (bytes.get(12), bytes.get(13)) else { return };
    let seq = u32::from_be_bytes([a, b, c, d]);
    let captured = tcp.entry(key).or_default();
    if flags & SYN != 0 && captured.first != Some(seq.wrapping_add(1)) {
        corpus.keep(std::mem::take(captured));
        captured.first = Some(seq.wrapping_add(1));
    }
    let payload = bytes.get(usize::from(length >> 4) * 4..).unwrap_or_default();
    if !payload.is_empty() {
        captured.first.get_or_insert(seq);
        captured.segments.push((seq, payload.to_vec()));
    }
}

impl Corpus {
    /// Keeps a stream that begins as a client of TLS or HTTP begins.
    fn keep(&mut self, captured: Captured) {
        let Some(first) = captured.first else { return };
        let (mut reassembler, mut stream) = (Reassembler::new(1, WINDOW_PAGES), Vec::new());
        reassembler.open(0, first);
        for (seq, payload) in &captured.segments {
            reassembler.push(0, *seq, false, payload, |part| stream.extend_from_slice(part));
        }
        stream.truncate(STREAM_BYTES_MAX);
        let hello = match stream[..] {
            [22, _, _, _, _, 1, ..] => true,
            [first, _, 1, ..] => first & 0x80 != 0,
            _ => false,
        };
        let asks = |method: &&str| {
            stream.strip_prefix(method.as_bytes()).is_some_and(|rest| rest.starts_with(b" "))
        };
        if hello || METHODS.iter().any(asks) {
            self.streams.insert(stream);
        }
    }
}
