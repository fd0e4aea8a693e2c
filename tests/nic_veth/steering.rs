//! What crosses a port, and what the XDP program makes of each packet.

use std::net::UdpSocket;
use std::time::Duration;

use crate::net::{Side, ip, with_veth};
use crate::packets::{
    V4, extended, fragment, ping, same, solicitation, tagged, tcp, tcp6, udp, udp_broadcast,
};
use tidegate::base::{Addr, Nanos};
use tidegate::control::steering::{SteerTables, Steering};
use tidegate::lab::wait_for;
use tidegate::nic::Port;
use tidegate::nic::spec::AttachMode;
use tidegate::nic::steer::{
    MAX_KEPT, NatRange, SHARE_ALL, Steer, SteerReason, VipEntry, kernel_now,
};
use tidegate::packet::FlowKey;
use tidegate::worker::spec::OnFailure;

const PATIENCE: Duration = Duration::from_secs(30);
const CLIENT: V4 = ([198, 51, 100, 7], 40_000);
const VIP: V4 = ([203, 0, 113, 1], 443);
const BACKEND: V4 = ([10, 0, 0, 8], 8443);
const NAT: [u8; 4] = [10, 0, 0, 1];
const LOCAL: [u8; 4] = [10, 9, 0, 1];

fn addr(bytes: [u8; 4]) -> Addr {
    std::net::Ipv4Addr::from(bytes).into()
}

fn endpoint(at: V4, proto: u8, share: u32) -> VipEntry {
    VipEntry { addr: addr(at.0), port: at.1, proto, canary_share: share as u16 }
}

/// Packets cross in both directions on both queues, and all frames come back.
fn both_ways(attach: AttachMode, native: bool) {
    with_veth(2, || {
        let mut a = Side::open("v0", 2, attach).takes_everything();
        let mut b = Side::open("v1", 2, attach).takes_everything();
        assert_eq!(a.nic.modes[0].native, native, "{:?}", a.nic.modes);
        assert_eq!((a.nic.modes[0].queues, a.nic.modes[0].driver.as_str()), (2, "veth"));
        assert!(!a.nic.modes[0].zero_copy);
        for sender in [0usize, 1] {
            // A veth in generic mode reads the sender's queue number off by one (linux/netdevice.h,
            // skb_get_rx_queue), so everything arrives on queue 0.
            let receiver = if native { sender } else { 0 };
            let sent: Vec<_> = (0..700u16).map(|i| udp((CLIENT.0, i), VIP)).collect();
            for chunk in sent.chunks(350) {
                a.send(sender, chunk);
                same(&b.receive(receiver, chunk.len()), chunk);
                assert!(b.receive(1 - receiver, 1).is_empty(), "the other queue got packets");
                b.send(sender, chunk);
                same(&a.receive(receiver, chunk.len()), chunk);
            }
        }
        let total = |f: fn(&tidegate::nic::PortStats) -> u64| -> u64 {
            a.nic.ports.iter().flatten().map(|p| f(&p.stats())).sum()
        };
        assert_eq!((total(|s| s.rx_packets), total(|s| s.tx_packets)), (1400, 1400));
        assert_eq!((total(|s| s.rx_missed), total(|s| s.tx_errors)), (0, 0));
        a.close();
        b.close();
    });
}

#[test]
fn packets_cross_natively() {
    both_ways(AttachMode::Native, true);
}

#[test]
fn packets_cross_generically() {
    both_ways(AttachMode::Generic, false);
}

#[test]
fn packets_cross_behind_the_driver() {
    both_ways(AttachMode::Tc, false);
}

/// A device under test whose tables are all set.
fn configured(attach: AttachMode) -> Side {
    let mut a = Side::open("v0", 1, attach);
    let steer = &mut a.nic.steer;
    let vip6 =
        VipEntry { addr: "2001:db8::1".parse().expect("literal"), ..endpoint(VIP, 6, SHARE_ALL) };
    steer.set_vips(&[endpoint(VIP, 6, SHARE_ALL), vip6]).expect("vips");
    steer.set_nat(&[NatRange { addr: addr(NAT), first: 20_000, last: 29_999 }]).expect("nat");
    steer.set_returns(&[endpoint(BACKEND, 6, SHARE_ALL)]).expect("returns");
    let transit = ["192.0.2.0/24", "224.0.0.0/3", "2001:db8:5::/48", "ff00::/8"];
    let transit = transit.map(|p| p.parse().expect("literal"));
    steer.set_transit(&transit).expect("transit");
    steer.set_local(&[addr(LOCAL)]).expect("local");
    steer.set_checks(Some((64_000, 64_511))).expect("checks");
    a
}

