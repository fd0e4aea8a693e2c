//! The simulated network: a box under test, its cables, the hosts behind them, and time.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::time::Duration;

use super::appliance::Appliance;
use super::link::{Link, LinkSpec};
use crate::base::hash::Rng;
use crate::base::{Nanos, Seed};
use crate::packet::PortId;

/// Turns of the box's loop at one instant at most: it must come to rest.
const TURNS_MAX: usize = 10_000;
/// How often the box is polled while it holds something or its timers may be due.
const TICK: Duration = Duration::from_millis(5);
/// When a simulation begins.
const START: Nanos = Nanos::from_secs(1);

/// What a host sends, and when it wants to be woken.
#[derive(Default)]
pub struct Outbox {
    pub frames: Vec<Vec<u8>>,
    /// The earliest of several wins; a wake that is no longer needed does no harm.
    pub wake_at: Option<Nanos>,
}

impl Outbox {
    pub fn wake(&mut self, at: Nanos) {
        self.wake_at = Some(self.wake_at.map_or(at, |w| w.min(at)));
    }
}

/// A machine behind a cable. Never asked for the time: it is told.
pub trait Host {
    /// Packets whose Ethernet destination is this are the host's.
    fn mac(&self) -> [u8; 6];

    /// A packet arrived, or (with `None`) the time that was asked for has come, or the start.
    fn turn(&mut self, now: Nanos, frame: Option<&[u8]>, out: &mut Outbox);
}

/// A host's number within its [`Net`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HostId(usize);

enum Event {
    /// Arrives at the box's port.
    ToBox(usize, Vec<u8>),
    /// Arrives at whatever host has the address.
    ToHost(Vec<u8>),
    Wake(usize),
}

/// One cable, both ways.
struct Cable {
    to_box: Link,
    from_box: Link,
    /// The queue that is served next.
    turn: usize,
}

/// Everything that is simulated. Two nets made alike with the same seed do exactly the same.
pub struct Net<H> {
    pub now: Nanos,
    pub appliance: Appliance,
    hosts: Vec<(H, Option<usize>)>,
    /// When each host is to be woken: the earliest it asked for and has not had.
    wakes: Vec<Option<Nanos>>,
    cables: Vec<Cable>,
    events: BinaryHeap<Reverse<(Nanos, u64, usize)>>,
    /// By the number in `events`; used again once they have happened.
    payloads: Vec<Option<Event>>,
    free: Vec<usize>,
    sequence: u64,
    rng: Rng,
    /// Packets that no host was there for.
    pub stray: u64,
    /// Packets that found the queue of a port full.
    pub overrun: u64,
}

impl<H: Host> Net<H> {
    /// The box's ports are cabled by `cables`, one element a port.
    pub fn new(appliance: Appliance, cables: &[LinkSpec], seed: Seed) -> Net<H> {
        let mut rng = Rng::new(seed);
        let mut link = |spec: &LinkSpec| Link::new(*spec, Seed(rng.next_u64()));
        let cables = cables
            .iter()
            .map(|spec| Cable { to_box: link(spec), from_box: link(spec), turn: 0 })
            .collect();
        Net {
            now: START,
            appliance,
            hosts: Vec::new(),
            wakes: Vec::new(),
            cables,
            events: BinaryHeap::new(),
            payloads: Vec::new(),
            free: Vec::new(),
            sequence: 0,
            rng,
            stray: 0,
            overrun: 0,
        }
    }

    /// Adds a host behind a port's cable and starts it.
    pub fn add(&mut self, port: PortId, host: H) -> HostId {
        let id = self.hosts.len();
        self.hosts.push((host, Some(usize::from(port.0))));
        self.wakes.push(Some(self.now));
        self.schedule(self.now, Event::Wake(id));
        HostId(id)
    }

    pub fn host(&self, id: HostId) -> &H {
        &self.hosts[id.0].0
    }

    pub fn hosts(&self) -> impl Iterator<Item = &H> {
        self.hosts.iter().map(|(h, _)| h)
    }

    pub fn hosts_mut(&mut self) -> impl Iterator<Item = &mut H> {
        self.hosts.iter_mut().map(|(h, _)| h)
    }

    /// Runs until nothing is left to happen before `end`, or `done` says so; true in the latter
    /// case.
    pub fn run_until(&mut self, end: Nanos, mut done: impl FnMut(&Net<H>) -> bool) -> bool {
        loop {
            self.settle();
            if done(self) {
                return true;
            }
            let next = self.next_instant();
            if next > end {
                self.now = end;
                return false;
            }
            self.now = next;
            while let Some(&Reverse((at, _, slot))) = self.events.peek()
                && at <= self.now
            {
                self.events.pop();
                self.free.push(slot);
                if let Some(event) = self.payloads[slot].take() {
                    self.happen(event);
                }
            }
        }
    }

