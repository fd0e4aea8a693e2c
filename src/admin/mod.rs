//! admin
pub mod demo;
