//! Packets that the network card gave to the wrong worker, on their way to the right one.
//!
//! All sockets share one region of memory, so a packet changes hands without a copy: its frame goes
//! over a ring. For every frame that a worker takes it gives one back, any one, so that stocks stay
//! as they were.

use std::sync::Arc;

use crossbeam::queue::ArrayQueue;

use crate::base::mem::Slot;
use crate::nic::wake::Waker;
use crate::packet::{Batch, FramePool, Packet};

/// Packets on their way from one worker to another at most: what 10 Gbit/s bring in 3 ms at 1500 B.
pub const RING_PACKETS: usize = 2_048;

/// Frames that a worker keeps for itself before it pays back what it owes.
const PAY_ABOVE: usize = 256;

/// One worker's ends of the rings to and from all others.
pub struct Handover {
    peers: Vec<Option<Peer>>,
}

struct Peer {
    to: Arc<Ring>,
    from: Arc<Ring>,
    /// Frames taken from this peer and not yet given back.
    debt: usize,
    /// Given something since it was last woken.
    expects_wake: bool,
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
    /// Rings between `workers` workers, each of `capacity` packets; one element a worker.
    pub fn mesh(workers: u16, capacity: usize) -> Vec<Handover> {
        let n = usize::from(workers);
        let ring = |i: usize| {
            let ring =
                || Ring { packets: ArrayQueue::new(capacity), slots: ArrayQueue::new(capacity) };
            (i / n != i % n).then(|| Arc::new(ring()))
        };
        let rings: Vec<_> = (0..n * n).map(ring).collect();
        let peer = |me: usize, other: usize| {
            let to = rings[me * n + other].clone()?;
            let from = rings[other * n + me].clone()?;
            Some(Peer { to, from, debt: 0, expects_wake: false, waker: None })
        };
        (0..n).map(|me| Handover { peers: (0..n).map(|o| peer(me, o)).collect() }).collect()
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

    /// Gives a packet to its owner.
    ///
    /// # Errors
    /// The packet, where the owner's ring is full.
    #[inline]
    pub fn give(&mut self, owner: u16, packet: Packet) -> Result<(), Packet> {
        match self.peers.get_mut(usize::from(owner)) {
            Some(Some(peer)) => {
                peer.expects_wake = true;
                peer.to.packets.push(packet)
            }
            _ => Err(packet),
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
        taken
    }

    /// Pays back frames, collects those that came back, and wakes whom packets were given to. Once
    /// a turn of the loop.
    #[inline]
    pub fn settle(&mut self, pool: &mut FramePool) {
        for peer in self.peers.iter_mut().flatten() {
            while let Some(slot) = peer.from.slots.pop() {
                pool.put_slot(slot);
            }
            peer.pay(pool, PAY_ABOVE);
            if std::mem::take(&mut peer.expects_wake)
                && let Some(waker) = &peer.waker
            {
                waker.wake();
            }
        }
    }

    /// Pays every debt as far as the pool reaches and takes back what is on its way here: the end.
    pub fn close(&mut self, pool: &mut FramePool) {
        for peer in self.peers.iter_mut().flatten() {
            while let Some(slot) = peer.from.slots.pop() {
                pool.put_slot(slot);
            }
            peer.pay(pool, 0);
        }
    }

    /// Packets waiting to be taken.
    pub fn backlog(&self) -> usize {
        self.peers.iter().flatten().map(|p| p.from.packets.len()).sum()
    }
}

impl Peer {
    fn pay(&mut self, pool: &mut FramePool, keep: usize) {
        while self.debt > 0 && pool.available() > keep {
            let Some(slot) = pool.take_slot() else { break };
            if let Err(slot) = self.to.slots.push(slot) {
                pool.put_slot(slot);
                break;
            }
            self.debt -= 1;
        }
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
        assert_eq!(mesh[1].backlog(), 4);
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
