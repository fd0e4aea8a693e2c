//! The highest priority for the measurement, so that other programs on the machine weigh little.

use std::fs;
use std::process::Command;

use anyhow::Context;
use nix::sys::signal::{SigSet, Signal};

const HIGHEST: &str = "-20";
/// The scheduler weighs sessions first (sched(7), autogroup), programs within one second.
const GROUP: &str = "/proc/self/autogroup";

/// What was raised beside this process, put back on drop and on Ctrl-C.
#[derive(Clone)]
pub struct Raised {
    /// The session's; none where the kernel has no autogroups.
    group_before: Option<String>,
    /// The threads that the kernel forwards with where packets come faster than its softirqs end,
    /// and what they had.
    softirqs_before: Vec<(String, String)>,
}

/// Raises this program, its session and the kernel's softirqs. Forwarders inherit the first two. To
/// be called before any thread is started.
///
/// # Errors
/// `renice` failing, or no thread to be had.
pub fn raise() -> anyhow::Result<Raised> {
    renice(HIGHEST, &std::process::id().to_string())?;
    let raised = Raised { group_before: group_nice(), softirqs_before: softirqs()? };
    restore_on_signal(raised.clone())?;
    if raised.group_before.is_some() {
        fs::write(GROUP, HIGHEST).context(GROUP)?;
    }
    for (id, _) in &raised.softirqs_before {
        renice(HIGHEST, id)?;
    }
    Ok(raised)
}

fn renice(nice: &str, id: &str) -> anyhow::Result<()> {
    let done = Command::new("renice").args(["-n", nice, "-p", id]).output();
    done.context("`renice` is of the package bsdutils")?;
    Ok(())
}

/// Process and nice value (field 19 of proc_pid_stat(5)) of each `ksoftirqd`.
fn softirqs() -> anyhow::Result<Vec<(String, String)>> {
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc")? {
        // A process that has just ended is not one of them.
        let stat = fs::read_to_string(entry?.path().join("stat")).unwrap_or_default();
        let Some((id, rest)) = stat.split_once(" (ksoftirqd/") else { continue };
        if let Some(nice) = rest.split_whitespace().nth(17) {
            found.push((id.to_owned(), nice.to_owned()));
        }
    }
    Ok(found)
}

/// The number at the end of `/autogroup-12 nice 0`.
fn group_nice() -> Option<String> {
    let text = fs::read_to_string(GROUP).ok()?;
    text.split_whitespace().last().map(str::to_owned)
}

/// Namespaces and forwarders end with this process; the session's priority would not.
fn restore_on_signal(raised: Raised) -> anyhow::Result<()> {
    let signals: SigSet = [Signal::SIGINT, Signal::SIGTERM].into_iter().collect();
    signals.thread_block()?;
    let wait = move || {
        let signal = signals.wait();
        drop(raised);
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
        for (id, nice) in &self.softirqs_before {
            let _ = renice(nice, id);
        }
    }
}
