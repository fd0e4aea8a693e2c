//! Ports that come and go while a worker runs: the control plane opens and closes them, which takes
//! the kernel's time; a worker exchanges one for another between two turns.

use std::sync::Arc;

use crossbeam::queue::ArrayQueue;

use super::build::queue_part;
use super::side::Side;
use super::turn::{Worker, WorkerParts};
use crate::base::Nanos;
use crate::base::mem::Slot;
use crate::nic::Port;
use crate::nic::spec::PORTS_MAX;
use crate::nic::steer::OffloadSlots;
use crate::packet::{Frame, FramePool, PortId};

/// Orders at most that wait to be done, or whose outcome waits to be fetched: each port may come
/// and go, and give frames back.
const ORDERS_MAX: usize = 4 * PORTS_MAX;

/// What is handed over, either way.
pub enum PortOrder<P> {
    Exchange(Box<Exchange<P>>),
    /// Frames of the worker that a port held which is closed by now; then none, to be freed.
    Frames(Frames),
}

/// Frames on their way back.
#[derive(Default)]
pub struct Frames(pub Vec<Slot>);

impl Drop for Frames {
    /// What a worker that has ended did not take goes with the whole region.
    fn drop(&mut self) {
        for slot in self.0.drain(..) {
            slot.into_raw();
        }
    }
}

/// One port in another's place.
pub struct Exchange<P> {
    pub id: PortId,
    /// To the worker: what comes. Back: what was there; `None` where the number is a new one.
    pub side: Option<Side<P>>,
    /// Where the XDP programs count from then on, where flows can be offloaded.
    pub slots: Option<OffloadSlots>,
    /// Room for what waits in the queue of the port that goes: it is dropped.
    pub room: Vec<Frame>,
}

/// The rings between one worker and whoever opens its ports.
pub struct PortDesk<P> {
    orders: Arc<ArrayQueue<PortOrder<P>>>,
    done: Arc<ArrayQueue<PortOrder<P>>>,
}

impl<P> Clone for PortDesk<P> {
    fn clone(&self) -> PortDesk<P> {
        PortDesk { orders: Arc::clone(&self.orders), done: Arc::clone(&self.done) }
    }
}

impl<P> Default for PortDesk<P> {
    fn default() -> PortDesk<P> {
        let ring = |orders| Arc::new(ArrayQueue::new(orders));
        // One may be in the worker's hand, and is seen in neither.
        PortDesk { orders: ring(ORDERS_MAX), done: ring(ORDERS_MAX + 1) }
    }
}

impl<P> PortDesk<P> {
    /// Leaves an order, which the worker looks for when it is told so.
    ///
    /// # Errors
    /// The order, where too many wait: the worker hangs, or what it has done was not fetched. Only
    /// one thread leaves orders at a desk.
    pub fn order(&self, order: PortOrder<P>) -> Result<(), PortOrder<P>> {
        // In this order: what the worker moves from one to the other meanwhile counts twice.
        match self.orders.len() + self.done.len() < ORDERS_MAX {
            true => self.orders.push(order),
            false => Err(order),
        }
    }

    /// What came of the orders, in order.
    pub fn done(&self) -> Option<PortOrder<P>> {
        self.done.pop()
    }
}

impl<P: Port> Worker<P> {
    /// Has ports come and go by this desk.
    pub fn set_desk(&mut self, desk: PortDesk<P>) {
        let more = PORTS_MAX.saturating_sub(self.parts.sides.len());
        self.parts.sides.reserve_exact(more);
        self.port_gauges.reserve_exact(more);
        self.desk = Some(desk);
    }

    /// Does what waits at the desk.
    #[cold]
    pub(super) fn exchange_ports(&mut self, now: Nanos) {
        let Some(desk) = self.desk.clone() else { return };
        while let Some(order) = desk.orders.pop() {
            let done = match order {
                PortOrder::Exchange(mut exchange) => {
                    self.exchange(now, &mut exchange);
                    PortOrder::Exchange(exchange)
                }
                PortOrder::Frames(mut frames) => {
                    frames.0.drain(..).for_each(|slot| self.parts.pool.put_slot(slot));
                    PortOrder::Frames(frames)
                }
            };
            let told = desk.done.push(done);
            debug_assert!(told.is_ok(), "no more are given than it has room for");
        }
    }

    fn exchange(&mut self, now: Nanos, exchange: &mut Exchange<P>) {
        let Worker { parts, counters, offload, port_gauges, .. } = self;
        let at = usize::from(exchange.id.0);
        if let Some(offload) = offload {
            offload.leave_port(now, exchange.id, &mut parts.flows);
            if let Some(slots) = exchange.slots.take() {
                exchange.slots = Some(offload.replace_slots(slots));
            }
        }
        let next = parts.sides.len();
        match parts.sides.get_mut(at) {
            Some(side) => {
                side.empty(&mut exchange.room, &mut parts.pool, counters);
                if let Some(new) = exchange.side.take() {
                    exchange.side = Some(std::mem::replace(side, new));
                }
            }
            // A number past the next one would be another port's place: it goes back as it came.
            None if at != next => return,
            None => {
                parts.sides.extend(exchange.side.take());
                port_gauges.resize_with(parts.sides.len(), Default::default);
            }
        }
        self.updated = true;
        self.ports_changed = true;
        self.share_frames();
    }

