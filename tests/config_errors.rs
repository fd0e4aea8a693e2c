//! Broken configurations and pipelines, each with exactly what is told about it.
//!
//! A case in `tests/config_errors/*.txt` is a line `=== name`, the file's text, a line `---`, and
//! the faults expected, one a line. What a configuration needs beside its subject (a port, a
//! service) is appended where the case has none. After a deliberate change of messages, run the
//! tests with `TIDEGATE_BLESS=1` and read the difference before committing it.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use tidegate::base::diag::{Diagnostics, Source};
use tidegate::config::{load, load_text};
use tidegate::graph::file::parse;

struct Case {
    name: String,
    text: String,
    expected: String,
}

fn cases_dir() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/config_errors")
}

fn read_cases(file: &str) -> Vec<Case> {
    let all = std::fs::read_to_string(cases_dir().join(file)).expect(file);
    let parts = all.split("=== ").skip(1);
    parts
        .map(|part| {
            let (name, rest) = part.split_once('\n').expect("a case has a name");
            let (text, expected) = rest.split_once("---\n").expect(name);
            Case {
                name: name.to_string(),
                text: text.to_string(),
                expected: expected.trim_end().to_string(),
            }
        })
        .collect()
}

/// Runs all cases of a file; returns how many there were and how many faults they tell.
fn run(file: &str, told: impl Fn(&str) -> String) -> (usize, usize) {
    let cases = read_cases(file);
    let mut blessed = String::new();
    let mut wrong = String::new();
    let mut faults = 0;
    for c in &cases {
        let got = told(&c.text);
        faults += got.lines().count();
        let _ = writeln!(blessed, "=== {}\n{}---\n{got}\n", c.name, c.text);
        if got != c.expected {
            let (name, expected) = (&c.name, &c.expected);
            let _ = writeln!(wrong, "{file}, {name}\nexpected:\n{expected}\ngot:\n{got}\n");
        }
    }
    if std::env::var_os("TIDEGATE_BLESS").is_some() {
        std::fs::write(cases_dir().join(file), blessed.trim_end().to_string() + "\n").expect(file);
    } else {
        assert!(wrong.is_empty(), "{wrong}");
    }
    (cases.len(), faults)
}

const A_PORT: &str = "[port.filler]\ninterface = \"fill0\"\n";
const A_SERVICE: &str = "[service.filler]\nvip = \"192.0.2.250\"\nport = 9\npool = \"filler\"\n\
     mode = \"dsr\"\n[[pool.filler.backend]]\naddress = \"192.0.2.251\"\n";

fn told_of_config(text: &str) -> String {
    let mut whole = text.to_string();
    for (kind, filler) in [("port", A_PORT), ("service", A_SERVICE)] {
        let given = text.contains(&format!("[{kind}")) || text.contains(&format!("{kind} = 5"));
        let unfit = kind == "service" && (text.contains("\"router\"") || text.contains("\"tap\""));
        if !given && !unfit {
            whole.push_str(filler);
        }
    }
    match load_text(Path::new("case.toml"), &whole) {
        Ok(config) => {
            let lines: Vec<String> = config.warnings.iter().map(ToString::to_string).collect();
            lines.join("\n")
        }
        Err(faults) => faults.to_string(),
    }
}

/// Results of rules by size, one too many.
#[test]
fn results_by_size_are_limited() {
    let rule = |n: usize| format!("[[rule]]\nbytes_over = 1\nclass = \"c{n}\"\n");
    let rules = |count: usize| -> String { (0..count).map(rule).collect() };
    let told = |count| told_of_config(&format!("pipeline = \"l4-balancer\"\n{}", rules(count)));
    assert!(!told(255).contains("results"), "{}", told(255));
    let want = "case.toml:767:1: error: rules with `bytes_over` have 255 different results at most";
    assert!(told(257).contains(want), "{}", told(257));
}

