//! Limits of connections and requests, packet by packet.

use super::*;
use crate::base::{Nanos, Seed};
use crate::graph::stages::balance::Balance;
use crate::qos::limits::{ClientsSpec, EventCounts, Excess, LimitSpec, Limits, LimitsSpec};
use crate::qos::tokens::Pace;

const OVER: Verdict = Verdict::Drop(DropReason::OverLimit);
const SECOND: u64 = 1_000_000_000;

/// Two connections and three requests at once for each client, then one a second.
fn limit(excess: Excess) -> LimitSpec {
    let pace = |burst| Some(Pace { count: 1, per_ns: SECOND, burst });
    let clients = Some(ClientsSpec { v4_len: 32, v6_len: 64, max: 64 });
    let (connections, requests) = (pace(2), pace(3));
    LimitSpec { name: "l".into(), connections, requests, clients, excess }
}

/// A router on which the first rule has this limit.
fn limited(family: &'static Family, rules: &[RuleSpec], excess: Excess) -> Connection {
    let mut c = Connection::new(family, rules, false);
    let of_rule = vec![Some(0)];
    let spec = LimitsSpec { limits: vec![limit(excess)], of_rule, ..LimitsSpec::default() };
    c.rig.snapshot.limits = Arc::new(Limits::build(&spec, Seed(1), None, c.rig.now));
    c
}

fn all() -> RuleSpec {
    RuleSpec { class: CHAT, ..RuleSpec::default() }
}

/// Connections, then requests.
fn counts(c: &Connection) -> [EventCounts; 2] {
    let limits = &c.rig.snapshot.limits;
    let counted = limits.counts(c.rig.now).next().expect("one limit");
    counted.events.map(|event| event.expect("limited"))
}

/// What becomes of a segment of the client's connection from this port.
fn from_port(
    c: &mut Connection,
    port: u16,
    from_client: bool,
    flags: u8,
) -> (Outcome, Vec<Outcome>) {
    let end = |(host, port): Endpoint| (addr(host), port);
    let (client, server) = ((addr(c.family.client.0), port), end(c.family.backend));
    let (src, dst) = if from_client { (client, server) } else { (server, client) };
    let mut spec = TcpSpec::new(src, dst, flags, b"");
    (spec.seq, spec.ack) = match (from_client, flags & SYN != 0) {
        (true, true) => (ISN.0, 0),
        (true, false) => (ISN.0 + 1, ISN.1 + 1),
        (false, true) => (ISN.1, ISN.0 + 1),
        (false, false) => (ISN.1 + 1, ISN.0 + 1),
    };
    let macs = [(CLIENT_SIDE, CLIENT_MAC), (BACKEND_SIDE, BACKEND_MAC)];
    (spec.link.destination, spec.link.source) = macs[usize::from(!from_client)];
    let (mut out, replies) = c.rig.run_with(&mut c.whole, &[tcp_packet(&spec)], |_| {});
    (out.remove(0), replies)
}

/// A whole handshake; what became of its three packets.
fn handshake(c: &mut Connection, port: u16) -> [Verdict; 3] {
    [(true, SYN), (false, SYN | ACK), (true, ACK)]
        .map(|(from_client, flags)| from_port(c, port, from_client, flags).0.verdict)
}

#[test]
fn a_client_has_its_burst_and_its_rate() {
    for family in [&V4, &V6] {
        let mut c = limited(family, &[all()], Excess::Drop);
        for port in [1, 2] {
            assert_eq!(handshake(&mut c, port), [Verdict::Output; 3]);
        }
        assert_eq!(from_port(&mut c, 3, true, SYN).0.verdict, OVER, "not even tried");
        assert_eq!(c.rig.flows.len(), 2);
        // A SYN that comes again a second later is as good as any.
        c.rig.now = c.rig.now.saturating_add(SECOND);
        assert_eq!(handshake(&mut c, 3), [Verdict::Output; 3]);
        let [connections, _] = counts(&c);
        assert_eq!((connections.passed, connections.refused), (3, 1));
        // Whoever has begun goes on.
        assert_eq!(from_port(&mut c, 1, true, ACK).0.verdict, Verdict::Output);
        assert_eq!(from_port(&mut c, 1, false, ACK).0.verdict, Verdict::Output);
    }
}

