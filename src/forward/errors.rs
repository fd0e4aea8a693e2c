//! ICMP errors that others send about packets of services: what they are about, and what whoever
//! sent those packets is to hear (RFC 792, RFC 4443; of NAT RFC 5508, section 4).

use super::icmp::{self as made, IcmpError, Unreachable};
use super::tunnel::{Encap, GUE_HEADER_LEN, IPV4_WITHIN, IPV6_WITHIN, Tunnels};
use crate::base::Addr;
use crate::base::mem::Arena;
use crate::packet::checksum::{Delta, Sum};
use crate::packet::eth::{self, ethertype};
use crate::packet::field::{put_addr, put_u16, put_u32, u16_at, u32_at};
use crate::packet::icmp::{self, Quoted, kind, kind_v6, quoted, quoted_network, quoted_within};
use crate::packet::{DropReason, FlowKey, Frame, PacketMeta, ipv4, ipv6, tcp, udp};

/// What an error is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum About {
    /// A packet, as it was sent.
    Packet(Quoted),
    /// A packet within another that a tunnel's packet was: as the client sent it.
    Within(Quoted, Encap),
}

impl About {
    /// Reads an error. `None` where there is none, or it does not show its packet.
    pub fn read(bytes: &[u8], meta: &PacketMeta, tunnels: &Tunnels) -> Option<About> {
        if let Some((at, encap)) = tunnelled(bytes, meta, tunnels) {
            return Some(About::Within(quoted_within(bytes, meta, at)?, encap));
        }
        let about = quoted(bytes, meta)?;
        // Whom an error is for has sent what it quotes.
        (about.key.src == meta.key.dst).then_some(About::Packet(about))
    }

    /// The key that packets of the flow have which go where the error goes.
    pub fn key(&self) -> FlowKey {
        match self {
            About::Packet(quoted) => quoted.key.reversed(),
            About::Within(quoted, _) => quoted.key,
        }
    }
}

/// Where the packet within the quoted packet begins, if that is a tunnel's.
fn tunnelled(bytes: &[u8], meta: &PacketMeta, tunnels: &Tunnels) -> Option<(usize, Encap)> {
    let outer = quoted_network(bytes, meta)?;
    if outer.src != meta.key.dst {
        return None;
    }
    let at = outer.transport;
    match outer.proto {
        IPV4_WITHIN | IPV6_WITHIN => Some((at, Encap::Ipip)),
        udp::PROTOCOL => {
            let inner = at + udp::HEADER_LEN + GUE_HEADER_LEN;
            let head = bytes.get(at..inner)?;
            let port = u16_at(head, udp::offset::DESTINATION_PORT);
            let gue = &head[udp::HEADER_LEN..];
            let carries = matches!(gue, [0, IPV4_WITHIN | IPV6_WITHIN, 0, 0]);
            (port == tunnels.gue_port() && carries).then_some((inner, Encap::Gue))
        }
        _ => None,
    }
}

/// Makes an error about a translated packet one about the packet as its sender knows it, `sent`;
/// `sequence` is added to the quoted TCP sequence number. `bytes` is a frame without tags.
///
/// # Errors
/// [`DropReason::BadTransportChecksum`] on a damaged error, [`DropReason::Truncated`] where an
/// offset leaves the packet; nothing is changed then.
pub fn translate(
    bytes: &mut [u8],
    meta: &PacketMeta,
    about: &Quoted,
    sent: &FlowKey,
    sequence: u32,
) -> Result<(), DropReason> {
    let (l3, l4, end) = (usize::from(meta.l3), usize::from(meta.l4), usize::from(meta.end));
    let message = bytes.get(l4..end).ok_or(DropReason::Truncated)?;
    let header = icmp::Repr::parse(message)?;
    if !icmp::View::new_checked(message)?.checksum_ok(meta.key.src, meta.key.dst) {
        return Err(DropReason::BadTransportChecksum);
    }
    let (head, message) = bytes.split_at_mut_checked(l4).ok_or(DropReason::Truncated)?;
    let at = |offset: u16| usize::from(offset).checked_sub(l4).ok_or(DropReason::Truncated);
    let quote = message.get_mut(..end - l4).ok_or(DropReason::Truncated)?;
    unquote(quote, (at(about.l3)?, at(about.l4)?), &about.key, sent, sequence)?;
    // It is told as if the other end of the sender's own connection had noticed.
    let (source, destination) = (sent.dst, sent.src);
    addresses(head.get_mut(l3..).ok_or(DropReason::Truncated)?, source, destination)?;
    header.emit(quote, source, destination);
    Ok(())
}

