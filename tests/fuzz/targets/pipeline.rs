//! A whole box under any script: packets on two ports, time, routes, reloads.
//!
//! Afterwards every packet and every frame is accounted for, and what the box has sent on the way
//! is good: its headers hold together, and with checksums verified on the way in they are right on
//! the way out.

use std::collections::VecDeque;

use tidegate::packet::{PacketFlags, PacketMeta, ParseOptions, complete_checksum, parse};
use tidegate::worker::command::FlowList;
use tidegate::worker::{FlowCount, FlowsOf, Phase, WorkerCommand};

use super::rig::Rig;
use super::script::{self, Input, op};
use super::setup::{
    BACKEND_MTU, CLIENT_MTU, NEIGHBOURS, OWN_MAC, ROUTES, SEED, V4, V6, Variant, neighbour, route,
};

/// Steps of a script at most: more say nothing new.
const STEPS_MAX: usize = 300;
/// Packets that can be answered or sent again.
const REMEMBERED_MAX: usize = 32;
/// All that a box remembers of flows is gone after this time without a packet.
const IDLE_DAYS: u64 = 3;
const DAY_NS: u64 = 24 * 3_600 * 1_000_000_000;
const ETHERNET: usize = 14;

/// Of the first byte: workers hand flows down.
pub const OFFLOAD: u8 = 64;

/// Input: workers and variant, then steps ([`op`]).
pub fn run(data: &[u8]) {
    let mut input = Input::new(data);
    let first = input.u8();
    let variant = Variant { verify_checksums: first & 32 != 0, ..variant(first) };
    let mut play = Play {
        rig: Rig::new(1 + u16::from(first >> 4 & 1), variant),
        sent: VecDeque::new(),
        given: VecDeque::new(),
    };
    if first & OFFLOAD != 0 {
        play.rig.offload();
    }
    for _ in 0..STEPS_MAX {
        if input.is_empty() {
            break;
        }
        let what = input.u8();
        play.step(what & !op::POLL, &mut input);
        if what & op::POLL != 0 {
            play.rig.poll();
        }
    }
    play.end();
}

fn variant(bits: u8) -> Variant {
    Variant {
        services: usize::from(bits & 3) % 3,
        whole: bits & 4 == 0,
        route: bits & 8 == 0,
        verify_checksums: false,
    }
}

struct Play {
    rig: Rig,
    /// By the box, latest first: worker, port and bytes.
    sent: VecDeque<(usize, usize, Vec<u8>)>,
    /// To the box.
    given: VecDeque<(usize, usize, Vec<u8>)>,
}

impl Play {
    fn step(&mut self, what: u8, input: &mut Input<'_>) {
        match what % op::COUNT {
            op::PACKET | op::HELLO => {
                let packet = script::described(input, what % op::COUNT == op::HELLO);
                self.give(packet.worker, packet.port, packet.bytes);
            }
            op::RAW => {
                let (to, len) = (usize::from(input.u8()), usize::from(input.u16()));
                let bytes = input.bytes(len).to_vec();
                self.give(to / 2 % 2, to % 2, bytes);
            }
            op::ANSWER | op::ICMP_ERROR => self.answer(what % op::COUNT, input),
            op::TIME => {
                let ns = 256 << (input.u8() % 32);
                self.rig.now = self.rig.now.saturating_add(ns);
            }
            op::TURNS => (0..=input.u8() % 16).for_each(|_| {
                self.rig.poll();
            }),
            op::CARRY => self.carry(),
            op::NEIGHBOUR | op::ROUTE => self.change(what % op::COUNT, input.u8()),
            op::RELOAD => {
                self.rig.reload(variant(input.u8()));
                // What was handed down before is no longer valid.
                self.rig.publish_routes();
            }
            op::LIST => {
                let bits = input.u8();
                let room = usize::from(bits / 4);
                let command = match (bits & 1, room) {
                    (0, 0) => WorkerCommand::CountFlows(Box::new(FlowCount::new(of_https()))),
                    (0, 1) => WorkerCommand::Forward(self.rig.tables(usize::from(bits))),
                    (0, _) => {
                        let rows = Vec::with_capacity(room);
                        WorkerCommand::ListFlows(FlowList { cursor: 0, rows })
                    }
                    _ => WorkerCommand::ListClasses(Vec::with_capacity(room)),
                };
                self.rig.command(usize::from(bits >> 1 & 1), command);
            }
            op::STOP => {
                let bits = input.u8();
                let deadline = self.rig.now.saturating_add(256 << (bits / 2 % 32));
                self.rig.command(usize::from(bits & 1), WorkerCommand::Stop { deadline });
            }
            _ => self.again(input),
        }
    }

