//! Servers that have forgotten a connection that is still known here, or still have one that is
//! over here.

use std::time::Duration;

use super::one_way::{FIRST, HARMLESS, OneWay, SECRET, WAYS};
use super::*;
use crate::flow::TcpState;

const MINUTE: Duration = Duration::from_secs(60);
const NAT: Option<u16> = Some(80);

/// A connection both ways of which are seen, and that has asked once. The number after that.
fn open_answered(to: Option<u16>) -> (OneWay, u32) {
    let mut c = OneWay::bare(to);
    assert!(c.passes(FIRST - 1, SYN, b"") && c.answer(4_999, FIRST, SYN | ACK));
    let asks = get("/a");
    assert!(c.passes(FIRST, ACK, b"") && c.passes(FIRST, ACK, &asks));
    (c, FIRST + asks.len() as u32)
}

#[test]
fn who_has_said_something_does_not_begin_with_the_same_number() {
    for (mut c, _) in WAYS.map(OneWay::open).into_iter().chain([open_answered(NAT)]) {
        assert!(!c.passes(FIRST - 1, SYN, b""));
    }
    let mut c = OneWay::bare(NAT);
    for _ in 0..2 {
        assert!(c.passes(FIRST - 1, SYN, b"") && c.answer(4_999, FIRST, SYN | ACK), "again");
    }
    assert!(c.passes(FIRST, ACK, &get("/a")));
}

#[test]
fn no_connection_begins_unread_where_one_goes_on_for_all_that_is_known() {
    for to in WAYS {
        for says in [&b"\x01 is no HTTP, as long as a request is"[..], HARMLESS] {
            for ahead in [0_u32.wrapping_sub(40), 1, 2, 5_000] {
                let mut c = OneWay::bare(to);
                assert!(c.passes(FIRST - 1, SYN, b"") && c.passes(FIRST, ACK, b""));
                assert!(c.passes(FIRST, ACK, says));
                let at = FIRST + says.len() as u32;
                let first = at.wrapping_add(ahead);
                let begins = c.passes(first.wrapping_sub(1), SYN, b"");
                assert!(!begins || to.is_none(), "{to:?}: {says:?} {ahead}");
                // Who has been silent may have gone away.
                c.pass(MINUTE);
                if c.passes(first.wrapping_sub(1), SYN, b"") {
                    assert!(c.passes(first, ACK, &get("/b")), "{to:?}: {says:?} {ahead}");
                    let next = first.wrapping_add(get("/b").len() as u32);
                    assert!(!c.passes(next, ACK, SECRET), "{to:?}: {says:?} {ahead}");
                }
            }
        }
    }
}

#[test]
fn a_server_that_answers_amid_a_connection_has_begun_another() {
    for to in [NAT, Some(81), None] {
        for ahead in [0_u32.wrapping_sub(40), 0, 5_000] {
            let (mut c, next) = open_answered(to);
            let first = next.wrapping_add(ahead);
            assert!(c.passes(first.wrapping_sub(1), SYN, b""), "as if it was asked about");
            assert!(c.answer(9_999, first, SYN | ACK));
            assert!(c.passes(first, ACK, b""));
            assert!(!c.passes(first, ACK, SECRET), "{to:?}: {ahead}");
        }
    }
}

#[test]
fn what_was_joined_hides_no_beginning() {
    let mut c = OneWay::bare(None);
    // Nobody has opened this, and no server listens to it.
    assert!(c.passes(7_000, ACK, b"any") && c.passes(7_003, ACK, b"thing"));
    assert!(c.passes(FIRST - 1, SYN, b"") && c.passes(FIRST, ACK, b""));
    assert!(c.passes(FIRST - 1, SYN, b""), "again");
    assert!(c.passes(FIRST, ACK, &SECRET[..2]) && !c.passes(FIRST + 2, ACK, &SECRET[2..]));
    // Nor does it once it has ended.
    let mut c = OneWay::bare(None);
    assert!(c.passes(7_000, ACK, b"any") && c.passes(7_003, ACK, b"thing"));
    assert!(c.passes(7_008, FIN | ACK, b"") && c.state() == TcpState::FinForward);
    assert!(c.passes(FIRST - 1, SYN, b"") && c.passes(FIRST, ACK, b""));
    assert!(c.passes(FIRST, ACK, &SECRET[..2]) && !c.passes(FIRST + 2, ACK, &SECRET[2..]));
}

#[test]
fn a_server_that_has_missed_an_end_is_told_of_it_once_more() {
    for to in WAYS {
        let (mut c, next) = OneWay::open(to);
        let first = next.wrapping_add(70_000);
        assert!(c.passes(next, RST | ACK, b"") && c.passes(first - 1, SYN, b""));
        // It says where its connection stands.
        assert!(c.passes(next, RST, b"") && c.passes(first - 1, SYN, b""), "{to:?}");
        assert!(c.passes(first, ACK, b"") && c.passes(first, ACK, &get("/b")), "{to:?}");
        assert!(!c.passes(next, RST, b""), "{to:?}");
        assert!(!c.passes(first.wrapping_add(get("/b").len() as u32), ACK, SECRET), "{to:?}");
    }
    for to in [NAT, Some(81), None] {
        for first in [FIRST + 70_000, FIRST - 60] {
            let (mut c, next) = open_answered(to);
            assert!(c.passes(next, RST | ACK, b"") && c.passes(first - 1, SYN, b""));
            assert!(c.answer(5_000, next, ACK) && c.passes(next, RST, b""), "{to:?}");
            // If it does not believe that either, nothing of the next one is read in its place.
            assert!(!c.passes(first, ACK, HARMLESS) && c.state() == TcpState::SynSent);
            assert!(c.passes(first - 1, SYN, b"") && c.answer(8_999, first, SYN | ACK));
            assert!(c.passes(first, ACK, b"") && c.passes(first, ACK, &get("/b")), "{to:?}");
        }
    }
}

#[test]
fn a_port_whose_number_has_gone_by_a_clock_is_used_again_after_a_fin() {
    for to in &WAYS[..3] {
        for seconds in [1_u32, 100, 136, 138, 180, 239, 270] {
            let (mut c, next) = OneWay::open(*to);
            assert!(c.passes(next, FIN | ACK, b""));
            (0..10).for_each(|_| c.pass(Duration::from_millis(u64::from(seconds) * 100)));
            let first = next.wrapping_add(seconds.wrapping_mul(15_625_000));
            assert!(c.passes(first.wrapping_sub(1), SYN, b""), "{to:?}: {seconds}");
            assert!(c.passes(first, ACK, &get("/b")), "{to:?}: {seconds}");
            let next = first.wrapping_add(get("/b").len() as u32);
            assert!(!c.passes(next, ACK, SECRET), "{to:?}: {seconds}");
        }
    }
}
