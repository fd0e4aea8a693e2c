//! The machines of a simulation: TCP clients that know what they must get back, servers that answer
//! all of their addresses, and plain packet sources.

use std::collections::HashMap;

use super::net::{Host, Outbox};
use super::stream::{Echo, Talker};
use super::tcp::{Conn, Endpoint, Segment, State};
use crate::base::hash::hash_endpoint;
use crate::base::{Addr, Nanos, Seed};
use crate::packet::build::{LinkSpec, UdpSpec, udp_packet};
use crate::packet::{FlowKey, PacketMeta, ParseOptions, parse, tcp, udp};

/// A request of `bytes` bytes; what it asks for follows from its bytes, see [`answer_to`].
fn request(port: u16, bytes: usize) -> Vec<u8> {
    let header = (bytes as u32).to_be_bytes();
    let body = (4..bytes).map(|i| (i as u16 ^ port) as u8);
    header.into_iter().chain(body).collect()
}

/// What a server answers: every byte changed, so that an echo by mistake would be seen.
fn answer_to(request: &[u8]) -> Vec<u8> {
    request.iter().map(|b| b ^ 0x5a).collect()
}

/// Any of the machines below.
pub enum Machine {
    Client(Client),
    Server(Server),
    Source(Source),
    Talker(Box<Talker>),
    Echo(Box<Echo>),
}

impl Host for Machine {
    fn mac(&self) -> [u8; 6] {
        match self {
            Machine::Client(c) => c.local.mac,
            Machine::Server(s) => s.mac,
            Machine::Source(s) => s.local.mac,
            Machine::Talker(t) => t.mac(),
            Machine::Echo(e) => e.mac(),
        }
    }

    fn turn(&mut self, now: Nanos, frame: Option<&[u8]>, out: &mut Outbox) {
        match self {
            Machine::Client(c) => c.turn(now, frame, out),
            Machine::Server(s) => s.turn(now, frame, out),
            Machine::Source(s) => s.turn(now, frame, out),
            Machine::Talker(t) => t.turn(now, frame, out),
            Machine::Echo(e) => e.turn(now, frame, out),
        }
    }
}

impl Machine {
    /// A client whose connection is over has had its answer; everyone else is always content.
    pub fn is_content(&self) -> bool {
        match self {
            Machine::Client(c) => c.is_served(),
            Machine::Talker(t) => t.is_served(),
            _ => true,
        }
    }
}

/// Opens one connection, sends a request, and closes when it has the answer.
pub struct Client {
    local: Endpoint,
    remote: Endpoint,
    start: Nanos,
    request: Vec<u8>,
    conn: Option<Conn>,
}

impl Client {
    /// `remote` is the service, by the MAC address of the next hop; the request has `bytes` bytes
    /// (at least 4), as has the answer.
    pub fn machine(local: Endpoint, remote: Endpoint, start: Nanos, bytes: usize) -> Machine {
        let request = request(local.port, bytes);
        Machine::Client(Client { local, remote, start, request, conn: None })
    }

    /// Whether the connection was opened, answered in full, and closed.
    pub fn is_served(&self) -> bool {
        self.conn
            .as_ref()
            .is_some_and(|c| c.state == State::Closed && c.received == answer_to(&self.request))
    }

    /// Segments that had to be sent again.
    pub fn retransmissions(&self) -> u64 {
        self.conn.as_ref().map_or(0, |c| c.retransmissions)
    }

    /// How its connection stands; `None` before it is opened.
    pub fn state(&self) -> Option<State> {
        self.conn.as_ref().map(|c| c.state)
    }

