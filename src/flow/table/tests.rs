//! The table against a map, and what its limits do.

use std::collections::HashMap;

use proptest::prelude::*;

use super::*;
use crate::base::Addr;
use crate::flow::FlowKind;
use crate::packet::ClassId;

const SYN: u8 = 0x02;
const SYN_ACK: u8 = 0x12;
const ACK: u8 = 0x10;
const SEED: Seed = Seed(11);

fn key(n: u32) -> FlowKey {
    FlowKey {
        src: Addr::v4(0x0a00_0000 + n),
        dst: Addr::v4(0xcb00_710a),
        sport: 1024 + (n % 50_000) as u16,
        dport: 443,
        proto: TCP,
    }
}

fn new_flow(n: u32, kind: FlowKind) -> NewFlow {
    let reply = FlowKey { src: Addr::v4(0x0a63_0001), ..key(n).reversed() };
    NewFlow {
        key: key(n),
        reply: (kind != FlowKind::Dsr).then_some(reply),
        kind,
        backend: (n % 3) as u16,
        class: ClassId::UNSET,
        idle_established_ms: None,
    }
}

fn meta(flags: u8, direction: Direction) -> PacketMeta {
    PacketMeta { tcp_flags: flags, direction, ..PacketMeta::default() }
}

fn table(flows_max: u32, half_open_max: u32) -> FlowTable {
    FlowTable::new(FlowLimits { flows_max, half_open_max }, Timeouts::default(), SEED)
}

fn open(t: &mut FlowTable, now: Nanos, n: u32) -> Result<FlowRef, InsertError> {
    t.insert(now, &new_flow(n, FlowKind::Nat), &meta(SYN, Direction::Forward))
}

fn establish(t: &mut FlowTable, now: Nanos, r: FlowRef) {
    t.touch(now, r, &mut meta(SYN_ACK, Direction::Reply), 60);
    t.touch(now, r, &mut meta(ACK, Direction::Forward), 60);
    assert_eq!(t.get(r).tcp, TcpState::Established);
}

fn find(t: &FlowTable, k: &FlowKey) -> Option<(FlowRef, Direction)> {
    t.lookup(k, k.hash(SEED))
}

/// Who has seen the SYN waits for the client's ACK: a server's bare one may be about another SYN
/// (RFC 9293, section 3.10.7.4), and anybody can send two.
#[test]
fn a_server_completes_only_handshakes_whose_client_takes_another_way() {
    let mut t = table(16, 16);
    let answer = |t: &mut FlowTable, r, flags| {
        t.touch(Nanos::ZERO, r, &mut meta(flags, Direction::Reply), 60);
        t.get(r).tcp
    };
    let r = open(&mut t, Nanos::ZERO, 1).expect("room");
    for _ in 0..2 {
        t.touch(Nanos::ZERO, r, &mut meta(SYN, Direction::Forward), 60);
        assert_eq!(answer(&mut t, r, SYN_ACK), TcpState::SynReceived);
        assert_eq!(answer(&mut t, r, ACK), TcpState::SynReceived);
    }
    let first = meta(SYN_ACK, Direction::Reply);
    let r = t.insert(Nanos::ZERO, &new_flow(2, FlowKind::Nat), &first).expect("room");
    assert_eq!(answer(&mut t, r, SYN_ACK), TcpState::SynReceived);
    assert_eq!(answer(&mut t, r, ACK), TcpState::Established);
}

#[test]
fn both_directions_find_the_flow() {
    let mut t = table(16, 16);
    let r = open(&mut t, Nanos::ZERO, 1).expect("room");
    assert_eq!(find(&t, &key(1)), Some((r, Direction::Forward)));
    let reply = new_flow(1, FlowKind::Nat).reply.expect("given");
    assert_eq!(find(&t, &reply), Some((r, Direction::Reply)));
    assert_eq!(find(&t, &key(2)), None);
    assert_eq!(open(&mut t, Nanos::ZERO, 1), Err(InsertError::KeyTaken));
    t.remove(r);
    assert!(find(&t, &key(1)).is_none() && find(&t, &reply).is_none() && t.is_empty());
}

