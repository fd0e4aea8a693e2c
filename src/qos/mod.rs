//! The hierarchical token bucket on each port's egress.

pub mod spec;
