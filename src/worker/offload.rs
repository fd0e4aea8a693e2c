//! Hands flows of which nothing more is to be decided down to the XDP program, and follows them.
//!
//! A flow's direction that was handed down has a slot, by which the program counts. A flow is the
//! worker's all the same: packets that change its state come here, it expires here, and a slot's
//! stamp, which both sides map, ends the program's part at once.

use std::sync::Arc;
use std::time::Duration;

use crossbeam::queue::ArrayQueue;

use super::side::Side;
use super::turn::{Worker, WorkerParts};
use crate::base::Nanos;
use crate::flow::{Flow, FlowKind, FlowTable, Hop, TcpState};
use crate::forward::Egress;
use crate::forward::splice::Shift;
use crate::nic::Port;
use crate::nic::steer::{MAX_OFFLOAD_SLOTS, MAX_WAITED, OffloadEntry, OffloadOrder, OffloadSlots};
use crate::packet::checksum::FoldedDelta;
use crate::packet::{
    Direction, FlowKey, FlowRef, PacketFlags, PacketMeta, PortId, Verdict, eth, tcp, udp,
};

/// Orders of one worker that wait for control at most.
const ORDERS_MAX: usize = 4_096;
/// Room among them that is kept for taking flows back.
const ORDERS_RESERVED: usize = ORDERS_MAX / 2;
/// A flow's direction is looked at with this packet, and from then on with every so many: a power
/// of two. Most short ones end before, and cost the program's tables nothing.
const LOOK_FIRST: u16 = 4;
const LOOK_EVERY: u16 = 16;
/// An order that got lost is given again after so many packets that came by here.
const REPEAT_EVERY: u16 = 256 * LOOK_EVERY;
/// Slots looked at each time that timers are.
const FOLLOW_BUDGET: usize = 256;
/// Flows that may be idle for less than this are not handed down: slots are looked at once in a
/// few seconds.
const IDLE_MIN: Nanos = Nanos::from_secs(10);
/// Echoes of a clock that was ours are told apart for half a turn of the server's clock, which is
/// 35 minutes where it counts microseconds. Before, the worker looks at the flow again.
const EARLY_LIFE: Duration = Duration::from_secs(300);
/// No slot.
const NONE: u32 = u32::MAX;

const _: () = assert!(LOOK_EVERY.is_power_of_two() && LOOK_FIRST < LOOK_EVERY);
// One that waits for the worker is not made to begin anew.
const _: () = assert!((REPEAT_EVERY as u32) > 2 * MAX_WAITED);

/// The way of a worker's orders to control.
#[derive(Clone)]
pub struct OffloadRing(Arc<ArrayQueue<OffloadOrder>>);

impl OffloadRing {
    pub fn new() -> OffloadRing {
        OffloadRing(Arc::new(ArrayQueue::new(ORDERS_MAX)))
    }

    /// The next order, in order.
    pub fn next(&self) -> Option<OffloadOrder> {
        self.0.pop()
    }
}

impl Default for OffloadRing {
    fn default() -> OffloadRing {
        OffloadRing::new()
    }
}

/// One worker's offloaded flows.
pub struct Offload {
    worker: u16,
    orders: OffloadRing,
    shared: OffloadSlots,
    /// The number of this worker's first slot.
    first: u32,
    slots: Vec<Slot>,
    vacant: Vec<u32>,
    /// By flow and direction: its slot, or [`NONE`].
    by_flow: Vec<[u32; 2]>,
    /// Of the slots, where to go on.
    cursor: usize,
    stamp: u32,
}

#[derive(Clone, Copy)]
struct Slot {
    /// [`FlowRef::NONE`] where the slot is vacant.
    flow: FlowRef,
    direction: Direction,
    port: PortId,
    key: FlowKey,
    generation: u32,
    stamp: u32,
    /// Ended, but the program's table still has it: the order found no room.
    ended: bool,
    /// The worker has to look at the flow again.
    until: Nanos,
    packets: u64,
    bytes: u64,
}

/// What is known of a packet's way beside its flow.
#[derive(Clone, Copy)]
pub struct Way {
    pub hop: Hop,
    pub egress: Egress,
    /// Of the port that it came by.
    pub own_mac: [u8; 6],
    pub generation: u32,
    /// What changes in its segment.
    pub splice: Option<Shift>,
}

