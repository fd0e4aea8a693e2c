//! Packets that wait for their client's token, in bounded numbers and for a bounded time.
//!
//! Who takes a token that is still to come has it for certain (see [`super::tokens`]), and so knows
//! how long to wait. What takes it is a connection, known by its packets' hash: its first packet,
//! the one that completes its handshake, or one that holds a request. All that comes of it
//! meanwhile waits behind that one, so that its order stays.

use std::collections::{HashMap, VecDeque};

use crate::base::Nanos;
use crate::packet::batch::BATCH_MAX;
use crate::packet::{Direction, DropReason, Packet, PacketFlags};

/// Packets that wait at most: frames held here are missing for receiving.
pub const DELAYED_MAX: usize = 1_024;
/// Packets of one connection that wait at most: what fits a client's first window.
pub const DELAYED_PER_CONNECTION_MAX: usize = 16;
/// Connections that wait at most. There may be some of which no packet does, since theirs is held
/// elsewhere.
pub const CONNECTIONS_MAX: usize = 1_024;
/// Times are rounded up to this, so that those that are close are looked at together.
const STEP_NS: u64 = 1_000_000;

/// What waits in one worker. Takes all its memory at once.
pub struct Delays {
    /// In the order of arrival.
    packets: VecDeque<Packet>,
    /// What is to pass the stages again, in that order.
    released: VecDeque<Packet>,
    connections: HashMap<u64, Connection>,
    /// Connections whose token has come with this release.
    paid: Vec<u64>,
    /// When the first token comes.
    next: Nanos,
}

#[derive(Clone, Copy, Debug)]
struct Connection {
    due: Nanos,
    packets: usize,
    /// The token is that of the connection itself, not of a request.
    begins: bool,
}

impl Default for Delays {
    fn default() -> Delays {
        Delays {
            packets: VecDeque::with_capacity(DELAYED_MAX),
            released: VecDeque::with_capacity(DELAYED_MAX),
            // Twice as many, so that it never grows.
            connections: HashMap::with_capacity(2 * CONNECTIONS_MAX),
            paid: Vec::with_capacity(CONNECTIONS_MAX),
            next: Nanos::MAX,
        }
    }
}

