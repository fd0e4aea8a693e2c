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
    let [of_2, of_3] = [2, 3].map(|class| link.scheduler.class_stats(ClassId(class)));
    link.reconfigure(&after);
    assert_eq!(link.scheduler.len(), held);
    assert_eq!(link.scheduler.class_stats(ClassId(1)), stats);
    let now = link.scheduler.class_stats(ClassId(3));
    assert_eq!(now.backlog_packets, of_2.backlog_packets + of_3.backlog_packets);
    let arrived = (of_3.enqueued_packets, of_3.enqueued_bytes);
    assert_eq!((now.enqueued_packets, now.enqueued_bytes), arrived, "what came is no arrival");
    let moved = (of_2.backlog_packets, of_2.backlog_bytes);
    assert_eq!((now.moved_in_packets, now.moved_in_bytes), moved);
    link.reconfigure(&after);
    assert_eq!(link.scheduler.class_stats(ClassId(3)), now, "and what moved before is kept");
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

/// Each flow's packets in order, while the port changes twice: what the FIFO held goes first,
/// whatever comes later, and not at the pace of one flow.
#[test]
fn what_a_fifo_held_goes_first_until_all_of_it_has_gone() {
    const BACKLOG: u16 = 60;
    let managed = QueueSpec::FqCodel { target: 1 << 40, interval: 1 << 40 };
    for flow_rate_mb in [None, Some(1.0)] {
        let of = |rate_mb: f64| {
            let leaf = class(1, rate_mb).queue(managed);
            port(100.0, &[flow_rate_mb.map_or(leaf.clone(), |rate| leaf.flow_rate(rate))])
        };
        let mut link =
            Link::new(&port(100.0, &[class(1, 10.0).queue(QueueSpec::Fifo)]), 100.0, 256);
        let offer = |link: &mut Link| {
            for at in 0..BACKLOG {
                link.offer(ClassId(1), u32::from(at % 3), 100 + usize::from(at) * 9);
            }
        };
        offer(&mut link);
        let start = link.now;
        let (mut last, mut sent_at) = (HashMap::new(), Vec::new());
        let mut run = |link: &mut Link, ns: u64| {
            let until = link.now.saturating_add(ns);
            link.run(&[], until, |sent| {
                let before = last.insert(sent.flow, sent.seq);
                assert_eq!(before.map_or(0, |seq| seq + 1), sent.seq, "{sent:?}, {flow_rate_mb:?}");
                sent_at.push(sent.at);
            });
            sent_at.len()
        };
        for after in [of(10.0), of(20.0)] {
            assert!(run(&mut link, 50_000) < usize::from(BACKLOG), "some of it waits yet");
            link.reconfigure(&after);
            offer(&mut link);
        }
        assert_eq!(run(&mut link, 200_000_000), 3 * usize::from(BACKLOG));
        assert!(link.scheduler.is_empty());
        // 22 kB at 100 MB/s; a flow would have taken 18 ms.
        let took = sent_at[usize::from(BACKLOG) - 1].since(start);
        assert!(took < 1_000_000, "{took} ns, {flow_rate_mb:?}");
        link.finish();
    }
}

/// What a FIFO took over from flows that were asleep goes first, and at once, where there is a pace
/// again before those would have woken.
#[test]
fn what_a_fifo_held_does_not_sleep_for_flows_that_were_there_before_it() {
    const BACKLOG: u16 = 30;
    let managed = QueueSpec::FqCodel { target: 1 << 40, interval: 1 << 40 };
    let leaf = |id| class(id, 10.0).queue(managed).flow_rate(0.1);
    let paced = port(100.0, &[leaf(1), leaf(2)]);
    let fifo = port(100.0, &[class(1, 10.0).queue(QueueSpec::Fifo), leaf(2)]);
    let mut link = Link::new(&paced, 100.0, 256);
    let (start, mut sent_at) = (link.now, Vec::new());
    for spec in [&fifo, &paced] {
        for at in 0..BACKLOG {
            link.offer(ClassId(1), u32::from(at % 3), 1_000);
        }
        // Some goes; each flow of a kilobyte then sleeps for 10 ms.
        let soon = link.now.saturating_add(50_000);
        link.run(&[], soon, |sent| sent_at.push(sent.at));
        link.reconfigure(spec);
    }
    assert!(sent_at.len() < 2 * usize::from(BACKLOG), "some of it waits yet");
    let end = link.now.saturating_add(2_000_000);
    link.run(&[], end, |sent| sent_at.push(sent.at));
    assert_eq!(sent_at.len(), 2 * usize::from(BACKLOG), "60 kB at 100 MB/s");
    assert!(sent_at.iter().all(|at| at.since(start) < 2_000_000));
    link.finish();
}

