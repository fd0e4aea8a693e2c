//! How much a leaf sends before another has its turn.

mod qos_support;

use qos_support::{Class, Link, Source, class, greedy, port, tag};
use tidegate::packet::ClassId;
use tidegate::qos::cbursts_min;
use tidegate::qos::spec::PortQosSpec;

/// Whoever has its turn sends a frame, or as much in small packets; at a high speed, what the port
/// sends in 256 ns, or in a microsecond where leaves are few.
#[test]
fn a_turn_is_a_frame_or_more_where_that_takes_no_time() {
    // The port in MB/s, leaves, the length of packets, and how many of a class go in a row.
    let table = [
        (100.0, 2, 1_500, 1),
        (100.0, 2, 100, 15),
        (12_500.0, 32, 1_500, 2),
        (12_500.0, 16, 1_500, 4),
        (12_500.0, 8, 1_500, 8),
        (12_500.0, 2, 1_500, 8),
        (2_500.0, 2, 1_500, 1),
    ];
    for (rate, leaves, len, row) in table {
        let classes: Vec<_> =
            (1..=leaves).map(|id| class(id, rate / f64::from(leaves)).bursts(40_000)).collect();
        let spec = port(rate, &classes);
        let mut link = Link::new(&spec, rate, 1_024);
        for at in 0..leaves * 32 {
            link.offer(ClassId(1 + at % leaves), 0, len);
        }
        let mut out = Vec::new();
        link.dequeue(3 * row, u64::MAX, &mut out);
        let classes: Vec<_> = out.iter().map(|frame| tag(frame, &link.pool).0).collect();
        let rows: Vec<_> = classes.chunk_by(|a, b| a == b).map(<[_]>::len).collect();
        assert_eq!(rows, [row; 3], "{len} bytes of {leaves} at {rate} MB/s");
        out.into_iter().for_each(|frame| link.pool.put(frame));
        link.finish();
    }
}

/// A turn ends earlier where one of the buckets or the round that it goes by is used up: what is
/// below zero, or nothing, sends no more.
#[test]
fn a_turn_ends_where_what_pays_for_it_does() {
    let short = |mut class: Class, burst: u32, cburst: u32| {
        (class.0.burst, class.0.cburst) = (burst, cburst);
        class
    };
    let by_quanta = |id, quantum| {
        let mut class = short(class(id, 0.001), 1_500, 20_000);
        class.0.quantum = Some(quantum);
        class
    };
    let busy = || class(9, 50.0);
    // Of two leaves in turn, how many packets of 100 bytes: 15 are a whole turn.
    let table: [(&str, Vec<Class>, &[usize]); 5] = [
        ("ceil", vec![short(class(1, 5.0).ceil(10.0), 20_000, 2_000), busy()], &[6, 15]),
        (
            "ceil above",
            vec![short(class(2, 10.0).ceil(10.0), 20_000, 2_250), class(1, 5.0).below(2), busy()],
            &[8, 15],
        ),
        ("rate", vec![short(class(1, 5.0), 2_000, 20_000), busy()], &[6, 15]),
        ("round", vec![by_quanta(1, 300), by_quanta(9, 450)], &[1, 1, 3, 5, 3, 4, 3, 5]),
        ("none", vec![class(1, 5.0), busy()], &[15, 15, 15]),
    ];
    for (what, classes, want) in table {
        let mut link = Link::new(&port(100.0, &classes), 100.0, 256);
        for _ in 0..90 {
            link.offer(ClassId(1), 0, 100);
            link.offer(ClassId(9), 0, 100);
        }
        let mut out = Vec::new();
        link.dequeue(want.iter().sum(), u64::MAX, &mut out);
        let classes: Vec<_> = out.iter().map(|frame| tag(frame, &link.pool).0).collect();
        let rows: Vec<_> = classes.chunk_by(|a, b| a == b).map(<[_]>::len).collect();
        assert_eq!(rows, want, "{what}");
        out.into_iter().for_each(|frame| link.pool.put(frame));
        link.finish();
    }
}

/// A port with the least `cburst` that suits each class.
fn with_least_cbursts(rate_mb: f64, classes: &[Class]) -> PortQosSpec {
    let mut spec = port(rate_mb, classes);
    for (class, least) in spec.classes.iter_mut().zip(cbursts_min(&port(rate_mb, classes))) {
        class.cburst = least;
    }
    spec
}

/// What some classes send together, in MB/s: over so many seconds, after so many others.
fn mb_sent(
    spec: &PortQosSpec,
    link_mb: f64,
    sources: &[Source],
    of: &[u16],
    [before, seconds]: [u64; 2],
) -> f64 {
    let mut link = Link::new(spec, link_mb, 1_024);
    let start = link.now.saturating_add(before * 1_000_000_000);
    link.run(sources, start, |_| ());
    let (begin, mut bytes) = (link.now, 0.0);
    link.run(sources, begin.saturating_add(seconds * 1_000_000_000), |sent| {
        bytes += f64::from(if of.contains(&sent.class.0) { sent.len } else { 0 });
    });
    let took = link.now.since(begin) as f64 / 1e9;
    link.finish();
    bytes / took / 1e6
}

