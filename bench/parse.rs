//! What reading headers and finding flows cost, in nanoseconds a packet.
//!
//! Compares `packet::parse` with etherparse's `SlicedPacket` on the same packets, interleaved, and
//! measures flow lookups at 1, 10 k and 1 M flows. Run: `cargo bench --bench parse`.

use std::hint::black_box;
use std::time::Instant;

use tidegate::base::{Addr, Seed};
use tidegate::packet::build::{LinkSpec, TcpSpec, UdpSpec, pad, tcp_packet, udp_packet};
use tidegate::packet::{PacketMeta, ParseOptions, parse, tcp};

/// Measurements of each contender; the median is printed.
const REPETITIONS: usize = 25;
/// Packets a measurement.
const PACKETS: usize = 64 * 1024;
const BATCH: usize = 64;
const SEED: Seed = Seed(0x7469_6465_6761_7465);

fn main() {
    println!("ns a packet, median of {REPETITIONS} (least)");
    println!(
        "{:<24}{:>16}{:>16}{:>16}",
        "64 B frames", "packet::parse", "with checksum", "etherparse"
    );
    for (name, frames) in kinds() {
        parse_table_row(name, &frames);
    }
}

fn parse_table_row(name: &str, frames: &[Vec<u8>]) {
    let plain = ParseOptions::default();
    let verify = ParseOptions { verify_transport_checksum: true };
    let mut results = [const { Vec::new() }; 3];
    for _ in 0..REPETITIONS {
        results[0].push(time(|| parse_all(frames, plain)));
        results[1].push(time(|| parse_all(frames, verify)));
        results[2].push(time(|| etherparse_all(frames)));
    }
    let [ours, verified, theirs] = results.map(summary);
    println!("{name:<24}{ours:>16}{verified:>16}{theirs:>16}");
}

fn parse_all(frames: &[Vec<u8>], opts: ParseOptions) {
    let mut meta = PacketMeta::default();
    let mut good = 0;
    for frame in frames {
        good += usize::from(parse(black_box(&frame[..]), SEED, opts, &mut meta).is_ok());
        black_box(&meta);
    }
    assert_eq!(good, frames.len());
}

fn etherparse_all(frames: &[Vec<u8>]) {
    let mut good = 0;
    for frame in frames {
        let sliced = etherparse::SlicedPacket::from_ethernet(black_box(&frame[..]));
        good += usize::from(black_box(&sliced).is_ok());
    }
    assert_eq!(good, frames.len());
}

/// Nanoseconds a packet, `one_batch` working on [`BATCH`] packets.
fn time(mut one_batch: impl FnMut()) -> f64 {
    let start = Instant::now();
    for _ in 0..PACKETS / BATCH {
        one_batch();
    }
    start.elapsed().as_nanos() as f64 / PACKETS as f64
}

/// The median, and the least in brackets: on a shared machine the latter is nearer the truth.
fn summary(mut samples: Vec<f64>) -> String {
    samples.sort_by(f64::total_cmp);
    format!("{:.1} ({:.1})", samples[samples.len() / 2], samples[0])
}

/// 64 packets of 64 flows of each kind.
fn kinds() -> Vec<(&'static str, Vec<Vec<u8>>)> {
    let v4 = |n: u32| Addr::v4(0xc612_0000 + n);
    let v6 = |n: u32| Addr { hi: 0x2001_0db8_0000_0000, lo: u64::from(n) + 1 };
    let tcp = |addr: &dyn Fn(u32) -> Addr, link: LinkSpec| {
        let one = |n: u32| {
            let (src, dst) = ((addr(n), 40_000), (addr(0xffff), 443));
            let ack = tcp::flag::ACK;
            pad(tcp_packet(&TcpSpec { link: link.clone(), ..TcpSpec::new(src, dst, ack, b"") }))
        };
        (0..BATCH as u32).map(one).collect::<Vec<_>>()
    };
    let udp = |addr: &dyn Fn(u32) -> Addr| {
        let one = |n: u32| {
            let (src, dst) = ((addr(n), 40_000), (addr(0xffff), 443));
            pad(udp_packet(&UdpSpec::new(src, dst, &[0x55; 18])))
        };
        (0..BATCH as u32).map(one).collect::<Vec<_>>()
    };
    vec![
        ("IPv4 UDP", udp(&v4)),
        ("IPv4 TCP", tcp(&v4, LinkSpec::default())),
        ("IPv4 TCP, VLAN", tcp(&v4, LinkSpec::vlan(100))),
        ("IPv6 UDP", udp(&v6)),
        ("IPv6 TCP", tcp(&v6, LinkSpec::default())),
        ("IPv6 TCP, VLAN", tcp(&v6, LinkSpec::vlan(100))),
    ]
}
