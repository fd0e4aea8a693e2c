//! What waits for a port: a class tree where the pipeline shapes, else a plain queue.

use std::collections::VecDeque;

use crate::base::Nanos;
use crate::base::mem::Arena;
use crate::flow::Reclassed;
use crate::packet::{DropReason, Frame};
use crate::qos::{Queued, Scheduler};

/// Packets on their way out of one port.
pub enum EgressQueue {
    Fifo(Fifo),
    Tree(Box<Scheduler>),
    /// No port is there: nothing waits.
    Closed,
}

/// First in, first out, bounded: for ports that nothing shapes.
pub struct Fifo {
    queue: VecDeque<Frame>,
    packets_max: usize,
    bytes: u64,
}

impl EgressQueue {
    /// A plain queue of `packets_max` packets at most.
    pub fn fifo(packets_max: usize) -> EgressQueue {
        let queue = VecDeque::with_capacity(packets_max);
        EgressQueue::Fifo(Fifo { queue, packets_max, bytes: 0 })
    }

    /// Has the memory of `of` from now on, where that is more; what is left there is to be freed. A
    /// class tree keeps what it was made with.
    pub fn grow(&mut self, of: &mut EgressQueue) {
        if let (EgressQueue::Fifo(fifo), EgressQueue::Fifo(next)) = (self, of) {
            fifo.grow(next);
        }
    }

    /// Holds so many packets from now on, or what it was made for where that is less. Those that
    /// are there stay.
    pub fn hold(&mut self, packets_max: usize) {
        match self {
            EgressQueue::Fifo(fifo) => fifo.packets_max = packets_max.min(fifo.queue.capacity()),
            EgressQueue::Tree(tree) => tree.set_packets_max(packets_max as u32),
            EgressQueue::Closed => {}
        }
    }

    /// Whether no port is there.
    pub fn is_closed(&self) -> bool {
        matches!(self, EgressQueue::Closed)
    }

    /// Takes packets, in order; what has to go for them, or they themselves, are added to
    /// `dropped`.
    #[inline]
    pub fn enqueue(
        &mut self,
        now: Nanos,
        packets: &mut Vec<Queued>,
        arena: &Arena,
        dropped: &mut Vec<(Frame, DropReason)>,
    ) {
        match self {
            EgressQueue::Fifo(fifo) => {
                for packet in packets.drain(..) {
                    if let Err(frame) = fifo.enqueue(packet.frame) {
                        dropped.push((frame, DropReason::QueueFull));
                    }
                }
            }
            EgressQueue::Tree(tree) => tree.enqueue_all(now, packets, arena, dropped),
            EgressQueue::Closed => {
                dropped.extend(packets.drain(..).map(|p| (p.frame, DropReason::NotOurPort)));
            }
        }
    }

    /// Has what waits of a flow follow it to its new class, where classes have queues of their own.
    pub fn reclass(
        &mut self,
        now: Nanos,
        flow: &Reclassed,
        dropped: &mut Vec<(Frame, DropReason)>,
    ) {
        let EgressQueue::Tree(tree) = self else { return };
        let [up, down] = flow.hashes.map(|hash| hash as u32);
        for hash in [up, down] {
            tree.reclass(now, hash, (flow.from, flow.to), dropped);
        }
    }

    /// Adds packets that may go now to `out`: `packets_max` at most, and `bytes_max` bytes, which
    /// the last one may overshoot. Returns how many. What the queue management gives up goes to
    /// `dropped`.
    #[inline]
    pub fn dequeue(
        &mut self,
        now: Nanos,
        packets_max: usize,
        bytes_max: u64,
        arena: &Arena,
        out: &mut Vec<Frame>,
        dropped: &mut Vec<(Frame, DropReason)>,
    ) -> usize {
        match self {
            EgressQueue::Fifo(fifo) => fifo.dequeue(packets_max, bytes_max, out),
            EgressQueue::Tree(tree) => {
                tree.dequeue(now, packets_max, bytes_max, arena, out, dropped)
            }
            EgressQueue::Closed => 0,
        }
    }

    /// When the next packet may go; `None` where none waits.
    pub fn next_event(&self, now: Nanos) -> Option<Nanos> {
        match self {
            EgressQueue::Fifo(fifo) => (!fifo.queue.is_empty()).then_some(now),
            EgressQueue::Tree(tree) => tree.next_event(now),
            EgressQueue::Closed => None,
        }
    }

    /// Packets waiting.
    #[inline]
    pub fn len(&self) -> usize {
        match self {
            EgressQueue::Fifo(fifo) => fifo.queue.len(),
            EgressQueue::Tree(tree) => tree.len(),
            EgressQueue::Closed => 0,
        }
    }

    #[inline]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Whether nothing shapes.
    pub fn is_fifo(&self) -> bool {
        matches!(self, EgressQueue::Fifo(_))
    }

    /// Whether a packet that is enqueued now would be the next one out.
    #[inline]
    pub fn is_empty_fifo(&self) -> bool {
        matches!(self, EgressQueue::Fifo(fifo) if fifo.queue.is_empty())
    }

    /// Bytes waiting.
    pub fn backlog_bytes(&self) -> u64 {
        match self {
            EgressQueue::Fifo(fifo) => fifo.bytes,
            EgressQueue::Tree(tree) => tree.backlog_bytes(),
            EgressQueue::Closed => 0,
        }
    }

