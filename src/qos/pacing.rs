//! Leaves that let each of their flows send only so fast.
//!
//! A flow that has sent leaves the rounds of its leaf and sleeps until it may send again, so that
//! the leaf's other flows don't wait for it. What it holds meanwhile counts for the leaf's limit,
//! but is nothing that the leaf wants to send. One without packets sleeps as well, until it may
//! send as much at once as a new one: were it forgotten earlier, it would be one with its next
//! packet.

use super::bucket::WAITING_NS;
use super::flows::{Flow, Standing};
use super::queues::Queues;
use super::wheel::{NIL, Timer, Wheel};
use crate::base::Nanos;
use crate::base::mem::Table;
use crate::base::units::BitRate;

/// What a flow may send at once after idling, in time at its rate.
const CREDIT_NS: u64 = 4_000_000;
/// What a flow whose packets waited while its worker was kept from its core may catch up on beyond
/// that: as much as a class may.
const LATE_NS_MAX: u64 = WAITING_NS;
/// The least that a flow can be held to: what is less is taken for this.
pub(super) const FLOW_RATE_MIN: BitRate = BitRate(8_000);
/// Fractional bits of the nanoseconds that a byte takes.
const PER_BYTE_BITS: u32 = 24;

/// How fast each flow of a leaf may send.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub(super) struct Pace {
    /// Nanoseconds that a byte takes, with 24 fractional bits; 0: as fast as it can.
    per_byte: u64,
}

impl Pace {
    pub const NONE: Pace = Pace { per_byte: 0 };

    pub fn new(rate: Option<BitRate>) -> Pace {
        let bits = rate.map(|rate| u128::from(rate.max(FLOW_RATE_MIN).bits_per_sec()));
        let per_byte = bits.map_or(0, |bits| (8_000_000_000u128 << PER_BYTE_BITS) / bits);
        let most = u64::MAX >> 18; // times the longest frame it fits 64 bits
        Pace { per_byte: u64::try_from(per_byte).unwrap_or(most).min(most) }
    }

    #[inline(always)]
    pub fn is_set(self) -> bool {
        self.per_byte != 0
    }

    /// Bytes that a flow may send in so many nanoseconds, `LATE_NS_MAX` at most.
    fn bytes_in(self, ns: u64) -> u64 {
        (ns << PER_BYTE_BITS) / self.per_byte.max(1)
    }
}

/// When a flow may send again, with as many fractional bits as a byte's time has.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Due {
    at: Nanos,
    carry: u32,
    /// Nanoseconds by which it was woken too late, as far as it has not caught up on them.
    late: u32,
}

const _: () = assert!(size_of::<Due>() == 16 && LATE_NS_MAX <= u32::MAX as u64);
const _: () = assert!(LATE_NS_MAX.leading_zeros() >= PER_BYTE_BITS);

/// What of a leaf sleeps.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Asleep {
    pub bytes: u64,
    /// Flows that hold packets, modulo 2^16.
    pub flows: u16,
}

/// When flows may send. All tables are empty where no leaf has a pace.
pub(super) struct Pacing {
    /// By flow.
    due: Table<Due>,
    timers: Table<Timer>,
    wheel: Wheel,
    /// By leaf.
    asleep: Table<Asleep>,
}

impl Pacing {
    pub fn new(is_needed: bool, flows: u32, leaves: usize, now: Nanos) -> Pacing {
        let (flows, leaves) = if is_needed { (flows as usize, leaves) } else { (0, 0) };
        Pacing {
            due: Table::filled(flows, Due::default()),
            timers: Table::filled(flows, Timer::IDLE),
            wheel: Wheel::new(now),
            asleep: Table::filled(leaves, Asleep::default()),
        }
    }

    /// Time begins then; nothing is held yet.
    pub fn begin(&mut self, now: Nanos) {
        self.wheel = Wheel::new(now);
    }

    /// Forgets all flows.
    pub fn clear(&mut self) {
        for flow in 0..self.timers.len() as u32 {
            if self.timers[flow as usize].is_armed() {
                self.wheel.disarm(&mut self.timers, flow);
            }
        }
        self.due.fill(Due::default());
        self.asleep.fill(Asleep::default());
    }

    /// When a flow may send again.
    pub fn due(&self, flow: u32) -> Due {
        self.due.get(flow as usize).copied().unwrap_or_default()
    }

    /// A flow is new, or came from elsewhere.
    #[inline]
    pub fn set(&mut self, flow: u32, due: Due) {
        if let Some(own) = self.due.get_mut(flow as usize) {
            *own = due;
        }
    }

