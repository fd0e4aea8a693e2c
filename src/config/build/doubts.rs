//! What of a class tree is allowed, but probably not meant.

use std::collections::HashMap;

use toml::Spanned;

use super::Build;
use crate::config::file::FileClass;
use crate::qos::spec::DEPTH_MAX;

/// A class as written, under its name.
type Entry = (Spanned<String>, Spanned<FileClass>);

/// Warns of quanta and priorities that don't do what they seem to; to be called when errors are
/// told, since of one place the first thing that is told counts. `parents`: by class; `None` where
/// it is not known; `Some(None)`: the port.
pub fn doubts(b: &mut Build<'_>, list: &[Entry], parents: &[Option<Option<usize>>]) {
    quanta(b, list, parents);
    priorities(b, list, parents);
}

/// A quantum is bytes, a weight is relative to the siblings': beside each other they are neither.
fn quanta(b: &mut Build<'_>, list: &[Entry], parents: &[Option<Option<usize>>]) {
    // By parent: a class below it without a quantum.
    let mut without: HashMap<Option<usize>, &str> = HashMap::new();
    for ((name, class), parent) in list.iter().zip(parents) {
        if let (Some(parent), None) = (parent, &class.get_ref().quantum) {
            without.entry(*parent).or_insert(name.get_ref());
        }
    }
    for ((_, class), parent) in list.iter().zip(parents) {
        let Some(quantum) = &class.get_ref().quantum else { continue };
        if let Some(weight) = &class.get_ref().weight {
            b.warning(&weight.span(), "a class with a `quantum` goes by that: no effect");
        }
        // Told once: the siblings would be told the same.
        if let Some(other) = parent.and_then(|parent| without.remove(&parent)) {
            let what = format!(
                "its sibling `{other}` has none, and goes by its weight: how the two compare \
                 depends on the siblings' weights and the port's rate. Give all of them a \
                 `quantum`, or none"
            );
            b.warning(&quantum.span(), what);
        }
    }
}

/// Leaves borrow, and an inner class's priority is for those below it that have none of their own.
fn priorities(b: &mut Build<'_>, list: &[Entry], parents: &[Option<Option<usize>>]) {
    let mut is_inner = vec![false; list.len()];
    for parent in parents.iter().flatten().flatten() {
        is_inner[*parent] = true;
    }
    let mut is_taken = vec![false; list.len()];
    for leaf in (0..list.len()).filter(|&at| !is_inner[at]) {
        let mut at = leaf;
        for _ in 0..=DEPTH_MAX {
            is_taken[at] = true;
            match parents[at] {
                Some(Some(above)) if list[at].1.get_ref().priority.is_none() => at = above,
                _ => break,
            }
        }
    }
    for (at, (_, class)) in list.iter().enumerate() {
        if let Some(priority) = &class.get_ref().priority
            && !is_taken[at]
        {
            let what = "all classes below it have priorities of their own: no effect";
            b.warning(&priority.span(), what);
        }
    }
}