    fn turn(&mut self, now: Nanos, frame: Option<&[u8]>, out: &mut Outbox) {
        let Some(conn) = &mut self.conn else {
            if now < self.start {
                return out.wake(self.start);
            }
            let isn = u32::from(self.local.port) << 12;
            let (mut conn, syn) = Conn::connect(now, self.local, self.remote, isn);
            conn.write(&self.request);
            out.frames.push(syn);
            out.wake_at = conn.wake_at();
            self.conn = Some(conn);
            return;
        };
        let mut meta = PacketMeta::default();
        let key = key(&self.remote, &self.local);
        if let Some(segment) = frame.and_then(|f| Segment::read(f, &mut meta))
            && segment.meta.key == key
        {
            conn.receive(&segment, &mut out.frames);
        }
        if conn.received.len() >= self.request.len() {
            conn.finish();
        }
        conn.turn(now, &mut out.frames);
        out.wake_at = conn.wake_at();
    }
}

fn key(from: &Endpoint, to: &Endpoint) -> FlowKey {
    FlowKey { src: from.addr, dst: to.addr, sport: from.port, dport: to.port, proto: tcp::PROTOCOL }
}

/// Where a server sends its answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Gateway {
    /// To this MAC address, all of them.
    Router([u8; 6]),
    /// Straight to whom they are for, past the box (DSR).
    Direct,
}

impl Gateway {
    fn mac(self, to: Addr) -> [u8; 6] {
        match self {
            Gateway::Router(mac) => mac,
            Gateway::Direct => mac_of(to),
        }
    }
}

/// The MAC address of whoever has this address, in every simulation.
pub fn mac_of(addr: Addr) -> [u8; 6] {
    let [a, b, c, d, e, ..] = hash_endpoint(Seed(0), addr, 0).to_be_bytes();
    [0x02, a, b, c, d, e]
}

/// Answers requests over TCP once they are whole, closes after the client, and echoes UDP, whatever
/// address of its own they are sent to.
pub struct Server {
    mac: [u8; 6],
    gateway: Gateway,
    addrs: Vec<Addr>,
    conns: HashMap<FlowKey, Conn>,
    /// Packets to other addresses, or damaged ones. Must stay 0.
    pub refused: u64,
    /// Connections accepted.
    pub accepted: u64,
    /// Datagrams echoed.
    pub echoed: u64,
}

impl Server {
    /// A server that has all these addresses.
    pub fn machine(mac: [u8; 6], gateway: Gateway, addrs: &[Addr]) -> Machine {
        Machine::Server(Server {
            mac,
            gateway,
            addrs: addrs.to_vec(),
            conns: HashMap::new(),
            refused: 0,
            accepted: 0,
            echoed: 0,
        })
    }

    fn turn(&mut self, now: Nanos, frame: Option<&[u8]>, out: &mut Outbox) {
        if let Some(frame) = frame {
            return self.receive(now, frame, out);
        }
        // In the order of their keys: a hash map's own order differs from run to run.
        let mut keys: Vec<_> = self.conns.keys().copied().collect();
        keys.sort_by_key(|k| (k.src, k.dst, k.sport, k.dport));
        for key in keys {
            self.serve(now, &key, out);
        }
    }

    /// Has one connection go on.
    fn serve(&mut self, now: Nanos, key: &FlowKey, out: &mut Outbox) {
        let Some(conn) = self.conns.get_mut(key) else { return };
        let whole = conn
            .received
            .first_chunk::<4>()
            .is_some_and(|header| conn.received.len() == u32::from_be_bytes(*header) as usize);
        if whole && !conn.has_written() {
            let answer = answer_to(&conn.received);
            conn.write(&answer);
        }
        if conn.peer_finished() {
            conn.finish();
        }
        conn.turn(now, &mut out.frames);
        if let Some(at) = conn.wake_at() {
            out.wake(at);
        }
    }

    fn receive(&mut self, now: Nanos, frame: &[u8], out: &mut Outbox) {
        let mut meta = PacketMeta::default();
        let options = ParseOptions { verify_transport_checksum: true };
        let sound = parse(frame, Seed(0), options, &mut meta).is_ok();
        if !sound || !self.addrs.contains(&meta.key.dst) {
            self.refused += 1;
            return;
        }
        match meta.key.proto {
            tcp::PROTOCOL => self.receive_tcp(now, frame, out),
            udp::PROTOCOL => {
                self.echoed += 1;
                let payload = &frame[usize::from(meta.payload)..usize::from(meta.end)];
                out.frames.push(self.datagram(&meta.key.reversed(), &answer_to(payload)));
            }
            _ => {}
        }
    }

