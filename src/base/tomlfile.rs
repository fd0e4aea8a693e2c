//! Reading a TOML file into a type, with every fault told at its place, not only the first.
//!
//! serde stops at the first fault. The reader therefore takes the entry at fault out of the parsed
//! document and reads again, until nothing is left to complain about. Types to be read this way
//! have a default for every field and deny unknown ones; what must not be missing is checked
//! afterwards, with [`Faulty`] telling apart what was never there from what was there but wrong.

use std::collections::HashSet;
use std::fmt;
use std::marker::PhantomData;
use std::ops::Range;

use serde::Deserialize;
use serde::de::{self, DeserializeOwned, Deserializer, MapAccess, SeqAccess, Visitor};
use toml::Spanned;
use toml::de::{DeArray, DeTable, DeValue, ValueDeserializer};

use super::diag::{Diagnostics, FAULTS_MAX, Source, advice};

/// What a file was read as, and which entries had to be left out.
#[derive(Debug)]
pub struct Reading<T> {
    pub value: T,
    pub faulty: Faulty,
}

/// The place of the document's outermost table, for [`Faulty::contains`]. Its true place is also
/// that of a header in the first line.
pub const ROOT: Range<usize> = usize::MAX..usize::MAX;

/// Entries that were reported and left out: where their table begins, and their key.
#[derive(Debug, Default)]
pub struct Faulty(HashSet<(usize, String)>);

impl Faulty {
    /// Whether `key` stood in the table at `table` but could not be read, or not all of its list.
    pub fn contains(&self, table: &Range<usize>, key: &str) -> bool {
        self.0.contains(&(table.start, key.to_string()))
    }

    /// Whether anything that stood in the table at `table` could not be read.
    pub fn any_in(&self, table: &Range<usize>) -> bool {
        self.0.iter().any(|(start, _)| *start == table.start)
    }
}

/// Reads the whole document. `None` when it is no TOML at all; all faults go to `out`.
pub fn read<T: DeserializeOwned>(source: &Source, out: &mut Diagnostics) -> Option<Reading<T>> {
    read_changed(source, out, |_, _| {})
}

/// As [`read`], once `change` has had its way with the document. It may put copies of an entry in
/// that entry's place: a fault in one of them then costs all of them what is at fault.
pub fn read_changed<T: DeserializeOwned>(
    source: &Source,
    out: &mut Diagnostics,
    change: impl FnOnce(&mut DeTable<'_>, &mut Diagnostics),
) -> Option<Reading<T>> {
    let (root, syntax) = DeTable::parse_recoverable(source.text());
    for e in syntax.iter().take(FAULTS_MAX) {
        let end = source.text().len();
        let span = e.span().unwrap_or(end..end);
        out.error(source, &span, explain_syntax(e.message(), source.text().get(span.clone())));
    }
    if !syntax.is_empty() {
        return None;
    }
    let root_span = root.span();
    let mut table = root.into_inner();
    let lines: Vec<(String, usize)> = source.sets().map(|(l, at)| (padded(l, at), at)).collect();
    for (line, at) in &lines {
        match DeTable::parse(line) {
            Ok(set) => merge(&mut table, set.into_inner()),
            Err(e) => out.error(source, &(*at..*at), explain_syntax(e.message(), None)),
        }
    }
    change(&mut table, out);
    let mut faulty = Faulty::default();
    for _ in 0..FAULTS_MAX {
        let document = Spanned::new(root_span.clone(), DeValue::Table(table.clone()));
        let e = match T::deserialize(ValueDeserializer::from(document)) {
            Ok(value) => return Some(Reading { value, faulty }),
            Err(e) => e,
        };
        let span = e.span().unwrap_or(0..0);
        out.error(source, &span, explain(e.message()));
        if !remove_in_table(&mut table, &ROOT, &span, &mut faulty) {
            return None;
        }
    }
    out.file_error(source.path(), format!("more than {FAULTS_MAX} errors: correct these first"));
    None
}

/// A line behind `at` spaces, so that its places are those it is said to have.
fn padded(line: &str, at: usize) -> String {
    format!("{:at$}{line}", "")
}

/// Puts the entries of `new` in the place of those in `table`; tables are gone into.
fn merge<'i>(table: &mut DeTable<'i>, new: DeTable<'i>) {
    for (key, value) in new {
        let known = table.get_mut(key.get_ref().as_ref()).map(Spanned::get_mut);
        match (known, value.get_ref()) {
            (Some(DeValue::Table(known)), DeValue::Table(_)) => {
                if let DeValue::Table(new) = value.into_inner() {
                    merge(known, new);
                }
            }
            _ => {
                table.remove(key.get_ref().as_ref());
                table.insert(key, value);
            }
        }
    }
}

