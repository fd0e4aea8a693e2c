//! The seeds, made by our own builders: `tests/fuzz_seeds.rs` writes them to `corpus/` and holds
//! the files to them.

use std::io::{self, Write};
use std::sync::{Arc, Mutex};

use tidegate::base::Nanos;
use tidegate::nic::Port;
use tidegate::nic::pcap::{Pace, PcapPort};
use tidegate::packet::FramePool;
use tidegate::packet::build::{
    IcmpSpec, IpSpec, LinkSpec, TcpSpec, UdpSpec, icmp_packet, pad, tcp_packet, udp_packet,
};
use tidegate::packet::eth::{Tag, ethertype};
use tidegate::packet::tcp::flag::{ACK, FIN, PSH, RST, SYN};

use super::client_hello::ClientHello;
use super::http_seeds;
use super::script::{endpoint, hello_stream, op, shape, to};
use super::setup::{V4, V6, addr};

/// A file below `corpus/`.
pub struct Seed {
    pub target: &'static str,
    pub name: String,
    pub bytes: Vec<u8>,
}

/// All seeds of all targets.
pub fn all() -> Vec<Seed> {
    let made = [
        ("pipeline", scripts()),
        ("splice", super::splice::seeds::seeds()),
        ("parse", frames()),
        ("hello", hellos()),
        ("quic", super::quic::seeds()),
        ("inspector", super::inspector::seeds()),
        ("capture", super::capture::seeds()),
        ("reassembly", super::reassembly::seeds()),
        ("http1", http_seeds::http1()),
        ("hpack", http_seeds::hpack()),
        ("h2", http_seeds::h2()),
        ("config", texts()),
        ("rules", super::rules::seeds()),
        ("pcap", captures()),
    ];
    let seeds = made.into_iter().flat_map(|(target, seeds)| {
        seeds.into_iter().map(move |(name, bytes)| Seed { target, name, bytes })
    });
    seeds.collect()
}

type Named = (String, Vec<u8>);

// ---- pipeline ----

/// Balances and routes, without a class tree.
const BARE: u8 = 4;
/// Workers: one or two.
const TWO_WORKERS: u8 = 16;
const VERIFY: u8 = 32;
/// Numbers of service ports in scripts: full NAT, DNAT, DSR.
const MODES: [(u8, &str); 3] = [(0, "nat"), (1, "dnat"), (2, "dsr")];
const TLS: u8 = 3;
const UNRESOLVED: u8 = 4;
const BACKEND_PORT: u8 = 7;

struct Script(Vec<u8>);

impl Script {
    fn new(first: u8) -> Script {
        Script(vec![first])
    }

    fn put(mut self, bytes: &[u8]) -> Script {
        self.0.extend_from_slice(bytes);
        self
    }

    /// A packet of no payload from a client to a service, and a turn.
    fn client(self, what: u8, sport: u8, dport: u8, form: u8, flags: u8, len: u8) -> Script {
        let head = [op::PACKET | op::POLL, what, endpoint::CLIENT, endpoint::VIP];
        self.put(&head).put(&[sport, dport, form, flags, len])
    }

    /// The receiver's answer to the packet that the box sent last.
    fn answer(self, flags: u8, keep: u8) -> Script {
        self.put(&[op::CARRY, op::ANSWER | op::POLL, 0, flags, keep, op::CARRY])
    }

    /// A piece of the hello to the TLS service.
    fn hello(self, what: u8, from: u16, len: u16) -> Script {
        let ([a, b], [c, d]) = (from.to_be_bytes(), len.to_be_bytes());
        let head = [op::HELLO | op::POLL, what, endpoint::CLIENT, endpoint::VIP];
        self.put(&head).put(&[20, TLS, 0, ACK | PSH, a, b, c, d])
    }

    fn time(self, exponent: u8) -> Script {
        self.put(&[op::TIME | op::POLL, exponent])
    }

    fn repeat(self, n: u8, step: impl Fn(Script, u8) -> Script) -> Script {
        (0..n).fold(self, step)
    }
}

