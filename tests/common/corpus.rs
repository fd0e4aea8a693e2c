//! Where captures of real traffic are found that some tests read. Their licences differ from ours,
//! so they are no part of this project.

use std::io::Write;
use std::path::PathBuf;

/// The folder that `TIDEGATE_CORPUS` names. Without it the tests say so, past whatever keeps the
/// words of passing tests back.
pub fn corpus() -> Option<PathBuf> {
    let folder = std::env::var_os("TIDEGATE_CORPUS").map(PathBuf::from);
    if folder.is_none() {
        let words = "NOT RUN: tests against public captures, TIDEGATE_CORPUS is not set";
        let _ = writeln!(std::io::stderr(), "{words}");
    }
    folder
}
