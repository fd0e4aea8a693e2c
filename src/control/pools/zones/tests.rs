//! What stays, spills and comes back: cases, and a simulation of zones that lose and regain
//! backends.

use super::*;
use crate::base::hash::{Rng, hash1};
use crate::base::{Addr, Seed};
use crate::flow::Serving;
use crate::forward::spec::{BackendSpec, ForwardSpec, PoolId};
use crate::forward::{Choosing, Tables, Turns};
use crate::packet::FlowKey;

const SECOND: u64 = 1_000_000_000;
const RETURN_AFTER: Duration = Duration::from_secs(10);

fn backend(name: usize, priority: u8, is_away: bool) -> BackendSpec {
    let (name, weight) = (format!("b{name}"), 1);
    BackendSpec { name, weight, priority, is_away, ..BackendSpec::default() }
}

fn pool(backends: Vec<BackendSpec>) -> PoolSpec {
    let name = "p".to_string();
    let (need_percent, return_after) = (70, RETURN_AFTER);
    PoolSpec { name, backends, need_percent, return_after, ..PoolSpec::default() }
}

/// The first group's share that spills at each second, where that changes, with `well` of the ten
/// in the zone and all of the others.
fn spills(pool: &PoolSpec, seconds: u64, well: impl Fn(u64) -> usize) -> Vec<(u64, u8)> {
    let (mut zones, mut changes) = (Zones::default(), Vec::new());
    for second in 0..seconds {
        let near = (0..10).map(|i| if i < well(second) { WHOLE } else { 0 });
        let all: Vec<u32> = near.chain([WHOLE; 4]).collect();
        let spills = zones.groups(Nanos(second * SECOND), pool, &all)[0].spills_percent;
        if changes.last().is_none_or(|(_, last)| *last != spills) {
            changes.push((second, spills));
        }
    }
    changes
}

fn two_zones() -> PoolSpec {
    pool((0..14).map(|i| backend(i, 0, i >= 10)).collect())
}

#[test]
fn what_the_zone_cannot_serve_spills_at_once_and_comes_back_later() {
    let well = |second| match second {
        5..20 => 7,  // all that is needed
        20..30 => 5, // 5 of 7
        30..40 => 0,
        40..44 => 6,
        44..60 => 5,
        _ => 10,
    };
    assert_eq!(spills(&two_zones(), 100, well), [(0, 0), (20, 29), (30, 100), (50, 29), (70, 0)]);
}

#[test]
fn a_backend_that_flaps_moves_flows_once() {
    let well = |second| if (10..60).contains(&second) && second % 4 < 2 { 3 } else { 10 };
    let changes = spills(&two_zones(), 100, well);
    assert_eq!(changes, [(0, 0), (12, 58), (68, 0)], "3 of 7 stay for as long as it flaps");
}

#[test]
fn what_grows_sends_no_flows_away_and_gets_them_back_by_its_part() {
    let pool = pool((0..4).map(|i| backend(i, 0, i >= 2)).collect());
    let mut zones = Zones::default();
    let mut spills = |second: u64, near: [u32; 2]| {
        let well = [near[0], near[1], WHOLE, WHOLE];
        zones.groups(Nanos(second * SECOND), &pool, &well)[0].spills_percent
    };
    assert_eq!(spills(0, [10, 10]), 0, "nobody has had them before");
    assert_eq!(spills(1, [WHOLE, WHOLE]), 0);
    assert_eq!(spills(2, [10, 10]), 0, "a reload has replaced both");
    assert_eq!(spills(3, [0, 14]), 29, "room for 5 of 7");
    assert_eq!(spills(4, [0, 0]), 100);
    assert_eq!((spills(5, [10, 10]), spills(14, [40, 40])), (100, 100));
    assert_eq!(spills(15, [50, 50]), 86, "the least that it was: a tenth, 1 of 7");
    assert_eq!((spills(24, [80, 80]), spills(25, [90, 90])), (86, 29), "a half, 5 of 7");
}

#[test]
fn nothing_spills_where_nobody_else_is() {
    let alone = pool((0..10).map(|i| backend(i, 0, false)).collect());
    assert_eq!(spills(&alone, 50, |second| usize::from(second % 2 == 0)), [(0, 0)]);
    let mut elsewhere = two_zones();
    elsewhere.backends.iter_mut().for_each(|b| b.is_away = true);
    assert_eq!(spills(&elsewhere, 20, |_| 10), [(0, 100)], "the zone has nobody");
}

