//! What the headers themselves say: links, lengths, checksums, options, fragments, flags,
//! addresses.

use tidegate::packet::build::{
    ChecksumFill, IcmpSpec, IpSpec, LinkSpec, TcpSpec, UdpSpec, icmp_packet, ip_packet, pad,
    tcp_packet, udp_packet,
};
use tidegate::packet::eth::{Tag, ethertype};
use tidegate::packet::tcp::flag::{ACK, FIN, PSH, RST, SYN, URG};
use tidegate::packet::{DropReason, ipv4};

use super::targets::setup::{Family, V4, V6, Variant};
use super::{Case, Dropped, Sent, both, check, check_at, echo, link, tcp, udp, with, with_fixed};

/// Bytes of the IP header.
fn header_len(family: &Family) -> usize {
    if family.is_v4() { 20 } else { 40 }
}

#[test]
fn links() {
    let frame = |kind: u16, len: usize| {
        let link = link();
        let head = [&link.destination[..], &link.source, &kind.to_be_bytes()].concat();
        [&head[..], &vec![0; len][..]].concat()
    };
    let tagged = |tpids: &[u16]| {
        let mut packet = udp_packet(&udp(&V4));
        for tpid in tpids {
            packet.splice(12..12, [(tpid >> 8) as u8, *tpid as u8, 0, 7]);
        }
        packet
    };
    let v6_as_v4 = {
        let mut packet = udp_packet(&udp(&V6));
        packet[12..14].copy_from_slice(&ethertype::IPV4.to_be_bytes());
        packet
    };
    let tag = |tpid| Some(Tag { tpid, tci: 0x2007 });
    let both = [tag(ethertype::SERVICE_VLAN), tag(ethertype::VLAN)];
    let double = udp_packet(&UdpSpec { link: LinkSpec { tags: both, ..link() }, ..udp(&V6) });
    check(&[
        ("nothing", vec![], Dropped(DropReason::Truncated)),
        ("half an Ethernet header", vec![2; 13], Dropped(DropReason::Truncated)),
        ("nothing behind the Ethernet header", frame(0x0800, 0), Dropped(DropReason::Truncated)),
        ("ARP", frame(ethertype::ARP, 46), Dropped(DropReason::NotIp)),
        ("LLDP", frame(0x88cc, 46), Dropped(DropReason::NotIp)),
        ("MPLS", frame(0x8847, 46), Dropped(DropReason::NotIp)),
        ("PPPoE", frame(0x8864, 46), Dropped(DropReason::NotIp)),
        ("IEEE 802.3 length", frame(46, 46), Dropped(DropReason::NotIp)),
        ("IPv6 as IPv4", v6_as_v4, Dropped(DropReason::BadIpVersion)),
        ("padded", pad(udp_packet(&udp(&V4))), Sent(1)),
        ("one tag", tagged(&[ethertype::VLAN]), Sent(1)),
        ("802.1ad alone", tagged(&[ethertype::SERVICE_VLAN]), Sent(1)),
        ("802.1Q twice", tagged(&[ethertype::VLAN; 2]), Sent(1)),
        ("802.1ad and 802.1Q", double, Sent(1)),
        ("three tags", tagged(&[ethertype::VLAN; 3]), Dropped(DropReason::NotIp)),
        ("a tag cut off", tagged(&[0x8100])[..16].to_vec(), Dropped(DropReason::Truncated)),
        ("a tag before nothing", tagged(&[0x8100])[..18].to_vec(), Dropped(DropReason::Truncated)),
        (
            "two tags, one cut off",
            tagged(&[0x8100; 2])[..20].to_vec(),
            Dropped(DropReason::Truncated),
        ),
        (
            "ARP behind a tag",
            [&frame(0x8100, 2)[..], &[8, 6], &[0; 46]].concat(),
            Dropped(DropReason::NotIp),
        ),
    ]);
}

