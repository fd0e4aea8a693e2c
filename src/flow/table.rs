//! One worker's flows: a fixed number, found by the key of either direction.

use std::sync::Arc;
use std::time::Duration;

use super::entry::{Details, Flow, NewFlow};
use super::index::Index;
use super::serving::{PLACES_MAX, Serving};
use super::steps::Steps;
use super::tcp::TcpState;
use super::wheel::{NANOS_PER_TICK, Timers};
use crate::base::mem::{Table, prefetch_line};
use crate::base::{Nanos, Seed};
use crate::packet::batch::BATCH_MAX;
use crate::packet::{Batch, Direction, DropReason, FlowKey, FlowRef, PacketMeta, Verdict};

mod growth;

/// Flows of a table at most: the index keeps 32-bit tags, which are too few for more.
pub const FLOWS_MAX: u32 = 1 << 24;
/// Memory that a flow takes at most, its share of timers and index included.
pub const FLOW_BYTES_MAX: usize = 192;

// A place in the index is a flow's number and a bit, and is never that of an empty slot.
const _: () = assert!(FLOWS_MAX < u32::MAX >> 1);

/// Packets between asking the cache for a flow and looking at it: two lines each, and the cache
/// forgets what it is asked for while some tens of lines are under way.
const AHEAD: usize = 12;

const TCP: u8 = 6;
/// Places of a table whose counts nobody else reads.
const PLACES_OWN: usize = 256;

const _: () = assert!(PLACES_OWN <= PLACES_MAX);

/// How many flows the table holds.
#[derive(Clone, Copy, Debug)]
pub struct FlowLimits {
    pub flows_max: u32,
    /// TCP handshakes in progress. When a further one begins, the oldest is forgotten.
    pub half_open_max: u32,
}

/// Idle times after which a flow is forgotten.
#[derive(Clone, Copy, Debug)]
pub struct Timeouts {
    /// A handshake, from its SYN on: longer than a SYN's four retransmissions take.
    pub half_open: Duration,
    /// Packets of one direction only.
    pub one_way: Duration,
    /// TCP, both directions seen, no FIN (RFC 5382, REQ-5: no less than 2 h 4 min).
    pub established: Duration,
    /// Other protocols with answers (RFC 4787, REQ-5: 5 min or more is recommended).
    pub datagrams: Duration,
    /// One FIN seen, the other direction goes on (RFC 5382, REQ-5: no less than 4 min).
    pub closing: Duration,
    /// Both FINs seen, and one of them again: the next time it comes may be so much later. Linux
    /// doubles the time between two up to 120 s, and waits for a connection's last FIN for 60 s.
    pub last_ack: Duration,
    /// Both FINs seen: the last one may still be lost on its way from here, and six times more
    /// before it comes here (Linux sends it again after 0.2 s, and each time after twice as long).
    pub time_wait: Duration,
    /// A RST seen, or the flow was cut: retransmissions may still come.
    pub closed: Duration,
}

impl Default for Timeouts {
    fn default() -> Timeouts {
        Timeouts {
            half_open: Duration::from_secs(30),
            one_way: Duration::from_secs(60),
            established: Duration::from_secs(2 * 3600 + 4 * 60),
            datagrams: Duration::from_secs(5 * 60),
            closing: Duration::from_secs(4 * 60),
            last_ack: Duration::from_secs(60),
            time_wait: Duration::from_secs(20),
            closed: Duration::from_secs(10),
        }
    }
}

/// Why a flow was not taken in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum InsertError {
    /// One of its keys belongs to another flow: for NAT, try another port.
    KeyTaken,
    Drop(DropReason),
}

/// The flows of one worker. All memory is taken at the start.
pub struct FlowTable {
    flows: Table<Flow>,
    /// Of each flow.
    details: Table<Details>,
    index: Index,
    timers: Timers,
    half_open: u32,
    half_open_evicted: u64,
    removals: u64,
    steps: Steps,
    serving: Arc<Serving>,
    limits: FlowLimits,
    timeouts: Ticks,
    seed: Seed,
}

struct Ticks {
    half_open: u32,
    one_way: u32,
    established: u32,
    datagrams: u32,
    closing: u32,
    last_ack: u32,
    time_wait: u32,
    closed: u32,
}

fn ticks(d: Duration) -> u32 {
    (d.as_nanos() / u128::from(NANOS_PER_TICK)).clamp(1, u128::from(u32::MAX / 4)) as u32
}

pub(super) fn tick(now: Nanos) -> u32 {
    (now.0 / NANOS_PER_TICK) as u32
}

/// What the index keeps of a key: its flow, and which of the flow's two it is.
#[inline(always)]
fn place(flow: u32, direction: Direction) -> u32 {
    flow << 1 | direction as u32
}

