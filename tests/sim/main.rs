//! Whole workers on a virtual clock: services, hand-over, reloads, bad links, bad packets.
//!
//! Everything in a simulation follows from its seed; a failure says which.

mod binding;
mod hostile;
mod inspection;
mod reload;
mod services;
mod workers;
mod world;
