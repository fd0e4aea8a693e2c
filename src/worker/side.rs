//! A port and what waits for it.

use super::egress::EgressQueue;
use crate::base::Nanos;
use crate::flow::Reclassed;
use crate::nic::Port;
use crate::observe::{Counters, PortGauges};
use crate::packet::batch::BATCH_MAX;
use crate::packet::{DropReason, Frame, FramePool, ParseOptions};
use crate::qos::{DROPS_PER_ARRIVAL, InFlight, Queued};

/// Bursts sent in one turn at most: several ports may fill one.
const TX_BURSTS: usize = 8;

/// One of a worker's ports.
pub struct Side<P> {
    pub port: P,
    pub egress: EgressQueue,
    pub options: ParseOptions,
    /// What the device may hold.
    pub in_flight: InFlight,
    /// On their way into `egress`, which takes them together.
    arrivals: Vec<Queued>,
    /// Chosen by `egress`, or let past it; not yet taken by the port.
    staged: Vec<Frame>,
    /// Given up by `egress` while it was asked for packets or given one.
    dropped: Vec<(Frame, DropReason)>,
}

impl<P: Port> Side<P> {
    pub fn new(
        port: P,
        egress: EgressQueue,
        options: ParseOptions,
        in_flight: InFlight,
    ) -> Side<P> {
        let staged = Vec::with_capacity(BATCH_MAX);
        let arrivals = Vec::with_capacity(BATCH_MAX);
        let dropped = Vec::with_capacity(BATCH_MAX * DROPS_PER_ARRIVAL);
        Side { port, egress, options, in_flight, arrivals, staged, dropped }
    }

    /// In the place of a port that is none: what is sent to it is dropped.
    pub fn vacant(port: P) -> Side<P> {
        let in_flight = InFlight::of_bytes(0);
        Side::new(port, EgressQueue::Closed, ParseOptions::default(), in_flight)
    }

    /// Packets that wait here.
    pub fn held(&self) -> usize {
        self.arrivals.len() + self.egress.len() + self.staged.len()
    }

    /// Takes a packet. Where nothing waits and nothing shapes, it goes straight to what the port
    /// sends next.
    #[inline(always)]
    pub fn enqueue(
        &mut self,
        now: Nanos,
        packet: Queued,
        pool: &mut FramePool,
        counters: &mut Counters,
    ) {
        let is_idle = self.arrivals.is_empty() && self.egress.is_empty_fifo();
        if is_idle && self.staged.len() < BATCH_MAX {
            self.staged.push(packet.frame);
            return;
        }
        self.arrivals.push(packet);
        if self.arrivals.len() == BATCH_MAX {
            self.admit(now, pool, counters);
        }
    }

    /// Queues what has come.
    #[inline]
    fn admit(&mut self, now: Nanos, pool: &mut FramePool, counters: &mut Counters) {
        self.egress.enqueue(now, &mut self.arrivals, pool.arena(), &mut self.dropped);
        if !self.dropped.is_empty() {
            self.count_dropped(pool, counters);
        }
    }

    /// Has what waits of a flow, or what it has sent in advance of its pace, follow it to its new
    /// class.
    pub fn reclass(
        &mut self,
        now: Nanos,
        flow: &Reclassed,
        pool: &mut FramePool,
        counters: &mut Counters,
    ) {
        if !self.arrivals.is_empty() {
            self.admit(now, pool, counters);
        }
        self.egress.reclass(now, flow, &mut self.dropped);
        if !self.dropped.is_empty() {
            self.count_dropped(pool, counters);
        }
    }

