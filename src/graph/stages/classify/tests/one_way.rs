//! Connections of which the client's direction alone is seen, past rules that refuse by what it
//! says: ends and beginnings that its server does not believe.

use std::time::Duration;

use super::*;
use crate::base::Nanos;
use crate::flow::TcpState;
use crate::graph::stages::balance::Balance;

pub(super) const SECRET: &[u8] = b"GET /secret/x HTTP/1.1\r\nHost: a\r\n\r\n";
pub(super) const HARMLESS: &[u8] = b"GET /a HTTP/1.1\r\nHost: a\r\nContent-Length: 100000\r\n\r\n";
pub(super) const FIRST: u32 = 1_000_000;

/// Inspector, classifier and balancer.
struct Edge(Inspect, Classify, Balance);

impl Stage for Edge {
    fn process(&mut self, cx: &mut Cx<'_>, batch: &mut Batch) {
        self.0.process(cx, batch);
        self.1.process(cx, batch);
        self.2.process(cx, batch);
    }
}

enum Way {
    /// To a service whose answers take another way.
    Service(u16, Edge),
    /// Through a router past which answers go.
    Router(Whole),
}

pub(super) struct OneWay {
    rig: Rig,
    way: Way,
}

impl OneWay {
    /// Without any connection.
    pub fn bare(to: Option<u16>) -> OneWay {
        let mut rig = Rig::new(LIMITS);
        let rules = [by_path("/secret/*", ClassId::RESET)];
        rig.snapshot.rules = Arc::new(Rules::compile(&rules));
        let inspect = Inspect::new(&inspect_limits(16_384, 4));
        let classify = Classify::new(true);
        let way = match to {
            Some(port) => Way::Service(port, Edge(inspect, classify, Balance::new())),
            None => Way::Router(Whole { inspect, classify, tap: false }),
        };
        OneWay { rig, way }
    }

    /// A connection that has asked once. The number after that.
    pub fn open(to: Option<u16>) -> (OneWay, u32) {
        let mut c = OneWay::bare(to);
        assert!(c.passes(FIRST - 1, SYN, b"") && c.passes(FIRST, ACK, b""));
        let asks = get("/a");
        assert!(c.passes(FIRST, ACK, &asks));
        (c, FIRST + asks.len() as u32)
    }

    /// Whether a client's segment goes on to its server as it is.
    pub fn passes(&mut self, seq: u32, flags: u8, says: &[u8]) -> bool {
        let out = self.segment(seq, flags, says);
        out.verdict == Verdict::Output && out.meta.tcp_flags == flags
    }

    fn segment(&mut self, seq: u32, flags: u8, says: &[u8]) -> Outcome {
        self.segment_of(seq, if flags & ACK != 0 { 5_000 } else { 0 }, flags, says)
    }

    /// The flags with which a client's segment goes on, if it does.
    pub fn send(&mut self, seq: u32, ack: u32, flags: u8, says: &[u8]) -> Option<u8> {
        let out = self.segment_of(seq, ack, flags, says);
        (out.verdict == Verdict::Output).then_some(out.meta.tcp_flags)
    }

    /// Whether a server's segment goes on to its client.
    pub fn answer(&mut self, seq: u32, ack: u32, flags: u8) -> bool {
        let Some((_, flow)) = self.rig.flows.iter().next() else { return false };
        let key = flow.server_key();
        let mut spec = TcpSpec::new((key.src, key.sport), (key.dst, key.dport), flags, b"");
        (spec.seq, spec.ack) = (seq, ack);
        (spec.link.destination, spec.link.source) = (BACKEND_SIDE, BACKEND_MAC);
        self.run(tcp_packet(&spec)).verdict == Verdict::Output
    }

    pub fn now(&self) -> Nanos {
        self.rig.now
    }

    pub fn has_flow(&self) -> bool {
        !self.rig.flows.is_empty()
    }

    pub fn first_byte(&self) -> Option<u32> {
        let (at, _) = self.rig.flows.iter().next()?;
        self.rig.flows.details(at).first_byte()
    }

    fn segment_of(&mut self, seq: u32, ack: u32, flags: u8, says: &[u8]) -> Outcome {
        let server = match &self.way {
            Way::Service(port, _) => (addr(V4.vip), *port),
            Way::Router(_) => (addr(V4.backend.0), V4.backend.1),
        };
        let mut spec = TcpSpec::new((addr(V4.client.0), V4.client.1), server, flags, says);
        (spec.seq, spec.ack) = (seq, ack);
        (spec.link.destination, spec.link.source) = (CLIENT_SIDE, CLIENT_MAC);
        self.run(tcp_packet(&spec))
    }