/// Whoever does not see the answers to its SYNs takes nobody's tokens.
#[test]
fn syns_alone_cost_nothing() {
    let mut c = limited(&V4, &[all()], Excess::Reset);
    for port in 1..=12 {
        assert_eq!(from_port(&mut c, port, true, SYN).0.verdict, Verdict::Output);
        assert_eq!(from_port(&mut c, port, true, SYN).0.verdict, Verdict::Output, "again");
        assert_eq!(from_port(&mut c, port, false, SYN | ACK).0.verdict, Verdict::Output);
    }
    let [connections, _] = counts(&c);
    assert_eq!((connections.passed, connections.refused, connections.clients), (0, 0, 0));
    // All have been let try; two have a token.
    let verdicts: Vec<_> = (1..=12).map(|port| from_port(&mut c, port, true, ACK)).collect();
    let passed = |(out, replies): &(Outcome, Vec<Outcome>)| {
        (out.verdict == Verdict::Output && out.meta.tcp_flags == ACK, replies.len())
    };
    assert!(verdicts[..2].iter().all(|v| passed(v) == (true, 0)));
    for (out, replies) in &verdicts[2..] {
        // The reset that goes on to the server, and the one that the client gets.
        assert_eq!(
            (out.verdict, out.meta.tcp_flags & RST, replies.len()),
            (Verdict::Output, RST, 1)
        );
    }
    assert_eq!(c.rig.counters.resets_sent, 20);
    // What still comes of them is dropped, also when there are tokens again.
    c.rig.now = c.rig.now.saturating_add(60 * SECOND);
    assert_eq!(from_port(&mut c, 9, true, ACK).0.verdict, OVER);
    assert_eq!(from_port(&mut c, 2, true, ACK).0.verdict, Verdict::Output);
}

/// Where more have been let try than have a token, those that are not told may begin later.
#[test]
fn what_is_dropped_begins_when_there_is_a_token() {
    let mut c = limited(&V4, &[all()], Excess::Drop);
    for port in 1..=3 {
        from_port(&mut c, port, true, SYN);
        from_port(&mut c, port, false, SYN | ACK);
    }
    let acks = |c: &mut Connection| [1, 2, 3].map(|p| from_port(c, p, true, ACK).0.verdict);
    assert_eq!(acks(&mut c), [Verdict::Output, Verdict::Output, OVER]);
    assert_eq!(acks(&mut c), [Verdict::Output, Verdict::Output, OVER]);
    c.rig.now = c.rig.now.saturating_add(SECOND);
    assert_eq!(acks(&mut c), [Verdict::Output; 3]);
    assert_eq!(counts(&c)[0].passed, 3);
}

#[test]
fn packets_that_come_together_cost_one_token() {
    let mut c = limited(&V4, &[all()], Excess::Reset);
    c.segment(true, SYN, b"");
    c.segment(false, SYN | ACK, b"");
    let packets = [c.packet(true, ACK, b""), c.packet(true, ACK, b"GET / HTTP/1.1\r\n")];
    let (out, _) = c.rig.run_with(&mut c.whole, &packets, |_| {});
    assert!(out.iter().all(|out| out.verdict == Verdict::Output));
    assert_eq!(counts(&c)[0].passed, 1);
}

#[test]
fn each_request_of_a_connection_takes_a_token() {
    for (family, excess) in [(&V4, Excess::Reset), (&V6, Excess::Drop)] {
        let mut c = limited(family, &[by_path("/v1/*", BULK)], excess);
        c.segment(true, SYN, b"");
        c.segment(false, SYN | ACK, b"");
        c.segment(true, ACK, b"");
        for _ in 0..3 {
            assert_eq!(c.say(&get("/v1/a")), BULK);
            c.hear(OK);
            assert_eq!(c.say(&get("/free")), ClassId::UNSET, "another rule's, or none");
            c.hear(OK);
        }
        let (out, replies) = c.segment(true, ACK, &get("/v1/a"));
        match excess {
            Excess::Reset => {
                let told = (out.verdict, out.meta.tcp_flags & RST, replies.len());
                assert_eq!(told, (Verdict::Output, RST, 1));
            }
            _ => assert_eq!((out.verdict, replies.len()), (OVER, 0)),
        }
        assert_eq!(c.segment(false, ACK, OK).0.verdict, OVER);
        assert_eq!(c.segment(true, ACK, &get("/free")).0.verdict, OVER, "the connection is over");
        let [_, requests] = counts(&c);
        assert_eq!((requests.passed, requests.refused), (3, 1));
    }
}

