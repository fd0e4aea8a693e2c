//! The language of the `pipeline` target: bytes that say what happens to a box, and the packets
//! that they describe.
//!
//! Any bytes are a script, so that mutated ones do something too: operands are taken modulo what
//! there is, and missing ones are 0.

use tidegate::base::Addr;
use tidegate::packet::build::{
    ChecksumFill, IcmpSpec, IpSpec, LinkSpec, TcpSpec, UdpSpec, icmp_packet, ip_packet, tcp_packet,
    udp_packet,
};
use tidegate::packet::checksum::{Sum, pseudo};
use tidegate::packet::field::{put_u16, u16_at};
use tidegate::packet::{PacketFlags, PacketMeta, ParseOptions, eth, icmp, ipv4, parse, tcp, udp};

use super::client_hello::ClientHello;
use super::setup::{
    BACKEND_TCP_PORT, DRAINED_PORT, Family, LOST_PORT, NEIGHBOUR_MAC, OWN_MAC, SEED,
    UNRESOLVED_PORT, V4, V6, addr,
};

/// What happens next. The rest of the byte, [`op::POLL`], has the box take a turn afterwards.
pub mod op {
    /// A packet as described by what follows: see [`super::described`].
    pub const PACKET: u8 = 0;
    /// Where to, how many bytes (16 bits), and the bytes.
    pub const RAW: u8 = 1;
    /// As [`PACKET`], with a piece of a ClientHello (start and length, 16 bits each) as payload.
    pub const HELLO: u8 = 2;
    /// A packet that the box has sent comes back from its receiver: see [`super::answer`].
    pub const ANSWER: u8 = 3;
    /// An ICMP error about a packet that the box has sent: see [`super::icmp_error`].
    pub const ICMP_ERROR: u8 = 4;
    /// Time passes: 2 to the power of the operand, 256 ns to 9 min.
    pub const TIME: u8 = 5;
    /// The box takes as many turns.
    pub const TURNS: u8 = 6;
    /// What the box has sent is carried off and looked at.
    pub const CARRY: u8 = 7;
    /// Which neighbour; known or not; published or not.
    pub const NEIGHBOUR: u8 = 8;
    /// Which route; there or not; published or not.
    pub const ROUTE: u8 = 9;
    /// Which variant of the configuration.
    pub const RELOAD: u8 = 10;
    /// What to list.
    pub const LIST: u8 = 11;
    /// When the worker is to end.
    pub const STOP: u8 = 12;
    /// Which packet that was sent to the box is sent again, and its patches.
    pub const AGAIN: u8 = 13;
    pub const COUNT: u8 = 14;
    /// Added to any of them.
    pub const POLL: u8 = 0x80;
}

/// Bits of a described packet's first byte.
pub mod to {
    pub const PORT: u8 = 1;
    pub const WORKER: u8 = 2;
    pub const V6: u8 = 4;
    /// Two bits: TCP, UDP, ICMP echo, GRE.
    pub const UDP: u8 = 8;
    pub const VLAN: u8 = 32;
    pub const PATCHED: u8 = 64;
    /// Checksums are made right again after the patches.
    pub const FIXED: u8 = 128;
}

/// Bits of a described packet's shape.
pub mod shape {
    /// Two bits: TTL 64, 1, 2, 0.
    pub const TTL_1: u8 = 1;
    pub const OPTIONS: u8 = 4;
    // Two bits, 8 and 16: no fragment, first, last, one that overwrites the TCP flags.
    /// Two bits: full, partial, zero, full.
    pub const PARTIAL: u8 = 32;
    /// DSCP 46.
    pub const MARKED: u8 = 128;
}

/// Payload lengths beyond this many bytes are those of [`LENGTHS`].
pub const LENGTH_LITERAL_MAX: u8 = 199;
/// Around what fits the links, the frames, and an IP packet.
const LENGTHS: [usize; 8] = [512, 1_332, 1_352, 1_360, 1_372, 1_452, 1_472, 1_700];
const GRE: u8 = 47;

/// Bytes, read front to back; 0 beyond the end.
pub struct Input<'a> {
    bytes: &'a [u8],
}

