//! Where a packet goes: services, pools and their Maglev tables, NAT, routes, neighbours, ICMP.

pub mod maglev;
pub mod ports;
pub mod spec;
mod table;
pub mod tables;

pub use tables::{Backend, Service, Tables};
