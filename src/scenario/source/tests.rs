//! When sources send.

use std::time::Duration;

use super::*;
use crate::base::units::BitRate;
use crate::qos::spec::{ClassSpec, PortQosSpec};
use crate::scenario::spec::{Control, Link, Workers};

fn scenario(kind: Kind) -> Scenario {
    let rate = BitRate(8_000_000_000);
    let class = ClassSpec { limit: 1 << 20, ..ClassSpec::plain(0, rate, rate) };
    let tree = PortQosSpec {
        port: crate::packet::PortId(0),
        rate,
        burst: 10_000,
        overhead: 0,
        mpu: 0,
        mtu: 1_518,
        default_class: ClassId(0),
        classes: vec![class],
    };
    let source = Source {
        name: "s".to_string(),
        class: ClassId(0),
        flows: 3,
        packets: vec![1_000],
        ecn: false,
        start: Duration::from_millis(5),
        stop: Some(Duration::from_millis(105)),
        skew: Vec::new(),
        kind,
    };
    Scenario {
        name: "t".to_string(),
        duration: Duration::from_secs(1),
        warmup: Duration::ZERO,
        slice: Duration::from_secs(1),
        seed: Seed(1),
        workers: Workers { count: 2, poll: vec![Duration::from_micros(10)], frames: 64 },
        link: Link { rate: None, ring: None },
        tree,
        class_names: vec!["c".to_string()],
        not_simulated: Vec::new(),
        sources: vec![source],
        expectations: Vec::new(),
    }
}

/// All packets of a source that is never answered, until it stops.
fn sent(scenario: &Scenario) -> Vec<Packet> {
    let mut heap = Heap::default();
    let mut source = Running::new(scenario, 0, 2).expect("no capture");
    source.begin(&mut heap);
    let mut out = Vec::new();
    while let Some((at, event)) = heap.pop(Nanos::MAX) {
        match event {
            Event::Send { flow, .. } => source.send(at, flow, &mut heap, &mut out),
            Event::Timeout { flow, .. } => {
                source.time_out(at, flow, &mut heap, &mut out);
                Ok(())
            }
            Event::Ack { .. } => panic!("nobody answers"),
        }
        .expect("no capture");
    }
    out
}

const RATE: BitRate = BitRate(80_000_000);

#[test]
fn a_constant_rate_is_exact() {
    let packets = sent(&scenario(Kind::Constant { rate: RATE }));
    let at: Vec<u64> = packets.iter().map(|p| p.sent_at.0 / 1_000).collect();
    assert_eq!(at[..3], [5_000, 5_100, 5_200]);
    assert_eq!(at.len(), 1_000, "10 MB/s for 100 ms, 1000 bytes each");
    assert_eq!(packets[3].flow, 0, "flows take turns");
    // 3 packets in 2,000,001 bits: no step is a whole number of nanoseconds.
    let mut odd = scenario(Kind::Constant { rate: BitRate(79_999_999) });
    odd.sources[0].stop = Some(Duration::from_secs(100));
    let packets = sent(&odd);
    assert_eq!(packets.len() as u64, 99_995 * 79_999_999 / 8_000_000 + 1);
}

#[test]
fn poisson_arrivals_have_their_rate_and_vary_as_much() {
    let mut scenario = scenario(Kind::Poisson { rate: RATE });
    scenario.sources[0].stop = Some(Duration::from_secs(5));
    let packets = sent(&scenario);
    let mut in_ms = vec![0f64; 5_000];
    packets.iter().for_each(|p| in_ms[p.sent_at.0 as usize / 1_000_000] += 1.0);
    let mean = in_ms[5..].iter().sum::<f64>() / 4_995.0;
    let variance = in_ms[5..].iter().map(|n| (n - mean).powi(2)).sum::<f64>() / 4_995.0;
    assert!((9.8..10.2).contains(&mean), "{mean}");
    assert!((0.9..1.1).contains(&(variance / mean)), "{variance}");
}

