//! QUIC: further connections on addresses and ports on which a hello was read.

use super::hiding::quic;
use super::quic::{datagrams, guarded, udp};
use super::quic_support::{Initial, V1, crypto};
use super::*;

const AWAITED: Verdict = Verdict::Wait;
const POLICY: Verdict = Verdict::Drop(DropReason::PolicyDrop);
const UNREAD: Verdict = Verdict::Drop(DropReason::Unread);
/// Of a rule that refuses, in [`guarded`].
const REFUSED: &str = "a.example.net";
const OTHER: &str = "b.example.org";

/// A hello for this name in two Initials under this connection id, the first of `cut` bytes.
fn parts(name: &str, id: &[u8], cut: usize) -> [Vec<u8>; 2] {
    let hello = rustls_hello(name, rustls::ALL_VERSIONS, &[]);
    let (a, b) = hello[5..].split_at(cut);
    let initial = |number| Initial { number, scid: id, ..Initial::new(V1, id) };
    [initial(0).seal(&crypto(0, a)), initial(1).seal(&crypto(cut, b))]
}

fn whole(name: &str, id: &[u8]) -> Vec<u8> {
    let hello = rustls_hello(name, rustls::ALL_VERSIONS, &[]);
    Initial { scid: id, ..Initial::new(V1, id) }.seal(&crypto(0, &hello[5..]))
}

/// A client's Handshake packet, from its own connection id.
fn handshake(id: &[u8]) -> Vec<u8> {
    let ids = [&[6][..], b"server", &[id.len() as u8], id].concat();
    [&[0xe0, 0, 0, 0, 1][..], &ids, &[0x40, 20], &[9; 20]].concat()
}

/// A flow on which the hello of [`datagrams`] was read, and nothing more is.
fn judged(rig: &mut Rig) -> FlowRef {
    judged_by(rig, &datagrams(usize::MAX)[0])
}

fn judged_by(rig: &mut Rig, first: &[u8]) -> FlowRef {
    let meta = rig.run(&[udp(1, first)]).remove(0);
    let flow = rig.enter(&meta);
    rig.run(&[udp(1, b"\x40short header")]);
    assert_eq!((rig.class(flow), rig.inspection(flow)), (BY_NAME, DONE));
    flow
}

fn verdicts(rig: &mut Rig, datagrams: &[&[u8]]) -> Vec<Verdict> {
    datagrams.iter().map(|said| rig.run(&[udp(1, said)])[0].verdict).collect()
}

#[test]
fn class_and_name_follow_the_new_hello() {
    let mut rig = guarded(false);
    let flow = judged(&mut rig);
    let [a, b] = parts(OTHER, b"newcomer", 90);
    let classes = [a, b].map(|said| rig.run(&[udp(1, &said)])[0].class);
    assert_eq!(classes, [BY_NAME, BY_PORT], "nobody is refused");
    assert_eq!((rig.class(flow), rig.name(flow)), (BY_PORT, Some(OTHER.as_bytes())));
    assert_eq!((rig.inspection(flow), rig.inspect.flows()), (DONE, 0));
    assert_eq!(rig.counters.names_found, 2);
}

/// What was let through before: a second connection by the name that rules refuse.
#[test]
fn a_name_that_is_refused_does_not_come_in_behind_another() {
    let mut rig = guarded(true);
    let flow = judged(&mut rig);
    let refused = whole(REFUSED, b"newcomer");
    assert_eq!(verdicts(&mut rig, &[&refused, &refused]), [POLICY; 2]);
    // Who was there before goes on.
    let before: [&[u8]; 2] = [b"\x40short header", &handshake(b"me")];
    assert_eq!(verdicts(&mut rig, &before), [Verdict::Next; 2]);
    assert_eq!((rig.class(flow), rig.name(flow)), (BY_NAME, Some(&b"api.openai.com"[..])));
    assert_eq!((rig.inspection(flow), rig.inspect.flows()), (DONE, 0));
}

