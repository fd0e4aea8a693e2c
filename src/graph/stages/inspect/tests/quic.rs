//! Clients of QUIC: hellos in one datagram and in two, before and after their flow is entered.

use super::quic_support::{Initial, V1, crypto};
use super::*;

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

fn udp(port: u16, payload: &[u8]) -> Vec<u8> {
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
    assert_eq!(rig.run(&[udp(1, b"\x40short header")])[0].class, BY_NAME);
    assert_eq!((rig.class(flow), rig.inspection(flow)), (BY_NAME, DONE));
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
    rig.run(&[udp(1, &datagrams(usize::MAX)[0])]);
    assert_eq!((rig.name(flow), rig.class(flow)), (None, BY_PORT));
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
