//! Packets that no honest host sends: dropped with a reason, never a panic, no frame lost.

use std::time::Duration;

use tidegate::base::hash::Rng;
use tidegate::base::{Addr, Seed};
use tidegate::forward::spec::ForwardMode;
use tidegate::graph::spec::StageSpec;
use tidegate::packet::build::{IcmpSpec, TcpSpec, UdpSpec, icmp_packet, tcp_packet, udp_packet};
use tidegate::packet::tcp::flag;
use tidegate::packet::{DropReason, PortId};
use tidegate::sim::{LinkSpec, Setup, Spread};

use crate::world::{
    CLIENTS, Family, SERVER_PORTS, SERVERS, TCP_PORT, UDP_PORT, World, add_clients, box_mac,
    finish, for_seeds, inspect, serve_all, setup, stages, world,
};

fn pipelines() -> [Vec<StageSpec>; 4] {
    [
        vec![StageSpec::Balance],
        vec![inspect(), StageSpec::Classify, StageSpec::Balance, StageSpec::Shape],
        vec![StageSpec::Classify, StageSpec::Route, StageSpec::Shape],
        vec![inspect(), StageSpec::Classify, StageSpec::Tap],
    ]
}

/// Gives a packet to any worker's queue of a port, whatever its Ethernet destination.
fn inject(net: &World, rng: &mut Rng, port: PortId, bytes: &[u8]) -> bool {
    let queue = rng.below(net.appliance.ends.len() as u32) as usize;
    let mut bytes = bytes.to_vec();
    if let Some(destination) = bytes.first_chunk_mut() {
        *destination = box_mac(port);
    }
    net.appliance.ends[queue][usize::from(port.0)].send(&bytes)
}

/// A packet that could be right.
fn sample(rng: &mut Rng, family: Family) -> Vec<u8> {
    let src = (family.client(rng.below(40) as usize), 1_024 + rng.below(4_000) as u16);
    let any: [Addr; 3] = [family.vip(), family.server(0), family.client(3)];
    let dst = any[rng.below(3) as usize];
    let payload = vec![rng.next_u64() as u8; rng.below(1_400) as usize];
    match rng.below(4) {
        0 => udp_packet(&UdpSpec::new(src, (dst, UDP_PORT), &payload)),
        1 => icmp_packet(&IcmpSpec::echo(src.0, dst, rng.chance(0.5), 7, &payload)),
        _ => {
            let flags = [flag::SYN, flag::ACK, flag::FIN | flag::ACK, flag::RST];
            let mut spec =
                TcpSpec::new(src, (dst, TCP_PORT), flags[rng.below(4) as usize], &payload);
            spec.ip.ttl = rng.below(4) as u8;
            tcp_packet(&spec)
        }
    }
}

/// Turns some bits, or cuts the end off.
fn spoil(packet: &mut Vec<u8>, rng: &mut Rng) {
    match rng.below(4) {
        0 => packet.truncate(rng.below(packet.len() as u32 + 1) as usize),
        1 => {}
        _ => {
            for _ in 0..=rng.below(4) {
                let at = rng.below(packet.len().min(80) as u32) as usize;
                packet[at] ^= 1 << rng.below(8);
            }
        }
    }
}

#[test]
fn spoilt_packets_have_a_reason_each() {
    for family in Family::BOTH {
        for pipeline in pipelines() {
            for_seeds(4, |seed| {
                let mut rng = Rng::new(seed);
                let mut setup = setup(seed, family, ForwardMode::Nat);
                setup.pipeline = stages(&pipeline);
                (setup.workers, setup.spread) = (2, Spread::Random);
                setup.flows_max = 128;
                setup.half_open_max = 64;
                setup.resolve_after = Duration::from_millis(500);
                let mut net = world(setup, family, ForwardMode::Nat, LinkSpec::default());
                let mut injected = 0;
                for _ in 0..200 {
                    for _ in 0..40 {
                        let mut packet = sample(&mut rng, family);
                        spoil(&mut packet, &mut rng);
                        let port = PortId(rng.below(2) as u16);
                        injected += u64::from(inject(&net, &mut rng, port, &packet));
                    }
                    net.run_for(Duration::from_millis(u64::from(rng.below(50))));
                }
                let counters = finish(net);
                // What the servers answered came, too.
                assert!(counters.rx_packets >= injected, "{counters:?}");
                assert!(counters.drops_total() > injected / 10, "{counters:?}");
            });
        }
    }
}

