//! Delayed binding under any script of clients' and backends' segments and of time: what reaches
//! either end is what the other has sent, at its place; clients are told that nothing has come which
//! they have not sent, and backends of nothing which clients have not got; every frame is accounted
//! for.
//!
//! The ends tell the truth about their streams, but in any order, piece and repetition, and they
//! may acknowledge, reset, close and begin anew whenever the script says so.

use tidegate::base::Addr;
use tidegate::forward::splice::options::{Offer, OptionBytes, Stamps, kind};
use tidegate::packet::build::{LinkSpec, TcpSpec, tcp_packet};
use tidegate::packet::tcp::flag::{ACK, FIN, PSH, RST, SYN};

use super::rig::Rig;
use super::script::Input;
use super::setup::{DELAYED, NEIGHBOUR_MAC, OWN_MAC, V4, V6, Variant, addr};

mod model;
pub mod seeds;
pub mod services;
mod watch;

use model::{ANSWER_BYTES, Conn, Served, answer_byte, speech};
use services::PORTS;

/// Steps of a script at most.
const STEPS_MAX: usize = 400;
const CLIENTS: usize = 3;
/// Connections at most, one after another.
const CONNS_MAX: usize = 24;
/// Payload of a segment at most: fits both links.
const PAYLOAD_MAX: u32 = 1_200;
const DAY_NS: u64 = 24 * 3_600 * 1_000_000_000;

/// What a step's first byte says; the rest of the byte says which client's connection.
pub mod op {
    /// A new connection: service and family, options, what it will say.
    pub const SYN: u8 = 0;
    /// The SYN again.
    pub const SYN_AGAIN: u8 = 1;
    /// Where its payload begins and how long it is (16 bits each), [`super::form`].
    pub const CLIENT: u8 = 2;
    /// How far from the number that counts.
    pub const CLIENT_RST: u8 = 3;
    /// Options.
    pub const SYN_ACK: u8 = 4;
    /// As [`CLIENT`].
    pub const SERVER: u8 = 5;
    pub const SERVER_RST: u8 = 6;
    /// Time passes: 2 to the power of the operand, 4 us to 17 s.
    pub const TIME: u8 = 7;
    /// The client goes on as a client would, so many segments.
    pub const CLIENT_GOES_ON: u8 = 8;
    pub const SERVER_GOES_ON: u8 = 9;
    /// The configuration is read again.
    pub const RELOAD: u8 = 10;
    /// The box takes a turn, and what it has sent is looked at.
    pub const TURN: u8 = 11;
    pub const COUNT: u8 = 12;
}

/// Bits of a segment's form. Two bits at the bottom: it acknowledges all that it may, the half of
/// it, nothing, or more than it has.
pub mod form {
    pub const HALF: u8 = 1;
    pub const NOTHING: u8 = 2;
    pub const TOO_MUCH: u8 = 3;
    pub const FIN: u8 = 4;
    pub const SACK: u8 = 8;
    pub const NO_WINDOW: u8 = 16;
    /// The box takes no turn.
    pub const AT_ONCE: u8 = 32;
}

/// Bits of a SYN's options; two bits at the top: the window's scale.
pub mod offers {
    pub const STAMPS: u8 = 1;
    pub const SACK: u8 = 2;
    pub const SCALE: u8 = 4;
    pub const SMALL: u8 = 8;
}

/// Input: workers, then steps ([`op`]).
pub fn run(data: &[u8]) {
    let mut input = Input::new(data);
    let workers = 1 + u16::from(input.u8() & 1);
    let mut play = Play {
        rig: Rig::new(workers, Variant { services: DELAYED, ..Variant::WHOLE }),
        workers: usize::from(workers),
        conns: Vec::new(),
        served: Vec::new(),
    };
    for _ in 0..STEPS_MAX {
        if input.is_empty() {
            break;
        }
        let what = input.u8();
        play.step(what % op::COUNT, usize::from(what / op::COUNT) % CLIENTS, &mut input);
    }
    play.end();
}

/// A segment to be made.
#[derive(Default)]
struct Segment {
    flags: u8,
    sequence: u32,
    acknowledgment: u32,
    window: u16,
    options: OptionBytes,
    sack: Option<[u32; 2]>,
    payload: Vec<u8>,
}

struct Play {
    rig: Rig,
    workers: usize,
    conns: Vec<Conn>,
    served: Vec<Served>,
}

