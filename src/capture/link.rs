//! Link layers of captures, down to the first protocol above them (the "link-layer header types" of
//! tcpdump.org).

use crate::packet::eth;

/// A link-layer header type's number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Link(pub u32);

/// The header that tells an EtherType behind LLC (IEEE 802).
const SNAP: [u8; 6] = [0xaa, 0xaa, 3, 0, 0, 0];
/// The first bytes of AVS's header before wireless frames.
const AVS_MAGIC: [u8; 3] = [0x80, 0x21, 0x10];

/// What comes next in a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Next {
    Ethernet,
    /// A header of ERSPAN of so many bytes, and Ethernet behind it.
    Erspan(usize),
    /// By EtherType.
    Ether(u16),
    /// By PPP protocol number (RFC 1661, section 2).
    Ppp(u16),
    /// IPv4 or IPv6, as its version says.
    Ip,
    Mpls,
}

impl Link {
    const NULL: Link = Link(0);
    const ETHERNET: Link = Link(1);
    const TOKEN_RING: Link = Link(6);
    const PPP: Link = Link(9);
    const FDDI: Link = Link(10);
    const PPP_SERIAL: Link = Link(50);
    const PPP_ETHERNET: Link = Link(51);
    const ATM: Link = Link(100);
    const CISCO_HDLC: Link = Link(104);
    const IEEE802_11: Link = Link(105);
    const FRAME_RELAY: Link = Link(107);
    const LOOP: Link = Link(108);
    const ENC: Link = Link(109);
    const LINUX_COOKED: Link = Link(113);
    const PFLOG: Link = Link(117);
    const PRISM: Link = Link(119);
    const RADIOTAP: Link = Link(127);
    const AVS: Link = Link(163);
    const PPI: Link = Link(192);
    const PPP_DIRECTION: Link = Link(204);
    const MPLS: Link = Link(219);
    const IPNET: Link = Link(226);
    const NFLOG: Link = Link(239);
    const NETANALYZER: Link = Link(240);
    const PKTAP: Link = Link(258);
    const LINUX_COOKED_2: Link = Link(276);
    /// Ports of a switch's processor.
    const SWITCH_BRCM: Link = Link(281);
    const SWITCH_DSA: Link = Link(284);
    const SWITCH_EDSA: Link = Link(285);

    /// Bytes that a packet of `len` bytes would have as a frame of Ethernet; those of links that
    /// are not known stay.
    pub fn frame_len(self, bytes: &[u8], len: u32) -> u32 {
        match self.header(bytes) {
            None => len,
            Some((_, next, at)) => {
                let header = u32::try_from(at).unwrap_or(u32::MAX);
                let own = if next == Next::Ethernet { 0 } else { eth::HEADER_LEN as u32 };
                len.saturating_sub(header).saturating_add(own)
            }
        }
    }

    /// Whether packets of such links can be read.
    pub(super) fn is_known(self) -> bool {
        matches!(
            self,
            Link::NULL
                | Link::ETHERNET
                | Link::TOKEN_RING
                | Link::PPP
                | Link::FDDI
                | Link::PPP_SERIAL
                | Link::PPP_ETHERNET
                | Link::ATM
                | Link::CISCO_HDLC
                | Link::IEEE802_11
                | Link::FRAME_RELAY
                | Link::LOOP
                | Link::ENC
                | Link::LINUX_COOKED
                | Link::PFLOG
                | Link::PRISM
                | Link::RADIOTAP
                | Link::AVS
                | Link::PPI
                | Link::PPP_DIRECTION
                | Link::MPLS
                | Link::IPNET
                | Link::NFLOG
                | Link::NETANALYZER
                | Link::PKTAP
                | Link::LINUX_COOKED_2
                | Link::SWITCH_BRCM
                | Link::SWITCH_DSA
                | Link::SWITCH_EDSA
                | Link(12 | 14 | 101 | 228 | 229)
        )
    }

    /// The name in a flow's list of layers (Ethernet adds its own), what comes next, and from which
    /// byte on. `None`: an unknown link, or a header that is cut or says nothing of what follows.
    pub(super) fn header(self, bytes: &[u8]) -> Option<(&'static str, Next, usize)> {
        let ether = |at: usize| u16_at(bytes, at).map(Next::Ether);
        Some(match self {
            Link::ETHERNET => ("", Next::Ethernet, 0),
            Link::NULL | Link::LOOP => ("null", null(bytes)?, 4),
            // BSD's and Linux's numbers of raw IP, and those of each version.
            Link(12 | 14 | 101 | 228 | 229) => ("raw", Next::Ip, 0),
            Link::LINUX_COOKED => ("sll", ether(14)?, 16),
            Link::LINUX_COOKED_2 => ("sll2", ether(0)?, 20),
            Link::PPP | Link::PPP_SERIAL => {
                let (next, at) = ppp(bytes)?;
                ("ppp", next, at)
            }
            _ => return self.rare_header(bytes),
        })
    }

