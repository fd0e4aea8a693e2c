//! What is kept of hellos for whoever lists flows.

use super::quic::{datagrams, udp};
use super::*;
use crate::flow::HelloNote;
use crate::inspect::tls::tests::resuming_hello;

#[test]
fn what_a_hello_offers_is_kept_with_its_flow() {
    let mut rig = Rig::new(2, 8);
    let c = client(1);
    let flow = rig.open(&c);
    rig.run(&[c.data(0, &resuming_hello("outer.example"))]);
    let want = HelloNote {
        versions: [0x0304, 0x0303, 0, 0, 0, 0, 0, 0],
        groups: [0x11ec, 0, 0, 0],
        quic_version: 0,
        encrypted: Some(1),
        resumed: true,
        early_data: true,
    };
    let note = rig.note(flow);
    assert_eq!((note.hello, note.conflicts), (want, false));
    assert_eq!(rig.name(flow), Some(&b"outer.example"[..]));
}

#[test]
fn the_version_of_quic_is_kept_too() {
    let mut rig = Rig::new(4, 8);
    let meta = rig.run(&[udp(1, &datagrams(usize::MAX)[0])]).remove(0);
    let flow = rig.enter(&meta);
    rig.run(&[udp(1, b"\x40short header")]);
    let hello = rig.note(flow).hello;
    assert_eq!((hello.quic_version, hello.encrypted), (1, Some(0)));
    assert!(!hello.resumed && !hello.early_data);
}

#[test]
fn copies_that_differ_are_noted() {
    let mut rig = Rig::new(2, 8);
    let c = client(1);
    let flow = rig.open(&c);
    let hello = hello();
    let mut other = hello[20..40].to_vec();
    other[3] ^= 1;
    rig.run(&[c.data(20, &hello[20..40]), c.data(20, &other), c.data(0, &hello)]);
    assert!(rig.note(flow).conflicts);
}