    /// Sends what may go and returns how many packets the port took.
    pub fn transmit(&mut self, now: Nanos, pool: &mut FramePool, counters: &mut Counters) -> usize {
        if !self.arrivals.is_empty() {
            self.admit(now, pool, counters);
        }
        let mut sent = 0;
        for _ in 0..TX_BURSTS {
            let wanted = self.stage(now, pool);
            if !self.dropped.is_empty() {
                self.count_dropped(pool, counters);
            }
            if self.staged.is_empty() {
                break;
            }
            let bytes = bytes_of(&self.staged);
            let taken = self.port.tx_burst(now, pool, &mut self.staged);
            sent += taken;
            counters.tx_packets += taken as u64;
            counters.tx_bytes += bytes - bytes_of(&self.staged);
            if !wanted || !self.staged.is_empty() {
                break;
            }
        }
        sent
    }

    /// Fills `staged` as far as the port has room; `false` where nothing more is to be had now.
    #[inline]
    fn stage(&mut self, now: Nanos, pool: &FramePool) -> bool {
        if self.egress.is_empty() {
            return false;
        }
        let room = self.port.tx_room().min(BATCH_MAX).saturating_sub(self.staged.len());
        let in_flight = self.port.tx_in_flight_bytes() + bytes_of(&self.staged);
        let bytes_max = self.in_flight.room(now, in_flight);
        if room == 0 || bytes_max == 0 {
            self.in_flight.stop(now);
            return false;
        }
        let arena = pool.arena();
        let Side { egress, staged, dropped, in_flight: bound, .. } = self;
        let before = bytes_of(staged);
        let got = egress.dequeue(now, room, bytes_max, arena, staged, dropped);
        if bytes_of(staged) - before >= bytes_max {
            bound.stop(now);
        }
        got == room
    }

    #[cold]
    fn count_dropped(&mut self, pool: &mut FramePool, counters: &mut Counters) {
        for (frame, reason) in self.dropped.drain(..) {
            counters.drop(reason);
            pool.put(frame);
        }
    }

    /// When the next packet may go; `None` where none waits.
    pub fn next_event(&self, now: Nanos) -> Option<Nanos> {
        if self.staged.is_empty() && self.arrivals.is_empty() {
            self.egress.next_event(now)
        } else {
            Some(now)
        }
    }

    /// Drops what waits, by way of a list with room for it: the port is going.
    pub fn empty(&mut self, room: &mut Vec<Frame>, pool: &mut FramePool, counters: &mut Counters) {
        room.append(&mut self.staged);
        room.extend(self.arrivals.drain(..).map(|packet| packet.frame));
        let mut at = 0;
        while !self.egress.is_empty() {
            self.egress.take_some(&mut at, BATCH_MAX, room);
        }
        for frame in room.drain(..) {
            counters.drop(DropReason::NotOurPort);
            pool.put(frame);
        }
    }

    /// Gives all frames back: what still waits is dropped.
    pub fn close(&mut self, pool: &mut FramePool, counters: &mut Counters) {
        self.staged.extend(self.arrivals.drain(..).map(|packet| packet.frame));
        self.egress.drain(&mut self.staged);
        for frame in self.staged.drain(..) {
            counters.drop(DropReason::Shutdown);
            pool.put(frame);
        }
        self.port.close(pool);
    }

    /// As published.
    pub fn gauges(&self) -> PortGauges {
        let s = self.port.stats();
        PortGauges {
            rx_packets: s.rx_packets,
            rx_bytes: s.rx_bytes,
            tx_packets: s.tx_packets,
            tx_bytes: s.tx_bytes,
            rx_missed: s.rx_missed,
            tx_errors: s.tx_errors,
            wakeups: s.wakeups,
            backlog_packets: self.held() as u64,
            backlog_bytes: self.egress.backlog_bytes() + bytes_of(&self.staged),
        }
    }
}

