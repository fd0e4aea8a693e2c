//! `tidegate run`: the appliance, its control socket and its metrics page, on one thread.

use std::path::Path;

use super::check::tell;
use super::commands::Failure;
use super::metrics;
use super::server::ControlSocket;
use crate::config::{self, Config};
use crate::control::{Appliance, Asker, Signals, ask};

/// Runs until a signal or `stop`.
///
/// # Errors
/// Exit code 2 with a faulty configuration; 1 where the appliance can't start or ends by itself.
pub fn run(path: &Path) -> Result<(), Failure> {
    let config = config::load(path).map_err(|faults| {
        tell(faults.iter());
        Failure::Told(2)
    })?;
    for warning in &config.warnings {
        tracing::warn!("{warning}");
    }
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|e| Failure::Failed(format!("the control thread can't start: {e}")))?;
    runtime.block_on(serve(config))
}

async fn serve(config: Config) -> Result<(), Failure> {
    let signals = Signals::install()
        .map_err(|e| Failure::Failed(format!("signals can't be received: {e}")))?;
    // Before anything is changed: whether this is the only appliance here.
    let socket = ControlSocket::bind(&config.admin).map_err(failed)?;
    let page = match config.admin.metrics {
        Some(address) => Some(metrics::bind(address).await.map_err(Failure::Failed)?),
        None => None,
    };
    let (pipeline, path) = (config.pipeline.name.clone(), config.path.display().to_string());
    let at = socket.path().display().to_string();
    let metrics_at = config.admin.metrics.map(|a| a.to_string());
    let appliance = Appliance::boot(config).await.map_err(failed)?;
    tracing::info!(
        version = env!("CARGO_PKG_VERSION"),
        config = path,
        pipeline,
        socket = at,
        metrics = metrics_at,
        "running"
    );
    let (asker, asks) = ask::channel();
    let ended = tokio::select! {
        ended = crate::control::run(appliance, asks, signals) => ended,
        never = pages(page, asker.clone()) => match never {},
        never = socket.serve(asker) => match never {},
    };
    socket.settle().await;
    ended.map_err(failed)
}

/// The metrics page, where configured. Its failure is logged and ends nothing.
async fn pages(
    listener: Option<tokio::net::TcpListener>,
    asker: Asker,
) -> std::convert::Infallible {
    if let Some(listener) = listener
        && let Err(error) = metrics::serve(listener, asker).await
    {
        tracing::error!(%error, "the metrics page has ended");
    }
    std::future::pending().await
}

fn failed(error: impl std::fmt::Display) -> Failure {
    Failure::Failed(error.to_string())
}

#[cfg(test)]
mod tests {
    use std::process::{Command, Output};
    use std::time::{Duration, Instant};

    use super::*;
    use crate::admin::client;
    use crate::admin::commands::ended;
    use crate::admin::protocol::Ask;
    use crate::control::fuse::{self, BURNT};
    use crate::nic::ethtool::{Ethtool, Offload};
    use crate::nic::link::{index_of, xdp_program_id};
    use crate::nic::restore::{STATE_DIR, restore_leftovers};

    const ROLE: &str = "TIDEGATE_BUG_IN";
    const FOLDER: &str = "TIDEGATE_BUG_FOLDER";
    const STARTS_WITHIN: Duration = Duration::from_secs(30);
    const ENDS_WITHIN: Duration = Duration::from_secs(30);

    fn config(folder: &Path, on_failure: &str) -> String {
        let socket = folder.join("socket");
        format!(
            "pipeline = \"router\"\n[workers]\ncount_max = 2\non_failure = \"{on_failure}\"\n\
             flows_max = 1000\n[admin]\nsocket = \"{}\"\nmetrics = false\n\
             [port.a]\ninterface = \"v0\"\n[transit]\nprefixes = [\"10.0.0.0/8\"]\n",
            socket.display()
        )
    }

