//! What inspection and classification cost: nanoseconds a ClientHello, over TCP or in QUIC's
//! Initial packets (keys, decryption and hello), an HTTP message, and a decision.
//!
//! `cargo bench --bench inspect -- [--only CASE] [--rounds N] [--json FILE] [--quick]`. Rounds
//! interleave the cases.

#[path = "common/mod.rs"]
mod common;
mod http;

#[allow(dead_code, reason = "shared with tests")]
#[path = "../tests/quic_support/mod.rs"]
mod quic_support;

use std::hint::black_box;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Instant;

use clap::Parser;
use rustls::{ClientConfig, ClientConnection, RootCertStore};
use serde_json::json;
use tidegate::base::hash::Rng;
use tidegate::base::{Addr, Prefix, Seed};
use tidegate::flow::reassembly::Reassembler;
use tidegate::inspect::AlpnList;
use tidegate::inspect::fields::{Fields, Sink};
use tidegate::inspect::inspector::Request;
use tidegate::inspect::quic::{CryptoStream, InitialReader, Scratch};
use tidegate::inspect::tls::HelloParser;
use tidegate::packet::{ClassId, FlowKey};
use tidegate::policy::spec::{HeaderPattern, HeaderSpec, NamePattern, PathPattern, RuleSpec};
use tidegate::policy::{Facts, Rules};

use common::{Cli, Samples, machine};

/// What is measured, and a round of it: nanoseconds.
type Case = (String, Box<dyn FnMut() -> f64>);

const HELLO_BYTES_MAX: u32 = 1 << 16;
const FLOWS: usize = 4_096;

#[derive(Parser)]
#[command(about = "Measures what inspection and classification cost")]
struct Args {
    #[command(flatten)]
    cli: Cli,
}

fn main() -> ExitCode {
    let Args { cli } = Args::parse();
    println!("{}", machine());
    let small = rustls_hello("api.openai.com", 0);
    let large = rustls_hello("api.openai.com", 1_450);
    let segments: Vec<&[u8]> = large.chunks(500).collect();
    let mut cases: Vec<Case> = vec![
        (format!("hello, {} B, one segment", small.len()), parse(&[&small])),
        (format!("hello, {} B, one segment", large.len()), parse(&[&large])),
        (format!("hello, {} B, segments of 500 B", large.len()), parse(&segments)),
        (format!("hello, {} B, the same reversed", large.len()), reassemble(&segments)),
        (format!("hello, {} B, one QUIC Initial", small.len()), initials(&small, small.len())),
        (format!("hello, {} B, two QUIC Initials", large.len()), initials(&large, 1_000)),
    ];
    cases.extend(http::cases());
    for count in [10, 1_000, 10_000] {
        for (kind, specs) in rule_sets(count) {
            cases.push((format!("decide, {count} rules by {kind}"), decide(&specs, kind)));
        }
    }
    cases.retain(|(name, _)| cli.wants(name));
    let mut samples = vec![Samples::default(); cases.len()];
    for _ in 0..cli.rounds() {
        for (samples, (_, case)) in samples.iter_mut().zip(&mut cases) {
            samples.add(case());
        }
    }
    println!("{:<44} {:>20}", "case", "ns: median (least)");
    for ((name, _), ns) in cases.iter().zip(&samples) {
        println!("{name:<44} {ns:>20}");
    }
    let rows: Vec<_> = cases
        .iter()
        .zip(&samples)
        .map(|((name, _), ns)| json!({ "case": name, "ns": ns.json() }))
        .collect();
    cli.write("inspect", json!({ "rows": rows }))
}

/// Nanoseconds that one of `count` runs of `work` takes.
fn time(count: usize, mut work: impl FnMut(usize)) -> f64 {
    let start = Instant::now();
    for i in 0..count {
        work(i);
    }
    start.elapsed().as_nanos() as f64 / count as f64
}

fn parse(segments: &[&[u8]]) -> Box<dyn FnMut() -> f64> {
    let segments: Vec<Vec<u8>> = segments.iter().map(|s| s.to_vec()).collect();
    Box::new(move || {
        time(50_000, |_| {
            let mut parser = HelloParser::new(HELLO_BYTES_MAX);
            for segment in &segments {
                parser.feed(black_box(segment));
            }
            assert!(black_box(&parser).sni().is_some());
        })
    })
}

fn reassemble(segments: &[&[u8]]) -> Box<dyn FnMut() -> f64> {
    let mut at = 0u32;
    let mut parts: Vec<(u32, Vec<u8>)> = Vec::new();
    for segment in segments {
        parts.push((at, segment.to_vec()));
        at += segment.len() as u32;
    }
    let mut reassembler = Reassembler::new(1, 64);
    Box::new(move || {
        time(20_000, |_| {
            let mut parser = HelloParser::new(HELLO_BYTES_MAX);
            reassembler.open(0, 0);
            for (at, bytes) in parts.iter().rev() {
                reassembler.push(0, *at, false, black_box(bytes), |bytes| {
                    parser.feed(bytes);
                });
            }
            assert!(black_box(&parser).sni().is_some());
        })
    })
}

