//! What is kept of clients that wait: who gives way to whom, and what rules still know of them.

use std::sync::Arc;

use super::*;
use crate::flow::FlowLimits;
use crate::forward::Tables;
use crate::forward::spec::{BindAt, Delay, ForwardSpec};
use crate::forward::splice::Promise;
use crate::graph::Stage;
use crate::graph::stages::balance::Balance;
use crate::graph::stages::classify::Classify;
use crate::graph::stages::rig::*;
use crate::packet::build::{
    IcmpSpec, IpSpec, TcpSpec, UdpSpec, icmp_packet, tcp_packet, udp_packet,
};
use crate::packet::tcp::flag::{ACK, SYN};
use crate::packet::udp;
use crate::packet::{Batch, ParseOptions, Verdict, parse};
use crate::policy::Rules;
use crate::policy::spec::{PathPattern, RuleSpec};

mod answers;
mod retries;

const LIMITS: FlowLimits = FlowLimits { flows_max: 64, half_open_max: 64 };
/// Services of [`V4`] by their ports.
const HELLO: u16 = 80;
const REQUEST: u16 = 81;

/// The rig's services of TCP and UDP, those of two ports with delayed binding.
fn delayed() -> ForwardSpec {
    let mut spec = services();
    for service in &mut spec.services {
        let at = match (service.port, service.proto) {
            (HELLO, _) => BindAt::Hello,
            (REQUEST, tcp::PROTOCOL) => BindAt::Request,
            _ => continue,
        };
        service.delay = Some(Delay { at, timeout_ms: 30_000, promise: Promise::default() });
    }
    spec
}

struct Bench {
    rig: Rig,
    stage: Balance,
}

impl Bench {
    /// Room for this many connections, and for this many that wait for requests.
    fn new(bindings_max: u32, connections_max: u32) -> Bench {
        let mut rig = Rig::new(LIMITS);
        rig.snapshot.forward = Arc::new(Tables::build(&delayed(), 2, rig.snapshot.seed));
        let limits = SpliceLimits {
            flows_max: LIMITS.flows_max,
            bindings_max,
            read_bytes_max: 16_384,
            datagrams: true,
            heads: Some(HeadLimits { connections_max, headers: Vec::new() }),
        };
        let splice = Splice::new(&limits, rig.snapshot.seed);
        Bench { rig, stage: Balance::with_splice(splice) }
    }

    /// A client's segment, and what becomes of it: of the client's port, with its number and its
    /// acknowledgement.
    fn send(&mut self, to: u16, from: u16, numbers: (u32, u32), flags: u8, says: &[u8]) -> Outcome {
        let mut spec = TcpSpec::new((addr(V4.client.0), from), (addr(V4.vip), to), flags, says);
        (spec.seq, spec.ack) = numbers;
        spec.ip.tos = 46 << 2;
        (spec.link.destination, spec.link.source) = (CLIENT_SIDE, CLIENT_MAC);
        let mut out = self.rig.run_with(&mut self.stage, &[tcp_packet(&spec)], |_| {}).0;
        out.remove(0)
    }

    /// A connection whose client has said this; our number after it.
    fn open(&mut self, to: u16, from: u16, says: &[u8]) -> u32 {
        let answer = self.send(to, from, (99, 0), SYN, b"");
        let mut meta = PacketMeta::default();
        parse(&answer.bytes, Seed(1), ParseOptions::default(), &mut meta).expect("a packet");
        assert_eq!(meta.tcp_flags, SYN | ACK);
        let next = meta.tcp_seq.wrapping_add(1);
        self.send(to, from, (100, next), ACK, says);
        next
    }

    fn datagram(&mut self, client: u16, says: &[u8], from_server: Option<u16>) -> Outcome {
        let (client, vip) = ((addr(V4.client.0), client), (addr(V4.vip), HELLO));
        let mut spec = UdpSpec::new(client, vip, says);
        spec.link.destination = CLIENT_SIDE;
        if let Some(port) = from_server {
            let backend = (addr(V4.backend.0), V4.backend.1);
            spec = UdpSpec::new(backend, (addr(V4.nat), port), says);
            spec.link.destination = BACKEND_SIDE;
        }
        self.rig.run(&mut self.stage, udp_packet(&spec))
    }
}

