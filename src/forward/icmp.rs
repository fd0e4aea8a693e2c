//! ICMP errors about packets that can't go on, and how many of them are sent.
//!
//! RFC 792 and RFC 1812 (section 4.3.2) for IPv4, RFC 4443 (section 2.4 and 3) for IPv6.

use crate::base::{Addr, Nanos};
use crate::packet::meta::PacketFlags;
use crate::packet::{PacketMeta, eth, icmp, ipv4, ipv6, scope};

/// Errors a second of one worker (Linux: `net.ipv4.icmp_msgs_per_sec`).
pub const ERRORS_PER_SECOND: u64 = 1000;
/// Errors at once (Linux: `net.ipv4.icmp_msgs_burst`).
pub const ERRORS_BURST: u64 = 50;

/// Longest IP packet of an IPv4 error (RFC 1812, 4.3.2.3).
const LEN_MAX_V4: usize = 576;
/// Longest IP packet of an IPv6 error: the minimum MTU (RFC 4443, 2.4 (c)).
const LEN_MAX_V6: usize = 1280;
/// Longest frame that [`emit`] writes: two VLAN tags and an IPv6 error.
pub const FRAME_LEN_MAX: usize = eth::HEADER_LEN + eth::TAGS_MAX * eth::TAG_LEN + LEN_MAX_V6;

const TTL: u8 = 64;
/// Internetwork control (RFC 1812, 4.3.2.5).
const PRECEDENCE: u8 = 0xc0;

/// What is wrong with the packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum IcmpError {
    /// TTL or hop limit used up in transit.
    TimeExceeded,
    /// Larger than the next link takes: "fragmentation needed" or "packet too big".
    TooBig { mtu: u16 },
    /// The destination can't be reached.
    Unreachable(Unreachable),
}

/// Why a destination can't be reached, as far as senders are told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unreachable {
    /// There is no route.
    Network,
    /// An unreachable route.
    Host,
    /// A prohibit route.
    Prohibited,
}

/// Whether an error may be sent about a packet (RFC 1812, 4.3.2.7; RFC 4443, 2.4 (e)): never about
/// another error, a later fragment, or what was not sent by one host to one.
pub fn may_answer(bytes: &[u8], meta: &PacketMeta) -> bool {
    let silent = meta.flags.has(PacketFlags::ICMP_ERROR)
        || meta.flags.has(PacketFlags::LATER_FRAGMENT)
        || is_group_mac(bytes, eth::offset::DESTINATION)
        || is_group_mac(bytes, eth::offset::SOURCE)
        || scope::is_martian_source(meta.key.src)
        || scope::is_martian_destination(meta.key.dst)
        || scope::is_multicast(meta.key.dst);
    !silent && usize::from(meta.l3) < usize::from(meta.end) && usize::from(meta.end) <= bytes.len()
}

/// Length of the frame that [`emit`] writes about a packet that [`may_answer`] allows.
pub fn frame_len(meta: &PacketMeta) -> usize {
    usize::from(meta.l3) + header_len(meta) + quote_len(meta)
}

/// Writes a whole frame to `out`, which has [`frame_len`] bytes: back over the link that the packet
/// came from, tags and all, to the neighbour that sent it. `packet` is as it was received.
///
/// # Panics
/// Where [`may_answer`] was not asked first, or `out` is shorter.
pub fn emit(out: &mut [u8], packet: &[u8], meta: &PacketMeta, error: IcmpError, from: Addr) {
    let (l3, end) = (usize::from(meta.l3), usize::from(meta.end));
    out[..l3].copy_from_slice(&packet[..l3]);
    out[..6].copy_from_slice(&packet[6..12]);
    out[6..12].copy_from_slice(&packet[..6]);
    let headers = header_len(meta);
    let quote = &packet[l3..end][..quote_len(meta)];
    let ip = &mut out[l3..l3 + headers + quote.len()];
    ip[headers..].copy_from_slice(quote);
    headers_before(ip, from, meta.key.src, error);
}

/// Writes the headers of an error before what `ip` holds behind them already.
pub(super) fn headers_before(ip: &mut [u8], source: Addr, destination: Addr, error: IcmpError) {
    let ip_len = if source.is_v4() { ipv4::HEADER_LEN } else { ipv6::HEADER_LEN };
    let payload_len = (ip.len() - ip_len) as u16;
    if source.is_v4() {
        let header = ipv4::Repr {
            tos: PRECEDENCE,
            payload_len,
            identification: 0,
            // Atomic datagrams need no identification (RFC 6864, section 4.1).
            fragment: ipv4::DONT_FRAGMENT,
            ttl: TTL,
            protocol: icmp::PROTOCOL,
            source,
            destination,
            options: &[],
        };
        header.emit(ip);
        message_v4(error).emit(&mut ip[ip_len..], source, destination);
    } else {
        let header = ipv6::Repr {
            traffic_class: PRECEDENCE,
            flow_label: 0,
            payload_len,
            next_header: icmp::PROTOCOL_V6,
            hop_limit: TTL,
            source,
            destination,
        };
        header.emit(ip);
        message_v6(error).emit(&mut ip[ip_len..], source, destination);
    }
}

