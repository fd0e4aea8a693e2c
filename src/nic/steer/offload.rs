//! Flows that the XDP program forwards itself: what it is told of them, and what it counts.
//!
//! The structs and numbers are those of `src/nic/bpf/offload.h`.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use super::mapped::MappedArray;
use crate::base::Addr;
use crate::nic::spec::PORTS_MAX;
use crate::packet::{FlowKey, PortId};

/// Entries of one interface's map; twice the slots, since what is gone is deleted a little later.
pub const MAX_OFFLOADS: u32 = 65_536;
/// Directions of flows that are forwarded at once, of all workers.
pub const MAX_OFFLOAD_SLOTS: u32 = 32_768;
/// Ports that packets may leave by.
pub const MAX_PORTS: u32 = 64;
/// Packets of a flow that follow others to the worker at most, before the program goes ahead.
pub const MAX_WAITED: u32 = 1_024;

const _: () = assert!(MAX_OFFLOADS >= 2 * MAX_OFFLOAD_SLOTS);
const _: () = assert!(MAX_PORTS as usize >= PORTS_MAX);

/// `struct tg_offload_key`. Byte for byte, hence `pad`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(C)]
pub(super) struct OffloadKey {
    pub(super) src: Addr,
    pub(super) dst: Addr,
    pub(super) sport: u16,
    pub(super) dport: u16,
    pub(super) proto: u8,
    pub(super) pad: [u8; 3],
}

impl From<&FlowKey> for OffloadKey {
    fn from(k: &FlowKey) -> OffloadKey {
        let FlowKey { src, dst, sport, dport, proto } = *k;
        OffloadKey { src, dst, sport, dport, proto, pad: [0; 3] }
    }
}

/// `struct tg_offload`: what becomes of packets of one direction of a flow.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct OffloadEntry {
    /// As they leave; IPv4 in the last four bytes.
    pub src: [u8; 16],
    pub dst: [u8; 16],
    pub sport: [u8; 2],
    pub dport: [u8; 2],
    /// Added to the complement of the checksums, as these lie in memory; the hop is in that of
    /// IPv4.
    pub ip_change: u16,
    pub transport_change: u16,
    /// Destination and source as they leave.
    pub ethernet: [u8; 12],
    /// Ethernet destination as they come.
    pub own_mac: [u8; 6],
    /// Largest IP packet that may leave, bytes.
    pub mtu: u16,
    /// Index of the port that they leave by.
    pub port: u32,
    /// Whose heartbeat counts.
    pub worker: u32,
    pub slot: u32,
    pub stamp: u32,
    pub generation: u32,
    /// Of spliced connections: what is added to a segment's sequence number, to its acknowledgment
    /// and SACK blocks, to its timestamp and to its echo.
    pub sequence: u32,
    pub acknowledgment: u32,
    pub clock: u32,
    pub echo: u32,
    /// Echoes from before this one are the worker's, where [`Self::EARLY`] is set.
    pub first_echo: u32,
    /// Left shift of the window; negative: right.
    pub window: i8,
    /// [`Self::SPLICED`] and [`Self::EARLY`].
    pub splice: u8,
    pub pad: [u8; 2],
    /// 1: forwarded from the first packet on. 0: from the first that has none of its flow before
    /// it with the worker; the program sets it then.
    pub begun: u32,
    /// The program's.
    pub waited: u32,
    pub pad2: u32,
    pub mark: u64,
}

impl OffloadEntry {
    /// Of [`Self::splice`]: segments have numbers to be changed.
    pub const SPLICED: u8 = 1;
    /// Of [`Self::splice`]: echoes may be of a clock that was ours.
    pub const EARLY: u8 = 2;
}

// SAFETY: plain integers without implicit padding (`layouts_agree` compares size and offsets with
// the C side), and any bit pattern is a value.
unsafe impl aya::Pod for OffloadKey {}
// SAFETY: as above.
unsafe impl aya::Pod for OffloadEntry {}

/// `struct tg_offload_slot`.
#[repr(C)]
pub(super) struct OffloadSlot {
    pub(super) packets: AtomicU64,
    pub(super) bytes: AtomicU64,
    pub(super) stamp: AtomicU32,
    pad: [u32; 3],
}

/// `struct tg_queue`: a receive queue's packets, on their way to its worker and behind it.
#[repr(C)]
pub(super) struct OffloadQueue {
    pub(super) steered: AtomicU64,
    pad: [u64; 7],
    pub(super) passed: AtomicU64,
    pad2: [u64; 7],
}

/// What a worker asks for, done by control in this order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OffloadOrder {
    /// Packets with this key that come by `port` are the program's from now on.
    Forward { port: PortId, key: FlowKey, entry: OffloadEntry },
    /// They no longer are.
    Forget { port: PortId, key: FlowKey },
}

/// The queues of one interface's program.
pub(super) type QueuePage = MappedArray<OffloadQueue>;

/// The slots of one interface's program.
pub(super) type OffloadPage = MappedArray<OffloadSlot>;

/// Slots of all ports: what the programs count, and which flows still live.
#[derive(Clone)]
pub struct OffloadSlots {
    /// By port.
    pages: Vec<Option<Arc<OffloadPage>>>,
}

impl OffloadSlots {
    pub(super) fn new(pages: Vec<Option<Arc<OffloadPage>>>) -> OffloadSlots {
        OffloadSlots { pages }
    }

    /// Slots that no program looks at: for simulations.
    ///
    /// # Errors
    /// No memory.
    pub fn in_memory(ports: usize) -> io::Result<OffloadSlots> {
        let page =
            |_| MappedArray::anonymous(MAX_OFFLOAD_SLOTS as usize).map(|p| Some(Arc::new(p)));
        Ok(OffloadSlots { pages: (0..ports).map(page).collect::<io::Result<_>>()? })
    }

    /// From now on entries with this stamp are valid; 0 is none's.
    #[inline]
    pub fn set_stamp(&self, port: PortId, slot: u32, stamp: u32) {
        if let Some(slot) = self.slot(port, slot) {
            slot.stamp.store(stamp, Ordering::Release);
        }
    }

    /// Packets and bytes that the program has forwarded with this slot since the start.
    #[inline]
    pub fn counts(&self, port: PortId, slot: u32) -> (u64, u64) {
        self.slot(port, slot).map_or((0, 0), |s| {
            (s.packets.load(Ordering::Relaxed), s.bytes.load(Ordering::Relaxed))
        })
    }

    /// Counts as the program does.
    #[cfg(test)]
    pub fn count(&self, port: PortId, slot: u32, packets: u64, bytes: u64) {
        let slot = self.slot(port, slot).expect("a slot");
        slot.packets.fetch_add(packets, Ordering::Relaxed);
        slot.bytes.fetch_add(bytes, Ordering::Relaxed);
    }

    /// The stamp that the program goes by; 0 of a slot that is vacant, or none.
    pub fn stamp(&self, port: PortId, slot: u32) -> u32 {
        self.slot(port, slot).map_or(0, |s| s.stamp.load(Ordering::Acquire))
    }

    fn slot(&self, port: PortId, slot: u32) -> Option<&OffloadSlot> {
        Some(self.pages.get(usize::from(port.0))?.as_ref()?.at(slot as usize))
    }
}