#[test]
fn idle_flows_go_when_their_state_says_so() {
    let mut t = table(16, 16);
    let start = Nanos::from_secs(100);
    let half = open(&mut t, start, 1).expect("room");
    let full = open(&mut t, start, 2).expect("room");
    establish(&mut t, start, full);
    let mut gone = 0;
    t.expire(start + Duration::from_secs(29), 100, |_, _| {
        gone += 1;
        true
    });
    assert_eq!(gone, 0);
    t.expire(start + Duration::from_secs(31), 100, |_, f| {
        assert_eq!(f.client_key(), key(1));
        gone += 1;
        true
    });
    assert_eq!((gone, t.at(half).is_some()), (1, false));
    // Seen again after an hour: the two hours begin anew.
    let hour = start + Duration::from_secs(3600);
    t.expire(hour, 10_000, |_, _| panic!("established"));
    t.touch(hour, full, &mut meta(ACK, Direction::Forward), 60);
    let mut at = hour;
    for _ in 0..(2 * 60) {
        at += Duration::from_secs(60);
        t.expire(at, 1_000, |_, _| panic!("within its two hours"));
    }
    at += Duration::from_secs(5 * 60);
    t.expire(at, 10_000, |_, _| {
        gone += 1;
        true
    });
    assert_eq!((gone, t.len()), (2, 0));
}

#[test]
fn a_syn_flood_pushes_out_handshakes_and_nothing_else() {
    let mut t = table(1_000, 100);
    for n in 0..50 {
        let r = open(&mut t, Nanos::ZERO, n).expect("room");
        establish(&mut t, Nanos::ZERO, r);
    }
    for n in 0..100_000 {
        open(&mut t, Nanos(u64::from(n)), 1_000 + n).expect("the oldest handshake goes");
    }
    assert_eq!((t.half_open(), t.len()), (100, 150));
    assert_eq!(t.half_open_evicted(), 99_900);
    for n in 0..50 {
        assert!(find(&t, &key(n)).is_some());
    }
}

#[test]
fn room_for_handshakes_is_made_by_forgetting_the_oldest() {
    let mut t = table(1_000, 100);
    let kept = open(&mut t, Nanos::ZERO, 1_000).expect("room");
    establish(&mut t, Nanos::ZERO, kept);
    for n in 0..90 {
        open(&mut t, Nanos(u64::from(n)), n).expect("room");
    }
    let mut evicted = 0;
    t.make_room(10, |_| evicted += 1);
    assert_eq!((evicted, t.half_open()), (0, 90));
    t.make_room(64, |_| evicted += 1);
    assert_eq!((evicted, t.half_open(), t.half_open_evicted()), (54, 36, 54));
    assert!(find(&t, &key(53)).is_none() && find(&t, &key(54)).is_some());
    t.make_room(1_000, |_| evicted += 1);
    assert_eq!((t.half_open(), t.len()), (0, 1), "established flows stay");
}

#[test]
fn a_full_table_keeps_what_it_has() {
    let mut t = table(10, 100);
    for n in 0..10 {
        let r = open(&mut t, Nanos::ZERO, n).expect("room");
        establish(&mut t, Nanos::ZERO, r);
    }
    let refused = open(&mut t, Nanos::ZERO, 10);
    assert_eq!(refused, Err(InsertError::Drop(DropReason::FlowTableFull)));
    assert_eq!(t.len(), 10);
}

#[test]
fn a_batch_is_looked_up_as_single_packets_are() {
    use crate::packet::{FramePool, Packet};
    let mut t = table(10_000, 10_000);
    for n in 0..5_000 {
        open(&mut t, Nanos::ZERO, n).expect("room");
    }
    let mut pool = FramePool::standalone(64, 2048);
    let mut batch = Batch::new();
    for n in 0..64u32 {
        let mut k = key(n * 150);
        if n % 3 == 0 {
            k = new_flow(n * 150, FlowKind::Nat).reply.expect("given");
        }
        let meta = PacketMeta { key: k, hash: k.hash(SEED), ..PacketMeta::default() };
        batch.push(Packet { frame: pool.take().expect("stock"), meta });
    }
    t.lookup_batch(&mut batch);
    for p in batch.drain() {
        let single = find(&t, &p.meta.key);
        assert_eq!(p.meta.flow.is_some().then_some((p.meta.flow, p.meta.direction)), single);
        pool.put(p.frame);
    }
}

#[test]
fn a_flow_of_a_million_costs_192_bytes_at_most() {
    let t = table(1_000_000, 65_536);
    assert!(t.bytes() / 1_000_000 <= FLOW_BYTES_MAX, "{}", t.bytes() / 1_000_000);
}

