//! The packets that are sent: one template a flow.

use std::net::{IpAddr, SocketAddr};

use crate::base::Nanos;

/// Marks a payload that carries a time.
const STAMP_MAGIC: [u8; 4] = *b"TGpg";
/// Bytes of payload for the mark and the time.
pub(super) const LATENCY_SIZE_MIN: usize = 12;
const ETH: usize = 14;
const UDP: usize = 8;
const PORTS: u32 = u16::MAX as u32 + 1;

/// Shortest frame to an address.
pub(super) fn size_min(dst: SocketAddr) -> usize {
    ETH + ip_len(dst.ip()) + UDP
}

fn ip_len(ip: IpAddr) -> usize {
    if ip.is_ipv4() { 20 } else { 40 }
}

/// Frames of all flows, back to back, sent in turn.
pub(super) struct FlowSet {
    templates: Vec<u8>,
    size: usize,
    /// Where the UDP header begins.
    l4: usize,
    next: usize,
}

impl FlowSet {
    /// `size` is at least [`size_min`].
    pub(super) fn new(
        macs: [[u8; 6]; 2],
        src: SocketAddr,
        dst: SocketAddr,
        flows: u32,
        size: usize,
    ) -> FlowSet {
        let mut templates = Vec::with_capacity(flows as usize * size);
        for i in 0..flows {
            let port = u32::from(src.port()) + i;
            let src = SocketAddr::new(add(src.ip(), port / PORTS), (port % PORTS) as u16);
            push_frame(&mut templates, macs, src, dst, size);
        }
        FlowSet { templates, size, l4: ETH + ip_len(dst.ip()), next: 0 }
    }

    /// Bytes of a frame.
    pub(super) fn size(&self) -> usize {
        self.size
    }

    /// Writes the next flow's frame, with this time in it if asked for.
    pub(super) fn write_next(&mut self, to: &mut [u8], stamp: Option<Nanos>) {
        let from = self.next;
        to.copy_from_slice(&self.templates[from..from + self.size]);
        self.next = if from + self.size == self.templates.len() { 0 } else { from + self.size };
        if let Some(at) = stamp {
            let payload = self.l4 + UDP;
            to[payload..payload + 4].copy_from_slice(&STAMP_MAGIC);
            to[payload + 4..payload + 12].copy_from_slice(&at.0.to_be_bytes());
            // The payload was all zeroes: its sum is what was written.
            let sum = sum(&to[payload..payload + 12]);
            let old = u16::from_be_bytes([to[self.l4 + 6], to[self.l4 + 7]]);
            let new = udp_checksum(u64::from(!old) + sum);
            to[self.l4 + 6..self.l4 + 8].copy_from_slice(&new);
        }
    }
}

/// The time that a received frame carries: found by its mark, since an encapsulation or VLAN tag
/// may have moved it.
pub(super) fn parse_stamp(frame: &[u8]) -> Option<Nanos> {
    const WHERE: [usize; 4] = [ETH + 20 + UDP, ETH + 40 + UDP, ETH + 24 + UDP, ETH + 44 + UDP];
    WHERE.iter().find_map(|&at| {
        let payload = frame.get(at..at + LATENCY_SIZE_MIN)?;
        let stamp = payload.strip_prefix(&STAMP_MAGIC)?.first_chunk::<8>()?;
        Some(Nanos(u64::from_be_bytes(*stamp)))
    })
}

fn add(ip: IpAddr, n: u32) -> IpAddr {
    match ip {
        IpAddr::V4(a) => IpAddr::V4(u32::from(a).wrapping_add(n).into()),
        IpAddr::V6(a) => IpAddr::V6(u128::from(a).wrapping_add(n.into()).into()),
    }
}

fn push_frame(
    out: &mut Vec<u8>,
    [src_mac, dst_mac]: [[u8; 6]; 2],
    src: SocketAddr,
    dst: SocketAddr,
    size: usize,
) {
    let begin = out.len();
    out.extend_from_slice(&dst_mac);
    out.extend_from_slice(&src_mac);
    let udp_len = ((size - ETH - ip_len(dst.ip())) as u16).to_be_bytes();
    let mut sum_of = Vec::with_capacity(36); // the pseudo-header
    match (src.ip(), dst.ip()) {
        (IpAddr::V4(s), IpAddr::V4(d)) => {
            let total = ((size - ETH) as u16).to_be_bytes();
            out.extend_from_slice(&[8, 0, 0x45, 0, total[0], total[1], 0, 0, 0x40, 0, 64, 17]);
            sum_of.extend([s.octets(), d.octets()].concat());
            let header = &out[begin + ETH..];
            let checksum = !fold(sum(header) + sum(&sum_of));
            out.extend_from_slice(&checksum.to_be_bytes());
        }
        (s, d) => {
            out.extend_from_slice(&[0x86, 0xdd, 0x60, 0, 0, 0, udp_len[0], udp_len[1], 17, 64]);
            sum_of.extend([to_v6(s), to_v6(d)].concat());
        }
    }
    out.extend_from_slice(&sum_of);
    sum_of.extend([0, 17, udp_len[0], udp_len[1]]);
    let udp = [src.port().to_be_bytes(), dst.port().to_be_bytes(), udp_len].concat();
    out.extend_from_slice(&udp);
    out.extend_from_slice(&udp_checksum(sum(&sum_of) + sum(&udp)));
    out.resize(begin + size, 0);
}

