//! Clocks of the loops here.

use std::time::Duration;

use tokio::time::{Interval, MissedTickBehavior, interval};

/// Ticks so far apart at least: what was missed is not made up for.
pub(super) fn every(period: Duration) -> Interval {
    let mut ticks = interval(period);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    ticks
}
