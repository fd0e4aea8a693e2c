//! What a client says decides its class however it is cut, reordered, repeated and overlapped on
//! its way to the box: seen by the code point that its packets leave with.

use std::time::Duration;

use tidegate::base::hash::Rng;
use tidegate::base::{Addr, Nanos, Seed};
use tidegate::forward::spec::ForwardMode;
use tidegate::graph::spec::StageSpec;
use tidegate::inspect::h2;
use tidegate::packet::build::{TcpSpec, tcp_packet};
use tidegate::packet::tcp::flag;
use tidegate::packet::{ClassId, DropReason, PacketMeta, ParseOptions, parse};
use tidegate::policy::spec::{
    HeaderPattern, HeaderSpec, NamePattern, PathPattern, RuleSpec, header_names,
};
use tidegate::sim::Appliance;

use crate::speech::hello;
use crate::world::{CLIENTS, Family, SERVERS, TCP_PORT, box_mac, for_seeds, setup, stages};

const BY_NAME: u8 = 10;
const BY_PATH: u8 = 20;
const BY_HEADER: u8 = 30;
const UNDECIDED: u8 = 5;
const ISN: u32 = u32::MAX - 60;

fn rules() -> Vec<RuleSpec> {
    let rule = |mark| RuleSpec { class: ClassId(1), mark: Some(mark), ..RuleSpec::default() };
    let sni = vec![NamePattern::Exact("api.openai.com".into())];
    let path = vec![PathPattern::new("/v1/{what}/completions").expect("a pattern")];
    let values = vec![HeaderPattern::Exact("seven".into())];
    let header = vec![HeaderSpec { name: "x-tenant".into(), values }];
    vec![
        RuleSpec { sni, ..rule(BY_NAME) },
        RuleSpec { path, ..rule(BY_PATH) },
        RuleSpec { header, ..rule(BY_HEADER) },
        rule(UNDECIDED),
    ]
}

/// What a client says, and the code point by which its packets leave then.
fn streams() -> Vec<(&'static str, Vec<u8>, u8)> {
    let literal = |name: &[u8], value: &[u8]| {
        [&[0x40, name.len() as u8][..], name, &[value.len() as u8], value].concat()
    };
    let block = [
        // `:method: POST`, `:scheme: http`, `:authority`, `:path`
        &b"\x83\x86\x01\x04host\x04\x06/other"[..],
        &literal(b"x-tenant", b"seven"),
    ]
    .concat();
    let (head, rest) = block.split_at(9);
    let frame = |kind: u8, flags: u8, stream: u8, body: &[u8]| {
        [&[0, 0, body.len() as u8, kind, flags, 0, 0, 0, stream][..], body].concat()
    };
    let (headers, continuation) = (frame(1, 0, 1, head), frame(9, 4, 1, rest));
    let h2 = [h2::PREFACE, &frame(4, 0, 0, b""), &headers, &continuation].concat();
    let head = "POST /v1/chat/completions?x=/ HTTP/1.1\r\nHost: a.example\r\n\
                Content-Length: 5\r\nX-Tenant: seven\r\n\r\nhello";
    let second = "GET / HTTP/1.1\r\nHost: a\r\n\r\nGET / HTTP/1.1\r\nX-Tenant:  seven \r\n\
                  Host: b\r\n\r\n";
    let records = hello("api.openai.com", 17_000);
    vec![
        ("hello", hello("API.openai.com", 100), BY_NAME),
        ("hello of two records", records, BY_NAME),
        ("another hello", hello("api.openai.com.evil.example", 0), UNDECIDED),
        ("request", head.into(), BY_PATH),
        ("second request", second.into(), BY_HEADER),
        ("h2", h2, BY_HEADER),
        (
            "header in a body",
            b"PUT /x HTTP/1.1\r\nContent-Length: 17\r\nHost: a\r\n\r\nX-Tenant: seven\r\n".to_vec(),
            UNDECIDED,
        ),
    ]
}

