//! Pools as `show pools` has them: what backends are chosen by.

use super::appliance::Appliance;
use super::pools::Told;
use super::view::{EngineView, GroupView, MemberView, OutlierView, PoolView};
use crate::forward::spec::{BackendSpec, Balance, GroupState, PoolSpec};

pub(super) fn pools(a: &Appliance) -> Vec<PoolView> {
    let pools = a.config.forward.pools.iter();
    pools
        .map(|pool| PoolView {
            name: pool.name.clone(),
            balance: balance_text(pool.balance).into(),
            panic: a.pools.is_panicking(&pool.name),
            zone: a.config.forward.zone.clone(),
            nearest: a.pools.nearest(pool).to_vec(),
            groups: groups(a, pool),
            backends: (0..).zip(&pool.backends).map(|(i, b)| member(a, pool, i, b)).collect(),
        })
        .collect()
}

fn groups(a: &Appliance, pool: &PoolSpec) -> Vec<GroupView> {
    let states = a.pools.groups(usize::from(pool.id.0));
    let known = |priority: &u8| pool.backends.iter().any(|b| b.priority == *priority);
    let groups = (0u8..).zip(states).filter(|(priority, _)| known(priority));
    let view = |(priority, state): (u8, GroupState)| GroupView {
        priority,
        spills_percent: state.spills_percent,
        waits: state.waits,
    };
    groups.map(view).collect()
}

fn member(a: &Appliance, pool: &PoolSpec, index: usize, b: &BackendSpec) -> MemberView {
    let place = a.pools.place(b);
    let now = a.clock.now();
    let peaks = a.crew.seats.iter().map(|s| s.serving().own_peak_us(place, now));
    let peak = peaks.max().filter(|us| *us > 0);
    MemberView {
        name: b.name.clone(),
        priority: b.priority,
        zone: b.zone.clone(),
        weight: b.weight,
        weight_now: a.pools.weight(usize::from(pool.id.0), index),
        connections: a.crew.connections(place),
        max_connections: b.connections_max,
        first_record_peak_ms: peak.map(|us| f64::from(us) / 1e3),
        drained: a.pools.drained.backend(pool, b),
        up: a.pools.health(pool, b).map(super::pools::Health::is_up),
        outlier: a.pools.outlier(pool, b).map(|o| OutlierView {
            out_secs: o.left(now).map(|left| left.as_secs_f64()),
            ejections: o.ejections,
            reason: o.reason.clone(),
        }),
        engine: a.pools.told(pool, b).map(|told| engine(a, told)),
    }
}

fn engine(a: &Appliance, told: &Told) -> EngineView {
    let last = told.last(a.clock.now());
    let reading = last.map(|(known, ..)| known.reading);
    EngineView {
        name: last.map(|(_, engine, _)| engine.name().to_string()),
        running: reading.map(|r| r.running),
        waiting: reading.map(|r| r.waiting),
        cache: reading.and_then(|r| r.cache),
        age_secs: last.map(|(.., age)| age.as_secs_f64()),
        stale: told.is_stale(),
        error: told.error.clone(),
    }
}

fn balance_text(balance: Balance) -> &'static str {
    match balance {
        Balance::Maglev => "maglev",
        Balance::RoundRobin => "round-robin",
        Balance::LeastConnections => "least-connections",
        Balance::LeastLoad => "least-load",
        Balance::PeakEwma => "peak-ewma",
    }
}
