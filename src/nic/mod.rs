//! Where packets come in and go out: ports on AF_XDP, in memory, and on capture files.

mod companion;
pub mod error;
pub mod ethtool;
pub mod flood;
pub mod link;
pub mod memory;
pub mod open;
mod opener;
pub mod pcap;
pub mod port;
mod queue;
pub mod restore;
pub mod spec;
pub mod steer;
pub mod tun;
pub mod umem;
pub mod wake;
mod ways;
pub mod xsk;

pub use error::NicError;
pub use open::{Nic, PortMode, open};
pub use opener::{OpenedPort, Opener};
pub use port::{Port, PortStats};
