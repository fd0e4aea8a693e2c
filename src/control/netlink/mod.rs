//! The kernel as control plane: its links, addresses, routes and neighbours, mirrored over
//! rtnetlink.
//!
//! ```text
//! kernel ── notifications ──► decode (messages to facts) ──► Mirror (state) ──► forward::Routes
//!    ▲  └── dumps (start, and whenever the mirror may be wrong) ──┘
//!    └───── resolve: NTF_USE, what `Keeper` finds due
//! ```
//! `decode`, [`Mirror`] and [`Keeper`] are pure; [`Netlink`] holds the sockets.

mod asker;
mod decode;
pub mod keeper;
pub mod mirror;
mod nexthops;
mod resync;
pub mod socket;

pub use keeper::Keeper;
pub use mirror::{
    Effect, Link, Mirror, Neighbour, NeighbourState, NextHop, RouteKey, RouteKind, TablePrefix,
};
pub use socket::{Changes, Netlink, NetlinkError, NetlinkOptions};
