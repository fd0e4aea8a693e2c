//! Flows that get another class while packets of theirs wait: none is overtaken.

use std::time::Duration;

use tidegate::base::{Nanos, Seed};
use tidegate::forward::spec::ForwardMode;
use tidegate::graph::spec::StageSpec;
use tidegate::packet::ClassId;
use tidegate::packet::build::{UdpSpec, udp_packet};
use tidegate::policy::spec::{NamePattern, RuleSpec};
use tidegate::qos::spec::{ClassSpec, PortQosSpec, QueueSpec};
use tidegate::sim::Appliance;

use crate::quic_support::{Initial, V1, crypto};
use crate::speech::hello;
use crate::world::{CLIENTS, Family, SERVERS, UDP_PORT, box_mac, inspect, setup, stages};

const FAST: ClassId = ClassId(0);
const SLOW: ClassId = ClassId(1);
/// A hello's pieces.
const PIECE: usize = 1_000;
/// Where the payload of IPv4 begins.
const HEADERS: usize = 14 + 20 + 8;

fn qos() -> PortQosSpec {
    let class = |id: ClassId, rate: &str| {
        let rate = rate.parse().expect("a rate");
        ClassSpec {
            cburst: 2_000,
            queue: QueueSpec::INTERNET,
            ..ClassSpec::plain(id.0, rate, rate)
        }
    };
    PortQosSpec {
        port: SERVERS,
        rate: "100Mbit/s".parse().expect("a rate"),
        burst: 20_000,
        overhead: 24,
        mpu: 84,
        mtu: 1_514,
        default_class: FAST,
        classes: vec![class(FAST, "50Mbit/s"), class(SLOW, "80kbit/s")],
    }
}

/// Of a hello in two datagrams the second one tells the class: the first one is not overtaken,
/// whether both come at once or it waits already; nor are both by what follows.
#[test]
fn a_hello_in_two_datagrams_keeps_its_order() {
    let message = &hello("a.example", PIECE)[5..];
    assert!((PIECE..=2 * PIECE).contains(&message.len()));
    let initial = |(i, piece): (usize, &[u8])| {
        let mut frames = crypto(i * PIECE, piece);
        frames.resize(1_163, 0);
        Initial { number: i as u32, ..Initial::new(V1, b"8 bytes!") }.seal(&frames)
    };
    let mut says: Vec<_> = message.chunks(PIECE).enumerate().map(initial).collect();
    says.push(b"\x40more".to_vec());
    for bursts in [&[3][..], &[2, 1], &[1, 1, 1], &[1, 2]] {
        let mut setup = setup(Seed(5), Family::V4, ForwardMode::Nat);
        let sni = vec![NamePattern::Exact("a.example".into())];
        let by_name = RuleSpec { sni, class: FAST, ..RuleSpec::default() };
        setup.rules = vec![by_name, RuleSpec { class: SLOW, ..RuleSpec::default() }];
        setup.pipeline =
            stages(&[inspect(), StageSpec::Classify, StageSpec::Route, StageSpec::Shape]);
        setup.qos = vec![qos()];
        let mut appliance = Appliance::new(setup);
        appliance.learn_neighbours();
        let mut now = Nanos::from_secs(1);
        let send = |appliance: &Appliance, port: u16, payload: &[u8]| {
            let ends = ((Family::V4.client(0), port), (Family::V4.server(0), UDP_PORT));
            let mut bytes = udp_packet(&UdpSpec::new(ends.0, ends.1, payload));
            *bytes.first_chunk_mut().expect("a frame") = box_mac(CLIENTS);
            assert!(appliance.ends[0][usize::from(CLIENTS.0)].send(&bytes), "the wire is full");
        };
        // Others have the slow class wait.
        (0..5).for_each(|_| send(&appliance, 1, &[0; 1_200]));
        let mut left = Vec::new();
        let mut turns = |appliance: &mut Appliance, count| {
            for _ in 0..count {
                now += Duration::from_micros(100);
                appliance.poll(now);
                let end = &appliance.ends[0][usize::from(SERVERS.0)];
                while let Some(packet) = end.recv() {
                    left.push(packet[HEADERS..].to_vec());
                    end.recycle(packet);
                }
            }
        };
        turns(&mut appliance, 10);
        let mut rest = &says[..];
        for &burst in bursts {
            rest[..burst].iter().for_each(|payload| send(&appliance, 2, payload));
            rest = &rest[burst..];
            turns(&mut appliance, 1);
        }
        turns(&mut appliance, 100);
        left.retain(|payload| payload[0] != 0);
        let order: Vec<_> = left.iter().map(|l| says.iter().position(|s| s == l)).collect();
        assert_eq!(order, [Some(0), Some(1), Some(2)], "{bursts:?}");
        appliance.finish();
    }
}
