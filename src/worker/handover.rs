//! Packets that the network card gave to the wrong worker, on their way to the right one.
//!
//! All sockets share one region of memory, so a packet changes hands without a copy: its frame goes
//! over a ring. For every frame that a worker takes it gives one back, any one, so that stocks stay
//! as they were.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use crossbeam::queue::ArrayQueue;

use crate::base::mem::Slot;
use crate::nic::wake::Waker;
use crate::packet::{Batch, FramePool, Packet};

/// Packets on their way from one worker to another at most: what 10 Gbit/s bring in 3 ms at 1500 B.
pub const RING_PACKETS: usize = 2_048;

/// Memory of what is on its way from one worker to another; a place in a ring has a stamp.
pub const RING_BYTES: u64 =
    (RING_PACKETS * (size_of::<Packet>() + size_of::<Slot>() + 2 * size_of::<usize>())) as u64;

/// Frames that a worker keeps for itself before it pays back what it owes.
const PAY_ABOVE: usize = 256;

/// One worker's ends of the rings to and from all others. Only rings that hold something are looked
/// at: there are as many as workers, and one thread may run all.
pub struct Handover {
    me: u16,
    peers: Vec<Option<Peer>>,
    /// Who has given something, by worker: each sets its bit, and we clear them before we look.
    given: Arc<Givers>,
    /// As a set of bits: whose rings to here may hold something, whom we owe frames, and to whom
    /// went something in this turn.
    from: u64,
    owed: u64,
    told: u64,
}

/// In a cache line of its own: it is looked at in each turn.
#[repr(align(64))]
#[derive(Default)]
struct Givers(AtomicU64);

/// The members of such a set.
struct Members(u64);

impl Iterator for Members {
    type Item = usize;

    #[inline]
    fn next(&mut self) -> Option<usize> {
        let first = (self.0 != 0).then(|| self.0.trailing_zeros() as usize)?;
        self.0 &= self.0 - 1;
        Some(first)
    }
}

struct Peer {
    to: Arc<Ring>,
    from: Arc<Ring>,
    /// Frames taken from this peer and not yet given back.
    debt: usize,
    /// Whom it is told that something was given.
    given: Arc<Givers>,
    waker: Option<Waker>,
}

/// From one worker to another: packets, and frames that are owed.
struct Ring {
    packets: ArrayQueue<Packet>,
    slots: ArrayQueue<Slot>,
}

impl Drop for Ring {
    /// What a worker that panicked left behind goes with the whole region.
    fn drop(&mut self) {
        while let Some(packet) = self.packets.pop() {
            packet.frame.into_slot().into_raw();
        }
        while let Some(slot) = self.slots.pop() {
            slot.into_raw();
        }
    }
}

impl Handover {
    /// Rings between `workers` workers, 64 at most, each of `capacity` packets; one element a
    /// worker.
    pub fn mesh(workers: u16, capacity: usize) -> Vec<Handover> {
        let n = usize::from(workers);
        let ring = |i: usize| {
            let ring =
                || Ring { packets: ArrayQueue::new(capacity), slots: ArrayQueue::new(capacity) };
            (i / n != i % n).then(|| Arc::new(ring()))
        };
        let rings: Vec<_> = (0..n * n).map(ring).collect();
        let givers: Vec<_> = (0..n).map(|_| Arc::<Givers>::default()).collect();
        let peer = |me: usize, other: usize| {
            let given = Arc::clone(&givers[other]);
            let to = rings[me * n + other].clone()?;
            let from = rings[other * n + me].clone()?;
            Some(Peer { to, from, debt: 0, given, waker: None })
        };
        let of = |me: usize| Handover {
            me: me as u16,
            peers: (0..n).map(|other| peer(me, other)).collect(),
            given: Arc::clone(&givers[me]),
            from: 0,
            owed: 0,
            told: 0,
        };
        (0..n).map(of).collect()
    }

    /// What wakes the other workers from their sleep, by worker.
    pub fn set_wakers(&mut self, wakers: &[Waker]) {
        for (peer, waker) in self.peers.iter_mut().zip(wakers) {
            if let Some(peer) = peer {
                peer.waker = Some(waker.clone());
            }
        }
    }

    /// Workers there are, this one included.
    pub fn workers(&self) -> usize {
        self.peers.len()
    }

