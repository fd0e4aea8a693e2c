//! `tidegate inspect`: what a capture's connections are, one line each.

use std::io::{self, BufWriter, Write};
use std::path::Path;

use super::check::tell;
use super::commands::{Failure, written};
use super::progress::Bar;
use super::table::Table;
use crate::capture::{CaptureFile, FlowRecord, Skipped, inspect};
use crate::config::{Diagnostics, load};
use crate::policy::catalogue::Catalogue;

/// Captures of fewer bytes are read before a bar would be of use.
const PROGRESS_BYTES_MIN: u64 = 32 << 20;
/// Lines of a table at most: it is laid out as a whole. `--json` has no such limit.
const ROWS_MAX: usize = 1_000_000;
/// Characters of a path that are shown.
const PATH_COLUMNS: usize = 48;

/// Stands for standard input.
const STDIN: &str = "-";

/// Tells of each connection of a capture: a file, or with `-` what comes by standard input.
///
/// # Errors
/// A file that is no capture, or one whose links are all of kinds that are not known. With a
/// damaged one, all that was read before the damage is told of first.
pub fn run(path: &Path, catalogue: &Catalogue, json: bool) -> Result<(), Failure> {
    let is_stdin = path.as_os_str() == STDIN;
    let name = if is_stdin { "standard input".into() } else { path.display().to_string() };
    let failed = |error: &dyn std::fmt::Display| Failure::Failed(format!("{name}: {error}"));
    let opened = match is_stdin {
        true => CaptureFile::new(io::stdin()),
        false => CaptureFile::open(path, progress_of(path)),
    };
    let mut file = opened.map_err(|error| failed(&error))?;
    let mut table = Table::new(&HEADINGS);
    let (mut out, mut rows) = (BufWriter::new(std::io::stdout().lock()), 0);
    let mut told: io::Result<()> = Ok(());
    let end = inspect(&mut file, catalogue, |record| {
        rows += 1;
        if json {
            if told.is_ok() {
                told = line(&mut out, &record);
            }
        } else if rows <= ROWS_MAX {
            table.row(cells(&record));
        }
    });
    // The bar's line is cleared.
    drop(file);
    if !json && !table.is_empty() {
        told = write!(out, "{table}");
        if rows > ROWS_MAX && told.is_ok() {
            told = writeln!(out, "... {} more: use --json", rows - ROWS_MAX);
        }
    }
    written(told.and_then(|()| out.flush()))?;
    let skipped =
        end.map_err(|error| failed(&format!("{error}; {rows} flows were read before")))?;
    match unread(&skipped) {
        Some(what) if skipped.packets == skipped.of_packets => Err(failed(&what)),
        Some(what) => {
            eprintln!("warning: {name}: {what}");
            Ok(())
        }
        None => Ok(()),
    }
}

/// What was not looked into, if anything.
fn unread(skipped: &Skipped) -> Option<String> {
    let Skipped { of_packets, packets, links } = skipped;
    let links: Vec<String> = links.iter().map(u32::to_string).collect();
    let which = if links.len() == 1 { "link type" } else { "link types" };
    let links = links.join(", ");
    let what = format!("{packets} of {of_packets} packets have an unknown {which}: {links}");
    (*packets > 0).then_some(what)
}

/// A connection as an object of its own.
fn line(out: &mut impl Write, record: &FlowRecord) -> io::Result<()> {
    serde_json::to_writer(&mut *out, record)?;
    out.write_all(b"\n")
}

/// The catalogue of a file, or of a configuration; without either the built-in one.
///
/// # Errors
/// Files that can't be read, or that have faults, which were told.
pub fn catalogue(file: Option<&Path>, config: Option<&Path>) -> Result<Catalogue, Failure> {
    let told = |mut faults: Diagnostics| {
        faults.sort();
        tell(faults.iter());
        Failure::Told(2)
    };
    if let Some(path) = config {
        return load(path).map(|config| config.catalogue).map_err(told);
    }
    let Some(path) = file else { return Ok(Catalogue::builtin()) };
    let text = std::fs::read_to_string(path)
        .map_err(|error| Failure::Usage(format!("{}: {error}", path.display())))?;
    Catalogue::with(Some((path, &text))).map_err(told)
}

const HEADINGS: [&str; 8] =
    ["CLIENT", "SERVER", "L4", "APP", "NAME", "REQUEST", ">REQUESTS", "PROVIDER"];

fn cells(record: &FlowRecord) -> [String; 8] {
    let end = |ip: &str, port: u16| match ip.contains(':') {
        true => format!("[{ip}]:{port}"),
        false => format!("{ip}:{port}"),
    };
    let seen = &record.seen;
    let name = if seen.sni.is_empty() { &seen.http_authority } else { &seen.sni };
    let app = match seen.reason {
        Some(reason) => format!("{} ({reason})", seen.app),
        None => seen.app.to_owned(),
    };
    let request = format!("{} {}", seen.http_method, seen.http_path);
    [
        end(&record.client_ip, record.client_port),
        end(&record.server_ip, record.server_port),
        record.l4.to_owned(),
        app,
        name.clone(),
        request.trim().chars().take(PATH_COLUMNS).collect(),
        seen.http_requests.map_or(String::new(), |n| n.to_string()),
        format!("{} {}", seen.provider, seen.operation).trim().to_owned(),
    ]
}

/// What hears of the bytes read.
fn progress_of(path: &Path) -> impl FnMut(usize) + Send + 'static {
    let total = std::fs::metadata(path).map_or(0, |m| m.len());
    let is_long = total >= PROGRESS_BYTES_MIN;
    let mut bar = if is_long { Bar::new(total, format!("{} MB", total >> 20)) } else { None };
    move |bytes| {
        if let Some(bar) = &mut bar {
            bar.advance(bytes as u64);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_names_both_ends_and_what_was_asked() {
        let mut record = FlowRecord { l4: "tcp", ..FlowRecord::default() };
        record.client_ip = "2001:db8::1".to_owned();
        record.seen.app = "http1";
        record.seen.http_method = "GET".to_owned();
        record.seen.http_path = "/".to_owned();
        record.seen.http_authority = "a.example".to_owned();
        let [client, _, l4, app, name, request, ..] = cells(&record);
        assert_eq!([&client[..], &l4, &app], ["[2001:db8::1]:0", "tcp", "http1"]);
        assert_eq!([&name[..], &request], ["a.example", "GET /"]);
    }
}