#[test]
fn lengths_of_ipv4() {
    let packet = || udp_packet(&udp(&V4));
    let set = |at: usize, value: u8| with_fixed(packet(), move |ip| ip[at] = value);
    let total =
        |len: u16| with_fixed(packet(), move |ip| ip[2..4].copy_from_slice(&len.to_be_bytes()));
    let whole = packet().len() as u16 - 14;
    check(&[
        ("version 5", set(0, 0x55), Dropped(DropReason::BadIpVersion)),
        ("version 6", set(0, 0x65), Dropped(DropReason::BadIpVersion)),
        ("header of 4 words", set(0, 0x44), Dropped(DropReason::BadIpHeaderLength)),
        ("header of no word", set(0, 0x40), Dropped(DropReason::BadIpHeaderLength)),
        ("header beyond the packet", set(0, 0x4f), Dropped(DropReason::BadIpHeaderLength)),
        ("total length 0", total(0), Dropped(DropReason::BadIpHeaderLength)),
        ("total length below the header", total(19), Dropped(DropReason::BadIpHeaderLength)),
        ("header only", total(20), Dropped(DropReason::Truncated)),
        ("half a UDP header", total(27), Dropped(DropReason::Truncated)),
        ("a byte less than UDP says", total(whole - 1), Dropped(DropReason::BadTransportLength)),
        ("a byte beyond the frame", total(whole + 1), Dropped(DropReason::BadIpLength)),
        ("65,535 bytes", total(65_535), Dropped(DropReason::BadIpLength)),
    ]);
}

#[test]
fn lengths_of_ipv6() {
    let packet = || udp_packet(&udp(&V6));
    let payload =
        |len: u16| with_fixed(packet(), move |ip| ip[4..6].copy_from_slice(&len.to_be_bytes()));
    let whole = packet().len() as u16 - 54;
    check(&[
        ("version 4", with(packet(), |ip| ip[0] = 0x40), Dropped(DropReason::BadIpVersion)),
        ("version 0", with(packet(), |ip| ip[0] = 0), Dropped(DropReason::BadIpVersion)),
        ("no payload", payload(0), Dropped(DropReason::Truncated)),
        ("half a UDP header", payload(7), Dropped(DropReason::Truncated)),
        ("a byte less than UDP says", payload(whole - 1), Dropped(DropReason::BadTransportLength)),
        ("a byte beyond the frame", payload(whole + 1), Dropped(DropReason::BadIpLength)),
        ("65,535 bytes", payload(65_535), Dropped(DropReason::BadIpLength)),
    ]);
}

#[test]
fn lengths_of_transport() {
    both(|family| {
        let l4 = header_len(family);
        let cut = |packet: Vec<u8>, len: usize| {
            let end = 14 + l4 + len;
            with_fixed(packet[..end].to_vec(), |ip| {
                let field = if l4 == 20 { (2, 20 + len) } else { (4, len) };
                ip[field.0..field.0 + 2].copy_from_slice(&(field.1 as u16).to_be_bytes());
            })
        };
        let udp_len = |len: u16| {
            with(udp_packet(&udp(family)), |ip| {
                ip[l4 + 4..l4 + 6].copy_from_slice(&len.to_be_bytes());
            })
        };
        let offset = |words: u8| with(tcp_packet(&tcp(family)), |ip| ip[l4 + 12] = words << 4);
        check(&[
            ("19 bytes of TCP", cut(tcp_packet(&tcp(family)), 19), Dropped(DropReason::Truncated)),
            ("20 bytes of TCP", cut(tcp_packet(&tcp(family)), 20), Sent(1)),
            ("TCP header of 0 words", offset(0), Dropped(DropReason::BadTransportLength)),
            ("TCP header of 4 words", offset(4), Dropped(DropReason::BadTransportLength)),
            ("TCP header beyond the packet", offset(7), Dropped(DropReason::BadTransportLength)),
            ("7 bytes of UDP", cut(udp_packet(&udp(family)), 7), Dropped(DropReason::Truncated)),
            ("UDP length 0", udp_len(0), Dropped(DropReason::BadTransportLength)),
            ("UDP length 7", udp_len(7), Dropped(DropReason::BadTransportLength)),
            ("UDP length 13 of 12", udp_len(13), Dropped(DropReason::BadTransportLength)),
            ("7 bytes of ICMP", cut(icmp_packet(&echo(family)), 7), Dropped(DropReason::Truncated)),
            ("8 bytes of ICMP", cut(icmp_packet(&echo(family)), 8), Sent(1)),
        ]);
    });
}