    fn rare_header(self, bytes: &[u8]) -> Option<(&'static str, Next, usize)> {
        let ether = |at: usize| u16_at(bytes, at).map(Next::Ether);
        Some(match self {
            // Whether it was sent or received comes first.
            Link::PPP_DIRECTION => {
                let (next, at) = ppp(bytes.get(1..)?)?;
                ("ppp", next, 1 + at)
            }
            Link::PPP_ETHERNET => ("", Next::Ether(0x8864), 0),
            Link::TOKEN_RING => {
                // A route through bridges may follow the addresses.
                let routed = bytes.get(8)? & 0x80 != 0;
                let route = if routed { usize::from(bytes.get(14)? & 0x1f) } else { 0 };
                snap("tr", bytes, 14 + route)?
            }
            Link::FDDI => snap("fddi", bytes, 13)?,
            Link::ATM => snap("atm", bytes, 0)?,
            Link::FRAME_RELAY => frame_relay(bytes)?,
            Link::CISCO_HDLC => ("chdlc", ether(2)?, 4),
            Link::IEEE802_11 => wireless("wlan", bytes, 0)?,
            // Their lengths are little-endian, wherever they were captured.
            Link::RADIOTAP => wireless("radiotap", bytes, little(bytes, 2)?)?,
            Link::PPI => {
                let (link, len) = (little(bytes, 4)?, little(bytes, 2)?);
                match Link(link as u32) {
                    Link::IEEE802_11 => wireless("radiotap", bytes, len)?,
                    link => link.behind(bytes, len)?,
                }
            }
            // Drivers' own, of a length that tells its byte order, or of AVS's kind.
            Link::PRISM if !bytes.starts_with(&AVS_MAGIC) => {
                let len: [u8; 4] = *bytes.get(4..)?.first_chunk()?;
                let len = u32::from_be_bytes(len).min(u32::from_le_bytes(len)) as usize;
                wireless("radiotap", bytes, len)?
            }
            Link::PRISM | Link::AVS => wireless("radiotap", bytes, u16_at(bytes, 6)?.into())?,
            Link::PKTAP => Link(little(bytes, 8)? as u32).behind(bytes, little(bytes, 0)?)?,
            Link::IPNET => ("raw", Next::Ip, 24),
            Link::NETANALYZER => ("", Next::Ethernet, 4),
            // A switch's own tag before the EtherType.
            Link::SWITCH_BRCM | Link::SWITCH_DSA => ("eth", ether(16)?, 18),
            Link::SWITCH_EDSA => ("eth", ether(20)?, 22),
            // OpenBSD's devices for IPsec and for what its packet filter logs.
            Link::ENC => ("enc", Next::Ip, 12),
            Link::PFLOG => ("pflog", Next::Ip, usize::from(*bytes.first()?).next_multiple_of(4)),
            Link::MPLS => ("raw", Next::Mpls, 0),
            Link::NFLOG => {
                let (next, at) = nflog(bytes)?;
                ("nflog", next, at)
            }
            _ => return None,
        })
    }

    /// What a header of `at` bytes is before.
    fn behind(self, bytes: &[u8], at: usize) -> Option<(&'static str, Next, usize)> {
        if matches!(self, Link::PPI | Link::PKTAP) {
            return None;
        }
        let (name, next, header) = self.header(bytes.get(at..)?)?;
        Some((name, next, at + header))
    }
}

/// An EtherType behind a SNAP header.
fn snap(name: &'static str, bytes: &[u8], at: usize) -> Option<(&'static str, Next, usize)> {
    let snap = bytes.get(at..)?.starts_with(&SNAP);
    snap.then_some((name, Next::Ether(u16_at(bytes, at + 6)?), at + 8))
}

/// What a circuit carries (RFC 2427, section 3), or an EtherType behind its number as one maker has
/// it.
fn frame_relay(bytes: &[u8]) -> Option<(&'static str, Next, usize)> {
    // The last byte of the circuit's number is odd.
    let at = bytes.iter().take(4).position(|byte| byte & 1 == 1)? + 1;
    Some(match *bytes.get(at..at + 2)? {
        [3, 0xcc | 0x8e] => ("fr", Next::Ip, at + 2),
        [3, 0x80] => ("fr", Next::Ether(u16_at(bytes, at + 5)?), at + 7),
        [3, 0] if bytes.get(at + 2) == Some(&0x80) => {
            ("fr", Next::Ether(u16_at(bytes, at + 6)?), at + 8)
        }
        [a, b] => ("fr", Next::Ether(u16::from_be_bytes([a, b])), at + 2),
        _ => return None,
    })
}

