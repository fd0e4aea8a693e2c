//! Hellos in pieces on their way through the stage, decoys, flows that stall, crowd and come back.

use std::sync::Arc;

use proptest::prelude::*;

use super::*;
use crate::base::{Addr, Seed};
use crate::flow::reassembly::WINDOW_BYTES;
use crate::flow::{FlowKind, FlowLimits, FlowTable, NewFlow, Note, Timeouts};
use crate::forward::spec::ForwardSpec;
use crate::forward::{IcmpLimiter, RoutesBuilder, Tables, Turns};
use crate::graph::stages::classify::Classify;
use crate::graph::stages::rig::inspect_limits;
use crate::graph::{Copies, Snapshot};
use crate::inspect::tls::tests::rustls_hello;
use crate::observe::{Counters, Latencies};
use crate::packet::build::{TcpSpec, UdpSpec, tcp_packet, udp_packet};
use crate::packet::{ClassId, FramePool, Packet, ParseOptions, parse};
use crate::policy::Rules;
use crate::policy::spec::{NamePattern, RuleSpec};
use crate::qos::delays::Delays;

mod carried;
mod crowded;
mod hiding;
mod newcomers;
mod notes;
mod quic;
#[allow(dead_code, reason = "other tests use it")]
#[path = "../../../../tests/quic_support/mod.rs"]
mod quic_support;

const SEED: Seed = Seed(5);
const BY_NAME: ClassId = ClassId(1);
const BY_PORT: ClassId = ClassId(2);
const BY_PROTOCOL: ClassId = ClassId(3);
const ISN: u32 = u32::MAX - 100;
const SERVER_NEXT: u32 = 77;
const HELLO_BYTES_MAX: u32 = 16_384;

/// Inspector and classifier in a row, and all that they work with.
struct Rig {
    inspect: Inspect,
    now: Nanos,
    pool: FramePool,
    flows: FlowTable,
    names: Names,
    snapshot: Snapshot,
    counters: Counters,
}

impl Rig {
    fn new(flows_max: u32, names_max: u32) -> Rig {
        let limits = FlowLimits { flows_max: 1_024, half_open_max: 1_024 };
        Rig {
            inspect: Inspect::new(&inspect_limits(HELLO_BYTES_MAX, flows_max)),
            now: Nanos::from_secs(100),
            pool: FramePool::standalone(128, 4096),
            flows: FlowTable::new(limits, Timeouts::default(), SEED),
            names: Names::new(names_max, SEED),
            snapshot: Snapshot {
                forward: Arc::new(Tables::build(&ForwardSpec::default(), 1, SEED)),
                routes: Arc::new(RoutesBuilder::new(Vec::new(), SEED).build(1)),
                rules: Arc::new(Rules::compile(&rules())),
                seed: SEED,
                worker_count: 1,
                meters: Default::default(),
                limits: Default::default(),
                shared_ports: Default::default(),
            },
            counters: Counters::default(),
        }
    }

    /// Runs one batch; returns what is known of its packets afterwards.
    fn run(&mut self, packets: &[Vec<u8>]) -> Vec<PacketMeta> {
        let arena = self.pool.arena().clone();
        let mut batch = Batch::new();
        for bytes in packets {
            let frame = self.pool.take_with(bytes).expect("stock");
            let mut meta = PacketMeta::default();
            let options = ParseOptions { verify_transport_checksum: true };
            parse(frame.bytes(&arena), SEED, options, &mut meta).expect("a good packet");
            batch.push(Packet { frame, meta });
        }
        self.flows.lookup_batch(&mut batch);
        let mut cx = Cx {
            now: self.now,
            worker: 0,
            arena: &arena,
            pool: &mut self.pool,
            flows: &mut self.flows,
            names: &mut self.names,
            snapshot: &self.snapshot,
            counters: &mut self.counters,
            latencies: &Latencies::new(),
            replies: &mut Vec::new(),
            copies: &mut Copies::default(),
            icmp_limit: &mut IcmpLimiter::new(),
            turns: &mut Turns::new(0, 1),
            delays: &mut Delays::default(),
        };
        self.inspect.process(&mut cx, &mut batch);
        Classify::new(true).process(&mut cx, &mut batch);
        let mut metas = Vec::new();
        for packet in batch.drain() {
            self.pool.put(packet.frame);
            metas.push(packet.meta);
        }
        metas
    }

