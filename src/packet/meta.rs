//! What is known of a packet once its headers were read, and what was decided about it.

use crate::base::hash::{hash5, pick};
use crate::base::{Addr, Seed};
use crate::packet::DropReason;

/// A port of the appliance: its index in the configuration's order.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PortId(pub u16);

/// Where copies of packets go.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum CopyTo {
    /// Out of a port, as they are.
    Port(PortId),
    /// To a host that collects them, in GRE.
    Host(Addr),
    /// Into files that the control plane writes.
    Files(FilesId),
}

/// Files of copies: a hash of their collector's name, which a reload leaves as it is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct FilesId(pub u64);

/// A QoS class: its index in the configuration's order, the same on every port and worker.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ClassId(pub u16);

impl ClassId {
    /// Not decided: the port's default class takes it.
    pub const UNSET: ClassId = ClassId(u16::MAX);
    /// A rule says that such packets are dropped.
    pub const REFUSED: ClassId = ClassId(u16::MAX - 1);
    /// A rule says that such packets are dropped, and that both ends of a connection are told.
    pub const RESET: ClassId = ClassId(u16::MAX - 2);

    /// Rules ask for what a request was too long to tell: as [`ClassId::RESET`].
    pub const TOO_LONG: ClassId = ClassId(u16::MAX - 3);

    /// Rules refuse flows by what clients say, and this one's can't be read: as
    /// [`ClassId::RESET`].
    pub const UNREAD: ClassId = ClassId(u16::MAX - 4);

    /// Its client is beyond its limit: as [`ClassId::REFUSED`].
    pub const OVER_LIMIT: ClassId = ClassId(u16::MAX - 5);
    /// The same, as [`ClassId::RESET`].
    pub const OVER_LIMIT_RESET: ClassId = ClassId(u16::MAX - 6);

    /// Whether such packets are dropped.
    #[inline]
    pub fn is_refused(self) -> bool {
        (ClassId::OVER_LIMIT_RESET.0..=ClassId::REFUSED.0).contains(&self.0)
    }

    /// Whether both ends of a connection are told that its packets are dropped.
    pub fn is_reset(self) -> bool {
        self.is_refused() && self != ClassId::REFUSED && self != ClassId::OVER_LIMIT
    }

    /// Why they are.
    pub fn refusal(self) -> DropReason {
        match self {
            ClassId::TOO_LONG => DropReason::RequestTooLong,
            ClassId::UNREAD => DropReason::Unread,
            ClassId::OVER_LIMIT | ClassId::OVER_LIMIT_RESET => DropReason::OverLimit,
            _ => DropReason::PolicyDrop,
        }
    }
}

/// A flow in its worker's table. Valid only until the table is next changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct FlowRef(pub u32);

impl FlowRef {
    pub const NONE: FlowRef = FlowRef(u32::MAX);

    #[inline]
    pub fn is_some(self) -> bool {
        self != FlowRef::NONE
    }
}

/// Which of a flow's two directions a packet travels.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Direction {
    /// From the side that opened the flow.
    #[default]
    Forward = 0,
    Reply = 1,
}

impl Direction {
    #[inline]
    pub fn flip(self) -> Direction {
        match self {
            Direction::Forward => Direction::Reply,
            Direction::Reply => Direction::Forward,
        }
    }
}

/// All flows, as a share.
pub const SHARE_ALL: u16 = 10_000;
/// Draws the flows of a share: a constant, so that appliances and restarts draw the same.
const SHARE_SEED: Seed = Seed(0x6d69_7272_6f72_7631);

/// The 5-tuple as it stands on the wire. ICMP echo has its identifier in both ports; other
/// protocols have ports 0, and later fragments until they are put to their first one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[repr(C)]
pub struct FlowKey {
    pub src: Addr,
    pub dst: Addr,
    pub sport: u16,
    pub dport: u16,
    /// IP protocol number (6 TCP, 17 UDP, 1 ICMP, 58 ICMPv6).
    pub proto: u8,
}

