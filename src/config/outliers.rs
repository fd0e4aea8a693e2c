//! When a backend is taken out by what its connections show, as configured.

use std::time::Duration;

/// Of one pool.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OutlierSpec {
    /// Connections in a row that were refused or not answered.
    pub failures: u32,
    /// Answers with a status of 500 and more, of all in a window; 0: never.
    pub error_percent: u8,
    /// Fewer answers in a window tell nothing.
    pub answers_min: u32,
    /// Times the pool's usual time to first answers, in tenths; `None`: never.
    pub slower_tenths: Option<u32>,
    /// Requests, but no answer to any of them, for so long; `None`: never.
    pub silent_for: Option<Duration>,
    /// That answers are looked at together.
    pub window: Duration,
    /// For how long it is out the first time; each further time twice as long.
    pub eject: Duration,
    pub eject_max: Duration,
    /// Of a pool's backends, at most so many are out at once.
    pub ejected_percent_max: u8,
}
