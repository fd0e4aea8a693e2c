//! A scheduler before a link, on a virtual clock, with sources that keep it busy.

#![allow(dead_code, reason = "each test binary uses its part")]

use std::collections::HashMap;
use std::sync::atomic::AtomicUsize;
use std::sync::atomic::Ordering::Relaxed;

use tidegate::base::units::BitRate;
use tidegate::base::{Nanos, Seed};
use tidegate::packet::{ClassId, DropReason, Frame, FramePool, PortId};
use tidegate::qos::spec::{ClassSpec, PortQosSpec, QueueSpec};
use tidegate::qos::{Queued, Scheduler, Successor};

/// Nanoseconds longer than any run: sources that keep a class busy are not to be told.
const NEVER: u64 = 1 << 40;

/// What `work` finds of each, in their order; all cores have a part of it.
pub fn find_in_all<T: Sync, F: Send>(items: &[T], work: impl Fn(&T) -> Option<F> + Sync) -> Vec<F> {
    let next = AtomicUsize::new(0);
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let part = || {
        let mut found = Vec::new();
        while let Some((i, item)) = items.iter().enumerate().nth(next.fetch_add(1, Relaxed)) {
            found.extend(work(item).map(|f| (i, f)));
        }
        found
    };
    let mut found: Vec<(usize, F)> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..threads).map(|_| scope.spawn(part)).collect();
        let parts = threads.into_iter().map(|t| t.join());
        parts.flat_map(|p| p.unwrap_or_else(|panic| std::panic::resume_unwind(panic))).collect()
    });
    found.sort_by_key(|(i, _)| *i);
    found.into_iter().map(|(_, f)| f).collect()
}

/// Megabytes a second.
pub fn mb(n: f64) -> BitRate {
    BitRate((n * 8e6) as u64)
}

/// A class that may use all of its parent's ceil; see the methods to change that.
#[derive(Clone, Debug)]
pub struct Class(pub ClassSpec);

pub fn class(id: u16, rate_mb: f64) -> Class {
    Class(ClassSpec {
        id: ClassId(id),
        name: format!("c{id}"),
        parent: None,
        rate: mb(rate_mb),
        ceil: BitRate(0),
        burst: 20_000,
        cburst: 20_000,
        priority: 1,
        weight: 1,
        quantum: None,
        overhead: None,
        mpu: None,
        limit: 1 << 20,
        queue: QueueSpec::FqCodel { target: NEVER, interval: NEVER },
        flow_rate: None,
    })
}

impl Class {
    pub fn below(mut self, parent: u16) -> Class {
        self.0.parent = Some(ClassId(parent));
        self
    }
    pub fn ceil(mut self, ceil_mb: f64) -> Class {
        self.0.ceil = mb(ceil_mb);
        self
    }
    pub fn priority(mut self, priority: u8) -> Class {
        self.0.priority = priority;
        self
    }
    pub fn weight(mut self, weight: u32) -> Class {
        self.0.weight = weight;
        self
    }
    pub fn bursts(mut self, bytes: u32) -> Class {
        (self.0.burst, self.0.cburst) = (bytes, bytes);
        self
    }
    pub fn queue(mut self, queue: QueueSpec) -> Class {
        self.0.queue = queue;
        self
    }
    pub fn flow_rate(mut self, rate_mb: f64) -> Class {
        self.0.flow_rate = Some(mb(rate_mb));
        self
    }
    pub fn limit(mut self, bytes: u32) -> Class {
        self.0.limit = bytes;
        self
    }
}

/// A port of `rate_mb` with these classes; the first leaf is the default. Lengths count as they
/// are.
pub fn port(rate_mb: f64, classes: &[Class]) -> PortQosSpec {
    let mut classes: Vec<ClassSpec> = classes.iter().map(|c| c.0.clone()).collect();
    for i in 0..classes.len() {
        if classes[i].ceil == BitRate(0) {
            let above = classes[i].parent.and_then(|p| classes.iter().find(|c| c.id == p));
            classes[i].ceil = above.map_or(mb(rate_mb), |c| c.ceil);
        }
    }
    let is_leaf = |c: &&ClassSpec| classes.iter().all(|other| other.parent != Some(c.id));
    PortQosSpec {
        port: PortId(0),
        rate: mb(rate_mb),
        burst: 40_000,
        overhead: 0,
        mpu: 0,
        mtu: 1_500,
        default_class: classes.iter().find(is_leaf).map_or(ClassId::UNSET, |c| c.id),
        classes,
    }
}

