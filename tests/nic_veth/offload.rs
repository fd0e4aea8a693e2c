//! What the program forwards by itself, and what it leaves to the worker.

use std::net::{Ipv4Addr, Ipv6Addr};

use etherparse::PacketBuilder;
use tidegate::base::{Addr, Nanos};
use tidegate::flow::SumChange;
use tidegate::nic::ethtool::{Ethtool, Offload};
use tidegate::nic::spec::{AttachMode, PortSpec};
use tidegate::nic::steer::{
    MAX_WAITED, OffloadEntry, OffloadOrder, OffloadSlots, SteerReason, kernel_now,
};
use tidegate::packet::checksum::FoldedDelta;
use tidegate::packet::{FlowKey, PortId};

use crate::net::{Side, ip, port_spec, with_veth, workers_spec};
use crate::packets::{extended, fragment, same, tagged};

const OURS: [u8; 6] = [2, 0, 0, 0, 0, 0x10];
const THEIRS: [u8; 6] = [2, 0, 0, 0, 0, 0x20];
const OUT: [u8; 6] = [2, 0, 0, 0, 0, 0x11];
const NEXT: [u8; 6] = [2, 0, 0, 0, 0, 0x21];
pub const MTU: u16 = 1_400;
const GENERATION: u32 = 7;
const STAMP: u32 = 99;
const SLOT: u32 = 5;
const WAN: PortId = PortId(0);
pub const TCP: u8 = 6;
const UDP: u8 = 17;

/// A packet of a flow, before or behind the program.
#[derive(Clone)]
pub struct Packet {
    pub macs: [[u8; 6]; 2],
    pub src: Addr,
    pub dst: Addr,
    pub ports: (u16, u16),
    proto: u8,
    pub ttl: u8,
    pub payload: Vec<u8>,
}

impl Packet {
    fn bytes(&self) -> Vec<u8> {
        let [from, to] = self.macs;
        let builder = PacketBuilder::ethernet2(from, to);
        let (src, dst) = (self.src.to_bytes(), self.dst.to_bytes());
        let mut bytes = Vec::new();
        let builder = match self.src.is_v4() {
            true => {
                let last = |b: [u8; 16]| [b[12], b[13], b[14], b[15]];
                builder.ipv4(last(src), last(dst), self.ttl)
            }
            false => builder.ipv6(src, dst, self.ttl),
        };
        let (sport, dport) = self.ports;
        match self.proto {
            UDP => builder.udp(sport, dport).write(&mut bytes, &self.payload),
            _ => builder.tcp(sport, dport, 77, 1_000).ack(88).write(&mut bytes, &self.payload),
        }
        .expect("a packet");
        bytes
    }

    pub fn key(&self) -> FlowKey {
        let (sport, dport) = self.ports;
        FlowKey { src: self.src, dst: self.dst, sport, dport, proto: self.proto }
    }

    /// As it leaves: full NAT.
    pub fn translated(&self) -> Packet {
        let (src, dst): (Addr, Addr) = match self.src.is_v4() {
            true => (Ipv4Addr::new(10, 9, 8, 7).into(), Ipv4Addr::new(10, 0, 2, 11).into()),
            false => (v6(0xaa).into(), v6(0xbb).into()),
        };
        let ports = (20_001, 8_443);
        Packet { macs: [OUT, NEXT], src, dst, ports, ttl: self.ttl - 1, ..self.clone() }
    }
}

fn v6(last: u16) -> Ipv6Addr {
    Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0x1234, last)
}

pub fn packet(is_v4: bool, proto: u8, payload: &[u8]) -> Packet {
    let (src, dst): (Addr, Addr) = match is_v4 {
        true => (Ipv4Addr::new(198, 51, 100, 7).into(), Ipv4Addr::new(203, 0, 113, 1).into()),
        false => (v6(7).into(), v6(1).into()),
    };
    let (macs, payload) = ([THEIRS, OURS], payload.to_vec());
    Packet { macs, src, dst, ports: (40_000, 443), proto, ttl: 64, payload }
}

pub fn entry(from: &Packet) -> OffloadEntry {
    let to = from.translated();
    let change = SumChange::between(&from.key(), &to.key().reversed());
    OffloadEntry {
        src: to.src.to_bytes(),
        dst: to.dst.to_bytes(),
        sport: to.ports.0.to_be_bytes(),
        dport: to.ports.1.to_be_bytes(),
        ip_change: change.ip.and(FoldedDelta::HOP).to_memory(),
        transport_change: change.transport.to_memory(),
        ethernet: [NEXT, OUT].concat().try_into().expect("12 bytes"),
        own_mac: OURS,
        mtu: MTU,
        port: 1,
        worker: 0,
        slot: SLOT,
        stamp: STAMP,
        generation: GENERATION,
        begun: 1,
        ..OffloadEntry::default()
    }
}

