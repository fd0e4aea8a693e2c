//! Connections of which the client's direction alone is seen, past rules that refuse by what it
//! says: ends and beginnings that its server does not believe.

use super::*;
use crate::flow::TcpState;
use crate::graph::stages::balance::Balance;

const SECRET: &[u8] = b"GET /secret/x HTTP/1.1\r\nHost: a\r\n\r\n";
const HARMLESS: &[u8] = b"GET /a HTTP/1.1\r\nHost: a\r\nContent-Length: 100000\r\n\r\n";
const FIRST: u32 = 1_000_000;

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

struct OneWay {
    rig: Rig,
    way: Way,
}

impl OneWay {
    /// A connection that has asked once. The number after that.
    fn open(to: Option<u16>) -> (OneWay, u32) {
        let mut rig = Rig::new(LIMITS);
        let rules = [by_path("/secret/*", ClassId::RESET)];
        rig.snapshot.rules = Arc::new(Rules::compile(&rules));
        let inspect = Inspect::new(&inspect_limits(16_384, 4));
        let classify = Classify::new(true);
        let way = match to {
            Some(port) => Way::Service(port, Edge(inspect, classify, Balance::new())),
            None => Way::Router(Whole { inspect, classify, tap: false }),
        };
        let mut c = OneWay { rig, way };
        assert!(c.passes(FIRST - 1, SYN, b"") && c.passes(FIRST, ACK, b""));
        let asks = get("/a");
        assert!(c.passes(FIRST, ACK, &asks));
        (c, FIRST + asks.len() as u32)
    }

    /// Whether a client's segment goes on to its server as it is.
    fn passes(&mut self, seq: u32, flags: u8, says: &[u8]) -> bool {
        let server = match &self.way {
            Way::Service(port, _) => (addr(V4.vip), *port),
            Way::Router(_) => (addr(V4.backend.0), V4.backend.1),
        };
        let mut spec = TcpSpec::new((addr(V4.client.0), V4.client.1), server, flags, says);
        (spec.seq, spec.ack) = (seq, if flags & ACK != 0 { 5_000 } else { 0 });
        (spec.link.destination, spec.link.source) = (CLIENT_SIDE, CLIENT_MAC);
        let packets = [tcp_packet(&spec)];
        let (out, _) = match &mut self.way {
            Way::Service(_, edge) => self.rig.run_with(edge, &packets, |_| {}),
            Way::Router(whole) => self.rig.run_with(whole, &packets, |_| {}),
        };
        out[0].verdict == Verdict::Output && out[0].meta.tcp_flags == flags
    }

    fn state(&self) -> TcpState {
        self.rig.flows.iter().next().expect("a flow").1.tcp
    }
}

/// `dsr`, two tunnels, and transit.
const WAYS: [Option<u16>; 4] = [Some(82), Some(83), Some(84), None];

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