/// Longest IP packet of an error.
pub(super) const fn len_max(v4: bool) -> usize {
    if v4 { LEN_MAX_V4 } else { LEN_MAX_V6 }
}

/// RFC 792; the MTU as RFC 1191, section 4 has it.
fn message_v4(error: IcmpError) -> icmp::Repr {
    const IN_TRANSIT: u8 = 0;
    const FRAGMENTATION_NEEDED: u8 = 4;
    match error {
        IcmpError::TimeExceeded => {
            icmp::Repr { kind: icmp::kind::TIME_EXCEEDED, code: IN_TRANSIT, rest: 0 }
        }
        IcmpError::TooBig { mtu } => icmp::Repr {
            kind: icmp::kind::UNREACHABLE,
            code: FRAGMENTATION_NEEDED,
            rest: u32::from(mtu),
        },
        IcmpError::Unreachable(why) => {
            // RFC 1812, 5.2.7.1.
            let code = match why {
                Unreachable::Network => 0,
                Unreachable::Host => 1,
                Unreachable::Prohibited => 13,
            };
            icmp::Repr { kind: icmp::kind::UNREACHABLE, code, rest: 0 }
        }
    }
}

/// RFC 4443, sections 3.1 to 3.3.
fn message_v6(error: IcmpError) -> icmp::Repr {
    match error {
        IcmpError::TimeExceeded => {
            icmp::Repr { kind: icmp::kind_v6::TIME_EXCEEDED, code: 0, rest: 0 }
        }
        IcmpError::TooBig { mtu } => {
            icmp::Repr { kind: icmp::kind_v6::PACKET_TOO_BIG, code: 0, rest: u32::from(mtu) }
        }
        IcmpError::Unreachable(why) => {
            let code = match why {
                Unreachable::Network => 0,
                Unreachable::Prohibited => 1,
                Unreachable::Host => 3,
            };
            icmp::Repr { kind: icmp::kind_v6::UNREACHABLE, code, rest: 0 }
        }
    }
}

fn header_len(meta: &PacketMeta) -> usize {
    icmp::HEADER_LEN + if meta.is_v4() { ipv4::HEADER_LEN } else { ipv6::HEADER_LEN }
}

/// As much of the packet as the error's own length allows.
fn quote_len(meta: &PacketMeta) -> usize {
    let room = len_max(meta.is_v4()) - header_len(meta);
    usize::from(meta.end.saturating_sub(meta.l3)).min(room)
}

fn is_group_mac(bytes: &[u8], at: usize) -> bool {
    bytes.get(at).is_none_or(|b| b & 1 != 0)
}

/// A token bucket over all ICMP errors of one worker (RFC 1812, 4.3.2.8; RFC 4443, 2.4 (f)).
#[derive(Clone, Debug)]
pub struct IcmpLimiter {
    /// Nanoseconds' worth of tokens.
    credit: u64,
    last: Nanos,
}

impl IcmpLimiter {
    const COST: u64 = 1_000_000_000 / ERRORS_PER_SECOND;
    const CREDIT_MAX: u64 = ERRORS_BURST * IcmpLimiter::COST;

    /// Full.
    pub fn new() -> IcmpLimiter {
        IcmpLimiter { credit: IcmpLimiter::CREDIT_MAX, last: Nanos::ZERO }
    }

    /// Takes a token. `false`: there is none.
    pub fn allow(&mut self, now: Nanos) -> bool {
        let earned = self.credit.saturating_add(now.since(self.last));
        self.credit = earned.min(IcmpLimiter::CREDIT_MAX);
        self.last = self.last.max(now);
        match self.credit.checked_sub(IcmpLimiter::COST) {
            Some(rest) => {
                self.credit = rest;
                true
            }
            None => false,
        }
    }
}