fn to_v6(ip: IpAddr) -> [u8; 16] {
    match ip {
        IpAddr::V4(a) => a.to_ipv6_mapped().octets(),
        IpAddr::V6(a) => a.octets(),
    }
}

/// Ones' complement sum (RFC 1071) before folding.
fn sum(bytes: &[u8]) -> u64 {
    bytes.chunks(2).map(|w| u64::from(w[0]) << 8 | u64::from(*w.get(1).unwrap_or(&0))).sum()
}

fn fold(mut sum: u64) -> u16 {
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    sum as u16
}

/// A UDP checksum of zero would mean that there is none (RFC 768).
fn udp_checksum(sum: u64) -> [u8; 2] {
    match !fold(sum) {
        0 => [0xff, 0xff],
        c => c.to_be_bytes(),
    }
}

#[cfg(test)]
mod tests {
    use etherparse::{NetSlice, SlicedPacket, TransportSlice};

    use super::*;

    /// Parses a frame, checks all its checksums and lengths, and returns its source.
    fn check(frame: &[u8]) -> SocketAddr {
        let p = SlicedPacket::from_ethernet(frame).expect("well-formed");
        let Some(TransportSlice::Udp(udp)) = p.transport else { panic!("no UDP") };
        let header = udp.to_header();
        let (ip, wanted): (IpAddr, u16) = match p.net.expect("IP") {
            NetSlice::Ipv4(v4) => {
                let ip = v4.header().to_header();
                assert_eq!(ip.header_checksum, ip.calc_header_checksum());
                let sum = header.calc_checksum_ipv4_raw(ip.source, ip.destination, udp.payload());
                (ip.source.into(), sum.expect("length"))
            }
            NetSlice::Ipv6(v6) => {
                let ip = v6.header().to_header();
                let sum = header.calc_checksum_ipv6_raw(ip.source, ip.destination, udp.payload());
                (ip.source.into(), sum.expect("length"))
            }
            NetSlice::Arp(_) => panic!("ARP"),
        };
        assert_eq!(header.checksum, wanted);
        SocketAddr::new(ip, header.source_port)
    }

    #[test]
    fn frames_are_correct_and_flows_differ() {
        for (src, dst, size) in [
            ("198.18.0.1:65534", "203.0.113.1:443", 60),
            ("198.18.0.1:65534", "203.0.113.1:443", 1514),
            ("[2001:2::1]:65534", "[2001:db8::1]:443", 75),
        ] {
            let (src, dst) = (src.parse().expect("literal"), dst.parse().expect("literal"));
            let mut set = FlowSet::new([[2; 6], [4; 6]], src, dst, 3, size);
            let mut frame = vec![0xaa; size];
            let mut sources = Vec::new();
            for stamp in [None, Some(Nanos(0x0123_4567_89ab_cdef)), Some(Nanos(5)), None] {
                set.write_next(&mut frame, stamp);
                sources.push(check(&frame));
                assert_eq!(parse_stamp(&frame), stamp);
            }
            assert_eq!(sources[0], src);
            assert_eq!(sources[2].port(), 0, "ports wrap into the next address");
            assert_eq!(sources[2].ip(), add(src.ip(), 1));
            assert_eq!(sources[3], sources[0]);
        }
    }

    #[test]
    fn no_frame_cut_short_has_a_stamp() {
        let (src, dst) = ("10.0.0.1:1".parse().expect("a"), "10.0.0.2:2".parse().expect("a"));
        let mut set = FlowSet::new([[2; 6], [4; 6]], src, dst, 1, 60);
        let mut frame = vec![0; 60];
        set.write_next(&mut frame, Some(Nanos(7)));
        for len in 0..54 {
            assert_eq!(parse_stamp(&frame[..len]), None);
        }
    }
}
