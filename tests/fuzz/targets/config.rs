//! Any text as a configuration, and as a pipeline file.

use std::path::Path;

use tidegate::base::diag::Source;
use tidegate::config::{Config, Diagnostics, load_text};
use tidegate::forward::Tables;
use tidegate::graph::file;
use tidegate::policy::Rules;
use tidegate::qos::Scheduler;

use super::setup::SEED;

/// Pools that are built: each takes a table of 65,537 entries.
const POOLS_MAX: usize = 2;
const PACKETS_MAX: u32 = 64;

/// Input: the text.
pub fn run(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    // The pipeline's name may be a path, and some of these never end.
    if text.contains("/dev") || text.contains("/proc") || text.contains("/sys") {
        return;
    }
    let path = Path::new("fuzzed/tidegate.toml");
    match load_text(path, text) {
        Ok(config) => build(&config),
        Err(faults) => {
            assert!(faults.has_errors(), "refused without an error");
            check(&faults, text);
        }
    }
    let mut faults = Diagnostics::default();
    let pipeline = file::parse(&Source::new(path, text), &mut faults);
    assert_eq!(pipeline.is_none(), faults.has_errors());
    check(&faults, text);
}

/// What was found valid can be built.
fn build(config: &Config) {
    let _ = Rules::compile(&config.rules);
    for spec in &config.qos {
        let _ = Scheduler::new(spec, PACKETS_MAX, SEED);
    }
    if config.forward.pools.len() <= POOLS_MAX {
        let _ = Tables::build(&config.forward, config.workers.count_max, SEED);
    }
    assert!(config.warnings.iter().all(|w| !w.message.is_empty()));
}

/// Every fault has a text, and lies within the file.
fn check(faults: &Diagnostics, text: &str) {
    let lines = text.lines().count() as u32;
    for fault in faults.iter() {
        let told = fault.to_string();
        assert!(!fault.message.is_empty() && !told.contains('\n'), "{told:?}");
        let within = |(line, column): (u32, u32)| line <= lines + 1 && line > 0 && column > 0;
        assert!(fault.place.is_none_or(within), "{told}");
    }
}
