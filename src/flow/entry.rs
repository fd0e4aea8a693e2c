//! One flow: its two keys, where its packets go, and what was seen of it.

use super::TcpState;
use super::table::tick;
use super::wheel::NANOS_PER_TICK;
use crate::base::Nanos;
use crate::packet::checksum::{Delta, FoldedDelta};
use crate::packet::{ClassId, Direction, FlowKey, PortId};

/// No service, no backend, no inspection.
pub const NONE_U16: u16 = u16::MAX;
/// No name, no note.
pub const NONE_U32: u32 = u32::MAX;
/// No port has this number.
const NO_HOP: PortId = PortId(u16::MAX);
const UNKNOWN_HOP: Hop = Hop { mac: [0; 6], port: NO_HOP };

/// How a flow's packets are forwarded.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(u8)]
pub enum FlowKind {
    /// Routed; nothing of it is translated.
    #[default]
    Transit,
    /// Source and destination are translated.
    Nat,
    /// The destination is translated.
    Dnat,
    /// Only MAC addresses change, and answers don't come back this way.
    Dsr,
    /// Packets travel within IP packets, and answers don't come back this way.
    Ipip,
    /// The same within UDP.
    Gue,
    /// Two connections made one: source, destination and what the server counts are translated.
    Spliced,
}

impl FlowKind {
    /// Answers take another way: only what the client sends is seen.
    pub fn is_one_way(self) -> bool {
        matches!(self, FlowKind::Dsr | FlowKind::Ipip | FlowKind::Gue)
    }
}

/// A resolved next hop.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Hop {
    pub mac: [u8; 6],
    pub port: PortId,
}

/// What a translation changes of the checksums: of the IPv4 header, where the TTL's decrement is
/// not counted in, and of the transport header.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct SumChange {
    pub ip: FoldedDelta,
    pub transport: FoldedDelta,
}

/// A flow as the table keeps it.
///
/// `key[0]` is what the client sends, `key[1]` what the server side sends, both as received:
/// rewriting a packet of one direction is writing the other key, reversed.
#[derive(Clone, Debug)]
#[repr(C, align(32))]
pub struct Flow {
    pub key: [FlowKey; 2],
    /// Next hop of each direction, by port [`NO_HOP`] none; valid while the generation is that of
    /// the routes.
    pub(super) hop: [Hop; 2],
    pub(super) hop_generation: u32,
    /// Where more is kept of what was seen: [`super::Notes`]. [`NONE_U32`] without.
    pub note: u32,
    /// What becomes of the checksums of each direction's packets: follows from the keys.
    pub(super) change: [SumChange; 2],
    /// The server name's number in [`super::Names`]; [`NONE_U32`] without one.
    pub name: u32,
    /// Idle time allowed once established, in ticks.
    pub(super) idle: u32,
    /// The service's index; [`NONE_U16`] for transit.
    pub service: u16,
    /// The backend's place in [`super::Serving`]; [`NONE_U16`] for transit.
    pub backend: u16,
    /// QoS class of both directions.
    pub class: ClassId,
    /// What is done with its packets besides: a number of [`super::Treatments`]; 0 for nothing.
    pub treatment: u8,
    /// What changes once the flow has more bytes: a number of [`super::Steps`]; 0 for nothing.
    /// It is held, so [`super::FlowTable::set_steps`] changes it.
    pub steps: u8,
    /// Bytes received in each direction, Ethernet headers included. From here on stands what every
    /// packet changes: 32 bytes at a multiple of 32, so that one cache line is written, not two.
    pub bytes: [u64; 2],
    /// Packets received in each direction; stays at the maximum.
    pub packets: [u32; 2],
    /// When a packet was last seen, in the table's ticks.
    pub(super) last_seen: u32,
    /// The inspector's slot while the flow is inspected; [`NONE_U16`] otherwise.
    pub inspection: u16,
    pub kind: FlowKind,
    pub tcp: TcpState,
}

// With 8 bytes of timer links and its share of the index a flow costs less than 192 bytes. Aligned
// to 32, it always lies in exactly three cache lines.
const _: () = assert!(size_of::<Flow>() == 160);
const _: () = assert!(std::mem::offset_of!(Flow, bytes) == 128);