    fn run(&mut self, packet: Vec<u8>) -> Outcome {
        let packets = [packet];
        let (mut out, _) = match &mut self.way {
            Way::Service(_, edge) => self.rig.run_with(edge, &packets, |_| {}),
            Way::Router(whole) => self.rig.run_with(whole, &packets, |_| {}),
        };
        out.pop().expect("one packet")
    }

    /// As if its stream had carried so many bytes more, of a body, up to this number.
    fn carry(&mut self, bytes: u32, next: u32) {
        let (_, flow) = self.rig.flows.iter().next().expect("a flow");
        match &mut self.way {
            Way::Service(_, Edge(inspect, ..)) => inspect.carry(flow, bytes, next),
            Way::Router(whole) => whole.inspect.carry(flow, bytes, next),
        }
    }

    /// Time goes by; flows whose time is over are forgotten.
    pub fn pass(&mut self, time: Duration) {
        self.rig.now = self.rig.now.saturating_add(time.as_nanos() as u64);
        let inspect = match &mut self.way {
            Way::Service(_, edge) => &mut edge.0,
            Way::Router(whole) => &mut whole.inspect,
        };
        self.rig.flows.expire(self.rig.now, 64, |_, flow| {
            inspect.forget(flow);
            true
        });
    }

    pub fn state(&self) -> TcpState {
        self.rig.flows.iter().next().expect("a flow").1.tcp
    }
}

/// `dsr`, two tunnels, and transit.
pub(super) const WAYS: [Option<u16>; 4] = [Some(82), Some(83), Some(84), None];

#[test]
fn ends_that_no_server_believes_are_dropped() {
    for to in WAYS {
        for (ahead, flags, says) in [
            (4_000, RST, &b""[..]),
            (u32::MAX, RST, b"x"),
            (1, RST, b""),
            (1, FIN | ACK, b""),
            (0_u32.wrapping_sub(2), FIN | ACK, b"x"),
        ] {
            let (mut c, next) = OneWay::open(to);
            let state = c.state();
            let passes = c.passes(next.wrapping_add(ahead), flags, says);
            assert!(!passes && c.state() == state, "{to:?}: {flags:#x} {}", ahead as i32);
            assert!(!c.passes(next, ACK, SECRET));
        }
    }
}

#[test]
fn a_stream_that_has_ended_for_us_alone_does_not_go_on_beside_the_next() {
    for to in WAYS {
        for end in [RST, FIN | ACK] {
            for ahead in [1, 2, 5_000, 1 << 29, u32::MAX, 0_u32.wrapping_sub(60)] {
                // The server does not get the end, or not with numbers that it believes.
                let (mut c, next) = OneWay::open(to);
                assert!(c.passes(next, end, b""), "an end as any");
                let first = next.wrapping_add(ahead);
                if c.passes(first.wrapping_sub(1), SYN, b"") {
                    c.passes(first, ACK, HARMLESS);
                }
                assert!(!c.passes(next, ACK, SECRET), "{to:?}: {end:#x}, {}", ahead as i32);
                // Nor when nothing was said on the next one.
                let (mut c, next) = OneWay::open(to);
                c.passes(next, end, b"");
                c.passes(first.wrapping_sub(1), SYN, b"");
                assert!(!c.passes(next, ACK, SECRET), "{to:?}: {end:#x}, {}", ahead as i32);
            }
        }
    }
}

#[test]
fn the_next_connection_of_a_port_is_read_as_the_first() {
    for to in WAYS {
        for end in [RST, RST | ACK, FIN | ACK] {
            let (mut c, next) = OneWay::open(to);
            let asks = get("/b");
            // Some of it comes again with the end.
            let (again, says) = if end & FIN != 0 { (10, &asks[..]) } else { (0, &b""[..]) };
            assert!(c.passes(next, ACK, &asks[..again]));
            assert!(c.passes(next, end, says), "{to:?}: {end:#x}");
            let first = next.wrapping_add(70_000);
            let is_over = to.is_some() || end & FIN == 0;
            assert_eq!(c.passes(first - 1, SYN, b""), is_over);
            if !is_over {
                continue; // where both ways might be seen, its server's answer tells
            }
            assert!(c.passes(first, ACK, b"") && c.passes(first - 1, ACK, b"\0"), "a probe");
            assert!(c.passes(first, ACK, &asks));
            assert_eq!(c.rig.counters.requests_read, if end & FIN != 0 { 3 } else { 2 });
            assert!(!c.passes(first + asks.len() as u32, ACK, SECRET));
        }
    }
}

