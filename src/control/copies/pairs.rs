//! The connections that are shadowed: what workers copied of them, put in order.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::rc::Rc;

use super::converse::Talk;
use super::pair::Pair;
use super::plan::ShadowPlan;
use super::told::Cut;
use crate::base::Nanos;
use crate::flow::reassembly::{Pushed, Reassembler};
use crate::inspect::fields::Wanted;
use crate::inspect::http1::Side;
use crate::observe::copies::{CopiedSegment, CopyRecord};
use crate::packet::tcp::flag::{ACK, FIN, RST, SYN};
use crate::packet::{Direction, FlowKey};

/// Connections that are shadowed at once.
pub const PAIRS_MAX: usize = 1_024;
/// Pages for segments that come early.
const PAGES_MAX: usize = 2_048;
/// What is silent for so long is forgotten.
const IDLE_NS: u64 = 600_000_000_000;
/// The same, before its server has taken it. One that is taken may wait long for its first request,
/// as those in clients' pools do; where there are too many, the longest silent give way.
const UNTAKEN_NS: u64 = 30_000_000_000;

const CLIENT: usize = 0;
const SERVER: usize = 1;

/// All pairs, by their clients' keys.
pub struct Pairs {
    plans: Vec<ShadowPlan>,
    wanted: Wanted,
    index: HashMap<FlowKey, Entry>,
    reassembler: Reassembler,
    /// Slots of the reassembler: two each, the client's and the server's.
    free: Vec<usize>,
    /// Every talk has one: those whose original has ended count as well.
    live: Rc<()>,
}

struct Entry {
    talk: Rc<Talk>,
    to: SocketAddr,
    slot: usize,
    /// Sequence numbers of the first bytes of both sides.
    firsts: [Option<u32>; 2],
    /// Where both sides' FINs stand.
    fins: [Option<u32>; 2],
    heard: Nanos,
    /// It has a task.
    talks: bool,
}

impl Pairs {
    /// None yet.
    ///
    /// # Panics
    /// Never: no field beyond the fixed ones is wanted.
    pub fn new() -> Pairs {
        Pairs {
            plans: Vec::new(),
            wanted: Wanted::new([]).expect("the fixed names"),
            index: HashMap::new(),
            reassembler: Reassembler::new(2 * PAIRS_MAX, PAGES_MAX),
            free: (0..PAIRS_MAX).rev().map(|pair| 2 * pair).collect(),
            live: Rc::new(()),
        }
    }

    /// Shadows by other plans: connections of services whose shadow has changed are let go.
    pub fn set_plans(&mut self, plans: Vec<ShadowPlan>) {
        let keeps = |key: &FlowKey| {
            let is = |plan: &&ShadowPlan| plan.is_of(key);
            match (self.plans.iter().find(is), plans.iter().find(is)) {
                (Some(old), Some(new)) => old.backends == new.backends,
                _ => false,
            }
        };
        let gone: Vec<FlowKey> = self.index.keys().filter(|key| !keeps(key)).copied().collect();
        gone.iter().for_each(|key| self.cut(key, Cut::Reloaded));
        self.plans = plans;
    }

    /// What a worker has copied. Returns the pair where it is to have its connection now.
    pub fn take(
        &mut self,
        segment: &CopiedSegment,
        record: &CopyRecord,
    ) -> Option<(Rc<Talk>, SocketAddr)> {
        let (key, flags) = (&segment.key, segment.flags);
        match (segment.direction, flags & (SYN | ACK | RST)) {
            (_, of) if of & RST != 0 => self.end(key, record.at),
            (Direction::Reply, of) if of == SYN | ACK => self.accepted(segment, record.at),
            (Direction::Forward, SYN) => {
                let first = segment.seq.wrapping_add(1);
                let known = self.index.get(key).and_then(|entry| entry.firsts[CLIENT]);
                if known.is_some_and(|known| known != first) {
                    self.end(key, record.at);
                }
            }
            _ => self.said(segment, record),
        }
        self.settle(key)
    }

