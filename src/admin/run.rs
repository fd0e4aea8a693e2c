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
