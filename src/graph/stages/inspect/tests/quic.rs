//! Clients of QUIC: hellos in one datagram and in two, before and after their flow is entered.

use super::quic_support::{Initial, V1, crypto};
use super::*;
use crate::inspect::quic::UNDECRYPTABLE_MAX;

const UNREAD: Verdict = Verdict::Drop(DropReason::Unread);
/// Reserved for this (RFC 9000, section 15).
const UNKNOWN_VERSION: [u8; 4] = [0x1a, 0x2a, 0x3a, 0x4a];

pub(super) fn datagrams(cut: usize) -> Vec<Vec<u8>> {
    // Behind the record's header.
    let message = &hello()[5..];
    let (a, b) = message.split_at(cut.min(message.len()));
    let initial =
        |number, frames: &[u8]| Initial { number, ..Initial::new(V1, b"8 bytes!") }.seal(frames);
    let mut all = vec![initial(0, &crypto(0, a))];
    if !b.is_empty() {
        all.push(initial(1, &crypto(a.len(), b)));
    }
    all
}

pub(super) fn udp(port: u16, payload: &[u8]) -> Vec<u8> {
    let c = client(port);
    udp_packet(&UdpSpec::new(c.endpoint, c.server, payload))
}

#[test]
fn the_first_datagram_decides_before_its_flow_is_entered() {
    let mut rig = Rig::new(4, 8);
    let first = udp(1, &datagrams(usize::MAX)[0]);
    let meta = rig.run(std::slice::from_ref(&first)).remove(0);
    assert_eq!(meta.class, BY_NAME);
    assert_eq!(rig.run(&[first])[0].class, BY_NAME, "sent again before that");
    let flow = rig.enter(&meta);
    assert_eq!((rig.class(flow), rig.inspect.flows()), (BY_NAME, 1));
    assert_eq!(rig.run(&[udp(1, b"\x40short header")])[0].class, BY_NAME);
    assert_eq!(rig.name(flow), Some(&b"api.openai.com"[..]));
    assert_eq!((rig.inspection(flow), rig.inspect.flows()), (DONE, 0));
    assert_eq!(rig.counters.names_found, 1);
}

#[test]
fn a_hello_in_two_datagrams_decides_with_the_second() {
    for reversed in [false, true] {
        let mut rig = Rig::new(4, 8);
        let mut parts = datagrams(100);
        if reversed {
            parts.reverse();
        }
        let meta = rig.run(&[udp(1, &parts[0])]).remove(0);
        assert_eq!(meta.class, BY_PORT);
        let flow = rig.enter(&meta);
        assert_eq!(rig.run(&[udp(1, &parts[1])])[0].class, BY_NAME);
        assert_eq!((rig.class(flow), rig.inspection(flow)), (BY_NAME, DONE));
        assert_eq!(rig.name(flow), Some(&b"api.openai.com"[..]));
        assert_eq!(rig.inspect.flows(), 0);
    }
}

#[test]
fn two_datagrams_of_one_batch_are_enough() {
    let mut rig = Rig::new(4, 8);
    let parts = datagrams(100);
    let metas = rig.run(&[udp(1, &parts[0]), udp(1, &parts[1]), udp(2, b"not quic")]);
    assert_eq!([metas[0].class, metas[1].class, metas[2].class], [BY_PORT, BY_NAME, BY_PORT]);
    let flow = rig.enter(&metas[0]);
    assert_eq!(rig.class(flow), BY_PORT, "that of the packet that it was entered for");
    rig.flows.touch(rig.now, flow, &mut metas[0].clone(), 1_242);
    assert_eq!(rig.run(&[udp(1, b"\x40short header")])[0].class, BY_NAME);
    assert_eq!((rig.class(flow), rig.inspection(flow)), (BY_NAME, DONE));
    // What waits of it in the first class follows.
    let moves = rig.names.reclassed.drain(..);
    let moves: Vec<_> = moves.map(|r| (r.hashes[0] == metas[0].hash, r.from, r.to)).collect();
    assert_eq!(moves, [(true, BY_PORT, BY_NAME)]);
}

#[test]
fn what_the_last_datagram_of_a_batch_told_holds() {
    let mut rig = Rig::new(4, 8);
    let by_name = RuleSpec { class: BY_NAME, mark: None, ..rules().remove(0) };
    let other = RuleSpec { class: BY_PORT, mark: Some(8), ..RuleSpec::default() };
    rig.snapshot.rules = Arc::new(Rules::compile(&[by_name, other]));
    let parts = datagrams(100);
    let metas = rig.run(&[udp(1, &parts[0]), udp(1, &parts[1])]);
    let flow = rig.enter(&metas[0]);
    // The server answers first.
    let c = client(1);
    rig.run(&[udp_packet(&UdpSpec::new(c.server, c.endpoint, b"\x40short header"))]);
    assert_eq!((rig.class(flow), rig.flows.get(flow).treatment), (BY_NAME, 0));
}

