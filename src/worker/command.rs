//! What the control plane asks of a worker, and what it hears back.
//!
//! Whatever a worker replaces goes back to be freed there: a worker frees nothing.

use std::sync::Arc;

use crossbeam::queue::ArrayQueue;

use super::count::FlowCount;
use super::egress::EgressQueue;
use super::keys::KeyList;
use super::leaving::Leaving;
use super::turn::Worker;
use crate::base::{Addr, Nanos};
use crate::flow::{Flow, Note, Treatment};
use crate::forward::checks::CheckPacket;
use crate::forward::{Routes, Tables};
use crate::graph::{Pipeline, Snapshot};
use crate::nic::Port;
use crate::nic::wake::Waker;
use crate::packet::{ClassId, FlowRef, Packet, PortId};
use crate::qos::{ClassStats, InFlight, Successor};

/// Commands that wait for one worker at most.
const COMMANDS_MAX: usize = 64;
/// Events of one worker that wait for the control plane at most.
const EVENTS_MAX: usize = 256;
/// Commands obeyed in one turn of the loop at most.
const COMMANDS_A_TURN: usize = 4;
/// Flows looked at for a listing in one turn of the loop at most.
const DUMP_FLOWS_A_TURN: usize = 256;
/// Queues that may leave at once without a reallocation: one for each port of a large box.
const LEAVING_MAX: usize = 64;
/// Events that answer one command at most: what it replaced, and what that has cost.
const ANSWERS_MAX: usize = 2;
/// Room that is kept in the ring of events for answers to commands.
const EVENTS_RESERVED: usize = 64;

/// Asked of one worker, done between two turns of its loop, in order.
pub enum WorkerCommand {
    /// A new configuration; answered by [`WorkerEvent::Old`].
    Update(Box<Update>),
    /// Ports come or go: what is to be done waits at the desk, and what came of it goes back there.
    Ports,
    /// New routes or neighbours; answered by [`WorkerEvent::OldRoutes`].
    Routes(Arc<Routes>),
    /// New weights, and services drained or not; answered by [`WorkerEvent::OldTables`].
    Forward(Arc<Tables>),
    /// Answered by [`WorkerEvent::Flows`].
    ListFlows(FlowList),
    /// As many as there is capacity for; answered by [`WorkerEvent::Classes`].
    ListClasses(Vec<ClassRow>),
    /// Answered by [`WorkerEvent::Counted`].
    CountFlows(Box<FlowCount>),
    /// Answered by [`WorkerEvent::Keys`].
    ListKeys(Box<KeyList>),
    /// Answered by [`WorkerEvent::Cut`].
    CutFlows(Box<FlowCount>),
    /// A packet of a health check to be sent; it goes back by its
    /// [`crate::forward::checks::CheckRing`].
    Check(Box<CheckPacket>),
    /// Go on on this thread, which waits for it; answered by [`WorkerEvent::Moved`].
    Move(u16),
    /// Receive nothing more, send what waits until the deadline, then end.
    Stop { deadline: Nanos },
}

/// What a worker tells of its own accord or in answer.
pub enum WorkerEvent {
    /// What an update replaced, to be freed.
    Old(Box<Update>),
    /// How long the turn took that did this, or exchanged ports, and nothing else.
    Blocked(Blocked),
    /// A queue that another has taken over from, to be freed.
    OldEgress(Leaving),
    /// What new routes replaced, to be freed.
    OldRoutes(Arc<Routes>),
    /// What new weights replaced, to be freed.
    OldTables(Arc<Tables>),
    Flows(FlowList),
    /// And when they were listed.
    Classes(Nanos, Vec<ClassRow>),
    Counted(Box<FlowCount>),
    Keys(Box<KeyList>),
    /// How many were cut.
    Cut(Box<FlowCount>),
    /// A packet waits for this neighbour: have the kernel resolve it.
    Wanted(PortId, Addr),
    /// This thread runs the worker now.
    Moved {
        thread: u16,
        blocked: Blocked,
    },
}

/// What a new configuration, other ports, or another thread, have cost a worker's packets,
/// nanoseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Blocked {
    /// For so long the worker did not look for packets.
    pub ns: u64,
    /// That it worked itself: less, where its core was given to others meanwhile.
    pub worked_ns: u64,
}

