//! A bug on demand, of tests only: threads of the appliance that have burnt down panic.

use std::sync::atomic::{AtomicU8, Ordering};

pub const WORKER: u8 = 1;
pub const CONTROL: u8 = 2;

/// What they say.
pub const BURNT: &str = "the fuse has burnt down";

static LIT: AtomicU8 = AtomicU8::new(0);

/// From now on these threads of the process panic when they come by.
pub fn light(whose: u8) {
    LIT.store(whose, Ordering::Relaxed);
}

/// # Panics
/// Once lit.
pub fn burn(whose: u8) {
    if LIT.load(Ordering::Relaxed) == whose {
        panic!("{BURNT}");
    }
}