/// A router that inspects, and a clock.
struct Bench {
    appliance: Appliance,
    family: Family,
    now: Nanos,
    port: u16,
    /// Whether a connection's packets arrive all at once.
    in_bursts: bool,
}

impl Bench {
    fn new(seed: Seed, family: Family) -> Bench {
        Bench::with(seed, family, rules())
    }

    fn with(seed: Seed, family: Family, rules: Vec<RuleSpec>) -> Bench {
        let mut setup = setup(seed, family, ForwardMode::Nat);
        setup.rules = rules;
        let inspect = StageSpec::Inspect {
            hello_bytes_max: 65_536,
            flows_max: 64,
            http_flows_max: 64,
            headers: header_names(&setup.rules),
        };
        setup.pipeline = stages(&[inspect, StageSpec::Classify, StageSpec::Route]);
        setup.flows_max = 1 << 14;
        let mut appliance = Appliance::new(setup);
        appliance.learn_neighbours();
        Bench { appliance, family, now: Nanos::from_secs(1), port: 1_024, in_bursts: false }
    }

    fn send(&mut self, spec: &TcpSpec) {
        let mut bytes = tcp_packet(spec);
        *bytes.first_chunk_mut().expect("a frame") = box_mac(CLIENTS);
        assert!(self.appliance.ends[0][usize::from(CLIENTS.0)].send(&bytes), "the wire is full");
        if !self.in_bursts {
            self.poll();
        }
    }

    fn poll(&mut self) {
        self.now += Duration::from_micros(10);
        self.appliance.poll(self.now);
    }

    /// The code point of what left last.
    fn last_mark(&mut self) -> u8 {
        let end = &self.appliance.ends[0][usize::from(SERVERS.0)];
        let mut last = None;
        while let Some(packet) = end.recv() {
            let mut meta = PacketMeta::default();
            let options = ParseOptions { verify_transport_checksum: true };
            parse(&packet, Seed(1), options, &mut meta).expect("intact");
            last = Some(meta.dscp());
            end.recycle(packet);
        }
        last.expect("a packet")
    }

    /// A new connection whose client sends these parts of its stream, each from an offset.
    fn mark_of(&mut self, parts: &[(usize, &[u8])]) -> u8 {
        let (src, dst) = self.say(parts);
        self.poll();
        let mark = self.last_mark();
        // Its place is free for the next.
        let mut end = TcpSpec::new(src, dst, flag::RST | flag::ACK, b"");
        end.seq = ISN;
        self.send(&end);
        self.poll();
        self.last_mark();
        mark
    }

    fn say(&mut self, parts: &[(usize, &[u8])]) -> ((Addr, u16), (Addr, u16)) {
        self.port += 1;
        let (src, dst) = ((self.family.client(0), self.port), (self.family.server(0), TCP_PORT));
        let mut syn = TcpSpec::new(src, dst, flag::SYN, b"");
        syn.seq = ISN;
        self.send(&syn);
        for (at, bytes) in parts {
            let mut spec = TcpSpec::new(src, dst, flag::ACK, bytes);
            spec.seq = ISN.wrapping_add(1).wrapping_add(*at as u32);
            self.send(&spec);
        }
        let mut probe = TcpSpec::new(src, dst, flag::ACK, b"");
        probe.seq = ISN;
        self.send(&probe);
        (src, dst)
    }
}

#[test]
fn cut_at_every_byte() {
    for family in Family::BOTH {
        let mut bench = Bench::new(Seed(3), family);
        for (name, bytes, want) in streams().iter().filter(|(_, bytes, _)| bytes.len() < 1_000) {
            for cut in 1..bytes.len() {
                let (a, b) = ((0, &bytes[..cut]), (cut, &bytes[cut..]));
                let early = cut.saturating_sub(7);
                let more = (cut + 5).min(bytes.len());
                let orders: [&[(usize, &[u8])]; 5] = [
                    &[a, b],
                    &[b, a],
                    &[b, b, a, a],
                    &[a, (early, &bytes[early..])],
                    &[(early, &bytes[early..]), (0, &bytes[..more])],
                ];
                for (i, order) in orders.iter().enumerate() {
                    assert_eq!(bench.mark_of(order), *want, "{name} cut at {cut}, order {i}");
                }
            }
        }
        let counters = bench.appliance.finish();
        assert!(counters.requests_read > 0 && counters.names_found > 0, "{counters:?}");
        assert_eq!(counters.unknown_gaps, 0, "{counters:?}");
    }
}

