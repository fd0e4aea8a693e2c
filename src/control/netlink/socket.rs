//! The netlink sockets: one hears notifications, one dumps, one asks for neighbours.

use std::io::ErrorKind;
use std::time::Duration;

use futures::channel::mpsc::UnboundedReceiver;
use futures::{FutureExt, StreamExt};
use netlink_packet_route::address::AddressMessage;
use netlink_packet_route::link::LinkMessage;
use netlink_packet_route::neighbour::NeighbourMessage;
use netlink_packet_route::route::RouteMessage;
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use rtnetlink::packet_core::{
    NLM_F_DUMP, NLM_F_DUMP_INTR, NLM_F_REQUEST, NetlinkMessage, NetlinkPayload,
};
use rtnetlink::sys::{AsyncSocket, SocketAddr};
use rtnetlink::{Handle, MulticastGroup};
use tokio::time::Instant;

use super::asker::Asker;
use super::decode;
use super::mirror::{Effect, Fact, Mirror, NeighbourState};
use crate::base::Addr;

/// Quiet after the last notification before a change is reported: a routing daemon writes in
/// bursts.
pub const SETTLE: Duration = Duration::from_millis(2);
/// Longest that a change waits for quiet.
pub const SETTLE_MAX: Duration = Duration::from_millis(20);
/// Dumps in a row that the kernel may call inconsistent (`NLM_F_DUMP_INTR`) before the last is
/// taken.
const DUMP_ATTEMPTS: u32 = 8;

