//! Rules from a flow's first byte to its last: what is dropped, reset, marked, demoted, and decided
//! anew with each request.

use std::sync::Arc;

use super::*;
use crate::flow::{FlowLimits, Note};
use crate::graph::stages::inspect::{DONE, Inspect, InspectLimits};
use crate::graph::stages::rig::*;
use crate::graph::stages::route::Route;
use crate::graph::stages::tap::Tap;
use crate::inspect::tls::tests::rustls_hello;
use crate::packet::build::{TcpSpec, tcp_packet};
use crate::packet::tcp::flag::{ACK, FIN, RST, SYN};
use crate::packet::{ClassId, DropReason, ParseOptions, parse};
use crate::policy::Rules;
use crate::policy::spec::{
    HeaderPattern, HeaderSpec, NamePattern, PathPattern, RuleSpec, header_names,
};

mod anew;
mod forgetful;
mod one_way;
mod one_way_model;
mod openings;
mod unread;

const LIMITS: FlowLimits = FlowLimits { flows_max: 64, half_open_max: 16 };
const REFUSED: Verdict = Verdict::Drop(DropReason::PolicyDrop);
const CHAT: ClassId = ClassId(1);
const BULK: ClassId = ClassId(2);
const ISN: (u32, u32) = (100, 900);

/// Inspector, classifier and router or tap.
struct Whole {
    inspect: Inspect,
    classify: Classify,
    tap: bool,
}

impl Stage for Whole {
    fn process(&mut self, cx: &mut Cx<'_>, batch: &mut Batch) {
        self.inspect.process(cx, batch);
        self.classify.process(cx, batch);
        match self.tap {
            true => Tap::new().process(cx, batch),
            false => Route::new().process(cx, batch),
        }
    }
}

/// One connection through a router with these rules.
struct Connection {
    rig: Rig,
    whole: Whole,
    family: &'static Family,
    /// Bytes sent by each side.
    sent: [u32; 2],
}

impl Connection {
    fn new(family: &'static Family, rules: &[RuleSpec], tap: bool) -> Connection {
        let mut rig = Rig::new(LIMITS);
        rig.snapshot.rules = Arc::new(Rules::compile(rules));
        let headers = header_names(rules);
        let inspect = Inspect::new(&InspectLimits { headers, ..inspect_limits(16_384, 4) });
        let whole = Whole { inspect, classify: Classify::new(!tap), tap };
        Connection { rig, whole, family, sent: [0; 2] }
    }

    /// After its handshake.
    fn open(family: &'static Family, rules: &[RuleSpec]) -> Connection {
        let mut c = Connection::new(family, rules, false);
        c.segment(true, SYN, b"");
        c.segment(false, SYN | ACK, b"");
        c.segment(true, ACK, b"");
        c
    }

    fn packet(&self, from_client: bool, flags: u8, payload: &[u8]) -> Vec<u8> {
        let end = |end: Endpoint| (addr(end.0), end.1);
        let (client, server) = (end(self.family.client), end(self.family.backend));
        let (src, dst) = if from_client { (client, server) } else { (server, client) };
        let mut spec = TcpSpec::new(src, dst, flags, payload);
        let begun = u32::from(flags & SYN == 0);
        let at = |side: usize| [ISN.0, ISN.1][side] + self.sent[side];
        let (own, other) = (usize::from(!from_client), usize::from(from_client));
        (spec.seq, spec.ack) = (at(own) + begun, if flags & ACK != 0 { at(other) + 1 } else { 0 });
        let macs = [(CLIENT_SIDE, CLIENT_MAC), (BACKEND_SIDE, BACKEND_MAC)];
        (spec.link.destination, spec.link.source) = macs[own];
        tcp_packet(&spec)
    }

    fn segment(&mut self, from_client: bool, flags: u8, payload: &[u8]) -> (Outcome, Vec<Outcome>) {
        let packet = self.packet(from_client, flags, payload);
        self.sent[usize::from(!from_client)] += payload.len() as u32;
        let (mut out, replies) = self.rig.run_with(&mut self.whole, &[packet], |_| {});
        (out.remove(0), replies)
    }

    /// The class with which a client's bytes leave.
    fn say(&mut self, payload: &[u8]) -> ClassId {
        let (out, replies) = self.segment(true, ACK, payload);
        assert_eq!((out.verdict, replies.len()), (Verdict::Output, 0));
        out.meta.class
    }

