//! What `show` answers, and how it is printed for people.

use std::fmt::Write;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::protocol::What;
use super::table::{Table, grouped};
use crate::control::view::{
    BackendView, HealthView, LatencyTimes, LatencyView, NeighbourView, Overview, PortView,
    ProcessView, Values, WorkerView,
};
use crate::packet::DropReason;

mod classes;
mod flows;
mod limits;
mod pools;
mod services;
mod shadows;
pub mod workers;

use classes::classes;
use pools::{connections, pools, rtt_ms, weight};
use services::services;

/// `show counters`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct CountersAnswer {
    pub process: ProcessView,
    /// Of all workers together.
    pub total: Values,
    pub workers: Vec<CountersOfWorker>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct CountersOfWorker {
    pub worker: u16,
    /// Counters, gauges, and `drops` in sum.
    pub values: Values,
}

/// `show drops`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct DropsAnswer {
    pub total: u64,
    /// Every reason there is, those that never occurred included.
    pub drops: Vec<DropLine>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct DropLine {
    pub reason: String,
    pub meaning: String,
    pub packets: u64,
    /// By worker.
    pub workers: Vec<u64>,
}

/// `show ports`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PortsAnswer {
    pub ports: Vec<PortLine>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PortLine {
    #[serde(flatten)]
    pub port: PortView,
    /// Of all workers together, beside the fields above: `rx_packets`, `tx_bytes` and so on.
    #[serde(flatten)]
    pub traffic: Values,
}

impl CountersAnswer {
    pub fn of(overview: Overview) -> CountersAnswer {
        let workers: Vec<_> = overview.workers.iter().map(CountersOfWorker::of).collect();
        let mut total = Values::new();
        for w in &workers {
            add(&mut total, &w.values);
        }
        CountersAnswer { process: overview.process, total, workers }
    }
}

impl CountersOfWorker {
    fn of(w: &WorkerView) -> CountersOfWorker {
        let mut values = w.counters.clone();
        values.extend(w.gauges.clone());
        values.insert("drops".into(), w.drops.values().sum());
        CountersOfWorker { worker: w.worker, values }
    }
}

impl DropsAnswer {
    pub fn of(overview: &Overview) -> DropsAnswer {
        let drops: Vec<_> = DropReason::ALL
            .iter()
            .map(|reason| {
                let count = |w: &WorkerView| w.drops.get(reason.label()).copied().unwrap_or(0);
                let workers: Vec<_> = overview.workers.iter().map(count).collect();
                DropLine {
                    reason: reason.label().into(),
                    meaning: reason.meaning().trim().into(),
                    packets: workers.iter().sum(),
                    workers,
                }
            })
            .collect();
        DropsAnswer { total: drops.iter().map(|r| r.packets).sum(), drops }
    }
}

impl PortsAnswer {
    pub fn of(overview: &Overview) -> PortsAnswer {
        let ports = overview.ports.iter().enumerate().map(|(i, port)| {
            let mut traffic = Values::new();
            for values in overview.workers.iter().filter_map(|w| w.ports.get(i)) {
                add(&mut traffic, values);
            }
            PortLine { port: port.clone(), traffic }
        });
        PortsAnswer { ports: ports.collect() }
    }
}

fn add(sum: &mut Values, values: &Values) {
    for (name, value) in values {
        *sum.entry(name.clone()).or_default() += value;
    }
}

