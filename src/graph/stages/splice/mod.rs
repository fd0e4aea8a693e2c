//! Delayed binding: takes connections of services that want to know more before they choose a
//! backend, reads what clients say, and joins each to a backend (see [`crate::forward::splice`]).
//!
//! No stage of its own: the balancer hands over packets of such services and of spliced flows.

mod choose;
mod client;
mod datagrams;
mod errors;
mod follow;
mod joined;
mod retry;
mod send;
mod server;
mod settings;
mod speech;

use self::choose::Tried;
use self::datagrams::Quic;
pub(super) use self::send::{Made, send_fresh};
pub use self::speech::HeadLimits;
use self::speech::Speech;
use crate::base::{Nanos, Seed};
use crate::flow::{Flow, FlowKind};
use crate::forward::splice::held::{PAGE_BYTES, STREAM_BYTES_MAX};
use crate::forward::splice::slots::SLOTS_MAX;
use crate::forward::splice::{Binding, Cookies, Held, OnTimer, Out, Slots, Translation};
use crate::graph::{Cx, REPLIES_MAX};
use crate::inspect::h2::Walk;
use crate::packet::batch::BATCH_MAX;
use crate::packet::{ClassId, FlowKey, FlowRef, PacketMeta, tcp};

/// Bytes held beyond those that are read: what follows a hello at once, such as early data.
const HOLD_BEYOND: u32 = 8_192;
/// Bytes held for a connection at least: fewer would make for tiny windows.
const HOLD_MIN: u32 = 16_384;
/// Bytes held for a connection at most: a client's window must not be larger than a backend's first
/// one, which with Linux is 64,240 bytes (44 segments).
const HOLD_MAX: u32 = 64_000;
/// Connections for each page beyond the one that every connection may count on.
const SLOTS_PER_SPARE_PAGE: usize = 4;
const SPARE_PAGES_MIN: usize = 64;

/// How much of delayed binding there may be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SpliceLimits {
    /// Flows of the worker's table.
    pub flows_max: u32,
    /// Connections that wait for their binding at once.
    pub bindings_max: u32,
    /// Bytes of a client's stream that are read.
    pub read_bytes_max: u32,
    /// Clients of QUIC are bound, too: as many again.
    pub datagrams: bool,
    /// `None` where no service waits for requests.
    pub heads: Option<HeadLimits>,
}

/// Connections of one worker that are being bound, and what is translated in those that are.
pub struct Splice {
    cookies: Cookies,
    slots: Slots,
    held: Held,
    hold_max: u32,
    limits: SpliceLimits,
    /// By slot.
    bound: Box<[Bound]>,
    speech: Speech,
    /// Slots whose connections the inspector is to follow.
    unfollowed: Vec<u16>,
    /// Flows that were removed here, and the places that the inspector had for them.
    left: Vec<(FlowKey, u16)>,
    /// Slots whose connections were taken by a backend since the timers were shown the last.
    untimed: Vec<u16>,
    /// By the flow's place in the table.
    links: Box<[Link]>,
    /// Where some service binds datagrams so.
    quic: Option<Box<Quic>>,
}

/// What is known of a connection beside its two halves.
#[derive(Clone, Default)]
struct Bound {
    binding: Binding,
    /// [`FlowRef::NONE`] before a backend was chosen.
    flow: Option<FlowRef>,
    class: ClassId,
    /// Code point of the packet that it began with.
    dscp: u8,
    /// The one that rules gave it before it spoke.
    marking: Option<u8>,
    tried: Tried,
    /// Over the client's frames, where it speaks HTTP/2.
    walk: Walk,
    /// The client has said enough, or too much.
    is_clear: bool,
    /// Among those that the inspector is to follow.
    unfollowed: bool,
    /// When its backend was asked what the client had asked, where the timers don't know.
    asked_at: Option<Nanos>,
}