impl Play {
    fn step(&mut self, what: u8, which: usize, input: &mut Input<'_>) {
        let conn = self.conns.iter().rposition(|c| c.which == which);
        let served = conn.and_then(|conn| self.served.iter().rposition(|s| s.conn == conn));
        match (what, conn, served) {
            (op::SYN, ..) => self.open(which, input),
            (op::SYN_AGAIN, Some(conn), _) => self.syn(conn),
            (op::CLIENT, Some(conn), _) => {
                let (from, len, form) = (input.u16(), input.u16(), input.u8());
                self.client(conn, u32::from(from), u32::from(len), form);
            }
            (op::CLIENT_RST, Some(conn), _) => {
                let away = i32::from(input.u8() as i8);
                let c = &self.conns[conn];
                let sequence = c.isn.wrapping_add(1 + c.sent.end()).wrapping_add_signed(away);
                let reset = Segment { flags: RST, sequence, ..Segment::default() };
                self.send_client(conn, &reset);
            }
            (op::SYN_ACK, _, Some(served)) => self.syn_ack(served, input.u8()),
            (op::SERVER, _, Some(served)) => {
                let (from, len, form) = (input.u16(), input.u16(), input.u8());
                self.server(served, u32::from(from), u32::from(len), form);
            }
            (op::SERVER_RST, _, Some(served)) => {
                let away = i32::from(input.u8() as i8);
                let s = &self.served[served];
                let sequence = s.isn.wrapping_add(1 + s.said.end()).wrapping_add_signed(away);
                let acknowledgment = s.syn.wrapping_add(1 + s.got.end());
                let flags = RST | ACK;
                let reset = Segment { flags, sequence, acknowledgment, ..Segment::default() };
                self.send_server(served, &reset);
            }
            (op::TIME, ..) => {
                let ns = 4_096 << (input.u8() % 23);
                self.rig.now = self.rig.now.saturating_add(ns);
                self.turn();
            }
            (op::CLIENT_GOES_ON, Some(conn), _) => {
                (0..=input.u8() % 8).for_each(|_| self.client_goes_on(conn));
            }
            (op::SERVER_GOES_ON, _, Some(served)) => {
                (0..=input.u8() % 8).for_each(|_| self.server_goes_on(served));
            }
            (op::RELOAD, ..) => self.rig.reload(self.rig.variant),
            _ => self.turn(),
        }
    }

    fn open(&mut self, which: usize, input: &mut Input<'_>) {
        let (to, options, says) = (input.u8(), input.u8(), input.u8());
        if self.conns.len() >= CONNS_MAX {
            return;
        }
        let family = if to & 4 == 0 { &V4 } else { &V6 };
        let client = (addr(family.clients[which]), 5_000 + which as u16);
        let vip = (addr(family.vip), PORTS[usize::from(to % 4)].0);
        // The first one wraps.
        let isn = (self.conns.len() as u32).wrapping_mul(0x0a00_0000).wrapping_sub(700);
        self.conns.push(Conn::new(which, (client, vip), isn, options, speech(says)));
        self.syn(self.conns.len() - 1);
    }

    fn syn(&mut self, conn: usize) {
        let c = &self.conns[conn];
        let options = self.offer(c.options, 0).bytes();
        let syn = Segment { flags: SYN, sequence: c.isn, options, ..Segment::default() };
        self.send_client(conn, &syn);
    }

    fn syn_ack(&mut self, served: usize, options: u8) {
        let s = &mut self.served[served];
        (s.has_answered, s.options) = (true, options);
        let (sequence, acknowledgment, echo) = (s.isn, s.syn.wrapping_add(1), s.stamp);
        let options = self.offer(options, echo).bytes();
        let flags = SYN | ACK;
        let segment = Segment { flags, sequence, acknowledgment, options, ..Segment::default() };
        self.send_server(served, &segment);
    }

    fn offer(&self, bits: u8, echo: u32) -> Offer {
        let scales = [0, 2, 7, 14];
        Offer {
            mss: Some(if bits & offers::SMALL == 0 { 1_460 } else { 300 }),
            window_scale: (bits & offers::SCALE != 0).then(|| scales[usize::from(bits >> 6)]),
            sack: bits & offers::SACK != 0,
            stamps: (bits & offers::STAMPS != 0).then(|| self.stamps(echo)),
        }
    }

    /// All clocks are the box's.
    fn stamps(&self, echo: u32) -> Stamps {
        Stamps { value: (self.rig.now.0 / 1_000_000) as u32, echo }
    }

    fn client(&mut self, conn: usize, from: u32, len: u32, form: u8) {
        let c = &mut self.conns[conn];
        let Some(our_isn) = c.our_isn else { return self.turn() };
        let end = c.says.len() as u32;
        let from = from.min(end);
        let len = len.min(PAYLOAD_MAX).min(end - from);
        c.sent.add(from, len);
        c.sent.finished |= form & form::FIN != 0 && from + len == end;
        c.lied |= form & 3 == form::TOO_MUCH;
        let (isn, heard, options, echo) = (c.isn, c.heard.end(), c.options, c.stamp);
        let payload = c.says[from as usize..(from + len) as usize].to_vec();
        let fin = form & form::FIN != 0 && from + len == end;
        let segment = self.segment((isn, from, fin), (our_isn, heard), form, (options, echo));
        self.send_client(conn, &Segment { payload, ..segment });
        if form & form::AT_ONCE == 0 {
            self.turn();
        }
    }

