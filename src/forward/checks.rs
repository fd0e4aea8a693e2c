//! Packets of health checks, which take the way of a client's: what they carry beside their bytes,
//! how they get to workers and back, and which ports are theirs.
//!
//! Workers keep no state of checks. A packet that goes out names its backend; one that comes in is
//! known by the port that it is for, and by who is asked from there.

use std::ops::RangeInclusive;
use std::sync::atomic::{AtomicU64, Ordering};

use crossbeam::queue::ArrayQueue;

use super::spec::{ForwardMode, NAT_CHECK_PORTS_MAX};
use crate::base::hash::hash_endpoint;
use crate::base::{Addr, Seed};
use crate::packet::{DropReason, FlowKey};

/// Ports of the box's own addresses that checks ask from, toward backends that answer to a client's
/// address: above those that Linux gives to sockets by itself (`ip_local_port_range`).
pub const OWN_PORTS: RangeInclusive<u16> = 64_000..=64_511;
/// Bytes of a packet at most. The links of checks have an MTU of 1280, the least of IPv6; tunnels
/// add to that, and what comes back is no longer either.
pub const PACKET_BYTES_MAX: usize = 1_280;
/// Packets under way at most, over all workers.
pub const PACKETS_MAX: usize = 512;
/// So many of these are for packets that go out: what comes in is not ours to limit.
const OUTGOING_MIN: usize = PACKETS_MAX / 2;
/// Ports of one kind, which are in a row.
const PORTS_MAX: usize = 512;

const _: () = assert!(NAT_CHECK_PORTS_MAX as usize <= PORTS_MAX);
const _: () = assert!(((*OWN_PORTS.end() - *OWN_PORTS.start()) as usize) < PORTS_MAX);

/// Whose ports a check asks from. The ranges may meet: the addresses are different ones.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum PortsOf {
    /// The box's own addresses: [`OWN_PORTS`].
    Own,
    /// Those of `[nat]`.
    Nat,
}

/// Where a check's packets go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CheckWay {
    pub mode: ForwardMode,
    pub backend: Addr,
}

impl CheckWay {
    /// Whose ports it is asked from.
    pub fn ports(&self) -> PortsOf {
        match self.mode {
            ForwardMode::Nat => PortsOf::Nat,
            _ => PortsOf::Own,
        }
    }
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
    /// By [`PortsOf`] and port: a digest of who is asked from there; 0 for nobody.
    asked: [Box<[AtomicU64]>; 2],
    wake: Box<dyn Fn() + Send + Sync>,
}

impl CheckRing {
    /// `wake` is called by workers, once something is there to take.
    pub fn new(wake: impl Fn() + Send + Sync + 'static) -> CheckRing {
        let (blank, back) = (ArrayQueue::new(PACKETS_MAX), ArrayQueue::new(PACKETS_MAX));
        for _ in 0..PACKETS_MAX {
            let _ = blank.push(Box::new(CheckPacket::blank()));
        }
        let nobody = || (0..PORTS_MAX).map(|_| AtomicU64::new(0)).collect();
        CheckRing { blank, back, asked: [nobody(), nobody()], wake: Box::new(wake) }
    }

    /// From now on answers of this end come to a port, and of no other.
    pub fn ask(&self, of: PortsOf, port: u16, end: (Addr, u16)) {
        self.place(of, port).store(digest(end), Ordering::Relaxed);
    }

    /// Whether an end is asked from a port, as far as a digest tells.
    pub fn asks(&self, of: PortsOf, port: u16, end: (Addr, u16)) -> bool {
        self.place(of, port).load(Ordering::Relaxed) == digest(end)
    }

    fn place(&self, of: PortsOf, port: u16) -> &AtomicU64 {
        &self.asked[of as usize][usize::from(port) % PORTS_MAX]
    }

    /// A packet to be filled.
    pub fn blank(&self) -> Option<Box<CheckPacket>> {
        self.blank.pop()
    }

    /// The same for one that came: as long as there are enough for those that go out.
    pub fn blank_for_answer(&self) -> Option<Box<CheckPacket>> {
        if self.blank.len() > OUTGOING_MIN { self.blank.pop() } else { None }
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

fn digest((addr, port): (Addr, u16)) -> u64 {
    hash_endpoint(Seed(0), addr, port) | 1
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

    #[test]
    fn answers_leave_room_for_what_goes_out() {
        let ring = CheckRing::new(|| {});
        let answers: Vec<_> = std::iter::from_fn(|| ring.blank_for_answer()).collect();
        assert_eq!(answers.len(), PACKETS_MAX - OUTGOING_MIN);
        assert_eq!(std::iter::from_fn(|| ring.blank()).count(), OUTGOING_MIN);
    }

    #[test]
    fn only_who_is_asked_answers() {
        let ring = CheckRing::new(|| {});
        let end = |addr: &str, port| (addr.parse::<Addr>().expect("literal"), port);
        let (one, other) = (end("203.0.113.1", 443), end("203.0.113.1", 80));
        assert!(!ring.asks(PortsOf::Own, 64_007, one), "nobody yet");
        ring.ask(PortsOf::Own, 64_007, one);
        ring.ask(PortsOf::Nat, 64_007, other);
        let asked = |of, port| [one, other].map(|end| ring.asks(of, port, end));
        assert_eq!(asked(PortsOf::Own, 64_007), [true, false]);
        assert_eq!(asked(PortsOf::Nat, 64_007), [false, true]);
        assert_eq!(asked(PortsOf::Own, 64_008), [false, false]);
        ring.ask(PortsOf::Own, 64_007, other);
        assert_eq!(asked(PortsOf::Own, 64_007), [false, true]);
    }
}