fn v6(last: u8, port: u16) -> ([u8; 16], u16) {
    ([0x20, 1, 0x0d, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, last], port)
}

fn golden() -> Vec<(&'static str, Vec<u8>, SteerReason)> {
    use SteerReason::*;
    let net = ([192, 0, 2, 9], 5);
    let client6 = v6(0x77, 40_000);
    let mut prefix6 = v6(9, 5);
    prefix6.0[5] = 5;
    let routing = [0, 0, 0, 0, 0, 0, 0];
    let later = [0, 0, 8, 0, 0, 0, 1];
    vec![
        ("service", tcp(CLIENT, VIP), Vip),
        ("service, VLAN", tagged(tcp(CLIENT, VIP), &[0x8100]), Vip),
        ("service, two VLANs", tagged(tcp(CLIENT, VIP), &[0x88a8, 0x8100]), Vip),
        ("three VLANs are not looked through", tagged(tcp(CLIENT, VIP), &[0x8100; 3]), NotIp),
        ("service, IPv6", tcp6(client6, v6(1, 443)), Vip),
        ("service, IPv6, extension", extended(tcp6(client6, v6(1, 443)), 60, routing), Vip),
        ("service, other protocol", udp(CLIENT, VIP), NotOurs),
        ("service, other port", tcp(CLIENT, (VIP.0, 80)), NotOurs),
        ("later fragment to a service", fragment(tcp(CLIENT, VIP), 100), Fragment),
        ("first fragment to a service", fragment(tcp(CLIENT, VIP), 0), Vip),
        ("a first fragment of no service", fragment(udp(CLIENT, VIP), 0), NotOurs),
        ("the later one follows it to the kernel", fragment(udp(CLIENT, VIP), 100), FragmentPass),
        ("later fragment of a backend", fragment(tcp(BACKEND, CLIENT), 100), Fragment),
        ("first one of its other port", fragment(tcp((BACKEND.0, 22), CLIENT), 0), NotOurs),
        ("the later one follows it", fragment(tcp(BACKEND, CLIENT), 100), FragmentPass),
        ("first one of its answers", fragment(tcp(BACKEND, CLIENT), 0), DnatReturn),
        ("the later one follows it, too", fragment(tcp(BACKEND, CLIENT), 100), Fragment),
        ("later IPv6 fragment", extended(tcp6(client6, v6(1, 443)), 44, later), Fragment),
        ("ping to a service", ping(CLIENT.0, VIP.0), Icmp),
        ("NAT port", tcp(BACKEND, (NAT, 20_000)), NatReturn),
        ("last NAT port, UDP", udp(BACKEND, (NAT, 29_999)), NatReturn),
        ("beyond the NAT ports", udp(BACKEND, (NAT, 30_000)), NotOurs),
        ("below the NAT ports", udp(BACKEND, (NAT, 19_999)), NotOurs),
        ("ping to the NAT address", ping(BACKEND.0, NAT), Icmp),
        ("DNAT backend", tcp(BACKEND, CLIENT), DnatReturn),
        ("DNAT backend to the box itself", tcp(BACKEND, (LOCAL, 22)), Local),
        ("other port of a backend", tcp((BACKEND.0, 22), CLIENT), NotOurs),
        ("transit", udp(CLIENT, net), Transit),
        ("transit ping", ping(CLIENT.0, net.0), Transit),
        ("transit, IPv6", tcp6(client6, prefix6), Transit),
        ("the box itself", tcp(CLIENT, (LOCAL, 22)), Local),
        ("multicast in a transit prefix", udp(CLIENT, ([224, 0, 0, 5], 5)), Group),
        ("broadcast in a transit prefix", udp(CLIENT, ([255; 4], 67)), Group),
        ("broadcast frame", udp_broadcast(CLIENT, net), Group),
        ("link-local", udp(CLIENT, ([169, 254, 1, 1], 5)), Group),
        ("neighbour discovery", solicitation(prefix6.0), Icmp),
        ("elsewhere", udp(CLIENT, ([8, 8, 8, 8], 53)), NotOurs),
        ("ARP", { [&tcp(CLIENT, VIP)[..12], &[8, 6], &[0; 28]].concat() }, NotIp),
        ("cut in the IP header", tcp(CLIENT, VIP)[..30].to_vec(), Malformed),
        ("cut in the ports", tcp(CLIENT, VIP)[..36].to_vec(), Malformed),
        (
            "IPv4 header length 4",
            {
                let mut p = tcp(CLIENT, VIP);
                p[14] = 0x44;
                p
            },
            Malformed,
        ),
        (
            "version 5",
            {
                let mut p = tcp(CLIENT, VIP);
                p[14] = 0x55;
                p
            },
            Malformed,
        ),
    ]
}

