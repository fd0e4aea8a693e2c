//! The configuration file as it is written. Every field may be missing here: what must be there is
//! checked while building, where a better message can be given than "missing field".

use std::time::Duration;

use serde::Deserialize;
use toml::Spanned;

use super::atoms::{
    Alpn, Bytes, Dscp, Metrics, PortNumber, PortRange, Rate, ServerName, SocketMode, StatusRange,
};
use super::copies::{FileCollector, FileShadow};
use super::limit_atoms::Often;
use super::meter_atoms::ColourAction;
use super::rule_atoms::{
    Days, Fingerprint, GrpcName, HeaderValue, HourRange, Method, OperationName, Path, ProviderName,
    ZoneName,
};
use super::splits::FilePools;
use super::tenants::Names;
use crate::base::tomlfile::{Leaf, Named, OneOrMany, Texts};
use crate::base::{Addr, Prefix};
use crate::forward::spec::MssClamp;
use crate::policy::catalogue::FileCatalogue;

/// A plain value and its place.
pub type Plain<T> = Option<Spanned<T>>;
/// A value with a notation of its own, and its place.
pub type Noted<A> = Option<Spanned<Leaf<A>>>;
/// One such value or a list, and its place.
pub type Many<A> = Option<Spanned<OneOrMany<A>>>;

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct FileConfig {
    pub pipeline: Plain<String>,
    pub workers: Plain<FileWorkers>,
    pub port: Named<FilePort>,
    pub service: Named<FileService>,
    pub pool: Named<FilePool>,
    pub nat: Plain<FileNat>,
    pub tunnel: Plain<FileTunnel>,
    pub transit: Plain<FileTransit>,
    pub tenants: Named<FileTenants>,
    pub qos: Named<FileQos>,
    pub meter: Named<FileMeter>,
    pub limit: Named<FileLimit>,
    pub dscp: Named<FileTrust>,
    pub collector: Named<FileCollector>,
    pub rule: Vec<Spanned<FileRule>>,
    pub catalogue: FileCatalogue,
    pub announce: Plain<FileAnnounce>,
    pub appliance: Plain<FileAppliance>,
    pub admin: Plain<FileAdmin>,
}

/// Where this appliance is.
#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct FileAppliance {
    pub zone: Plain<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct FileAnnounce {
    pub protocol: Plain<i64>,
    pub table: Plain<i64>,
    pub healthy_percent: Plain<i64>,
    pub withdraw_wait: Noted<Duration>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct FileWorkers {
    pub count: Plain<i64>,
    pub count_max: Plain<i64>,
    pub cores: Plain<Vec<Spanned<i64>>>,
    pub idle: Option<FileIdle>,
    pub on_failure: Option<FileOnFailure>,
    pub heartbeat_limit: Noted<Duration>,
    pub offload: Option<FileOffload>,
    pub frames: Plain<i64>,
    pub frame_size: Plain<i64>,
    pub huge_pages: Option<bool>,
    pub flows_max: Plain<i64>,
    pub half_open_max: Plain<i64>,
    pub drain_limit: Noted<Duration>,
}

#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum FileOffload {
    Auto,
    Off,
}

#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum FileIdle {
    Adaptive,
    Busy,
}

#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum FileOnFailure {
    Pass,
    Drop,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct FilePort {
    pub interface: Plain<String>,
    pub mode: Plain<FileAttach>,
    pub copy: Plain<FileCopy>,
    pub rx_ring: Plain<i64>,
    pub tx_ring: Plain<i64>,
    pub busy_poll: Plain<FileBusyPoll>,
    pub verify_checksums: Option<bool>,
    pub table: Plain<i64>,
}

#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum FileAttach {
    Auto,
    Native,
    Generic,
    Tc,
}