    /// Takes out everything that waits.
    pub fn drain(&mut self, out: &mut Vec<Frame>) {
        match self {
            EgressQueue::Fifo(fifo) => {
                out.extend(fifo.queue.drain(..));
                fifo.bytes = 0;
            }
            EgressQueue::Tree(tree) => tree.drain(out),
            EgressQueue::Closed => {}
        }
    }

    /// The same in parts of so many packets at most: no more may come. `at` is where it goes on, 0
    /// at first.
    pub fn take_some(&mut self, at: &mut u32, packets_max: usize, out: &mut Vec<Frame>) {
        match self {
            EgressQueue::Fifo(fifo) => {
                fifo.dequeue(packets_max, u64::MAX, out);
            }
            EgressQueue::Tree(tree) => tree.take_some(at, packets_max, out),
            EgressQueue::Closed => {}
        }
    }
}

impl Fifo {
    #[inline]
    fn enqueue(&mut self, frame: Frame) -> Result<(), Frame> {
        if self.queue.len() >= self.packets_max {
            return Err(frame);
        }
        self.bytes += frame.len() as u64;
        self.queue.push_back(frame);
        Ok(())
    }

    fn grow(&mut self, next: &mut Fifo) {
        if next.queue.capacity() > self.queue.capacity() {
            next.queue.extend(self.queue.drain(..));
            std::mem::swap(&mut self.queue, &mut next.queue);
        }
    }

    #[inline]
    fn dequeue(&mut self, packets_max: usize, bytes_max: u64, out: &mut Vec<Frame>) -> usize {
        let (mut packets, mut bytes) = (0, 0);
        while packets < packets_max && bytes < bytes_max {
            let Some(frame) = self.queue.pop_front() else { break };
            bytes += frame.len() as u64;
            packets += 1;
            out.push(frame);
        }
        self.bytes -= bytes;
        packets
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::packet::{ClassId, FramePool};

    const T: Nanos = Nanos::ZERO;

    #[test]
    fn a_fifo_grows_and_shrinks_with_its_packets() {
        let mut pool = FramePool::standalone(64, 512);
        let arena = pool.arena().clone();
        let (mut egress, mut dropped) = (EgressQueue::fifo(4), Vec::new());
        let mut number = 0u8;
        let mut put = |egress: &mut EgressQueue, count: usize| {
            let mut packets = Vec::new();
            for _ in 0..count {
                let frame = pool.take_with(&[number; 60]).expect("stock");
                packets.push(Queued { frame, class: ClassId::UNSET, flow_hash: 0, l3: 0 });
                number += 1;
            }
            let before = dropped.len();
            egress.enqueue(T, &mut packets, &arena, &mut dropped);
            (egress.len(), dropped.len() - before)
        };
        assert_eq!(put(&mut egress, 5), (4, 1));
        egress.grow(&mut EgressQueue::fifo(9));
        egress.hold(9);
        assert_eq!(put(&mut egress, 6), (9, 1));
        let mut smaller = EgressQueue::fifo(2);
        egress.grow(&mut smaller);
        egress.hold(2);
        assert_eq!((put(&mut egress, 1), smaller.len()), ((9, 1), 0), "those that wait stay");
        let mut out = Vec::new();
        assert_eq!(egress.dequeue(T, 8, u64::MAX, &arena, &mut out, &mut Vec::new()), 8);
        assert_eq!((put(&mut egress, 2), egress.backlog_bytes()), ((2, 1), 120));
        egress.hold(4);
        assert_eq!(put(&mut egress, 3), (4, 1), "it has the memory");
        egress.drain(&mut out);
        let order: Vec<_> = out.iter().map(|f| f.bytes(&arena)[0]).collect();
        assert_eq!(order, [0, 1, 2, 3, 5, 6, 7, 8, 9, 12, 14, 15]);
        out.into_iter().chain(dropped.into_iter().map(|d| d.0)).for_each(|f| pool.put(f));
    }

    #[test]
    fn a_fifo_keeps_order_and_its_bounds() {
        let mut pool = FramePool::standalone(4, 2048);
        let mut egress = EgressQueue::fifo(3);
        let mut dropped = Vec::new();
        let arena = pool.arena().clone();
        let mut packets = Vec::new();
        for i in 0..4u8 {
            let frame = pool.take_with(&[i; 100]).expect("stock");
            packets.push(Queued { frame, class: ClassId::UNSET, flow_hash: 0, l3: 0 });
        }
        egress.enqueue(T, &mut packets, &arena, &mut dropped);
        assert_eq!((egress.len(), egress.backlog_bytes()), (3, 300));
        assert_eq!(dropped.len(), 1);
        assert_eq!(dropped[0].1, DropReason::QueueFull);
        assert_eq!(egress.next_event(T), Some(T));
        let mut out = Vec::new();
        assert_eq!(
            egress.dequeue(T, 64, 101, &arena, &mut out, &mut dropped),
            2,
            "the second overshoots"
        );
        assert_eq!(egress.dequeue(T, 64, 0, &arena, &mut out, &mut dropped), 0);
        assert_eq!(egress.dequeue(T, 0, 1000, &arena, &mut out, &mut dropped), 0);
        egress.drain(&mut out);
        assert_eq!((egress.len(), egress.backlog_bytes(), egress.next_event(T)), (0, 0, None));
        let order: Vec<_> = out.iter().map(|f| f.bytes(pool.arena())[0]).collect();
        assert_eq!(order, [0, 1, 2]);
        out.into_iter().for_each(|f| pool.put(f));
        dropped.into_iter().for_each(|(f, _)| pool.put(f));
    }
}
