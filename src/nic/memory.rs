//! Ports without a kernel: for tests, the simulator and benchmarks.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::{Port, PortStats};
use crate::base::Nanos;
use crate::packet::frame::HEADROOM;
use crate::packet::{Frame, FramePool};

/// Bytes of a wire's buffer: larger packets make it grow.
const BUFFER_BYTES: usize = 2_048;

/// A port whose wire is two bounded queues in memory; a [`MemoryEnd`] is at their other end.
///
/// Packets are copied on the way in and out, so each side has frames of its own. Buffers are made
/// at the start and go round: the port allocates nothing while they are given back.
pub struct MemoryPort {
    wire: Arc<Mutex<Wire>>,
    stats: PortStats,
}

/// The other end of a [`MemoryPort`]'s wire.
#[derive(Clone)]
pub struct MemoryEnd {
    wire: Arc<Mutex<Wire>>,
}

struct Wire {
    to_port: VecDeque<Vec<u8>>,
    from_port: VecDeque<Vec<u8>>,
    /// Packets in each queue at most.
    capacity: usize,
    in_flight_bytes: u64,
    spare: Vec<Vec<u8>>,
}

impl Wire {
    /// An empty buffer, used before if there is one.
    fn buffer(&mut self, bytes: &[u8]) -> Vec<u8> {
        let mut b = self.spare.pop().unwrap_or_else(|| Vec::with_capacity(BUFFER_BYTES));
        b.clear();
        b.extend_from_slice(bytes);
        b
    }
}

/// A panic elsewhere leaves the queues whole: nothing here panics between two changes.
fn locked(wire: &Mutex<Wire>) -> MutexGuard<'_, Wire> {
    wire.lock().unwrap_or_else(PoisonError::into_inner)
}

impl MemoryPort {
    /// A port and the other end of its wire, which holds `capacity` packets each way.
    pub fn pair(capacity: usize) -> (MemoryPort, MemoryEnd) {
        let wire = Arc::new(Mutex::new(Wire {
            to_port: VecDeque::with_capacity(capacity),
            from_port: VecDeque::with_capacity(capacity),
            capacity,
            in_flight_bytes: 0,
            spare: (0..2 * capacity).map(|_| Vec::with_capacity(BUFFER_BYTES)).collect(),
        }));
        (MemoryPort { wire: Arc::clone(&wire), stats: PortStats::default() }, MemoryEnd { wire })
    }
}

impl MemoryEnd {
    /// Puts a packet on the wire toward the port; `false` where the queue is full.
    #[must_use]
    pub fn send(&self, bytes: &[u8]) -> bool {
        let mut wire = locked(&self.wire);
        if wire.to_port.len() >= wire.capacity {
            return false;
        }
        let b = wire.buffer(bytes);
        wire.to_port.push_back(b);
        true
    }

    /// The next packet that the port sent. Hand it to [`MemoryEnd::recycle`] to have it used again.
    pub fn recv(&self) -> Option<Vec<u8>> {
        let mut wire = locked(&self.wire);
        let b = wire.from_port.pop_front()?;
        wire.in_flight_bytes -= b.len() as u64;
        Some(b)
    }

    /// Gives a buffer back that [`MemoryEnd::recv`] lent.
    pub fn recycle(&self, buffer: Vec<u8>) {
        let mut wire = locked(&self.wire);
        if wire.spare.len() < wire.spare.capacity() {
            wire.spare.push(buffer);
        }
    }

    /// Packets on their way to the port.
    pub fn pending(&self) -> usize {
        locked(&self.wire).to_port.len()
    }
}

impl Port for MemoryPort {
    fn rx_burst(
        &mut self,
        _now: Nanos,
        pool: &mut FramePool,
        out: &mut Vec<Frame>,
        max: usize,
    ) -> usize {
        let mut wire = locked(&self.wire);
        let mut got = 0;
        while got < max && pool.available() > 0 {
            let Some(b) = wire.to_port.pop_front() else { break };
            match pool.take_with(&b) {
                Some(frame) => {
                    self.stats.rx_packets += 1;
                    self.stats.rx_bytes += b.len() as u64;
                    out.push(frame);
                    got += 1;
                }
                // Larger than a frame, as a jumbo packet would be.
                None => self.stats.rx_missed += 1,
            }
            wire.spare.push(b);
        }
        got
    }

    fn tx_burst(&mut self, _now: Nanos, pool: &mut FramePool, frames: &mut Vec<Frame>) -> usize {
        let mut wire = locked(&self.wire);
        let n = frames.len().min(wire.capacity - wire.from_port.len());
        for frame in frames.drain(..n) {
            let len = frame.len() as u64;
            let b = wire.buffer(frame.bytes(pool.arena()));
            wire.from_port.push_back(b);
            wire.in_flight_bytes += len;
            self.stats.tx_packets += 1;
            self.stats.tx_bytes += len;
            pool.put(frame);
        }
        n
    }

    fn tx_room(&self) -> usize {
        let wire = locked(&self.wire);
        wire.capacity - wire.from_port.len()
    }

    fn poll(&mut self, _now: Nanos, _pool: &mut FramePool) {}

    fn tx_in_flight_bytes(&self) -> u64 {
        locked(&self.wire).in_flight_bytes
    }

    fn stats(&self) -> PortStats {
        self.stats
    }

    fn close(&mut self, _pool: &mut FramePool) {}
}

/// A port that receives what one function writes and shows another what it sends: for benchmarks.
///
/// Frames go from the pool to the worker and straight back, so they stay in the cache, and what the
/// port itself costs (about the copy that `fill` makes) can be measured alone.
pub struct RecyclePort<F, S> {
    fill: F,
    sink: S,
    burst: usize,
    stats: PortStats,
}