/// As many tenants, each with a class, one below it, and a meter.
fn of_tenants(count: usize) -> String {
    format!(
        "pipeline = \"router\"\n[tenants.t]\nnames = \"t-{{1..{count}}}\"\n\
         [qos.filler]\nrate = \"100Gbit/s\"\ndefault = \"other\"\n\
         [qos.filler.class.other]\nrate = \"1%\"\n\
         [qos.filler.class.\"{{t}}\"]\nrate = \"0.001%\"\n\
         [qos.filler.class.\"{{t}}-bulk\"]\nparent = \"{{t}}\"\nrate = \"50%\"\n\
         [meter.\"{{t}}\"]\nclasses = \"{{t}}-bulk\"\nrate = \"5Mbit/s\"\nburst = \"20kB\"\n"
    )
}

/// A meter for each of many tenants: with a look at all the others for each this took minutes.
#[test]
fn every_tenant_may_have_its_own_meter() {
    let told = told_of_config(&of_tenants(20_000));
    assert!(!told.contains("error"), "{told}");
}

/// Of the classes beyond the limit nothing else is told than that they are.
#[test]
fn too_many_classes_are_told_once() {
    let text = of_tenants(33_000);
    assert_eq!(
        told_of_config(&text).lines().filter(|l| l.contains("error")).collect::<Vec<_>>(),
        ["case.toml:4:1: error: there are 65000 classes at most"]
    );
}

fn told_of_pipeline(text: &str) -> String {
    let mut out = Diagnostics::default();
    let spec = parse(&Source::new("pipeline.toml", text), &mut out);
    assert_eq!(spec.is_none(), out.has_errors(), "a pipeline comes out if and only if it is valid");
    out.sort();
    out.to_string()
}

#[test]
fn broken_configurations() {
    let files = [
        "syntax.txt",
        "machine.txt",
        "forward.txt",
        "qos.txt",
        "templates.txt",
        "rules.txt",
        "fit.txt",
        "meters.txt",
        "limits.txt",
    ];
    let mut total = 0;
    for file in files {
        let (cases, faults) = run(file, told_of_config);
        assert!(faults >= cases, "{file}: a case without a fault proves nothing");
        total += cases;
    }
    assert!(total >= 60, "{total} cases");
}

#[test]
fn broken_pipelines() {
    let (cases, faults) = run("pipelines.txt", told_of_pipeline);
    assert!(cases >= 15 && faults >= cases, "{cases} cases, {faults} faults");
}

#[test]
fn the_filler_itself_is_faultless() {
    assert_eq!(told_of_config("pipeline = \"l4-balancer\"\n"), "");
}

/// Faults that are about files, not about text.
#[test]
fn files_that_are_not_there() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let told = |name: &str, text: Option<&[u8]>| {
        let path = dir.path().join(name);
        if let Some(text) = text {
            std::fs::write(&path, text).expect("write");
        }
        let faults = load(&path).expect_err("must fail").to_string();
        faults.replace(&format!("{}/", dir.path().display()), "")
    };
    assert_eq!(told("no.toml", None), "no.toml: error: can't be read: No such file or directory");
    let text = format!("pipeline = \"p/mine.toml\"\n{A_PORT}{A_SERVICE}");
    assert_eq!(
        told("a.toml", Some(text.as_bytes())),
        "a.toml:1:12: error: the pipeline p/mine.toml can't be read: No such file or directory"
    );
    assert_eq!(
        told("b.toml", Some(b"pipeline = \"\xff\"\n")),
        "b.toml: error: can't be read: it is not UTF-8 text"
    );
    std::fs::create_dir(dir.path().join("pipelines")).expect("mkdir");
    let mine = b"name = \"mine\"\n[[stage]]\nbalnce = {}\n";
    std::fs::write(dir.path().join("pipelines/mine.toml"), mine).expect("write");
    let text = format!("pipeline = \"mine\"\n{A_PORT}{A_SERVICE}[workers]\ncount = 0\n");
    assert_eq!(
        told("c.toml", Some(text.as_bytes())),
        "pipelines/mine.toml:3:1: error: unknown stage `balnce`; did you mean `balance`?\n\
         c.toml:12:9: error: 0 is not within 1 to 64"
    );
    let huge = vec![b'#'; (8 << 20) + 1];
    assert_eq!(
        told("d.toml", Some(&huge)),
        "d.toml: error: can't be read: it has more than 8388608 bytes"
    );
}
