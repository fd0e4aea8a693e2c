//! `[pool.NAME.metrics]`.

use std::time::Duration;

use super::health::request_path;
use super::{Build, show};
use crate::base::tomlfile::Leaf;
use crate::config::engines::MetricsSpec;
use crate::config::file::{FileBalance, FileConfig, FileMetrics};

const PATH_DEFAULT: &str = "/metrics";
const INTERVAL_MIN: Duration = Duration::from_millis(100);
const INTERVAL_MAX: Duration = Duration::from_secs(60);
const INTERVAL_DEFAULT: Duration = Duration::from_secs(1);
const TIMEOUT_MIN: Duration = Duration::from_millis(10);
const TIMEOUT_DEFAULT: Duration = Duration::from_millis(500);
/// Of the interval.
const STALE_TIMES_DEFAULT: u32 = 3;
const STALE_MAX: Duration = Duration::from_secs(600);

/// By pool, in the file's order: where the file says so, and where backends are chosen by it.
pub fn metrics(b: &mut Build<'_>, file: &FileConfig) -> Vec<Option<MetricsSpec>> {
    let mut all = Vec::with_capacity(file.pool.0.len());
    for (_, pool) in &file.pool.0 {
        let pool = pool.get_ref();
        let default = FileMetrics::default();
        all.push(match (&pool.metrics, pool.balance) {
            (Some(table), _) => Some(spec(b, table.get_ref())),
            (None, Some(FileBalance::LeastLoad)) => Some(spec(b, &default)),
            (None, _) => None,
        });
    }
    all
}

fn spec(b: &mut Build<'_>, m: &FileMetrics) -> MetricsSpec {
    let interval = b.within(&m.interval, INTERVAL_MIN..=INTERVAL_MAX, INTERVAL_DEFAULT, show);
    let stale_default = interval * STALE_TIMES_DEFAULT;
    let stale_after = b.within(&m.stale_after, interval..=STALE_MAX, stale_default, show);
    let path = m.path.as_ref().map(|path| request_path(b, path));
    let port: Option<&Leaf<_>> = m.port.as_ref().map(toml::Spanned::get_ref);
    MetricsSpec {
        port: port.map(|p| p.0.0),
        path: path.unwrap_or_else(|| PATH_DEFAULT.to_string()),
        tls: m.tls.unwrap_or(false),
        interval,
        timeout: b.within(&m.timeout, TIMEOUT_MIN..=INTERVAL_MAX, TIMEOUT_DEFAULT, show),
        stale_after,
    }
}
