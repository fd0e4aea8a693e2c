//! What the scheduler promises of any tree and any arrivals, and what it does at its limits.

mod qos_support;

use proptest::prelude::*;
use qos_support::{Class, Link, Sent, Source, class, greedy, mb, port, tag};
use tidegate::base::Nanos;
use tidegate::packet::ClassId;
use tidegate::qos::spec::{ClassSpec, PortQosSpec, QueueSpec};
use tidegate::qos::{Queued, validate};

const FRAME: f64 = 1_500.0;
/// How late a class may wake: a tick of the scheduler's wheel, and one for rounding.
const LATE_NS: f64 = 2.0 * 1_024.0;

/// One class's limits, told apart from the scheduler's own bookkeeping.
struct Limits {
    id: ClassId,
    ceil: f64,
    cburst: f64,
    rate: f64,
    /// Itself and those above it, the port last.
    way_up: Vec<usize>,
    /// Tokens of `ceil` as a bucket of its own counts them.
    tokens: f64,
    /// Least of (sent - ceil x time) so far: the window that ends now is worst from there.
    low: f64,
    sent: f64,
}

/// Limits of each class, and last of the port.
fn limits(spec: &PortQosSpec) -> Vec<Limits> {
    let bytes_per_ns = |rate: tidegate::base::units::BitRate| rate.0 as f64 / 8e9;
    let limit = |id, rate, ceil, burst: u32, way_up| {
        let ceil = bytes_per_ns(ceil);
        // A burst below a frame and what comes in two ticks counts as that.
        let cburst = f64::from(burst).max(FRAME + ceil * LATE_NS);
        let (tokens, rate) = (cburst - FRAME, bytes_per_ns(rate));
        Limits { id, ceil, cburst, rate, way_up, tokens, low: 0.0, sent: 0.0 }
    };
    let top = spec.classes.len();
    let mut all: Vec<Limits> = Vec::new();
    for (i, c) in spec.classes.iter().enumerate() {
        let parent = c.parent.and_then(|p| spec.classes.iter().position(|c| c.id == p));
        let mut way_up = vec![i];
        way_up.extend(parent.map_or(vec![top], |p| all[p].way_up.clone()));
        all.push(limit(c.id, c.rate, c.ceil, c.cburst, way_up));
    }
    all.push(limit(ClassId::UNSET, spec.rate, spec.rate, spec.burst, vec![top]));
    all
}

/// A tree up to three deep whose guarantees fit, with anything else at random.
fn tree() -> impl Strategy<Value = PortQosSpec> {
    let one = (0.0..1.0f64, 0.05..1.0f64, 0.0..1.0f64, 3_000..30_000u32, 0..3u8, 1..20u32);
    proptest::collection::vec(one, 2..12).prop_map(|list| {
        let mut classes: Vec<Class> = Vec::new();
        let mut left: Vec<f64> = Vec::new();
        let mut left_of_port = 100.0;
        for (i, (parent, rate, ceil, bursts, priority, weight)) in list.into_iter().enumerate() {
            let at = (parent * (i + 1) as f64) as usize;
            let below = (at < i
                && classes[at]
                    .0
                    .parent
                    .is_none_or(|p| classes[usize::from(p.0)].0.parent.is_none()))
            .then_some(at);
            let left_above = below.map_or(&mut left_of_port, |at| &mut left[at]);
            let rate = (*left_above * rate * 0.7).max(0.001);
            *left_above -= rate;
            let most = below.map_or(100.0, |at| classes[at].0.ceil.0 as f64 / 8e6);
            let mut c = class(i as u16, rate)
                .ceil(rate + (most - rate) * ceil)
                .priority(priority)
                .weight(weight)
                .bursts(bursts.min(below.map_or(30_000, |at| classes[at].0.burst)));
            c.0.parent = below.map(|at| ClassId(at as u16));
            classes.push(c);
            left.push(rate * 0.999);
        }
        port(100.0, &classes)
    })
}

