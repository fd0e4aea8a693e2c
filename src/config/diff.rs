//! What differs between two configurations, in the words of their files.
//!
//! Whatever stands in a file is compared, so that no key can be forgotten; what is not written has
//! no words, defaults among it. Whether two files mean the same is for [`super::Config`] to say.

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::fmt;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use toml::{Table, Value};

/// Header fields whose values are credentials: that they differ is told, not what they are.
const SECRET_HEADERS: [&str; 6] =
    ["authorization", "proxy-authorization", "cookie", "x-api-key", "api-key", "x-goog-api-key"];
const HIDDEN: &str = "***";
/// Entries without a name that are looked through for the one that another has become.
const LOOK_AHEAD_MAX: usize = 16;

/// A configuration as its files have it, templates unfilled.
///
/// Any two are equal: configurations are the same by what they mean.
#[derive(Clone, Debug, Default)]
pub struct Written(Arc<Files>);

#[derive(Debug, Default)]
struct Files {
    file: Table,
    pipeline: Table,
}

/// One thing that differs.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Difference {
    pub change: Change,
    /// Keys and names, such as `service.chat.pool`; `rule[3 bulk]` is the third rule, of that name.
    pub at: String,
    /// What stood there; of what has moved, its place, from 1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub old: Option<Value>,
    /// What stands there now.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub new: Option<Value>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Change {
    Added,
    Removed,
    Changed,
    /// To another place of its list.
    Moved,
}

impl Written {
    pub(super) fn new(file: Table, mut pipeline: Table) -> Written {
        // For whoever reads that file: nothing depends on it.
        pipeline.remove("description");
        Written(Arc::new(Files { file, pipeline }))
    }

    /// What is to be done to this to have `new`: by section and key, in the order of names; lists
    /// in their own order.
    pub fn differences(&self, new: &Written) -> Vec<Difference> {
        let mut walk = Walk::default();
        walk.tables(&self.0.file, &new.0.file);
        walk.path.push("pipeline".to_string());
        walk.tables(&self.0.pipeline, &new.0.pipeline);
        walk.found
    }
}

impl PartialEq for Written {
    fn eq(&self, _: &Written) -> bool {
        true
    }
}

impl Eq for Written {}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = |value: &Option<Value>| value.as_ref().map(Value::to_string).unwrap_or_default();
        let (at, old, new) = (&self.at, text(&self.old), text(&self.new));
        match self.change {
            Change::Added => write!(f, "+ {at}: {new}"),
            Change::Removed => write!(f, "- {at}: {old}"),
            Change::Changed => write!(f, "~ {at}: {old} -> {new}"),
            Change::Moved => write!(f, "> {at}: place {old} -> {new}"),
        }
    }
}

#[derive(Default)]
struct Walk {
    path: Vec<String>,
    found: Vec<Difference>,
}

impl Walk {
    fn tables(&mut self, old: &Table, new: &Table) {
        let keys: BTreeSet<&String> = old.keys().chain(new.keys()).collect();
        for key in keys {
            self.within(key, |walk| match (old.get(key), new.get(key)) {
                (Some(old), Some(new)) => walk.values(old, new),
                (Some(old), None) => walk.alone(Change::Removed, old),
                (None, Some(new)) => walk.alone(Change::Added, new),
                (None, None) => {}
            });
        }
    }

    fn values(&mut self, old: &Value, new: &Value) {
        match (old, new) {
            _ if old == new => {}
            (Value::Table(old), Value::Table(new)) => self.tables(old, new),
            (Value::Array(old), Value::Array(new)) => self.lists(old, new),
            _ => self.tell(Change::Changed, Some(old.clone()), Some(new.clone())),
        }
    }

    /// Entries are the same by their name, address or value. Of those that have none in common, one
    /// has become another if they stand in the same place and have half of their keys in common.
    fn lists(&mut self, old: &[Value], new: &[Value]) {
        let (pairs, stays) = paired(old, new);
        let old_of: HashMap<usize, usize> = pairs.iter().map(|&(old, new)| (new, old)).collect();
        let mut gone: Vec<VecDeque<usize>> = vec![VecDeque::new(); stays.len() + 1];
        let has_new: BTreeSet<usize> = pairs.iter().map(|&(old, _)| old).collect();
        for at in (0..old.len()).filter(|at| !has_new.contains(at)) {
            gone[stays.partition_point(|&(before, _)| before < at)].push_back(at);
        }
        let mut gap = 0;
        for (at, entry) in new.iter().enumerate() {
            match old_of.get(&at) {
                Some(&before) => {
                    if stays.get(gap) == Some(&(before, at)) {
                        self.all_gone(&mut gone[gap], old);
                        gap += 1;
                    } else {
                        let place = |at: usize| Some(Value::Integer(at as i64 + 1));
                        let tell =
                            |walk: &mut Walk| walk.tell(Change::Moved, place(before), place(at));
                        self.within_list(at, entry, tell);
                    }
                    self.within_list(at, entry, |walk| walk.values(&old[before], entry));
                }
                None => {
                    let looked = gone[gap].iter().take(LOOK_AHEAD_MAX);
                    let became = looked.copied().position(|before| resemble(&old[before], entry));
                    let before = became.and_then(|n| gone[gap].remove(n));
                    self.within_list(at, entry, |walk| match before {
                        Some(before) => walk.values(&old[before], entry),
                        None => walk.alone(Change::Added, entry),
                    });
                }
            }
        }
        self.all_gone(&mut gone[gap], old);
    }

    fn all_gone(&mut self, gone: &mut VecDeque<usize>, old: &[Value]) {
        for at in gone.drain(..) {
            self.within_list(at, &old[at], |walk| walk.alone(Change::Removed, &old[at]));
        }
    }