#[test]
fn on_and_off_take_turns() {
    let (on, off) = (Duration::from_millis(10), Duration::from_millis(30));
    let kind = |is_random| Kind::OnOff { rate: RATE, on, off, is_random };
    let packets = sent(&scenario(kind(false)));
    let on_at = |p: &Packet| (p.sent_at.0 / 1_000_000 - 5) % 40 < 10;
    assert!(packets.iter().all(on_at));
    assert_eq!(packets.len(), 300);
    let mut random = scenario(kind(true));
    random.sources[0].stop = Some(Duration::from_secs(20));
    // 1000 packets a second while on, a quarter of the time, 500 times: a deviation of 5 %.
    let n = sent(&random).len() as f64 / (20e4 / 4.0);
    assert!((0.8..1.2).contains(&n), "{n}");
}

/// A packet in 100 ms of which only every fourth counts: none comes sooner for the silences.
#[test]
fn phases_shorter_than_a_packet_takes_keep_the_rate() {
    let (on, off) = (Duration::from_millis(10), Duration::from_millis(30));
    for is_random in [false, true] {
        let rate = BitRate(80_000);
        let mut scenario = scenario(Kind::OnOff { rate, on, off, is_random });
        scenario.sources[0].stop = Some(Duration::from_secs(400));
        let packets = sent(&scenario);
        // By chance it is on 10,000 times: a deviation of 1.4 %.
        let tolerance = if is_random { 60 } else { 1 };
        assert!(packets.len().abs_diff(1_000) <= tolerance, "{is_random} {}", packets.len());
        let ends = packets.windows(2).map(|p| p[1].sent_at.0 - p[0].sent_at.0);
        assert!(is_random || ends.eq(std::iter::repeat_n(400_000_000, packets.len() - 1)));
    }
}

#[test]
fn tokens_come_from_each_flow_at_times_of_its_own() {
    let mut scenario = scenario(Kind::Tokens { bytes: 2_300, every: Duration::from_millis(20) });
    scenario.sources[0].packets = vec![1_514];
    let packets = sent(&scenario);
    assert_eq!(packets.len(), 3 * 5 * 2, "in two packets each");
    assert_eq!((packets[0].len, packets[1].len), (1_514, 786));
    let firsts: Vec<u64> = (0..3)
        .map(|flow| packets.iter().find(|p| p.flow == flow).expect("sent").sent_at.0)
        .collect();
    assert!(firsts[0] != firsts[1] && firsts[1] != firsts[2], "{firsts:?}");
    assert!(firsts.iter().all(|at| (5_000_000..25_000_000).contains(at)), "{firsts:?}");
}

#[test]
fn a_tcp_that_nobody_answers_sends_its_first_window_and_tries_again() {
    let rtt = Duration::from_millis(10);
    let mut scenario = scenario(Kind::Tcp { rtt, control: Control::Cubic });
    scenario.sources[0].stop = Some(Duration::from_secs(4));
    let packets = sent(&scenario);
    // After 1 s, 2 s more, and not before 4 s again.
    let of_first: Vec<u64> =
        packets.iter().filter(|p| p.flow == 0).map(|p| p.sent_at.0 / 1_000_000_000).collect();
    assert_eq!(of_first, [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 3]);
}

#[test]
fn lengths_take_turns_in_each_flow() {
    let mut scenario = scenario(Kind::Constant { rate: RATE });
    scenario.sources[0].packets = vec![64, 1_500, 700];
    for flow in 0..3 {
        let packets = sent(&scenario);
        let mut lengths: Vec<u16> =
            packets.iter().filter(|p| p.flow == flow).take(3).map(|p| p.len).collect();
        lengths.sort_unstable();
        assert_eq!(lengths, [64, 700, 1_500], "flow {flow}");
    }
}

#[test]
fn flows_are_spread_as_asked() {
    let mut scenario = scenario(Kind::Greedy);
    let spread = |scenario: &Scenario, workers: usize| {
        let source = Running::new(scenario, 0, workers).expect("no capture");
        let mut flows = vec![0; workers];
        (0..12).for_each(|flow| flows[source.worker_of(flow, workers)] += 1);
        flows
    };
    assert_eq!(spread(&scenario, 3), [4, 4, 4]);
    scenario.sources[0].skew = vec![6, 5, 1];
    assert_eq!(spread(&scenario, 3), [6, 5, 1]);
    assert_eq!(spread(&scenario, 1), [12]);
    assert_eq!(spread(&scenario, 2), [7, 5]);
    scenario.sources[0].skew = vec![0, 3];
    assert_eq!(spread(&scenario, 1), [12], "all to none is as if nothing was asked");
    assert_eq!(spread(&scenario, 4), [0, 6, 0, 6]);
}
