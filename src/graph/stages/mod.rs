//! The stages, a file each.

pub mod balance;
pub mod classify;
mod egress;
pub mod inspect;
pub mod route;
pub mod tap;