#[test]
fn noise_is_dropped() {
    for_seeds(4, |seed| {
        let mut rng = Rng::new(seed);
        let setup = setup(seed, Family::V4, ForwardMode::Nat);
        let mut net = world(setup, Family::V4, ForwardMode::Nat, LinkSpec::default());
        for _ in 0..2_000 {
            let len = rng.below(200) as usize;
            let noise: Vec<u8> = (0..len).map(|_| rng.next_u64() as u8).collect();
            inject(&net, &mut rng, PortId(0), &noise);
            net.run_for(Duration::from_micros(10));
        }
        let counters = finish(net);
        assert_eq!((counters.rx_packets, counters.drops_total()), (2_000, 2_000));
    });
}

#[test]
fn a_flood_of_syns_does_not_keep_others_out() {
    let (family, mode) = (Family::V4, ForwardMode::Nat);
    let mut setup = setup(Seed(8), family, mode);
    setup.flows_max = 256;
    setup.half_open_max = 64;
    let mut net = world(setup, family, mode, LinkSpec::default());
    add_clients(&mut net, family, family.vip(), TCP_PORT, 8);
    let mut rng = Rng::new(Seed(8));
    for _ in 0..100 {
        for _ in 0..10 {
            // From addresses that never answer: beyond the servers, in the clients' net.
            let src = (family.client(40 + rng.below(20) as usize), rng.below(60_000) as u16 + 1);
            let syn = TcpSpec::new(src, (family.vip(), TCP_PORT), flag::SYN, &[]);
            inject(&net, &mut rng, PortId(0), &tcp_packet(&syn));
        }
        net.run_for(Duration::from_millis(10));
    }
    serve_all_but_strays(&mut net);
    let counters = finish(net);
    assert_eq!(counters.drops[DropReason::FlowTableFull as usize], 0, "{counters:?}");
}

/// The flood's SYN-ACKs go to nobody.
fn serve_all_but_strays(net: &mut World) {
    net.run_for(Duration::from_secs(10));
    net.stray = 0;
    serve_all(net);
}

/// SYNs and RSTs in a client's name end nothing that a drained server still serves.
#[test]
fn a_connection_that_is_not_closed_both_ways_makes_way_for_no_other() {
    use flag::{ACK, FIN, RST, SYN};
    let (family, mode) = (Family::V4, ForwardMode::Dnat);
    let client = (family.client(0), 4_000);
    let ways = [
        (CLIENTS, client, (family.vip(), TCP_PORT)),
        (SERVERS, (family.server(0), SERVER_PORTS[0]), client),
    ];
    let only = |which: usize| {
        move |setup: &mut Setup| {
            let backends = setup.forward.pools[0].backends.iter_mut().enumerate();
            backends.for_each(|(i, b)| b.weight = u16::from(i == which));
        }
    };
    let ends: [(&[(usize, u8)], u64); 4] = [
        (&[(1, FIN | ACK), (0, FIN | ACK)], 2),
        (&[(1, FIN | ACK)], 1),
        (&[(0, FIN | ACK)], 1),
        (&[(0, RST)], 1),
    ];
    for (end, opened) in ends {
        let mut setup = setup(Seed(3), family, mode);
        only(0)(&mut setup);
        let mut net = world(setup, family, mode, LinkSpec::default());
        let send = |net: &mut World, (way, flags): (usize, u8)| {
            let (port, src, dst) = ways[way];
            let packet = tcp_packet(&TcpSpec::new(src, dst, flags, &[]));
            assert!(inject(net, &mut Rng::new(Seed(1)), port, &packet));
            // Nobody else is to say anything.
            net.appliance.poll(net.now);
        };
        for packet in [(0, SYN), (1, SYN | ACK), (0, ACK)].iter().chain(end) {
            send(&mut net, *packet);
        }
        net.appliance.reload(only(1));
        net.appliance.poll(net.now);
        send(&mut net, (0, SYN));
        let counters = net.appliance.finish();
        assert_eq!((counters.flows_opened, counters.drops_total()), (opened, 0), "{end:?}");
    }
}