/// What is almost something else.
fn golden_rest() -> Vec<(&'static str, Vec<u8>, SteerReason)> {
    use SteerReason::*;
    vec![
        ("port 0 of a backend", tcp((BACKEND.0, 0), CLIENT), NotOurs),
        ("answer to a health check", tcp(VIP, (LOCAL, 64_000)), NatReturn),
        ("beyond the checks' ports", tcp(VIP, (LOCAL, 64_512)), Local),
        ("later fragment to the box itself", fragment(tcp(VIP, (LOCAL, 1)), 100), Local),
    ]
}

#[test]
fn every_packet_is_steered_or_passed_for_its_reason() {
    [AttachMode::Native, AttachMode::Tc].into_iter().for_each(golden_with);
}

fn golden_with(attach: AttachMode) {
    with_veth(1, || {
        let mut a = configured(attach);
        let mut b = Side::open("v1", 1, AttachMode::Native);
        for (what, packet, reason) in golden().into_iter().chain(golden_rest()) {
            let before: Vec<u64> = SteerReason::ALL.iter().map(|&r| a.count(r)).collect();
            b.send(0, std::slice::from_ref(&packet));
            let counted: Vec<&str> = SteerReason::ALL
                .iter()
                .filter(|&&r| a.count(r) != before[r as usize])
                .map(|r| r.label())
                .collect();
            assert_eq!(counted, [reason.label()], "{what}, {attach:?}");
            use SteerReason::{DnatReturn, Fragment, NatReturn, Transit, Vip};
            if matches!(reason, Vip | NatReturn | DnatReturn | Transit | Fragment) {
                same(&a.receive(0, 1), &[packet]);
            }
        }
        assert!(a.receive(0, 1).is_empty(), "a packet that should have passed was steered");
        a.close();
        b.close();
    });
}

#[test]
fn tables_are_replaced_not_added_to() {
    with_veth(1, || {
        let mut a = configured(AttachMode::Native);
        let mut b = Side::open("v1", 1, AttachMode::Native);
        let steer = &mut a.nic.steer;
        steer.set_vips(&[]).expect("vips");
        steer.set_nat(&[]).expect("nat");
        steer.set_returns(&[]).expect("returns");
        steer.set_transit(&["192.0.2.0/25".parse().expect("literal")]).expect("transit");
        steer.set_local(&[]).expect("local");
        steer.set_checks(None).expect("checks");
        let gone = [
            tcp(CLIENT, VIP),
            tcp(BACKEND, (NAT, 20_000)),
            tcp(BACKEND, CLIENT),
            udp(CLIENT, ([192, 0, 2, 200], 5)),
            tcp(CLIENT, (LOCAL, 22)),
        ];
        b.send(0, &gone);
        assert_eq!(a.count(SteerReason::NotOurs), gone.len() as u64);
        b.send(0, &[udp(CLIENT, ([192, 0, 2, 9], 5))]);
        assert_eq!(a.receive(0, 1).len(), 1);
        a.close();
        b.close();
    });
}

