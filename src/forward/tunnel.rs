//! Packets within packets, toward backends that are not on the link of a port.
//!
//! IP in IP: RFC 2003 (IPv4 in IPv4), RFC 4213 section 3 (IPv6 in IPv4), RFC 2473 (either in IPv6).
//! GUE: draft-ietf-intarea-gue, variant 0 without options. The code point and the congestion bits
//! are copied (RFC 6040, section 4.1).

use super::spec::TunnelSpec;
use crate::base::mem::Arena;
use crate::base::{Addr, Prefix};
use crate::flow::FlowKind;
use crate::packet::checksum::pseudo;
use crate::packet::eth::{self, ethertype};
use crate::packet::field::put_u16;
use crate::packet::{DropReason, FlowKey, Frame, PacketMeta, ipv4, ipv6, udp};

/// IP protocol number of IPv4 within another packet.
pub const IPV4_WITHIN: u8 = 4;
/// IP protocol number of IPv6 within another packet.
pub const IPV6_WITHIN: u8 = 41;
/// Version 0, no options, and what is within.
pub const GUE_HEADER_LEN: usize = 4;
/// The longest of all: IPv6, UDP and GUE.
pub const OVERHEAD_MAX: usize = ipv6::HEADER_LEN + udp::HEADER_LEN + GUE_HEADER_LEN;

const TTL: u8 = 64;
/// Flows differ in their UDP source ports: RFC 6335's dynamic ones.
const SPORT_FIRST: u16 = 49_152;
/// Bits of an address that flows differ in at most.
const HOST_BITS_MAX: u8 = 32;

const _: () = assert!(OVERHEAD_MAX <= crate::packet::frame::HEADROOM);

/// What a packet is put into.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Encap {
    Ipip,
    Gue,
}

impl Encap {
    /// How packets of such flows reach their backend; `None` where they are not put into others.
    #[inline(always)]
    pub fn of(kind: FlowKind) -> Option<Encap> {
        match kind {
            FlowKind::Ipip => Some(Encap::Ipip),
            FlowKind::Gue => Some(Encap::Gue),
            _ => None,
        }
    }

    /// Bytes that it takes of the path's MTU.
    pub const fn overhead(self, outer_v4: bool) -> u16 {
        let ip = if outer_v4 { ipv4::HEADER_LEN } else { ipv6::HEADER_LEN };
        let rest = match self {
            Encap::Ipip => 0,
            Encap::Gue => udp::HEADER_LEN + GUE_HEADER_LEN,
        };
        (ip + rest) as u16
    }
}

/// Where outer packets come from and go to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Outer {
    pub encap: Encap,
    pub src: Addr,
    pub dst: Addr,
    /// GUE's UDP ports.
    pub sport: u16,
    pub dport: u16,
    /// IPv6's flow label (RFC 6438).
    pub label: u32,
}

/// The configured ends of tunnels on this side.
#[derive(Clone, Debug, Default)]
pub struct Tunnels {
    v4: Option<Prefix>,
    v6: Option<Prefix>,
    gue_port: u16,
}

impl Tunnels {
    pub fn new(spec: &TunnelSpec) -> Tunnels {
        let of = |v4| spec.sources.iter().copied().find(|p| p.is_v4() == v4);
        Tunnels { v4: of(true), v6: of(false), gue_port: spec.gue_port }
    }

    /// The UDP port that backends take GUE at.
    pub fn gue_port(&self) -> u16 {
        self.gue_port
    }

    /// The outer addresses of a flow, by its hash: routers, receive queues and kernels spread what
    /// they can tell apart. `own` is the address to send from where none is configured.
    ///
    /// `None` where there is no address to send from.
    pub fn outer(&self, encap: Encap, dst: Addr, hash: u64, own: Option<Addr>) -> Option<Outer> {
        let within = if dst.is_v4() { self.v4 } else { self.v6 };
        let src = within.map(|prefix| one_of(prefix, hash)).or(own)?;
        let sport = SPORT_FIRST | (hash >> 32) as u16 & !SPORT_FIRST;
        let label = (hash >> 16) as u32 & 0xf_ffff;
        Some(Outer { encap, src, dst, sport, dport: self.gue_port, label })
    }
}

