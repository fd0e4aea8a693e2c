//! What only the way of a packet shows: hops, sizes, routes, services.

use tidegate::forward::spec::ForwardMode;
use tidegate::packet::DropReason;
use tidegate::packet::build::{
    IcmpSpec, IpSpec, LinkSpec, TcpSpec, UdpSpec, icmp_packet, ip_packet, tcp_packet, udp_packet,
};
use tidegate::packet::tcp::flag::{ACK, FIN, RST, SYN};

use super::targets::setup::{
    BACKEND_MTU, BACKEND_TCP_PORT, DRAINED_PORT, LOST_PORT, MODES, NAT_PORTS, NEIGHBOUR_MAC,
    OWN_MAC, UNRESOLVED_PORT, V4, V6, Variant, addr,
};
use super::{Answered, Dropped, Sent, both, check, check_at, echo, link, tcp, to_vip, udp};

#[test]
fn last_hops() {
    both(|family| {
        let last = |ip: IpSpec| IpSpec { ttl: 1, ..ip };
        let to = |dst: &str| {
            let ip = IpSpec { dst: addr(dst), ..last(udp(family).ip) };
            udp_packet(&UdpSpec { ip, ..udp(family) })
        };
        let service = |port| {
            let spec = to_vip(family, port, SYN);
            tcp_packet(&TcpSpec { ip: last(spec.ip.clone()), ..spec })
        };
        let quoted = tcp_packet(&tcp(family))[14..].to_vec();
        let error = IcmpSpec {
            kind: if family.is_v4() { 3 } else { 1 },
            ip: last(echo(family).ip),
            payload: quoted,
            ..echo(family)
        };
        let mut later = last(udp(family).ip);
        later.fragment = 50;
        later.extensions = vec![(44, vec![0, 0, 1, 0x90, 0, 0, 0, 1])];
        let used_up = DropReason::TtlExceeded;
        check(&[
            ("one hop left", to(family.backends[0]), Answered(used_up)),
            ("one hop left for a service", service(80), Answered(used_up)),
            ("DSR", service(82), Answered(used_up)),
            ("one hop left for us", to(family.own[0]), Dropped(DropReason::NotHandled)),
            ("an error", icmp_packet(&error), Dropped(used_up)),
            ("a later fragment", ip_packet(&link(), &later, 17, &[0; 16]), Dropped(used_up)),
        ]);
        let two = IpSpec { ttl: 2, ..udp(family).ip };
        check(&[("two hops left", udp_packet(&UdpSpec { ip: two, ..udp(family) }), Sent(1))]);
    });
}

#[test]
fn sizes() {
    both(|family| {
        let headers = if family.is_v4() { 28 } else { 48 };
        let sized =
            |len: usize| udp_packet(&UdpSpec { payload: vec![0; len - headers], ..udp(family) });
        let fits = usize::from(BACKEND_MTU);
        check(&[
            ("as large as the link", sized(fits), Sent(1)),
            ("a byte more", sized(fits + 1), Answered(DropReason::TooBig)),
        ]);
    });
}

#[test]
fn destinations() {
    both(|family| {
        let to = |dst: &str| {
            let ip = IpSpec { dst: addr(dst), ..udp(family).ip };
            udp_packet(&UdpSpec { ip, ..udp(family) })
        };
        let lost = to(family.lost);
        check(&[
            ("ours", to(family.own[0]), Dropped(DropReason::NotHandled)),
            ("ours on the other port", to(family.own[1]), Dropped(DropReason::NotHandled)),
            ("behind a gateway", to(family.beyond), Sent(1)),
            ("back where it came from", to(family.clients[1]), Sent(0)),
            ("without a route", lost.clone(), Answered(DropReason::NoRoute)),
            ("into a black hole", to(family.blackhole), Dropped(DropReason::RouteBlackhole)),
            ("by another interface", to(family.elsewhere), Dropped(DropReason::NotOurPort)),
            ("to nobody", to(family.unresolved), Dropped(DropReason::NeighbourUnresolved)),
        ]);
        let balancer = Variant { route: false, ..Variant::WHOLE };
        check_at(
            0,
            balancer,
            &[
                ("no service, no router", lost, Dropped(DropReason::NotHandled)),
                ("a backend itself", to(family.backends[0]), Dropped(DropReason::NotHandled)),
            ],
        );
    });
}

