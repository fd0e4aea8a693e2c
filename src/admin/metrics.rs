//! The metrics page: `/metrics` in the OpenMetrics text format, `/healthz` for probes.
//!
//! Labels are ports, workers, reasons and classes: all from the configuration or from fixed lists,
//! so traffic can't make new series.

use std::fmt;
use std::net::SocketAddr;

use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::registry::{Registry, Unit};

use crate::control::Asker;
use crate::control::view::{LatencyBucket, LatencyTimes, LatencyView, LimitView, Overview, Values};
use crate::nic::steer::SteerReason;
use crate::observe::{Counters, Gauges, PortGauges};
use crate::packet::DropReason;

mod backends;
mod copies;
mod groups;

const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// Serves the pages on a bound address for as long as it is polled.
///
/// # Errors
/// Those of `accept`.
pub async fn serve(listener: tokio::net::TcpListener, asker: Asker) -> std::io::Result<()> {
    let pages = Router::new()
        .route("/metrics", get(metrics))
        .route("/healthz", get(healthz))
        .with_state(asker);
    axum::serve(listener, pages).await
}

/// Binds the configured address.
///
/// # Errors
/// One sentence for the operator.
pub async fn bind(address: SocketAddr) -> Result<tokio::net::TcpListener, String> {
    tokio::net::TcpListener::bind(address).await.map_err(|e| {
        format!("metrics address {address}: {e} (change `admin.metrics`, or stop who uses it)")
    })
}

async fn metrics(State(asker): State<Asker>) -> Response {
    match asker.overview().await.map(text) {
        Ok(Ok(body)) => ([(header::CONTENT_TYPE, CONTENT_TYPE)], body).into_response(),
        Ok(Err(_)) => StatusCode::INTERNAL_SERVER_ERROR.into_response(),
        Err(gone) => (StatusCode::SERVICE_UNAVAILABLE, gone.to_string()).into_response(),
    }
}

/// 200 while the control loop answers: it ends with its workers.
async fn healthz(State(asker): State<Asker>) -> Response {
    match asker.overview().await {
        Ok(_) => "ok\n".into_response(),
        Err(gone) => (StatusCode::SERVICE_UNAVAILABLE, gone.to_string()).into_response(),
    }
}

/// The page.
///
/// # Errors
/// Those of the encoder, which writes to memory: none in practice.
pub fn text(overview: Overview) -> Result<String, fmt::Error> {
    let mut registry = Registry::with_prefix("tidegate");
    registry.register_collector(Box::new(Page(overview)));
    let mut out = String::new();
    prometheus_client::encoding::text::encode(&mut out, &registry)?;
    Ok(out)
}

#[derive(Debug)]
struct Page(Overview);

