//! A TCP as strict as it is real: options, windows, SACK, timestamps, PAWS, many segments under
//! way. Whatever a path between two of them gets wrong is noted as a fault.

mod hosts;
mod receive;
mod send;

pub use hosts::{Echo, Mood, Pause, Plan, Talker};

use std::time::Duration;

use super::tcp::Endpoint;
use crate::base::Nanos;
use crate::forward::splice::options::{Offer, OptionBytes, Stamps};
use crate::packet::build::{LinkSpec, TcpSpec, tcp_packet};
use crate::packet::tcp::flag;

/// First wait for an acknowledgement; doubled with every further one.
const WAIT: Duration = Duration::from_millis(250);
const WAIT_MAX: Duration = Duration::from_secs(3);
/// Waits in vain before a connection is given up.
const WAITS_MAX: u32 = 40;
/// Segments under way at most.
const FLIGHT: usize = 12;
/// Faults that are kept.
const FAULTS_MAX: usize = 4;

/// What a TCP is like.
#[derive(Clone, Copy, Debug)]
pub struct Profile {
    pub mss: u16,
    pub window_scale: Option<u8>,
    pub sack: bool,
    pub stamps: bool,
    /// Bytes that it buffers.
    pub buffer: u32,
    /// Where its clock stands at the beginning of time.
    pub clock: u32,
    /// Bytes that its program reads every 10 ms.
    pub reads: u32,
}

impl Default for Profile {
    fn default() -> Profile {
        Profile {
            mss: 1_460,
            window_scale: Some(7),
            sack: true,
            stamps: true,
            buffer: 65_536,
            clock: 0,
            reads: u32::MAX,
        }
    }
}

/// How a connection stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stand {
    Opening,
    Accepting,
    Open,
    /// Both sides have said all.
    Closed,
    Reset,
    /// Nobody answers.
    Failed,
}

/// One end of one connection. Positions count bytes of a stream; a FIN takes one.
pub struct Tcp {
    pub local: Endpoint,
    /// Its MAC is the next hop's.
    pub remote: Endpoint,
    pub stand: Stand,
    /// All that came in order.
    pub received: Vec<u8>,
    /// What no sound path brings about.
    pub faults: Vec<String>,
    profile: Profile,
    /// What both sides have agreed on.
    sack: bool,
    stamps: bool,
    peer_mss: u16,
    peer_scale: u8,
    our_scale: u8,
    // Sending.
    isn: u32,
    sending: Vec<u8>,
    finish: bool,
    acked: u32,
    next: u32,
    /// Sent at some time.
    sent: u32,
    again: u32,
    again_end: u32,
    window: u32,
    sacked: Vec<(u32, u32)>,
    duplicates: u32,
    waits: u32,
    deadline: Option<Nanos>,
    // Receiving.
    peer_isn: u32,
    early: Vec<(u32, Vec<u8>)>,
    peer_end: Option<u32>,
    peer_finished: bool,
    unread: u32,
    read_at: Nanos,
    edge_told: u32,
    must_answer: bool,
    recent: u32,
    /// Range of our timestamps that may come back.
    stamps_sent: Option<(u32, u32)>,
}

impl Tcp {
    fn new(profile: Profile, local: Endpoint, remote: Endpoint, isn: u32) -> Tcp {
        Tcp {
            local,
            remote,
            stand: Stand::Opening,
            received: Vec::new(),
            faults: Vec::new(),
            profile,
            sack: profile.sack,
            stamps: profile.stamps,
            peer_mss: 536,
            peer_scale: 0,
            our_scale: 0,
            isn,
            sending: Vec::new(),
            finish: false,
            acked: 0,
            next: 0,
            sent: 0,
            again: 0,
            again_end: 0,
            window: 0,
            sacked: Vec::new(),
            duplicates: 0,
            waits: 0,
            deadline: None,
            peer_isn: 0,
            early: Vec::new(),
            peer_end: None,
            peer_finished: false,
            unread: 0,
            read_at: Nanos::ZERO,
            edge_told: 0,
            must_answer: false,
            recent: 0,
            stamps_sent: None,
        }
    }

    /// Opens a connection; its SYN goes out with the next [`Tcp::turn`].
    pub fn connect(profile: Profile, local: Endpoint, remote: Endpoint, isn: u32) -> Tcp {
        Tcp::new(profile, local, remote, isn)
    }

    /// Has these bytes sent, after those before.
    pub fn write(&mut self, bytes: &[u8]) {
        self.sending.extend_from_slice(bytes);
    }