fn leaves(spec: &PortQosSpec) -> Vec<&ClassSpec> {
    let inner = |c: &ClassSpec| spec.classes.iter().any(|other| other.parent == Some(c.id));
    spec.classes.iter().filter(|c| !inner(c)).collect()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 60, failure_persistence: None,
        ..ProptestConfig::default() })]

    #[test]
    fn no_class_exceeds_its_ceil_in_any_window_and_none_goes_short(
        spec in tree(),
        busy in any::<u16>(),
        link_mb in prop_oneof![Just(100.0), Just(150.0), Just(1_000.0)],
        lengths in proptest::collection::vec(64..1_500u16, 1..4),
    ) {
        prop_assert_eq!(validate(&spec), Ok(()));
        let busy: Vec<ClassId> = leaves(&spec).iter().enumerate()
            .filter(|(i, _)| *i == 0 || busy & (1 << i) != 0)
            .map(|(_, c)| c.id).collect();
        let sources: Vec<Source> = busy.iter()
            .map(|&class| Source { class, flows: 2, lengths: lengths.clone() }).collect();
        let mut all = limits(&spec);
        let mut link = Link::new(&spec, link_mb, 1_024);
        let start = link.now;
        const RUN_NS: f64 = 300e6;
        link.run(&sources, start.saturating_add(RUN_NS as u64), |sent: Sent| {
            let i = all.iter().position(|l| l.id == sent.class).expect("known");
            // It was let go when the link began with it.
            let wire = f64::from(sent.len) * 1e3 / link_mb;
            let t = sent.at.since(start) as f64 - wire;
            for at in all[i].way_up.clone() {
                let l = &mut all[at];
                l.low = l.low.min(l.sent - l.ceil * t);
                l.sent += f64::from(sent.len);
                let over = l.sent - l.ceil * t - l.low - l.cburst;
                assert!(over <= 4.0, "class {:?}: {over} bytes over ceil", l.id);
            }
        });
        for l in all.iter().filter(|l| busy.contains(&l.id)) {
            // Bursts of the others may go first, once.
            let bursts: u32 = spec.classes.iter().map(|c| c.burst + c.cburst).sum();
            let held_up = f64::from(bursts + spec.burst) / (100e-3) * l.rate;
            let due = l.rate * RUN_NS * 0.998 - held_up - 4.0 * FRAME;
            prop_assert!(l.sent >= due, "class {:?}: {} of {due} due", l.id, l.sent);
        }
        link.finish();
    }

    #[test]
    fn the_link_never_idles_while_a_packet_may_go(
        spec in tree(),
        arrivals in proptest::collection::vec((0..12u16, 0..200_000u64, 64..1_500usize), 1..300),
    ) {
        let mut all = limits(&spec);
        let mut link = Link::new(&spec, 1_000.0, 1_024);
        let leaf_ids: Vec<ClassId> = leaves(&spec).iter().map(|c| c.id).collect();
        let mut settled = link.now;
        let mut out = Vec::new();
        for (class, wait, len) in arrivals {
            link.now = link.now.saturating_add(wait);
            let now = link.now;
            link.offer(leaf_ids[usize::from(class) % leaf_ids.len()], 0, len);
            let elapsed = now.since(settled) as f64;
            settled = now;
            for l in &mut all {
                l.tokens = (l.tokens + l.ceil * elapsed).min(l.cburst - FRAME);
            }
            link.dequeue(usize::MAX, u64::MAX, &mut out);
            for frame in out.drain(..) {
                let (class, _, _, len) = tag(&frame, &link.pool);
                let i = all.iter().position(|l| l.id == class).expect("known");
                for at in all[i].way_up.clone() {
                    all[at].tokens -= f64::from(len);
                }
                link.pool.put(frame);
            }
            for (id, stats) in link.scheduler.classes() {
                let l = all.iter().find(|l| l.id == id).expect("known");
                if leaf_ids.contains(&id) && stats.backlog_packets > 0 {
                    let open = |at: &usize| all[*at].tokens > all[*at].ceil * LATE_NS + 2.0;
                    prop_assert!(!l.way_up.iter().all(open), "{id:?} waits for nothing");
                }
            }
        }
        link.finish();
    }
}

#[test]
fn the_order_within_a_flow_is_kept() {
    let spec = port(100.0, &[class(1, 50.0), class(2, 20.0).priority(0), class(3, 10.0)]);
    let mut link = Link::new(&spec, 80.0, 256);
    let sources: Vec<Source> = (1..4)
        .map(|id| Source { class: ClassId(id), flows: 7, lengths: vec![64, 1_500, 300] })
        .collect();
    let mut last = std::collections::HashMap::new();
    let end = link.now.saturating_add(100_000_000);
    link.run(&sources, end, |sent| {
        let before = last.insert((sent.class, sent.flow), sent.seq);
        assert_eq!(before.map_or(0, |seq| seq + 1), sent.seq, "{sent:?}");
    });
    assert_eq!(last.len(), 21);
    link.finish();
}

