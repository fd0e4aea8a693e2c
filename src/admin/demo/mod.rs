//! demo (being assembled)
pub mod client;
pub mod server;
