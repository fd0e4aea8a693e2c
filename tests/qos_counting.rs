//! Frames count as their leaf says, in every class above it.

mod qos_support;

use proptest::prelude::*;
use qos_support::{Link, Source, assert_borrowed, class, greedy, port, two_tenants};
use tidegate::packet::ClassId;
use tidegate::qos::spec::Counting;

/// What one class says of its own.
type Own = (Option<u16>, Option<u16>);

fn own() -> impl Strategy<Value = Own> {
    (proptest::option::of(0..=256u16), proptest::option::of(0..=1_600u16))
}

/// As the port, its class and the class below have it: the nearest that says something.
fn counting(levels: [Own; 3]) -> Counting {
    let nearest = |of: fn(&Own) -> Option<u16>| levels.iter().rev().find_map(of).unwrap_or(0);
    Counting { overhead: nearest(|own| own.0), mpu: nearest(|own| own.1) }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    /// Two leaves below one class of 10 MB/s, each in its own way of counting: together they send
    /// what that class has, as counted, and each half of it.
    #[test]
    fn shares_are_of_bytes_as_counted(
        of_port in own(), inner in own(), leaves in [own(), own()],
        len in [64..1_500u16, 64..1_500u16],
    ) {
        let of_port = (of_port.0.or(Some(24)), of_port.1.or(Some(84)));
        let mut classes = vec![
            class(1, 10.0).ceil(10.0),
            class(2, 5.0).below(1).bursts(20_000),
            class(3, 5.0).below(1).bursts(20_000),
        ];
        (classes[0].0.overhead, classes[0].0.mpu) = inner;
        for (class, own) in classes[1..].iter_mut().zip(leaves) {
            (class.0.overhead, class.0.mpu) = own;
        }
        let mut spec = port(100.0, &classes);
        (spec.overhead, spec.mpu) = (24, 84);
        if let (Some(overhead), Some(mpu)) = of_port {
            (spec.overhead, spec.mpu) = (overhead, mpu);
        }
        prop_assert_eq!(tidegate::qos::validate(&spec), Ok(()));
        let counted = [0, 1].map(|i| {
            counting([of_port, inner, leaves[i]]).counted(usize::from(len[i]))
        });
        let mut link = Link::new(&spec, 1_000.0, 256);
        let sources = [0, 1].map(|i| Source {
            class: ClassId(i as u16 + 2), flows: 2, lengths: vec![len[i]],
        });
        let seconds = 0.5;
        let end = link.now.saturating_add((seconds * 1e9) as u64);
        let mut bytes = [0u64; 2];
        link.run(&sources, end, |sent| {
            let i = usize::from(sent.class.0) - 2;
            bytes[i] += u64::from(counted[i]);
        });
        for (i, sent) in bytes.into_iter().enumerate() {
            let fair = 5e6 * seconds;
            let most = fair + 20_000.0 + f64::from(counted[i]);
            prop_assert!(sent as f64 >= fair * 0.999 - 2_000.0 && sent as f64 <= most, "{sent}");
            let told = link.scheduler.class_stats(ClassId(i as u16 + 2));
            prop_assert_eq!(told.sent_bytes, sent);
        }
        link.finish();
    }

    /// A reload counts what waits anew.
    #[test]
    fn what_waits_is_counted_anew(
        before in own(), after in own(),
        lens in proptest::collection::vec(64..1_500usize, 1..20),
    ) {
        let of = |own: Own| {
            let mut leaf = class(1, 10.0);
            (leaf.0.overhead, leaf.0.mpu) = own;
            port(100.0, &[leaf])
        };
        let mut link = Link::new(&of(before), 100.0, 64);
        for &len in &lens {
            link.offer(ClassId(1), 0, len);
        }
        link.reconfigure(&of(after));
        let way = counting([(Some(0), Some(0)), (None, None), after]);
        let bytes: u64 = lens.iter().map(|&len| u64::from(way.counted(len))).sum();
        prop_assert_eq!(link.scheduler.backlog_bytes(), bytes);
        link.finish();
    }
}

/// Leaves borrow of the class above them, and that one of the port only what it has not itself.
#[test]
fn what_an_inner_class_borrowed_is_told() {
    const NS: u64 = 500_000_000;
    let by_priority = [[40.0, 0.0], [35.0, 30.0], [5.0, 0.0], [60.0, 0.0], [60.0, 59.0]];
    let by_turns = [[40.0, 0.0], [20.0, 15.0], [20.0, 15.0], [60.0, 0.0], [60.0, 59.0]];
    let alone = [[100.0, 60.0], [95.0, 90.0], [5.0, 0.0], [0.0; 2], [0.0; 2]];
    let alone_by_turns = [[100.0, 60.0], [50.0, 45.0], [50.0, 45.0], [0.0; 2], [0.0; 2]];
    for (priority, sources, want) in [
        (0, vec![greedy(2), greedy(3)], alone),
        (1, vec![greedy(2), greedy(3)], alone_by_turns),
        (0, vec![greedy(2), greedy(3), greedy(5)], by_priority),
        (1, vec![greedy(2), greedy(3), greedy(5)], by_turns),
    ] {
        let (spec, mut other) = (two_tenants(priority), two_tenants(priority));
        other.classes[1].weight = 2;
        let mut link = Link::new(&spec, 100.0, 256);
        link.run(&sources, link.now.saturating_add(NS), |_| ());
        let told = |link: &mut Link| {
            let of = |class| link.scheduler.class_stats(ClassId(class));
            (1..=5).map(of).map(|stats| [stats.sent_bytes, stats.borrowed_bytes()]).collect()
        };
        let (start, before): (_, Vec<_>) = (link.now, told(&mut link));
        // A reload takes none of it away.
        link.reconfigure(&other);
        assert_eq!(told(&mut link), before);
        link.reconfigure(&spec);
        link.run(&sources, start.saturating_add(NS), |_| ());
        let since = |(now, before): (&[u64; 2], &[u64; 2])| [0, 1].map(|i| now[i] - before[i]);
        let told: Vec<_> = told(&mut link).iter().zip(&before).map(since).collect();
        assert_borrowed(&told, link.now.since(start), want);
        link.finish();
    }
}
