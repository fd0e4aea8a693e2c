#![no_main]

#[allow(dead_code)] // of the other targets
#[path = "../targets/mod.rs"]
mod targets;

libfuzzer_sys::fuzz_target!(|data: &[u8]| targets::splice::run(data));
