//! The house rules that a machine can check: who imports whom (ARCHITECTURE.md has the table),
//! where unsafe code is, and how long files, functions and lines are.
//!
//! Reads text, not syntax: rough, but it needs no compiler of its own.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::fs;
use std::path::{Path, PathBuf};

const FILE_LINES_MAX: usize = 500;
/// Neither blank nor comment.
const FUNCTION_LINES_MAX: usize = 70;
const LINE_COLUMNS_MAX: usize = 100;
/// A `SAFETY:` comment ends at most this many lines above its block.
const SAFETY_WITHIN_LINES: usize = 8;

/// Files of these folders are read.
const FOLDERS: [&str; 3] = ["src", "tests", "bench"];
/// The only places with unsafe code.
const UNSAFE_IN: [&str; 2] = ["src/nic/", "src/base/mem.rs"];
/// Allocators are unsafe to write.
const UNSAFE_TESTS: [&str; 1] = ["tests/no_alloc.rs"];

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn sources() -> Vec<(String, String)> {
    let mut files = Vec::new();
    for folder in FOLDERS {
        collect(&root().join(folder), &mut files);
    }
    files.sort();
    let read = |path: PathBuf| {
        let name = path.strip_prefix(root()).expect("below the root").display().to_string();
        (name, fs::read_to_string(&path).expect("readable"))
    };
    files.into_iter().map(read).collect()
}

fn collect(folder: &Path, files: &mut Vec<PathBuf>) {
    let Ok(entries) = fs::read_dir(folder) else { return };
    for entry in entries.flatten() {
        let path = entry.path();
        if path.is_dir() && !path.ends_with("target") && !path.ends_with("fuzz") {
            collect(&path, files);
        } else if path.extension().is_some_and(|e| e == "rs") {
            files.push(path);
        }
    }
}

/// Fails with all findings at once.
fn report(findings: &[String]) {
    let mut text = String::new();
    for finding in findings {
        let _ = writeln!(text, "  {finding}");
    }
    assert!(findings.is_empty(), "{} findings:\n{text}", findings.len());
}

/// The code of a line: no comment, and nothing from within string literals.
fn code_of(line: &str) -> String {
    let mut code = String::with_capacity(line.len());
    let mut chars = line.chars().peekable();
    let mut in_string = false;
    while let Some(c) = chars.next() {
        match c {
            '\\' if in_string => {
                chars.next();
            }
            // A character literal holding a quotation mark is none that begins a string.
            '\'' if !in_string && chars.peek() == Some(&'"') => {
                chars.next();
            }
            '"' => in_string = !in_string,
            '/' if !in_string && chars.peek() == Some(&'/') => break,
            _ if in_string => {}
            _ => code.push(c),
        }
    }
    code
}

fn code_lines(text: &str) -> Vec<String> {
    text.lines().map(code_of).collect()
}

// ---- imports ----

/// Room to what it may import, from the table in ARCHITECTURE.md.
fn import_table(text: &str) -> BTreeMap<String, Vec<String>> {
    let section = text.split("\n## ").find(|s| s.starts_with("Rooms and imports"));
    let section = section.expect("ARCHITECTURE.md has the section `Rooms and imports`");
    let mut table = BTreeMap::new();
    for line in section.lines().filter(|l| l.starts_with('|')).skip(2) {
        let cells: Vec<_> = line.trim_matches('|').split('|').map(str::trim).collect();
        let [room, _, imports] = cells[..] else { panic!("three columns: {line}") };
        let imports = imports.split(',').map(str::trim).filter(|i| !i.is_empty() && *i != "-");
        table.insert(room.to_string(), imports.map(str::to_string).collect());
    }
    table
}

/// Every path below `crate` that the code names, such as `packet::meta::PortId`.
fn crate_paths(code: &str) -> Vec<String> {
    let mut paths = Vec::new();
    for (at, root) in code.match_indices("crate::") {
        let before = code[..at].chars().next_back();
        if before.is_none_or(|c| !c.is_alphanumeric() && c != '_' && c != '$') {
            expand("", &code[at + root.len()..], &mut paths);
        }
    }
    paths
}