#[inline(always)]
fn flow_and_direction(place: u32) -> (FlowRef, Direction) {
    let direction = if place & 1 == 0 { Direction::Forward } else { Direction::Reply };
    (FlowRef(place >> 1), direction)
}

/// An entry spans two lines; both are needed to rewrite a packet.
#[inline(always)]
fn prefetch_lines(flow: &Flow) {
    prefetch_line(flow);
    prefetch_line(&flow.class);
}

impl FlowTable {
    /// # Panics
    /// Over [`FLOWS_MAX`] flows or under one: limits are checked when the configuration is read.
    pub fn new(limits: FlowLimits, timeouts: Timeouts, seed: Seed) -> FlowTable {
        let n = limits.flows_max;
        assert!((1..=FLOWS_MAX).contains(&n), "{n} flows");
        FlowTable {
            flows: Table::filled(n as usize, Flow::VACANT),
            details: Table::filled(n as usize, Details::NONE),
            index: Index::new(2 * n as usize),
            timers: Timers::new(n),
            half_open: 0,
            half_open_evicted: 0,
            removals: 0,
            steps: Steps::default(),
            serving: Arc::new(Serving::new(PLACES_OWN)),
            limits,
            timeouts: Ticks {
                half_open: ticks(timeouts.half_open),
                one_way: ticks(timeouts.one_way),
                established: ticks(timeouts.established),
                datagrams: ticks(timeouts.datagrams),
                closing: ticks(timeouts.closing),
                last_ack: ticks(timeouts.last_ack),
                time_wait: ticks(timeouts.time_wait),
                closed: ticks(timeouts.closed),
            },
            seed,
        }
    }