    /// A flow may send no earlier than that.
    pub fn delay(&mut self, flow: u32, due: Due) {
        if let Some(own) = self.due.get_mut(flow as usize)
            && own.at < due.at
        {
            *own = due;
        }
    }

    #[inline]
    pub fn is_due(&self, flow: u32, now: Nanos) -> bool {
        self.due(flow).at <= now
    }

    /// What of a leaf sleeps.
    #[inline]
    pub fn asleep(&self, leaf: u32) -> Asleep {
        self.asleep.get(leaf as usize).copied().unwrap_or_default()
    }

    /// Bytes come to a sleeping flow, or leave it.
    #[cold]
    pub fn resize(&mut self, leaf: u32, change: i64) {
        if let Some(asleep) = self.asleep.get_mut(leaf as usize) {
            asleep.bytes = asleep.bytes.wrapping_add_signed(change);
        }
    }

    /// A sleeping flow has its first packet, or has lost its last.
    #[cold]
    pub fn has_packets(&mut self, leaf: u32, has: bool) {
        if let Some(asleep) = self.asleep.get_mut(leaf as usize) {
            let change = if has { 1 } else { u16::MAX };
            asleep.flows = asleep.flows.wrapping_add(change);
        }
    }

    /// A flow sent so many bytes. Returns whether it has to wait now.
    #[inline]
    pub fn charge(&mut self, flow: u32, pace: Pace, now: Nanos, bytes: u32) -> bool {
        let Some(due) = self.due.get_mut(flow as usize) else { return false };
        let earliest = Nanos(now.0.saturating_sub(CREDIT_NS + u64::from(due.late)));
        if due.at < earliest {
            (due.at, due.carry) = (earliest, 0);
        }
        let cost = pace.per_byte.saturating_mul(u64::from(bytes)) + u64::from(due.carry);
        due.at = due.at.saturating_add(cost >> PER_BYTE_BITS);
        due.carry = cost as u32 & ((1 << PER_BYTE_BITS) - 1);
        due.late = due.late.min(u32::try_from(now.since(due.at)).unwrap_or(u32::MAX));
        due.at > now
    }

    /// A flow whose packets have waited for it to be woken is.
    fn woken(&mut self, flow: u32, now: Nanos) {
        if let Some(due) = self.due.get_mut(flow as usize) {
            due.late = now.since(due.at).min(LATE_NS_MAX) as u32;
        }
    }

    /// When a sleeping flow wakes: one with packets when it may send, one without when it may be
    /// forgotten.
    fn wakes_at(&self, flow: u32, has_packets: bool) -> Nanos {
        let at = self.due(flow).at;
        if has_packets { at } else { at.saturating_add(CREDIT_NS) }
    }

    fn arm(&mut self, flow: u32, has_packets: bool) {
        if !has_packets && let Some(due) = self.due.get_mut(flow as usize) {
            due.late = 0;
        }
        let at = self.wakes_at(flow, has_packets);
        self.wheel.arm(&mut self.timers, flow, at);
    }

    /// Whether a flow could not send yet as much at once as a new one.
    fn owes(&self, flow: u32) -> bool {
        self.wakes_at(flow, false) > self.wheel.now()
    }

    /// When the next flow wakes.
    pub fn next(&self) -> Option<Nanos> {
        self.wheel.next()
    }
}

impl Queues {
    /// Sends the first flow of a list to sleep.
    #[cold]
    pub fn sleep_first(&mut self, leaf: u32, list: usize) {
        let flow = self.unlink_first(leaf, list);
        let entry = self.flows.at_mut(flow);
        (entry.standing, entry.next) = (Standing::Asleep, NIL);
        let (bytes, has_packets) = (i64::from(entry.bytes), entry.head != NIL);
        self.pacing.resize(leaf, bytes);
        if has_packets {
            self.pacing.has_packets(leaf, true);
        }
        self.pacing.arm(flow, has_packets);
    }

    /// The first flow of a list, which holds no packets, leaves it: it sleeps while it owes
    /// something, and is forgotten else.
    #[cold]
    pub fn dismiss_first(&mut self, leaf: u32, list: usize) {
        let flow = self.leaves[leaf as usize].lists[list].head;
        let has_room = self.empty <= self.empty_max;
        if self.pace(leaf).is_set() && has_room && self.pacing.owes(flow) {
            self.sleep_first(leaf, list);
        } else {
            self.forget_first(leaf, list);
        }
    }

