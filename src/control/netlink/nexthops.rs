//! Hears of the kernel's nexthop objects, of which routes consist where FRR installs them.
//!
//! When one goes, the kernel takes it out of groups, and routes that have no other with it, and
//! says so of the nexthops alone (`__remove_nexthop`, net/ipv4/nexthop.c). What has become of the
//! routes is then to be read anew. A change of a nexthop is told of each route that uses it
//! (`net.ipv4.nexthop_compat_mode`, on by default).

use std::future::poll_fn;
use std::io;

use rtnetlink::sys::protocols::NETLINK_ROUTE;
use rtnetlink::sys::{AsyncSocket, SocketAddr, TokioSocket};

/// linux/rtnetlink.h.
const RTNLGRP_NEXTHOP: u32 = 32;
const RTM_NEWNEXTHOP: u16 = 104;
const RTM_DELNEXTHOP: u16 = 105;
/// `struct nlmsghdr` of linux/netlink.h; behind it `struct nhmsg` begins with the family.
const HEADER_LEN: usize = 16;
const TYPE_OFFSET: usize = 4;
/// Groups have no family.
const AF_UNSPEC: u8 = 0;
/// Longer notifications are cut; what matters of each stands at its begin.
const BUFFER_BYTES: usize = 65_536;

/// The socket.
pub struct Nexthops {
    socket: TokioSocket,
    buffer: Vec<u8>,
}

impl Nexthops {
    /// Needs a tokio runtime with I/O on this thread.
    ///
    /// # Errors
    /// The kernel refusing a socket.
    pub fn open() -> io::Result<Nexthops> {
        let mut socket = TokioSocket::new(NETLINK_ROUTE)?;
        socket.socket_mut().bind(&SocketAddr::new(0, 0))?;
        socket.socket_mut().add_membership(RTNLGRP_NEXTHOP)?;
        Ok(Nexthops { socket, buffer: Vec::with_capacity(BUFFER_BYTES) })
    }

    /// Waits for news that may have changed routes in silence. Safe to cancel.
    ///
    /// # Errors
    /// The kernel closing the socket.
    pub async fn heard(&mut self) -> io::Result<()> {
        loop {
            let Nexthops { socket, buffer } = self;
            buffer.clear();
            match poll_fn(|cx| socket.poll_recv(cx, buffer)).await {
                Ok(()) if buffer.is_empty() => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(()) if matters(buffer) => return Ok(()),
                Ok(()) => {}
                // Some were lost, and nobody knows which.
                Err(e) if e.raw_os_error() == Some(libc::ENOBUFS) => return Ok(()),
                Err(e) => return Err(e),
            }
        }
    }
}

/// Whether one of the messages tells of a nexthop that goes, or of a group, which may have shrunk.
fn matters(mut bytes: &[u8]) -> bool {
    while let Some((len, _)) = bytes.split_first_chunk::<4>()
        && bytes.len() > HEADER_LEN
    {
        let len = u32::from_ne_bytes(*len) as usize;
        let kind = u16::from_ne_bytes([bytes[TYPE_OFFSET], bytes[TYPE_OFFSET + 1]]);
        if kind == RTM_DELNEXTHOP || kind == RTM_NEWNEXTHOP && bytes[HEADER_LEN] == AF_UNSPEC {
            return true;
        }
        // Messages are aligned to 4 bytes.
        let next = len.max(HEADER_LEN).next_multiple_of(4);
        bytes = bytes.get(next..).unwrap_or_default();
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(kind: u16, family: u8) -> Vec<u8> {
        let mut bytes = vec![0; 26];
        bytes[..4].copy_from_slice(&26u32.to_ne_bytes());
        bytes[4..6].copy_from_slice(&kind.to_ne_bytes());
        bytes[16] = family;
        bytes.resize(28, 0);
        bytes
    }

    #[test]
    fn single_nexthops_that_come_are_passed_over() {
        let (new, other) = (message(RTM_NEWNEXTHOP, 2), message(24, 0));
        assert!(!matters(&new) && !matters(&[other.clone(), new.clone()].concat()));
        for news in [message(RTM_DELNEXTHOP, 2), message(RTM_NEWNEXTHOP, 0)] {
            assert!(matters(&news) && matters(&[new.clone(), other.clone(), news].concat()));
        }
    }

    #[test]
    fn cut_messages_are_read_as_far_as_they_go() {
        let whole = [message(RTM_NEWNEXTHOP, 2), message(RTM_DELNEXTHOP, 2)].concat();
        for len in 0..whole.len() {
            let _ = matters(&whole[..len]);
        }
        let mut endless = message(RTM_NEWNEXTHOP, 2);
        endless[..4].fill(0);
        assert!(!matters(&endless));
    }
}
