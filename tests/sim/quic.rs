//! Delayed binding of QUIC: hellos over several datagrams, over links that lose, reorder and
//! duplicate, go to the server they name, and clients are followed when their port changes.

use std::collections::HashMap;
use std::time::Duration;

use tidegate::base::hash::Rng;
use tidegate::base::{Nanos, Seed};
use tidegate::forward::spec::{BindAt, ForwardMode, PoolId};
use tidegate::inspect::Peek;
use tidegate::observe::Counters;
use tidegate::packet::build::{LinkSpec as Ends, UdpSpec, udp_packet};
use tidegate::packet::{ClassId, DropReason, FlowKey, PacketMeta, ParseOptions, parse};
use tidegate::policy::spec::{NamePattern, RuleSpec};
use tidegate::sim::net::{Host, Outbox};
use tidegate::sim::{Appliance, Endpoint, LinkSpec, Net, Setup, mac_of};

use crate::binding::{delayed, seeds};
use crate::quic_support::{self, Initial, V1, crypto};
use crate::speech::hello;
use crate::world::{CLIENTS, Family, SERVERS, UDP_PORT, box_mac, client_end, for_seeds};

const DELAY: Duration = Duration::from_millis(2);
const LIMIT: Duration = Duration::from_secs(600);
const AGAIN_NS: u64 = 200_000_000;
/// Names of the servers' own: the first two share a pool.
const NAMES: [&str; 3] = ["a.example", "a.example", "b.example"];
/// Messages that a client wants echoed, some from each of its ports.
const MESSAGES: u32 = 12;
const MESSAGES_PER_PORT: u32 = 4;
/// Of clients that no rule names.
const MARK: u8 = 12;
/// Reserved for this (RFC 9000, section 15).
const UNKNOWN_VERSION: [u8; 4] = [0x1a, 0x2a, 0x3a, 0x4a];
const CLIENT_ID: &[u8] = b"me";

/// The next hop's MAC address, and a packet's ends.
fn datagram(ends: Ends, key: &FlowKey, payload: &[u8]) -> Vec<u8> {
    let mut spec = UdpSpec::new((key.src, key.sport), (key.dst, key.dport), payload);
    spec.link = ends;
    udp_packet(&spec)
}

/// Key, payload and code point of an undamaged packet.
fn read(frame: &[u8]) -> Option<(FlowKey, &[u8], u8)> {
    let mut meta = PacketMeta::default();
    parse(frame, Seed(0), ParseOptions { verify_transport_checksum: true }, &mut meta).ok()?;
    let payload = &frame[usize::from(meta.payload)..usize::from(meta.end)];
    Some((meta.key, payload, meta.dscp()))
}

/// A client of one connection.
struct Client {
    local: Endpoint,
    remote: Endpoint,
    start: Nanos,
    /// Its hello, cut.
    pieces: Vec<Vec<u8>>,
    dcid: [u8; 8],
    number: u32,
    /// Begins with a version that no server has.
    forces_negotiation: bool,
    /// What the server is called.
    server: Option<Vec<u8>>,
    echoed: u32,
    again: Nanos,
}

impl Client {
    fn key(&self) -> FlowKey {
        let (src, dst) = (self.local.addr, self.remote.addr);
        let (sport, dport) = (self.local.port, self.remote.port);
        FlowKey { src, dst, sport, dport, proto: 17 }
    }

    fn send(&self, payload: &[u8], out: &mut Outbox) {
        let ends = Ends { destination: self.remote.mac, source: self.local.mac, ..Ends::default() };
        out.frames.push(datagram(ends, &self.key(), payload));
    }

    fn hear(&mut self, frame: &[u8]) -> bool {
        let read = read(frame).filter(|(key, ..)| *key == self.key().reversed());
        let Some((key, payload, _)) = read else { return false };
        assert_eq!(key.sport, UDP_PORT);
        match (payload, &self.server) {
            ([_, 0, 0, 0, 0, ..], _) => std::mem::take(&mut self.forces_negotiation),
            // A long header: the client's id, then the server's.
            ([first, _, _, _, _, 2, b'm', b'e', len, rest @ ..], None) if first & 0x80 != 0 => {
                self.server = Some(rest[..usize::from(*len)].to_vec());
                true
            }
            ([0x40, b'm', b'e', number @ ..], Some(_)) if number == self.echoed.to_be_bytes() => {
                self.echoed += 1;
                if self.echoed.is_multiple_of(MESSAGES_PER_PORT) {
                    self.local.port += 1_000; // the NAT before it has forgotten it
                }
                true
            }
            _ => false,
        }
    }

