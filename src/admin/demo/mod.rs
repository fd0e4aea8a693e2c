//! `tidegate demo`: a lab on this machine that shows what the appliance is for.
//!
//! Users stream tokens and download files through one narrow line, first without QoS, then with it.
//! The appliance is this same program, started with `run` in a namespace of its own; servers and
//! users are built in.

mod appliance;
mod client;
mod report;
mod server;
mod topology;

use std::io::{IsTerminal, Write};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use tokio::signal::unix::{SignalKind, signal};

use appliance::Appliance;
use client::{Load, Seen};
use report::{Phase, Report};
use server::{Identity, StreamShape};
use topology::{BULK_NAME, CEIL, CHAT_NAME, Topology};

/// Streams are read by this many users at once.
const CHAT_USERS: u32 = 12;
/// Downloads that together fill the line.
const BULK_USERS: u32 = 6;
const SHAPE: StreamShape = StreamShape { chunks: 30, interval: Duration::from_millis(20) };
/// Downloads need this long to fill the line's queue.
const WARM_UP: Duration = Duration::from_secs(3);

/// Shows, in a lab of network namespaces on this machine, how token streams fare beside downloads
/// that fill a narrow line: without QoS and with it. Needs root. Leaves nothing behind.
#[derive(clap::Args, Debug)]
#[command(after_help = "Examples:\n  tidegate demo\n  tidegate demo --seconds 30\n  \
                        tidegate demo --json > demo.json")]
pub struct DemoArgs {
    /// Seconds that each of the two runs measures.
    #[arg(long, default_value_t = 12, value_parser = clap::value_parser!(u64).range(2..=600))]
    seconds: u64,
    /// Print the figures as JSON.
    #[arg(long)]
    json: bool,
}

/// Returns what is to be printed, and how many interactive requests have failed.
///
/// # Errors
/// Without root, where a tool or a kernel feature is missing, or where the appliance does not
/// start.
pub fn run(args: &DemoArgs) -> Result<(String, u64)> {
    ensure!(
        nix::unistd::geteuid().is_root(),
        "the demo builds network namespaces and AF_XDP sockets: run it as root (sudo tidegate demo)"
    );
    let dir = Arc::new(WorkDir::create()?);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let shown = runtime.block_on(async {
        let (seconds, work) = (args.seconds, Arc::clone(&dir));
        let show = tokio::task::spawn_blocking(move || show(seconds, &work.path));
        let mut term = signal(SignalKind::terminate())?;
        let mut hang_up = signal(SignalKind::hangup())?;
        tokio::select! {
            report = show => report?.map(Some),
            _ = tokio::signal::ctrl_c() => Ok(None),
            _ = term.recv() => Ok(None),
            _ = hang_up.recv() => Ok(None),
        }
    });
    let Some(report) = shown? else {
        // Namespaces, links and the appliance go with this process; the directory is ours to
        // remove.
        dir.remove();
        eprintln!("\ninterrupted: the lab is gone");
        std::process::exit(130);
    };
    let text = match args.json {
        true => serde_json::to_string_pretty(&report)? + "\n",
        false => format!("\n{}\n", report.to_table()),
    };
    Ok((text, report.phases.iter().map(|p| p.errors).sum()))
}

fn show(seconds: u64, dir: &Path) -> Result<Report> {
    let measure = Duration::from_secs(seconds);
    let progress = Progress::new(2 * (measure + WARM_UP));
    progress.say("building the lab");
    let topology = Topology::build()?;
    let identity = Arc::new(Identity::generate(&[CHAT_NAME, BULK_NAME])?);
    let listeners = topology.listeners()?;
    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    let served = Arc::clone(&identity);
    let servers = std::thread::Builder::new().name("servers".into()).spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        runtime.block_on(async {
            tokio::select! {
                ended = server::serve(listeners, &served, SHAPE) => ended,
                _ = stopped => Ok(()),
            }
        })
    })?;
    let off = phase(&topology, &identity, false, measure, dir, &progress);
    let on = off.and_then(|off| {
        let on = phase(&topology, &identity, true, measure, dir, &progress)?;
        Ok((off, on))
    });
    let _ = stop.send(());
    servers.join().map_err(|_| anyhow::anyhow!("the servers' thread panicked"))??;
    let (off, on) = on?;
    progress.end();
    Ok(Report::new(off, on, CEIL.0 as f64 / 1e6))
}

