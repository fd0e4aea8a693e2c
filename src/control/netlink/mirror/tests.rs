//! Facts and what they do to the mirror.

use super::*;

fn key(prefix: &str, metric: u32) -> RouteKey {
    RouteKey { prefix: prefix.parse().expect("literal"), table: 1, metric }
}

fn hop(via: &str, ifindex: u32) -> NextHop {
    let via = Some(via.parse().expect("literal"));
    NextHop { kind: RouteKind::Unicast, via, ifindex, weight: 1 }
}

fn link(up: bool) -> Link {
    Link { ifindex: 2, name: "a".into(), mac: None, mtu: 1500, up, carrier: up }
}

#[test]
fn known_facts_change_nothing() {
    let mut m = Mirror::default();
    let route = Fact::Route(key("10.0.0.0/8", 0), vec![hop("192.0.2.1", 2)], Insert::New);
    for fact in [Fact::Link(link(true)), Fact::Address(2, Addr::v4(1)), route] {
        assert_eq!(m.apply(fact.clone()), Effect::Changed, "{fact:?}");
        assert_eq!(m.apply(fact.clone()), Effect::None, "{fact:?}");
    }
    assert_eq!(m.apply(Fact::LinkGone(9)), Effect::None);
    assert_eq!(m.apply(Fact::RouteGone(key("11.0.0.0/8", 0), vec![])), Effect::None);
}

#[test]
fn what_the_kernel_flushes_silently_raises_doubt() {
    let mut m = Mirror::default();
    m.apply(Fact::Link(link(true)));
    m.apply(Fact::Address(2, Addr::v4(1)));
    assert_eq!(m.apply(Fact::Link(link(false))), Effect::Doubt);
    assert_eq!(m.apply(Fact::AddressGone(2, Addr::v4(1))), Effect::Doubt);
    assert_eq!(m.apply(Fact::LinkGone(2)), Effect::Doubt);
}

#[test]
fn a_second_ipv4_route_of_a_key_raises_doubt_and_ipv6_gains_a_way() {
    let mut m = Mirror::default();
    let (k4, k6) = (key("10.0.0.0/8", 0), key("2001:db8::/32", 1024));
    m.apply(Fact::Route(k4, vec![hop("192.0.2.1", 2)], Insert::New));
    let second = Fact::Route(k4, vec![hop("192.0.2.2", 2)], Insert::Stack);
    assert_eq!(m.apply(second), Effect::Doubt);

    m.apply(Fact::Route(k6, vec![hop("fe80::1", 2)], Insert::New));
    let second = Fact::Route(k6, vec![hop("fe80::2", 2)], Insert::Stack);
    assert_eq!(m.apply(second), Effect::Changed);
    assert_eq!(m.routes().filter(|(k, _)| *k == k6).count(), 2);
    let gone = Fact::RouteGone(k6, vec![hop("fe80::1", 2)]);
    assert_eq!(m.apply(gone.clone()), Effect::Changed);
    assert_eq!(m.apply(gone), Effect::Doubt, "a way nobody told us of");
    assert_eq!(m.routes().filter(|(k, _)| *k == k6).count(), 1);
}

#[test]
fn replaced_routes_are_replaced_unless_stacked() {
    let mut m = Mirror::default();
    let k = key("10.0.0.0/8", 0);
    m.load(Fact::Route(k, vec![hop("192.0.2.1", 2)], Insert::New));
    let replace = Fact::Route(k, vec![hop("192.0.2.9", 2)], Insert::Replace);
    assert_eq!(m.apply(replace.clone()), Effect::Changed);
    assert_eq!(m.routes().map(|r| r.1).collect::<Vec<_>>(), [hop("192.0.2.9", 2)]);
    m.load(Fact::Route(k, vec![hop("192.0.2.3", 2)], Insert::New));
    assert_eq!(m.apply(replace), Effect::Doubt);
    assert_eq!(m.apply(Fact::RouteGone(k, vec![])), Effect::Doubt);
}

