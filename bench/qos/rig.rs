//! A scheduler between a source of random packets and a link.

use std::sync::Arc;

use tidegate::base::hash::Rng;
use tidegate::base::mem::Arena;
use tidegate::base::{Nanos, Seed};
use tidegate::packet::frame::HEADROOM;
use tidegate::packet::{ClassId, DropReason, Frame, FramePool};
use tidegate::qos::{Queued, Scheduler};

use crate::{BURST, BURST_NS, LEN, PACKETS_A_ROUND, backlog, cpu_ns};

/// Arrivals drawn before anything is measured; they come again and again.
const ARRIVALS: usize = 1 << 20;

pub struct Rig {
    scheduler: Scheduler,
    pool: FramePool,
    arena: Arc<Arena>,
    arrivals: Vec<(ClassId, u32)>,
    next: usize,
    now: Nanos,
    batch: Vec<Queued>,
    out: Vec<Frame>,
    dropped: Vec<(Frame, DropReason)>,
}

impl Rig {
    /// With a standing backlog. `make` gets the number of packets that the scheduler must hold.
    pub fn new(tenants: u16, leaves: u16, flows: u32, make: impl FnOnce(u32) -> Scheduler) -> Rig {
        let classes = u32::from(tenants) * u32::from(leaves);
        let backlog = backlog(classes, flows) as usize;
        let frames = (backlog + 4 * BURST) as u32;
        // The scheduler never looks into a frame: slots may be smaller than what they stand for.
        let (arena, slots) = Arena::map(frames, 64, false).expect("memory");
        let mut rng = Rng::new(Seed(2));
        let arrivals = (0..ARRIVALS)
            .map(|_| {
                let flow = rng.below(flows.max(classes));
                let (class, flow) = (flow % classes, flow / classes % flows.div_ceil(classes));
                let (tenant, leaf) = (class as u16 / leaves, class as u16 % leaves);
                (ClassId(tenant * (leaves + 1) + 1 + leaf), flow.wrapping_mul(0x9e37_79b9))
            })
            .collect();
        let mut rig = Rig {
            scheduler: make(frames),
            pool: FramePool::new(Arc::clone(&arena), slots),
            arena,
            arrivals,
            next: 0,
            now: Nanos(0),
            batch: Vec::with_capacity(BURST),
            out: Vec::with_capacity(BURST),
            dropped: Vec::with_capacity(BURST),
        };
        rig.offer(backlog);
        rig
    }

    /// Moves a round of packets. Returns the nanoseconds of this thread that each took.
    pub fn round(&mut self) -> f64 {
        let (mut moved, begin) = (0, cpu_ns());
        while moved < PACKETS_A_ROUND {
            self.now = self.now.saturating_add(BURST_NS);
            let Rig { scheduler, arena, out, dropped, .. } = self;
            let sent = scheduler.dequeue(self.now, BURST, u64::MAX, arena, out, dropped);
            let gone = sent + self.dropped.len();
            self.dropped.drain(..).for_each(|(frame, _)| self.pool.put(frame));
            self.out.drain(..).for_each(|frame| self.pool.put(frame));
            self.offer(gone);
            moved += gone;
        }
        (cpu_ns() - begin) / moved as f64
    }

    fn offer(&mut self, packets: usize) {
        for _ in 0..packets {
            let Some(slot) = self.pool.take_slot() else { break };
            let (class, flow_hash) = self.arrivals[self.next % ARRIVALS];
            self.next += 1;
            let frame = Frame::new(slot, HEADROOM, LEN);
            self.batch.push(Queued { frame, class, flow_hash, l3: 0 });
            if self.batch.len() == BURST {
                self.enqueue();
            }
        }
        self.enqueue();
    }

    fn enqueue(&mut self) {
        let Rig { scheduler, batch, arena, dropped, .. } = self;
        scheduler.enqueue_all(self.now, batch, arena, dropped);
    }

    pub fn finish(mut self) {
        self.scheduler.drain(&mut self.out);
        self.out.drain(..).for_each(|frame| self.pool.put(frame));
        self.dropped.drain(..).for_each(|(frame, _)| self.pool.put(frame));
    }
}