    /// Sets how much ports' queues may hold, by what is lent to their receive rings.
    pub(super) fn share_frames(&mut self) {
        let WorkerParts { sides, pool, queue_packets_max, .. } = &mut self.parts;
        share(sides, pool, *queue_packets_max);
    }

    /// Whether ports have come or gone since this was asked last.
    #[inline]
    pub(super) fn take_ports_changed(&mut self) -> bool {
        std::mem::take(&mut self.ports_changed)
    }

    /// The descriptors of all ports, for `watch`.
    pub(super) fn each_fd(&self, watch: impl FnMut(std::os::fd::RawFd)) {
        self.parts.sides.iter().flat_map(|side| side.port.fds()).for_each(watch);
    }

    /// See [`Port::doze`].
    pub(super) fn doze(&self, asleep: bool) {
        self.parts.sides.iter().for_each(|side| side.port.doze(asleep));
    }

    /// See [`Port::has_arrivals`].
    pub(super) fn has_arrivals(&self) -> bool {
        self.parts.sides.iter().any(|side| side.port.has_arrivals())
    }
}

fn share<P: Port>(sides: &mut [Side<P>], pool: &mut FramePool, packets_max: usize) {
    let lent = sides.iter().map(|side| side.port.rx_frames()).sum();
    pool.set_lent(lent);
    let open = sides.iter().filter(|side| !side.egress.is_closed()).count();
    let part = queue_part(pool.owned(), lent, open).min(packets_max);
    sides.iter_mut().for_each(|side| side.egress.hold(part));
}

#[cfg(test)]
mod tests {
    use super::super::egress::EgressQueue;
    use super::*;
    use crate::nic::PortStats;
    use crate::packet::batch::BATCH_MAX;
    use crate::packet::{ClassId, ParseOptions};
    use crate::qos::{InFlight, Queued};

    /// A port whose rings hold so many frames, and that sends nothing.
    struct Lending(usize);

    impl Port for Lending {
        fn rx_burst(&mut self, _: Nanos, _: &mut FramePool, _: &mut Vec<Frame>, _: usize) -> usize {
            0
        }
        fn tx_burst(&mut self, _: Nanos, _: &mut FramePool, _: &mut Vec<Frame>) -> usize {
            0
        }
        fn tx_room(&self) -> usize {
            0
        }
        fn poll(&mut self, _: Nanos, _: &mut FramePool) {}
        fn rx_frames(&self) -> usize {
            self.0
        }
        fn tx_in_flight_bytes(&self) -> u64 {
            0
        }
        fn stats(&self) -> PortStats {
            PortStats::default()
        }
        fn close(&mut self, _: &mut FramePool) {}
    }

    /// How much the first port's queue takes of all frames.
    fn taken(rings: &[usize], packets_max: usize) -> usize {
        const FRAMES: usize = 2_000;
        let mut pool = FramePool::standalone(FRAMES as u32, 512);
        let arena = pool.arena().clone();
        let side = |&ring: &usize| {
            let egress = EgressQueue::fifo(FRAMES);
            Side::new(Lending(ring), egress, ParseOptions::default(), InFlight::UNBOUNDED)
        };
        let mut sides: Vec<_> = rings.iter().map(side).collect();
        sides.push(Side::vacant(Lending(0)));
        share(&mut sides, &mut pool, packets_max);
        let (mut packets, mut dropped) = (Vec::new(), Vec::new());
        while let Some(frame) = pool.take_with(&[0; 60]) {
            packets.push(Queued { frame, class: ClassId::UNSET, flow_hash: 0, l3: 0 });
        }
        let egress = &mut sides[0].egress;
        egress.enqueue(Nanos::ZERO, &mut packets, &arena, &mut dropped);
        let (held, mut out) = (egress.len(), Vec::new());
        egress.drain(&mut out);
        out.into_iter().chain(dropped.into_iter().map(|d| d.0)).for_each(|f| pool.put(f));
        held
    }

    #[test]
    fn queues_leave_the_frames_of_all_rings_whatever_they_were_made_for() {
        let spare = 4 * BATCH_MAX;
        assert_eq!(taken(&[100], 2_000), 2_000 - spare - 100);
        assert_eq!(taken(&[500, 300], 2_000), (2_000 - spare - 800) / 2);
        assert_eq!(taken(&[500, 300], 70), 70);
    }
}