impl FlowKey {
    #[inline(always)]
    pub fn hash(&self, seed: Seed) -> u64 {
        let ports =
            u64::from(self.sport) | u64::from(self.dport) << 16 | u64::from(self.proto) << 32;
        hash5(seed, self.src.hi, self.src.lo, self.dst.hi, self.dst.lo, ports)
    }

    /// Equality without a branch for each field: for keys that are expected to be equal.
    #[inline(always)]
    pub fn is(&self, other: &FlowKey) -> bool {
        let addresses = (self.src.hi ^ other.src.hi)
            | (self.src.lo ^ other.src.lo)
            | (self.dst.hi ^ other.dst.hi)
            | (self.dst.lo ^ other.dst.lo);
        let rest = (self.sport ^ other.sport)
            | (self.dport ^ other.dport)
            | u16::from(self.proto ^ other.proto);
        addresses | u64::from(rest) == 0
    }

    /// Whether a flow is among a share of all, in hundredths of a percent, up to [`SHARE_ALL`]: one
    /// that is stays among every larger share. All appliances draw the same.
    pub fn is_among(&self, share: u16) -> bool {
        share >= SHARE_ALL || pick(self.hash(SHARE_SEED), SHARE_ALL.into()) < share.into()
    }

    /// The key of the packets that answer, where nothing is translated.
    #[inline]
    pub fn reversed(&self) -> FlowKey {
        FlowKey {
            src: self.dst,
            dst: self.src,
            sport: self.dport,
            dport: self.sport,
            proto: self.proto,
        }
    }
}

/// What is to become of a packet. Stages look only at those that are still [`Verdict::Next`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Verdict {
    /// Undecided: the next stage's turn.
    #[default]
    Next,
    /// Rewritten and ready; goes to [`PacketMeta::out_port`]'s scheduler.
    Output,
    Drop(DropReason),
    /// It was for the appliance itself, such as a client's acknowledgement of what it sent.
    Absorb,
    /// The stage has taken the frame's contents elsewhere (parked for its neighbour): see
    /// `graph::Held`.
    Park,
    /// It passes the stages again once its client has the token that it takes.
    Wait,
}

/// Facts that take one bit each.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PacketFlags(pub u16);

impl PacketFlags {
    /// An IP fragment, first or later.
    pub const FRAGMENT: PacketFlags = PacketFlags(1);
    /// A fragment without the transport header: offset > 0.
    pub const LATER_FRAGMENT: PacketFlags = PacketFlags(2);
    /// IPv4 options or IPv6 extension headers stand before the transport header.
    pub const OPTIONS: PacketFlags = PacketFlags(4);
    /// Only the pseudo-header is summed: a local sender's offloaded checksum, seen on veth.
    pub const PARTIAL_CHECKSUM: PacketFlags = PacketFlags(8);
    /// The packet carries an ICMP or ICMPv6 error message.
    pub const ICMP_ERROR: PacketFlags = PacketFlags(16);
    /// The Ethernet destination is not the port it came in by: a promiscuous interface sees such
    /// packets too, and whom they are for will forward them.
    pub const OTHER_HOST: PacketFlags = PacketFlags(32);
    /// A copy of it is to be made as it leaves.
    pub const MIRRORED: PacketFlags = PacketFlags(64);
    /// A fragment that was put to the others of its datagram: where their first one is known it has
    /// that one's ports.
    pub const JOINED: PacketFlags = PacketFlags(128);
    /// It has waited for a token, and passes the stages again.
    pub const DELAYED: PacketFlags = PacketFlags(256);
    /// Its class's meter has measured it.
    pub const METERED: PacketFlags = PacketFlags(512);
    /// A client's packet, of which a copy was made.
    pub const COPIED: PacketFlags = PacketFlags(1_024);
    /// It has another code point than that by which rules decide: [`PacketMeta::marked_from`].
    pub const MARKED: PacketFlags = PacketFlags(2_048);

    #[inline]
    pub fn has(self, flag: PacketFlags) -> bool {
        self.0 & flag.0 != 0
    }

    #[inline]
    pub fn set(&mut self, flag: PacketFlags) {
        self.0 |= flag.0;
    }

