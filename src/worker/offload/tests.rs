//! What a worker tells the program, and what it learns from it.

use std::time::Duration;

use super::*;
use crate::base::{Addr, Seed};
use crate::flow::{FlowKind, FlowLimits, NewFlow, Timeouts};

const SEED: Seed = Seed(3);
const WAN: PortId = PortId(0);
const LAN: PortId = PortId(1);
const GENERATION: u32 = 4;
const START: Nanos = Nanos::from_secs(100);

struct Rig {
    flows: FlowTable,
    offload: Offload,
    ring: OffloadRing,
    slots: OffloadSlots,
    /// Of what is handed down.
    splice: Option<Shift>,
}

impl Rig {
    fn new() -> Rig {
        let limits = FlowLimits { flows_max: 8, half_open_max: 8 };
        let (ring, slots) = (OffloadRing::new(), OffloadSlots::in_memory(2).expect("memory"));
        // The second of many workers: its share is small, and not the first slot.
        let offload = Offload::new(1, 10_000, 8, ring.clone(), slots.clone());
        Rig {
            flows: FlowTable::new(limits, Timeouts::default(), SEED),
            offload,
            ring,
            slots,
            splice: None,
        }
    }

    /// A flow of datagrams that has been answered.
    fn open(&mut self, sport: u16) -> FlowRef {
        let client = FlowKey {
            src: Addr::v4(0xc633_6407),
            dst: Addr::v4(0xcb00_7101),
            sport,
            dport: 443,
            proto: udp::PROTOCOL,
        };
        let new = NewFlow {
            key: client,
            reply: Some(client.reversed()),
            kind: FlowKind::Transit,
            backend: 0,
            class: crate::packet::ClassId::UNSET,
            idle_established_ms: None,
        };
        let at = self.flows.insert(START, &new, &PacketMeta::default()).expect("room");
        for direction in [Direction::Forward, Direction::Reply] {
            let mut meta = PacketMeta { direction, ..PacketMeta::default() };
            self.flows.touch(START, at, &mut meta, 100);
        }
        at
    }

    fn hand_down(&mut self, now: Nanos, at: FlowRef, direction: Direction, in_port: PortId) {
        let meta = PacketMeta { flow: at, direction, in_port, ..PacketMeta::default() };
        let egress = Egress { mac: [2; 6], mtu: 1_500 };
        let hop = Hop { mac: [3; 6], port: LAN };
        let way = Way { hop, egress, own_mac: [4; 6], generation: GENERATION, splice: self.splice };
        self.offload.hand_down(now, self.flows.get_mut(at), &meta, &way);
    }

    /// Keys of the orders that wait, and the slot and stamp of what is to be forwarded.
    fn orders(&self) -> Vec<(FlowKey, Option<(u32, u32)>)> {
        let order = |order| match order {
            OffloadOrder::Forward { key, entry, .. } => (key, Some((entry.slot, entry.stamp))),
            OffloadOrder::Forget { key, .. } => (key, None),
        };
        std::iter::from_fn(|| self.ring.next()).map(order).collect()
    }

    /// Looks at all slots once.
    fn follow(&mut self, now: Nanos) {
        for _ in 0..self.offload.slots.len().div_ceil(FOLLOW_BUDGET) {
            self.offload.follow(now, &mut self.flows);
        }
    }

    /// As the worker's timers do; returns how many flows have gone.
    fn expire(&mut self, now: Nanos) -> usize {
        let mut gone = 0;
        let Rig { flows, offload, .. } = self;
        flows.expire(now, 100, |at, flow| {
            if offload.count_flow(now, at, flow) {
                return false;
            }
            offload.take_back(now, at, flow);
            gone += 1;
            true
        });
        gone
    }

    fn key(&self, at: FlowRef, direction: Direction) -> FlowKey {
        self.flows.get(at).key(direction)
    }
}

