//! Segments that are made here: what the state machine wants sent, and how it is written.

use super::held::Held;
use super::options::{OptionBytes, TIMESTAMPS_LEN};
use crate::base::Addr;
use crate::packet::eth::ethertype;
use crate::packet::field::put_u16;
use crate::packet::{FlowKey, eth, ipv4, ipv6, tcp};

/// Segments that one step makes at most: the backend's first flight (RFC 6928) and an answer.
pub const SEGMENTS_MAX: usize = 12;
/// TTL and hop limit.
const TTL: u8 = 64;

/// To which of the two ends.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Toward {
    #[default]
    Client,
    Backend,
}

/// A segment to be sent. Its ends are known to whoever sends it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Segment {
    pub toward: Toward,
    pub sequence: u32,
    pub acknowledgment: u32,
    /// Of [`tcp::flag`].
    pub flags: u8,
    pub window: u16,
    pub options: OptionBytes,
    /// Payload: offset into the held stream, and bytes.
    pub payload: (u32, u16),
    /// Payload of our own, in place of the held stream's.
    pub greeting: &'static [u8],
}

/// What one step of the state machine wants sent.
#[derive(Debug)]
pub struct Out {
    segments: [Segment; SEGMENTS_MAX],
    len: usize,
    room: usize,
}

impl Out {
    /// Takes `room` segments, [`SEGMENTS_MAX`] at most.
    pub fn new(room: usize) -> Out {
        let segments = [Segment::default(); SEGMENTS_MAX];
        Out { segments, len: 0, room: room.min(SEGMENTS_MAX) }
    }

    /// `false` where there is no room: it is as if the segment was lost on its way.
    pub fn push(&mut self, segment: Segment) -> bool {
        let fits = self.len < self.room;
        if fits {
            self.segments[self.len] = segment;
            self.len += 1;
        }
        fits
    }

    pub fn room(&self) -> usize {
        self.room - self.len
    }

    pub fn segments(&self) -> &[Segment] {
        &self.segments[..self.len]
    }
}

/// Ethernet and IP header, and a TCP header with timestamps.
pub fn headers_len(v4: bool) -> usize {
    eth::HEADER_LEN + ip_len(v4) + tcp::HEADER_LEN + TIMESTAMPS_LEN
}

fn ip_len(v4: bool) -> usize {
    if v4 { ipv4::HEADER_LEN } else { ipv6::HEADER_LEN }
}

impl Segment {
    /// Bytes of the whole frame between ends of a family.
    pub fn frame_len(&self, v4: bool) -> usize {
        let tcp = tcp::HEADER_LEN + self.options.as_slice().len();
        let payload = self.greeting.len() + usize::from(self.payload.1);
        eth::HEADER_LEN + ip_len(v4) + tcp + payload
    }

    /// Writes the whole frame but its MAC addresses to `out`, which has
    /// [`Segment::frame_len`] bytes. `key` is as the packet is to leave, `tos` its DSCP and ECN.
    ///
    /// # Panics
    /// Where `out` is shorter.
    pub fn write(&self, out: &mut [u8], key: &FlowKey, tos: u8, held: Option<(&Held, usize)>) {
        let v4 = key.dst.is_v4();
        let kind = if v4 { ethertype::IPV4 } else { ethertype::IPV6 };
        put_u16(out, eth::offset::ETHERTYPE, kind);
        let (ip, segment) = out[eth::HEADER_LEN..].split_at_mut(ip_len(v4));
        write_ip(ip, key.src, key.dst, tos, segment.len() as u16);
        let header = tcp::HEADER_LEN + self.options.as_slice().len();
        if !self.greeting.is_empty() {
            segment[header..].copy_from_slice(self.greeting);
        } else if let Some((held, slot)) = held {
            held.copy(slot, self.payload.0, &mut segment[header..]);
        }
        let header = tcp::Repr {
            source_port: key.sport,
            destination_port: key.dport,
            sequence: self.sequence,
            acknowledgment: self.acknowledgment,
            flags: self.flags,
            window: self.window,
            urgent: 0,
            options: self.options.as_slice(),
        };
        header.emit(segment, key.src, key.dst);
    }
}

