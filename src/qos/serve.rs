//! A leaf's turn: its packets leave, each from the flow that is first in line.

use super::flows::Standing;
use super::packets::Note;
use super::queues::{Exit, NEW, OLD, Queues};
use super::wheel::NIL;
use crate::base::Nanos;
use crate::packet::Frame;

/// What a leaf has sent in a turn.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Served {
    pub packets: usize,
    /// Bytes of their frames.
    pub len: u64,
    /// Bytes that they count as.
    pub bytes: u32,
    /// The leaf has no more to send.
    pub emptied: bool,
}

/// A packet that was sent: its length, and the bytes that it counts as.
#[derive(Clone, Copy, Debug)]
struct Sent {
    len: u32,
    bytes: u32,
}

impl Queues {
    /// Sends a leaf's next packet, and then more as long as it has some and `goes_on` says so,
    /// which is told what was sent so far and the bytes of the last. None may be sent at all: the
    /// queue management may drop some.
    #[inline(always)]
    pub fn serve(
        &mut self,
        leaf: u32,
        is_borrowed: bool,
        exit: &mut Exit<'_>,
        out: &mut Vec<Frame>,
        mut goes_on: impl FnMut(&Served, u32) -> bool,
    ) -> Served {
        let mut served = Served::default();
        while let Some(Sent { len, bytes }) = self.pop(leaf, is_borrowed, exit, out) {
            served.packets += 1;
            served.len += u64::from(len);
            served.bytes = served.bytes.saturating_add(bytes);
            served.emptied = !self.has_ready(leaf);
            if served.emptied || !goes_on(&served, bytes) {
                return served;
            }
        }
        served.emptied = true;
        served
    }

    /// `None` when the leaf holds nothing to send, or nothing any more.
    #[inline(always)]
    fn pop(
        &mut self,
        leaf: u32,
        is_borrowed: bool,
        exit: &mut Exit<'_>,
        out: &mut Vec<Frame>,
    ) -> Option<Sent> {
        loop {
            let (list, flow) = self.first_in_line(leaf, exit.at)?;
            let (mut frame, bytes, Note { since, l3 }) = self.shift(leaf, flow)?;
            let (len, waited) = (frame.len() as u32, exit.now.wrapping_sub(since));
            let late = waited >= self.manner(leaf).target;
            let entry = self.flows.at_mut(flow);
            let (next, is_empty) = (entry.next, entry.head == NIL);
            if late | entry.above.is_set() {
                let Some(kept) = self.manage(leaf, flow, late, (frame, bytes, l3), exit) else {
                    if is_empty || self.has_paces {
                        self.leave(leaf, list, is_empty, 0, exit.at);
                    }
                    continue;
                };
                frame = kept;
            }
            out.push(frame);
            let Queues { leaves, flows, sojourns, .. } = self;
            flows.prefetch(next);
            flows.at_mut(flow).deficit -= bytes as i32;
            let held = &mut leaves[leaf as usize];
            held.sent.add(bytes);
            held.borrowed_bytes += u64::from(if is_borrowed { bytes } else { 0 });
            if held.recent.note(waited) {
                sojourns[leaf as usize].record(&mut held.recent);
            }
            if is_empty || self.has_paces {
                self.leave(leaf, list, is_empty, bytes, exit.at);
            }
            return Some(Sent { len, bytes });
        }
    }

    /// The flow whose packet is the leaf's next, and the list that it is first of. On the way to it
    /// those that have used up their round, hold nothing or must wait leave the front.
    #[inline(always)]
    fn first_in_line(&mut self, leaf: u32, now: Nanos) -> Option<(usize, u32)> {
        loop {
            let held = &self.leaves[leaf as usize];
            let list = usize::from(held.lists[NEW].head == NIL);
            let flow = held.lists[list].head;
            if flow == NIL {
                return None;
            }
            let entry = self.flows.at_mut(flow);
            if entry.head == NIL {
                self.rest(leaf, list);
                continue;
            }
            if entry.deficit <= 0 {
                entry.deficit += self.quantum as i32;
                let is_alone = list == OLD && entry.next == NIL;
                if !is_alone || entry.deficit <= 0 {
                    self.go_behind(leaf, list);
                    continue;
                }
            }
            if self.has_paces && self.sleeps_first(leaf, list, now) {
                continue;
            }
            return Some((list, flow));
        }
    }

    /// The first flow of a list has sent: it is forgotten or sleeps if it has to.
    #[inline(never)]
    fn leave(&mut self, leaf: u32, list: usize, is_empty: bool, sent: u32, now: Nanos) {
        let (flow, pace) = (self.leaves[leaf as usize].lists[list].head, self.pace(leaf));
        let is_backlog = self.flows.at(flow).standing == Standing::Backlog;
        let sleeps =
            pace.is_set() && !is_backlog && (self.pacing.charge(flow, pace, now, sent) || is_empty);
        if is_empty {
            self.empty += 1;
            let is_last = self.leaves[leaf as usize].packets == 0 && !sleeps;
            if is_last || is_backlog || self.empty > self.empty_max {
                self.forget_first(leaf, list);
                return;
            }
        }
        if sleeps {
            self.sleep_first(leaf, list);
        }
    }

    /// Sends the first flow of a list to sleep if it may not send yet.
    #[inline(never)]
    fn sleeps_first(&mut self, leaf: u32, list: usize, now: Nanos) -> bool {
        let flow = self.leaves[leaf as usize].lists[list].head;
        let sleeps = self.pace(leaf).is_set() && !self.pacing.is_due(flow, now);
        if sleeps {
            self.sleep_first(leaf, list);
        }
        sleeps
    }

    /// The first flow of a list, which holds no packets, has its turn: a new one joins the old
    /// ones, so that it can't come back as new at once and starve them; an old one leaves them.
    fn rest(&mut self, leaf: u32, list: usize) {
        if list == NEW && self.first_of(leaf, OLD).is_some() {
            let flow = self.unlink_first(leaf, NEW);
            self.append(leaf, flow, Standing::Old);
        } else if self.has_paces {
            self.dismiss_first(leaf, list);
        } else {
            self.forget_first(leaf, list);
        }
    }
}
