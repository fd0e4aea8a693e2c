//! The overview: from what runs to plain data.

use std::collections::BTreeMap;

use super::appliance::Appliance;
use super::crew::Seat;
use super::latency::latencies;
use super::limits::limits;
use super::members::pools;
use super::run::Control;
use super::view::{
    BackendView, HealthView, NeighbourView, Overview, PortView, ProcessView, ServiceView, Values,
    WorkerView, mac_text, protocol_text,
};
use crate::forward::spec::{BackendSpec, ForwardSpec, PoolId, PoolSpec, ServiceSpec};
use crate::nic::steer::SteerReason;
use crate::observe::{Counters, Gauges, PortGauges};
use crate::packet::{DropReason, FlowKey, PortId};

impl Control {
    /// Everything but the flows, as of now; classes as of a second ago at most.
    pub(super) fn overview(&self) -> Overview {
        let a = &self.appliance;
        Overview {
            process: ProcessView { on_trial_secs: self.on_trial_secs(), ..process(a) },
            workers: a.crew.seats.iter().map(|s| worker(a, s)).collect(),
            ports: ports(a),
            services: a.config.forward.services.iter().map(|s| service(a, s)).collect(),
            backends: backends(a),
            pools: pools(a),
            neighbours: neighbours(a),
            classes: self.classes.view(&a.config),
            limits: limits(&a.snapshot.limits, a.clock.now()),
            shadows: a.copies.shadows(&a.config),
            files: a.copies.files(&a.config),
            latencies: latencies(&a.config, a.crew.seats.iter().map(|s| s.latencies())),
        }
    }
}

fn process(a: &Appliance) -> ProcessView {
    ProcessView {
        version: env!("CARGO_PKG_VERSION").into(),
        pid: std::process::id(),
        uptime_secs: a.started.elapsed().as_secs(),
        config: a.config.path.display().to_string(),
        pipeline: a.config.pipeline.name.clone(),
        reloads: a.reloads,
        reloads_refused: a.reloads_refused,
        rollbacks: a.rollbacks,
        dead: a.dead(),
        on_trial_secs: None,
        routes: a.feed.routes_len() as u64,
        netlink_resyncs: a.netlink.resyncs(),
    }
}

fn named<const N: usize>(names: [&str; N], values: [u64; N]) -> Values {
    names.iter().map(|n| (*n).to_string()).zip(values).collect()
}

fn worker(a: &Appliance, seat: &Seat) -> WorkerView {
    let stats = seat.stats();
    let drops = DropReason::ALL.iter().map(|r| r.label().to_string()).zip(stats.counters.drops);
    let values = |id: PortId| stats.ports.get(usize::from(id.0)).map_or([0; _], PortGauges::values);
    WorkerView {
        worker: seat.id,
        thread: seat.thread,
        core: a.crew.core_of(seat.thread),
        core_wanted: a.config.workers.cores.get(usize::from(seat.thread)).copied(),
        busy_percent: seat.load.percent,
        counters: named(Counters::NAMES, stats.counters.values()),
        drops: drops.collect(),
        gauges: named(Gauges::NAMES, stats.gauges.values()),
        ports: a
            .open_ports_now()
            .map(|(port, _)| named(PortGauges::NAMES, values(port.id)))
            .collect(),
    }
}

fn ports(a: &Appliance) -> Vec<PortView> {
    let steered = a.steering.steer().stats().unwrap_or_else(|error| {
        tracing::warn!(%error, "counters of the XDP programs can't be read");
        Vec::new()
    });
    a.open_ports_now()
        .map(|(port, state)| {
            let (mirror, feed) = (a.netlink.mirror(), &a.feed);
            let at = usize::from(port.id.0);
            let link = feed.link(at, mirror);
            let counts = steered.iter().find(|s| s.interface == port.interface);
            let reasons = SteerReason::ALL
                .iter()
                .map(|&reason| (reason.label().to_string(), counts.map_or(0, |c| c.count(reason))));
            PortView {
                name: port.name.clone(),
                interface: port.interface.clone(),
                ifindex: link.map_or(0, |l| l.ifindex),
                mac: link.and_then(|l| l.mac).map(mac_text),
                mtu: link.map_or(0, |l| l.mtu),
                up: link.is_some_and(|l| l.up && l.carrier),
                replaced: feed.is_replaced(at, mirror),
                attach: state.attach_text().into(),
                copy: state.copy_text().into(),
                busy_poll: state.mode.busy_poll,
                queues: state.mode.queues,
                offload: state.offload.clone().unwrap_or_default(),
                steered: reasons.collect::<BTreeMap<_, _>>(),
            }
        })
        .collect()
}