    /// Closes this direction once everything is sent.
    pub fn finish(&mut self) {
        self.finish = true;
    }

    pub fn peer_finished(&self) -> bool {
        self.peer_finished
    }

    /// Whether nothing more will come of it.
    pub fn is_over(&self) -> bool {
        matches!(self.stand, Stand::Closed | Stand::Reset | Stand::Failed)
    }

    /// When [`Tcp::turn`] is to be called without a segment.
    pub fn wake_at(&self) -> Option<Nanos> {
        if self.is_over() {
            return None;
        }
        let read = (self.unread > 0).then_some(self.read_at);
        [self.deadline, read].into_iter().flatten().min()
    }

    fn fault(&mut self, what: String) {
        if self.faults.len() < FAULTS_MAX {
            self.faults.push(what);
        }
    }

    /// Bytes to be sent and the FIN.
    fn end(&self) -> u32 {
        self.sending.len() as u32 + u32::from(self.finish)
    }

    fn clock(&self, now: Nanos) -> u32 {
        ((now.0 / 1_000_000) as u32).wrapping_add(self.profile.clock)
    }

    /// The next byte that is wanted of the peer.
    fn wanted(&self) -> u32 {
        self.received.len() as u32 + u32::from(self.peer_finished)
    }

    fn emit(&mut self, now: Nanos, flags: u8, (at, payload): (u32, &[u8])) -> Vec<u8> {
        let (local, remote) = (self.local, self.remote);
        let mut spec =
            TcpSpec::new((local.addr, local.port), (remote.addr, remote.port), flags, payload);
        spec.link = LinkSpec { destination: remote.mac, source: local.mac, ..LinkSpec::default() };
        let syn = flags & flag::SYN != 0;
        spec.seq = self.isn.wrapping_add(u32::from(!syn)).wrapping_add(at);
        if flags & flag::ACK != 0 {
            spec.ack = self.peer_isn.wrapping_add(1).wrapping_add(self.wanted());
        }
        let stamps = self.stamp(now, flags);
        let room = self.profile.buffer.saturating_sub(self.unread);
        let scale = if syn { 0 } else { self.our_scale };
        spec.window = (room >> scale).min(65_535) as u16;
        let edge = self.wanted() + (u32::from(spec.window) << scale);
        self.edge_told = self.edge_told.max(edge);
        spec.options = match syn {
            true => self.offer(stamps).bytes().as_slice().to_vec(),
            false => self.options(stamps),
        };
        if flags & flag::ACK != 0 {
            self.must_answer = false;
        }
        tcp_packet(&spec)
    }

    fn stamp(&mut self, now: Nanos, flags: u8) -> Option<Stamps> {
        if !self.stamps || flags & flag::RST != 0 {
            return None;
        }
        let value = self.clock(now);
        let first = self.stamps_sent.map_or(value, |(first, _)| first);
        self.stamps_sent = Some((first, value));
        let echo = if flags & flag::ACK != 0 { self.recent } else { 0 };
        Some(Stamps { value, echo })
    }

    fn offer(&self, stamps: Option<Stamps>) -> Offer {
        let window_scale = self.profile.window_scale;
        Offer { mss: Some(self.profile.mss), window_scale, sack: self.sack, stamps }
    }

    /// Timestamps, and what came early (RFC 2018): the newest run first is not told apart here.
    fn options(&self, stamps: Option<Stamps>) -> Vec<u8> {
        let mut options = OptionBytes::of_segment(stamps).as_slice().to_vec();
        let runs = self.early_runs();
        if self.sack && !runs.is_empty() {
            let runs = &runs[..runs.len().min(3)];
            options.extend([1, 1, 5, 2 + 8 * runs.len() as u8]);
            for (from, to) in runs {
                let base = self.peer_isn.wrapping_add(1);
                options.extend(base.wrapping_add(*from).to_be_bytes());
                options.extend(base.wrapping_add(*to).to_be_bytes());
            }
        }
        options
    }
}

impl std::fmt::Display for Tcp {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (port, stand) = (self.remote.port, self.stand);
        write!(f, "toward port {port} {stand:?}: {} of {} acked", self.acked, self.end())?;
        write!(f, ", {} sent, window {}, {} waits", self.sent, self.window, self.waits)?;
        let (got, end) = (self.received.len(), self.peer_end);
        write!(f, "; {got} of {end:?} received, early {:?}, ", self.early_runs())?;
        write!(f, "{} unread; {:?}", self.unread, self.profile)
    }
}