    /// What one side only has: tables and their lists each on their own.
    fn alone(&mut self, change: Change, value: &Value) {
        match value {
            Value::Table(table) => {
                let (parts, own): (Vec<_>, Vec<_>) = table.iter().partition(|(_, v)| has_parts(v));
                if !own.is_empty() || parts.is_empty() {
                    let own = own.into_iter().map(|(key, v)| (key.clone(), v.clone()));
                    self.tell_alone(change, Value::Table(own.collect()));
                }
                for (key, part) in parts {
                    self.within(key, |walk| walk.alone(change, part));
                }
            }
            Value::Array(list) if has_parts(value) => {
                for (at, entry) in list.iter().enumerate() {
                    self.within_list(at, entry, |walk| walk.alone(change, entry));
                }
            }
            _ => self.tell_alone(change, value.clone()),
        }
    }

    fn tell_alone(&mut self, change: Change, value: Value) {
        match change {
            Change::Removed => self.tell(change, Some(value), None),
            _ => self.tell(change, None, Some(value)),
        }
    }

    fn tell(&mut self, change: Change, old: Option<Value>, new: Option<Value>) {
        let at = self.path.join(".").replace(".[", "[");
        let hidden = |value| hidden(&self.path, value);
        let (old, new) = (old.map(hidden), new.map(hidden));
        self.found.push(Difference { change, at, old, new });
    }

    fn within(&mut self, key: &str, then: impl FnOnce(&mut Walk)) {
        let is_bare = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
        self.path.push(match key.chars().all(is_bare) && !key.is_empty() {
            true => key.to_string(),
            false => Value::String(key.to_string()).to_string(),
        });
        then(self);
        self.path.pop();
    }

    /// Tables are told by their place, from 1, and name; plain values speak for themselves.
    fn within_list(&mut self, at: usize, entry: &Value, then: impl FnOnce(&mut Walk)) {
        let Value::Table(table) = entry else { return then(self) };
        let name = name_of(table).map(|name| format!(" {name}")).unwrap_or_default();
        self.path.push(format!("[{}{name}]", at + 1));
        then(self);
        self.path.pop();
    }
}

/// Whether a value is told part by part.
fn has_parts(value: &Value) -> bool {
    match value {
        Value::Table(_) => true,
        Value::Array(list) => list.first().is_some_and(Value::is_table),
        _ => false,
    }
}

/// What an entry of a list is known by: its name, a backend's address, the one stage it is.
fn name_of(table: &Table) -> Option<String> {
    if let Some(Value::String(name)) = table.get("name") {
        return Some(name.clone());
    }
    if let Some(Value::String(address)) = table.get("address") {
        return Some(match (table.get("port"), address.contains(':')) {
            (None, _) => address.clone(),
            (Some(port), true) => format!("[{address}]:{port}"),
            (Some(port), false) => format!("{address}:{port}"),
        });
    }
    match table.iter().next() {
        Some((key, Value::Table(_))) if table.len() == 1 => Some(key.clone()),
        _ => None,
    }
}

/// Old and new place.
type Pairs = Vec<(usize, usize)>;

/// Entries of two lists that are the same ones, old and new place, by old place; and those of them
/// that are in the same order in both lists, as many as can be.
fn paired(old: &[Value], new: &[Value]) -> (Pairs, Pairs) {
    let key = |entry: &Value| match entry.as_table().and_then(name_of) {
        Some(name) => format!("[{name}]"),
        None => entry.to_string(),
    };
    let mut places: HashMap<String, VecDeque<usize>> = HashMap::new();
    for (at, entry) in new.iter().enumerate() {
        places.entry(key(entry)).or_default().push_back(at);
    }
    let place = |entry| places.get_mut(&key(entry)).and_then(VecDeque::pop_front);
    let pairs: Pairs =
        old.iter().map(place).enumerate().filter_map(|(at, new)| Some((at, new?))).collect();
    // The longest rising run, by the last of each length, and each one's forerunner.
    let (mut last, mut forerunner) = (Vec::<usize>::new(), vec![None; pairs.len()]);
    for (n, &(_, at)) in pairs.iter().enumerate() {
        let len = last.partition_point(|&n| pairs[n].1 < at);
        forerunner[n] = len.checked_sub(1).map(|before| last[before]);
        match last.get_mut(len) {
            Some(end) => *end = n,
            None => last.push(n),
        }
    }
    let run = std::iter::successors(last.last().copied(), |&n| forerunner[n]);
    let mut stays: Vec<_> = run.map(|n| pairs[n]).collect();
    stays.reverse();
    (pairs, stays)
}

/// Whether half of two tables' keys, or more, have the same values. Names are not the same here.
fn resemble(a: &Value, b: &Value) -> bool {
    let (Value::Table(a), Value::Table(b)) = (a, b) else { return false };
    let same = a.iter().filter(|(key, value)| b.get(*key) == Some(value)).count();
    2 * same >= a.len().max(b.len())
}

/// The value without what is secret in it.
fn hidden(path: &[String], value: Value) -> Value {
    let is_secret = |key: &str| SECRET_HEADERS.contains(&key.to_ascii_lowercase().as_str());
    let hide = |key: &str, value| match is_secret(key) {
        true => Value::String(HIDDEN.to_string()),
        false => value,
    };
    match (path, value) {
        ([.., header], Value::Table(table)) if header == "header" => {
            Value::Table(table.into_iter().map(|(k, v)| (k.clone(), hide(&k, v))).collect())
        }
        ([.., header, key], value) if header == "header" => hide(key, value),
        (_, value) => value,
    }
}

#[cfg(test)]
mod tests;