    fn server(&mut self, served: usize, from: u32, len: u32, form: u8) {
        let s = &mut self.served[served];
        let from = from.min(ANSWER_BYTES);
        let len = len.min(PAYLOAD_MAX).min(ANSWER_BYTES - from);
        s.said.add(from, len);
        let fin = form & form::FIN != 0 && from + len == ANSWER_BYTES;
        s.said.finished |= fin;
        self.conns[s.conn].misled |= form & 3 == form::TOO_MUCH;
        let (isn, syn, got, options, echo) = (s.isn, s.syn, s.got.end(), s.options, s.stamp);
        let payload = (from..from + len).map(answer_byte).collect();
        let segment = self.segment((isn, from, fin), (syn, got), form, (options, echo));
        self.send_server(served, &Segment { payload, ..segment });
        if form & form::AT_ONCE == 0 {
            self.turn();
        }
    }

    /// A segment at `from` of a stream, that acknowledges another one; without its payload.
    fn segment(
        &self,
        (isn, from, fin): (u32, u32, bool),
        (their_isn, heard): (u32, u32),
        form: u8,
        (options, echo): (u8, u32),
    ) -> Segment {
        let acknowledged = match form & 3 {
            form::HALF => heard / 2,
            form::NOTHING => 0,
            form::TOO_MUCH => heard + 777,
            _ => heard,
        };
        let stamps = (options & offers::STAMPS != 0).then(|| self.stamps(echo));
        let sack = [100, 200].map(|n| their_isn.wrapping_add(heard + n));
        Segment {
            flags: ACK | if fin { FIN } else { PSH },
            sequence: isn.wrapping_add(1 + from),
            acknowledgment: their_isn.wrapping_add(1 + acknowledged),
            window: if form & form::NO_WINDOW == 0 { 5_000 } else { 0 },
            options: OptionBytes::of_segment(stamps),
            sack: (form & form::SACK != 0).then_some(sack),
            payload: Vec::new(),
        }
    }

    fn client_goes_on(&mut self, conn: usize) {
        let c = &self.conns[conn];
        let all = c.says.len() as u32;
        let waits = c.ack_at.filter(|_| c.cut.is_none() && c.heard.next == 0);
        let end = waits.map_or(all, |at| at as u32);
        let from = c.sent.next;
        let fin = if from == all { form::FIN } else { 0 };
        self.client(conn, from, end.saturating_sub(from), fin);
    }

    fn server_goes_on(&mut self, served: usize) {
        let s = &self.served[served];
        if !s.has_answered {
            return self.syn_ack(served, offers::STAMPS | offers::SACK | offers::SCALE);
        }
        let from = s.said.next;
        let fin = if s.got.finished { form::FIN } else { 0 };
        self.server(served, from, ANSWER_BYTES - from, fin);
    }

    fn send_client(&mut self, conn: usize, segment: &Segment) {
        let c = &self.conns[conn];
        let frame = segment.frame(c.client, c.vip, 0);
        self.rig.send(conn % self.workers, 0, &frame);
    }

    fn send_server(&mut self, served: usize, segment: &Segment) {
        let s = &self.served[served];
        let frame = segment.frame(s.local, s.remote, 1);
        // Answers may arrive at any worker.
        self.rig.send((served + s.conn) % self.workers, 1, &frame);
    }

    fn turn(&mut self) {
        self.rig.poll();
        for worker in 0..self.workers {
            for port in 0..2 {
                while let Some(bytes) = self.rig.recv(worker, port) {
                    self.look(port, &bytes);
                }
            }
        }
    }

    /// What waits goes or is given up; nothing is remembered for ever.
    fn end(mut self) {
        self.turn();
        let mut sent = Vec::new();
        self.rig.rest(|port, bytes| sent.push((port, bytes.to_vec())));
        sent.iter().for_each(|(port, bytes)| self.look(*port, bytes));
        for _ in 0..3 {
            self.rig.now = self.rig.now.saturating_add(DAY_NS);
            self.turn();
        }
        self.turn();
        let bindings: usize = self.rig.workers.iter().map(|w| w.bindings()).sum();
        assert_eq!(bindings, 0, "connections wait for ever");
        self.rig.workers.iter_mut().for_each(|w| w.publish(self.rig.now));
        assert_eq!(self.rig.flows(), 0, "flows never end");
        self.rig.finish();
    }
}

impl Segment {
    fn frame(&self, from: (Addr, u16), to: (Addr, u16), port: usize) -> Vec<u8> {
        let mut spec = TcpSpec::new(from, to, self.flags, &self.payload);
        let (destination, source) = (OWN_MAC[port], NEIGHBOUR_MAC[port]);
        spec.link = LinkSpec { destination, source, ..LinkSpec::default() };
        (spec.seq, spec.ack, spec.window) = (self.sequence, self.acknowledgment, self.window);
        spec.options = self.options.as_slice().to_vec();
        if let Some(edges) = self.sack {
            spec.options.extend([kind::NOP, kind::NOP, kind::SACK, 10]);
            edges.iter().for_each(|edge| spec.options.extend(edge.to_be_bytes()));
        }
        tcp_packet(&spec)
    }
}
