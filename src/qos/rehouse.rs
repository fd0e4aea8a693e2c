//! Packets on their way from one tree's leaves to another's, or out of all of them.

use super::codel::Above;
use super::flows::{Flow, Flows, Standing};
use super::pacing::Due;
use super::queues::{Leaf, Losses, Queues, Tally};
use super::stats::Moves;
use super::tree::ROOT;
use super::wheel::NIL;
use crate::base::Seed;
use crate::packet::Frame;

/// Where the flows of an old leaf go.
#[derive(Clone, Copy, Debug)]
pub(super) struct Move {
    pub leaf: u32,
    /// It is the same class.
    pub is_same: bool,
    /// The class that goes on with its counters: its own, or what is left above it; the root: none.
    pub counters: u32,
    /// Its own is.
    pub stays: bool,
}

impl Queues {
    /// Takes everything out, in no order, and forgets all flows. Counters stay. Allocates.
    pub fn drain(&mut self, seed: Seed, out: &mut Vec<Frame>) {
        self.packets.drain(out);
        self.flows = Flows::new(self.flows.capacity(), seed);
        self.pacing.clear();
        (self.bytes, self.empty) = (0, 0);
        (self.fattest, self.donor_scan) = (0, 0);
        let others = self.losses.iter_mut().zip(self.moves.iter_mut());
        for (leaf, (losses, moves)) in self.leaves.iter_mut().zip(others) {
            let Leaf { sent, borrowed_bytes, recent, manner, packets, bytes, .. } = *leaf;
            moves.went.packets += u64::from(packets);
            moves.went.bytes += bytes;
            *leaf = Leaf { sent, borrowed_bytes, recent, ..Leaf::new(manner) };
            let Losses { fat, fat_sizes, .. } = Losses::NONE;
            (losses.fat, losses.fat_sizes) = (fat, fat_sizes);
        }
    }

    /// Puts the leaves of `next`, which holds nothing, in the place of the old ones; flows of old
    /// leaf `i` move to leaf `map[i]` in their order. A flow that the target has already gets the
    /// packets behind its own. Nothing is dropped, even over a limit. `next` gets what was here.
    pub fn rehouse(&mut self, next: &mut Queues, map: &[Move]) {
        use std::mem::swap;
        // All but the packets, which stay where they are.
        swap(self, next);
        swap(&mut self.packets, &mut next.packets);
        self.empty_max = next.empty_max;
        let Queues { leaves: old_leaves, losses: old_losses, sojourns: old_sojourns, .. } = next;
        let (old_flows, old_pacing, old_moves) = (&next.flows, &next.pacing, &next.moves);
        let was_fifo = |leaf: &Leaf| next.manners[usize::from(leaf.manner)].is_fifo();
        // Before flows move: these are counted on top.
        for (i, (from, to)) in old_leaves.iter().zip(map).enumerate() {
            let at = to.counters as usize;
            if to.counters == ROOT {
                continue;
            }
            let (leaf, losses, lost) = (&mut self.leaves[at], &mut self.losses[at], &old_losses[i]);
            leaf.sent += from.sent;
            // What one below it borrowed, a class may have lent itself.
            leaf.borrowed_bytes += if to.stays { from.borrowed_bytes } else { 0 };
            losses.dropped += lost.dropped;
            losses.aqm_dropped += lost.aqm_dropped;
            losses.marked += lost.marked;
            self.moves[at] += old_moves[i];
            self.sojourns[at] += old_sojourns[i];
            self.sojourns[at].record(&mut from.recent.clone());
        }
        for (from, to) in old_leaves.iter().zip(map) {
            for list in from.lists {
                let mut at = list.head;
                while at != NIL {
                    let flow = old_flows.at(at);
                    if flow.head != NIL {
                        self.settle_in(*to, flow, old_pacing.due(at), was_fifo(from));
                    }
                    at = flow.next;
                }
            }
        }
        if !next.has_paces {
            return;
        }
        let asleep = || old_flows.all().filter(|(_, flow)| flow.standing == Standing::Asleep);
        for (at, flow) in asleep().filter(|(_, flow)| flow.head != NIL) {
            let to = map[usize::from(flow.leaf)];
            self.settle_in(to, flow, old_pacing.due(at), false);
        }
        // After all that have packets: beside these they have nothing but what they owe.
        for (at, flow) in asleep().filter(|(_, flow)| flow.head == NIL) {
            let to = map[usize::from(flow.leaf)].leaf;
            if self.pace(to).is_set() {
                self.fall_asleep(to, flow.hash, (flow.deficit, old_pacing.due(at)));
            }
        }
    }