/// The answer as tables.
///
/// # Errors
/// An answer of another shape: the appliance is of another version.
pub fn print(what: What, answer: Value) -> Result<String, serde_json::Error> {
    Ok(match what {
        What::Counters => counters(&serde_json::from_value(answer)?),
        What::Workers => workers::workers(&serde_json::from_value(answer)?),
        What::Drops => drops(&serde_json::from_value(answer)?),
        What::Flows => flows::table(&serde_json::from_value(answer)?),
        What::Services => services(&list("services", answer)?),
        What::Backends => backends(&list("backends", answer)?),
        What::Pools => pools(&list("pools", answer)?),
        What::Limits => limits::limits(&list("limits", answer)?),
        What::Latency => latencies(&list("latencies", answer)?),
        What::Shadow => shadows::shadows(&list("shadows", answer)?),
        What::Ports => ports(&serde_json::from_value(answer)?),
        What::Neighbours => neighbours(&list("neighbours", answer)?),
        What::Qos => classes(&list("classes", answer)?),
    })
}

fn link_state(port: &PortView) -> &'static str {
    match port {
        p if p.up => "up",
        p if p.replaced => "replaced",
        p if p.ifindex == 0 => "gone",
        _ => "down",
    }
}

/// What is under `key`: lists are answered as `{"services": […]}`, so that they can grow fields.
fn list<T: DeserializeOwned>(key: &str, mut answer: Value) -> Result<Vec<T>, serde_json::Error> {
    serde_json::from_value(answer.get_mut(key).map(Value::take).unwrap_or_default())
}

fn counters(a: &CountersAnswer) -> String {
    let p = &a.process;
    let mut out = format!(
        "tidegate {} (pid {}), up {}, pipeline {}, {} ({} reloads, {} refused{})\n\n",
        p.version,
        p.pid,
        duration(p.uptime_secs),
        p.pipeline,
        p.config,
        p.reloads,
        p.reloads_refused,
        p.on_trial_secs.map_or(String::new(), |secs| format!(", on trial for {secs} s"))
            + &dead(p.dead),
    );
    let mut headings = vec!["counter", ">total"];
    // Names of columns are static: beyond eight workers only the total is shown.
    const WORKERS: [&str; 8] = [
        ">worker 0",
        ">worker 1",
        ">worker 2",
        ">worker 3",
        ">worker 4",
        ">worker 5",
        ">worker 6",
        ">worker 7",
    ];
    let columns = if a.workers.len() <= WORKERS.len() { a.workers.len() } else { 0 };
    headings.extend(&WORKERS[..columns]);
    let mut table = Table::new(&headings);
    for (name, total) in &a.total {
        let mut row = vec![name.clone(), grouped(*total)];
        let of = |w: &CountersOfWorker| grouped(w.values.get(name).copied().unwrap_or(0));
        row.extend(a.workers.iter().take(columns).map(of));
        table.row_of(row);
    }
    let _ = write!(out, "{table}");
    out
}

fn drops(a: &DropsAnswer) -> String {
    let mut table = Table::new(&[">packets", "reason", "meaning"]);
    let mut lines: Vec<_> = a.drops.iter().filter(|l| l.packets > 0).collect();
    lines.sort_by(|x, y| y.packets.cmp(&x.packets).then_with(|| x.reason.cmp(&y.reason)));
    for line in lines {
        table.row([grouped(line.packets), line.reason.clone(), line.meaning.clone()]);
    }
    or_none(&table, "no packet was dropped")
}

fn backends(lines: &[BackendView]) -> String {
    let mut table = Table::new(&[
        "pool",
        "backend",
        "address",
        ">weight",
        ">connections",
        ">rtt ms",
        "port",
        "next hop",
        "mac",
        "state",
    ]);
    let mut unwell = String::new();
    for b in lines {
        let dash = || "-".to_string();
        let link = match (&b.unreachable, &b.mac) {
            (Some(why), _) => why.clone(),
            (None, Some(_)) => "reachable".into(),
            (None, None) => "unresolved".into(),
        };
        let state = standing(b).into_iter().chain([link]).collect::<Vec<_>>().join(", ");
        if let Some(HealthView { up: false, last_error: Some(error), .. }) = &b.health {
            let _ = writeln!(unwell, "{}/{}: {error}", b.pool, b.name);
        }
        table.row([
            b.pool.clone(),
            b.name.clone(),
            std::net::SocketAddr::new(b.address, b.port).to_string(),
            weight(b.weight_now, b.weight),
            connections(b.connections, b.max_connections),
            b.health.as_ref().and_then(|h| h.rtt_us).map_or_else(dash, rtt_ms),
            b.via_port.clone().unwrap_or_else(dash),
            b.next_hop.map_or_else(dash, |a| a.to_string()),
            b.mac.clone().unwrap_or_else(dash),
            state,
        ]);
    }
    let table = or_none(&table, "no backends");
    match unwell.is_empty() {
        true => table,
        false => format!("{table}\n{unwell}"),
    }
}

