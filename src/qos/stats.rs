//! What a class has done since it was configured.

use std::ops::AddAssign;

use super::Scheduler;
use super::sojourn::Sojourn;
use super::tree::ROOT;
use crate::packet::ClassId;

/// Counters of one class; of an inner class, the sums over the leaves below it, but what it
/// borrowed is its own. Bytes are as the
/// scheduler counts them: with the port's overhead, and the minimum at least.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ClassStats {
    /// Arrived, whatever became of them: sent, dropped or still waiting. Packets that a
    /// reconfiguration moved here count too.
    pub enqueued_packets: u64,
    pub enqueued_bytes: u64,
    pub sent_packets: u64,
    pub sent_bytes: u64,
    /// Lost, for whatever reason.
    pub dropped_packets: u64,
    pub dropped_bytes: u64,
    /// Of those, the ones that the queue management chose; the others were lost to overload.
    pub aqm_dropped_packets: u64,
    /// Sent with a mark of congestion (ECN) instead of being dropped.
    pub marked_packets: u64,
    /// Of those sent, what went on the rate of a class above.
    pub borrowed_bytes: u64,
    /// Waiting now.
    pub backlog_packets: u64,
    pub backlog_bytes: u64,
    /// How long those sent have waited.
    pub sojourn: Sojourn,
}

impl AddAssign for ClassStats {
    fn add_assign(&mut self, other: ClassStats) {
        self.enqueued_packets += other.enqueued_packets;
        self.enqueued_bytes += other.enqueued_bytes;
        self.sent_packets += other.sent_packets;
        self.sent_bytes += other.sent_bytes;
        self.dropped_packets += other.dropped_packets;
        self.dropped_bytes += other.dropped_bytes;
        self.aqm_dropped_packets += other.aqm_dropped_packets;
        self.marked_packets += other.marked_packets;
        self.borrowed_bytes += other.borrowed_bytes;
        self.backlog_packets += other.backlog_packets;
        self.backlog_bytes += other.backlog_bytes;
        self.sojourn += other.sojourn;
    }
}

impl Scheduler {
    /// What a class has done; zeros for a class that is not under this port. Takes time in
    /// proportion to the port's classes: for many of them use [`Scheduler::classes`].
    pub fn class_stats(&mut self, class: ClassId) -> ClassStats {
        self.classes().find(|&(id, _)| id == class).map_or(ClassStats::default(), |(_, s)| s)
    }

    /// All classes of the port with what they have done, each before those below it. What inner
    /// classes borrowed is told by one of the workers that share a tree, for all of them.
    pub fn classes(&mut self) -> impl Iterator<Item = (ClassId, ClassStats)> {
        if let Some(member) = &self.member {
            member.fetch_lent(&mut self.tree.lent);
        }
        let first = ROOT as usize + 1;
        (first..self.ids.len()).map(|at| (self.ids[at], self.stats_of(at)))
    }

    /// Sums over the leaves below a class, level by level. What leaves borrowed may be the class's
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
        let class = &self.tree.classes[at];
        if !class.traits.is_leaf() {
            sum.borrowed_bytes = self.tree.lent[usize::from(class.inner)];
        }
        sum
    }
}