impl Flow {
    /// Whether packets of both directions are looked up.
    pub fn has_reply_key(&self) -> bool {
        !self.kind.is_one_way()
    }

    /// When its last packet was received, to a sixteenth of a second.
    pub fn last_seen(&self) -> Nanos {
        Nanos(u64::from(self.last_seen) * NANOS_PER_TICK)
    }

    /// Notes packets that went another way and changed nothing of its state.
    pub fn add(&mut self, now: Nanos, way: Direction, packets: u64, bytes: u64) {
        let n = &mut self.packets[way as usize];
        *n = n.saturating_add(u32::try_from(packets).unwrap_or(u32::MAX));
        self.bytes[way as usize] += bytes;
        self.last_seen = tick(now);
    }

    /// How long it may be idle once established.
    pub fn idle(&self) -> Nanos {
        Nanos(u64::from(self.idle) * NANOS_PER_TICK)
    }

    /// The next hop of one direction, if it is known since the routes had this generation.
    #[inline(always)]
    pub fn hop(&self, direction: Direction, generation: u32) -> Option<Hop> {
        let hop = self.hop[direction as usize];
        (self.hop_generation == generation && hop.port != NO_HOP).then_some(hop)
    }

    /// Keeps the next hop of one direction until the routes get another generation.
    pub fn set_hop(&mut self, direction: Direction, hop: Hop, generation: u32) {
        if self.hop_generation != generation {
            (self.hop, self.hop_generation) = ([UNKNOWN_HOP; 2], generation);
        }
        self.hop[direction as usize] = hop;
    }

    pub(super) fn forget_hops(&mut self) {
        self.hop = [UNKNOWN_HOP; 2];
    }

    /// What rewriting a packet of one direction changes of its checksums.
    #[inline(always)]
    pub fn sum_change(&self, direction: Direction) -> SumChange {
        self.change[direction as usize]
    }

    /// A slot that holds no flow.
    pub(super) fn vacant() -> Flow {
        Flow {
            key: [FlowKey::default(); 2],
            hop: [UNKNOWN_HOP; 2],
            hop_generation: 0,
            note: NONE_U32,
            change: [SumChange::default(); 2],
            bytes: [0; 2],
            packets: [0; 2],
            last_seen: 0,
            idle: 0,
            name: NONE_U32,
            service: NONE_U16,
            backend: NONE_U16,
            inspection: NONE_U16,
            class: ClassId::UNSET,
            treatment: 0,
            steps: 0,
            kind: FlowKind::Transit,
            tcp: TcpState::Vacant,
        }
    }
}

/// What a flow begins with.
#[derive(Clone, Debug)]
pub struct NewFlow {
    /// As the client sends.
    pub key: FlowKey,
    /// As the server side answers; `None` for kinds whose answers take another way.
    pub reply: Option<FlowKey>,
    pub kind: FlowKind,
    pub service: u16,
    pub backend: u16,
    /// Class of both directions.
    pub class: ClassId,
    /// Idle time once established, milliseconds; `None`: the table's own for the protocol.
    pub idle_established_ms: Option<u32>,
}

/// What each direction's packets change by, from what the client sends and what it is answered.
pub(super) fn changes(client: &FlowKey, server: &FlowKey) -> [SumChange; 2] {
    [(client, server), (server, client)].map(|(sent, other)| SumChange::between(sent, other))
}

impl SumChange {
    /// Of packets with key `sent` that leave as what `other` answers to. Nothing, where the
    /// families differ: such packets can't be translated.
    pub fn between(sent: &FlowKey, other: &FlowKey) -> SumChange {
        if sent.src.is_v4() != other.dst.is_v4() || sent.dst.is_v4() != other.src.is_v4() {
            return SumChange::default();
        }
        let addresses = Delta::default().addr(sent.src, other.dst).addr(sent.dst, other.src);
        let transport = addresses.u16(sent.sport, other.dport).u16(sent.dport, other.sport);
        SumChange { ip: addresses.folded(), transport: transport.folded() }
    }
}