/// A connection, and rounds of an end that its server does not believe and a beginning so far
/// behind it. Where the connection stood, and where the last of the beginnings is.
fn rounds(to: Option<u16>, end: u8, steps: &[u32]) -> (OneWay, u32, u32) {
    let (mut c, next) = OneWay::open(to);
    let mut at = next;
    for step in steps {
        c.passes(at, end, b"");
        if c.passes(at.wrapping_add(step - 1), SYN, b"") {
            at = at.wrapping_add(*step);
            c.passes(at, ACK, b"");
        }
    }
    (c, next, at)
}

#[test]
fn several_ends_and_beginnings_do_not_lead_around_the_numbers() {
    let long = [HARMLESS, &[b'x'; 1_000]].concat();
    let short = 0_u32.wrapping_sub(long.len() as u32);
    for to in WAYS {
        for end in [RST, FIN | ACK] {
            for (step, times) in [((1_u32 << 31) - 1, 1), (1 << 30, 3), (1 << 29, 7), (1 << 26, 63)]
            {
                let mut steps = vec![step; times];
                // To where the old stream stands just behind what is said on the last one.
                steps.push(short.wrapping_sub(step.wrapping_mul(times as u32)));
                let (mut c, next, at) = rounds(to, end, &steps);
                if at != next {
                    c.passes(at, ACK, &long);
                }
                assert!(!c.passes(next, ACK, SECRET), "{to:?}: {end:#x}, {times} times {step}");
            }
        }
    }
}

#[test]
fn what_the_next_stream_carries_does_not_lead_back_to_the_one_before() {
    const MINUTE: Duration = Duration::from_secs(60);
    for to in WAYS {
        // A GiB from there on what lies before its beginning comes near once more.
        for bytes in [1 << 30, (1 << 30) + 1, 1 << 31, 3 << 30, 0_u32.wrapping_sub(5_000)] {
            let (mut c, next, first) = rounds(to, RST, &[5_000]);
            assert!(first == next.wrapping_add(5_000) && c.passes(first, ACK, HARMLESS));
            let stands = first.wrapping_add(bytes);
            c.carry(bytes, stands);
            assert!(!c.passes(next, ACK, SECRET), "{to:?}: {bytes}");
            assert!(!c.passes(next.wrapping_sub(1), ACK, SECRET), "{to:?}: {bytes}");
            // What comes again passes, and what comes next; at the latest after two minutes.
            let goes_on = bytes < 1 << 31;
            assert_eq!(c.passes(stands.wrapping_sub(100), ACK, b"again"), goes_on, "{bytes}");
            assert_eq!(c.passes(stands, ACK, b"more"), goes_on, "{to:?}: {bytes}");
            c.pass(MINUTE);
            c.pass(MINUTE);
            c.pass(MINUTE / 6);
            assert!(c.passes(stands.wrapping_add(4), ACK, b"") && c.passes(stands, ACK, b"more"));
        }
        // Of the first stream its server has all.
        let (mut c, next) = OneWay::open(to);
        assert!(c.passes(next, ACK, HARMLESS));
        c.carry(u32::MAX, next);
        assert!(c.passes(next, ACK, b"more"));
    }
}

#[test]
fn a_further_stream_that_is_no_http_hides_nothing_before_it() {
    for to in WAYS {
        for end in [RST, FIN | ACK] {
            for (step, says) in [(2, &b"\x01"[..]), (5_000, b"\x16\x03\x01"), (1 << 30, b"\x01")] {
                let (mut c, next, first) = rounds(to, end, &[step]);
                let is_over = to.is_some() || end & FIN == 0;
                assert_eq!(first == next.wrapping_add(step), is_over);
                if !is_over {
                    continue; // where both ways might be seen, its server's answer tells
                }
                let told = first.wrapping_add(says.len() as u32);
                assert!(c.passes(first, ACK, says) && c.passes(told, ACK, b"and more"));
                assert!(c.passes(first, ACK, says), "again");
                for at in [next, next.wrapping_sub(1)] {
                    assert!(!c.passes(at, ACK, SECRET), "{to:?}: {end:#x}, {step}");
                }
                // A third one is read, and lies behind it; nor does it lead around.
                assert!(c.passes(told.wrapping_add(8), end, b""));
                assert!(!c.passes(first.wrapping_add((1 << 31) - 2), SYN, b""));
                assert!(!c.passes(next.wrapping_sub(60), SYN, b""));
                let third = told.wrapping_add(70_000);
                assert!(c.passes(third.wrapping_sub(1), SYN, b""));
                assert!(c.passes(third, ACK, &get("/b")));
                for at in [next, third.wrapping_add(get("/b").len() as u32)] {
                    assert!(!c.passes(at, ACK, SECRET), "{to:?}: {end:#x}, {step}");
                }
            }
        }
        // Once what was before is forgotten nothing is looked at any more.
        let (mut c, _, first) = rounds(to, RST, &[5_000]);
        assert!(c.passes(first, ACK, b"\x01 is no HTTP"));
        c.rig.now = c.rig.now.saturating_add(130_000_000_000);
        assert!(c.passes(first.wrapping_add(1 << 31), ACK, b"more"));
        let (_, flow) = c.rig.flows.iter().next().expect("a flow");
        assert_eq!(flow.inspection, DONE);
    }
}

