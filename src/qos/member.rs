//! One worker's side of a tree that several share: what it was granted, and what it still wants.

use std::collections::VecDeque;
use std::sync::Arc;

use super::queues::Queues;
use super::shared::{LEASES_MAX, Lease, Shared, fingerprint};
use super::spec::PortQosSpec;
use crate::base::Nanos;

/// When to look again while another worker is at the tree, or the tree is a newer one.
const RETRY_NS: u64 = 1_000;

pub(super) struct Member {
    shared: Arc<Shared>,
    number: usize,
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
        Member { number: shared.join(), shared, books: Books::new(spec, classes) }
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
            let wanted = queues.ready_bytes(leaf) as i64 - self.books.held[leaf as usize];
            if wanted <= 0 && queues.has_ready(leaf) && self.books.carry[leaf as usize] > 0 {
                // What was granted for packets that were lost serves these.
                self.books.use_rest(leaf);
            }
            let wanted = u32::try_from(wanted.max(0)).unwrap_or(u32::MAX);
            global.want(self.number, leaf, wanted, u32::from(waiting.flows));
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

    #[test]
    fn what_is_left_over_waits_once() {
        let spec = PortQosSpec {
            port: PortId(0),
            rate: BitRate(1_000_000_000),
            burst: 500_000,
            overhead: 0,
            mpu: 0,
            mtu: 1_500,
            default_class: ClassId(0),
            classes: Vec::new(),
        };
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