impl<'a> Input<'a> {
    pub fn new(bytes: &'a [u8]) -> Input<'a> {
        Input { bytes }
    }

    pub fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    pub fn u8(&mut self) -> u8 {
        self.bytes(1).first().copied().unwrap_or_default()
    }

    pub fn u16(&mut self) -> u16 {
        u16::from_be_bytes([self.u8(), self.u8()])
    }

    /// As many as there are, `n` at most.
    pub fn bytes(&mut self, n: usize) -> &'a [u8] {
        let (taken, rest) = self.bytes.split_at(n.min(self.bytes.len()));
        self.bytes = rest;
        taken
    }

    pub fn rest(&mut self) -> &'a [u8] {
        self.bytes(usize::MAX)
    }
}

/// Addresses that packets are from and to, by their number in scripts.
pub const ENDPOINTS: usize = 20;
pub mod endpoint {
    pub const CLIENT: u8 = 0;
    pub const BACKEND: u8 = 3;
    pub const VIP: u8 = 5;
    pub const BEYOND: u8 = 7;
}

fn endpoint_of(family: &Family, n: u8) -> Addr {
    let odd = if family.is_v4() {
        ["127.0.0.1", "224.0.0.9", "255.255.255.255", "0.0.0.0", "169.254.7.7"]
    } else {
        ["::1", "ff02::9", "::", "fe80::9", "::7f00:1"]
    };
    let [a, b, c] = family.clients;
    let [d, e] = family.backends;
    let [g, h] = family.own;
    let f = family;
    let all = [
        [a, b, c, d, e, f.vip, f.nat, f.beyond, f.unresolved, g, h, f.gateway, f.lost, f.blackhole],
        [f.elsewhere, odd[0], odd[1], odd[2], odd[3], odd[4], a, a, a, a, a, a, a, a],
    ];
    addr(all.as_flattened()[usize::from(n) % ENDPOINTS])
}

/// Ports by their number in scripts: those of services first, then one each.
fn port_of(n: u8, base: u16) -> u16 {
    const KNOWN: [u16; 8] =
        [80, 81, 82, 443, UNRESOLVED_PORT, DRAINED_PORT, LOST_PORT, BACKEND_TCP_PORT];
    KNOWN.get(usize::from(n)).copied().unwrap_or(base + u16::from(n))
}

/// A packet and the wire it is to be put on.
pub struct Described {
    pub worker: usize,
    pub port: usize,
    pub bytes: Vec<u8>,
}

/// Eight bytes: where to and what ([`to`]), source and destination ([`endpoint`]), their ports, the
/// [`shape`], TCP flags (or the ICMP type), and the payload's length or, for TCP, what else is
/// wanted of `payload`; then patches.
pub fn described(input: &mut Input<'_>, hello: bool) -> Described {
    let what = input.u8();
    let family = if what & to::V6 != 0 { &V6 } else { &V4 };
    let (src, dst) = (endpoint_of(family, input.u8()), endpoint_of(family, input.u8()));
    let (sport, dport) =
        (port_of(input.u8(), 40_000), port_of(input.u8(), *super::setup::NAT_PORTS.start()));
    let (form, flags) = (input.u8(), input.u8());
    let (mut seq, payload);
    if hello {
        let (from, len) = (usize::from(input.u16()), usize::from(input.u16()));
        let stream = hello_stream();
        let from = from.min(stream.len());
        let to = (from + len).min(stream.len()).min(from + 1_600);
        payload = stream[from..to].to_vec();
        seq = 1 + from as u32;
    } else {
        let len = input.u8();
        let long = || LENGTHS[usize::from(len) % LENGTHS.len()];
        let len = if len <= LENGTH_LITERAL_MAX { usize::from(len) } else { long() };
        payload = vec![b'x'; len];
        seq = 1 + len as u32;
    }
    if flags & tcp::flag::SYN != 0 {
        seq = 0;
    }
    let port = usize::from(what & to::PORT);
    let mut link =
        LinkSpec { destination: OWN_MAC[port], source: NEIGHBOUR_MAC[port], ..LinkSpec::default() };
    if what & to::VLAN != 0 {
        link.tags = LinkSpec::vlan(7).tags;
    }
    let ip = ip_of(form, src, dst);
    let checksum =
        [ChecksumFill::Full, ChecksumFill::Partial, ChecksumFill::Zero, ChecksumFill::Full]
            [usize::from(form / shape::PARTIAL % 4)];
    let mut bytes = match what / to::UDP % 4 {
        0 => {
            let spec = TcpSpec::new((src, sport), (dst, dport), flags, &payload);
            tcp_packet(&TcpSpec { link, ip, checksum, seq, ack: 1, ..spec })
        }
        1 => {
            let spec = UdpSpec::new((src, sport), (dst, dport), &payload);
            udp_packet(&UdpSpec { link, ip, checksum, ..spec })
        }
        2 => {
            let spec = IcmpSpec::echo(src, dst, flags & 1 != 0, sport, &payload);
            icmp_packet(&IcmpSpec { link, ip, ..spec })
        }
        _ => ip_packet(&link, &ip, GRE, &payload),
    };
    if what & to::PATCHED != 0 {
        patch(&mut bytes, input);
        if what & to::FIXED != 0 {
            fix_sums(&mut bytes);
        }
    }
    Described { worker: usize::from(what & to::WORKER != 0), port, bytes }
}