/// Flows that are handed down, come back with a reload and a RST, go down again and age away.
fn offload(v6: u8) -> Script {
    let udp = v6 | to::UDP;
    let datagrams = |s: Script, i: u8| s.client(udp, 20 + i % 3, i % 2, 0, 0, 10).answer(0, 0);
    let segments = |s: Script, _: u8| s.client(v6, 30, 0, 0, ACK, 10).answer(ACK, 0);
    let open = |s: Script| s.client(v6, 30, 0, 0, SYN, 0).answer(SYN | ACK, 0);
    let start = Script::new(super::pipeline::OFFLOAD | BARE).repeat(36, datagrams);
    let down = open(start).repeat(8, segments).put(&[op::RELOAD | op::POLL, BARE]);
    let again = down.repeat(36, datagrams).repeat(24, segments);
    let ended = again.client(v6, 30, 0, 0, RST, 0).time(27).repeat(12, datagrams);
    ended.put(&[op::ROUTE | op::POLL, 16 | u8::from(v6 != 0)]).repeat(6, datagrams).time(31)
}

fn scripts() -> Vec<Named> {
    let mut all = conversations();
    let mut add = |name: &str, s: Script| all.push((name.to_string(), s.0));
    for (v6, family) in [(0, "v4"), (to::V6, "v6")] {
        let start = || Script::new(VERIFY);
        let whole = hello_stream().len() as u16;
        let open = |s: Script| s.client(v6, 20, TLS, 0, SYN, 0).answer(SYN | ACK, 0);
        let in_order = |s: Script, i: u8| s.hello(v6, u16::from(i) * 100, 100);
        add(&format!("hello-in-order-{family}"), open(start()).repeat(8, in_order));
        let backwards = |s: Script, i: u8| s.hello(v6, u16::from(7 - i) * 100, 110);
        add(&format!("hello-backwards-{family}"), open(start()).repeat(8, backwards));
        add(
            &format!("hello-whole-{family}"),
            open(start()).hello(v6, 0, whole).hello(v6, 0, whole),
        );
        let parked =
            start().client(v6, 20, UNRESOLVED, 0, SYN, 0).client(v6, 21, UNRESOLVED, 0, SYN, 0);
        let known = [op::NEIGHBOUR | op::POLL, u8::from(v6 != 0) | 6 << 1];
        add(&format!("parked-resolved-{family}"), parked.put(&known).answer(SYN | ACK, 0));
        let parked = start().repeat(40, |s, i| s.client(v6, 20 + i, UNRESOLVED, 0, SYN, 0));
        add(&format!("parked-expired-{family}"), parked.time(24).time(24));
        let floods = start().repeat(70, |s, i| s.client(v6, 20 + i, 0, 0, SYN, 0).time(3));
        add(&format!("syn-flood-{family}"), floods);
        let burst = |s: Script, i: u8| {
            let head =
                [op::PACKET, v6 | to::UDP, endpoint::CLIENT, endpoint::BACKEND, 20 + i % 3, 9];
            s.put(&head).put(&[shape::MARKED * (i % 2), 0, 203])
        };
        let turns = [op::TURNS, 9, op::TIME, 12, op::TURNS, 9];
        add(
            &format!("queues-full-{family}"),
            start().repeat(90, burst).put(&turns).repeat(90, burst).put(&turns),
        );
        let odd = |s: Script, i: u8| {
            let (src, dst) =
                if i < 20 { (i, endpoint::BACKEND) } else { (endpoint::CLIENT, i - 20) };
            s.put(&[op::PACKET | op::POLL, v6 | to::UDP, src, dst, 20, 9, 0, 0, 4])
        };
        add(&format!("odd-addresses-{family}"), start().repeat(40, odd));
        let forms = |s: Script, i: u8| {
            let what = v6 | ((i & 1) * to::VLAN) | ((i >> 1 & 1) * to::UDP);
            let s = s.put(&[op::PACKET | op::POLL, what, endpoint::CLIENT, endpoint::BEYOND]);
            s.put(&[20, 9, i << 1, ACK, 100])
        };
        add(&format!("forms-{family}"), start().repeat(64, forms));
        add(&format!("routes-change-{family}"), routes_change(v6));
        add(&format!("icmp-errors-{family}"), icmp_errors(v6));
        add(&format!("reloads-{family}"), reloads(v6));
        add(&format!("two-workers-{family}"), two_workers(v6));
        add(&format!("offload-{family}"), offload(v6));
    }
    let tagged = udp_packet(&UdpSpec { link: LinkSpec::vlan(5), ..between(&V4).1 });
    let raw = Script::new(0).put(&[op::RAW | op::POLL, 0, 0, tagged.len() as u8]).put(&tagged);
    add("raw", raw.put(&[op::AGAIN | op::POLL, 1, 1, 0, 30, 255, 0, 40, 1]));
    let stop = Script::new(0).client(0, 20, 0, 0, SYN, 0).put(&[op::STOP | op::POLL, 20]);
    add("stop", stop.client(0, 21, 0, 0, SYN, 0).time(10));
    all
}