/// Classes 2 and 3, of 5 MB/s each, the first of this priority, below 1 with 40; and 5, of 1 MB/s,
/// below 4 with 60.
pub fn two_tenants(priority: u8) -> PortQosSpec {
    let leaves = [class(2, 5.0).below(1).priority(priority), class(3, 5.0).below(1)];
    let [first, second] = leaves;
    port(100.0, &[class(1, 40.0), first, second, class(4, 60.0), class(5, 1.0).below(4)])
}

/// Holds what each class of [`two_tenants`] told as sent and borrowed over some time, in the order
/// of their ids, against what it should have been in MB/s: of each the two.
pub fn assert_borrowed(told: &[[u64; 2]], ns: u64, want: [[f64; 2]; 5]) {
    for (class, (told, want)) in (1..).zip(told.iter().zip(want)) {
        let got = told.map(|bytes| bytes as f64 * 1e3 / ns as f64);
        let is_right = (0..2).all(|i| (got[i] - want[i]).abs() <= 0.01 * want[0]);
        assert!(is_right, "class {class}: {got:?}, not {want:?} MB/s");
    }
}

/// A source that always has packets waiting in its class.
#[derive(Clone, Debug)]
pub struct Source {
    pub class: ClassId,
    pub flows: u32,
    /// Lengths of its packets, in turn.
    pub lengths: Vec<u16>,
}

pub fn greedy(class: u16) -> Source {
    Source { class: ClassId(class), flows: 3, lengths: vec![1_500] }
}

/// Where packets that understand marks have their IP header, behind the tag.
const IP_AT: usize = 14;

/// Packets of each source that wait at any time.
const WAITING: u64 = 24;

/// A packet as it left: when it was complete on the wire, and the tag it carried.
#[derive(Clone, Copy, Debug)]
pub struct Sent {
    pub at: Nanos,
    pub class: ClassId,
    pub flow: u32,
    pub seq: u64,
    pub len: u32,
}

pub struct Link {
    pub scheduler: Scheduler,
    spec: PortQosSpec,
    packets_max: u32,
    pub pool: FramePool,
    pub now: Nanos,
    /// Nanoseconds a byte, times 2^16.
    ns_per_byte: u64,
    seqs: HashMap<(ClassId, u32), u64>,
    pub offered: u64,
    pub dropped: Vec<(ClassId, u32)>,
    /// Sent with a mark of congestion.
    pub marked: u32,
}

impl Link {
    /// Changes to another tree, as a reload does.
    #[allow(dead_code, reason = "not every test reloads")]
    pub fn reconfigure(&mut self, spec: &PortQosSpec) {
        let both = (&self.spec, spec);
        let mut next = Successor::new(self.now, both, self.packets_max, Seed(1));
        self.scheduler.succeed(self.now, &mut next);
        self.spec = spec.clone();
    }

    /// A link of `rate_mb` after a scheduler of `spec`.
    pub fn new(spec: &PortQosSpec, rate_mb: f64, packets_max: u32) -> Link {
        Link {
            scheduler: Scheduler::new(spec, packets_max, Seed(1)),
            spec: spec.clone(),
            packets_max,
            pool: FramePool::standalone(packets_max + 64, 16_384),
            now: Nanos::from_secs(1),
            ns_per_byte: (1e3 * 65_536.0 / rate_mb) as u64,
            seqs: HashMap::new(),
            offered: 0,
            dropped: Vec::new(),
            marked: 0,
        }
    }

    pub fn offer(&mut self, class: ClassId, flow: u32, len: usize) {
        self.offer_ip(class, flow, len, false);
    }

    /// As [`Link::offer`]; the packet's flow understands marks, or not.
    pub fn offer_ip(&mut self, class: ClassId, flow: u32, len: usize, ecn: bool) {
        let seq = self.seqs.entry((class, flow)).or_default();
        let mut frame = tagged(&mut self.pool, class, flow, *seq, len);
        if ecn {
            let ip = &mut frame.bytes_mut(self.pool.arena())[IP_AT..];
            (ip[0], ip[1]) = (0x45, 0b10);
        }
        *seq += 1;
        self.offered += 1;
        let mut dropped = Vec::new();
        let q =
            Queued { frame, class, flow_hash: flow.wrapping_mul(0x9e37_79b9), l3: IP_AT as u16 };
        let arena = self.pool.arena().clone();
        self.scheduler.enqueue(self.now, q, &arena, &mut dropped);
        for (frame, reason) in dropped {
            assert_eq!(reason, DropReason::QueueFull);
            let (class, flow, ..) = tag(&frame, &self.pool);
            self.dropped.push((class, flow));
            self.pool.put(frame);
        }
    }