/// A new configuration for one worker.
pub struct Update {
    pub snapshot: Snapshot,
    /// `None`: the stages stay as they are, with all they know.
    pub pipeline: Option<Pipeline>,
    /// By port; those beyond the end stay as they are.
    pub egress: Vec<EgressUpdate>,
    /// What each queue may hold from then on.
    pub queue_packets_max: usize,
    /// What each port's device may hold.
    pub in_flight: Box<[InFlight]>,
}

/// What becomes of a port's queue.
pub enum EgressUpdate {
    Keep,
    /// It gets the memory of this one, where that is more.
    Grow(EgressQueue),
    /// The class tree changes and keeps its packets and tokens.
    Succeed(Box<Successor>),
    /// Another kind of queue. Packets move over, into the default class, some a turn; then the old
    /// one goes back as [`WorkerEvent::OldEgress`].
    Replace(Leaving),
}

/// A listing of flows, in parts where there are many.
pub struct FlowList {
    /// Where to begin; where it ended, once answered. 0 at first, and at the end of the table.
    pub cursor: u32,
    /// Filled as far as there is capacity.
    pub rows: Vec<FlowRow>,
}

/// A flow as listed.
#[derive(Clone, Debug)]
pub struct FlowRow {
    pub flow: Flow,
    /// Server name, where one was seen: the first [`FlowRow::NAME_BYTES`] bytes.
    name: [u8; FlowRow::NAME_BYTES],
    name_len: u8,
    /// What else was seen of it.
    pub note: Option<Note>,
    /// What is done with its packets.
    pub treatment: Treatment,
    /// By direction: whether the XDP program forwards it.
    pub offloaded: [bool; 2],
}

impl FlowRow {
    /// Bytes of a name that a listing shows.
    pub const NAME_BYTES: usize = 64;

    /// The server name; empty where none was seen.
    pub fn name(&self) -> &[u8] {
        &self.name[..usize::from(self.name_len)]
    }

    fn new(flow: &Flow, name: &[u8], note: Option<&Note>, treatment: Treatment) -> FlowRow {
        let len = name.len().min(FlowRow::NAME_BYTES);
        let (flow, note) = (flow.clone(), note.cloned());
        let (mut row_name, name_len) = ([0; FlowRow::NAME_BYTES], len as u8);
        row_name[..len].copy_from_slice(&name[..len]);
        FlowRow { flow, name: row_name, name_len, note, treatment, offloaded: [false; 2] }
    }
}

/// A class at one port, as listed.
#[derive(Clone, Debug)]
pub struct ClassRow {
    pub port: PortId,
    pub class: ClassId,
    pub stats: ClassStats,
}

/// Where a worker stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    Running,
    /// Sends what waits until the deadline; then it is to be [closed](Worker::close).
    Draining(Nanos),
    /// Everything is given back; [`Worker::poll`] is not called any more.
    Stopped,
}

/// A worker's end of the rings to and from the control plane.
pub struct ControlLink {
    rings: Arc<Rings>,
    /// A listing of flows under way.
    listing: Option<FlowList>,
    /// A count of flows under way.
    pub(super) counting: Option<Box<FlowCount>>,
    /// A list of keys under way.
    pub(super) keys: Option<Box<KeyList>>,
    /// Flows that are being cut.
    pub(super) cutting: Option<Box<FlowCount>>,
    /// Queues of ports that have others now.
    pub(super) leaving: Vec<Leaving>,
    /// The next flow that other rules are to decide about.
    pub(super) deciding: Option<u32>,
}

/// The control plane's end.
#[derive(Clone)]
pub struct WorkerLink {
    rings: Arc<Rings>,
    waker: Option<Waker>,
}

struct Rings {
    commands: ArrayQueue<WorkerCommand>,
    events: ArrayQueue<WorkerEvent>,
}

/// The two ends of one worker's rings. `waker` ends the worker's sleep.
pub fn control_link(waker: Option<Waker>) -> (ControlLink, WorkerLink) {
    let rings = Arc::new(Rings {
        commands: ArrayQueue::new(COMMANDS_MAX),
        events: ArrayQueue::new(EVENTS_MAX),
    });
    (
        ControlLink {
            rings: Arc::clone(&rings),
            listing: None,
            counting: None,
            keys: None,
            cutting: None,
            leaving: Vec::with_capacity(LEAVING_MAX),
            deciding: None,
        },
        WorkerLink { rings, waker },
    )
}

