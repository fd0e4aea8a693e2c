//! Any bytes as a capture: links, tunnels, fragments and connections, told within limits.

use std::io::Cursor;
use std::sync::LazyLock;

use tidegate::base::Addr;
use tidegate::capture::{CaptureFile, inspect};
use tidegate::packet::build::{TcpSpec, UdpSpec, tcp_packet, udp_packet};
use tidegate::packet::tcp::flag::{ACK, SYN};
use tidegate::policy::catalogue::Catalogue;

use super::client_hello::ClientHello;

static CATALOGUE: LazyLock<Catalogue> = LazyLock::new(Catalogue::builtin);

/// A packet that belongs to a connection takes as many bytes at least: a record's header and those
/// of IP and UDP.
const PACKET_BYTES_MIN: usize = 16 + 20 + 8;

/// Input: the file.
pub fn run(data: &[u8]) {
    let Ok(mut file) = CaptureFile::new(Cursor::new(data.to_vec())) else { return };
    let packed = data.starts_with(&[0x1f, 0x8b]);
    let mut flows = 0;
    let _ = inspect(&mut file, &CATALOGUE, |record| {
        flows += 1;
        assert!(!record.encap.is_empty() && !record.seen.app.is_empty());
        assert!(record.seen.ja4.is_empty() || record.seen.ja4.len() == 36);
    });
    assert!(packed || flows * PACKET_BYTES_MIN <= data.len(), "more flows than packets");
}

const CLIENT: (Addr, u16) = (Addr::v4(0x0a00_0001), 40_000);
const SERVER: (Addr, u16) = (Addr::v4(0x0a00_0002), 443);

fn file(link: u32, packets: &[Vec<u8>]) -> Vec<u8> {
    let mut out = Vec::new();
    for n in [0xa1b2_c3d4, 0x0004_0002, 0, 0, 65_535, link] {
        out.extend(n.to_le_bytes());
    }
    for packet in packets {
        for n in [1, 2, packet.len() as u32, packet.len() as u32] {
            out.extend(n.to_le_bytes());
        }
        out.extend(packet);
    }
    out
}

fn segment(seq: u32, flags: u8, payload: &[u8]) -> Vec<u8> {
    tcp_packet(&TcpSpec { seq, ..TcpSpec::new(CLIENT, SERVER, flags, payload) })
}

/// A packet inside UDP to a tunnel's port.
fn tunnel(port: u16, head: &[u8], inner: &[u8]) -> Vec<u8> {
    udp_packet(&UdpSpec::new(CLIENT, (SERVER.0, port), &[head, inner].concat()))
}

/// The blocks of pcapng around packets.
fn pcapng(packets: &[Vec<u8>]) -> Vec<u8> {
    let words = |numbers: &[u32]| numbers.iter().flat_map(|n| n.to_le_bytes()).collect::<Vec<u8>>();
    let block = |kind: u32, body: Vec<u8>| {
        let mut body = body;
        body.resize(body.len().next_multiple_of(4), 0);
        let len = body.len() as u32 + 12;
        [words(&[kind, len]), body, words(&[len])].concat()
    };
    let mut out = block(0x0a0d_0d0a, words(&[0x1a2b_3c4d, 1, u32::MAX, u32::MAX]));
    out.extend(block(1, words(&[1, 0])));
    for packet in packets {
        let len = packet.len() as u32;
        out.extend(block(6, [words(&[0, 0, 0, len, len]), packet.clone()].concat()));
    }
    out
}

/// Seeds by name.
pub fn seeds() -> Vec<(String, Vec<u8>)> {
    let hello = ClientHello {
        name: Some(b"api.openai.com"),
        protocols: &[b"h2"],
        padding: 40,
        record_len: 90,
    }
    .bytes();
    let get = b"GET /v1/models HTTP/1.1\r\nHost: api.groq.com\r\n\r\n";
    let (syn, first) = (segment(9, SYN, b""), segment(10, ACK, &hello[..80]));
    let second = segment(90, ACK, &hello[80..]);
    let http = segment(10, ACK, get);
    let gre = {
        let mut outer = udp_packet(&UdpSpec::new(CLIENT, SERVER, b""));
        outer.truncate(34);
        outer[23] = 47;
        outer[16..18].copy_from_slice(&((20 + 4 + http.len() - 14) as u16).to_be_bytes());
        [&outer[..], &[0, 0, 8, 0], &http[14..]].concat()
    };
    let fragments = {
        let whole = udp_packet(&UdpSpec::new(CLIENT, SERVER, &[7; 64]));
        let part = |place: u16, bytes: &[u8]| {
            let mut head = whole[..34].to_vec();
            head[16..18].copy_from_slice(&((20 + bytes.len()) as u16).to_be_bytes());
            head[20..22].copy_from_slice(&place.to_be_bytes());
            [&head[..], bytes].concat()
        };
        [part(5, &whole[74..]), part(0x2000, &whole[34..74])]
    };
    let cut = {
        let whole = file(1, std::slice::from_ref(&http));
        whole[..whole.len() - 5].to_vec()
    };
    let seeds = [
        ("tls", file(1, &[syn.clone(), first.clone(), second.clone()])),
        ("tls-reversed", file(1, &[syn.clone(), second, first])),
        ("http1-joined", file(1, std::slice::from_ref(&http))),
        ("reused", file(1, &[syn, segment(10, ACK, get), segment(99, SYN, b"")])),
        ("vxlan", file(1, &[tunnel(4789, &[8, 0, 0, 0, 0, 0, 1, 0], &http)])),
        ("geneve", file(1, &[tunnel(6081, &[0, 0, 0x65, 0x58, 0, 0, 1, 0], &http)])),
        ("gtp", file(1, &[tunnel(2152, &[0x30, 255, 0, 0, 0, 0, 0, 1], &http[14..])])),
        ("gre", file(1, &[gre])),
        ("fragments", file(1, &fragments)),
        ("raw", file(101, &[http[14..].to_vec()])),
        ("pcapng", pcapng(&[http])),
        ("cut", cut),
    ];
    seeds.map(|(name, bytes)| (name.to_owned(), bytes)).into()
}