fn service(a: &Appliance, s: &ServiceSpec) -> ServiceView {
    let forward = &a.config.forward;
    let usable = |pool: &PoolSpec| {
        let id = usize::from(pool.id.0);
        (0..pool.backends.len()).filter(|i| a.pools.weight(id, *i) > 0).count()
    };
    ServiceView {
        name: s.name.clone(),
        vip: s.vip.to_ip(),
        port: s.port,
        protocol: protocol_text(s.proto),
        mode: s.mode.word().into(),
        pool: pool_text(forward, s.pool),
        backends: forward.parts(s.pool).map(usable).sum(),
        drained: a.pools.drained.service(&s.name),
        announced: a.is_announced(s),
        canary_percent: f64::from(s.canary_share) / 100.0,
        idle_established_secs: s.idle_established.as_secs(),
    }
}

/// A pool's name, or those of a split's pools with their shares.
fn pool_text(forward: &ForwardSpec, id: PoolId) -> String {
    let name = |id: PoolId| forward.pools.get(usize::from(id.0)).map_or("", |p| &p.name);
    let Some(split) = forward.split(id) else { return name(id).to_string() };
    let part = |(pool, weight): &(PoolId, u16)| format!("{} {weight}", name(*pool));
    split.parts.iter().map(part).collect::<Vec<_>>().join(", ")
}

fn backends(a: &Appliance) -> Vec<BackendView> {
    let of_pool = |p: &PoolSpec| {
        let views = p.backends.iter().enumerate().map(|(i, b)| backend(a, p, i, b));
        views.collect::<Vec<_>>()
    };
    let mut all: Vec<_> = a.config.forward.pools.iter().flat_map(of_pool).collect();
    for view in &mut all {
        // The routes know ports by their interfaces; operators by their names.
        let port = a.config.ports.iter().find(|p| Some(&p.interface) == view.via_port.as_ref());
        view.via_port = port.map(|p| p.name.clone());
    }
    all
}

fn backend(a: &Appliance, pool: &PoolSpec, index: usize, b: &BackendSpec) -> BackendView {
    let routes = &a.snapshot.routes;
    let to = routes.resolve(b.addr, &FlowKey::default());
    BackendView {
        pool: pool.name.clone(),
        name: b.name.clone(),
        address: b.addr.to_ip(),
        port: b.port,
        weight: b.weight,
        weight_now: a.pools.weight(usize::from(pool.id.0), index),
        priority: b.priority,
        connections: a.crew.connections(a.pools.place(b)),
        max_connections: b.connections_max,
        drained: a.pools.drained.backend(pool, b),
        health: a.pools.health(pool, b).map(|h| HealthView {
            up: h.is_up(),
            panic: a.pools.is_panicking(&pool.name),
            checks: h.checks,
            failures: h.failures,
            last_error: h.error.clone(),
            changed_secs: h.changed().map(|at| a.clock.now().since(at) as f64 / 1e9),
            flaps: h.flaps(),
            rtt_us: h.rtt.smoothed().map(|rtt| rtt.as_micros() as u64),
            rtt_min_us: h.rtt.least().map(|rtt| rtt.as_micros() as u64),
        }),
        via_port: to.ok().map(|t| routes.port(t.port).name.clone()),
        next_hop: to.ok().map(|t| t.next_hop.to_ip()),
        mac: to.ok().and_then(|t| t.mac).map(mac_text),
        unreachable: to.err().map(|reason| reason.meaning().trim().into()),
    }
}

fn neighbours(a: &Appliance) -> Vec<NeighbourView> {
    let ports = a.snapshot.routes.ports();
    let all = a.netlink.mirror().neighbours().filter_map(|(ifindex, addr, n)| {
        let link = ports.iter().find(|p| p.ifindex == ifindex)?;
        Some(NeighbourView {
            port: a.config.ports.get(usize::from(link.id.0))?.name.clone(),
            address: addr.to_ip(),
            mac: n.mac.map(mac_text),
            state: n.state.label().into(),
        })
    });
    all.collect()
}
