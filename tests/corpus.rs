//! Flows of public and of made-up captures, where `TIDEGATE_CORPUS` names a directory that holds
//! them and a `truth.tsv` of what they are. Nothing is tested without it.

#[path = "common/corpus.rs"]
mod folder;

use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::path::Path;

use tidegate::capture::{CaptureFile, FlowRecord, inspect};
use tidegate::policy::catalogue::Catalogue;

/// Of the rows that should be right, so many of a hundred at least.
const SHOULD_PERCENT_MIN: usize = 98;
/// More memory than this is never needed, whatever a capture holds.
const RESIDENT_KB_MAX: u64 = 1 << 20;

type Row = HashMap<String, String>;
/// File, protocol, both ends in order, number among those with the same ends.
type Key = (String, String, [String; 2], u32);

#[test]
fn flows_of_captures_are_told() {
    let Some(corpus) = folder::corpus() else { return };
    let rows = table(&corpus.join("truth.tsv"));
    let told = read_all(&corpus);
    let mut scores: BTreeMap<(&str, &str), (usize, usize)> = BTreeMap::new();
    let mut wrong = Vec::new();
    for row in &rows {
        let difference = difference(row, told.get(&key(row)));
        let score = scores.entry((&row["level"], &row["app"])).or_default();
        score.1 += 1;
        match difference {
            None => score.0 += 1,
            Some(what) if row["level"] != "info" => wrong.push((row, what)),
            Some(_) => {}
        }
    }
    for ((level, app), (right, all)) in &scores {
        eprintln!("{level:<8}{app:<24}{right:>6} of {all}");
    }
    check_columns(&rows, &told);
    for (row, what) in &wrong {
        eprintln!(
            "{} {}:{} {what} ({})",
            row["level"], row["file"], row["first_frame"], row["note"]
        );
    }
    let must: Vec<_> = wrong.iter().filter(|(row, _)| row["level"] == "must").collect();
    assert!(must.is_empty(), "{} rows that must be right are wrong", must.len());
    let should = scores.iter().filter(|((level, _), _)| *level == "should");
    let (right, all) = should.fold((0, 0), |sum, (_, s)| (sum.0 + s.0, sum.1 + s.1));
    assert!(right * 100 >= all * SHOULD_PERCENT_MIN, "{right} of {all} that should be right");
    assert!(rows.len() > 1_000, "only {} rows", rows.len());
    let resident = resident_kb_max();
    assert!(resident < RESIDENT_KB_MAX, "{resident} kB were in use");
}

/// Rows of which a column beside the score's may be told differently: of flows that public tools,
/// too, do not agree about.
const COLUMN_WRONG_MAX: usize = 1;

/// What the score leaves out: how many requests, through which layers, who is the client; of rows
/// that should be right what their hellos offer.
fn check_columns(rows: &[Row], told: &HashMap<Key, FlowRecord>) {
    let mut wrong: BTreeMap<&str, Vec<String>> = BTreeMap::new();
    for row in rows.iter().filter(|row| row["level"] != "info" && row["app"] != "none") {
        let Some(record) = told.get(&key(row)) else { continue };
        for (column, got, want) in columns(row, record) {
            if got != want {
                let at = format!("{}:{} `{got}`, not `{want}`", row["file"], row["first_frame"]);
                wrong.entry(column).or_default().push(at);
            }
        }
    }
    eprintln!("columns beside the score: {wrong:#?}");
    for (column, rows) in &wrong {
        assert!(rows.len() <= COLUMN_WRONG_MAX, "{column} of {} rows: {rows:#?}", rows.len());
    }
}

/// A column, what is told, and what the row says.
fn columns(row: &Row, record: &FlowRecord) -> Vec<(&'static str, String, String)> {
    let seen = &record.seen;
    let mut columns = Vec::new();
    let mut add = |column: &'static str, got: &str, want: &str| {
        let named = |text: &str| if text.is_empty() { "-".into() } else { text.to_lowercase() };
        columns.push((column, named(got), named(want)));
    };
    if row["level"] == "must" {
        let requests = seen.http_requests.map_or(String::new(), |n| n.to_string());
        add("http_requests", &requests, &row["http_requests"]);
        add("encap", &record.encap, &row["encap"]);
        let client = format!("{} {}", record.client_ip, record.client_port);
        add("client", &client, &format!("{} {}", row["client_ip"], row["client_port"]));
    }
    let whole = !row["legacy_version"].is_empty() && !row["kinds"].contains("malformed");
    if whole && !seen.ja4.is_empty() {
        // Where names are no text, the backslash before each byte is itself written as one.
        add("alpn", &seen.alpn, &row["alpn"].replace("\\x5c", "\\"));
        add("tls_versions", &seen.tls_versions, &row["tls_versions"]);
        add("ech", &seen.ech, &row["ech"]);
        add("pq", &seen.pq, &row["pq"]);
    }
    columns
}

