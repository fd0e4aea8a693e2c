//! What a class has done since it was configured.

use std::ops::AddAssign;

use super::Scheduler;
use super::queues::{Queues, Tally};
use super::sojourn::Sojourn;
use super::tree::ROOT;
use crate::packet::ClassId;

/// Counters of one class; of an inner class, the sums over the leaves below it, those included
/// that are gone, but what it borrowed is its own. Bytes are as the scheduler counts them: with the
/// port's overhead, and the minimum at least.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ClassStats {
    /// Arrived, whatever became of them: sent, dropped, still waiting, or moved to another class;
    /// those that moved here arrived elsewhere.
    pub enqueued_packets: u64,
    pub enqueued_bytes: u64,
    /// From other classes, and to others, while they waited: with their flow, or since their class
    /// is gone.
    pub moved_in_packets: u64,
    pub moved_in_bytes: u64,
    pub moved_out_packets: u64,
    pub moved_out_bytes: u64,
    /// Flows that went to another class without what they had waiting here, which was too much.
    pub flows_unmoved: u64,
    pub sent_packets: u64,
    pub sent_bytes: u64,
    /// Lost, for whatever reason.
    pub dropped_packets: u64,
    pub dropped_bytes: u64,
    /// Of those, the ones that the queue management chose; the others were lost to overload.
    pub aqm_dropped_packets: u64,
    /// Sent with a mark of congestion (ECN) instead of being dropped.
    pub marked_packets: u64,
    /// Of those it sent as a leaf, what went on the rate of a class above.
    pub leaf_borrowed_bytes: u64,
    /// What it borrowed as an inner class, in all workers that share the tree: each tells what it
    /// heard last.
    pub lent_bytes: u64,
    /// Waiting now.
    pub backlog_packets: u64,
    pub backlog_bytes: u64,
    /// How long those sent have waited.
    pub sojourn: Sojourn,
}

/// What went from one leaf to another while it waited.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Moves {
    /// From others, as counted here.
    pub came: Tally,
    /// To others, as counted here.
    pub went: Tally,
    /// Flows of which what waited did not go with them.
    pub flows_unmoved: u64,
}

impl AddAssign for Moves {
    fn add_assign(&mut self, other: Moves) {
        self.came += other.came;
        self.went += other.went;
        self.flows_unmoved += other.flows_unmoved;
    }
}

impl AddAssign for ClassStats {
    fn add_assign(&mut self, other: ClassStats) {
        self.enqueued_packets += other.enqueued_packets;
        self.enqueued_bytes += other.enqueued_bytes;
        self.moved_in_packets += other.moved_in_packets;
        self.moved_in_bytes += other.moved_in_bytes;
        self.moved_out_packets += other.moved_out_packets;
        self.moved_out_bytes += other.moved_out_bytes;
        self.flows_unmoved += other.flows_unmoved;
        self.sent_packets += other.sent_packets;
        self.sent_bytes += other.sent_bytes;
        self.dropped_packets += other.dropped_packets;
        self.dropped_bytes += other.dropped_bytes;
        self.aqm_dropped_packets += other.aqm_dropped_packets;
        self.marked_packets += other.marked_packets;
        self.leaf_borrowed_bytes += other.leaf_borrowed_bytes;
        self.lent_bytes = self.lent_bytes.max(other.lent_bytes);
        self.backlog_packets += other.backlog_packets;
        self.backlog_bytes += other.backlog_bytes;
        self.sojourn += other.sojourn;
    }
}

impl ClassStats {
    /// Of the bytes sent, those on the rate of a class above. Of an inner class, less what it has
    /// paid back since.
    pub fn borrowed_bytes(&self) -> u64 {
        // A reload may have made it one after the other.
        self.leaf_borrowed_bytes + self.lent_bytes
    }
}

impl Queues {
    pub fn stats(&self, leaf: usize) -> ClassStats {
        let (held, losses) = (&self.leaves[leaf], &self.losses[leaf]);
        let Moves { came, went, flows_unmoved } = self.moves[leaf];
        let (backlog_packets, backlog_bytes) = (u64::from(held.packets), held.bytes);
        let mut sojourn = self.sojourns[leaf];
        sojourn.record(&mut held.recent.clone());
        ClassStats {
            enqueued_packets: (held.sent.packets + losses.dropped.packets + backlog_packets)
                .wrapping_add(went.packets)
                .wrapping_sub(came.packets),
            enqueued_bytes: (held.sent.bytes + losses.dropped.bytes + backlog_bytes)
                .wrapping_add(went.bytes)
                .wrapping_sub(came.bytes),
            moved_in_packets: came.packets,
            moved_in_bytes: came.bytes,
            moved_out_packets: went.packets,
            moved_out_bytes: went.bytes,
            flows_unmoved,
            sent_packets: held.sent.packets,
            sent_bytes: held.sent.bytes,
            dropped_packets: losses.dropped.packets,
            dropped_bytes: losses.dropped.bytes,
            aqm_dropped_packets: losses.aqm_dropped,
            marked_packets: losses.marked,
            leaf_borrowed_bytes: held.borrowed_bytes,
            lent_bytes: 0,
            backlog_packets,
            backlog_bytes,
            sojourn,
        }
    }
}

impl Scheduler {
    /// What a class has done; zeros for a class that is not under this port. Takes time in
    /// proportion to the port's classes: for many of them use [`Scheduler::classes`].
    pub fn class_stats(&mut self, class: ClassId) -> ClassStats {
        self.classes().find(|&(id, _)| id == class).map_or(ClassStats::default(), |(_, s)| s)
    }

    /// All classes of the port with what they have done, each before those below it.
    pub fn classes(&mut self) -> impl Iterator<Item = (ClassId, ClassStats)> {
        if let Some(member) = &self.member {
            member.fetch_lent(&mut self.tree.lent);
        }
        let first = ROOT as usize + 1;
        (first..self.ids.len()).map(|at| (self.ids[at], self.stats_of(at)))
    }

    /// Sums over the leaves below a class, level by level. What these borrowed may be the class's
    /// own: what it borrowed itself, the tree knows.
    fn stats_of(&self, at: usize) -> ClassStats {
        let mut sum = ClassStats::default();
        let mut level = at..at + 1;
        while !level.is_empty() {
            for leaf in level.clone() {
                sum += self.queues.stats(leaf);
            }
            level = self.tree.children(level);
        }
        sum.leaf_borrowed_bytes = self.queues.leaves[at].borrowed_bytes;
        sum.lent_bytes = self.tree.lent.to(at as u32, self.tree.classes[at].inner);
        sum
    }
}
