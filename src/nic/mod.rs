//! Where packets come in and go out: ports on AF_XDP, in memory, and on capture files.

pub mod memory;
pub mod port;
pub mod spec;
pub mod wake;

pub use port::{Port, PortStats};