    #[inline]
    pub fn clear(&mut self, flag: PacketFlags) {
        self.0 &= !flag.0;
    }
}

/// Parsed once per packet, carried beside its frame through all stages. Offsets count bytes from
/// the frame's first.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PacketMeta {
    pub key: FlowKey,
    /// [`FlowKey::hash`] with the process's seed.
    pub hash: u64,
    /// TCP sequence and acknowledgment numbers; 0 for other protocols.
    pub tcp_seq: u32,
    pub tcp_ack: u32,
    pub flow: FlowRef,
    pub class: ClassId,
    pub in_port: PortId,
    pub out_port: PortId,
    /// IP header.
    pub l3: u16,
    /// Transport header.
    pub l4: u16,
    /// Transport payload.
    pub payload: u16,
    /// End of the IP packet: what follows is link padding.
    pub end: u16,
    /// Tag control information of the outermost VLAN tag; 0 without a tag.
    pub vlan_tci: u16,
    /// Which packet of its flow's direction this is, counted from 1, its lower 16 bits; 0 before it
    /// was counted. The flow's own count is that of the last one in the batch.
    pub nth: u16,
    pub tcp_flags: u8,
    /// IPv4 TOS or IPv6 traffic class: DSCP in the upper six bits, ECN in the lower two.
    pub tos: u8,
    /// TTL or hop limit as received.
    pub ttl: u8,
    /// The code point before the first mark; means nothing without one.
    pub marked_from: u8,
    pub flags: PacketFlags,
    pub direction: Direction,
    pub verdict: Verdict,
}

impl Default for PacketMeta {
    fn default() -> PacketMeta {
        PacketMeta::UNREAD
    }
}

impl PacketMeta {
    /// Nothing is known yet.
    pub const UNREAD: PacketMeta = PacketMeta {
        key: FlowKey {
            src: Addr::UNSPECIFIED,
            dst: Addr::UNSPECIFIED,
            sport: 0,
            dport: 0,
            proto: 0,
        },
        hash: 0,
        tcp_seq: 0,
        tcp_ack: 0,
        flow: FlowRef::NONE,
        class: ClassId::UNSET,
        in_port: PortId(0),
        out_port: PortId(0),
        l3: 0,
        l4: 0,
        payload: 0,
        end: 0,
        vlan_tci: 0,
        nth: 0,
        tcp_flags: 0,
        tos: 0,
        ttl: 0,
        marked_from: 0,
        flags: PacketFlags(0),
        direction: Direction::Forward,
        verdict: Verdict::Next,
    };

    /// Becomes that of a packet whose headers are about to be read: sets all that
    /// [`crate::packet::parse`] does not.
    #[inline(always)]
    pub fn begin(&mut self, in_port: PortId) {
        let unread = const { &PacketMeta::UNREAD };
        (self.flow, self.class, self.verdict) = (unread.flow, unread.class, Verdict::Next);
        (self.in_port, self.out_port, self.nth) = (in_port, unread.out_port, unread.nth);
    }

    #[inline]
    pub fn is_v4(&self) -> bool {
        self.key.dst.is_v4()
    }

    /// Differentiated services code point (RFC 2474).
    #[inline]
    pub fn dscp(&self) -> u8 {
        self.tos >> 2
    }

    /// The code point by which rules decide: the one that its port trusts it with, whatever rules
    /// and meters have made of it since. So one that waits is decided about as when it came.
    #[inline]
    pub fn dscp_for_rules(&self) -> u8 {
        if self.flags.has(PacketFlags::MARKED) { self.marked_from } else { self.dscp() }
    }

    /// Bytes of transport payload.
    #[inline]
    pub fn payload_len(&self) -> usize {
        usize::from(self.end.saturating_sub(self.payload))
    }

    #[inline]
    pub fn drop_for(&mut self, reason: DropReason) {
        self.verdict = Verdict::Drop(reason);
    }
}

// A batch of 64 must stay in a 32 KiB first-level cache beside the headers it describes.
const _: () = assert!(size_of::<PacketMeta>() <= 96);
