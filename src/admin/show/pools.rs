//! `show pools` for people.

use std::fmt::Write;

use super::{duration, or_none};
use crate::admin::table::{Table, grouped};
use crate::control::view::{EngineView, GroupView, MemberView, PoolView};

pub(super) fn pools(all: &[PoolView]) -> String {
    let mut table = Table::new(&[
        "pool",
        "balance",
        "backend",
        ">priority",
        "zone",
        ">weight",
        ">connections",
        ">first ms",
        ">running",
        ">waiting",
        ">cache",
        "state",
    ]);
    let mut errors = String::new();
    for pool in all {
        if pool.nearest.len() > 1 {
            let _ = writeln!(errors, "{}: nearest first: {}", pool.name, pool.nearest.join(", "));
        }
        pool.groups.iter().for_each(|group| errors.push_str(&standing(pool, group)));
        for b in &pool.backends {
            let number = |n: Option<f64>| n.map_or("-".to_string(), |n| grouped(n as u64));
            let of = |value: fn(&EngineView) -> Option<f64>| b.engine.as_ref().and_then(value);
            let share = |n: f64| format!("{:.0}%", n * 100.0);
            let ms = |ms: f64| format!("{ms:.1}");
            table.row([
                pool.name.clone(),
                pool.balance.clone(),
                b.name.clone(),
                b.priority.to_string(),
                b.zone.clone().unwrap_or_else(|| "-".to_string()),
                weight(b.weight_now, b.weight),
                connections(b.connections, b.max_connections),
                b.first_record_peak_ms.map_or("-".to_string(), ms),
                number(of(|e| e.running)),
                number(of(|e| e.waiting)),
                of(|e| e.cache).map_or("-".to_string(), share),
                state(pool, b),
            ]);
            let error = b.engine.as_ref().and_then(|e| e.error.as_ref());
            let out = b.outlier.as_ref().filter(|o| o.out_secs.is_some());
            for why in out.and_then(|o| o.reason.as_ref()).into_iter().chain(error) {
                let _ = writeln!(errors, "{}/{}: {why}", pool.name, b.name);
            }
        }
    }
    let table = or_none(&table, "no pools");
    match errors.is_empty() {
        true => table,
        false => format!("{table}\n{errors}"),
    }
}

/// A line about a group that does not simply have its own flows.
fn standing(pool: &PoolView, group: &GroupView) -> String {
    let (name, priority) = (&pool.name, group.priority);
    let zone = pool.zone.as_deref().unwrap_or_default();
    match (group.waits, group.spills_percent) {
        (true, _) => format!("{name}: priority {priority} is well again, flows come back soon\n"),
        (_, 0) => String::new(),
        (_, percent) => format!(
            "{name}: of new flows of priority {priority} {}% stay in zone {zone}, {percent}% \
             spill\n",
            100 - percent,
        ),
    }
}

/// As configured; what it is now, where it gets no new flows.
pub(super) fn weight(now: u16, configured: u16) -> String {
    match (now, configured) {
        (0, weight) if weight > 0 => format!("0 of {weight}"),
        (_, weight) => weight.to_string(),
    }
}

/// A round trip.
pub(super) fn rtt_ms(us: u64) -> String {
    format!("{:.2}", us as f64 / 1e3)
}

pub(super) fn connections(now: u64, most: Option<u32>) -> String {
    match most {
        Some(most) => format!("{now} of {most}"),
        None => now.to_string(),
    }
}

fn state(pool: &PoolView, b: &MemberView) -> String {
    let health = b.up.map(|up| match (up, pool.panic) {
        (true, _) => "up".to_string(),
        (false, true) => "down, in use for want of others".to_string(),
        (false, false) => "down".to_string(),
    });
    let out = b.outlier.as_ref().and_then(|o| o.out_secs);
    let out = out.map(|secs| format!("taken out, tried again in {}", duration(secs as u64)));
    let drained = b.drained.then(|| "drained".to_string());
    let full = b.max_connections.is_some_and(|most| b.connections >= u64::from(most));
    let full = full.then(|| "full".to_string());
    let engine = b.engine.as_ref().map(|e| match (&e.name, e.age_secs) {
        (Some(name), Some(age)) if e.stale => format!("{name} silent for {age:.0} s"),
        (Some(name), Some(age)) => format!("{name} {age:.1} s ago"),
        _ => "no metrics yet".to_string(),
    });
    let all: Vec<_> =
        health.into_iter().chain(out).chain(drained).chain(full).chain(engine).collect();
    if all.is_empty() { "-".to_string() } else { all.join(", ") }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::view::OutlierView;

    #[test]
    fn a_pool_shows_what_its_backends_are_chosen_by() {
        let engine = EngineView {
            name: Some("vLLM".into()),
            running: Some(12.0),
            waiting: Some(3.0),
            cache: Some(0.4375),
            age_secs: Some(0.42),
            ..EngineView::default()
        };
        let fresh = MemberView {
            name: "a".into(),
            weight: 4,
            weight_now: 4,
            connections: 2,
            max_connections: Some(2),
            engine: Some(engine.clone()),
            ..MemberView::default()
        };
        let gone = EngineView { stale: true, error: Some("connect: refused".into()), ..engine };
        let stale = MemberView {
            name: "b".into(),
            weight: 1,
            up: Some(false),
            first_record_peak_ms: Some(81.27),
            outlier: Some(OutlierView {
                out_secs: Some(61.0),
                ejections: 2,
                reason: Some("5 connections in a row failed".into()),
            }),
            engine: Some(EngineView { age_secs: Some(9.0), ..gone }),
            ..MemberView::default()
        };
        let balance = "least-load".to_string();
        let text = pools(&[PoolView {
            name: "gpu".into(),
            balance,
            zone: Some("north".into()),
            nearest: vec!["south".into(), "east".into()],
            groups: vec![
                GroupView { priority: 0, spills_percent: 43, waits: false },
                GroupView { priority: 1, spills_percent: 0, waits: false },
                GroupView { priority: 2, spills_percent: 0, waits: true },
            ],
            backends: vec![fresh, stale],
            ..PoolView::default()
        }]);
        let spill = "gpu: of new flows of priority 0 57% stay in zone north, 43% spill\n";
        assert!(text.contains(spill) && !text.contains("priority 1"), "{text}");
        assert!(text.contains("gpu: nearest first: south, east\n"), "{text}");
        assert!(text.contains("gpu: priority 2 is well again, flows come back soon\n"), "{text}");
        for part in ["2 of 2", "12", "44%", "full, vLLM 0.4 s ago", "0 of 1", "81.3"] {
            assert!(text.contains(part), "{part}: {text}");
        }
        let state = "down, taken out, tried again in 1m 1s, vLLM silent for 9 s";
        assert!(text.contains(state), "{text}");
        assert!(text.contains("gpu/b: 5 connections in a row failed"), "{text}");
        assert!(text.ends_with("gpu/b: connect: refused\n"), "{text}");
        assert_eq!(pools(&[]), "no pools\n");
    }
}
