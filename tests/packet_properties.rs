//! Properties of the parser, the builders and the checksums; and the parser against etherparse.

use etherparse::{NetSlice, SlicedPacket, TransportSlice};
use proptest::collection::vec;
use proptest::prelude::*;

use tidegate::base::{Addr, Seed};
use tidegate::packet::build::{
    ChecksumFill, IcmpSpec, IpSpec, LinkSpec, TcpSpec, UdpSpec, icmp_packet, pad, tcp_packet,
    udp_packet,
};
use tidegate::packet::eth::{Tag, ethertype};
use tidegate::packet::{
    DropReason, PacketFlags, PacketMeta, ParseOptions, complete_checksum, icmp, parse, tcp,
};

const VERIFY: ParseOptions = ParseOptions { verify_transport_checksum: true };

fn read(frame: &[u8]) -> Result<PacketMeta, DropReason> {
    let mut meta = PacketMeta::default();
    parse(frame, Seed(1), VERIFY, &mut meta).map(|()| meta)
}

/// Two addresses of one family that may be on the wire.
fn addresses() -> impl Strategy<Value = (Addr, Addr)> {
    let v4 = (0x0100_0000u32..0x7eff_ffff, 0x8000_0000u32..0xdfff_ffff)
        .prop_map(|(a, b)| (Addr::v4(a), Addr::v4(b)));
    let v6 = (any::<u64>(), any::<u64>(), any::<u64>()).prop_map(|(hi, a, b)| {
        let hi = 0x2000_0000_0000_0000 | hi >> 3;
        (Addr { hi, lo: a }, Addr { hi: hi ^ 1, lo: b })
    });
    prop_oneof![v4, v6]
}

fn link() -> impl Strategy<Value = LinkSpec> {
    let tag = (any::<bool>(), any::<u16>()).prop_map(|(service, tci)| Tag {
        tpid: if service { ethertype::SERVICE_VLAN } else { ethertype::VLAN },
        tci,
    });
    vec(tag, 0..=2).prop_map(|tags| {
        let mut link = LinkSpec::default();
        for (slot, tag) in link.tags.iter_mut().zip(tags) {
            *slot = Some(tag);
        }
        link
    })
}

fn ip() -> impl Strategy<Value = IpSpec> {
    // Options in whole words; extension headers: destination options of 8 to 24 bytes.
    let extension = (1usize..=3).prop_map(|n| {
        let mut bytes = vec![0; n * 8];
        (bytes[1], bytes[2], bytes[3]) = (n as u8 - 1, 1, n as u8 * 8 - 4);
        (60u8, bytes)
    });
    let options = (0usize..=10).prop_map(|words| vec![1u8; words * 4]);
    (addresses(), 1u8.., any::<u8>(), options, vec(extension, 0..=3)).prop_map(
        |((src, dst), ttl, tos, options, extensions)| {
            let v4 = src.is_v4();
            IpSpec {
                ttl,
                tos,
                options: if v4 { options } else { Vec::new() },
                extensions: if v4 { Vec::new() } else { extensions },
                ..IpSpec::new(src, dst)
            }
        },
    )
}

/// A packet of any kind with what the parser is to find in it: ports, payload bytes, TCP flags.
#[derive(Clone, Debug)]
struct Sample {
    frame: Vec<u8>,
    link: LinkSpec,
    ip: IpSpec,
    ports: (u16, u16),
    payload: Vec<u8>,
    tcp_flags: u8,
    proto: u8,
}