    fn give(&mut self, worker: usize, port: usize, bytes: Vec<u8>) {
        self.rig.send(worker, port, &bytes);
        remember(&mut self.given, (worker, port, bytes));
    }

    fn again(&mut self, input: &mut Input<'_>) {
        let which = usize::from(input.u8());
        let Some((worker, port, bytes)) = self.given.get(which / 2 % REMEMBERED_MAX) else {
            return;
        };
        let (worker, port, mut bytes) = (*worker, *port, bytes.clone());
        script::patch(&mut bytes, input);
        if which & 1 != 0 {
            script::fix_sums(&mut bytes);
        }
        self.give(worker, port, bytes);
    }

    fn answer(&mut self, what: u8, input: &mut Input<'_>) {
        let which = usize::from(input.u8());
        let Some((worker, port, sent)) = self.sent.get(which / 2 % REMEMBERED_MAX) else { return };
        let bytes = match what {
            op::ANSWER => script::answer(sent, input),
            _ => script::icmp_error(sent, input),
        };
        // It may arrive at any worker's queue.
        let (worker, port) = (worker + which % 2, *port);
        if let Some(bytes) = bytes {
            self.give(worker, port, bytes);
        }
    }

    fn carry(&mut self) {
        for worker in 0..self.rig.workers.len() {
            for port in 0..2 {
                while let Some(bytes) = self.rig.recv(worker, port) {
                    check_sent(self.rig.variant.verify_checksums, port, &bytes);
                    remember(&mut self.sent, (worker, port, bytes));
                }
            }
        }
    }

    fn change(&mut self, what: u8, bits: u8) {
        let family = if bits & 1 == 0 { &V4 } else { &V6 };
        let (index, there) = (usize::from(bits >> 1 & 7), bits & 16 == 0);
        let routes = &mut self.rig.routes;
        match (what, there) {
            (op::NEIGHBOUR, _) => {
                let (ifindex, addr, mac) = neighbour(family, index % (NEIGHBOURS + 1));
                match there {
                    true => routes.set_neighbour(ifindex, addr, mac),
                    false => routes.remove_neighbour(ifindex, addr),
                }
            }
            (_, true) => routes.add_route(route(family, index % ROUTES)),
            (_, false) => routes.remove_route(route(family, index % ROUTES).prefix),
        }
        if bits & 32 == 0 {
            self.rig.publish_routes();
        }
    }

    /// What waits goes or is given up; without packets flows age away; then all is given back.
    fn end(mut self) {
        let verify = self.rig.variant.verify_checksums;
        self.rig.rest(|port, bytes| check_sent(verify, port, bytes));
        if self.rig.workers.iter().all(|w| w.phase() == Phase::Running) {
            for _ in 0..IDLE_DAYS {
                self.rig.now = self.rig.now.saturating_add(DAY_NS);
                self.rig.poll();
            }
            self.rig.workers.iter_mut().for_each(|w| w.publish(self.rig.now));
            assert_eq!(self.rig.flows(), 0, "flows never end");
            assert_eq!(self.rig.offloaded(), 0, "flows that ended are still offloaded");
        }
        self.rig.finish();
    }
}

fn remember<T>(list: &mut VecDeque<T>, item: T) {
    list.truncate(REMEMBERED_MAX - 1);
    list.push_front(item);
}

/// A packet that the box has sent is one that it would take.
pub fn check_sent(verify_transport_checksum: bool, port: usize, bytes: &[u8]) {
    let mut meta = PacketMeta::default();
    let options = ParseOptions { verify_transport_checksum };
    if let Err(reason) = parse(bytes, SEED, options, &mut meta) {
        panic!("sent what is to be dropped as {}: {bytes:02x?}", reason.label());
    }
    assert_eq!(bytes[6..12], OWN_MAC[port], "from another's MAC address");
    // Answers go back over the link that they are about, tags and all.
    let answer = meta.flags.has(PacketFlags::ICMP_ERROR);
    assert!(usize::from(meta.l3) == ETHERNET || answer, "with a tag");
    let mtu = [CLIENT_MTU, BACKEND_MTU][port];
    assert!(meta.end - meta.l3 <= mtu, "larger than the link");
    if verify_transport_checksum && meta.flags.has(PacketFlags::PARTIAL_CHECKSUM) {
        // By chance a whole sum looks like this, but then completing it changes nothing.
        let mut completed = bytes.to_vec();
        complete_checksum(&mut completed, &mut meta);
        assert_eq!(completed, bytes, "sum not completed");
    }
}

/// The flows of one service of each family.
fn of_https() -> FlowsOf {
    let vip = |vip: &str| (vip.parse().expect("literal"), 443, tidegate::packet::tcp::PROTOCOL);
    FlowsOf::services(vec![vip(V4.vip), vip(V6.vip)])
}