/// Gives a quoted packet the addresses, ports and sequence number that it was sent with, as far as
/// they are quoted.
fn unquote(
    message: &mut [u8],
    (l3, l4): (usize, usize),
    seen: &FlowKey,
    sent: &FlowKey,
    sequence: u32,
) -> Result<(), DropReason> {
    let addresses = Delta::default().addr(seen.src, sent.src).addr(seen.dst, sent.dst);
    let mut transport = addresses.u16(seen.sport, sent.sport).u16(seen.dport, sent.dport);
    let ip = message.get_mut(l3..l4).ok_or(DropReason::Truncated)?;
    if sent.src.is_v4() {
        let ip: &mut [u8; ipv4::HEADER_LEN] = ip.first_chunk_mut().ok_or(DropReason::Truncated)?;
        put_u32(ip, ipv4::offset::SOURCE, sent.src.v4_bits());
        put_u32(ip, ipv4::offset::DESTINATION, sent.dst.v4_bits());
        let check = addresses.apply(u16_at(ip, ipv4::offset::CHECKSUM));
        put_u16(ip, ipv4::offset::CHECKSUM, check);
    } else {
        let ip: &mut [u8; ipv6::HEADER_LEN] = ip.first_chunk_mut().ok_or(DropReason::Truncated)?;
        put_addr(ip, ipv6::offset::SOURCE, sent.src);
        put_addr(ip, ipv6::offset::DESTINATION, sent.dst);
    }
    let segment = message.get_mut(l4..).ok_or(DropReason::Truncated)?;
    let first: &mut [u8; 8] = segment.first_chunk_mut().ok_or(DropReason::Truncated)?;
    put_u16(first, 0, sent.sport);
    put_u16(first, 2, sent.dport);
    let check_at = if sent.proto == tcp::PROTOCOL {
        let old = u32_at(first, tcp::offset::SEQUENCE);
        let new = old.wrapping_add(sequence);
        put_u32(first, tcp::offset::SEQUENCE, new);
        transport = transport.u32(old, new);
        tcp::offset::CHECKSUM
    } else {
        udp::offset::CHECKSUM
    };
    if let Some(check) = segment.get_mut(check_at..check_at + 2) {
        let old = u16_at(check, 0);
        if sent.proto == tcp::PROTOCOL || old != 0 {
            put_u16(check, 0, transport.apply(old));
        }
    }
    Ok(())
}

/// Sets the addresses of an IP header, and takes a hop.
fn addresses(ip: &mut [u8], source: Addr, destination: Addr) -> Result<(), DropReason> {
    if source.is_v4() {
        let header_len = usize::from(ip.first().ok_or(DropReason::Truncated)? & 15) * 4;
        let ip = ip.get_mut(..header_len).filter(|ip| ip.len() >= ipv4::HEADER_LEN);
        let ip = ip.ok_or(DropReason::Truncated)?;
        put_u32(ip, ipv4::offset::SOURCE, source.v4_bits());
        put_u32(ip, ipv4::offset::DESTINATION, destination.v4_bits());
        ip[ipv4::offset::TTL] = ip[ipv4::offset::TTL].saturating_sub(1);
        put_u16(ip, ipv4::offset::CHECKSUM, 0);
        let check = Sum::of(ip).checksum();
        put_u16(ip, ipv4::offset::CHECKSUM, check);
    } else {
        let ip: &mut [u8; ipv6::HEADER_LEN] = ip.first_chunk_mut().ok_or(DropReason::Truncated)?;
        put_addr(ip, ipv6::offset::SOURCE, source);
        put_addr(ip, ipv6::offset::DESTINATION, destination);
        ip[ipv6::offset::HOP_LIMIT] = ip[ipv6::offset::HOP_LIMIT].saturating_sub(1);
    }
    Ok(())
}