    /// A client's SYN, and the flow that a later stage enters for it.
    fn open(&mut self, client: &Client) -> FlowRef {
        let meta = self.run(&[client.packet(ISN, flag::SYN, b"")]).remove(0);
        self.enter(&meta)
    }

    fn enter(&mut self, meta: &PacketMeta) -> FlowRef {
        let new = NewFlow {
            key: meta.key,
            reply: Some(meta.key.reversed()),
            kind: FlowKind::Transit,
            backend: u16::MAX,
            class: meta.class,
            idle_established_ms: None,
        };
        self.flows.insert(self.now, &new, meta).expect("room")
    }

    fn name(&self, flow: FlowRef) -> Option<&[u8]> {
        self.names.get(self.flows.details(flow).name)
    }

    fn note(&self, flow: FlowRef) -> &Note {
        self.names.notes.get(flow, self.flows.details(flow)).expect("a note")
    }

    fn class(&self, flow: FlowRef) -> ClassId {
        self.flows.get(flow).class
    }

    fn inspection(&self, flow: FlowRef) -> u16 {
        self.flows.get(flow).inspection
    }
}

fn rules() -> Vec<RuleSpec> {
    let sni = vec![NamePattern::Suffix("openai.com".into())];
    vec![
        RuleSpec { sni, class: BY_NAME, ..RuleSpec::default() },
        RuleSpec { alpn: vec!["imap".into()], class: BY_PROTOCOL, ..RuleSpec::default() },
        RuleSpec { port: vec![443], class: BY_PORT, ..RuleSpec::default() },
    ]
}

struct Client {
    endpoint: (Addr, u16),
    server: (Addr, u16),
}

fn client(port: u16) -> Client {
    let addr = |a: &str| a.parse().expect("a literal");
    Client { endpoint: (addr("192.0.2.1"), port), server: (addr("198.51.100.1"), 443) }
}

impl Client {
    fn packet(&self, seq: u32, flags: u8, payload: &[u8]) -> Vec<u8> {
        let mut spec = TcpSpec::new(self.endpoint, self.server, flags, payload);
        (spec.seq, spec.ack) = (seq, SERVER_NEXT);
        tcp_packet(&spec)
    }

    /// Payload at an offset into the stream.
    fn data(&self, at: usize, payload: &[u8]) -> Vec<u8> {
        let seq = ISN.wrapping_add(1).wrapping_add(at as u32);
        self.packet(seq, flag::ACK | flag::PSH, payload)
    }

    fn answer(&self, payload: &[u8]) -> Vec<u8> {
        let spec = TcpSpec::new(self.server, self.endpoint, flag::ACK, payload);
        tcp_packet(&TcpSpec { seq: SERVER_NEXT, ..spec })
    }
}

fn hello() -> Vec<u8> {
    rustls_hello("API.OpenAI.com", rustls::ALL_VERSIONS, &["h2", "http/1.1"])
}

#[test]
fn a_hello_gives_its_flow_name_and_class_at_once() {
    let mut rig = Rig::new(4, 8);
    let c = client(1);
    let flow = rig.open(&c);
    assert_eq!(rig.class(flow), BY_PORT, "by the rules that need no name");
    assert_eq!(rig.run(&[c.data(0, b"")])[0].class, BY_PORT);
    let hello = hello();
    assert_eq!(rig.run(&[c.data(0, &hello)])[0].class, BY_NAME, "the very packet");
    assert_eq!(rig.name(flow), Some(&b"api.openai.com"[..]));
    assert_eq!((rig.class(flow), rig.inspect.flows()), (BY_NAME, 1), "until it is answered");
    assert_eq!(rig.run(&[c.answer(b"hello")])[0].class, BY_NAME);
    assert_eq!((rig.inspect.flows(), rig.inspection(flow)), (0, DONE));
    assert_eq!((rig.counters.names_found, rig.counters.apps_tls), (1, 1));
    rig.run(&[c.data(hello.len(), &hello)]);
    assert_eq!((rig.inspect.flows(), rig.counters.names_found), (0, 1), "not looked at again");
}