impl WorkerLink {
    /// # Errors
    /// The command, where too many wait: the worker hangs, or was asked too often.
    pub fn send(&self, command: WorkerCommand) -> Result<(), WorkerCommand> {
        self.rings.commands.push(command)?;
        if let Some(waker) = &self.waker {
            waker.wake();
        }
        Ok(())
    }

    /// The next thing the worker told.
    pub fn recv(&self) -> Option<WorkerEvent> {
        self.rings.events.pop()
    }
}

impl ControlLink {
    pub fn is_called(&self) -> bool {
        !self.rings.commands.is_empty() || self.is_busy() || self.deciding.is_some()
    }

    /// What was asked is under way: the next question waits.
    fn is_busy(&self) -> bool {
        let asked = self.listing.is_some() || self.counting.is_some() || self.cutting.is_some();
        asked || self.keys.is_some() || !self.leaving.is_empty()
    }

    /// Room for one more event, so that whatever a command replaces can go back.
    pub(super) fn has_room(&self, reserve: usize) -> bool {
        self.rings.events.len() + reserve < self.rings.events.capacity()
    }

    pub(super) fn tell(&self, event: WorkerEvent) {
        let told = self.rings.events.push(event);
        debug_assert!(told.is_ok(), "an event without room: has_room was not asked");
    }
}

impl<P: Port> Worker<P> {
    /// Does what the control plane asks, a bounded amount a turn.
    #[inline]
    pub(super) fn obey(&mut self, now: Nanos) {
        if self.parts.control.is_called() {
            self.obey_commands(now);
        }
    }

    #[cold]
    fn obey_commands(&mut self, now: Nanos) {
        self.list_flows();
        self.count_flows();
        self.list_keys();
        self.cut_flows(now);
        self.move_packets(now);
        self.decide_anew(now);
        for _ in 0..COMMANDS_A_TURN {
            let control = &self.parts.control;
            if !control.has_room(ANSWERS_MAX - 1) || control.is_busy() {
                return;
            }
            let Some(command) = self.parts.control.rings.commands.pop() else { return };
            match command {
                // What it takes is told of this turn, which does nothing else.
                WorkerCommand::Update(update) => return self.update(now, update),
                WorkerCommand::Ports => {
                    self.exchange_ports(now);
                    if self.updated {
                        return;
                    }
                }
                WorkerCommand::Routes(routes) => self.reroute(now, routes),
                WorkerCommand::Forward(tables) => {
                    let old = std::mem::replace(&mut self.parts.snapshot.forward, tables);
                    self.parts.control.tell(WorkerEvent::OldTables(old));
                }
                WorkerCommand::CountFlows(mut count) => {
                    (count.cursor, count.flows) = (0, 0);
                    self.parts.control.counting = Some(count);
                    self.count_flows();
                }
                WorkerCommand::ListKeys(mut list) => {
                    list.clear();
                    self.parts.control.keys = Some(list);
                    self.list_keys();
                }
                WorkerCommand::CutFlows(mut cut) => {
                    (cut.cursor, cut.flows) = (0, 0);
                    self.parts.control.cutting = Some(cut);
                    self.cut_flows(now);
                }
                WorkerCommand::ListFlows(mut list) => {
                    list.rows.clear();
                    self.parts.control.listing = Some(list);
                    self.list_flows();
                }
                WorkerCommand::Check(packet) => self.send_check(now, packet),
                WorkerCommand::ListClasses(rows) => self.list_classes(now, rows),
                WorkerCommand::Move(thread) => {
                    self.moving_to = Some(thread);
                    self.updated = true;
                    return;
                }
                WorkerCommand::Stop { deadline } => self.phase = Phase::Draining(deadline),
            }
        }
    }

    fn update(&mut self, now: Nanos, mut update: Box<Update>) {
        std::mem::swap(&mut self.parts.snapshot, &mut update.snapshot);
        if let Some(pipeline) = &mut update.pipeline {
            std::mem::swap(&mut self.parts.pipeline, pipeline);
            self.parts.pipeline.take_over(pipeline);
        }
        if !Arc::ptr_eq(&self.parts.snapshot.rules, &update.snapshot.rules) {
            self.parts.control.deciding = Some(0);
        }
        for (port, change) in update.egress.iter_mut().enumerate() {
            self.change_egress(now, port, change);
        }
        for (side, next) in self.parts.sides.iter_mut().zip(&update.in_flight) {
            side.in_flight.follow(next);
        }
        self.parts.queue_packets_max = update.queue_packets_max;
        self.share_frames();
        self.parts.control.tell(WorkerEvent::Old(update));
        self.updated = true;
        self.retry_parked(now);
    }

