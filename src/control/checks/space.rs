//! The network namespace that checks have their sockets in: a device that this process is the other
//! end of, and nothing else. It has no name, so that it ends with the process, however that ends.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use netlink_packet_route::address::{AddressAttribute, AddressMessage};
use netlink_packet_route::link::{LinkAttribute, LinkFlags, LinkMessage};
use netlink_packet_route::route::{RouteAttribute, RouteMessage, RouteProtocol, RouteType};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use nix::sched::{CloneFlags, unshare};
use rtnetlink::packet_core::{
    NLM_F_ACK, NLM_F_CREATE, NLM_F_REQUEST, NetlinkMessage, NetlinkPayload,
};
use rtnetlink::sys::{Socket, SocketAddr, protocols::NETLINK_ROUTE};

use crate::forward::checks::PACKET_BYTES_MAX;
use crate::nic::tun::Tun;

/// Addresses of sockets in there, never seen outside: IPv4's dummy (RFC 7600), and one of those
/// that lead nowhere (RFC 6666).
pub const INNER4: Ipv4Addr = Ipv4Addr::new(192, 0, 0, 8);
pub const INNER6: Ipv6Addr = Ipv6Addr::new(0x100, 0, 0, 0, 0, 0, 0, 1);

const DEVICE: &str = "checks";
/// `RT_TABLE_MAIN` of rtnetlink(7).
const TABLE_MAIN: u8 = 254;
/// Read-only in some containers.
const TIME_WAIT_REUSE: &str = "/proc/sys/net/ipv4/tcp_tw_reuse";
const ANSWER_BYTES: usize = 4_096;

/// Moves the calling thread, for good, into a namespace of its own with one device.
///
/// # Errors
/// No `CAP_SYS_ADMIN` or `CAP_NET_ADMIN`, or no TUN devices here; the text says which.
pub fn enter() -> io::Result<Tun> {
    unshare(CloneFlags::CLONE_NEWNET).map_err(|e| what("a network namespace", e.into()))?;
    let tun = Tun::open(DEVICE).map_err(|e| what("a TUN device (/dev/net/tun)", e))?;
    let index = nix::net::if_::if_nametoindex(DEVICE)?;
    let mut socket = Socket::new(NETLINK_ROUTE)?;
    socket.bind_auto()?;
    ask(&mut socket, link(index), 0).map_err(|e| what("a link of its own", e))?;
    for ip in [IpAddr::from(INNER4), IpAddr::from(INNER6)] {
        let made = ask(&mut socket, address(index, ip), NLM_F_CREATE)
            .and_then(|()| ask(&mut socket, route(index, ip), NLM_F_CREATE));
        match made {
            // A kernel without IPv6 can have no backends of it either.
            Err(error) if ip.is_ipv6() => tracing::debug!(%error, "no IPv6 for health checks"),
            made => made.map_err(|e| what("an address of its own", e))?,
        }
    }
    // A check may come from the port of one that has ended a moment ago.
    if let Err(error) = std::fs::write(TIME_WAIT_REUSE, "1") {
        tracing::warn!(%error, "{TIME_WAIT_REUSE}: ports of health checks are free again later");
    }
    Ok(tun)
}

fn what(what: &str, error: io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("{what}: {error}"))
}

fn link(index: u32) -> RouteNetlinkMessage {
    let mut link = LinkMessage::default();
    link.header.index = index;
    (link.header.flags, link.header.change_mask) = (LinkFlags::Up, LinkFlags::Up);
    link.attributes.push(LinkAttribute::Mtu(PACKET_BYTES_MAX as u32));
    RouteNetlinkMessage::SetLink(link)
}

fn address(index: u32, ip: IpAddr) -> RouteNetlinkMessage {
    let mut address = AddressMessage::default();
    (address.header.family, address.header.index) = (family(ip), index);
    address.header.prefix_len = if ip.is_ipv4() { 32 } else { 128 };
    address.attributes.extend([AddressAttribute::Local(ip), AddressAttribute::Address(ip)]);
    RouteNetlinkMessage::NewAddress(address)
}

fn route(index: u32, ip: IpAddr) -> RouteNetlinkMessage {
    let mut route = RouteMessage::default();
    (route.header.address_family, route.header.table) = (family(ip), TABLE_MAIN);
    (route.header.kind, route.header.protocol) = (RouteType::Unicast, RouteProtocol::Static);
    route.attributes.push(RouteAttribute::Oif(index));
    RouteNetlinkMessage::NewRoute(route)
}

fn family(ip: IpAddr) -> AddressFamily {
    if ip.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 }
}

/// Asks, and waits for the acknowledgement, which the kernel has sent by then.
fn ask(socket: &mut Socket, message: RouteNetlinkMessage, flags: u16) -> io::Result<()> {
    let mut message = NetlinkMessage::from(message);
    message.header.flags = NLM_F_REQUEST | NLM_F_ACK | flags;
    message.finalize();
    let mut bytes = vec![0; message.buffer_len()];
    message.serialize(&mut bytes);
    socket.send_to(&bytes, &SocketAddr::new(0, 0), 0)?;
    let mut answer = Vec::with_capacity(ANSWER_BYTES);
    socket.recv(&mut answer, 0)?;
    let answer = NetlinkMessage::<RouteNetlinkMessage>::deserialize(&answer)
        .map_err(|e| io::Error::new(io::ErrorKind::InvalidData, e.to_string()))?;
    match answer.payload {
        NetlinkPayload::Error(e) if e.code.is_some() => Err(e.to_io()),
        _ => Ok(()),
    }
}
