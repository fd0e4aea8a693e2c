//! The shares of the HTB manual's topologies, and of some that it leaves out: root 100 MB/s, leaves
//! kept backlogged, each share within half a percent of what it should be.

mod qos_support;

use qos_support::{Class, Link, Source, class, greedy, port};
use tidegate::base::Nanos;
use tidegate::packet::ClassId;
use tidegate::qos::spec::PortQosSpec;
use tidegate::qos::validate;

const W: u16 = 1;
const O: u16 = 2;
const B: u16 = 3;
const A: u16 = 4;
/// Of the share itself, not of the link.
const TOLERANCE: f64 = 0.005;

/// Runs `sources` for 2 s, then measures 4 s: MB/s by class.
fn measure(spec: &PortQosSpec, sources: &[Source], classes: &[u16]) -> Vec<f64> {
    assert_eq!(validate(spec), Ok(()));
    let mut link = Link::new(spec, 100.0, 4_096);
    let settled = link.now.saturating_add(2_000_000_000);
    link.run(sources, settled, |_| {});
    let start = link.now;
    let mut bytes = vec![0u64; classes.len()];
    link.run(sources, start.saturating_add(4_000_000_000), |sent| {
        if let Some(i) = classes.iter().position(|&c| ClassId(c) == sent.class) {
            bytes[i] += u64::from(sent.len);
        }
    });
    let ns = link.now.since(start) as f64;
    link.finish();
    bytes.iter().map(|&b| b as f64 * 1e3 / ns).collect()
}

fn check(spec: &PortQosSpec, expected: &[(u16, f64)]) {
    let classes: Vec<u16> = expected.iter().map(|e| e.0).collect();
    let sources: Vec<Source> = expected.iter().filter(|e| e.1 > 0.0).map(|e| greedy(e.0)).collect();
    check_sources(spec, &sources, &classes, expected);
}

fn check_sources(spec: &PortQosSpec, sources: &[Source], classes: &[u16], expected: &[(u16, f64)]) {
    let got = measure(spec, sources, classes);
    for (&(id, want), &share) in expected.iter().zip(&got) {
        assert!(
            (share - want).abs() <= TOLERANCE * want,
            "class {id}: {share:.2}, want {want}: {got:?}"
        );
    }
}

fn w() -> Class {
    class(W, 30.0).weight(3)
}
fn o() -> Class {
    class(O, 10.0).weight(1)
}
fn b() -> Class {
    class(B, 60.0).weight(6)
}
fn a() -> Class {
    class(A, 40.0).weight(4)
}

#[test]
fn row_1_all_at_their_rates() {
    check(&port(100.0, &[w(), o(), b()]), &[(W, 30.0), (O, 10.0), (B, 60.0)]);
}

#[test]
fn row_2_to_4_the_idle_ones_rate_is_shared_by_weight() {
    let flat = port(100.0, &[w(), o(), b()]);
    check(&flat, &[(W, 0.0), (O, 100.0 / 7.0), (B, 600.0 / 7.0)]);
    check(&flat, &[(W, 100.0 / 3.0), (O, 0.0), (B, 200.0 / 3.0)]);
    check(&flat, &[(W, 75.0), (O, 25.0), (B, 0.0)]);
}

#[test]
fn row_5_and_6_the_nearest_lends_first() {
    let inner = port(100.0, &[a(), w().below(A), o().below(A), b()]);
    check(&inner, &[(W, 0.0), (O, 40.0), (B, 60.0)]);
    check(&inner, &[(W, 40.0), (O, 0.0), (B, 60.0)]);
}

#[test]
fn row_7_and_8_ceils_hold_and_the_link_may_idle() {
    let capped = port(100.0, &[a().ceil(60.0), w().below(A), o().below(A).ceil(20.0), b()]);
    check(&capped, &[(W, 0.0), (O, 20.0), (B, 80.0)]);
    check(&capped, &[(W, 45.0), (O, 15.0), (B, 0.0)]);
}

#[test]
fn row_9_priority_takes_all_that_is_left() {
    let spec = port(100.0, &[w(), o().priority(0), b()]);
    check(&spec, &[(W, 30.0), (O, 70.0), (B, 0.0)]);
}

#[test]
fn row_10_equal_weights_share_equally() {
    let spec = port(100.0, &[w().weight(1), o().weight(1), b().weight(1)]);
    check(&spec, &[(W, 60.0), (O, 40.0), (B, 0.0)]);
}

#[test]
fn row_11_priority_starves_nobody_of_a_guarantee() {
    for batch in [20.0, 1.0] {
        let spec = port(100.0, &[class(W, 10.0).priority(0), class(O, batch).priority(7)]);
        check(&spec, &[(W, 100.0 - batch), (O, batch)]);
    }
}

#[test]
fn row_12_guarantees_over_the_link_are_refused() {
    let spec = port(100.0, &[class(W, 60.0), class(O, 60.0)]);
    let faults = validate(&spec).expect_err("120 of 100");
    assert_eq!(faults.len(), 1);
    assert_eq!(faults[0].0, Some(ClassId(O)));
    assert!(faults[0].1.contains("960Mbit/s") && faults[0].1.contains("800Mbit/s"), "{faults:?}");
}