#[test]
fn foreign_mac_addresses() {
    both(|family| {
        let to = |destination| {
            let link = LinkSpec { destination, ..link() };
            let mut spec = to_vip(family, 80, SYN);
            spec.link = link.clone();
            let mut last = UdpSpec { link: link.clone(), ..udp(family) };
            last.ip.ttl = 1;
            let routed = udp_packet(&UdpSpec { link, ..udp(family) });
            [routed, tcp_packet(&spec), udp_packet(&last)]
        };
        for destination in [[2, 0, 0, 0, 0, 0x99], OWN_MAC[1], [0xff; 6], [1, 0, 0x5e, 0, 0, 1]] {
            let [routed, balanced, last] = to(destination);
            let reason = Dropped(DropReason::NotOurMac);
            check(&[
                ("for the router", routed, reason),
                ("for a service", balanced, reason),
                ("with one hop left", last, reason),
            ]);
        }
    });
}

#[test]
fn services() {
    both(|family| {
        let to = |port, flags| tcp_packet(&to_vip(family, port, flags));
        for (port, mode) in MODES {
            let what = ["nat", "dnat", "dsr"][mode as usize % 3];
            let no_flow = Dropped(DropReason::NoFlow);
            // Another appliance's, whose choice is ours, too: but of NAT its ports are not known.
            let joined = if mode == ForwardMode::Nat { no_flow } else { Sent(1) };
            check(&[
                (what, to(port, SYN), Sent(1)),
                (what, to(port, SYN | ACK), no_flow),
                (what, to(port, ACK), joined),
                (what, to(port, FIN | ACK), joined),
                (what, to(port, RST), no_flow),
            ]);
        }
        let unresolved = Dropped(DropReason::NeighbourUnresolved);
        check(&[
            ("of a backend that is away", to(UNRESOLVED_PORT, SYN), unresolved),
            ("without backends", to(DRAINED_PORT, SYN), Dropped(DropReason::NoBackend)),
            ("whose backend has no route", to(LOST_PORT, SYN), Dropped(DropReason::NoRoute)),
            ("that does not exist", to(79, SYN), Answered(DropReason::NoRoute)),
        ]);
    });
}

#[test]
fn what_belongs_to_no_flow() {
    both(|family| {
        let back =
            LinkSpec { destination: OWN_MAC[1], source: NEIGHBOUR_MAC[1], ..LinkSpec::default() };
        let backend = (addr(family.backends[0]), BACKEND_TCP_PORT);
        let nat = |port| (addr(family.nat), port);
        let tcp = |port| {
            let spec = TcpSpec::new(backend, nat(port), SYN | ACK, &[]);
            tcp_packet(&TcpSpec { link: back.clone(), ..spec })
        };
        let datagram = UdpSpec::new(backend, nat(*NAT_PORTS.start()), b"late");
        let no_flow = Dropped(DropReason::NoFlow);
        check_at(
            1,
            Variant::WHOLE,
            &[
                ("an answer to a NAT port", tcp(*NAT_PORTS.start()), no_flow),
                ("to the last one", tcp(*NAT_PORTS.end()), no_flow),
                ("late UDP", udp_packet(&UdpSpec { link: back.clone(), ..datagram }), no_flow),
            ],
        );
        let mut ip = udp(family).ip;
        ip.fragment = 50;
        ip.extensions = vec![(44, vec![0, 0, 1, 0x90, 0, 0, 0, 1])];
        ip.dst = addr(family.vip);
        let alone = Dropped(DropReason::FragmentAlone);
        check(&[("a fragment to a VIP", ip_packet(&link(), &ip, 17, &[0; 16]), alone)]);
        ip.dst = addr(family.nat);
        check(&[("a fragment to a NAT address", ip_packet(&link(), &ip, 17, &[0; 16]), alone)]);
    });
}

/// A backend that calls the service it belongs to would be sent its own packet, from itself.
#[test]
fn a_backend_as_client_of_itself() {
    for family in [&V4, &V6] {
        let mut fates = [0; 2];
        for sport in 40_000..40_040 {
            let mut spec = to_vip(family, 81, SYN);
            (spec.ip.src, spec.sport) = (addr(family.backends[0]), sport);
            spec.link = LinkSpec {
                destination: OWN_MAC[1],
                source: NEIGHBOUR_MAC[1],
                ..LinkSpec::default()
            };
            let packet = tcp_packet(&spec);
            let mut rig = super::Rig::new(1, Variant::WHOLE);
            assert!(rig.send(0, 1, &packet));
            let (src, dst) = if family.is_v4() { (26, 30) } else { (22, 38) };
            let len = dst - src;
            rig.rest(|_, bytes| assert_ne!(bytes[src..dst], bytes[dst..dst + len]));
            let counters = rig.finish();
            let refused = counters.drops[DropReason::SelfAddressed as usize];
            assert_eq!(refused + counters.tx_packets, 1, "{counters:?}");
            fates[refused as usize] += 1;
        }
        assert!(fates.iter().all(|n| *n > 5), "one backend of two: {fates:?}");
    }
}