#[derive(Clone, Debug)]
enum Op {
    Insert(u32, FlowKind),
    Remove(u32),
    Touch(u32, u8, bool),
    Wait(u32),
}

fn ops() -> impl Strategy<Value = Vec<Op>> {
    let n = 0u32..40;
    let kind = prop_oneof![Just(FlowKind::Nat), Just(FlowKind::Dsr), Just(FlowKind::Dnat)];
    let op = prop_oneof![
        4 => (n.clone(), kind).prop_map(|(n, k)| Op::Insert(n, k)),
        2 => n.clone().prop_map(Op::Remove),
        3 => (n, 0u8..32, any::<bool>()).prop_map(|(n, f, d)| Op::Touch(n, f, d)),
        1 => (1u32..400).prop_map(Op::Wait),
    ];
    prop::collection::vec(op, 1..300)
}

proptest! {
    /// Against a map: what was put in and not taken out, evicted or expired is found, nothing else.
    #[test]
    fn behaves_as_a_map(ops in ops()) {
        let mut t = table(24, 8);
        let mut model: HashMap<u32, FlowRef> = HashMap::new();
        let mut now = Nanos::ZERO;
        for op in ops {
            match op {
                Op::Insert(n, kind) => {
                    let new = new_flow(n, kind);
                    let made = t.insert(now, &new, &meta(SYN, Direction::Forward));
                    prop_assert_eq!(model.contains_key(&n), made == Err(InsertError::KeyTaken));
                    if let Ok(r) = made {
                        model.retain(|_, at| *at != r && t.at(*at).is_some());
                        model.insert(n, r);
                    }
                }
                Op::Remove(n) => {
                    if let Some(r) = model.remove(&n) {
                        t.remove(r);
                    }
                }
                Op::Touch(n, flags, reply) => {
                    if let Some(r) = model.get(&n) {
                        let d = if reply { Direction::Reply } else { Direction::Forward };
                        t.touch(now, *r, &mut meta(flags, d), 60);
                    }
                }
                Op::Wait(s) => {
                    now += Duration::from_secs(s.into());
                    t.expire(now, 1_000, |_, _| true);
                    model.retain(|_, at| t.at(*at).is_some());
                }
            }
            prop_assert_eq!(t.len(), model.len());
            let half_open = t.iter().filter(|(_, f)| f.tcp.is_half_open()).count();
            prop_assert_eq!(t.half_open() as usize, half_open);
            for backend in 0..3 {
                let serves = |&(at, f): &(FlowRef, &Flow)| {
                    t.details(at).backend == backend && !f.tcp.has_ended()
                };
                let serving = t.iter().filter(serves).count();
                prop_assert_eq!(t.serving().connections(backend) as usize, serving);
            }
            for n in 0..40 {
                prop_assert_eq!(find(&t, &key(n)).map(|f| f.0), model.get(&n).copied());
            }
        }
    }
}

#[test]
fn whose_last_fin_comes_again_is_kept_for_the_next() {
    const FIN_ACK: u8 = 0x11;
    let secs = Duration::from_secs;
    // Seconds to the server's FIN and to the same again; whether the flow is there 25 s, and 55 s
    // after that.
    for (first, again, kept) in [
        (0, None, [false; 2]),
        (0, Some(5), [true; 2]),
        (5, None, [true; 2]),
        (5, Some(12), [true; 2]),
    ] {
        let mut t = table(16, 16);
        let mut now = Nanos::from_secs(100);
        let r = open(&mut t, now, 1).expect("room");
        establish(&mut t, now, r);
        t.touch(now, r, &mut meta(FIN_ACK, Direction::Forward), 60);
        now += secs(first);
        t.touch(now, r, &mut meta(FIN_ACK, Direction::Reply), 60);
        if let Some(wait) = again {
            t.expire(now + secs(wait), 100, |_, _| true);
            now += secs(wait);
            t.touch(now, r, &mut meta(FIN_ACK, Direction::Reply), 60);
        }
        let is_kept = [25, 55].map(|wait| {
            t.expire(now + secs(wait), 100, |_, _| true);
            t.at(r).is_some()
        });
        assert_eq!(is_kept, kept, "{first} {again:?}");
        t.expire(now + secs(62), 100, |_, _| true);
        assert!(t.is_empty(), "{first} {again:?}");
    }
}
