//! The Ethernet header of packets that leave.
//!
//! Ports send untagged: VLAN tags of the link a packet came in by mean nothing on another, so they
//! are taken off.

use crate::base::mem::Arena;
use crate::packet::eth::{self, ethertype, offset};
use crate::packet::field::put_u16;
use crate::packet::{Frame, PacketMeta};

/// Takes VLAN tags off: the frame begins later, and `meta`'s offsets follow.
#[inline]
pub fn strip_tags(frame: &mut Frame, arena: &Arena, meta: &mut PacketMeta) {
    if usize::from(meta.l3) > eth::HEADER_LEN {
        strip(frame, arena, meta);
    }
}

#[cold]
fn strip(frame: &mut Frame, arena: &Arena, meta: &mut PacketMeta) {
    let tags = meta.l3 - eth::HEADER_LEN as u16;
    if !frame.pop_front(usize::from(tags)) {
        return;
    }
    for offset in [&mut meta.l3, &mut meta.l4, &mut meta.payload, &mut meta.end] {
        *offset = offset.saturating_sub(tags);
    }
    meta.vlan_tci = 0;
    let kind = if meta.is_v4() { ethertype::IPV4 } else { ethertype::IPV6 };
    put_u16(frame.bytes_mut(arena), offset::ETHERTYPE, kind);
}

/// Writes both MAC addresses.
#[inline]
pub fn set_addresses(bytes: &mut [u8], destination: [u8; 6], source: [u8; 6]) {
    if let Some(header) = bytes.first_chunk_mut::<12>() {
        header[..6].copy_from_slice(&destination);
        header[6..].copy_from_slice(&source);
    }
}

/// Writes the destination: for a packet that has waited for it.
#[inline]
pub fn set_destination(bytes: &mut [u8], destination: [u8; 6]) {
    if let Some(header) = bytes.first_chunk_mut::<6>() {
        *header = destination;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::{Addr, Seed};
    use crate::packet::build::{LinkSpec, UdpSpec, udp_packet};
    use crate::packet::eth::Tag;
    use crate::packet::{FramePool, ParseOptions, parse};

    #[test]
    fn tags_go_and_offsets_follow() {
        for (src, dst) in [("10.0.0.1", "10.0.0.2"), ("2001:db8::1", "2001:db8::2")] {
            let end = |s: &str, port| (s.parse::<Addr>().expect(s), port);
            let mut spec = UdpSpec::new(end(src, 1), end(dst, 2), b"payload");
            let mut plain = udp_packet(&spec);
            set_addresses(&mut plain, [9; 6], [8; 6]);
            let tag = |tpid| Some(Tag { tpid, tci: 0x2007 });
            let vlan = tag(ethertype::VLAN);
            for tags in [[None, None], [vlan, None], [tag(ethertype::SERVICE_VLAN), vlan]] {
                spec.link = LinkSpec { tags, ..LinkSpec::default() };
                let mut pool = FramePool::standalone(1, 2048);
                let mut frame = pool.take_with(&udp_packet(&spec)).expect("stock");
                let arena = pool.arena().clone();
                let mut meta = PacketMeta::default();
                let read = |frame: &Frame, meta: &mut PacketMeta| {
                    parse(frame.bytes(&arena), Seed(1), ParseOptions::default(), meta)
                };
                read(&frame, &mut meta).expect("a good packet");
                strip_tags(&mut frame, &arena, &mut meta);
                set_addresses(frame.bytes_mut(&arena), [7; 6], [8; 6]);
                set_destination(frame.bytes_mut(&arena), [9; 6]);
                assert_eq!(frame.bytes(&arena), plain);
                let mut again = PacketMeta::default();
                read(&frame, &mut again).expect("a good packet");
                let offsets = |m: &PacketMeta| (m.l3, m.l4, m.payload, m.end, m.vlan_tci);
                assert_eq!(offsets(&meta), offsets(&again));
                pool.put(frame);
            }
        }
    }
}
