//! One flow: its two keys, where its packets go, and what was seen of it.

use super::TcpState;
use super::wheel::NANOS_PER_TICK;
use crate::base::Nanos;
use crate::packet::{ClassId, FlowKey, PortId};

/// No service, no backend, no inspection.
pub const NONE_U16: u16 = u16::MAX;
/// No name.
pub const NONE_U32: u32 = u32::MAX;

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
}

/// A resolved next hop.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Hop {
    pub mac: [u8; 6],
    pub port: PortId,
}

/// A flow as the table keeps it.
///
/// `key[0]` is what the client sends, `key[1]` what the server side sends, both as received:
/// rewriting a packet of one direction is writing the other key, reversed.
#[derive(Clone, Debug)]
#[repr(C, align(32))]
pub struct Flow {
    pub key: [FlowKey; 2],
    /// Next hop of each direction, valid while the generation is that of the routes; 0 never is.
    pub hop: [Hop; 2],
    pub hop_generation: [u32; 2],
    /// Bytes received in each direction, Ethernet headers included.
    pub bytes: [u64; 2],
    /// Packets received in each direction; stays at the maximum.
    pub packets: [u32; 2],
    /// When a packet was last seen, in the table's ticks.
    pub(super) last_seen: u32,
    /// Idle time allowed once established, in ticks.
    pub(super) idle: u32,
    /// The server name's number in [`super::Names`]; [`NONE_U32`] without one.
    pub name: u32,
    /// The service's index; [`NONE_U16`] for transit.
    pub service: u16,
    /// The backend's index; [`NONE_U16`] for transit.
    pub backend: u16,
    /// The inspector's slot while the flow is inspected; [`NONE_U16`] otherwise.
    pub inspection: u16,
    /// QoS class of each direction.
    pub class: [ClassId; 2],
    pub kind: FlowKind,
    pub tcp: TcpState,
}

// With 8 bytes of timer links and its share of the index a flow costs less than 192 bytes. Aligned
// to 32, it always lies in exactly three cache lines.
const _: () = assert!(size_of::<Flow>() == 160);

impl Flow {
    /// Whether packets of both directions are looked up.
    pub fn has_reply_key(&self) -> bool {
        self.kind != FlowKind::Dsr
    }

    /// When its last packet was received, to a sixteenth of a second.
    pub fn last_seen(&self) -> Nanos {
        Nanos(u64::from(self.last_seen) * NANOS_PER_TICK)
    }

    /// A slot that holds no flow.
    pub(super) fn vacant() -> Flow {
        Flow {
            key: [FlowKey::default(); 2],
            hop: [Hop::default(); 2],
            hop_generation: [0; 2],
            bytes: [0; 2],
            packets: [0; 2],
            last_seen: 0,
            idle: 0,
            name: NONE_U32,
            service: NONE_U16,
            backend: NONE_U16,
            inspection: NONE_U16,
            class: [ClassId::UNSET; 2],
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
    /// As the server side answers; `None` for [`FlowKind::Dsr`], whose answers take another way.
    pub reply: Option<FlowKey>,
    pub kind: FlowKind,
    pub service: u16,
    pub backend: u16,
    /// Class of both directions.
    pub class: ClassId,
    /// Idle time once established, milliseconds; `None`: the table's own for the protocol.
    pub idle_established_ms: Option<u32>,
}