#[test]
fn what_takes_a_token_that_is_to_come_waits_for_it() {
    for family in [&V4, &V6] {
        let mut c = limited(family, &[all()], Excess::Delay(SECOND + SECOND / 2));
        for port in 1..=4 {
            assert_eq!(from_port(&mut c, port, true, SYN).0.verdict, Verdict::Output);
            from_port(&mut c, port, false, SYN | ACK);
        }
        let acks = |c: &mut Connection| [1, 2, 3, 4].map(|p| from_port(c, p, true, ACK).0.verdict);
        let waits = [Verdict::Output, Verdict::Output, Verdict::Wait, OVER];
        assert_eq!(acks(&mut c), waits, "the fourth would have to wait for too long");
        assert_eq!(acks(&mut c), waits, "what follows waits, too, and takes no other token");
        assert_eq!(from_port(&mut c, 5, true, SYN).0.verdict, OVER, "not even tried");
        let [connections, _] = counts(&c);
        assert_eq!((connections.passed, connections.delayed), (3, 1));
        c.rig.now = c.rig.now.saturating_add(SECOND);
        assert_eq!(c.rig.delays.next_due(), c.rig.now);
        c.rig.delays.release(c.rig.now);
        assert_eq!(from_port(&mut c, 3, true, ACK).0.verdict, Verdict::Output);
        c.rig.delays.settle();
        assert_eq!(counts(&c)[0].passed, 3);
    }
}

#[test]
fn a_request_waits_and_so_does_what_follows_it() {
    let mut c = limited(&V6, &[all()], Excess::Delay(SECOND + SECOND / 2));
    c.segment(true, SYN, b"");
    c.segment(false, SYN | ACK, b"");
    c.segment(true, ACK, b"");
    assert_eq!(c.say(&get("/a").repeat(3)), CHAT);
    let (out, replies) = c.segment(true, ACK, &get("/b"));
    assert_eq!((out.verdict, replies.len()), (Verdict::Wait, 0));
    assert_eq!(c.segment(true, ACK, &get("/c")).0.verdict, Verdict::Wait, "unread");
    assert_eq!(c.segment(true, ACK, b"").0.verdict, Verdict::Output, "says nothing");
    assert_eq!(c.segment(false, ACK, OK).0.verdict, Verdict::Output);
    let [_, requests] = counts(&c);
    assert_eq!((requests.passed, requests.delayed, requests.refused), (4, 1, 0));
    c.rig.now = c.rig.now.saturating_add(SECOND);
    c.rig.delays.release(c.rig.now);
    c.rig.delays.settle();
    c.sent[0] -= get("/c").len() as u32;
    // The one that was not read has the next token, and the one behind it would be too late.
    let (out, replies) = c.segment(true, ACK, &get("/c").repeat(2));
    assert_eq!((out.meta.tcp_flags & RST, replies.len()), (RST, 1));
}

/// Where its inspection ends with the segment that waits: a connection joined later than its
/// beginning says something that nobody can read.
#[test]
fn what_follows_waits_where_nothing_more_is_read() {
    let mut c = limited(&V4, &[all()], Excess::Delay(SECOND + SECOND / 2));
    c.segment(true, SYN, b"");
    c.segment(false, SYN | ACK, b"");
    c.segment(true, ACK, b"");
    c.whole.inspect = Inspect::new(&inspect_limits(16_384, 4));
    assert_eq!(c.say(&get("/a").repeat(3)), CHAT);
    let last = [&get("/b")[..], b"no request at all\r\n\r\n"].concat();
    assert_eq!(c.segment(true, ACK, &last).0.verdict, Verdict::Wait);
    assert_eq!(c.whole.inspect.flows(), 0, "read no further");
    assert_eq!(c.segment(true, ACK, b"more").0.verdict, Verdict::Wait);
    assert_eq!(c.hear(OK), CHAT);
    assert_eq!(c.segment(true, ACK, b"and more").0.verdict, Verdict::Wait);
    c.rig.now = c.rig.now.saturating_add(SECOND);
    c.rig.delays.release(c.rig.now);
    c.rig.delays.settle();
    c.sent[0] -= (last.len() + b"moreand more".len()) as u32;
    assert_eq!(c.say(&last), CHAT);
    assert_eq!((c.say(b"more"), c.inspection()), (CHAT, DONE));
    assert_eq!(counts(&c)[1].passed, 4);
}

/// Classifier and balancer.
struct Served(Classify, Balance);

impl Stage for Served {
    fn process(&mut self, cx: &mut Cx<'_>, batch: &mut Batch) {
        self.0.process(cx, batch);
        self.1.process(cx, batch);
    }
}

