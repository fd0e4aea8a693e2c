//! What the two kernels' TCP sees of each other, from captures at both of their interfaces.

use std::collections::HashMap;
use std::fs::File;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use pcap_file::pcap::PcapReader;
use tidegate::lab::{Namespace, Process, wait_for};

use crate::common::{VIP4, noise};
use crate::site::{NAMES, Site};

const BYTES: usize = 20_000_000;
/// One in so many of the server's packets is lost on its way into the client, and of the client's
/// on its way into the server.
const LOST_ONE_IN: u32 = 150;

const SYN: u8 = 2;
const ACK: u8 = 16;

/// A TCP segment of a capture, as far as the test looks at it.
#[derive(Debug, Default)]
struct Segment {
    ports: (u16, u16),
    sequence: u32,
    flags: u8,
    payload: u32,
    mss: Option<u16>,
    window_scale: Option<u8>,
    sack_permitted: bool,
    stamps: Option<(u32, u32)>,
    sack: Vec<(u32, u32)>,
}

fn word(bytes: &[u8], at: usize) -> u32 {
    u32::from_be_bytes(bytes[at..at + 4].try_into().expect("four bytes"))
}

fn half(bytes: &[u8], at: usize) -> u16 {
    u16::from_be_bytes(bytes[at..at + 2].try_into().expect("two bytes"))
}

/// Of an Ethernet frame with IPv4 and TCP without IP options, as these kernels send.
fn segment(frame: &[u8]) -> Option<Segment> {
    if frame.len() < 54 || half(frame, 12) != 0x0800 || frame[14] != 0x45 || frame[23] != 6 {
        return None;
    }
    let tcp = &frame[34..];
    let header = usize::from(tcp[12] >> 4) * 4;
    let mut seen = Segment {
        ports: (half(tcp, 0), half(tcp, 2)),
        sequence: word(tcp, 4),
        flags: tcp[13],
        payload: u32::from(half(frame, 16)) - 20 - header as u32,
        ..Segment::default()
    };
    let mut options = &tcp[20..header];
    while let [kind, rest @ ..] = options {
        match kind {
            0 => break,
            1 => options = rest,
            _ => {
                let (option, further) = options.split_at(usize::from(rest[0]));
                note(&mut seen, *kind, &option[2..]);
                options = further;
            }
        }
    }
    Some(seen)
}

fn note(seen: &mut Segment, kind: u8, body: &[u8]) {
    match kind {
        2 => seen.mss = Some(half(body, 0)),
        3 => seen.window_scale = Some(body[0]),
        4 => seen.sack_permitted = true,
        5 => seen.sack = body.chunks(8).map(|b| (word(b, 0), word(b, 4))).collect(),
        8 => seen.stamps = Some((word(body, 0), word(body, 4))),
        _ => {}
    }
}

fn capture(ns: &Namespace, interface: &str, file: &Path) -> Process {
    let mut command = Command::new("tcpdump");
    command.args(["-i", interface, "-s", "128", "-U", "-Z", "root", "-w"]).arg(file);
    command.args(["tcp", "and", "net", "10.0.0.0/8"]);
    let process = ns.spawn(command).expect("tcpdump");
    // The file's own header is written when the capture has begun.
    let begun = || std::fs::metadata(file).is_ok_and(|m| m.len() >= 24);
    wait_for(Duration::from_secs(30), "the capture", begun).expect("a file");
    process
}

fn read(file: &Path) -> Vec<Segment> {
    let mut reader = PcapReader::new(File::open(file).expect("a capture")).expect("its header");
    let mut segments = Vec::new();
    // Raw, since others take packets that were cut for damaged. The last record may be.
    while let Some(Ok(packet)) = reader.next_raw_packet() {
        segments.extend(segment(&packet.data));
    }
    segments
}

fn lose_some(ns: &Namespace) {
    let rules = format!(
        "add table inet loss; \
         add chain inet loss in {{ type filter hook input priority 0; }}; \
         add rule inet loss in tcp flags & (syn | fin | rst) == 0 \
         numgen random mod {LOST_ONE_IN} 0 drop"
    );
    ns.run("nft", &[&rules]).expect("nft");
}

/// The options of both SYNs, as each side sees them.
fn everything_is_offered(side: &str, segments: &[Segment]) {
    for wanted in [SYN, SYN | ACK] {
        let found = segments.iter().find(|s| s.flags & (SYN | ACK) == wanted);
        let syn = found.unwrap_or_else(|| panic!("{side}: no SYN"));
        assert!(syn.mss.is_some() && syn.sack_permitted, "{side}: {syn:?}");
        assert!(syn.window_scale.is_some() && syn.stamps.is_some(), "{side}: {syn:?}");
    }
    let bare = segments.iter().find(|s| s.flags & (SYN | 4) == 0 && s.stamps.is_none());
    assert!(bare.is_none(), "{side}: a segment without timestamps: {bare:?}");
}

/// Each SACK block lies in what the other side has sent by then. Returns how many there were.
fn blocks_are_of_what_was_sent(side: &str, segments: &[Segment]) -> usize {
    let mut sent: HashMap<(u16, u16), (u32, u32)> = HashMap::new();
    let mut blocks = 0;
    for s in segments {
        let length = s.payload + u32::from(s.flags & SYN != 0) + u32::from(s.flags & 1);
        let end = s.sequence.wrapping_add(length);
        let range = sent.entry(s.ports).or_insert((s.sequence, end));
        if end.wrapping_sub(range.1) as i32 > 0 {
            range.1 = end;
        }
        let Some(&(first, last)) = sent.get(&(s.ports.1, s.ports.0)) else { continue };
        for &(from, to) in &s.sack {
            blocks += 1;
            let fits = from.wrapping_sub(first) < to.wrapping_sub(first)
                && to.wrapping_sub(first) <= last.wrapping_sub(first);
            assert!(fits, "{side}: {from}-{to} is not in {first}-{last}: {s:?}");
        }
    }
    blocks
}

/// Losses both ways, behind the appliance: what arrives after a gap is told in SACK blocks, which
/// have to be translated, as have the timestamps by which round trips are measured.
#[test]
fn linux_keeps_sack_timestamps_and_window_scaling() {
    let site = Site::new("nat", VIP4);
    let data = noise(BYTES, 3);
    std::fs::write(site.html("data.bin"), &data).expect("write");
    let (source, got) = (site.net.path("data.bin"), site.net.path("got.bin"));
    std::fs::write(&source, &data).expect("write");
    let files = [site.net.path("client.pcap"), site.net.path("server.pcap")];
    let captures = [
        capture(&site.net.client, "wan0", &files[0]),
        capture(&site.net.server, "eth0", &files[1]),
    ];
    lose_some(&site.net.client);
    lose_some(&site.net.server);
    site.curl(NAMES[1], "/data.bin", &["-o", got.to_str().expect("path")]);
    site.curl(NAMES[1], "/put/data.bin", &["-T", source.to_str().expect("path")]);
    assert!(std::fs::read(&got).expect("a file") == data, "changed on its way down");
    assert!(std::fs::read(site.html("put/data.bin")).expect("a file") == data, "changed");
    drop(captures);

    for (side, file) in ["client", "server"].iter().zip(&files) {
        let segments = read(file);
        everything_is_offered(side, &segments);
        let blocks = blocks_are_of_what_was_sent(side, &segments);
        assert!(blocks >= 100, "{side}: {blocks} SACK blocks, of {} segments", segments.len());
    }
}
