//! The stages, a file each.

mod admission;
pub mod balance;
pub mod checks;
pub mod classify;
mod egress;
mod ending;
mod errors;
pub mod inspect;
pub mod meter;
pub mod mirror;
#[cfg(test)]
mod rig;
pub mod route;
pub mod severing;
mod shadow;
pub mod splice;
pub mod tap;
pub mod timing;
mod transit;
pub mod trust;
mod tunnel;
mod verdict;