type Labels = Vec<(&'static str, String)>;

impl Collector for Page {
    fn encode(&self, mut encoder: DescriptorEncoder) -> fmt::Result {
        let e = &mut encoder;
        self.process(e)?;
        self.workers(e)?;
        self.ports(e)?;
        self.services(e)?;
        self.backends(e)?;
        self.members(e)?;
        self.groups(e)?;
        self.classes(e)?;
        self.limits(e)?;
        self.latencies(e)?;
        self.shadows(e)?;
        self.files(e)
    }
}

impl Page {
    fn limits(&self, e: &mut DescriptorEncoder) -> fmt::Result {
        let all = &self.0.limits;
        let labels = |l: &LimitView| vec![("limit", l.name.clone()), ("of", l.of.clone())];
        let lines = |value: fn(&LimitView) -> u64| -> Vec<_> {
            all.iter().map(|l| (labels(l), value(l))).collect()
        };
        let passed = "Connections or requests that had a token.";
        counter(e, "limit_passed", passed, &lines(|l| l.passed))?;
        let delayed = "Of those, the ones that waited for it.";
        counter(e, "limit_delayed", delayed, &lines(|l| l.delayed))?;
        let refused = "Packets that would have begun a connection, SYNs among them, or requests.";
        counter(e, "limit_refused", refused, &lines(|l| l.refused))?;
        let clients = "Clients that lack tokens.";
        gauge(e, "limit_clients", clients, &lines(|l| l.clients))?;
        let crowded = "Clients whose tokens another one took over before they were complete.";
        counter(e, "limit_crowded", crowded, &lines(|l| l.crowded))
    }

    fn latencies(&self, e: &mut DescriptorEncoder) -> fmt::Result {
        let all = &self.0.latencies;
        let labels = |l: &LatencyView| vec![("of", l.of.clone()), ("name", l.name.clone())];
        let first = "From a request's last bytes to its answer's first record.";
        let lines = all.iter().map(|l| (labels(l), &l.first));
        histogram(e, "time_to_first_record", first, lines)?;
        let gap = "From an answer's record to its next.";
        let lines = all.iter().map(|l| (labels(l), &l.gap));
        histogram(e, "time_between_records", gap, lines)
    }

    fn process(&self, e: &mut DescriptorEncoder) -> fmt::Result {
        let p = &self.0.process;
        let info = vec![("version", p.version.clone()), ("pipeline", p.pipeline.clone())];
        gauge(e, "build_info", "Version and pipeline that run.", &[(info, 1)])?;
        let uptime = "Time since start.";
        gauge(e, "uptime_seconds", uptime, &[(vec![], p.uptime_secs)])?;
        let reloads = vec![
            (vec![("result", "taken".to_string())], p.reloads),
            (vec![("result", "refused".to_string())], p.reloads_refused),
            (vec![("result", "rolled_back".to_string())], p.rollbacks),
        ];
        counter(e, "reloads", "Configurations loaded while running.", &reloads)?;
        let dead = "Checks, readers of metrics and copiers that have ended by a bug.";
        gauge(e, "dead_tasks", dead, &[(vec![], p.dead)])?;
        gauge(e, "routes", "Routes mirrored from the kernel.", &[(vec![], p.routes)])?;
        let resyncs = "Times the kernel's tables were read anew, in doubt or after lost messages.";
        counter(e, "netlink_resyncs", resyncs, &[(vec![], p.netlink_resyncs)])
    }

    fn workers(&self, e: &mut DescriptorEncoder) -> fmt::Result {
        let workers = &self.0.workers;
        for (name, meaning) in Counters::NAMES.iter().zip(Counters::MEANINGS) {
            let lines = workers.iter().map(|w| (of_worker(w.worker), value(&w.counters, name)));
            counter(e, &format!("worker_{name}"), meaning, &lines.collect::<Vec<_>>())?;
        }
        for (name, meaning) in Gauges::NAMES.iter().zip(Gauges::MEANINGS) {
            let lines = workers.iter().map(|w| (of_worker(w.worker), value(&w.gauges, name)));
            let lines: Vec<_> = lines.collect();
            match name.starts_with("polls") || name.starts_with("busy") {
                true => counter(e, &format!("worker_{name}"), meaning, &lines)?,
                false => gauge(e, &format!("worker_{name}"), meaning, &lines)?,
            }
        }
        let places = workers.iter().map(|w| {
            let mut labels = of_worker(w.worker);
            labels.push(("thread", w.thread.to_string()));
            labels.push(("core", w.core.map_or("any".into(), |core| core.to_string())));
            (labels, 1)
        });
        let meaning = "Thread that runs the worker, and the core that it is pinned to.";
        gauge(e, "worker_info", meaning, &places.collect::<Vec<_>>())?;
        let drops = workers.iter().flat_map(|w| {
            DropReason::ALL.iter().map(|reason| {
                let mut labels = of_worker(w.worker);
                labels.push(("reason", reason.label().into()));
                (labels, value(&w.drops, reason.label()))
            })
        });
        counter(e, "drops", "Packets dropped, by reason.", &drops.collect::<Vec<_>>())
    }

    fn ports(&self, e: &mut DescriptorEncoder) -> fmt::Result {
        let ports = &self.0.ports;
        for (name, meaning) in PortGauges::NAMES.iter().zip(PortGauges::MEANINGS) {
            let lines = self.0.workers.iter().flat_map(|w| {
                ports.iter().zip(&w.ports).map(|(port, values)| {
                    let mut labels = vec![("port", port.name.clone())];
                    labels.extend(of_worker(w.worker));
                    (labels, value(values, name))
                })
            });
            let lines: Vec<_> = lines.collect();
            match name.starts_with("backlog") {
                true => gauge(e, &format!("port_{name}"), meaning, &lines)?,
                false => counter(e, &format!("port_{name}"), meaning, &lines)?,
            }
        }
        let modes = ports.iter().map(|p| {
            let labels = vec![
                ("port", p.name.clone()),
                ("interface", p.interface.clone()),
                ("attach", p.attach.clone()),
                ("copy", p.copy.clone()),
                ("busy_poll", p.busy_poll.to_string()),
            ];
            (labels, 1)
        });
        let modes: Vec<_> = modes.collect();
        gauge(e, "port_mode_info", "The mode that each port got.", &modes)?;
        let up: Vec<_> =
            ports.iter().map(|p| (vec![("port", p.name.clone())], u64::from(p.up))).collect();
        gauge(e, "port_up", "Whether the link is up with a carrier.", &up)?;
        let steered = ports.iter().flat_map(|p| {
            SteerReason::ALL.iter().map(|reason| {
                let labels = vec![("port", p.name.clone()), ("reason", reason.label().into())];
                (labels, value(&p.steered, reason.label()))
            })
        });
        let help = "Packets seen by the XDP program, by what it did with them and why.";
        counter(e, "steered", help, &steered.collect::<Vec<_>>())
    }

    fn classes(&self, e: &mut DescriptorEncoder) -> fmt::Result {
        let classes = &self.0.classes;
        for (name, meaning, is_gauge) in crate::control::CLASS_VALUES {
            let lines = classes.iter().filter_map(|c| {
                let labels = vec![("port", c.port.clone()), ("class", c.class.clone())];
                Some((labels, *c.values.get(name)?))
            });
            let lines: Vec<_> = lines.collect();
            match is_gauge {
                true => gauge(e, &format!("class_{name}"), meaning, &lines)?,
                false => counter(e, &format!("class_{name}"), meaning, &lines)?,
            }
        }
        Ok(())
    }
}

fn of_worker(worker: u16) -> Labels {
    vec![("worker", worker.to_string())]
}

fn value(values: &Values, name: &str) -> u64 {
    values.get(name).copied().unwrap_or(0)
}

fn histogram<'a>(
    e: &mut DescriptorEncoder,
    name: &str,
    help: &str,
    lines: impl Iterator<Item = (Labels, &'a LatencyTimes)>,
) -> fmt::Result {
    let unit = Unit::Seconds;
    let mut family =
        e.encode_descriptor(name, sentence(help), Some(&unit), MetricType::Histogram)?;
    for (labels, times) in lines {
        let bound = |b: &LatencyBucket| (b.le_secs.unwrap_or(f64::INFINITY), b.count);
        let buckets: Vec<_> = times.buckets.iter().map(bound).collect();
        let mut metric = family.encode_family(&labels)?;
        metric.encode_histogram::<Labels>(times.sum_secs, times.count, &buckets, None)?;
    }
    Ok(())
}

fn counter(
    e: &mut DescriptorEncoder,
    name: &str,
    help: &str,
    lines: &[(Labels, u64)],
) -> fmt::Result {
    let each = |value: u64| ConstCounter::new(value);
    match in_seconds(name) {
        None => family(e, (name, help, None), lines, each),
        Some((stem, of_one)) => {
            let each = |value: u64| ConstCounter::new(value as f64 / of_one);
            family(e, (stem, help, Some(&Unit::Seconds)), lines, each)
        }
    }
}

fn gauge(
    e: &mut DescriptorEncoder,
    name: &str,
    help: &str,
    lines: &[(Labels, u64)],
) -> fmt::Result {
    // Gauges are signed in the format's implementation.
    let each = |value: u64| ConstGauge::new(i64::try_from(value).unwrap_or(i64::MAX));
    match in_seconds(name) {
        None => family(e, (name, help, None), lines, each),
        Some((stem, of_one)) => {
            let each = |value: u64| ConstGauge::new(value as f64 / of_one);
            family(e, (stem, help, Some(&Unit::Seconds)), lines, each)
        }
    }
}

/// Values that are no whole numbers.
fn decimals(
    e: &mut DescriptorEncoder,
    name: &str,
    help: &str,
    lines: &[(Labels, f64)],
) -> fmt::Result {
    family(e, (name, help, None), lines, ConstGauge::new)
}

fn family<V: Copy + Default, M: EncodeMetric>(
    e: &mut DescriptorEncoder,
    (name, help, unit): (&str, &str, Option<&Unit>),
    lines: &[(Labels, V)],
    each: impl Fn(V) -> M,
) -> fmt::Result {
    let kind = each(V::default()).metric_type();
    let mut family = e.encode_descriptor(name, sentence(help), unit, kind)?;
    if let [(labels, value)] = lines
        && labels.is_empty()
    {
        return each(*value).encode(family);
    }
    for (labels, value) in lines {
        each(*value).encode(family.encode_family(labels)?)?;
    }
    Ok(())
}

/// Times are in seconds here, whatever they are elsewhere: the rest of such a value's name, and how
/// many of its own units are one.
fn in_seconds(name: &str) -> Option<(&str, f64)> {
    let units = [("_us", 1e6), ("_ns", 1e9)];
    units.iter().find_map(|(unit, of_one)| Some((name.strip_suffix(unit)?, *of_one)))
}

/// The encoder ends the help text with a full stop of its own.
fn sentence(help: &str) -> &str {
    help.trim().trim_end_matches('.')
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::view::{
        BackendView, ClassView, EngineView, FilesView, GroupView, HealthView, MemberView,
        OutlierView, PoolView, PortView, ProcessView, ShadowView, WorkerView,
    };

    fn backend() -> BackendView {
        let view = serde_json::json!({
            "pool": "gpu", "name": "a", "address": "10.0.0.1", "port": 80, "weight": 1,
            "weight_now": 1, "priority": 0, "connections": 0, "drained": false,
            "health": HealthView { rtt_us: Some(12_500), ..HealthView::default() },
        });
        serde_json::from_value(view).expect("a backend")
    }

    fn overview() -> Overview {
        let worker = WorkerView {
            worker: 1,
            core: Some(2),
            counters: [("rx_packets".to_string(), 12)].into(),
            drops: [("no_route".to_string(), 3)].into(),
            gauges: [("flows".to_string(), 4), ("busy_us".to_string(), 2_500_000)].into(),
            ports: vec![[("tx_bytes".to_string(), 99)].into()],
            ..WorkerView::default()
        };
        let port = PortView {
            name: "up\"link".into(),
            interface: "eth1".into(),
            attach: "native".into(),
            copy: "copy".into(),
            steered: [("vip".to_string(), 8)].into(),
            ..PortView::default()
        };
        let bucket = |le_secs, count| LatencyBucket { le_secs, count };
        let first = LatencyTimes {
            count: 5,
            sum_secs: 1.5,
            buckets: vec![bucket(Some(0.1), 2), bucket(Some(0.5), 2), bucket(None, 1)],
            ..LatencyTimes::default()
        };
        let (of, name) = ("class".into(), "chat".into());
        let backend = backend();
        let latency = LatencyView { of, name, first, ..LatencyView::default() };
        Overview {
            process: ProcessView { routes: 17, ..ProcessView::default() },
            workers: vec![worker],
            ports: vec![port],
            classes: vec![ClassView {
                port: "wan".into(),
                class: "chat".into(),
                values: [("sojourn_p99_ns".to_string(), 3_000_000)].into(),
                ..ClassView::default()
            }],
            backends: vec![backend],
            latencies: vec![latency],
            pools: vec![PoolView {
                name: "gpu".into(),
                groups: vec![GroupView { priority: 2, spills_percent: 35, waits: true }],
                backends: vec![MemberView {
                    name: "a".into(),
                    outlier: Some(OutlierView { out_secs: Some(3.0), ..OutlierView::default() }),
                    engine: Some(EngineView { cache: Some(0.25), ..EngineView::default() }),
                    ..MemberView::default()
                }],
                ..PoolView::default()
            }],
            shadows: vec![ShadowView {
                service: "chat".into(),
                pool: "new".into(),
                size_different: 4,
                shadow_bytes: 77,
                cut: [("slow".to_string(), 2)].into(),
                ..ShadowView::default()
            }],
            files: vec![FilesView { collector: "box".into(), failed: 3, ..FilesView::default() }],
            limits: vec![LimitView {
                name: "chat".into(),
                of: "connections".into(),
                refused: 6,
                ..LimitView::default()
            }],
            ..Overview::default()
        }
    }

    #[test]
    fn the_page_holds_every_kind_of_series() {
        let page = text(overview()).expect("page");
        for line in [
            "tidegate_worker_rx_packets_total{worker=\"1\"} 12",
            "tidegate_drops_total{worker=\"1\",reason=\"no_route\"} 3",
            "tidegate_drops_total{worker=\"1\",reason=\"martian\"} 0",
            "tidegate_pool_spill_percent{pool=\"gpu\",priority=\"2\"} 35",
            "tidegate_pool_group_waits{pool=\"gpu\",priority=\"2\"} 1",
            "tidegate_shadow_compared_total{service=\"chat\",pool=\"new\",of=\"size\",\
             result=\"different\"} 4",
            "tidegate_shadow_bytes_total{service=\"chat\",pool=\"new\",side=\"shadow\"} 77",
            "tidegate_shadow_cut_total{service=\"chat\",pool=\"new\",reason=\"slow\"} 2",
            "tidegate_collector_packets_total{collector=\"box\",result=\"failed\"} 3",
            "tidegate_worker_flows{worker=\"1\"} 4",
            "tidegate_worker_info{worker=\"1\",thread=\"0\",core=\"2\"} 1",
            "tidegate_worker_busy_seconds_total{worker=\"1\"} 2.5",
            "# UNIT tidegate_worker_busy_seconds seconds",
            "tidegate_backend_out{pool=\"gpu\",backend=\"a\"} 1",
            "tidegate_engine_stale{pool=\"gpu\",backend=\"a\"} 0",
            "tidegate_engine_cache_ratio{pool=\"gpu\",backend=\"a\"} 0.25",
            "tidegate_backend_rtt_seconds{pool=\"gpu\",backend=\"a\"} 0.0125",
            "tidegate_class_sojourn_p99_seconds{port=\"wan\",class=\"chat\"} 0.003",
            "tidegate_port_tx_bytes_total{port=\"up\\\"link\",worker=\"1\"} 99",
            "tidegate_steered_total{port=\"up\\\"link\",reason=\"vip\"} 8",
            "tidegate_routes 17",
            "tidegate_limit_refused_total{limit=\"chat\",of=\"connections\"} 6",
            "# TYPE tidegate_time_to_first_record_seconds histogram",
            "tidegate_time_to_first_record_seconds_count{of=\"class\",name=\"chat\"} 5",
            "# TYPE tidegate_worker_flows gauge",
            "# TYPE tidegate_drops counter",
        ] {
            assert!(page.lines().any(|l| l == line), "{line} not in:\n{page}");
        }
        assert!(page.contains("attach=\"native\",copy=\"copy\",busy_poll=\"false\"} 1"), "{page}");
        let bucket = |le: &str, n: u32| {
            let name = "tidegate_time_to_first_record_seconds_bucket";
            let lines = page.lines().filter(|l| l.starts_with(name));
            let labels = [format!("le=\"{le}\""), "name=\"chat\"".into()];
            let mut found = lines.filter(|l| labels.iter().all(|label| l.contains(label)));
            assert!(found.any(|l| l.ends_with(&format!(" {n}"))), "{le}: {page}");
        };
        for (le, n) in [("0.1", 2), ("0.5", 4), ("+Inf", 5)] {
            bucket(le, n);
        }
        assert!(page.ends_with("# EOF\n"));
    }

    #[test]
    fn series_do_not_grow_with_traffic() {
        let quiet = text(overview()).expect("page").lines().count();
        let mut busy = overview();
        busy.workers[0].counters.insert("rx_packets".into(), u64::MAX);
        busy.workers[0].drops.insert("something_unknown".into(), 1);
        assert_eq!(text(busy).expect("page").lines().count(), quiet);
    }
}
