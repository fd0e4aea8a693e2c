//! One worker's part of a port: its queues under the tree, and its ring of the device.

use std::collections::VecDeque;
use std::sync::Arc;

use super::source::Packet;
use super::spec::{Kind, PACKET_MAX, PACKET_MIN, Scenario, Source};
use crate::base::hash::hash1;
use crate::base::mem::Arena;
use crate::base::{Nanos, Seed};
use crate::packet::frame::HEADROOM;
use crate::packet::{DropReason, Frame, FramePool};
use crate::qos::{InFlight, Queued, Scheduler, Shared};

/// Packets that one look moves at most, as in the appliance.
const BURST: usize = 64;
/// Packets that a ring holds at most, as the appliance's do unless told otherwise.
const RING_PACKETS: usize = 2_048;
/// Where packets that understand marks have their IP header, behind Ethernet's.
const IP_AT: u16 = 14;
/// The two first bytes of an IPv4 header: version and length, and the field for marks.
const IPV4: u8 = 0x45;
const ECT: u8 = 0b10;
const CE: u8 = 0b11;

pub struct Worker {
    pub scheduler: Scheduler,
    pool: FramePool,
    arena: Arc<Arena>,
    /// What each frame in use carries, by its place in the arena.
    packets: Vec<Packet>,
    /// Came since the last look.
    arrivals: Vec<Packet>,
    queued: Vec<Queued>,
    dropped: Vec<(Frame, DropReason)>,
    out: Vec<Frame>,
    ring: VecDeque<Frame>,
    ring_bytes: u64,
    in_flight: InFlight,
    /// The ring has no room: the next frame that the device takes makes some.
    is_full: bool,
    seed: Seed,
    /// Looks are at `phase`, `phase + period`, and so on.
    phase: u64,
    period: u64,
    /// When it looks next; `None`: when something comes.
    pub wakes_at: Option<Nanos>,
}

/// What became of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    /// It leaves the worker now; marked or not.
    Sent {
        marked: bool,
    },
    Dropped,
}

impl Worker {
    pub fn new(
        scenario: &Scenario,
        index: usize,
        shared: Option<&Arc<Shared>>,
        in_flight: InFlight,
    ) -> Worker {
        let (spec, frames) = (&scenario.tree, scenario.workers.frames);
        let seed = Seed(hash1(scenario.seed, 1 << 32 | index as u64));
        let scheduler = match shared {
            Some(shared) => Scheduler::member(spec, frames, seed, Arc::clone(shared)),
            None => Scheduler::new(spec, frames, seed),
        };
        let slot = (longest(scenario) + HEADROOM).next_power_of_two() as u32;
        let pool = FramePool::standalone(frames + (2 * BURST + RING_PACKETS) as u32, slot);
        let poll = &scenario.workers.poll;
        let period = poll[index % poll.len()].as_nanos() as u64;
        Worker {
            scheduler,
            arena: Arc::clone(pool.arena()),
            packets: vec![Packet::default(); pool.owned()],
            pool,
            arrivals: Vec::new(),
            queued: Vec::with_capacity(BURST),
            dropped: Vec::new(),
            out: Vec::with_capacity(BURST),
            ring: VecDeque::new(),
            ring_bytes: 0,
            in_flight,
            is_full: false,
            seed,
            phase: period * index as u64 / scenario.workers.count as u64,
            period,
            wakes_at: None,
        }
    }

    /// A packet came.
    pub fn arrive(&mut self, packet: Packet) {
        self.arrivals.push(packet);
        let look = self.look_from(packet.sent_at);
        self.wakes_at = Some(self.wakes_at.map_or(look, |at| at.min(look)));
    }

    /// Makes sure that it looks by `now`, or soon after.
    pub fn wake(&mut self, now: Nanos) {
        let look = self.look_from(now.saturating_add(1));
        self.wakes_at = Some(self.wakes_at.map_or(look, |at| at.min(look)));
    }

    /// The first look at `at` or after.
    fn look_from(&self, at: Nanos) -> Nanos {
        let after = at.0.saturating_sub(self.phase);
        Nanos(self.phase + after.div_ceil(self.period) * self.period)
    }