    fn hear(&mut self, payload: &[u8]) -> ClassId {
        let (out, _) = self.segment(false, ACK, payload);
        assert_eq!(out.verdict, Verdict::Output);
        out.meta.class
    }

    fn inspection(&self) -> u16 {
        self.rig.flows.iter().next().expect("a flow").1.inspection
    }

    fn note(&self) -> &Note {
        let (at, _) = self.rig.flows.iter().next().expect("a flow");
        self.rig.names.notes.get(at, self.rig.flows.details(at)).expect("a note")
    }
}

fn by_path(path: &str, class: ClassId) -> RuleSpec {
    let path = vec![PathPattern::new(path).expect(path)];
    RuleSpec { path, class, ..RuleSpec::default() }
}

fn by_name(class: ClassId) -> RuleSpec {
    let sni = vec![NamePattern::Suffix("example.net".into())];
    RuleSpec { sni, class, ..RuleSpec::default() }
}

fn get(path: &str) -> Vec<u8> {
    format!("GET {path} HTTP/1.1\r\nHost: a.example\r\nX-Tenant: seven\r\n\r\n").into_bytes()
}

const OK: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";

fn hello(name: &str) -> Vec<u8> {
    rustls_hello(name, rustls::ALL_VERSIONS, &["h2"])
}

#[test]
fn a_flow_that_a_rule_refuses_does_not_begin() {
    let server = vec!["10.1.0.0/25".parse().expect("a prefix")];
    let rule = RuleSpec { server, class: ClassId::REFUSED, ..RuleSpec::default() };
    let mut c = Connection::new(&V4, &[rule], false);
    assert_eq!(c.segment(true, SYN, b"").0.verdict, REFUSED);
    assert_eq!(c.rig.flows.len(), 0);
}

#[test]
fn a_name_that_a_rule_refuses_ends_its_flow_both_ways() {
    for (name, refused) in [("a.example.net", true), ("a.example.org", false)] {
        let mut c = Connection::open(&V4, &[by_name(ClassId::REFUSED)]);
        let hello = hello(name);
        let (early, late) = hello.split_at(hello.len() / 2);
        assert_eq!(c.segment(true, ACK, early).0.verdict, Verdict::Output);
        let after = if refused { REFUSED } else { Verdict::Output };
        assert_eq!(c.segment(true, ACK, late).0.verdict, after, "{name}");
        assert_eq!(c.segment(false, ACK, b"an answer").0.verdict, after);
        assert_eq!(c.segment(true, ACK, b"more").0.verdict, after);
        assert_eq!(c.rig.counters.resets_sent, 0);
    }
}

#[test]
fn both_ends_are_told_of_a_reset() {
    for family in [&V4, &V6] {
        let mut c = Connection::open(family, &[by_path("/admin/*", ClassId::RESET)]);
        assert_eq!(c.say(&get("/ok")), ClassId::UNSET);
        let (client_next, server_next) = (ISN.0 + 1 + c.sent[0], ISN.1 + 1 + c.sent[1]);
        let (out, replies) = c.segment(true, ACK, &get("/admin/x"));
        assert_eq!((out.verdict, out.meta.out_port), (Verdict::Output, BACKEND_PORT));
        let seen = |outcome: &Outcome| {
            let mut meta = PacketMeta::default();
            let options = ParseOptions { verify_transport_checksum: true };
            parse(&outcome.bytes, crate::base::Seed(1), options, &mut meta).expect("intact");
            meta
        };
        let to_server = seen(&out);
        assert_eq!((to_server.tcp_seq, to_server.payload_len()), (client_next, 0));
        assert_eq!(to_server.tcp_flags & (RST | SYN | FIN), RST);
        let [reply] = &replies[..] else { panic!("{replies:?}") };
        let to_client = seen(reply);
        assert_eq!((to_client.tcp_seq, to_client.tcp_flags), (server_next, RST));
        assert_eq!(to_client.key, to_server.key.reversed());
        assert_eq!((reply.meta.out_port, c.rig.counters.resets_sent), (CLIENT_PORT, 2));
        // Whoever has not heard of it is told again, and nothing passes.
        let (out, replies) = c.segment(false, ACK, b"late answer");
        assert_eq!((out.verdict, replies.len()), (REFUSED, 1));
        assert_eq!(seen(&replies[0]).key.dst, addr(family.backend.0));
        assert_eq!(c.segment(true, RST | ACK, b"").1.len(), 0, "a reset is not answered");
    }
}