impl Offload {
    /// Of `workers` workers the one with this number, whose table holds `flows_max` flows.
    pub fn new(
        worker: u16,
        workers: u16,
        flows_max: usize,
        orders: OffloadRing,
        shared: OffloadSlots,
    ) -> Offload {
        let share = MAX_OFFLOAD_SLOTS / u32::from(workers.max(1));
        let slot = Slot {
            flow: FlowRef::NONE,
            direction: Direction::Forward,
            port: PortId(0),
            key: FlowKey::default(),
            generation: 0,
            stamp: 0,
            ended: false,
            until: Nanos::MAX,
            packets: 0,
            bytes: 0,
        };
        Offload {
            worker,
            orders,
            shared,
            first: share * u32::from(worker),
            slots: vec![slot; share as usize],
            vacant: (0..share).rev().collect(),
            by_flow: vec![[NONE; 2]; flows_max],
            cursor: 0,
            stamp: 0,
        }
    }

    /// Directions of flows that the program forwards now.
    pub fn len(&self) -> usize {
        self.slots.len() - self.vacant.len()
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Which directions of a flow those are.
    pub fn directions(&self, at: FlowRef) -> [bool; 2] {
        [Direction::Forward, Direction::Reply].map(|way| self.slot_of(at, way) != NONE)
    }

    /// Takes a flow back: a packet has changed its state, or it leaves the table.
    pub fn take_back(&mut self, now: Nanos, at: FlowRef, flow: &mut Flow) {
        for direction in [Direction::Forward, Direction::Reply] {
            let slot = self.slot_of(at, direction);
            if slot != NONE {
                self.end(now, slot, Some(&mut *flow));
            }
        }
    }

    /// Counts for a flow what the program has forwarded since it was counted last. Returns whether
    /// that is anything.
    pub fn count_flow(&mut self, now: Nanos, at: FlowRef, flow: &mut Flow) -> bool {
        [Direction::Forward, Direction::Reply].into_iter().fold(false, |seen, direction| {
            let slot = self.slot_of(at, direction);
            seen | (slot != NONE && self.count(now, slot, Some(&mut *flow)))
        })
    }

    /// Hands the direction of this packet down, or once more where routes have changed meanwhile.
    pub fn hand_down(&mut self, now: Nanos, flow: &mut Flow, meta: &PacketMeta, way: &Way) {
        let (at, direction) = (meta.flow, meta.direction);
        let (key, generation) = (flow.key(direction), way.generation);
        let mut slot = self.slot_of(at, direction);
        if slot != NONE {
            let known = self.slots[slot as usize];
            if known.key != key || known.port != meta.in_port {
                self.end(now, slot, Some(&mut *flow));
                slot = NONE;
            } else if known.generation == generation && meta.nth & (REPEAT_EVERY - 1) != LOOK_FIRST
            {
                // On its way to the program; if it got lost there, it comes by here again.
                return;
            }
        }
        if self.orders.0.len() >= ORDERS_RESERVED {
            return;
        }
        if slot == NONE {
            let Some(vacant) = self.vacant.pop() else { return };
            slot = vacant;
            self.begin(slot, at, direction, key, meta.in_port);
        }
        let known = &mut self.slots[slot as usize];
        known.generation = generation;
        let is_early = way.splice.is_some_and(|shift| shift.first_echo.is_some());
        known.until = if is_early { now + EARLY_LIFE } else { Nanos::MAX };
        let entry = entry(flow, direction, way, self.worker, self.first + slot, known.stamp);
        // There is room: only this worker adds.
        let _ = self.orders.0.push(OffloadOrder::Forward { port: meta.in_port, key, entry });
    }

    fn begin(&mut self, slot: u32, at: FlowRef, direction: Direction, key: FlowKey, port: PortId) {
        // 0 is the stamp of a slot that is vacant.
        self.stamp = self.stamp.checked_add(1).unwrap_or(1);
        let (packets, bytes) = self.shared.counts(port, self.first + slot);
        let (generation, stamp, ended, until) = (0, self.stamp, false, Nanos::MAX);
        self.slots[slot as usize] = Slot {
            flow: at,
            direction,
            port,
            key,
            generation,
            stamp,
            ended,
            until,
            packets,
            bytes,
        };
        self.shared.set_stamp(port, self.first + slot, stamp);
        self.by_flow[at.0 as usize][direction as usize] = slot;
    }

    /// Looks at some of the slots: what the program has forwarded counts for the flow, and what the
    /// flow has become counts for the program.
    pub fn follow(&mut self, now: Nanos, flows: &mut FlowTable) {
        if self.is_empty() {
            return;
        }
        for _ in 0..FOLLOW_BUDGET.min(self.slots.len()) {
            let at = self.cursor;
            self.cursor = (at + 1) % self.slots.len();
            let Slot { flow, ended, until, .. } = self.slots[at];
            if flow == FlowRef::NONE {
                continue;
            }
            let mut known = flows.at_mut(flow);
            self.count(now, at as u32, known.as_deref_mut());
            let goes_on = known.as_deref().is_some_and(|f| self.is_of(at as u32, f) && is_open(f));
            if ended || !goes_on || now >= until {
                self.end(now, at as u32, known);
            }
        }
    }

    /// Counts what the program has forwarded by this slot; for the flow, where it is still the one
    /// that the slot was begun for. Returns whether that is anything.
    fn count(&mut self, now: Nanos, at: u32, flow: Option<&mut Flow>) -> bool {
        let is_of = flow.as_deref().is_some_and(|flow| self.is_of(at, flow));
        let slot = &mut self.slots[at as usize];
        let (packets, bytes) = self.shared.counts(slot.port, self.first + at);
        let (more, more_bytes) = (packets - slot.packets, bytes - slot.bytes);
        (slot.packets, slot.bytes) = (packets, bytes);
        if more > 0
            && is_of
            && let Some(flow) = flow
        {
            flow.add(now, slot.direction, more, more_bytes);
        }
        more > 0 && is_of
    }

    fn is_of(&self, at: u32, flow: &Flow) -> bool {
        let slot = &self.slots[at as usize];
        flow.has_key(slot.direction, &slot.key)
    }

    /// The program forwards nothing more of this slot once this returns, and what it has forwarded
    /// is counted.
    fn end(&mut self, now: Nanos, at: u32, flow: Option<&mut Flow>) {
        let Slot { port, .. } = self.slots[at as usize];
        self.shared.set_stamp(port, self.first + at, 0);
        self.count(now, at, flow);
        let slot = &mut self.slots[at as usize];
        if let Some(of_flow) = self.by_flow.get_mut(slot.flow.0 as usize)
            && of_flow[slot.direction as usize] == at
        {
            of_flow[slot.direction as usize] = NONE;
        }
        let order = OffloadOrder::Forget { port: slot.port, key: slot.key };
        slot.ended = self.orders.0.push(order).is_err();
        if !slot.ended {
            slot.flow = FlowRef::NONE;
            self.vacant.push(at);
        }
    }

    /// Takes the flows of a port back whose program is gone: what it has forwarded is counted.
    pub(super) fn leave_port(&mut self, now: Nanos, port: PortId, flows: &mut FlowTable) {
        if self.is_empty() {
            return;
        }
        for at in 0..self.slots.len() as u32 {
            let Slot { flow, direction, port: of, .. } = self.slots[at as usize];
            if flow == FlowRef::NONE || of != port {
                continue;
            }
            self.shared.set_stamp(port, self.first + at, 0);
            self.count(now, at, flows.at_mut(flow));
            if let Some(of_flow) = self.by_flow.get_mut(flow.0 as usize)
                && of_flow[direction as usize] == at
            {
                of_flow[direction as usize] = NONE;
            }
            self.slots[at as usize].flow = FlowRef::NONE;
            self.vacant.push(at);
        }
    }

    /// Has other programs count; returns where they did.
    pub(super) fn replace_slots(&mut self, slots: OffloadSlots) -> OffloadSlots {
        std::mem::replace(&mut self.shared, slots)
    }

    fn slot_of(&self, at: FlowRef, direction: Direction) -> u32 {
        self.by_flow.get(at.0 as usize).map_or(NONE, |of| of[direction as usize])
    }
}

impl<P: Port> Worker<P> {
    /// Tells the programs that no packet received up to now is still here, where that is so: flows
    /// that are handed down begin behind their last one. What waits in a class tree is no matter:
    /// no flow that leaves by one is handed down.
    pub(super) fn settle(&mut self) {
        let sides = &mut self.parts.sides;
        let is_through =
            |side: &Side<P>| !side.egress.is_fifo() || side.held() == 0 && side.port.is_flushed();
        if sides.iter().all(is_through) && self.parts.control.leaving.is_empty() {
            sides.iter_mut().for_each(|side| side.port.settle());
        }
    }
}

impl<P: Port> WorkerParts<P> {
    /// Hands the flow of a packet that has passed the stages down to the XDP program, or takes it
    /// back, where there is a reason to.
    #[inline(always)]
    pub(super) fn offload(&mut self, now: Nanos, offload: &mut Offload, meta: &PacketMeta) {
        if is_due(meta) && self.flows.at(meta.flow).is_some() {
            self.reconsider(now, offload, meta);
        }
    }

