//! Asks the kernel for neighbours: a socket of its own, written to directly.
//!
//! The connection that dumps use sends one message each time it is woken, and only an answer wakes
//! it again: of several questions without an answer the later ones would wait for seconds
//! (`poll_send_messages` of netlink-proto 0.14).

use std::io;

use netlink_packet_route::neighbour::{
    NeighbourAddress, NeighbourAttribute, NeighbourFlags, NeighbourMessage,
};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use rtnetlink::packet_core::{NLM_F_CREATE, NLM_F_REQUEST, NetlinkMessage};
use rtnetlink::sys::{Socket, SocketAddr, protocols::NETLINK_ROUTE};

use crate::base::Addr;

/// Complaints of the kernel that are read away at once, and their size.
const COMPLAINTS_MAX: usize = 64;
const COMPLAINT_BYTES_MAX: usize = 4_096;

/// The socket.
pub struct Asker {
    socket: Socket,
}

impl Asker {
    /// # Errors
    /// The kernel refusing a socket.
    pub fn open() -> io::Result<Asker> {
        let socket = Socket::new(NETLINK_ROUTE)?;
        socket.set_non_blocking(true)?;
        Ok(Asker { socket })
    }

    /// Has the kernel resolve or confirm a neighbour, as if it had a packet for it (`NTF_USE`). It
    /// has heard when this returns; what comes of it is a notification.
    ///
    /// # Errors
    /// The kernel not taking the message, for want of memory.
    pub fn ask(&self, ifindex: u32, addr: Addr) -> io::Result<()> {
        let ip = addr.to_ip();
        let mut ask = NeighbourMessage::default();
        ask.header.family = if ip.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
        ask.header.ifindex = ifindex;
        ask.header.flags = NeighbourFlags::Use;
        ask.attributes.push(NeighbourAttribute::Destination(NeighbourAddress::from(ip)));
        let mut message = NetlinkMessage::from(RouteNetlinkMessage::NewNeighbour(ask));
        message.header.flags = NLM_F_REQUEST | NLM_F_CREATE;
        message.finalize();
        let mut bytes = vec![0; message.buffer_len()];
        message.serialize(&mut bytes);
        self.socket.send_to(&bytes, &SocketAddr::new(0, 0), 0)?;
        self.read_complaints();
        Ok(())
    }

    /// Refusals, of an interface that is gone say, come back here: asking again is up to whoever
    /// waits for the neighbour.
    fn read_complaints(&self) {
        let mut bytes = Vec::with_capacity(COMPLAINT_BYTES_MAX);
        for _ in 0..COMPLAINTS_MAX {
            bytes.clear();
            if self.socket.recv(&mut bytes, 0).is_err() {
                return;
            }
        }
    }
}