#[test]
fn protocols_decide_too() {
    let mut rig = Rig::new(4, 8);
    let c = client(1);
    let flow = rig.open(&c);
    rig.run(&[c.data(0, &rustls_hello("192.0.2.9", rustls::ALL_VERSIONS, &["h2", "imap"]))]);
    assert_eq!((rig.class(flow), rig.name(flow)), (BY_PROTOCOL, None));
    assert_eq!(rig.counters.hellos_without_name, 1);
}

#[test]
fn a_full_table_of_names_changes_no_decision() {
    let mut rig = Rig::new(4, 0);
    let c = client(1);
    let flow = rig.open(&c);
    rig.run(&[c.data(0, &hello())]);
    assert_eq!((rig.class(flow), rig.name(flow)), (BY_NAME, None));
}

#[test]
fn segments_may_come_in_any_order_and_twice() {
    let hello = hello();
    let c = client(1);
    for size in [1, 7, 100] {
        let mut rig = Rig::new(4, 8);
        let flow = rig.open(&c);
        let parts = hello.chunks(size).enumerate();
        let mut packets: Vec<_> = parts.map(|(i, part)| c.data(i * size, part)).collect();
        packets.reverse();
        for packet in packets {
            rig.run(std::slice::from_ref(&packet));
            rig.run(&[packet]);
        }
        assert_eq!(rig.name(flow), Some(&b"api.openai.com"[..]), "segments of {size}");
    }
}

#[test]
fn a_flow_whose_syn_was_not_seen_is_read_from_its_first_segment() {
    let mut rig = Rig::new(4, 8);
    let c = client(1);
    let meta = rig.run(&[c.data(0, b"")]).remove(0);
    let flow = rig.enter(&meta);
    let hello = hello();
    rig.run(&[c.data(0, &hello[..50]), c.data(50, &hello[50..])]);
    assert_eq!(rig.name(flow), Some(&b"api.openai.com"[..]));
}

#[test]
fn what_is_not_known_is_looked_at_once() {
    let mut rig = Rig::new(4, 8);
    let c = client(1);
    let flow = rig.open(&c);
    rig.run(&[c.data(0, b"\x01\x02 of some other protocol")]);
    assert_eq!((rig.inspection(flow), rig.inspect.flows()), (DONE, 0));
    assert_eq!((rig.class(flow), rig.counters.apps_other), (BY_PORT, 1));
}

#[test]
fn what_a_receiver_would_not_take_is_not_read() {
    let mut rig = Rig::new(4, 8);
    let c = client(1);
    let flow = rig.open(&c);
    let decoy = rustls_hello("decoy.test", rustls::ALL_VERSIONS, &[]);
    let first = ISN.wrapping_add(1);
    rig.run(&[
        c.packet(first, flag::RST | flag::ACK, &decoy),
        c.packet(first, flag::SYN | flag::ACK, &decoy),
        c.packet(first.wrapping_sub(1_000), flag::ACK, &decoy),
        c.packet(first.wrapping_add(1 << 20), flag::ACK, &decoy),
        c.answer(&decoy),
    ]);
    let mut udp = UdpSpec::new(c.endpoint, c.server, &decoy);
    udp.dport = 444;
    rig.run(&[udp_packet(&udp)]);
    assert_eq!(rig.name(flow), None);
    rig.run(&[c.data(0, &hello())]);
    assert_eq!(rig.name(flow), Some(&b"api.openai.com"[..]));
}

/// It would reach a server unread. A service with delayed binding answers such a SYN itself.
#[test]
fn data_within_a_syn_is_not_let_through() {
    let mut rig = Rig::new(16, 64);
    let client = client(40_000);
    let early = client.packet(ISN, flag::SYN, &hello());
    let dropped = Verdict::Drop(DropReason::SynData);
    assert_eq!(rig.run(std::slice::from_ref(&early))[0].verdict, dropped);
    let flow = rig.open(&client);
    let metas = rig.run(&[early, client.data(0, &hello())]);
    assert_eq!(metas[0].verdict, dropped);
    assert_eq!(metas[1].verdict, Verdict::Next);
    assert_eq!(rig.class(flow), BY_NAME);
}