    /// A flow may send no earlier than that, where it has a pace.
    pub fn hold_back(&mut self, flow: u32, due: Due) {
        if self.flows.at(flow).standing != Standing::Backlog {
            self.pacing.delay(flow, due);
        }
    }

    /// A flow without packets owes in another leaf what it owes here. Where that leaf has no pace
    /// it owes nothing there, and sleeps on until it comes back.
    pub fn take_pace_along(&mut self, flow: u32, to: u32) {
        let Flow { hash, deficit, standing, .. } = *self.flows.at(flow);
        if !self.pace(to).is_set() || !self.pacing.owes(flow) {
            return;
        }
        let due = self.pacing.due(flow);
        if standing == Standing::Asleep {
            self.pacing.wheel.disarm(&mut self.pacing.timers, flow);
            self.empty -= 1;
            self.flows.remove(flow);
        } else if self.empty >= self.empty_max {
            return;
        }
        self.fall_asleep(to, hash, (deficit, due));
    }

    /// A flow has sent elsewhere, and has no packets: it sleeps in a leaf, or waits with what it
    /// has there.
    pub fn fall_asleep(&mut self, leaf: u32, hash: u32, (deficit, due): (i32, Due)) {
        let Some((flow, fresh)) = self.flows.find_or_insert(self.key(leaf, hash), NIL) else {
            debug_assert!(false, "there is room for as many flows as there are");
            return;
        };
        if fresh {
            let entry = self.flows.at_mut(flow);
            entry.begin(deficit.min(self.quantum as i32));
            (entry.standing, entry.next) = (Standing::Asleep, NIL);
            self.empty += 1;
            self.pacing.set(flow, due);
            self.pacing.arm(flow, false);
        } else {
            self.hold_back(flow, due);
        }
    }

    /// A packet came to a flow that sleeps without any.
    #[cold]
    pub fn stir(&mut self, leaf: u32, flow: u32, now: Nanos) {
        if self.pacing.is_due(flow, now) {
            self.pacing.wheel.disarm(&mut self.pacing.timers, flow);
            self.append(leaf, flow, Standing::Old);
        } else {
            self.pacing.has_packets(leaf, true);
            self.pacing.arm(flow, true);
        }
    }

    /// Wakes flows that may send again, `budget` at most. `tell` hears of each one's leaf, and
    /// whether it had nothing to send before.
    pub fn wake(&mut self, now: Nanos, budget: usize, mut tell: impl FnMut(u32, bool)) {
        for _ in 0..budget {
            let Some(flow) = self.pacing.wheel.pop(&mut self.pacing.timers, now) else {
                return;
            };
            let entry = self.flows.at(flow);
            let (leaf, bytes) = (u32::from(entry.leaf), i64::from(entry.bytes));
            let has_packets = entry.head != NIL;
            if self.pacing.wakes_at(flow, has_packets) > now {
                // It lost its packets since, or was held back.
                self.pacing.arm(flow, has_packets);
                continue;
            }
            if !has_packets {
                self.empty -= 1;
                self.flows.remove(flow);
                continue;
            }
            self.pacing.woken(flow, now);
            let was_idle = !self.has_ready(leaf);
            self.pacing.resize(leaf, -bytes);
            self.pacing.has_packets(leaf, false);
            self.append(leaf, flow, Standing::Old);
            tell(leaf, was_idle);
        }
    }

    /// Whether a leaf holds packets of a flow that does not sleep.
    #[inline(always)]
    pub fn has_ready(&self, leaf: u32) -> bool {
        let held = &self.leaves[leaf as usize];
        held.packets > 0 && (!self.has_paces || held.bytes > self.pacing.asleep(leaf).bytes)
    }

    /// Bytes of a leaf that its flows may send: of a leaf with a pace, for each flow a frame and
    /// what has come since it was looked at, `elapsed` nanoseconds ago.
    #[inline]
    pub fn ready_bytes(&self, leaf: u32, elapsed: u64) -> u64 {
        let (held, pace) = (&self.leaves[leaf as usize], self.pace(leaf));
        if !pace.is_set() {
            return held.bytes;
        }
        let asleep = self.pacing.asleep(leaf);
        let flows = u64::from(held.flows.wrapping_sub(asleep.flows));
        let each = u64::from(self.quantum) + pace.bytes_in(elapsed.min(LATE_NS_MAX));
        (held.bytes - asleep.bytes).min(flows.saturating_mul(each))
    }

    /// How fast each flow of a leaf may send.
    #[inline(always)]
    pub fn pace(&self, leaf: u32) -> Pace {
        self.manner(leaf).pace
    }
}
