//! What the comparisons on veth share: their command line, how they end, medians, JSON.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, ensure};
use clap::Args;
use serde_json::{Value, json};

use crate::machine::machine;

#[derive(Args)]
pub struct Plan {
    /// Measurements of each contender with each test; the median counts.
    #[arg(long, default_value_t = 5)]
    pub rounds: u32,
    /// Length of a measurement.
    #[arg(long)]
    seconds: Option<f64>,
    /// One short round: to see that it works.
    #[arg(long)]
    pub quick: bool,
    /// Only contenders with this in their name; several may be given.
    #[arg(long)]
    only: Vec<String>,
    /// Write the results here, too.
    #[arg(long)]
    json: Option<PathBuf>,
    /// `cargo bench` says so.
    #[arg(long, hide = true)]
    bench: bool,
}

impl Plan {
    /// Rounds, and the length of a measurement in seconds, `seconds` where none was asked for.
    ///
    /// # Errors
    /// Not root, no core for the router, or nothing sensible to measure.
    pub fn plan(&self, router_core: usize, seconds: f64) -> anyhow::Result<(u32, f64)> {
        ensure!(nix::unistd::geteuid().is_root(), "network namespaces and AF_XDP need root");
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        ensure!(cores > router_core, "the router needs a core of its own: two at least");
        let seconds = if self.quick { seconds.min(0.5) } else { self.seconds.unwrap_or(seconds) };
        ensure!(
            self.rounds > 0 && (0.05..=60.0).contains(&seconds),
            "nothing to measure, or too much"
        );
        Ok((if self.quick { 1 } else { self.rounds }, seconds))
    }

    pub fn wants(&self, contender: &str) -> bool {
        self.only.is_empty() || self.only.iter().any(|part| contender.contains(part.as_str()))
    }

    /// Writes the results where that was asked for.
    ///
    /// # Errors
    /// The file can't be written.
    pub fn write(&self, bench: &str, mut results: Value) -> anyhow::Result<()> {
        let Some(path) = &self.json else { return Ok(()) };
        results["bench"] = json!(bench);
        results["machine"] = json!(machine());
        if let Some(dir) = path.parent() {
            std::fs::create_dir_all(dir).with_context(|| dir.display().to_string())?;
        }
        std::fs::write(path, format!("{results:#}\n")).with_context(|| path.display().to_string())
    }
}

/// Says what went wrong.
pub fn end(result: anyhow::Result<()>) -> ExitCode {
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("error: {e:#}");
            ExitCode::FAILURE
        }
    }
}

/// 0 of nothing.
pub fn median(values: impl IntoIterator<Item = f64>) -> f64 {
    let mut sorted: Vec<f64> = values.into_iter().collect();
    sorted.sort_by(f64::total_cmp);
    match sorted.len() {
        0 => 0.0,
        n if n % 2 == 1 => sorted[n / 2],
        n => f64::midpoint(sorted[n / 2 - 1], sorted[n / 2]),
    }
}
