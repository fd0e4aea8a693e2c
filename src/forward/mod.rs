//! Where a packet goes: services, pools and their Maglev tables, NAT, routes, neighbours, ICMP.

mod lpm;
pub mod maglev;
pub mod ports;
pub mod routes;
pub mod spec;
mod table;
pub mod tables;

pub use routes::{Egress, PortLink, Resolved, RouteKind, RouteSpec, Routes, RoutesBuilder};
pub use tables::{Backend, Service, Tables};
