//! What the appliance tells of itself: plain data, in the units that `--json` prints.
//!
//! Field names are part of the command line's contract: programs read them. Counts are since start.

use std::collections::BTreeMap;
use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use crate::config::Difference;

mod class;
mod seen;

pub use class::ClassView;
pub use seen::SeenView;

/// Counters or gauges by name.
pub type Values = BTreeMap<String, u64>;

/// Everything but the flows, as of one moment.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Overview {
    pub process: ProcessView,
    pub workers: Vec<WorkerView>,
    pub ports: Vec<PortView>,
    pub services: Vec<ServiceView>,
    pub backends: Vec<BackendView>,
    pub pools: Vec<PoolView>,
    pub neighbours: Vec<NeighbourView>,
    pub classes: Vec<ClassView>,
    pub latencies: Vec<LatencyView>,
    pub limits: Vec<LimitView>,
    #[serde(default)]
    pub shadows: Vec<ShadowView>,
    #[serde(default)]
    pub files: Vec<FilesView>,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct ProcessView {
    pub version: String,
    pub pid: u32,
    pub uptime_secs: u64,
    pub config: String,
    pub pipeline: String,
    /// Configurations taken over since start.
    pub reloads: u64,
    /// Configurations refused since start.
    pub reloads_refused: u64,
    /// Configurations that were taken back since start, because nobody confirmed them in time.
    #[serde(default)]
    pub rollbacks: u64,
    /// Of what runs in the background (health checks, readers of metrics, shadows and files), what
    /// has ended by a bug.
    #[serde(default)]
    pub dead: u64,
    /// The configuration is taken back after this, unless it is confirmed.
    #[serde(default)]
    pub on_trial_secs: Option<u64>,
    /// Routes of the kernel that packets are forwarded by.
    pub routes: u64,
    /// Times that the kernel's tables were read anew, after lost notifications or in doubt.
    pub netlink_resyncs: u64,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct WorkerView {
    pub worker: u16,
    /// That runs it.
    #[serde(default)]
    pub thread: u16,
    /// That the thread is pinned to.
    #[serde(default)]
    pub core: Option<usize>,
    #[serde(default)]
    pub core_wanted: Option<usize>,
    /// Share of the last second that went into turns which moved packets.
    #[serde(default)]
    pub busy_percent: f64,
    pub counters: Values,
    /// By label of the reason.
    pub drops: Values,
    pub gauges: Values,
    /// In the order of [`Overview::ports`].
    pub ports: Vec<Values>,
}

/// One port: what was configured, what was got, what the XDP program did.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct PortView {
    pub name: String,
    pub interface: String,
    /// Index of the interface; 0 where it is gone.
    pub ifindex: u32,
    pub mac: Option<String>,
    pub mtu: u32,
    /// Administratively up and with a carrier.
    pub up: bool,
    /// The interface is gone, and another one has its name: only a new start uses that.
    pub replaced: bool,
    /// `native` or `generic`.
    pub attach: String,
    /// `zero-copy` or `copy`.
    pub copy: String,
    pub busy_poll: bool,
    pub queues: u32,
    /// Whether the XDP programs forward flows out by it themselves: `off`, `yes` with what stays
    /// with the workers all the same, or `no` with the reason.
    pub offload: String,
    /// Packets seen by the XDP program, by what it did with them and why.
    pub steered: Values,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ServiceView {
    pub name: String,
    pub vip: IpAddr,
    pub port: u16,
    /// `tcp` or `udp`.
    pub protocol: String,
    /// `nat`, `dnat` or `dsr`.
    pub mode: String,
    pub pool: String,
    /// Backends that get new flows.
    pub backends: usize,
    /// It gets no new flows by the operator's word.
    pub drained: bool,
    /// Whether its VIP has a route for routing daemons; `None` where it is not to have one.
    #[serde(default)]
    pub announced: Option<bool>,
    /// Share of clients that are taken, in percent.
    pub canary_percent: f64,
    pub idle_established_secs: u64,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct BackendView {
    pub pool: String,
    pub name: String,
    pub address: IpAddr,
    pub port: u16,
    /// As configured.
    pub weight: u16,
    /// That new flows are shared out by, beside the pool's others. All of a pool may be multiplied
    /// by the same; with `distance`, those of other zones say what each gets of what spills.
    pub weight_now: u16,
    /// Gets new flows only where no backend of a lower number may take more.
    pub priority: u8,
    /// That have begun and not ended, of all pools that have this address and port.
    pub connections: u64,
    pub max_connections: Option<u32>,
    /// It gets no new flows by the operator's word.
    pub drained: bool,
    /// `None` where it is not checked.
    pub health: Option<HealthView>,
    /// Name of the port that leads there; `None`: no route by a port of ours.
    pub via_port: Option<String>,
    pub next_hop: Option<IpAddr>,
    /// Of the next hop, once resolved.
    pub mac: Option<String>,
    /// Why it can't be reached; `None` where it can, as far as the kernel's tables tell.
    pub unreachable: Option<String>,
}

/// A pool, and what its backends are chosen by.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct PoolView {
    pub name: String,
    /// `maglev`, `round-robin`, `least-connections`, `least-load` or `peak-ewma`.
    pub balance: String,
    /// So few of its backends are well that all get new flows.
    pub panic: bool,
    /// Where the appliance is.
    #[serde(default)]
    pub zone: Option<String>,
    /// Other zones, the nearest one first; none where they are not measured.
    #[serde(default)]
    pub nearest: Vec<String>,
    /// By priority, those that backends have.
    #[serde(default)]
    pub groups: Vec<GroupView>,
    pub backends: Vec<MemberView>,
}

/// Backends of one priority.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct GroupView {
    pub priority: u8,
    /// Share of new flows that goes to backends of other zones, which this one has no capacity for.
    pub spills_percent: u8,
    /// Well again, but not for long enough to get new flows back.
    pub waits: bool,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct MemberView {
    pub name: String,
    pub priority: u8,
    #[serde(default)]
    pub zone: Option<String>,
    /// As configured.
    pub weight: u16,
    /// See [`BackendView::weight_now`].
    pub weight_now: u16,
    pub connections: u64,
    pub max_connections: Option<u32>,
    /// Of the times to first records of late, fading; `None`: none was timed.
    pub first_record_peak_ms: Option<f64>,
    pub drained: bool,
    /// `None` where it is not checked.
    pub up: Option<bool>,
    /// Taken out by what its connections have shown; `None` where those are not looked at.
    pub outlier: Option<OutlierView>,
    /// `None` where the metrics of its engine are not read.
    pub engine: Option<EngineView>,
}

/// Whether a backend was taken out by what its connections have shown.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct OutlierView {
    /// Until it is tried again; `None`: it is in use.
    pub out_secs: Option<f64>,
    /// Times in a row that it was taken out.
    pub ejections: u32,
    /// Why, the last time.
    pub reason: Option<String>,
}