#[test]
fn a_stalled_hello_is_given_up() {
    let mut rig = Rig::new(4, 8);
    let c = client(1);
    let flow = rig.open(&c);
    rig.run(&[c.data(0, &hello()[..9])]);
    assert_ne!(rig.inspection(flow), DONE);
    rig.now = rig.now.saturating_add(STALL_NS_MAX);
    for _ in 0..4 {
        rig.run(&[]);
    }
    assert_eq!(rig.inspect.flows(), 1, "not a moment too soon");
    rig.now = rig.now.saturating_add(1);
    for _ in 0..4 {
        rig.run(&[]);
    }
    assert_eq!((rig.inspection(flow), rig.inspect.flows()), (DONE, 0));
    assert_eq!(rig.counters.unknown_stalled, 1);
}

#[test]
fn slots_of_flows_that_are_gone_come_back() {
    let mut rig = Rig::new(2, 8);
    let (a, b) = (client(1), client(2));
    let (told, untold) = (rig.open(&a), rig.open(&b));
    rig.run(&[a.data(0, &hello()[..9]), b.data(0, &hello()[..9])]);
    rig.inspect.forget(rig.flows.get(told));
    rig.inspect.forget(rig.flows.get(told));
    assert_eq!(rig.inspect.flows(), 1);
    rig.flows.remove(told);
    rig.flows.remove(untold);
    rig.now = rig.now.saturating_add(STALL_NS_MAX + 1);
    rig.run(&[]);
    assert_eq!(rig.inspect.flows(), 0);
}

#[test]
fn when_all_slots_are_taken_the_longest_stalled_flow_gives_way() {
    let mut rig = Rig::new(2, 8);
    let clients: Vec<Client> = (1..=3).map(client).collect();
    let flows: Vec<FlowRef> = clients.iter().map(|c| rig.open(c)).collect();
    let hello = hello();
    for c in &clients {
        rig.now = rig.now.saturating_add(1_000);
        rig.run(&[c.data(0, &hello[..9])]);
    }
    assert_eq!(rig.inspection(flows[0]), DONE);
    assert_eq!((rig.inspect.flows(), rig.counters.unknown_crowded), (2, 1));
    for c in &clients {
        rig.run(&[c.data(9, &hello[9..])]);
    }
    let names: Vec<bool> = flows.iter().map(|&f| rig.name(f).is_some()).collect();
    assert_eq!(names, [false, true, true]);
}

#[test]
fn a_silent_connection_gives_its_parsers_to_a_new_one() {
    let mut rig = Rig::new(8, 8);
    let limits = InspectLimits { http_flows_max: 2, ..inspect_limits(HELLO_BYTES_MAX, 8) };
    rig.inspect = Inspect::new(&limits);
    let clients: Vec<Client> = (1..=3).map(client).collect();
    let flows: Vec<FlowRef> = clients.iter().map(|c| rig.open(c)).collect();
    for c in &clients {
        rig.now = rig.now.saturating_add(1_000);
        rig.run(&[c.data(0, b"GET /x HTTP/1.1\r\nHost: a\r\n\r\n")]);
    }
    let done: Vec<bool> = flows.iter().map(|&flow| rig.inspection(flow) == DONE).collect();
    assert_eq!(done, [true, false, false]);
    assert_eq!((rig.counters.requests_read, rig.counters.unknown_crowded), (3, 0));
}

#[test]
fn a_head_that_does_not_end_gives_its_room_to_a_new_one() {
    let mut rig = Rig::new(64, 8);
    let clients: Vec<Client> = (1..=HEADS_MIN as u16 + 2).map(client).collect();
    let flows: Vec<FlowRef> = clients.iter().map(|c| rig.open(c)).collect();
    let (part, rest) = (&b"GET /x HTTP/1.1\r\nHost"[..], b": a\r\n\r\n");
    for c in &clients {
        rig.now = rig.now.saturating_add(1_000);
        rig.run(&[c.data(0, part)]);
    }
    let left: Vec<bool> = flows.iter().map(|&flow| rig.inspection(flow) == DONE).collect();
    assert_eq!(left.iter().filter(|left| **left).count(), 2, "{left:?}");
    assert!(left[0] && left[1], "those that have waited longest");
    for c in &clients {
        rig.run(&[c.data(part.len(), rest)]);
    }
    assert_eq!(rig.counters.requests_read, HEADS_MIN as u64);
}