/// One run: the appliance starts, the users come, the figures are taken, the appliance stops.
fn phase(
    topology: &Topology,
    identity: &Identity,
    qos: bool,
    measure: Duration,
    dir: &Path,
    progress: &Progress,
) -> Result<Phase> {
    let label = if qos { "QoS on" } else { "QoS off" };
    let mut appliance = Appliance::start(topology, qos, dir)?;
    let trusted = identity.certificate.clone();
    let load = Load {
        vip: SocketAddr::new(topology::VIP.parse()?, topology::PORT),
        chat_name: CHAT_NAME.into(),
        bulk_name: BULK_NAME.into(),
        chat_users: CHAT_USERS,
        bulk_users: BULK_USERS,
        chunks: SHAPE.chunks,
        warm_up: WARM_UP,
        measure,
    };
    let users = topology.users.thread("users", move || -> Result<Seen> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        runtime.block_on(client::run(load, &trusted))
    })?;
    progress.follow(&format!("{label}: filling the line"), WARM_UP);
    let before = appliance.sent_to_users()?;
    let from = Instant::now();
    progress.follow(&format!("{label}: measuring"), measure);
    let (after, took) = (appliance.sent_to_users()?, from.elapsed());
    let seen = users.join().map_err(|_| anyhow::anyhow!("the users' thread panicked"))??;
    let figures = appliance.figures()?;
    appliance.stop().context("stopping the appliance")?;
    let wan_bytes_per_s = (after - before) as f64 / took.as_secs_f64();
    Ok(Phase::new(qos, &seen, wan_bytes_per_s, figures))
}

/// A directory for configuration and control socket, removed at the end.
struct WorkDir {
    path: PathBuf,
    removed: AtomicBool,
}

impl WorkDir {
    fn create() -> Result<WorkDir> {
        let path = std::env::temp_dir().join(format!("tidegate-demo-{}", std::process::id()));
        std::fs::create_dir(&path).with_context(|| format!("creating {}", path.display()))?;
        Ok(WorkDir { path, removed: AtomicBool::new(false) })
    }

    fn remove(&self) {
        if !self.removed.swap(true, Ordering::Relaxed) {
            let _ = std::fs::remove_dir_all(&self.path);
        }
    }
}

impl Drop for WorkDir {
    fn drop(&mut self) {
        self.remove();
    }
}

/// One line on standard error that says where we are.
struct Progress {
    start: Instant,
    whole: Duration,
    terminal: bool,
}

impl Progress {
    fn new(whole: Duration) -> Progress {
        Progress { start: Instant::now(), whole, terminal: std::io::stderr().is_terminal() }
    }

    fn say(&self, what: &str) {
        let (at, whole) = (self.start.elapsed().as_secs(), self.whole.as_secs());
        let end = if self.terminal { "\r" } else { "\n" };
        let _ = write!(std::io::stderr(), "[{at:>3} of about {whole} s] {what:<40}{end}");
    }

    /// Says `what` until `time` has passed: every second on a terminal, once elsewhere.
    fn follow(&self, what: &str, time: Duration) {
        let end = Instant::now() + time;
        self.say(what);
        while let Some(left) = end.checked_duration_since(Instant::now()) {
            std::thread::sleep(left.min(Duration::from_secs(1)));
            if self.terminal {
                self.say(what);
            }
        }
    }

    fn end(&self) {
        if self.terminal {
            let _ = write!(std::io::stderr(), "{:<60}\r", "");
        }
    }
}
