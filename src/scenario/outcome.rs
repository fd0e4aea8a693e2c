//! What came of a scenario. Its JSON is an interface: keys are added, not changed.

use serde::Serialize;

/// Rates are in bit/s and, as all bytes, counted as the scheduler counts, with the port's overhead;
/// unless it says otherwise, what happened in the warm-up is left out.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Outcome {
    pub scenario: String,
    pub seed: u64,
    pub workers: usize,
    /// Of virtual time; the warm-up is a part of it.
    pub duration_s: f64,
    pub warmup_s: f64,
    /// Of the port's class tree.
    pub rate_bps: u64,
    /// `None`: the link takes whatever the tree lets go.
    pub link_bps: Option<u64>,
    pub granted_bps: f64,
    /// As [`Scenario::not_simulated`](super::spec::Scenario::not_simulated).
    pub not_simulated: Vec<String>,
    /// In the tree's order: each before those below it.
    pub classes: Vec<ClassOutcome>,
    pub sources: Vec<SourceOutcome>,
    /// From the start on, warm-up included.
    pub over_time: Vec<Slice>,
    pub expectations: Vec<Verdict>,
}

#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ClassOutcome {
    pub name: String,
    pub parent: Option<String>,
    pub is_leaf: bool,
    pub rate_bps: u64,
    pub ceil_bps: u64,
    pub offered_packets: u64,
    pub offered_bps: f64,
    pub granted_packets: u64,
    pub granted_bps: f64,
    /// Of all that the port sent, 0 to 1.
    pub share: f64,
    /// Of what it was granted, what went on the rates of classes above, 0 to 1.
    pub borrowed: f64,
    /// Lost to overload, and by the queue management's choice.
    pub dropped_overload: u64,
    pub dropped_aqm: u64,
    pub marked_packets: u64,
    /// At the end.
    pub backlog_packets: u64,
    /// From a packet's arrival until it is on the wire. Of leaves; `None` where none was sent.
    pub delay: Option<Delays>,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct SourceOutcome {
    pub name: String,
    pub class: String,
    pub offered_packets: u64,
    pub offered_bytes: u64,
    pub granted_packets: u64,
    pub granted_bytes: u64,
    pub dropped_packets: u64,
    pub marked_packets: u64,
    pub delay: Option<Delays>,
}

/// Quantiles, right to a hundredth.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Delays {
    pub p50_us: f64,
    pub p90_us: f64,
    pub p99_us: f64,
    pub p999_us: f64,
    pub max_us: f64,
}

/// What happened in a slice of time.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Slice {
    pub from_s: f64,
    pub seconds: f64,
    /// As [`Outcome::classes`].
    pub classes: Vec<ClassSlice>,
}

#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ClassSlice {
    pub offered_bps: f64,
    pub granted_bps: f64,
    pub dropped_packets: u64,
    pub marked_packets: u64,
    pub delay: Option<Delays>,
}

/// One thing that was expected of a class.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Verdict {
    pub class: String,
    pub what: &'static str,
    pub expected: f64,
    pub got: f64,
    pub is_met: bool,
}

impl Outcome {
    /// Whether all that was expected came.
    pub fn is_as_expected(&self) -> bool {
        self.expectations.iter().all(|v| v.is_met)
    }
}