#[test]
fn a_gap_that_stays_ends_it() {
    let mut rig = Rig::new(2, 8);
    let c = client(1);
    let flow = rig.open(&c);
    rig.run(&[c.data(1, b"x")]);
    for i in 0..usize::from(streams::STRAYS_MAX) {
        assert_ne!(rig.inspection(flow), DONE);
        rig.run(&[c.data(WINDOW_BYTES + i, b"x")]);
    }
    assert_eq!((rig.inspection(flow), rig.inspect.flows()), (DONE, 0));
}

#[test]
fn a_hello_beyond_the_limit_is_given_up() {
    let mut rig = Rig::new(2, 8);
    let c = client(1);
    let flow = rig.open(&c);
    rig.run(&[c.data(0, &[22, 3, 1, 0x40, 0, 1, 0, 0x40, 0])]);
    assert_eq!((rig.inspection(flow), rig.counters.unknown_hello_too_long), (DONE, 1));
}

#[test]
fn the_same_addresses_used_anew_are_read_anew() {
    let mut rig = Rig::new(2, 8);
    let c = client(1);
    let flow = rig.open(&c);
    let hello = hello();
    rig.run(&[c.data(0, &hello[..9])]);
    rig.run(&[c.packet(ISN, flag::SYN, b"")]);
    assert_ne!(rig.inspection(flow), NOT_YET, "the SYN was only sent again");
    rig.run(&[c.packet(7_000, flag::SYN, b"")]);
    assert_eq!((rig.inspection(flow), rig.inspect.flows()), (NOT_YET, 0));
    rig.run(&[c.packet(7_001, flag::ACK, &hello)]);
    assert_eq!(rig.name(flow), Some(&b"api.openai.com"[..]));
    rig.run(&[c.packet(9_000, flag::SYN, b"")]);
    rig.run(&[c.packet(9_001, flag::ACK, b"\x01\x02\x03")]);
    assert_eq!((rig.inspection(flow), rig.counters.apps_other), (DONE, 1));
}

#[test]
fn a_new_inspector_goes_on_where_the_old_one_was() {
    let hello = hello();
    let c = client(1);
    for (flows_max, want) in [(4, true), (8, false)] {
        let mut rig = Rig::new(4, 8);
        let flow = rig.open(&c);
        rig.run(&[c.data(0, &hello[..9])]);
        let mut old =
            std::mem::replace(&mut rig.inspect, Inspect::new(&inspect_limits(1_000, flows_max)));
        rig.inspect.take_over(&mut old);
        rig.run(&[c.data(9, &hello[9..]), c.answer(b"no hello")]);
        assert_eq!((rig.name(flow).is_some(), rig.inspection(flow)), (want, DONE));
        assert_eq!((rig.inspect.flows(), rig.inspect.limits.hello_bytes_max), (0, 1_000));
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn flows_at_once_in_pieces_in_any_order_are_all_read(
        cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..12),
        order in any::<u64>(),
        clients in 1u16..6,
    ) {
        let mut rig = Rig::new(8, 8);
        let clients: Vec<Client> = (1..=clients).map(client).collect();
        let flows: Vec<FlowRef> = clients.iter().map(|c| rig.open(c)).collect();
        let hello = hello();
        let mut cuts: Vec<usize> = cuts.iter().map(|c| c.index(hello.len())).collect();
        cuts.extend([0, hello.len()]);
        cuts.sort_unstable();
        let mut packets = Vec::new();
        for c in &clients {
            packets.extend(cuts.windows(2).map(|w| c.data(w[0], &hello[w[0]..w[1]])));
        }
        let mut rng = crate::base::hash::Rng::new(Seed(order));
        for i in (1..packets.len()).rev() {
            packets.swap(i, rng.below(i as u32 + 1) as usize);
        }
        for batch in packets.chunks(9) {
            rig.run(batch);
        }
        for flow in flows {
            prop_assert_eq!(rig.name(flow), Some(&b"api.openai.com"[..]));
            prop_assert_eq!(rig.class(flow), BY_NAME);
        }
        let answers: Vec<_> = clients.iter().map(|c| c.answer(b"no hello")).collect();
        rig.run(&answers);
        prop_assert_eq!(rig.inspect.flows(), 0);
    }
}
