//! x
pub mod link;
