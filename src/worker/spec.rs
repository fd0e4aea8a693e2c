//! How workers run, as configured.

use std::time::Duration;

use super::handover::RING_BYTES;
use crate::flow::table::FLOW_BYTES_MAX;

/// What a worker does when there is nothing to do.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum IdleStrategy {
    /// Spins a little, then sleeps in `poll` for a bounded time: fit for shared machines.
    #[default]
    Adaptive,
    /// Never sleeps: for dedicated cores.
    Busy,
}

/// What the XDP program does with our traffic while the worker's heartbeat is stale.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum OnFailure {
    /// Hands it to the kernel.
    #[default]
    Pass,
    Drop,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WorkersSpec {
    /// Threads that run the workers; while they run, 1 to `count_max`.
    pub count: u16,
    /// Workers: tables, frames and sockets, each run by one of the threads.
    pub count_max: u16,
    /// Core of each thread; empty: not pinned.
    pub cores: Vec<usize>,
    pub idle: IdleStrategy,
    pub on_failure: OnFailure,
    /// A heartbeat older than this is stale.
    pub heartbeat_limit: Duration,
    /// The XDP program forwards flows of which there is nothing more to decide.
    pub offload: bool,
    /// Frames of one worker; one UMEM holds all.
    pub frames: u32,
    /// Bytes of one frame: 2048 or 4096.
    pub frame_size: u32,
    pub huge_pages: bool,
    /// Flows of one worker.
    pub flows_max: u32,
    /// Half-open TCP connections of one worker.
    pub half_open_max: u32,
    /// How long a stop waits for queues to empty.
    pub drain_limit: Duration,
}

impl WorkersSpec {
    /// Memory that each worker takes, run or not: its flows, its frames, and what others give it.
    pub fn bytes_of_one(&self) -> u64 {
        let flows = u64::from(self.flows_max) * FLOW_BYTES_MAX as u64;
        let rings = u64::from(self.count_max.saturating_sub(1)) * RING_BYTES;
        flows + u64::from(self.frames) * u64::from(self.frame_size) + rings
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::worker::handover::RING_PACKETS;

    #[test]
    fn the_memory_of_one_is_that_of_flows_frames_and_rings_from_all_others() {
        let of = |count_max| {
            let spec = WorkersSpec {
                count: 1,
                count_max,
                cores: Vec::new(),
                idle: IdleStrategy::Adaptive,
                on_failure: OnFailure::Pass,
                heartbeat_limit: Duration::from_millis(100),
                offload: false,
                frames: 1_024,
                frame_size: 2_048,
                huge_pages: false,
                flows_max: 1_000,
                half_open_max: 64,
                drain_limit: Duration::ZERO,
            };
            spec.bytes_of_one()
        };
        assert_eq!(of(1), 1_000 * FLOW_BYTES_MAX as u64 + (2 << 20));
        assert_eq!((of(64) - of(1), of(2) - of(1)), (63 * RING_BYTES, RING_BYTES));
        let (packet, frame) = (size_of::<crate::packet::Packet>(), size_of::<u32>());
        assert!(RING_BYTES > (RING_PACKETS * (packet + frame)) as u64);
    }
}
