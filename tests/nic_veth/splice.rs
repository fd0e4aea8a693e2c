//! Segments of spliced connections: the XDP program changes in them what a worker would.

use etherparse::PacketBuilder;
use tidegate::forward::splice::Translation;
use tidegate::nic::steer::OffloadEntry;
use tidegate::packet::Direction;

use crate::offload::{Bed, MTU, Packet, TCP, entry, packet, with_bed};
use crate::packets::noise;

/// The numbers of one segment.
#[derive(Clone, Copy)]
struct Numbers {
    seq: u32,
    ack: u32,
    window: u16,
}

const TRANSLATION: Translation = Translation {
    sequence: 0x9000_0001,
    stamp: 0x8123_4567,
    first_stamp: 5_000,
    early_echoes: false,
    window_to_client: 3,
    window_to_server: -2,
};
const NUMBERS: [Numbers; 4] = [
    Numbers { seq: 0, ack: 0, window: 0 },
    Numbers { seq: u32::MAX, ack: 1, window: u16::MAX },
    Numbers { seq: 0x7000_0000, ack: 0x6fff_ffff, window: 0x2001 },
    Numbers { seq: 12_345, ack: 0x9000_0001, window: 502 },
];

fn segment(of: &Packet, numbers: Numbers, options: &[u8]) -> Vec<u8> {
    let (from, to) = (of.macs[0], of.macs[1]);
    let (src, dst) = (of.src.to_bytes(), of.dst.to_bytes());
    let last = |b: [u8; 16]| [b[12], b[13], b[14], b[15]];
    let ethernet = PacketBuilder::ethernet2(from, to);
    let ip = match of.src.is_v4() {
        true => ethernet.ipv4(last(src), last(dst), of.ttl),
        false => ethernet.ipv6(src, dst, of.ttl),
    };
    let tcp = ip.tcp(of.ports.0, of.ports.1, numbers.seq, numbers.window).ack(numbers.ack);
    let mut bytes = Vec::new();
    let tcp = tcp.options_raw(options).expect("options");
    tcp.write(&mut bytes, &of.payload).expect("a packet");
    bytes
}

/// As a worker changes it.
fn by_worker(translation: &Translation, direction: Direction, mut bytes: Vec<u8>) -> Vec<u8> {
    let header = if bytes[12] == 0x08 { 34 } else { 54 };
    let segment = &mut bytes[header..];
    match direction {
        Direction::Forward => translation.clone().to_server(segment),
        Direction::Reply => translation.to_client(segment),
    }
    bytes
}

fn spliced(of: &Packet, translation: &Translation, direction: Direction) -> OffloadEntry {
    let shift = translation.shift(direction);
    let early = if shift.first_echo.is_some() { OffloadEntry::EARLY } else { 0 };
    OffloadEntry {
        sequence: shift.sequence,
        acknowledgment: shift.acknowledgment,
        clock: shift.clock,
        echo: shift.echo,
        first_echo: shift.first_echo.unwrap_or_default(),
        window: shift.window,
        splice: OffloadEntry::SPLICED | early,
        ..entry(of)
    }
}

fn words(kind: &[u8], values: &[u32]) -> Vec<u8> {
    let len = (kind.len() + 1 + 4 * values.len() - 2) as u8;
    [kind, &[len], &values.iter().flat_map(|v| v.to_be_bytes()).collect::<Vec<_>>()].concat()
}

fn stamps(value: u32, echo: u32) -> Vec<u8> {
    words(&[1, 1, 8], &[value, echo])
}

fn sack(edges: &[u32]) -> Vec<u8> {
    words(&[1, 1, 5], edges)
}

/// What segments of established connections have for options.
fn usual() -> Vec<Vec<u8>> {
    let edges = [9, 0x9000_0000, u32::MAX, 3, 0x8000_0000, 0x1234_5678, 77, 1 << 20];
    let stamps = [stamps(0, 0), stamps(u32::MAX, 0x8123_4568), stamps(0x7edc_ba99, 1)];
    let mut all = vec![Vec::new()];
    all.extend(stamps.iter().cloned());
    all.extend((2..=8).step_by(2).map(|n| sack(&edges[..n])));
    all.extend((2..=6).step_by(2).map(|n| [&stamps[1][..], &sack(&edges[..n])].concat()));
    all
}

