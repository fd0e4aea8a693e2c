//! 60-byte TCP packets (64 with FCS) of any number of flows, written for a few nanoseconds each.

use tidegate::base::hash::{Rng, pick};
use tidegate::base::mem::{Table, prefetch};
use tidegate::base::{Addr, Seed};
use tidegate::packet::build::{TcpSpec, tcp_packet};
use tidegate::packet::tcp::flag;
use tidegate::packet::{FlowKey, tcp};

pub const FRAME_LEN: usize = 60;
pub const BACKENDS: u32 = 64;
pub const SERVICE_PORT: u16 = 443;
pub const VIP: u32 = u32::from_be_bytes([192, 0, 2, 10]);
pub const CLIENTS: u32 = u32::from_be_bytes([10, 0, 0, 0]);
/// The appliance's, toward the servers.
pub const NAT: u32 = u32::from_be_bytes([192, 0, 2, 20]);
pub const SERVERS: u32 = u32::from_be_bytes([10, 200, 0, 0]);

const IP: usize = 14;
const TCP: usize = 34;
const PAYLOAD: usize = 54;
/// Packets between choosing a flow and sending one of it.
const AHEAD: usize = 32;

/// What the ports receive.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// Nothing.
    Quiet,
    /// A SYN of each flow up to this one.
    Open(u32),
    /// A SYN-ACK of each flow up to this one.
    Accept(u32),
    /// The third segment of each flow up to this one.
    Confirm(u32),
    /// Data of any flow.
    Data,
}

/// Addresses and ports of one direction of a flow.
#[derive(Clone, Copy, Debug, Default)]
pub struct Ends {
    pub src: u32,
    pub dst: u32,
    pub sport: u16,
    pub dport: u16,
}

impl Ends {
    fn reversed(self) -> Ends {
        Ends { src: self.dst, dst: self.src, sport: self.dport, dport: self.sport }
    }

    fn key(self) -> FlowKey {
        let (src, dst) = (Addr::v4(self.src), Addr::v4(self.dst));
        FlowKey { src, dst, sport: self.sport, dport: self.dport, proto: tcp::PROTOCOL }
    }
}

/// A segment whose addresses, ports and tag are yet to be filled in.
struct Template {
    bytes: [u8; FRAME_LEN],
    ip_sum: u32,
    tcp_sum: u32,
    /// Of the tag, which in a SYN lies behind the packet: SYNs with data are dropped.
    tag_mask: u32,
}

impl Template {
    fn new(flags: u8) -> Template {
        let any = (Addr::v4(CLIENTS), 1);
        let data: &[u8] = if flags & flag::SYN == 0 { &[0; FRAME_LEN - PAYLOAD] } else { &[] };
        let mut spec = TcpSpec::new(any, (Addr::v4(VIP), 1), flags, data);
        spec.seq = 1 + u32::from(flags & flag::SYN == 0);
        spec.ack = spec.seq;
        let packet = tcp_packet(&spec);
        let mut bytes = [0; FRAME_LEN];
        bytes[..packet.len()].copy_from_slice(&packet);
        bytes[IP + 12..IP + 20].fill(0);
        bytes[TCP..TCP + 4].fill(0);
        bytes[IP + 10..IP + 12].fill(0);
        bytes[TCP + 16..TCP + 18].fill(0);
        let segment_len = (packet.len() - TCP) as u32;
        let (ip_sum, tcp_sum) = (sum(&bytes[IP..TCP]), sum(&bytes[TCP..]) + 6 + segment_len);
        let tag_mask = if data.is_empty() { 0 } else { u32::MAX };
        Template { bytes, ip_sum, tcp_sum, tag_mask }
    }

