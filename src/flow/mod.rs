//! Flows: their table, their timers, and the beginning of their byte streams in order.

pub mod names;
pub mod reassembly;

pub use names::Names;