/// A hello in Initial packets of 1,200 bytes, each with a piece of the given length.
fn initials(hello: &[u8], piece: usize) -> Box<dyn FnMut() -> f64> {
    const RECORD_HEADER_BYTES: usize = 5;
    const FRAMES_BYTES: usize = 1_163;
    let seal = |(i, bytes): (usize, &[u8])| {
        let mut frames = quic_support::crypto(i * piece, bytes);
        frames.resize(FRAMES_BYTES, 0);
        let first = quic_support::Initial::new(quic_support::V1, b"8 bytes!");
        quic_support::Initial { number: i as u32, ..first }.seal(&frames)
    };
    let message = &hello[RECORD_HEADER_BYTES..];
    let datagrams: Vec<Vec<u8>> = message.chunks(piece).enumerate().map(seal).collect();
    assert!(datagrams.iter().all(|d| d.len() == 1_200), "{}", datagrams[0].len());
    let (mut reassembler, mut scratch) = (Reassembler::new(1, 64), Scratch::new());
    Box::new(move || {
        time(10_000, |_| {
            let (mut reader, mut hello) = (InitialReader::new(), HelloParser::new(HELLO_BYTES_MAX));
            reassembler.open(0, 0);
            for datagram in &datagrams {
                let (reassembler, hello) = (&mut reassembler, &mut hello);
                let mut stream = CryptoStream { reassembler, slot: 0, hello };
                reader.datagram(true, black_box(datagram), &mut stream, &mut scratch);
            }
            assert!(black_box(&hello).sni().is_some());
        })
    })
}

/// What a flow shows.
struct Flow {
    key: FlowKey,
    sni: Vec<u8>,
    alpn: Vec<u8>,
    ja4: Vec<u8>,
    method: Vec<u8>,
    path: Vec<u8>,
    dscp: u8,
    fields: Fields,
}

impl Flow {
    /// One that the rule with this number matches, if there are so many.
    fn new(rules: &Rules, pick: usize, kind: &str, rng: &mut Rng) -> Flow {
        let src = Addr::v4(0x0a00_0000 | ((pick as u32) << 8) | rng.below(256));
        let by_server = matches!(kind, "server" | "vip");
        let dst = if by_server { server(pick) } else { Addr::v4(0xc000_0200 | rng.below(2)) };
        let mut fields = Fields::new(rules.wanted(), 64);
        fields.begin(rules.wanted().id(HEADER.as_bytes()));
        fields.value(tenant(pick).as_bytes());
        fields.end();
        let path = if kind == "grpc" {
            fields.begin(rules.wanted().id(b"content-type"));
            fields.value(b"application/grpc");
            fields.end();
            format!("/{}/Chat", service(pick))
        } else {
            format!("/v1/{}/models/llama-{}/chat?stream=1", tenant(pick), rng.below(9))
        };
        let dport = if kind == "port" { port(pick) } else { 443 };
        let key = FlowKey { src, dst, sport: 1, dport, proto: 6 };
        let alpn = match kind {
            "alpn" => {
                let name = protocol(pick);
                [&[name.len() as u8], name.as_bytes(), b"\x08http/1.1"].concat()
            }
            _ => b"\x02h2\x08http/1.1".to_vec(),
        };
        Flow {
            key,
            sni: name(pick).into_bytes(),
            alpn,
            ja4: fingerprint(pick).into_bytes(),
            method: if kind == "method" { method(pick) } else { "POST".to_owned() }.into_bytes(),
            path: path.into_bytes(),
            dscp: dscp(pick),
            fields,
        }
    }

    fn request(&self) -> Request<'_> {
        let authority = Some(&self.sni[..]);
        Request {
            method: &self.method,
            authority,
            path: Some(&self.path),
            fields: Some(&self.fields),
        }
    }
}

fn decide(specs: &[RuleSpec], kind: &str) -> Box<dyn FnMut() -> f64> {
    let rules = Rules::compile(specs);
    let mut rng = Rng::new(Seed(3));
    let count = 2 * specs.len() as u32;
    // Half of the flows match a rule, chosen evenly.
    let flows: Vec<Flow> = (0..FLOWS)
        .map(|_| {
            let pick = rng.below(count) as usize;
            Flow::new(&rules, pick, kind, &mut rng)
        })
        .collect();
    let by_request = rules.follows_requests();
    Box::new(move || {
        time(200_000, |i| {
            let flow = &flows[i % FLOWS];
            let alpn = AlpnList::from_wire(&flow.alpn);
            let request = by_request.then(|| flow.request());
            let (sni, ja4) = (Some(&flow.sni[..]), Some(&flow.ja4[..]));
            let facts = Facts { sni, alpn, ja4, request, ..Facts::of(&flow.key, flow.dscp) };
            black_box(rules.decide(black_box(&facts)));
        })
    })
}

const HEADER: &str = "x-tenant";

fn tenant(i: usize) -> String {
    format!("tenant-{i}.llm.example.com")
}