    /// Gives a packet to its owner, who hears of it by [`Handover::settle`].
    ///
    /// # Errors
    /// The packet, where the owner's ring is full.
    #[inline]
    pub fn give(&mut self, owner: u16, packet: Packet) -> Result<(), Packet> {
        match self.peers.get_mut(usize::from(owner)) {
            Some(Some(peer)) => {
                self.told |= 1 << owner;
                peer.to.packets.push(packet)
            }
            _ => Err(packet),
        }
    }

    /// Workers from whom there may be something, by their numbers.
    #[inline]
    pub fn givers(&mut self) -> impl Iterator<Item = usize> + use<> {
        self.look();
        Members(self.from)
    }

    #[inline]
    fn look(&mut self) {
        if self.given.0.load(Ordering::Relaxed) != 0 {
            self.from |= self.given.0.swap(0, Ordering::Acquire);
        }
    }

    /// Takes packets from `worker` until the batch is full; returns how many.
    #[inline]
    pub fn take(&mut self, worker: usize, batch: &mut Batch) -> usize {
        let Some(Some(peer)) = self.peers.get_mut(worker) else { return 0 };
        let mut taken = 0;
        while batch.room() > 0 {
            let Some(packet) = peer.from.packets.pop() else { break };
            batch.push(packet);
            taken += 1;
        }
        peer.debt += taken;
        self.owed |= u64::from(taken > 0) << worker;
        taken
    }

    /// Pays back frames, collects those that came back, and wakes whom packets were given to. Once
    /// a turn of the loop.
    #[inline]
    pub fn settle(&mut self, pool: &mut FramePool) {
        self.look();
        if self.from | self.owed | self.told != 0 {
            self.settle_some(pool);
        }
    }

    fn settle_some(&mut self, pool: &mut FramePool) {
        for giver in Members(self.from) {
            let Some(Some(peer)) = self.peers.get_mut(giver) else { continue };
            while let Some(slot) = peer.from.slots.pop() {
                pool.put_slot(slot);
            }
            // What comes later is told of later.
            self.from &= !(u64::from(peer.from.packets.is_empty()) << giver);
        }
        let mine = 1 << self.me;
        for other in Members(self.owed | self.told) {
            let Some(Some(peer)) = self.peers.get_mut(other) else { continue };
            let has_paid = peer.pay(pool, PAY_ABOVE);
            self.owed &= !(u64::from(peer.debt == 0) << other);
            let has_packets = self.told >> other & 1 != 0;
            if has_paid || has_packets {
                peer.given.0.fetch_or(mine, Ordering::Release);
            }
            if let Some(waker) = peer.waker.as_ref().filter(|_| has_packets) {
                waker.wake();
            }
        }
        self.told = 0;
    }

    /// Pays every debt as far as the pool reaches and takes back what is on its way here: the end.
    pub fn close(&mut self, pool: &mut FramePool) {
        for peer in self.peers.iter_mut().flatten() {
            while let Some(slot) = peer.from.slots.pop() {
                pool.put_slot(slot);
            }
            if peer.pay(pool, 0) {
                peer.given.0.fetch_or(1 << self.me, Ordering::Release);
            }
        }
    }

    /// Packets waiting to be taken.
    pub fn backlog(&self) -> usize {
        let from = Members(self.from | self.given.0.load(Ordering::Acquire));
        let peers = from.filter_map(|giver| self.peers.get(giver)?.as_ref());
        peers.map(|peer| peer.from.packets.len()).sum()
    }
}