fn sample() -> impl Strategy<Value = Sample> {
    let flags = prop_oneof![Just(tcp::flag::SYN), Just(tcp::flag::ACK), Just(0x19), Just(0xd8)];
    let payload = prop_oneof![vec(any::<u8>(), 0..40), vec(any::<u8>(), 0..1400)];
    let options = (0usize..=10).prop_map(|words| vec![1u8; words * 4]);
    let ports = (any::<u16>(), any::<u16>());
    (0..3, link(), ip(), ports, flags, options, payload).prop_map(
        |(kind, link, ip, ports, tcp_flags, options, payload)| {
            let (src, dst) = ((ip.src, ports.0), (ip.dst, ports.1));
            let (l, i) = (link.clone(), ip.clone());
            let (frame, ports, tcp_flags, proto) = match kind {
                0 => {
                    let spec = TcpSpec::new(src, dst, tcp_flags, &payload);
                    let (seq, ack) = (0xdead_beef, 0x0102_0304);
                    let spec = TcpSpec { link: l, ip: i, options, seq, ack, ..spec };
                    (tcp_packet(&spec), ports, tcp_flags, 6)
                }
                1 => {
                    let spec = UdpSpec::new(src, dst, &payload);
                    (udp_packet(&UdpSpec { link: l, ip: i, ..spec }), ports, 0, 17)
                }
                _ => {
                    let spec = IcmpSpec::echo(ip.src, ip.dst, false, ports.0, &payload);
                    let proto = if ip.src.is_v4() { icmp::PROTOCOL } else { icmp::PROTOCOL_V6 };
                    let frame = icmp_packet(&IcmpSpec { link: l, ip: i, ..spec });
                    (frame, (ports.0, ports.0), 0, proto)
                }
            };
            Sample { frame: pad(frame), link, ip, ports, payload, tcp_flags, proto }
        },
    )
}

