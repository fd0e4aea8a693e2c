//! Connections whose both ends are made here, segment by segment: they cost the far ends' core so
//! little that the router gets as many as it can take. They do what Linux's ends do in the same
//! place: an acknowledgement for each segment that isn't answered at once, and the server closes
//! first, which spares routers on sockets the wait for old ports.

use std::time::{Duration, Instant};

use anyhow::{bail, ensure};
use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::unistd::Pid;
use tidegate::nic::link::{index_of, mac_of};
use tidegate::packet::tcp::flag::{ACK, FIN, PSH, RST, SYN};

use crate::bed::{Bed, CLIENTS, FAR_CORE, NAMES};
use crate::end::{End, Segment, Socket};
use crate::ends::{ANSWER_BYTES, FLIGHT_BYTES, REQUEST_BYTES, Seen, Wish, hellos, target};

const SERVER_ISN: u32 = 1_000;
const MSS: usize = 1_460;
/// Of a server's stream, its last byte.
const STREAM_BYTES: u32 = (FLIGHT_BYTES + ANSWER_BYTES) as u32;
/// A connection that has not come on for this long is given up, and counted.
const STALL: Duration = Duration::from_millis(500);
const LOOK_EVERY: Duration = Duration::from_millis(20);
/// Connections given up for each that was served, at most: fewer than those tell nothing.
const GIVEN_UP_MAX: f64 = 0.001;
/// Ports that clients have, from this one on.
const PORT_FIRST: u16 = 1_024;
const PORTS: usize = 64_000;

/// Clients and servers in a bed, ready.
pub struct Ends {
    clients: End,
    servers: End,
    /// Where this thread was before.
    cores: CpuSet,
}

impl Ends {
    /// # Errors
    /// Sockets that can't be opened.
    pub fn open(bed: &Bed) -> anyhow::Result<Ends> {
        let mut core = CpuSet::new();
        core.set(FAR_CORE)?;
        let cores = sched_getaffinity(Pid::from_raw(0))?;
        sched_setaffinity(Pid::from_raw(0), &core)?;
        let mac = |interface: &'static str| bed.router.enter(move || mac_of(index_of(interface)?));
        let clients = End::open(&bed.clients, "g0", mac("wan")??)?;
        let servers = End::open(&bed.servers, "s0", mac("lan")??)?;
        Ok(Ends { clients, servers, cores })
    }

    /// So many clients at once open connections one after another, each for one answer. `number`
    /// is of the next connection: addresses and ports of no two are the same.
    ///
    /// # Errors
    /// A connection that is reset or led elsewhere; more than a few that hang.
    pub fn connections(
        &mut self,
        (at_once, number): (usize, &mut usize),
        routed: bool,
        window: Duration,
    ) -> anyhow::Result<Seen> {
        let mut crowd = Crowd::new(at_once, routed, number);
        crowd.run(&mut self.clients, &mut self.servers, window)?;
        Ok(crowd.seen)
    }

    /// # Errors
    /// A namespace gone, or the cores of before not to be had again.
    pub fn close(self, bed: &Bed) -> anyhow::Result<()> {
        self.clients.close(&bed.clients)?;
        self.servers.close(&bed.servers)?;
        Ok(sched_setaffinity(Pid::from_raw(0), &self.cores)?)
    }
}

struct Crowd<'a> {
    clients: Vec<Client>,
    hellos: [Vec<u8>; NAMES.len()],
    routed: bool,
    number: &'a mut usize,
    seen: Seen,
    given_up: u64,
    fault: Option<String>,
}

/// One connection of a client.
struct Client {
    socket: Socket,
    server: Socket,
    name: usize,
    isn: u32,
    /// Of the server's stream, what has come.
    got: u32,
    server_isn: u32,
    asked: bool,
    begun: Instant,
    moved: Instant,
}

