//! Flows of a leaf with a `flow_rate` send so much each at most, and don't hold up each other.

mod qos_support;

use std::collections::HashMap;

use proptest::prelude::*;
use qos_support::{Link, Sent, Source, class, mb, port};
use tidegate::base::units::BitRate;
use tidegate::packet::ClassId;
use tidegate::qos::spec::{PortQosSpec, QueueSpec};
use tidegate::qos::validate;

/// What a flow may send beyond its rate: 4 ms of it, and the packet at hand.
fn allowed(rate_mb: f64, seconds: f64, len: u16) -> f64 {
    rate_mb * 1e6 * (seconds + 0.004) + f64::from(len)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    /// Greedy flows: over any window none exceeds its rate, and in the long run each has it to
    /// within 1 %, whatever else waits in the leaf.
    #[test]
    fn each_flow_has_its_rate(
        rate_mb in 0.2..4.0f64, flows in 1..12u32, len in 64..1_500u16, window_ms in 1..200u64,
    ) {
        let capped = class(1, 50.0).flow_rate(rate_mb).limit(16 << 20);
        let spec = port(100.0, &[capped, class(2, 20.0)]);
        prop_assert_eq!(validate(&spec), Ok(()));
        let mut link = Link::new(&spec, 100.0, 4_096);
        let sources = [
            Source { class: ClassId(1), flows, lengths: vec![len] },
            Source { class: ClassId(2), flows: 3, lengths: vec![1_500] },
        ];
        // As many packets of each flow wait as it sends in half a second, and more come.
        let begin = link.now;
        let mut sent: HashMap<u32, Vec<Sent>> = HashMap::new();
        let need = (rate_mb * 1e6 * 0.6 / f64::from(len)) as u32 + 2;
        let need = need.min(3_500 / flows);
        let seconds = f64::from(need) * f64::from(len) / (rate_mb * 1e6);
        for flow in 0..flows {
            (0..need).for_each(|_| link.offer(ClassId(1), flow, usize::from(len)));
        }
        let end = begin.saturating_add((seconds * 0.98e9) as u64);
        link.run(&sources[1..], end, |s| {
            if s.class == ClassId(1) {
                sent.entry(s.flow).or_default().push(s);
            }
        });
        link.finish();
        prop_assert_eq!(sent.len() as u32, flows);
        let window = window_ms * 1_000_000;
        for list in sent.values() {
            prop_assert!(list.windows(2).all(|pair| pair[0].seq + 1 == pair[1].seq), "in order");
            let bytes: u64 = list.iter().map(|s| u64::from(s.len)).sum();
            let fair = rate_mb * 1e6 * seconds * 0.98;
            let most = allowed(rate_mb, seconds * 0.98, len);
            let least = fair * 0.99 - 2.0 * f64::from(len);
            prop_assert!((least..=most * 1.001).contains(&(bytes as f64)), "{} of {}", bytes, fair);
            let mut first = 0;
            for (i, s) in list.iter().enumerate() {
                while list[first].at.saturating_add(window) < s.at {
                    first += 1;
                }
                let bytes = list[first..=i].iter().map(|s| f64::from(s.len)).sum::<f64>();
                // Packets wait up to 60 us for the link.
                let most = allowed(rate_mb, window as f64 / 1e9 + 60e-6, len);
                prop_assert!(bytes <= most + f64::from(len), "{} over {}", bytes, most);
            }
        }
    }
}

/// A flow of which never more than one packet waits is held to its rate all the same.
#[test]
fn a_flow_that_never_queues_is_held_too() {
    let mut link = Link::new(&port(100.0, &[class(1, 50.0).flow_rate(1.0)]), 100.0, 64);
    let begin = link.now;
    let (mut bytes, mut out) = (0, Vec::new());
    for step in 0..10_000u64 {
        // Every 100 us, should one have gone: 15 MB/s. Between two the scheduler is empty, and is
        // looked at all the same.
        link.now = begin.saturating_add(step * 100_000);
        link.dequeue(8, u64::MAX, &mut out);
        if link.scheduler.is_empty() {
            link.offer(ClassId(1), 7, 1_500);
        }
        link.dequeue(8, u64::MAX, &mut out);
        for frame in out.drain(..) {
            bytes += frame.len();
            link.pool.put(frame);
        }
    }
    assert!((990_000..=1_010_000).contains(&bytes), "{bytes} in a second");
    link.finish();
}