#[test]
fn row_13_a_share_does_not_grow_with_the_number_of_leaves() {
    let leaves = (10..14).map(|id| class(id, 10.0).below(A));
    let mut classes = vec![class(A, 40.0), class(B, 40.0), class(O, 20.0)];
    classes.extend(leaves);
    let all: Vec<u16> = vec![B, 10, 11, 12, 13];
    let sources: Vec<Source> = all.iter().map(|&id| greedy(id)).collect();
    let got = measure(&port(100.0, &classes), &sources, &all);
    assert!((got[0] - 50.0).abs() <= TOLERANCE * 50.0, "{got:?}");
    assert!((got[1..].iter().sum::<f64>() - 50.0).abs() <= TOLERANCE * 50.0, "{got:?}");
    for leaf in &got[1..] {
        assert!((leaf - 12.5).abs() <= TOLERANCE * 12.5, "{got:?}");
    }
}

#[test]
fn shares_are_of_bytes_whatever_the_lengths() {
    let mut spec = port(100.0, &[w().weight(1), o().weight(1), b().weight(1)]);
    let lengths = |class, lengths: &[u16]| Source {
        class: ClassId(class),
        flows: 2,
        lengths: lengths.to_vec(),
    };
    let small_and_large = [lengths(W, &[64]), lengths(O, &[1_500])];
    check_sources(&spec, &small_and_large, &[W, O], &[(W, 60.0), (O, 40.0)]);
    let mixed = [lengths(W, &[64, 1_500, 700]), lengths(O, &[576, 100])];
    check_sources(&spec, &mixed, &[W, O], &[(W, 60.0), (O, 40.0)]);
    // Jumbo frames, with a quantum for them and (an MTU that says 1500) with one far too small.
    for mtu in [9_000, 1_500] {
        spec.mtu = mtu;
        let jumbo = [lengths(W, &[9_000]), lengths(O, &[1_500])];
        check_sources(&spec, &jumbo, &[W, O], &[(W, 60.0), (O, 40.0)]);
    }
}

#[test]
fn weights_far_apart_are_kept() {
    // 80 to share, 1 : 99; the light one's quantum is below a frame.
    let spec = port(100.0, &[class(W, 10.0), class(O, 10.0).weight(99)]);
    check(&spec, &[(W, 10.8), (O, 89.2)]);
}

#[test]
fn many_classes_with_bursts_of_two_frames() {
    let classes: Vec<Class> = (0..100).map(|id| class(id, 1.0).bursts(3_000)).collect();
    let spec = port(100.0, &classes);
    let busy: Vec<u16> = (0..50).collect();
    let sources: Vec<Source> = busy.iter().map(|&id| greedy(id)).collect();
    let got = measure(&spec, &sources, &busy);
    for share in &got {
        assert!((share - 2.0).abs() <= TOLERANCE * 2.0, "{got:?}");
    }
}

#[test]
fn a_ceil_close_to_the_fair_share_is_reached() {
    // Without ceils each of 20 would get 5; one is held at 4.9, which misses its turn now and then.
    // Its cburst holds what comes in two rounds of the others: with less it could not catch up.
    let mut classes: Vec<Class> = (1..20).map(|id| class(id, 1.0)).collect();
    classes.push(class(0, 1.0).ceil(4.9).bursts(6_000));
    let ids: Vec<u16> = (0..20).collect();
    let sources: Vec<Source> = ids.iter().map(|&id| greedy(id)).collect();
    let got = measure(&port(100.0, &classes), &sources, &ids);
    assert!((got[0] - 4.9).abs() <= TOLERANCE * 4.9, "{got:?}");
    assert!((got[1] - 95.1 / 19.0).abs() <= TOLERANCE * 5.0, "{got:?}");
}

#[test]
fn eight_levels_deep() {
    let mut classes = vec![class(100, 50.0), class(B, 50.0)];
    for level in 1..7 {
        classes.push(class(100 + level, 50.0).below(99 + level));
    }
    classes.push(class(W, 30.0).below(106));
    classes.push(class(O, 10.0).below(106).priority(0));
    check(&port(100.0, &classes), &[(W, 30.0), (O, 20.0), (B, 50.0)]);
    check(&port(100.0, &classes), &[(W, 30.0), (O, 70.0), (B, 0.0)]);
}

#[test]
fn after_idling_no_more_than_the_burst_goes_at_once() {
    for burst in [1_500u32, 4_000, 15_000, 16_000] {
        let spec = port(100.0, &[class(W, 10.0).ceil(10.0).bursts(burst)]);
        let mut link = Link::new(&spec, 100.0, 64);
        for round in 0..5 {
            for i in 0..40 {
                link.offer(ClassId(W), i, 1_500);
            }
            let mut out = Vec::new();
            let sent = link.dequeue(64, u64::MAX, &mut out);
            assert!(sent as u32 * 1_500 <= burst, "{sent} packets of a burst of {burst}");
            assert!(sent as u32 * 1_500 + 1_500 > burst, "{sent} packets of {burst}, {round}");
            out.into_iter().for_each(|frame| link.pool.put(frame));
            let mut left = Vec::new();
            link.scheduler.drain(&mut left);
            left.into_iter().for_each(|frame| link.pool.put(frame));
            link.now = link.now.saturating_add(Nanos::from_secs(1).0);
        }
        link.finish();
    }
}