proptest! {
    #[test]
    fn random_bytes_are_read_or_refused(bytes in vec(any::<u8>(), 0..200)) {
        let _ = read(&bytes);
    }

    /// Any byte changed, the frame cut or grown: no panic, and offsets that hold.
    #[test]
    fn mutated_packets_are_read_or_refused(
        sample in sample(),
        changes in vec((any::<prop::sample::Index>(), any::<u8>()), 0..4),
        len in any::<prop::sample::Index>(), resize in any::<bool>(),
    ) {
        let mut frame = sample.frame;
        for (at, value) in changes {
            let at = at.index(frame.len().min(80));
            frame[at] = value;
        }
        if resize {
            frame.resize(len.index(frame.len() + 20), 0);
        }
        for verify_transport_checksum in [false, true] {
            let mut meta = PacketMeta::default();
            let opts = ParseOptions { verify_transport_checksum };
            if parse(&frame, Seed(1), opts, &mut meta).is_ok() {
                prop_assert!(meta.l3 < meta.l4 && meta.l4 <= meta.payload);
                prop_assert!(meta.payload <= meta.end && usize::from(meta.end) <= frame.len());
                complete_checksum(&mut frame, &mut meta);
            }
        }
    }

    #[test]
    fn built_packets_are_read_back(sample in sample()) {
        let meta = read(&sample.frame).expect("a built packet is valid");
        prop_assert_eq!((meta.key.src, meta.key.dst), (sample.ip.src, sample.ip.dst));
        prop_assert_eq!((meta.key.sport, meta.key.dport), sample.ports);
        prop_assert_eq!(meta.key.proto, sample.proto);
        prop_assert_eq!((meta.ttl, meta.tos), (sample.ip.ttl, sample.ip.tos));
        prop_assert_eq!(meta.tcp_flags, sample.tcp_flags);
        prop_assert_eq!(meta.vlan_tci, sample.link.tags[0].map_or(0, |tag| tag.tci));
        let has_options = !sample.ip.options.is_empty() || !sample.ip.extensions.is_empty();
        prop_assert_eq!(meta.flags.has(PacketFlags::OPTIONS), has_options);
        let payload = &sample.frame[usize::from(meta.payload)..usize::from(meta.end)];
        prop_assert_eq!(payload, &sample.payload[..]);
        if sample.proto == tcp::PROTOCOL {
            prop_assert_eq!((meta.tcp_seq, meta.tcp_ack), (0xdead_beef, 0x0102_0304));
        }
    }

    /// One flipped bit behind the IP header never passes verification.
    #[test]
    fn flipped_bits_are_found(
        sample in sample(), at in any::<prop::sample::Index>(), bit in 0u8..8,
    ) {
        let meta = read(&sample.frame).expect("a built packet is valid");
        let mut frame = sample.frame;
        let at = usize::from(meta.l4) + at.index(usize::from(meta.end - meta.l4));
        frame[at] ^= 1u8 << bit;
        // The one change that may be taken for something else: a sum that looks partial.
        match read(&frame) {
            Ok(meta) => prop_assert!(meta.flags.has(PacketFlags::PARTIAL_CHECKSUM)),
            Err(reason) => prop_assert_ne!(reason, DropReason::BadIpChecksum),
        }
    }

    /// What Linux leaves for the device to complete is found, and completed to what the full sum
    /// is.
    #[test]
    fn partial_checksums_are_completed(
        (src, dst) in addresses(), payload in vec(any::<u8>(), 0..200), is_tcp in any::<bool>(),
    ) {
        let (src, dst) = ((src, 40_000), (dst, 443));
        let build = |checksum| if is_tcp {
            tcp_packet(&TcpSpec { checksum, ..TcpSpec::new(src, dst, tcp::flag::ACK, &payload) })
        } else {
            udp_packet(&UdpSpec { checksum, ..UdpSpec::new(src, dst, &payload) })
        };
        let mut frame = build(ChecksumFill::Partial);
        let mut meta = read(&frame).expect("partial sums pass");
        prop_assert!(meta.flags.has(PacketFlags::PARTIAL_CHECKSUM));
        complete_checksum(&mut frame, &mut meta);
        prop_assert!(!meta.flags.has(PacketFlags::PARTIAL_CHECKSUM));
        prop_assert_eq!(&frame, &build(ChecksumFill::Full));
        let before = frame.clone();
        complete_checksum(&mut frame, &mut meta);
        prop_assert_eq!(frame, before, "without the flag nothing is touched");
    }

    #[test]
    fn etherparse_agrees(sample in sample()) {
        let meta = read(&sample.frame).expect("a built packet is valid");
        let theirs = SlicedPacket::from_ethernet(&sample.frame).expect("valid for etherparse");
        let (src, dst, payload_start) = match theirs.net.expect("an IP header") {
            NetSlice::Ipv4(ip) => {
                let header = ip.header();
                prop_assert_eq!(meta.ttl, header.ttl());
                let addrs = (header.source_addr().into(), header.destination_addr().into());
                (addrs.0, addrs.1, ip.payload().payload.as_ptr())
            }
            NetSlice::Ipv6(ip) => {
                let header = ip.header();
                prop_assert_eq!(meta.ttl, header.hop_limit());
                let addrs = (header.source_addr().into(), header.destination_addr().into());
                (addrs.0, addrs.1, ip.payload().payload.as_ptr())
            }
            NetSlice::Arp(_) => panic!("no ARP was built"),
        };
        prop_assert_eq!((meta.key.src, meta.key.dst), (src, dst));
        let l4 = payload_start as usize - sample.frame.as_ptr() as usize;
        prop_assert_eq!(usize::from(meta.l4), l4);
        let payload = &sample.frame[usize::from(meta.payload)..usize::from(meta.end)];
        match theirs.transport.expect("a transport header") {
            TransportSlice::Tcp(t) => {
                prop_assert_eq!(meta.key.sport, t.source_port());
                prop_assert_eq!(meta.key.dport, t.destination_port());
                prop_assert_eq!(meta.tcp_seq, t.sequence_number());
                prop_assert_eq!(meta.tcp_ack, t.acknowledgment_number());
                prop_assert_eq!(payload, t.payload());
            }
            TransportSlice::Udp(u) => {
                prop_assert_eq!(meta.key.sport, u.source_port());
                prop_assert_eq!(meta.key.dport, u.destination_port());
                prop_assert_eq!(payload, u.payload());
            }
            TransportSlice::Icmpv4(i) => prop_assert_eq!(payload, i.payload()),
            TransportSlice::Icmpv6(i) => prop_assert_eq!(payload, i.payload()),
            TransportSlice::Igmp(_) => panic!("no IGMP was built"),
        }
    }
}
