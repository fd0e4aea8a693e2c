//! Time, ids, units, hashes, addresses, the one memory region that frames live in, and the reading
//! of files with every fault at its place.
//!
//! The lowest room: it imports nothing of the project and nothing but `std`, `libc` for `mmap`, and
//! `serde` and `toml` in [`tomlfile`].

pub mod addr;
pub mod diag;
pub mod hash;
pub mod index;
#[allow(unsafe_code)] // the room's owner of raw memory; see ARCHITECTURE.md, "Unsafe"
pub mod mem;
pub mod text;
pub mod time;
pub mod tomlfile;
pub mod units;

pub use addr::{Addr, Prefix};
pub use hash::Seed;
pub use time::Nanos;
