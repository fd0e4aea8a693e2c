//! The timers of the flow table: a wheel of coarse slots, and the list of half-open flows.
//!
//! Timers are lazy. A packet only notes when it was seen; when its flow's slot comes up, the flow
//! is either expired or put where its time now ends. Times beyond one turn wait in the turn's last
//! slot and are looked at once a turn.
//!
//! Lists are circular through sentinels, so that a flow is unlinked without knowing which list it
//! is in.

/// Ticks a second: sixteen, so that 32 bits last eight years.
const TICKS_PER_SEC: u64 = 16;
pub(super) const NANOS_PER_TICK: u64 = 1_000_000_000 / TICKS_PER_SEC;
/// Slots of one tick each: one turn takes 256 s, longer than all timeouts but the established ones.
const SLOTS: u32 = 4096;

#[derive(Clone, Copy)]
struct Link {
    next: u32,
    prev: u32,
}

/// Every place of the table is in one list: a slot of the wheel, the half-open ones, the vacant
/// ones, or none (linked to itself).
pub(super) struct Timers {
    /// Of each place, then the sentinels: one a slot, one for the half-open flows, one for the
    /// vacant.
    links: Vec<Link>,
    first_sentinel: u32,
    vacant: u32,
    /// The next tick to look at.
    cursor: u32,
}

impl Timers {
    /// All places vacant.
    pub(super) fn new(flows: u32) -> Timers {
        let links = (0..flows + SLOTS + 2).map(|i| Link { next: i, prev: i }).collect();
        let mut timers = Timers { links, first_sentinel: flows, vacant: 0, cursor: 0 };
        for at in (0..flows).rev() {
            timers.add_vacant(at);
        }
        timers
    }

    /// Vacant places.
    pub(super) fn vacant(&self) -> u32 {
        self.vacant
    }

    /// Gives a place back: the next that is taken, since it is in the cache.
    pub(super) fn add_vacant(&mut self, at: u32) {
        self.disarm(at);
        let sentinel = self.first_sentinel + SLOTS + 1;
        let first = self.links[sentinel as usize].next;
        self.links[at as usize] = Link { next: first, prev: sentinel };
        self.links[first as usize].prev = at;
        self.links[sentinel as usize].next = at;
        self.vacant += 1;
    }

    pub(super) fn take_vacant(&mut self) -> Option<u32> {
        let sentinel = self.first_sentinel + SLOTS + 1;
        let first = self.links[sentinel as usize].next;
        if first == sentinel {
            return None;
        }
        self.disarm(first);
        self.vacant -= 1;
        Some(first)
    }

    pub(super) fn bytes(&self) -> usize {
        self.links.len() * size_of::<Link>()
    }

    fn half_open(&self) -> u32 {
        self.first_sentinel + SLOTS
    }

    /// Has `flow` looked at when `deadline` comes, or at the end of this turn if that is sooner.
    pub(super) fn arm(&mut self, flow: u32, deadline: u32) {
        let ahead = deadline.saturating_sub(self.cursor).min(SLOTS - 1);
        let slot = self.cursor.wrapping_add(ahead) % SLOTS;
        self.move_to(flow, self.first_sentinel + slot);
    }

    /// Puts `flow` at the end of the half-open ones.
    pub(super) fn add_half_open(&mut self, flow: u32) {
        self.move_to(flow, self.half_open());
    }

    pub(super) fn oldest_half_open(&self) -> Option<u32> {
        let head = self.links[self.half_open() as usize].next;
        (head != self.half_open()).then_some(head)
    }

    fn move_to(&mut self, flow: u32, sentinel: u32) {
        self.disarm(flow);
        let last = self.links[sentinel as usize].prev;
        self.links[flow as usize] = Link { next: sentinel, prev: last };
        self.links[last as usize].next = flow;
        self.links[sentinel as usize].prev = flow;
    }

    /// Takes `flow` out of whatever list it is in.
    pub(super) fn disarm(&mut self, flow: u32) {
        let Link { next, prev } = self.links[flow as usize];
        self.links[prev as usize].next = next;
        self.links[next as usize].prev = prev;
        self.links[flow as usize] = Link { next: flow, prev: flow };
    }

    /// The next flow whose slot has come by tick `now`, taken out of its list. Looks at each slot
    /// once at most, however much time has passed.
    pub(super) fn pop(&mut self, now: u32) -> Option<u32> {
        let mut empty = 0;
        while self.cursor <= now {
            let sentinel = self.first_sentinel + self.cursor % SLOTS;
            let head = self.links[sentinel as usize].next;
            if head != sentinel {
                self.disarm(head);
                return Some(head);
            }
            self.cursor += 1;
            empty += 1;
            if empty == SLOTS {
                self.cursor = self.cursor.max(now.saturating_add(1));
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flows_come_when_their_tick_does() {
        let mut t = Timers::new(4);
        assert_eq!((0..4).map_while(|_| t.take_vacant()).collect::<Vec<_>>(), [0, 1, 2, 3]);
        assert_eq!(t.take_vacant(), None);
        t.arm(0, 5);
        t.arm(1, 3);
        t.arm(2, 1_000_000);
        t.arm(3, 5);
        t.disarm(3);
        assert_eq!(t.pop(2), None);
        assert_eq!(t.pop(3), Some(1));
        assert_eq!(t.pop(4), None);
        assert_eq!(t.pop(5), Some(0));
        assert_eq!(t.pop(10), None);
        // Beyond the turn: at its end at the latest, to be looked at and armed again.
        assert_eq!(t.pop(SLOTS + 10), Some(2));
    }

    #[test]
    fn years_without_a_flow_are_passed_at_once() {
        let mut t = Timers::new(1);
        assert_eq!(t.pop(u32::MAX - 10), None);
        t.arm(0, u32::MAX - 5);
        assert_eq!((t.pop(u32::MAX - 6), t.pop(u32::MAX - 5)), (None, Some(0)));
        // Armed at the far end of a turn, a flow isn't passed over.
        let mut t = Timers::new(1);
        t.arm(0, SLOTS - 1);
        assert_eq!(t.pop(10 * SLOTS), Some(0));
    }

    #[test]
    fn half_open_flows_are_in_order_of_age() {
        let mut t = Timers::new(3);
        for flow in 0..3 {
            t.add_half_open(flow);
        }
        assert_eq!(t.oldest_half_open(), Some(0));
        t.arm(0, 9);
        assert_eq!(t.oldest_half_open(), Some(1));
        t.disarm(1);
        t.disarm(2);
        assert_eq!(t.oldest_half_open(), None);
    }
}
