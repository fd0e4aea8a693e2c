//! What a killed run left changed on interfaces, set back.

use std::path::Path;

use super::Finding;
use crate::nic::restore::{Restored, STATE_DIR, restore_leftovers, restore_offloads};

/// Restores offloads; with `programs` also takes away XDP programs that drop traffic of a killed
/// run.
pub fn leftovers(programs: bool) -> Vec<Finding> {
    const SUBJECT: &str = "leftovers";
    let dir = Path::new(STATE_DIR);
    let restored = match if programs { restore_leftovers(dir) } else { restore_offloads(dir) } {
        Ok(restored) => restored,
        Err(error) => {
            let advice = format!("{STATE_DIR} keeps note of what is to be restored: run as root.");
            return vec![Finding::warn(SUBJECT, error.to_string(), advice)];
        }
    };
    let done: Vec<_> = restored.iter().filter_map(finding).collect();
    match done.is_empty() {
        true => vec![Finding::ok(SUBJECT, "none of a killed run")],
        false => done,
    }
}

fn finding(restored: &Restored) -> Option<Finding> {
    let mut done: Vec<String> = restored.switched_on.iter().map(|o| format!("{o} on")).collect();
    if restored.detached {
        done.push("XDP program removed".into());
    }
    let subject = format!("{}: restored", restored.interface);
    (!done.is_empty()).then(|| Finding::ok(&subject, done.join(", ")))
}