impl Crowd<'_> {
    fn new(at_once: usize, routed: bool, number: &mut usize) -> Crowd<'_> {
        let clients = Vec::with_capacity(at_once);
        let seen = Seen::default();
        Crowd { clients, hellos: hellos(), routed, number, seen, given_up: 0, fault: None }
    }

    fn run(&mut self, to: &mut End, servers: &mut End, window: Duration) -> anyhow::Result<()> {
        let (start, mut looked) = (Instant::now(), Instant::now());
        for slot in 0..self.clients.capacity() {
            let client = self.fresh(slot);
            to.send(&client.syn());
            self.clients.push(client);
        }
        to.flush();
        while start.elapsed() < window {
            let asked = servers.receive(|segment, answers| serve(segment, |s| answers.send(s)));
            let told = to.receive(|segment, answers| self.take(segment, |s| answers.send(s)));
            if asked + told == 0 {
                // The kernel's threads that take frames in have the same core.
                std::thread::yield_now();
            }
            if looked.elapsed() >= LOOK_EVERY {
                looked = Instant::now();
                self.give_up(to);
            }
            if let Some(fault) = self.fault.take() {
                bail!("{fault}");
            }
        }
        self.seen.elapsed = start.elapsed();
        ensure!(self.seen.done > 0, "no connection was served");
        let most = (self.seen.done as f64 * GIVEN_UP_MAX).max(1.0);
        ensure!(self.given_up as f64 <= most, "{} connections hang", self.given_up);
        Ok(())
    }

    /// The next connection of the client with this slot, which its port tells.
    fn fresh(&mut self, slot: usize) -> Client {
        let round = *self.number;
        *self.number += 1;
        let rounds = PORTS / self.clients.capacity();
        let port = PORT_FIRST + (round % rounds * self.clients.capacity() + slot) as u16;
        let [a, b, c, d] = CLIENTS[round / rounds % CLIENTS.len()];
        let name = round % NAMES.len();
        let at = target(name, self.routed);
        let server = match at.ip() {
            std::net::IpAddr::V4(ip) => (ip.octets(), at.port()),
            std::net::IpAddr::V6(_) => unreachable!("the bed has IPv4"),
        };
        let now = Instant::now();
        Client {
            socket: ([a, b, c, d], port),
            server,
            name,
            isn: (round as u32).wrapping_mul(70_001),
            got: 0,
            server_isn: 0,
            asked: false,
            begun: now,
            moved: now,
        }
    }

    fn give_up(&mut self, to: &mut End) {
        for slot in 0..self.clients.len() {
            if self.clients[slot].moved.elapsed() >= STALL {
                self.given_up += 1;
                self.clients[slot] = self.fresh(slot);
                to.send(&self.clients[slot].syn());
            }
        }
        to.flush();
    }

    fn take(&mut self, segment: &Segment<'_>, mut send: impl FnMut(&Segment<'_>)) {
        let offset = usize::from(segment.dst.1.wrapping_sub(PORT_FIRST));
        let slot = offset % self.clients.len();
        let client = &mut self.clients[slot];
        if client.socket != segment.dst || client.server != segment.src {
            return; // of an earlier connection: its last acknowledgement
        }
        match client.take(segment, &self.hellos, &mut send) {
            Ok(false) => {}
            Ok(true) => {
                self.seen.done += 1;
                self.seen.took.push(client.begun.elapsed());
                self.clients[slot] = self.fresh(slot);
                send(&self.clients[slot].syn());
            }
            Err(e) => self.fault = Some(format!("{e:#}")),
        }
    }
}

impl Client {
    fn segment<'a>(&self, sent: u32, flags: u8, payload: &'a [u8]) -> Segment<'a> {
        let (src, dst) = (self.socket, self.server);
        let ack = self.server_isn.wrapping_add(1).wrapping_add(self.got);
        Segment { src, dst, seq: self.isn.wrapping_add(1 + sent), ack, flags, payload }
    }

    fn syn(&self) -> Segment<'static> {
        Segment { seq: self.isn, ack: 0, ..self.segment(0, SYN, &[]) }
    }

    /// `true`: it has been served.
    fn take(
        &mut self,
        segment: &Segment<'_>,
        hellos: &[Vec<u8>],
        send: &mut impl FnMut(&Segment<'_>),
    ) -> anyhow::Result<bool> {
        ensure!(!segment.has(RST), "a connection is reset");
        let hello = &hellos[self.name];
        let asked = hello.len() as u32;
        if segment.has(SYN | ACK) {
            self.server_isn = segment.seq;
            self.moved = Instant::now();
            send(&self.segment(0, ACK, &[]));
            send(&self.segment(0, ACK | PSH, hello));
            return Ok(false);
        }
        if segment.payload.is_empty() && !segment.has(FIN) {
            return Ok(false);
        }
        let sent = asked + if self.asked { REQUEST_BYTES as u32 } else { 0 };
        if segment.seq != self.server_isn.wrapping_add(1).wrapping_add(self.got) {
            send(&self.segment(sent, ACK, &[]));
            return Ok(false);
        }
        if let Some(&first) = segment.payload.first()
            && self.got == 0
        {
            let (name, servers) = NAMES[self.name];
            ensure!(servers.contains(&first), "{name} led to server {first}");
        }
        self.moved = Instant::now();
        self.got += segment.payload.len() as u32;
        if segment.has(FIN) {
            ensure!(self.got == STREAM_BYTES, "closed after {} bytes", self.got);
            self.got += 1;
            send(&self.segment(sent, FIN | ACK, &[]));
            return Ok(true);
        }
        if self.got >= FLIGHT_BYTES as u32 && !self.asked {
            self.asked = true;
            let mut request = [0; REQUEST_BYTES];
            request[0] = Wish::Answer as u8;
            send(&self.segment(sent, ACK | PSH, &request));
        } else {
            send(&self.segment(sent, ACK, &[]));
        }
        Ok(false)
    }
}

/// A server knows from what a segment acknowledges how far its connection is.
fn serve(segment: &Segment<'_>, mut send: impl FnMut(&Segment<'_>)) {
    let (src, dst) = (segment.dst, segment.src);
    let ack = segment.next();
    let at = |sent: u32, flags, payload| {
        let seq = SERVER_ISN.wrapping_add(1).wrapping_add(sent);
        Segment { src, dst, seq, ack, flags, payload }
    };
    if segment.has(SYN) {
        return send(&Segment { seq: SERVER_ISN, ..at(0, SYN | ACK, &[]) });
    }
    let known = segment.ack.wrapping_sub(SERVER_ISN).wrapping_sub(1);
    if segment.has(FIN) {
        send(&at(STREAM_BYTES + 1, ACK, &[]));
    } else if segment.payload.is_empty() {
        // An acknowledgement.
    } else if known == 0 {
        let mut flight = [0; FLIGHT_BYTES];
        flight[0] = src.0[3];
        send(&at(0, ACK, &flight[..MSS]));
        send(&at(MSS as u32, ACK | PSH, &flight[MSS..]));
    } else {
        let answer = [0; ANSWER_BYTES];
        send(&at(FLIGHT_BYTES as u32, ACK | PSH, &answer));
        send(&at(STREAM_BYTES, FIN | ACK, &[]));
    }
}