/// The worker was away while the client's SYN and all that follows arrived: its answers take
/// another way.
#[test]
fn in_the_batch_that_opens_the_flow() {
    for family in Family::BOTH {
        let mut bench = Bench::new(Seed(3), family);
        bench.in_bursts = true;
        for (name, bytes, want) in streams() {
            let parts: Vec<_> =
                bytes.chunks(1_200).enumerate().map(|(i, b)| (1_200 * i, b)).collect();
            assert_eq!(bench.mark_of(&parts), want, "{name}");
        }
        bench.appliance.finish();
    }
}

#[test]
fn in_many_pieces_in_any_order() {
    let streams = streams();
    for_seeds(60, |seed| {
        let mut rng = Rng::new(seed);
        let family = if rng.chance(0.5) { Family::V4 } else { Family::V6 };
        let mut bench = Bench::new(seed, family);
        for (name, bytes, want) in &streams {
            let below = |rng: &mut Rng, n: usize| rng.below(n as u32) as usize;
            let mut cuts = vec![0, bytes.len()];
            // No piece is longer than a segment.
            cuts.extend((0..bytes.len()).step_by(1_200));
            (0..below(&mut rng, 12)).for_each(|_| cuts.push(below(&mut rng, bytes.len())));
            cuts.sort_unstable();
            cuts.dedup();
            let mut parts: Vec<(usize, &[u8])> = Vec::new();
            for pair in cuts.windows(2) {
                let from = pair[0] - below(&mut rng, 30).min(pair[0]);
                let to = (pair[1] + below(&mut rng, 30)).min(bytes.len());
                for _ in 0..=below(&mut rng, 2) {
                    parts.push((from, &bytes[from..to]));
                }
            }
            for i in (1..parts.len()).rev() {
                parts.swap(i, below(&mut rng, i + 1));
            }
            assert_eq!(bench.mark_of(&parts), *want, "{name}");
        }
        bench.appliance.finish();
    });
}

/// What can't be read of a client is refused where rules refuse by requests, however it is cut.
#[test]
fn what_cannot_be_read_is_refused() {
    let path = vec![PathPattern::new("/secret/*").expect("a pattern")];
    let guard = RuleSpec { path, class: ClassId::RESET, ..RuleSpec::default() };
    let ok = "GET /a HTTP/1.1\r\nHost: a\r\n\r\n";
    let block = b"\x00\x00\x06\x01\x05\x00\x00\x00\x01\x82\x86\x84\xbe\xff\x70";
    let said: [(&str, Vec<u8>); 3] = [
        ("two lengths", "POST / HTTP/1.1\r\nContent-Length: 3, 4\r\nHost: a\r\n\r\nabc".into()),
        ("a blank", format!("{ok}GET / HTTP/1.1\r\nHost : a\r\n\r\n").into()),
        ("an index", [h2::PREFACE, b"\x00\x00\x00\x04\x00\x00\x00\x00\x00", block].concat()),
    ];
    let mut bench = Bench::with(Seed(3), Family::V4, vec![guard]);
    let mut connections = 0;
    for (name, bytes) in &said {
        for cut in 1..bytes.len() {
            let (a, b) = ((0, &bytes[..cut]), (cut, &bytes[cut..]));
            for order in [[a, b], [b, a], [(0, &bytes[..]), b]] {
                bench.say(&order);
                connections += 1;
                let unread = bench.appliance.counters().flows_unread;
                assert_eq!(unread, connections, "{name} cut at {cut}");
            }
        }
    }
    let counters = bench.appliance.finish();
    assert!(counters.drops[DropReason::Unread as usize] >= connections, "of the probe");
}