#[test]
fn a_port_that_is_used_again_and_again_is_read_each_time() {
    for to in WAYS {
        // A clock's steps, and quicker ones.
        for (every, step, times) in [(64_000, 1_000_000, 300), (5_000_000, 70_000, 300)] {
            let (mut c, mut at) = OneWay::open(to);
            let asks = get("/b");
            for n in 1..=times {
                assert!(c.passes(at, RST, b""), "{to:?}: {n}");
                c.pass(Duration::from_micros(every));
                at = at.wrapping_add(step);
                assert!(c.passes(at - 1, SYN, b"") && c.passes(at, ACK, &asks), "{to:?}: {n}");
                at += asks.len() as u32;
            }
            assert_eq!(c.rig.counters.requests_read, 1 + times);
            assert!(!c.passes(at, ACK, SECRET));
        }
    }
}

#[test]
fn whoever_is_refused_another_beginning_gets_in_in_time() {
    // By the RST's time, by the FIN's, and as clocks go on.
    for (end, steps, seconds) in [
        (RST, &[0_u32.wrapping_sub(99)][..], 12),
        (FIN | ACK, &[0_u32.wrapping_sub(99)], 242),
        (FIN | ACK, &[(1 << 31) - 1, (1 << 31) - 1], 130),
    ] {
        let (mut c, _, at) = rounds(Some(82), end, steps);
        let first = at.wrapping_add(steps[steps.len() - 1]);
        let mut refused = 0;
        while !c.passes(first.wrapping_sub(1), SYN, b"") {
            let why = c.segment(first.wrapping_sub(1), SYN, b"").verdict;
            assert_eq!(why, Verdict::Drop(DropReason::PortReused));
            refused += 1;
            assert!(refused < seconds, "{end:#x}: {seconds} s");
            c.pass(Duration::from_secs(1));
        }
        assert!(refused > 5 && c.passes(first, ACK, &get("/b")));
        assert!(!c.passes(first.wrapping_add(get("/b").len() as u32), ACK, SECRET));
    }
}

#[test]
fn a_beginning_that_comes_again_is_the_same_one() {
    for to in WAYS {
        for end in [RST, FIN | ACK] {
            let (mut c, next, first) = rounds(to, end, &[5_000]);
            if first == next {
                continue; // where both ways might be seen, its server's answer tells
            }
            for _ in 0..3 {
                assert!(c.passes(first - 1, SYN, b""), "{to:?}: {end:#x}");
            }
            assert!(c.passes(first, ACK, &get("/b")));
            assert_eq!(c.rig.counters.requests_read, 2);
            assert!(!c.passes(next, ACK, SECRET), "{to:?}: {end:#x}");
        }
    }
}

#[test]
fn a_stream_of_long_standing_is_as_the_first() {
    // Of the fourth nobody knows whether its server has taken it.
    for to in &WAYS[..3] {
        let (mut c, next, first) = rounds(*to, RST, &[5_000]);
        assert!(c.passes(first, ACK, HARMLESS) && !c.passes(next, ACK, SECRET));
        // It goes on for hours, and carries all numbers; then another one follows at once.
        let mut at = first.wrapping_add(HARMLESS.len() as u32);
        for _ in 0..9 {
            c.pass(Duration::from_secs(140));
            assert!(c.passes(at, ACK, b"more"), "{to:?}");
            at = at.wrapping_add((1 << 30) + 4);
            c.carry(1 << 30, at);
        }
        assert!(c.passes(at, RST, b"") && c.passes(at.wrapping_add(69_999), SYN, b""), "{to:?}");
        assert!(!c.passes(at, ACK, SECRET), "{to:?}");
    }
}
