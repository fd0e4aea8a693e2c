//! The hierarchical token bucket on each port's egress: who may send, how much, and whose packets
//! are lost when too many come.
//!
//! One [`Scheduler`] a port and worker. [`validate()`] says what a class tree must fulfil for its
//! promises to hold.

mod bucket;
mod build;
mod class;
mod flows;
#[cfg(test)]
mod invariants;
mod packets;
mod queues;
mod scheduler;
mod sets;
pub mod spec;
mod stats;
mod tree;
mod validate;
mod wheel;

pub use scheduler::{Queued, Scheduler};
pub use stats::ClassStats;
pub use validate::validate;
