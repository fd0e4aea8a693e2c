//! Programs on top: clients that say something and know what they must hear, servers that say
//! everything back, changed.

use std::collections::HashMap;

use super::receive::Arrived;
use super::{Profile, Stand, Tcp};
use crate::base::{Addr, Nanos};
use crate::packet::{FlowKey, PacketMeta, tcp};
use crate::sim::net::Outbox;
use crate::sim::tcp::Endpoint;

/// What comes back for each byte.
fn changed(byte: u8) -> u8 {
    byte ^ 0x5a
}

/// What a client does.
#[derive(Clone, Debug)]
pub struct Plan {
    pub start: Nanos,
    pub says: Vec<u8>,
    /// Closes its direction with the last byte; otherwise once it has heard everything.
    pub closes_early: bool,
    pub pause: Option<Pause>,
}

/// What a client waits for before it says all, as clients of HTTP/2 do for the server's settings.
/// The server may as well not say it first.
#[derive(Clone, Debug)]
pub struct Pause {
    /// Bytes that it says before.
    pub at: usize,
    /// What it waits for: whatever the server says by itself.
    pub hears: Vec<u8>,
    /// It waits no longer.
    pub until: Nanos,
    /// What it says to that, which is none of [`Plan::says`].
    pub answer: Vec<u8>,
    /// Bytes of [`Plan::says`] before that, where it is not said later.
    pub answer_at: usize,
}

/// A client with one connection.
pub struct Talker {
    plan: Plan,
    tcp: Tcp,
    opened: bool,
    /// Bytes of the plan that were said.
    said: usize,
    has_answered: bool,
}

impl Talker {
    pub fn new(
        profile: Profile,
        local: Endpoint,
        remote: Endpoint,
        isn: u32,
        plan: Plan,
    ) -> Talker {
        let tcp = Tcp::connect(profile, local, remote, isn);
        Talker { plan, tcp, opened: false, said: 0, has_answered: false }
    }

    pub fn mac(&self) -> [u8; 6] {
        self.tcp.local.mac
    }

    pub fn tcp(&self) -> &Tcp {
        &self.tcp
    }

    /// Whether it has heard everything, and nothing else, and both sides are closed.
    pub fn is_served(&self) -> bool {
        self.tcp.stand == Stand::Closed && self.heard_all()
    }

    fn heard_all(&self) -> bool {
        let says = self.plan.says.iter();
        let heard = &self.tcp.received[self.greeting()..];
        heard.len() == self.plan.says.len()
            && heard.iter().zip(says).all(|(got, said)| *got == changed(*said))
    }

    /// Bytes that the server has said by itself.
    fn greeting(&self) -> usize {
        let hears = self.plan.pause.as_ref().map_or(&[][..], |pause| &pause.hears);
        if self.tcp.received.starts_with(hears) { hears.len() } else { 0 }
    }

    pub fn was_greeted(&self) -> bool {
        self.greeting() > 0
    }

    /// Says on, as far as it need not wait. Returns when it waits no longer.
    fn say_on(&mut self, now: Nanos) -> Option<Nanos> {
        let greeted = self.was_greeted();
        let Plan { says, pause, closes_early, .. } = &self.plan;
        let (tcp, said) = (&mut self.tcp, &mut self.said);
        let mut say = |tcp: &mut Tcp, to: usize| {
            tcp.write(says.get(*said..to).unwrap_or_default());
            *said = to.max(*said);
        };
        if let Some(pause) = pause {
            say(tcp, pause.at);
            if !greeted && now < pause.until {
                return Some(pause.until);
            }
            if greeted && !std::mem::replace(&mut self.has_answered, true) {
                say(tcp, pause.answer_at);
                tcp.write(&pause.answer);
            }
        }
        say(tcp, says.len());
        if *closes_early {
            tcp.finish();
        }
        None
    }

    pub(in crate::sim) fn turn(&mut self, now: Nanos, frame: Option<&[u8]>, out: &mut Outbox) {
        if !self.opened && now < self.plan.start {
            return out.wake(self.plan.start);
        }
        self.opened = true;
        let mut meta = PacketMeta::default();
        if let Some(segment) = frame.and_then(|f| Arrived::read(f, &mut meta)) {
            let (local, remote) = (self.tcp.local, self.tcp.remote);
            let key = segment.meta.key;
            let ours = (key.src, key.sport) == (remote.addr, remote.port);
            if ours && (key.dst, key.dport) == (local.addr, local.port) {
                self.tcp.receive(now, &segment, &mut out.frames);
            }
        }
        let waits_until = self.say_on(now);
        if self.tcp.received.len() >= self.greeting() + self.plan.says.len() {
            self.tcp.finish();
        }
        self.tcp.turn(now, &mut out.frames);
        for at in [self.tcp.wake_at(), waits_until].into_iter().flatten() {
            out.wake(at);
        }
    }
}

