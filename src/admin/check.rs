//! `tidegate check`: everything that is wrong with a configuration, or what is in a good one.

use std::io::Write;
use std::path::Path;

use serde_json::{Value, json};

use super::commands::{Failure, print_json, print_text};
use crate::config::{self, Config, Diagnostic, Diagnostics};
use crate::worker::spec::WorkersSpec;

/// Loads the file and tells.
///
/// # Errors
/// Exit code 2 with a faulty file.
pub fn check(path: &Path, json: bool) -> Result<(), Failure> {
    match config::load(path) {
        Ok(config) => {
            if json {
                let warnings: Vec<_> = config.warnings.iter().map(fault).collect();
                let summary = summary_json(&config);
                return print_json(&json!({
                    "ok": true, "errors": [], "warnings": warnings, "summary": summary,
                }));
            }
            tell(config.warnings.iter());
            print_text(&summary(&config))
        }
        Err(faults) => Err(refused(&faults, json)?),
    }
}

/// Tells what is wrong; the end with exit code 2.
pub(super) fn refused(faults: &Diagnostics, json: bool) -> Result<Failure, Failure> {
    if json {
        let of = |severity| {
            let some = faults.iter().filter(move |d| d.severity == severity);
            some.map(fault).collect::<Vec<_>>()
        };
        let errors = of(config::Severity::Error);
        let warnings = of(config::Severity::Warning);
        print_json(&json!({ "ok": false, "errors": errors, "warnings": warnings }))?;
    } else {
        tell(faults.iter());
    }
    Ok(Failure::Told(2))
}

/// Faults, a line each, to standard error.
pub(super) fn tell<'a>(faults: impl Iterator<Item = &'a Diagnostic>) {
    for fault in faults {
        let _ = writeln!(std::io::stderr(), "{fault}");
    }
}

fn fault(d: &Diagnostic) -> Value {
    json!({
        "file": d.path.display().to_string(),
        "line": d.place.map(|p| p.0),
        "column": d.place.map(|p| p.1),
        "message": d.message,
    })
}

fn backends(config: &Config) -> usize {
    config.forward.pools.iter().map(|p| p.backends.len()).sum()
}

fn summary(config: &Config) -> String {
    let ports: Vec<_> =
        config.ports.iter().map(|p| format!("{} ({})", p.name, p.interface)).collect();
    let shaped: Vec<_> = config
        .qos
        .iter()
        .filter_map(|q| config.ports.get(usize::from(q.port.0)))
        .map(|p| p.name.as_str())
        .collect();
    format!(
        "{}: good\n  pipeline  {} ({} stages)\n  workers   {}{}\n  ports     {}\n  services  {} to \
         {} backends in {} pools\n  transit   {} prefixes\n  rules     {}\n  classes   {} (ports \
         shaped: {})\n",
        config.path.display(),
        config.pipeline.name,
        config.pipeline.stages.len(),
        config.workers.count_max,
        more_workers(&config.workers),
        ports.join(", "),
        config.forward.services.len(),
        backends(config),
        config.forward.pools.len(),
        config.forward.transit.len(),
        config.rules.len(),
        config.class_names.len(),
        if shaped.is_empty() { "none".into() } else { shaped.join(", ") },
    )
}

/// What those cost that have no thread of their own yet.
fn more_workers(spec: &WorkersSpec) -> String {
    if spec.count_max == spec.count {
        return String::new();
    }
    let mib = spec.bytes_of_one() >> 20;
    let threads = if spec.count == 1 { "thread" } else { "threads" };
    format!(", run by {} {threads}; memory for all from the start, {mib} MiB each", spec.count)
}

fn summary_json(config: &Config) -> Value {
    json!({
        "pipeline": config.pipeline.name,
        "threads": config.workers.count,
        "workers": config.workers.count_max,
        "ports": config.ports.iter().map(|p| p.name.as_str()).collect::<Vec<_>>(),
        "services": config.forward.services.len(),
        "pools": config.forward.pools.len(),
        "backends": backends(config),
        "transit_prefixes": config.forward.transit.len(),
        "rules": config.rules.len(),
        "classes": config.class_names.len(),
    })
}
