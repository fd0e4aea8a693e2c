//! One flow: its two keys, where its packets go, and what was seen of it.

use super::TcpState;
use super::advance::Advance;
use super::table::tick;
use super::wheel::NANOS_PER_TICK;
use crate::base::{Addr, Nanos};
use crate::packet::checksum::{Delta, FoldedDelta};
use crate::packet::{ClassId, Direction, FlowKey, PortId};

/// No backend, no inspection.
pub const NONE_U16: u16 = u16::MAX;
/// No name, no note.
pub const NONE_U32: u32 = u32::MAX;
/// No port has this number.
const NO_HOP: u8 = u8::MAX;

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

/// A flow as the table keeps it: what most packets need, in two cache lines of which one is
/// written. What is needed now and then lies apart, in [`Details`].
///
/// Its keys are what the client sends and what the server side sends, both as received: rewriting a
/// packet of one direction is writing the other key, reversed.
#[derive(Clone, Debug)]
#[repr(C, align(64))]
pub struct Flow {
    /// Source and destination of each direction.
    addrs: [[Addr; 2]; 2],
    /// Source and destination port of each direction.
    ports: [[u16; 2]; 2],
    /// Bytes received in each direction: the lower 32 bits, and the upper 16 bits.
    bytes_low: [u32; 2],
    bytes_high: [u16; 2],
    packets: [u32; 2],
    /// When a packet was last seen, in the table's ticks.
    pub(super) last_seen: u32,
    hop_generation: u32,
    /// Next hop of each direction, by port [`NO_HOP`] none; valid while the generation is that of
    /// the routes.
    hop_macs: [[u8; 6]; 2],
    hop_ports: [u8; 2],
    /// What becomes of the checksums of the client's packets: follows from the keys.
    change: SumChange,
    /// QoS class of both directions.
    pub class: ClassId,
    /// The inspector's slot while the flow is inspected; [`NONE_U16`] otherwise.
    pub inspection: u16,
    /// IP protocol number.
    pub proto: u8,
    pub kind: FlowKind,
    pub tcp: TcpState,
    /// What is done with its packets besides: a number of [`super::Treatments`]; 0 for nothing.
    pub treatment: u8,
    /// What changes once the flow has more bytes: a number of [`super::Steps`]; 0 for nothing.
    /// It is held, so [`super::FlowTable::set_steps`] changes it.
    pub steps: u8,
}

const _: () = assert!(size_of::<Flow>() == 128);
const _: () = assert!(std::mem::offset_of!(Flow, ports) == 64);

/// What is known of a flow besides, for when it begins or ends, is asked about or listed.
#[derive(Clone, Copy, Debug)]
pub struct Details {
    /// Where more is kept of what was seen: [`super::Notes`]. [`NONE_U32`] without.
    pub note: u32,
    /// The server name's number in [`super::Names`]; [`NONE_U32`] without one.
    pub name: u32,
    /// Idle time allowed once established, in ticks.
    pub(super) idle: u32,
    /// Sequence number of the client's first byte that is to be inspected.
    pub(super) first_byte: u32,
    /// How far its streams have gone on, where there was more than one.
    pub(super) advance: Advance,
    /// The backend's place in [`super::Serving`]; [`NONE_U16`] for transit.
    pub backend: u16,
    pub(super) begun: Begun,
    /// Packets that the client has sent since it asked for a connection, while the server has said
    /// nothing; at the maximum once it has.
    pub(super) unheard: u8,
}

// With 8 bytes of timer links and its share of the index a flow costs less than 192 bytes.
const _: () = assert!(size_of::<Details>() == 24);

/// Which of its client's streams is the last.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Begun {
    /// Its beginning was not seen.
    Unknown,
    First,
    /// One behind others, of which its server may still have one.
    Later,
}

impl Details {
    /// Of no flow.
    pub(super) const NONE: Details = Details {
        note: NONE_U32,
        name: NONE_U32,
        idle: 0,
        first_byte: 0,
        advance: Advance { packed: 0 },
        backend: NONE_U16,
        begun: Begun::Unknown,
        unheard: 0,
    };