fn ip_of(form: u8, src: Addr, dst: Addr) -> IpSpec {
    let mut ip = IpSpec::new(src, dst);
    ip.ttl = [64, 1, 2, 0][usize::from(form % 4)];
    ip.tos = if form & shape::MARKED != 0 { 46 << 2 } else { 0 };
    if form & shape::OPTIONS != 0 {
        // Router alert (RFC 2113), and an empty hop-by-hop header.
        ip.options = vec![0x94, 4, 0, 0];
        ip.extensions.push((0, vec![0, 0, 1, 4, 0, 0, 0, 0]));
    }
    // In units of eight bytes; a last one has no more behind it.
    let (offset, more) =
        [(0, false), (0, true), (185, false), (1, true)][usize::from(form / 8 % 4)];
    if offset > 0 || more {
        ip.fragment = offset | if more { ipv4::MORE_FRAGMENTS } else { 0 };
        let [high, low] = (offset << 3 | u16::from(more)).to_be_bytes();
        ip.extensions.push((44, vec![0, 0, high, low, 0, 0, 0, 9]));
    }
    ip
}

/// Changes up to four bytes: how many, then place (16 bits) and what to turn.
pub fn patch(packet: &mut [u8], input: &mut Input<'_>) {
    for _ in 0..=input.u8() % 4 {
        let (at, bits) = (usize::from(input.u16()), input.u8());
        let len = packet.len().max(1);
        if let Some(byte) = packet.get_mut(at % len) {
            *byte ^= bits;
        }
    }
}

/// Makes the sums of a packet right, so that what is behind them is reached.
pub fn fix_sums(packet: &mut [u8]) {
    let l3 = if eth::is_tag(u16_at_or_0(packet, 12)) { 18 } else { 14 };
    if packet.get(l3).is_some_and(|b| b >> 4 == 4) {
        let header = usize::from(packet[l3] & 15) * 4;
        if header >= ipv4::HEADER_LEN && l3 + header <= packet.len() {
            put_u16(packet, l3 + ipv4::offset::CHECKSUM, 0);
            let sum = Sum::of(&packet[l3..l3 + header]).checksum();
            put_u16(packet, l3 + ipv4::offset::CHECKSUM, sum);
        }
    }
    let mut meta = PacketMeta::default();
    if parse(packet, SEED, ParseOptions::default(), &mut meta).is_err()
        || meta.flags.has(PacketFlags::FRAGMENT)
    {
        return;
    }
    let (l4, end) = (usize::from(meta.l4), usize::from(meta.end));
    let (at, pseudo_sum) = match meta.key.proto {
        tcp::PROTOCOL => (tcp::offset::CHECKSUM, true),
        udp::PROTOCOL => (udp::offset::CHECKSUM, true),
        icmp::PROTOCOL => (icmp::offset::CHECKSUM, false),
        icmp::PROTOCOL_V6 => (icmp::offset::CHECKSUM, true),
        _ => return,
    };
    if l4 + at + 2 > end {
        return;
    }
    put_u16(packet, l4 + at, 0);
    let key = &meta.key;
    let head = pseudo(key.src, key.dst, key.proto, (end - l4) as u16);
    let sum = if pseudo_sum { head } else { Sum::default() };
    let check = sum.bytes(&packet[l4..end]).checksum();
    put_u16(packet, l4 + at, check);
}

