//! Which class each class of a tree stands below.

use std::collections::{BTreeMap, HashMap};

use toml::Spanned;

use super::{Build, unknown};
use crate::config::file::FileClass;

/// What is wrong with a parent.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Wrong {
    Itself,
    Unknown,
}

/// A class's name, and its parent's as it was given.
type Class<'f> = (&'f str, &'f Spanned<String>);

/// By position: `None`: not known, and told; `Some(None)`: the port itself. What is wrong with
/// classes that a template made is told once, of the first of them.
pub fn parents(
    b: &mut Build<'_>,
    list: &[(Spanned<String>, Spanned<FileClass>)],
    names: &HashMap<&str, usize>,
) -> Vec<Option<Option<usize>>> {
    // By where the class's name stands, which those that a template made have in common.
    let mut wrong: BTreeMap<(usize, Wrong), Vec<Class>> = BTreeMap::new();
    let mut parents = Vec::with_capacity(list.len());
    for (key, table) in list {
        let Some(name) = &table.get_ref().parent else {
            parents.push(Some(None));
            continue;
        };
        let what = match names.get(name.get_ref().as_str()) {
            _ if name.get_ref() == key.get_ref() => Wrong::Itself,
            Some(at) => {
                parents.push(Some(Some(*at)));
                continue;
            }
            None => Wrong::Unknown,
        };
        parents.push(None);
        wrong.entry((key.span().start, what)).or_default().push((key.get_ref(), name));
    }
    for ((_, what), classes) in wrong {
        let Some((class, name)) = classes.first() else { continue };
        let text = match what {
            Wrong::Itself => format!("`{}` can't be its own parent", name.get_ref()),
            Wrong::Unknown => unknown("class of this port", name, names),
        };
        let is_same = classes.iter().all(|(_, other)| other.get_ref() == name.get_ref());
        let text = if is_same { text } else { so_for(&text, class, classes.len()) };
        b.error(&name.span(), text);
    }
    parents
}

/// What is told of `count` classes that a template made, of which this is the first.
pub fn so_for(what: &str, name: &str, count: usize) -> String {
    match count {
        0 | 1 => format!("{what} (so for `{name}`)"),
        some => format!("{what} (so for `{name}` and {} others)", some - 1),
    }
}
