//! Fragments that follow the first one of their datagram: virtual reassembly, in bounded numbers
//! and for a bounded time.
//!
//! Only the first fragment has ports. What belongs to it is known by addresses, protocol and
//! identification (RFC 791, section 3.2; RFC 8200, section 4.5), and is forwarded as it comes, with
//! the first one's ports; nothing is put together. What comes before the first one waits for it.
//! Fragments that overlap are refused, and with them what else is to come of their datagram (RFC
//! 5722, section 4), since its receiver may see something else in them than was judged here.

use std::collections::VecDeque;

use crate::base::{Nanos, Seed};
use crate::packet::{DropReason, FlowKey, Fragment, Packet, PacketFlags};

/// Datagrams that are followed at once: sets of ways. A whole one gives its place back; of those
/// that share a set the oldest gives way.
pub const DATAGRAMS_MAX: usize = SETS * WAYS;
const SETS: usize = 64;
const WAYS: usize = 8;
/// Fragments of one datagram at most: 65,535 bytes in the pieces that links of 576 bytes take.
pub const PIECES_MAX: usize = 120;
/// Fragments that wait at most, since frames held here are missing for receiving; the oldest gives
/// way.
pub const HELD_MAX: usize = 256;
/// Those of one datagram: as many as make up the largest on a link of 1,500 bytes.
pub const HELD_PER_DATAGRAM_MAX: u8 = 45;
/// How long a datagram is followed. Its fragments leave their sender together.
pub const TIMEOUT: Nanos = Nanos::from_secs(2);
/// After this time another first fragment begins another datagram, whose sender has come round with
/// its identifications: 65,536 of them, which takes longer.
pub const REUSE_AFTER: Nanos = Nanos::from_millis(100);

const _: () = assert!(HELD_PER_DATAGRAM_MAX as usize <= HELD_MAX && PIECES_MAX < 256);
const _: () = assert!(REUSE_AFTER.0 < TIMEOUT.0);

/// One worker's view of datagrams on their way in fragments.
pub struct Fragments {
    seed: Seed,
    datagrams: Box<[Datagram]>,
    /// In the order of arrival, which is that of their deadlines.
    held: VecDeque<Held>,
}

struct Held {
    packet: Packet,
    since: Nanos,
    /// Its place in `datagrams`.
    at: usize,
}

/// Source port, destination port and protocol of a first fragment, and when it came.
type First = (u16, u16, u8, Nanos);

/// What is known of one datagram.
#[derive(Clone)]
struct Datagram {
    taken: bool,
    /// Fragments overlapped: what follows is dropped.
    spoilt: bool,
    key: FlowKey,
    since: Nanos,
    first: Option<First>,
    /// Bytes of the whole, once the last one was seen.
    len: Option<u32>,
    /// Bytes that have come.
    covered: u32,
    held: u8,
    pieces: u8,
    /// Bytes from and to, of each piece.
    seen: [(u32, u32); PIECES_MAX],
}

impl Fragments {
    /// Takes all its memory at once.
    pub fn new(seed: Seed) -> Fragments {
        let datagrams = vec![Datagram::FREE; DATAGRAMS_MAX].into_boxed_slice();
        Fragments { seed, datagrams, held: VecDeque::with_capacity(HELD_MAX) }
    }

    /// Fragments that wait now.
    pub fn len(&self) -> usize {
        self.held.len()
    }

    pub fn is_empty(&self) -> bool {
        self.held.is_empty()
    }