/// A rule is found by the code point that a packet came with, which it changes.
#[test]
fn a_mark_leaves_a_packet_with_the_limit_of_its_rule() {
    let by_dscp = RuleSpec { dscp: vec![0], mark: Some(46), ..all() };
    let mut rig = limited(&V4, &[by_dscp], Excess::Delay(SECOND + SECOND / 2)).rig;
    let mut served = Served(Classify::new(true), Balance::new());
    let sent = |port| Shape::udp().between((V4.client.0, port), (V4.vip, 80));
    let [first, second, third, fourth] = [1, 2, 3, 4].map(|port| rig.run(&mut served, sent(port)));
    let verdicts = [first.verdict, second.verdict, third.verdict, fourth.verdict];
    assert_eq!(verdicts, [Verdict::Output, Verdict::Output, Verdict::Wait, OVER]);
    let meta = &third.meta;
    assert_eq!((meta.class, meta.dscp(), meta.dscp_for_rules()), (CHAT, 46, 0));
    // With its mark it passes again, and is decided about as when it came.
    rig.now = rig.now.saturating_add(SECOND);
    rig.delays.release(rig.now);
    let again = |new: &mut PacketMeta| {
        (new.flags, new.marked_from) = (meta.flags, meta.marked_from);
    };
    let (out, _) = rig.run_with(&mut served, std::slice::from_ref(&third.bytes), again);
    assert_eq!((out[0].verdict, out[0].meta.class), (Verdict::Output, CHAT));
}

#[test]
fn requests_are_followed_for_a_limit_alone() {
    let mut c = limited(&V4, &[all()], Excess::Reset);
    c.segment(true, SYN, b"");
    c.segment(false, SYN | ACK, b"");
    c.segment(true, ACK, b"");
    let pipelined = get("/a").repeat(3);
    assert_eq!(c.say(&pipelined), CHAT);
    c.hear(OK);
    assert_eq!(counts(&c)[1].passed, 3);
    let (out, _) = c.segment(true, ACK, &get("/b"));
    assert_eq!(out.meta.tcp_flags & RST, RST);
}

/// Of what `unread::table` has: requests that are read, if not for sure as their server does.
const UNCLEAR: [&str; 6] = [
    "two hosts",
    "two hosts of HTTP/2",
    "a forbidden name",
    "a value of two lines",
    "the forgotten of a large table",
    "one more field of it",
];

/// Of the same: requests that are read, and refused there for what they say.
const ALL_READ: &str = "a method of one's own, then a request";

/// Whoever says what can't be read has as many requests as it likes, if that passed.
#[test]
fn what_cannot_be_read_is_refused_where_requests_are_counted() {
    let counted = |rule| RuleSpec { counts_requests: true, ..rule };
    let elsewhere = RuleSpec { vip: vec![addr("192.0.2.99")], ..all() };
    // Rules of which the first is limited; whether that may be by requests, and is by any.
    let cases = [
        (vec![counted(all())], true, false),
        (vec![counted(by_path("/v1/*", BULK))], true, false),
        (vec![counted(by_name(BULK))], false, false),
        (vec![counted(elsewhere)], false, false),
        (vec![], true, true),
    ];
    for (name, said, refused) in unread::table() {
        for (i, (rules, counts, by_client)) in cases.iter().enumerate() {
            let mut c = limited(&V4, rules, Excess::Drop);
            if *by_client {
                let all = "0.0.0.0/0".parse().expect("a prefix");
                let of_clients = vec![(all, 0)];
                let limits = vec![LimitSpec { connections: None, ..limit(Excess::Drop) }];
                let spec = LimitsSpec { limits, of_clients, ..LimitsSpec::default() };
                let limits = Limits::build(&spec, Seed(1), None, c.rig.now);
                c.rig.snapshot.limits = Arc::new(limits);
            }
            for (from_client, flags) in [(true, SYN), (false, SYN | ACK), (true, ACK)] {
                c.segment(from_client, flags, b"");
            }
            for part in said.chunks(1_000) {
                c.segment(true, ACK, part);
            }
            let is_out = c.rig.flows.iter().all(|(_, flow)| !flow.class.is_refused());
            let read = name == ALL_READ || *by_client && UNCLEAR.contains(&name);
            let refused = refused && *counts && !read;
            assert_eq!(!is_out, refused, "{name}, case {i}");
        }
    }
}

#[test]
fn a_tap_limits_nothing() {
    let mut c = limited(&V4, &[all()], Excess::Reset);
    (c.whole.tap, c.whole.classify) = (true, Classify::new(false));
    for port in 1..=9 {
        for verdict in handshake(&mut c, port) {
            assert_eq!(verdict, Verdict::Drop(DropReason::TapOnly));
        }
    }
    assert_eq!(counts(&c)[0].passed, 0);
    assert_eq!(c.rig.now, Nanos(SECOND));
}
