//! Whole Ethernet frames in GRE (RFC 2784; protocol type of RFC 1701's "Transparent Ethernet
//! Bridging"), as Linux's `gretap` and packet brokers read them.

use super::field::put_u16;
use super::{eth, ipv4, ipv6};
use crate::base::Addr;

/// IP protocol number.
pub const PROTOCOL: u8 = 47;
/// A header without options.
pub const HEADER_LEN: usize = 4;
const TRANSPARENT_ETHERNET: u16 = 0x6558;
const TTL: u8 = 64;
/// "Don't fragment".
const DF: u16 = 0x4000;

/// Where such a packet goes, and what it says of itself.
#[derive(Clone, Copy, Debug)]
pub struct Envelope {
    /// Both of one family.
    pub source: Addr,
    pub destination: Addr,
    pub source_mac: [u8; 6],
    pub destination_mac: [u8; 6],
}

impl Envelope {
    /// Bytes before the frame that is carried, the Ethernet header included.
    pub fn len(&self) -> usize {
        eth::HEADER_LEN + self.ip_len() + HEADER_LEN
    }

    /// An envelope always has headers.
    pub fn is_empty(&self) -> bool {
        false
    }

    /// Bytes of a frame that fit a link of this MTU.
    pub fn room(&self, mtu: u16) -> usize {
        usize::from(mtu).saturating_sub(self.ip_len() + HEADER_LEN)
    }

    fn ip_len(&self) -> usize {
        if self.destination.is_v4() { ipv4::HEADER_LEN } else { ipv6::HEADER_LEN }
    }

    /// Writes all headers before the frame, which begins at [`Envelope::len`].
    ///
    /// # Panics
    /// On fewer bytes.
    pub fn emit(&self, bytes: &mut [u8]) {
        let payload_len = (bytes.len() - self.len() + HEADER_LEN) as u16;
        let (link, rest) = bytes.split_at_mut(eth::HEADER_LEN);
        link[..6].copy_from_slice(&self.destination_mac);
        link[6..12].copy_from_slice(&self.source_mac);
        let (source, destination) = (self.source, self.destination);
        if destination.is_v4() {
            put_u16(link, eth::offset::ETHERTYPE, eth::ethertype::IPV4);
            let (tos, identification, options) = (0, 0, &[][..]);
            let (fragment, ttl, protocol) = (DF, TTL, PROTOCOL);
            let header = ipv4::Repr {
                tos,
                payload_len,
                identification,
                fragment,
                ttl,
                protocol,
                source,
                destination,
                options,
            };
            header.emit(rest);
        } else {
            put_u16(link, eth::offset::ETHERTYPE, eth::ethertype::IPV6);
            let (traffic_class, flow_label, hop_limit, next_header) = (0, 0, TTL, PROTOCOL);
            let header = ipv6::Repr {
                traffic_class,
                flow_label,
                payload_len,
                next_header,
                hop_limit,
                source,
                destination,
            };
            header.emit(rest);
        }
        let gre = &mut rest[self.ip_len()..];
        put_u16(gre, 0, 0);
        put_u16(gre, 2, TRANSPARENT_ETHERNET);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::packet::checksum::Sum;
    use crate::packet::field::u16_at;

    fn envelope(source: &str, destination: &str) -> Envelope {
        let addr = |text: &str| text.parse().expect("a literal");
        let (source, destination) = (addr(source), addr(destination));
        Envelope { source, destination, source_mac: [2; 6], destination_mac: [4; 6] }
    }

    #[test]
    fn headers_say_what_is_carried() {
        let e = envelope("192.0.2.1", "192.0.2.9");
        let mut bytes = vec![0xee; e.len() + 60];
        e.emit(&mut bytes);
        assert_eq!((e.len(), e.room(1_500)), (38, 1_476));
        assert_eq!(bytes[..14], [4, 4, 4, 4, 4, 4, 2, 2, 2, 2, 2, 2, 8, 0]);
        let ip = ipv4::View::new_checked(&bytes[14..]).expect("a header");
        assert_eq!((ip.protocol(), ip.total_len(), ip.dont_fragment()), (47, 84, true));
        assert_eq!((ip.source(), ip.destination()), (e.source, e.destination));
        assert_eq!(Sum::of(&bytes[14..34]).checksum(), 0, "its checksum is right");
        assert_eq!(bytes[34..39], [0, 0, 0x65, 0x58, 0xee], "then the frame as it was");

        let e = envelope("2001:db8::1", "2001:db8::9");
        let mut bytes = vec![0xee; e.len() + 60];
        e.emit(&mut bytes);
        assert_eq!((e.len(), e.room(1_500), u16_at(&bytes, 12)), (58, 1_456, 0x86dd));
        let ip = ipv6::View::new_checked(&bytes[14..]).expect("a header");
        assert_eq!((ip.next_header(), ip.payload().len(), ip.hop_limit()), (47, 64, 64));
        assert_eq!(bytes[54..59], [0, 0, 0x65, 0x58, 0xee]);
        assert_eq!(e.room(40), 0, "a link that is too small carries nothing");
    }
}
