//! ClientHellos of public captures, where `TIDEGATE_CORPUS` names a directory that holds them and a
//! `truth.tsv` of what they say. Nothing is tested without it.

#[path = "common/corpus.rs"]
mod corpus;

use std::collections::{BTreeMap, HashMap};
use std::fs::{self, File};
use std::net::IpAddr;
use std::path::Path;

use corpus::corpus;
use pcap_file::DataLink;
use pcap_file::pcap::PcapReader;
use tidegate::base::Addr;
use tidegate::flow::reassembly::Reassembler;
use tidegate::inspect::Peek;
use tidegate::inspect::tls::{Encrypted, HelloParser};

const HELLO_BYTES_MAX: u32 = 1 << 16;
const PAGES: usize = 64;
const FIN: u8 = 1;
const SYN: u8 = 2;
const RST: u8 = 4;
const ACK: u8 = 16;

type Endpoint = (Addr, u16);
type Row = HashMap<String, String>;

/// A TCP segment in a capture.
struct Segment<'a> {
    from: Endpoint,
    to: Endpoint,
    seq: u32,
    flags: u8,
    checksum_fits: bool,
    payload: &'a [u8],
}

/// One direction of a connection under inspection.
struct Stream {
    reassembler: Reassembler,
    parser: HelloParser,
    open: bool,
    /// A checksum was right: where captures were made anonymous, none is.
    checksums_count: bool,
}

impl Stream {
    fn new() -> Stream {
        let reassembler = Reassembler::new(1, PAGES);
        Stream {
            reassembler,
            parser: HelloParser::new(HELLO_BYTES_MAX),
            open: false,
            checksums_count: false,
        }
    }

    fn take(&mut self, segment: &Segment<'_>) {
        let syn = segment.flags & SYN != 0;
        let refused = segment.flags & RST != 0 || segment.flags & (SYN | ACK | FIN) == 0;
        self.checksums_count |= segment.checksum_fits;
        let damaged = self.checksums_count && !segment.checksum_fits;
        if refused || damaged || (!syn && segment.flags & ACK == 0) {
            return;
        }
        if !self.open {
            self.open = true;
            self.reassembler.open(0, segment.seq.wrapping_add(u32::from(syn)));
        }
        let parser = &mut self.parser;
        self.reassembler.push(0, segment.seq, syn, segment.payload, |bytes| {
            parser.feed(bytes);
        });
    }
}

#[test]
fn hellos_of_public_captures_are_read() {
    let Some(corpus) = corpus() else { return };
    let rows = truth(&corpus);
    let mut by_file: BTreeMap<&str, Vec<&Row>> = BTreeMap::new();
    for row in &rows {
        let plain = row["encap"].split('/').all(|l| matches!(l, "eth" | "vlan" | "ip" | "ip6"));
        let asked = row["l4"] == "tcp" && matches!(&row["app"][..], "tls" | "none");
        if plain && asked && row["level"] == "must" && row["file"].ends_with(".pcap") {
            by_file.entry(&row["file"]).or_default().push(row);
        }
    }
    let (mut wrong, mut right) = (Vec::new(), 0);
    for (file, rows) in by_file {
        // Captures of other formats and links stand among them: these are enough here.
        let Some(streams) = read(&corpus.join(file), &rows) else { continue };
        for (row, stream) in rows.iter().zip(streams) {
            match differences(row, &stream.parser) {
                None => right += 1,
                Some(what) => wrong.push(format!("{file}:{} {what}", row["first_frame"])),
            }
        }
    }
    eprintln!("{right} rows right, {} wrong", wrong.len());
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert!(right > 1_000, "only {right} rows were tried");
}

fn truth(corpus: &Path) -> Vec<Row> {
    let text = fs::read_to_string(corpus.join("truth.tsv")).expect("truth.tsv");
    let mut lines = text.lines();
    let columns: Vec<&str> = lines.next().expect("a header line").split('\t').collect();
    let row = |line: &str| {
        columns.iter().map(|c| c.to_string()).zip(line.split('\t').map(str::to_owned)).collect()
    };
    lines.map(row).collect()
}

/// Runs a capture's segments through a stream for each row.
fn read(path: &Path, rows: &[&Row]) -> Option<Vec<Stream>> {
    let mut streams: Vec<Stream> = rows.iter().map(|_| Stream::new()).collect();
    let mut starts: HashMap<(Endpoint, Endpoint), Vec<(usize, usize)>> = HashMap::new();
    for (i, row) in rows.iter().enumerate() {
        let end = |side: &str| {
            let addr: IpAddr = row[&format!("{side}_ip")].parse().expect("an address");
            (Addr::from(addr), row[&format!("{side}_port")].parse().expect("a port"))
        };
        let first_frame = row["first_frame"].parse().expect("a number");
        starts.entry((end("client"), end("server"))).or_default().push((first_frame, i));
    }
    let mut reader = PcapReader::new(File::open(path).expect("a capture")).ok()?;
    if reader.header().datalink != DataLink::ETHERNET {
        return None;
    }
    let mut frame = 0;
    // Raw: the reader refuses packets that were longer than the capture's limit says.
    while let Some(Ok(packet)) = reader.next_raw_packet() {
        frame += 1;
        let Some(segment) = segment(&packet.data) else { continue };
        let Some(starts) = starts.get(&(segment.from, segment.to)) else { continue };
        // The connection that began last on these addresses.
        let current = starts.iter().filter(|(first, _)| *first <= frame).max();
        if let Some(&(_, i)) = current {
            streams[i].take(&segment);
        }
    }
    Some(streams)
}