#[test]
fn checksums() {
    let bad_header = with(udp_packet(&udp(&V4)), |ip| ip[10] ^= 1);
    let no_header = with(udp_packet(&udp(&V4)), |ip| ip[10..12].fill(0));
    let header = [
        ("wrong IPv4 header checksum", bad_header, Dropped(DropReason::BadIpChecksum)),
        ("no IPv4 header checksum", no_header, Dropped(DropReason::BadIpChecksum)),
    ];
    let lax = Variant { verify_checksums: false, ..Variant::WHOLE };
    check(&header);
    check_at(0, lax, &header);
    both(|family| {
        let fill = |checksum| TcpSpec { checksum, ..tcp(family) };
        let fill_udp = |checksum| UdpSpec { checksum, ..udp(family) };
        let last = |packet: Vec<u8>| with(packet, |ip| *ip.last_mut().expect("a byte") ^= 1);
        let wrong = |fate| -> [Case; 4] {
            [
                ("TCP", last(tcp_packet(&tcp(family))), fate),
                ("TCP without", tcp_packet(&fill(ChecksumFill::Zero)), fate),
                ("UDP", last(udp_packet(&udp(family))), fate),
                ("ICMP", last(icmp_packet(&echo(family))), fate),
            ]
        };
        check(&wrong(Dropped(DropReason::BadTransportChecksum)));
        // Their receivers will find it out.
        check_at(0, lax, &wrong(Sent(1)));
        let good: [Case; 3] = [
            ("TCP, for the device to complete", tcp_packet(&fill(ChecksumFill::Partial)), Sent(1)),
            ("UDP, the same", udp_packet(&fill_udp(ChecksumFill::Partial)), Sent(1)),
            ("UDP without", udp_packet(&fill_udp(ChecksumFill::Zero)), Sent(1)),
        ];
        check(&good);
        check_at(0, lax, &good);
    });
}

#[test]
fn options_and_extension_headers() {
    let options = |options: Vec<u8>| {
        let spec = udp(&V4);
        udp_packet(&UdpSpec { ip: IpSpec { options, ..spec.ip.clone() }, ..spec })
    };
    check(&[
        ("router alert", options(vec![0x94, 4, 0, 0]), Sent(1)),
        ("40 bytes of options", options(vec![1; 40]), Sent(1)),
        ("options that overrun each other", options(vec![7, 255, 4, 68]), Sent(1)),
        ("a record of the route", options(vec![7, 7, 4, 0, 0, 0, 0, 0]), Sent(1)),
    ]);
    let extensions = |extensions: Vec<(u8, Vec<u8>)>| {
        let spec = udp(&V6);
        udp_packet(&UdpSpec { ip: IpSpec { extensions, ..spec.ip.clone() }, ..spec })
    };
    let (hop, routing, fragment, authentication, destination) = (0, 43, 44, 51, 60);
    let plain = |kind: u8| (kind, vec![0; 8]);
    let bad = Dropped(DropReason::BadExtensionHeader);
    check(&[
        ("hop-by-hop options", extensions(vec![plain(hop)]), Sent(1)),
        ("eight extension headers", extensions(vec![plain(destination); 8]), Sent(1)),
        ("nine extension headers", extensions(vec![plain(destination); 9]), bad),
        ("hop-by-hop options second", extensions(vec![plain(destination), plain(hop)]), bad),
        ("hop-by-hop options twice", extensions(vec![plain(hop), plain(hop)]), bad),
        ("routing type 0", extensions(vec![(routing, vec![0, 0, 0, 1, 0, 0, 0, 0])]), bad),
        ("routing that is done", extensions(vec![plain(routing)]), Sent(1)),
        ("atomic fragment", extensions(vec![plain(fragment)]), Sent(1)),
        ("two fragment headers", extensions(vec![plain(fragment); 2]), bad),
        (
            "options longer than the packet",
            extensions(vec![(destination, vec![0, 9, 0, 0, 0, 0, 0, 0])]),
            Dropped(DropReason::Truncated),
        ),
        (
            "authentication longer than the packet",
            extensions(vec![(authentication, vec![0, 255, 0, 0, 0, 0, 0, 0])]),
            Dropped(DropReason::Truncated),
        ),
        ("no next header", ip_packet(&link(), &udp(&V6).ip, 59, &[]), Sent(1)),
        (
            "an option without its rest",
            ip_packet(&link(), &udp(&V6).ip, 60, &[17, 0, 0]),
            Dropped(DropReason::Truncated),
        ),
    ]);
}