    /// Takes in what came, and sends what may go: into the ring, or, if `is_wired` is false, at
    /// once. Tells what became of packets.
    pub fn look(&mut self, now: Nanos, is_wired: bool, tell: &mut impl FnMut(Packet, Fate)) {
        self.wakes_at = None;
        let mut arrivals = std::mem::take(&mut self.arrivals);
        for burst in arrivals.chunks(BURST) {
            for &packet in burst {
                self.queue(packet);
            }
            let (queued, dropped) = (&mut self.queued, &mut self.dropped);
            self.scheduler.enqueue_all(now, queued, &self.arena, dropped);
            self.tell_dropped(tell);
        }
        arrivals.clear();
        self.arrivals = arrivals;
        loop {
            let (packets, bytes) = match is_wired {
                true => {
                    let packets = RING_PACKETS - self.ring.len().min(RING_PACKETS);
                    (packets, self.in_flight.room(now, self.ring_bytes))
                }
                false => (BURST, u64::MAX),
            };
            if packets == 0 || bytes == 0 {
                self.in_flight.stop(now);
                self.is_full = true;
                break;
            }
            self.is_full = false;
            let before = self.ring_bytes;
            let packets = packets.min(BURST);
            let (out, dropped) = (&mut self.out, &mut self.dropped);
            let sent = self.scheduler.dequeue(now, packets, bytes, &self.arena, out, dropped);
            self.tell_dropped(tell);
            let mut out = std::mem::take(&mut self.out);
            for frame in out.drain(..) {
                if is_wired {
                    self.ring_bytes += frame.len() as u64;
                    self.ring.push_back(frame);
                } else {
                    self.sent(frame, tell);
                }
            }
            self.out = out;
            if is_wired && self.ring_bytes - before >= bytes {
                self.in_flight.stop(now);
            }
            if sent == 0 || sent < packets {
                break;
            }
        }
    }

    /// Sets the next look, where one is needed. `is_alone`: nobody shares the tree, so that it is
    /// known when something may go.
    pub fn settle(&mut self, now: Nanos, is_alone: bool) {
        if self.scheduler.is_empty() || self.is_full {
            return;
        }
        let next = if is_alone { self.scheduler.next_event(now) } else { None };
        let look = self.look_from(next.unwrap_or(now).max(now.saturating_add(1)));
        self.wakes_at = Some(self.wakes_at.map_or(look, |at| at.min(look)));
    }

    /// Bytes of the frame that the device takes next from the ring.
    pub fn ahead(&self) -> Option<u16> {
        self.ring.front().map(|frame| frame.len() as u16)
    }

    /// The frame that the device took is on its way.
    pub fn transmitted(&mut self, tell: &mut impl FnMut(Packet, Fate)) {
        self.is_full = false;
        if let Some(frame) = self.ring.pop_front() {
            self.ring_bytes -= frame.len() as u64;
            self.sent(frame, tell);
        }
    }

    fn queue(&mut self, packet: Packet) {
        // As many as the scheduler holds, the ring and a burst: it never runs out.
        let Some(mut frame) = self.pool.take() else { return };
        let fits = frame.set_extent(&self.arena, HEADROOM, usize::from(packet.len));
        debug_assert!(fits, "slots hold the longest packet");
        let header = &mut frame.bytes_mut(&self.arena)[usize::from(IP_AT)..];
        (header[0], header[1]) = (IPV4, if packet.ecn { ECT } else { 0 });
        self.packets[frame.slot_index() as usize] = packet;
        let flow = u64::from(packet.source) << 32 | u64::from(packet.flow);
        let flow_hash = hash1(self.seed, flow) as u32;
        self.queued.push(Queued { frame, class: packet.class, flow_hash, l3: IP_AT });
    }

    fn sent(&mut self, frame: Frame, tell: &mut impl FnMut(Packet, Fate)) {
        let marks = frame.bytes(&self.arena)[usize::from(IP_AT) + 1] & CE;
        tell(self.packets[frame.slot_index() as usize], Fate::Sent { marked: marks == CE });
        self.pool.put(frame);
    }

    fn tell_dropped(&mut self, tell: &mut impl FnMut(Packet, Fate)) {
        for (frame, _) in self.dropped.drain(..) {
            tell(self.packets[frame.slot_index() as usize], Fate::Dropped);
            self.pool.put(frame);
        }
    }
}

/// Bytes of the longest frame.
fn longest(scenario: &Scenario) -> usize {
    let of = |s: &Source| match s.kind {
        Kind::Trace { .. } => PACKET_MAX,
        _ => s.packets.iter().copied().max().unwrap_or(PACKET_MIN),
    };
    usize::from(scenario.sources.iter().map(of).max().unwrap_or(PACKET_MIN))
}

impl Drop for Worker {
    fn drop(&mut self) {
        let mut left = std::mem::take(&mut self.out);
        self.scheduler.drain(&mut left);
        left.extend(self.ring.drain(..));
        left.into_iter().for_each(|frame| self.pool.put(frame));
        debug_assert_eq!(self.pool.outstanding(), 0, "frames leaked");
    }
}
