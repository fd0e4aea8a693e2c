//! Whole workers on a virtual clock: services, hand-over, reloads, bad links, bad packets.
//!
//! Everything in a simulation follows from its seed; a failure says which.

mod binding;
mod delayed;
mod followed;
mod fragments;
mod hostile;
mod inspection;
mod limits;
mod moves;
mod quic;
#[path = "../quic_support/mod.rs"]
#[allow(dead_code, reason = "shared with other tests")]
mod quic_support;
mod reload;
mod services;
mod speech;
mod waiting;
mod workers;
mod world;