/// PPP with or without address and control (RFC 1662, section 3.1), the protocol in one byte or two
/// (RFC 1661, section 6.5).
pub(super) fn ppp(bytes: &[u8]) -> Option<(Next, usize)> {
    let at = if bytes.starts_with(&[0xff, 0x03]) { 2 } else { 0 };
    let first = *bytes.get(at)?;
    // The last byte of a protocol number is odd, others are even.
    if first & 1 == 1 {
        return Some((Next::Ppp(u16::from(first)), at + 1));
    }
    Some((Next::Ppp(u16_at(bytes, at)?), at + 2))
}

/// An address family in the order of the machine that captured, or of the network. IPv6 has a
/// number of its own on each system.
fn null(bytes: &[u8]) -> Option<Next> {
    let family = u32::from_le_bytes(*bytes.first_chunk()?);
    let family = if family > 0xffff { family.swap_bytes() } else { family };
    matches!(family, 2 | 10 | 24 | 28 | 30).then_some(Next::Ip)
}

/// A data frame of 802.11 that is not encrypted, with the SNAP header of what it carries (IEEE
/// 802.11, section 9.3.2).
fn wireless(name: &'static str, bytes: &[u8], at: usize) -> Option<(&'static str, Next, usize)> {
    let (kind, flags) = (*bytes.get(at)?, *bytes.get(at + 1)?);
    let (data, has_data, protected) = (kind & 0x0c == 0x08, kind & 0x40 == 0, flags & 0x40 != 0);
    if !data || !has_data || protected {
        return None;
    }
    let four_addresses = flags & 3 == 3;
    let quality = kind & 0x80 != 0;
    let mut at = at + 24;
    at += if four_addresses { 6 } else { 0 };
    at += if quality { 2 } else { 0 };
    at += if quality && flags & 0x80 != 0 { 4 } else { 0 };
    snap(name, bytes, at)
}

fn little(bytes: &[u8], at: usize) -> Option<usize> {
    let field = *bytes.get(at..)?.first_chunk()?;
    Some(usize::from(u16::from_le_bytes(field)))
}

/// Linux's netfilter log: attributes of which one is the packet.
fn nflog(bytes: &[u8]) -> Option<(Next, usize)> {
    const PAYLOAD: u16 = 9;
    let mut at = 4;
    loop {
        let head = bytes.get(at..at + 4)?;
        let len = usize::from(u16::from_ne_bytes([head[0], head[1]]));
        if u16::from_ne_bytes([head[2], head[3]]) & 0x7fff == PAYLOAD {
            return Some((Next::Ip, at + 4));
        }
        at += len.next_multiple_of(4).max(4);
    }
}

