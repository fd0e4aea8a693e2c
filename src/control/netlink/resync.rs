//! Reading everything anew, a message at a time, so that others have their turn meanwhile.

use futures::StreamExt;
use futures::channel::mpsc::UnboundedReceiver;
use futures::stream::BoxStream;
use netlink_packet_route::address::AddressMessage;
use netlink_packet_route::link::LinkMessage;
use netlink_packet_route::neighbour::NeighbourMessage;
use netlink_packet_route::route::RouteMessage;
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use rtnetlink::Handle;
use rtnetlink::packet_core::{
    NLM_F_DUMP, NLM_F_DUMP_INTR, NLM_F_REQUEST, NetlinkMessage, NetlinkPayload,
};

use super::decode;
use super::mirror::Mirror;
use super::socket::{Message, NetlinkError};

/// Dumps in a row that the kernel may call inconsistent (`NLM_F_DUMP_INTR`) before the last is
/// taken.
const DUMP_ATTEMPTS: u32 = 8;
/// Notifications that are kept while everything is read. With more it is read once again.
const LATER_MAX: usize = 65_536;
/// Messages taken before others have their turn.
const MESSAGES_A_TURN: u32 = 512;

/// A mirror in the making. Whoever stops waiting for it can go on later.
pub struct Resync {
    fresh: Mirror,
    /// The answer to the question of this number, counted from 0.
    answer: Option<BoxStream<'static, Message>>,
    question: usize,
    consistent: bool,
    attempt: u32,
    taken: u32,
    later: Vec<Message>,
    missed: bool,
}

/// What came of it.
pub struct Fresh {
    pub mirror: Mirror,
    /// What was notified meanwhile, in order: facts that are known already change nothing.
    pub later: Vec<Message>,
    /// More was notified than is kept.
    pub missed: bool,
}

impl Resync {
    pub fn new() -> Resync {
        Resync {
            fresh: Mirror::default(),
            answer: None,
            question: 0,
            consistent: true,
            attempt: 1,
            taken: 0,
            later: Vec::new(),
            missed: false,
        }
    }

    /// Reads on, to the end. Cancelled, it keeps what it has read.
    ///
    /// # Errors
    /// A dump failing; the kernel closing the socket of `events`.
    pub async fn read(
        &mut self,
        requests: &Handle,
        events: &mut UnboundedReceiver<(Message, rtnetlink::sys::SocketAddr)>,
        tables: &[u32],
    ) -> Result<Fresh, NetlinkError> {
        loop {
            let Some(answer) = &mut self.answer else {
                match question(self.question) {
                    Some((what, message)) => self.answer = Some(ask(requests, what, message)?),
                    None if !self.consistent && self.attempt < DUMP_ATTEMPTS => self.start_over(),
                    None => return Ok(self.finish()),
                }
                continue;
            };
            tokio::select! {
                part = answer.next() => self.take(part, tables)?,
                event = events.next() => {
                    let (message, _) = event.ok_or(NetlinkError::Closed)?;
                    self.keep(message);
                }
            }
            self.taken = self.taken.wrapping_add(1);
            if self.taken.is_multiple_of(MESSAGES_A_TURN) {
                tokio::task::yield_now().await;
            }
        }
    }

    /// What was notified before is older than what will be read.
    fn start_over(&mut self) {
        let attempt = self.attempt + 1;
        *self = Resync { attempt, ..Resync::new() };
    }

    fn finish(&mut self) -> Fresh {
        if !self.consistent {
            tracing::warn!("kernel tables changed during {DUMP_ATTEMPTS} dumps in a row");
        }
        let done = std::mem::replace(self, Resync::new());
        Fresh { mirror: done.fresh, later: done.later, missed: done.missed }
    }

    fn keep(&mut self, message: Message) {
        if self.later.len() < LATER_MAX && !self.missed {
            self.later.push(message);
        } else {
            self.missed = true;
            self.later.clear();
        }
    }

    fn take(&mut self, part: Option<Message>, tables: &[u32]) -> Result<(), NetlinkError> {
        let Some(part) = part else {
            (self.answer, self.question) = (None, self.question + 1);
            return Ok(());
        };
        self.consistent &= part.header.flags & NLM_F_DUMP_INTR == 0;
        match part.payload {
            NetlinkPayload::InnerMessage(inner) => {
                if let Some(fact) = decode::fact(inner, part.header.flags, tables) {
                    self.fresh.load(fact);
                }
            }
            NetlinkPayload::Error(e) => {
                let what = question(self.question).map_or("the end", |(what, _)| what);
                return Err(NetlinkError::Dump { what, reason: e.to_string() });
            }
            NetlinkPayload::Overrun(_) => self.consistent = false,
            _ => {}
        }
        Ok(())
    }
}

/// The questions, in the order in which they are asked.
fn question(number: usize) -> Option<(&'static str, RouteNetlinkMessage)> {
    use RouteNetlinkMessage as M;
    let family = if number.is_multiple_of(2) { AddressFamily::Inet } else { AddressFamily::Inet6 };
    Some(match number {
        0 => ("links", M::GetLink(LinkMessage::default())),
        1 => ("addresses", M::GetAddress(AddressMessage::default())),
        2 | 3 => {
            let mut routes = RouteMessage::default();
            routes.header.address_family = family;
            ("routes", M::GetRoute(routes))
        }
        4 | 5 => {
            let mut neighbours = NeighbourMessage::default();
            neighbours.header.family = family;
            ("neighbours", M::GetNeighbour(neighbours))
        }
        _ => return None,
    })
}

fn ask(
    requests: &Handle,
    what: &'static str,
    question: RouteNetlinkMessage,
) -> Result<BoxStream<'static, Message>, NetlinkError> {
    let mut message = NetlinkMessage::from(question);
    message.header.flags = NLM_F_REQUEST | NLM_F_DUMP;
    let failed = |reason: String| NetlinkError::Dump { what, reason };
    let answer = requests.clone().request(message).map_err(|e| failed(e.to_string()))?;
    Ok(answer.boxed())
}