    fn speak(&mut self, out: &mut Outbox) {
        if let Some(server) = &self.server {
            let message = [&[0x40][..], server, &self.echoed.to_be_bytes()].concat();
            return self.send(&message, out);
        }
        for piece in self.pieces.clone() {
            let mut frames = piece;
            frames.resize(frames.len().max(1_140), 0);
            let initial = Initial { number: self.number, ..Initial::new(V1, &self.dcid) };
            self.number += 1;
            let mut packet = Initial { number_len: 2, ..initial }.seal(&frames);
            if self.forces_negotiation {
                packet[1..5].copy_from_slice(&UNKNOWN_VERSION);
            }
            self.send(&packet, out);
        }
    }
}

/// Says what it is called once it knows a hello, and echoes what is sent to it by that name.
struct Server {
    local: Endpoint,
    id: [u8; 6],
    clients: HashMap<FlowKey, quic_support::Client>,
    names: Vec<String>,
    /// What its packets are marked with.
    mark: u8,
    /// Packets that are not for it. Must stay 0.
    strange: u64,
}

impl Server {
    fn send(&self, key: &FlowKey, payload: &[u8], out: &mut Outbox) {
        let ends =
            Ends { destination: box_mac(SERVERS), source: self.local.mac, ..Ends::default() };
        out.frames.push(datagram(ends, &key.reversed(), payload));
    }

    fn hear(&mut self, frame: &[u8], out: &mut Outbox) {
        let read = read(frame).filter(|(key, ..)| key.dst == self.local.addr);
        let Some((key, payload, mark)) = read else {
            self.strange += 1;
            return;
        };
        if let [0x40, rest @ ..] = payload {
            match rest.strip_prefix(&self.id) {
                Some(number) => {
                    // A port's first packets are marked before it is known where they belong.
                    let first =
                        number.last().is_some_and(|n| u32::from(*n) % MESSAGES_PER_PORT == 0);
                    self.strange += u64::from(!first && mark != self.mark);
                    self.send(&key, &[&b"\x40me"[..], number].concat(), out);
                }
                None => self.strange += 1,
            }
            return;
        }
        if payload[1..5] == UNKNOWN_VERSION {
            // The ids the other way round, and version 1.
            let head = [&[0x80, 0, 0, 0, 0, 2][..], CLIENT_ID, &[8], &payload[6..14]].concat();
            return self.send(&key, &[&head[..], &[0, 0, 0, 1]].concat(), out);
        }
        let client = self.clients.entry(key).or_insert_with(quic_support::Client::new);
        let knew = client.reader.failure().is_none() && client.hello.is_complete();
        if client.sends(payload) != Peek::Found(()) {
            return;
        }
        if !knew {
            self.names.push(client.name().unwrap_or_default().to_string());
        }
        let dcid: Vec<u8> = payload[6..14].to_vec();
        let mut answer = Initial { dcid: CLIENT_ID, scid: &self.id, ..Initial::new(V1, &dcid) };
        answer.from_client = false;
        self.send(&key, &answer.seal(&crypto(0, &[2, 0, 0, 1, 0])), out);
    }
}

/// Hosts that send something once, and hear nothing.
struct Strangers {
    mac: [u8; 6],
    frames: Vec<Vec<u8>>,
}

enum Machine {
    Strangers(Strangers),
    Client(Box<Client>),
    Server(Box<Server>),
}

impl Host for Machine {
    fn mac(&self) -> [u8; 6] {
        match self {
            Machine::Client(c) => c.local.mac,
            Machine::Server(s) => s.local.mac,
            Machine::Strangers(s) => s.mac,
        }
    }