/// What is done with the segments of a spliced flow.
#[derive(Clone, Copy, Debug, Default)]
struct Link {
    state: LinkState,
    /// Our initial sequence number toward the client: tells this connection from the next.
    our_isn: u32,
    translation: Translation,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum LinkState {
    /// There is no such connection any more.
    #[default]
    Dead,
    /// Its slot knows.
    Binding(u16),
    /// Translated.
    Joined,
    /// Datagrams of a version of QUIC that can't be read.
    Unread,
}

const _: () = assert!(HOLD_MAX <= STREAM_BYTES_MAX);
// One for each flow of the table.
const _: () = assert!(size_of::<Link>() <= 32);

impl Splice {
    pub fn new(limits: &SpliceLimits, seed: Seed) -> Splice {
        let count = (limits.bindings_max as usize).clamp(1, SLOTS_MAX);
        let hold_max = limits.read_bytes_max.max(HOLD_MIN) + HOLD_BEYOND;
        let hold_max = hold_max.min(HOLD_MAX);
        let read_bytes_max = limits.read_bytes_max.min(hold_max);
        let spare = (count / SLOTS_PER_SPARE_PAGE).max(SPARE_PAGES_MIN);
        let spare = spare.max(hold_max as usize / PAGE_BYTES);
        Splice {
            cookies: Cookies::new(seed),
            slots: Slots::new(count),
            held: Held::new(count, count + spare),
            hold_max,
            limits: limits.clone(),
            bound: vec![Bound::default(); count].into_boxed_slice(),
            speech: Speech::new(count, read_bytes_max, limits.heads.as_ref()),
            unfollowed: Vec::with_capacity(count),
            left: Vec::with_capacity(count + BATCH_MAX),
            untimed: Vec::with_capacity(count),
            links: vec![Link::default(); limits.flows_max as usize].into_boxed_slice(),
            quic: limits.datagrams.then(|| Box::new(Quic::new(limits, read_bytes_max, seed))),
        }
    }

    /// Connections that are being bound now.
    pub fn bindings(&self) -> usize {
        self.slots.taken() + self.quic.as_ref().map_or(0, |quic| quic.bindings())
    }

    /// Clients that have not said yet what their connections are bound by, as far as `of` has them.
    pub fn count_waiting(&self, of: impl Fn(&FlowKey) -> bool) -> usize {
        let all = |slots: &Slots| slots.listed().filter(|&slot| of(slots.key(slot).0)).count();
        all(&self.slots) + self.quic.as_ref().map_or(0, |quic| all(quic.slots()))
    }

    /// Places for connections that are being bound, taken or not.
    pub fn places(&self) -> usize {
        self.slots.capacity() + self.quic.as_ref().map_or(0, |quic| quic.slots().capacity())
    }

    /// What the client sends whose connection is being bound in one of those places.
    pub fn binding_at(&self, place: usize) -> Option<&FlowKey> {
        match place.checked_sub(self.slots.capacity()) {
            None => self.slots.taken_by(place),
            Some(place) => self.quic.as_ref()?.slots().taken_by(place),
        }
    }

    /// Resets such connections, so many at most. Returns how many that were; all of them where it
    /// is fewer. Datagrams' clients are forgotten by their own time.
    pub fn cut_waiting(
        &mut self,
        cx: &mut Cx<'_>,
        of: impl Fn(&FlowKey) -> bool,
        cuts_max: usize,
    ) -> usize {
        // All of a turn's are found on one way through those that wait: there may be many others.
        let mut found = [0; REPLIES_MAX];
        let waiting = self.slots.listed().filter(|&slot| of(self.slots.key(slot).0));
        let places = found.iter_mut().take(cuts_max).zip(waiting);
        let count = places.map(|(place, slot)| *place = slot).count();
        for &slot in found.iter().take(count) {
            let mut out = Out::new(REPLIES_MAX - cx.replies.len());
            out.push(self.bound[slot].binding.reset_client(&self.held, slot));
            self.send_all(cx, slot, &out);
            self.release(slot);
        }
        count
    }

