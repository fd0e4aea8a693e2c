//! A TCP just good enough to tell whether a path is sound: one segment under way at a time, sent
//! again until it is acknowledged, every checksum looked at.

use std::time::Duration;

use crate::base::{Addr, Nanos, Seed};
use crate::packet::build::{LinkSpec, TcpSpec, tcp_packet};
use crate::packet::tcp::flag;
use crate::packet::{PacketMeta, ParseOptions, parse, tcp};

/// Payload of one segment at most.
const SEGMENT_BYTES: usize = 1_000;
/// Waited for an acknowledgement.
const RETRANSMIT_AFTER: Duration = Duration::from_millis(200);
/// Times a segment is sent before the connection is given up.
const TRIES_MAX: u32 = 60;

/// An address, a port, and the MAC address that packets go by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Endpoint {
    pub mac: [u8; 6],
    pub addr: Addr,
    pub port: u16,
}

/// How a connection stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    Opening,
    Open,
    /// Both sides have said all.
    Closed,
    /// Reset by the peer, or no answer.
    Failed,
}

/// One end of one connection.
#[derive(Debug)]
pub struct Conn {
    pub local: Endpoint,
    /// Its MAC is the next hop's.
    pub remote: Endpoint,
    pub state: State,
    /// All that came in order.
    pub received: Vec<u8>,
    /// All that is to be sent; the first `sent` bytes are acknowledged.
    sending: Vec<u8>,
    sent: usize,
    finish: bool,
    fin_acked: bool,
    fin_received: bool,
    snd_una: u32,
    rcv_nxt: u32,
    /// Sequence numbers that the segment under way covers; 0: none is.
    under_way: u32,
    tries: u32,
    retry_at: Nanos,
    pub retransmissions: u64,
}

/// A segment as received.
#[derive(Clone, Copy, Debug)]
pub struct Segment<'a> {
    pub meta: &'a PacketMeta,
    payload: &'a [u8],
}

impl<'a> Segment<'a> {
    /// Reads a frame; `None` for what is no TCP segment or is damaged: its checksums are looked at.
    pub fn read(frame: &'a [u8], meta: &'a mut PacketMeta) -> Option<Segment<'a>> {
        let options = ParseOptions { verify_transport_checksum: true };
        parse(frame, Seed(0), options, meta).ok()?;
        if meta.key.proto != tcp::PROTOCOL {
            return None;
        }
        let payload = frame.get(usize::from(meta.payload)..usize::from(meta.end))?;
        Some(Segment { payload, meta })
    }

    fn has(&self, flag: u8) -> bool {
        self.meta.tcp_flags & flag != 0
    }
}

impl Conn {
    fn new(local: Endpoint, remote: Endpoint, isn: u32) -> Conn {
        Conn {
            local,
            remote,
            state: State::Opening,
            received: Vec::new(),
            sending: Vec::new(),
            sent: 0,
            finish: false,
            fin_acked: false,
            fin_received: false,
            snd_una: isn,
            rcv_nxt: 0,
            under_way: 0,
            tries: 0,
            retry_at: Nanos::MAX,
            retransmissions: 0,
        }
    }

    /// Opens a connection: sends its SYN.
    pub fn connect(now: Nanos, local: Endpoint, remote: Endpoint, isn: u32) -> (Conn, Vec<u8>) {
        let mut conn = Conn::new(local, remote, isn);
        conn.arm(now, 1);
        let syn = conn.emit(isn, flag::SYN, &[]);
        (conn, syn)
    }

    /// Answers a SYN.
    pub fn accept(
        now: Nanos,
        local: Endpoint,
        remote: Endpoint,
        isn: u32,
        syn: &Segment<'_>,
    ) -> (Conn, Vec<u8>) {
        let mut conn = Conn::new(local, remote, isn);
        conn.rcv_nxt = syn.meta.tcp_seq.wrapping_add(1);
        conn.arm(now, 1);
        let answer = conn.emit(isn, flag::SYN | flag::ACK, &[]);
        (conn, answer)
    }

    /// Has these bytes sent, after those before.
    pub fn write(&mut self, bytes: &[u8]) {
        self.sending.extend_from_slice(bytes);
    }

