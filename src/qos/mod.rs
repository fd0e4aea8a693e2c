//! The hierarchical token bucket on each port's egress: who may send, how much, and whose packets
//! are lost when too many come.
//!
//! One [`Scheduler`] a port and worker; those of a port share its tree, a [`Shared`].
//! [`validate()`] says what a class tree must fulfil for its promises to hold.

mod absence;
mod ahead;
mod aqm;
mod bucket;
mod build;
mod class;
mod codel;
mod debts;
pub mod delays;
pub mod dscp;
mod ecn;
mod flows;
mod in_flight;
mod inner;
#[cfg(test)]
mod invariants;
pub mod limits;
mod member;
pub mod meter;
pub mod meters;
mod pacing;
mod packets;
mod queues;
mod reclass;
mod rehouse;
mod rounds;
mod scheduler;
mod serve;
mod sets;
mod settings;
mod shared;
mod shed;
mod sojourn;
pub mod spec;
mod stats;
mod succession;
pub mod tokens;
mod tree;
mod validate;
mod walk;
mod wheel;

pub use in_flight::InFlight;
pub use rounds::cbursts_min;
pub use scheduler::{Queued, Scheduler};
pub use shared::{Shared, SharedPorts};
pub use shed::DROPS_PER_ARRIVAL;
pub use sojourn::Sojourn;
pub use stats::ClassStats;
pub use succession::Successor;
pub use validate::{Fault, Field, validate};