    #[inline(never)]
    fn reconsider(&mut self, now: Nanos, offload: &mut Offload, meta: &PacketMeta) {
        if ends(meta) {
            return offload.take_back(now, meta.flow, self.flows.get_mut(meta.flow));
        }
        if let Some(way) = self.way_down(meta) {
            offload.hand_down(now, self.flows.get_mut(meta.flow), meta, &way);
        }
    }

    /// The way that the program can send packets like this one; `None` where there is more to be
    /// done for them than it does.
    fn way_down(&self, meta: &PacketMeta) -> Option<Way> {
        let (routes, flow) = (&self.snapshot.routes, self.flows.get(meta.flow));
        let side = |port: PortId| self.sides.get(usize::from(port.0));
        let (from, to) = (side(meta.in_port)?, side(meta.out_port)?);
        let generation = routes.generation();
        if !flow.has_key(meta.direction, &meta.key) {
            // Its own flow left the table within this batch.
            return None;
        }
        let hop = flow.hop(meta.direction, generation)?;
        let (own, egress) = (routes.egress(meta.in_port)?, routes.egress(hop.port)?);
        let idle = self.flows.details(meta.flow).idle();
        let may_go = meta.verdict == Verdict::Output
            && is_plain(meta)
            && is_open(flow)
            && idle >= IDLE_MIN
            && !from.options.verify_transport_checksum
            && to.egress.is_fifo()
            && own.mac != [0; 6]
            && self.pipeline.lets_go(&self.snapshot, &self.names, flow, meta);
        let splice =
            self.pipeline.translation(meta.flow).filter(|_| flow.kind == FlowKind::Spliced);
        let splice = splice.map(|translation| translation.shift(meta.direction));
        may_go.then_some(Way { hop, egress: *egress, own_mac: own.mac, generation, splice })
    }
}

/// Whether a packet that has passed the stages is a reason to look at its flow: a few of many are,
/// and those that change its state. By the packet's own number: the flow's count is that of the
/// batch's last one, and a batch that is always full would always leave it at the same place.
#[inline(always)]
fn is_due(meta: &PacketMeta) -> bool {
    meta.nth & (LOOK_EVERY - 1) == LOOK_FIRST || ends(meta)
}

/// Whether a packet changes its connection's state.
#[inline(always)]
fn ends(meta: &PacketMeta) -> bool {
    use tcp::flag::{FIN, RST, SYN};
    meta.key.proto == tcp::PROTOCOL && meta.tcp_flags & (FIN | RST | SYN) != 0
}

/// Neither tags nor options nor fragments, its checksum complete, and for us.
fn is_plain(meta: &PacketMeta) -> bool {
    meta.flags == PacketFlags(0) && meta.vlan_tci == 0 && usize::from(meta.l3) == eth::HEADER_LEN
}

fn is_open(flow: &Flow) -> bool {
    match flow.proto {
        tcp::PROTOCOL => flow.tcp == TcpState::Established,
        udp::PROTOCOL => matches!(flow.tcp, TcpState::Established | TcpState::OneWay),
        _ => false,
    }
}

fn entry(
    flow: &Flow,
    direction: Direction,
    way: &Way,
    worker: u16,
    slot: u32,
    stamp: u32,
) -> OffloadEntry {
    let other = &flow.key(direction.flip());
    let change = flow.sum_change(direction);
    let mut ethernet = [0; 12];
    ethernet[..6].copy_from_slice(&way.hop.mac);
    ethernet[6..].copy_from_slice(&way.egress.mac);
    let shift = way.splice.unwrap_or_default();
    let early = shift.first_echo.map_or(0, |_| OffloadEntry::EARLY);
    let spliced = way.splice.map_or(0, |_| OffloadEntry::SPLICED);
    OffloadEntry {
        src: other.dst.to_bytes(),
        dst: other.src.to_bytes(),
        sport: other.dport.to_be_bytes(),
        dport: other.sport.to_be_bytes(),
        ip_change: change.ip.and(FoldedDelta::HOP).to_memory(),
        transport_change: change.transport.to_memory(),
        ethernet,
        own_mac: way.own_mac,
        mtu: way.egress.mtu,
        port: u32::from(way.hop.port.0),
        worker: u32::from(worker),
        slot,
        stamp,
        generation: way.generation,
        sequence: shift.sequence,
        acknowledgment: shift.acknowledgment,
        clock: shift.clock,
        echo: shift.echo,
        first_echo: shift.first_echo.unwrap_or_default(),
        window: shift.window,
        splice: spliced | early,
        ..OffloadEntry::default()
    }
}

#[cfg(test)]
mod tests;