    /// Forgets what was silent for long.
    pub fn sweep(&mut self, now: Nanos) {
        let silent = |entry: &Entry| {
            let pair = entry.talk.pair.borrow();
            let limit = if pair.is_accepted() { IDLE_NS } else { UNTAKEN_NS };
            now.since(entry.heard) > limit || pair.is_over()
        };
        let gone = self.index.iter().filter(|(_, entry)| silent(entry));
        let gone: Vec<FlowKey> = gone.map(|(key, _)| *key).collect();
        gone.iter().for_each(|key| self.end(key, now));
    }

    /// A server has taken a connection.
    fn accepted(&mut self, segment: &CopiedSegment, now: Nanos) {
        let firsts = [segment.ack, segment.seq.wrapping_add(1)];
        let known = self.index.get(&segment.key).map(|entry| entry.firsts);
        if known.is_some_and(|known| known[CLIENT] != Some(firsts[CLIENT])) {
            self.end(&segment.key, now);
        }
        if !self.index.contains_key(&segment.key) && !self.open(segment, firsts[CLIENT], now) {
            return;
        }
        let Some(entry) = self.index.get_mut(&segment.key) else { return };
        // Of several servers that a connection was offered to the last one answers.
        if entry.firsts[SERVER] != Some(firsts[SERVER]) {
            entry.firsts[SERVER] = Some(firsts[SERVER]);
            self.reassembler.open(entry.slot + SERVER, firsts[SERVER]);
        }
        entry.talk.pair.borrow_mut().accept();
    }

    /// Begins a pair. `false`: it is not to be shadowed, or too many are.
    fn open(&mut self, segment: &CopiedSegment, first: u32, now: Nanos) -> bool {
        let Some(plan) = self.plans.iter().find(|plan| plan.is_of(&segment.key)) else {
            return false;
        };
        let Some(to) = plan.backend(&segment.key) else { return false };
        let mut pair = Pair::new(&self.wanted, plan.told.clone());
        if Rc::strong_count(&self.live) > PAIRS_MAX || self.free.is_empty() {
            self.make_room();
        }
        let is_crowded = Rc::strong_count(&self.live) > PAIRS_MAX;
        let Some(slot) = self.free.pop_if(|_| !is_crowded) else {
            pair.cut(Cut::Crowded);
            return false;
        };
        self.reassembler.open(slot + CLIENT, first);
        let talk = Talk::new(pair, Rc::clone(&self.live));
        let (firsts, fins) = ([Some(first), None], [None; 2]);
        let entry = Entry { talk, to, slot, firsts, fins, heard: now, talks: false };
        self.index.insert(segment.key, entry);
        true
    }

    /// Those who ask nothing give way, the longest silent first: handshakes can be forged.
    fn make_room(&mut self) {
        let idle = self.index.iter().filter(|(_, entry)| !entry.talks);
        if let Some(key) = idle.min_by_key(|(_, entry)| entry.heard).map(|(key, _)| *key) {
            self.cut(&key, Cut::Crowded);
        }
    }

    /// Bytes of one side, or its end.
    fn said(&mut self, segment: &CopiedSegment, record: &CopyRecord) {
        let is_client = segment.direction == Direction::Forward;
        // With delayed binding clients speak before they have a server. Bytes of others whose
        // beginning was not seen are of no use.
        if is_client
            && !segment.is_bound
            && record.length > 0
            && !self.index.contains_key(&segment.key)
        {
            self.open(segment, segment.seq, record.at);
        }
        let Some(entry) = self.index.get_mut(&segment.key) else { return };
        entry.heard = record.at;
        let (of, side) = if is_client { (CLIENT, Side::Client) } else { (SERVER, Side::Server) };
        if entry.firsts[of].is_none() {
            return;
        }
        if record.bytes().len() < record.length {
            return self.cut(&segment.key, Cut::Gap);
        }
        let slot = entry.slot + of;
        let mut pair = entry.talk.pair.borrow_mut();
        let pushed = self.reassembler.push(slot, segment.seq, false, record.bytes(), |bytes| {
            pair.original_said(record.at, side, bytes);
        });
        if segment.flags & FIN != 0 {
            entry.fins[of] = Some(segment.seq.wrapping_add(record.length as u32));
        }
        let has_all =
            |of: usize| entry.fins[of] == Some(self.reassembler.next_seq(entry.slot + of));
        if has_all(SERVER) {
            pair.original_ended(record.at, has_all(CLIENT));
        }
        drop(pair);
        if matches!(pushed, Pushed::OutOfWindow | Pushed::NoPage) {
            self.cut(&segment.key, Cut::Gap);
        }
    }

