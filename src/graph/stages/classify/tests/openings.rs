//! How connections begin and end, and what clients do to have it mistaken.

use super::unread::h2;
use super::*;

fn guarded() -> Connection {
    Connection::open(&V4, &[by_path("/secret/*", ClassId::RESET)])
}

impl Connection {
    /// A client's segment with a sequence number of its own choice.
    fn odd(&mut self, flags: u8, seq: u32) {
        let sent = std::mem::replace(&mut self.sent[0], seq.wrapping_sub(ISN.0));
        let packet = self.packet(true, flags, b"");
        self.sent[0] = sent;
        self.rig.run_with(&mut self.whole, &[packet], |_| {});
    }

    /// Whether what is secret does not reach the server as it was sent.
    fn is_kept(&mut self) -> bool {
        let secret = get("/secret/x");
        let (out, _) = self.segment(true, ACK, &secret);
        out.verdict != Verdict::Output || out.meta.tcp_flags & RST != 0
    }
}

#[test]
fn a_connection_that_is_over_holds_nothing() {
    let of_h2 = h2(&[super::unread::ASKS]);
    for said in [&get("/a")[..], &of_h2[..]] {
        let mut c = guarded();
        c.say(said);
        c.hear(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok");
        assert_eq!(c.whole.inspect.flows(), 1);
        c.segment(true, FIN | ACK, b"");
        assert_eq!(c.whole.inspect.flows(), 1, "the server may still answer");
        c.segment(false, FIN | ACK, b"");
        assert_eq!(c.segment(true, ACK, b"").0.verdict, Verdict::Output);
        assert_eq!((c.whole.inspect.flows(), c.rig.counters.flows_unread), (0, 0));
    }
}

#[test]
fn a_connection_that_is_over_holds_nothing_though_its_last_segment_was_lost() {
    let mut c = guarded();
    c.say(&h2(&[super::unread::ASKS]));
    c.segment(true, FIN | ACK, b"");
    c.segment(false, FIN | ACK, b"");
    for (after, flows) in [(1_000_000_000, 1), (1, 0)] {
        c.rig.now = c.rig.now.saturating_add(after);
        for _ in 0..8 {
            c.rig.run_with(&mut c.whole, &[], |_| {});
        }
        assert_eq!((c.whole.inspect.flows(), c.rig.counters.flows_unread), (flows, 0));
    }
}

/// A server answers a SYN amid a connection with an acknowledgement, and goes on.
#[test]
fn a_syn_amid_a_connection_begins_none() {
    for ahead in [5_000, 0_u32.wrapping_sub(5_000)] {
        let mut c = guarded();
        c.say(&get("/a"));
        c.hear(OK);
        let next = (ISN.0 + 1).wrapping_add(c.sent[0]);
        c.odd(SYN, next.wrapping_add(ahead));
        assert!(c.is_kept(), "{ahead}");
    }
}

#[test]
fn a_reset_that_no_server_believes_does_not_hide_what_follows() {
    for ahead in [5_000, 0_u32.wrapping_sub(5_000)] {
        let mut c = guarded();
        c.say(&get("/a"));
        c.hear(OK);
        let next = (ISN.0 + 1).wrapping_add(c.sent[0]);
        c.odd(RST, next.wrapping_add(1 << 30));
        c.odd(SYN, next.wrapping_add(ahead));
        c.segment(false, ACK, b"");
        assert!(c.is_kept(), "{ahead}");
    }
}

#[test]
fn a_stream_begins_where_its_server_says() {
    for second in [ISN.0 + 5_000, ISN.0.wrapping_sub(5_000)] {
        let mut c = Connection::new(&V4, &[by_path("/secret/*", ClassId::RESET)], false);
        c.segment(true, SYN, b"");
        c.odd(SYN, second);
        c.segment(false, SYN | ACK, b"");
        c.odd(SYN, second);
        c.segment(true, ACK, b"");
        assert!(c.is_kept());
    }
}

#[test]
fn the_addresses_of_a_connection_that_is_over_may_be_used_anew() {
    let mut c = guarded();
    c.say(&get("/a"));
    c.segment(true, RST | ACK, b"");
    c.sent = [70_000, 70_000];
    c.segment(true, SYN, b"");
    c.segment(false, SYN | ACK, b"");
    c.segment(true, ACK, b"");
    c.say(&get("/a"));
    assert_eq!(c.rig.counters.requests_read, 2);
    assert!(c.is_kept());
}

/// Servers forget half-closed connections of theirs before we do.
#[test]
fn a_connection_that_its_server_has_closed_may_be_followed_by_another() {
    let mut c = guarded();
    c.say(&get("/a"));
    c.hear(OK);
    c.segment(false, FIN | ACK, b"");
    c.segment(true, ACK, b"");
    // The new one's numbers are below the old one's.
    c.sent = [0, 70_000];
    c.segment(true, SYN, b"");
    c.segment(false, SYN | ACK, b"");
    c.segment(true, ACK, b"");
    c.say(&get("/a"));
    assert_eq!(c.rig.counters.requests_read, 2);
    assert!(c.is_kept());
}

#[test]
fn nothing_follows_unread_on_a_connection_that_was_not_followed() {
    let mut c = guarded();
    c.say(b"\x01no request");
    assert_eq!(c.inspection(), DONE);
    let reset = c.packet(true, RST | ACK, b"");
    c.sent = [70_000, 70_000];
    let syn = c.packet(true, SYN, b"");
    c.rig.run_with(&mut c.whole, &[reset, syn], |_| {});
    c.segment(false, SYN | ACK, b"");
    c.segment(true, ACK, b"");
    c.say(&get("/a"));
    assert!(c.is_kept());
}

#[test]
fn a_second_answer_to_a_syn_does_not_pass() {
    let mut c = Connection::new(&V4, &[by_path("/secret/*", ClassId::RESET)], false);
    c.segment(true, SYN, b"");
    assert_eq!(c.segment(false, SYN | ACK, b"").0.verdict, Verdict::Output);
    assert_eq!(c.segment(false, SYN | ACK, b"").0.verdict, Verdict::Output, "sent again");
    c.sent[0] = 5_000;
    assert_eq!(c.segment(false, SYN | ACK, b"").0.verdict, Verdict::Drop(DropReason::Unread));
    c.sent[0] = 0;
    c.segment(true, ACK, b"");
    c.say(&get("/a"));
    assert!(c.is_kept());
}

/// Ends that no server believes, so that another beginning would be believed.
#[test]
fn a_stream_ends_where_it_stands() {
    for flags in [FIN | ACK, RST | ACK, RST] {
        let mut c = guarded();
        c.say(&get("/a"));
        c.hear(OK);
        let sent = std::mem::replace(&mut c.sent[0], 9_000);
        let odd = Verdict::Drop(DropReason::Unread);
        assert_eq!(c.segment(true, flags, b"").0.verdict, odd);
        c.sent[0] = sent;
        c.say(&get("/a"));
        c.hear(OK);
        assert_eq!(c.segment(true, flags, b"").0.verdict, Verdict::Output);
    }
}