/// What a backend's checks and the operator say of it.
fn standing(b: &BackendView) -> Vec<String> {
    let since = |h: &HealthView| match h.changed_secs {
        Some(secs) => format!(" for {}", duration(secs as u64)),
        None => String::new(),
    };
    let health = b.health.as_ref().map(|h| match (h.up, h.panic) {
        (true, _) => format!("up{}", since(h)),
        (false, true) => format!("down{}, in use for want of others", since(h)),
        (false, false) => format!("down{}", since(h)),
    });
    let drained = b.drained.then(|| "drained".to_string());
    health.into_iter().chain(drained).collect()
}

fn latencies(lines: &[LatencyView]) -> String {
    let mut table = Table::new(&[
        "of",
        "name",
        ">answers",
        ">p50 ms",
        ">p95 ms",
        ">p99 ms",
        ">records after",
        ">gap p50 ms",
        ">p95 ms",
        ">p99 ms",
    ]);
    let ms = |ms: Option<f64>| ms.map_or("-".to_string(), |ms| format!("{ms:.1}"));
    let cells = |t: &LatencyTimes| [grouped(t.count), ms(t.p50_ms), ms(t.p95_ms), ms(t.p99_ms)];
    for l in lines {
        let mut row = vec![l.of.clone(), l.name.clone()];
        row.extend(cells(&l.first).into_iter().chain(cells(&l.gap)));
        table.row_of(row);
    }
    or_none(&table, "no answers timed (they are by the `timing` stage of a pipeline)")
}

fn ports(a: &PortsAnswer) -> String {
    let mut table = Table::new(&[
        "port",
        "interface",
        "state",
        "xdp",
        "frames",
        "busy poll",
        ">queues",
        ">mtu",
        "mac",
        ">rx packets",
        ">tx packets",
        ">missed",
        ">backlog",
    ]);
    let mut steered = Table::new(&["port", ">packets", "steered"]);
    let mut offload = String::new();
    for PortLine { port: p, traffic } in &a.ports {
        let value = |name: &str| grouped(traffic.get(name).copied().unwrap_or(0));
        table.row([
            p.name.clone(),
            p.interface.clone(),
            link_state(p).into(),
            p.attach.clone(),
            p.copy.clone(),
            if p.busy_poll { "on".into() } else { "off".into() },
            p.queues.to_string(),
            p.mtu.to_string(),
            p.mac.clone().unwrap_or_else(|| "-".into()),
            value("rx_packets"),
            value("tx_packets"),
            value("rx_missed"),
            value("backlog_packets"),
        ]);
        if p.offload != "off" && !p.offload.is_empty() {
            let _ = writeln!(offload, "  {}: {}", p.name, p.offload);
        }
        for (reason, packets) in p.steered.iter().filter(|(_, n)| **n > 0) {
            steered.row([p.name.clone(), grouped(*packets), reason.clone()]);
        }
    }
    let mut text = table.to_string();
    if !offload.is_empty() {
        let _ = write!(text, "\nflows offloaded to the port:\n{offload}");
    }
    if !steered.is_empty() {
        let _ = write!(text, "\n{steered}");
    }
    text
}