    /// Of the calling thread's network namespace.
    fn program_and_gro() -> (bool, Option<bool>) {
        let program = xdp_program_id(index_of("v0").expect("v0")).expect("netlink");
        let ethtool = Ethtool::open().expect("a socket");
        (program.is_some(), ethtool.offload("v0", Offload::Gro).expect("v0"))
    }

    /// Not a test: a process with a bug. `run` as it is, until one of its threads panics.
    #[test]
    #[ignore = "run by another test, in a process of its own"]
    fn child() {
        let (Ok(role), Ok(folder)) = (std::env::var(ROLE), std::env::var(FOLDER)) else { return };
        let folder = std::path::PathBuf::from(folder);
        let (socket, start) = (folder.join("socket"), Instant::now());
        std::thread::spawn(move || {
            while client::ask(&socket, Ask::Ping).is_err() {
                if start.elapsed() > STARTS_WITHIN {
                    std::process::exit(97);
                }
                std::thread::sleep(Duration::from_millis(5));
            }
            assert_eq!(program_and_gro(), (true, Some(false)), "in use");
            fuse::light(if role == "worker" { fuse::WORKER } else { fuse::CONTROL });
            std::thread::sleep(ENDS_WITHIN);
            std::process::exit(98);
        });
        std::process::exit(i32::from(ended(|| run(&folder.join("edge.toml")))));
    }

    fn run_child(role: &str, on_failure: &str, folder: &Path) -> Output {
        std::fs::write(folder.join("edge.toml"), config(folder, on_failure)).expect("written");
        Command::new(std::env::current_exe().expect("own path"))
            .args(["--ignored", "--exact", "admin::run::tests::child", "--nocapture"])
            .env(ROLE, role)
            .env(FOLDER, folder)
            .output()
            .expect("a process")
    }

    fn a_bug(role: &str, on_failure: &str, says: &str) {
        let folder = tempfile::tempdir().expect("a folder");
        let ended = run_child(role, on_failure, folder.path());
        let told = String::from_utf8_lossy(&ended.stderr);
        assert_eq!(ended.status.code(), Some(1), "{role}, {on_failure}: {told}");
        assert!(told.contains(BURNT), "{told}");
        // Either of the thread's workers may be the one whose turn it is.
        let last =
            told.lines().last().map(|line| line.replacen("worker 1 ended", "worker 0 ended", 1));
        assert_eq!(last.as_deref(), Some(says), "{role}, {on_failure}");
        assert!(!folder.path().join("socket").exists(), "the control socket is left");
        let closed = on_failure == "drop";
        assert_eq!(program_and_gro(), (closed, Some(!closed)), "{role}, {on_failure}");
        let restored = restore_leftovers(Path::new(STATE_DIR)).expect("readable");
        let restored: Vec<_> = restored.iter().map(|r| (r.detached, &r.switched_on[..])).collect();
        assert_eq!(restored, Vec::from_iter(closed.then_some((true, &[Offload::Gro][..]))));
        assert_eq!(program_and_gro(), (false, Some(true)), "after the next start");
    }

    /// A real interface, all that `run` does, two workers on one thread, and a panic: the interface
    /// is as it was found, or with `drop` stays closed until the next start.
    #[test]
    fn a_panic_leaves_the_interface_as_it_was_found_or_closed() {
        let body = || {
            nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET).expect("root");
            let queues = "numrxqueues 2 numtxqueues 2";
            let words = format!("link add v0 {queues} type veth peer name v1 {queues}");
            assert!(Command::new("ip").args(words.split(' ')).status().expect("ip").success());
            let ethtool = Ethtool::open().expect("a socket");
            ethtool.set_offload("v0", Offload::Gro, true).expect("GRO on");
            let worker = "tidegate: worker 0 ended: panicked: ";
            let worker = format!("{worker}{BURNT}; traffic goes by `on_failure` now");
            let control = "tidegate: it panicked, as said above: a bug; please report it";
            for on_failure in ["pass", "drop"] {
                a_bug("worker", on_failure, &worker);
                a_bug("control", on_failure, control);
            }
        };
        std::thread::spawn(body).join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
    }
}