/// Adds the paths of one use tree to `paths`; returns the length of what it read.
fn expand(prefix: &str, text: &str, paths: &mut Vec<String>) -> usize {
    let join = |name: &str| {
        if prefix.is_empty() { name.to_string() } else { format!("{prefix}::{name}") }
    };
    if !text.starts_with('{') {
        let end = text.find(|c: char| !c.is_alphanumeric() && c != '_').unwrap_or(text.len());
        let path = join(&text[..end]);
        if let Some(rest) = text[end..].strip_prefix("::") {
            let more = rest.starts_with(|c: char| c == '{' || c.is_alphanumeric() || c == '_');
            if more {
                return end + 2 + expand(&path, rest, paths);
            }
        }
        paths.push(path);
        return end;
    }
    let mut at = 1;
    while let Some(c) = text[at..].chars().next() {
        match c {
            '}' => return at + 1,
            c if c.is_alphanumeric() || c == '_' => {
                at += expand(prefix, &text[at..], paths);
                // `as name`
                let rest = &text[at..];
                at += rest.find([',', '}']).unwrap_or(rest.len());
            }
            c => at += c.len_utf8(),
        }
    }
    at
}

fn may_import(allowed: &[String], path: &str) -> bool {
    let below = |entry: &str| path == entry || path.starts_with(&format!("{entry}::"));
    allowed.iter().any(|entry| below(entry))
}

#[test]
fn rooms_import_what_the_table_allows() {
    let text = fs::read_to_string(root().join("ARCHITECTURE.md")).expect("ARCHITECTURE.md");
    let table = import_table(&text);
    let mut findings = Vec::new();
    for (file, text) in sources() {
        let Some(below) = file.strip_prefix("src/") else { continue };
        let room = below.split(['/', '.']).next().unwrap_or_default();
        if matches!(room, "lib" | "main") {
            continue;
        }
        let Some(allowed) = table.get(room) else {
            findings.push(format!("{file}: the table has no room `{room}`"));
            continue;
        };
        for path in crate_paths(&code_lines(&text).join("\n")) {
            let to = path.split("::").next().unwrap_or_default();
            let own = to == room || to == "base" || !table.contains_key(to);
            if !own && !may_import(allowed, &path) {
                findings.push(format!("{file}: `{room}` may not import `{path}`"));
            }
        }
    }
    report(&findings);
}

#[test]
fn rooms_of_the_table_exist() {
    let text = fs::read_to_string(root().join("ARCHITECTURE.md")).expect("ARCHITECTURE.md");
    let missing = import_table(&text).into_keys().filter(|room| {
        let src = root().join("src");
        !src.join(room).is_dir() && !src.join(format!("{room}.rs")).is_file()
    });
    report(
        &missing
            .map(|room| format!("the table has room `{room}`, src has not"))
            .collect::<Vec<_>>(),
    );
}

// ---- unsafe ----

fn is_unsafe(code: &str) -> bool {
    code.split(|c: char| !c.is_alphanumeric() && c != '_').any(|word| word == "unsafe")
}

/// Lines with an unsafe block or implementation that no comment justifies.
fn unjustified(text: &str) -> Vec<usize> {
    let lines: Vec<_> = text.lines().collect();
    let needs_reason = |line: &str| {
        let code = code_of(line);
        is_unsafe(&code) && (code.contains("unsafe {") || code.contains("unsafe impl"))
    };
    let justified = |at: usize| {
        let from = at.saturating_sub(SAFETY_WITHIN_LINES);
        lines[from..=at].iter().any(|l| l.contains("SAFETY:"))
    };
    (0..lines.len()).filter(|&i| needs_reason(lines[i]) && !justified(i)).map(|i| i + 1).collect()
}

#[test]
fn unsafe_code_is_where_it_may_be_and_says_why() {
    let mut findings = Vec::new();
    for (file, text) in sources() {
        let allowed = UNSAFE_IN.iter().any(|place| file.starts_with(place))
            || UNSAFE_TESTS.contains(&file.as_str());
        for (i, code) in code_lines(&text).iter().enumerate() {
            if !allowed && is_unsafe(code) {
                findings.push(format!("{file}:{}: unsafe code", i + 1));
            }
        }
        for line in unjustified(&text) {
            findings.push(format!("{file}:{line}: unsafe without a SAFETY comment"));
        }
    }
    report(&findings);
}

// ---- sizes ----