/// With a stale heartbeat the kernel gets our traffic, or nobody.
#[test]
fn a_silent_worker_is_bypassed() {
    with_veth(1, || {
        ip(&["link", "set", "v0", "address", "02:00:00:00:00:02"]);
        ip(&["route", "add", "198.51.100.0/24", "dev", "v0"]);
        let kernel = UdpSocket::bind("10.9.0.1:5353").expect("bind");
        kernel.set_read_timeout(Some(Duration::from_millis(300))).expect("timeout");
        let mut buffer = [0; 64];
        let vip = (LOCAL, 5353);
        let mut a = Side::open("v0", 1, AttachMode::Native);
        let mut b = Side::open("v1", 1, AttachMode::Native);
        let steer = &mut a.nic.steer;
        steer.set_vips(&[endpoint(vip, 17, SHARE_ALL)]).expect("vips");
        let limit = Duration::from_secs(3600);
        steer.set_config(limit, OnFailure::Pass, SHARE_ALL as u16).expect("config");
        let packet = [udp(CLIENT, vip)];

        b.send(0, &packet);
        same(&a.receive(0, 1), &packet);
        assert!(kernel.recv(&mut buffer).is_err(), "the kernel got a packet of ours");

        // The machine may have been up for less than the limit: be older than that.
        a.nic
            .steer
            .set_config(Duration::from_millis(50), OnFailure::Pass, SHARE_ALL as u16)
            .expect("set");
        std::thread::sleep(Duration::from_millis(80));
        b.send(0, &packet);
        assert_eq!(a.count(SteerReason::StalePass), 1);
        assert_eq!(kernel.recv(&mut buffer).expect("the kernel takes over"), 18);

        // Whatever the worker's own clock says. A busy machine may keep us from sending for longer
        // than a beat lasts.
        let mut own_clock = Nanos(u64::MAX / 2);
        let beats = wait_for(PATIENCE, "a beat that counts", || {
            own_clock = own_clock.saturating_add(1_000_000_000);
            a.beats[0].beat(own_clock);
            b.send(0, &packet);
            let came = a.receive(0, 1);
            same(&came, &packet[..came.len()]);
            !came.is_empty()
        });
        beats.expect("steered again");
        while kernel.recv(&mut buffer).is_ok() {}

        a.nic
            .steer
            .set_config(Duration::from_millis(50), OnFailure::Drop, SHARE_ALL as u16)
            .expect("set");
        a.beats[0].stamp(Nanos(kernel_now().0 - 60_000_000));
        b.send(0, &packet);
        assert_eq!(a.count(SteerReason::StaleDrop), 1);
        assert!(kernel.recv(&mut buffer).is_err(), "passed, not dropped");
        // Not ours: the kernel's in any case.
        b.send(0, &[udp(CLIENT, (LOCAL, 5354))]);
        assert_eq!(a.count(SteerReason::NotOurs) + a.count(SteerReason::Local), 1);
        a.close();
        b.close();
    });
}

const FLOWS: u16 = 10_000;

/// Sends a packet of each of many flows; the ports at an offset in those that were steered to us.
fn steered(
    a: &mut Side,
    b: &mut Side,
    packet: &dyn Fn(u16) -> Vec<u8>,
    port_at: usize,
) -> Vec<u16> {
    let mut ports = Vec::new();
    let mut take = |a: &mut Side, limit| {
        let got = a.receive_for(0, 250, limit);
        ports.extend(got.iter().map(|p| u16::from_be_bytes([p[port_at], p[port_at + 1]])));
        !got.is_empty()
    };
    for from in (0..FLOWS).step_by(250) {
        b.send(0, &(from..from + 250).map(packet).collect::<Vec<_>>());
        take(a, Duration::from_millis(10));
    }
    while take(a, Duration::from_millis(200)) {}
    ports.sort_unstable();
    ports
}

/// From share to share: both directions of a flow are on the same side, and a larger share has the
/// flows of a smaller one.
#[test]
fn a_change_of_the_canary_share_moves_only_the_flows_that_it_must() {
    with_veth(1, || {
        let mut a = Side::open("v0", 1, AttachMode::Native);
        let mut b = Side::open("v1", 1, AttachMode::Native);
        let client = |i: u16| (CLIENT.0, 1024 + i);
        let limit = Duration::from_secs(60);
        a.nic.steer.set_config(limit, OnFailure::Pass, SHARE_ALL as u16).expect("config");
        let mut before: Vec<u16> = Vec::new();
        for percent in [0, 5, 50, 100] {
            a.nic.steer.set_vips(&[endpoint(VIP, 6, percent * 100)]).expect("vips");
            a.nic.steer.set_returns(&[endpoint(BACKEND, 6, percent * 100)]).expect("returns");
            let asked = steered(&mut a, &mut b, &|i| tcp(client(i), VIP), 34);
            let answered = steered(&mut a, &mut b, &|i| tcp(BACKEND, client(i)), 36);
            assert_eq!(asked, answered, "{percent} %: another share answered than asked");
            let wanted = usize::from(FLOWS) * percent as usize / 100;
            println!("{percent} %: {} of {FLOWS} flows", asked.len());
            assert!(asked.len().abs_diff(wanted) <= usize::from(FLOWS) / 100, "{percent} %");
            assert!(before.iter().all(|flow| asked.binary_search(flow).is_ok()), "{percent} %");
            before = asked;
        }
        a.close();
        b.close();
    });
}

