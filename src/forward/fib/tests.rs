//! Ways, their shares, tables.

use super::*;
use proptest::prelude::*;

fn addr(s: &str) -> Addr {
    s.parse().expect(s)
}

fn prefix(s: &str) -> Prefix {
    s.parse().expect(s)
}

fn port(id: u16) -> PortLink {
    PortLink {
        id: PortId(id),
        ifindex: 10 + u32::from(id),
        name: format!("veth{id}"),
        mac: [2; 6],
        mtu: 1500,
        addrs: vec![addr("10.0.0.1")],
    }
}

fn builder() -> FibBuilder {
    FibBuilder::new(vec![port(0), port(1)], 1)
}

fn hop(last: u32, weight: u16) -> Hop {
    Hop { via: Some(Addr::v4(0x0a00_0100 | last)), ifindex: 10 + last % 2, weight }
}

fn several(hops: &[Hop]) -> Route {
    Route { kind: RouteKind::Unicast, hops: hops.to_vec() }
}

fn flow(i: u32) -> FlowKey {
    let (src, dst) = (Addr::v4(0xc000_0200 + i), addr("192.0.2.1"));
    FlowKey { src, dst, sport: i as u16, dport: 443, proto: 6 }
}

const FLOWS: u32 = 20_000;

fn gateways(fib: &Fib) -> Vec<Addr> {
    let way = |i| fib.way(addr("192.0.2.1"), &flow(i)).expect("a way");
    (0..FLOWS).map(|i| way(i).via.expect("a gateway")).collect()
}

fn fib_of(hops: &[Hop]) -> Arc<Fib> {
    let mut b = builder();
    b.set(0, prefix("0.0.0.0/0"), Some(&several(hops))).expect("room");
    b.build()
}

#[test]
fn ways_share_flows_by_weight() {
    let hops = [hop(1, 1), hop(2, 2), hop(3, 5)];
    let got = gateways(&fib_of(&hops));
    for h in hops {
        let count = got.iter().filter(|g| Some(**g) == h.via).count() as f64;
        let want = f64::from(FLOWS) * f64::from(h.weight) / 8.0;
        assert!((count / want - 1.0).abs() < 0.1, "{h:?}: {count} of {want}");
    }
}

#[test]
fn only_the_flows_of_a_way_that_goes_move() {
    let hops: Vec<Hop> = (1..=8).map(|i| hop(i, 1)).collect();
    let whole = gateways(&fib_of(&hops));
    for gone in 0..hops.len() {
        let mut left = hops.clone();
        let lost = left.remove(gone).via.expect("a gateway");
        let after = gateways(&fib_of(&left));
        let moved = whole.iter().zip(&after).filter(|(a, b)| a != b).count();
        assert_eq!(moved, whole.iter().filter(|g| **g == lost).count(), "without {lost}");
    }
}

#[test]
fn the_order_of_ways_does_not_matter() {
    let (a, b) = ([hop(1, 1), hop(2, 1)], [hop(2, 1), hop(1, 1)]);
    assert_eq!(gateways(&fib_of(&a)), gateways(&fib_of(&b)));
}

#[test]
fn ways_by_other_interfaces_are_not_used() {
    let away = Hop { ifindex: 99, ..hop(7, 9) };
    let got = gateways(&fib_of(&[hop(1, 1), away]));
    assert!(got.iter().all(|g| Some(*g) == hop(1, 1).via));
    let none = fib_of(&[away]).way(addr("192.0.2.1"), &flow(0));
    assert_eq!(none, Err(DropReason::NotOurPort));
}

#[test]
fn tables_are_apart() {
    let mut b = builder();
    b.set(0, prefix("10.9.0.0/16"), Some(&several(&[hop(1, 1)]))).expect("room");
    b.set(1, prefix("10.9.0.0/16"), Some(&several(&[hop(2, 1)]))).expect("room");
    b.set(7, prefix("10.9.0.0/16"), Some(&several(&[hop(3, 1)]))).expect("no such table");
    let fib = b.build();
    let via = |table| fib.way_in(table, addr("10.9.0.1"), &flow(0)).map(|w| w.via);
    assert_eq!((via(0), via(1)), (Ok(hop(1, 1).via), Ok(hop(2, 1).via)));
    assert_eq!(via(2), Err(DropReason::NoRoute));
    assert_eq!(fib.way_in(1, addr("10.0.0.1"), &flow(0)), Err(DropReason::NotHandled));
    let mut gateways: Vec<_> = fib.gateways().map(|(_, gateway)| gateway).collect();
    gateways.sort();
    assert_eq!(gateways, [hop(1, 1), hop(2, 1)].map(|h| h.via.expect("a gateway")));
}

#[test]
fn an_unchanged_table_is_not_built_again() {
    let mut b = builder();
    b.set(0, prefix("10.9.0.0/16"), Some(&several(&[hop(1, 1)]))).expect("room");
    let first = b.build();
    b.set(0, prefix("10.8.0.0/16"), None).expect("nothing to do");
    b.set_ports(vec![port(0), port(1)]);
    assert!(Arc::ptr_eq(&first, &b.build()));
    b.set(0, prefix("10.9.0.0/16"), None).expect("gone");
    assert!(!Arc::ptr_eq(&first, &b.build()) && b.is_empty());
    assert!(b.known.numbers.is_empty(), "{:?}", b.known);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Whatever was set and taken away before, only what is set last counts.
    #[test]
    fn history_leaves_no_trace(
        changes in prop::collection::vec((0u32..12, prop::option::of(0u32..5)), 0..80),
    ) {
        let (mut b, mut last) = (builder(), BTreeMap::new());
        for (net, via) in changes {
            let prefix = Prefix::new(Addr::v4(0x0b00_0000 | net << 16), 16).expect("a length");
            let route = via.map(|via| several(&[hop(via, 1), hop(via / 2 + 9, 1)]));
            b.set(0, prefix, route.as_ref()).expect("room");
            last.insert(net, route);
        }
        let mut fresh = builder();
        for (net, route) in &last {
            let prefix = Prefix::new(Addr::v4(0x0b00_0000 | net << 16), 16).expect("a length");
            fresh.set(0, prefix, route.as_ref()).expect("room");
        }
        let (used, fresh) = (b.build(), fresh.build());
        for i in 0..200u32 {
            let dst = Addr::v4(0x0b00_0000 | (i % 12) << 16 | i);
            prop_assert_eq!(used.way(dst, &flow(i)), fresh.way(dst, &flow(i)));
        }
        let in_use: u32 = b.known.list.iter().map(|k| k.users).sum();
        prop_assert_eq!(in_use as usize, last.values().flatten().count());
    }
}
