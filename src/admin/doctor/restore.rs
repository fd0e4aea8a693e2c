//! What a killed run left changed on interfaces, set back.

use std::path::Path;

use super::Finding;
use crate::nic::restore::{STATE_DIR, restore_leftovers};

pub fn leftovers() -> Vec<Finding> {
    const SUBJECT: &str = "leftovers";
    let restored = match restore_leftovers(Path::new(STATE_DIR)) {
        Ok(restored) => restored,
        Err(error) => {
            let advice = format!("{STATE_DIR} keeps note of what is to be restored: run as root.");
            return vec![Finding::warn(SUBJECT, error.to_string(), advice)];
        }
    };
    if restored.is_empty() {
        return vec![Finding::ok(SUBJECT, "none of a killed run")];
    }
    let finding = |r: &crate::nic::restore::Restored| {
        let mut done: Vec<String> = r.switched_on.iter().map(|o| format!("{o} on")).collect();
        if r.detached {
            done.push("XDP program removed".into());
        }
        let found = match done.is_empty() {
            true => "nothing could be set back".into(),
            false => done.join(", "),
        };
        Finding::ok(&format!("{}: restored", r.interface), found)
    };
    restored.iter().map(finding).collect()
}