impl Peer {
    /// Whether something was paid.
    fn pay(&mut self, pool: &mut FramePool, keep: usize) -> bool {
        let before = self.debt;
        while self.debt > 0 && pool.available() > keep {
            let Some(slot) = pool.take_slot() else { break };
            if let Err(slot) = self.to.slots.push(slot) {
                pool.put_slot(slot);
                break;
            }
            self.debt -= 1;
        }
        self.debt < before
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use super::*;
    use crate::base::mem::Arena;
    use crate::nic::wake::Sleeper;
    use crate::packet::PacketMeta;

    fn two_workers(frames: u32) -> (Vec<Handover>, FramePool, FramePool) {
        let (arena, mut slots) = Arena::map(frames, 2048, false).expect("memory");
        let rest = slots.split_off(frames as usize / 2);
        let a = FramePool::new(Arc::clone(&arena), slots);
        (Handover::mesh(2, 4), a, FramePool::new(arena, rest))
    }

    fn packet(pool: &mut FramePool, tag: u8) -> Packet {
        Packet { frame: pool.take_with(&[tag]).expect("stock"), meta: PacketMeta::default() }
    }

    #[test]
    fn packets_arrive_in_order_and_stocks_even_out() {
        let (mut mesh, mut a, mut b) = two_workers(1_024);
        let mut batch = Batch::new();
        for tag in 0..4 {
            mesh[0].give(1, packet(&mut a, tag)).expect("room");
        }
        let fifth = mesh[0].give(1, packet(&mut a, 4)).expect_err("the ring is full");
        a.put(fifth.frame);
        mesh[0].settle(&mut a);
        assert_eq!((mesh[1].backlog(), mesh[0].backlog()), (4, 0));
        assert_eq!(mesh[1].take(0, &mut batch), 4);
        assert_eq!(mesh[1].take(1, &mut batch), 0, "nobody gives to himself");
        let tags: Vec<_> = batch.iter().map(|p| p.frame.bytes(b.arena())[0]).collect();
        assert_eq!(tags, [0, 1, 2, 3]);
        batch.drain().for_each(|p| b.put(p.frame));
        assert_eq!((a.outstanding(), b.outstanding()), (4, -4));
        mesh[1].settle(&mut b);
        mesh[0].settle(&mut a);
        assert_eq!((a.outstanding(), b.outstanding()), (0, 0));
    }

    /// Of more than there is room for, some are left for the next turn.
    #[test]
    fn only_who_gives_is_looked_at_and_until_all_is_taken() {
        let (arena, slots) = Arena::map(512, 2_048, false).expect("memory");
        let mut pool = FramePool::new(arena, slots);
        let mut mesh = Handover::mesh(64, 256);
        let mut batch = Batch::new();
        let packets = batch.room() + 1;
        (0..packets).for_each(|_| mesh[63].give(0, packet(&mut pool, 1)).expect("room"));
        mesh[63].settle(&mut pool);
        assert_eq!((mesh[0].backlog(), mesh[1].givers().count()), (packets, 0));
        for left in [1, 0] {
            assert_eq!(mesh[0].givers().collect::<Vec<_>>(), [63]);
            mesh[0].take(63, &mut batch);
            batch.drain().for_each(|p| pool.put(p.frame));
            mesh[0].settle(&mut pool);
            assert_eq!(mesh[0].backlog(), left);
        }
        assert_eq!(mesh[0].givers().count(), 0);
        // The frames come back, and that is told, too.
        assert_eq!(mesh[63].givers().collect::<Vec<_>>(), [0]);
        mesh[63].settle(&mut pool);
        assert_eq!((mesh[63].givers().count(), pool.outstanding()), (0, 0));
    }

    #[test]
    fn a_worker_short_of_frames_pays_later() {
        let (mut mesh, mut a, mut b) = two_workers(16);
        let mut batch = Batch::new();
        mesh[0].give(1, packet(&mut a, 1)).expect("room");
        mesh[1].take(0, &mut batch);
        batch.drain().for_each(|p| b.put(p.frame));
        mesh[1].settle(&mut b);
        mesh[0].settle(&mut a);
        assert_eq!(a.outstanding(), 1, "8 frames are fewer than are kept");
        mesh[1].close(&mut b);
        mesh[0].close(&mut a);
        assert_eq!((a.outstanding(), b.outstanding()), (0, 0));
    }

    #[test]
    fn who_is_given_packets_is_woken() {
        let (mut mesh, mut a, _b) = two_workers(64);
        let mut sleeper = Sleeper::new().expect("eventfd");
        mesh[0].set_wakers(&[Sleeper::new().expect("eventfd").waker(), sleeper.waker()]);
        let start = Instant::now();
        let sleep = std::thread::spawn(move || sleeper.sleep(20_000_000_000, || false));
        // It may not sleep yet, so there is more until it wakes.
        while !sleep.is_finished() {
            if let Err(packet) = mesh[0].give(1, packet(&mut a, 1)) {
                a.put(packet.frame);
            }
            mesh[0].settle(&mut a);
            std::thread::yield_now();
        }
        assert!(start.elapsed() < Duration::from_secs(15), "it woke by itself");
    }

    #[test]
    fn what_is_left_in_a_ring_is_no_leak() {
        let (mut mesh, mut a, _b) = two_workers(4);
        mesh[0].give(1, packet(&mut a, 1)).expect("room");
        drop(mesh);
    }
}
