//! Which zone is the nearest, and what each gets of what spills.

use super::*;

const SECOND: u64 = 1_000_000_000;
const AFTER: Duration = Duration::from_secs(10);

/// Zones' medians in microseconds.
fn medians<'a>(of: &[(&'a str, u64)]) -> BTreeMap<&'a str, Duration> {
    of.iter().map(|(zone, us)| (*zone, Duration::from_micros(*us))).collect()
}

struct Zones(Order);

impl Zones {
    fn new() -> Zones {
        Zones(Order::default())
    }

    fn at(&mut self, second: u64, of: &[(&str, u64)]) -> String {
        self.0.measured(Nanos(second * SECOND), AFTER, &medians(of));
        self.0.zones.join(" ")
    }
}

#[test]
fn zones_stand_by_their_round_trips_as_they_are_measured() {
    let mut zones = Zones::new();
    assert_eq!(zones.at(0, &[]), "");
    assert_eq!(zones.at(1, &[("south", 9_000)]), "south");
    assert_eq!(zones.at(2, &[("south", 9_000), ("east", 30_000)]), "south east");
    assert_eq!(
        zones.at(3, &[("south", 9_000), ("east", 30_000), ("west", 20_000)]),
        "south west east"
    );
    zones.0.keep(&["east", "west"].into());
    assert_eq!(zones.at(4, &[("east", 30_000)]), "west east", "nobody in west is well");
}

#[test]
fn a_zone_goes_ahead_when_it_has_been_clearly_nearer_for_a_while() {
    let far = |us| [("a", 10_000), ("b", us)];
    for (us, goes) in [(7_900, true), (8_000, true), (8_100, false), (9_900, false)] {
        let mut zones = Zones::new();
        assert_eq!(zones.at(0, &far(11_000)), "a b");
        assert_eq!(zones.at(1, &far(us)), "a b");
        assert_eq!(zones.at(10, &far(us)), "a b", "{us}: too soon");
        assert_eq!(zones.at(11, &far(us)) == "b a", goes, "{us}");
    }
}

#[test]
fn a_zone_that_is_nearer_by_less_than_a_millisecond_stays_behind() {
    for (us, order) in [(600, "a b"), (500, "b a")] {
        let mut zones = Zones::new();
        zones.at(0, &[("a", 1_500), ("b", 2_000)]);
        zones.at(1, &[("a", 1_500), ("b", us)]);
        assert_eq!(zones.at(60, &[("a", 1_500), ("b", us)]), order, "{us}");
    }
}

#[test]
fn a_round_trip_that_wavers_changes_nothing() {
    let mut zones = Zones::new();
    for second in 0..300 {
        let us = if second % 9 == 0 { 9_900 } else { 5_000 };
        assert_eq!(zones.at(second, &[("a", 9_000), ("b", us)]), "a b", "{second}");
    }
}

#[test]
fn a_zone_goes_past_all_that_it_is_nearer_than() {
    let mut zones = Zones::new();
    zones.at(0, &[("a", 100_000), ("b", 110_000), ("c", 120_000)]);
    // Clearly nearer than the first, not than the second.
    let now = [("a", 100_000), ("b", 85_000), ("c", 79_000)];
    zones.at(1, &now);
    assert_eq!(zones.at(11, &now), "c a b");
    assert_eq!(zones.at(12, &now), "c a b");
    assert_eq!(zones.at(60, &now), "c a b", "`b` is nearer than `a` by 15 %");
}

fn pool(backends: &[(&str, u16)]) -> PoolSpec {
    let backend = |(at, (zone, weight)): (usize, &(&str, u16))| BackendSpec {
        name: format!("b{at}"),
        weight: *weight,
        zone: (!zone.is_empty()).then(|| (*zone).to_string()),
        is_away: *zone != "home",
        ..BackendSpec::default()
    };
    let backends = backends.iter().enumerate().map(backend).collect();
    PoolSpec { name: "p".into(), backends, need_percent: 70, by_rtt: true, ..PoolSpec::default() }
}

/// The part that each zone gets of what spills, in percent, with their round trips in
/// milliseconds; backends with their zone, weight and the part of it that is well.
fn shares(backends: &[(&str, u16, u32)], rtts_ms: &[(&str, u64)], spills: u8) -> Vec<u16> {
    let of: Vec<_> = backends.iter().map(|(zone, weight, _)| (*zone, *weight)).collect();
    let (pool, mut nearest) = (pool(&of), Nearest::default());
    let rtts = pool.backends.iter().filter_map(|b| {
        let (_, ms) = rtts_ms.iter().find(|(name, _)| *name == zone(b))?;
        Some((b, Duration::from_millis(*ms)))
    });
    nearest.measured(Nanos(0), &pool, AFTER, rtts);
    let well: Vec<u32> = backends.iter().map(|(.., well)| *well).collect();
    let mut weights: Vec<u16> =
        backends.iter().map(|(_, weight, well)| if *well > 0 { *weight } else { 0 }).collect();
    let before = weights.clone();
    nearest.weigh(Nanos(0), &pool, 0, (&well, spills), &mut weights);
    let mut zones: BTreeMap<&str, u32> = BTreeMap::new();
    for (at, (zone, ..)) in backends.iter().enumerate() {
        match *zone {
            "home" => assert_eq!(weights[at], before[at], "the zone's own are left alone"),
            zone => *zones.entry(zone).or_default() += u32::from(weights[at]),
        }
        assert_eq!(weights[at] > 0, before[at] > 0, "nobody loses all, nobody comes back");
    }
    let all: u32 = zones.values().sum();
    zones.values().map(|weight| (weight * 100 / all.max(1)) as u16).collect()
}

