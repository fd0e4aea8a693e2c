//! The forwarders that are compared: how each is set up, started, paused.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, bail};
use tempfile::TempDir;
use tidegate::lab::{Process, wait_for};

use crate::bed::{
    BACKEND_PORT, BACKENDS, Bed, GENERATOR_CORE, NAT, ROUTER_CORE, SINK_MAC, VIP, VIP_PORT,
    show_mac,
};
use crate::kernel::{self, Placement};
use crate::napi;
use crate::sink::{Sink, Translation};
use crate::work::{self, Work};

const START_LIMIT: Duration = Duration::from_secs(20);
const DPDK: &str = "dpdk-testpmd";

/// Who forwards.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Tidegate {
        pipeline: &'static str,
        /// A class tree at the port to the sink, and rules that choose the class.
        classes: bool,
        /// The XDP program forwards flows by itself, where the kernel polls the device.
        offload: Option<Placement>,
    },
    Dpdk {
        /// Without its busy polling, which is on by default and costs system calls here.
        tuned: bool,
    },
    Kernel {
        placement: Placement,
        dnat: bool,
    },
}

impl Kind {
    pub fn all() -> Vec<Kind> {
        let tidegate = |(pipeline, classes, offload)| Kind::Tidegate { pipeline, classes, offload };
        let mut all: Vec<Kind> = [
            ("l4-balancer", false, Some(Placement::SameCore)),
            ("l4-balancer", false, Some(Placement::Threaded)),
            ("llm-edge", false, Some(Placement::SameCore)),
            ("llm-edge", false, Some(Placement::Threaded)),
            ("l4-balancer", false, None),
            ("llm-edge", true, None),
            ("router", false, None),
        ]
        .map(tidegate)
        .into();
        all.extend([false, true].map(|tuned| Kind::Dpdk { tuned }));
        for dnat in [false, true] {
            all.extend(Placement::ALL.map(|placement| Kind::Kernel { placement, dnat }));
        }
        all
    }

    pub fn name(self) -> String {
        match self {
            Kind::Tidegate { pipeline, offload: None, .. } => format!("tidegate {pipeline}"),
            Kind::Tidegate { pipeline, offload: Some(placement), .. } => {
                format!("tidegate {pipeline} offload, {}", placement.name())
            }
            Kind::Dpdk { tuned: false } => "DPDK testpmd, macfwd".to_owned(),
            Kind::Dpdk { tuned: true } => "DPDK testpmd, busy_budget=0".to_owned(),
            Kind::Kernel { placement, dnat } => {
                let what = if dnat { "nftables DNAT" } else { "ip_forward" };
                format!("Linux {what}, {}", placement.name())
            }
        }
    }

    pub fn is_offload(self) -> bool {
        matches!(self, Kind::Tidegate { offload: Some(_), .. })
    }

    pub fn translation(self) -> Translation {
        match self {
            Kind::Tidegate { pipeline: "router", .. }
            | Kind::Dpdk { .. }
            | Kind::Kernel { dnat: false, .. } => Translation::None,
            Kind::Tidegate { .. } => Translation::Full,
            Kind::Kernel { dnat: true, .. } => Translation::Destination,
        }
    }
}

/// A forwarder in a bed of its own. It is paused but while it is measured: those that poll would
/// take the router's core from the others.
pub struct Forwarder {
    pub kind: Kind,
    pub bed: Bed,
    pub work: Work,
    /// Its configuration, socket and output.
    _dir: TempDir,
}

impl Forwarder {
    /// # Errors
    /// A program that is not installed or does not start.
    pub fn start(kind: Kind, sink: Sink) -> anyhow::Result<Forwarder> {
        let bed = Bed::new()?;
        sink.open(&bed)?;
        let dir = tempfile::tempdir()?;
        let mut kernel_threads = Vec::new();
        let process = match kind {
            Kind::Tidegate { pipeline, classes, offload } => {
                let text = tidegate_config(pipeline, classes, offload.is_some());
                let process = work::start_tidegate(&bed.router, &text, dir.path(), GENERATOR_CORE)?;
                if offload == Some(Placement::Threaded) {
                    kernel_threads = napi::thread(&bed.router, "wan", ROUTER_CORE)?;
                }
                Some(process)
            }
            Kind::Dpdk { tuned } => Some(start_dpdk(&bed, tuned, dir.path())?),
            Kind::Kernel { placement, dnat } => {
                kernel_threads = kernel::forward(&bed.router, placement, dnat)?;
                None
            }
        };
        Ok(Forwarder { kind, bed, work: Work { process, kernel_threads }, _dir: dir })
    }
}

