//! Reads rtnetlink messages as facts. Attributes and message kinds of no interest are passed over.

use netlink_packet_route::address::{AddressAttribute, AddressMessage};
use netlink_packet_route::link::{LinkAttribute, LinkFlags, LinkMessage};
use netlink_packet_route::neighbour::{
    NeighbourAddress, NeighbourAttribute, NeighbourFlags, NeighbourMessage, NeighbourState as Nud,
};
use netlink_packet_route::route::{
    RouteAddress, RouteAttribute, RouteFlags, RouteMessage, RouteNextHopFlags, RouteType, RouteVia,
};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use rtnetlink::packet_core::{NLM_F_APPEND, NLM_F_EXCL, NLM_F_REPLACE};

use super::mirror::{
    Fact, Insert, Link, Neighbour, NeighbourState, NextHop, OTHER_TABLES, RouteKey, RouteKind,
};
use crate::base::{Addr, Prefix};

/// The fact in a message with the given `NLM_F_*` flags; `None` where it is of no interest, as are
/// routes of tables other than the kernel's usual ones and `tables`.
pub fn fact(message: RouteNetlinkMessage, flags: u16, tables: &[u32]) -> Option<Fact> {
    use RouteNetlinkMessage as M;
    match message {
        M::NewLink(m) => link(&m).map(Fact::Link),
        M::DelLink(m) if m.header.interface_family == AddressFamily::Unspec => {
            Some(Fact::LinkGone(m.header.index))
        }
        M::NewAddress(m) => address(&m).map(|a| Fact::Address(m.header.index, a)),
        M::DelAddress(m) => address(&m).map(|a| Fact::AddressGone(m.header.index, a)),
        M::NewRoute(m) => {
            route(&m, tables).map(|(key, hops)| Fact::Route(key, hops, insert(flags)))
        }
        M::DelRoute(m) => route(&m, tables).map(|(key, hops)| Fact::RouteGone(key, hops)),
        M::NewNeighbour(m) => neighbour(&m).map(|(i, a, n)| Fact::Neighbour(i, a, n)),
        M::DelNeighbour(m) => neighbour(&m).map(|(i, a, _)| Fact::NeighbourGone(i, a)),
        _ => None,
    }
}

fn insert(flags: u16) -> Insert {
    if flags & NLM_F_REPLACE != 0 {
        Insert::Replace
    } else if flags & NLM_F_EXCL != 0 && flags & NLM_F_APPEND == 0 {
        Insert::New
    } else {
        Insert::Stack
    }
}

fn link(m: &LinkMessage) -> Option<Link> {
    // Bridge ports are also told of as AF_BRIDGE messages, with fewer attributes.
    if m.header.interface_family != AddressFamily::Unspec {
        return None;
    }
    let mut link = Link {
        ifindex: m.header.index,
        name: String::new(),
        mac: None,
        mtu: 0,
        up: m.header.flags.contains(LinkFlags::Up),
        carrier: m.header.flags.contains(LinkFlags::LowerUp),
    };
    for attribute in &m.attributes {
        match attribute {
            LinkAttribute::IfName(name) => link.name.clone_from(name),
            LinkAttribute::Mtu(mtu) => link.mtu = *mtu,
            LinkAttribute::Address(bytes) => link.mac = bytes.as_slice().try_into().ok(),
            _ => {}
        }
    }
    (!link.name.is_empty()).then_some(link)
}

fn address(m: &AddressMessage) -> Option<Addr> {
    let mut found = None;
    for attribute in &m.attributes {
        match attribute {
            // IFA_ADDRESS is the peer's on point-to-point links; IFA_LOCAL is ours there.
            AddressAttribute::Local(ip) => return Some(Addr::from(*ip)),
            AddressAttribute::Address(ip) => found = Some(Addr::from(*ip)),
            _ => {}
        }
    }
    found
}

