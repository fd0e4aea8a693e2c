//! Network namespaces, veth pairs and processes for the demo, the tests and the benchmarks.
//!
//! Namespaces are anonymous: nothing but a descriptor of this process holds them, so the kernel
//! takes them and their links away when the process ends, however it ends. Programs that were
//! started inside get a parent-death signal. Nothing outside the namespaces is touched.

mod link;
mod namespace;
mod process;

pub use link::{Veth, VethEnd};
pub use namespace::Namespace;
pub use process::Process;

use std::io;
use std::process::Output;
use std::time::{Duration, Instant};

/// What went wrong while building or using a lab.
#[derive(Debug, thiserror::Error)]
pub enum LabError {
    #[error(
        "can't make a network namespace: {0} (root, or CAP_SYS_ADMIN and CAP_NET_ADMIN, is needed)"
    )]
    Namespace(#[source] nix::Error),
    #[error("can't run `{program}`: {source} (is it installed?)")]
    Spawn { program: String, source: io::Error },
    #[error("`{command}` failed in namespace `{namespace}`: {stderr}")]
    Command { command: String, namespace: String, stderr: String },
    #[error("{0}: {1}")]
    Io(String, #[source] io::Error),
    #[error("the thread of namespace `{0}` has ended")]
    Gone(String),
    #[error("waited {0:?} for {1}")]
    Timeout(Duration, String),
}

pub type Result<T> = std::result::Result<T, LabError>;

/// Asks `ready` every few milliseconds until it agrees.
///
/// # Errors
/// [`LabError::Timeout`] when `limit` has passed.
pub fn wait_for(limit: Duration, what: &str, mut ready: impl FnMut() -> bool) -> Result<()> {
    const STEP: Duration = Duration::from_millis(5);
    let start = Instant::now();
    while !ready() {
        if start.elapsed() > limit {
            return Err(LabError::Timeout(limit, what.to_string()));
        }
        std::thread::sleep(STEP);
    }
    Ok(())
}

/// Standard output of a finished program as text.
pub fn stdout_text(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}