/// What an inference engine has told of itself.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct EngineView {
    /// `vLLM`, `SGLang`, `trtllm-serve`, `Triton` or `TGI`; `None`: it has told nothing yet.
    pub name: Option<String>,
    /// Requests in work.
    pub running: Option<f64>,
    /// Requests in line.
    pub waiting: Option<f64>,
    /// Share of the KV cache in use.
    pub cache: Option<f64>,
    /// Since it told that.
    pub age_secs: Option<f64>,
    /// Too old to be believed, or never told: backends are chosen by their connections.
    pub stale: bool,
    /// Of the last reading, where it failed.
    pub error: Option<String>,
}

/// What the checks of a backend found.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct HealthView {
    pub up: bool,
    /// So few backends of its pool are well that it gets new flows whether it is or not.
    pub panic: bool,
    pub checks: u64,
    pub failures: u64,
    /// Of the last check that failed.
    pub last_error: Option<String>,
    /// Since it was taken out or came back last; `None`: never.
    pub changed_secs: Option<f64>,
    /// Times that it fell soon after its return; each doubles what its next return takes.
    pub flaps: u32,
    /// From SYN to SYN-ACK of its checks' connections, smoothed; `None`: none was measured.
    #[serde(default)]
    pub rtt_us: Option<u64>,
    /// The least of the last 16.
    #[serde(default)]
    pub rtt_min_us: Option<u64>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct NeighbourView {
    pub port: String,
    pub address: IpAddr,
    pub mac: Option<String>,
    /// `reachable`, `stale`, `incomplete`, `failed` or `permanent`.
    pub state: String,
}

/// What a limit counts, and what it did since it is there.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct LimitView {
    pub name: String,
    /// `connections` or `requests`.
    pub of: String,
    /// `client`, or `all` clients together.
    pub per: String,
    pub per_sec: f64,
    pub burst: u32,
    /// `drop`, `reset` or `delay`.
    pub action: String,
    /// That had a token.
    pub passed: u64,
    /// Of those, the ones that waited for it.
    #[serde(default)]
    pub delayed: u64,
    /// Packets that would have begun a connection, SYNs among them, or requests.
    pub refused: u64,
    /// Clients that lack tokens now.
    pub clients: u64,
    /// Clients whose tokens another one took over before they were complete, for want of room.
    pub crowded: u64,
}

/// How a shadow's answers compare with the original's.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct ShadowView {
    pub service: String,
    /// That hears requests besides.
    pub pool: String,
    /// Share of the connections, in percent.
    pub percent: f64,
    /// Begun to the pool, and those that go on.
    pub connections: u64,
    pub open: u64,
    /// Sent to the pool.
    pub requests: u64,
    /// Requests with both answers, by whether their status is the same.
    pub status_same: u64,
    pub status_different: u64,
    /// The same by the sizes of their bodies.
    pub size_same: u64,
    pub size_different: u64,
    /// Of those bodies, together.
    pub original_bytes: u64,
    pub shadow_bytes: u64,
    /// Connections to the pool that were cut, by reason.
    pub cut: Values,
    /// From a request's last byte to the first of the answer's body, of the same requests.
    pub original_first: LatencyTimes,
    pub shadow_first: LatencyTimes,
}

