//! Boot, reload, the kernel's routes and neighbours, and the end.

mod appliance;
pub mod ask;
mod crew;
mod latency;
mod listing;
pub mod netlink;
mod overview;
pub mod reload;
pub mod routes;
mod run;
pub mod steering;
mod taking_over;
pub mod view;

pub use appliance::{Appliance, BootError};
pub use ask::{Ask, Asker, Gone, Refusal};
pub use listing::CLASS_VALUES;
pub use run::{RunError, Signals, run};