/// Handshake, data, end; in every mode, family and protocol.
fn conversations() -> Vec<Named> {
    let mut all = Vec::new();
    for (port, mode) in MODES {
        for (v6, family) in [(0, "v4"), (to::V6, "v6")] {
            let tcp = Script::new(VERIFY)
                .client(v6, 20, port, 0, SYN, 0)
                .answer(SYN | ACK, 0)
                .client(v6, 20, port, shape::PARTIAL, ACK, 0)
                .client(v6, 20, port, shape::OPTIONS, ACK | PSH, 100)
                .answer(ACK | PSH, 90)
                .put(&[op::LIST | op::POLL, 64, op::LIST | op::POLL, 65])
                .client(v6, 20, port, 0, ACK | FIN, 0)
                .answer(ACK | FIN, 0)
                .client(v6, 20, port, 0, RST, 0);
            all.push((format!("tcp-{mode}-{family}"), tcp.0));
            let udp = Script::new(VERIFY)
                .client(v6 | to::UDP, 20, port, 0, 0, 50)
                .answer(0, 40)
                .client(v6 | to::UDP | to::VLAN, 20, port, shape::PARTIAL, 0, 51)
                .client(v6 | to::UDP, 20, port, 2 * shape::PARTIAL, 0, 52)
                .answer(0, 41)
                .time(31)
                .answer(0, 40);
            all.push((format!("udp-{mode}-{family}"), udp.0));
        }
    }
    all
}

fn routes_change(v6: u8) -> Script {
    let family = u8::from(v6 != 0);
    let packet = |s: Script| {
        let s = s.put(&[op::PACKET | op::POLL, v6, endpoint::CLIENT, endpoint::BEYOND]);
        s.put(&[20, BACKEND_PORT, 0, SYN, 0]).answer(SYN | ACK, 0)
    };
    let gone = [op::ROUTE | op::POLL, family | 2 << 1 | 16];
    let back = [op::ROUTE | op::POLL, family | 2 << 1];
    let forgotten = [op::NEIGHBOUR | op::POLL, family | 5 << 1 | 16];
    let known = [op::NEIGHBOUR | op::POLL, family | 5 << 1];
    let s = packet(packet(Script::new(VERIFY)).put(&gone));
    let s = packet(packet(s.put(&back)).put(&forgotten)).time(20);
    packet(s.put(&known))
}

fn icmp_errors(v6: u8) -> Script {
    let error = |s: Script, i: u8| {
        s.put(&[op::CARRY, op::ICMP_ERROR | op::POLL, 0, i, i, 8 + 4 * i, op::CARRY])
    };
    let s = Script::new(VERIFY).client(v6, 20, 0, 0, SYN, 100);
    let s = s.repeat(8, error).client(v6 | to::UDP, 20, 1, 0, 0, 100).repeat(8, error);
    // Answers of our own, limited: TTL 1, too big.
    let s = s.repeat(30, |s, i| s.client(v6 | to::UDP, 20 + i, 0, shape::TTL_1, 0, 1));
    s.repeat(4, |s, i| s.client(v6 | to::UDP, 20, 0, 0, 0, 204 + i))
}

fn reloads(v6: u8) -> Script {
    let talk = |s: Script, i: u8| {
        let s = s.put(&[op::RELOAD | op::POLL, i % 16]);
        let s = s.client(v6, 20 + i / 3, TLS, 0, SYN, 0).answer(SYN | ACK, 0);
        s.client(v6, 20 + i / 3, TLS, 0, ACK, 150)
    };
    Script::new(VERIFY).repeat(24, talk)
}

fn two_workers(v6: u8) -> Script {
    let talk = |s: Script, i: u8| {
        let what = v6 | if i & 1 == 0 { to::WORKER } else { 0 };
        let s = s.client(what, 20 + i / 2, i % 4, 0, SYN, 0).put(&[op::TURNS, 2, op::CARRY]);
        s.put(&[op::ANSWER | op::POLL, i & 1, SYN | ACK, 0, op::TURNS, 2])
    };
    Script::new(VERIFY | TWO_WORKERS).repeat(24, talk).put(&[op::STOP, 11]).repeat(4, talk)
}

// ---- parse ----

fn between(family: &super::setup::Family) -> (TcpSpec, UdpSpec, IcmpSpec) {
    let (src, dst) = (addr(family.clients[0]), addr(family.backends[0]));
    let ends = ((src, 1_000), (dst, 443));
    (
        TcpSpec::new(ends.0, ends.1, ACK, b"hello, gate!"),
        UdpSpec::new(ends.0, ends.1, b"hello, gate!"),
        IcmpSpec::echo(src, dst, false, 7, b"ping"),
    )
}