/// The appliance between two links, and who is at their other ends.
pub struct Bed {
    appliance: Side,
    slots: OffloadSlots,
    client: Side,
    server: Side,
    attach: AttachMode,
}

/// With the program in the driver, and with the one for tc.
pub fn with_bed(test: impl Fn(&mut Bed) + Sync) {
    for attach in [AttachMode::Auto, AttachMode::Tc] {
        with_bed_of(attach, &test);
    }
}

fn with_bed_of(attach: AttachMode, test: &(impl Fn(&mut Bed) + Sync)) {
    with_veth(1, || {
        ip(&["link", "add", "w0", "type", "veth", "peer", "name", "w1"]);
        for link in ["w0", "w1"] {
            ip(&["link", "set", link, "up"]);
        }
        let open = |name: &str| Side::with(&[port_spec(0, name)], &workers_spec(1)).expect("open");
        // Its program is what has the other end take XDP frames.
        let (client, server) = (open("v1"), open("w1").takes_everything());
        let mut workers = workers_spec(1);
        workers.offload = true;
        let ports = [(0, "v0"), (1, "w0")];
        let ports = ports.map(|(id, name)| PortSpec { attach, ..port_spec(id, name) });
        let mut appliance = Side::with(&ports, &workers).expect("open").takes_everything();
        let steer = &mut appliance.nic.steer;
        steer.refresh_targets().expect("targets");
        assert!(steer.is_target(0) && steer.is_target(1));
        steer.set_generation(GENERATION).expect("generation");
        let slots = steer.offload_slots().expect("offload is on");
        slots.set_stamp(WAN, SLOT, STAMP);
        let mut bed = Bed { appliance, slots, client, server, attach };
        bed.alive();
        bed.server.beats.iter_mut().for_each(|b| b.stamp(kernel_now()));
        test(&mut bed);
        for side in [bed.appliance, bed.client, bed.server] {
            side.close();
        }
    });
}

impl Bed {
    fn alive(&mut self) {
        self.appliance.beats.iter_mut().for_each(|b| b.stamp(kernel_now()));
    }

    pub fn hand_down(&mut self, key: FlowKey, entry: OffloadEntry) {
        let order = OffloadOrder::Forward { port: WAN, key, entry };
        self.appliance.nic.steer.offload(&order).expect("a map with room");
    }

    /// Has it forwarded by the program, and compares.
    #[track_caller]
    pub fn forwards(&mut self, sent: &[Vec<u8>], wanted: &[Vec<u8>]) {
        let (packets, bytes) = self.slots.counts(WAN, SLOT);
        self.client.send(0, sent);
        same(&self.server.receive(0, wanted.len()), wanted);
        let total: usize = sent.iter().map(Vec::len).sum();
        let counted = self.slots.counts(WAN, SLOT);
        assert_eq!(counted, (packets + sent.len() as u64, bytes + total as u64));
    }

    /// Has it left to the worker as it came.
    #[track_caller]
    pub fn leaves(&mut self, what: &str, sent: Vec<u8>) {
        let before = (self.slots.counts(WAN, SLOT), self.appliance.count(SteerReason::Offloaded));
        self.client.send(0, std::slice::from_ref(&sent));
        assert_eq!(self.appliance.receive(0, 1), [sent], "{what}");
        let after = (self.slots.counts(WAN, SLOT), self.appliance.count(SteerReason::Offloaded));
        assert_eq!(before, after, "{what}");
    }
}

/// Sums come out as they are for packets that were made so, whatever they are of.
#[test]
fn packets_are_translated_as_if_they_were_made_anew() {
    with_bed(|bed| {
        for (is_v4, proto) in [(true, UDP), (true, TCP), (false, UDP), (false, TCP)] {
            let lens = [0, 1, 2, 3, 18, 700, usize::from(MTU) - 60];
            let all = lens.into_iter().chain(100..250);
            let sent: Vec<_> = all
                .map(|len| packet(is_v4, proto, &crate::packets::noise(len, len as u64)))
                .collect();
            bed.hand_down(sent[0].key(), entry(&sent[0]));
            for chunk in sent.chunks(50) {
                let bytes: Vec<_> = chunk.iter().map(Packet::bytes).collect();
                let wanted: Vec<_> = chunk.iter().map(|p| p.translated().bytes()).collect();
                bed.forwards(&bytes, &wanted);
            }
            let order = OffloadOrder::Forget { port: WAN, key: sent[0].key() };
            bed.appliance.nic.steer.offload(&order).expect("there");
            bed.leaves("taken back", sent[0].bytes());
        }
    });
}