    /// Takes a fragment, and moves to `out` what may go on: it, and behind a first one those that
    /// have waited for it, all marked [`PacketFlags::JOINED`]. What is to be dropped stands there,
    /// too, with that verdict. Where `waits` is false a later one does not wait for its first, and
    /// goes on without ports.
    pub fn admit(
        &mut self,
        now: Nanos,
        mut packet: Packet,
        fragment: Fragment,
        waits: bool,
        out: &mut Vec<Packet>,
    ) {
        packet.meta.flags.set(PacketFlags::JOINED);
        let key = fragment.key(&packet.meta);
        let is_first = fragment.from == 0;
        let at = match self.find(now, &key) {
            Some(at) => at,
            None if !is_first && !waits => return out.push(packet),
            None => self.begin(now, key, out),
        };
        if is_first {
            self.begin_again(now, at, &packet, out);
        }
        let datagram = &mut self.datagrams[at];
        if let Err(reason) = datagram.take(&fragment) {
            datagram.spoilt = true;
            self.give_up(at, reason, out);
            packet.meta.drop_for(reason);
            return out.push(packet);
        }
        if is_first {
            let key = &packet.meta.key;
            datagram.first = Some((key.sport, key.dport, key.proto, now));
        }
        match datagram.first {
            Some(first) => {
                join(&mut packet, first, self.seed);
                out.push(packet);
                if is_first {
                    self.release(at, out);
                }
                let datagram = &mut self.datagrams[at];
                datagram.taken = datagram.len != Some(datagram.covered);
            }
            None if !waits => out.push(packet),
            None => self.hold(now, at, packet, out),
        }
        self.check_invariants();
    }

    /// Moves fragments whose first one did not come to `out`, to be dropped. To be called every few
    /// milliseconds.
    pub fn expire(&mut self, now: Nanos, out: &mut Vec<Packet>) {
        while self.held.front().is_some_and(|oldest| now.since(oldest.since) >= TIMEOUT.0) {
            self.drop_oldest(out);
        }
        self.check_invariants();
    }

    /// Moves all that wait to `out`, to be dropped: for a stop.
    pub fn drain(&mut self, out: &mut Vec<Packet>) {
        for Held { mut packet, .. } in self.held.drain(..) {
            packet.meta.drop_for(DropReason::Shutdown);
            out.push(packet);
        }
        self.datagrams.fill(Datagram::FREE);
    }

    fn find(&self, now: Nanos, key: &FlowKey) -> Option<usize> {
        let mut ways = self.ways(key);
        ways.find(|&at| self.datagrams[at].is_of(now) && self.datagrams[at].key.is(key))
    }

    fn ways(&self, key: &FlowKey) -> std::ops::Range<usize> {
        let first = key.hash(self.seed) as usize % SETS * WAYS;
        first..first + WAYS
    }

    /// A place for a datagram that is not known.
    fn begin(&mut self, now: Nanos, key: FlowKey, out: &mut Vec<Packet>) -> usize {
        let since = |at: &usize| {
            let datagram = &self.datagrams[*at];
            (datagram.is_of(now), datagram.since)
        };
        let ways = self.ways(&key);
        let at = ways.clone().min_by_key(since).unwrap_or(ways.start);
        self.give_up(at, DropReason::FragmentAlone, out);
        self.datagrams[at] = Datagram { taken: true, key, since: now, ..Datagram::FREE };
        at
    }

    /// Forgets what a first fragment follows that belongs to an older datagram.
    fn begin_again(&mut self, now: Nanos, at: usize, packet: &Packet, out: &mut Vec<Packet>) {
        let datagram = &mut self.datagrams[at];
        let Some((sport, dport, proto, since)) = datagram.first else { return };
        let key = &packet.meta.key;
        if now.since(since) >= REUSE_AFTER.0 {
            let key = datagram.key;
            self.give_up(at, DropReason::FragmentAlone, out);
            self.datagrams[at] = Datagram { taken: true, key, since: now, ..Datagram::FREE };
        } else if (sport, dport, proto) != (key.sport, key.dport, key.proto) {
            // Two beginnings: as if they overlapped.
            datagram.spoilt = true;
        }
    }

