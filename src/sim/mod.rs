//! The same workers on a virtual clock: simulated links and hosts, and all of it from one seed.

pub mod appliance;
pub mod hosts;
pub mod link;
pub mod net;
pub mod stream;
pub mod tcp;

pub use appliance::{Appliance, Setup, Spread};
pub use hosts::{Client, Gateway, Machine, Server, Source, mac_of};
pub use link::LinkSpec;
pub use net::{Host, HostId, Net};
pub use tcp::Endpoint;
