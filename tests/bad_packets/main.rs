//! Packets that nobody should send, through a whole box: each has its drop reason, is counted once,
//! and leaves no frame behind. Beside them those that look as odd and are to be forwarded.

#[path = "../golden/mod.rs"]
mod golden;
#[allow(dead_code, reason = "the fuzz targets use the rest")]
#[path = "../fuzz/targets/mod.rs"]
mod targets;

mod forwarding;
mod headers;
mod truncated;

use tidegate::packet::build::{IcmpSpec, LinkSpec, TcpSpec, UdpSpec};
use tidegate::packet::tcp::flag;
use tidegate::packet::{DropReason, eth};

use targets::rig::Rig;
use targets::setup::{BACKEND_TCP_PORT, Family, NEIGHBOUR_MAC, OWN_MAC, V4, V6, Variant, addr};

/// What is to become of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    /// Sent by this port.
    Sent(usize),
    /// Gone, and nobody is told.
    Dropped(DropReason),
    /// Gone, and its sender is told by ICMP.
    Answered(DropReason),
}

pub use Fate::{Answered, Dropped, Sent};

/// What it is, the packet as the clients' port receives it, and what is to become of it.
pub type Case = (&'static str, Vec<u8>, Fate);

/// With checksums verified.
pub fn check(cases: &[Case]) {
    check_at(0, Variant::WHOLE, cases);
}

/// Each packet alone, in a box of its own.
pub fn check_at(port: usize, variant: Variant, cases: &[Case]) {
    for (what, packet, fate) in cases {
        let mut rig = Rig::new(1, variant);
        assert!(rig.send(0, port, packet));
        let mut sent = Vec::new();
        rig.rest(|port, bytes| sent.push((port, bytes.to_vec())));
        let counters = rig.finish();
        let dropped: Vec<_> =
            DropReason::ALL.iter().filter(|r| counters.drops[**r as usize] > 0).collect();
        assert_eq!(counters.rx_packets, 1, "{what}");
        let got = match (sent.as_slice(), dropped.as_slice(), counters.icmp_sent) {
            ([(port, _)], [], 0) => Sent(*port),
            ([], [reason], 0) => Dropped(**reason),
            ([(0, _)], [reason], 1) => Answered(**reason),
            other => panic!("{what}: {other:?}"),
        };
        assert_eq!(got, *fate, "{what}: {packet:02x?}");
        assert_eq!(counters.drops_total(), dropped.len() as u64, "{what}: counted once");
        assert_eq!(counters.created, counters.icmp_sent, "{what}");
    }
}

pub fn link() -> LinkSpec {
    LinkSpec { destination: OWN_MAC[0], source: NEIGHBOUR_MAC[0], ..LinkSpec::default() }
}

/// From a client straight to a backend, which the router forwards.
pub fn tcp(family: &Family) -> TcpSpec {
    let (src, dst) = (addr(family.clients[0]), addr(family.backends[0]));
    let spec = TcpSpec::new((src, 40_000), (dst, BACKEND_TCP_PORT), flag::ACK, b"data");
    TcpSpec { link: link(), ..spec }
}

/// As [`tcp`].
pub fn udp(family: &Family) -> UdpSpec {
    let (src, dst) = (addr(family.clients[0]), addr(family.backends[0]));
    UdpSpec { link: link(), ..UdpSpec::new((src, 40_000), (dst, 53), b"data") }
}

/// As [`tcp`].
pub fn echo(family: &Family) -> IcmpSpec {
    let (src, dst) = (addr(family.clients[0]), addr(family.backends[0]));
    IcmpSpec { link: link(), ..IcmpSpec::echo(src, dst, false, 7, b"ping") }
}

/// From a client to a port of the VIP, for the balancer. A SYN brings no data.
pub fn to_vip(family: &Family, port: u16, flags: u8) -> TcpSpec {
    let mut spec = TcpSpec { dport: port, flags, ..tcp(family) };
    if flags & flag::SYN != 0 {
        spec.payload.clear();
    }
    spec.ip.dst = addr(family.vip);
    spec
}

/// `packet` after `change`, which gets the bytes from the IP header on.
pub fn with(mut packet: Vec<u8>, change: impl FnOnce(&mut [u8])) -> Vec<u8> {
    change(&mut packet[eth::HEADER_LEN..]);
    packet
}

/// As [`with`], with checksums made right again.
pub fn with_fixed(packet: Vec<u8>, change: impl FnOnce(&mut [u8])) -> Vec<u8> {
    let mut packet = with(packet, change);
    targets::script::fix_sums(&mut packet);
    packet
}

pub fn both(each: impl Fn(&'static Family)) {
    each(&V4);
    each(&V6);
}