/// An address of a prefix, neither its first nor, of IPv4, its last, which mean the network and
/// all its hosts.
fn one_of(prefix: Prefix, hash: u64) -> Addr {
    let bits = (128 - prefix.len128()).min(HOST_BITS_MAX);
    let hosts = (1u64 << bits) - if prefix.is_v4() { 2 } else { 1 } * u64::from(bits > 1);
    let first = u64::from(bits > 1);
    let host = first + ((u64::from(hash as u32) * hosts) >> 32);
    let addr = prefix.addr();
    Addr { lo: addr.lo | host, ..addr }
}

/// Puts a packet without VLAN tags into another one. Of the Ethernet header only the type is
/// written; `meta` has the outer addresses and offsets then.
///
/// # Errors
/// [`DropReason::Truncated`] where `meta`'s offsets leave the packet or there is no room before it;
/// nothing is changed then.
pub fn encapsulate(
    frame: &mut Frame,
    arena: &Arena,
    meta: &mut PacketMeta,
    outer: &Outer,
) -> Result<(), DropReason> {
    let (l3, end) = (usize::from(meta.l3), usize::from(meta.end));
    let more = outer.encap.overhead(outer.dst.is_v4());
    let inner_len = end.checked_sub(l3).ok_or(DropReason::Truncated)?;
    let fits = l3 == eth::HEADER_LEN && end <= frame.len();
    let whole_len = u16::try_from(inner_len + usize::from(more));
    let (true, Ok(_)) = (fits, whole_len) else { return Err(DropReason::Truncated) };
    if !frame.push_front(usize::from(more)) {
        return Err(DropReason::Truncated);
    }
    let within = if meta.is_v4() { IPV4_WITHIN } else { IPV6_WITHIN };
    // Link padding goes.
    frame.truncate(end + usize::from(more));
    write(frame.bytes_mut(arena), outer, within, meta.tos);
    for offset in [&mut meta.l4, &mut meta.payload, &mut meta.end] {
        *offset += more;
    }
    let proto = if outer.encap == Encap::Gue { udp::PROTOCOL } else { within };
    let (sport, dport) =
        if outer.encap == Encap::Gue { (outer.sport, outer.dport) } else { (0, 0) };
    meta.key = FlowKey { src: outer.src, dst: outer.dst, sport, dport, proto };
    Ok(())
}

/// Writes the headers before the inner packet. `bytes` is the whole frame.
fn write(bytes: &mut [u8], outer: &Outer, within: u8, tos: u8) {
    let &Outer { encap, src, dst, sport, dport, label } = outer;
    let kind = if dst.is_v4() { ethertype::IPV4 } else { ethertype::IPV6 };
    put_u16(bytes, eth::offset::ETHERTYPE, kind);
    let ip = &mut bytes[eth::HEADER_LEN..];
    let ip_len = if dst.is_v4() { ipv4::HEADER_LEN } else { ipv6::HEADER_LEN };
    let payload_len = (ip.len() - ip_len) as u16;
    let protocol = if encap == Encap::Gue { udp::PROTOCOL } else { within };
    if dst.is_v4() {
        let header = ipv4::Repr {
            tos,
            payload_len,
            // Atomic datagrams need no identification (RFC 6864, section 4.1).
            identification: 0,
            fragment: ipv4::DONT_FRAGMENT,
            ttl: TTL,
            protocol,
            source: src,
            destination: dst,
            options: &[],
        };
        header.emit(ip);
    } else {
        let header = ipv6::Repr {
            traffic_class: tos,
            flow_label: label,
            payload_len,
            next_header: protocol,
            hop_limit: TTL,
            source: src,
            destination: dst,
        };
        header.emit(ip);
    }
    if encap == Encap::Gue {
        let datagram = &mut ip[ip_len..];
        datagram[udp::HEADER_LEN..][..GUE_HEADER_LEN].copy_from_slice(&[0, within, 0, 0]);
        put_u16(datagram, udp::offset::SOURCE_PORT, sport);
        put_u16(datagram, udp::offset::DESTINATION_PORT, dport);
        put_u16(datagram, udp::offset::LENGTH, payload_len);
        // Over IPv4 there need be none: the inner packet has its own (RFC 768). Receivers over IPv6
        // refuse that, unless told otherwise (RFC 6936).
        put_u16(datagram, udp::offset::CHECKSUM, 0);
        if !dst.is_v4() {
            let sum = pseudo(src, dst, udp::PROTOCOL, payload_len).bytes(datagram).checksum();
            put_u16(datagram, udp::offset::CHECKSUM, if sum == 0 { u16::MAX } else { sum });
        }
    }
}

#[cfg(test)]
mod tests;
