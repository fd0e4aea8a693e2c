//! Boot, reload, the kernel's routes and neighbours, and the end.

pub mod netlink;
