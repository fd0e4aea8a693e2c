//! Changes to packets of either IP version, on their way: the code point, and a segment that
//! becomes a reset.

use crate::base::mem::Arena;
use crate::packet::checksum::{Sum, pseudo, update16};
use crate::packet::field::{put_u16, put_u32, u16_at};
use crate::packet::{Frame, PacketFlags, PacketMeta, ipv4, ipv6, tcp};

/// Congestion notification, beside the code point (RFC 3168, section 5).
const ECN: u8 = 0b11;
/// The traffic class lies across the first two bytes of an IPv6 header (RFC 8200, section 3).
const CLASS_SHIFT: u32 = 4;

/// Gives a packet another code point (RFC 2474); what it says of congestion stays. Nothing happens
/// where `meta`'s offsets leave the packet.
#[inline]
pub fn set_dscp(bytes: &mut [u8], meta: &mut PacketMeta, dscp: u8) {
    let tos = dscp << 2 | meta.tos & ECN;
    if tos == meta.tos {
        return;
    }
    let Some(ip) = bytes.get_mut(usize::from(meta.l3)..) else { return };
    let Some(ip) = ip.first_chunk_mut::<{ ipv4::HEADER_LEN }>() else { return };
    let before = u16_at(ip, 0);
    if meta.is_v4() {
        ip[ipv4::offset::TOS] = tos;
        let (check, after) = (u16_at(ip, ipv4::offset::CHECKSUM), u16_at(ip, 0));
        put_u16(ip, ipv4::offset::CHECKSUM, update16(check, before, after));
    } else {
        let class = u16::from(tos) << CLASS_SHIFT;
        put_u16(ip, 0, before & !(0xff << CLASS_SHIFT) | class);
    }
    meta.tos = tos;
}

/// As [`set_dscp`], for what rules and meters say: the code point by which rules decide stays
/// known.
pub fn mark(bytes: &mut [u8], meta: &mut PacketMeta, dscp: u8) {
    if !meta.flags.has(PacketFlags::MARKED) {
        meta.flags.set(PacketFlags::MARKED);
        meta.marked_from = meta.dscp();
    }
    set_dscp(bytes, meta, dscp);
}

/// Makes a TCP segment one that resets the connection where it was to be received: its payload and
/// options go, its numbers stay (RFC 9293, section 3.10.7.4). `false`, changing nothing, where
/// `meta`'s offsets leave the packet.
pub fn make_reset(frame: &mut Frame, arena: &Arena, meta: &mut PacketMeta) -> bool {
    let (l3, l4) = (usize::from(meta.l3), usize::from(meta.l4));
    let end = l4 + tcp::HEADER_LEN;
    if end > frame.len() || end > usize::from(meta.end) || l3 + ipv4::HEADER_LEN > l4 {
        return false;
    }
    frame.truncate(end);
    let (head, segment) = frame.bytes_mut(arena).split_at_mut(l4);
    let ip = &mut head[l3..];
    if meta.is_v4() {
        put_u16(ip, ipv4::offset::TOTAL_LENGTH, (end - l3) as u16);
        put_u16(ip, ipv4::offset::CHECKSUM, 0);
        let check = Sum::of(ip).checksum();
        put_u16(ip, ipv4::offset::CHECKSUM, check);
    } else {
        put_u16(ip, ipv6::offset::PAYLOAD_LENGTH, (end - l3 - ipv6::HEADER_LEN) as u16);
    }
    meta.tcp_flags = tcp::flag::RST | tcp::flag::ACK;
    segment[tcp::offset::DATA_OFFSET] = (tcp::HEADER_LEN as u8 / 4) << 4;
    segment[tcp::offset::FLAGS] = meta.tcp_flags;
    // Window, checksum and urgent pointer.
    put_u16(segment, tcp::offset::WINDOW, 0);
    put_u32(segment, tcp::offset::CHECKSUM, 0);
    let key = &meta.key;
    let sum = pseudo(key.src, key.dst, tcp::PROTOCOL, tcp::HEADER_LEN as u16).bytes(segment);
    put_u16(segment, tcp::offset::CHECKSUM, sum.checksum());
    (meta.payload, meta.end) = (end as u16, end as u16);
    meta.flags.clear(PacketFlags::PARTIAL_CHECKSUM);
    true
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::Seed;
    use crate::packet::build::{LinkSpec, TcpSpec, tcp_packet};
    use crate::packet::frame::FramePool;
    use crate::packet::{ParseOptions, parse};

    fn read(bytes: &[u8]) -> PacketMeta {
        let mut meta = PacketMeta::default();
        let options = ParseOptions { verify_transport_checksum: true };
        parse(bytes, Seed(1), options, &mut meta).expect("a packet as any host sends");
        meta
    }

    fn spec(v4: bool) -> TcpSpec {
        let (a, b) = if v4 { ("10.0.0.1", "10.0.0.2") } else { ("fd00::1", "fd00::2") };
        let end = |text: &str, port| (text.parse().expect("an address"), port);
        let mut spec = TcpSpec::new(end(a, 1), end(b, 2), tcp::flag::ACK, b"GET / HTTP/1.1\r\n");
        (spec.seq, spec.ack, spec.ip.tos) = (7_000, 9_000, 0b0010_1001);
        spec.link = LinkSpec::vlan(7);
        spec
    }

    #[test]
    fn code_points_change_and_congestion_bits_stay() {
        for v4 in [true, false] {
            for dscp in [0, 10, 46, 63] {
                let mut bytes = tcp_packet(&spec(v4));
                let mut meta = read(&bytes);
                set_dscp(&mut bytes, &mut meta, dscp);
                let mut want = spec(v4);
                want.ip.tos = dscp << 2 | 0b01;
                assert_eq!(bytes, tcp_packet(&want), "{dscp}");
                assert_eq!(meta, read(&bytes));
            }
        }
    }

    #[test]
    fn a_segment_becomes_a_reset_of_the_same_numbers() {
        for v4 in [true, false] {
            let mut pool = FramePool::standalone(1, 2048);
            let arena = pool.arena().clone();
            let mut frame = pool.take_with(&tcp_packet(&spec(v4))).expect("room");
            let mut meta = read(frame.bytes(&arena));
            assert!(make_reset(&mut frame, &arena, &mut meta));
            let again = read(frame.bytes(&arena));
            assert_eq!(meta, again);
            assert_eq!((again.tcp_seq, again.tcp_ack), (7_000, 9_000));
            assert_eq!(
                (again.tcp_flags, again.payload_len()),
                (tcp::flag::RST | tcp::flag::ACK, 0)
            );
            pool.put(frame);
        }
    }
}