#[test]
fn a_request_too_long_for_the_rules_that_ask_for_it_is_refused() {
    let authority = vec![NamePattern::Suffix("example".into())];
    let by_host = RuleSpec { authority, class: BULK, ..RuleSpec::default() };
    let (by_path, by_name) = (by_path("/admin/*", ClassId::REFUSED), by_name(CHAT));
    let dots = get(&format!("/v1/{}../admin/x", "./".repeat(1_100)));
    let query = get(&format!("/v1?q={}", "a/".repeat(1_100)));
    let absolute = get(&format!("http://{}.other/", "a".repeat(2_100)));
    let host = format!("GET / HTTP/1.1\r\nHost: {}.example\r\n\r\n", "a".repeat(300));
    let hosts = b"GET / HTTP/1.1\r\nHost: a.other\r\nHost: b.example\r\n\r\n";
    let cases: [(&RuleSpec, &[u8], bool); 9] = [
        (&by_path, &dots, true),
        (&by_path, &query, false),
        (&by_path, host.as_bytes(), false),
        (&by_host, &dots, false),
        (&by_host, &absolute, true),
        (&by_host, host.as_bytes(), true),
        (&by_host, hosts, true),
        (&by_path, hosts, false),
        (&by_name, &dots, false),
    ];
    for (i, (rule, request, refused)) in cases.into_iter().enumerate() {
        let mut c = Connection::open(&V4, std::slice::from_ref(rule));
        // Of three segments at least.
        let pieces = request.chunks(request.len().div_ceil(3));
        let last = pieces.map(|piece| c.segment(true, ACK, piece)).last().expect("pieces");
        assert_eq!((last.0.verdict, last.1.len()), (Verdict::Output, usize::from(refused)), "{i}");
        let counted = [c.rig.counters.requests_too_long, c.rig.counters.resets_sent];
        assert_eq!(counted, if refused { [1, 2] } else { [0; 2] }, "{i}");
        let answer = c.segment(false, ACK, OK).0.verdict;
        let too_long = Verdict::Drop(DropReason::RequestTooLong);
        assert_eq!(answer, if refused { too_long } else { Verdict::Output }, "{i}");
    }
}

#[test]
fn a_tap_resets_nothing() {
    let rule = RuleSpec { class: ClassId::RESET, mark: Some(46), ..RuleSpec::default() };
    let mut c = Connection::new(&V4, &[rule], true);
    let packet = c.packet(true, SYN, b"");
    let (out, replies) = c.segment(true, SYN, b"");
    assert_eq!((out.verdict, replies.len(), out.bytes), (REFUSED, 0, packet));
}

#[test]
fn a_syn_is_answered_as_by_a_closed_port() {
    let rule = RuleSpec { class: ClassId::RESET, ..RuleSpec::default() };
    let mut c = Connection::new(&V4, &[rule], false);
    let (out, replies) = c.segment(true, SYN, b"");
    assert_eq!((out.verdict, replies.len(), c.rig.flows.len()), (REFUSED, 1, 0));
    let mut meta = PacketMeta::default();
    parse(&replies[0].bytes, crate::base::Seed(1), ParseOptions::default(), &mut meta)
        .expect("intact");
    assert_eq!((meta.tcp_flags, meta.tcp_seq, meta.tcp_ack), (RST | ACK, 0, ISN.0 + 1));
}

#[test]
fn each_request_of_a_connection_decides_anew() {
    for family in [&V4, &V6] {
        let rules = [by_path("/v1/chat/*", CHAT), by_path("/v1/files/{id}", BULK)];
        let mut c = Connection::open(family, &rules);
        let chat = get("/v1/chat/completions?stream=1");
        let (early, late) = chat.split_at(30);
        assert_eq!(c.say(early), ClassId::UNSET);
        assert_eq!(c.say(late), CHAT, "the very packet");
        assert_eq!(c.hear(OK), CHAT);
        assert_eq!(c.say(&get("/v1/files/7")), BULK);
        assert_eq!(c.hear(b"HTTP/1.1 404 No\r\nContent-Type: text/event-stream\r\n\r\n"), BULK);
        assert_eq!(c.say(&get("/other")), ClassId::UNSET);
        assert_ne!(c.inspection(), DONE, "followed for as long as it lasts");
        let note = c.note();
        assert_eq!((note.app, note.requests, note.status), ("http1", 3, 404));
        assert_eq!((note.method.get(), note.path.get()), (&b"GET"[..], &b"/other"[..]));
        assert!(note.event_stream && note.authority.get() == b"a.example");
        assert_eq!((c.rig.counters.requests_read, c.rig.counters.responses_read), (3, 2));
        assert_eq!(c.rig.counters.apps_http1, 1);
    }
}

