//! After the start the packet path allocates nothing: not for new flows, not for drops, answers,
//! parked packets, expired flows, listings or new routes. A counting allocator watches every turn
//! of the loop, from the first one on.

mod alloc_support;
#[path = "fuzz/targets/client_hello.rs"]
mod client_hello;
#[allow(dead_code)] // the tests of QUIC use more of it
mod quic_support;
#[path = "sim/world.rs"]
#[allow(dead_code)] // the simulations use more of it
mod world;

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::time::Duration;

use tidegate::base::hash::Rng;
use tidegate::base::{Addr, Nanos, Seed};
use tidegate::forward::spec::{BindAt, Delay, ForwardMode, Promise};
use tidegate::graph::spec::StageSpec;
use tidegate::inspect::fields::Wanted;
use tidegate::inspect::{h2, hpack, http1};
use tidegate::observe::Counters;
use tidegate::packet::build::{
    ChecksumFill, IcmpSpec, TcpSpec, UdpSpec, icmp_packet, tcp_packet, udp_packet,
};
use tidegate::packet::tcp::flag;
use tidegate::packet::{
    ClassId, CopyTo, DropReason, PacketMeta, ParseOptions, PortId, ipv4, parse, tcp,
};
use tidegate::policy::spec::{
    HeaderPattern, HeaderSpec, Mirror, PathPattern, RuleSpec, header_names,
};
use tidegate::qos::limits::LimitsSpec;
use tidegate::sim::{Appliance, Setup, Spread};
use tidegate::worker::WorkerCommand;
use tidegate::worker::command::FlowList;

use alloc_support::{limits, metering, qos};
use quic_support::{Initial, V1, crypto};
use world::*;

thread_local! {
    static WATCHED: Cell<bool> = const { Cell::new(false) };
    static ALLOCATIONS: Cell<u64> = const { Cell::new(0) };
}

struct Counting;