    fn receive_tcp(&mut self, now: Nanos, frame: &[u8], out: &mut Outbox) {
        let mut meta = PacketMeta::default();
        let Some(segment) = Segment::read(frame, &mut meta) else { return };
        let key = segment.meta.key;
        if let Some(conn) = self.conns.get_mut(&key) {
            conn.receive(&segment, &mut out.frames);
        } else if segment.meta.tcp_flags == tcp::flag::SYN {
            let local = Endpoint { mac: self.mac, addr: key.dst, port: key.dport };
            let mac = self.gateway.mac(key.src);
            let remote = Endpoint { mac, addr: key.src, port: key.sport };
            let isn = u32::from(key.sport) << 10 ^ 0xdead_beef;
            let (conn, answer) = Conn::accept(now, local, remote, isn, &segment);
            out.frames.push(answer);
            self.conns.insert(key, conn);
            self.accepted += 1;
        }
        self.serve(now, &key, out);
    }

    fn datagram(&self, key: &FlowKey, payload: &[u8]) -> Vec<u8> {
        let mut spec = UdpSpec::new((key.src, key.sport), (key.dst, key.dport), payload);
        let destination = self.gateway.mac(key.dst);
        spec.link = LinkSpec { destination, source: self.mac, ..LinkSpec::default() };
        udp_packet(&spec)
    }
}

/// Sends datagrams at a steady pace and counts their echoes.
pub struct Source {
    local: Endpoint,
    remote: Endpoint,
    every_ns: u64,
    left: u64,
    next: Nanos,
    payload: Vec<u8>,
    pub sent: u64,
    pub echoes: u64,
}

impl Source {
    /// `count` datagrams of `bytes` bytes of payload, one every `every_ns` nanoseconds.
    pub fn machine(
        local: Endpoint,
        remote: Endpoint,
        every_ns: u64,
        count: u64,
        bytes: usize,
    ) -> Machine {
        let payload = request(local.port, bytes.max(4));
        Machine::Source(Source {
            local,
            remote,
            every_ns,
            left: count,
            next: Nanos::ZERO,
            payload,
            sent: 0,
            echoes: 0,
        })
    }

    fn turn(&mut self, now: Nanos, frame: Option<&[u8]>, out: &mut Outbox) {
        if let Some(frame) = frame {
            self.echoes += u64::from(self.is_echo(frame));
            return;
        }
        if self.next == Nanos::ZERO {
            self.next = now;
        }
        while self.left > 0 && self.next <= now {
            let (local, remote) = (&self.local, &self.remote);
            let (src, dst) = ((local.addr, local.port), (remote.addr, remote.port));
            let mut spec = UdpSpec::new(src, dst, &self.payload);
            spec.link =
                LinkSpec { destination: remote.mac, source: local.mac, ..LinkSpec::default() };
            out.frames.push(udp_packet(&spec));
            self.left -= 1;
            self.sent += 1;
            self.next = self.next.saturating_add(self.every_ns);
        }
        if self.left > 0 {
            out.wake(self.next);
        }
    }

    fn is_echo(&self, frame: &[u8]) -> bool {
        let mut meta = PacketMeta::default();
        let options = ParseOptions { verify_transport_checksum: true };
        if parse(frame, Seed(0), options, &mut meta).is_err() {
            return false;
        }
        let expected = FlowKey { proto: udp::PROTOCOL, ..key(&self.remote, &self.local) };
        let payload = &frame[usize::from(meta.payload)..usize::from(meta.end)];
        meta.key == expected && payload == answer_to(&self.payload)
    }
}