/// A server that has forgotten a hello, or never had it, takes another under the same id.
#[test]
fn nor_under_the_id_of_a_hello_that_was_read() {
    let mut rig = guarded(true);
    judged(&mut rig);
    let (good, refused) = (whole(OTHER, b"newcomer"), whole(REFUSED, b"newcomer"));
    let of_refused = parts(REFUSED, b"newcomer", 90);
    assert_eq!(verdicts(&mut rig, &[&good, &refused]), [Verdict::Next, POLICY]);
    let [a, b] = verdicts(&mut rig, &[&of_refused[0], &of_refused[1]])[..] else { panic!("two") };
    assert!(a != Verdict::Next && b != Verdict::Next, "{a:?}, {b:?}");
    // What was read comes again, and what says nothing of a hello comes, too.
    let number = |number| Initial { number, scid: b"newcomer", ..Initial::new(V1, b"newcomer") };
    let hello = rustls_hello(OTHER, rustls::ALL_VERSIONS, &[]);
    let (again, ping) =
        (number(7).seal(&crypto(0, &hello[5..])), number(8).seal(&[&[1][..], &[0; 60]].concat()));
    assert_eq!(verdicts(&mut rig, &[&again, &ping]), [Verdict::Next; 2]);
    // So for the flow's first hello.
    let mut rig = guarded(true);
    let flow = rig.run(&[udp(1, &whole(OTHER, b"first"))]).remove(0);
    rig.enter(&flow);
    let said = [whole(REFUSED, b"first"), whole(OTHER, b"first")];
    assert_eq!(verdicts(&mut rig, &[&said[0], &said[1]]), [POLICY, Verdict::Next]);
}

#[test]
fn nor_right_behind_it_nor_in_pieces_in_any_order() {
    let mut rig = guarded(true);
    let refused = whole(REFUSED, b"newcomer");
    let first = datagrams(usize::MAX).remove(0);
    let metas = rig.run(&[udp(1, &first), udp(1, &refused), udp(1, &first)]);
    let verdicts_of: Vec<_> = metas.iter().map(|meta| meta.verdict).collect();
    let awaited = Verdict::Drop(DropReason::HelloAwaited);
    assert_eq!(verdicts_of, [Verdict::Next, awaited, Verdict::Next]);
    rig.enter(&metas[0]);
    assert_eq!(verdicts(&mut rig, &[&refused]), [POLICY], "before anything else is said");
    let fragment = rig.run(&[quic(20)[0].clone()]).remove(0);
    assert_eq!(fragment.verdict, Verdict::Drop(DropReason::Fragment));
    let [a, b] = parts(REFUSED, b"in parts", 90);
    for pieces in [[&a, &b], [&b, &a], [&a, &b]] {
        let got = verdicts(&mut rig, &[pieces[0], pieces[0], pieces[1]]);
        assert_eq!(got, [AWAITED, AWAITED, POLICY]);
    }
    assert_eq!(rig.counters.flows_unread, 0);
}

#[test]
fn parts_of_a_hello_pass_once_it_is_whole() {
    let mut rig = guarded(true);
    let again = datagrams(usize::MAX).remove(0);
    let flow = judged_by(&mut rig, &again);
    let [a, b] = parts(OTHER, b"newcomer", 90);
    assert_eq!(verdicts(&mut rig, &[&a, &b, &a]), [AWAITED, Verdict::Next, Verdict::Next]);
    assert_eq!((rig.class(flow), rig.inspection(flow)), (BY_PORT, DONE));
    // What the connections before send again says nothing new.
    assert_eq!(verdicts(&mut rig, &[&again, &b]), [Verdict::Next; 2]);
    assert_eq!((rig.class(flow), rig.inspect.flows()), (BY_PORT, 0));
}

#[test]
fn a_part_sent_again_is_none_of_another_connection() {
    let mut rig = guarded(true);
    let [a, b] = datagrams(100).try_into().expect("two");
    let meta = rig.run(&[udp(1, &a)]).remove(0);
    let flow = rig.enter(&meta);
    let said: [&[u8]; 5] = [&b, &a, &handshake(b"me"), &b, b"\x40short header"];
    assert_eq!(verdicts(&mut rig, &said), [Verdict::Next; 5]);
    assert_eq!((rig.class(flow), rig.inspection(flow)), (BY_NAME, DONE));
}

#[test]
fn others_handshakes_pass_while_a_hello_is_read_and_its_own_does_not_help_it() {
    let mut rig = guarded(true);
    let flow = judged(&mut rig);
    let [a, b] = parts(REFUSED, b"newcomer", 90);
    let said: [&[u8]; 4] = [&a, &handshake(b"me"), &handshake(b"newcomer"), &b];
    assert_eq!(verdicts(&mut rig, &said), [AWAITED, Verdict::Next, Verdict::Next, POLICY]);
    let broken = Initial::new(V1, b"broken").seal(&crypto(0, &[1, 0, 0, 4, 9, 9, 9, 9]));
    let mut unknown = whole(OTHER, b"newcomer");
    unknown[1..5].copy_from_slice(&[0x1a, 0x2a, 0x3a, 0x4a]);
    let ping = Initial { number: 7, ..Initial::new(V1, b"pings") }.seal(&[1; 8]);
    let ninth = [ping.repeat(8), whole(REFUSED, b"pings")].concat();
    let refused = whole(REFUSED, b"newcomer");
    let behind = |count| [handshake(b"me").repeat(count), refused.clone()].concat();
    let (behind_one, behind_many) = (behind(1), behind(8));
    let said: [&[u8]; 5] = [&broken, &unknown, &ninth, &behind_one, &behind_many];
    assert_eq!(verdicts(&mut rig, &said[..2]), [UNREAD; 2]);
    assert!(verdicts(&mut rig, &said[2..]).iter().all(|verdict| *verdict != Verdict::Next));
    assert_eq!((rig.class(flow), rig.counters.flows_unread), (BY_NAME, 0));
    // Without a rule that refuses all of it passes.
    let mut rig = guarded(false);
    judged(&mut rig);
    assert_eq!(verdicts(&mut rig, &said), [Verdict::Next; 5]);
}

