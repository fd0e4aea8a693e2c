//! What reading headers costs, in nanoseconds a packet, beside etherparse's `SlicedPacket` on the
//! same packets, interleaved.
//!
//! `cargo bench --bench parse -- [--only KIND] [--rounds N] [--json FILE] [--quick]`. Flow lookups
//! are in the pipeline bench.

#[path = "common/mod.rs"]
mod common;

use std::hint::black_box;
use std::process::ExitCode;
use std::time::Instant;

use clap::Parser;
use serde_json::json;
use tidegate::base::{Addr, Seed};
use tidegate::packet::build::{LinkSpec, TcpSpec, UdpSpec, pad, tcp_packet, udp_packet};
use tidegate::packet::{PacketMeta, ParseOptions, parse, tcp};

use common::{Cli, Samples, machine};

/// Packets a measurement.
const PACKETS: usize = 64 * 1024;
const BATCH: usize = 64;
/// Measurements that make one round.
const REPETITIONS: u32 = 3;
const SEED: Seed = Seed(0x7469_6465_6761_7465);

#[derive(Parser)]
#[command(about = "Measures what reading a packet's headers costs")]
struct Args {
    #[command(flatten)]
    cli: Cli,
}

struct Row {
    kind: &'static str,
    ours: Samples,
    verified: Samples,
    etherparse: Samples,
}

impl Row {
    /// How much longer etherparse takes, which finds the headers and checks no more than lengths.
    fn ratio(&self) -> f64 {
        self.etherparse.median() / self.ours.median()
    }
}

fn main() -> ExitCode {
    let Args { cli } = Args::parse();
    println!("{}", machine());
    println!("ns a packet of 64 B: median (least)");
    println!(
        "{:<16}{:>16}{:>16}{:>16}{:>8}",
        "", "packet::parse", "with checksum", "etherparse", "ratio"
    );
    let mut rows = Vec::new();
    for (kind, frames) in kinds().into_iter().filter(|(kind, _)| cli.wants(kind)) {
        let row = measure(kind, &frames, cli.rounds() * REPETITIONS);
        let (ours, verified, theirs) = (&row.ours, &row.verified, &row.etherparse);
        println!("{kind:<16}{ours:>16}{verified:>16}{theirs:>16}{:>8.1}", row.ratio());
        rows.push(row);
    }
    let least = rows.iter().map(Row::ratio).fold(f64::INFINITY, f64::min);
    let most = rows.iter().map(Row::ratio).fold(0.0, f64::max);
    println!("etherparse takes {least:.1} to {most:.1} times as long as the project's own views");
    let rows: Vec<_> = rows
        .iter()
        .map(|r| {
            json!({
                "kind": r.kind, "ns": r.ours.json(), "ns_verifying": r.verified.json(),
                "etherparse_ns": r.etherparse.json(), "etherparse_ratio": r.ratio(),
            })
        })
        .collect();
    cli.write("parse", json!({ "rows": rows }))
}

fn measure(kind: &'static str, frames: &[Vec<u8>], repetitions: u32) -> Row {
    let plain = ParseOptions::default();
    let verify = ParseOptions { verify_transport_checksum: true };
    let new = Samples::default;
    let mut row = Row { kind, ours: new(), verified: new(), etherparse: new() };
    for _ in 0..repetitions {
        row.ours.add(time(|| parse_all(frames, plain)));
        row.verified.add(time(|| parse_all(frames, verify)));
        row.etherparse.add(time(|| etherparse_all(frames)));
    }
    row
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
