//! The stages, a file each.

pub mod classify;
pub mod inspect;
pub mod tap;
