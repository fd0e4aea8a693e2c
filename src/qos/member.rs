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
    fingerprint: u64,
    /// In the order of the grants, and one a class at most for what is left over.
    leases: VecDeque<Lease>,
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

impl Member {
    pub fn new(shared: Arc<Shared>, spec: &PortQosSpec, classes: usize) -> Member {
        Member {
            number: shared.join(),
            shared,
            fingerprint: fingerprint(spec),
            leases: VecDeque::with_capacity(LEASES_MAX + classes),
            unsent: 0,
            held: vec![0; classes],
            carry: vec![0; classes],
            news: Vec::with_capacity(classes),
            is_news: vec![false; classes],
        }
    }

    /// Follows the shared tree to `spec`. What was granted before is void.
    pub fn reconfigure(&mut self, spec: &PortQosSpec, queues: &Queues) {
        let classes = queues.leaves.len();
        self.fingerprint = fingerprint(spec);
        self.leases = VecDeque::with_capacity(LEASES_MAX + classes);
        self.unsent = 0;
        (self.held, self.carry) = (vec![0; classes], vec![0; classes]);
        (self.news, self.is_news) = (Vec::with_capacity(classes), vec![false; classes]);
        for (leaf, held) in queues.leaves.iter().enumerate() {
            if held.packets > 0 {
                self.changed(leaf as u32);
            }
        }
    }

    /// Packets came to a class, or were lost there.
    #[inline]
    pub fn changed(&mut self, leaf: u32) {
        if !std::mem::replace(&mut self.is_news[leaf as usize], true) {
            self.news.push(leaf);
        }
    }

    /// Tells the tree what is wanted and fetches what was granted, about `bytes` in all. Nothing
    /// happens while another worker is there.
    pub fn visit(&mut self, now: Nanos, queues: &Queues, bytes: u64) {
        let Some(mut global) = self.shared.try_lock() else {
            return;
        };
        if global.fingerprint != self.fingerprint {
            return;
        }
        global.advance(now);
        let fetched = self.leases.len();
        global.collect(self.number, &mut self.leases);
        for lease in self.leases.range(fetched..) {
            self.unsent += lease.bytes;
            self.held[lease.leaf as usize] += i64::from(lease.bytes);
        }
        global.report(self.number, self.leases.len(), self.unsent);
        while let Some(leaf) = self.news.pop() {
            self.is_news[leaf as usize] = false;
            let waiting = &queues.leaves[leaf as usize];
            let wanted = queues.ready_bytes(leaf) as i64 - self.held[leaf as usize];
            if wanted <= 0 && queues.has_ready(leaf) && self.carry[leaf as usize] > 0 {
                // What was granted for packets that were lost serves these.
                self.leases.push_back(Lease { leaf, bytes: 0, is_borrowed: false });
            }
            let wanted = u32::try_from(wanted.max(0)).unwrap_or(u32::MAX);
            global.want(self.number, leaf, wanted, u32::from(waiting.flows));
        }
        let missing = bytes.saturating_sub(u64::from(self.unsent));
        if missing == 0 {
            return;
        }
        global.serve(self.number, missing);
        let fetched = self.leases.len();
        global.collect(self.number, &mut self.leases);
        for lease in self.leases.range(fetched..) {
            self.unsent += lease.bytes;
            self.held[lease.leaf as usize] += i64::from(lease.bytes);
        }
    }

    /// The lease to use now, and what may be sent on it.
    #[inline]
    pub fn current(&self) -> Option<(Lease, i64)> {
        let lease = *self.leases.front()?;
        Some((lease, i64::from(lease.bytes) + self.carry[lease.leaf as usize]))
    }

    /// Takes what was sent off the lease at hand.
    #[inline]
    pub fn pay(&mut self, leaf: u32, bytes: u32) {
        self.held[leaf as usize] -= i64::from(bytes);
        self.carry[leaf as usize] -= i64::from(bytes);
    }

    /// The lease at hand is used up, or its class has no packets left.
    #[inline]
    pub fn finish(&mut self) {
        if let Some(lease) = self.leases.pop_front() {
            self.unsent -= lease.bytes;
            self.carry[lease.leaf as usize] += i64::from(lease.bytes);
        }
    }

    /// Whether the tree has to hear something.
    pub fn has_news(&self) -> bool {
        !self.news.is_empty()
    }

    /// When there may be something to send.
    pub fn next_event(&self, now: Nanos) -> Nanos {
        if !self.leases.is_empty() || self.has_news() {
            return now;
        }
        let later = now.saturating_add(RETRY_NS);
        match self.shared.try_lock() {
            Some(global) if global.fingerprint == self.fingerprint => {
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
