//! The stages, a file each.

pub mod balance;
mod egress;
#[cfg(test)]
mod rig;
pub mod route;
pub mod tap;