    pub fn len(&self) -> usize {
        self.flows.len() - self.timers.vacant() as usize
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    pub fn capacity(&self) -> usize {
        self.flows.len()
    }

    pub fn seed(&self) -> Seed {
        self.seed
    }

    /// Handshakes in progress.
    pub fn half_open(&self) -> u32 {
        self.half_open
    }

    /// Handshakes forgotten for newer ones since the start.
    pub fn half_open_evicted(&self) -> u64 {
        self.half_open_evicted
    }

    /// Flows that left the table since the start: what was looked up before one did may refer to a
    /// place that holds another flow by now.
    pub fn removals(&self) -> u64 {
        self.removals
    }

    /// Memory of the table in bytes: entries, timers and index.
    pub fn bytes(&self) -> usize {
        let entries = self.flows.len() * (size_of::<Flow>() + size_of::<Details>());
        entries + self.index.bytes() + self.timers.bytes()
    }

    /// # Panics
    /// On a reference that was not just looked up: a bug of ours.
    #[inline(always)]
    pub fn get(&self, r: FlowRef) -> &Flow {
        &self.flows[r.0 as usize]
    }

    /// # Panics
    /// As [`FlowTable::get`].
    #[inline(always)]
    pub fn get_mut(&mut self, r: FlowRef) -> &mut Flow {
        &mut self.flows[r.0 as usize]
    }

    /// What is known of a flow besides.
    ///
    /// # Panics
    /// As [`FlowTable::get`].
    #[inline]
    pub fn details(&self, r: FlowRef) -> &Details {
        &self.details[r.0 as usize]
    }

    /// # Panics
    /// As [`FlowTable::get`].
    pub fn details_mut(&mut self, r: FlowRef) -> &mut Details {
        &mut self.details[r.0 as usize]
    }

    /// As [`FlowTable::at`].
    pub fn at_mut(&mut self, r: FlowRef) -> Option<&mut Flow> {
        self.flows.get_mut(r.0 as usize).filter(|f| f.tcp != TcpState::Vacant)
    }

    /// The flow at a place, if there is one: for walking through the table.
    pub fn at(&self, r: FlowRef) -> Option<&Flow> {
        self.flows.get(r.0 as usize).filter(|f| f.tcp != TcpState::Vacant)
    }

    /// All flows, in the order of their places.
    pub fn iter(&self) -> impl Iterator<Item = (FlowRef, &Flow)> {
        (0..).map(FlowRef).zip(self.flows.iter()).filter(|(_, f)| f.tcp != TcpState::Vacant)
    }

    /// The flow that a packet with this key belongs to. `hash` is the key's, with the table's seed.
    #[inline]
    pub fn lookup(&self, key: &FlowKey, hash: u64) -> Option<(FlowRef, Direction)> {
        self.index.find(hash, |place| self.is_at(place, key)).map(flow_and_direction)
    }

    /// Whether a key belongs to a flow.
    pub fn is_taken(&self, key: &FlowKey, hash: u64) -> bool {
        self.lookup(key, hash).is_some()
    }

    /// Asks the cache for what [`FlowTable::lookup_batch`] will look into first.
    #[inline(always)]
    pub fn prefetch(&self, hash: u64) {
        self.index.prefetch(hash);
    }

    /// Looks up all packets that are still undecided, and sets their `flow` and `direction`.
    ///
    /// Entries are asked for [`AHEAD`] packets before they are compared, so that cache misses
    /// overlap; buckets of the index were asked for with [`FlowTable::prefetch`].
    #[inline]
    pub fn lookup_batch(&self, batch: &mut Batch) {
        let mut candidates = [u32::MAX; BATCH_MAX + AHEAD];
        let metas = batch.metas_mut();
        for (meta, candidate) in metas.iter().zip(&mut candidates).take(AHEAD) {
            *candidate = self.candidate(meta);
        }
        for i in 0..metas.len() {
            if let Some(later) = metas.get(i + AHEAD) {
                candidates[i + AHEAD] = self.candidate(later);
            }
            let (meta, candidate) = (&mut metas[i], candidates[i]);
            if meta.verdict != Verdict::Next {
                continue;
            }
            // The candidate's key is nearly always the packet's; else the index is asked properly.
            let found = if candidate != u32::MAX && self.is_at(candidate, &meta.key) {
                Some(flow_and_direction(candidate))
            } else {
                self.lookup(&meta.key, meta.hash)
            };
            if let Some((flow, direction)) = found {
                (meta.flow, meta.direction) = (flow, direction);
            }
        }
    }

    /// The place that a packet's key probably is at, asked for; `u32::MAX` where there is none.
    #[inline(always)]
    fn candidate(&self, meta: &PacketMeta) -> u32 {
        let Some(place) = self.index.candidate(meta.hash) else { return u32::MAX };
        let (FlowRef(at), _) = flow_and_direction(place);
        prefetch_lines(&self.flows[at as usize]);
        place
    }

    /// Whether a value of the index leads to this key.
    #[inline(always)]
    fn is_at(&self, place: u32, key: &FlowKey) -> bool {
        let (FlowRef(at), direction) = flow_and_direction(place);
        self.flows[at as usize].has_key(direction, key)
    }

    /// Asks the first-level cache for a flow that will be looked at soon: of those of a whole batch
    /// it has forgotten some since they were looked up.
    #[inline(always)]
    pub fn prefetch_flow(&self, r: FlowRef) {
        if let Some(flow) = self.flows.get(r.0 as usize) {
            prefetch_line(&flow.class);
        }
    }

    /// Makes room for this many handshakes: the oldest are forgotten for them.
    ///
    /// Called before a batch is looked up, so that none of the flows it finds is forgotten while
    /// the batch passes the stages.
    pub fn make_room(&mut self, handshakes: u32, mut on_evict: impl FnMut(&Flow)) {
        let allowed = self.limits.half_open_max.saturating_sub(handshakes);
        while self.half_open > allowed
            && let Some(oldest) = self.timers.oldest_half_open()
        {
            on_evict(&self.flows[oldest as usize]);
            self.remove(FlowRef(oldest));
            self.half_open_evicted += 1;
        }
    }

    /// Takes a flow in. `meta` is its first packet.
    ///
    /// # Errors
    /// A key that another flow has, or no room: established flows are never forgotten for new ones.
    pub fn insert(
        &mut self,
        now: Nanos,
        new: &NewFlow,
        meta: &PacketMeta,
    ) -> Result<FlowRef, InsertError> {
        let hash = [Some(&new.key), new.reply.as_ref()].map(|k| k.map(|k| k.hash(self.seed)));
        for (key, hash) in [(Some(&new.key), hash[0]), (new.reply.as_ref(), hash[1])] {
            if let (Some(key), Some(hash)) = (key, hash)
                && self.is_taken(key, hash)
            {
                return Err(InsertError::KeyTaken);
            }
        }
        let state = TcpState::first(new.key.proto == TCP, meta.tcp_flags, meta.direction);
        if state.is_half_open() && self.half_open >= self.limits.half_open_max {
            let oldest = self.timers.oldest_half_open();
            let oldest = oldest.ok_or(InsertError::Drop(DropReason::SynLimit))?;
            self.remove(FlowRef(oldest));
            self.half_open_evicted += 1;
        }
        let at = self.timers.take_vacant().ok_or(InsertError::Drop(DropReason::FlowTableFull))?;
        let own =
            if new.key.proto == TCP { self.timeouts.established } else { self.timeouts.datagrams };
        let idle = new.idle_established_ms.map(|ms| ticks(Duration::from_millis(ms.into())));
        self.flows[at as usize] = Flow::new(now, new, state);
        let idle = idle.unwrap_or(own);
        let details = &mut self.details[at as usize];
        *details = Details { idle, backend: new.backend, ..Details::NONE };
        if state == TcpState::SynSent {
            details.begin_at(meta.tcp_seq.wrapping_add(1));
        }
        for (hash, direction) in hash.into_iter().zip([Direction::Forward, Direction::Reply]) {
            if let Some(hash) = hash {
                self.index.insert(hash, place(at, direction));
            }
        }
        self.schedule(at);
        self.serving.begin(new.backend);
        Ok(FlowRef(at))
    }

    /// Notes a packet of a flow: its state, when it was seen, and the counters. Returns the flow,
    /// and leaves in [`PacketMeta::nth`] which of its packets it is.
    ///
    /// # Panics
    /// As [`FlowTable::get`].
    #[inline(always)]
    pub fn touch(
        &mut self,
        now: Nanos,
        r: FlowRef,
        meta: &mut PacketMeta,
        bytes: u32,
    ) -> &mut Flow {
        let flow = &mut self.flows[r.0 as usize];
        let last_seen = flow.last_seen;
        meta.nth = flow.count(tick(now), meta.direction, bytes) as u16;
        // Established, and neither SYN, FIN nor RST: nothing can change.
        if flow.tcp != TcpState::Established || meta.tcp_flags & 0x07 != 0 {
            self.advance(r.0, meta, tick(now).wrapping_sub(last_seen));
        }
        &mut self.flows[r.0 as usize]
    }

    /// Puts a flow where its state's time ends.
    fn schedule(&mut self, at: u32) {
        if self.flows[at as usize].tcp.is_half_open() {
            self.half_open += 1;
            self.timers.add_half_open(at);
        } else {
            self.timers.arm(at, self.deadline(at));
        }
    }

    fn deadline(&self, at: u32) -> u32 {
        let (flow, own) = (&self.flows[at as usize], self.details[at as usize].idle);
        let t = &self.timeouts;
        let idle = match flow.tcp {
            TcpState::SynSent | TcpState::SynReceived => t.half_open,
            TcpState::OneWay => t.one_way.min(own),
            TcpState::Established => own,
            TcpState::FinForward | TcpState::FinReply => t.closing.min(own),
            TcpState::LastAck => t.last_ack.min(own.max(t.time_wait)),
            TcpState::TimeWait => t.time_wait,
            TcpState::Vacant | TcpState::Reset | TcpState::Cut => t.closed,
        };
        flow.last_seen.saturating_add(idle)
    }

    /// Forgets flows whose time is over, looking at `budget` of them at most. `on_expire` returns
    /// whether a flow goes: not where it was seen lately after all ([`Flow::add`]).
    pub fn expire(
        &mut self,
        now: Nanos,
        budget: usize,
        mut on_expire: impl FnMut(FlowRef, &mut Flow) -> bool,
    ) {
        let now = tick(now);
        for _ in 0..budget {
            if let Some(oldest) = self.timers.oldest_half_open()
                && self.deadline(oldest) <= now
            {
                // A handshake goes whatever was seen: its time runs from the SYN.
                on_expire(FlowRef(oldest), &mut self.flows[oldest as usize]);
                self.remove(FlowRef(oldest));
                continue;
            }
            let Some(at) = self.timers.pop(now) else { break };
            let deadline = self.deadline(at);
            if deadline <= now && on_expire(FlowRef(at), &mut self.flows[at as usize]) {
                self.remove(FlowRef(at));
            } else {
                self.timers.arm(at, self.deadline(at));
            }
        }
    }

    /// Forgets a flow at once.
    pub fn remove(&mut self, r: FlowRef) {
        let Some(flow) = self.at(r) else { return };
        let (keys, both) = ([flow.client_key(), flow.server_key()], flow.has_reply_key());
        if !flow.tcp.has_ended() {
            self.serving.end(self.details(r).backend);
        }
        if flow.tcp.is_half_open() {
            self.half_open -= 1;
        }
        for direction in [Direction::Forward, Direction::Reply] {
            if direction == Direction::Forward || both {
                let hash = keys[direction as usize].hash(self.seed);
                self.index.remove(hash, place(r.0, direction));
            }
        }
        self.set_steps(r, 0);
        self.flows[r.0 as usize] = Flow::VACANT;
        self.details[r.0 as usize] = Details::NONE;
        self.timers.add_vacant(r.0);
        self.removals += 1;
    }
}

mod advance;
mod serves;

#[cfg(test)]
mod tests;
