//! Tunnels: the protocols that carry packets inside IP or UDP.

use super::link::{Next, ppp, u16_at};

/// UDP destination ports of tunnels (IANA), and Linux's early one of VXLAN.
const VXLAN: u16 = 4789;
const VXLAN_LINUX: u16 = 8472;
const VXLAN_GPE: u16 = 4790;
const GENEVE: u16 = 6081;
const GTP_USER: u16 = 2152;
const TEREDO: u16 = 3544;
const MPLS_IN_UDP: u16 = 6635;
const L2TP: u16 = 1701;
const LISP: u16 = 4341;
const AYIYA: u16 = 5072;

const UDP_HEADER_BYTES: usize = 8;
/// Extension headers of a GTP packet that are passed over.
const GTP_EXTENSIONS_MAX: usize = 8;

type Opened<'a> = Option<(&'static str, Next, &'a [u8])>;

/// The tunnel that an IP payload is: its name, what it carries, and from where on.
pub(super) fn open(proto: u8, in_v4: bool, bytes: &[u8]) -> Opened<'_> {
    match proto {
        4 => Some((if in_v4 { "ipip" } else { "ipip6" }, Next::Ip, bytes)),
        41 => Some((if in_v4 { "6in4" } else { "ipip6" }, Next::Ip, bytes)),
        47 => gre(bytes),
        // EtherIP (RFC 3378): version 3 and twelve reserved bits.
        97 if bytes.starts_with(&[0x30, 0]) => Some(("etherip", Next::Ethernet, &bytes[2..])),
        137 => Some(("mplsip", Next::Mpls, bytes)),
        super::layers::UDP => {
            let (from, port) = (u16_at(bytes, 0)?, u16_at(bytes, 2)?);
            let bytes = bytes.get(UDP_HEADER_BYTES..)?;
            in_udp(port, bytes).or_else(|| from_any_port(from, port, bytes))
        }
        _ => None,
    }
}

/// GRE (RFC 2784, 2890), and its version 1 of PPTP (RFC 2637).
fn gre(bytes: &[u8]) -> Opened<'_> {
    let (flags, kind) = (u16_at(bytes, 0)?, u16_at(bytes, 2)?);
    let field = |bit: u16| if flags & bit != 0 { 4 } else { 0 };
    let (sum, routing, key, sequence) = (0x8000, 0x4000, 0x2000, 0x1000);
    let (next, len) = match flags & 7 {
        0 if flags & routing == 0 => {
            (Next::Ether(kind), 4 + field(sum) + field(key) + field(sequence))
        }
        1 if kind == 0x880b => (Next::Ether(kind), 8 + field(sequence) + field(0x80)),
        _ => return None,
    };
    let inner = bytes.get(len..)?;
    // ERSPAN's first type has no sequence number and no header of its own.
    if kind == 0x88be && flags & sequence == 0 {
        return Some(("gre", Next::Erspan(0), inner));
    }
    Some(("gre", next, inner))
}

fn in_udp(port: u16, bytes: &[u8]) -> Opened<'_> {
    match port {
        // RFC 7348, section 5: a network number is there. All else is reserved and not to be looked
        // at; a group policy's number may be there.
        VXLAN | VXLAN_LINUX if bytes.first()? & 8 != 0 => {
            Some(("vxlan", Next::Ethernet, bytes.get(8..)?))
        }
        VXLAN_GPE if bytes.first()? & 0x0c == 0x0c => {
            let next = match bytes.get(3)? {
                1 | 2 => Next::Ip,
                3 => Next::Ethernet,
                4 => Next::Ether(0x894f),
                5 => Next::Mpls,
                _ => return None,
            };
            Some(("vxlangpe", next, bytes.get(8..)?))
        }
        // RFC 8926, section 3.4.
        GENEVE if bytes.first()? >> 6 == 0 => {
            let next = match u16_at(bytes, 2)? {
                0x6558 => Next::Ethernet,
                kind => Next::Ether(kind),
            };
            Some(("geneve", next, bytes.get(8 + 4 * usize::from(bytes[0] & 0x3f)..)?))
        }
        GTP_USER => gtp(bytes),
        L2TP => l2tp(bytes),
        MPLS_IN_UDP => Some(("udp", Next::Mpls, bytes)),
        // RFC 9300, section 5.1.
        LISP => Some(("lisp", Next::Ip, bytes.get(8..)?)),
        _ => None,
    }
}