/// RT_TABLE_* of linux/rtnetlink.h in the order of the kernel's default rules, then `others`.
fn table_rank(table: u32, others: &[u32]) -> Option<u8> {
    match table {
        255 => Some(0),
        254 => Some(1),
        253 => Some(2),
        _ => {
            let at = others.iter().position(|other| *other == table)?;
            u8::try_from(at + usize::from(OTHER_TABLES)).ok()
        }
    }
}

fn kind(kind: RouteType) -> Option<RouteKind> {
    Some(match kind {
        RouteType::Unicast => RouteKind::Unicast,
        RouteType::Local | RouteType::Broadcast | RouteType::Anycast | RouteType::Multicast => {
            RouteKind::Local
        }
        RouteType::BlackHole => RouteKind::Blackhole,
        // Nothing but an empty table follows the ones we mirror: a throw ends nowhere.
        RouteType::Unreachable | RouteType::Throw => RouteKind::Unreachable,
        RouteType::Prohibit => RouteKind::Prohibit,
        _ => return None,
    })
}

fn route(m: &RouteMessage, tables: &[u32]) -> Option<(RouteKey, Vec<NextHop>)> {
    let unspecified = match m.header.address_family {
        AddressFamily::Inet => Addr::v4(0),
        AddressFamily::Inet6 => Addr::UNSPECIFIED,
        _ => return None,
    };
    // Cloned entries are the kernel's per-destination cache; routes for one TOS or one source are
    // for policy routing, which is not mirrored.
    if m.header.flags.contains(RouteFlags::Cloned)
        || m.header.tos != 0
        || m.header.source_prefix_length != 0
    {
        return None;
    }
    let kind = kind(m.header.kind)?;
    let mut table = u32::from(m.header.table);
    let (mut metric, mut destination) = (0, unspecified);
    let mut single = NextHop { kind, via: None, ifindex: 0, weight: 1 };
    let mut hops = Vec::new();
    for attribute in &m.attributes {
        match attribute {
            RouteAttribute::Table(t) => table = *t,
            RouteAttribute::Priority(p) => metric = *p,
            RouteAttribute::Destination(a) => destination = ip(a)?,
            RouteAttribute::Oif(i) => single.ifindex = *i,
            RouteAttribute::MultiPath(ways) => {
                for way in ways {
                    let dead = way.flags.contains(RouteNextHopFlags::Dead);
                    if !dead {
                        let ifindex = way.interface_index;
                        // The kernel counts from 0.
                        let weight = u16::from(way.hops) + 1;
                        let hop = NextHop { kind, via: None, ifindex, weight };
                        hops.push(with_gateway(hop, &way.attributes));
                    }
                }
            }
            _ => {}
        }
    }
    if hops.is_empty() {
        hops.push(with_gateway(single, &m.attributes));
    }
    if m.header.flags.contains(RouteFlags::Dead) {
        return None;
    }
    let prefix = Prefix::new(destination, m.header.destination_prefix_length).ok()?;
    Some((RouteKey { prefix, table: table_rank(table, tables)?, metric }, hops))
}

fn with_gateway(mut hop: NextHop, attributes: &[RouteAttribute]) -> NextHop {
    for attribute in attributes {
        match attribute {
            RouteAttribute::Gateway(a) => hop.via = ip(a),
            // An IPv4 route by way of an IPv6 neighbour (RFC 5549).
            RouteAttribute::Via(RouteVia::Inet(a)) => hop.via = Some(Addr::from(*a)),
            RouteAttribute::Via(RouteVia::Inet6(a)) => hop.via = Some(Addr::from(*a)),
            _ => {}
        }
    }
    hop
}

fn ip(a: &RouteAddress) -> Option<Addr> {
    match a {
        RouteAddress::Inet(a) => Some(Addr::from(*a)),
        RouteAddress::Inet6(a) => Some(Addr::from(*a)),
        _ => None,
    }
}