#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum FileCopy {
    Auto,
    ZeroCopy,
    Copy,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct FileBusyPoll {
    pub micros: Plain<i64>,
    pub budget: Plain<i64>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct FileService {
    pub vip: Noted<Addr>,
    pub port: Noted<PortNumber>,
    pub protocol: Option<FileProtocol>,
    pub pool: Plain<FilePools>,
    pub mode: Plain<FileMode>,
    pub bind: Plain<FileBind>,
    pub canary_percent: Plain<f64>,
    pub idle_timeout: Noted<Duration>,
    pub bind_timeout: Noted<Duration>,
    pub promise: Plain<FilePromise>,
    pub mss_clamp: Noted<MssClamp>,
    pub announce: Option<bool>,
    pub limit: Plain<String>,
    pub shadow: Plain<FileShadow>,
}

/// What clients are told before their backend is known.
#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct FilePromise {
    pub mss: Plain<i64>,
    pub window_scale: Plain<i64>,
    pub sack: Option<bool>,
    pub timestamps: Option<bool>,
}

#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum FileProtocol {
    Tcp,
    Udp,
}

#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum FileMode {
    Nat,
    Dnat,
    Dsr,
    Ipip,
    Gue,
}

#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum FileBind {
    Syn,
    Hello,
    Request,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct FilePool {
    pub backend: Vec<Spanned<FileBackend>>,
    pub balance: Option<FileBalance>,
    pub health: Plain<FileHealth>,
    pub panic_percent: Plain<i64>,
    pub zone_need_percent: Plain<i64>,
    pub return_after: Noted<Duration>,
    pub distance: Plain<FileDistance>,
    pub on_down: Plain<FileOnDown>,
    pub metrics: Plain<FileMetrics>,
    pub outliers: Plain<FileOutliers>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct FileOutliers {
    pub failures: Plain<i64>,
    pub error_percent: Plain<i64>,
    pub answers_min: Plain<i64>,
    pub slower_times: Plain<f64>,
    pub silent_for: Noted<Duration>,
    pub window: Noted<Duration>,
    pub eject: Noted<Duration>,
    pub eject_max: Noted<Duration>,
    pub ejected_percent_max: Plain<i64>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum FileOnDown {
    Keep,
    Reset,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct FileMetrics {
    pub port: Noted<PortNumber>,
    pub tls: Option<bool>,
    pub path: Plain<String>,
    pub interval: Noted<Duration>,
    pub timeout: Noted<Duration>,
    pub stale_after: Noted<Duration>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum FileDistance {
    None,
    Rtt,
}

#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum FileBalance {
    Maglev,
    RoundRobin,
    LeastConnections,
    LeastLoad,
    PeakEwma,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct FileHealth {
    #[serde(rename = "type")]
    pub kind: Plain<FileCheck>,
    pub port: Noted<PortNumber>,
    pub tls: Plain<bool>,
    pub sni: Plain<String>,
    pub host: Plain<String>,
    pub path: Plain<String>,
    pub status: Many<StatusRange>,
    pub body: Plain<String>,
    pub service: Plain<String>,
    pub interval: Noted<Duration>,
    pub timeout: Noted<Duration>,
    pub rise: Plain<i64>,
    pub fall: Plain<i64>,
    pub jitter_percent: Plain<i64>,
    pub slow_start: Noted<Duration>,
    pub flap_window: Noted<Duration>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum FileCheck {
    Tcp,
    Tls,
    Http,
    Http2,
    Grpc,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct FileBackend {
    pub address: Noted<Addr>,
    pub port: Noted<PortNumber>,
    pub weight: Plain<i64>,
    pub name: Plain<String>,
    pub priority: Plain<i64>,
    pub max_connections: Plain<i64>,
    pub zone: Plain<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct FileNat {
    pub addresses: Many<Addr>,
    pub ports: Noted<PortRange>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct FileTunnel {
    pub sources: Many<Prefix>,
    pub gue_port: Noted<PortNumber>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct FileTransit {
    pub prefixes: Many<Prefix>,
}

/// A group of tenants, for templates.
#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct FileTenants {
    pub names: Many<Names>,
    pub clients: Named<OneOrMany<Prefix>>,
    pub clients_within: Noted<Prefix>,
    pub clients_len: Plain<i64>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct FileQos {
    pub rate: Noted<Rate>,
    pub burst: Noted<Bytes>,
    pub overhead: Plain<i64>,
    pub mpu: Plain<i64>,
    pub mtu: Plain<i64>,
    pub default: Plain<String>,
    pub class: Named<FileClass>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct FileClass {
    pub parent: Plain<String>,
    pub rate: Noted<Rate>,
    pub ceil: Noted<Rate>,
    pub burst: Noted<Bytes>,
    pub cburst: Noted<Bytes>,
    pub priority: Plain<i64>,
    pub weight: Plain<i64>,
    pub quantum: Noted<Bytes>,
    pub overhead: Plain<i64>,
    pub mpu: Plain<i64>,
    pub limit: Noted<Bytes>,
    pub queue: Plain<FileQueue>,
    pub target: Noted<Duration>,
    pub interval: Noted<Duration>,
    pub flow_rate: Noted<Rate>,
}

#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum FileQueue {
    FqCodel,
    Fifo,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct FileMeter {
    pub classes: Plain<Texts>,
    pub port: Plain<String>,
    pub rate: Noted<Rate>,
    pub burst: Noted<Bytes>,
    pub excess_burst: Noted<Bytes>,
    pub peak_rate: Noted<Rate>,
    pub peak_burst: Noted<Bytes>,
    pub colour_aware: Option<bool>,
    pub green: Noted<ColourAction>,
    pub yellow: Noted<ColourAction>,
    pub red: Noted<ColourAction>,
}

/// How many connections and requests clients may begin.
#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct FileLimit {
    pub clients: Many<Prefix>,
    pub connections: Noted<Often>,
    pub connections_burst: Plain<i64>,
    pub requests: Noted<Often>,
    pub requests_burst: Plain<i64>,
    pub per: Option<FilePer>,
    pub client_len: Plain<i64>,
    pub client_len_v6: Plain<i64>,
    pub clients_max: Plain<i64>,
    pub action: Option<FileExcess>,
    pub delay_max: Noted<Duration>,
}

#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum FilePer {
    Client,
    All,
}

#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum FileExcess {
    Drop,
    Reset,
    Delay,
}

/// What becomes of code points of packets that come in by a port.
#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct FileTrust {
    pub trust: Option<bool>,
    pub otherwise: Noted<Dscp>,
    pub remap: Named<Leaf<Dscp>>,
}

/// A host that copies of packets are sent to.
#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct FileRule {
    pub name: Plain<String>,
    pub sni: Many<ServerName>,
    pub authority: Many<ServerName>,
    pub alpn: Many<Alpn>,
    pub ja4: Many<Fingerprint>,
    pub method: Many<Method>,
    pub path: Many<Path>,
    pub header: Plain<Named<OneOrMany<HeaderValue>>>,
    pub grpc: Many<GrpcName>,
    pub provider: Many<ProviderName>,
    pub operation: Many<OperationName>,
    pub vip: Many<Addr>,
    pub client: Many<Prefix>,
    pub server: Many<Prefix>,
    pub dscp: Many<Dscp>,
    pub port: Many<PortNumber>,
    pub bytes_over: Noted<Bytes>,
    pub time: Plain<FileTime>,
    pub class: Plain<String>,
    pub pool: Plain<FilePools>,
    pub tenant: Plain<String>,
    pub limit: Plain<String>,
    pub set_dscp: Noted<Dscp>,
    pub mirror: Plain<String>,
    pub mirror_percent: Plain<f64>,
    pub drop: Plain<bool>,
    pub reset: Plain<bool>,
}

/// When a rule applies.
#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct FileTime {
    pub zone: Noted<ZoneName>,
    pub days: Many<Days>,
    pub hours: Many<HourRange>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct FileAdmin {
    pub socket: Plain<String>,
    pub socket_mode: Noted<SocketMode>,
    pub metrics: Noted<Metrics>,
    pub metrics_public: Option<bool>,
}