/// Below a class at its ceil, which may send no more after each packet, turns are short. Small
/// packets that may go no faster than at their rate are not late for it with the default `cburst`.
#[test]
fn a_rate_that_is_its_ceil_is_had_below_a_class_at_its_ceil() {
    let leaf = |id, rate_mb: f64| class(id, rate_mb).below(1).bursts(3_000);
    // Of 1 MB/s.
    for (small, others) in
        [(0.35, [0.52, 0.03, 0.1]), (0.5, [0.3, 0.1, 0.1]), (0.1, [0.6, 0.2, 0.1])]
    {
        let [c, d, e] = others;
        let classes = [
            class(1, 1.0).ceil(1.0),
            leaf(2, small).ceil(small),
            leaf(3, c),
            leaf(4, d),
            leaf(5, e),
        ];
        let spec = with_least_cbursts(10.0, &classes);
        let mut sources = vec![Source { class: ClassId(2), flows: 3, lengths: vec![80] }];
        sources.extend([3, 4, 5].map(greedy));
        let got = mb_sent(&spec, 10.0, &sources, &[2], [2, 8]);
        assert!((got / small - 1.0).abs() < 0.005, "{got:.4} of {small} MB/s beside {others:?}");
    }
}

/// What a class may send beyond its rate comes while its siblings have their turns, and where all
/// is promised, or those of an earlier priority take what is not, these take as long as what idle
/// ones leave lets them.
#[test]
fn a_ceil_is_reached_where_nothing_is_lent_but_what_idle_siblings_leave() {
    // Of 10 MB/s: what one has beyond its rate, what is left by a class that sends nothing, and
    // what is not promised and taken by another of an earlier priority.
    let table = [(0.07, 0.25, 0.0), (0.03, 0.1, 0.0), (0.2, 1.0, 0.0), (0.07, 0.25, 3.0)];
    for (gap, left, early) in table {
        let rest = 9.7 - 5.0 - left - early;
        let classes = [
            class(1, 0.2).ceil(0.2 + gap).weight(100).bursts(3_000),
            class(2, 3.0).weight(100).bursts(3_000),
            class(3, 2.0).weight(100).bursts(3_000),
            class(4, rest).weight(1).bursts(3_000),
            class(5, left).weight(100).bursts(3_000),
            class(6, 0.1).ceil(0.1 + early).priority(0).bursts(3_000),
        ];
        let spec = with_least_cbursts(10.0, &classes);
        for cburst in spec.classes.iter().map(|class| class.cburst) {
            assert!(cburst <= 2 * 10_000 + 7_500 + 3_000, "{cburst} is over two quanta");
        }
        let sources: Vec<Source> = [1, 2, 3, 4, 6].map(greedy).into();
        let got = mb_sent(&spec, 10.0, &sources, &[1], [8, 20]);
        let want = 0.2 + gap;
        assert!(
            (got / want - 1.0).abs() < 0.005,
            "{got:.4} of {want} MB/s, {left} left, {early} taken"
        );
    }
}

/// As above, where a class at its ceil has others below it: a turn there may be of a small packet,
/// while those of its siblings are of long ones.
#[test]
fn a_rate_that_is_its_ceil_is_had_by_a_class_with_small_packets_and_long_ones_below_it() {
    // Class, above it, rate and ceil in kB/s, and the lengths of packets, if it has any.
    let tree: [(u16, u16, f64, f64, &[u16]); 16] = [
        (1, 0, 588.0, 1_847.0, &[]),
        (2, 0, 458.0, 932.0, &[]),
        (3, 0, 773.0, 773.0, &[]),
        (4, 3, 21.0, 773.0, &[1_500]),
        (5, 3, 338.0, 338.0, &[84]),
        (6, 3, 391.0, 773.0, &[]),
        (7, 2, 273.0, 787.0, &[]),
        (8, 2, 178.0, 932.0, &[]),
        (9, 8, 133.0, 932.0, &[84]),
        (10, 7, 62.0, 62.0, &[1_500]),
        (11, 7, 150.0, 787.0, &[200, 700, 1_500]),
        (12, 1, 103.0, 1_847.0, &[84]),
        (13, 1, 126.0, 1_847.0, &[84]),
        (14, 1, 168.0, 396.0, &[200, 700, 1_500]),
        (15, 1, 180.0, 180.0, &[1_500]),
        (16, 8, 42.0, 43.0, &[1_500]),
    ];
    let classes = tree.map(|(id, above, rate, ceil, _)| {
        let class = class(id, rate / 1e3).ceil(ceil / 1e3).bursts(3_000);
        if above > 0 { class.below(above) } else { class }
    });
    let spec = with_least_cbursts(1.847, &classes);
    let sources = tree.iter().filter(|(.., lengths)| !lengths.is_empty());
    let sources: Vec<Source> = sources
        .map(|&(id, .., lengths)| Source { class: ClassId(id), flows: 3, lengths: lengths.into() })
        .collect();
    let got = mb_sent(&spec, 1.847, &sources, &[4, 5], [4, 8]) * 1e3;
    assert!((got / 773.0 - 1.0).abs() < 0.005, "{got:.1} of 773 kB/s");
}
