//! One worker's side of a tree that several share: what it was granted, and what it still wants.

use std::collections::VecDeque;
use std::sync::Arc;

use super::codel::{Ticks, ticks};
use super::queues::Queues;
use super::shared::{LEASES_MAX, Lease, Shared, fingerprint};
use super::spec::PortQosSpec;
use super::tree::Lent;
use super::wheel::TICK_NS;
use crate::base::Nanos;

/// When to look again while another worker is at the tree, or the tree is a newer one.
const RETRY_NS: u64 = 1_000;
/// How often what classes were lent is asked for while another worker is at the tree: some
/// microseconds.
const LENT_TRIES: usize = 100;
/// What others hold is not known any more after this time.
const KNOWN_TICKS: Ticks = (16_000_000 / TICK_NS) as Ticks;

pub(super) struct Member {
    shared: Arc<Shared>,
    number: usize,
    /// Workers that share the tree, as was seen last.
    present: u32,
    /// When it was at the tree last.
    visited: Nanos,
    books: Books,
}

/// What was granted and sent, by the classes of one tree.
pub(super) struct Books {
    fingerprint: u64,
    /// In the order of the grants, and one a class at most, of nothing, for what is left over.
    leases: VecDeque<Lease>,
    /// By class: there is one of nothing.
    has_empty: Vec<bool>,
    /// Bytes of leases that are not used up.
    unsent: u32,
    /// By class: bytes leased and not sent; negative: sent in advance.
    held: Vec<i64>,
    /// By class: bytes left over from leases that are done; negative as above.
    carry: Vec<i64>,
    /// Classes of which something came or was lost since the last visit.
    news: Vec<u32>,
    is_news: Vec<bool>,
    /// By class.
    others: Vec<Others>,
}

/// What other workers hold of a class.
#[derive(Clone, Copy, Debug, Default)]
struct Others {
    bytes: u32,
    /// When that was so.
    at: Ticks,
}

impl Books {
    pub fn new(spec: &PortQosSpec, classes: usize) -> Books {
        Books {
            fingerprint: fingerprint(spec),
            leases: VecDeque::with_capacity(LEASES_MAX + classes),
            has_empty: vec![false; classes],
            unsent: 0,
            held: vec![0; classes],
            carry: vec![0; classes],
            news: Vec::with_capacity(classes),
            is_news: vec![false; classes],
            others: vec![Others::default(); classes],
        }
    }
}

impl Books {
    /// Has what is left over of a class's leases used, if it does not wait for that already.
    fn use_rest(&mut self, leaf: u32) {
        if !std::mem::replace(&mut self.has_empty[leaf as usize], true) {
            self.leases.push_back(Lease { leaf, bytes: 0, is_borrowed: false });
        }
    }
}

impl Member {
    pub fn new(shared: Arc<Shared>, spec: &PortQosSpec, classes: usize) -> Member {
        let books = Books::new(spec, classes);
        Member { number: shared.join(), shared, present: 1, visited: Nanos::ZERO, books }
    }

    /// Workers that share the tree.
    #[inline]
    pub fn present(&self) -> u32 {
        self.present
    }

    /// Bytes of a class that a worker may hold where all may hold `limit` together: its part of
    /// that in any case, and of the rest what the others leave. These tell when they visit the
    /// tree, and this worker hears of it when it does: in between they may hold more together.
    pub fn most(&self, now: Ticks, leaf: u32, limit: u64) -> u64 {
        let Others { bytes, at } = self.books.others[leaf as usize];
        let others = if now.wrapping_sub(at) <= KNOWN_TICKS { bytes } else { 0 };
        limit.saturating_sub(others.into()).max(limit / u64::from(self.present))
    }

    /// Follows the shared tree to another specification, of which nothing was granted yet. What was
    /// granted before is void.
    pub fn succeed(&mut self, next: &mut Books, queues: &Queues) {
        std::mem::swap(&mut self.books, next);
        for (leaf, held) in queues.leaves.iter().enumerate() {
            if held.packets > 0 {
                self.changed(leaf as u32);
            }
        }
    }

    /// Packets came to a class, or were lost there.
    #[inline]
    pub fn changed(&mut self, leaf: u32) {
        if !std::mem::replace(&mut self.books.is_news[leaf as usize], true) {
            self.books.news.push(leaf);
        }
    }

