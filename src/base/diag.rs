//! What is wrong with a text file, and where: every fault with its file, line and column.

use std::fmt;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

/// Faults of one file that are told; whoever has more corrects these first.
pub const FAULTS_MAX: usize = 100;

/// Faults that are told of one place: what stands for many, as a template does, may be at fault in
/// as many ways.
pub const FAULTS_A_PLACE_MAX: usize = 8;

/// A text file and where it came from. Places in it are byte ranges of its text, behind which lie
/// the values that were [set](Source::set) in its place.
#[derive(Clone, Debug)]
pub struct Source {
    path: PathBuf,
    text: String,
    /// Where its lines begin, once somebody has asked: there may be as many questions as lines.
    lines: OnceLock<Vec<usize>>,
    sets: Vec<Set>,
}

/// A value given beside the file, such as `qos.class.batch.rate=20%`.
#[derive(Clone, Debug)]
struct Set {
    /// As it was given.
    words: String,
    /// The same as a line of TOML, behind the file's text.
    line: String,
    start: usize,
}

impl Source {
    pub fn new(path: impl Into<PathBuf>, text: impl Into<String>) -> Source {
        let (path, text) = (path.into(), text.into());
        Source { path, text, lines: OnceLock::new(), sets: Vec::new() }
    }

    /// Puts a value in the place of what the file says, or where it says nothing: `line` is a line
    /// of TOML with a dotted key. Faults in it are told by `words`, as it was given.
    pub fn set(&mut self, words: &str, line: String) {
        let end = |s: &Set| s.start + s.line.len() + 1;
        let start = self.sets.last().map_or(self.text.len() + 1, end);
        self.sets.push(Set { words: words.to_string(), line, start });
    }

    /// What was set: each line, and where it lies.
    pub fn sets(&self) -> impl Iterator<Item = (&str, usize)> {
        self.sets.iter().map(|s| (s.line.as_str(), s.start))
    }

    /// Where an offset is: in the file, or in what was set.
    fn place(&self, offset: usize) -> (PathBuf, Option<(u32, u32)>) {
        match self.sets.iter().rfind(|s| s.start <= offset) {
            Some(set) => (format!("--set {}", set.words).into(), None),
            None => (self.path.clone(), Some(self.line_column(offset))),
        }
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    pub fn text(&self) -> &str {
        &self.text
    }

    /// Line and column of a byte offset, both from 1; columns count characters, as editors do.
    pub fn line_column(&self, offset: usize) -> (u32, u32) {
        let mut cut = offset.min(self.text.len());
        while !self.text.is_char_boundary(cut) {
            cut -= 1;
        }
        let lines = self.lines.get_or_init(|| {
            let breaks = memchr::memchr_iter(b'\n', self.text.as_bytes()).map(|at| at + 1);
            std::iter::once(0).chain(breaks).collect()
        });
        let line = lines.partition_point(|&start| start <= cut);
        let line_start = lines.get(line.saturating_sub(1)).copied().unwrap_or_default();
        let column = self.text[line_start..cut].chars().count() + 1;
        (u32::try_from(line).unwrap_or(u32::MAX), u32::try_from(column).unwrap_or(u32::MAX))
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Severity {
    /// The file can't be used.
    Error,
    /// The file can be used, but probably does not do what was meant.
    Warning,
}

/// One fault: `file:line:column: error: what, and what to do`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Diagnostic {
    pub severity: Severity,
    pub path: PathBuf,
    /// Line and column, both from 1; `None` when the file as a whole is at fault.
    pub place: Option<(u32, u32)>,
    pub message: String,
}

impl fmt::Display for Diagnostic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:", self.path.display())?;
        if let Some((line, column)) = self.place {
            write!(f, "{line}:{column}:")?;
        }
        let severity = match self.severity {
            Severity::Error => "error",
            Severity::Warning => "warning",
        };
        write!(f, " {severity}: {}", self.message)
    }
}

/// All faults that were found, in the order of their places once [`Diagnostics::sort`] was called.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Diagnostics {
    list: Vec<Diagnostic>,
}

impl Diagnostics {
    pub fn error(&mut self, source: &Source, span: &Range<usize>, message: impl Into<String>) {
        self.push(Severity::Error, source, span, message.into());
    }

    pub fn warning(&mut self, source: &Source, span: &Range<usize>, message: impl Into<String>) {
        self.push(Severity::Warning, source, span, message.into());
    }

    /// An error about a file as a whole, such as one that can't be read.
    pub fn file_error(&mut self, path: &Path, message: impl Into<String>) {
        self.list.push(Diagnostic {
            severity: Severity::Error,
            path: path.to_path_buf(),
            place: None,
            message: message.into(),
        });
    }

    fn push(&mut self, severity: Severity, source: &Source, span: &Range<usize>, message: String) {
        let (path, place) = source.place(span.start);
        let fault = Diagnostic { severity, path, place, message };
        // One fault may be met on several ways to it; it is told once.
        let here = self.list.iter().filter(|d| d.place == fault.place && d.path == fault.path);
        let mut others = 0;
        for other in here {
            if *other == fault {
                return;
            }
            others += usize::from(other.severity == severity);
        }
        if others < FAULTS_A_PLACE_MAX {
            self.list.push(fault);
        }
    }

    /// Takes over all faults of `other`.
    pub fn append(&mut self, other: Diagnostics) {
        self.list.extend(other.list);
    }

