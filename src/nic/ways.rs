//! Frames that come to one queue by two ways: copied into its inbox, or through a companion to its
//! socket. They are given out in the order in which the program had them.

use super::steer::inbox::Inbox;
use crate::base::Nanos;
use crate::packet::{Frame, FramePool};

/// A frame of the companion that others wait for is lost after this.
const LOST_AFTER_NS: u64 = 1_000_000;

/// Both ways of a queue.
pub(super) struct Ways {
    inbox: Inbox,
    /// Frames of the companion that were received but not given out; the next one is the last.
    pending: Vec<Frame>,
    /// Frames of the companion that were given out or lost, as the program counts them.
    seen: u64,
    /// Frames of the inbox that were given out.
    copied: u64,
    /// Since when the inbox waits for the companion.
    waits_since: Option<Nanos>,
}

/// What was given out.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Given {
    pub(super) given: usize,
    /// Those of the inbox.
    pub(super) packets: u64,
    pub(super) bytes: u64,
}

impl Ways {
    /// `burst`: frames that are received at once.
    pub(super) fn new(inbox: Inbox, burst: usize) -> Ways {
        let pending = Vec::with_capacity(burst);
        Ways { inbox, pending, seen: 0, copied: 0, waits_since: None }
    }

    /// Has `receive` append what has come through the companion, in order, where nothing is left of
    /// before.
    pub(super) fn fetch(&mut self, receive: impl FnOnce(&mut Vec<Frame>) -> usize) {
        if self.pending.is_empty() {
            receive(&mut self.pending);
            self.pending.reverse();
        }
    }

    /// Appends to `out`, `max` at most. What came before the frames of the last
    /// [`Ways::fetch`] is in the inbox by then, so the order is known.
    pub(super) fn give(
        &mut self,
        now: Nanos,
        pool: &mut FramePool,
        out: &mut Vec<Frame>,
        max: usize,
    ) -> Given {
        let mut done = Given::default();
        while done.given < max {
            match self.inbox.peek() {
                Some(entered) if entered <= self.seen => {
                    if pool.available() == 0 {
                        break;
                    }
                    let Some(frame) = self.inbox.take(pool) else { continue };
                    done.packets += 1;
                    done.bytes += frame.len() as u64;
                    out.push(frame);
                }
                next => {
                    let Some(frame) = self.pending.pop() else {
                        self.wait(now, next);
                        break;
                    };
                    // A merged packet may be cut into more than it said.
                    self.seen = (self.seen + 1).min(self.inbox.entered());
                    out.push(frame);
                }
            }
            done.given += 1;
            self.waits_since = None;
        }
        self.copied += done.packets;
        done
    }

    /// What has not come through the companion for so long does not come any more.
    fn wait(&mut self, now: Nanos, next: Option<u64>) {
        let Some(entered) = next else { return };
        let since = *self.waits_since.get_or_insert(now);
        if now.since(since) >= LOST_AFTER_NS {
            (self.seen, self.waits_since) = (entered, None);
        }
    }

    /// Of packets given out, where `received` came through the companion.
    pub(super) fn given(&self, received: u64) -> u64 {
        received - self.pending.len() as u64 + self.copied
    }

    /// Whether nothing is left to give out; what is in the socket's ring is not seen.
    pub(super) fn is_empty(&self) -> bool {
        self.pending.is_empty() && self.inbox.peek().is_none()
    }

    /// See [`super::Port::doze`].
    pub(super) fn doze(&self, asleep: bool) {
        self.inbox.doze(asleep);
    }