fn tidegate_config(pipeline: &str, classes: bool, offload: bool) -> String {
    let [idle, offload] = if offload { ["adaptive", "auto"] } else { ["busy", "off"] };
    let mut text = format!(
        "pipeline = \"{pipeline}\"\n\
         [workers]\ncores = [{ROUTER_CORE}]\nidle = \"{idle}\"\noffload = \"{offload}\"\n\
         frames = 16384\nflows_max = 100000\n\
         [port.wan]\ninterface = \"wan\"\n[port.lan]\ninterface = \"lan\"\n"
    );
    if pipeline == "router" {
        text += "[transit]\nprefixes = [\"0.0.0.0/0\"]\n";
        return text;
    }
    text += &format!(
        "[service.bench]\nvip = \"{VIP}\"\nport = {VIP_PORT}\n\
         protocol = \"udp\"\npool = \"bench\"\n\
         mode = \"nat\"\n[nat]\naddresses = [\"{NAT}\"]\n"
    );
    for backend in BACKENDS {
        text +=
            &format!("[[pool.bench.backend]]\naddress = \"{backend}\"\nport = {BACKEND_PORT}\n");
    }
    if classes {
        text += CLASSES;
    }
    text
}

/// More than the link carries: what the class tree costs is to be seen, not what it holds back.
const CLASSES: &str = r#"
[qos.lan]
rate = "40Gbit/s"
default = "other"
[qos.lan.class.interactive]
rate = "40%"
priority = 0
[qos.lan.class.bulk]
rate = "10%"
priority = 2
[qos.lan.class.other]
rate = "5%"
priority = 1
[[rule]]
name = "named"
sni = ["*.chat.example.com"]
class = "interactive"
[[rule]]
name = "marked"
dscp = "ef"
class = "interactive"
[[rule]]
name = "to-the-service"
vip = "203.0.113.10"
class = "bulk"
"#;

fn start_dpdk(bed: &Bed, tuned: bool, dir: &Path) -> anyhow::Result<Process> {
    let log = dir.join("testpmd.log");
    let mut command = Command::new("sh");
    command.env("RUNTIME_DIRECTORY", dir).args(["-c", &dpdk_command(tuned, &log)]);
    let mut process = bed.router.spawn(command)?;
    let read = || fs::read_to_string(&log).unwrap_or_default();
    let forwards = wait_for(START_LIMIT, DPDK, || {
        !process.is_running() || read().contains("forwards packets on")
    });
    if forwards.is_err() || !process.is_running() {
        let text = read();
        if text.contains("not found") {
            bail!("{DPDK} is missing: install the package dpdk-dev");
        }
        let from = text.char_indices().rev().nth(1_000).map_or(0, |(at, _)| at);
        bail!(
            "{DPDK} did not start (its AF_XDP driver is of the package librte-net-af-xdp23, or of \
             another number): ...{}",
            &text[from..]
        );
    }
    Ok(process)
}

/// The forwarding thread has the router's core; the first core's only waits.
fn dpdk_command(tuned: bool, log: &Path) -> String {
    let options = if tuned { ",busy_budget=0" } else { "" };
    let port = |n: u8, interface: &str| {
        format!("--vdev net_af_xdp{n},iface={interface},start_queue=0,queue_count=1{options}")
    };
    format!(
        "exec {DPDK} -l {GENERATOR_CORE},{ROUTER_CORE} --no-huge -m 256 --no-pci --no-shconf \
         --no-telemetry --file-prefix bench {} {} -- --forward-mode=mac --nb-cores=1 --auto-start \
         --total-num-mbufs=16384 --eth-peer=1,{} --stats-period=3600 > {} 2>&1",
        port(0, "wan"),
        port(1, "lan"),
        show_mac(SINK_MAC),
        log.display()
    )
}

/// # Errors
/// A program that the comparison needs is not installed; the message names its package.
pub fn check_programs() -> anyhow::Result<()> {
    let needed = [
        (DPDK, "dpdk-dev"),
        ("nft", "nftables"),
        ("clang", "clang"),
        ("ip", "iproute2"),
        ("ethtool", "ethtool"),
        ("taskset", "util-linux"),
        ("renice", "bsdutils"),
    ];
    let path = std::env::var_os("PATH").context("no PATH")?;
    let dirs: Vec<_> = std::env::split_paths(&path).collect();
    for (program, package) in needed {
        if !dirs.iter().any(|d| d.join(program).is_file()) {
            bail!("{program} is missing: install the package {package}");
        }
    }
    Ok(())
}