impl<F: FnMut(&mut [u8]) -> usize, S: FnMut(&[u8])> RecyclePort<F, S> {
    /// `fill` writes the next packet and returns its length, 0 where there is none now; `burst`
    /// bounds what one call receives; `sink` sees each packet that is sent.
    pub fn new(burst: usize, fill: F, sink: S) -> RecyclePort<F, S> {
        RecyclePort { fill, sink, burst, stats: PortStats::default() }
    }
}

impl<F: FnMut(&mut [u8]) -> usize, S: FnMut(&[u8])> Port for RecyclePort<F, S> {
    #[inline]
    fn rx_burst(
        &mut self,
        _now: Nanos,
        pool: &mut FramePool,
        out: &mut Vec<Frame>,
        max: usize,
    ) -> usize {
        let mut got = 0;
        while got < max.min(self.burst) {
            let Some(mut frame) = pool.take() else { break };
            let room = pool.arena().slot_size() as usize - HEADROOM;
            let fits = frame.set_extent(pool.arena(), HEADROOM, room);
            debug_assert!(fits);
            let len = (self.fill)(frame.bytes_mut(pool.arena()));
            if len == 0 {
                pool.put(frame);
                break;
            }
            frame.truncate(len);
            self.stats.rx_packets += 1;
            self.stats.rx_bytes += len as u64;
            out.push(frame);
            got += 1;
        }
        got
    }

    #[inline]
    fn tx_burst(&mut self, _now: Nanos, pool: &mut FramePool, frames: &mut Vec<Frame>) -> usize {
        let n = frames.len();
        for frame in frames.drain(..) {
            self.stats.tx_packets += 1;
            self.stats.tx_bytes += frame.len() as u64;
            (self.sink)(frame.bytes(pool.arena()));
            pool.put(frame);
        }
        n
    }

    #[inline]
    fn tx_room(&self) -> usize {
        crate::packet::batch::BATCH_MAX
    }

    fn poll(&mut self, _now: Nanos, _pool: &mut FramePool) {}

    fn tx_in_flight_bytes(&self) -> u64 {
        0
    }

    fn stats(&self) -> PortStats {
        self.stats
    }

    fn close(&mut self, _pool: &mut FramePool) {}
}

#[cfg(test)]
mod tests {
    use super::*;

    const T: Nanos = Nanos::ZERO;

    #[test]
    fn packets_cross_the_wire_in_order_and_no_frame_is_lost() {
        let mut pool = FramePool::standalone(8, 2048);
        let (mut port, end) = MemoryPort::pair(3);
        assert!(end.send(b"one") && end.send(b"two") && end.send(b"three"));
        assert!(!end.send(b"four"), "the queue is full");
        let mut frames = Vec::new();
        assert_eq!(port.rx_burst(T, &mut pool, &mut frames, 2), 2);
        assert_eq!(port.rx_burst(T, &mut pool, &mut frames, 2), 1);
        assert_eq!(port.tx_burst(T, &mut pool, &mut frames), 3);
        assert_eq!((port.tx_room(), port.tx_in_flight_bytes()), (0, 11));
        let got: Vec<_> = std::iter::from_fn(|| end.recv()).collect();
        assert_eq!(got, [b"one".to_vec(), b"two".to_vec(), b"three".to_vec()]);
        assert_eq!((port.tx_room(), port.tx_in_flight_bytes()), (3, 0));
        assert_eq!(pool.outstanding(), 0);
    }

    #[test]
    fn a_full_wire_leaves_frames_with_the_caller() {
        let mut pool = FramePool::standalone(4, 2048);
        let (mut port, _end) = MemoryPort::pair(1);
        let mut frames: Vec<_> = (0..3u8).filter_map(|i| pool.take_with(&[i])).collect();
        assert_eq!(port.tx_burst(T, &mut pool, &mut frames), 1);
        assert_eq!(port.tx_burst(T, &mut pool, &mut frames), 0);
        assert_eq!(frames[0].bytes(pool.arena()), [1], "the first was taken");
        frames.into_iter().for_each(|f| pool.put(f));
    }

    #[test]
    fn packets_wait_where_no_frame_is_free_and_jumbos_are_counted() {
        let mut pool = FramePool::standalone(1, 2048);
        let (mut port, end) = MemoryPort::pair(4);
        assert!(end.send(&[0; 4000]) && end.send(b"a") && end.send(b"b"));
        let mut frames = Vec::new();
        assert_eq!(port.rx_burst(T, &mut pool, &mut frames, 8), 1);
        assert_eq!((port.stats().rx_missed, end.pending()), (1, 1));
        frames.into_iter().for_each(|f| pool.put(f));
    }

    #[test]
    fn a_recycling_port_gives_what_is_written() {
        let mut pool = FramePool::standalone(4, 2048);
        let mut n = 0u8;
        let mut sent = Vec::new();
        let fill = |b: &mut [u8]| {
            n += 1;
            b[0] = n;
            usize::from(n < 4)
        };
        let mut port = RecyclePort::new(2, fill, |b: &[u8]| sent.push(b[0]));
        let mut frames = Vec::new();
        assert_eq!(port.rx_burst(T, &mut pool, &mut frames, 64), 2);
        assert_eq!(port.rx_burst(T, &mut pool, &mut frames, 64), 1, "the fourth is empty");
        assert_eq!(frames[2].bytes(pool.arena()), [3]);
        assert_eq!(port.tx_burst(T, &mut pool, &mut frames), 3);
        assert_eq!(sent, [1, 2, 3]);
        assert_eq!(pool.outstanding(), 0);
    }
}
