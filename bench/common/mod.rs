//! What all measurements share: their command line, samples, the machine's name, JSON.

mod machine;

use std::fmt;
use std::fs;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;
use serde_json::{Value, json};

pub use machine::machine;

#[derive(Args)]
pub struct Cli {
    /// Measurements of each row; the median counts, and the least is told beside it.
    #[arg(long, default_value_t = 9)]
    pub rounds: u32,
    /// Few and short rounds: to see that it works.
    #[arg(long)]
    pub quick: bool,
    /// Only rows with this in their name; several may be given.
    #[arg(long)]
    pub only: Vec<String>,
    /// Write the results here, too.
    #[arg(long)]
    pub json: Option<PathBuf>,
    /// `cargo bench` says so.
    #[arg(long, hide = true)]
    bench: bool,
}

impl Cli {
    pub fn rounds(&self) -> u32 {
        if self.quick { 2 } else { self.rounds.max(1) }
    }

    pub fn wants(&self, row: &str) -> bool {
        self.only.is_empty() || self.only.iter().any(|part| row.contains(part.as_str()))
    }

    /// Writes the results where that was asked for.
    pub fn write(&self, bench: &str, mut results: Value) -> ExitCode {
        let Some(path) = &self.json else { return ExitCode::SUCCESS };
        results["bench"] = json!(bench);
        results["machine"] = json!(machine());
        results["rounds"] = json!(self.rounds());
        match fs::write(path, format!("{results:#}\n")) {
            Ok(()) => ExitCode::SUCCESS,
            Err(e) => {
                eprintln!("error: {}: {e}", path.display());
                ExitCode::FAILURE
            }
        }
    }
}

/// Measurements of one thing, in nanoseconds.
#[derive(Clone, Default)]
pub struct Samples(Vec<f64>);

impl Samples {
    pub fn add(&mut self, ns: f64) {
        self.0.push(ns);
        self.0.sort_by(f64::total_cmp);
    }

    pub fn median(&self) -> f64 {
        self.0.get(self.0.len() / 2).copied().unwrap_or(f64::NAN)
    }

    /// What others' work on the machine disturbed least.
    pub fn least(&self) -> f64 {
        self.0.first().copied().unwrap_or(f64::NAN)
    }

    pub fn json(&self) -> Value {
        json!({ "median": self.median(), "least": self.least() })
    }
}

impl FromIterator<f64> for Samples {
    fn from_iter<I: IntoIterator<Item = f64>>(samples: I) -> Samples {
        let mut sorted = Samples::default();
        samples.into_iter().for_each(|ns| sorted.add(ns));
        sorted
    }
}

/// The median, and the least in brackets.
impl fmt::Display for Samples {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&format!("{:.1} ({:.1})", self.median(), self.least()))
    }
}
