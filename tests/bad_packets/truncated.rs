//! Packets of every kind, whole and cut off at every byte, through one box.

use tidegate::observe::Counters;
use tidegate::packet::build::{LinkSpec, TcpSpec, UdpSpec, icmp_packet, tcp_packet, udp_packet};
use tidegate::packet::tcp::flag::SYN;
use tidegate::packet::{DropReason, PacketMeta, ParseOptions, parse};

use super::golden::goldens;
use super::targets::rig::Rig;
use super::targets::setup::{SEED, V4, V6, Variant};
use super::{echo, link, tcp, to_vip, udp};

const VERIFY: ParseOptions = ParseOptions { verify_transport_checksum: true };

/// Why the parser refuses a frame; `None` where it doesn't. What it says is held to the golden
/// packets by a test of its own.
fn refused(frame: &[u8]) -> Option<DropReason> {
    parse(frame, SEED, VERIFY, &mut PacketMeta::default()).err()
}

/// Gives a frame to a port of the box and looks at what was counted for it.
fn count(rig: &mut Rig, port: usize, frame: &[u8]) -> Counters {
    let before = rig.counters();
    assert!(rig.send(0, port, frame));
    rig.rest(|_, _| {});
    let after = rig.counters();
    let mut values = after.values();
    values.iter_mut().zip(before.values()).for_each(|(a, b)| *a -= b);
    let mut counters = Counters::from_values(&values);
    counters.drops = std::array::from_fn(|i| after.drops[i] - before.drops[i]);
    counters
}

/// The frame is dropped for this reason, and nothing else happens.
fn check_dropped(rig: &mut Rig, frame: &[u8], reason: DropReason, what: &str) {
    let mut expected =
        Counters { rx_packets: 1, rx_bytes: frame.len() as u64, ..Counters::default() };
    expected.drop(reason);
    for port in 0..2 {
        assert_eq!(count(rig, port, frame), expected, "{what}");
    }
}

#[test]
fn every_golden_packet_at_every_byte() {
    let mut rig = Rig::new(1, Variant::WHOLE);
    let mut cuts = 0;
    for golden in goldens() {
        for len in 0..golden.frame.len() {
            let frame = &golden.frame[..len];
            let what = format!("{}, {len} bytes", golden.name);
            match refused(frame) {
                Some(reason) => check_dropped(&mut rig, frame, reason, &what),
                // Only link padding is missing.
                None => assert!(frame.len() >= 34, "{what}"),
            }
            cuts += 1;
        }
        if let Some(label) = golden.expected.strip_prefix("! ") {
            let reason = DropReason::ALL.iter().find(|r| r.label() == label).expect("a reason");
            check_dropped(&mut rig, &golden.frame, *reason, &golden.name);
        } else {
            let counters = count(&mut rig, 0, &golden.frame);
            let (came, went) = (1 + counters.created, counters.tx_packets + counters.drops_total());
            assert_eq!(came, went, "{}: {counters:?}", golden.name);
        }
    }
    assert!(cuts > 5_000, "{cuts}");
    rig.finish();
}

#[test]
fn what_would_be_forwarded_at_every_byte() {
    let mut rig = Rig::new(1, Variant::WHOLE);
    for family in [&V4, &V6] {
        let vlan = LinkSpec { tags: LinkSpec::vlan(7).tags, ..link() };
        let mut service = udp(family);
        (service.ip.dst, service.dport) = (super::addr(family.vip), 81);
        let packets = [
            tcp_packet(&to_vip(family, 80, SYN)),
            tcp_packet(&to_vip(family, 82, SYN)),
            udp_packet(&service),
            tcp_packet(&tcp(family)),
            udp_packet(&udp(family)),
            icmp_packet(&echo(family)),
            tcp_packet(&TcpSpec { link: vlan.clone(), options: vec![1; 8], ..tcp(family) }),
            udp_packet(&UdpSpec { link: vlan, ..udp(family) }),
        ];
        for packet in packets {
            for len in 0..packet.len() {
                let frame = &packet[..len];
                let reason = refused(frame).expect("not whole");
                let cut = [DropReason::Truncated, DropReason::BadIpLength];
                assert!(cut.contains(&reason), "{reason:?} for {len} of {}", packet.len());
                check_dropped(&mut rig, frame, reason, "cut off");
            }
            let counters = count(&mut rig, 0, &packet);
            assert_eq!((counters.tx_packets, counters.drops_total()), (1, 0), "{counters:?}");
        }
    }
    rig.finish();
}
