//! What workers are granted at once of a tree that they share costs no class its rate or its ceil.

use std::time::Duration;

use tidegate::base::Seed;
use tidegate::base::units::BitRate;
use tidegate::packet::{ClassId, PortId};
use tidegate::qos::cbursts_min;
use tidegate::qos::spec::{ClassSpec, PortQosSpec, QueueSpec};
use tidegate::scenario::run;
use tidegate::scenario::spec::{Kind, Link, Scenario, Source, Workers};

const PORT: BitRate = BitRate(10_000_000_000);
const WARMUP: Duration = Duration::from_millis(60);
const MEASURED: Duration = Duration::from_millis(150);

/// Classes by rate and ceil in Mbit/s, the first of which has the least `cburst` that suits. All
/// but the last, whose rate is lent, have packets waiting.
fn spec(classes: &[(u64, u64)]) -> PortQosSpec {
    let mbit = |n: u64| BitRate(n * 1_000_000);
    let class = |(id, &(rate, ceil)): (u16, &(u64, u64))| ClassSpec {
        burst: 3_200,
        cburst: 5_000_000,
        limit: 1 << 20,
        ..ClassSpec::plain(id, mbit(rate), mbit(ceil))
    };
    let mut spec = PortQosSpec {
        port: PortId(0),
        rate: PORT,
        burst: 5_000_000,
        overhead: 24,
        mpu: 84,
        mtu: 1_518,
        default_class: ClassId(0),
        classes: (0..).zip(classes).map(class).collect(),
    };
    // A long burst, so that nothing else makes leases short.
    spec.classes[0].burst = 1 << 20;
    spec.classes[1].burst = 4 << 20;
    spec.classes[0].cburst = cbursts_min(&spec)[0];
    spec
}

fn scenario(tree: PortQosSpec) -> Scenario {
    let busy = &tree.classes[..tree.classes.len() - 1];
    let source = |class: &ClassSpec| Source {
        name: class.name.clone(),
        class: class.id,
        flows: 8,
        packets: vec![1_514],
        ecn: false,
        start: Duration::ZERO,
        stop: None,
        skew: Vec::new(),
        kind: Kind::Greedy,
    };
    Scenario {
        name: "leases".to_string(),
        duration: WARMUP + MEASURED,
        warmup: WARMUP,
        slice: WARMUP + MEASURED,
        seed: Seed(1),
        workers: Workers { count: 2, poll: vec![Duration::from_micros(5)], frames: 8_192 },
        link: Link { rate: None, ring: None },
        sources: busy.iter().map(source).collect(),
        class_names: tree.classes.iter().map(|c| c.name.clone()).collect(),
        tree,
        not_simulated: Vec::new(),
        expectations: Vec::new(),
    }
}

#[test]
fn a_class_has_its_ceil_beside_siblings_that_are_granted_much_at_once() {
    // What comes first: its rate is its ceil, or a little more is lent it, by little or by much.
    let tables = [
        [(2_000, 2_000), (7_300, 10_000), (500, 10_000), (200, 10_000)],
        [(500, 560), (8_500, 10_000), (700, 10_000), (300, 10_000)],
        [(1_000, 1_300), (6_000, 10_000), (1_000, 10_000), (2_000, 10_000)],
    ];
    for classes in tables {
        let outcome = run(&scenario(spec(&classes)), |_| ()).expect("no capture");
        let (got, want) = (outcome.classes[0].granted_bps / 1e6, classes[0].1 as f64);
        assert!((got / want - 1.0).abs() <= 0.005, "{got:.1} of {want} Mbit/s in {classes:?}");
    }
}

/// A flow that may go only so fast is not asked for a frame each time that its worker looks: what
/// it is guaranteed would go to siblings of later priorities.
#[test]
fn a_paced_flow_has_its_rate_beside_siblings_that_borrow() {
    for (workers, poll_us, flows) in [(2, 10, 1), (4, 100, 1), (2, 50, 5)] {
        let mut tree = spec(&[(5_000, 10_000), (1_000, 10_000), (4_000, 10_000)]);
        tree.classes[0].flow_rate = Some(BitRate(5_000_000_000 / flows));
        tree.classes[0].queue = QueueSpec::INTERNET;
        (tree.classes[0].priority, tree.classes[1].priority) = (0, 2);
        let mut scenario = scenario(tree);
        scenario.sources[0].flows = flows as u32;
        scenario.workers.count = workers;
        scenario.workers.poll = vec![Duration::from_micros(poll_us)];
        let outcome = run(&scenario, |_| ()).expect("no capture");
        let got = outcome.classes[0].granted_bps / 1e6;
        assert!((got / 5_000.0 - 1.0).abs() <= 0.005, "{workers} workers: {got:.1} Mbit/s");
    }
}
