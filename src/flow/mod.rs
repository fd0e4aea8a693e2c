//! Flows: their table, their timers, and the beginning of their byte streams in order.

pub mod names;
pub mod reassembly;
pub mod sightings;

pub use names::Names;
pub use sightings::{Sighting, Sightings};