#[test]
fn an_overload_costs_the_fattest_flow_and_spares_the_thin_ones() {
    let spec = port(10.0, &[class(1, 10.0).limit(60_000)]);
    let mut link = Link::new(&spec, 10.0, 4_096);
    for round in 0..400u32 {
        link.offer(ClassId(1), 7, 1_500);
        if round % 40 == 0 {
            link.offer(ClassId(1), 100 + round, 200);
        }
    }
    assert!(link.dropped.len() > 300, "{}", link.dropped.len());
    assert!(link.dropped.iter().all(|&(_, flow)| flow == 7), "a thin flow lost a packet");
    let stats = link.scheduler.class_stats(ClassId(1));
    assert!(stats.backlog_bytes <= 60_000 && stats.backlog_bytes > 28_000, "{stats:?}");
    assert_eq!(stats.enqueued_packets, 410);
    assert_eq!(stats.dropped_packets as usize, link.dropped.len());
    link.finish();
}

#[test]
fn a_full_scheduler_takes_from_the_fattest_leaf() {
    let classes = [class(1, 10.0).limit(1 << 30), class(2, 10.0), class(3, 10.0)];
    let mut link = Link::new(&port(30.0, &classes), 30.0, 100);
    for flow in 0..3 {
        link.offer(ClassId(2), flow, 1_500);
    }
    for _ in 0..500 {
        link.offer(ClassId(1), 1, 1_500);
    }
    for flow in 0..20 {
        link.offer(ClassId(3), flow, 100);
    }
    assert!((50..=100).contains(&link.scheduler.len()), "{}", link.scheduler.len());
    assert!(link.dropped.iter().all(|&(class, _)| class == ClassId(1)), "{:?}", link.dropped);
    assert_eq!(link.scheduler.class_stats(ClassId(3)).backlog_packets, 20);
    link.finish();
}

#[test]
fn flows_of_a_leaf_share_it_and_a_new_one_goes_first() {
    let mut link = Link::new(&port(10.0, &[class(1, 10.0)]), 10.0, 4_096);
    let mut bytes = [0u64; 2];
    // One flow of small packets, one of large ones, equally long in bytes.
    for _ in 0..100 {
        link.offer(ClassId(1), 0, 1_500);
        for _ in 0..15 {
            link.offer(ClassId(1), 1, 100);
        }
    }
    let end = link.now.saturating_add(20_000_000);
    link.run(&[], end, |sent| bytes[sent.flow as usize] += u64::from(sent.len));
    assert!(bytes[0].abs_diff(bytes[1]) <= 3_000, "{bytes:?}");
    assert!(bytes[0] > 90_000, "{bytes:?}");
    link.offer(ClassId(1), 2, 200);
    let mut first = None;
    link.run(&[], end.saturating_add(1_000_000), |sent| first = first.or(Some(sent.flow)));
    assert_eq!(first, Some(2));
    link.finish();
}

#[test]
fn packets_of_no_class_go_to_the_default_leaf() {
    let mut spec = port(100.0, &[class(4, 50.0), class(5, 10.0).below(4), class(6, 10.0)]);
    spec.default_class = ClassId(6);
    let mut link = Link::new(&spec, 100.0, 64);
    for class in [ClassId::UNSET, ClassId(77), ClassId(4), ClassId(6)] {
        link.offer(class, 0, 100);
    }
    assert_eq!(link.scheduler.class_stats(ClassId(6)).backlog_packets, 4);
    assert_eq!(link.scheduler.class_stats(ClassId(4)).backlog_packets, 0);
    link.offer(ClassId(5), 0, 100);
    assert_eq!(link.scheduler.class_stats(ClassId(4)).backlog_packets, 1, "sum of those below");
    assert_eq!(link.scheduler.class_stats(ClassId(77)), tidegate::qos::ClassStats::default());
    link.finish();
}

#[test]
fn overhead_and_minimum_length_are_charged() {
    // 64-byte frames that count as 100 bytes: 10 MB/s carry 100,000 of them a second.
    let mut spec = port(10.0, &[class(1, 10.0)]);
    (spec.overhead, spec.mpu) = (24, 100);
    let mut link = Link::new(&spec, 1_000.0, 64);
    let source = Source { class: ClassId(1), flows: 1, lengths: vec![64] };
    let mut sent = 0u32;
    let end = link.now.saturating_add(1_000_000_000);
    link.run(&[source], end, |_| sent += 1);
    assert!((100_000..100_500).contains(&sent), "{sent}");
    link.finish();
}

