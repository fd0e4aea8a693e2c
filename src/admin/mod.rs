//! The command line, the control socket and the metrics page.

pub mod cli;
pub mod client;
pub mod demo;
pub mod doctor;
pub mod logs;
pub mod metrics;
pub mod pktgen;
pub mod protocol;
pub mod server;
pub mod show;
pub mod table;
