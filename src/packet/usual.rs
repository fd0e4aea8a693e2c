//! The parser's straight line: whole TCP and UDP packets without IP options or extension headers,
//! untagged or tagged once.
//!
//! `L3`, where the IP header begins, is a constant, so nearly all offsets are. Each function
//! returns whether it filled `meta`; on `false` nothing of it is to be used and the packet must be
//! read again by `parse::read_any`, which agrees on every packet that is taken here (a property
//! test holds both to that).

use crate::base::{Addr, Seed};
use crate::packet::checksum::{Sum, is_partial, pseudo};
use crate::packet::field::{addr6_at, bytes_at, u16_at, u32_at};
use crate::packet::scope::{is_martian_destination, is_martian_source};
use crate::packet::{Direction, FlowKey, PacketFlags, PacketMeta, eth, ipv4, ipv6, tcp, udp};

#[inline(always)]
pub(super) fn ipv4<const L3: usize>(bytes: &[u8], seed: Seed, meta: &mut PacketMeta) -> bool {
    let Some(ip) = bytes.get(L3..) else { return false };
    let Some(head) = ip.first_chunk::<{ ipv4::HEADER_LEN }>() else { return false };
    let total = usize::from(u16_at(head, ipv4::offset::TOTAL_LENGTH));
    let fragment = u16_at(head, ipv4::offset::FRAGMENT);
    if head[0] != 0x45
        || total > ip.len()
        || total < ipv4::HEADER_LEN
        || fragment & (ipv4::MORE_FRAGMENTS | ipv4::OFFSET_MASK) != 0
    {
        return false;
    }
    let word = |at| u64::from(u32::from_ne_bytes(bytes_at(head, at)));
    let addresses = word(ipv4::offset::SOURCE) + word(ipv4::offset::DESTINATION);
    if !Sum::of_words(word(0) + word(4) + word(8) + addresses).verifies() {
        return false;
    }
    let (src, dst) = (
        Addr::v4(u32_at(head, ipv4::offset::SOURCE)),
        Addr::v4(u32_at(head, ipv4::offset::DESTINATION)),
    );
    let ttl = head[ipv4::offset::TTL];
    if is_martian_source(src) || is_martian_destination(dst) || src == dst || ttl == 0 {
        return false;
    }
    let proto = head[ipv4::offset::PROTOCOL];
    let segment = &ip[ipv4::HEADER_LEN..total];
    let l4 = (L3 + ipv4::HEADER_LEN) as u16;
    let taken = transport(segment, l4, proto, Sum::of_words(addresses), meta);
    let Some((sport, dport)) = taken else { return false };
    meta.tos = head[ipv4::offset::TOS];
    meta.ttl = ttl;
    let key = FlowKey { src, dst, sport, dport, proto };
    finish::<L3>(bytes, key, l4, segment.len(), seed, meta);
    true
}

#[inline(always)]
pub(super) fn ipv6<const L3: usize>(bytes: &[u8], seed: Seed, meta: &mut PacketMeta) -> bool {
    let Some(ip) = bytes.get(L3..) else { return false };
    let Some((head, rest)) = ip.split_first_chunk::<{ ipv6::HEADER_LEN }>() else { return false };
    let len = usize::from(u16_at(head, ipv6::offset::PAYLOAD_LENGTH));
    if head[0] >> 4 != 6 || len > rest.len() {
        return false;
    }
    let (src, dst) =
        (addr6_at(head, ipv6::offset::SOURCE), addr6_at(head, ipv6::offset::DESTINATION));
    let ttl = head[ipv6::offset::HOP_LIMIT];
    // Addresses within ::/64 are rare and nearly all martian: the other parser sorts them out.
    if src.hi == 0 || dst.hi == 0 || src.hi >> 56 == 0xff || src == dst || ttl == 0 {
        return false;
    }
    let proto = head[ipv6::offset::NEXT_HEADER];
    let segment = &rest[..len];
    let l4 = (L3 + ipv6::HEADER_LEN) as u16;
    let addresses = Sum::default().v6(src).v6(dst);
    let taken = transport(segment, l4, proto, addresses, meta);
    let Some((sport, dport)) = taken else { return false };
    meta.tos = (u16_at(head, 0) >> 4) as u8;
    meta.ttl = ttl;
    let key = FlowKey { src, dst, sport, dport, proto };
    finish::<L3>(bytes, key, l4, segment.len(), seed, meta);
    true
}

/// Returns the ports of a TCP or UDP packet whose checksum is not partial.
#[inline(always)]
fn transport(
    segment: &[u8],
    l4: u16,
    proto: u8,
    addresses: Sum,
    meta: &mut PacketMeta,
) -> Option<(u16, u16)> {
    let base = addresses.word(u16::from(proto)).word(segment.len() as u16);
    let field;
    if proto == tcp::PROTOCOL {
        let head = segment.first_chunk::<{ tcp::HEADER_LEN }>()?;
        let header_len = usize::from(head[tcp::offset::DATA_OFFSET] >> 4) * 4;
        let flags = head[tcp::offset::FLAGS];
        field = u16_at(head, tcp::offset::CHECKSUM);
        if header_len < tcp::HEADER_LEN || header_len > segment.len() || !tcp::flags_valid(flags) {
            return None;
        }
        meta.tcp_flags = flags;
        meta.tcp_seq = u32_at(head, tcp::offset::SEQUENCE);
        meta.tcp_ack = u32_at(head, tcp::offset::ACKNOWLEDGMENT);
        meta.payload = l4 + header_len as u16;
    } else if proto == udp::PROTOCOL {
        let head = segment.first_chunk::<{ udp::HEADER_LEN }>()?;
        field = u16_at(head, udp::offset::CHECKSUM);
        if usize::from(u16_at(head, udp::offset::LENGTH)) != segment.len() || field == 0 {
            return None;
        }
        (meta.tcp_flags, meta.tcp_seq, meta.tcp_ack) = (0, 0, 0);
        meta.payload = l4 + udp::HEADER_LEN as u16;
    } else {
        return None;
    }
    if is_partial(field, base) {
        return None;
    }
    Some((u16_at(segment, 0), u16_at(segment, 2)))
}

/// Whether the transport checksum of a packet taken here is right.
#[inline(never)]
pub(super) fn intact(bytes: &[u8], meta: &PacketMeta) -> bool {
    let segment = &bytes[usize::from(meta.l4)..usize::from(meta.end)];
    let key = &meta.key;
    pseudo(key.src, key.dst, key.proto, segment.len() as u16).bytes(segment).verifies()
}

#[inline(always)]
fn finish<const L3: usize>(
    bytes: &[u8],
    key: FlowKey,
    l4: u16,
    segment_len: usize,
    seed: Seed,
    meta: &mut PacketMeta,
) {
    meta.key = key;
    meta.hash = key.hash(seed);
    meta.l3 = L3 as u16;
    meta.l4 = l4;
    meta.end = l4 + segment_len as u16;
    meta.vlan_tci = if L3 > eth::HEADER_LEN { u16_at(bytes, eth::HEADER_LEN) } else { 0 };
    meta.flags = PacketFlags::default();
    meta.direction = Direction::Forward;
}