    /// Writes the segment; `tag` goes into its payload.
    #[inline]
    fn write(&self, out: &mut [u8], ends: Ends, tag: u32) -> usize {
        let out = &mut out[..FRAME_LEN];
        out.copy_from_slice(&self.bytes);
        let words = |v: u32| (v >> 16) + (v & 0xffff);
        let addrs = words(ends.src) + words(ends.dst);
        let ports = u32::from(ends.sport) + u32::from(ends.dport);
        let rest = addrs + ports + words(tag & self.tag_mask);
        put(out, IP + 12, &ends.src.to_be_bytes());
        put(out, IP + 16, &ends.dst.to_be_bytes());
        put(out, TCP, &ends.sport.to_be_bytes());
        put(out, TCP + 2, &ends.dport.to_be_bytes());
        put(out, PAYLOAD, &tag.to_be_bytes());
        put(out, IP + 10, &fold(self.ip_sum + addrs).to_be_bytes());
        put(out, TCP + 16, &fold(self.tcp_sum + rest).to_be_bytes());
        FRAME_LEN
    }
}

fn put(out: &mut [u8], at: usize, bytes: &[u8]) {
    out[at..at + bytes.len()].copy_from_slice(bytes);
}

fn sum(bytes: &[u8]) -> u32 {
    bytes.chunks(2).map(|w| u32::from(w[0]) << 8 | u32::from(w[1])).sum()
}

fn fold(sum: u32) -> u16 {
    let once = (sum & 0xffff) + (sum >> 16);
    !((once & 0xffff) + (once >> 16)) as u16
}

/// What differs between the data segments of flows and directions, as it stands on the wire: made
/// beforehand, so that a generator's sums are not taken for the appliance's work.
#[derive(Clone, Copy, Default)]
struct Marks {
    addresses: [u8; 8],
    ports: [u8; 4],
    ip_check: [u8; 2],
    tcp_check: [u8; 2],
}

impl Marks {
    fn of(packet: &[u8]) -> Marks {
        let mut marks = Marks::default();
        marks.addresses.copy_from_slice(&packet[IP + 12..IP + 20]);
        marks.ports.copy_from_slice(&packet[TCP..TCP + 4]);
        marks.ip_check.copy_from_slice(&packet[IP + 10..IP + 12]);
        marks.tcp_check.copy_from_slice(&packet[TCP + 16..TCP + 18]);
        marks
    }

    #[inline]
    fn write(&self, out: &mut [u8], template: &[u8; FRAME_LEN], tag: u32) -> usize {
        let Some(out) = out.first_chunk_mut::<FRAME_LEN>() else { return 0 };
        *out = *template;
        put(out, IP + 12, &self.addresses);
        put(out, TCP, &self.ports);
        put(out, IP + 10, &self.ip_check);
        put(out, TCP + 16, &self.tcp_check);
        put(out, PAYLOAD, &tag.to_be_bytes());
        FRAME_LEN
    }
}

/// The state behind both ports.
pub struct Traffic {
    pub mode: Mode,
    flows: u32,
    /// Services: clients talk to the VIP; else straight to the servers.
    balanced: bool,
    next: u32,
    rng: Rng,
    upcoming: [u32; AHEAD],
    at: usize,
    syn: Template,
    syn_ack: Template,
    ack: Template,
    /// How each flow looks on the servers' side: as sent to the server.
    inside: Table<Ends>,
    /// Data of each flow, from its client and from its server.
    data: Table<[Marks; 2]>,
    pub seen: u64,
}

impl Traffic {
    pub fn new(flows: u32, balanced: bool) -> Traffic {
        Traffic {
            mode: Mode::Quiet,
            flows,
            balanced,
            next: 0,
            rng: Rng::new(Seed(7)),
            upcoming: [0; AHEAD],
            at: 0,
            syn: Template::new(flag::SYN),
            syn_ack: Template::new(flag::SYN | flag::ACK),
            ack: Template::new(flag::ACK),
            inside: Table::filled(flows as usize, Ends::default()),
            data: Table::with_room(0),
            seen: 0,
        }
    }

