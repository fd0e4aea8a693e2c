//! What the appliance tells of itself: counters, gauges, and how they reach the control plane.

pub mod copies;
pub mod counters;
pub mod latency;
pub mod shared;

pub use counters::Counters;
pub use latency::Latencies;
pub use shared::{Gauges, PortGauges, SharedStats, Stats};
