//! CoDel (RFC 8289): when a queue has stood above its target delay for an interval, it signals
//! once, then ever more often until the delay is gone.

use super::wheel::TICK_BITS;
use crate::base::Nanos;

/// Time in steps of 2^10 ns, modulo 2^32 (73 min).
pub(super) type Ticks = u32;

pub(super) fn ticks(now: Nanos) -> Ticks {
    (now.0 >> TICK_BITS) as Ticks
}

/// Of `Codel::above`: the queue signals now.
const SIGNALLING: Ticks = u32::MAX;
/// Intervals after which a queue that signalled before begins anew.
const MEMORY_INTERVALS: u32 = 16;

/// A flow's state beside [`Above`].
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Codel {
    /// When the next signal is due; the last one that was, outside of a phase of signals.
    next: Ticks,
    /// Signals of this phase; at most so many are counted.
    count: u16,
    /// `count` as the phase began.
    count_before: u16,
}

/// Since when a flow has been above its target; 0: it is not. The part that every packet looks at.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Above(Ticks);

impl Above {
    #[inline(always)]
    pub fn is_set(self) -> bool {
        self.0 != 0
    }
}

impl Codel {
    /// Looks at a packet that leaves. `late`: it waited for the target or longer, and more than a
    /// frame still waits behind it. Returns whether to signal: mark the packet, or drop it.
    pub fn signals(&mut self, above: &mut Above, late: bool, now: Ticks, interval: Ticks) -> bool {
        if !late {
            *above = Above(0);
            return false;
        }
        if above.0 == SIGNALLING {
            if is_before(now, self.next) {
                return false;
            }
            self.count = self.count.saturating_add(1);
            self.next = self.next.wrapping_add(self.gap(interval));
            return true;
        }
        if above.0 == 0 {
            let at = now.wrapping_add(interval);
            // Two values mean something else; a tick more or less does not matter.
            *above = Above(if at == 0 || at == SIGNALLING { 1 } else { at });
            return false;
        }
        if is_before(now, above.0) {
            return false;
        }
        *above = Above(SIGNALLING);
        let signalled = self.count.saturating_sub(self.count_before);
        let memory = interval.saturating_mul(MEMORY_INTERVALS);
        let is_recent = now.wrapping_sub(self.next) < memory;
        self.count = if signalled > 1 && is_recent { signalled } else { 1 };
        self.count_before = self.count;
        self.next = now.wrapping_add(self.gap(interval));
        true
    }

    /// The control law: `interval / sqrt(count)`.
    fn gap(&self, interval: Ticks) -> Ticks {
        (interval as f32 / f32::from(self.count.max(1)).sqrt()) as Ticks
    }
}

fn is_before(a: Ticks, b: Ticks) -> bool {
    (a.wrapping_sub(b) as i32) < 0
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Times at which a queue that is late at all times signals, one packet a tick.
    fn signals(start: Ticks, ticks: u32, interval: Ticks, state: &mut (Above, Codel)) -> Vec<u32> {
        (0..ticks)
            .filter(|t| state.1.signals(&mut state.0, true, start.wrapping_add(*t), interval))
            .collect()
    }

    #[test]
    fn signals_come_as_the_control_law_says() {
        // interval, then / sqrt(1), / sqrt(2), ...: also across the clock's end.
        for start in [1, u32::MAX - 150] {
            let at = signals(start, 500, 100, &mut Default::default());
            assert_eq!(at, [100, 200, 270, 327, 377, 421, 461, 498], "from {start}");
        }
    }

    #[test]
    fn a_short_burst_is_let_through() {
        let (mut above, mut codel) = Default::default();
        for t in 1..1_000 {
            // Late for 90 of 100 ticks, then not.
            assert!(!Codel::signals(&mut codel, &mut above, t % 100 < 90, t, 95));
        }
    }

    #[test]
    fn a_phase_soon_after_another_begins_where_that_ended() {
        let mut state = Default::default();
        let first = signals(1, 500, 100, &mut state);
        assert!(!state.1.signals(&mut state.0, false, 501, 100));
        let second = signals(502, 300, 100, &mut state);
        assert!(second[1] - second[0] < 50, "{first:?} {second:?}");
        assert!(!state.1.signals(&mut state.0, false, 900, 100));
        let long_after = signals(10_000, 300, 100, &mut state);
        assert_eq!(long_after[1] - long_after[0], 100);
    }
}
