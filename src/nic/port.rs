//! What every port can do.

use std::os::fd::RawFd;

use crate::base::Nanos;
use crate::packet::{Frame, FramePool};

/// Counted by a port since it was opened.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PortStats {
    pub rx_packets: u64,
    pub rx_bytes: u64,
    pub tx_packets: u64,
    pub tx_bytes: u64,
    /// Packets lost before they reached us for want of a descriptor or a frame.
    pub rx_missed: u64,
    /// Descriptors that the kernel refused.
    pub tx_errors: u64,
    /// System calls made to wake the kernel.
    pub wakeups: u64,
}

/// One queue pair of one interface, driven by one worker.
///
/// Chosen at compile time (`Worker<P: Port>`): nothing on the packet path goes through a vtable.
pub trait Port {
    /// Appends received frames to `out`, `max` at most, and returns how many. Takes frames for the
    /// receive ring from `pool` as needed.
    fn rx_burst(
        &mut self,
        now: Nanos,
        pool: &mut FramePool,
        out: &mut Vec<Frame>,
        max: usize,
    ) -> usize;

    /// Transmits from the front of `frames`, in order, and returns how many were taken; the rest
    /// stay. Frames that were sent come back to `pool` with this or a later call.
    fn tx_burst(&mut self, now: Nanos, pool: &mut FramePool, frames: &mut Vec<Frame>) -> usize;

    /// How many frames [`Port::tx_burst`] would take now.
    fn tx_room(&self) -> usize;

    /// Collects frames that were sent, and wakes the kernel where it waits for us. Called once a
    /// loop, with or without traffic.
    fn poll(&mut self, now: Nanos, pool: &mut FramePool);

    /// Frames that are lent for receiving while nothing arrives.
    fn rx_frames(&self) -> usize {
        0
    }

    /// Whether the device has seen all that was transmitted.
    fn is_flushed(&self) -> bool {
        true
    }

    /// What was received up to now is sent or gone, by whatever port: who waits for that is told.
    fn settle(&mut self) {}

    /// Bytes handed to the device and not yet reported sent.
    fn tx_in_flight_bytes(&self) -> u64;

    fn stats(&self) -> PortStats;

    /// Descriptors to wait on for received packets, where there are any.
    fn fds(&self) -> impl Iterator<Item = RawFd> + '_ {
        std::iter::empty()
    }

    /// Before a sleep (`true`) and after it: until then [`Port::fds`] tell of whatever arrives. Of
    /// what came before, [`Port::has_arrivals`] tells behind a full barrier.
    fn doze(&self, _asleep: bool) {}

    /// Whether something has arrived that no descriptor tells of.
    fn has_arrivals(&self) -> bool {
        false
    }

    /// Has nothing delivered to any of these ports any more. Closing one does that, too, but each
    /// waits for the kernel then; here all do together.
    fn detach_all(_ports: &mut [&mut Self])
    where
        Self: Sized,
    {
    }

    /// Gives every frame that the port still holds back to `pool`. The port is not used afterwards.
    fn close(&mut self, pool: &mut FramePool);
}