#[test]
fn who_waits_for_a_hello_does_not_give_way_to_requests() {
    let mut b = Bench::new(8, 2);
    let next = b.open(HELLO, 1, b"\x16\x03\x01");
    for port in 2..6 {
        b.open(REQUEST, port, b"GET /");
    }
    assert_eq!((b.rig.counters.bindings_begun, b.rig.counters.bindings_crowded_out), (5, 2));
    let more = b.send(HELLO, 1, (103, next), ACK, b"\x02\x00");
    assert_ne!(more.verdict, Verdict::Drop(crate::packet::DropReason::BadCookie));
    assert_eq!(b.stage.splice().expect("one").bindings(), 3);
    // Without a place left the oldest of all goes.
    for port in 6..12 {
        b.open(HELLO, port, b"\x16\x03\x01");
    }
    assert_eq!(b.rig.counters.bindings_crowded_out, 3);
    let more = b.send(HELLO, 1, (105, next), ACK, b"\x00");
    assert_eq!(more.verdict, Verdict::Drop(crate::packet::DropReason::BadCookie));
}

/// Cuts who waits at a service's port.
struct Cutting<'a>(&'a mut Balance, u16, [usize; 2]);

impl Stage for Cutting<'_> {
    fn process(&mut self, cx: &mut Cx<'_>, _: &mut Batch) {
        let Cutting(balance, port, [done, looked_at]) = self;
        let looks = std::cell::Cell::new(0);
        let of = |client: &FlowKey| {
            looks.set(looks.get() + 1);
            client.dport == *port
        };
        *done = balance.cut_waiting(cx, of, 2);
        *looked_at = looks.get();
    }
}

#[test]
fn who_waits_is_counted_and_can_be_reset() {
    let mut b = Bench::new(8, 8);
    b.open(HELLO, 1, b"\x16\x03\x01");
    let next = [2, 3, 4].map(|port| b.open(REQUEST, port, b"GET /"));
    // It has a backend, and a flow.
    b.open(REQUEST, 5, b"GET / HTTP/1.1\r\nHost: a\r\n\r\n");
    let waiting = |b: &Bench| b.stage.splice().expect("one").count_waiting(|k| k.dport == REQUEST);
    assert_eq!(waiting(&b), 3);
    for (left, cut, looked_at) in [(1, 2, 3), (0, 1, 2), (0, 0, 1)] {
        let mut cutting = Cutting(&mut b.stage, REQUEST, [9, 9]);
        let (_, resets) = b.rig.run_with(&mut cutting, &[], |_| {});
        assert_eq!((cutting.2, resets.len()), ([cut, looked_at], cut), "each once a turn");
        for reset in resets {
            let mut meta = PacketMeta::default();
            parse(&reset.bytes, Seed(1), ParseOptions::default(), &mut meta).expect("a packet");
            assert!(meta.tcp_flags & tcp::flag::RST != 0 && next.contains(&meta.tcp_seq));
        }
        assert_eq!(waiting(&b), left);
    }
    assert_eq!(b.stage.splice().expect("one").bindings(), 2);
}