#[test]
fn nobody_follows_what_no_rule_asks_for() {
    let mut c = Connection::open(&V4, &[by_name(CHAT)]);
    c.say(&get("/a"));
    assert_ne!(c.inspection(), DONE, "the answer is looked for");
    c.hear(OK);
    assert_eq!((c.inspection(), c.whole.inspect.flows()), (DONE, 0));
    c.say(&get("/b"));
    let note = c.note();
    assert_eq!((note.requests, note.path.get(), note.status), (1, &b"/a"[..], 200));
}

#[test]
fn headers_and_methods_decide() {
    let values = vec![HeaderPattern::Exact("seven".into())];
    let header = vec![HeaderSpec { name: "x-tenant".into(), values }];
    let rule = RuleSpec {
        header,
        method: vec!["GET".into()],
        class: CHAT,
        tenant: Some(7),
        ..RuleSpec::default()
    };
    let mut c = Connection::open(&V4, &[rule]);
    assert_eq!(c.say(&get("/")), CHAT);
    assert_eq!(c.note().tenant, 7);
    assert_eq!(c.say(b"GET / HTTP/1.1\r\nHost: b\r\nX-Tenant: eight\r\n\r\n"), ClassId::UNSET);
    assert_eq!(c.note().tenant, u16::MAX);
}

#[test]
fn marks_are_written_both_ways_from_the_first_packet_on() {
    for family in [&V4, &V6] {
        let rule =
            RuleSpec { port: vec![8443], class: CHAT, mark: Some(46), ..RuleSpec::default() };
        let mut c = Connection::new(family, &[rule], false);
        for (from_client, flags) in [(true, SYN), (false, SYN | ACK), (true, ACK), (false, ACK)] {
            let (out, _) = c.segment(from_client, flags, b"");
            let mut meta = PacketMeta::default();
            let options = ParseOptions { verify_transport_checksum: true };
            parse(&out.bytes, crate::base::Seed(1), options, &mut meta).expect("intact");
            assert_eq!((meta.dscp(), out.meta.class), (46, CHAT));
        }
    }
}

#[test]
fn elephants_are_demoted() {
    let over = |bytes_over, class, mark| RuleSpec {
        bytes_over: Some(bytes_over),
        class,
        mark,
        ..RuleSpec::default()
    };
    let rules =
        [over(4_000, ClassId::REFUSED, None), over(2_000, BULK, Some(8)), by_path("/v1/*", CHAT)];
    let mut c = Connection::open(&V4, &rules);
    assert_eq!(c.say(&get("/v1/x")), CHAT);
    while c.rig.flows.iter().next().expect("a flow").1.bytes().iter().sum::<u64>() <= 2_000 {
        assert_eq!(c.hear(&[b'x'; 300]), CHAT);
    }
    assert_eq!(c.hear(b"x"), BULK);
    let (out, _) = c.segment(true, ACK, b"x");
    assert_eq!((out.meta.class, out.meta.dscp()), (BULK, 8));
    let mut last = Verdict::Output;
    for _ in 0..9 {
        last = c.segment(false, ACK, &[b'x'; 300]).0.verdict;
    }
    assert_eq!(last, REFUSED);
}

#[test]
fn a_flow_grows_into_a_tenant_and_lets_go_of_its_steps() {
    let grown = RuleSpec { bytes_over: Some(2_000), tenant: Some(7), ..RuleSpec::default() };
    let more = RuleSpec { bytes_over: Some(9_000), class: BULK, ..RuleSpec::default() };
    let mut c = Connection::open(&V4, &[more, grown]);
    assert_eq!(c.rig.flows.steps().len(), 2);
    while c.rig.flows.iter().next().expect("a flow").1.bytes().iter().sum::<u64>() <= 2_000 {
        c.hear(&[b'x'; 300]);
    }
    c.hear(b"x");
    assert_eq!((c.note().tenant, c.rig.flows.steps().len()), (7, 1));
    let (flow, _) = c.rig.flows.iter().next().expect("a flow");
    c.rig.flows.remove(flow);
    assert!(c.rig.flows.steps().is_empty());
    // However many configurations there were, the next one's steps have room.
    for bytes in 0..1_000 {
        let rule = RuleSpec { bytes_over: Some(10_000 + bytes), ..RuleSpec::default() };
        c.rig.snapshot.rules = Arc::new(Rules::compile(&[rule]));
        c.segment(true, SYN, b"");
        let (flow, _) = c.rig.flows.iter().next().expect("a flow");
        c.segment(true, ACK, b"");
        assert_ne!(c.rig.flows.get(flow).steps, 0);
        c.rig.flows.remove(flow);
    }
    assert_eq!(c.rig.counters.steps_refused, 0);
}

