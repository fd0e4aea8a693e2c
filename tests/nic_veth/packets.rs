//! Test packets, made with etherparse.

use etherparse::PacketBuilder;

pub const SRC_MAC: [u8; 6] = [2, 0, 0, 0, 0, 1];
pub const DST_MAC: [u8; 6] = [2, 0, 0, 0, 0, 2];

/// Writes what a builder has begun.
macro_rules! finish {
    ($builder:expr) => {{
        let mut bytes = Vec::new();
        $builder.write(&mut bytes, &[0u8; 18]).expect("a packet");
        bytes
    }};
}

/// Equal, without printing hundreds of packets where not.
#[track_caller]
pub fn same(got: &[Vec<u8>], wanted: &[Vec<u8>]) {
    let differ = got.iter().zip(wanted).position(|(g, w)| g != w);
    let (g, w) = (got.len(), wanted.len());
    assert!(g == w && differ.is_none(), "{g} packets of {w}, first difference: {differ:?}");
}

/// A frame of `len` bytes, longer than its packet.
pub fn padded(mut frame: Vec<u8>, len: usize) -> Vec<u8> {
    frame.resize(len, 0);
    frame
}

pub type V4 = ([u8; 4], u16);

pub fn udp(src: V4, dst: V4) -> Vec<u8> {
    finish!(PacketBuilder::ethernet2(SRC_MAC, DST_MAC).ipv4(src.0, dst.0, 64).udp(src.1, dst.1))
}

pub fn udp_broadcast(src: V4, dst: V4) -> Vec<u8> {
    finish!(PacketBuilder::ethernet2(SRC_MAC, [0xff; 6]).ipv4(src.0, dst.0, 64).udp(src.1, dst.1))
}

pub fn tcp(src: V4, dst: V4) -> Vec<u8> {
    finish!(
        PacketBuilder::ethernet2(SRC_MAC, DST_MAC)
            .ipv4(src.0, dst.0, 64)
            .tcp(src.1, dst.1, 1, 1000)
    )
}

pub fn tcp6(src: ([u8; 16], u16), dst: ([u8; 16], u16)) -> Vec<u8> {
    finish!(
        PacketBuilder::ethernet2(SRC_MAC, DST_MAC)
            .ipv6(src.0, dst.0, 64)
            .tcp(src.1, dst.1, 1, 1000)
    )
}

pub fn ping(src: [u8; 4], dst: [u8; 4]) -> Vec<u8> {
    finish!(PacketBuilder::ethernet2(SRC_MAC, DST_MAC).ipv4(src, dst, 64).icmpv4_echo_request(7, 1))
}

/// Neighbour solicitation for an address, sent to it by unicast.
pub fn solicitation(dst: [u8; 16]) -> Vec<u8> {
    finish!(
        PacketBuilder::ethernet2(SRC_MAC, DST_MAC)
            .ipv6([0x20; 16], dst, 255)
            .icmpv6_raw(135, 0, [0; 4])
    )
}

/// Puts VLAN tags of these EtherTypes behind the addresses.
pub fn tagged(mut packet: Vec<u8>, types: &[u16]) -> Vec<u8> {
    for kind in types.iter().rev() {
        let tag = [kind.to_be_bytes(), 5u16.to_be_bytes()].concat();
        packet.splice(12..12, tag);
    }
    packet
}

/// Makes an untagged IPv4 packet a fragment at `offset` (units of 8 bytes).
pub fn fragment(mut packet: Vec<u8>, offset: u16) -> Vec<u8> {
    packet[20..22].copy_from_slice(&(offset | 0x2000).to_be_bytes());
    packet
}

/// Inserts an extension header of 8 bytes into an untagged IPv6 packet.
pub fn extended(mut packet: Vec<u8>, kind: u8, body: [u8; 7]) -> Vec<u8> {
    let next = packet[20];
    packet[20] = kind;
    let len = u16::from_be_bytes([packet[18], packet[19]]) + 8;
    packet[18..20].copy_from_slice(&len.to_be_bytes());
    let mut header = vec![next];
    header.extend(body);
    packet.splice(54..54, header);
    packet
}

/// Bytes that differ from packet to packet.
pub fn noise(len: usize, seed: u64) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = || {
        // xorshift64 (Marsaglia 2003)
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state as u8
    };
    (0..len).map(|_| next()).collect()
}