#[test]
fn dequeue_stops_at_its_limits() {
    let mut link = Link::new(&port(100.0, &[class(1, 100.0)]), 100.0, 64);
    for _ in 0..20 {
        link.offer(ClassId(1), 0, 1_000);
    }
    let mut out = Vec::new();
    assert_eq!(link.dequeue(3, u64::MAX, &mut out), 3);
    assert_eq!(link.dequeue(64, 2_500, &mut out), 3, "the third passes 2500");
    assert_eq!(link.dequeue(64, 0, &mut out), 0);
    assert_eq!((link.scheduler.len(), link.scheduler.backlog_bytes()), (14, 14_000));
    out.into_iter().for_each(|frame| link.pool.put(frame));
    link.finish();
}

#[test]
fn a_rate_is_exact_in_the_long_run_at_odd_times() {
    // 33,333,333 bit/s, looked at every 777 ns for 2 s: to a frame, however long.
    let mut c = class(1, 1.0);
    (c.0.rate.0, c.0.ceil.0) = (33_333_333, 33_333_333);
    let mut spec = port(100.0, &[c]);
    spec.mtu = 9_000;
    let mut link = Link::new(&spec, 100.0, 8);
    let (start, mut bytes, mut out) = (link.now, 0u64, Vec::new());
    while link.now.since(start) < 2_000_000_000 {
        while link.scheduler.len() < 2 {
            link.offer(ClassId(1), 0, 9_000);
        }
        link.now = link.now.saturating_add(777);
        link.dequeue(4, u64::MAX, &mut out);
        for frame in out.drain(..) {
            bytes += frame.len() as u64;
            link.pool.put(frame);
        }
    }
    let exact = link.now.since(start) as f64 * 33_333_333.0 / 8e9;
    let over = bytes as f64 - exact;
    assert!((-9_000.0..20_000.0).contains(&over), "{over} bytes over {exact}");
    link.finish();
}

#[test]
fn an_empty_tree_is_a_shaped_queue() {
    let mut link = Link::new(&port(10.0, &[]), 1_000.0, 64);
    let mut bytes = 0;
    let end = link.now.saturating_add(1_000_000_000);
    link.run(&[greedy(0)], end, |sent| bytes += u64::from(sent.len));
    assert!((9_990_000..10_050_000).contains(&bytes), "{bytes}");
    link.finish();
}

#[test]
fn a_clock_that_steps_back_does_no_harm() {
    let mut link = Link::new(&port(100.0, &[class(1, 100.0)]), 100.0, 64);
    for _ in 0..30 {
        link.offer(ClassId(1), 0, 1_500);
    }
    let mut out = Vec::new();
    link.dequeue(64, u64::MAX, &mut out);
    let sent = out.len();
    assert!(sent < 30);
    let now = std::mem::replace(&mut link.now, Nanos(0));
    assert_eq!(link.dequeue(64, u64::MAX, &mut out), 0);
    let next = link.scheduler.next_event(Nanos(0)).expect("waiting");
    assert!(next > now);
    link.now = next;
    link.dequeue(64, u64::MAX, &mut out);
    assert!(out.len() > sent);
    out.into_iter().for_each(|frame| link.pool.put(frame));
    link.finish();
}

#[test]
fn faults_are_named_with_their_class() {
    let faults = |spec: &PortQosSpec| -> Vec<(Option<u16>, String)> {
        let list = validate(spec).expect_err("faulty");
        list.into_iter().map(|f| (f.class.map(|c| c.0), f.what)).collect()
    };
    let good = port(100.0, &[class(1, 40.0), class(2, 30.0).below(1), class(3, 60.0)]);
    assert_eq!(validate(&good), Ok(()));
    type Break = fn(&mut PortQosSpec);
    let table: [(Break, Option<u16>, &str); 12] = [
        (
            |s| s.classes[1].rate = mb(41.0),
            Some(2),
            "328Mbit/s is over the 320Mbit/s of `c1`, by 8Mbit/s",
        ),
        (|s| s.classes[2].rate = mb(70.0), Some(3), "the guarantees below the port come to"),
        (|s| s.classes[1].ceil = mb(20.0), Some(2), "a ceil of 160Mbit/s is below the rate"),
        (|s| s.classes[0].ceil = mb(101.0), Some(1), "is over the 800Mbit/s of the port"),
        (|s| s.classes[1].burst = 20_001, Some(2), "a burst of 19.53KiB is over the"),
        (|s| s.classes[2].burst = 1_499, Some(3), "is below one frame"),
        (|s| s.burst = 0, None, "a burst of 0B is below one frame"),
        (|s| s.default_class = ClassId(1), None, "`c1` has classes below it"),
        (|s| s.default_class = ClassId(9), None, "the default class is none of the port's"),
        (|s| s.classes[2].id = ClassId(2), Some(2), "its id is taken"),
        (|s| s.classes[1].parent = Some(ClassId(3)), Some(2), "none of the classes before it"),
        (|s| s.classes[1].priority = 8, Some(2), "priorities are 0 to 7"),
    ];
    for (break_it, id, what) in table {
        let mut spec = good.clone();
        break_it(&mut spec);
        let found = faults(&spec);
        assert!(found.iter().any(|(i, w)| *i == id && w.contains(what)), "{what}: {found:?}");
    }
    let deep: Vec<Class> =
        (0..9).map(|i| if i == 0 { class(0, 1.0) } else { class(i, 1.0).below(i - 1) }).collect();
    assert_eq!(faults(&port(100.0, &deep)), [(Some(8), "classes nest 8 deep at most".into())]);
}