    /// Has a pair's task see what has changed, or begin; forgets a pair that is over.
    fn settle(&mut self, key: &FlowKey) -> Option<(Rc<Talk>, SocketAddr)> {
        let entry = self.index.get_mut(key)?;
        entry.talk.wake.notify_one();
        let (is_due, is_over) = {
            let pair = entry.talk.pair.borrow();
            (pair.is_due(), pair.is_over())
        };
        if is_over {
            self.forget(key);
            return None;
        }
        let begins = is_due && !entry.talks;
        entry.talks |= begins;
        begins.then(|| (Rc::clone(&entry.talk), entry.to))
    }

    /// Nothing more comes of the original.
    fn end(&mut self, key: &FlowKey, now: Nanos) {
        let Some(entry) = self.index.get(key) else { return };
        let has_gap = (0..2).any(|of| self.reassembler.has_gap(entry.slot + of));
        if has_gap {
            return self.cut(key, Cut::Gap);
        }
        entry.talk.pair.borrow_mut().original_ended(now, true);
        self.forget(key);
    }

    fn cut(&mut self, key: &FlowKey, why: Cut) {
        if let Some(entry) = self.index.get(key) {
            entry.talk.pair.borrow_mut().cut(why);
            self.forget(key);
        }
    }

    /// Its task, where it has one, goes on for as long as it has to.
    fn forget(&mut self, key: &FlowKey) {
        let Some(entry) = self.index.remove(key) else { return };
        entry.talk.wake.notify_one();
        self.reassembler.close(entry.slot + CLIENT);
        self.reassembler.close(entry.slot + SERVER);
        self.free.push(entry.slot);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::Addr;
    use crate::control::copies::pair::SharedTold;
    use crate::observe::copies::{CopyAbout, CopyRing};

    const KEY: FlowKey =
        FlowKey { src: Addr::v4(9), dst: Addr::v4(1), sport: 7, dport: 80, proto: 6 };
    const GET: &[u8] = b"GET / HTTP/1.1\r\nhost: a\r\n\r\n";

    fn pairs() -> Pairs {
        let mut pairs = Pairs::new();
        pairs.set_plans(vec![ShadowPlan {
            vip: KEY.dst,
            port: KEY.dport,
            proto: KEY.proto,
            backends: vec![(SocketAddr::from(([10, 0, 0, 1], 80)), 1)],
            told: SharedTold::default(),
        }]);
        pairs
    }

    /// Whether a connection to the shadow begins with this segment.
    fn take(pairs: &mut Pairs, at: Nanos, direction: Direction, flags: u8, bytes: &[u8]) -> bool {
        let (seq, ack) = if direction == Direction::Reply { (500, 101) } else { (101, 501) };
        let is_bound = true;
        let segment = CopiedSegment { key: KEY, direction, seq, ack, flags, is_bound };
        let ring = CopyRing::new(1, 100);
        ring.push(at, CopyAbout::Segment(segment), bytes);
        pairs.take(&segment, &ring.take().expect("one")).is_some()
    }

    #[test]
    fn a_pooled_connection_may_ask_late_for_the_first_time() {
        let mut pairs = pairs();
        assert!(!take(&mut pairs, Nanos(0), Direction::Reply, SYN | ACK, b""));
        pairs.sweep(Nanos(IDLE_NS - 1));
        assert!(take(&mut pairs, Nanos(IDLE_NS), Direction::Forward, ACK, GET), "still known");
        let mut pairs = self::pairs();
        take(&mut pairs, Nanos(0), Direction::Reply, SYN | ACK, b"");
        pairs.sweep(Nanos(IDLE_NS + 1));
        assert!(!take(&mut pairs, Nanos(IDLE_NS + 2), Direction::Forward, ACK, GET), "forgotten");
    }
}