/// Tunnels whose answers go to the port that the client had, or that have no port of their own.
fn from_any_port(from: u16, to: u16, bytes: &[u8]) -> Opened<'_> {
    if [from, to].contains(&AYIYA) {
        return ayiya(bytes);
    }
    let inner = behind_teredo_marks(bytes)?;
    let is_ipv6 = inner.first()? >> 4 == 6;
    let is_whole = is_ipv6 && usize::from(u16_at(inner, 4)?) + 40 == inner.len();
    // Clients' addresses (RFC 4380, section 2.6): relays take any port.
    let is_of_client = |at: usize| inner[at..].starts_with(&[0x20, 1, 0, 0]);
    let served = [from, to].contains(&TEREDO);
    let is_teredo = is_ipv6 && served || is_whole && (is_of_client(8) || is_of_client(24));
    is_teredo.then_some(("teredo", Next::Ip, inner))
}

/// What a server or relay says of itself before the packet (RFC 4380, section 5.1.1).
fn behind_teredo_marks(mut bytes: &[u8]) -> Option<&[u8]> {
    if bytes.starts_with(&[0, 1]) {
        let (id, proof) = (usize::from(*bytes.get(2)?), usize::from(*bytes.get(3)?));
        bytes = bytes.get(4 + id + proof + 9..)?;
    }
    if bytes.starts_with(&[0, 0]) {
        bytes = bytes.get(8..)?;
    }
    Some(bytes)
}

/// IP behind a time, an identity and a signature (draft-massar-v6ops-ayiya).
fn ayiya(bytes: &[u8]) -> Opened<'_> {
    const FORWARD: u8 = 1;
    let &[identity, signature, how, next, ..] = bytes else { return None };
    let carries_ip = matches!(next, 4 | 41);
    let len = 8 + (1 << (identity >> 4)) + 4 * usize::from(signature >> 4);
    (how & 15 == FORWARD && carries_ip).then_some(("ayiya", Next::Ip, bytes.get(len..)?))
}

/// A data message of L2TP version 2 (RFC 2661, section 3.1).
fn l2tp(bytes: &[u8]) -> Opened<'_> {
    let flags = u16_at(bytes, 0)?;
    let (control, length, sequence, offset) = (0x8000, 0x4000, 0x0800, 0x0200);
    if flags & control != 0 || flags & 15 != 2 {
        return None;
    }
    let mut at = 6 + if flags & length != 0 { 2 } else { 0 };
    at += if flags & sequence != 0 { 4 } else { 0 };
    if flags & offset != 0 {
        at += 2 + usize::from(u16_at(bytes, at)?);
    }
    let (next, behind) = ppp(bytes.get(at..)?)?;
    Some(("l2tp", next, bytes.get(at + behind..)?))
}

/// GTP version 1 with user data (3GPP TS 29.281, section 5).
fn gtp(bytes: &[u8]) -> Opened<'_> {
    const USER_DATA: u8 = 255;
    let (&flags, &kind) = (bytes.first()?, bytes.get(1)?);
    if flags >> 4 != 3 || kind != USER_DATA {
        return None;
    }
    if flags & 7 == 0 {
        return Some(("gtp", Next::Ip, bytes.get(8..)?));
    }
    let (mut at, mut extension) = (12, *bytes.get(11)?);
    for _ in 0..GTP_EXTENSIONS_MAX {
        // Each tells of the one behind it in its last byte.
        if extension == 0 || flags & 4 == 0 {
            return Some(("gtp", Next::Ip, bytes.get(at..)?));
        }
        at += usize::from(*bytes.get(at)?).max(1) * 4;
        extension = *bytes.get(at - 1)?;
    }
    None
}