/// Takes the innermost entry at `span` out of `table`, and out of all copies of where it stands;
/// false when there is none.
fn remove_in_table(
    table: &mut DeTable<'_>,
    table_span: &Range<usize>,
    span: &Range<usize>,
    faulty: &mut Faulty,
) -> bool {
    // A table's own span covers its header only, so a fault may lie in any of them.
    let mut found = false;
    for (key, value) in table.iter_mut() {
        let removed = remove_in_value(value, span, faulty);
        found |= removed != Removed::Nothing;
        if removed == Removed::Element {
            faulty.0.insert((table_span.start, key.get_ref().to_string()));
        }
    }
    if found {
        return true;
    }
    let holds = |s: Range<usize>| s.start <= span.start && span.end <= s.end;
    let hits = table.iter().filter(|(k, v)| holds(k.span()) || holds(v.span()));
    let keys: Vec<String> = hits.map(|(k, _)| k.get_ref().to_string()).collect();
    for key in &keys {
        table.remove(key.as_str());
        faulty.0.insert((table_span.start, key.clone()));
    }
    !keys.is_empty()
}

/// What became of a value in which a fault was looked for.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Removed {
    Nothing,
    /// An entry of a table in it.
    Inside,
    /// An element of the list that it is.
    Element,
}

fn remove_in_value(
    value: &mut Spanned<DeValue<'_>>,
    span: &Range<usize>,
    faulty: &mut Faulty,
) -> Removed {
    let value_span = value.span();
    match value.get_mut() {
        DeValue::Table(t) => match remove_in_table(t, &value_span, span, faulty) {
            true => Removed::Inside,
            false => Removed::Nothing,
        },
        DeValue::Array(a) => remove_in_array(a, span, faulty),
        _ => Removed::Nothing,
    }
}

fn remove_in_array(array: &mut DeArray<'_>, span: &Range<usize>, faulty: &mut Faulty) -> Removed {
    let mut found = Removed::Nothing;
    for value in array.iter_mut() {
        match remove_in_value(value, span, faulty) {
            Removed::Nothing => {}
            removed => found = removed,
        }
    }
    if found != Removed::Nothing {
        return found;
    }
    let before = array.len();
    let kept = array.iter().filter(|v| v.span() != *span).cloned().collect();
    *array = kept;
    if array.len() < before { Removed::Element } else { Removed::Nothing }
}

/// The parser's message in the terms of someone who writes a file. `found` is the text at fault.
fn explain_syntax(message: &str, found: Option<&str>) -> String {
    let found = found.unwrap_or_default().trim();
    if message == "duplicate key" {
        return format!("`{found}` is given a second time");
    }
    if message.starts_with("string values must be quoted") {
        return match found {
            "" => "a value is missing".to_string(),
            text => format!("`{text}` is no value: strings stand in quotes"),
        };
    }
    message.replace('\n', " ")
}

/// serde's message in the terms of someone who writes a file.
fn explain(message: &str) -> String {
    let names: Vec<&str> = message.split('`').skip(1).step_by(2).collect();
    if let Some(rest) = message.strip_prefix("unknown field ") {
        let Some((wrong, known)) = names.split_first() else { return rest.to_string() };
        return format!("unknown key `{wrong}`{}", advice(wrong, known.iter().copied()));
    }
    if let Some(rest) = message.strip_prefix("unknown variant ") {
        let Some((wrong, known)) = names.split_first() else { return rest.to_string() };
        return format!("unknown value `{wrong}`{}", advice(wrong, known.iter().copied()));
    }
    if message == "wanted string or table" {
        return "a string is expected here".to_string();
    }
    for prefix in ["invalid type: ", "invalid value: "] {
        let Some(rest) = message.strip_prefix(prefix) else { continue };
        let Some((found, expected)) = rest.split_once(", expected ") else { continue };
        return format!("{} is expected here, not {}", plain(expected), plain(found));
    }
    message.to_string()
}

/// serde's name of a type or value, in plain words.
fn plain(name: &str) -> String {
    match name {
        "a sequence" | "sequence" => "a list".to_string(),
        "map" | "a map" => "a table".to_string(),
        "a boolean" => "true or false".to_string(),
        "i64" | "u64" | "usize" => "a whole number".to_string(),
        "f64" => "a number".to_string(),
        n if n.starts_with("struct ") => "a table".to_string(),
        n => {
            let value = n.split('`').nth(1);
            match (n.split_once(' ').map(|(kind, _)| kind), value) {
                (Some("integer" | "floating"), Some(v)) => format!("the number {v}"),
                (Some("boolean"), Some(v)) => v.to_string(),
                (Some("string"), _) => format!("the {n}"),
                _ => n.to_string(),
            }
        }
    }
}

/// A value that is written as a string, a number or a switch and checked while it is read, so that
/// a fault is told at its very place.
pub trait Atom: Sized {
    /// What is expected, for messages: "a duration such as ...".
    const EXPECTED: &'static str;

    /// # Errors
    /// What is wrong with the text.
    fn from_text(text: &str) -> Result<Self, String> {
        Err(unexpected::<Self>(&format!("the string \"{text}\"")))
    }

    /// # Errors
    /// What is wrong with the number.
    fn from_number(number: i64) -> Result<Self, String> {
        Err(unexpected::<Self>(&format!("the number {number}")))
    }

    /// # Errors
    /// What is wrong with the switch.
    fn from_switch(on: bool) -> Result<Self, String> {
        Err(unexpected::<Self>(&on.to_string()))
    }
}

