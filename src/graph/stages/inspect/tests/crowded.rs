//! Many connections of HTTP, and few parsers.

use super::*;
use crate::flow::TcpState;
use crate::inspect::h2::PREFACE;
use crate::policy::spec::PathPattern;
use crate::qos::limits::{Excess, LimitSpec, Limits, LimitsSpec};
use crate::qos::tokens::Pace;

const ASKS: &[u8] = b"GET /x HTTP/1.1\r\nHost: a\r\n\r\n";
const ANSWERS: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n";

/// Where a rule refuses by path.
fn guarded(flows_max: u32, http_flows_max: u32) -> Rig {
    by_path(flows_max, http_flows_max, ClassId::RESET)
}

/// Where `/secret` has this class.
fn by_path(flows_max: u32, http_flows_max: u32, class: ClassId) -> Rig {
    let mut rig = Rig::new(8, 8);
    let limits = InspectLimits { http_flows_max, ..inspect_limits(HELLO_BYTES_MAX, flows_max) };
    rig.inspect = Inspect::new(&limits);
    let path = vec![PathPattern::new("/secret").expect("a path")];
    let rule = RuleSpec { path, class, ..RuleSpec::default() };
    rig.snapshot.rules = Arc::new(Rules::compile(&[rule]));
    rig
}

/// The same where requests are counted, and no rule refuses.
fn counted(http_flows_max: u32) -> Rig {
    let mut rig = by_path(8, http_flows_max, BY_NAME);
    let pace = Pace { count: 1_000, per_ns: 1_000_000_000, burst: 1_000 };
    let requests = Some(pace);
    let name = "l".into();
    let excess = Excess::Reset;
    let limit = LimitSpec { name, connections: None, requests, clients: None, excess };
    let of_clients = vec![("0.0.0.0/0".parse().expect("a prefix"), 0)];
    let spec = LimitsSpec { limits: vec![limit], of_clients, ..LimitsSpec::default() };
    rig.snapshot.limits = Arc::new(Limits::build(&spec, SEED, None, rig.now));
    rig
}

/// A frame of HTTP/2: its type, its flags, its stream and what it holds.
fn frame(kind: u8, flags: u8, stream: u8, body: &[u8]) -> Vec<u8> {
    [&[0, 0, body.len() as u8, kind, flags, 0, 0, 0, stream][..], body].concat()
}

/// `GET` for a path, as a whole (RFC 7541, section 6.2.2).
fn asks_http2(stream: u8, path: &str) -> Vec<u8> {
    let head = [&b"\x82\x86\x01\x01a\x04"[..], &[path.len() as u8], path.as_bytes()].concat();
    frame(1, 5, stream, &head)
}

/// How a connection begins, with its first request.
fn begins_http2() -> Vec<u8> {
    [PREFACE, &frame(4, 0, 0, b""), &asks_http2(1, "/x")].concat()
}

/// A status of 200 (RFC 7541, appendix A), and whether that is all.
fn answers_http2(stream: u8, is_all: bool) -> Vec<u8> {
    [frame(4, 0, 0, b""), frame(1, if is_all { 5 } else { 4 }, stream, b"\x88")].concat()
}

impl Rig {
    fn establish(&mut self, client: &Client) -> FlowRef {
        let flow = self.open(client);
        self.flows.get_mut(flow).tcp = TcpState::Established;
        flow
    }
}

/// Those that have parsers are found wherever they are, and who has its answers loses nothing.
#[test]
fn a_new_connection_finds_parsers_among_many_flows() {
    let mut rig = guarded(600, 4);
    let clients: Vec<Client> = (1..=500).map(client).collect();
    for c in &clients {
        rig.now = rig.now.saturating_add(1_000);
        rig.establish(c);
        rig.run(&[c.data(0, ASKS)]);
        rig.run(&[c.answer(ANSWERS)]);
    }
    // And those that were put off, later.
    for c in &clients {
        rig.now = rig.now.saturating_add(1_000);
        rig.run(&[c.data(ASKS.len(), ASKS)]);
        rig.run(&[c.answer(ANSWERS)]);
    }
    let counters = &rig.counters;
    assert_eq!((counters.requests_read, counters.flows_unread), (1_000, 0));
    assert_eq!(counters.unknown_crowded, 0);
}

/// Who waits for an answer gives way last.
#[test]
fn who_has_all_answers_gives_way_first() {
    let mut rig = guarded(8, 2);
    let clients: Vec<Client> = (1..=3).map(client).collect();
    let flows: Vec<FlowRef> = clients.iter().map(|c| rig.establish(c)).collect();
    rig.run(&[clients[0].data(0, &ASKS[..20])]);
    rig.now = rig.now.saturating_add(1_000);
    rig.run(&[clients[1].data(0, ASKS), clients[1].answer(ANSWERS)]);
    rig.run(&[clients[2].data(0, ASKS)]);
    rig.run(&[clients[0].data(20, &ASKS[20..])]);
    assert_eq!((rig.counters.requests_read, rig.counters.flows_unread), (3, 0));
    assert_eq!(rig.inspection(flows[1]), NOT_YET);
}

