//! How much a leaf sends before another has its turn.

mod qos_support;

use qos_support::{Class, Link, class, port, tag};
use tidegate::packet::ClassId;

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
