//! The routers that are compared: how each is set up, started, paused.

use std::fmt::Write as _;
use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::Context;
use tempfile::TempDir;
use tidegate::lab::Process;

use crate::bed::{Bed, NAMES, NAT, PORT, ROUTER_CORE, SERVER_PORT, VIP};
use crate::work::{self, Work, started};

/// Where Debian's package libnginx-mod-stream puts it.
const NGINX_STREAM: &str = "/usr/lib/nginx/modules/ngx_stream_module.so";

/// Who routes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Nobody: the kernel forwards, clients connect to the servers.
    Forwarding,
    /// As it comes; or the program forwards joined connections by itself, which nobody times: in
    /// the driver, or behind it.
    Tidegate {
        offload: bool,
        tc: bool,
    },
    Haproxy,
    Nginx,
}

impl Kind {
    pub const ALL: [Kind; 6] = [
        Kind::Forwarding,
        Kind::Tidegate { offload: false, tc: false },
        Kind::Tidegate { offload: true, tc: false },
        Kind::Tidegate { offload: true, tc: true },
        Kind::Haproxy,
        Kind::Nginx,
    ];

    pub fn is_tidegate(self) -> bool {
        matches!(self, Kind::Tidegate { .. })
    }

    /// Whether it has no XDP program, and so makes use of merged frames.
    pub fn merges(self) -> bool {
        !matches!(self, Kind::Tidegate { tc: false, .. })
    }

    pub fn name(self) -> &'static str {
        match self {
            Kind::Forwarding => "no router (ip_forward)",
            Kind::Tidegate { offload: false, .. } => "tidegate",
            Kind::Tidegate { offload: true, tc: false } => "tidegate, offload",
            Kind::Tidegate { offload: true, tc: true } => "tidegate, offload by tc",
            Kind::Haproxy => "HAProxy, req.ssl_sni",
            Kind::Nginx => "nginx, ssl_preread",
        }
    }
}

/// A router in a bed of its own, paused but while it is measured.
pub struct Contender {
    pub kind: Kind,
    pub bed: Bed,
    pub work: Work,
    /// Connections that were opened by it.
    pub opened: usize,
    _dir: TempDir,
}

impl Contender {
    /// # Errors
    /// A program that is not installed or does not start.
    pub fn start(kind: Kind) -> anyhow::Result<Contender> {
        let bed = Bed::new()?;
        let dir = tempfile::tempdir()?;
        if kind.merges() {
            bed.offload()?;
        }
        if !kind.is_tidegate() {
            bed.router.ip(&format!("addr add {VIP}/32 dev lo"))?;
        }
        let process = match kind {
            Kind::Forwarding => {
                bed.router.sysctl("net.ipv4.ip_forward", "1")?;
                None
            }
            Kind::Tidegate { offload, tc } => Some(start_tidegate(&bed, offload, tc, dir.path())?),
            Kind::Haproxy => Some(start_haproxy(&bed, dir.path())?),
            Kind::Nginx => Some(start_nginx(&bed, dir.path())?),
        };
        let kernel_threads = bed.place()?;
        Ok(Contender { kind, bed, work: Work { process, kernel_threads }, opened: 0, _dir: dir })
    }
}

/// All of it on the router's core: on the other one, interrupts would take its control thread's
/// time for what the ends take in.
fn start_tidegate(bed: &Bed, offload: bool, tc: bool, dir: &Path) -> anyhow::Result<Process> {
    bed.servers.ip(&format!("route add {NAT}/32 via {}", crate::bed::LAN))?;
    if !offload {
        return work::start_tidegate(
            &bed.router,
            &tidegate_config("llm-edge", "off", "auto"),
            dir,
            ROUTER_CORE,
        );
    }
    let pipeline = dir.join("untimed.toml");
    fs::write(&pipeline, UNTIMED)?;
    let mode = if tc { "tc" } else { "auto" };
    let config = tidegate_config(&pipeline.display().to_string(), "auto", mode);
    work::start_tidegate(&bed.router, &config, dir, ROUTER_CORE)
}

/// `llm-edge` without what the others don't do either.
const UNTIMED: &str = "name = \"untimed\"\n\
    [[stage]]\ninspect = { hello_bytes_max = 16384, flows_max = 4096 }\n\
    [[stage]]\nclassify = {}\n[[stage]]\nbalance = {}\n";