/// A UDP fragment; `offset` in units of eight bytes.
fn fragment(family: &Family, offset: u16, more: bool, len: usize) -> Vec<u8> {
    fragment_of(family, 17, offset, more, &vec![1; len])
}

fn fragment_of(family: &Family, proto: u8, offset: u16, more: bool, bytes: &[u8]) -> Vec<u8> {
    let mut ip = udp(family).ip;
    ip.fragment = offset | if more { ipv4::MORE_FRAGMENTS } else { 0 };
    let [high, low] = (offset << 3 | u16::from(more)).to_be_bytes();
    ip.extensions = vec![(44, vec![0, 0, high, low, 0, 0, 0, 9])];
    ip_packet(&link(), &ip, proto, bytes)
}

#[test]
fn fragments() {
    both(|family| {
        let bad_length = Dropped(DropReason::BadIpLength);
        let udp_head = [0x9c, 0x40, 0, 53, 4, 0, 0, 0];
        let first = |len| [&udp_head[..], &vec![1; len]].concat();
        check(&[
            ("first", fragment_of(family, 17, 0, true, &first(40)), Sent(1)),
            ("middle", fragment(family, 50, true, 48), Sent(1)),
            ("last", fragment(family, 50, false, 3), Sent(1)),
            (
                "last, of a protocol without ports",
                fragment_of(family, 47, 50, false, &[0; 9]),
                Sent(1),
            ),
            ("no multiple of 8", fragment(family, 50, true, 47), bad_length),
            ("first, no multiple of 8", fragment_of(family, 17, 0, true, &first(39)), bad_length),
            ("beyond 65,535 bytes", fragment(family, 8_191, false, 8), bad_length),
            ("up to 65,535 bytes", fragment(family, 8_190, false, 15), Sent(1)),
            (
                "over the TCP flags",
                fragment_of(family, 6, 1, true, &[0; 8]),
                Dropped(DropReason::Fragment),
            ),
            (
                "first without a whole TCP header",
                fragment_of(family, 6, 0, true, &[0; 16]),
                Dropped(DropReason::Truncated),
            ),
            ("empty and not last", fragment(family, 50, true, 0), Sent(1)),
        ]);
    });
}

#[test]
fn tcp_flags() {
    both(|family| {
        let of = |flags| tcp_packet(&TcpSpec { flags, payload: Vec::new(), ..tcp(family) });
        let early = TcpSpec { flags: SYN, ..tcp(family) };
        let bad = Dropped(DropReason::BadTcpFlags);
        check(&[
            ("none", of(0), bad),
            ("SYN FIN", of(SYN | FIN), bad),
            ("SYN RST", of(SYN | RST), bad),
            ("SYN FIN ACK", of(SYN | FIN | ACK), bad),
            ("FIN alone", of(FIN), bad),
            ("PSH alone", of(PSH), bad),
            ("Xmas", of(FIN | PSH | URG), bad),
            ("all", of(0xff), bad),
            ("SYN", of(SYN), Sent(1)),
            ("SYN with data", tcp_packet(&early), Dropped(DropReason::SynData)),
            ("SYN, ECN set up", of(SYN | 0xc0), Sent(1)),
            ("SYN ACK", of(SYN | ACK), Sent(1)),
            ("ACK", of(ACK), Sent(1)),
            ("FIN ACK", of(FIN | ACK), Sent(1)),
            ("RST", of(RST), Sent(1)),
            ("RST ACK", of(RST | ACK), Sent(1)),
        ]);
    });
}