#[test]
fn connections_side_by_side_are_not_read_as_one() {
    let [a, b] = parts(REFUSED, b"the first", 90);
    let [c, d] = parts(OTHER, b"the other", 90);
    let sides: [&[&[u8]]; 5] = [
        &[&a, &c, &b],
        &[&a, &c, &b, &d],
        &[&a, &c, &d, &b],
        &[&a, &whole(OTHER, b"the other"), &b],
        &[&a, &c, &parts(OTHER, b"a third", 80)[0], &b, &d],
    ];
    for (n, said) in sides.into_iter().enumerate() {
        let mut rig = guarded(true);
        let meta = rig.run(&[udp(1, said[0])]).remove(0);
        let flow = rig.enter(&meta);
        let last = verdicts(&mut rig, &said[1..]).pop().expect("some");
        let handshake = verdicts(&mut rig, &[&handshake(b"the first")]).remove(0);
        let refused = rig.class(flow).is_refused() && handshake != Verdict::Next;
        assert!(last == AWAITED || refused, "{n}: {last:?} {handshake:?}");
        let mut rig = guarded(false);
        let meta = rig.run(&[udp(1, said[0])]).remove(0);
        rig.enter(&meta);
        let all = verdicts(&mut rig, &said[1..]);
        assert!(all.iter().all(|verdict| *verdict == Verdict::Next), "{n}: {all:?}");
    }
}

/// Two answers to what the name is, of which a server believes either.
#[test]
fn a_hello_that_contradicts_itself_is_not_read() {
    let (good, evil) = (parts(OTHER, b"12345678", 90), parts(REFUSED, b"12345678", 90));
    let [first, _] = &good;
    // Under another id of the client's, which servers should discard.
    let hello = rustls_hello(REFUSED, rustls::ALL_VERSIONS, &[]);
    let other = Initial { number: 5, scid: b"not me", ..Initial::new(V1, b"12345678") };
    let other = other.seal(&crypto(90, &hello[5 + 90..]));
    // The same bytes twice, ahead of those that are missing.
    for said in [[first, &other, &good[1]], [&good[1], &evil[1], first]] {
        let mut rig = guarded(true);
        let meta = rig.run(&[udp(1, said[0])]).remove(0);
        let flow = rig.enter(&meta);
        let refused = |verdict| verdict == UNREAD || verdict == POLICY;
        let got = verdicts(&mut rig, &[said[1], said[2]]);
        assert!(refused(got[1]) && rig.class(flow).is_refused(), "{got:?}");
        let mut rig = guarded(true);
        judged(&mut rig);
        let got = verdicts(&mut rig, &said.map(|said| &said[..]));
        assert!(got.iter().all(|verdict| *verdict != Verdict::Next), "{got:?}");
    }
}

#[test]
fn a_newcomer_that_gives_way_or_stalls_takes_nothing_with_it() {
    let mut rig = guarded(true);
    let flow = judged(&mut rig);
    let [a, _] = parts(OTHER, b"newcomer", 90);
    let calm = |rig: &mut Rig| {
        assert_eq!((rig.class(flow), rig.inspection(flow)), (BY_NAME, DONE));
        assert_eq!(rig.counters.flows_unread, 0);
        assert_eq!(verdicts(rig, &[b"\x40short header"]), [Verdict::Next]);
    };
    assert_eq!(verdicts(&mut rig, &[&a]), [AWAITED]);
    for port in 2..9 {
        rig.now += std::time::Duration::from_millis(1);
        rig.run(&[udp(port, &datagrams(100)[0])]);
    }
    calm(&mut rig);
    assert_eq!(verdicts(&mut rig, &[&a]), [AWAITED]);
    rig.now += std::time::Duration::from_nanos(STALL_NS_MAX + 1);
    for _ in 0..4 {
        rig.run(&[]);
    }
    calm(&mut rig);
    assert_eq!(rig.inspect.flows(), 0);
    // And one whose flow goes.
    assert_eq!(verdicts(&mut rig, &[&a]), [AWAITED]);
    let gone = rig.flows.get(flow).clone();
    rig.inspect.forget(&gone);
    assert_eq!(rig.inspect.flows(), 0);
}