#[test]
fn what_the_program_forwards_counts_for_the_flow_and_keeps_it() {
    let mut rig = Rig::new();
    let at = rig.open(1);
    rig.hand_down(START, at, Direction::Reply, LAN);
    let [(key, Some((slot, stamp)))] = rig.orders()[..] else { panic!("one order") };
    assert_eq!((key, stamp != 0), (rig.key(at, Direction::Reply), true));
    assert_eq!(rig.slots.stamp(LAN, slot), stamp);
    let idle = rig.flows.details(at).idle();
    let mut now = START;
    // Nobody looks but when its time seems over, and then it was seen after all.
    for round in 1..=3 {
        now += Duration::from_nanos(idle.0) + Duration::from_secs(5);
        rig.slots.count(LAN, slot, 10, 1_000);
        assert_eq!(rig.expire(now), 0);
        let flow = rig.flows.get(at);
        assert_eq!(
            (flow.packets(), flow.bytes()),
            ([1, 1 + 10 * round], [100, 100 + 1_000 * u64::from(round)])
        );
    }
    rig.slots.count(LAN, slot, 7, 70);
    rig.follow(now);
    assert_eq!(rig.flows.get(at).packets(), [1, 38]);
    now += Duration::from_nanos(idle.0) + Duration::from_secs(5);
    assert_eq!((rig.expire(now), rig.flows.len()), (1, 0));
    assert_eq!((rig.orders(), rig.slots.stamp(LAN, slot)), (vec![(key, None)], 0));
    assert!(rig.offload.is_empty());
}

/// The flow's count is the same for all packets of a batch by the time that they are looked at.
#[test]
fn batches_that_are_always_full_are_looked_into() {
    let mut rig = Rig::new();
    let at = rig.open(1);
    for _ in 0..8 {
        let mut batch = vec![PacketMeta::default(); 4 * usize::from(LOOK_EVERY)];
        batch.iter_mut().for_each(|meta| {
            rig.flows.touch(START, at, meta, 100);
        });
        assert_eq!(batch.iter().filter(|meta| is_due(meta)).count(), 4);
    }
}

#[test]
fn taken_back_nothing_is_lost_and_both_directions_end() {
    let mut rig = Rig::new();
    let at = rig.open(1);
    rig.hand_down(START, at, Direction::Forward, WAN);
    rig.hand_down(START, at, Direction::Reply, LAN);
    let orders = rig.orders();
    let [(_, Some((there, _))), (_, Some((back, _)))] = orders[..] else { panic!("{orders:?}") };
    assert_ne!(there, back);
    assert_eq!((rig.offload.directions(at), rig.offload.len()), ([true; 2], 2));
    rig.slots.count(WAN, there, 3, 300);
    rig.slots.count(LAN, back, 4, 400);
    rig.offload.take_back(START, at, rig.flows.get_mut(at));
    let flow = rig.flows.get(at);
    assert_eq!((flow.packets(), flow.bytes()), ([4, 5], [400, 500]));
    assert_eq!([rig.slots.stamp(WAN, there), rig.slots.stamp(LAN, back)], [0, 0]);
    assert_eq!((rig.offload.directions(at), rig.offload.len()), ([false; 2], 0));
    assert_eq!(rig.orders().iter().filter(|o| o.1.is_none()).count(), 2);
    // What comes too late is nobody's, above all not the next flow's.
    rig.slots.count(WAN, there, 1, 60);
    let next = rig.open(2);
    rig.hand_down(START, next, Direction::Forward, WAN);
    rig.hand_down(START, next, Direction::Reply, LAN);
    rig.follow(START);
    assert_eq!(rig.flows.get(next).packets(), [1, 1]);
}

#[test]
fn a_place_in_the_table_that_another_flow_has_got_ends_the_first_ones_part() {
    let mut rig = Rig::new();
    let at = rig.open(1);
    rig.hand_down(START, at, Direction::Forward, WAN);
    let first = rig.orders()[0];
    rig.flows.remove(at);
    let other = rig.open(2);
    assert_eq!(at, other, "the same place");
    rig.slots.count(WAN, first.1.expect("a slot").0, 5, 500);
    rig.hand_down(START, other, Direction::Forward, WAN);
    let orders = rig.orders();
    assert_eq!(orders[0], (first.0, None));
    assert_eq!(orders[1].0, rig.key(other, Direction::Forward));
    assert_ne!(orders[1].1.map(|o| o.1), first.1.map(|o| o.1), "another stamp");
    assert_eq!(rig.flows.get(other).packets(), [1, 1], "not its packets");
    rig.flows.remove(other);
    rig.follow(START);
    assert_eq!(rig.orders(), [(orders[1].0, None)]);
    assert!(rig.offload.is_empty());
}