    /// Moves a flow to a leaf. What a FIFO held goes before all that comes later where flows are
    /// told apart, also after another change: it keeps its turn until all of it has gone.
    fn settle_in(&mut self, to: Move, old: &Flow, due: Due, was_fifo: bool) {
        let leaf = to.leaf;
        let was_first = was_fifo || old.standing == Standing::Backlog;
        let goes_first = was_first && !self.manner(leaf).is_fifo();
        let Some((flow, fresh)) = self.flows.find_or_insert(self.key(leaf, old.hash), NIL) else {
            debug_assert!(false, "as many flows as before do not fit");
            return;
        };
        if fresh {
            let entry = self.flows.at_mut(flow);
            (entry.head, entry.tail) = (old.head, old.tail);
            self.leaves[leaf as usize].flows = self.leaves[leaf as usize].flows.wrapping_add(1);
            (entry.bytes, entry.fat, entry.above) = (0, 0, Above::default());
            entry.deficit = old.deficit.min(self.quantum as i32);
            let standing = match old.standing {
                _ if goes_first => Standing::Backlog,
                // One that slept looks again whether it still has to.
                Standing::Asleep | Standing::Backlog => Standing::Old,
                standing => standing,
            };
            self.append(leaf, flow, standing);
            // Nobody's pace holds what goes first, nor what a FIFO has: that goes first later.
            let waits = !(goes_first || self.manner(leaf).is_fifo());
            self.pacing.set(flow, if waits { due } else { Due::default() });
        } else {
            if !was_first {
                self.hold_back(flow, due);
            }
            let entry = self.flows.at_mut(flow);
            let tail = std::mem::replace(&mut entry.tail, old.tail);
            self.packets.link(tail, old.head);
        }
        let (mut bytes, mut packets, mut cell) = (0u32, 0, old.head);
        while cell != NIL {
            bytes += self.counted(leaf, self.packets.frame_len(cell));
            packets += 1;
            cell = if cell == old.tail { NIL } else { self.packets.next(cell) };
        }
        let entry = self.flows.at_mut(flow);
        entry.bytes = entry.bytes.wrapping_add(bytes);
        if goes_first {
            entry.deficit = i32::try_from(entry.bytes).unwrap_or(i32::MAX);
        }
        if !entry.is_of_size() {
            self.change_size(leaf, flow);
        }
        self.bytes += u64::from(bytes);
        let Moves { came, went, .. } = &mut self.moves[leaf as usize];
        if to.is_same {
            // Where they count otherwise now, no sum of them goes back.
            came.bytes += u64::from(bytes.saturating_sub(old.bytes));
            went.bytes += u64::from(old.bytes.saturating_sub(bytes));
        } else {
            *came += Tally { packets: u64::from(packets), bytes: u64::from(bytes) };
            if to.counters != ROOT {
                let bytes = u64::from(old.bytes);
                self.moves[to.counters as usize].went += Tally { packets: packets.into(), bytes };
            }
        }
        let held = &mut self.leaves[leaf as usize];
        held.packets += packets;
        held.bytes += u64::from(bytes);
        if held.bytes > self.leaves[self.fattest as usize].bytes {
            self.fattest = leaf;
        }
    }
}
