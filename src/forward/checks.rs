//! Packets of health checks, which take the way of a client's: what they carry beside their bytes,
//! how they get to workers and back, and which ports are theirs.
//!
//! Workers keep no state of checks. A packet that goes out names its backend; one that comes in is
//! known by the port that it is for.

use std::ops::RangeInclusive;

use crossbeam::queue::ArrayQueue;

use super::spec::ForwardMode;
use crate::base::Addr;
use crate::packet::{DropReason, FlowKey};

/// Ports of the box's own addresses that checks ask from, toward backends that answer to a client's
/// address: above those that Linux gives to sockets by itself (`ip_local_port_range`).
pub const OWN_PORTS: RangeInclusive<u16> = 64_000..=64_511;
/// Bytes of a packet at most. The links of checks have an MTU of 1280, the least of IPv6; tunnels
/// add to that, and what comes back is no longer either.
pub const PACKET_BYTES_MAX: usize = 1_280;
/// Packets under way at most, over all workers.
pub const PACKETS_MAX: usize = 512;

/// Where a check's packets go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CheckWay {
    pub mode: ForwardMode,
    pub backend: Addr,
}

/// One packet.
pub struct CheckPacket {
    /// Of one that goes out.
    pub way: CheckWay,
    /// Of one that came: who sent it to whom, where its TCP header begins, and whether its checksum
    /// is a partial one.
    pub key: FlowKey,
    pub l4: usize,
    pub has_partial_checksum: bool,
    /// It was to go out, and could not.
    pub failed: Option<DropReason>,
    len: usize,
    bytes: Box<[u8; PACKET_BYTES_MAX]>,
}

/// All packets, and those that are on their way back from workers.
pub struct CheckRing {
    blank: ArrayQueue<Box<CheckPacket>>,
    back: ArrayQueue<Box<CheckPacket>>,
    wake: Box<dyn Fn() + Send + Sync>,
}

impl CheckRing {
    /// `wake` is called by workers, once something is there to take.
    pub fn new(wake: impl Fn() + Send + Sync + 'static) -> CheckRing {
        let (blank, back) = (ArrayQueue::new(PACKETS_MAX), ArrayQueue::new(PACKETS_MAX));
        for _ in 0..PACKETS_MAX {
            let _ = blank.push(Box::new(CheckPacket::blank()));
        }
        CheckRing { blank, back, wake: Box::new(wake) }
    }

    /// A packet to be filled.
    pub fn blank(&self) -> Option<Box<CheckPacket>> {
        self.blank.pop()
    }

    /// Takes back what is not needed any more.
    pub fn recycle(&self, packet: Box<CheckPacket>) {
        let _ = self.blank.push(packet);
    }

    /// Gives a packet that came, or that could not go.
    pub fn give(&self, packet: Box<CheckPacket>) {
        // There is room for all there are.
        let _ = self.back.push(packet);
        (self.wake)();
    }

    /// The next one that a worker gave.
    pub fn take(&self) -> Option<Box<CheckPacket>> {
        self.back.pop()
    }

    /// Whether a worker gave one.
    pub fn has_given(&self) -> bool {
        !self.back.is_empty()
    }
}

impl CheckPacket {
    fn blank() -> CheckPacket {
        CheckPacket {
            way: CheckWay { mode: ForwardMode::Nat, backend: Addr::UNSPECIFIED },
            key: FlowKey::default(),
            l4: 0,
            has_partial_checksum: false,
            failed: None,
            len: 0,
            bytes: Box::new([0; PACKET_BYTES_MAX]),
        }
    }

    /// The IP packet.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes[..self.len]
    }

    pub fn bytes_mut(&mut self) -> &mut [u8] {
        &mut self.bytes[..self.len]
    }

    /// Fills it. `false`, and nothing done, where that is too long.
    pub fn fill(&mut self, bytes: &[u8]) -> bool {
        let Some(room) = self.bytes.get_mut(..bytes.len()) else { return false };
        room.copy_from_slice(bytes);
        self.len = bytes.len();
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicU32, Ordering};

    #[test]
    fn packets_go_round_and_are_bounded() {
        let woken = Arc::new(AtomicU32::new(0));
        let counts = Arc::clone(&woken);
        let ring = CheckRing::new(move || _ = counts.fetch_add(1, Ordering::Relaxed));
        let mut all: Vec<_> = std::iter::from_fn(|| ring.blank()).collect();
        assert_eq!(all.len(), PACKETS_MAX);
        let mut one = all.pop().expect("packets");
        assert!(one.fill(&[7; PACKET_BYTES_MAX]) && !one.fill(&[8; PACKET_BYTES_MAX + 1]));
        assert_eq!(one.bytes(), [7; PACKET_BYTES_MAX]);
        ring.give(one);
        assert!(ring.has_given() && ring.blank().is_none());
        assert_eq!(woken.load(Ordering::Relaxed), 1);
        let back = ring.take().expect("it came back");
        assert!(!ring.has_given());
        ring.recycle(back);
        assert!(ring.blank().is_some());
    }
}