#[inline]
fn bytes_of(frames: &[Frame]) -> u64 {
    frames.iter().map(|f| f.len() as u64).sum()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::Seed;
    use crate::base::units::BitRate;
    use crate::nic::memory::MemoryPort;
    use crate::packet::{ClassId, PortId};
    use crate::qos::Scheduler;
    use crate::qos::spec::{ClassSpec, PortQosSpec, QueueSpec};

    /// Past the queue, through it, and past it again, while the wire takes a few at a time.
    #[test]
    fn packets_leave_in_the_order_in_which_they_came() {
        const PACKETS: u8 = 200;
        let mut pool = FramePool::standalone(PACKETS.into(), 2048);
        let (port, wire) = MemoryPort::pair(10);
        let egress = EgressQueue::fifo(PACKETS.into());
        let mut side = Side::new(port, egress, ParseOptions::default(), InFlight::UNBOUNDED);
        let mut counters = Counters::default();
        let mut seen = Vec::new();
        let mut turn = |side: &mut Side<MemoryPort>, pool: &mut FramePool| {
            side.transmit(Nanos::ZERO, pool, &mut counters);
            seen.extend(std::iter::from_fn(|| wire.recv()).map(|bytes| bytes[0]));
        };
        for i in 0..PACKETS {
            let frame = pool.take_with(&[i]).expect("stock");
            let packet = Queued { frame, class: ClassId::UNSET, flow_hash: 0, l3: 0 };
            side.enqueue(Nanos::ZERO, packet, &mut pool, &mut Counters::default());
            if i % 25 == 0 {
                turn(&mut side, &mut pool);
            }
        }
        assert!(!side.egress.is_empty() && side.staged.len() <= BATCH_MAX);
        while side.held() > 0 {
            turn(&mut side, &mut pool);
        }
        assert_eq!(seen, (0..PACKETS).collect::<Vec<_>>());
        assert_eq!((counters.tx_packets, pool.outstanding()), (PACKETS.into(), 0));
    }

    #[test]
    fn what_waits_for_a_port_that_goes_is_dropped_and_so_is_what_comes_later() {
        let mut pool = FramePool::standalone(8, 2048);
        let mut counters = Counters::default();
        let tree = Scheduler::new(&two_classes(), 8, Seed(1));
        for egress in [EgressQueue::fifo(4), EgressQueue::Tree(Box::new(tree))] {
            let (port, _wire) = MemoryPort::pair(1);
            let mut side = Side::new(port, egress, ParseOptions::default(), InFlight::UNBOUNDED);
            let send = |side: &mut Side<MemoryPort>, pool: &mut FramePool, c: &mut Counters| {
                let frame = pool.take_with(&[1; 64]).expect("stock");
                let packet = Queued { frame, class: ClassId::UNSET, flow_hash: 0, l3: 0 };
                side.enqueue(Nanos::ZERO, packet, pool, c);
                side.transmit(Nanos::ZERO, pool, c);
            };
            (0..3).for_each(|_| send(&mut side, &mut pool, &mut counters));
            assert_eq!(side.held(), 2, "the wire takes one");
            let before = counters.drops[DropReason::NotOurPort as usize];
            side.empty(&mut Vec::with_capacity(8), &mut pool, &mut counters);
            side.port.close(&mut pool);
            let mut side = Side::vacant(MemoryPort::pair(1).0);
            send(&mut side, &mut pool, &mut counters);
            assert_eq!((side.held(), side.next_event(Nanos::ZERO)), (0, None));
            assert_eq!(counters.drops[DropReason::NotOurPort as usize], before + 3);
            assert_eq!(pool.outstanding(), 0);
        }
    }

    /// A port of two classes that borrow by priority: class 1 first.
    fn two_classes() -> PortQosSpec {
        let rate = BitRate(1_000_000_000);
        let class = |id: u16| ClassSpec {
            priority: id as u8,
            queue: QueueSpec::INTERNET,
            ..ClassSpec::plain(id, BitRate(1_000_000), rate)
        };
        PortQosSpec {
            port: PortId(0),
            rate,
            burst: 1 << 20,
            overhead: 24,
            mpu: 84,
            mtu: 1_514,
            default_class: ClassId(2),
            classes: vec![class(1), class(2)],
        }
    }

    #[test]
    fn the_device_is_no_hidden_queue_before_the_class_tree() {
        const PACKETS: u8 = 200;
        const LEN: usize = 1_500;
        const IN_FLIGHT_MAX: u64 = 16 << 10;
        let mut pool = FramePool::standalone(2 * u32::from(PACKETS), 2_048);
        let (port, wire) = MemoryPort::pair(PACKETS.into());
        let tree = Scheduler::new(&two_classes(), PACKETS.into(), Seed(1));
        let egress = EgressQueue::Tree(Box::new(tree));
        let mut side =
            Side::new(port, egress, ParseOptions::default(), InFlight::of_bytes(IN_FLIGHT_MAX));
        let mut counters = Counters::default();
        let offer = |side: &mut Side<MemoryPort>, pool: &mut FramePool, class, number| {
            let frame = pool.take_with(&[number; LEN]).expect("stock");
            let packet = Queued { frame, class: ClassId(class), flow_hash: 0, l3: 0 };
            side.enqueue(Nanos::ZERO, packet, pool, &mut Counters::default());
        };
        for number in 1..PACKETS {
            offer(&mut side, &mut pool, 2, number);
        }
        // The wire has room for all of them; the device gets no more than it may hold.
        for _ in 0..3 {
            side.transmit(Nanos::ZERO, &mut pool, &mut counters);
            let in_flight = side.port.tx_in_flight_bytes();
            assert!(in_flight < IN_FLIGHT_MAX + LEN as u64, "{in_flight} bytes in flight");
        }
        let before = side.port.tx_in_flight_bytes() as usize / LEN;
        offer(&mut side, &mut pool, 1, 0);
        let mut seen = Vec::new();
        while side.held() > 0 || side.port.tx_in_flight_bytes() > 0 {
            seen.extend(wire.recv().map(|bytes| bytes[0]));
            side.transmit(Nanos::ZERO, &mut pool, &mut counters);
        }
        let first = seen.iter().position(|&number| number == 0);
        assert!(first.is_some_and(|at| at <= before), "{first:?}, behind {before} in flight");
        seen.retain(|&number| number != 0);
        assert_eq!(seen, (1..PACKETS).collect::<Vec<_>>(), "lost, or out of order");
        assert_eq!(pool.outstanding(), 0);
    }

    /// Also where nothing waits in the whole port.
    #[test]
    fn a_flow_that_has_nothing_waiting_takes_its_pace_along() {
        const FLOW: u64 = 7;
        // A packet of 1000 bytes and overhead takes 8.2 ms, of which 4 may be in advance.
        let mut spec = two_classes();
        spec.classes.iter_mut().for_each(|class| class.flow_rate = Some(BitRate(1_000_000)));
        let mut pool = FramePool::standalone(8, 2_048);
        let (port, wire) = MemoryPort::pair(8);
        let egress = EgressQueue::Tree(Box::new(Scheduler::new(&spec, 8, Seed(1))));
        let mut side = Side::new(port, egress, ParseOptions::default(), InFlight::UNBOUNDED);
        let mut counters = Counters::default();
        let begin = Nanos::from_secs(1);
        for (class, ms, sent) in [(2, 0, 1), (1, 4, 0), (1, 5, 1)] {
            let now = begin.saturating_add(ms * 1_000_000);
            if sent == usize::from(class == 2) {
                let frame = pool.take_with(&[0; 1_000]).expect("stock");
                let packet = Queued { frame, class: ClassId(class), flow_hash: FLOW as u32, l3: 0 };
                side.enqueue(now, packet, &mut pool, &mut counters);
            }
            side.transmit(now, &mut pool, &mut counters);
            assert_eq!(std::iter::from_fn(|| wire.recv()).count(), sent, "class {class}, {ms} ms");
            side.transmit(now, &mut pool, &mut counters);
            if class == 2 {
                let (from, to) = (ClassId(2), ClassId(1));
                assert_eq!((side.held(), pool.outstanding()), (0, 0));
                let moved = Reclassed { hashes: [FLOW, 99], from, to };
                side.reclass(now, &moved, &mut pool, &mut counters);
            }
        }
        assert_eq!((side.held(), pool.outstanding()), (0, 0));
    }
}
