//! Looks through link layers, tags and tunnels to the innermost TCP segment or UDP datagram.

use super::fragments::{Fragments, Piece};
use super::link::{Link, Next, ppp, u16_at};
use super::tunnel;
use crate::base::Addr;

/// Layers that are looked through at most.
pub const LAYERS_MAX: usize = 16;

pub(super) const TCP: u8 = 6;
pub(super) const UDP: u8 = 17;

/// The names of the layers down to the IP header that carries a flow, outermost first.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Encap {
    names: [&'static str; LAYERS_MAX],
    len: u8,
    /// Some packet was put together from IP fragments.
    pub fragmented: bool,
}

impl Encap {
    /// `None` when there are too many.
    pub(super) fn push(&mut self, name: &'static str) -> Option<()> {
        *self.names.get_mut(usize::from(self.len))? = name;
        self.len += 1;
        Some(())
    }
}

impl std::fmt::Display for Encap {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let names = &self.names[..usize::from(self.len)];
        for (i, name) in names.iter().enumerate() {
            let slash = if i == 0 { "" } else { "/" };
            if self.fragmented && i + 1 == names.len() {
                write!(f, "{slash}ipfrag/{name}")?;
            } else {
                write!(f, "{slash}{name}")?;
            }
        }
        Ok(())
    }
}

/// The innermost TCP segment or UDP datagram of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Transport<'a> {
    pub encap: Encap,
    pub src: Addr,
    pub dst: Addr,
    /// 6 or 17.
    pub proto: u8,
    /// From the transport header on, link padding cut off.
    pub bytes: &'a [u8],
    /// The packet was longer than what was captured of it.
    pub cut: bool,
}

/// Where a walk through the layers stands.
pub(super) struct Walk<'a> {
    pub(super) bytes: &'a [u8],
    pub(super) encap: Encap,
}

/// What stands behind an IP header.
struct Upper {
    src: Addr,
    dst: Addr,
    proto: u8,
    cut: bool,
    fragment: Option<Piece>,
}

/// What one layer leads to.
enum Led {
    To(Next),
    Transport(Upper),
}

/// The innermost transport of a captured packet. A fragment is kept until its packet is whole,
/// which is then put into `whole`. `None`: nothing, or nothing yet.
pub fn innermost<'a>(
    link: Link,
    bytes: &'a [u8],
    fragments: &mut Fragments,
    whole: &'a mut Vec<u8>,
) -> Option<Transport<'a>> {
    let (name, next, at) = link.header(bytes)?;
    let mut walk = Walk { bytes: bytes.get(at..)?, encap: Encap::default() };
    if !name.is_empty() {
        walk.encap.push(name)?;
    }
    let upper = walk.upper(next)?;
    let (upper, piece, part) = match walk.inside(upper)? {
        Inside::Transport(transport) => return Some(transport),
        Inside::Fragment(upper, piece, part) => (upper, piece, part),
    };
    let key = (upper.src, upper.dst, upper.proto, piece.id);
    if !fragments.add(key, piece, part.bytes, whole) {
        return None;
    }
    let mut walk = Walk { bytes: whole, encap: part.encap };
    walk.encap.fragmented = true;
    match walk.inside(Upper { fragment: None, ..upper })? {
        Inside::Transport(transport) => Some(transport),
        // Fragments of what came in fragments are left out.
        Inside::Fragment(..) => None,
    }
}