fn unexpected<A: Atom>(found: &str) -> String {
    format!("{} is expected here, not {found}", A::EXPECTED)
}

/// Reads an [`Atom`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Leaf<A>(pub A);

impl<'de, A: Atom> Deserialize<'de> for Leaf<A> {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Leaf<A>, D::Error> {
        d.deserialize_any(AtomVisitor(PhantomData)).map(Leaf)
    }
}

struct AtomVisitor<A>(PhantomData<A>);

impl<A: Atom> Visitor<'_> for AtomVisitor<A> {
    type Value = A;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(A::EXPECTED)
    }

    fn visit_str<E: de::Error>(self, v: &str) -> Result<A, E> {
        A::from_text(v).map_err(E::custom)
    }

    fn visit_i64<E: de::Error>(self, v: i64) -> Result<A, E> {
        A::from_number(v).map_err(E::custom)
    }

    fn visit_bool<E: de::Error>(self, v: bool) -> Result<A, E> {
        A::from_switch(v).map_err(E::custom)
    }
}

/// One atom, or a list of them.
#[derive(Clone, Debug)]
pub struct OneOrMany<A>(pub Vec<A>);

impl<'de, A: Atom> Deserialize<'de> for OneOrMany<A> {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<OneOrMany<A>, D::Error> {
        d.deserialize_any(ManyVisitor(PhantomData)).map(OneOrMany)
    }
}

struct ManyVisitor<A>(PhantomData<A>);

impl<'de, A: Atom> Visitor<'de> for ManyVisitor<A> {
    type Value = Vec<A>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}, or a list,", A::EXPECTED)
    }

    fn visit_str<E: de::Error>(self, v: &str) -> Result<Vec<A>, E> {
        A::from_text(v).map(|a| vec![a]).map_err(E::custom)
    }

    fn visit_i64<E: de::Error>(self, v: i64) -> Result<Vec<A>, E> {
        A::from_number(v).map(|a| vec![a]).map_err(E::custom)
    }

    fn visit_bool<E: de::Error>(self, v: bool) -> Result<Vec<A>, E> {
        A::from_switch(v).map(|a| vec![a]).map_err(E::custom)
    }

    fn visit_seq<S: SeqAccess<'de>>(self, mut seq: S) -> Result<Vec<A>, S::Error> {
        let mut list = Vec::new();
        while let Some(Leaf(a)) = seq.next_element()? {
            list.push(a);
        }
        Ok(list)
    }
}

/// One string, or a list of them with their places. One stands where the whole does, so that
/// [`texts`] needs that.
#[derive(Clone, Debug)]
pub enum Texts {
    One(String),
    Many(Vec<Spanned<String>>),
}

impl Texts {
    /// Whether it is an empty list.
    pub fn is_empty(&self) -> bool {
        matches!(self, Texts::Many(list) if list.is_empty())
    }
}

/// The strings with their places; none where nothing is given.
pub fn texts(given: &Option<Spanned<Texts>>) -> Vec<Spanned<String>> {
    match given.as_ref().map(|given| (given.get_ref(), given.span())) {
        Some((Texts::One(text), span)) => vec![Spanned::new(span, text.clone())],
        Some((Texts::Many(list), _)) => list.clone(),
        None => Vec::new(),
    }
}

impl<'de> Deserialize<'de> for Texts {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Texts, D::Error> {
        d.deserialize_any(TextsVisitor)
    }
}

struct TextsVisitor;

impl<'de> Visitor<'de> for TextsVisitor {
    type Value = Texts;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a string, or a list of strings,")
    }

    fn visit_str<E: de::Error>(self, v: &str) -> Result<Texts, E> {
        Ok(Texts::One(v.to_string()))
    }

    fn visit_seq<S: SeqAccess<'de>>(self, mut seq: S) -> Result<Texts, S::Error> {
        let mut list = Vec::new();
        while let Some(text) = seq.next_element()? {
            list.push(text);
        }
        Ok(Texts::Many(list))
    }
}

/// A table whose keys are names of the writer's choice, in the file's order.
#[derive(Clone, Debug)]
pub struct Named<T>(pub Vec<(Spanned<String>, Spanned<T>)>);

impl<T> Default for Named<T> {
    fn default() -> Named<T> {
        Named(Vec::new())
    }
}

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Named<T> {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Named<T>, D::Error> {
        d.deserialize_map(NamedVisitor(PhantomData))
    }
}

struct NamedVisitor<T>(PhantomData<T>);

impl<'de, T: Deserialize<'de>> Visitor<'de> for NamedVisitor<T> {
    type Value = Named<T>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("map")
    }

    fn visit_map<M: MapAccess<'de>>(self, mut map: M) -> Result<Named<T>, M::Error> {
        let mut list: Vec<(Spanned<String>, Spanned<T>)> = Vec::new();
        while let Some(entry) = map.next_entry()? {
            list.push(entry);
        }
        list.sort_by_key(|(key, _)| key.span().start);
        Ok(Named(list))
    }
}

#[cfg(test)]
mod tests;