    pub(super) fn into_frames(self) -> Vec<Frame> {
        self.pending
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::nic::steer::inbox::Inboxes;

    const BURST: usize = 8;
    const FRAME_MAX: usize = 1_500;

    struct Rig {
        ways: Ways,
        pool: FramePool,
        /// On their way through the companion.
        companion: Vec<u8>,
        now: Nanos,
    }

    impl Rig {
        fn new(frames: u32) -> Rig {
            // Of the most queues that there are, the last one: it has the fewest slots.
            let inbox = Inboxes::in_memory().open(63, 64, FRAME_MAX);
            let pool = FramePool::standalone(frames, 2_048);
            let now = Nanos(LOST_AFTER_NS);
            Rig { ways: Ways::new(inbox, BURST), pool, companion: Vec::new(), now }
        }

        fn copy(&self, name: u8) {
            assert!(self.ways.inbox.put(&[name; 60]), "no room");
        }

        fn enter(&mut self, name: u8) {
            self.ways.inbox.enter(1);
            self.companion.push(name);
        }

        /// What is given out at once, by name.
        fn give(&mut self, max: usize) -> Vec<u8> {
            let (companion, pool) = (&mut self.companion, &mut self.pool);
            self.ways.fetch(|out| {
                let came = companion.drain(..companion.len().min(BURST));
                out.extend(came.map(|name| pool.take_with(&[name; 60]).expect("stock")));
                out.len()
            });
            let mut out = Vec::new();
            let given = self.ways.give(self.now, &mut self.pool, &mut out, max);
            assert_eq!(given.given, out.len());
            let pool = &mut self.pool;
            let name = |frame: Frame| {
                let name = frame.bytes(pool.arena())[0];
                pool.put(frame);
                name
            };
            out.into_iter().map(name).collect()
        }
    }

    #[test]
    fn frames_come_in_the_order_in_which_they_were_sent() {
        let (mut rig, mut got) = (Rig::new(64), Vec::new());
        for name in 0..40 {
            if name % 5 < 2 {
                rig.enter(name)
            } else {
                rig.copy(name)
            }
            if name % 13 == 12 {
                // The rest of what came before waits, for want of room.
                got.extend(rig.give(8));
            }
        }
        got.extend((0..40).flat_map(|_| rig.give(1)));
        assert_eq!(got, Vec::from_iter(0..40));
        assert!(rig.ways.is_empty());
        assert_eq!((rig.ways.given(16), rig.pool.outstanding()), (40, 0));
    }

    #[test]
    fn what_is_on_its_way_through_the_companion_is_waited_for_but_not_for_ever() {
        let mut rig = Rig::new(8);
        rig.ways.inbox.enter(2);
        rig.copy(3);
        assert!(rig.give(8).is_empty());
        assert!(!rig.ways.is_empty(), "nobody sleeps meanwhile");
        rig.companion.push(1);
        rig.now.0 += LOST_AFTER_NS;
        assert_eq!(rig.give(8), [1], "the other one is still to come");
        rig.now.0 += 1;
        assert!(rig.give(8).is_empty());
        rig.now.0 += LOST_AFTER_NS;
        assert!(rig.give(8).is_empty(), "it is lost");
        assert_eq!(rig.give(8), [3]);
        // It comes all the same: nothing waits for more than there is afterwards.
        rig.companion.push(2);
        assert_eq!(rig.give(8), [2]);
        rig.enter(4);
        rig.copy(5);
        assert_eq!(rig.give(8), [4, 5]);
    }

    #[test]
    fn frames_that_went_another_way_after_all_are_passed_over() {
        let mut rig = Rig::new(8);
        rig.copy(1);
        rig.ways.inbox.cancel();
        rig.enter(1);
        rig.copy(2);
        assert_eq!(rig.give(8), [1, 2]);
        assert_eq!(rig.ways.given(1), 2);
    }

    #[test]
    fn an_inbox_goes_round_and_keeps_what_there_is_no_frame_for() {
        let mut rig = Rig::new(4);
        let capacity = rig.ways.inbox.capacity();
        assert_eq!(capacity, 16);
        for lap in 0..3 {
            for name in 0..capacity as u8 {
                rig.copy(name);
            }
            assert!(!rig.ways.inbox.put(&[0; 60]), "full, lap {lap}");
            let held: Vec<_> = std::iter::from_fn(|| rig.pool.take()).collect();
            assert!(rig.give(64).is_empty(), "no frame");
            held.into_iter().for_each(|frame| rig.pool.put(frame));
            let got: Vec<u8> = (0..8).flat_map(|_| rig.give(2)).collect();
            assert_eq!(got, Vec::from_iter(0..capacity as u8));
        }
    }
}