#[test]
fn nothing_waits_in_a_scheduler_without_room() {
    let mut link = Link::new(&port(10.0, &[class(1, 1.0)]), 10.0, 0);
    link.offer(ClassId(1), 0, 100);
    assert_eq!(link.dropped.len(), 1);
    assert_eq!(link.scheduler.next_event(link.now), None);
    let frame = qos_support::tagged(&mut link.pool, ClassId(1), 0, 0, 100);
    let mut dropped = Vec::new();
    let q = Queued { frame, class: ClassId(1), flow_hash: 0, l3: 0 };
    let arena = link.pool.arena().clone();
    link.scheduler.enqueue(link.now, q, &arena, &mut dropped);
    assert_eq!(dropped.len(), 1);
    dropped.into_iter().for_each(|(frame, _)| link.pool.put(frame));
    link.finish();
}

/// Offers a heavy flow twice what its class may send, and a thin one beside it, for a second.
fn standing_queue(queue: QueueSpec, ecn: bool) -> (Link, Vec<f64>, u32) {
    let mut link = Link::new(&port(10.0, &[class(1, 10.0).queue(queue)]), 10.0, 4_096);
    let (start, mut waits, mut marked) = (link.now, Vec::new(), 0);
    for step in 0..2_000u64 {
        let due = start.saturating_add(step * 500_000);
        link.run(&[], due, |sent| {
            if sent.flow == 9 {
                waits.push(sent.at.since(start) as f64 / 1e6 - sent.seq as f64 * 20.0);
            }
        });
        for _ in 0..(6 + step % 2) {
            link.offer_ip(ClassId(1), 7, 1_500, ecn);
        }
        if step % 40 == 0 {
            link.offer_ip(ClassId(1), 9, 200, false);
        }
        marked = link.marked;
    }
    (link, waits, marked)
}

#[test]
fn a_standing_queue_is_told_and_thin_flows_never_wait() {
    let queue = QueueSpec::FqCodel { target: 1_000_000, interval: 20_000_000 };
    for ecn in [false, true] {
        let (mut link, waits, marked) = standing_queue(queue, ecn);
        let stats = link.scheduler.class_stats(ClassId(1));
        assert_eq!(stats.marked_packets, u64::from(marked));
        assert_eq!(ecn, marked > 100, "{stats:?}");
        assert_eq!(ecn, stats.aqm_dropped_packets == 0, "{stats:?}");
        assert!(ecn || stats.aqm_dropped_packets > 100, "{stats:?}");
        assert!(waits.len() > 45 && waits.iter().all(|&ms| ms < 0.5), "{waits:?}");
        assert!(link.dropped.iter().all(|&(_, flow)| flow == 7), "a thin flow lost a packet");
        link.finish();
    }
}

#[test]
fn a_fifo_keeps_the_order_of_arrival_and_loses_what_comes_last() {
    let spec = port(10.0, &[class(1, 10.0).queue(QueueSpec::Fifo).limit(15_000)]);
    let mut link = Link::new(&spec, 10.0, 256);
    for flow in 0..20 {
        link.offer(ClassId(1), flow, 1_500);
    }
    let lost: Vec<u32> = link.dropped.iter().map(|&(_, flow)| flow).collect();
    assert_eq!(lost, (10..20).collect::<Vec<_>>());
    let mut sent = Vec::new();
    link.run(&[], link.now.saturating_add(10_000_000), |packet| sent.push(packet.flow));
    assert_eq!(sent, (0..10).collect::<Vec<_>>());
    link.finish();
}
