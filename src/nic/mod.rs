//! Where packets come in and go out: ports on AF_XDP, in memory, and on capture files.

pub mod error;
pub mod link;
pub mod port;
pub mod spec;
pub mod steer;

pub use error::NicError;
pub use port::{Port, PortStats};