#[test]
fn martians() {
    let v4 = ["0.0.0.0", "0.1.2.3", "127.0.0.1", "127.255.255.255", "240.0.0.1", "255.255.255.255"];
    let v6 = ["::", "::1", "::7f00:1", "::ffff:192.0.2.1"];
    let group = [("224.0.0.1", &V4), ("239.1.2.3", &V4), ("ff02::1", &V6), ("ff0e::7", &V6)];
    let between = |family: &Family, src: &str, dst: &str| {
        // An IPv4-mapped address can't be built, only written.
        let put = |ip: &mut [u8], at: usize, text: &str| match text.parse() {
            Ok(std::net::IpAddr::V4(a)) => ip[at..at + 4].copy_from_slice(&a.octets()),
            Ok(std::net::IpAddr::V6(a)) => ip[at..at + 16].copy_from_slice(&a.octets()),
            Err(e) => panic!("{text}: {e}"),
        };
        let at = if family.is_v4() { (12, 16) } else { (8, 24) };
        with_fixed(udp_packet(&udp(family)), |ip| {
            put(ip, at.0, src);
            put(ip, at.1, dst);
        })
    };
    let martian = Dropped(DropReason::Martian);
    for (family, bad) in [(&V4, &v4[..]), (&V6, &v6[..])] {
        let (client, backend) = (family.clients[0], family.backends[0]);
        for odd in bad {
            check(&[
                ("from a martian", between(family, odd, backend), martian),
                ("to a martian", between(family, client, odd), martian),
                ("from a martian to a service", between(family, odd, family.vip), martian),
            ]);
        }
        check(&[
            ("self-addressed", between(family, client, client), Dropped(DropReason::SelfAddressed)),
            (
                "from the VIP to itself",
                between(family, family.vip, family.vip),
                Dropped(DropReason::SelfAddressed),
            ),
            ("self-addressed martian", between(family, bad[0], bad[0]), martian),
        ]);
    }
    for (odd, family) in group {
        let (client, backend) = (family.clients[0], family.backends[0]);
        check(&[
            ("from a group", between(family, odd, backend), martian),
            ("to a group", between(family, client, odd), Dropped(DropReason::NotHandled)),
        ]);
    }
    for (odd, family) in [("169.254.7.7", &V4), ("fe80::7", &V6)] {
        let (client, backend) = (family.clients[0], family.backends[0]);
        check(&[
            ("from a link-local address", between(family, odd, backend), martian),
            ("from one to a service", between(family, odd, family.vip), martian),
            (
                "to a link-local address",
                between(family, client, odd),
                Dropped(DropReason::NotHandled),
            ),
        ]);
    }
}

#[test]
fn ttl_0_is_never_answered() {
    both(|family| {
        let zero = |packet: Vec<u8>| {
            let at = if family.is_v4() { 8 } else { 7 };
            with_fixed(packet, |ip| ip[at] = 0)
        };
        let reason = Dropped(DropReason::TtlExceeded);
        let service = super::to_vip(family, 80, SYN);
        check(&[
            ("TCP", zero(tcp_packet(&tcp(family))), reason),
            ("UDP", zero(udp_packet(&udp(family))), reason),
            ("ICMP", zero(icmp_packet(&echo(family))), reason),
            ("to a service", zero(tcp_packet(&service)), reason),
        ]);
    });
}

/// Routed as they are; ICMP of the other family is no ICMP.
#[test]
fn other_protocols() {
    let odd = |family: &Family, proto| ip_packet(&link(), &udp(family).ip, proto, &[3; 24]);
    check(&[
        ("GRE", odd(&V4, 47), Sent(1)),
        ("ESP", odd(&V6, 50), Sent(1)),
        ("SCTP", odd(&V4, 132), Sent(1)),
        ("reserved", odd(&V4, 255), Sent(1)),
        ("ICMPv6 within IPv4", odd(&V4, 58), Sent(1)),
        ("ICMP within IPv6", odd(&V6, 1), Sent(1)),
        ("IPv4 within IPv4", odd(&V4, 4), Sent(1)),
    ]);
    let unknown = |family: &Family| IcmpSpec { kind: 250, ..echo(family) };
    check(&[
        ("unknown ICMP", icmp_packet(&unknown(&V4)), Sent(1)),
        ("unknown ICMPv6", icmp_packet(&unknown(&V6)), Sent(1)),
    ]);
}