/// What came before the program began is not overtaken: its packets follow each other to the worker
/// until that has passed the last one on.
#[test]
fn a_flow_begins_behind_its_last_packet_that_the_worker_has() {
    with_bed(|bed| {
        let tcp = packet(true, TCP, b"segment");
        let begins = OffloadEntry { begun: 0, ..entry(&tcp) };
        bed.hand_down(tcp.key(), begins);
        let other = packet(true, UDP, b"of another flow");
        for round in 0..3 {
            bed.leaves("the worker has others, unread or unsent", tcp.bytes());
            bed.leaves("another flow's is no matter", other.bytes());
            assert_eq!(bed.slots.counts(WAN, SLOT), (0, 0), "{round}");
        }
        bed.appliance.settle(0);
        bed.forwards(&vec![tcp.bytes(); 3], &vec![tcp.translated().bytes(); 3]);
        // Made anew, as for other routes: the first one of those that follow goes up in any case.
        bed.hand_down(tcp.key(), begins);
        bed.leaves("what came before the entry is not known", tcp.bytes());
        bed.appliance.settle(0);
        bed.forwards(&[tcp.bytes()], &[tcp.translated().bytes()]);
        // A worker that never keeps up is not waited for for ever.
        bed.hand_down(tcp.key(), begins);
        for _ in 0..MAX_WAITED {
            bed.leaves("waits", tcp.bytes());
        }
        bed.forwards(&[tcp.bytes()], &[tcp.translated().bytes()]);
    });
}

/// What the kernel has lost before the worker could have it is nothing to wait for.
#[test]
fn losses_before_the_receive_ring_keep_no_flow_with_the_worker() {
    const SENT: usize = 1_900;
    with_bed(|bed| {
        let tcp = packet(true, TCP, b"segment");
        bed.hand_down(tcp.key(), OffloadEntry { begun: 0, ..entry(&tcp) });
        let other = packet(true, UDP, b"of another flow").bytes();
        bed.client.send(0, &vec![other; SENT]);
        let came = bed.appliance.receive(0, SENT).len();
        assert!((1..SENT).contains(&came), "{came}: more than the inbox and the ring take");
        bed.leaves("the first one", tcp.bytes());
        bed.appliance.settle(0);
        bed.forwards(&[tcp.bytes()], &[tcp.translated().bytes()]);
    });
}

/// A datagram without a checksum has none behind it, either.
#[test]
fn no_checksum_stays_none() {
    with_bed(|bed| {
        let udp = packet(true, UDP, b"without");
        bed.hand_down(udp.key(), entry(&udp));
        let bare = |p: &Packet| {
            let mut bytes = p.bytes();
            bytes[40..42].fill(0);
            bytes
        };
        bed.forwards(&[bare(&udp)], &[bare(&udp.translated())]);
    });
}

fn edited(p: &Packet, edit: impl FnOnce(&mut Vec<u8>)) -> Vec<u8> {
    let mut bytes = p.bytes();
    edit(&mut bytes);
    bytes
}

/// Corrects the checksum of the IPv4 header.
fn summed(mut bytes: Vec<u8>) -> Vec<u8> {
    bytes[24..26].fill(0);
    let words = bytes[14..34].chunks(2).map(|w| u32::from(w[0]) << 8 | u32::from(w[1]));
    let sum: u32 = words.sum();
    let folded = (sum & 0xffff) + (sum >> 16);
    bytes[24..26].copy_from_slice(&(!((folded & 0xffff) + (folded >> 16)) as u16).to_be_bytes());
    bytes
}