fn name(i: usize) -> String {
    format!("api.{}", tenant(i))
}

fn server(i: usize) -> Addr {
    Addr::v4(0xc612_0000 | i as u32)
}

fn service(i: usize) -> String {
    format!("llm.tenant{i}.Chat")
}

fn protocol(i: usize) -> String {
    format!("proto-{i}")
}

fn method(i: usize) -> String {
    format!("METHOD-{i}")
}

fn fingerprint(i: usize) -> String {
    format!("t13d1516h2_8daaf6152771_{i:012x}")
}

/// Of the many that there are.
fn port(i: usize) -> u16 {
    1_024 + i as u16
}

/// Of the few that there are.
fn dscp(i: usize) -> u8 {
    (i % 64) as u8
}

/// Rules by one kind of condition, and by several.
fn rule_sets(count: usize) -> Vec<(&'static str, Vec<RuleSpec>)> {
    let empty = RuleSpec::default;
    let rules = |of: &dyn Fn(usize) -> RuleSpec| {
        let class = |i: usize| ClassId((i % 8) as u16);
        (0..count).map(|i| RuleSpec { class: class(i), ..of(i) }).collect()
    };
    let prefix = |i: usize| Prefix::new(Addr::v4(0x0a00_0000 | (i as u32) << 8), 24);
    let whole = |i| vec![Prefix::new(server(i), 32).expect("32 bits")];
    let client = |i| vec![prefix(i).expect("24 bits")];
    let exact = |i| vec![NamePattern::Exact(name(i))];
    let suffix = |i| vec![NamePattern::Suffix(tenant(i))];
    let path = |text: String| vec![PathPattern::new(&text).expect("a pattern")];
    let wild = |i: usize| path(format!("/v1/{}/models/{{model}}/chat", tenant(i)));
    let below = |i: usize| path(format!("/v1/{}/*", tenant(i)));
    let header = |i: usize| {
        let values = vec![HeaderPattern::Exact(tenant(i))];
        vec![HeaderSpec { name: HEADER.to_owned(), values }]
    };
    vec![
        ("exact name", rules(&|i| RuleSpec { sni: exact(i), ..empty() })),
        ("suffix", rules(&|i| RuleSpec { sni: suffix(i), ..empty() })),
        ("client", rules(&|i| RuleSpec { client: client(i), ..empty() })),
        ("path prefix", rules(&|i| RuleSpec { path: below(i), ..empty() })),
        ("path with a segment", rules(&|i| RuleSpec { path: wild(i), ..empty() })),
        ("header", rules(&|i| RuleSpec { header: header(i), ..empty() })),
        ("authority", rules(&|i| RuleSpec { authority: exact(i), ..empty() })),
        ("method", rules(&|i| RuleSpec { method: vec![method(i)], ..empty() })),
        ("grpc", rules(&|i| RuleSpec { grpc: vec![service(i)], ..empty() })),
        ("alpn", rules(&|i| RuleSpec { alpn: vec![protocol(i)], ..empty() })),
        ("ja4", rules(&|i| RuleSpec { ja4: vec![fingerprint(i)], ..empty() })),
        ("server", rules(&|i| RuleSpec { server: whole(i), ..empty() })),
        ("vip", rules(&|i| RuleSpec { vip: vec![server(i)], ..empty() })),
        ("port", rules(&|i| RuleSpec { port: vec![port(i)], ..empty() })),
        ("dscp", rules(&|i| RuleSpec { dscp: vec![dscp(i)], ..empty() })),
        (
            "name, client, port",
            rules(&|i| RuleSpec {
                sni: if i % 2 == 0 { exact(i) } else { suffix(i) },
                client: if i % 3 == 0 { client(i) } else { vec![] },
                port: vec![443],
                ..empty()
            }),
        ),
        (
            "all kinds in turn",
            rules(&|i| match i % 6 {
                0 => RuleSpec { sni: exact(i), ..empty() },
                1 => RuleSpec { authority: suffix(i), method: vec!["POST".into()], ..empty() },
                2 => RuleSpec { client: client(i), port: vec![443], ..empty() },
                3 => RuleSpec { path: below(i), ..empty() },
                4 => RuleSpec { path: wild(i), ..empty() },
                _ => RuleSpec { header: header(i), ..empty() },
            }),
        ),
    ]
}

/// A hello as rustls sends it, with protocols of at least `padding` bytes before the real ones.
fn rustls_hello(name: &str, padding: usize) -> Vec<u8> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("versions")
        .with_root_certificates(RootCertStore::empty())
        .with_no_client_auth();
    let protocols = std::iter::repeat_n(vec![b'x'; 200], padding.div_ceil(201));
    config.alpn_protocols = protocols.chain([b"h2".to_vec(), b"http/1.1".to_vec()]).collect();
    let name = name.to_owned().try_into().expect("a server name");
    let mut connection = ClientConnection::new(Arc::new(config), name).expect("client");
    let mut out = Vec::new();
    connection.write_tls(&mut out).expect("a Vec takes all");
    out
}
