//! Time, ids, units, hashes, addresses and the one memory region that frames live in.
//!
//! The lowest room: it imports nothing of the project and nothing but `std` (and `libc` for `mmap`).

pub mod addr;
pub mod hash;
pub mod index;
#[allow(unsafe_code)] // the room's owner of raw memory; see ARCHITECTURE.md, "Unsafe"
pub mod mem;
pub mod time;
pub mod units;

pub use addr::{Addr, Prefix};
pub use hash::Seed;
pub use time::Nanos;
