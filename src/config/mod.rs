//! Configuration files: `File*` types that deny unknown fields, built into one valid [`Config`].
//!
//! [`load`] tells every fault it finds, each with its file, line and column. Facts of the machine
//! (interfaces, cores, memory, routes) are left to the start of the appliance, so that a file can
//! be checked anywhere.

mod atoms;
mod build;
mod copies;
mod diff;
pub mod engines;
mod file;
pub mod health;
mod limit_atoms;
mod load;
mod meter_atoms;
pub mod outliers;
mod rule_atoms;
mod splits;
mod templates;
mod tenants;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use crate::forward::spec::{ForwardSpec, ServiceId};
use crate::graph::spec::PipelineSpec;
use crate::nic::spec::PortSpec;
use crate::packet::FilesId;
use crate::policy::catalogue::Catalogue;
use crate::policy::spec::RuleSpec;
use crate::qos::limits::LimitsSpec;
use crate::qos::meters::MeteringSpec;
use crate::qos::spec::PortQosSpec;
use crate::worker::spec::WorkersSpec;

pub use crate::base::diag::{Diagnostic, Diagnostics, Severity};
pub use atoms::{Bytes, Rate};
pub use build::{Build, tree_alone};
pub use diff::{Change, Difference, Written};
pub use file::{FileQos, Noted, Plain};
pub use load::{load, load_over, load_source, load_text, read_source};

/// A whole configuration, valid: every name is resolved and every limit checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// The file it was read from.
    pub path: PathBuf,
    pub workers: WorkersSpec,
    /// `workers.frames` stands in the file; otherwise it follows from the ports, and a reload keeps
    /// it.
    pub frames_given: bool,
    pub ports: Vec<PortSpec>,
    pub forward: ForwardSpec,
    /// By [`crate::forward::spec::PoolId`].
    pub health: Vec<health::PoolHealth>,
    /// By pool: how engines' metrics are read, where they are.
    pub metrics: Vec<Option<engines::MetricsSpec>>,
    /// By pool: when backends are taken out by what their connections show.
    pub outliers: Vec<Option<outliers::OutlierSpec>>,
    /// Ports without an entry are plain FIFOs.
    pub qos: Vec<PortQosSpec>,
    /// Names of all classes, by [`crate::packet::ClassId`].
    pub class_names: Vec<String>,
    pub rules: Vec<RuleSpec>,
    pub metering: MeteringSpec,
    pub limits: LimitsSpec,
    /// Names of all tenants, by the number that rules have.
    pub tenant_names: Vec<String>,
    /// The catalogue of LLM APIs, with the configuration's changes.
    pub catalogue: Catalogue,
    /// Collectors that keep copies in files.
    pub files: Vec<FilesSpec>,
    pub announce: AnnounceSpec,
    pub pipeline: PipelineSpec,
    pub admin: AdminSpec,
    /// What is allowed but probably not meant, to be told to the operator.
    pub warnings: Vec<Diagnostic>,
    /// What the files say, for differences to be told.
    pub written: Written,
}

/// Files that copies of packets are kept in: the oldest goes where a new one is begun.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FilesSpec {
    pub id: FilesId,
    /// The collector's; files are named after it.
    pub name: String,
    pub dir: PathBuf,
    /// Files at most.
    pub count: u32,
    /// Bytes of one at most.
    pub size: u64,
}

/// What is told to a routing daemon.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AnnounceSpec {
    /// Services whose VIP gets a route while they are served, in order.
    pub services: Vec<ServiceId>,
    /// `rtm_protocol` of the routes.
    pub protocol: u8,
    /// The kernel's table that they go to.
    pub table: u32,
    /// Share of a pool's backends that must be well; one at least.
    pub healthy_percent: u8,
    /// From withdrawing until nothing more is taken in, at the end.
    pub withdraw_wait: Duration,
}

/// The control socket and the metrics page.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AdminSpec {
    pub socket: PathBuf,
    /// Permission bits of the socket, such as 0o660.
    pub socket_mode: u32,
    /// Where `/metrics` is served; `None`: nowhere.
    pub metrics: Option<SocketAddr>,
}
