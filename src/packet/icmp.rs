//! ICMP (RFC 792) and ICMPv6 (RFC 4443).

use crate::base::Addr;
use crate::packet::checksum::{Sum, pseudo};
use crate::packet::field::{addr4_at, addr6_at, put_u16, put_u32, u16_at, u32_at};
use crate::packet::{DropReason, FlowKey, PacketFlags, PacketMeta, ipv4, ipv6, tcp, udp};

/// IP protocol number of ICMP.
pub const PROTOCOL: u8 = 1;
/// IP protocol number of ICMPv6.
pub const PROTOCOL_V6: u8 = 58;
pub const HEADER_LEN: usize = 8;

/// Where the fields stand.
pub mod offset {
    pub const TYPE: usize = 0;
    pub const CODE: usize = 1;
    pub const CHECKSUM: usize = 2;
    /// Identifier and sequence number of an echo, MTU or pointer of an error.
    pub const REST: usize = 4;
    pub const IDENTIFIER: usize = 4;
}

/// Message types of ICMP.
pub mod kind {
    pub const ECHO_REPLY: u8 = 0;
    pub const UNREACHABLE: u8 = 3;
    pub const SOURCE_QUENCH: u8 = 4;
    pub const REDIRECT: u8 = 5;
    pub const ECHO_REQUEST: u8 = 8;
    pub const TIME_EXCEEDED: u8 = 11;
    pub const PARAMETER_PROBLEM: u8 = 12;
}

/// Message types of ICMPv6.
pub mod kind_v6 {
    pub const UNREACHABLE: u8 = 1;
    pub const PACKET_TOO_BIG: u8 = 2;
    pub const TIME_EXCEEDED: u8 = 3;
    pub const PARAMETER_PROBLEM: u8 = 4;
    pub const ECHO_REQUEST: u8 = 128;
    pub const ECHO_REPLY: u8 = 129;
}

/// Whether a message has an echo identifier.
#[inline]
pub const fn is_echo(protocol: u8, kind: u8) -> bool {
    match protocol {
        PROTOCOL => matches!(kind, kind::ECHO_REPLY | kind::ECHO_REQUEST),
        _ => matches!(kind, kind_v6::ECHO_REQUEST | kind_v6::ECHO_REPLY),
    }
}

/// Whether a message reports an error and quotes the packet at fault (RFC 1122 section 3.2.2,
/// RFC 4443 section 2.1).
#[inline]
pub const fn is_error(protocol: u8, kind: u8) -> bool {
    match protocol {
        PROTOCOL => matches!(
            kind,
            kind::UNREACHABLE
                | kind::SOURCE_QUENCH
                | kind::REDIRECT
                | kind::TIME_EXCEEDED
                | kind::PARAMETER_PROBLEM
        ),
        _ => kind < 128,
    }
}

/// A message of either protocol with a complete header.
#[derive(Clone, Copy, Debug)]
pub struct View<'a>(&'a [u8]);

impl<'a> View<'a> {
    /// # Errors
    /// `Truncated`.
    pub fn new_checked(bytes: &'a [u8]) -> Result<View<'a>, DropReason> {
        if bytes.len() < HEADER_LEN { Err(DropReason::Truncated) } else { Ok(View(bytes)) }
    }

    pub fn kind(&self) -> u8 {
        self.0[offset::TYPE]
    }

    pub fn code(&self) -> u8 {
        self.0[offset::CODE]
    }

    /// Identifier and sequence number, MTU, or pointer: as the type has it.
    pub fn rest(&self) -> u32 {
        u32_at(self.0, offset::REST)
    }

    pub fn payload(&self) -> &'a [u8] {
        &self.0[HEADER_LEN..]
    }

    /// ICMP sums the message alone, ICMPv6 a pseudo-header too.
    pub fn checksum_ok(&self, src: Addr, dst: Addr) -> bool {
        base_sum(src, dst, self.0.len()).bytes(self.0).verifies()
    }
}

fn base_sum(src: Addr, dst: Addr, len: usize) -> Sum {
    if src.is_v4() { Sum::default() } else { pseudo(src, dst, PROTOCOL_V6, len as u16) }
}

/// A message header to write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Repr {
    pub kind: u8,
    pub code: u8,
    pub rest: u32,
}

impl Repr {
    /// # Errors
    /// As [`View::new_checked`].
    pub fn parse(bytes: &[u8]) -> Result<Repr, DropReason> {
        let view = View::new_checked(bytes)?;
        Ok(Repr { kind: view.kind(), code: view.code(), rest: view.rest() })
    }

    /// Writes the header before the payload that `message` already holds, with its checksum: ICMP's
    /// between IPv4 addresses, ICMPv6's between IPv6 addresses.
    ///
    /// # Panics
    /// On fewer than [`HEADER_LEN`] bytes.
    pub fn emit(&self, message: &mut [u8], src: Addr, dst: Addr) {
        message[offset::TYPE] = self.kind;
        message[offset::CODE] = self.code;
        put_u16(message, offset::CHECKSUM, 0);
        put_u32(message, offset::REST, self.rest);
        let sum = base_sum(src, dst, message.len()).bytes(message).checksum();
        put_u16(message, offset::CHECKSUM, sum);
    }
}

/// The packet that an error message is about, as far as it is quoted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Quoted {
    /// As that packet was sent: its source is who is to hear of the error.
    pub key: FlowKey,
    /// Where its IP and transport headers begin, in bytes from the frame's first. At least eight
    /// bytes of the transport header are there.
    pub l3: u16,
    pub l4: u16,
}