#[test]
fn another_port_is_another_slot_and_the_same_way_is_told_once() {
    let mut rig = Rig::new();
    let at = rig.open(1);
    for _ in 0..3 {
        rig.hand_down(START, at, Direction::Forward, WAN);
    }
    assert_eq!(rig.orders().len(), 1);
    rig.hand_down(START, at, Direction::Forward, LAN);
    let orders = rig.orders();
    assert_eq!((orders.len(), orders[0].1), (2, None));
    assert_eq!(rig.offload.len(), 1);
}

#[test]
fn without_a_slot_or_room_for_orders_the_worker_goes_on_alone() {
    let mut rig = Rig::new();
    let all = rig.offload.slots.len();
    assert!((1..8).contains(&all), "{all}");
    let flows: Vec<_> = (0..8).map(|n| rig.open(n)).collect();
    for &at in &flows {
        rig.hand_down(START, at, Direction::Forward, WAN);
    }
    assert_eq!((rig.offload.len(), rig.orders().len()), (all, all));
    let filler = OffloadOrder::Forget { port: WAN, key: FlowKey::default() };
    while rig.ring.0.push(filler).is_ok() {}
    rig.offload.take_back(START, flows[0], rig.flows.get_mut(flows[0]));
    assert_eq!(rig.offload.len(), all, "its entry is still to be forgotten");
    assert_eq!(rig.orders().len(), ORDERS_MAX);
    rig.follow(START);
    assert_eq!(rig.orders(), [(rig.key(flows[0], Direction::Forward), None)]);
    assert_eq!(rig.offload.len(), all - 1);
    for _ in 0..ORDERS_RESERVED {
        let _ = rig.ring.0.push(filler);
    }
    rig.hand_down(START, flows[7], Direction::Forward, WAN);
    assert_eq!(rig.orders().len(), ORDERS_RESERVED, "room is kept for taking back");
}

/// The program knows echoes of our clock by numbers that turn.
#[test]
fn a_spliced_flow_with_early_echoes_is_looked_at_again() {
    for (first_echo, left) in [(None, 1), (Some(9), 0)] {
        let mut rig = Rig::new();
        rig.splice = Some(Shift { first_echo, ..Shift::default() });
        let at = rig.open(1);
        rig.hand_down(START, at, Direction::Reply, LAN);
        let later = START + EARLY_LIFE;
        let mut seen = PacketMeta { direction: Direction::Reply, ..PacketMeta::default() };
        rig.flows.touch(later, at, &mut seen, 100);
        rig.follow(Nanos(later.0 - 1));
        assert_eq!(rig.offload.len(), 1);
        rig.follow(later);
        assert_eq!(rig.offload.len(), left, "{first_echo:?}");
    }
}

#[test]
fn a_port_that_goes_takes_none_of_the_others_flows_back() {
    let mut rig = Rig::new();
    let (gone, stays) = (rig.open(1), rig.open(2));
    rig.hand_down(START, gone, Direction::Reply, LAN);
    rig.hand_down(START, stays, Direction::Forward, WAN);
    let [(_, Some((slot, _))), _] = rig.orders()[..] else { panic!("two orders") };
    rig.slots.count(LAN, slot, 5, 500);
    let before = rig.flows.get(gone).packets()[Direction::Reply as usize];
    rig.offload.leave_port(START, LAN, &mut rig.flows);
    assert_eq!(
        rig.flows.get(gone).packets()[Direction::Reply as usize],
        before + 5,
        "what was not told yet"
    );
    assert_eq!(rig.offload.directions(gone), [false; 2]);
    assert_eq!(rig.offload.directions(stays), [true, false]);
    assert_eq!((rig.offload.len(), rig.orders()), (1, vec![]), "there is no program to tell");
    // Another program there counts from 0 again.
    let fresh = OffloadSlots::in_memory(2).expect("memory");
    let old = rig.offload.replace_slots(fresh.clone());
    assert_eq!(old.counts(LAN, slot), (5, 500));
    rig.hand_down(START, gone, Direction::Reply, LAN);
    let [(_, Some((slot, _)))] = rig.orders()[..] else { panic!("one order") };
    fresh.count(LAN, slot, 1, 100);
    rig.follow(START);
    assert_eq!(rig.flows.get(gone).packets()[Direction::Reply as usize], before + 6);
}
