//! The stages, a file each.

pub mod tap;