/// By zone, in the order of their names.
#[test]
fn what_spills_goes_to_the_nearest_zone_until_it_is_full() {
    let near = [("east", 40), ("south", 10)];
    let zones = |home, south, east| {
        [("home", 10, home), ("south", 10, south), ("east", 10, east), ("east", 10, east)]
    };
    // Of 7, 2 spill; the nearest has room for 3.
    assert_eq!(shares(&zones(50, 100, 100), &near, 29), [0, 99]);
    assert_eq!(shares(&zones(100, 100, 100), &near, 0), [0, 99], "for those that find it full");
    // All 7 do: 3 have room there, the other 4 of 6 in the next zone.
    assert_eq!(shares(&zones(0, 100, 100), &near, 100), [57, 42]);
    // Eight of ten are well there: 1 has room.
    assert_eq!(shares(&zones(0, 80, 100), &near, 100), [85, 14]);
    assert_eq!(shares(&zones(0, 0, 100), &near, 100), [100, 0], "nobody is well there");
    // Nobody has room: by who is well.
    assert_eq!(shares(&zones(0, 60, 60), &near, 100), [66, 33]);
    // The other way round, with room for 6 in the nearest.
    assert_eq!(shares(&zones(0, 100, 100), &[("east", 5), ("south", 10)], 100), [85, 14]);
}

#[test]
fn zones_that_are_not_measured_are_the_farthest_and_by_weight() {
    let zones = [("home", 10, 0), ("a", 10, 100), ("b", 10, 100), ("c", 30, 100)];
    assert_eq!(shares(&zones, &[], 100), [20, 20, 60], "as without a distance");
    // 3 of 7 have room in `b`; 1 and 3 parts of the rest go to the others.
    assert_eq!(shares(&zones, &[("b", 5)], 100), [14, 42, 42]);
    let nameless = [("home", 10, 0), ("", 10, 100), ("b", 10, 100)];
    assert_eq!(shares(&nameless, &[("", 3), ("b", 9)], 29), [99, 0]);
}

#[test]
fn an_appliance_without_backends_of_its_own_has_those_of_the_nearest_zone() {
    let zones = |south| [("south", 10, south), ("south", 10, south), ("east", 10, 100)];
    let near = [("east", 40), ("south", 10)];
    assert_eq!(shares(&zones(100), &near, 100), [0, 99]);
    assert_eq!(shares(&zones(70), &near, 100), [0, 99], "all that is needed");
    // 2 of 14 too few, and room for 3.
    assert_eq!(shares(&zones(60), &near, 100), [14, 85]);
}

#[test]
fn backends_of_a_zone_share_by_their_weights() {
    let pool = pool(&[("home", 10), ("a", 3), ("a", 1), ("b", 4)]);
    let mut nearest = Nearest::default();
    let rtt = |at: usize, ms| (&pool.backends[at], Duration::from_millis(ms));
    // The median of those in a zone, not the mean: one of them is slow.
    let rtts = [rtt(1, 2), rtt(2, 90), rtt(3, 20)];
    nearest.measured(Nanos(0), &pool, AFTER, rtts.into_iter());
    assert_eq!(nearest.order("p"), ["a", "b"]);
    let mut weights = [10, 3, 1, 4];
    nearest.weigh(Nanos(0), &pool, 0, (&[100; 4], 0), &mut weights);
    assert_eq!(weights, [10, 10_000, 3_333, 1]);
    let mut others = [10, 3, 1, 4];
    nearest.weigh(Nanos(0), &pool, 1, (&[100; 4], 0), &mut others);
    assert_eq!(others, [10, 3, 1, 4], "nobody has that priority");
}

#[test]
fn what_has_returned_is_room_after_a_while() {
    let backends = [("home", 10), ("south", 10), ("east", 10)];
    let pool = PoolSpec { return_after: AFTER, ..pool(&backends) };
    let mut nearest = Nearest::default();
    let rtt = |at: usize, ms| (&pool.backends[at], Duration::from_millis(ms));
    nearest.measured(Nanos(0), &pool, AFTER, [rtt(1, 10), rtt(2, 40)].into_iter());
    // Who gets nearly all that spills, of south and east.
    let mut gets = |second: u64, south: u32, east: u32| {
        let mut weights = [10, 10 * u16::from(south > 0), 10 * u16::from(east > 0)];
        let well = [50, south, east];
        nearest.weigh(Nanos(second * SECOND), &pool, 0, (&well, 29), &mut weights);
        weights[1] > weights[2]
    };
    assert!(gets(0, 100, 100));
    assert!(!gets(1, 0, 100), "at once");
    assert!(!gets(2, 100, 100) && !gets(11, 100, 100), "not yet");
    assert!(!gets(11, 0, 100) && !gets(12, 100, 100) && !gets(21, 100, 100), "it flaps");
    assert!(gets(22, 100, 100));
    assert!(!gets(23, 0, 100));
    assert!(gets(24, 100, 0), "nobody else is left");
    assert!(gets(25, 100, 100), "it has them, so it keeps them");
}
