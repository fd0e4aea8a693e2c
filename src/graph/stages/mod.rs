//! The stages, a file each.

pub mod balance;
<<<<<<< HEAD
mod egress;
#[cfg(test)]
mod rig;
=======
pub mod classify;
mod egress;
pub mod inspect;
>>>>>>> worker
pub mod route;
pub mod tap;