/// The network header of a packet that an error message is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct QuotedNetwork {
    pub src: Addr,
    pub dst: Addr,
    pub proto: u8,
    /// Where its transport header begins, in bytes from the frame's first.
    pub transport: usize,
}

/// Reads the packet quoted in an error message. `None` where `meta` is no error, or the quotation
/// is too short or no first fragment of TCP, UDP or an echo. Checksums and lengths within are not
/// looked at: routers quote as little as eight bytes of transport header, and change fields before
/// they do.
pub fn quoted(bytes: &[u8], meta: &PacketMeta) -> Option<Quoted> {
    let network = quoted_network(bytes, meta)?;
    quoted_transport(bytes, meta, usize::from(meta.l4) + HEADER_LEN, network)
}

/// As [`quoted`], of the packet of either family that begins at `at` within the quotation.
pub fn quoted_within(bytes: &[u8], meta: &PacketMeta, at: usize) -> Option<Quoted> {
    quoted_transport(bytes, meta, at, network(bytes.get(..usize::from(meta.end))?, at)?)
}

/// As [`quoted`], whatever the transport.
pub fn quoted_network(bytes: &[u8], meta: &PacketMeta) -> Option<QuotedNetwork> {
    if !meta.flags.has(PacketFlags::ICMP_ERROR) {
        return None;
    }
    let at = usize::from(meta.l4) + HEADER_LEN;
    let network = network(bytes.get(..usize::from(meta.end))?, at)?;
    (network.src.is_v4() == meta.is_v4()).then_some(network)
}

/// `None` for later fragments, which show no transport header.
fn network(bytes: &[u8], at: usize) -> Option<QuotedNetwork> {
    let inner = bytes.get(at..)?;
    match inner.first()? >> 4 {
        4 if inner.len() >= ipv4::HEADER_LEN => {
            let fragment = u16_at(inner, ipv4::offset::FRAGMENT);
            if fragment & ipv4::OFFSET_MASK != 0 || inner[0] & 15 < 5 {
                return None;
            }
            let (src, dst) = (addr4_at(inner, 12), addr4_at(inner, 16));
            let transport = at + usize::from(inner[0] & 15) * 4;
            Some(QuotedNetwork { src, dst, proto: inner[ipv4::offset::PROTOCOL], transport })
        }
        6 if inner.len() >= ipv6::HEADER_LEN => {
            let next = inner[ipv6::offset::NEXT_HEADER];
            let upper = ipv6::follow(&inner[ipv6::HEADER_LEN..], next).ok()?;
            let (src, dst) = (addr6_at(inner, 8), addr6_at(inner, 24));
            let later = upper.fragment.is_some_and(|f| f.offset != 0);
            // Such addresses would be taken for IPv4 from here on.
            if later || src.is_v4() || dst.is_v4() {
                return None;
            }
            let transport = at + ipv6::HEADER_LEN + upper.at;
            Some(QuotedNetwork { src, dst, proto: upper.protocol, transport })
        }
        _ => None,
    }
}

fn quoted_transport(
    bytes: &[u8],
    meta: &PacketMeta,
    l3: usize,
    network: QuotedNetwork,
) -> Option<Quoted> {
    let QuotedNetwork { src, dst, proto, transport: l4 } = network;
    let transport = bytes.get(l4..usize::from(meta.end))?.first_chunk::<8>()?;
    let (sport, dport) = match proto {
        tcp::PROTOCOL | udp::PROTOCOL => (u16_at(transport, 0), u16_at(transport, 2)),
        PROTOCOL | PROTOCOL_V6 if is_echo(proto, transport[0]) => {
            let identifier = u16_at(transport, offset::IDENTIFIER);
            (identifier, identifier)
        }
        _ => return None,
    };
    let key = FlowKey { src, dst, sport, dport, proto };
    Some(Quoted { key, l3: l3 as u16, l4: l4 as u16 })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn round_trip_in_both_protocols() {
        let v6 = |last| Addr { hi: 0x2001_0db8_0000_0000, lo: last };
        for (src, dst) in [(Addr::v4(0xc000_0201), Addr::v4(0xc000_0202)), (v6(1), v6(2))] {
            let repr = Repr { kind: 128, code: 0, rest: 0x1234_0001 };
            let mut bytes = *b"________ping";
            repr.emit(&mut bytes, src, dst);
            assert_eq!(Repr::parse(&bytes), Ok(repr));
            let view = View::new_checked(&bytes).expect("valid");
            assert!(view.checksum_ok(src, dst));
            assert_eq!(view.payload(), b"ping");
            for cut in 0..HEADER_LEN {
                assert_eq!(Repr::parse(&bytes[..cut]), Err(DropReason::Truncated), "{cut}");
            }
            bytes[9] ^= 0x10;
            assert!(!View::new_checked(&bytes).expect("valid").checksum_ok(src, dst));
        }
    }

    #[test]
    fn errors_and_echoes_are_told_apart() {
        let errors: Vec<u8> = (0..=255).filter(|&k| is_error(PROTOCOL, k)).collect();
        assert_eq!(errors, [3, 4, 5, 11, 12]);
        assert!((0..=127).all(|k| is_error(PROTOCOL_V6, k)));
        assert!((128..=255).all(|k| !is_error(PROTOCOL_V6, k)));
        assert!(is_echo(PROTOCOL, 0) && is_echo(PROTOCOL, 8) && !is_echo(PROTOCOL, 13));
        assert!(is_echo(PROTOCOL_V6, 128) && is_echo(PROTOCOL_V6, 129));
        assert!(!is_echo(PROTOCOL_V6, 8));
    }
}