    /// Whether a flow's connection is not joined yet.
    pub fn is_binding(&self, flow: FlowRef) -> bool {
        let link = self.links.get(flow.0 as usize);
        link.is_some_and(|link| matches!(link.state, LinkState::Binding(_)))
    }

    /// What is changed in the segments of a flow, once its connection is joined.
    pub fn translation(&self, flow: FlowRef) -> Option<Translation> {
        let link = self.links.get(flow.0 as usize)?;
        (link.state == LinkState::Joined).then_some(link.translation)
    }

    /// The flow left the table.
    pub fn forget(&mut self, flow: &Flow, seed: Seed) {
        if flow.kind == FlowKind::Spliced
            && let key = &flow.client_key()
            && let Some(slot) = self.slots.find(key, key.hash(seed))
        {
            self.release(slot);
        }
    }

    /// Goes on with the connections of one that this one replaces. Where their sizes differ, those
    /// that are not yet joined are given up.
    pub fn take_over(&mut self, old: &mut Splice) {
        if let (Some(new), Some(old)) = (&mut self.quic, &mut old.quic) {
            new.take_over(old);
        }
        if self.limits == old.limits {
            std::mem::swap(self, old);
            std::mem::swap(&mut self.quic, &mut old.quic);
            return;
        }
        for link in old.links.iter_mut().filter(|l| matches!(l.state, LinkState::Binding(_))) {
            link.state = LinkState::Dead;
        }
        std::mem::swap(&mut self.links, &mut old.links);
    }

    /// Looks at the connections whose time has come, as far as what they send has room.
    pub fn tick(&mut self, cx: &mut Cx<'_>) {
        while cx.replies.len() + crate::forward::splice::emit::SEGMENTS_MAX <= REPLIES_MAX
            && let Some(slot) = self.slots.next_due(cx.now)
        {
            self.time_out(cx, slot);
        }
        if let Some(quic) = &mut self.quic {
            quic.tick(cx);
        }
    }

    fn time_out(&mut self, cx: &mut Cx<'_>, slot: usize) {
        let mut out = Out::new(REPLIES_MAX - cx.replies.len());
        let stamp = self.cookies.stamp(cx.now, self.slots.key(slot).0);
        let on = self.bound[slot].binding.timer(cx.now, stamp, (&self.held, slot), &mut out);
        if on == OnTimer::Quiet {
            self.greet_silent(cx, slot, &mut out);
        }
        self.send_all(cx, slot, &out);
        match on {
            OnTimer::Nothing | OnTimer::Quiet => self.arm(slot),
            OnTimer::TimedOut => {
                cx.counters.bindings_timed_out += 1;
                self.release(slot);
            }
            OnTimer::Silent => self.try_next(cx, slot),
            OnTimer::Stuck => {
                cx.counters.bindings_unserved += 1;
                self.kill(cx, slot);
            }
        }
    }

    fn arm(&mut self, slot: usize) {
        self.slots.arm(slot, self.bound[slot].binding.due());
    }

    /// Gives a slot back; its flow, where it has one, lives on.
    fn release(&mut self, slot: usize) {
        self.held.clear(slot);
        self.slots.release(slot);
        self.speech.end(slot);
        self.bound[slot] = Bound::default();
    }

    /// Ends a connection: whatever still comes of it is answered with a reset.
    fn kill(&mut self, cx: &mut Cx<'_>, slot: usize) {
        if let Some(flow) = self.bound[slot].flow {
            self.links[flow.0 as usize].state = LinkState::Dead;
            let mut reset = PacketMeta { tcp_flags: tcp::flag::RST, ..PacketMeta::default() };
            cx.flows.touch(cx.now, flow, &mut reset, 0);
        }
        self.release(slot);
    }
}

#[cfg(test)]
mod tests;