#[test]
fn http2_is_followed_too() {
    let rules = [by_path("/v1/chat/*", CHAT), by_path("/v1/files", BULK)];
    let mut c = Connection::open(&V4, &rules);
    let settings = [0, 0, 0, 4, 0, 0, 0, 0, 0];
    // RFC 7541: `:method: POST`, `:scheme: http`, `:path` and `:authority` as literals.
    let request = |stream: u8, path: &str| {
        let mut block = vec![0x83, 0x86, 0x04, path.len() as u8];
        block.extend(path.bytes());
        block.extend([0x01, 1, b'h']);
        let mut frame = vec![0, 0, block.len() as u8, 1, 0x05, 0, 0, 0, stream];
        frame.extend(block);
        frame
    };
    let preface = [crate::inspect::h2::PREFACE, &settings[..]].concat();
    assert_eq!(c.say(&preface), ClassId::UNSET);
    assert_eq!(c.hear(&settings), ClassId::UNSET);
    assert_eq!(c.say(&request(1, "/v1/chat/x")), CHAT);
    // `:status: 200`.
    assert_eq!(c.hear(&[0, 0, 1, 1, 0x05, 0, 0, 0, 1, 0x88]), CHAT);
    let frame = request(3, "/v1/files");
    assert_eq!(c.say(&frame[..20]), CHAT);
    assert_eq!(c.say(&frame[20..]), BULK);
    let note = c.note();
    assert_eq!((note.app, note.requests, note.status), ("h2c", 2, 200));
    assert_eq!(c.rig.counters.apps_http2, 1);
}

#[test]
fn calls_of_grpc_decide_and_their_ends_are_seen() {
    let grpc = vec!["a.Engine".to_owned()];
    let mut c = Connection::open(&V4, &[RuleSpec { grpc, class: CHAT, ..RuleSpec::default() }]);
    let literal = |name: &[u8], value: &[u8]| {
        [&[0, name.len() as u8][..], name, &[value.len() as u8], value].concat()
    };
    let frame = |flags: u8, block: &[u8]| {
        [&[0, 0, block.len() as u8, 1, flags, 0, 0, 0, 1][..], block].concat()
    };
    let kind = literal(b"content-type", b"application/grpc");
    let asked = [&b"\x83\x86\x04\x0d/a.Engine/Run"[..], &literal(b":authority", b"h"), &kind];
    let begun = [crate::inspect::h2::PREFACE, &[0, 0, 0, 4, 0, 0, 0, 0, 0]].concat();
    assert_eq!(c.say(&begun), ClassId::UNSET);
    assert_eq!(c.say(&frame(4, &asked.concat())), CHAT);
    assert_eq!(c.hear(&frame(4, &[&b"\x88"[..], &kind].concat())), CHAT);
    c.hear(&frame(5, &literal(b"grpc-status", b"14")));
    assert_eq!((c.note().status, c.note().grpc_status), (200, Some(14)));
}

#[test]
fn a_hello_is_answered_and_then_nobody_looks() {
    let mut c = Connection::open(&V4, &[by_name(CHAT)]);
    let said = hello("a.example.net");
    assert_eq!(c.say(&said), CHAT);
    assert_ne!(c.inspection(), DONE);
    let mut answer = vec![22, 3, 3, 0, 46, 2, 0, 0, 42, 3, 3];
    answer.extend([7; 32]);
    answer.extend([0, 0x13, 0x01, 0, 0, 2, 0, 0]);
    answer.truncate(5 + 46);
    c.hear(&answer);
    c.hear(&[0; 700]);
    let note = c.note();
    assert_eq!((note.app, note.alpn.get(), note.ja4.get().len()), ("tls", &b"\x02h2"[..], 36));
}

#[test]
fn what_stays_unknown_says_why() {
    let mut c = Connection::open(&V4, &[by_path("/x", CHAT)]);
    c.say(b"GET / HTTP/1.1\r\nHost : broken\r\n\r\n");
    let note = c.note();
    assert_eq!((note.app, note.unknown), ("", "head-malformed"));
    assert_eq!((c.rig.counters.unknown_head_malformed, c.inspection()), (1, DONE));
}

mod limits;