/// A flow that may not send holds up nobody: another's packet goes the moment it comes.
#[test]
fn others_do_not_wait() {
    let mut link = Link::new(&port(100.0, &[class(1, 50.0).flow_rate(0.5)]), 100.0, 512);
    let mut out = Vec::new();
    (0..200).for_each(|_| link.offer(ClassId(1), 1, 1_500));
    for step in 0..50u32 {
        link.now = link.now.saturating_add(1_000_000);
        link.dequeue(64, u64::MAX, &mut out);
        out.drain(..).for_each(|frame| link.pool.put(frame));
        link.offer(ClassId(1), 100 + step, 200);
        link.dequeue(64, u64::MAX, &mut out);
        let tags: Vec<u32> = out.iter().map(|f| qos_support::tag(f, &link.pool).1).collect();
        assert_eq!(tags, [100 + step]);
        out.drain(..).for_each(|frame| link.pool.put(frame));
    }
    link.finish();
}

/// Thin flows that all sleep still count for the leaf's limit.
#[test]
fn the_limit_holds_while_all_sleep() {
    let leaf = class(1, 50.0).flow_rate(0.01).limit(20_000);
    let mut link = Link::new(&port(100.0, &[leaf]), 100.0, 512);
    let mut out = Vec::new();
    for round in 0..4 {
        for flow in 0..40 {
            link.offer(ClassId(1), flow, 1_000);
            assert!(link.scheduler.backlog_bytes() <= 20_000);
        }
        link.dequeue(64, u64::MAX, &mut out);
        out.drain(..).for_each(|frame| link.pool.put(frame));
        link.now = link.now.saturating_add(1_000 * (round + 1));
    }
    assert!(link.dropped.len() > 60, "{}", link.dropped.len());
    link.finish();
}

/// A reload neither frees a flow of its debt nor lets its packets overtake each other.
#[test]
fn a_reload_keeps_what_flows_have_used() {
    let spec = port(100.0, &[class(1, 50.0).flow_rate(1.0)]);
    let mut other = spec.clone();
    other.classes[0].flow_rate = Some(mb(1.001));
    let mut link = Link::new(&spec, 100.0, 4_096);
    (0..1_000).for_each(|_| link.offer(ClassId(1), 3, 1_000));
    let (begin, mut next, mut out) = (link.now, 0, Vec::new());
    for step in 1..=500u64 {
        link.now = begin.saturating_add(step * 1_000_000);
        link.reconfigure(if step % 2 == 0 { &spec } else { &other });
        link.dequeue(64, u64::MAX, &mut out);
        for frame in out.drain(..) {
            assert_eq!(qos_support::tag(&frame, &link.pool).2, next);
            next += 1;
            link.pool.put(frame);
        }
    }
    assert!((495..=510).contains(&next), "{next} packets of 1000 bytes in half a second");
    link.finish();
}

#[test]
fn faults_of_flow_rates_are_told() {
    let mut spec = port(100.0, &[class(1, 50.0).flow_rate(1.0)]);
    spec.classes[0].flow_rate = Some(BitRate(7_999));
    let told = |spec: &PortQosSpec| validate(spec).expect_err("faulty")[0].what.clone();
    assert_eq!(told(&spec), "a flow's rate is 8kbit/s at least");
    spec.classes[0].queue = QueueSpec::Fifo;
    assert_eq!(told(&spec), "a `fifo` does not tell flows apart: only `fq-codel` takes this");
}

