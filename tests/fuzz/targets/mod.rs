//! What is fuzzed: plain functions of bytes, which panic on a finding.
//!
//! Shared by the fuzz crate beside this folder and by `tests/fuzz_seeds.rs`, which runs all seeds
//! and some mutations of them on stable Rust.

pub mod capture;
pub mod client_hello;
pub mod config;
pub mod hello;
pub mod http;
pub mod http_seeds;
pub mod inspector;
pub mod parse;
pub mod pcap;
pub mod pipeline;
pub mod quic;
#[path = "../../quic_support/mod.rs"]
pub mod quic_support;
pub mod reassembly;
pub mod rig;
pub mod rules;
pub mod script;
pub mod seeds;
pub mod setup;
#[path = "../../sim/speech.rs"]
pub mod speech;
pub mod splice;

/// What is run; it panics on a finding.
pub type Target = fn(&[u8]);

/// All targets by name, which is that of their folder of seeds.
pub const TARGETS: [(&str, Target); 14] = [
    ("pipeline", pipeline::run),
    ("splice", splice::run),
    ("parse", parse::run),
    ("hello", hello::run),
    ("quic", quic::run),
    ("inspector", inspector::run),
    ("capture", capture::run),
    ("reassembly", reassembly::run),
    ("http1", http::http1),
    ("hpack", http::hpack),
    ("h2", http::h2),
    ("config", config::run),
    ("rules", rules::run),
    ("pcap", pcap::run),
];