#[test]
fn rules_see_the_code_point_that_a_connection_began_with() {
    for (to, says) in [(HELLO, &b"no hello"[..]), (REQUEST, b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")] {
        let mut b = Bench::new(8, 2);
        let rule = RuleSpec { dscp: vec![46], class: ClassId(5), ..RuleSpec::default() };
        b.rig.snapshot.rules = Arc::new(Rules::compile(&[rule]));
        b.open(to, 1, says);
        let classes: Vec<_> = b.rig.flows.iter().map(|(_, flow)| flow.class).collect();
        assert_eq!(classes, [ClassId(5)], "{to}");
    }
}

#[test]
fn a_client_that_has_moved_is_found_though_services_were_numbered_anew() {
    let mut b = Bench::new(8, 2);
    let unread = [&[0xc0, 0x1a, 0x2a, 0x3a, 0x4a][..], &[0; 1_200]].concat();
    let sent = b.datagram(1, &unread, None);
    assert_eq!(sent.verdict, Verdict::Output);
    let mut meta = PacketMeta::default();
    parse(&sent.bytes, Seed(1), ParseOptions::default(), &mut meta).expect("a packet");
    // An Initial packet by which the server says what it is called (RFC 9000, section 17.2.2).
    let named = [&[0xc0, 0, 0, 0, 1, 0, 8][..], b"server-1", &[0, 0x40, 20], &[7; 20]].concat();
    b.datagram(1, &named, Some(meta.key.sport));
    let mut spec = delayed();
    spec.services.reverse();
    for (n, service) in spec.services.iter_mut().enumerate() {
        service.id.0 = n as u16;
    }
    b.rig.snapshot.forward = Arc::new(Tables::build(&spec, 2, b.rig.snapshot.seed));
    let moved = b.datagram(2, b"\x40server-1 and more", None);
    assert_eq!((moved.verdict, b.rig.counters.clients_followed), (Verdict::Output, 1));
    assert_eq!(meta.key.proto, udp::PROTOCOL);
}

/// Rules by address and by request, in front of the balancer.
struct Ruled<'a>(&'a mut Balance);

impl Stage for Ruled<'_> {
    fn process(&mut self, cx: &mut Cx<'_>, batch: &mut Batch) {
        Classify::new(true).process(cx, batch);
        self.0.process(cx, batch);
    }
}

#[test]
fn what_is_made_here_has_the_code_point_that_rules_give() {
    let path = vec![PathPattern::new("/a").expect("a pattern")];
    let by_path = RuleSpec { path, mark: Some(30), ..RuleSpec::default() };
    let by_port = RuleSpec { port: vec![REQUEST], mark: Some(10), ..RuleSpec::default() };
    // To the client before it has spoken, to it afterwards, and to the backend.
    for (rules, want) in [
        (vec![by_path.clone(), by_port.clone()], [10, 30, 30]),
        (vec![by_path], [0, 30, 30]),
        (vec![by_port], [10, 10, 10]),
        (vec![], [0, 0, 46]),
    ] {
        let mut b = Bench::new(8, 2);
        b.rig.snapshot.rules = Arc::new(Rules::compile(&rules));
        let run = |b: &mut Bench, numbers: (u32, u32), flags, says: &[u8]| {
            let mut spec =
                TcpSpec::new((addr(V4.client.0), 1), (addr(V4.vip), REQUEST), flags, says);
            (spec.seq, spec.ack) = numbers;
            spec.ip.tos = 46 << 2;
            (spec.link.destination, spec.link.source) = (CLIENT_SIDE, CLIENT_MAC);
            let packets: &[Vec<u8>] = &[tcp_packet(&spec)];
            let (out, replies) = b.rig.run_with(&mut Ruled(&mut b.stage), packets, |_| {});
            let sent = out.into_iter().filter(|o| o.verdict == Verdict::Output).chain(replies);
            let seen = sent.map(|outcome| {
                let mut meta = PacketMeta::default();
                parse(&outcome.bytes, Seed(1), ParseOptions::default(), &mut meta).expect("one");
                assert_eq!(meta.tos, outcome.meta.tos, "as it was told");
                meta
            });
            seen.collect::<Vec<_>>()
        };
        let answers = run(&mut b, (99, 0), SYN, b"");
        let next = answers[0].tcp_seq.wrapping_add(1);
        let request = b"GET /a HTTP/1.1\r\nHost: a\r\n\r\n";
        let mut made = run(&mut b, (100, next), ACK, request);
        made.extend(run(&mut b, (100, next), ACK, request));
        let of = |to_client: bool| {
            let of_it = |meta: &&PacketMeta| (meta.key.dst == addr(V4.client.0)) == to_client;
            made.iter().filter(of_it).map(PacketMeta::dscp).collect::<Vec<_>>()
        };
        let [toward_client, toward_backend] = [true, false].map(of);
        assert!(!toward_client.is_empty() && !toward_backend.is_empty());
        assert_eq!(answers[0].dscp(), want[0], "{rules:?}");
        assert!(toward_client.iter().all(|dscp| *dscp == want[1]), "{toward_client:?} {rules:?}");
        assert!(toward_backend.iter().all(|dscp| *dscp == want[2]), "{toward_backend:?}");
    }
}

