//! The poll loop: one thread a core, its ports, its tables, its frames.

pub mod spec;