fn neighbour(m: &NeighbourMessage) -> Option<(u32, Addr, Neighbour)> {
    // Proxy entries say for whom the kernel answers, not where somebody is.
    if m.header.flags.contains(NeighbourFlags::Proxy) {
        return None;
    }
    let mut addr = None;
    let mut mac = None;
    for attribute in &m.attributes {
        match attribute {
            NeighbourAttribute::Destination(NeighbourAddress::Inet(a)) => {
                addr = Some(Addr::from(*a));
            }
            NeighbourAttribute::Destination(NeighbourAddress::Inet6(a)) => {
                addr = Some(Addr::from(*a));
            }
            NeighbourAttribute::LinkLayerAddress(bytes) => mac = bytes.as_slice().try_into().ok(),
            _ => {}
        }
    }
    let state = match m.header.state {
        Nud::Reachable | Nud::Delay | Nud::Probe => NeighbourState::Fresh,
        Nud::Stale => NeighbourState::Stale,
        Nud::Permanent | Nud::Noarp => NeighbourState::Fixed,
        Nud::Failed => NeighbourState::Failed,
        _ => NeighbourState::Incomplete,
    };
    // Failed and incomplete entries may still carry the address that no longer answers.
    let usable = !matches!(state, NeighbourState::Failed | NeighbourState::Incomplete);
    // Addresses of groups are computed, not resolved, and never forwarded to.
    let addr = addr.filter(|a| !a.to_ip().is_multicast())?;
    Some((m.header.ifindex, addr, Neighbour { state, mac: mac.filter(|_| usable) }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::Ipv4Addr;

    fn route_message(kind: RouteType, attributes: Vec<RouteAttribute>) -> RouteMessage {
        let mut m = RouteMessage::default();
        m.header.address_family = AddressFamily::Inet;
        m.header.table = 254;
        m.header.kind = kind;
        m.attributes = attributes;
        m
    }

    #[test]
    fn a_default_route_has_no_destination_attribute() {
        let gateway = RouteAttribute::Gateway(RouteAddress::Inet(Ipv4Addr::new(192, 0, 2, 1)));
        let m = route_message(RouteType::Unicast, vec![gateway, RouteAttribute::Oif(3)]);
        let (key, hops) = route(&m, &[]).expect("a route");
        assert_eq!(key.prefix.to_string(), "0.0.0.0/0");
        assert_eq!((hops[0].ifindex, hops[0].via), (3, Some("192.0.2.1".parse().expect("lit"))));
    }

    #[test]
    fn other_tables_and_cached_entries_are_passed_over() {
        let m = route_message(RouteType::Unicast, vec![RouteAttribute::Table(100)]);
        assert_eq!(route(&m, &[]), None);
        assert_eq!(route(&m, &[7]), None);
        assert_eq!(route(&m, &[7, 100]).map(|(key, _)| key.table), Some(OTHER_TABLES + 1));
        let mut m = route_message(RouteType::Unicast, vec![]);
        m.header.flags = RouteFlags::Cloned;
        assert_eq!(route(&m, &[]), None);
        let m = route_message(RouteType::BlackHole, vec![]);
        assert_eq!(route(&m, &[]).expect("a route").1[0].kind, RouteKind::Blackhole);
    }

    #[test]
    fn a_failed_neighbour_has_no_usable_address() {
        let mut m = NeighbourMessage::default();
        m.header.family = AddressFamily::Inet;
        m.header.ifindex = 2;
        m.attributes = vec![
            NeighbourAttribute::Destination(NeighbourAddress::Inet(Ipv4Addr::new(10, 0, 0, 1))),
            NeighbourAttribute::LinkLayerAddress(vec![2, 0, 0, 0, 0, 1]),
        ];
        for (nud, usable) in
            [(Nud::Reachable, true), (Nud::Stale, true), (Nud::Failed, false), (Nud::None, false)]
        {
            m.header.state = nud;
            let (_, _, n) = neighbour(&m).expect("a neighbour");
            assert_eq!(n.mac.is_some(), usable, "{n:?}");
        }
    }
}