    /// As [`Scheduler::dequeue`], now; what the queue management drops is put away.
    pub fn dequeue(&mut self, packets_max: usize, bytes_max: u64, out: &mut Vec<Frame>) -> usize {
        let arena = self.pool.arena().clone();
        let mut dropped = Vec::new();
        let sent =
            self.scheduler.dequeue(self.now, packets_max, bytes_max, &arena, out, &mut dropped);
        for (frame, reason) in dropped {
            assert_eq!(reason, DropReason::AqmDrop);
            let (class, flow, ..) = tag(&frame, &self.pool);
            self.dropped.push((class, flow));
            self.pool.put(frame);
        }
        sent
    }

    /// Sends until `until`, sources topped up after each packet.
    pub fn run(&mut self, sources: &[Source], until: Nanos, mut sent: impl FnMut(Sent)) {
        let mut turn = vec![0usize; sources.len()];
        let mut waiting = vec![0u64; sources.len()];
        for (i, source) in sources.iter().enumerate() {
            waiting[i] = self.scheduler.class_stats(source.class).backlog_packets;
        }
        let mut out = Vec::with_capacity(1);
        while self.now < until {
            for (i, source) in sources.iter().enumerate() {
                while waiting[i] < WAITING {
                    let len = source.lengths[turn[i] % source.lengths.len()];
                    let flow = turn[i] as u32 % source.flows;
                    self.offer(source.class, flow, usize::from(len));
                    turn[i] += 1;
                    waiting[i] += 1;
                }
            }
            if self.dequeue(1, u64::MAX, &mut out) == 0 {
                let next = self.scheduler.next_event(self.now).unwrap_or(until);
                assert!(next > self.now || out.is_empty());
                // One step at least: an event may turn out to be nothing.
                self.now = next.max(self.now.saturating_add(1)).min(until);
                continue;
            }
            for frame in out.drain(..) {
                let (class, flow, seq, len) = tag(&frame, &self.pool);
                self.now = self.now.saturating_add((u64::from(len) * self.ns_per_byte) >> 16);
                let ip = frame.bytes(self.pool.arena()).get(IP_AT..IP_AT + 2);
                self.marked += u32::from(ip == Some(&[0x45, 0b11]));
                if let Some(i) = sources.iter().position(|s| s.class == class) {
                    waiting[i] = waiting[i].saturating_sub(1);
                }
                sent(Sent { at: self.now, class, flow, seq, len });
                self.pool.put(frame);
            }
        }
    }

    /// Empties the scheduler and checks that no frame is missing.
    pub fn finish(mut self) {
        let mut out = Vec::new();
        self.scheduler.drain(&mut out);
        assert_eq!((self.scheduler.len(), self.scheduler.backlog_bytes()), (0, 0));
        out.into_iter().for_each(|frame| self.pool.put(frame));
        assert_eq!(self.pool.outstanding(), 0, "frames leaked");
    }
}

pub fn tagged(pool: &mut FramePool, class: ClassId, flow: u32, seq: u64, len: usize) -> Frame {
    assert!(len >= 16);
    let arena = pool.arena().clone();
    let mut frame = pool.take().expect("frames enough");
    let offset = frame.offset();
    assert!(frame.set_extent(&arena, offset, len));
    let bytes = frame.bytes_mut(&arena);
    bytes[..2].copy_from_slice(&class.0.to_be_bytes());
    bytes[2..6].copy_from_slice(&flow.to_be_bytes());
    bytes[6..14].copy_from_slice(&seq.to_be_bytes());
    frame
}

pub fn tag(frame: &Frame, pool: &FramePool) -> (ClassId, u32, u64, u32) {
    let bytes = frame.bytes(pool.arena());
    let class = u16::from_be_bytes(bytes[..2].try_into().expect("2 bytes"));
    let flow = u32::from_be_bytes(bytes[2..6].try_into().expect("4 bytes"));
    let seq = u64::from_be_bytes(bytes[6..14].try_into().expect("8 bytes"));
    (ClassId(class), flow, seq, bytes.len() as u32)
}