fn table(path: &Path) -> Vec<Row> {
    let text = fs::read_to_string(path).expect("a table");
    let mut lines = text.lines();
    let columns: Vec<&str> = lines.next().expect("a header line").split('\t').collect();
    let row = |line: &str| {
        columns.iter().map(|c| c.to_string()).zip(line.split('\t').map(str::to_owned)).collect()
    };
    lines.map(row).collect()
}

fn read_all(corpus: &Path) -> HashMap<Key, FlowRecord> {
    let catalogue = Catalogue::builtin();
    let mut told = HashMap::new();
    for file in table(&corpus.join("MANIFEST.tsv")).iter().map(|row| &row["file"]) {
        if !file.starts_with("pcap/") {
            continue;
        }
        let mut capture = CaptureFile::open(&corpus.join(file), |_| ()).expect("a capture");
        let end = inspect(&mut capture, &catalogue, |record| {
            let end = |ip: &str, port: u16| format!("{ip} {port}");
            let mut ends = [
                end(&record.client_ip, record.client_port),
                end(&record.server_ip, record.server_port),
            ];
            ends.sort();
            told.insert((file.clone(), record.l4.to_owned(), ends, record.seq), record);
        });
        if let Err(error) = end {
            eprintln!("{file}: {error}");
        }
    }
    told
}

fn key(row: &Row) -> Key {
    let end =
        |side: &str| format!("{} {}", row[&format!("{side}_ip")], row[&format!("{side}_port")]);
    let mut ends = [end("client"), end("server")];
    ends.sort();
    (row["file"].clone(), row["l4"].clone(), ends, row["seq"].parse().unwrap_or(0))
}

/// What is told that the row does not say, or the other way round.
fn difference(row: &Row, told: Option<&FlowRecord>) -> Option<String> {
    let nothing = FlowRecord::default();
    let seen = &told.unwrap_or(&nothing).seen;
    let named = |value: &str| if value.is_empty() { "-".to_owned() } else { value.to_lowercase() };
    let http = ["http1", "h2c", "h2c-upgrade", "http1-connect+tls"];
    let app = if seen.app.is_empty() { "none" } else { seen.app };
    if row["app"] == "none" {
        let claims = [named(&seen.sni), named(&seen.http_authority)].iter().any(|n| n != "-");
        return (claims || http.contains(&app)).then(|| format!("claims {app} {}", seen.sni));
    }
    let mut pairs = vec![("app", family(app).to_owned(), family(&row["app"]).to_owned())];
    if ["tls", "quic", "http1-connect+tls"].contains(&&row["app"][..]) {
        pairs.push(("sni", named(&seen.sni), named(&row["sni"])));
    }
    if http.contains(&&row["app"][..]) {
        let bare = |value: &str| if value.is_empty() { "-".to_owned() } else { value.to_owned() };
        pairs.push(("authority", named(&seen.http_authority), named(&row["http_authority"])));
        pairs.push(("path", bare(&seen.http_path), bare(&row["http_path"])));
        pairs.push(("method", named(&seen.http_method), named(&row["http_method"])));
    }
    // Rows of decoys give the name only; of damaged hellos nothing else can be told.
    let whole = !row["legacy_version"].is_empty() && !row["kinds"].contains("malformed");
    if whole && row["level"] == "must" {
        pairs.push(("alpn", named(&seen.alpn), named(&row["alpn"])));
        pairs.push(("versions", named(&seen.tls_versions), named(&row["tls_versions"])));
        pairs.push(("ech", named(&seen.ech), named(&row["ech"])));
        pairs.push(("pq", named(&seen.pq), named(&row["pq"])));
        pairs.push(("QUIC", named(&seen.quic_version), named(&row["quic_version"])));
    }
    let off = pairs.into_iter().find(|(_, got, want)| got != want);
    off.map(|(what, got, want)| format!("{what}: `{got}`, not `{want}`"))
}

/// An app without how it came about: `h2c` of `h2c-upgrade`.
fn family(app: &str) -> &str {
    app.split('-').next().unwrap_or_default()
}

/// The most memory that this process has had.
fn resident_kb_max() -> u64 {
    let status = fs::read_to_string("/proc/self/status").expect("Linux");
    let line = status.lines().find(|line| line.starts_with("VmHWM:")).expect("a line");
    line.split_whitespace().nth(1).and_then(|n| n.parse().ok()).expect("a number")
}