#[test]
fn other_datagrams_are_looked_at_once() {
    let mut rig = Rig::new(4, 8);
    let meta = rig.run(&[udp(1, b"\0\x01\0\0\x21\x12\xa4\x42 a STUN request")]).remove(0);
    let flow = rig.enter(&meta);
    rig.run(&[udp(1, b"more")]);
    assert_eq!((rig.inspection(flow), rig.inspect.flows()), (DONE, 0));
    rig.run(&[udp(1, b"\xc0more, with a long header")]);
    assert_eq!((rig.inspection(flow), rig.inspect.flows()), (DONE, 0));
    // What begins a connection is read all the same.
    rig.run(&[udp(1, &datagrams(usize::MAX)[0])]);
    assert_eq!((rig.name(flow), rig.class(flow)), (Some(&b"api.openai.com"[..]), BY_NAME));
}

#[test]
fn what_was_forged_is_not_believed() {
    let mut rig = Rig::new(4, 8);
    let good = datagrams(usize::MAX).remove(0);
    let mut forged = good.clone();
    *forged.last_mut().expect("bytes") ^= 1;
    let meta = rig.run(&[udp(1, &forged)]).remove(0);
    assert_eq!(meta.class, BY_PORT);
    let flow = rig.enter(&meta);
    rig.run(&[udp(1, &good)]);
    assert_eq!((rig.class(flow), rig.inspection(flow)), (BY_NAME, DONE));
}

#[test]
fn slots_of_flows_that_are_never_entered_come_back() {
    let mut rig = Rig::new(4, 8);
    let parts = datagrams(100);
    for port in 1..20 {
        rig.run(&[udp(port, &parts[usize::from(port % 2)])]);
    }
    assert_eq!(rig.inspect.flows(), 4);
    rig.now += std::time::Duration::from_nanos(STALL_NS_MAX + 1);
    for _ in 0..4 {
        rig.run(&[]);
    }
    assert_eq!(rig.inspect.flows(), 0);
}

/// With a rule that refuses by name, or one that gives a class.
pub(super) fn guarded(refuses: bool) -> Rig {
    let mut rig = Rig::new(4, 8);
    let class = if refuses { ClassId::RESET } else { BY_PROTOCOL };
    let sni = vec![NamePattern::Suffix("example.net".into())];
    let mut all = vec![RuleSpec { sni, class, ..RuleSpec::default() }];
    all.extend(rules());
    rig.snapshot.rules = Arc::new(Rules::compile(&all));
    rig
}

/// A packet of the client's that its server can only understand once it has read the hello.
fn handshake() -> Vec<u8> {
    [&[0xe0, 0, 0, 0, 1, 8][..], b"8 bytes!", &[2], b"me", &[0x40, 20], &[9; 20]].concat()
}

fn unknown(number: u32) -> Vec<u8> {
    let mut packet =
        Initial { number, ..Initial::new(V1, b"8 bytes!") }.seal(&crypto(0, &[1, 0, 0, 9]));
    packet[1..5].copy_from_slice(&UNKNOWN_VERSION);
    packet
}

/// Sends one datagram after another; whether the last one passed.
fn last_passes(rig: &mut Rig, datagrams: &[Vec<u8>]) -> bool {
    let mut last = Verdict::Next;
    for datagram in datagrams {
        let meta = rig.run(&[udp(1, datagram)]).remove(0);
        if meta.flow == FlowRef::NONE && meta.verdict == Verdict::Next {
            rig.enter(&meta);
        }
        last = meta.verdict;
    }
    assert!(last == Verdict::Next || last == UNREAD, "{last:?}");
    last == Verdict::Next
}

