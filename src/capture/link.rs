//! Link layers of captures, down to the first protocol above them (the "link-layer header types" of
//! tcpdump.org).

use crate::packet::eth;

/// A link-layer header type's number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Link(pub u32);

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
    const PPP: Link = Link(9);
    const PPP_SERIAL: Link = Link(50);
    const CISCO_HDLC: Link = Link(104);
    const IEEE802_11: Link = Link(105);
    const LOOP: Link = Link(108);
    const ENC: Link = Link(109);
    const LINUX_COOKED: Link = Link(113);
    const PFLOG: Link = Link(117);
    const RADIOTAP: Link = Link(127);
    const PPI: Link = Link(192);
    const MPLS: Link = Link(219);
    const NFLOG: Link = Link(239);
    const LINUX_COOKED_2: Link = Link(276);

    /// Bytes that a packet of `len` bytes would have as a frame of Ethernet; those of links that
    /// are not known stay.
    pub fn frame_len(self, bytes: &[u8], len: u32) -> u32 {
        match self.header(bytes) {
            Some((_, Next::Ethernet, 0)) | None => len,
            Some((_, _, at)) => {
                let header = u32::try_from(at).unwrap_or(u32::MAX);
                len.saturating_sub(header).saturating_add(eth::HEADER_LEN as u32)
            }
        }
    }

    /// Whether packets of such links can be read.
    pub(super) fn is_known(self) -> bool {
        matches!(
            self,
            Link::NULL
                | Link::ETHERNET
                | Link::PPP
                | Link::PPP_SERIAL
                | Link::CISCO_HDLC
                | Link::IEEE802_11
                | Link::LOOP
                | Link::ENC
                | Link::LINUX_COOKED
                | Link::PFLOG
                | Link::RADIOTAP
                | Link::PPI
                | Link::MPLS
                | Link::NFLOG
                | Link::LINUX_COOKED_2
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
            Link::CISCO_HDLC => ("chdlc", ether(2)?, 4),
            Link::IEEE802_11 => wireless("wlan", bytes, 0)?,
            // Their lengths are little-endian, wherever they were captured.
            Link::RADIOTAP | Link::PPI => wireless("radiotap", bytes, little(bytes, 2)?)?,
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
    const SNAP: [u8; 6] = [0xaa, 0xaa, 3, 0, 0, 0];
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
    let snap = bytes.get(at..)?.starts_with(&SNAP);
    snap.then_some((name, Next::Ether(u16_at(bytes, at + 6)?), at + 8))
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
        assert_eq!(Link(147).header(&[0; 64]), None);
        let read = |link: &u32| Link(*link).header(&wlan).is_some() || Link(*link).is_known();
        let known: Vec<u32> = (0..512).filter(read).collect();
        assert!(known.iter().all(|&link| Link(link).is_known()), "{known:?}");
        assert_eq!(known.len(), 20, "{known:?}");
        assert_eq!(Link(239).header(&log[..14]), None);
        let mut hidden = wlan;
        hidden[9] |= 0x40;
        assert_eq!(Link(127).header(&hidden), None);
    }
}