/// A number in network byte order, if it is there.
pub(super) fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    bytes.get(at..)?.first_chunk().map(|field| u16::from_be_bytes(*field))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_link_leads_to_ip() {
        let sll = [0, 0, 0, 1, 0, 6, 1, 2, 3, 4, 5, 6, 0, 0, 0x08, 0x00];
        let sll2 = [&[0x86, 0xdd][..], &[0; 18]].concat();
        let log = [&[2, 0, 0, 0][..], &[5, 0, 10, 0, 7, 0, 0, 0], &[6, 0, 9, 0, 0x45, 0]].concat();
        let head = [&[0, 0, 8, 0, 0, 0, 0, 0, 0x88, 1][..], &[0; 24]].concat();
        let wlan = [&head[..], &[0xaa, 0xaa, 3, 0, 0, 0, 8, 0]].concat();
        for (link, bytes, want) in [
            (0, &[2, 0, 0, 0][..], ("null", Next::Ip, 4)),
            (0, &[0, 0, 0, 30], ("null", Next::Ip, 4)),
            (108, &[0, 0, 0, 2], ("null", Next::Ip, 4)),
            (1, &[], ("", Next::Ethernet, 0)),
            (9, &[0xff, 3, 0, 0x21], ("ppp", Next::Ppp(0x21), 4)),
            (9, &[0x21], ("ppp", Next::Ppp(0x21), 1)),
            (50, &[0, 0x57], ("ppp", Next::Ppp(0x57), 2)),
            (101, &[0x45], ("raw", Next::Ip, 0)),
            (104, &[0x0f, 0, 8, 0], ("chdlc", Next::Ether(0x0800), 4)),
            (113, &sll, ("sll", Next::Ether(0x0800), 16)),
            (105, &wlan[8..], ("wlan", Next::Ether(0x0800), 34)),
            (127, &wlan, ("radiotap", Next::Ether(0x0800), 42)),
            (109, &[0; 12], ("enc", Next::Ip, 12)),
            (117, &[61, 2], ("pflog", Next::Ip, 64)),
            (239, &log, ("nflog", Next::Ip, 16)),
            (276, &sll2, ("sll2", Next::Ether(0x86dd), 20)),
        ] {
            assert_eq!(Link(link).header(bytes), Some(want), "{link}");
            assert!(Link(link).is_known(), "{link}");
        }
        assert_eq!(Link(0).header(&[7, 0, 0, 0]), None);
        let read = |link: &u32| Link(*link).header(&wlan).is_some() || Link(*link).is_known();
        let known: Vec<u32> = (0..512).filter(read).collect();
        assert!(known.iter().all(|&link| Link(link).is_known()), "{known:?}");
        assert_eq!(known.len(), 34, "{known:?}");
        assert_eq!(Link(147).header(&[0; 64]), None);
        assert_eq!(Link(239).header(&log[..14]), None);
        let mut hidden = wlan;
        hidden[9] |= 0x40;
        assert_eq!(Link(127).header(&hidden), None);
    }

    #[test]
    fn links_that_are_rare_lead_to_ip_too() {
        const LLC: [u8; 8] = [0xaa, 0xaa, 3, 0, 0, 0, 8, 0];
        let data = [&[0x08, 1][..], &[0; 22], &LLC].concat();
        let routed = [&[0; 8][..], &[0x80, 0, 0, 0, 0, 0], &[2 + 4, 0, 0, 0, 0, 0], &LLC].concat();
        let prism = [&[0, 0, 0, 0x44, 0, 0, 0, 12, 0, 0, 0, 0][..], &data].concat();
        let avs = [&[0x80, 0x21, 0x10, 1, 0, 0, 0, 8][..], &data].concat();
        let info = |link: u8, len: u8| [&[0, 0, len, 0, link, 0, 0, 0][..], &[0; 40]].concat();
        let tap = [&[12, 0, 0, 0, 1, 0, 0, 0, 108, 0, 0, 0][..], &[0, 0, 0, 2]].concat();
        let port = [&[0; 16][..], &[8, 0, 0, 0, 0x86, 0xdd]].concat();
        for (link, bytes, want) in [
            (6, &routed[..], ("tr", Next::Ether(0x0800), 28)),
            (10, &[&[0; 13][..], &LLC].concat(), ("fddi", Next::Ether(0x0800), 21)),
            (51, &[0x11, 0], ("", Next::Ether(0x8864), 0)),
            (100, &LLC, ("atm", Next::Ether(0x0800), 8)),
            (107, &[0x18, 0x41, 3, 0xcc], ("fr", Next::Ip, 4)),
            (107, &[0x18, 0x41, 3, 0, 0x80, 0, 0, 0, 8, 0], ("fr", Next::Ether(0x0800), 10)),
            (107, &[0x18, 0x40, 0x41, 0x86, 0xdd], ("fr", Next::Ether(0x86dd), 5)),
            (119, &prism, ("radiotap", Next::Ether(0x0800), 12 + 32)),
            (119, &avs, ("radiotap", Next::Ether(0x0800), 8 + 32)),
            (163, &avs, ("radiotap", Next::Ether(0x0800), 8 + 32)),
            (192, &info(1, 8), ("", Next::Ethernet, 8)),
            (204, &[1, 0xff, 3, 0, 0x57], ("ppp", Next::Ppp(0x57), 5)),
            (226, &[1, 2], ("raw", Next::Ip, 24)),
            (240, &[0; 4], ("", Next::Ethernet, 4)),
            (258, &tap, ("null", Next::Ip, 16)),
            (281, &port, ("eth", Next::Ether(0x0800), 18)),
            (284, &port, ("eth", Next::Ether(0x0800), 18)),
            (285, &port, ("eth", Next::Ether(0x86dd), 22)),
        ] {
            assert_eq!(Link(link).header(bytes), Some(want), "{link}");
            assert!(Link(link).is_known(), "{link}");
        }
        assert_eq!([1, 240, 284].map(|link| Link(link).frame_len(&port, 104)), [104, 100, 100]);
        // One that says that it carries itself ends there.
        assert_eq!(Link(192).header(&info(192, 8)), None);
        assert_eq!(Link(107).header(&[0; 9]), None);
    }
}
