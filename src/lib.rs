//! tidegate: a userspace packet router and QoS scheduler for the edge of an LLM inference cluster.
//!
//! Read ARCHITECTURE.md first: it says how a packet travels, what each room (module) holds and what
//! it may import. `tests/tidy.rs` holds the code to that table.

#![deny(unsafe_code)]

// What tests share with those in `tests` calls the crate by its name.
#[cfg(test)]
extern crate self as tidegate;

pub mod admin;
pub mod base;
pub mod capture;
pub mod config;
pub mod control;
pub mod flow;
pub mod forward;
pub mod graph;
pub mod inspect;
pub mod lab;
#[allow(unsafe_code)] // kernel interfaces; see ARCHITECTURE.md, "Unsafe"
pub mod nic;
pub mod observe;
pub mod packet;
pub mod policy;
pub mod qos;
pub mod scenario;
pub mod sim;
pub mod worker;