/// Files of a collector.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct FilesView {
    pub collector: String,
    pub dir: String,
    /// Frames written.
    pub packets: u64,
    /// Frames that could not be.
    pub failed: u64,
}

/// How long answers take, of one class, one service or one backend; all workers together.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct LatencyView {
    /// `class`, `service` or `backend`.
    pub of: String,
    pub name: String,
    /// From a request's last bytes to its answer's first record.
    pub first: LatencyTimes,
    /// From an answer's record to its next.
    pub gap: LatencyTimes,
}

/// A histogram and what follows from it.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct LatencyTimes {
    pub count: u64,
    pub sum_secs: f64,
    pub p50_ms: Option<f64>,
    pub p95_ms: Option<f64>,
    pub p99_ms: Option<f64>,
    pub buckets: Vec<LatencyBucket>,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct LatencyBucket {
    /// Its upper bound; the last one has none.
    pub le_secs: Option<f64>,
    /// In this bucket alone.
    pub count: u64,
}

/// Flows as listed.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct FlowsView {
    pub flows: Vec<FlowView>,
    /// Flows in all tables, listed or not.
    pub total: u64,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct FlowView {
    pub worker: u16,
    /// `transit`, `nat`, `dnat` or `dsr`.
    pub kind: String,
    /// `tcp`, `udp`, `icmp`, `icmp6`, or a number.
    pub protocol: String,
    /// Address and port that opened the flow.
    pub client: String,
    /// Address and port that it was opened to.
    pub server: String,
    /// Name of the service.
    pub service: Option<String>,
    /// Address and port that serve it, where others than `server`.
    pub backend: Option<String>,
    pub class: Option<String>,
    /// Server name of the ClientHello.
    pub sni: Option<String>,
    #[serde(flatten)]
    pub seen: SeenView,
    pub state: String,
    /// From the client.
    pub packets_forward: u64,
    /// To the client.
    pub packets_reply: u64,
    pub bytes_forward: u64,
    pub bytes_reply: u64,
    /// The XDP program forwards what comes from the client.
    pub offloaded_forward: bool,
    /// And what goes to the client.
    pub offloaded_reply: bool,
    pub idle_secs: f64,
}

/// How far draining is.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DrainView {
    /// What is drained, or was.
    pub target: String,
    pub drained: bool,
    /// Flows that it still serves; those of connections that have ended are not counted.
    pub flows: u64,
    /// Flows that were cut, where that was asked for.
    pub cut: Option<u64>,
    /// What else is drained that keeps new flows away from it, wholly or in part.
    #[serde(default)]
    pub still_drained: Vec<String>,
}

/// What a reload did.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReloadView {
    pub config: String,
    pub pipeline: String,
    pub services: usize,
    pub backends: usize,
    pub rules: usize,
    /// Ports that came, by name; those that were opened anew are here and below.
    #[serde(default)]
    pub ports_opened: Vec<String>,
    /// Ports that went.
    #[serde(default)]
    pub ports_closed: Vec<String>,
    /// Nothing differed from what runs.
    pub unchanged: bool,
    /// It is undone after this, unless it is confirmed.
    #[serde(default)]
    pub confirm_within_secs: Option<u64>,
    /// How long packets waited at most while a worker took it over, microseconds.
    #[serde(default)]
    pub blocked_us: u64,
    /// Of that, what workers took at most; in the rest others had their cores.
    #[serde(default)]
    pub worked_us: u64,
    pub warnings: Vec<String>,
}

/// What a reload would do.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct DifferenceView {
    pub config: String,
    /// Nothing would change; what differs is written otherwise only.
    pub unchanged: bool,
    pub changes: Vec<Difference>,
    /// Ports that would come; those that would be opened anew are here and below.
    pub ports_opened: Vec<String>,
    /// Ports that would go.
    pub ports_closed: Vec<String>,
    /// Keys that can't change while it runs, with both values: a reload would be refused.
    pub needs_restart: Vec<String>,
    /// Why else a reload would be refused.
    pub refused: Option<String>,
    pub warnings: Vec<String>,
}

/// `02:00:5e:00:53:01`.
pub fn mac_text(mac: [u8; 6]) -> String {
    let [a, b, c, d, e, f] = mac;
    format!("{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{f:02x}")
}

/// Name of an IP protocol number; the number itself where it has no common one.
pub fn protocol_text(proto: u8) -> String {
    match proto {
        1 => "icmp".into(),
        6 => "tcp".into(),
        17 => "udp".into(),
        58 => "icmp6".into(),
        other => other.to_string(),
    }
}