    /// Runs for a while.
    pub fn run_for(&mut self, time: Duration) {
        self.run_until(self.now + time, |_| false);
    }

    fn schedule(&mut self, at: Nanos, event: Event) {
        let slot = self.free.pop().unwrap_or(self.payloads.len());
        if slot == self.payloads.len() {
            self.payloads.push(None);
        }
        self.payloads[slot] = Some(event);
        self.sequence += 1;
        self.events.push(Reverse((at, self.sequence, slot)));
    }

    fn next_instant(&self) -> Nanos {
        let event = self.events.peek().map_or(Nanos::MAX, |Reverse((at, _, _))| *at);
        let mut next = event.min(self.now + TICK);
        for worker in &self.appliance.workers {
            // What may go at once waits for the cable, whose time is looked at below.
            if let Some(at) = worker.next_event(self.now).filter(|at| *at > self.now) {
                next = next.min(at);
            }
        }
        for cable in &self.cables {
            if cable.from_box.free_at() > self.now {
                next = next.min(cable.from_box.free_at());
            }
        }
        next
    }

    fn happen(&mut self, event: Event) {
        match event {
            Event::ToBox(port, frame) => {
                let queue = self.appliance.queue_of(port, &frame, &mut self.rng);
                if !self.appliance.ends[queue][port].send(&frame) {
                    self.overrun += 1;
                }
                self.appliance.ends[queue][port].recycle(frame);
            }
            Event::ToHost(frame) => {
                let host = self.hosts.iter().position(|(h, _)| frame.starts_with(&h.mac()));
                match host {
                    Some(id) => self.turn(id, Some(&frame)),
                    None => self.stray += 1,
                }
            }
            // One that an earlier wake has replaced says nothing any more.
            Event::Wake(id) => {
                if self.wakes[id].is_some_and(|at| at <= self.now) {
                    self.wakes[id] = None;
                    self.turn(id, None);
                }
            }
        }
    }

    fn turn(&mut self, id: usize, frame: Option<&[u8]>) {
        let mut out = Outbox::default();
        let (host, port) = &mut self.hosts[id];
        host.turn(self.now, frame, &mut out);
        let port = port.unwrap_or(0);
        if let Some(at) = out.wake_at
            && self.wakes[id].is_none_or(|pending| at < pending)
        {
            self.wakes[id] = Some(at);
            self.schedule(at, Event::Wake(id));
        }
        for frame in out.frames {
            self.send(port, frame);
        }
    }

    /// Puts a packet on the cable toward the box; or straight to a host, where it is addressed to
    /// one: as a backend answers a client past the box (DSR).
    fn send(&mut self, port: usize, frame: Vec<u8>) {
        let direct = self.hosts.iter().any(|(h, _)| frame.starts_with(&h.mac()));
        for at in self.cables[port].to_box.send(self.now, frame.len()).into_iter().flatten() {
            let copy = frame.clone();
            let event = if direct { Event::ToHost(copy) } else { Event::ToBox(port, copy) };
            self.schedule(at, event);
        }
    }

    /// Polls the box until it rests, and carries off what it sends.
    fn settle(&mut self) {
        for turn in 0.. {
            assert!(turn < TURNS_MAX, "the box doesn't come to rest at {:?}", self.now);
            let moved = self.appliance.poll(self.now) + self.collect();
            if moved == 0 {
                return;
            }
        }
    }

    fn collect(&mut self) -> usize {
        let mut collected = 0;
        for port in 0..self.cables.len() {
            while self.cables[port].from_box.free_at() <= self.now
                && let Some(frame) = self.next_from_box(port)
            {
                collected += 1;
                let arrivals = self.cables[port].from_box.send(self.now, frame.len());
                for at in arrivals.into_iter().flatten() {
                    self.schedule(at, Event::ToHost(frame.clone()));
                }
            }
        }
        collected
    }

    /// The next packet that the box sends by a port; its queues take turns.
    fn next_from_box(&mut self, port: usize) -> Option<Vec<u8>> {
        let queues = self.appliance.ends.len();
        for i in 0..queues {
            let queue = (self.cables[port].turn + i) % queues;
            if let Some(frame) = self.appliance.ends[queue][port].recv() {
                self.cables[port].turn = queue + 1;
                return Some(frame);
            }
        }
        None
    }
}
