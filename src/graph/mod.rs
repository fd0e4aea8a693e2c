//! A pipeline file turned into an ordered chain of stages, run batch by batch.

pub mod compile;
pub mod cx;
pub mod file;
pub mod spec;
pub mod stages;

pub use compile::Pipeline;
pub use cx::{COPIES_MAX, Copies, Cx, REPLIES_MAX, Snapshot, Stage, park};