#[test]
fn flows_fail_over_at_once_and_come_back_when_the_first_group_has_stayed_well() {
    let groups = pool((0..3).map(|i| backend(i, i as u8, false)).collect());
    let mut zones = Zones::default();
    let mut waits = |second: u64, well: [u32; 3]| {
        let states = zones.groups(Nanos(second * SECOND), &groups, &well);
        [0, 1, 2].map(|priority| states[priority].waits)
    };
    let (up, down, nobody) = (WHOLE, 0, [false; 3]);
    assert_eq!(waits(0, [up; 3]), nobody);
    assert_eq!(waits(1, [down, up, up]), nobody);
    assert_eq!(waits(2, [10, up, up]), [true, false, false]);
    assert_eq!(waits(11, [up, down, up]), [true, false, false], "the third group serves");
    assert_eq!(waits(11, [up, down, down]), nobody, "nobody else serves");
    assert_eq!(waits(12, [up, up, up]), nobody, "it has them already");
    assert_eq!(waits(13, [down, down, up]), nobody);
    assert_eq!(waits(14, [down, up, up]), [false, true, false]);
    assert_eq!(waits(20, [up, up, up]), [true, true, false]);
    assert_eq!(waits(24, [up, up, up]), [true, false, false], "as long as each has to");
    assert_eq!(waits(30, [up, up, up]), nobody);
}

/// Which flow goes to which backend.
fn places(pool: &PoolSpec, well: &[u32], groups: [GroupState; PRIORITIES]) -> Vec<Option<u16>> {
    let mut pool = PoolSpec { groups, ..pool.clone() };
    for (at, (b, well)) in (0u16..).zip(pool.backends.iter_mut().zip(well)) {
        (b.id.0, b.weight) = (at, if *well > 0 { b.weight } else { 0 });
    }
    let spec = ForwardSpec { pools: vec![pool], ..ForwardSpec::default() };
    let (tables, serving) = (Tables::build(&spec, 1, Seed(1)), Serving::new(64));
    let mut turns = Turns::new(0, 1);
    let mut choose = |flow: u64| {
        let src = Addr::v4(hash1(Seed(3), flow) as u32);
        let key = FlowKey { src, sport: flow as u16, ..FlowKey::default() };
        let by = Choosing { now: Nanos(0), turns: &mut turns, serving: &serving };
        tables.choose(PoolId(0), &key, by).ok().map(|backend| backend.place)
    };
    (0..2_000).map(&mut choose).collect()
}

/// Backends of three zones fail and return at random. At each second no more stays than the zone
/// can serve, nothing of what it has been able to serve for long is sent away, and at each change
/// flows have moved only out of the zone, or only into it.
#[test]
fn simulated_zones_spill_by_the_formula() {
    for seed in 0..8 {
        let mut rng = Rng::new(Seed(seed));
        let pool = pool((0..24).map(|i| backend(i, 0, i >= 8)).collect());
        let (mut zones, mut well) = (Zones::default(), vec![WHOLE; 24]);
        let (mut since, mut last) = (0, (100, 100));
        let mut before: Option<Vec<Option<u16>>> = None;
        for second in 0..600u64 {
            if rng.chance(0.05) {
                // Half of the faults are the appliance's own zone's.
                let near = rng.chance(0.5);
                let at = if near { rng.below(8) } else { 8 + rng.below(16) } as usize;
                well[at] = if well[at] > 0 || rng.chance(0.4) { 0 } else { WHOLE };
            }
            let able = well[..8].iter().filter(|w| **w > 0).count() * 100;
            let wanted = (able as u64 * 100 / (800 * 70 / 100)).min(100) as u8;
            let groups = zones.groups(Nanos(second * SECOND), &pool, &well);
            let stays = 100 - groups[0].spills_percent;
            if wanted != last.0 {
                since = second;
            }
            let away = well[8..].iter().any(|w| *w > 0);
            assert!(!away || stays <= wanted, "seed {seed}, {second} s: {stays} of {wanted}");
            if second - since > 2 * RETURN_AFTER.as_secs() && away {
                assert_eq!(stays, wanted, "seed {seed}, {second} s");
            }
            if stays != last.1 {
                let now = places(&pool, &well, groups);
                let near = |place: Option<u16>| place.is_some_and(|place| place < 8);
                let share = now.iter().filter(|p| near(**p)).count() * 100 / now.len();
                assert!(share.abs_diff(usize::from(stays)) <= 3, "{share} % for {stays}");
                if let Some(before) = &before {
                    let moved = before.iter().zip(&now).filter(|(a, b)| near(**a) != near(**b));
                    let mut into = moved.map(|(_, now)| near(*now));
                    let first = into.next();
                    assert!(into.all(|into| Some(into) == first), "seed {seed}, {second} s");
                }
                before = Some(now);
            }
            last = (wanted, stays);
        }
    }
}