/// What the sender of a packet within a tunnel's packet is to hear of an error about that.
/// `overhead` is the tunnel's. `None`: nothing; it can't help that.
pub fn of_tunnel(bytes: &[u8], meta: &PacketMeta, overhead: u16) -> Option<IcmpError> {
    let message = bytes.get(usize::from(meta.l4)..usize::from(meta.end))?;
    let view = icmp::View::new_checked(message).ok()?;
    if !view.checksum_ok(meta.key.src, meta.key.dst) {
        return None;
    }
    let too_big = |mtu: u32| {
        let mtu = u16::try_from(mtu).unwrap_or(u16::MAX).checked_sub(overhead)?;
        Some(IcmpError::TooBig { mtu })
    };
    const FRAGMENTATION_NEEDED: u8 = 4;
    match (meta.key.proto, view.kind(), view.code()) {
        // RFC 1191, section 4: routers older than it name no MTU.
        (icmp::PROTOCOL, kind::UNREACHABLE, FRAGMENTATION_NEEDED) => match view.rest() & 0xffff {
            0 => None,
            mtu => too_big(mtu),
        },
        (icmp::PROTOCOL_V6, kind_v6::PACKET_TOO_BIG, _) => too_big(view.rest()),
        (icmp::PROTOCOL, kind::UNREACHABLE, _) | (icmp::PROTOCOL_V6, kind_v6::UNREACHABLE, _) => {
            Some(IcmpError::Unreachable(Unreachable::Host))
        }
        _ => None,
    }
}

/// Makes an error about a tunnel's packet one about the packet within it, to that one's sender, as
/// if the VIP had noticed. Of the Ethernet header only the type is written; `meta` follows.
///
/// # Errors
/// [`DropReason::Truncated`] where an offset leaves the packet; nothing is changed then.
pub fn unwrap(
    frame: &mut Frame,
    arena: &Arena,
    meta: &mut PacketMeta,
    about: &Quoted,
    error: IcmpError,
) -> Result<(), DropReason> {
    let (client, vip) = (about.key.src, about.key.dst);
    let (ip_len, proto, kind) = match client.is_v4() {
        true => (ipv4::HEADER_LEN, icmp::PROTOCOL, ethertype::IPV4),
        false => (ipv6::HEADER_LEN, icmp::PROTOCOL_V6, ethertype::IPV6),
    };
    let l4 = eth::HEADER_LEN + ip_len;
    let headers = l4 + icmp::HEADER_LEN;
    let (quote, end) = (usize::from(about.l3), usize::from(meta.end));
    let start = quote.checked_sub(headers).filter(|_| quote < end && end <= frame.len());
    let start = start.ok_or(DropReason::Truncated)?;
    frame.truncate(end.min(start + eth::HEADER_LEN + made::len_max(client.is_v4())));
    if !frame.pop_front(start) {
        return Err(DropReason::Truncated);
    }
    let bytes = frame.bytes_mut(arena);
    put_u16(bytes, eth::offset::ETHERTYPE, kind);
    made::headers_before(&mut bytes[eth::HEADER_LEN..], vip, client, error);
    meta.key = FlowKey { src: vip, dst: client, sport: 0, dport: 0, proto };
    (meta.l3, meta.l4) = (eth::HEADER_LEN as u16, l4 as u16);
    (meta.payload, meta.end) = (headers as u16, frame.len() as u16);
    meta.vlan_tci = 0;
    Ok(())
}
