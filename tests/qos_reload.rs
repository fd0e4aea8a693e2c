//! What a reload leaves of packets that wait, and of tokens.

mod qos_support;

use std::collections::HashMap;

use qos_support::{Link, class, greedy, port, tag};
use tidegate::packet::ClassId;
use tidegate::qos::spec::QueueSpec;

#[test]
fn reconfiguring_keeps_packets_and_tokens() {
    let mut before = port(100.0, &[class(1, 10.0).ceil(10.0), class(2, 20.0), class(3, 10.0)]);
    before.burst = 100_000;
    let mut link = Link::new(&before, 100.0, 256);
    for flow in 0..8 {
        for class in 1..4 {
            for _ in 0..4 {
                link.offer(ClassId(class), flow, 1_500);
            }
        }
    }
    // Class 1 uses its burst up, and is in debt.
    let mut out = Vec::new();
    link.dequeue(usize::MAX, u64::MAX, &mut out);
    let of_1 = |frames: &[_], link: &Link| {
        frames.iter().filter(|f| tag(f, &link.pool).0 == ClassId(1)).count()
    };
    assert_eq!(of_1(&out, &link), 13, "20 kB");
    let stats = link.scheduler.class_stats(ClassId(1));
    let held = link.scheduler.len();

    // Class 2 goes, class 4 comes, class 1 stands below it with another rate.
    let mut after =
        port(100.0, &[class(3, 10.0), class(4, 40.0), class(1, 5.0).below(4).ceil(5.0)]);
    after.burst = 100_000;
    link.reconfigure(&after);
    assert_eq!(link.scheduler.len(), held);
    assert_eq!(link.scheduler.class_stats(ClassId(1)), stats);
    assert!(link.scheduler.class_stats(ClassId(3)).backlog_packets > stats.backlog_packets);
    let fresh = out.len();
    link.now = link.now.saturating_add(100_000);
    link.dequeue(usize::MAX, u64::MAX, &mut out);
    assert_eq!(of_1(&out[fresh..], &link), 0, "it got its burst a second time");
    out.into_iter().for_each(|frame| link.pool.put(frame));

    let mut bytes = 0;
    let (start, source) = (link.now, greedy(1));
    link.run(&[source], start.saturating_add(1_000_000_000), |sent| {
        bytes += if sent.class == ClassId(1) { sent.len } else { 0 };
    });
    assert!((4_970_000..5_025_000).contains(&bytes), "{bytes}");
    link.finish();
}

/// Held packets go before those of their flow that come later, also where a leaf's flows become
/// one queue, or its queue one of many. Class 2 is gone afterwards: what it held, and what still
/// comes for it, goes to the default leaf.
#[test]
fn another_kind_of_queue_keeps_the_order_of_flows() {
    let managed = QueueSpec::FqCodel { target: 1 << 40, interval: 1 << 40 };
    for (before, after) in [(managed, QueueSpec::Fifo), (QueueSpec::Fifo, managed)] {
        let of = |queue, ids: &[u16]| {
            let leaves: Vec<_> = ids.iter().map(|&id| class(id, 10.0).queue(queue)).collect();
            port(100.0, &leaves)
        };
        let mut link = Link::new(&of(before, &[1, 2]), 100.0, 256);
        let offer = |link: &mut Link, packets| {
            for at in 0..packets {
                link.offer(ClassId(1 + at % 2), u32::from(at / 2 % 3), 100 + usize::from(at) * 9);
            }
        };
        offer(&mut link, 60);
        let mut last = HashMap::new();
        let mut follow = |sent: qos_support::Sent| {
            let before = last.insert((sent.class, sent.flow), sent.seq);
            assert_eq!(before.map_or(0, |seq| seq + 1), sent.seq, "{sent:?} to {after:?}");
        };
        let soon = link.now.saturating_add(50_000);
        link.run(&[], soon, &mut follow);
        assert!((20..60).contains(&link.scheduler.len()), "some wait: {}", link.scheduler.len());
        link.reconfigure(&of(after, &[1]));
        offer(&mut link, 60);
        let end = link.now.saturating_add(100_000_000);
        link.run(&[], end, &mut follow);
        assert_eq!((last.len(), link.scheduler.len()), (6, 0));
        link.finish();
    }
}
