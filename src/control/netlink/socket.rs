//! The netlink sockets: one hears notifications, one those of nexthops, one dumps, one asks for
//! neighbours.

use std::collections::BTreeSet;
use std::io::ErrorKind;
use std::time::Duration;

use futures::channel::mpsc::UnboundedReceiver;
use futures::{FutureExt, StreamExt};
use netlink_packet_route::RouteNetlinkMessage;
use rtnetlink::packet_core::{NetlinkMessage, NetlinkPayload};
use rtnetlink::sys::{AsyncSocket, SocketAddr};
use rtnetlink::{Handle, MulticastGroup};
use tokio::time::Instant;

use super::asker::Asker;
use super::decode;
use super::mirror::{Effect, Fact, Mirror, NeighbourState, TablePrefix};
use super::nexthops::Nexthops;
use super::resync::{Fresh, Resync};
use crate::base::Addr;

/// Quiet after the last notification before a change is reported: a routing daemon writes in
/// bursts.
pub const SETTLE: Duration = Duration::from_millis(2);
/// Longest that a change waits for quiet.
pub const SETTLE_MAX: Duration = Duration::from_millis(20);

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
#[derive(Clone, Debug)]
pub struct NetlinkOptions {
    /// Asked for as `SO_RCVBUF`, bytes: notifications beyond it are lost and cost a resync. The
    /// kernel caps it at `net.core.rmem_max`.
    pub receive_buffer: usize,
    /// Tables of routes that are mirrored beside the local, the main and the default one.
    pub tables: Vec<u32>,
}

impl Default for NetlinkOptions {
    fn default() -> NetlinkOptions {
        NetlinkOptions { receive_buffer: 4 << 20, tables: Vec::new() }
    }
}

pub type Message = NetlinkMessage<RouteNetlinkMessage>;

#[derive(Clone, Copy, Debug)]
struct News {
    first: Instant,
    last: Instant,
}

/// What changed since it was asked last, as far as it matters to forwarding.
#[derive(Debug, Default)]
pub struct Changes {
    /// Where there are other routes.
    pub places: BTreeSet<TablePrefix>,
    /// Links, addresses or neighbours are others.
    pub rest: bool,
}

impl Changes {
    pub fn is_empty(&self) -> bool {
        self.places.is_empty() && !self.rest
    }
}

/// A mirror of the current network namespace, kept true by its sockets.
pub struct Netlink {
    requests: Handle,
    asker: Asker,
    events: UnboundedReceiver<(Message, SocketAddr)>,
    nexthops: Nexthops,
    mirror: Mirror,
    /// The mirror may be wrong.
    in_doubt: bool,
    /// Under way.
    resync: Option<Resync>,
    /// Tables that are mirrored beside the usual ones.
    tables: Vec<u32>,
    /// Not taken yet.
    changes: Changes,
    /// When there was news since changes were taken.
    news: Option<News>,
    resyncs: u64,
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
            nexthops: Nexthops::open().map_err(NetlinkError::Open)?,
            mirror: Mirror::default(),
            in_doubt: true,
            resync: None,
            tables: options.tables,
            changes: Changes::default(),
            news: None,
            resyncs: 0,
        };
        netlink.read_anew().await?;
        (netlink.resyncs, netlink.changes) = (0, Changes::default());
        Ok(netlink)
    }

    pub fn mirror(&self) -> &Mirror {
        &self.mirror
    }

    /// Whole dumps taken since the first.
    pub fn resyncs(&self) -> u64 {
        self.resyncs
    }

    /// [`Netlink::heard`], then [`Netlink::take_changes`], until something has changed.
    ///
    /// # Errors
    /// As [`Netlink::heard`].
    pub async fn changed(&mut self) -> Result<Changes, NetlinkError> {
        loop {
            self.heard().await?;
            let changes = self.take_changes();
            if !changes.is_empty() {
                return Ok(changes);
            }
        }
    }

    /// Waits until there was news and then quiet for [`SETTLE`], or news for [`SETTLE_MAX`] without
    /// a pause; and until everything is read anew, if the mirror may be wrong. Safe to cancel: what
    /// was heard and read is kept, and so is the time since.
    ///
    /// # Errors
    /// The kernel closing the socket; a dump failing.
    pub async fn heard(&mut self) -> Result<(), NetlinkError> {
        while self.resync.is_none() {
            let Some(news) = self.news else {
                self.next().await?;
                continue;
            };
            let until = (news.last + SETTLE).min(news.first + SETTLE_MAX);
            match tokio::time::timeout_at(until, self.next()).await {
                Ok(heard) => heard?,
                Err(_settled) => break,
            }
        }
        if self.in_doubt { self.read_anew().await } else { Ok(()) }
    }

    /// What has changed, up to now.
    pub fn take_changes(&mut self) -> Changes {
        if !self.in_doubt {
            self.news = None;
        }
        std::mem::take(&mut self.changes)
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
        tokio::select! {
            event = self.events.next() => {
                let (message, _) = event.ok_or(NetlinkError::Closed)?;
                self.take(message);
            }
            heard = self.nexthops.heard() => {
                heard.map_err(|_| NetlinkError::Closed)?;
                self.in_doubt = true;
                self.mark_news();
            }
        }
        Ok(())
    }

    fn take(&mut self, message: Message) {
        let effect = match message.payload {
            NetlinkPayload::InnerMessage(inner) => {
                match decode::fact(inner, message.header.flags, &self.tables) {
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
            self.mark_news();
        }
    }

    fn mark_news(&mut self) {
        let now = Instant::now();
        let first = self.news.map_or(now, |n| n.first);
        self.news = Some(News { first, last: now });
    }

    fn apply(&mut self, fact: Fact) -> Effect {
        let place = match &fact {
            Fact::Route(key, ..) | Fact::RouteGone(key, _) => Some(key.place()),
            _ => None,
        };
        let effect = self.mirror.apply(fact);
        // Also where more may have changed than this.
        if effect != Effect::None {
            match place {
                Some(place) => drop(self.changes.places.insert(place)),
                None => self.changes.rest = true,
            }
        }
        effect
    }

    /// Reads everything anew. Cancelled, it goes on where it was.
    async fn read_anew(&mut self) -> Result<(), NetlinkError> {
        let resync = self.resync.get_or_insert_with(|| {
            // Older than the dump that follows, so of no use any more.
            while let Some(Some(_)) = self.events.next().now_or_never() {}
            Resync::new()
        });
        let read = resync.read(&self.requests, &mut self.events, &self.tables).await;
        self.resync = None;
        let Fresh { mirror, later, missed } = read?;
        self.changes.places.append(&mut mirror.places_unlike(&self.mirror));
        self.changes.rest |= !mirror.same_but_routes(&self.mirror);
        (self.mirror, self.in_doubt) = (mirror, missed);
        self.resyncs += 1;
        if missed {
            self.mark_news();
        }
        later.into_iter().for_each(|message| self.take(message));
        Ok(())
    }
}