/// How a server takes connections.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mood {
    Willing,
    /// Answers SYNs with resets.
    Refusing,
    Silent,
}

/// Says everything back.
pub struct Echo {
    mac: [u8; 6],
    gateway: [u8; 6],
    addr: Addr,
    profile: Profile,
    pub mood: Mood,
    conns: HashMap<FlowKey, (Tcp, usize)>,
    /// Packets that were not for it, or damaged.
    pub strange: u64,
}

impl Echo {
    pub fn new(profile: Profile, mac: [u8; 6], gateway: [u8; 6], addr: Addr) -> Echo {
        let mood = Mood::Willing;
        Echo { mac, gateway, addr, profile, mood, conns: HashMap::new(), strange: 0 }
    }

    pub fn mac(&self) -> [u8; 6] {
        self.mac
    }

    /// Its connections, in no order.
    pub fn conns(&self) -> impl Iterator<Item = &Tcp> {
        self.conns.values().map(|(tcp, _)| tcp)
    }

    pub(in crate::sim) fn turn(&mut self, now: Nanos, frame: Option<&[u8]>, out: &mut Outbox) {
        let mut meta = PacketMeta::default();
        let Some(frame) = frame else {
            // In the order of their keys: a hash map's own order differs from run to run.
            let mut keys: Vec<_> = self.conns.keys().copied().collect();
            keys.sort_by_key(|k| (k.src, k.dst, k.sport, k.dport));
            for key in keys {
                self.serve(now, &key, out);
            }
            return;
        };
        match Arrived::read(frame, &mut meta) {
            Some(segment) if segment.meta.key.dst == self.addr => self.hear(now, &segment, out),
            _ => self.strange += 1,
        }
    }

    fn hear(&mut self, now: Nanos, segment: &Arrived<'_>, out: &mut Outbox) {
        let key = segment.meta.key;
        let opens = segment.meta.tcp_flags == tcp::flag::SYN;
        let known = self.conns.get(&key).is_some_and(|(tcp, _)| !(opens && tcp.is_over()));
        if self.mood == Mood::Silent {
            return;
        }
        if known {
            if let Some((tcp, _)) = self.conns.get_mut(&key) {
                tcp.receive(now, segment, &mut out.frames);
            }
        } else if opens && self.mood == Mood::Willing {
            let ends = self.ends(&key);
            let isn = u32::from(key.sport) << 16 ^ 0xffff_0000 ^ now.0 as u32;
            self.conns.insert(key, (Tcp::accept(self.profile, ends, isn, segment), 0));
        } else if segment.meta.tcp_flags & tcp::flag::RST == 0 {
            let (local, remote) = self.ends(&key);
            out.frames.push(refusal(local, remote, segment));
            return;
        }
        self.serve(now, &key, out);
    }

    fn ends(&self, key: &FlowKey) -> (Endpoint, Endpoint) {
        let local = Endpoint { mac: self.mac, addr: key.dst, port: key.dport };
        (local, Endpoint { mac: self.gateway, addr: key.src, port: key.sport })
    }

    fn serve(&mut self, now: Nanos, key: &FlowKey, out: &mut Outbox) {
        let Some((tcp, said)) = self.conns.get_mut(key) else { return };
        let fresh: Vec<u8> = tcp.received[*said..].iter().map(|b| changed(*b)).collect();
        *said = tcp.received.len();
        tcp.write(&fresh);
        if tcp.peer_finished() {
            tcp.finish();
        }
        tcp.turn(now, &mut out.frames);
        if let Some(at) = tcp.wake_at() {
            out.wake(at);
        }
    }
}

/// What a closed port says (RFC 9293, section 3.10.7.1).
fn refusal(local: Endpoint, remote: Endpoint, segment: &Arrived<'_>) -> Vec<u8> {
    use crate::packet::build::{LinkSpec, TcpSpec, tcp_packet};
    use tcp::flag::{ACK, FIN, RST, SYN};
    let meta = segment.meta;
    let space =
        segment.payload.len() as u32 + u32::from(segment.has(SYN)) + u32::from(segment.has(FIN));
    let (flags, seq, ack) = match segment.has(ACK) {
        true => (RST, meta.tcp_ack, 0),
        false => (RST | ACK, 0, meta.tcp_seq.wrapping_add(space)),
    };
    let ends = ((local.addr, local.port), (remote.addr, remote.port));
    let mut spec = TcpSpec::new(ends.0, ends.1, flags, &[]);
    spec.link = LinkSpec { destination: remote.mac, source: local.mac, ..LinkSpec::default() };
    (spec.seq, spec.ack) = (seq, ack);
    tcp_packet(&spec)
}