/// Why the kernel's state can't be followed.
#[derive(Debug, thiserror::Error)]
pub enum NetlinkError {
    #[error("can't open a netlink socket: {0}")]
    Open(#[source] std::io::Error),
    #[error("can't read {what} over netlink: {reason}")]
    Dump { what: &'static str, reason: String },
    #[error("can't ask for a neighbour over netlink: {0}")]
    Ask(#[source] std::io::Error),
    #[error("the netlink socket was closed by the kernel")]
    Closed,
}

/// How to listen.
#[derive(Clone, Copy, Debug)]
pub struct NetlinkOptions {
    /// Asked for as `SO_RCVBUF`, bytes: notifications beyond it are lost and cost a resync. The
    /// kernel caps it at `net.core.rmem_max`.
    pub receive_buffer: usize,
}

impl Default for NetlinkOptions {
    fn default() -> NetlinkOptions {
        NetlinkOptions { receive_buffer: 4 << 20 }
    }
}

type Message = NetlinkMessage<RouteNetlinkMessage>;

#[derive(Clone, Copy, Debug)]
struct News {
    first: Instant,
    last: Instant,
}

/// A mirror of the current network namespace, kept true by its sockets.
pub struct Netlink {
    requests: Handle,
    asker: Asker,
    events: UnboundedReceiver<(Message, SocketAddr)>,
    mirror: Mirror,
    /// The mirror may be wrong.
    in_doubt: bool,
    /// Changes that matter, since the last refresh.
    unreported: bool,
    /// When there was news since the last refresh.
    news: Option<News>,
    resyncs: u64,
    /// Raised with every change of routes or links.
    routes_version: u64,
}

impl Netlink {
    /// Subscribes, then reads everything. Needs a tokio runtime with I/O on this thread.
    ///
    /// # Errors
    /// Sockets that can't be opened, or a dump that fails.
    pub async fn connect(options: NetlinkOptions) -> Result<Netlink, NetlinkError> {
        use MulticastGroup as G;
        let groups = [G::Link, G::Neigh, G::Ipv4Ifaddr, G::Ipv6Ifaddr, G::Ipv4Route, G::Ipv6Route];
        let (mut listen, _, events) =
            rtnetlink::new_multicast_connection(&groups).map_err(NetlinkError::Open)?;
        let socket = listen.socket_mut().socket_ref();
        socket.set_rx_buf_sz(options.receive_buffer as libc::c_int).map_err(NetlinkError::Open)?;
        tokio::spawn(listen);
        let (ask, requests, _) = rtnetlink::new_connection().map_err(NetlinkError::Open)?;
        tokio::spawn(ask);
        let mut netlink = Netlink {
            requests,
            asker: Asker::open().map_err(NetlinkError::Open)?,
            events,
            mirror: Mirror::default(),
            in_doubt: true,
            unreported: false,
            news: None,
            resyncs: 0,
            routes_version: 0,
        };
        netlink.refresh().await?;
        netlink.resyncs = 0;
        Ok(netlink)
    }

    pub fn mirror(&self) -> &Mirror {
        &self.mirror
    }

    /// Whole dumps taken since the first.
    pub fn resyncs(&self) -> u64 {
        self.resyncs
    }

    /// Differs from what it was if routes, links or addresses changed, not only neighbours.
    pub fn routes_version(&self) -> u64 {
        self.routes_version
    }

    /// [`Netlink::heard`], then [`Netlink::refresh`], until something has changed.
    ///
    /// # Errors
    /// Those of both.
    pub async fn changed(&mut self) -> Result<(), NetlinkError> {
        loop {
            self.heard().await?;
            if self.refresh().await? {
                return Ok(());
            }
        }
    }

    /// Waits until there was news and then quiet for [`SETTLE`], or news for [`SETTLE_MAX`] without
    /// a pause. Safe to cancel: what was heard is kept, and so is the time since.
    ///
    /// # Errors
    /// The kernel closing the socket.
    pub async fn heard(&mut self) -> Result<(), NetlinkError> {
        loop {
            let Some(news) = self.news else {
                self.next().await?;
                continue;
            };
            let until = (news.last + SETTLE).min(news.first + SETTLE_MAX);
            match tokio::time::timeout_at(until, self.next()).await {
                Ok(heard) => heard?,
                Err(_settled) => return Ok(()),
            }
        }
    }

    /// Brings the mirror into a state that can be relied upon, reading everything anew if in doubt.
    /// Returns whether it has changed in a way that matters to forwarding. Cancelled, it has done
    /// nothing.
    ///
    /// # Errors
    /// A dump failing.
    pub async fn refresh(&mut self) -> Result<bool, NetlinkError> {
        if self.in_doubt {
            self.resync().await?;
        }
        self.news = None;
        Ok(std::mem::take(&mut self.unreported))
    }

    /// Asks the kernel to resolve or confirm a neighbour, as if it had a packet for it: an entry is
    /// made where there is none, and probed unless it is known to be reachable. The outcome arrives
    /// as a change of the mirror.
    ///
    /// Nothing is asked about an entry that was set by hand: `NTF_USE` would turn it into an
    /// ordinary one, which then fails (`__neigh_update`, net/core/neighbour.c; seen on Linux 6.18).
    ///
    /// # Errors
    /// The kernel refusing to hear; not a lack of memory, which passes.
    pub fn resolve(&mut self, ifindex: u32, addr: Addr) -> Result<(), NetlinkError> {
        let known = self.mirror.neighbour(ifindex, addr);
        if known.is_some_and(|n| n.state == NeighbourState::Fixed) {
            return Ok(());
        }
        self.asker.ask(ifindex, addr).or_else(|error| match error.kind() {
            // Asked again before long, if it is still wanted.
            ErrorKind::WouldBlock | ErrorKind::OutOfMemory | ErrorKind::Interrupted => Ok(()),
            _ if error.raw_os_error() == Some(libc::ENOBUFS) => Ok(()),
            _ => Err(NetlinkError::Ask(error)),
        })
    }

    /// Takes one notification.
    async fn next(&mut self) -> Result<(), NetlinkError> {
        let (message, _) = self.events.next().await.ok_or(NetlinkError::Closed)?;
        self.take(message);
        Ok(())
    }

    fn take(&mut self, message: Message) {
        let effect = match message.payload {
            NetlinkPayload::InnerMessage(inner) => {
                match decode::fact(inner, message.header.flags) {
                    Some(fact) => self.apply(fact),
                    None => Effect::None,
                }
            }
            // The socket's buffer ran over (ENOBUFS): anything may have been missed.
            NetlinkPayload::Overrun(_) => Effect::Doubt,
            _ => Effect::None,
        };
        self.in_doubt |= effect == Effect::Doubt;
        if effect != Effect::None {
            self.unreported = true;
            let now = Instant::now();
            let first = self.news.map_or(now, |n| n.first);
            self.news = Some(News { first, last: now });
        }
    }

    fn apply(&mut self, fact: Fact) -> Effect {
        let of_neighbour = matches!(fact, Fact::Neighbour(..) | Fact::NeighbourGone(..));
        let effect = self.mirror.apply(fact);
        self.routes_version += u64::from(effect != Effect::None && !of_neighbour);
        effect
    }

    /// Reads everything anew. What is notified meanwhile is applied afterwards: facts that the dump
    /// already held change nothing.
    async fn resync(&mut self) -> Result<(), NetlinkError> {
        // Older than the dump that follows, so of no use any more.
        while let Some(Some(_)) = self.events.next().now_or_never() {}
        self.in_doubt = true;
        let mut fresh = Mirror::default();
        for attempt in 1..=DUMP_ATTEMPTS {
            fresh = Mirror::default();
            let consistent = self.dump_all(&mut fresh).await?;
            if consistent {
                break;
            }
            if attempt == DUMP_ATTEMPTS {
                tracing::warn!("kernel tables changed during {DUMP_ATTEMPTS} dumps in a row");
            }
        }
        self.unreported |= fresh != self.mirror;
        self.routes_version += u64::from(!fresh.same_routes(&self.mirror));
        self.mirror = fresh;
        self.in_doubt = false;
        self.resyncs += 1;
        Ok(())
    }

    /// Whether every part was consistent in itself.
    async fn dump_all(&mut self, into: &mut Mirror) -> Result<bool, NetlinkError> {
        use RouteNetlinkMessage as M;
        let mut all = self.dump("links", M::GetLink(LinkMessage::default()), into).await?;
        all &= self.dump("addresses", M::GetAddress(AddressMessage::default()), into).await?;
        for family in [AddressFamily::Inet, AddressFamily::Inet6] {
            let mut routes = RouteMessage::default();
            routes.header.address_family = family;
            all &= self.dump("routes", M::GetRoute(routes), into).await?;
            let mut neighbours = NeighbourMessage::default();
            neighbours.header.family = family;
            all &= self.dump("neighbours", M::GetNeighbour(neighbours), into).await?;
        }
        Ok(all)
    }

    async fn dump(
        &mut self,
        what: &'static str,
        question: RouteNetlinkMessage,
        into: &mut Mirror,
    ) -> Result<bool, NetlinkError> {
        let mut message = Message::from(question);
        message.header.flags = NLM_F_REQUEST | NLM_F_DUMP;
        let failed = |reason: String| NetlinkError::Dump { what, reason };
        let mut answer = self.requests.request(message).map_err(|e| failed(e.to_string()))?;
        let mut consistent = true;
        while let Some(part) = answer.next().await {
            consistent &= part.header.flags & NLM_F_DUMP_INTR == 0;
            match part.payload {
                NetlinkPayload::InnerMessage(inner) => {
                    if let Some(fact) = decode::fact(inner, part.header.flags) {
                        into.load(fact);
                    }
                }
                NetlinkPayload::Error(e) => return Err(failed(e.to_string())),
                NetlinkPayload::Overrun(_) => consistent = false,
                _ => {}
            }
        }
        Ok(consistent)
    }
}
