//! A pipeline file turned into an ordered chain of stages, run batch by batch.

pub mod file;
pub mod spec;