#[test]
fn a_hello_that_cannot_be_read_is_refused_where_rules_refuse_by_hellos() {
    let initial =
        |number, frames: &[u8]| Initial { number, ..Initial::new(V1, b"8 bytes!") }.seal(frames);
    let half = datagrams(100).remove(0);
    let broken = crypto(0, &[1, 0, 0, 4, 9, 9, 9, 9]);
    let many = |version: fn(u32) -> Vec<u8>| {
        (0..u32::from(UNDECRYPTABLE_MAX)).map(version).collect::<Vec<_>>()
    };
    let cases = [
        ("a frame that none may send", vec![initial(0, &[8, 0, 0])], true),
        ("a hello that is none", vec![initial(0, &broken)], true),
        ("the same behind others", vec![half.clone(), initial(1, &[8, 0, 0])], true),
        ("on without its end", vec![half.clone(), handshake()], true),
        ("on without its beginning", vec![handshake()], true),
        ("all of it, and on", [datagrams(100), vec![handshake()]].concat(), false),
        (
            "turned round, and on",
            {
                let mut parts = datagrams(100);
                parts.reverse();
                [parts, vec![handshake()]].concat()
            },
            false,
        ),
        ("the half again and again", vec![half.clone(); 100], false),
        ("a version nobody reads", many(unknown), true),
        (
            "that until the server says so",
            [many(unknown)[1..].to_vec(), datagrams(100)].concat(),
            false,
        ),
        (
            "on in a version nobody reads",
            vec![unknown(0), b"\x40short header".to_vec(), unknown(1)],
            true,
        ),
        ("another's connection", vec![b"\x40short header".to_vec(); 9], false),
        ("another protocol", vec![b"\0\x01\0\0\x21\x12\xa4\x42".to_vec(); 9], false),
    ];
    for (name, said, refused) in cases {
        assert_eq!(last_passes(&mut guarded(true), &said), !refused, "{name}");
        let mut rig = guarded(false);
        assert!(last_passes(&mut rig, &said), "{name}: without a rule that refuses");
        assert_eq!(rig.counters.flows_unread, 0);
    }
}

/// Its server has read a hello that nobody here could: it did not ask for another version.
#[test]
fn who_is_answered_in_a_version_nobody_reads_is_refused() {
    let c = client(1);
    let negotiation = [&[0x80, 0, 0, 0, 0, 2][..], b"me\x088 bytes!", &[0, 0, 0, 1]].concat();
    let mut taken = unknown(0);
    taken.truncate(1_200);
    for (answer, refused) in [(&taken, true), (&negotiation, false)] {
        for refuses in [true, false] {
            let mut rig = guarded(refuses);
            assert!(last_passes(&mut rig, &[unknown(0)]));
            let answer = udp_packet(&UdpSpec::new(c.server, c.endpoint, answer));
            assert_eq!(rig.run(&[answer])[0].verdict, Verdict::Next);
            assert_eq!(last_passes(&mut rig, &[unknown(1)]), !(refused && refuses));
        }
    }
}

#[test]
fn what_is_refused_stays_so_in_both_directions() {
    let mut rig = guarded(true);
    assert!(!last_passes(&mut rig, &[datagrams(100).remove(0), handshake()]));
    assert!(!last_passes(&mut rig, &datagrams(100)), "too late");
    let c = client(1);
    let answer = udp_packet(&UdpSpec::new(c.server, c.endpoint, b"\x40short header"));
    assert_eq!(rig.run(&[answer])[0].verdict, UNREAD);
    assert_eq!((rig.counters.flows_unread, rig.inspect.flows()), (1, 0));
}

#[test]
fn a_hello_behind_something_else_is_not_overlooked() {
    let mut rig = guarded(true);
    let named = &rustls_hello("a.example.net", rustls::ALL_VERSIONS, &[])[5..];
    let hello = Initial::new(V1, b"8 bytes!").seal(&crypto(0, named));
    let meta = rig.run(&[udp(1, b"\x40short header")]).remove(0);
    let flow = rig.enter(&meta);
    rig.run(&[udp(1, b"\0\x01")]);
    rig.run(&[udp(1, &hello)]);
    assert_eq!(rig.class(flow), ClassId::RESET);
}

#[test]
fn who_stops_amid_a_hello_is_refused_and_who_says_nothing_readable_is_read_later() {
    let stall = |rig: &mut Rig| {
        rig.now = rig.now.saturating_add(STALL_NS_MAX + 1);
        for _ in 0..4 {
            rig.run(&[]);
        }
    };
    let parts = datagrams(100);
    let mut rig = guarded(true);
    assert!(last_passes(&mut rig, &parts[..1]));
    rig.now = rig.now.saturating_add(STALL_NS_MAX);
    assert!(last_passes(&mut rig, &parts[..1]), "a probe");
    stall(&mut rig);
    assert!(!last_passes(&mut rig, &parts[1..]));
    let mut rig = guarded(true);
    assert!(last_passes(&mut rig, &[unknown(0)]));
    stall(&mut rig);
    assert_eq!(rig.inspect.flows(), 0);
    assert!(last_passes(&mut rig, &datagrams(100)));
    assert_eq!(rig.counters.names_found, 1);
}

/// What is known of a flow before it is in the table is all that is to be read of it.
#[test]
fn a_hello_that_was_told_of_is_not_missed_later() {
    let mut rig = guarded(true);
    assert!(last_passes(&mut rig, &datagrams(usize::MAX)));
    rig.now = rig.now.saturating_add(STALL_NS_MAX + 1);
    for _ in 0..4 {
        rig.run(&[]);
    }
    assert_eq!(rig.inspect.flows(), 0);
    assert!(last_passes(&mut rig, &[handshake()]));
}