    /// Where what is to be inspected of a client's stream begins: behind its SYN, or behind what
    /// was read. `None` of a flow that was joined later than its beginning.
    pub fn first_byte(&self) -> Option<u32> {
        (self.begun != Begun::Unknown).then_some(self.first_byte)
    }

    /// Its client's stream begins there, and none that was before it matters.
    pub fn begin_at(&mut self, first_byte: u32) {
        (self.first_byte, self.begun) = (first_byte, Begun::First);
        self.advance = Advance::default();
    }

    /// Another stream begins `step` numbers behind one that has carried so many bytes, and which
    /// its server may still have. `false`: the streams would have gone on too far, and it does not.
    pub fn begin_behind(&mut self, now: Nanos, bytes: u32, step: u32, first_byte: u32) -> bool {
        self.forget_before(now);
        // Its server has followed the first one to its end.
        let bytes = if self.is_later() { bytes } else { 0 };
        let Some(advance) = self.advance.to(now, bytes, step) else { return false };
        (self.first_byte, self.begun, self.advance) = (first_byte, Begun::Later, advance);
        true
    }

    /// The stream is read on from there, behind so many bytes of it.
    pub fn go_on_at(&mut self, now: Nanos, bytes: u32, first_byte: u32) {
        match self.begun {
            Begun::Later => self.advance = self.advance.after(now, bytes),
            Begun::Unknown | Begun::First => self.begun = Begun::First,
        }
        self.first_byte = first_byte;
    }

    /// Whether its client has begun other streams before, which matter.
    pub fn is_later(&self) -> bool {
        self.begun == Begun::Later
    }

    /// How far its streams had gone on where the last one began.
    pub fn advance(&self) -> Advance {
        self.advance
    }

    /// Whether no stream before its client's last one matters any more: then that one is as the
    /// first.
    pub fn forget_before(&mut self, now: Nanos) -> bool {
        if self.is_later() && self.advance.is_over(now) {
            self.begin_at(self.first_byte);
        }
        !self.is_later()
    }

    /// How long the flow may be idle once established.
    pub fn idle(&self) -> Nanos {
        Nanos(u64::from(self.idle) * NANOS_PER_TICK)
    }
}

impl Flow {
    /// What one direction's packets have, as received.
    #[inline(always)]
    pub fn key(&self, direction: Direction) -> FlowKey {
        let ([src, dst], [sport, dport]) =
            (self.addrs[direction as usize], self.ports[direction as usize]);
        FlowKey { src, dst, sport, dport, proto: self.proto }
    }

    /// What the client sends.
    #[inline(always)]
    pub fn client_key(&self) -> FlowKey {
        self.key(Direction::Forward)
    }

    /// What the server side sends.
    #[inline(always)]
    pub fn server_key(&self) -> FlowKey {
        self.key(Direction::Reply)
    }

    /// Sets the key of one direction, of the flow's own protocol; the index is not told.
    pub fn set_key(&mut self, direction: Direction, key: &FlowKey) {
        debug_assert_eq!(self.proto, key.proto);
        self.addrs[direction as usize] = [key.src, key.dst];
        self.ports[direction as usize] = [key.sport, key.dport];
    }

    /// Whether one direction's packets have this key.
    #[inline(always)]
    pub fn has_key(&self, direction: Direction, key: &FlowKey) -> bool {
        self.key(direction).is(key)
    }

    /// Whether packets of both directions are looked up.
    pub fn has_reply_key(&self) -> bool {
        !self.kind.is_one_way()
    }

    /// Whether a server's answers are seen. Of a router, and of `dnat` behind several appliances,
    /// they may take another way.
    pub fn is_answered(&self) -> bool {
        match self.kind {
            FlowKind::Transit | FlowKind::Dnat => self.packets[Direction::Reply as usize] > 0,
            _ => self.has_reply_key(),
        }
    }

    /// When its last packet was received, to a sixteenth of a second.
    pub fn last_seen(&self) -> Nanos {
        Nanos(u64::from(self.last_seen) * NANOS_PER_TICK)
    }

    /// Bytes received in each direction, Ethernet headers included, modulo 2^48.
    #[inline(always)]
    pub fn bytes(&self) -> [u64; 2] {
        let whole =
            |at: usize| u64::from(self.bytes_high[at]) << 32 | u64::from(self.bytes_low[at]);
        [whole(0), whole(1)]
    }