    fn turn(&mut self, now: Nanos, frame: Option<&[u8]>, out: &mut Outbox) {
        let client = match (self, frame) {
            (Machine::Server(server), Some(frame)) => return server.hear(frame, out),
            (Machine::Server(_), None) => return,
            (Machine::Strangers(strangers), _) => {
                return out.frames.append(&mut strangers.frames);
            }
            (Machine::Client(client), _) => client,
        };
        let heard = frame.is_some_and(|frame| client.hear(frame));
        if client.echoed == MESSAGES {
            return;
        }
        if heard || now >= client.again.max(client.start) {
            client.speak(out);
            client.again = Nanos(now.0 + AGAIN_NS);
        }
        out.wake(client.again.max(client.start));
    }
}

fn quic_setup(seed: Seed, family: Family, mode: ForwardMode) -> Setup {
    let mut setup = delayed(seed, family, mode, BindAt::Hello);
    let service = &mut setup.forward.services[0];
    (service.proto, service.port) = (17, UDP_PORT);
    // Nobody's name; who can't be read is refused all the same, and nobody else.
    let sni = vec![NamePattern::Exact("nobody.example".into())];
    setup.rules.push(RuleSpec { sni, class: ClassId::RESET, ..RuleSpec::default() });
    setup.rules.push(RuleSpec { mark: Some(MARK), class: ClassId(2), ..RuleSpec::default() });
    setup
}

fn world(setup: Setup, family: Family, cable: LinkSpec) -> Net<Machine> {
    let seed = setup.seed;
    let mut net = Net::new(Appliance::new(setup), &[cable, cable], seed);
    for i in 0..3 {
        let addr = family.server(i);
        let local = Endpoint { mac: mac_of(addr), addr, port: 8_443 };
        let id = [b's', b'e', b'r', b'v', b'-', i as u8];
        let (clients, names) = (HashMap::new(), Vec::new());
        // Who is named by a rule is not marked, whatever the other rule said of hellos in part.
        let mark = if i == 2 { 0 } else { MARK };
        let server = Server { local, id, clients, names, mark, strange: 0 };
        net.add(SERVERS, Machine::Server(Box::new(server)));
    }
    net
}

fn client(rng: &mut Rng, family: Family, i: usize, now: Nanos, name: &str) -> Machine {
    let padding = [0, 1_500, 2_700][rng.below(3) as usize];
    let message = hello(name, padding)[5..].to_vec();
    let pieces = message.chunks(1_100).enumerate().map(|(n, part)| crypto(n * 1_100, part));
    let mut pieces: Vec<_> = pieces.collect();
    if rng.chance(0.3) {
        pieces.reverse();
    }
    Machine::Client(Box::new(Client {
        local: client_end(family, i, 40_000 + i as u16),
        remote: Endpoint { mac: box_mac(CLIENTS), addr: family.vip(), port: UDP_PORT },
        start: Nanos(now.0 + u64::from(rng.below(300_000_000))),
        pieces,
        dcid: rng.next_u64().to_be_bytes(),
        number: 0,
        forces_negotiation: rng.chance(0.3),
        server: None,
        echoed: 0,
        again: Nanos::ZERO,
    }))
}

fn talk(seed: Seed, percent: f64, family: Family, mode: ForwardMode) -> Counters {
    const TALKERS: usize = 6;
    let mut rng = Rng::new(seed);
    let cable = LinkSpec::bad(percent, DELAY);
    let mut net = world(quic_setup(seed, family, mode), family, cable);
    let names: Vec<_> = (0..TALKERS).map(|_| NAMES[rng.below(3) as usize]).collect();
    for (i, name) in names.iter().enumerate() {
        let client = client(&mut rng, family, i, net.now, name);
        net.add(CLIENTS, client);
    }
    let served = net.run_until(net.now + LIMIT, |net| {
        net.hosts().all(|host| match host {
            Machine::Client(client) => client.echoed == MESSAGES,
            _ => true,
        })
    });
    assert!(served, "not served: {:?}", net.appliance.counters());
    let mut heard = [0; 3];
    for (i, server) in net.hosts().take(3).enumerate() {
        let Machine::Server(server) = server else { continue };
        assert_eq!(server.strange, 0, "packets at the wrong server");
        heard[i] = server.names.len();
        assert!(server.names.iter().all(|name| name == NAMES[i]), "{:?}", server.names);
    }
    assert!(heard.iter().sum::<usize>() >= TALKERS, "{heard:?}");
    net.run_for(Duration::from_secs(40));
    assert_eq!(net.appliance.held(), 0, "packets are still held");
    let bindings: usize = net.appliance.workers.iter().map(|w| w.bindings()).sum();
    assert_eq!(bindings, 0, "connections are still being bound");
    net.appliance.finish()
}