    /// Whether anything was ever to be sent.
    pub fn has_written(&self) -> bool {
        !self.sending.is_empty()
    }

    /// Closes this direction once everything is sent.
    pub fn finish(&mut self) {
        self.finish = true;
    }

    /// Whether the peer has closed its direction.
    pub fn peer_finished(&self) -> bool {
        self.fin_received
    }

    /// When [`Conn::turn`] is to be called without a segment.
    pub fn wake_at(&self) -> Option<Nanos> {
        (self.under_way > 0).then_some(self.retry_at)
    }

    /// Takes a segment.
    pub fn receive(&mut self, segment: &Segment<'_>, out: &mut Vec<Vec<u8>>) {
        if segment.has(flag::RST) {
            self.state = State::Failed;
            self.under_way = 0;
            return;
        }
        let syn = segment.has(flag::SYN);
        if syn && self.state == State::Opening {
            self.rcv_nxt = segment.meta.tcp_seq.wrapping_add(1);
        }
        let next = self.snd_una.wrapping_add(self.under_way);
        if segment.has(flag::ACK) && self.under_way > 0 && segment.meta.tcp_ack == next {
            self.acknowledged();
        }
        let fin = segment.has(flag::FIN);
        if segment.meta.tcp_seq == self.rcv_nxt && !syn {
            self.received.extend_from_slice(segment.payload);
            self.rcv_nxt = self.rcv_nxt.wrapping_add(segment.payload.len() as u32);
            if fin {
                self.fin_received = true;
                self.rcv_nxt = self.rcv_nxt.wrapping_add(1);
            }
        }
        if (syn || fin || !segment.payload.is_empty()) && self.state != State::Opening {
            out.push(self.emit(self.snd_una.wrapping_add(self.under_way), flag::ACK, &[]));
        }
    }

    fn acknowledged(&mut self) {
        match self.state {
            State::Opening => self.state = State::Open,
            _ if self.sent < self.sending.len() => self.sent += self.under_way as usize,
            _ => self.fin_acked = true,
        }
        self.snd_una = self.snd_una.wrapping_add(self.under_way);
        self.under_way = 0;
        self.tries = 0;
    }

    /// Sends what is due: the next segment, or the one under way again.
    pub fn turn(&mut self, now: Nanos, out: &mut Vec<Vec<u8>>) {
        if self.fin_acked && self.fin_received && self.state == State::Open {
            self.state = State::Closed;
        }
        if self.under_way > 0 && now < self.retry_at || self.state == State::Failed {
            return;
        }
        if self.under_way > 0 {
            self.retransmissions += 1;
        }
        let chunk = (self.sending.len() - self.sent).min(SEGMENT_BYTES);
        let data = &self.sending[self.sent..self.sent + chunk];
        let segment = match self.state {
            State::Opening if self.rcv_nxt == 0 => Some((flag::SYN, 1, &[][..])),
            State::Opening => Some((flag::SYN | flag::ACK, 1, &[][..])),
            State::Open if chunk > 0 => Some((flag::PSH | flag::ACK, chunk as u32, data)),
            State::Open if self.finish && !self.fin_acked => {
                Some((flag::FIN | flag::ACK, 1, &[][..]))
            }
            _ => None,
        };
        let Some((flags, covers, data)) = segment else { return };
        out.push(self.emit(self.snd_una, flags, data));
        self.arm(now, covers);
    }

    fn arm(&mut self, now: Nanos, covers: u32) {
        self.under_way = covers;
        self.tries += 1;
        self.retry_at = now + RETRANSMIT_AFTER;
        if self.tries > TRIES_MAX {
            self.state = State::Failed;
            self.under_way = 0;
        }
    }

    fn emit(&self, seq: u32, flags: u8, payload: &[u8]) -> Vec<u8> {
        let (local, remote) = (&self.local, &self.remote);
        let mut spec =
            TcpSpec::new((local.addr, local.port), (remote.addr, remote.port), flags, payload);
        spec.link = LinkSpec { destination: remote.mac, source: local.mac, ..LinkSpec::default() };
        spec.seq = seq;
        spec.ack = if flags & flag::ACK != 0 { self.rcv_nxt } else { 0 };
        tcp_packet(&spec)
    }
}