/// Whatever comes of classes, what those that stay have counted is still counted: that of classes
/// that are gone stands with the one above them.
#[test]
fn counters_of_classes_that_stay_never_fall() {
    let trees = [
        vec![class(1, 40.0), class(2, 10.0).below(1), class(3, 10.0).below(1), class(4, 10.0)],
        // A leaf below is gone.
        vec![class(1, 40.0), class(3, 10.0).below(1), class(4, 10.0)],
        // A leaf has others below it.
        vec![class(1, 40.0), class(3, 10.0).below(1), class(5, 5.0).below(3), class(4, 10.0)],
        // All below are gone, two levels of them.
        vec![class(1, 40.0), class(4, 10.0)],
    ];
    let of = |classes: &[qos_support::Class]| {
        let mut spec = port(100.0, classes);
        spec.default_class = ClassId(4);
        spec
    };
    let mut link = Link::new(&of(&trees[0]), 100.0, 512);
    let told = |link: &mut Link, id: u16| {
        let s = link.scheduler.class_stats(ClassId(id));
        assert_eq!(
            s.enqueued_packets + s.moved_in_packets,
            s.sent_packets + s.dropped_packets + s.backlog_packets + s.moved_out_packets,
            "{id}: {s:?}"
        );
        [
            [s.enqueued_packets, s.sent_packets, s.moved_in_packets, s.moved_out_packets],
            [s.enqueued_bytes, s.sent_bytes, s.moved_in_bytes, s.moved_out_bytes],
        ]
    };
    let mut before = Vec::new();
    for tree in &trees {
        link.reconfigure(&of(tree));
        for &(id, ref old) in &before {
            let new = if tree.iter().any(|c| c.0.id.0 == id) { told(&mut link, id) } else { *old };
            let falls = new.iter().flatten().zip(old.iter().flatten()).any(|(new, old)| new < old);
            assert!(!falls, "{id}: {old:?} to {new:?}");
        }
        for at in 0..90u16 {
            link.offer(ClassId(2 + at % 4), u32::from(at), 1_000);
        }
        let until = link.now.saturating_add(300_000);
        link.run(&[], until, |_| ());
        assert!(!link.scheduler.is_empty(), "some wait");
        before = tree.iter().map(|c| c.0.id.0).map(|id| (id, told(&mut link, id))).collect();
    }
    // All that arrived for class 1 and those below it is still told of it.
    assert_eq!(before[0].1[0][0], 23 + 23 + 23 + 22);
    let end = link.now.saturating_add(100_000_000);
    link.run(&[], end, |_| ());
    link.finish();
}

/// What a class borrowed is counted on while it is a leaf, has others below it, and is a leaf
/// again; what one below it borrowed is none of it.
#[test]
fn what_a_class_borrowed_is_counted_on_whatever_stands_below_it() {
    let leaf = [class(1, 10.0), class(4, 10.0)];
    let inner = [class(1, 10.0), class(2, 1.0).below(1), class(3, 1.0).below(1), class(4, 10.0)];
    let of = |classes: &[qos_support::Class]| {
        let mut spec = port(100.0, classes);
        spec.default_class = ClassId(4);
        spec
    };
    let mut link = Link::new(&of(&leaf), 100.0, 512);
    let (mut before, mut out) = (0, Vec::new());
    for round in 0..7 {
        let (spec, of_1): (_, &[u16]) =
            if round % 2 == 0 { (of(&leaf), &[1]) } else { (of(&inner), &[2, 3]) };
        link.reconfigure(&spec);
        let told = |link: &mut Link| link.scheduler.class_stats(ClassId(1)).borrowed_bytes();
        assert_eq!(told(&mut link), before, "round {round}");
        // Half of the port's 80 that nobody is promised, after what came while nothing waited.
        let sources: Vec<_> = of_1.iter().chain(&[4]).map(|&id| greedy(id)).collect();
        let until = link.now.saturating_add(200_000_000);
        link.run(&sources, until, |_| ());
        let borrowed = told(&mut link) - before;
        assert!((7_900_000..8_100_000).contains(&borrowed), "round {round}: {borrowed}");
        // Nothing is left that would move.
        while !link.scheduler.is_empty() {
            link.now = link.now.saturating_add(1_000_000);
            link.dequeue(usize::MAX, u64::MAX, &mut out);
            out.drain(..).for_each(|frame| link.pool.put(frame));
        }
        before = told(&mut link);
    }
    link.finish();
}
