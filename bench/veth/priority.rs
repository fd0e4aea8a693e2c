//! The highest priority for the measurement, so that other programs on the machine weigh little.

use std::fs;
use std::process::Command;

use anyhow::Context;
use nix::sys::signal::{SigSet, Signal};

const HIGHEST: &str = "-20";
/// The scheduler weighs sessions first (sched(7), autogroup), programs within one second.
const GROUP: &str = "/proc/self/autogroup";

/// The session's priority, put back on drop and on Ctrl-C.
pub struct Raised {
    /// None where the kernel has no autogroups.
    group_before: Option<String>,
}

/// Raises this program and its session. Forwarders inherit both. To be called before any thread is
/// started.
///
/// # Errors
/// `renice` failing, or no thread to be had.
pub fn raise() -> anyhow::Result<Raised> {
    let id = std::process::id().to_string();
    let renice = Command::new("renice").args(["-n", HIGHEST, "-p", &id]).output();
    renice.context("`renice` is of the package bsdutils")?;
    let group_before = group_nice();
    if group_before.is_some() {
        fs::write(GROUP, HIGHEST).context(GROUP)?;
    }
    restore_on_signal(group_before.clone())?;
    Ok(Raised { group_before })
}

/// The number at the end of `/autogroup-12 nice 0`.
fn group_nice() -> Option<String> {
    let text = fs::read_to_string(GROUP).ok()?;
    text.split_whitespace().last().map(str::to_owned)
}

/// Namespaces and forwarders end with this process; the session's priority would not.
fn restore_on_signal(group_before: Option<String>) -> anyhow::Result<()> {
    let signals: SigSet = [Signal::SIGINT, Signal::SIGTERM].into_iter().collect();
    signals.thread_block()?;
    let wait = move || {
        let signal = signals.wait();
        drop(Raised { group_before });
        std::process::exit(128 + signal.map_or(1, |s| s as i32));
    };
    std::thread::Builder::new().name("signals".to_owned()).spawn(wait)?;
    Ok(())
}

impl Drop for Raised {
    fn drop(&mut self) {
        if let Some(nice) = &self.group_before {
            let _ = fs::write(GROUP, nice);
        }
    }
}
