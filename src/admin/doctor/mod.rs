//! What this box can do, what to change, and why.
//!
//! Each check reads one thing the kernel tells under `/proc` or `/sys` and judges it. Beyond
//! restoring what a killed run left changed, nothing is set here: what to do is printed for the
//! operator.

mod host;
mod interface;
mod restore;

use std::path::PathBuf;

use serde::Serialize;

use super::table::Table;
use crate::control::netlink::{Mirror, Netlink, NetlinkOptions};

/// How good a thing is as it was found.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    Ok,
    /// Worth knowing; nothing to do in most set-ups.
    Note,
    /// Works, but worse than it could.
    Warn,
    /// The appliance can't run so.
    Fail,
}

/// One thing that was looked at.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    pub subject: String,
    pub verdict: Verdict,
    pub found: String,
    /// What to do, and why.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub advice: Option<String>,
}

impl Finding {
    fn ok(subject: &str, found: impl Into<String>) -> Finding {
        Finding { subject: subject.into(), verdict: Verdict::Ok, found: found.into(), advice: None }
    }

    fn note(subject: &str, found: impl Into<String>, advice: impl Into<String>) -> Finding {
        Finding { advice: Some(advice.into()), verdict: Verdict::Note, ..Self::ok(subject, found) }
    }

    fn warn(subject: &str, found: impl Into<String>, advice: impl Into<String>) -> Finding {
        Finding { verdict: Verdict::Warn, ..Self::note(subject, found, advice) }
    }

    fn fail(subject: &str, found: impl Into<String>, advice: impl Into<String>) -> Finding {
        Finding { verdict: Verdict::Fail, ..Self::note(subject, found, advice) }
    }
}

/// All findings, in the order they are shown.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Report {
    /// Nothing failed.
    pub ready: bool,
    pub findings: Vec<Finding>,
}

/// Looks at this machine and at the given interfaces, and restores what a killed run left changed.
///
/// `restore_programs`: also removes XDP programs that a killed run with `on_failure = "drop"` has
/// left to drop its traffic.
pub fn examine(interfaces: &[String], restore_programs: bool) -> Report {
    let system = System::new("/");
    let mut findings = restore::leftovers(restore_programs);
    findings.extend(host::examine(&system));
    match mirror() {
        Ok(mirror) => {
            let of = |interface: &String| interface::examine(&system, &mirror, interface);
            findings.extend(interfaces.iter().flat_map(of));
        }
        Err(error) => findings.push(Finding::fail("netlink", error, "The kernel must answer.")),
    }
    let ready = findings.iter().all(|f| f.verdict != Verdict::Fail);
    Report { ready, findings }
}

/// The kernel's links, as the appliance would see them.
fn mirror() -> Result<Mirror, String> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let connect = Netlink::connect(NetlinkOptions::default());
    let netlink = runtime.map_err(|e| e.to_string())?.block_on(connect);
    netlink.map(|n| n.mirror().clone()).map_err(|e| e.to_string())
}

/// The report for people.
pub fn print(report: &Report) -> String {
    let mut table = Table::new(&["", "what", "found"]);
    for f in &report.findings {
        let mark = match f.verdict {
            Verdict::Ok => "ok",
            Verdict::Note => "note",
            Verdict::Warn => "warn",
            Verdict::Fail => "FAIL",
        };
        table.row([mark.into(), f.subject.clone(), f.found.clone()]);
    }
    let mut out = table.to_string();
    let advised = report.findings.iter().filter_map(|f| f.advice.as_ref().map(|a| (f, a)));
    for (i, (finding, advice)) in advised.enumerate() {
        out += if i == 0 { "\n" } else { "" };
        out += &format!("{}: {advice}\n", finding.subject);
    }
    out += match report.ready {
        true => "\nThis box can run tidegate.\n",
        false => "\nThis box can't run tidegate as it is: see FAIL above.\n",
    };
    out
}

/// Where `/proc` and `/sys` are: under `/`, or in a folder that a test made.
struct System {
    root: PathBuf,
}

impl System {
    fn new(root: impl Into<PathBuf>) -> System {
        System { root: root.into() }
    }

    fn path(&self, path: &str) -> PathBuf {
        self.root.join(path)
    }

    /// The text of a file without its final newline; `None` where it can't be read.
    fn text(&self, path: &str) -> Option<String> {
        let text = std::fs::read_to_string(self.path(path)).ok()?;
        Some(text.trim_end().to_string())
    }

    fn number(&self, path: &str) -> Option<u64> {
        self.text(path)?.trim().parse().ok()
    }

    /// Names in a folder, sorted; empty where it can't be read.
    fn names(&self, path: &str) -> Vec<String> {
        let Ok(entries) = std::fs::read_dir(self.path(path)) else { return Vec::new() };
        let name = |e: std::io::Result<std::fs::DirEntry>| e.ok()?.file_name().into_string().ok();
        let mut names: Vec<String> = entries.filter_map(name).collect();
        names.sort();
        names
    }

    /// Last part of what a symbolic link points to.
    fn link_name(&self, path: &str) -> Option<String> {
        let target = std::fs::read_link(self.path(path)).ok()?;
        target.file_name().and_then(|n| n.to_str()).map(ToString::to_string)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A made-up machine.
    pub(super) fn machine(files: &[(&str, &str)]) -> (tempfile::TempDir, System) {
        let dir = tempfile::tempdir().expect("a folder");
        for (path, text) in files {
            let path = dir.path().join(path);
            std::fs::create_dir_all(path.parent().expect("a parent")).expect("folders");
            std::fs::write(path, text).expect("a file");
        }
        let system = System::new(dir.path());
        (dir, system)
    }

    #[test]
    fn a_report_says_what_to_do_below_what_was_found() {
        let findings = vec![
            Finding::ok("kernel", "6.18"),
            Finding::fail("AF_XDP", "absent", "Another kernel."),
        ];
        let report = Report { ready: false, findings };
        let text = print(&report);
        assert!(
            text.starts_with("      what    found\nok    kernel  6.18\nFAIL  AF_XDP  absent\n")
        );
        assert!(text.contains("\nAF_XDP: Another kernel.\n"), "{text}");
        assert!(text.ends_with("see FAIL above.\n"));
        let json = serde_json::to_value(&report).expect("json");
        assert_eq!(json["findings"][1]["verdict"], "fail");
    }
}
