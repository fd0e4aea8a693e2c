//! Connections of a capture: which packets belong together, what both sides sent in order, and what
//! that says.

use std::collections::HashMap;

use super::layers::{Encap, TCP, Transport};
use super::link::u16_at;
use super::record::{FlowRecord, Seen};
use super::watch::{Watch, Watches};
use crate::base::Addr;
use crate::inspect::fields::Wanted;
use crate::inspect::inspector::{Pool, Rooms};
use crate::policy::catalogue::Catalogue;

/// Connections that are followed at once; then the half that was silent longest is told of and
/// forgotten.
pub const FLOWS_MAX: usize = 1 << 16;

/// Parsers of HTTP in use at once; then what is silent longest is not followed any more.
const PARSERS_MAX: usize = 16_384;
/// Either side of a connection may be its client.
const SIDES: usize = 2;
/// Browsers allow header tables of 64 KB.
const ROOMS: Rooms = Rooms {
    greetings: SIDES * FLOWS_MAX,
    target: 1 << 14,
    first_target: 1 << 14,
    heads: 2 * PARSERS_MAX,
    table: 1 << 16,
    whole_tables: 2 * PARSERS_MAX,
};

/// A SYN this close before the first bytes seen of a stream is taken for theirs, come late.
const LATE_SYN_BYTES: u32 = 1 << 16;

pub(super) const FIN: u8 = 1;
pub(super) const SYN: u8 = 2;
pub(super) const RST: u8 = 4;
pub(super) const ACK: u8 = 16;

/// An address and a port.
pub type Endpoint = (Addr, u16);

/// Both ends in order, and the protocol.
type Key = (Endpoint, Endpoint, u8);

/// The connections of a capture.
pub struct Flows<'c> {
    catalogue: &'c Catalogue,
    index: HashMap<Key, Flow>,
    watches: Watches,
    closed: Vec<FlowRecord>,
    frame: u64,
}

/// One connection.
pub(super) struct Flow {
    pub(super) proto: u8,
    /// The side that opened it, as far as is known: that of the first packet otherwise.
    pub(super) client: Endpoint,
    pub(super) server: Endpoint,
    /// How many connections had the same ends before.
    pub(super) seq: u32,
    pub(super) encap: Encap,
    pub(super) packets: u64,
    pub(super) first_frame: u64,
    last_frame: u64,
    /// Whether its beginning was seen.
    pub(super) opened: bool,
    /// Sequence numbers of the SYNs of both sides, client's first.
    pub(super) syns: [Option<u32>; 2],
    /// Those of the first bytes where no SYN was seen.
    firsts: [Option<u32>; 2],
    /// A checksum of the side was right: one that is not counts for nothing then.
    sums: [bool; 2],
    /// While it is looked into.
    pub(super) watch: Option<Box<Watch>>,
    /// What was seen, once it isn't watched any more.
    pub(super) seen: Option<Box<Seen>>,
}

/// A TCP segment or UDP datagram, its headers read.
#[derive(Clone, Copy)]
pub(super) struct Segment<'a> {
    pub(super) proto: u8,
    pub(super) from: Endpoint,
    pub(super) to: Endpoint,
    pub(super) seq: u32,
    pub(super) ack: u32,
    pub(super) flags: u8,
    /// `None`: it can't be told, as bytes are missing.
    pub(super) checksum_fits: Option<bool>,
    pub(super) payload: &'a [u8],
}

impl<'c> Flows<'c> {
    /// # Panics
    /// Never: no field beyond the fixed ones is wanted.
    pub fn new(catalogue: &'c Catalogue) -> Flows<'c> {
        let wanted = Wanted::new([]).expect("the fixed names");
        let pool = Pool::growing(wanted, ROOMS, PARSERS_MAX);
        let watches = Watches::new(pool);
        Flows { catalogue, index: HashMap::new(), watches, closed: Vec::new(), frame: 0 }
    }

    /// A frame of the capture, whatever it held.
    pub fn frame(&mut self, transport: Option<Transport<'_>>) {
        self.frame += 1;
        if let Some((transport, segment)) = transport.and_then(|t| Some((t, segment(&t)?))) {
            self.segment(&transport.encap, &segment);
        }
    }

    /// Connections that are over, as far as is known yet.
    pub fn closed(&mut self) -> std::vec::Drain<'_, FlowRecord> {
        self.closed.drain(..)
    }

