//! Lowers what hosts take for the largest segment of a path (RFC 9293, section 3.7.1), so that no
//! router has to tell them later, and none that fails to can stall them.

use super::spec::MssClamp;
use super::splice::options::{kind, walk};
use crate::packet::checksum::Delta;
use crate::packet::field::{put_u16, u16_at};
use crate::packet::{ipv4, ipv6, tcp};

/// The largest segment that fits a path; what options take is the sender's business (RFC 6691).
pub const fn of_mtu(mtu: u16, v4: bool) -> u16 {
    let ip = if v4 { ipv4::HEADER_LEN } else { ipv6::HEADER_LEN };
    mtu.saturating_sub((ip + tcp::HEADER_LEN) as u16)
}

impl MssClamp {
    /// The largest MSS that may be announced on a path of this MTU; `None`: any.
    pub fn limit(self, mtu: u16, v4: bool) -> Option<u16> {
        match self {
            MssClamp::Off => None,
            MssClamp::Mtu => Some(of_mtu(mtu, v4)),
            MssClamp::AtMost(mss) => Some(mss.min(of_mtu(mtu, v4))),
        }
    }
}

/// Has the SYN or SYN-ACK announce no more than `limit`. `segment` begins with the TCP header,
/// whose checksum is complete; one without the option, or too short, is left alone.
pub fn clamp(segment: &mut [u8], limit: u16) {
    let Some(head) = segment.first_chunk::<{ tcp::HEADER_LEN }>() else { return };
    let header_len = usize::from(head[tcp::offset::DATA_OFFSET] >> 4) * 4;
    let Some(options) = segment.get(tcp::HEADER_LEN..header_len) else { return };
    let option = walk(options).find(|o| o.kind == kind::MSS && o.body.len() == 2);
    let Some(at) = option.map(|o| tcp::HEADER_LEN + o.at) else { return };
    let old = u16_at(segment, at);
    if old <= limit {
        return;
    }
    put_u16(segment, at, limit);
    let delta = match at.is_multiple_of(2) {
        true => Delta::default().u16(old, limit),
        false => Delta::default().u16(old.swap_bytes(), limit.swap_bytes()),
    };
    let check = delta.apply(u16_at(segment, tcp::offset::CHECKSUM));
    put_u16(segment, tcp::offset::CHECKSUM, check);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::{Addr, Seed};
    use crate::forward::splice::options::TcpOption;
    use crate::packet::build::{TcpSpec, tcp_packet};
    use crate::packet::{PacketMeta, ParseOptions, parse};

    /// The MSS that a SYN with these options announces after clamping, its checksum verified.
    fn announced(options: &[u8], limit: u16) -> Option<u16> {
        let (a, b) = (Addr::v4(0x0a00_0001), Addr::v4(0x0a00_0002));
        let mut spec = TcpSpec::new((a, 1), (b, 2), tcp::flag::SYN, b"");
        spec.options = options.to_vec();
        let mut bytes = tcp_packet(&spec);
        clamp(&mut bytes[34..], limit);
        let options = ParseOptions { verify_transport_checksum: true };
        parse(&bytes, Seed(1), options, &mut PacketMeta::default()).expect("a right checksum");
        let options = &bytes[54..];
        let is_mss = |o: &TcpOption<'_>| o.kind == kind::MSS && o.body.len() == 2;
        walk(options).find(is_mss).map(|o| u16_at(o.body, 0))
    }

    #[test]
    fn only_larger_ones_are_lowered_wherever_they_stand() {
        let even = [2, 4, 0x05, 0xb4, 1, 1, 4, 2];
        let odd = [1, 2, 4, 0x05, 0xb4, 1, 4, 2];
        for options in [&even, &odd] {
            for limit in [0, 536, 1_200, 1_459] {
                assert_eq!(announced(options, limit), Some(limit));
            }
            for limit in [1_460, 9_000] {
                assert_eq!(announced(options, limit), Some(1_460));
            }
        }
        assert_eq!(announced(&[1, 1, 4, 2], 500), None);
        assert_eq!(announced(&[2, 3, 9, 0], 500), announced(&[2, 3, 9, 0], 9_000), "no MSS");
    }

    #[test]
    fn damage_stays_visible_and_stumps_are_left() {
        let (a, b) = (Addr::v4(0x0a00_0001), Addr::v4(0x0a00_0002));
        let mut spec = TcpSpec::new((a, 1), (b, 2), tcp::flag::SYN, b"");
        spec.options = vec![2, 4, 0x05, 0xb4];
        let mut bytes = tcp_packet(&spec);
        bytes[38] ^= 1;
        clamp(&mut bytes[34..], 1_000);
        let options = ParseOptions { verify_transport_checksum: true };
        parse(&bytes, Seed(1), options, &mut PacketMeta::default()).expect_err("damaged");
        for len in 0..24 {
            let mut cut = bytes[34..34 + len].to_vec();
            let before = cut.clone();
            clamp(&mut cut, 1);
            assert_eq!(cut, before);
        }
    }

    #[test]
    fn limits_by_path_and_by_hand() {
        assert_eq!(MssClamp::Off.limit(1_500, true), None);
        assert_eq!(MssClamp::Mtu.limit(1_500, true), Some(1_460));
        assert_eq!(MssClamp::Mtu.limit(1_500, false), Some(1_440));
        assert_eq!(MssClamp::AtMost(1_300).limit(1_500, true), Some(1_300));
        assert_eq!(MssClamp::AtMost(1_300).limit(1_280, false), Some(1_220));
    }
}