fn write_ip(ip: &mut [u8], source: Addr, destination: Addr, tos: u8, payload_len: u16) {
    if destination.is_v4() {
        let header = ipv4::Repr {
            tos,
            payload_len,
            // Atomic datagrams need no identification (RFC 6864, section 4.1).
            identification: 0,
            fragment: ipv4::DONT_FRAGMENT,
            ttl: TTL,
            protocol: tcp::PROTOCOL,
            source,
            destination,
            options: &[],
        };
        header.emit(ip);
    } else {
        let header = ipv6::Repr {
            traffic_class: tos,
            flow_label: 0,
            payload_len,
            next_header: tcp::PROTOCOL,
            hop_limit: TTL,
            source,
            destination,
        };
        header.emit(ip);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::Seed;
    use crate::forward::splice::options::Stamps;
    use crate::packet::build::{LinkSpec, TcpSpec, tcp_packet};
    use crate::packet::{PacketMeta, ParseOptions, parse};

    #[test]
    fn segments_are_whole_packets() {
        let mut held = Held::new(1, 4);
        let data: Vec<u8> = (0..3_000u32).map(|i| i as u8).collect();
        held.put(0, 0, &data, u32::MAX);
        for (src, dst) in [("10.0.0.1", "10.0.0.2"), ("2001:db8::1", "2001:db8::2")] {
            let end = |s: &str, port| (s.parse::<Addr>().expect(s), port);
            let (src, dst) = (end(src, 1_000), end(dst, 443));
            let options = OptionBytes::of_segment(Some(Stamps { value: 7, echo: 8 }));
            let segment = Segment {
                toward: Toward::Backend,
                sequence: 0x0102_0304,
                acknowledgment: 0x0506_0708,
                flags: tcp::flag::ACK | tcp::flag::PSH,
                window: 500,
                options,
                payload: (1_900, 1_001),
                greeting: &[],
            };
            let key = FlowKey {
                src: src.0,
                dst: dst.0,
                sport: src.1,
                dport: dst.1,
                proto: tcp::PROTOCOL,
            };
            let mut out = vec![0xaa; segment.frame_len(key.dst.is_v4())];
            out[..12].fill(0);
            segment.write(&mut out, &key, 0x28, Some((&held, 0)));
            let mut want = TcpSpec::new(src, dst, segment.flags, &data[1_900..2_901]);
            want.link = LinkSpec { destination: [0; 6], source: [0; 6], ..LinkSpec::default() };
            (want.seq, want.ack) = (segment.sequence, segment.acknowledgment);
            (want.window, want.ip.tos) = (500, 0x28);
            want.options = options.as_slice().to_vec();
            assert_eq!(out, tcp_packet(&want));
            let mut meta = PacketMeta::default();
            let options = ParseOptions { verify_transport_checksum: true };
            parse(&out, Seed(1), options, &mut meta).expect("a good packet");
            assert_eq!(out.len(), headers_len(key.dst.is_v4()) + 1_001);
            let ours = Segment { greeting: b"welcome", payload: (0, 0), ..segment };
            let mut out = vec![0; ours.frame_len(key.dst.is_v4())];
            ours.write(&mut out, &key, 0x28, Some((&held, 0)));
            want.payload = b"welcome".to_vec();
            assert_eq!(out, tcp_packet(&want));
        }
    }

    #[test]
    fn what_has_no_room_is_not_sent() {
        let mut out = Out::new(1);
        assert!(out.push(Segment::default()));
        assert!(!out.push(Segment::default()));
        assert_eq!((out.segments().len(), out.room()), (1, 0));
        assert_eq!(Out::new(1_000).room(), SEGMENTS_MAX);
    }
}
