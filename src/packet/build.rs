//! Whole packets made from a description: for tests, simulations and the traffic generator.
//!
//! Allocates; nothing on the packet path calls it.

use crate::base::Addr;
use crate::packet::checksum::pseudo;
use crate::packet::eth::{Tag, ethertype};
use crate::packet::field::put_u16;
use crate::packet::{eth, icmp, ipv4, ipv6, tcp, udp};

/// The link header. Its EtherType follows from the addresses.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LinkSpec {
    pub destination: [u8; 6],
    pub source: [u8; 6],
    /// Outermost first.
    pub tags: [Option<Tag>; eth::TAGS_MAX],
}

impl Default for LinkSpec {
    /// Locally administered addresses, no tag.
    fn default() -> LinkSpec {
        LinkSpec { destination: [2, 0, 0, 0, 0, 1], source: [2, 0, 0, 0, 0, 2], tags: [None; 2] }
    }
}

impl LinkSpec {
    /// Tagged once, for 802.1Q.
    pub fn vlan(tci: u16) -> LinkSpec {
        let tag = Tag { tpid: ethertype::VLAN, tci };
        LinkSpec { tags: [Some(tag), None], ..LinkSpec::default() }
    }
}

/// The IP header; the version is that of the addresses, which must be of one family.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IpSpec {
    pub src: Addr,
    pub dst: Addr,
    /// TTL or hop limit.
    pub ttl: u8,
    /// TOS or traffic class.
    pub tos: u8,
    pub identification: u16,
    /// IPv4 flags and offset. For IPv6 add an extension header.
    pub fragment: u16,
    /// IPv4 options, in whole words.
    pub options: Vec<u8>,
    /// IPv6 extension headers: kind and bytes, whose first byte (the next header) is filled in.
    pub extensions: Vec<(u8, Vec<u8>)>,
}

impl IpSpec {
    /// TTL 64, do not fragment.
    pub fn new(src: Addr, dst: Addr) -> IpSpec {
        IpSpec {
            src,
            dst,
            ttl: 64,
            tos: 0,
            identification: 0,
            fragment: ipv4::DONT_FRAGMENT,
            options: Vec::new(),
            extensions: Vec::new(),
        }
    }
}

/// What a TCP or UDP checksum field is filled with.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ChecksumFill {
    #[default]
    Full,
    /// The pseudo-header's sum alone, as Linux leaves it for the device to complete.
    Partial,
    /// 0.
    Zero,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UdpSpec {
    pub link: LinkSpec,
    pub ip: IpSpec,
    pub sport: u16,
    pub dport: u16,
    pub payload: Vec<u8>,
    pub checksum: ChecksumFill,
}

