//! Scenarios: what a class tree does to given traffic, on a virtual clock, before anyone tries it
//! on a wire.
//!
//! [`load`] reads a scenario file, [`run`] plays it through the scheduler of the appliance, by as
//! many workers as it says, and tells what each class was offered and granted, and how long its
//! packets waited. The same scenario and seed give the same outcome, to the last bit.

mod configured;
mod expect;
mod file;
mod heap;
mod load;
mod measure;
mod outcome;
mod plot;
mod run;
mod source;
pub mod spec;
mod tcp;
mod trace;
mod worker;

pub use load::{Loaded, load};
pub use outcome::{ClassOutcome, Delays, Outcome, Slice, SourceOutcome, Verdict};
pub use plot::plot;
pub use run::{TraceFailed, run};
