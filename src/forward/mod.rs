//! Where a packet goes: services, pools and their Maglev tables, NAT, routes, neighbours, ICMP.

pub mod checks;
pub mod choice;
pub mod errors;
pub mod fib;
pub mod fragments;
pub mod icmp;
pub mod link;
pub mod load;
mod lpm;
pub mod maglev;
pub mod mss;
pub mod nat;
pub mod parking;
pub mod ports;
mod rendezvous;
mod rotation;
pub mod routes;
pub mod spec;
pub mod splice;
mod split;
mod table;
pub mod tables;
pub mod tunnel;

pub use choice::{Choosing, Turns};
pub use fragments::Fragments;
pub use icmp::{IcmpError, IcmpLimiter};
pub use parking::Parking;
pub use routes::{Egress, PortLink, Resolved, RouteKind, RouteSpec, Routes, RoutesBuilder};
pub use tables::{Backend, Service, Tables};
