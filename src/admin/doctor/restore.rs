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
    let all: Vec<_> = restored.iter().flat_map(|r| done(r).into_iter().chain(left(r))).collect();
    match all.is_empty() {
        true => vec![Finding::ok(SUBJECT, "none of a killed run")],
        false => all,
    }
}

fn left(restored: &Restored) -> Option<Finding> {
    let subject = format!("{}: leftover", restored.interface);
    let found = "XDP program of a killed run";
    let advice = "It drops what that run served (`on_failure = \"drop\"`), until the next start or \
                  until `tidegate doctor --restore`.";
    restored.left.then(|| Finding::warn(&subject, found, advice))
}

fn done(restored: &Restored) -> Option<Finding> {
    let mut done: Vec<String> = restored.switched_on.iter().map(|o| format!("{o} on")).collect();
    if restored.detached {
        done.push("XDP program removed".into());
    }
    if restored.companion {
        done.push("veth pair beside it removed".into());
    }
    let subject = format!("{}: restored", restored.interface);
    (!done.is_empty()).then(|| Finding::ok(&subject, done.join(", ")))
}