    /// The capture is over: tells of all connections that are left, in order of appearance.
    pub fn finish(&mut self) -> std::vec::Drain<'_, FlowRecord> {
        let mut rest: Vec<Flow> = self.index.drain().map(|(_, flow)| flow).collect();
        rest.sort_by_key(|flow| flow.first_frame);
        for flow in rest {
            self.close(flow);
        }
        self.closed.drain(..)
    }

    fn segment(&mut self, encap: &Encap, segment: &Segment<'_>) {
        let (a, b) = (segment.from, segment.to);
        let key = if a <= b { (a, b, segment.proto) } else { (b, a, segment.proto) };
        let begins = segment.proto == TCP && segment.flags & (SYN | ACK) == SYN;
        let known = self.index.get(&key);
        let anew = begins && known.is_some_and(|flow| flow.begins_anew(segment));
        if known.is_none() || anew {
            let before = if anew { self.index.remove(&key) } else { None };
            let seq = before.as_ref().map_or(0, |flow| flow.seq + 1);
            if let Some(flow) = before {
                self.close(flow);
            }
            self.make_room();
            self.index.insert(key, Flow::new(segment, *encap, seq, self.frame));
        }
        let Some(flow) = self.index.get_mut(&key) else { return };
        flow.packets += 1;
        flow.last_frame = self.frame;
        if encap.fragmented && !flow.encap.fragmented {
            flow.encap = *encap;
        }
        let side = usize::from(segment.from != flow.client);
        flow.note(segment, side);
        if flow.seen.is_none() {
            self.watches.packet(flow, segment, side);
        }
        if self.watches.is_crowded() {
            self.settle_old();
        }
    }

    /// Of the connections that hold parsers of HTTP, keeps what was seen of the half that was
    /// silent longest, and looks into it no more.
    fn settle_old(&mut self) {
        let limit = self.middle_age(Flow::has_parsers);
        let old = |flow: &&mut Flow| flow.last_frame <= limit && flow.has_parsers();
        for flow in self.index.values_mut().filter(old) {
            self.watches.end(flow);
        }
    }

    /// When the last packet came of the connection that is in the middle of these.
    fn middle_age(&self, of: impl Fn(&Flow) -> bool) -> u64 {
        let these = self.index.values().filter(|flow| of(flow));
        let mut ages: Vec<u64> = these.map(|flow| flow.last_frame).collect();
        let middle = ages.len() / 2;
        if ages.is_empty() { 0 } else { *ages.select_nth_unstable(middle).1 }
    }

    fn close(&mut self, mut flow: Flow) {
        self.watches.end(&mut flow);
        self.closed.push(FlowRecord::of(&flow, self.catalogue));
    }

    fn make_room(&mut self) {
        if self.index.len() < FLOWS_MAX {
            return;
        }
        let limit = self.middle_age(|_| true);
        let mut old: Vec<Flow> = Vec::new();
        let keys: Vec<Key> =
            self.index.iter().filter(|(_, f)| f.last_frame <= limit).map(|(k, _)| *k).collect();
        old.extend(keys.iter().filter_map(|key| self.index.remove(key)));
        old.sort_by_key(|flow| flow.first_frame);
        for flow in old {
            self.close(flow);
        }
    }
}

impl Flow {
    fn new(segment: &Segment<'_>, encap: Encap, seq: u32, frame: u64) -> Flow {
        let answers = segment.proto == TCP && segment.flags & (SYN | ACK) == SYN | ACK;
        let (client, server) =
            if answers { (segment.to, segment.from) } else { (segment.from, segment.to) };
        Flow {
            proto: segment.proto,
            client,
            server,
            seq,
            encap,
            packets: 0,
            first_frame: frame,
            last_frame: frame,
            opened: segment.proto == TCP && segment.flags & SYN != 0,
            syns: [None; 2],
            firsts: [None; 2],
            sums: [false; 2],
            watch: None,
            seen: None,
        }
    }

    fn has_parsers(&self) -> bool {
        self.watch.as_ref().is_some_and(|watch| watch.has_parsers())
    }

    /// Whether a SYN opens another connection between the same ends.
    fn begins_anew(&self, syn: &Segment<'_>) -> bool {
        let side = usize::from(syn.from != self.client);
        if self.is_damaged(syn, side) {
            return false;
        }
        match (self.syns[side], self.firsts[side]) {
            (Some(known), _) => known != syn.seq,
            (None, Some(first)) => first.wrapping_sub(syn.seq).wrapping_sub(1) >= LATE_SYN_BYTES,
            // Its own side has sent nothing yet: that of a connection that was opened from the
            // other side is another one.
            (None, None) => self.opened && side == 1,
        }
    }

