//! Boot, reload, the kernel's routes and neighbours, and the end.

mod announce;
mod appliance;
pub mod ask;
mod checks;
mod classes;
mod copies;
mod crew;
pub mod difference;
mod draining;
mod exchanges;
mod fib_thread;
#[cfg(test)]
pub(crate) mod fuse;
mod keeping;
mod latency;
mod limits;
mod listing;
mod members;
pub mod netlink;
mod offload;
mod overview;
mod pools;
mod port_plan;
mod port_state;
pub mod reload;
pub mod routes;
mod run;
pub mod steering;
mod taking_over;
mod threads;
mod ticks;
mod trial;
pub mod view;

pub use appliance::{Appliance, BootError};
pub use ask::{Ask, Asker, Gone, Refusal};
pub use classes::CLASS_VALUES;
pub use pools::DrainTarget;
pub use run::{RunError, Signals, run};