#[test]
fn what_is_out_of_the_ordinary_is_the_workers() {
    with_bed(|bed| {
        let (tcp, udp) = (packet(true, TCP, b"segment"), packet(true, UDP, b"datagram"));
        let (tcp6, udp6) = (packet(false, TCP, b"segment"), packet(false, UDP, b"datagram"));
        for p in [&tcp, &udp, &tcp6, &udp6] {
            bed.hand_down(p.key(), entry(p));
        }
        for (flags, what) in
            [(0x11, "FIN"), (0x02, "SYN"), (0x12, "SYN-ACK"), (0x14, "RST"), (0x08, "no ACK")]
        {
            bed.leaves(what, edited(&tcp, |b| b[47] = flags));
            bed.leaves(what, edited(&tcp6, |b| b[67] = flags));
        }
        bed.leaves("a short TCP header", edited(&tcp, |b| b[46] = 0x40));
        bed.leaves("a long TCP header", edited(&tcp, |b| b[46] = 0xf0));
        let (mut last, mut last6) = (udp.clone(), udp6.clone());
        (last.ttl, last6.ttl) = (1, 1);
        bed.leaves("the last hop", last.bytes());
        bed.leaves("the last hop", last6.bytes());
        bed.leaves("a tag", tagged(udp.bytes(), &[0x8100]));
        bed.leaves("a fragment", summed(fragment(udp.bytes(), 0)));
        bed.leaves("an extension", extended(udp6.bytes(), 60, [0, 1, 4, 0, 0, 0, 0]));
        bed.leaves("a wrong header checksum", edited(&udp, |b| b[24] ^= 1));
        bed.leaves("a length beyond the frame", summed(edited(&udp, |b| b[17] += 9)));
        bed.leaves("a UDP length of its own", edited(&udp, |b| b[39] -= 1));
        bed.leaves("IPv6 without a checksum", edited(&udp6, |b| b[60..62].fill(0)));
        bed.leaves("another host's", edited(&udp, |b| b[5] ^= 1));
        let mut long = udp.clone();
        long.payload = vec![9; usize::from(MTU) - 27];
        bed.leaves("too long for the port", long.bytes());
        let options = edited(&udp, |b| {
            b[14] = 0x46;
            b[17] += 4;
            b.splice(34..34, [1, 1, 1, 0]);
        });
        bed.leaves("options", summed(options));
        // Behind the driver the kernel knows which sums are partial.
        if bed.attach != AttachMode::Tc {
            let partial = edited(&udp, |b| {
                let pseudo = b[26..34].chunks(2).map(|w| u32::from(w[0]) << 8 | u32::from(w[1]));
                let sum = pseudo.sum::<u32>() + u32::from(UDP) + u32::from(b[39]);
                let folded = (sum & 0xffff) + (sum >> 16);
                b[40..42].copy_from_slice(&(folded as u16).to_be_bytes());
            });
            bed.leaves("a partial checksum", partial);
        }
        let mut other = udp.clone();
        other.ports.0 += 1;
        bed.leaves("another flow", other.bytes());
    });
}

/// Each of these ends the program's part at once, without the table being told.
#[test]
fn stamps_generations_and_heartbeats_end_it() {
    with_bed(|bed| {
        let udp = packet(true, UDP, b"datagram");
        let (sent, wanted) = (udp.bytes(), udp.translated().bytes());
        bed.hand_down(udp.key(), entry(&udp));
        let goes = |bed: &mut Bed| {
            bed.forwards(std::slice::from_ref(&sent), std::slice::from_ref(&wanted));
        };
        goes(bed);
        bed.slots.set_stamp(WAN, SLOT, 0);
        bed.leaves("a slot that is vacant", udp.bytes());
        bed.slots.set_stamp(WAN, SLOT, STAMP + 1);
        bed.leaves("a slot that is another flow's", udp.bytes());
        bed.slots.set_stamp(WAN, SLOT, STAMP);
        goes(bed);
        for generation in [GENERATION + 1, 0] {
            bed.appliance.nic.steer.set_generation(generation).expect("set");
            bed.leaves("another generation", udp.bytes());
        }
        bed.appliance.nic.steer.set_generation(GENERATION).expect("set");
        goes(bed);
        bed.appliance.beats[0].stamp(Nanos::ZERO);
        let stale = bed.appliance.count(SteerReason::StalePass);
        bed.client.send(0, &[udp.bytes()]);
        assert_eq!(bed.appliance.count(SteerReason::StalePass), stale + 1, "to the kernel");
        assert!(bed.server.receive(0, 1).is_empty(), "a dead worker's flow goes on");
        bed.alive();
        goes(bed);
    });
}

/// A port whose name another interface has by now is none that flows are sent to.
#[test]
fn a_port_is_an_interface_and_not_a_name() {
    with_bed(|bed| {
        for line in ["set w0 down", "set w0 name gone", "set gone up"] {
            ip(&[&["link"][..], &line.split(' ').collect::<Vec<_>>()].concat());
        }
        ip(&["link", "add", "w0", "type", "veth", "peer", "name", "w8"]);
        // So that it would take frames of other devices' programs.
        let ethtool = Ethtool::open().expect("a socket");
        ethtool.set_offload("w8", Offload::Gro, true).expect("gro on");
        for link in ["w0", "w8"] {
            ip(&["link", "set", link, "up"]);
        }
        let steer = &mut bed.appliance.nic.steer;
        steer.refresh_targets().expect("targets");
        assert!(steer.is_target(0) && !steer.is_target(1));
    });
}