/// What a parser says that the row does not.
fn differences(row: &Row, parser: &HelloParser) -> Option<String> {
    let found = parser.clone().feed(&[]) == Peek::Found(());
    if row["app"] == "none" {
        let named = parser.sni().map(String::from_utf8_lossy);
        return named.map(|name| format!("claims {name}"));
    }
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).to_lowercase();
    let hex = |versions: &[u16]| {
        versions.iter().map(|v| format!("{v:04x}")).collect::<Vec<_>>().join(",")
    };
    let sni = parser.sni().map_or("-".to_owned(), text);
    let alpn: Vec<String> = parser.alpn().iter().map(text).collect();
    let bit = |set: bool| if set { "1" } else { "0" }.to_owned();
    let mut groups = parser.post_quantum_groups().to_vec();
    groups.sort_unstable();
    let groups = hex(&groups);
    let ech = match parser.encrypted() {
        Encrypted::No => "0",
        Encrypted::Ech => "1",
        Encrypted::Esni => "2",
    };
    // Hellos without a name that servers refuse may stay unread.
    if !found && row["kinds"].contains("malformed") && row["sni"] == "-" {
        return None;
    }
    let mut told = vec![("found", bit(found), bit(true)), ("sni", sni, row["sni"].to_lowercase())];
    let more = vec![
        ("alpn", alpn.join(","), row["alpn"].to_lowercase()),
        ("versions", hex(parser.versions()), row["tls_versions"].clone()),
        ("legacy_version", hex(&[parser.legacy_version()]), row["legacy_version"].clone()),
        ("pq", groups, row["pq"].clone()),
        ("ech", ech.to_owned(), row["ech"].clone()),
    ];
    // Rows of decoys give the name only.
    if !row["legacy_version"].is_empty() {
        told.extend(more);
    }
    let off = told.into_iter().find(|(_, got, want)| got != want);
    off.map(|(what, got, want)| {
        format!("{what}: `{got}`, not `{want}` ({:?}; {})", parser.failure(), row["note"])
    })
}

fn segment(frame: &[u8]) -> Option<Segment<'_>> {
    let u16_at = |at: usize| Some(u16::from_be_bytes([*frame.get(at)?, *frame.get(at + 1)?]));
    let mut at = 12;
    while matches!(u16_at(at)?, 0x8100 | 0x88a8 | 0x9100) {
        at += 4;
    }
    let ip = at + 2;
    let (source, destination, tcp, end) = match u16_at(at)? {
        0x0800 => {
            let header_len = usize::from(*frame.get(ip)? & 15) * 4;
            let fragment = u16_at(ip + 6)? & 0x3fff != 0;
            if fragment || *frame.get(ip + 9)? != 6 {
                return None;
            }
            let source: [u8; 4] = frame.get(ip + 12..ip + 16)?.try_into().ok()?;
            let destination: [u8; 4] = frame.get(ip + 16..ip + 20)?.try_into().ok()?;
            let end = ip + usize::from(u16_at(ip + 2)?);
            (IpAddr::from(source), IpAddr::from(destination), ip + header_len, end)
        }
        0x86dd if *frame.get(ip + 6)? == 6 => {
            let source: [u8; 16] = frame.get(ip + 8..ip + 24)?.try_into().ok()?;
            let destination: [u8; 16] = frame.get(ip + 24..ip + 40)?.try_into().ok()?;
            let end = ip + 40 + usize::from(u16_at(ip + 4)?);
            (IpAddr::from(source), IpAddr::from(destination), ip + 40, end)
        }
        _ => return None,
    };
    let (source, destination) = (Addr::from(source), Addr::from(destination));
    // Captured before segmentation by the sender's device, a packet has length 0.
    let end = if end == ip { frame.len() } else { end.min(frame.len()) };
    let data = tcp + usize::from(*frame.get(tcp + 12)? >> 4) * 4;
    let seq: [u8; 4] = frame.get(tcp + 4..tcp + 8)?.try_into().ok()?;
    Some(Segment {
        from: (source, u16_at(tcp)?),
        to: (destination, u16_at(tcp + 2)?),
        seq: u32::from_be_bytes(seq),
        flags: *frame.get(tcp + 13)?,
        checksum_fits: checksum_fits(source, destination, frame.get(tcp..end)?),
        payload: frame.get(data..end)?,
    })
}

/// Whether the checksum is right, or left for the device (the pseudo-header's sum alone, or 0).
fn checksum_fits(source: Addr, destination: Addr, segment: &[u8]) -> bool {
    let words = |bytes: &[u8]| -> u64 {
        let pair = |c: &[u8]| u64::from(c[0]) << 8 | u64::from(c.get(1).copied().unwrap_or(0));
        bytes.chunks(2).map(pair).sum()
    };
    let fold = |mut sum: u64| {
        while sum > 0xffff {
            sum = (sum >> 16) + (sum & 0xffff);
        }
        sum
    };
    let addresses =
        |a: Addr| if a.is_v4() { words(&a.to_bytes()[12..]) } else { words(&a.to_bytes()) };
    let pseudo = fold(addresses(source) + addresses(destination) + 6 + segment.len() as u64);
    let Some(field) = segment.get(16..18).map(words) else { return false };
    // Windows leaves the length out where its device cuts the segment.
    let for_cutting = fold(addresses(source) + addresses(destination) + 6);
    let left = [pseudo, for_cutting, 0].contains(&field);
    left || fold(pseudo + words(segment)) == 0xffff
}