/// The share of 10,000 flows, as sent by their clients, and as answered.
#[test]
fn the_canary_share_is_met_in_both_directions() {
    const SHARE: u32 = 2_500;
    with_veth(1, || {
        let mut a = Side::open("v0", 1, AttachMode::Native);
        let mut b = Side::open("v1", 1, AttachMode::Native);
        let far = ([192, 0, 2, 9], 5);
        let steer = &mut a.nic.steer;
        steer.set_vips(&[endpoint(VIP, 6, SHARE)]).expect("vips");
        steer.set_returns(&[endpoint(BACKEND, 6, SHARE)]).expect("returns");
        let transit = ["192.0.2.0/24", "198.51.100.0/24"].map(|p| p.parse().expect("literal"));
        steer.set_transit(&transit).expect("transit");
        steer.set_config(Duration::from_secs(60), OnFailure::Pass, SHARE as u16).expect("config");
        let client = |i: u16| (CLIENT.0, 1024 + i);
        let in_a_point = |n: usize| n.abs_diff(usize::from(FLOWS) / 4) <= usize::from(FLOWS) / 100;

        let asked = steered(&mut a, &mut b, &|i| tcp(client(i), VIP), 34);
        assert!(in_a_point(asked.len()), "{} of {FLOWS}", asked.len());
        let answered = steered(&mut a, &mut b, &|i| tcp(BACKEND, client(i)), 36);
        assert_eq!(asked, answered, "DNAT: another share answered than asked");

        let there = steered(&mut a, &mut b, &|i| udp(client(i), far), 34);
        assert!(in_a_point(there.len()), "{} of {FLOWS}", there.len());
        let back = steered(&mut a, &mut b, &|i| udp(far, client(i)), 36);
        assert_eq!(there, back, "transit: the directions differ");
        a.close();
        b.close();
    });
}

/// Of tables that fail half way it is not known what the programs have: those of before are told
/// whole.
#[test]
fn tables_that_fail_half_way_give_way_to_those_of_before() {
    with_veth(1, || {
        let mut a = Side::open("v0", 1, AttachMode::Auto);
        let mut b = Side::open("v1", 1, AttachMode::Auto);
        let mut steering = Steering::new(std::mem::replace(&mut a.nic.steer, Steer::new(1, false)));
        let transit = vec!["0.0.0.0/0".parse().expect("literal")];
        let before = SteerTables { transit, ..SteerTables::default() };
        let packet = [udp(CLIENT, VIP)];
        let mut is_steered = |steering: &mut Steering| {
            steering.set_tables(before.clone()).expect("room");
            b.send(0, &packet);
            same(&a.receive(0, 1), &packet);
        };
        is_steered(&mut steering);
        // Services are told last, and these are too many.
        let service = |port| VipEntry { port, ..endpoint(VIP, 6, SHARE_ALL) };
        let crowd = SteerTables { vips: (1..=5_000).map(service).collect(), ..before.clone() };
        let crowd = SteerTables { transit: Vec::new(), ..crowd };
        assert!(steering.check_room(&crowd).is_err() && steering.set_tables(crowd).is_err());
        is_steered(&mut steering);
        a.close();
        b.close();
    });
}

/// While it is not known which flows a lowered share leaves here whoever comes is noted, until
/// there is no room.
#[test]
fn what_is_noted_gives_way_to_flows_that_are_known() {
    with_veth(1, || {
        let mut a = Side::open("v0", 1, AttachMode::Auto);
        let b = Side::open("v1", 1, AttachMode::Auto);
        let flow = |src: Addr, sport: u32| FlowKey {
            src,
            dst: addr(VIP.0),
            sport: sport as u16,
            dport: VIP.1,
            proto: 6,
        };
        let crowd = (0..MAX_KEPT).map(|port| flow(addr([192, 0, 2, 1]), port)).collect();
        let steer = &mut a.nic.steer;
        assert_eq!(steer.keep(&crowd, false).expect("room for all"), 0);
        assert_eq!(
            steer.keep(&[flow(addr(CLIENT.0), 1)].into(), false).expect("the crowd gives way"),
            0
        );
        a.close();
        b.close();
    });
}