fn talk_all(percent: f64) {
    for_seeds(seeds(8), |seed| {
        let family = Family::BOTH[(seed.0 / 2 % 2) as usize];
        let mode = [ForwardMode::Nat, ForwardMode::Dnat][(seed.0 / 4 % 2) as usize];
        let counters = talk(seed, percent, family, mode);
        assert!(counters.bindings_joined >= 6, "{counters:?}");
        let moves = MESSAGES.div_ceil(MESSAGES_PER_PORT) - 1;
        assert!(counters.clients_followed >= 6 * u64::from(moves), "{counters:?}");
    });
}

#[test]
fn over_perfect_links() {
    talk_all(0.0);
}

#[test]
fn over_links_that_lose_one_in_a_hundred() {
    talk_all(1.0);
}

#[test]
fn over_links_that_lose_one_in_twenty() {
    talk_all(5.0);
}

#[test]
fn over_links_that_lose_one_in_five() {
    talk_all(20.0);
}

/// Sends `payloads` from one client each; the box without answers.
fn shower(setup: Setup, payloads: &[Vec<u8>]) -> Net<Machine> {
    let family = Family::V4;
    let mut net = world(setup, family, LinkSpec::default());
    let said = payloads.iter().enumerate();
    net.add(CLIENTS, strangers(0, said.map(|(i, payload)| (i, &payload[..]))));
    net
}

/// What clients say, by their numbers, all sent by the host of one.
fn strangers<'a>(host: usize, said: impl Iterator<Item = (usize, &'a [u8])>) -> Machine {
    let family = Family::V4;
    let frames = said.map(|(i, payload)| {
        let local = client_end(family, i, 50_000);
        let (src, sport, dst) = (local.addr, local.port, family.vip());
        let key = FlowKey { src, dst, sport, dport: UDP_PORT, proto: 17 };
        let ends = Ends { destination: box_mac(CLIENTS), source: local.mac, ..Ends::default() };
        datagram(ends, &key, payload)
    });
    Machine::Strangers(Strangers { mac: mac_of(family.client(host)), frames: frames.collect() })
}

/// A hello in Initials of so many bytes each.
fn initials(name: &str, dcid: &[u8], bytes: usize) -> Vec<Vec<u8>> {
    let message = hello(name, 300)[5..].to_vec();
    let pieces = message.chunks(bytes).enumerate().map(|(n, part)| {
        let mut frames = crypto(n * bytes, part);
        frames.resize(frames.len().max(1_140), 0);
        Initial { number: n as u32, ..Initial::new(V1, dcid) }.seal(&frames)
    });
    pieces.collect()
}

