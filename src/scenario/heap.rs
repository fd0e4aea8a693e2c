//! What happens next: events in the order of their times, and of their making where those are the
//! same.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use crate::base::Nanos;

/// Something that happens at a time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Event {
    /// A source sends.
    Send { source: u32, flow: u32 },
    /// A packet's acknowledgement is back at a flow of a source.
    Ack { source: u32, flow: u32, seq: u64, marked: bool },
    /// A flow's retransmission timer.
    Timeout { source: u32, flow: u32 },
}

#[derive(Default)]
pub struct Heap {
    events: BinaryHeap<Reverse<(Nanos, u64, Event)>>,
    made: u64,
}

impl Heap {
    pub fn push(&mut self, at: Nanos, event: Event) {
        self.events.push(Reverse((at, self.made, event)));
        self.made += 1;
    }

    pub fn next_at(&self) -> Option<Nanos> {
        self.events.peek().map(|Reverse((at, ..))| *at)
    }

    /// The next event, if it happens at `until` or before.
    pub fn pop(&mut self, until: Nanos) -> Option<(Nanos, Event)> {
        if self.next_at()? > until {
            return None;
        }
        self.events.pop().map(|Reverse((at, _, event))| (at, event))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_come_in_the_order_of_their_times_and_of_their_making() {
        let mut heap = Heap::default();
        let send = |source| Event::Send { source, flow: 0 };
        for (at, source) in [(5, 1), (3, 9), (5, 0), (4, 2)] {
            heap.push(Nanos(at), send(source));
        }
        assert_eq!(heap.next_at(), Some(Nanos(3)));
        let order: Vec<_> = std::iter::from_fn(|| heap.pop(Nanos(5))).collect();
        let want = [(3, 9), (4, 2), (5, 1), (5, 0)].map(|(at, s)| (Nanos(at), send(s)));
        assert_eq!(order, want);
        heap.push(Nanos(6), send(0));
        assert_eq!(heap.pop(Nanos(5)), None);
    }
}