impl Default for IcmpLimiter {
    fn default() -> IcmpLimiter {
        IcmpLimiter::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::Seed;
    use crate::packet::build::{
        IcmpSpec, IpSpec, LinkSpec, TcpSpec, UdpSpec, icmp_packet, tcp_packet, udp_packet,
    };
    use crate::packet::{ParseOptions, parse, tcp};

    fn addr(s: &str) -> Addr {
        s.parse().expect(s)
    }

    fn parsed(bytes: &[u8]) -> PacketMeta {
        let mut meta = PacketMeta::default();
        let options = ParseOptions { verify_transport_checksum: true };
        parse(bytes, Seed(1), options, &mut meta).expect("a good packet");
        meta
    }

    fn answer(packet: &[u8], error: IcmpError, from: &str) -> Vec<u8> {
        let meta = parsed(packet);
        assert!(may_answer(packet, &meta));
        let mut out = vec![0xaa; frame_len(&meta)];
        emit(&mut out, packet, &meta, error, addr(from));
        out
    }

    /// What the answer must be, from its quotation and header words.
    fn expected(packet: &[u8], from: &str, quote: usize, message: (u8, u8, u32)) -> Vec<u8> {
        let meta = parsed(packet);
        let l3 = usize::from(meta.l3);
        let mut ip = IpSpec::new(addr(from), meta.key.src);
        ip.tos = 0xc0;
        let mut link = LinkSpec { destination: [2, 0, 0, 0, 0, 2], ..LinkSpec::default() };
        link.source = [2, 0, 0, 0, 0, 1];
        link.tags = eth::Repr::parse(packet).expect("header").tags;
        let (kind, code, rest) = message;
        let payload = packet[l3..l3 + quote].to_vec();
        icmp_packet(&IcmpSpec { link, ip, kind, code, rest, payload })
    }

    #[test]
    fn time_exceeded_quotes_a_small_packet_whole() {
        let spec =
            TcpSpec::new((addr("10.0.0.2"), 1), (addr("10.9.0.1"), 2), tcp::flag::SYN, b"abc");
        let packet = tcp_packet(&spec);
        let got = answer(&packet, IcmpError::TimeExceeded, "10.0.0.1");
        assert_eq!(got, expected(&packet, "10.0.0.1", 43, (11, 0, 0)));
        assert!(parsed(&got).flags.has(PacketFlags::ICMP_ERROR));
    }

    #[test]
    fn errors_stay_within_their_length() {
        let v4 = UdpSpec::new((addr("10.0.0.2"), 1), (addr("10.9.0.1"), 2), &[7; 1400]);
        let packet = udp_packet(&v4);
        let got = answer(&packet, IcmpError::TooBig { mtu: 1280 }, "10.0.0.1");
        assert_eq!(got, expected(&packet, "10.0.0.1", 548, (3, 4, 1280)));
        assert_eq!(got.len(), 14 + 576);

        let src = (addr("2001:db8::2"), 1);
        let mut v6 = UdpSpec::new(src, (addr("2001:db8:9::1"), 2), &[7; 1400]);
        v6.link = LinkSpec::vlan(100);
        let packet = udp_packet(&v6);
        let got = answer(&packet, IcmpError::TooBig { mtu: 1400 }, "2001:db8::1");
        assert_eq!(got, expected(&packet, "2001:db8::1", 1232, (2, 0, 1400)));
        assert!(got.len() == 18 + 1280 && got.len() <= FRAME_LEN_MAX);
        let got = answer(&packet, IcmpError::TimeExceeded, "2001:db8::1");
        assert_eq!(got, expected(&packet, "2001:db8::1", 1232, (3, 0, 0)));
    }

    #[test]
    fn some_packets_are_never_answered() {
        let spec = UdpSpec::new((addr("10.0.0.2"), 1), (addr("10.9.0.1"), 2), b"x");
        let packet = udp_packet(&spec);
        let good = parsed(&packet);
        assert!(may_answer(&packet, &good));
        for flag in [PacketFlags::ICMP_ERROR, PacketFlags::LATER_FRAGMENT] {
            let mut meta = good.clone();
            meta.flags.set(flag);
            assert!(!may_answer(&packet, &meta));
        }
        for (src, dst) in
            [("0.0.0.0", "10.0.0.1"), ("224.0.0.1", "10.0.0.1"), ("10.0.0.2", "224.0.0.5")]
        {
            let mut meta = good.clone();
            (meta.key.src, meta.key.dst) = (addr(src), addr(dst));
            assert!(!may_answer(&packet, &meta), "{src} to {dst}");
        }
        for at in [0, 6] {
            let mut group = packet.clone();
            group[at] |= 1;
            assert!(!may_answer(&group, &good), "link-layer group");
        }
    }

    #[test]
    fn a_burst_and_then_the_rate() {
        let mut limit = IcmpLimiter::new();
        let start = Nanos::from_secs(100);
        let allowed = (0..200).filter(|_| limit.allow(start)).count() as u64;
        assert_eq!(allowed, ERRORS_BURST);
        assert!(!limit.allow(Nanos(start.0 + 999_999)));
        assert!(limit.allow(Nanos(start.0 + 1_000_000)));
        let tries = (0..50_000).map(|i| Nanos(start.0 + 1_000_000 + i * 20_000));
        let allowed = tries.filter(|&now| limit.allow(now)).count() as u64;
        assert!((ERRORS_PER_SECOND - 2..=ERRORS_PER_SECOND).contains(&allowed), "{allowed}");
        assert!(!limit.allow(Nanos::ZERO), "a clock that goes back earns nothing");
    }
}