/// Where a walk ends.
enum Inside<'a> {
    Transport(Transport<'a>),
    Fragment(Upper, Piece, Walk<'a>),
}

impl<'a> Walk<'a> {
    /// Through to a transport that carries no tunnel, or whose tunnel holds nothing that is known.
    fn inside(mut self, mut upper: Upper) -> Option<Inside<'a>> {
        loop {
            if let Some(piece) = upper.fragment {
                return Some(Inside::Fragment(upper, piece, self));
            }
            let here = Transport {
                encap: self.encap,
                src: upper.src,
                dst: upper.dst,
                proto: upper.proto,
                bytes: self.bytes,
                cut: upper.cut,
            };
            let Some(next) = self.tunnel(&upper) else {
                let known = matches!(here.proto, TCP | UDP);
                return known.then_some(Inside::Transport(here));
            };
            match self.upper(next) {
                Some(inner) => upper = inner,
                // The port was a tunnel's, but what it carries is not.
                None => return (here.proto == UDP).then_some(Inside::Transport(here)),
            }
        }
    }

    /// Steps into the tunnel that an IP packet carries, if any.
    fn tunnel(&mut self, upper: &Upper) -> Option<Next> {
        let (name, next, bytes) = tunnel::open(upper.proto, upper.src.is_v4(), self.bytes)?;
        self.encap.push(name)?;
        self.encap.fragmented = false;
        self.bytes = bytes;
        Some(next)
    }

    /// Down to the next IP header, and behind it.
    fn upper(&mut self, mut next: Next) -> Option<Upper> {
        for _ in 0..LAYERS_MAX {
            match self.layer(next)? {
                Led::To(further) => next = further,
                Led::Transport(upper) => return Some(upper),
            }
        }
        None
    }

    fn layer(&mut self, next: Next) -> Option<Led> {
        match next {
            Next::Ethernet => {
                let kind = self.u16(12)?;
                self.encap.push("eth")?;
                self.skip(14)?;
                Some(Led::To(Next::Ether(kind)))
            }
            Next::Erspan(header_len) => {
                self.encap.push("erspan")?;
                self.skip(header_len)?;
                Some(Led::To(Next::Ethernet))
            }
            Next::Ether(kind) => self.ether(kind),
            Next::Ppp(protocol) => match protocol {
                0x0021 | 0x0057 => Some(Led::To(Next::Ip)),
                0x0281 | 0x0283 => Some(Led::To(Next::Mpls)),
                _ => None,
            },
            Next::Mpls => self.mpls(),
            Next::Ip => match self.bytes.first()? >> 4 {
                4 => self.ipv4().map(Led::Transport),
                6 => self.ipv6().map(Led::Transport),
                _ => None,
            },
        }
    }

    fn ether(&mut self, kind: u16) -> Option<Led> {
        let next = match kind {
            0x0800 | 0x86dd => Next::Ip,
            0x8100 | 0x88a8 | 0x9100 | 0x9200 => {
                self.encap.push("vlan")?;
                let inner = self.u16(2)?;
                self.skip(4)?;
                Next::Ether(inner)
            }
            0x8847 | 0x8848 => Next::Mpls,
            // PPPoE sessions (RFC 2516, section 4).
            0x8864 => {
                self.encap.push("pppoe")?;
                let len = usize::from(self.u16(4)?);
                self.skip(6)?;
                self.bytes = &self.bytes[..len.min(self.bytes.len())];
                let (next, at) = ppp(self.bytes)?;
                self.skip(at)?;
                next
            }
            0x880b => {
                let (next, at) = ppp(self.bytes)?;
                self.encap.push("ppp")?;
                self.skip(at)?;
                next
            }
            0x6558 => Next::Ethernet,
            // ERSPAN II and III (draft-foschiano-erspan); the latter may have another header.
            0x88be => Next::Erspan(8),
            0x22eb => Next::Erspan(12 + 8 * usize::from(self.bytes.get(11)? & 1)),
            // A length: 802.3 with a SNAP header.
            0..=1_500 if self.bytes.starts_with(&[0xaa, 0xaa, 3, 0, 0, 0]) => {
                let inner = self.u16(6)?;
                self.skip(8)?;
                Next::Ether(inner)
            }
            _ => return self.rare_ether(kind),
        };
        Some(Led::To(next))
    }

    fn rare_ether(&mut self, kind: u16) -> Option<Led> {
        let next = match kind {
            // A tag of virtual adapters (802.1BR's forerunner).
            0x8926 => {
                self.encap.push("vntag")?;
                let inner = self.u16(4)?;
                self.skip(6)?;
                Next::Ether(inner)
            }
            // A tag of port extenders (802.1BR), and one of groups and their policies.
            0x893f | 0x8909 => {
                self.encap.push(if kind == 0x893f { "etag" } else { "cmd" })?;
                let inner = self.u16(6)?;
                self.skip(8)?;
                Next::Ether(inner)
            }
            // Frames in frames of a switched fabric; of TRILL, behind a header with options (RFC
            // 6325, section 3.2).
            0x8903 => {
                self.encap.push("fabricpath")?;
                self.skip(2)?;
                Next::Ethernet
            }
            0x22f3 => {
                self.encap.push("trill")?;
                let options = usize::from(self.u16(0)? >> 6 & 0x1f) * 4;
                self.skip(6 + options)?;
                Next::Ethernet
            }
            // A provider's backbone (802.1ah): a service's number, and the customer's frame.
            0x88e7 => {
                self.encap.push("pbb")?;
                self.skip(4)?;
                Next::Ethernet
            }
            // A service chain's header (RFC 8300, section 2.2).
            0x894f => {
                self.encap.push("nsh")?;
                let len = usize::from(self.bytes.get(1)? & 0x3f) * 4;
                let next = match self.bytes.get(3)? {
                    1 | 2 => Next::Ip,
                    3 => Next::Ethernet,
                    5 => Next::Mpls,
                    _ => return None,
                };
                self.skip(len)?;
                next
            }
            _ => return None,
        };
        Some(Led::To(next))
    }

    /// One label (RFC 3032); behind the last one IP, or Ethernet with a control word (RFC 4448).
    fn mpls(&mut self) -> Option<Led> {
        self.encap.push("mpls")?;
        let last = self.bytes.get(2)? & 1 == 1;
        self.skip(4)?;
        if !last {
            return Some(Led::To(Next::Mpls));
        }
        if matches!(self.bytes.first()? >> 4, 4 | 6) {
            return Some(Led::To(Next::Ip));
        }
        // A control word begins with zeros, and so may an address where there is none.
        let carried = |at: usize| self.u16(at).is_some_and(is_usual);
        let word = self.bytes[0] >> 4 == 0 && (carried(12 + 4) || !carried(12));
        self.skip(if word { 4 } else { 0 })?;
        Some(Led::To(Next::Ethernet))
    }

    fn ipv4(&mut self) -> Option<Upper> {
        let header: [u8; 20] = *self.bytes.first_chunk()?;
        let header_len = usize::from(header[0] & 15) * 4;
        let total = usize::from(u16::from_be_bytes([header[2], header[3]]));
        // Captured before the sender's device cuts it up, a packet has length 0.
        let total = if total == 0 { self.bytes.len() } else { total };
        if header_len < 20 || total < header_len {
            return None;
        }
        let cut = self.bytes.len() < total;
        self.bytes = self.bytes.get(header_len..total.min(self.bytes.len()))?;
        self.encap.push("ip")?;
        let place = u16::from_be_bytes([header[6], header[7]]);
        let (more, offset) = (place & 0x2000 != 0, usize::from(place & 0x1fff) * 8);
        let id = u32::from(u16::from_be_bytes([header[4], header[5]]));
        let fragment = (more || offset > 0).then_some(Piece { id, offset, more });
        let address = |at: usize| {
            Addr::v4(u32::from_be_bytes([
                header[at],
                header[at + 1],
                header[at + 2],
                header[at + 3],
            ]))
        };
        let (src, dst, mut proto) = (address(12), address(16), header[9]);
        if fragment.is_none() && proto == AUTHENTICATION {
            proto = self.authentication()?;
        }
        Some(Upper { src, dst, proto, cut, fragment })
    }

    fn ipv6(&mut self) -> Option<Upper> {
        let header: [u8; 40] = *self.bytes.first_chunk()?;
        let len = usize::from(u16::from_be_bytes([header[4], header[5]]));
        let len = if len == 0 { self.bytes.len() - 40 } else { len };
        let cut = self.bytes.len() < 40 + len;
        self.bytes = &self.bytes[40..(40 + len).min(self.bytes.len())];
        let address = |at: usize| {
            let half = |at: usize| header[at..at + 8].iter().fold(0, |n, &b| n << 8 | u64::from(b));
            Addr { hi: half(at), lo: half(at + 8) }
        };
        let (src, dst, mut proto) = (address(8), address(24), header[6]);
        let (mut fragment, mut extended) = (None, false);
        for _ in 0..LAYERS_MAX {
            match proto {
                0 | 43 | 60 | 135 => {
                    let (next, len) = (*self.bytes.first()?, usize::from(*self.bytes.get(1)?));
                    self.skip(8 + 8 * len)?;
                    (proto, extended) = (next, true);
                }
                AUTHENTICATION => {
                    (proto, extended) = (self.authentication()?, true);
                }
                44 => {
                    let (next, place) = (*self.bytes.first()?, self.u16(2)?);
                    let id = u32::from(self.u16(4)?) << 16 | u32::from(self.u16(6)?);
                    let (offset, more) = (usize::from(place & !7), place & 1 == 1);
                    self.skip(8)?;
                    proto = next;
                    // A packet in one fragment needs no others (RFC 6946).
                    if offset > 0 || more {
                        fragment = Some(Piece { id, offset, more });
                        break;
                    }
                }
                _ => break,
            }
        }
        if extended {
            self.encap.push("ip6ext")?;
        }
        self.encap.push("ip6")?;
        Some(Upper { src, dst, proto, cut, fragment })
    }

    /// Behind an authentication header (RFC 4302), which hides nothing.
    fn authentication(&mut self) -> Option<u8> {
        let (next, len) = (*self.bytes.first()?, usize::from(*self.bytes.get(1)?));
        self.skip(8 + 4 * len)?;
        Some(next)
    }

    pub(super) fn u16(&self, at: usize) -> Option<u16> {
        u16_at(self.bytes, at)
    }

    pub(super) fn skip(&mut self, n: usize) -> Option<()> {
        self.bytes = self.bytes.get(n..)?;
        Some(())
    }
}

const AUTHENTICATION: u8 = 51;

/// EtherTypes of IP, and of the tags and labels most often before it.
fn is_usual(kind: u16) -> bool {
    matches!(kind, 0x0800 | 0x86dd | 0x8100 | 0x88a8 | 0x8847 | 0x8848 | 0x8864)
}

#[cfg(test)]
mod tests;