    /// Tells the tree what is wanted and fetches what was granted, about `bytes` in all. Nothing
    /// happens while another worker is there.
    pub fn visit(&mut self, now: Nanos, queues: &Queues, bytes: u64) {
        let Some(mut global) = self.shared.try_lock() else {
            return;
        };
        if global.fingerprint != self.books.fingerprint {
            return;
        }
        global.advance(now);
        self.present = global.present().max(1);
        let elapsed = now.since(self.visited);
        self.visited = now;
        let fetched = self.books.leases.len();
        global.collect(self.number, &mut self.books.leases);
        for lease in self.books.leases.range(fetched..) {
            self.books.unsent += lease.bytes;
            self.books.held[lease.leaf as usize] += i64::from(lease.bytes);
        }
        global.report(self.number, self.books.leases.len(), self.books.unsent);
        while let Some(leaf) = self.books.news.pop() {
            self.books.is_news[leaf as usize] = false;
            let waiting = &queues.leaves[leaf as usize];
            let ready = queues.ready_bytes(leaf, elapsed);
            let wanted = ready as i64 - self.books.held[leaf as usize];
            if wanted <= 0 && queues.has_ready(leaf) && self.books.carry[leaf as usize] > 0 {
                // What was granted for packets that were lost serves these.
                self.books.use_rest(leaf);
            }
            let bytes = |n: i64| u32::try_from(n.max(0)).unwrap_or(u32::MAX);
            let asleep = bytes(waiting.bytes as i64 - ready as i64);
            global.want(self.number, leaf, (bytes(wanted), asleep), waiting.flows);
            if waiting.bytes * u64::from(self.present) > u64::from(queues.manner(leaf).limit) {
                let bytes = global.held_by_others(self.number, leaf);
                self.books.others[leaf as usize] = Others { bytes, at: ticks(now) };
            }
        }
        let missing = bytes.saturating_sub(u64::from(self.books.unsent));
        if missing == 0 {
            return;
        }
        global.serve(self.number, missing);
        let fetched = self.books.leases.len();
        global.collect(self.number, &mut self.books.leases);
        for lease in self.books.leases.range(fetched..) {
            self.books.unsent += lease.bytes;
            self.books.held[lease.leaf as usize] += i64::from(lease.bytes);
        }
        if u64::from(self.books.unsent) < queues.bytes.min(bytes) {
            global.leaves_waiting(self.number);
        }
    }

    /// The lease to use now, and what may be sent on it.
    #[inline]
    pub fn current(&self) -> Option<(Lease, i64)> {
        let lease = *self.books.leases.front()?;
        Some((lease, i64::from(lease.bytes) + self.books.carry[lease.leaf as usize]))
    }

    /// Takes what was sent off the lease at hand.
    #[inline]
    pub fn pay(&mut self, leaf: u32, bytes: u32) {
        self.books.held[leaf as usize] -= i64::from(bytes);
        self.books.carry[leaf as usize] -= i64::from(bytes);
    }

    /// The lease at hand is used up, or its class has no packets left.
    #[inline]
    pub fn finish(&mut self) {
        if let Some(lease) = self.books.leases.pop_front() {
            self.books.unsent -= lease.bytes;
            self.books.has_empty[lease.leaf as usize] &= lease.bytes > 0;
            self.books.carry[lease.leaf as usize] += i64::from(lease.bytes);
        }
    }

    /// Brings what classes were lent, in the whole tree, up to date. While another worker
    /// stays there, or the tree is a newer one, `lent` stays: others will know better.
    pub fn fetch_lent(&self, lent: &mut Lent) {
        for _ in 0..LENT_TRIES {
            if let Some(global) = self.shared.try_lock() {
                if global.fingerprint == self.books.fingerprint {
                    lent.learn(&global.tree.lent);
                }
                return;
            }
            std::hint::spin_loop();
        }
    }

    /// Whether the tree has to hear something.
    pub fn has_news(&self) -> bool {
        !self.books.news.is_empty()
    }

    /// When there may be something to send.
    pub fn next_event(&self, now: Nanos) -> Nanos {
        if !self.books.leases.is_empty() || self.has_news() {
            return now;
        }
        let later = now.saturating_add(RETRY_NS);
        match self.shared.try_lock() {
            Some(global) if global.fingerprint == self.books.fingerprint => {
                global.next_event(self.number).map_or(later, |at| at.max(now))
            }
            _ => later,
        }
    }
}

impl Drop for Member {
    fn drop(&mut self) {
        self.shared.leave(self.number);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::units::BitRate;
    use crate::packet::{ClassId, PortId};

    fn spec() -> PortQosSpec {
        PortQosSpec {
            port: PortId(0),
            rate: BitRate(1_000_000_000),
            burst: 500_000,
            overhead: 0,
            mpu: 0,
            mtu: 1_500,
            default_class: ClassId(0),
            classes: Vec::new(),
        }
    }

    /// What was heard last is told, not nothing, while another worker is at the tree.
    #[test]
    fn what_was_lent_is_known_while_another_is_at_the_tree() {
        let spec = spec();
        let shared = Shared::new(&spec);
        let member = Member::new(Arc::clone(&shared), &spec, 1);
        let late = Member::new(Arc::clone(&shared), &spec, 1);
        let mut known = Lent::default();
        let tell = |bytes| shared.try_lock().expect("nobody is there").tree.lent.inner.fill(bytes);
        tell(7);
        member.fetch_lent(&mut known);
        assert!(!known.inner.is_empty() && known.inner.iter().all(|bytes| *bytes == 7));
        tell(9);
        let other = shared.try_lock();
        member.fetch_lent(&mut known);
        assert!(known.inner.iter().all(|bytes| *bytes == 7));
        drop(other);
        // Any of them tells it.
        late.fetch_lent(&mut known);
        assert!(known.inner.iter().all(|bytes| *bytes == 9));
    }

    #[test]
    fn what_is_left_over_waits_once() {
        let spec = spec();
        let mut member = Member::new(Shared::new(&spec), &spec, 2);
        for _ in 0..3 {
            for leaf in [1, 1, 0, 1] {
                member.books.use_rest(leaf);
            }
            assert_eq!(member.books.leases.len(), 2);
            member.finish();
            member.finish();
        }
        assert!(member.current().is_none());
    }
}