    /// Packets received in each direction; stays at the maximum.
    #[inline(always)]
    pub fn packets(&self) -> [u32; 2] {
        self.packets
    }

    /// Notes one packet. Returns how many that makes.
    #[inline(always)]
    pub(super) fn count(&mut self, now: u32, direction: Direction, bytes: u32) -> u32 {
        let at = direction as usize;
        self.last_seen = now;
        let (low, carry) = self.bytes_low[at].overflowing_add(bytes);
        self.bytes_low[at] = low;
        if carry {
            self.bytes_high[at] = self.bytes_high[at].wrapping_add(1);
        }
        let packets = self.packets[at].saturating_add(1);
        self.packets[at] = packets;
        packets
    }

    /// Notes packets that went another way and changed nothing of its state.
    pub fn add(&mut self, now: Nanos, way: Direction, packets: u64, bytes: u64) {
        let at = way as usize;
        let more = u32::try_from(packets).unwrap_or(u32::MAX);
        self.packets[at] = self.packets[at].saturating_add(more);
        let sum = self.bytes()[at].wrapping_add(bytes);
        (self.bytes_low[at], self.bytes_high[at]) = (sum as u32, (sum >> 32) as u16);
        self.last_seen = tick(now);
    }

    /// The next hop of one direction, if it is known since the routes had this generation.
    #[inline(always)]
    pub fn hop(&self, direction: Direction, generation: u32) -> Option<Hop> {
        let port = self.hop_ports[direction as usize];
        let known = self.hop_generation == generation && port != NO_HOP;
        known.then(|| Hop { mac: self.hop_macs[direction as usize], port: PortId(port.into()) })
    }

    /// Keeps the next hop of one direction until the routes get another generation.
    pub fn set_hop(&mut self, direction: Direction, hop: Hop, generation: u32) {
        if self.hop_generation != generation {
            self.forget_hops();
            self.hop_generation = generation;
        }
        self.hop_macs[direction as usize] = hop.mac;
        // There are 64 ports at most; of one that doesn't fit, the way is found each time.
        self.hop_ports[direction as usize] = u8::try_from(hop.port.0).unwrap_or(NO_HOP);
    }

    pub(super) fn forget_hops(&mut self) {
        self.hop_ports = [NO_HOP; 2];
    }

    /// What rewriting a packet of one direction changes of its checksums.
    #[inline(always)]
    pub fn sum_change(&self, direction: Direction) -> SumChange {
        // Answers take back what the client's packets are given.
        let mask = 0u16.wrapping_sub(direction as u16);
        SumChange {
            ip: self.change.ip.inverted_by(mask),
            transport: self.change.transport.inverted_by(mask),
        }
    }

    /// A flow that begins with its first packet.
    pub(super) fn new(now: Nanos, new: &NewFlow, tcp: TcpState) -> Flow {
        let mut flow = Flow {
            kind: new.kind,
            class: new.class,
            proto: new.key.proto,
            last_seen: tick(now),
            tcp,
            ..Flow::VACANT
        };
        flow.set_key(Direction::Forward, &new.key);
        if let Some(reply) = &new.reply {
            flow.set_key(Direction::Reply, reply);
            flow.change = SumChange::between(&new.key, reply);
        }
        flow
    }

    /// A slot that holds no flow.
    pub(super) const VACANT: Flow = Flow {
        addrs: [[Addr { hi: 0, lo: 0 }; 2]; 2],
        ports: [[0; 2]; 2],
        bytes_low: [0; 2],
        bytes_high: [0; 2],
        packets: [0; 2],
        last_seen: 0,
        hop_generation: 0,
        hop_macs: [[0; 6]; 2],
        hop_ports: [NO_HOP; 2],
        change: SumChange { ip: FoldedDelta::NONE, transport: FoldedDelta::NONE },
        class: ClassId::UNSET,
        inspection: NONE_U16,
        proto: 0,
        kind: FlowKind::Transit,
        tcp: TcpState::Vacant,
        treatment: 0,
        steps: 0,
    };
}

