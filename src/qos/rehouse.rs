//! Packets on their way from one tree's leaves to another's, or out of all of them.

use super::codel::Above;
use super::flows::{Flow, Flows, Standing};
use super::pacing::{Due, Pacing};
use super::queues::{Leaf, Losses, Queues};
use super::settings::{LeafSettings, lay_out};
use super::sojourn::Sojourn;
use super::wheel::NIL;
use crate::base::mem::huge_vec;
use crate::base::{Nanos, Seed};
use crate::packet::Frame;

/// Where the flows of an old leaf go.
#[derive(Clone, Copy, Debug)]
pub(super) struct Move {
    pub leaf: u32,
    /// It is the same class.
    pub keeps_counters: bool,
}

impl Queues {
    /// Takes everything out, in no order, and forgets all flows. Counters stay. Allocates.
    pub fn drain(&mut self, seed: Seed, out: &mut Vec<Frame>) {
        self.packets.drain(out);
        self.flows = Flows::new(self.flows.capacity(), seed);
        self.pacing.clear();
        (self.bytes, self.empty) = (0, 0);
        (self.fattest, self.donor_scan) = (0, 0);
        for (leaf, losses) in self.leaves.iter_mut().zip(&mut self.losses) {
            let Leaf { sent, borrowed_bytes, limit, target, manner, .. } = *leaf;
            let fresh = Leaf::new(LeafSettings::NONE, manner);
            *leaf = Leaf { sent, borrowed_bytes, limit, target, ..fresh };
            let Losses { fat, fat_sizes, .. } = Losses::NONE;
            (losses.fat, losses.fat_sizes) = (fat, fat_sizes);
        }
    }

    /// Puts `leaves` in the place of the old ones; flows of old leaf `i` move to leaf `map[i]` in
    /// their order. A flow that the target has already gets the
    /// packets behind its own. Nothing is dropped, even over a limit. Allocates.
    pub fn rehouse(&mut self, now: Nanos, leaves: &[LeafSettings], map: &[Move], seed: Seed) {
        let (manners, fresh) = lay_out(leaves);
        self.has_paces = manners.iter().any(|manner| manner.pace.is_set());
        self.manners = manners;
        let old_leaves: Vec<Leaf> = std::mem::replace(&mut self.leaves, fresh);
        let fresh = huge_vec(leaves.len(), Losses::NONE);
        let old_losses: Vec<Losses> = std::mem::replace(&mut self.losses, fresh);
        let fresh = huge_vec(leaves.len(), Sojourn::default());
        let old_sojourns = std::mem::replace(&mut self.sojourns, fresh);
        let fresh = Flows::new(self.flows.capacity(), seed);
        let old_flows = std::mem::replace(&mut self.flows, fresh);
        let fresh = Pacing::new(self.has_paces, old_flows.capacity(), leaves.len(), now);
        let old_pacing = std::mem::replace(&mut self.pacing, fresh);
        (self.bytes, self.empty) = (0, 0);
        (self.fattest, self.donor_scan) = (0, 0);
        for (i, (from, to)) in old_leaves.iter().zip(map).enumerate() {
            let at = to.leaf as usize;
            if to.keeps_counters {
                let (leaf, losses) = (&mut self.leaves[at], &mut self.losses[at]);
                (leaf.sent, leaf.borrowed_bytes) = (from.sent, from.borrowed_bytes);
                let Losses { fat, fat_sizes, .. } = *losses;
                *losses = Losses { fat, fat_sizes, ..old_losses[i] };
                self.sojourns[at] = old_sojourns[i];
            }
            for list in from.lists {
                let mut at = list.head;
                while at != NIL {
                    let flow = old_flows.at(at);
                    if flow.head != NIL {
                        self.settle_in(to.leaf, flow, old_pacing.due(at));
                    }
                    at = flow.next;
                }
            }
        }
        let asleep = |(_, flow): &(u32, &Flow)| flow.standing == Standing::Asleep;
        for (at, flow) in old_flows.all().filter(asleep).filter(|(_, flow)| flow.head != NIL) {
            let to = map[usize::from(flow.leaf)].leaf;
            self.settle_in(to, flow, old_pacing.due(at));
        }
    }

    fn settle_in(&mut self, leaf: u32, old: &Flow, due: Due) {
        let Some((flow, fresh)) = self.flows.find_or_insert(self.flows.key(leaf, old.hash)) else {
            debug_assert!(false, "as many flows as before do not fit");
            return;
        };
        if fresh {
            let entry = self.flows.at_mut(flow);
            (entry.head, entry.tail) = (old.head, old.tail);
            self.leaves[leaf as usize].flows = self.leaves[leaf as usize].flows.wrapping_add(1);
            (entry.bytes, entry.fat, entry.above) = (0, 0, Above::default());
            entry.deficit = old.deficit.min(self.quantum as i32);
            // One that slept looks again whether it still has to.
            let slept = old.standing == Standing::Asleep;
            self.append(leaf, flow, if slept { Standing::Old } else { old.standing });
            self.pacing.set(flow, due);
        } else {
            let entry = self.flows.at_mut(flow);
            let tail = std::mem::replace(&mut entry.tail, old.tail);
            self.packets.link(tail, old.head);
        }
        let (mut bytes, mut packets, mut cell) = (0i64, 0, old.head);
        while cell != NIL {
            bytes += i64::from(self.counted(leaf, self.packets.frame_len(cell)));
            packets += 1;
            cell = if cell == old.tail { NIL } else { self.packets.next(cell) };
        }
        self.resize(leaf, flow, bytes);
        let held = &mut self.leaves[leaf as usize];
        held.packets += packets;
        if held.bytes > self.leaves[self.fattest as usize].bytes {
            self.fattest = leaf;
        }
    }
}