fn frames() -> Vec<Named> {
    let mut all = Vec::new();
    for (name, family) in [("v4", &V4), ("v6", &V6)] {
        let (tcp, udp, echo) = between(family);
        let mut add = |what: &str, bytes: Vec<u8>| all.push((format!("{what}-{name}"), bytes));
        add("tcp", tcp_packet(&tcp));
        add("udp", udp_packet(&udp));
        add("echo", icmp_packet(&echo));
        add("padded", pad(udp_packet(&UdpSpec { payload: vec![], ..udp.clone() })));
        add("vlan", tcp_packet(&TcpSpec { link: LinkSpec::vlan(7), ..tcp.clone() }));
        let tag = |tpid| Some(Tag { tpid, tci: 9 });
        let tags = [tag(ethertype::SERVICE_VLAN), tag(ethertype::VLAN)];
        let link = LinkSpec { tags, ..LinkSpec::default() };
        add("two-tags", udp_packet(&UdpSpec { link, ..udp.clone() }));
        let checksum = tidegate::packet::build::ChecksumFill::Partial;
        add("partial", tcp_packet(&TcpSpec { checksum, ..tcp.clone() }));
        add("partial-udp", udp_packet(&UdpSpec { checksum, ..udp.clone() }));
        add(
            "options",
            tcp_packet(&TcpSpec { options: vec![2, 4, 5, 180, 1, 1, 4, 2], ..tcp.clone() }),
        );
        let mut ip = IpSpec::new(udp.ip.src, udp.ip.dst);
        ip.options = vec![0x94, 4, 0, 0];
        ip.extensions = vec![(0, vec![0; 8]), (60, vec![0; 8]), (43, vec![0; 8])];
        add("ip-options", udp_packet(&UdpSpec { ip: ip.clone(), ..udp.clone() }));
        ip.fragment = 0x2000;
        ip.extensions.push((44, vec![0, 0, 0, 1, 0, 0, 0, 1]));
        let payload = vec![1; 16];
        add("first-fragment", udp_packet(&UdpSpec { ip: ip.clone(), payload, ..udp.clone() }));
        ip.fragment = 7;
        ip.extensions[3].1[3] = 7 << 3;
        add("last-fragment", udp_packet(&UdpSpec { ip, ..udp.clone() }));
        let quoted = tcp_packet(&tcp)[14..].to_vec();
        let kind = if name == "v4" { 3 } else { 1 };
        let error = IcmpSpec { kind, code: 1, rest: 0, payload: quoted, ..echo.clone() };
        let ip = IpSpec::new(echo.ip.dst, echo.ip.src);
        add("icmp-error", icmp_packet(&IcmpSpec { ip, ..error }));
    }
    let mut arp = vec![0xff; 6];
    arp.extend([2, 0, 0, 0, 0, 2, 8, 6, 0, 1, 8, 0, 6, 4, 0, 1]);
    arp.resize(60, 1);
    all.push(("arp".into(), arp));
    all
}

// ---- hello ----

fn hellos() -> Vec<Named> {
    let plain = || ClientHello {
        name: Some(b"api.example.com"),
        protocols: &[b"h2", b"http/1.1"],
        padding: 0,
        record_len: 16_384,
    };
    let long: Vec<&[u8]> = vec![b"a-protocol-name-of-some-length"; 6];
    let streams = [
        ("plain", plain().bytes()),
        ("no-name", ClientHello { name: None, protocols: &[], ..plain() }.bytes()),
        ("empty-name", ClientHello { name: Some(b""), ..plain() }.bytes()),
        ("bad-name", ClientHello { name: Some(b"a\0b"), ..plain() }.bytes()),
        ("long-name", ClientHello { name: Some(&[b'a'; 255]), ..plain() }.bytes()),
        ("longer-name", ClientHello { name: Some(&[b'a'; 256]), ..plain() }.bytes()),
        ("many-protocols", ClientHello { protocols: &long, ..plain() }.bytes()),
        ("empty-protocol", ClientHello { protocols: &[b""], ..plain() }.bytes()),
        ("padded", ClientHello { padding: 1_500, ..plain() }.bytes()),
        ("records", ClientHello { record_len: 40, ..plain() }.bytes()),
        ("tiny-records", ClientHello { record_len: 1, ..plain() }.bytes()),
        ("cut-off", plain().bytes()[..120].to_vec()),
        ("alert", vec![21, 3, 1, 0, 2, 2, 40]),
        ("http", b"GET / HTTP/1.1\r\nHost: api.example.com\r\n\r\n".to_vec()),
    ];
    let mut all = Vec::new();
    for (name, stream) in &streams {
        all.push((name.to_string(), [&[0, 3, 5, 1, 90], &stream[..]].concat()));
    }
    all.push(("limited".into(), [&[2, 1, 17], &streams[0].1[..]].concat()));
    all
}