    /// Whether its receiver throws a segment away. Where captures were made anonymous no checksum
    /// is right, and none counts.
    pub(super) fn is_damaged(&self, segment: &Segment<'_>, side: usize) -> bool {
        self.sums[side] && segment.checksum_fits == Some(false)
    }

    fn note(&mut self, segment: &Segment<'_>, side: usize) {
        if segment.proto != TCP {
            return;
        }
        self.sums[side] |= segment.checksum_fits == Some(true);
        if self.is_damaged(segment, side) {
            return;
        }
        if segment.flags & SYN != 0 {
            self.syns[side] = self.syns[side].or(Some(segment.seq));
            // The answer tells what the client's SYN was, were it lost.
            if side == 1 && segment.flags & ACK != 0 {
                self.syns[0] = self.syns[0].or(Some(segment.ack.wrapping_sub(1)));
            }
        } else if segment.flags & RST == 0 {
            self.firsts[side] = self.firsts[side].or(Some(segment.seq));
        }
    }
}

/// Reads the transport header. `None`: it is cut, or contradicts itself.
fn segment<'a>(transport: &Transport<'a>) -> Option<Segment<'a>> {
    let bytes = transport.bytes;
    let ports = (u16_at(bytes, 0)?, u16_at(bytes, 2)?);
    let (from, to) = ((transport.src, ports.0), (transport.dst, ports.1));
    let proto = transport.proto;
    if proto != TCP {
        let len = usize::from(u16_at(bytes, 4)?);
        // 0 is a jumbogram's (RFC 2675) or one that was cut up later.
        let end = if len == 0 { bytes.len() } else { len.min(bytes.len()) };
        let payload = bytes.get(8..end)?;
        let none =
            Segment { proto, from, to, seq: 0, ack: 0, flags: 0, checksum_fits: None, payload };
        return Some(none);
    }
    let header: [u8; 20] = *bytes.first_chunk()?;
    let header_len = usize::from(header[12] >> 4) * 4;
    if header_len < header.len() {
        return None;
    }
    let number = |at: usize| {
        u32::from_be_bytes([header[at], header[at + 1], header[at + 2], header[at + 3]])
    };
    let checksum_fits = (!transport.cut).then(|| super::checksum::fits(transport));
    Some(Segment {
        proto,
        from,
        to,
        seq: number(4),
        ack: number(8),
        flags: header[13],
        checksum_fits,
        // Cut within the options, nothing is known of the data.
        payload: bytes.get(header_len..).unwrap_or_default(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::packet::checksum::pseudo;

    const CLIENT: Endpoint = (Addr::v4(0x0a00_0001), 40_000);
    const SERVER: Endpoint = (Addr::v4(0x0a00_0002), 80);

    /// A client's segment; its checksum is right unless something is added to it.
    fn tcp(seq: u32, flags: u8, added: u16, payload: &[u8]) -> Vec<u8> {
        let mut bytes = [&CLIENT.1.to_be_bytes()[..], &SERVER.1.to_be_bytes()].concat();
        bytes.extend(seq.to_be_bytes());
        bytes.extend([0, 0, 0, 0, 0x50, flags, 0xff, 0xff, 0, 0, 0, 0]);
        bytes.extend(payload);
        let sum = pseudo(CLIENT.0, SERVER.0, TCP, bytes.len() as u16).bytes(&bytes).checksum();
        bytes[16..18].copy_from_slice(&sum.wrapping_add(added).to_be_bytes());
        bytes
    }

    fn inspected(segments: &[Vec<u8>]) -> Vec<FlowRecord> {
        let catalogue = Catalogue::builtin();
        let mut flows = Flows::new(&catalogue);
        for bytes in segments {
            let (src, dst, encap) = (CLIENT.0, SERVER.0, Encap::default());
            flows.frame(Some(Transport { encap, src, dst, proto: TCP, bytes, cut: false }));
        }
        flows.finish().collect()
    }

    /// One that is damaged begins nothing, and says nothing of where the stream begins, unless no
    /// checksum of its side was ever right.
    #[test]
    fn a_damaged_syn_begins_no_connection() {
        let request = b"GET /x HTTP/1.1\r\nHost: a\r\n\r\n";
        for (sound, added, connections) in [(0, 1, 1), (1, 1, 2), (0, 0, 2)] {
            let told = inspected(&[
                tcp(999, SYN, sound, b""),
                tcp(7_000_000, SYN, added, b""),
                tcp(1_000, ACK, sound, request),
            ]);
            assert_eq!(told.len(), connections, "{sound} {added}");
            let read = told[0].seen.app == "http1";
            assert_eq!(read, connections == 1, "{sound} {added}");
        }
    }
}