fn tidegate_config(pipeline: &str, offload: &str, mode: &str) -> String {
    let mut text = format!(
        "pipeline = \"{pipeline}\"\n\
         [workers]\ncores = [{ROUTER_CORE}]\nidle = \"adaptive\"\nframes = 16384\n\
         offload = \"{offload}\"\n\
         flows_max = 400000\n\
         [port.wan]\ninterface = \"wan\"\nmode = \"{mode}\"\n\
         [port.lan]\ninterface = \"lan\"\nmode = \"{mode}\"\n\
         [service.bench]\nvip = \"{VIP}\"\nport = {PORT}\npool = \"p0\"\nmode = \"nat\"\n\
         bind = \"hello\"\n[nat]\naddresses = [\"{NAT}\"]\n"
    );
    for (i, (name, servers)) in NAMES.iter().enumerate() {
        let _ = write!(text, "[[rule]]\nsni = \"{name}\"\npool = \"p{i}\"\n");
        for last in servers {
            let _ = write!(
                text,
                "[[pool.p{i}.backend]]\naddress = \"10.0.2.{last}\"\nport = {SERVER_PORT}\n"
            );
        }
    }
    text
}

/// One thread; bytes are spliced by the kernel where there are many.
fn start_haproxy(bed: &Bed, dir: &Path) -> anyhow::Result<Process> {
    let mut text = format!(
        "global\n maxconn 4000\n nbthread 1\n\
         defaults\n mode tcp\n maxconn 4000\n option splice-auto\n timeout connect 5s\n \
         timeout client 60s\n timeout server 60s\n\
         frontend bench\n bind {VIP}:{PORT} backlog 65535\n tcp-request inspect-delay 5s\n \
         tcp-request content accept if {{ req.ssl_hello_type 1 }}\n"
    );
    for (i, (name, _)) in NAMES.iter().enumerate() {
        let _ = writeln!(text, " use_backend p{i} if {{ req.ssl_sni -i {name} }}");
    }
    for (i, (_, servers)) in NAMES.iter().enumerate() {
        let _ = writeln!(text, "backend p{i}");
        for last in servers {
            let _ = writeln!(text, " server s{last} 10.0.2.{last}:{SERVER_PORT}");
        }
    }
    let file = dir.join("haproxy.cfg");
    fs::write(&file, text)?;
    let mut command = Command::new("taskset");
    command.args(["-c", &ROUTER_CORE.to_string(), "haproxy", "-db", "-f"]).arg(file);
    let process = bed.router.spawn(command).context("HAProxy is of the package haproxy")?;
    started(process, "HAProxy", || listens(bed))
}

fn start_nginx(bed: &Bed, dir: &Path) -> anyhow::Result<Process> {
    let mut text = format!(
        "load_module {NGINX_STREAM};\nworker_processes 1;\ndaemon off;\nmaster_process off;\n\
         pid {dir}/nginx.pid;\nerror_log stderr crit;\n\
         events {{ worker_connections 8000; multi_accept on; }}\n\
         stream {{\n map $ssl_preread_server_name $pool {{\n",
        dir = dir.display()
    );
    for (i, (name, _)) in NAMES.iter().enumerate() {
        let _ = writeln!(text, " {name} p{i};");
    }
    text += " default p0;\n }\n";
    for (i, (_, servers)) in NAMES.iter().enumerate() {
        let _ = writeln!(text, " upstream p{i} {{");
        for last in servers {
            let _ = writeln!(text, " server 10.0.2.{last}:{SERVER_PORT};");
        }
        text += " }\n";
    }
    let _ = write!(
        text,
        " server {{ listen {VIP}:{PORT} reuseport backlog=65535; ssl_preread on; \
         proxy_pass $pool; proxy_buffer_size 64k; }}\n}}\n"
    );
    let file = dir.join("nginx.conf");
    fs::write(&file, text)?;
    let mut command = Command::new("taskset");
    command.args(["-c", &ROUTER_CORE.to_string(), "nginx", "-c"]).arg(file);
    let process = bed.router.spawn(command).context("nginx is of the package nginx-light")?;
    started(process, "nginx", || listens(bed))
        .context("its stream module is of the package libnginx-mod-stream")
}

fn listens(bed: &Bed) -> bool {
    let listening = bed.router.run("ss", &["-Hltn", "sport", "=", &format!(":{PORT}")]);
    listening.is_ok_and(|out| !out.is_empty())
}
