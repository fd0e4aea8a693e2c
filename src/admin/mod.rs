//! The command line, the control socket and the metrics page.

mod check;
pub mod cli;
pub mod client;
mod commands;
pub mod demo;
mod difference;
pub mod doctor;
mod drain;
mod inspect;
pub mod logs;
pub mod metrics;
pub mod pktgen;
mod progress;
pub mod protocol;
mod run;
pub mod server;
pub mod show;
mod simulate;
pub mod table;

pub use commands::main;
