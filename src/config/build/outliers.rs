//! `[pool.NAME.outliers]`.

use std::time::Duration;

use super::{Build, show};
use crate::config::Config;
use crate::config::file::{FileConfig, FileOutliers};
use crate::config::outliers::OutlierSpec;

const HOUR: Duration = Duration::from_secs(3_600);
const WINDOW_MIN: Duration = Duration::from_secs(1);
const WINDOW_MAX: Duration = Duration::from_secs(600);
const WINDOW_DEFAULT: Duration = Duration::from_secs(10);
const EJECT_MIN: Duration = Duration::from_millis(100);
const EJECT_DEFAULT: Duration = Duration::from_secs(30);
const EJECT_MAX_DEFAULT: Duration = Duration::from_secs(300);
const COUNT_MAX: i64 = 1_000_000;
const SLOWER_TIMES: std::ops::RangeInclusive<f64> = 1.1..=1_000.0;

/// By pool, in the file's order.
pub fn outliers(b: &mut Build<'_>, file: &FileConfig) -> Vec<Option<OutlierSpec>> {
    let mut all = Vec::with_capacity(file.pool.0.len());
    for (_, pool) in &file.pool.0 {
        let table = &pool.get_ref().outliers;
        all.push(table.as_ref().map(|table| spec(b, table.get_ref())));
    }
    all
}

/// Has answers of backends read that are judged by them.
pub fn mark(config: &mut Config) {
    let Config { forward, outliers, .. } = config;
    for (pool, spec) in forward.pools.iter_mut().zip(outliers) {
        pool.judged = spec.as_ref().is_some_and(|spec| spec.error_percent > 0);
    }
}

fn spec(b: &mut Build<'_>, o: &FileOutliers) -> OutlierSpec {
    let eject = b.within(&o.eject, EJECT_MIN..=HOUR, EJECT_DEFAULT, show);
    let eject_max = b.within(&o.eject_max, eject..=HOUR, EJECT_MAX_DEFAULT.max(eject), show);
    let slower_tenths = o.slower_times.as_ref().map(|times| {
        let n = *times.get_ref();
        if !SLOWER_TIMES.contains(&n) {
            let (low, high) = (SLOWER_TIMES.start(), SLOWER_TIMES.end());
            b.error(&times.span(), format!("{n} is not within {low} to {high}"));
        }
        (n * 10.0) as u32
    });
    let silent_for =
        o.silent_for.is_some().then(|| b.within(&o.silent_for, WINDOW_MIN..=HOUR, HOUR, show));
    OutlierSpec {
        failures: b.number(&o.failures, 1..=COUNT_MAX, 5),
        error_percent: b.number(&o.error_percent, 0..=100, 50),
        answers_min: b.number(&o.answers_min, 1..=COUNT_MAX, 20),
        slower_tenths,
        silent_for,
        window: b.within(&o.window, WINDOW_MIN..=WINDOW_MAX, WINDOW_DEFAULT, show),
        eject,
        eject_max,
        ejected_percent_max: b.number(&o.ejected_percent_max, 0..=100, 50),
    }
}