#[test]
fn segments_are_changed_as_a_worker_changes_them() {
    with_bed(|bed| {
        for is_v4 in [true, false] {
            for direction in [Direction::Forward, Direction::Reply] {
                let mut of = packet(is_v4, TCP, b"");
                bed.hand_down(of.key(), spliced(&of, &TRANSLATION, direction));
                let (mut sent, mut wanted) = (Vec::new(), Vec::new());
                for (i, options) in usual().iter().enumerate() {
                    for numbers in NUMBERS {
                        let len = if i == 1 { usize::from(MTU) - 100 } else { i * 7 };
                        of.payload = noise(len, i as u64);
                        sent.push(segment(&of, numbers, options));
                        let out = segment(&of.translated(), numbers, options);
                        wanted.push(by_worker(&TRANSLATION, direction, out));
                    }
                }
                for (sent, wanted) in sent.chunks(20).zip(wanted.chunks(20)) {
                    bed.forwards(sent, wanted);
                }
            }
        }
    });
}

/// Without shifts, too: many servers have the client's window scale.
#[test]
fn a_window_of_the_same_scale_stays() {
    let same = Translation { window_to_client: 0, window_to_server: 0, ..TRANSLATION };
    with_bed(|bed| {
        let of = packet(true, TCP, b"x");
        for direction in [Direction::Forward, Direction::Reply] {
            bed.hand_down(of.key(), spliced(&of, &same, direction));
            let out = segment(&of.translated(), NUMBERS[1], &stamps(1, 2));
            let wanted = by_worker(&same, direction, out);
            bed.forwards(&[segment(&of, NUMBERS[1], &stamps(1, 2))], &[wanted]);
        }
    });
}

#[test]
fn other_options_are_the_workers() {
    with_bed(|bed| {
        let of = packet(true, TCP, b"segment");
        bed.hand_down(of.key(), spliced(&of, &TRANSLATION, Direction::Forward));
        let leaves = |bed: &mut Bed, what, options: &[u8]| {
            bed.leaves(what, segment(&of, NUMBERS[2], options));
        };
        leaves(bed, "stamps at an odd place", &[1, 8, 10, 0, 0, 0, 1, 0, 0, 0, 2, 1]);
        leaves(bed, "stamps behind blocks", &[&sack(&[1, 2])[..], &stamps(1, 2)].concat());
        leaves(bed, "an end behind stamps", &[&stamps(1, 2)[..], &[0, 0, 0, 0]].concat());
        leaves(bed, "a length of its own", &[1, 1, 5, 18, 0, 0, 0, 1, 0, 0, 0, 2]);
        leaves(bed, "half a block", &[1, 1, 5, 6, 0, 0, 0, 1]);
        leaves(bed, "stamps cut short", &[1, 1, 8, 10, 0, 0, 0, 1]);
        leaves(bed, "something else", &[30, 4, 1, 2]);
    });
}

/// The worker's own clock was the server's, before there was one.
#[test]
fn echoes_from_before_the_server_are_the_workers() {
    let early = Translation { early_echoes: true, ..TRANSLATION };
    let first = early.first_stamp.wrapping_add(early.stamp);
    with_bed(|bed| {
        let of = packet(true, TCP, b"x");
        bed.hand_down(of.key(), spliced(&of, &early, Direction::Forward));
        let with = |echo| segment(&of, NUMBERS[3], &stamps(1, echo));
        bed.leaves("an early echo", with(first.wrapping_sub(1)));
        for echo in [first, first.wrapping_add(1 << 30)] {
            let out = segment(&of.translated(), NUMBERS[3], &stamps(1, echo));
            bed.forwards(&[with(echo)], &[by_worker(&early, Direction::Forward, out)]);
        }
    });
}