/// First line and length of every function that is too long. Relies on rustfmt's indentation.
fn long_functions(text: &str) -> Vec<(usize, usize)> {
    let lines: Vec<_> = text.lines().collect();
    let mut long = Vec::new();
    for (start, line) in lines.iter().enumerate() {
        let body = line.trim_start();
        let words: Vec<_> = body.split([' ', '(']).collect();
        let Some(at) = words.iter().position(|w| *w == "fn") else { continue };
        if !words[..at].iter().all(|w| is_qualifier(w)) || body.ends_with(['}', ';']) {
            continue;
        }
        let end = format!("{}}}", &line[..line.len() - body.len()]);
        let counted = lines[start + 1..]
            .iter()
            .take_while(|l| **l != end)
            .filter(|l| !code_of(l).trim().is_empty())
            .count();
        if counted > FUNCTION_LINES_MAX {
            long.push((start + 1, counted));
        }
    }
    long
}

fn is_qualifier(word: &str) -> bool {
    let known = ["pub", "const", "async", "unsafe", "extern", "crate)", "super)", "in", ""];
    known.contains(&word) || word.starts_with('"')
}

#[test]
fn files_functions_and_lines_have_their_length() {
    let mut findings = Vec::new();
    for (file, text) in sources() {
        let count = text.lines().count();
        if count > FILE_LINES_MAX {
            findings.push(format!("{file}: {count} lines"));
        }
        for (line, len) in long_functions(&text) {
            findings.push(format!("{file}:{line}: a function of {len} lines"));
        }
        for (i, line) in text.lines().enumerate() {
            let columns = line.chars().count();
            if columns > LINE_COLUMNS_MAX {
                findings.push(format!("{file}:{}: {columns} columns", i + 1));
            }
        }
    }
    report(&findings);
}

#[test]
fn files_of_src_say_what_they_are() {
    let silent = sources().into_iter().filter(|(file, text)| {
        file.starts_with("src/") && file != "src/main.rs" && !text.starts_with("//! ")
    });
    report(&silent.map(|(file, _)| format!("{file}: no `//!` at its top")).collect::<Vec<_>>());
}

// ---- the checks themselves ----

#[test]
fn the_table_is_read() {
    let text = "# A\n\n## Rooms and imports\n\ntext\n\n\
                | room | holds | may import |\n|---|---|---|\n\
                | base | x, y | - |\n| flow | z | packet, nic::spec |\n\n## Next\n| a | b | c |\n";
    let table = import_table(text);
    assert_eq!(table.len(), 2);
    assert!(table["base"].is_empty());
    assert_eq!(table["flow"], ["packet", "nic::spec"]);
    assert!(may_import(&table["flow"], "packet::meta::PortId"));
    assert!(may_import(&table["flow"], "nic::spec::PortSpec"));
    assert!(!may_import(&table["flow"], "nic::port::Port"));
    assert!(!may_import(&table["flow"], "packets"));
}

#[test]
fn paths_are_found_however_they_are_written() {
    let code = "use crate::packet::{Frame, meta::{A, B as C}, self};\n\
                use crate::{qos, nic::Port};\n\
                let x: crate::flow::Flow = subcrate::no(); pub(crate) fn f() {}";
    let paths = crate_paths(code);
    let expected = [
        "packet::Frame",
        "packet::meta::A",
        "packet::meta::B",
        "packet::self",
        "qos",
        "nic::Port",
        "flow::Flow",
    ];
    assert_eq!(paths, expected);
    assert!(crate_paths(&code_of("//! see [`crate::nic`]")).is_empty());
    assert!(crate_paths(&code_of("let s = \"crate::nic\";")).is_empty());
}

#[test]
fn breaches_are_found() {
    let long = format!("fn f() {{\n{}}}\n", "    x();\n".repeat(FUNCTION_LINES_MAX + 1));
    assert_eq!(long_functions(&long), [(1, FUNCTION_LINES_MAX + 1)]);
    let fits = format!("    pub(crate) fn f() {{\n{}    }}\n", "    x();\n".repeat(70));
    assert!(long_functions(&fits).is_empty());
    assert_eq!(unjustified("fn f() {\n    unsafe { g() }\n}\n"), [2]);
    assert!(unjustified("// SAFETY: fine.\nlet x = unsafe { g() };\n").is_empty());
    assert!(is_unsafe("unsafe fn f()") && !is_unsafe("#![deny(unsafe_code)]"));
}