/// What a flow begins with.
#[derive(Clone, Debug)]
pub struct NewFlow {
    /// As the client sends.
    pub key: FlowKey,
    /// As the server side answers; `None` for kinds whose answers take another way.
    pub reply: Option<FlowKey>,
    pub kind: FlowKind,
    pub backend: u16,
    /// Class of both directions.
    pub class: ClassId,
    /// Idle time once established, milliseconds; `None`: the table's own for the protocol.
    pub idle_established_ms: Option<u32>,
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

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn new_flow(client: [u32; 2], server: [u32; 2], ports: [u16; 4]) -> NewFlow {
        let key = |[src, dst]: [u32; 2], sport, dport| FlowKey {
            src: Addr::v4(src),
            dst: Addr::v4(dst),
            sport,
            dport,
            proto: 6,
        };
        NewFlow {
            key: key(client, ports[0], ports[1]),
            reply: Some(key(server, ports[2], ports[3])),
            kind: FlowKind::Nat,
            backend: 0,
            class: ClassId::UNSET,
            idle_established_ms: None,
        }
    }

    proptest! {
        /// Kept is what the client's packets change by; what the answers change by is its opposite.
        #[test]
        fn answers_change_by_what_their_keys_say(
            client: [u32; 2], server: [u32; 2], ports: [u16; 4], check: [u8; 2],
        ) {
            prop_assume!(check != [0xff; 2]); // no checksum that is sent
            let new = new_flow(client, server, ports);
            let flow = Flow::new(Nanos::ZERO, &new, TcpState::SynSent);
            let (sent, answered) = (new.key, new.reply.expect("given"));
            for (way, from, to) in [
                (Direction::Forward, &sent, &answered),
                (Direction::Reply, &answered, &sent),
            ] {
                let (kept, fresh) = (flow.sum_change(way), SumChange::between(from, to));
                for (kept, fresh) in [(kept.ip, fresh.ip), (kept.transport, fresh.transport)] {
                    let applied = |change: FoldedDelta| {
                        let mut check = check;
                        change.apply(&mut check);
                        check
                    };
                    prop_assert_eq!(applied(kept), applied(fresh));
                    prop_assert_eq!(
                        applied(kept.and(FoldedDelta::HOP)),
                        applied(fresh.and(FoldedDelta::HOP))
                    );
                }
                prop_assert_eq!(flow.key(way), *from);
            }
        }
    }

    #[test]
    fn bytes_go_on_beyond_32_bits() {
        let mut flow = Flow::new(Nanos::ZERO, &new_flow([1, 2], [3, 4], [0; 4]), TcpState::OneWay);
        for _ in 0..3 {
            flow.count(0, Direction::Reply, u32::MAX);
        }
        assert_eq!((flow.bytes(), flow.packets()), ([0, 3 * u64::from(u32::MAX)], [0, 3]));
        flow.add(Nanos::ZERO, Direction::Reply, u64::MAX, 3);
        assert_eq!((flow.bytes(), flow.packets()), ([0, 3 << 32], [0, u32::MAX]));
        assert_eq!(flow.count(0, Direction::Reply, 0), u32::MAX, "it stays there");
    }

    #[test]
    fn hops_hold_for_one_generation_and_one_direction() {
        let mut flow = Flow::new(Nanos::ZERO, &new_flow([1, 2], [3, 4], [0; 4]), TcpState::OneWay);
        let hop = |port| Hop { mac: [port as u8; 6], port: PortId(port) };
        assert_eq!(flow.hop(Direction::Forward, 0), None);
        flow.set_hop(Direction::Forward, hop(63), 7);
        flow.set_hop(Direction::Reply, hop(1), 7);
        let known =
            |flow: &Flow, at| [Direction::Forward, Direction::Reply].map(|d| flow.hop(d, at));
        assert_eq!(known(&flow, 7), [Some(hop(63)), Some(hop(1))]);
        assert_eq!(known(&flow, 8), [None, None]);
        flow.set_hop(Direction::Reply, hop(2), 8);
        assert_eq!(known(&flow, 8), [None, Some(hop(2))], "the other one is outdated");
        flow.set_hop(Direction::Reply, hop(256), 8);
        assert_eq!(known(&flow, 8), [None, None], "it is looked up each time");
        flow.set_hop(Direction::Reply, hop(2), 8);
        flow.forget_hops();
        assert_eq!(known(&flow, 8), [None, None]);
    }
}