/// A reload forgives no flow what it has sent in advance, whether something waits of it or not,
/// also where its class is gone and it goes on in the default one.
#[test]
fn a_reload_forgives_nothing() {
    let leaf = |id| class(id, 40.0).flow_rate(0.1);
    let both = port(100.0, &[leaf(1), leaf(2)]);
    let faster = port(100.0, &[leaf(1), leaf(2).ceil(70.0)]);
    let one = port(100.0, &[leaf(1)]);
    for (after, default) in [(&faster, 2), (&one, 1)] {
        for waiting in [0, 1] {
            let mut link = Link::new(&both, 100.0, 64);
            link.now = link.now.saturating_add(1_000_000_000);
            // Each kilobyte takes 10 ms, of which 4 may be in advance.
            (0..1 + waiting).for_each(|_| link.offer(ClassId(2), 7, 1_000));
            // Whoever is in the default class already is held back, too.
            link.offer(ClassId(1), 7, 100);
            let begin = link.now;
            let mut sent = Vec::new();
            link.run(&[], begin.saturating_add(50_000), |s| sent.push(s.len));
            assert_eq!(sent.len(), 2);
            link.reconfigure(after);
            (0..3).for_each(|_| link.offer(ClassId(default), 7, 1_000));
            let mut times = Vec::new();
            link.run(&[], begin.saturating_add(30_000_000), |s| {
                times.push(s.at.since(begin) / 100_000);
            });
            // After 6 ms, 16 ms and 26 ms, to a tenth.
            assert_eq!(times.len(), 3, "{times:?}");
            assert!((60..=62).contains(&times[0]) && (160..=163).contains(&times[1]), "{times:?}");
            let mut rest = Vec::new();
            let end = begin.saturating_add(100_000_000);
            link.run(&[], end, |s| rest.push(s.at));
            assert_eq!(rest.len(), waiting);
            assert!(link.scheduler.is_empty());
            link.finish();
        }
    }
}

/// Where two flows of the same name meet because a class is gone, they wait for as long as either.
#[test]
fn flows_that_meet_in_a_reload_owe_what_either_owed() {
    let leaf = |id| class(id, 40.0).flow_rate(0.1);
    for lens in [[500, 1_000], [1_000, 500]] {
        let mut link = Link::new(&port(100.0, &[leaf(1), leaf(2)]), 100.0, 64);
        link.now = link.now.saturating_add(1_000_000_000);
        for (class, len) in (1..).zip(lens) {
            (0..2).for_each(|_| link.offer(ClassId(class), 7, len));
        }
        let begin = link.now;
        link.run(&[], begin.saturating_add(50_000), |_| ());
        assert_eq!(link.scheduler.len(), 2);
        link.reconfigure(&port(100.0, &[leaf(1)]));
        let mut times = Vec::new();
        link.run(&[], begin.saturating_add(30_000_000), |s| {
            times.push(s.at.since(begin) / 100_000);
        });
        // A kilobyte takes 10 ms, of which 4 may be in advance.
        assert!(times.len() == 2 && (60..=62).contains(&times[0]), "{lens:?}: {times:?}");
        link.finish();
    }
}

/// A flow that loses its last packet to overload is not a new one with its next.
#[test]
fn who_loses_its_last_packet_keeps_its_pace() {
    let spec = port(100.0, &[class(1, 50.0).flow_rate(1.0), class(2, 20.0)]);
    let mut link = Link::new(&spec, 100.0, 64);
    link.now = link.now.saturating_add(1_000_000_000);
    let send = |link: &mut Link| {
        let mut out = Vec::new();
        let sent = link.dequeue(16, u64::MAX, &mut out);
        out.into_iter().for_each(|frame| link.pool.put(frame));
        sent
    };
    // What it may send at once: 4 ms of its rate, and the packet at hand.
    (0..5).for_each(|_| link.offer(ClassId(1), 0, 1_000));
    assert_eq!(send(&mut link), 5);
    // It has just paid for that when its next packet gives way to another's.
    link.now = link.now.saturating_add(1_100_000);
    link.offer(ClassId(1), 0, 1_000);
    link.scheduler.set_packets_max(1);
    link.offer(ClassId(2), 0, 1_000);
    assert_eq!(link.dropped, [(ClassId(1), 0)]);
    link.scheduler.set_packets_max(64);
    assert_eq!(send(&mut link), 1);
    (0..5).for_each(|_| link.offer(ClassId(1), 0, 1_000));
    assert_eq!(send(&mut link), 1, "as a new one it would send all five");
    link.finish();
}
