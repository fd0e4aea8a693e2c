//! The parser against `tests/golden/packets.txt`: header by header, whole and cut off at every
//! byte.

mod golden;

use std::fmt::Write;
use std::net::SocketAddr;

use golden::goldens;
use tidegate::base::Seed;
use tidegate::packet::{DropReason, PacketFlags, PacketMeta, ParseOptions, parse};

const VERIFY: ParseOptions = ParseOptions { verify_transport_checksum: true };
const NO_VERIFY: ParseOptions = ParseOptions { verify_transport_checksum: false };

fn read(frame: &[u8], opts: ParseOptions) -> Result<PacketMeta, DropReason> {
    let mut meta = PacketMeta::default();
    parse(frame, Seed(1), opts, &mut meta).map(|()| meta)
}

/// The outcome as the file writes it.
fn describe(outcome: &Result<PacketMeta, DropReason>) -> String {
    let meta = match outcome {
        Ok(meta) => meta,
        Err(reason) => return format!("! {}", reason.label()),
    };
    let names = [
        (PacketFlags::FRAGMENT, "fragment"),
        (PacketFlags::LATER_FRAGMENT, "later"),
        (PacketFlags::OPTIONS, "options"),
        (PacketFlags::PARTIAL_CHECKSUM, "partial"),
        (PacketFlags::ICMP_ERROR, "icmp_error"),
    ];
    let set: Vec<_> = names.iter().filter(|(f, _)| meta.flags.has(*f)).map(|(_, n)| *n).collect();
    let flags = if set.is_empty() { "-".to_string() } else { set.join("+") };
    let key = &meta.key;
    let mut s = format!(
        "= {} {} > {}",
        key.proto,
        SocketAddr::new(key.src.to_ip(), key.sport),
        SocketAddr::new(key.dst.to_ip(), key.dport)
    );
    let _ = write!(s, " l3={} l4={} payload={}", meta.l3, meta.l4, meta.payload);
    let _ = write!(s, " end={} tci={:#x} tos={:#x}", meta.end, meta.vlan_tci, meta.tos);
    let _ = write!(s, " ttl={} flags={flags} tcp={:#x}", meta.ttl, meta.tcp_flags);
    let _ = write!(s, " seq={} ack={}", meta.tcp_seq, meta.tcp_ack);
    s
}

#[test]
fn every_golden_packet_is_read_as_written() {
    for golden in goldens() {
        let outcome = read(&golden.frame, VERIFY);
        assert_eq!(describe(&outcome), golden.expected, "{}", golden.name);
        if let Ok(meta) = outcome {
            assert_eq!(meta.hash, meta.key.hash(Seed(1)), "{}", golden.name);
        }
    }
}

#[test]
fn without_verification_only_damage_behind_the_ip_header_passes() {
    for golden in goldens() {
        let outcome = read(&golden.frame, NO_VERIFY);
        if golden.expected == "! bad_transport_checksum" {
            assert!(outcome.is_ok(), "{}", golden.name);
        } else {
            assert_eq!(describe(&outcome), golden.expected, "{}", golden.name);
        }
    }
}

#[test]
fn every_golden_packet_cut_off_at_every_byte() {
    for golden in goldens() {
        let whole = read(&golden.frame, VERIFY);
        for cut in 0..golden.frame.len() {
            let outcome = read(&golden.frame[..cut], VERIFY);
            match (&whole, &outcome) {
                // Only link padding is missing.
                (Ok(meta), Ok(_)) if cut >= usize::from(meta.end) => assert_eq!(outcome, whole),
                (_, Err(_)) => {}
                (_, Ok(meta)) => panic!("{}, {cut} bytes: {meta:?}", golden.name),
            }
        }
    }
}

/// A reused `meta` keeps nothing of the packet before.
#[test]
fn nothing_is_left_over_from_the_packet_before() {
    let goldens = goldens();
    for first in &goldens {
        let mut used = PacketMeta::default();
        let _ = parse(&first.frame, Seed(1), VERIFY, &mut used);
        for second in &goldens {
            let mut meta = used.clone();
            let outcome = parse(&second.frame, Seed(1), VERIFY, &mut meta).map(|()| meta);
            assert_eq!(outcome, read(&second.frame, VERIFY), "{}, {}", first.name, second.name);
        }
    }
}