fn u16_at_or_0(bytes: &[u8], at: usize) -> u16 {
    if bytes.len() >= at + 2 { u16_at(bytes, at) } else { 0 }
}

/// What the receiver of `sent` answers: the same packet, turned round; TCP flags, and the payload's
/// length that is kept at most. Nothing for what is no whole TCP, UDP or ICMP packet.
pub fn answer(sent: &[u8], input: &mut Input<'_>) -> Option<Vec<u8>> {
    let (flags, keep) = (input.u8(), usize::from(input.u8()));
    let mut meta = PacketMeta::default();
    parse(sent, SEED, ParseOptions::default(), &mut meta).ok()?;
    let (src, dst) = ((meta.key.src, meta.key.sport), (meta.key.dst, meta.key.dport));
    let (l4, payload, end) = (meta.l4.into(), meta.payload.into(), meta.end.into());
    let payload: &[u8] = sent.get(payload..end)?;
    let payload = &payload[..payload.len().min(keep)];
    let mut bytes = match meta.key.proto {
        _ if meta.flags.has(PacketFlags::FRAGMENT) => return None,
        tcp::PROTOCOL => {
            let spec = TcpSpec::new(dst, src, flags, payload);
            tcp_packet(&TcpSpec { seq: meta.tcp_ack, ack: meta.tcp_seq.wrapping_add(1), ..spec })
        }
        udp::PROTOCOL => udp_packet(&UdpSpec::new(dst, src, payload)),
        icmp::PROTOCOL | icmp::PROTOCOL_V6 => {
            let identifier = u16_at_or_0(sent, usize::from(meta.l4) + icmp::offset::IDENTIFIER);
            icmp_packet(&IcmpSpec::echo(dst.0, src.0, true, identifier, payload))
        }
        _ => ip_packet(
            &LinkSpec::default(),
            &IpSpec::new(dst.0, src.0),
            meta.key.proto,
            &sent[l4..end],
        ),
    };
    turn_link(&mut bytes, sent);
    Some(bytes)
}

/// An ICMP error about `sent` from the gateway of port 1: kind, code, and how much of it is quoted.
pub fn icmp_error(sent: &[u8], input: &mut Input<'_>) -> Option<Vec<u8>> {
    let (kind, code, quoted) = (input.u8(), input.u8() % 8, 20 + usize::from(input.u8()));
    let mut meta = PacketMeta::default();
    parse(sent, SEED, ParseOptions::default(), &mut meta).ok()?;
    let quote = sent.get(meta.l3.into()..meta.end.into())?;
    let quote = &quote[..quote.len().min(quoted)];
    let v4 = meta.is_v4();
    let from = addr(if v4 { V4.gateway } else { V6.gateway });
    let kinds = if v4 { [3, 11, 4, 5] } else { [1, 2, 3, 137] };
    let spec = IcmpSpec::echo(from, meta.key.src, false, 0, quote);
    let kind = kinds[usize::from(kind) % kinds.len()];
    let mut bytes = icmp_packet(&IcmpSpec { kind, code, rest: 1_280, ..spec });
    turn_link(&mut bytes, sent);
    Some(bytes)
}

fn turn_link(bytes: &mut [u8], sent: &[u8]) {
    bytes[..6].copy_from_slice(&sent[6..12]);
    bytes[6..12].copy_from_slice(&sent[..6]);
}

/// The stream that [`op::HELLO`] takes pieces of.
pub fn hello_stream() -> Vec<u8> {
    ClientHello {
        name: Some(b"model.chat.example.com"),
        protocols: &[b"h2", b"http/1.1"],
        padding: 300,
        record_len: 400,
    }
    .bytes()
}