// SAFETY: hands everything on to the system's allocator; the counters are constants until first
// used and allocate nothing themselves.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count();
        // SAFETY: the caller's promises are the system allocator's.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, ptr: *mut u8, layout: Layout) {
        count();
        // SAFETY: as above.
        unsafe { System.dealloc(ptr, layout) }
    }

    unsafe fn realloc(&self, ptr: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        count();
        // SAFETY: as above.
        unsafe { System.realloc(ptr, layout, size) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

fn count() {
    // A thread that is ending has no counters any more, and isn't watched.
    let _ = WATCHED.try_with(|watched| {
        if watched.get() {
            let _ = ALLOCATIONS.try_with(|n| n.set(n.get() + 1));
        }
    });
}

/// Calls to the allocator that `f` makes.
fn allocations(f: impl FnOnce()) -> u64 {
    ALLOCATIONS.with(|n| n.set(0));
    WATCHED.with(|w| w.set(true));
    f();
    WATCHED.with(|w| w.set(false));
    ALLOCATIONS.with(Cell::get)
}

/// A box whose every turn is watched.
struct Bench {
    appliance: Appliance,
    now: Nanos,
    rng: Rng,
    /// What the servers are to answer.
    answers: Vec<Vec<u8>>,
}

impl Bench {
    fn new(setup: Setup) -> Bench {
        let rng = Rng::new(setup.seed);
        let appliance = Appliance::new(setup);
        Bench { appliance, now: Nanos::from_secs(1), rng, answers: Vec::new() }
    }

    /// Whatever its Ethernet destination, the packet is sent to the box.
    fn send(&mut self, port: PortId, packet: &[u8]) {
        let queue = self.rng.below(self.appliance.ends.len() as u32) as usize;
        let end = &self.appliance.ends[queue][usize::from(port.0)];
        let mut bytes = [0; 2_048];
        let bytes = &mut bytes[..packet.len()];
        bytes.copy_from_slice(packet);
        if let Some(destination) = bytes.first_chunk_mut() {
            *destination = box_mac(port);
        }
        assert!(end.send(bytes), "the wire is full");
    }

    /// Turns of all workers, `us` microseconds apart; what they send is looked at and thrown away.
    fn turns(&mut self, turns: usize, us: u64) {
        for _ in 0..turns {
            self.now += Duration::from_micros(us);
            for i in 0..self.appliance.workers.len() {
                let worker = &mut self.appliance.workers[i];
                let now = self.now;
                let calls = allocations(|| {
                    worker.poll(now);
                });
                assert_eq!(calls, 0, "calls to the allocator in one turn at {now:?}");
            }
            self.collect();
        }
    }

    fn collect(&mut self) {
        for ends in &self.appliance.ends {
            for (port, end) in ends.iter().enumerate() {
                while let Some(packet) = end.recv() {
                    if port == usize::from(SERVERS.0) {
                        self.answers.extend(answer(&packet));
                    }
                    end.recycle(packet);
                }
            }
        }
    }

    /// Has the servers answer all SYNs that reached them.
    fn answer_all(&mut self) {
        for packet in std::mem::take(&mut self.answers) {
            self.send(SERVERS, &packet);
            self.turns(1, 10);
        }
    }
}

/// A SYN-ACK to a SYN, and answers to requests.
fn answer(packet: &[u8]) -> Option<Vec<u8>> {
    let mut meta = PacketMeta::default();
    parse(packet, Seed(0), ParseOptions::default(), &mut meta).ok()?;
    let key = meta.key;
    let payload = packet.get(usize::from(meta.payload)..usize::from(meta.end))?;
    let (flags, said) = match (meta.tcp_flags, payload.first()) {
        _ if key.proto != tcp::PROTOCOL => return None,
        (flag::SYN, _) => (flag::SYN | flag::ACK, &b""[..]),
        (flag::ACK, Some(b'G')) => {
            (flag::ACK, &b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\nx"[..])
        }
        (flag::ACK, Some(b'P')) => (flag::ACK, H2_ANSWER),
        _ => return None,
    };
    let mut spec = TcpSpec::new((key.dst, key.dport), (key.src, key.sport), flags, said);
    spec.seq = meta.tcp_ack;
    spec.ack = meta.tcp_seq.wrapping_add(payload.len().max(1) as u32);
    Some(tcp_packet(&spec))
}

/// SETTINGS, and `:status: 200` in HEADERS that end stream 1.
const H2_ANSWER: &[u8] = &[0, 0, 0, 4, 0, 0, 0, 0, 0, 0, 0, 1, 1, 5, 0, 0, 0, 1, 0x88];

/// What a client says first: the beginning of a hello, requests of HTTP/1 and of HTTP/2, and one
/// that a rule has reset.
fn first_words(i: u16) -> Vec<u8> {
    let request = |path: &str| {
        format!("GET {path} HTTP/1.1\r\nHost: a.example\r\nX-Tenant: t\r\n\r\n").into_bytes()
    };
    match i % 4 {
        0 => HELLO_START.to_vec(),
        1 => request("/v1/chat/completions"),
        2 => request("/admin/x"),
        _ => {
            // `:method: POST`, `:scheme: http`, `:path: /v1/x`, x-tenant added to the table.
            let block = b"\x83\x86\x44\x05/v1/x\x40\x08x-tenant\x01t";
            let frame = [&[0, 0, block.len() as u8, 1, 5, 0, 0, 0, 1][..], block].concat();
            [h2::PREFACE, &[0, 0, 0, 4, 0, 0, 0, 0, 0], &frame[..]].concat()
        }
    }
}

/// Rules of all kinds that act.
fn rules() -> Vec<RuleSpec> {
    let path = |text| vec![PathPattern::new(text).expect(text)];
    let header = HeaderSpec { name: "x-tenant".into(), values: vec![HeaderPattern::Any] };
    let (class, mirror) = (ClassId(1), Some(Mirror { to: CopyTo::Port(SERVERS), share: 9_000 }));
    vec![
        RuleSpec { path: path("/admin/*"), class: ClassId::RESET, ..RuleSpec::default() },
        RuleSpec { bytes_over: Some(4_000), class, mark: Some(8), ..RuleSpec::default() },
        RuleSpec { header: vec![header], class, tenant: Some(3), ..RuleSpec::default() },
        RuleSpec { path: path("/v1/{x}"), class, mirror, ..RuleSpec::default() },
        RuleSpec { port: vec![TCP_PORT], class, mark: Some(46), ..RuleSpec::default() },
    ]
}

/// All that the packet path can meet, more flows than there is room for included.
fn everything(bench: &mut Bench, family: Family, routed: bool) {
    for round in 0..3u16 {
        for i in 0..300u16 {
            let src = (family.client(usize::from(i % 60)), 2_000 + 400 * round + i);
            let target = target(family, routed, i);
            let to = (target, TCP_PORT);
            bench.send(CLIENTS, &tcp_packet(&TcpSpec::new(src, to, flag::SYN, &[])));
            bench.turns(1, 20);
            bench.answer_all();
            let words = first_words(i);
            let mut hello = TcpSpec::new(src, to, flag::ACK, &words);
            (hello.seq, hello.ack) = (1, 1);
            bench.send(CLIENTS, &tcp_packet(&hello));
            bench.turns(1, 20);
            bench.answer_all();
            let datagram = if i % 3 == 0 { quic(i) } else { vec![7; 100] };
            let mut udp = UdpSpec::new(src, (target, UDP_PORT), &datagram);
            udp.checksum = if i % 2 == 0 { ChecksumFill::Partial } else { ChecksumFill::Full };
            bench.send(CLIENTS, &udp_packet(&udp));
            bench.turns(1, 20);
            oddities(bench, src, to);
        }
        flood(bench, family, routed);
        let list = FlowList { cursor: 0, rows: Vec::with_capacity(100) };
        bench.appliance.command(0, WorkerCommand::ListFlows(list));
        bench.appliance.reroute();
        bench.turns(50, 1_000);
        // Past every timer: parked packets, handshakes, flows.
        bench.turns(50, 400_000_000);
    }
}

/// The service, or any of the servers.
fn target(family: Family, routed: bool, i: u16) -> Addr {
    if routed { family.server(usize::from(i % 3)) } else { family.vip() }
}

/// The beginning of a ClientHello: a record header and some of its body.
const HELLO_START: &[u8] = &[0x16, 0x03, 0x01, 0x01, 0x00, 0x01, 0x00, 0x00, 0xfc, 0x03, 0x03];

/// A client's first datagram: the beginning of its hello, or a later part.
fn quic(i: u16) -> Vec<u8> {
    let offset = if i.is_multiple_of(2) { 0 } else { 50 };
    Initial::new(V1, b"8 bytes!").seal(&crypto(offset, &HELLO_START[5..]))
}

fn oddities(bench: &mut Bench, src: (Addr, u16), to: (Addr, u16)) {
    let mut dying = TcpSpec::new(src, to, flag::ACK, &[1; 10]);
    dying.ip.ttl = 1;
    bench.send(CLIENTS, &tcp_packet(&dying));
    let stray = TcpSpec::new((src.0, 1), to, flag::ACK, &[]);
    bench.send(CLIENTS, &tcp_packet(&stray));
    bench.send(CLIENTS, &icmp_packet(&IcmpSpec::echo(src.0, to.0, false, 9, &[0; 50])));
    if src.0.is_v4() {
        let mut fragment = UdpSpec::new(src, to, &[0; 64]);
        fragment.ip.fragment = ipv4::MORE_FRAGMENTS;
        bench.send(CLIENTS, &udp_packet(&fragment));
    }
    bench.send(CLIENTS, &[0xff; 70]);
    bench.send(CLIENTS, &[]);
    bench.turns(2, 20);
}

/// Bursts of SYNs and datagrams: tables and queues overflow.
fn flood(bench: &mut Bench, family: Family, routed: bool) {
    for i in 0..40u16 {
        for j in 0..100u16 {
            let src = (family.client(usize::from(j % 60)), 20_000 + 100 * i + j);
            let port = if j % 3 == 0 { TCP_PORT } else { UDP_PORT };
            let to = (target(family, routed, i), port);
            let packet = if j % 3 == 0 {
                tcp_packet(&TcpSpec::new(src, to, flag::SYN, &[]))
            } else {
                udp_packet(&UdpSpec::new(src, to, &[1; 1_000]))
            };
            bench.send(CLIENTS, &packet);
        }
        bench.turns(4, 5);
    }
}

/// Runs a pipeline for a family and returns what was counted.
fn run(pipeline: &[StageSpec], family: Family, routed: bool) -> Counters {
    run_limited(pipeline, family, routed, LimitsSpec::default())
}

fn run_limited(
    pipeline: &[StageSpec],
    family: Family,
    routed: bool,
    limits: LimitsSpec,
) -> Counters {
    let mut setup = setup(Seed(11), family, ForwardMode::Nat);
    (setup.pipeline, setup.rules) = (stages(pipeline), rules());
    (setup.workers, setup.spread) = (2, Spread::Random);
    (setup.qos, setup.metering) = (vec![qos(0), qos(1)], metering());
    setup.limits = limits;
    share_out(&mut setup.forward);
    (setup.flows_max, setup.half_open_max) = (512, 128);
    // One server's address is never found out.
    setup.resolve_after = Duration::from_nanos(1);
    setup.neighbours.pop();
    let mut bench = Bench::new(setup);
    bench.appliance.learn_neighbours();
    everything(&mut bench, family, routed);
    bench.turns(20, 1_000_000);
    bench.appliance.finish()
}

/// The inspector with the headers that the rules name.
fn inspect_all() -> StageSpec {
    let StageSpec::Inspect { hello_bytes_max, flows_max, http_flows_max, .. } = inspect() else {
        unreachable!("an inspector");
    };
    let headers = header_names(&rules());
    StageSpec::Inspect { hello_bytes_max, flows_max, http_flows_max, headers }
}

fn seen(counters: &Counters, reasons: &[DropReason]) {
    for reason in reasons {
        assert!(counters.drops[*reason as usize] > 0, "no {reason:?}: {counters:?}");
    }
    assert!(counters.handed_over > 0 && counters.rx_packets > 10_000, "{counters:?}");
}

#[test]
fn the_allocator_is_watched() {
    assert_eq!(allocations(|| drop(std::hint::black_box(Vec::<u8>::with_capacity(10)))), 2);
    assert_eq!(allocations(|| ()), 0);
}

#[test]
fn http_parsers() {
    let wanted = Wanted::new(["x-tenant"]).expect("a name");
    let mut http1 = http1::Connection::new(&wanted, 64);
    let mut http2 = h2::Connection::new(&wanted, 64, hpack::TABLE_BYTES);
    let request = b"POST /v1 HTTP/1.1\r\nHost: a\r\nX-Tenant: t\r\nContent-Length: 1\r\n\r\nb";
    // :method, :path and x-tenant added to the table; the same by indices.
    let block = b"\x83\x44\x03/v1\x40\x08x-tenant\x81\x4f\xbe\xbf";
    let frame = [&[0, 0, block.len() as u8, 1, 5, 0, 0, 0, 1][..], block].concat();
    let (mut told, side) = (0, http1::Side::Client);
    let allocated = allocations(|| {
        for _ in 0..3 {
            http1.reset();
            http2.reset(h2::Start::BehindPreface);
            for byte in request.iter().chain(request) {
                http1.feed(side, &[*byte], &wanted, |_| told += 1);
            }
            for byte in &frame {
                let _ = http2.feed(side, &[*byte], &wanted, |_| told += 1);
            }
        }
    });
    assert_eq!((allocated, told), (0, 9));
}

#[test]
fn l4_balancer() {
    for family in Family::BOTH {
        let counters = run(&[StageSpec::Balance], family, false);
        use DropReason::{FlowTableFull, NeighbourUnresolved, NoFlow, NotHandled, Truncated};
        seen(&counters, &[FlowTableFull, NeighbourUnresolved, NoFlow, NotHandled, Truncated]);
        assert!(counters.icmp_sent > 0 && counters.parked > 0, "{counters:?}");
        assert!(counters.flows_expired > 0 && counters.handshakes_evicted > 0, "{counters:?}");
    }
}

#[test]
fn llm_edge() {
    use StageSpec::{Balance, Classify, Meter, Shape, Trust};
    let pipeline = [Trust, inspect_all(), Classify, Meter, timing(), Balance, Shape];
    for family in Family::BOTH {
        let counters = run(&pipeline, family, false);
        seen(&counters, &[DropReason::QueueFull, DropReason::NoFlow, DropReason::PolicyDrop]);
        assert!(counters.apps_http1 > 0 && counters.apps_http2 > 0, "{counters:?}");
        assert!(counters.responses_read > 0 && counters.resets_sent > 0, "{counters:?}");
        assert!(counters.flows_expired > 0 && counters.metered_red > 0, "{counters:?}");
        assert!(counters.dscp_remapped > 0 && counters.metered_green > 0, "{counters:?}");
    }
}

#[test]
fn router() {
    use StageSpec::{Classify, Meter, Route, Shape, Trust};
    for family in Family::BOTH {
        let counters = run(&[Trust, Classify, Meter, Route, Shape], family, true);
        seen(&counters, &[DropReason::NeighbourUnresolved, DropReason::TtlExceeded]);
        assert!(counters.icmp_sent > 0 && counters.dscp_remapped > 0, "{counters:?}");
        assert!(counters.metered_green > 0 && counters.metered_red > 0, "{counters:?}");
    }
}

#[test]
fn limits_of_connections_and_requests() {
    use StageSpec::{Balance, Classify, Shape};
    for family in Family::BOTH {
        let pipeline = [inspect_all(), Classify, Balance, Shape];
        let counters = run_limited(&pipeline, family, false, limits());
        seen(&counters, &[DropReason::OverLimit]);
        assert!(counters.resets_sent > 0, "{counters:?}");
    }
}

#[test]
fn tap() {
    let pipeline = [inspect_all(), StageSpec::Classify, timing(), StageSpec::Tap];
    for family in Family::BOTH {
        seen(&run(&pipeline, family, false), &[DropReason::TapOnly]);
    }
}

/// Hellos in two datagrams, the answer that says what the server is called, a client that moves,
/// hellos that are never complete, and more clients at once than are held.
#[test]
fn quic_binding() {
    const CLIENTS_AT_ONCE: u16 = 200;
    let family = Family::V4;
    let mut setup = setup(Seed(5), family, ForwardMode::Dnat);
    setup.pipeline = stages(&[inspect_all(), StageSpec::Classify, StageSpec::Balance]);
    setup.forward.pools[1].backends.truncate(1);
    let promise = Promise::default();
    setup.forward.services[1].delay = Some(Delay { at: BindAt::Hello, timeout_ms: 500, promise });
    let mut bench = Bench::new(setup);
    let (vip, server) = ((family.vip(), UDP_PORT), (family.server(0), SERVER_PORTS[1]));
    let hello = client_hello::ClientHello {
        name: Some(b"a.example"),
        protocols: &[b"h3"],
        padding: 0,
        record_len: usize::MAX,
    };
    let hello = &hello.bytes()[5..];
    let initial = Initial::new(V1, b"8 bytes!");
    let halves = [initial.seal(&crypto(0, &hello[..50])), initial.seal(&crypto(50, &hello[50..]))];
    let answer =
        Initial { dcid: b"me", scid: b"server", from_client: false, ..initial }.seal(&[0; 30]);
    let udp = |from, to, payload: &[u8]| udp_packet(&UdpSpec::new(from, to, payload));
    for (port, halves) in [(1_000, &halves[..1]), (2_000, &halves[..])] {
        for half in halves {
            for i in 0..CLIENTS_AT_ONCE {
                let client = (family.client(usize::from(i % 8)), port + i);
                bench.send(CLIENTS, &udp(client, vip, half));
                bench.turns(1, 10);
            }
        }
    }
    bench.turns(300, 5_000);
    let client = (family.client(1), 3_000);
    halves.iter().for_each(|half| bench.send(CLIENTS, &udp(client, vip, half)));
    bench.turns(2, 10);
    bench.send(SERVERS, &udp(server, client, &answer));
    bench.turns(1, 10);
    bench.send(CLIENTS, &udp((family.client(2), 3_001), vip, b"\x40server and more"));
    bench.turns(300, 5_000);
    let counters = bench.appliance.finish();
    assert!(counters.bindings_joined > 0 && counters.bindings_crowded_out > 0, "{counters:?}");
    assert!(counters.bindings_timed_out > 0 && counters.clients_followed == 1, "{counters:?}");
}