/// Where a connection that was put off goes on is kept with it.
#[test]
fn nobody_makes_forget_where_a_connection_goes_on() {
    let mut rig = guarded(8, 1);
    let (one, other) = (client(1), client(2));
    let flow = rig.establish(&one);
    rig.establish(&other);
    rig.run(&[one.data(0, ASKS), one.answer(ANSWERS)]);
    rig.run(&[other.data(0, ASKS), other.answer(ANSWERS)]);
    assert_eq!(rig.inspection(flow), NOT_YET);
    let syns: Vec<_> = (3..20_000).map(|p| client(p).packet(ISN, flag::SYN, b"")).collect();
    for batch in syns.chunks(60) {
        rig.run(batch);
    }
    let secret = b"GET /secret HTTP/1.1\r\nHost: a\r\n\r\n";
    rig.run(&[one.data(ASKS.len() + 9, &secret[9..])]);
    rig.run(&[one.data(ASKS.len(), &secret[..9])]);
    assert_eq!(rig.class(flow), ClassId::RESET);
}

/// Of those that wait for answers whoever is silent for longest gives way, wherever it stands: the
/// first that was given a parser, too. It does not get around what may refuse it.
#[test]
fn the_first_holder_gives_way_in_its_turn() {
    const HOLDERS: u16 = 3;
    for silent in 0..HOLDERS {
        let mut rig = guarded(8, HOLDERS.into());
        let clients: Vec<Client> = (1..=HOLDERS + 1).map(client).collect();
        let flows: Vec<FlowRef> = clients.iter().map(|c| rig.establish(c)).collect();
        let (new, holders) = clients.split_last().expect("some");
        for c in holders {
            rig.run(&[c.data(0, ASKS)]);
        }
        // All but one go on.
        rig.now = rig.now.saturating_add(1_000);
        for (n, c) in holders.iter().enumerate().filter(|(n, _)| *n != usize::from(silent)) {
            rig.run(&[c.data(ASKS.len(), ASKS)]);
            assert_ne!(rig.inspection(flows[n]), DONE);
        }
        rig.run(&[new.data(0, ASKS)]);
        for (n, &flow) in flows.iter().enumerate() {
            let gone = n == usize::from(silent);
            assert_eq!(rig.inspection(flow) == DONE, gone, "{n} of {silent}");
            assert_eq!(rig.class(flow) == ClassId::UNREAD, gone, "{n} of {silent}");
        }
        let counters = &rig.counters;
        assert_eq!((counters.flows_unread, counters.flows_unfollowed), (1, 1));
        assert_eq!(counters.requests_read, 2 * u64::from(HOLDERS));
    }
}

/// A connection of HTTP/2 can't be read anew later. So whoever has something under way is the last
/// to give way; and what gives way does not pass unread where that matters.
#[test]
fn of_http2_who_has_all_answers_gives_way_first() {
    for (mut rig, is_guarded) in
        [(guarded(8, 2), true), (counted(2), true), (by_path(8, 2, BY_NAME), false)]
    {
        let clients: Vec<Client> = (1..=3).map(client).collect();
        let flows: Vec<FlowRef> = clients.iter().map(|c| rig.establish(c)).collect();
        let begins = begins_http2();
        for (c, is_all) in clients.iter().zip([false, true]) {
            rig.run(&[c.data(0, &begins), c.answer(&answers_http2(1, is_all))]);
            rig.now = rig.now.saturating_add(1_000);
        }
        rig.run(&[clients[2].data(0, &begins)]);
        assert_eq!([0, 1, 2].map(|n| rig.inspection(flows[n]) == DONE), [false, true, false]);
        assert_eq!(rig.class(flows[1]) == ClassId::UNREAD, is_guarded);
        let told = (rig.counters.flows_unread, rig.counters.flows_unfollowed);
        assert_eq!(told, (u64::from(is_guarded), 1));
        // The others are read on. The one that is not keeps what it has, if it may go on at all.
        let before = rig.class(flows[1]);
        let secret = asks_http2(3, "/secret");
        clients.iter().for_each(|c| drop(rig.run(&[c.data(begins.len(), &secret)])));
        assert_eq!((rig.counters.requests_read, rig.class(flows[1])), (5, before));
        assert!(rig.class(flows[0]) == rig.class(flows[2]) && rig.class(flows[0]) != before);
    }
}

/// A stream ends once, also where its server or its client resets it afterwards.
#[test]
fn of_http2_what_has_ended_twice_hides_nothing_that_is_under_way() {
    let mut rig = guarded(8, 2);
    let clients: Vec<Client> = (1..=3).map(client).collect();
    let flows: Vec<FlowRef> = clients.iter().map(|c| rig.establish(c)).collect();
    let reset = frame(3, 0, 1, &[0; 4]);
    let asks = [begins_http2(), asks_http2(3, "/x"), reset.clone()].concat();
    // And a stream that was pushed.
    let answers = [answers_http2(1, true), reset, frame(3, 0, 2, &[0; 4])].concat();
    rig.run(&[clients[0].data(0, &asks), clients[0].answer(&answers)]);
    rig.now = rig.now.saturating_add(1_000);
    rig.run(&[clients[1].data(0, &begins_http2()), clients[1].answer(&answers_http2(1, true))]);
    rig.run(&[clients[2].data(0, &begins_http2())]);
    assert_eq!([0, 1, 2].map(|n| rig.inspection(flows[n]) == DONE), [false, true, false]);
}