/// A client's socket has a connection, and gets others: by the same name, by another one whose
/// pool is elsewhere, and by that once more when all have been silent for long.
#[test]
fn another_connection_of_a_socket_does_not_reach_the_firsts_backend_by_another_name() {
    for (refuses, bytes) in [(true, 2_000), (false, 2_000), (true, 250), (false, 250)] {
        let mut setup = quic_setup(Seed(1), Family::V4, ForwardMode::Nat);
        setup.rules.retain(|rule| refuses || !rule.class.is_refused());
        let mut net = shower(setup, &initials("a.example", b"12345678", 2_000));
        net.run_for(Duration::from_secs(1));
        let mut say = |host: usize, name: &str, dcid: &[u8]| {
            let said = initials(name, dcid, bytes);
            net.add(CLIENTS, strangers(host, said.iter().map(|payload| (0, &payload[..]))));
            net.run_for(Duration::from_secs(1));
            let heard = net.hosts().take(3).map(|host| match host {
                Machine::Server(server) => server.names.len(),
                _ => 0,
            });
            let heard: Vec<usize> = heard.collect();
            let counters = net.appliance.counters();
            let elsewhere = counters.drops[DropReason::BoundElsewhere as usize];
            let awaited = counters.drops[DropReason::HelloAwaited as usize];
            net.run_for(Duration::from_secs(if host == 3 { 31 } else { 0 }));
            (heard[0] + heard[1], heard[2], elsewhere, awaited)
        };
        assert_eq!(say(1, "a.example", b"same one"), (1, 0, 0, 0));
        let (first, other, elsewhere, awaited) = say(2, "b.example", b"other-id");
        assert_eq!((first, other, elsewhere), (1, 0, 1));
        let pieces = initials("b.example", b"", bytes).len() as u64;
        assert_eq!(awaited, pieces - 1, "parts that waited in vain");
        say(3, "a.example", b"same two");
        let (first, other, elsewhere, _) = say(4, "b.example", b"other-id");
        assert_eq!((first, other, elsewhere), (1, 1, 1));
        let counters = net.appliance.finish();
        assert_eq!((counters.flows_opened, counters.flows_unread), (2, 0), "{counters:?}");
    }
}

#[test]
fn who_never_says_where_to_is_forgotten_and_strangers_are_dropped() {
    let message = hello("b.example", 3_000)[5..].to_vec();
    let mut frames = crypto(0, &message[..1_000]);
    frames.resize(1_140, 0);
    let half = Initial::new(V1, b"12345678").seal(&frames);
    let mut payloads = vec![half; 3];
    payloads.push(b"\x40 a connection that nobody knows".to_vec());
    let mut net = shower(quic_setup(Seed(1), Family::V4, ForwardMode::Nat), &payloads);
    net.run_for(Duration::from_secs(1));
    let waiting: usize = net.appliance.workers.iter().map(|w| w.bindings()).sum();
    assert_eq!(waiting, 3);
    net.run_for(Duration::from_secs(60));
    let counters = net.appliance.finish();
    assert_eq!((counters.bindings_begun, counters.bindings_timed_out), (3, 3));
    assert_eq!(counters.flows_opened, 0, "{counters:?}");
}

#[test]
fn rules_refuse_and_versions_are_left_to_the_servers() {
    let message = hello("b.example", 0)[5..].to_vec();
    let mut frames = crypto(0, &message);
    frames.resize(1_140, 0);
    let named = Initial::new(V1, b"12345678").seal(&frames);
    let mut unknown = named.clone();
    unknown[1..5].copy_from_slice(&UNKNOWN_VERSION);
    let mut setup = quic_setup(Seed(1), Family::V4, ForwardMode::Nat);
    let refused = RuleSpec { pool: None, class: ClassId::REFUSED, ..setup.rules[0].clone() };
    setup.rules = vec![refused];
    setup.forward.services[0].pool = PoolId(0);
    let mut net = shower(setup, &[named, unknown]);
    net.run_for(Duration::from_secs(1));
    let counters = net.appliance.finish();
    assert_eq!(counters.flows_opened, 1, "{counters:?}");
}

/// A hello that its server may read and we can't gets no backend where rules refuse by hellos.
#[test]
fn who_cannot_be_read_is_not_bound() {
    let broken = Initial::new(V1, b"12345678").seal(&crypto(0, &[1, 0, 0, 4, 9, 9, 9, 9]));
    for (refuses, flows) in [(true, 0), (false, 1)] {
        let mut setup = quic_setup(Seed(1), Family::V4, ForwardMode::Nat);
        setup.rules.retain(|rule| refuses || !rule.class.is_refused());
        let mut net = shower(setup, std::slice::from_ref(&broken));
        net.run_for(Duration::from_secs(1));
        let counters = net.appliance.finish();
        assert_eq!(counters.flows_opened, flows, "{counters:?}");
        let unread = counters.drops[DropReason::Unread as usize];
        assert_eq!(unread, 1 - flows, "{counters:?}");
    }
}