    fn hold(&mut self, now: Nanos, at: usize, mut packet: Packet, out: &mut Vec<Packet>) {
        if self.datagrams[at].held >= HELD_PER_DATAGRAM_MAX {
            packet.meta.drop_for(DropReason::FragmentAlone);
            return out.push(packet);
        }
        if self.held.len() >= HELD_MAX {
            self.drop_oldest(out);
        }
        self.datagrams[at].held += 1;
        self.held.push_back(Held { packet, since: now, at });
    }

    fn drop_oldest(&mut self, out: &mut Vec<Packet>) {
        if let Some(Held { mut packet, at, .. }) = self.held.pop_front() {
            self.datagrams[at].held -= 1;
            packet.meta.drop_for(DropReason::FragmentAlone);
            out.push(packet);
        }
    }

    /// Moves what waits for this datagram's first fragment to `out`, in the order in which it came.
    fn release(&mut self, at: usize, out: &mut Vec<Packet>) {
        let (Some(first), seed) = (self.datagrams[at].first, self.seed) else { return };
        for mut packet in self.take_held(at) {
            join(&mut packet, first, seed);
            out.push(packet);
        }
    }

    fn give_up(&mut self, at: usize, reason: DropReason, out: &mut Vec<Packet>) {
        for mut packet in self.take_held(at) {
            packet.meta.drop_for(reason);
            out.push(packet);
        }
    }

    fn take_held(&mut self, at: usize) -> impl Iterator<Item = Packet> {
        let mut left = std::mem::take(&mut self.datagrams[at].held);
        let held = &mut self.held;
        let turns = if left > 0 { held.len() } else { 0 };
        (0..turns).filter_map(move |_| {
            let next = held.pop_front()?;
            if left > 0 && next.at == at {
                left -= 1;
                return Some(next.packet);
            }
            held.push_back(next);
            None
        })
    }

    fn check_invariants(&self) {
        debug_assert!(self.held.len() <= HELD_MAX);
        debug_assert_eq!(
            self.datagrams.iter().map(|d| usize::from(d.held)).sum::<usize>(),
            self.held.len()
        );
        debug_assert!(self.held.iter().all(|held| self.datagrams[held.at].first.is_none()));
    }
}

impl Datagram {
    const FREE: Datagram = Datagram {
        taken: false,
        spoilt: false,
        key: crate::packet::PacketMeta::UNREAD.key,
        since: Nanos::ZERO,
        first: None,
        len: None,
        covered: 0,
        held: 0,
        pieces: 0,
        seen: [(0, 0); PIECES_MAX],
    };

    fn is_of(&self, now: Nanos) -> bool {
        self.taken && now.since(self.since) < TIMEOUT.0
    }

    /// Takes note of a fragment; the same one may come again.
    fn take(&mut self, fragment: &Fragment) -> Result<(), DropReason> {
        let Fragment { from, to, more, .. } = *fragment;
        let seen = &self.seen[..usize::from(self.pieces)];
        let beyond = match self.len {
            Some(len) => to > len || !more && to != len || more && to == len,
            None => !more && seen.iter().any(|piece| piece.1 > to),
        };
        if self.spoilt || beyond {
            return Err(DropReason::FragmentOverlap);
        }
        if from == to {
            return Err(DropReason::FragmentTiny);
        }
        match seen.iter().find(|piece| piece.0 < to && from < piece.1) {
            Some(&piece) if piece == (from, to) => return Ok(()),
            Some(_) => return Err(DropReason::FragmentOverlap),
            None => {}
        }
        let Some(free) = self.seen.get_mut(usize::from(self.pieces)) else {
            return Err(DropReason::FragmentTiny);
        };
        *free = (from, to);
        self.pieces += 1;
        self.covered += to - from;
        if !more {
            self.len = Some(to);
        }
        Ok(())
    }
}

/// Gives a fragment the ports of the first one.
fn join(packet: &mut Packet, first: First, seed: Seed) {
    let key = &mut packet.meta.key;
    (key.sport, key.dport, key.proto) = (first.0, first.1, first.2);
    packet.meta.hash = key.hash(seed);
}

#[cfg(test)]
mod tests;