// ---- config ----

fn texts() -> Vec<Named> {
    const PORTS: &str = "[port.a]\ninterface = \"a0\"\n[port.b]\ninterface = \"b0\"\n";
    let balancer = format!(
        "pipeline = \"llm-edge\"\n{PORTS}{}",
        r#"[workers]
count = 2
flows = 1000
[service.s]
vip = "192.0.2.1"
port = 443
pool = "p"
mode = "nat"
idle_timeout = "2h"
[pool.p]
backend = [{ address = "10.0.0.1", port = 8443, weight = 2 }, { address = "10.0.0.2" }]
[nat]
addresses = ["10.0.0.9"]
ports = "1024-2047"
[qos.a]
rate = "1Gbit/s"
default = "rest"
[qos.a.class.rest]
rate = "20%"
[qos.a.class.fast]
rate = "100Mbit/s"
ceil = "80%"
priority = 1
[[rule]]
name = "r"
sni = ["*.example.com"]
dscp = ["ef"]
class = "fast"
"#
    );
    let router = format!("pipeline = \"router\"\n{PORTS}[transit]\nprefixes = [\"10.0.0.0/8\"]\n");
    let stages =
        "name = \"x\"\n[[stage]]\ninspect = { hello_bytes_max = 512 }\n[[stage]]\nshape = {}\n";
    let twice = format!("{balancer}{PORTS}");
    let wrong = balancer.replace("443", "0").replace("20%", "200%").replace("\"p\"", "\"q\"");
    let unknown = balancer.replace("mode", "mood").replace("llm-edge", "llm-egde");
    let texts = [
        ("balancer", balancer.as_str()),
        ("router", &router),
        ("pipeline", stages),
        ("twice", &twice),
        ("wrong", &wrong),
        ("unknown", &unknown),
        ("empty", ""),
        ("open", "pipeline = \"x"),
        ("not-ascii", "pipeline = \"\u{e4}\u{1f980}\"\n[port.\u{e4}]\n"),
    ];
    texts.iter().map(|(name, text)| (name.to_string(), text.as_bytes().to_vec())).collect()
}

// ---- pcap ----

/// A writer whose bytes can be read afterwards.
#[derive(Clone, Default)]
struct Shared(Arc<Mutex<Vec<u8>>>);

impl Write for Shared {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().expect("lock").extend_from_slice(bytes);
        Ok(bytes.len())
    }
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn captures() -> Vec<Named> {
    let (tcp, udp, _) = between(&V4);
    let whole = capture(&[tcp_packet(&tcp), udp_packet(&udp), vec![1; 3_000], vec![]]);
    let changed = |at: usize, bytes: &[u8]| {
        let mut file = whole.clone();
        file[at..at + bytes.len()].copy_from_slice(bytes);
        file
    };
    let seeds = [
        ("whole", whole.clone()),
        ("header-only", whole[..24].to_vec()),
        ("within-a-record", whole[..50].to_vec()),
        ("within-a-packet", whole[..90].to_vec()),
        ("microseconds", changed(0, &[0xa1, 0xb2, 0xc3, 0xd4])),
        ("other-order", changed(0, &[0x4d, 0x3c, 0xb2, 0xa1])),
        ("not-ethernet", changed(20, &[0, 0, 0, 101])),
        ("huge-length", changed(32, &[0xff; 8])),
        ("no-capture", b"not a capture at all, but long enough for one".to_vec()),
    ];
    seeds.map(|(name, bytes)| (name.to_string(), bytes)).to_vec()
}

fn capture(packets: &[Vec<u8>]) -> Vec<u8> {
    let bytes = Shared::default();
    let mut port =
        PcapPort::new(None, Some(Box::new(bytes.clone())), Pace::AsFast).expect("a port");
    let mut pool = FramePool::standalone(2, 4_096);
    for (i, packet) in packets.iter().enumerate() {
        let frame = pool.take_with(packet).expect("a frame");
        port.tx_burst(Nanos::from_millis(7 * i as u64), &mut pool, &mut vec![frame]);
    }
    port.close(&mut pool);
    let bytes = bytes.0.lock().expect("lock");
    bytes.clone()
}