    /// Starts over with what `mode` sends, from flow `first` on.
    pub fn set(&mut self, mode: Mode, first: u32) {
        self.mode = mode;
        self.next = first;
        if mode == Mode::Data {
            self.prepare();
        }
    }

    fn prepare(&mut self) {
        self.data = Table::filled(self.flows as usize, [Marks::default(); 2]);
        let mut packet = [0; FRAME_LEN];
        for flow in 0..self.flows {
            let ends = [self.outside(flow), self.inside[flow as usize].reversed()];
            self.data[flow as usize] = ends.map(|ends| {
                self.ack.write(&mut packet, ends, flow);
                Marks::of(&packet)
            });
        }
    }

    /// A random flow. What is known of it was asked for some packets ago, so that a generator's
    /// cache misses are not taken for the appliance's.
    #[inline]
    fn next_flow(&mut self) -> u32 {
        let later = pick(self.rng.next_u64(), self.flows);
        prefetch(&self.data, later as usize);
        self.at = self.at.wrapping_add(1);
        std::mem::replace(&mut self.upcoming[self.at % AHEAD], later)
    }

    fn outside(&self, flow: u32) -> Ends {
        let src = CLIENTS + flow;
        let sport = 10_000 + (flow & 0x3fff) as u16;
        let dst = if self.balanced { VIP } else { SERVERS + flow % BACKENDS };
        Ends { src, dst, sport, dport: SERVICE_PORT }
    }

    /// Decides how a flow is translated, without an appliance that does so: its key on the clients'
    /// side, and as it is sent to the server.
    pub fn translate(&mut self, flow: u32) -> (FlowKey, FlowKey) {
        let inside = Ends {
            src: NAT,
            dst: SERVERS + flow % BACKENDS,
            sport: 1_024 + (flow / BACKENDS) as u16,
            dport: SERVICE_PORT,
        };
        self.inside[flow as usize] = inside;
        (self.outside(flow).key(), inside.key())
    }

    /// Has servers' packets look as clients see them: as on a mirror port, where nothing is
    /// translated.
    pub fn overhear(&mut self) {
        for flow in 0..self.flows {
            self.inside[flow as usize] = self.outside(flow);
        }
    }

    /// A packet from a client.
    #[inline]
    pub fn client_packet(&mut self, out: &mut [u8]) -> usize {
        match self.mode {
            Mode::Data => {
                let flow = self.next_flow();
                self.data[flow as usize][0].write(out, &self.ack.bytes, flow)
            }
            Mode::Open(end) | Mode::Confirm(end) if self.next < end => {
                let flow = self.next;
                self.next += 1;
                let syn = matches!(self.mode, Mode::Open(_));
                let template = if syn { &self.syn } else { &self.ack };
                template.write(out, self.outside(flow), flow)
            }
            _ => 0,
        }
    }

    /// A packet from a server.
    #[inline]
    pub fn server_packet(&mut self, out: &mut [u8]) -> usize {
        match self.mode {
            Mode::Data => {
                let flow = self.next_flow();
                self.data[flow as usize][1].write(out, &self.ack.bytes, flow)
            }
            Mode::Accept(end) if self.next < end => {
                let flow = self.next;
                self.next += 1;
                self.syn_ack.write(out, self.inside[flow as usize].reversed(), flow)
            }
            _ => 0,
        }
    }

    /// A packet that arrived at a server: shows how its flow was translated.
    #[inline]
    pub fn learn_nat(&mut self, frame: &[u8]) {
        if matches!(self.mode, Mode::Open(_)) {
            let u32_at = |at: usize| {
                u32::from_be_bytes([frame[at], frame[at + 1], frame[at + 2], frame[at + 3]])
            };
            let ports = u32_at(TCP);
            let flow = u32_at(PAYLOAD) as usize;
            self.seen += 1;
            self.inside[flow] = Ends {
                src: u32_at(IP + 12),
                dst: u32_at(IP + 16),
                sport: (ports >> 16) as u16,
                dport: ports as u16,
            };
        }
    }
}