/// A turn of time without packets.
struct Ticking<'a>(&'a mut Balance);

impl Stage for Ticking<'_> {
    fn process(&mut self, cx: &mut Cx<'_>, _: &mut Batch) {
        self.0.tick(cx);
    }
}

#[test]
fn what_is_held_gets_through_a_path_that_is_narrower_than_the_backends_link() {
    const MTU: u16 = 1_280;
    let mut b = Bench::new(8, 2);
    let payload_of = |outcome: &Outcome| {
        let mut meta = PacketMeta::default();
        parse(&outcome.bytes, Seed(1), ParseOptions::default(), &mut meta).expect("a packet");
        (usize::from(meta.end - meta.payload), meta)
    };
    let toward_backend = |(out, replies): (Vec<Outcome>, Vec<Outcome>)| {
        let all = out.into_iter().filter(|o| o.verdict == Verdict::Output).chain(replies);
        all.filter(|o| payload_of(o).1.key.dst == addr(V4.backend.0)).collect::<Vec<_>>()
    };
    let answer = b.send(REQUEST, 1, (99, 0), SYN, b"");
    let next = payload_of(&answer).1.tcp_seq.wrapping_add(1);
    let request = format!("GET / HTTP/1.1\r\nHost: a\r\nX: {}\r\n\r\n", "x".repeat(1_300));
    let client = (addr(V4.client.0), 1);
    let mut spec = TcpSpec::new(client, (addr(V4.vip), REQUEST), ACK, request.as_bytes());
    (spec.seq, spec.ack) = (100, next);
    spec.link.destination = CLIENT_SIDE;
    let opened = toward_backend(b.rig.run_with(&mut b.stage, &[tcp_packet(&spec)], |_| {}));
    let syn = payload_of(&opened[0]).1;
    assert_eq!(syn.tcp_flags & (SYN | ACK), SYN);

    // The backend's own link takes whole segments (option 2: 1,460 bytes).
    let backend = (addr(V4.backend.0), V4.backend.1);
    let mut spec = TcpSpec::new(backend, (syn.key.src, syn.key.sport), SYN | ACK, b"");
    (spec.seq, spec.ack) = (5_000, syn.tcp_seq.wrapping_add(1));
    spec.options = vec![2, 4, 5, 0xb4];
    (spec.link.destination, spec.link.source) = (BACKEND_SIDE, BACKEND_MAC);
    let sent = toward_backend(b.rig.run_with(&mut b.stage, &[tcp_packet(&spec)], |_| {}));
    let longest = sent.iter().max_by_key(|o| o.bytes.len()).expect("what was held");
    assert_eq!(payload_of(longest).0, request.len(), "in one segment");

    let error = icmp_packet(&IcmpSpec {
        link: spec.link,
        ip: IpSpec::new(addr("203.0.113.77"), syn.key.src),
        kind: 3,
        code: 4,
        rest: MTU.into(),
        payload: longest.bytes[14..].to_vec(),
    });
    assert_eq!(b.rig.run(&mut b.stage, error).verdict, Verdict::Absorb, "it was for us");
    b.rig.now += std::time::Duration::from_millis(500);
    let again = toward_backend(b.rig.run_with(&mut Ticking(&mut b.stage), &[], |_| {}));
    let lengths: Vec<_> = again.iter().map(|o| payload_of(o).0).collect();
    assert_eq!(lengths.first(), Some(&usize::from(MTU - 40)), "{lengths:?}");
}