impl Delays {
    /// Packets that are here.
    pub fn len(&self) -> usize {
        self.packets.len() + self.released.len()
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Whether one more connection may wait: those of the same batch, which are held after all of
    /// them have passed, find room too.
    pub fn has_room(&self) -> bool {
        self.len() + BATCH_MAX <= DELAYED_MAX && self.connections.len() < CONNECTIONS_MAX
    }

    /// Has a connection, known by its packets' hash, wait for a token that comes at `due`.
    /// `begins`: it is what lets it begin. One that waits already waits for the later of the two.
    pub fn begin(&mut self, hash: u64, due: Nanos, begins: bool) {
        if self.connections.len() < CONNECTIONS_MAX {
            let due = Nanos(due.0.div_ceil(STEP_NS).saturating_mul(STEP_NS));
            let new = Connection { due, packets: 0, begins };
            let connection = self.connections.entry(hash).or_insert(new);
            connection.due = connection.due.max(due);
            self.next = self.next.min(connection.due);
        }
    }

    /// When the token comes that a connection waits for; `None`: it waits for none.
    #[inline]
    pub fn until(&self, hash: u64) -> Option<Nanos> {
        if self.connections.is_empty() {
            return None;
        }
        self.connections.get(&hash).map(|connection| connection.due)
    }

    /// Whether a connection has waited for the token by which it begins: for its packets that pass
    /// the stages again.
    #[inline]
    pub fn has_paid(&self, hash: u64) -> bool {
        !self.paid.is_empty() && self.paid.contains(&hash)
    }

    /// Has a packet of a connection that waits wait with it.
    ///
    /// # Errors
    /// The packet comes back where too many wait.
    pub fn hold(&mut self, mut packet: Packet) -> Result<(), (Packet, DropReason)> {
        let is_full = self.len() >= DELAYED_MAX;
        match self.connections.get_mut(&packet.meta.hash) {
            Some(c) if !is_full && c.packets < DELAYED_PER_CONNECTION_MAX => {
                c.packets += 1;
                packet.meta.begin(packet.meta.in_port);
                packet.meta.direction = Direction::Forward;
                packet.meta.flags.set(PacketFlags::DELAYED);
                self.packets.push_back(packet);
                Ok(())
            }
            _ => Err((packet, DropReason::OverLimit)),
        }
    }

    /// When [`Delays::release`] next has something to do; [`Nanos::MAX`]: nothing waits.
    #[inline]
    pub fn next_due(&self) -> Nanos {
        self.next
    }

    /// Has what tokens have come for go on: [`Delays::pop`] gives it. Ends with
    /// [`Delays::settle`].
    pub fn release(&mut self, now: Nanos) {
        let Delays { packets, released, connections, paid, next } = self;
        *next = Nanos::MAX;
        connections.retain(|&hash, connection| {
            let waits = connection.due > now;
            if waits {
                *next = (*next).min(connection.due);
            } else if connection.begins {
                paid.push(hash);
            }
            waits
        });
        for _ in 0..packets.len() {
            match packets.pop_front() {
                Some(packet) if connections.contains_key(&packet.meta.hash) => {
                    packets.push_back(packet);
                }
                Some(packet) => released.push_back(packet),
                None => break,
            }
        }
        self.check_invariants();
    }

    /// The next packet that goes on.
    pub fn pop(&mut self) -> Option<Packet> {
        self.released.pop_front()
    }

    /// All that was released has passed the stages.
    pub fn settle(&mut self) {
        self.paid.clear();
    }

    /// Moves all packets to `out`, to be dropped: for a stop.
    pub fn drain(&mut self, out: &mut Vec<Packet>) {
        self.connections.clear();
        self.next = Nanos::MAX;
        out.extend(self.released.drain(..));
        out.extend(self.packets.drain(..));
    }

    fn check_invariants(&self) {
        debug_assert_eq!(
            self.connections.values().map(|c| c.packets).sum::<usize>(),
            self.packets.len()
        );
        debug_assert!(self.len() <= DELAYED_MAX && self.connections.len() <= CONNECTIONS_MAX);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::packet::{ClassId, FramePool, PacketMeta, Verdict};

    const MS: u64 = 1_000_000;

    struct Bench {
        pool: FramePool,
        delays: Delays,
    }

    impl Bench {
        fn new() -> Bench {
            let pool = FramePool::standalone(DELAYED_MAX as u32 + 1, 2_048);
            Bench { pool, delays: Delays::default() }
        }

        /// Holds a packet of a connection, told from others by its number.
        fn hold(&mut self, hash: u64, number: u32) -> bool {
            let frame = self.pool.take_with(&[0; 60]).expect("stock");
            let meta = PacketMeta {
                hash,
                tcp_seq: number,
                verdict: Verdict::Wait,
                class: ClassId(3),
                ..PacketMeta::default()
            };
            match self.delays.hold(Packet { frame, meta }) {
                Ok(()) => true,
                Err((packet, reason)) => {
                    assert_eq!(reason, DropReason::OverLimit);
                    self.pool.put(packet.frame);
                    false
                }
            }
        }

        fn released(&mut self, at_ms: u64) -> Vec<u32> {
            self.delays.release(Nanos(at_ms * MS));
            let mut numbers = Vec::new();
            while let Some(packet) = self.delays.pop() {
                let meta = &packet.meta;
                assert_eq!((meta.verdict, meta.class), (Verdict::Next, ClassId::UNSET));
                assert!(meta.flags.has(PacketFlags::DELAYED));
                numbers.push(meta.tcp_seq);
                self.pool.put(packet.frame);
            }
            numbers
        }
    }

    #[test]
    fn packets_go_on_in_order_when_their_token_comes() {
        let mut b = Bench::new();
        b.delays.begin(1, Nanos(15 * MS), true);
        b.delays.begin(2, Nanos(10 * MS - 1), false);
        b.delays.begin(1, Nanos(20 * MS), false);
        b.delays.begin(1, Nanos(5 * MS), false);
        assert_eq!(b.delays.until(1), Some(Nanos(20 * MS)), "the latest");
        assert_eq!((b.delays.until(3), b.delays.next_due()), (None, Nanos(10 * MS)));
        for (number, hash) in [(0, 1), (1, 2), (2, 1), (3, 2)] {
            assert!(b.hold(hash, number));
        }
        assert!(!b.hold(3, 9), "waits for nothing");
        assert!(b.released(9).is_empty());
        assert_eq!(b.released(10), [1, 3]);
        assert!(!b.delays.has_paid(2), "a request's");
        b.delays.settle();
        assert_eq!((b.delays.until(2), b.delays.next_due()), (None, Nanos(20 * MS)));
        assert_eq!(b.released(25), [0, 2]);
        assert!(b.delays.has_paid(1));
        b.delays.settle();
        assert!(!b.delays.has_paid(1) && b.delays.is_empty());
        assert_eq!((b.delays.next_due(), b.pool.outstanding()), (Nanos::MAX, 0));
    }

    #[test]
    fn there_is_room_while_a_whole_batch_still_fits() {
        let mut b = Bench::new();
        let most = DELAYED_MAX - BATCH_MAX;
        for number in 0..most {
            let hash = (number / DELAYED_PER_CONNECTION_MAX) as u64;
            b.delays.begin(hash, Nanos(MS), true);
            assert!(b.delays.has_room() && b.hold(hash, number as u32), "{number}");
        }
        assert!(b.delays.has_room(), "for all packets of one more batch");
        b.delays.begin(u64::MAX, Nanos(MS), true);
        assert!(b.hold(u64::MAX, 0) && !b.delays.has_room());
        // What is released still holds its frames.
        b.delays.release(Nanos(MS));
        assert!(!b.delays.has_room());
        assert_eq!(b.released(1).len(), most + 1);
        assert!(b.delays.has_room());
    }

    #[test]
    fn limits_of_a_connection_and_in_all() {
        let mut b = Bench::new();
        let mut held = 0;
        for hash in 0..=CONNECTIONS_MAX as u64 {
            b.delays.begin(hash, Nanos(MS), true);
        }
        assert!(b.delays.until(CONNECTIONS_MAX as u64).is_none() && !b.delays.has_room());
        for hash in 0..CONNECTIONS_MAX as u64 {
            let mut mine = 0;
            while mine <= DELAYED_PER_CONNECTION_MAX && b.hold(hash, 0) {
                mine += 1;
            }
            assert!(mine == DELAYED_PER_CONNECTION_MAX || held + mine == DELAYED_MAX, "{mine}");
            held += mine;
        }
        assert_eq!((held, b.delays.len()), (DELAYED_MAX, DELAYED_MAX));
        let mut out = Vec::new();
        b.delays.drain(&mut out);
        assert_eq!((out.len(), b.delays.len()), (DELAYED_MAX, 0));
        out.into_iter().for_each(|packet| b.pool.put(packet.frame));
        assert_eq!(b.pool.outstanding(), 0);
    }
}