    fn change_egress(&mut self, now: Nanos, port: usize, change: &mut EgressUpdate) {
        let Some(side) = self.parts.sides.get_mut(port) else { return };
        match change {
            EgressUpdate::Keep => {}
            EgressUpdate::Grow(next) => side.egress.grow(next),
            EgressUpdate::Succeed(next) => {
                if let EgressQueue::Tree(tree) = &mut side.egress {
                    tree.succeed(now, next);
                }
            }
            EgressUpdate::Replace(leaving) => {
                std::mem::swap(&mut side.egress, &mut leaving.queue);
                if let EgressUpdate::Replace(leaving) =
                    std::mem::replace(change, EgressUpdate::Keep)
                {
                    self.parts.control.leaving.push(leaving);
                }
            }
        }
    }

    fn reroute(&mut self, now: Nanos, routes: Arc<Routes>) {
        let old = std::mem::replace(&mut self.parts.snapshot.routes, routes);
        self.parts.control.tell(WorkerEvent::OldRoutes(old));
        self.retry_parked(now);
    }

    /// Sends the packets whose neighbour is known by now.
    fn retry_parked(&mut self, now: Nanos) {
        let Worker { parts, counters, unparked, .. } = self;
        parts.parking.retry(now, &parts.snapshot.routes, unparked);
        for Packet { frame, meta } in unparked.drain(..) {
            parts.dispatch(now, counters, frame, &meta);
        }
    }

    /// Whether something is asked that is not done yet.
    pub(super) fn has_commands(&self) -> bool {
        self.parts.control.is_called()
    }

    /// Whether the last turn took a new configuration.
    pub(super) fn has_updated(&self) -> bool {
        self.updated
    }

    /// Tells how long the last turn took, in which it took a new configuration.
    #[cold]
    pub(super) fn tell_blocked(&mut self, blocked: Blocked) {
        self.parts.control.tell(WorkerEvent::Blocked(blocked));
    }

    /// Tells the control plane which neighbours packets wait for.
    pub(super) fn ask_for_neighbours(&mut self) {
        while self.parts.control.has_room(EVENTS_RESERVED)
            && let Some((port, addr)) = self.parts.parking.wanted()
        {
            self.parts.control.tell(WorkerEvent::Wanted(port, addr));
        }
    }

    fn list_flows(&mut self) {
        let Some(list) = &mut self.parts.control.listing else { return };
        let (flows, names) = (&self.parts.flows, &self.parts.names);
        for _ in 0..DUMP_FLOWS_A_TURN {
            if list.rows.len() == list.rows.capacity() {
                break;
            }
            if list.cursor as usize >= flows.capacity() {
                list.cursor = 0;
                break;
            }
            let at = FlowRef(list.cursor);
            if let Some(flow) = flows.at(at) {
                let details = flows.details(at);
                let name = names.get(details.name).unwrap_or_default();
                let treatment = flows.steps().treatments.get(flow.treatment);
                let note = names.notes.get(at, details);
                let mut row = FlowRow::new(flow, name, note, treatment);
                row.offloaded = self.offload.as_ref().map_or([false; 2], |o| o.directions(at));
                list.rows.push(row);
            }
            list.cursor += 1;
        }
        let done = list.cursor == 0 || list.rows.len() == list.rows.capacity();
        if done && let Some(list) = self.parts.control.listing.take() {
            self.parts.control.tell(WorkerEvent::Flows(list));
        }
    }

    fn list_classes(&mut self, now: Nanos, mut rows: Vec<ClassRow>) {
        rows.clear();
        for (port, side) in self.parts.sides.iter_mut().enumerate() {
            let EgressQueue::Tree(tree) = &mut side.egress else { continue };
            for (class, stats) in tree.classes() {
                if rows.len() < rows.capacity() {
                    rows.push(ClassRow { port: PortId(port as u16), class, stats });
                }
            }
        }
        self.parts.control.tell(WorkerEvent::Classes(now, rows));
    }
}