#[test]
fn the_preferred_route_of_a_prefix_comes_first() {
    let mut m = Mirror::default();
    for (table, metric) in [(2, 0), (1, 100), (1, 50), (0, 0)] {
        let k = RouteKey { table, ..key("10.0.0.0/8", metric) };
        m.load(Fact::Route(k, vec![hop("192.0.2.1", 2)], Insert::New));
    }
    let order: Vec<_> = m.routes().map(|(k, _)| (k.table, k.metric)).collect();
    assert_eq!(order, [(0, 0), (1, 50), (1, 100), (2, 0)]);
}

#[test]
fn only_a_changed_address_of_a_neighbour_matters_to_forwarding() {
    let mut m = Mirror::default();
    let at = |state, mac| Fact::Neighbour(2, Addr::v4(7), Neighbour { state, mac });
    let mac = Some([2, 0, 0, 0, 0, 1]);
    assert_eq!(m.apply(at(NeighbourState::Incomplete, None)), Effect::None);
    assert_eq!(m.apply(at(NeighbourState::Fresh, mac)), Effect::Changed);
    assert_eq!(m.apply(at(NeighbourState::Stale, mac)), Effect::None);
    assert_eq!(m.neighbour(2, Addr::v4(7)).map(|n| n.state), Some(NeighbourState::Stale));
    assert_eq!(m.apply(at(NeighbourState::Failed, None)), Effect::Changed);
    assert_eq!(m.apply(Fact::NeighbourGone(2, Addr::v4(7))), Effect::None);
}

#[test]
fn the_route_in_use_is_told_by_table() {
    let mut m = Mirror::default();
    let p: Prefix = "10.0.0.0/8".parse().expect("literal");
    let put = |m: &mut Mirror, table, metric, via: &str| {
        let k = RouteKey { table, ..key("10.0.0.0/8", metric) };
        m.load(Fact::Route(k, vec![hop(via, 2)], Insert::New));
    };
    let via = |m: &Mirror, table| m.route((table, p)).map(|r| r.hops[0].via.expect("via"));
    assert_eq!(via(&m, 0), None);
    put(&mut m, 2, 0, "192.0.2.9");
    put(&mut m, 1, 20, "192.0.2.8");
    put(&mut m, 4, 5, "192.0.2.7");
    assert_eq!(via(&m, 0), Some("192.0.2.8".parse().expect("literal")));
    assert_eq!(via(&m, 1), None);
    assert_eq!(via(&m, 2), Some("192.0.2.7".parse().expect("literal")));
    assert_eq!(m.places(), BTreeSet::from([(0, p), (2, p)]));
    // Of stacked routes the first alone, of one with several ways all.
    let k = key("11.0.0.0/8", 0);
    m.load(Fact::Route(k, vec![hop("192.0.2.1", 2), hop("192.0.2.2", 2)], Insert::New));
    assert_eq!(m.route((0, k.prefix)).map(|r| r.hops.len()), Some(2));
    m.load(Fact::Route(k, vec![hop("192.0.2.3", 2)], Insert::Stack));
    assert_eq!(m.route((0, k.prefix)).map(|r| r.hops.len()), Some(2));
}

#[test]
fn what_differs_between_two_states_is_found() {
    let state = |routes: &[(&str, u32, &str)]| {
        let mut m = Mirror::default();
        for (prefix, metric, via) in routes {
            m.load(Fact::Route(key(prefix, *metric), vec![hop(via, 2)], Insert::New));
        }
        m
    };
    let a = state(&[("10.0.0.0/8", 0, "192.0.2.1"), ("11.0.0.0/8", 0, "192.0.2.1")]);
    let b = state(&[
        ("10.0.0.0/8", 0, "192.0.2.2"),
        ("11.0.0.0/8", 0, "192.0.2.1"),
        ("12.0.0.0/8", 0, "192.0.2.1"),
    ]);
    let places = |of: &[&str]| of.iter().map(|p| (0, p.parse().expect("literal"))).collect();
    assert_eq!(a.places_unlike(&a), BTreeSet::new());
    let both: BTreeSet<TablePrefix> = places(&["10.0.0.0/8", "12.0.0.0/8"]);
    assert_eq!(a.places_unlike(&b), both);
    assert_eq!(b.places_unlike(&a), both);
    assert_eq!(Mirror::default().places_unlike(&b), b.places());
}