impl UdpSpec {
    pub fn new(src: (Addr, u16), dst: (Addr, u16), payload: &[u8]) -> UdpSpec {
        UdpSpec {
            link: LinkSpec::default(),
            ip: IpSpec::new(src.0, dst.0),
            sport: src.1,
            dport: dst.1,
            payload: payload.to_vec(),
            checksum: ChecksumFill::Full,
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TcpSpec {
    pub link: LinkSpec,
    pub ip: IpSpec,
    pub sport: u16,
    pub dport: u16,
    pub seq: u32,
    pub ack: u32,
    /// Of [`tcp::flag`].
    pub flags: u8,
    pub window: u16,
    /// In whole words.
    pub options: Vec<u8>,
    pub payload: Vec<u8>,
    pub checksum: ChecksumFill,
}

impl TcpSpec {
    /// Sequence and acknowledgment numbers 0, window 65,535.
    pub fn new(src: (Addr, u16), dst: (Addr, u16), flags: u8, payload: &[u8]) -> TcpSpec {
        TcpSpec {
            link: LinkSpec::default(),
            ip: IpSpec::new(src.0, dst.0),
            sport: src.1,
            dport: dst.1,
            seq: 0,
            ack: 0,
            flags,
            window: u16::MAX,
            options: Vec::new(),
            payload: payload.to_vec(),
            checksum: ChecksumFill::Full,
        }
    }
}

/// ICMP between IPv4 addresses, ICMPv6 between IPv6 addresses.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IcmpSpec {
    pub link: LinkSpec,
    pub ip: IpSpec,
    pub kind: u8,
    pub code: u8,
    /// Identifier and sequence number of an echo; MTU or pointer of an error.
    pub rest: u32,
    pub payload: Vec<u8>,
}

impl IcmpSpec {
    /// An echo request, or its reply.
    pub fn echo(src: Addr, dst: Addr, reply: bool, identifier: u16, payload: &[u8]) -> IcmpSpec {
        let kind = match (src.is_v4(), reply) {
            (true, false) => icmp::kind::ECHO_REQUEST,
            (true, true) => icmp::kind::ECHO_REPLY,
            (false, false) => icmp::kind_v6::ECHO_REQUEST,
            (false, true) => icmp::kind_v6::ECHO_REPLY,
        };
        IcmpSpec {
            link: LinkSpec::default(),
            ip: IpSpec::new(src, dst),
            kind,
            code: 0,
            rest: u32::from(identifier) << 16 | 1,
            payload: payload.to_vec(),
        }
    }
}

/// A UDP packet with all lengths and checksums right, not padded.
///
/// # Panics
/// Here and below: on addresses of two families, and on more than 65,535 bytes.
pub fn udp_packet(spec: &UdpSpec) -> Vec<u8> {
    let mut datagram = vec![0; udp::HEADER_LEN];
    datagram.extend_from_slice(&spec.payload);
    let repr = udp::Repr { source_port: spec.sport, destination_port: spec.dport };
    repr.emit(&mut datagram, spec.ip.src, spec.ip.dst);
    fill(&mut datagram, spec.checksum, &spec.ip, udp::PROTOCOL, udp::offset::CHECKSUM);
    ip_packet(&spec.link, &spec.ip, udp::PROTOCOL, &datagram)
}

/// A TCP packet with all lengths and checksums right, not padded.
pub fn tcp_packet(spec: &TcpSpec) -> Vec<u8> {
    let repr = tcp::Repr {
        source_port: spec.sport,
        destination_port: spec.dport,
        sequence: spec.seq,
        acknowledgment: spec.ack,
        flags: spec.flags,
        window: spec.window,
        urgent: 0,
        options: &spec.options,
    };
    let mut segment = vec![0; repr.len()];
    segment.extend_from_slice(&spec.payload);
    repr.emit(&mut segment, spec.ip.src, spec.ip.dst);
    fill(&mut segment, spec.checksum, &spec.ip, tcp::PROTOCOL, tcp::offset::CHECKSUM);
    ip_packet(&spec.link, &spec.ip, tcp::PROTOCOL, &segment)
}

/// An ICMP or ICMPv6 packet with all lengths and checksums right, not padded.
pub fn icmp_packet(spec: &IcmpSpec) -> Vec<u8> {
    let mut message = vec![0; icmp::HEADER_LEN];
    message.extend_from_slice(&spec.payload);
    let repr = icmp::Repr { kind: spec.kind, code: spec.code, rest: spec.rest };
    repr.emit(&mut message, spec.ip.src, spec.ip.dst);
    let proto = if spec.ip.src.is_v4() { icmp::PROTOCOL } else { icmp::PROTOCOL_V6 };
    ip_packet(&spec.link, &spec.ip, proto, &message)
}

/// Link and IP headers before `payload`, which is taken as it is.
pub fn ip_packet(link: &LinkSpec, ip: &IpSpec, proto: u8, payload: &[u8]) -> Vec<u8> {
    assert_eq!(ip.src.is_v4(), ip.dst.is_v4(), "addresses of two families");
    let v4 = ip.src.is_v4();
    let repr = eth::Repr {
        destination: link.destination,
        source: link.source,
        tags: link.tags,
        ethertype: if v4 { ethertype::IPV4 } else { ethertype::IPV6 },
    };
    let mut bytes = vec![0; repr.len()];
    repr.emit(&mut bytes);
    if v4 {
        push_ipv4(&mut bytes, ip, proto, payload)
    } else {
        push_ipv6(&mut bytes, ip, proto, payload)
    }
    bytes
}

/// Pads a frame to the 60 bytes that Ethernet asks for.
pub fn pad(mut frame: Vec<u8>) -> Vec<u8> {
    frame.resize(frame.len().max(eth::FRAME_LEN_MIN), 0);
    frame
}

fn push_ipv4(bytes: &mut Vec<u8>, ip: &IpSpec, proto: u8, payload: &[u8]) {
    let repr = ipv4::Repr {
        tos: ip.tos,
        payload_len: u16::try_from(payload.len()).expect("a payload below 64 KiB"),
        identification: ip.identification,
        fragment: ip.fragment,
        ttl: ip.ttl,
        protocol: proto,
        source: ip.src,
        destination: ip.dst,
        options: &ip.options,
    };
    let l3 = bytes.len();
    bytes.resize(l3 + repr.len(), 0);
    repr.emit(&mut bytes[l3..]);
    bytes.extend_from_slice(payload);
}

fn push_ipv6(bytes: &mut Vec<u8>, ip: &IpSpec, proto: u8, payload: &[u8]) {
    let mut body = Vec::new();
    let mut kinds = ip.extensions.iter().map(|(kind, _)| *kind).skip(1).chain([proto]);
    for (_, extension) in &ip.extensions {
        body.push(kinds.next().unwrap_or(proto));
        body.extend_from_slice(extension.get(1..).unwrap_or(&[]));
    }
    body.extend_from_slice(payload);
    let repr = ipv6::Repr {
        traffic_class: ip.tos,
        flow_label: 0,
        payload_len: u16::try_from(body.len()).expect("a payload below 64 KiB"),
        next_header: ip.extensions.first().map_or(proto, |(kind, _)| *kind),
        hop_limit: ip.ttl,
        source: ip.src,
        destination: ip.dst,
    };
    let l3 = bytes.len();
    bytes.resize(l3 + ipv6::HEADER_LEN, 0);
    repr.emit(&mut bytes[l3..]);
    bytes.extend_from_slice(&body);
}

fn fill(segment: &mut [u8], fill: ChecksumFill, ip: &IpSpec, proto: u8, at: usize) {
    match fill {
        ChecksumFill::Full => {}
        ChecksumFill::Partial => {
            let sum = pseudo(ip.src, ip.dst, proto, segment.len() as u16).fold();
            put_u16(segment, at, sum);
        }
        ChecksumFill::Zero => put_u16(segment, at, 0),
    }
}
