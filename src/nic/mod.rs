//! Where packets come in and go out: ports on AF_XDP, in memory, and on capture files.

pub mod error;
pub mod link;
pub mod memory;
pub mod port;
pub mod spec;
pub mod steer;
pub mod wake;

pub use error::NicError;
pub use port::{Port, PortStats};