fn neighbours(lines: &[NeighbourView]) -> String {
    let mut table = Table::new(&["port", "address", "mac", "state"]);
    for n in lines {
        let mac = n.mac.clone().unwrap_or_else(|| "-".into());
        table.row([n.port.clone(), n.address.to_string(), mac, n.state.clone()]);
    }
    or_none(&table, "no neighbours")
}

fn or_none(table: &Table, none: &str) -> String {
    match table.is_empty() {
        true => format!("{none}\n"),
        false => table.to_string(),
    }
}

/// `93784` seconds as `1d 2h 3m 4s`.
fn duration(secs: u64) -> String {
    let mut out = String::new();
    let parts = [(86_400, 'd'), (3_600, 'h'), (60, 'm'), (1, 's')];
    let mut left = secs;
    for (unit, letter) in parts {
        let n = left / unit;
        left %= unit;
        if n > 0 {
            let _ = write!(out, "{n}{letter} ");
        }
    }
    match out.trim_end() {
        "" => "0s".into(),
        text => text.into(),
    }
}

/// What should not happen is not passed over.
fn dead(count: u64) -> String {
    match count {
        0 => String::new(),
        _ => format!(", {count} checks or copiers have ended by a bug, see the log"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn overview() -> Overview {
        let worker = |worker, rx: u64| WorkerView {
            worker,
            counters: [("rx_packets".to_string(), rx)].into(),
            drops: [("no_route".to_string(), rx / 10)].into(),
            gauges: [("flows".to_string(), 1)].into(),
            ports: vec![[("rx_packets".to_string(), rx)].into()],
            ..WorkerView::default()
        };
        Overview {
            workers: vec![worker(0, 1_000), worker(1, 50)],
            ports: vec![PortView {
                name: "up".into(),
                steered: [("vip".to_string(), 7), ("local".to_string(), 0)].into(),
                ..PortView::default()
            }],
            ..Overview::default()
        }
    }

    fn shown<T: Serialize>(what: What, answer: &T) -> String {
        print(what, serde_json::to_value(answer).expect("json")).expect("own answer")
    }

    #[test]
    fn workers_are_summed() {
        let answer = CountersAnswer::of(overview());
        assert_eq!(answer.total["rx_packets"], 1_050);
        assert_eq!(answer.total["drops"], 105);
        let text = shown(What::Counters, &answer);
        assert!(text.contains("rx_packets  1 050     1 000        50"), "{text}");
        let ports = PortsAnswer::of(&overview());
        assert_eq!(ports.ports[0].traffic["rx_packets"], 1_050);
        let text = shown(What::Ports, &ports);
        assert!(text.contains("vip") && !text.contains("local"), "{text}");
    }

    #[test]
    fn drops_list_all_reasons_to_programs_and_the_real_ones_to_people() {
        let answer = DropsAnswer::of(&overview());
        assert_eq!((answer.total, answer.drops.len()), (105, DropReason::COUNT));
        let text = shown(What::Drops, &answer);
        assert!(text.contains("    105  no_route  No route to the destination"), "{text}");
        assert_eq!(text.lines().count(), 2);
    }

    #[test]
    fn empty_answers_say_so() {
        for (what, key) in [
            (What::Services, "services"),
            (What::Backends, "backends"),
            (What::Pools, "pools"),
            (What::Latency, "latencies"),
            (What::Limits, "limits"),
            (What::Neighbours, "neighbours"),
            (What::Qos, "classes"),
        ] {
            let text = print(what, serde_json::json!({ key: [] })).expect("a list");
            assert!(text.starts_with("no "), "{text}");
        }
        assert_eq!(shown(What::Flows, &crate::control::view::FlowsView::default()), "no flows\n");
    }

    #[test]
    fn durations_read_well() {
        for (secs, text) in [(0, "0s"), (59, "59s"), (7440, "2h 4m"), (93_784, "1d 2h 3m 4s")] {
            assert_eq!(duration(secs), text);
        }
    }
}
