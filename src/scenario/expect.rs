//! Whether a scenario went as its file says that it should.

use std::time::Duration;

use super::outcome::{ClassOutcome, Verdict};
use super::spec::Expectation;

/// What became of one expectation, thing by thing.
pub fn judge(expected: &Expectation, got: &ClassOutcome) -> Vec<Verdict> {
    let mut verdicts = Vec::new();
    let mut tell = |what, expected, got, is_met| {
        verdicts.push(Verdict { class: String::new(), what, expected, got, is_met });
    };
    if let Some(rate) = expected.rate {
        let (want, got) = (rate.0 as f64, got.granted_bps);
        let is_met = (got - want).abs() <= want * expected.tolerance_percent / 100.0;
        tell("rate_bps", want, got, is_met);
    }
    if let Some(most) = expected.delay_p99_max {
        let us = |d: Duration| d.as_nanos() as f64 / 1e3;
        // A class that sent nothing has not kept anybody's time.
        let p99 = got.delay.map_or(f64::INFINITY, |d| d.p99_us);
        tell("delay_p99_max_us", us(most), p99, p99 <= us(most));
    }
    if let Some(most) = expected.dropped_max {
        let dropped = (got.dropped_overload + got.dropped_aqm) as f64;
        tell("dropped_max", most as f64, dropped, dropped <= most as f64);
    }
    if let Some(least) = expected.marked_min {
        let marked = got.marked_packets as f64;
        tell("marked_min", least as f64, marked, marked >= least as f64);
    }
    verdicts.iter_mut().for_each(|v| v.class.clone_from(&got.name));
    verdicts
}