    /// Whether something is told of this very place.
    pub fn tells_of(&self, source: &Source, span: &Range<usize>) -> bool {
        let (path, place) = source.place(span.start);
        self.list.iter().any(|d| d.path == path && d.place == place)
    }

    /// Whether something is told of a place within a part of a file.
    pub fn tells_within(&self, source: &Source, span: &Range<usize>) -> bool {
        let (path, first) = source.place(span.start);
        let (_, last) = source.place(span.end);
        self.list.iter().any(|d| d.path == path && (first..=last).contains(&d.place))
    }

    pub fn has_errors(&self) -> bool {
        self.list.iter().any(|d| d.severity == Severity::Error)
    }

    pub fn iter(&self) -> impl Iterator<Item = &Diagnostic> {
        self.list.iter()
    }

    pub fn len(&self) -> usize {
        self.list.len()
    }

    pub fn is_empty(&self) -> bool {
        self.list.is_empty()
    }

    /// Brings the faults of each file into the order of its lines; files stay in the order in which
    /// their first fault was found.
    pub fn sort(&mut self) {
        let mut files: Vec<PathBuf> = Vec::new();
        for d in &self.list {
            if !files.contains(&d.path) {
                files.push(d.path.clone());
            }
        }
        self.list.sort_by_key(|d| (files.iter().position(|f| *f == d.path), d.place));
    }

    pub fn into_vec(self) -> Vec<Diagnostic> {
        self.list
    }
}

impl fmt::Display for Diagnostics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, d) in self.list.iter().enumerate() {
            if i > 0 {
                writeln!(f)?;
            }
            d.fmt(f)?;
        }
        Ok(())
    }
}

impl std::error::Error for Diagnostics {}

/// The name of `known` that `wrong` was most likely meant to be.
pub fn nearest<'k>(wrong: &str, known: impl IntoIterator<Item = &'k str>) -> Option<&'k str> {
    // Names differ by a slip or two; beyond a third of the name a guess would mislead.
    let slips_max = (wrong.chars().count() / 3).clamp(1, 3);
    known
        .into_iter()
        .map(|k| (slips(wrong, k), k))
        .filter(|&(n, _)| n <= slips_max)
        .min_by_key(|&(n, _)| n)
        .map(|(_, k)| k)
}

/// `; did you mean ...?`, or else what is known, or nothing when nothing is.
pub fn advice<'k>(wrong: &str, known: impl IntoIterator<Item = &'k str>) -> String {
    let known: Vec<&str> = known.into_iter().collect();
    if let Some(name) = nearest(wrong, known.iter().copied()) {
        return format!("; did you mean `{name}`?");
    }
    match known.as_slice() {
        [] => String::new(),
        [one] => format!("; only `{one}` is known here"),
        many => format!("; known here: `{}`", many.join("`, `")),
    }
}

/// Edits between two names, upper and lower case being equal: inserted, lost, changed or swapped
/// characters (Damerau-Levenshtein, optimal string alignment).
fn slips(a: &str, b: &str) -> usize {
    let a: Vec<char> = a.to_lowercase().chars().collect();
    let b: Vec<char> = b.to_lowercase().chars().collect();
    let width = b.len() + 1;
    let mut d = vec![0usize; (a.len() + 1) * width];
    for i in 0..=a.len() {
        for j in 0..=b.len() {
            d[i * width + j] = if i == 0 || j == 0 {
                i + j
            } else {
                let differ = usize::from(a[i - 1] != b[j - 1]);
                let mut best = (d[(i - 1) * width + j] + 1)
                    .min(d[i * width + j - 1] + 1)
                    .min(d[(i - 1) * width + j - 1] + differ);
                if i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1] {
                    best = best.min(d[(i - 2) * width + j - 2] + 1);
                }
                best
            };
        }
    }
    d[a.len() * width + b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_count_characters() {
        let s = Source::new("f", "ab\nµ = 1\n");
        assert_eq!(s.line_column(0), (1, 1));
        assert_eq!(s.line_column(2), (1, 3));
        assert_eq!(s.line_column(3), (2, 1));
        assert_eq!(s.line_column(5), (2, 2), "µ is two bytes, one column");
        assert_eq!(s.line_column(4), (2, 1), "inside µ");
        assert_eq!(s.line_column(999), (3, 1));
    }

    #[test]
    fn near_names() {
        let known = ["native", "generic", "auto"];
        assert_eq!(nearest("natvie", known), Some("native"));
        assert_eq!(nearest("Generic", known), Some("generic"));
        assert_eq!(nearest("driver", known), None);
        assert_eq!(slips("burst", "cburst"), 1);
        assert_eq!(advice("x", known), "; known here: `native`, `generic`, `auto`");
        assert_eq!(advice("autp", known), "; did you mean `auto`?");
        assert_eq!(advice("x", []), "");
    }

    #[test]
    fn faults_are_told_once_and_in_order() {
        let a = Source::new("a.toml", "x\ny\n");
        let b = Source::new("b.toml", "z\n");
        let mut d = Diagnostics::default();
        d.error(&a, &(2..3), "second");
        d.error(&b, &(0..1), "other");
        d.warning(&a, &(0..1), "first");
        d.error(&a, &(2..3), "second");
        d.file_error(Path::new("c.toml"), "cannot be read");
        d.sort();
        assert_eq!(
            d.to_string(),
            "a.toml:1:1: warning: first\na.toml:2:1: error: second\n\
             b.toml:1:1: error: other\nc.toml: error: cannot be read"
        );
        assert!(d.has_errors());
    }
}
