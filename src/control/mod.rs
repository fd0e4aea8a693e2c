//! Boot, reload, the kernel's routes and neighbours, and the end.

pub mod ask;
pub mod netlink;
pub mod reload;
pub mod routes;
pub mod steering;
pub mod view;

pub use ask::{Ask, Asker, Gone};
