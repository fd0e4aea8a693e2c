//! Metrics of services and of backends: how they are, and what is known of them.

use std::fmt;

use prometheus_client::encoding::DescriptorEncoder;

use super::{Labels, Page, counter, decimals, gauge};
use crate::control::view::{BackendView, EngineView, HealthView, MemberView, PoolView};

impl Page {
    pub(super) fn services(&self, e: &mut DescriptorEncoder) -> fmt::Result {
        let services = &self.0.services;
        let labels = |name: &String| vec![("service", name.clone())];
        let backends: Vec<_> =
            services.iter().map(|s| (labels(&s.name), s.backends as u64)).collect();
        gauge(e, "service_backends", "Backends that get new flows.", &backends)?;
        let drained: Vec<_> =
            services.iter().map(|s| (labels(&s.name), u64::from(s.drained))).collect();
        gauge(e, "service_drained", "Whether it is drained by the operator.", &drained)?;
        let announced =
            services.iter().filter_map(|s| Some((labels(&s.name), s.announced?.into())));
        let help = "Whether its VIP has a route for routing daemons.";
        gauge(e, "service_announced", help, &announced.collect::<Vec<_>>())
    }

    pub(super) fn backends(&self, e: &mut DescriptorEncoder) -> fmt::Result {
        let backends = &self.0.backends;
        let labels = |b: &BackendView| vec![("pool", b.pool.clone()), ("backend", b.name.clone())];
        let of = |value: fn(&BackendView) -> u64| {
            backends.iter().map(|b| (labels(b), value(b))).collect::<Vec<_>>()
        };
        let weights = of(|b| b.weight_now.into());
        gauge(e, "backend_weight", "What new flows are shared out by in the pool.", &weights)?;
        let connections = of(|b| b.connections);
        let help = "Flows that have begun and not ended.";
        gauge(e, "backend_connections", help, &connections)?;
        let drained = of(|b| b.drained.into());
        gauge(e, "backend_drained", "Whether it is drained by the operator.", &drained)?;
        let checked = backends.iter().filter_map(|b| Some((b, b.health.as_ref()?)));
        let of = |value: fn(&HealthView) -> u64| {
            checked.clone().map(|(b, h)| (labels(b), value(h))).collect::<Vec<_>>()
        };
        let up = of(|h| h.up.into());
        gauge(e, "backend_up", "Whether its checks find it well.", &up)?;
        counter(e, "backend_checks", "Checks made.", &of(|h| h.checks))?;
        counter(e, "backend_checks_failed", "Checks that failed.", &of(|h| h.failures))?;
        let rtt = checked.clone().filter_map(|(b, h)| Some((labels(b), h.rtt_us?)));
        let help = "Smoothed round trip of its checks' connections.";
        gauge(e, "backend_rtt_us", help, &rtt.collect::<Vec<_>>())
    }

    /// What backends' connections and engines have shown.
    pub(super) fn members(&self, e: &mut DescriptorEncoder) -> fmt::Result {
        let members = || self.0.pools.iter().flat_map(|p| p.backends.iter().map(move |m| (p, m)));
        let watched = members().filter_map(|(p, m)| Some((p, m, m.outlier.as_ref()?)));
        let out = watched.clone().map(|(p, m, o)| (of(p, m), o.out_secs.is_some().into()));
        let help = "Whether its connections have had it taken out.";
        gauge(e, "backend_out", help, &out.collect::<Vec<_>>())?;
        let times = watched.map(|(p, m, o)| (of(p, m), o.ejections.into()));
        let help = "Times in a row that they have.";
        gauge(e, "backend_out_times", help, &times.collect::<Vec<_>>())?;
        let engines = members().filter_map(|(p, m)| Some((p, m, m.engine.as_ref()?)));
        let stale = engines.clone().map(|(p, m, engine)| (of(p, m), engine.stale.into()));
        let help =
            "Whether what its engine has told is too old to be believed, or it told nothing.";
        gauge(e, "engine_stale", help, &stale.collect::<Vec<_>>())?;
        let told = |value: fn(&EngineView) -> Option<f64>| {
            let lines =
                engines.clone().filter_map(|(p, m, engine)| Some((of(p, m), value(engine)?)));
            lines.collect::<Vec<(Labels, f64)>>()
        };
        let help = "Requests in work, as its engine tells.";
        decimals(e, "engine_requests_running", help, &told(|engine| engine.running))?;
        let help = "Requests in line, as its engine tells.";
        decimals(e, "engine_requests_waiting", help, &told(|engine| engine.waiting))?;
        let help = "Share of its KV cache in use, as its engine tells.";
        decimals(e, "engine_cache_ratio", help, &told(|engine| engine.cache))
    }
}

fn of(pool: &PoolView, member: &MemberView) -> Labels {
    vec![("pool", pool.name.clone()), ("backend", member.name.clone())]
}
