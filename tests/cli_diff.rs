//! `tidegate check --against` as scripts see it.

use std::path::Path;
use std::process::{Command, Output};

const TEXT: &str = "pipeline = \"mine\"\n[workers]\nflows_max = 1000\n\
                    [port.only]\ninterface = \"eth7\"\n[transit]\nprefixes = [\"10.0.0.0/8\"]\n";
const STAGES: &str = "name = \"mine\"\n[[stage]]\nroute = {}\n";

fn against(dir: &Path, more: &[&str]) -> Output {
    let (old, new) = (dir.join("old.toml"), dir.join("new/new.toml"));
    let mut command = Command::new(env!("CARGO_BIN_EXE_tidegate"));
    command.arg("check").arg("-c").arg(new).arg("--against").arg(old).args(more);
    command.output().expect("the program starts")
}

fn folder(new: &str, stages: &str) -> tempfile::TempDir {
    let dir = tempfile::tempdir().expect("a folder");
    for (name, text) in [
        ("old.toml", TEXT),
        ("pipelines/mine.toml", STAGES),
        ("new/new.toml", new),
        ("new/pipelines/mine.toml", stages),
    ] {
        let path = dir.path().join(name);
        std::fs::create_dir_all(path.parent().expect("a folder")).expect("mkdir");
        std::fs::write(path, text).expect("written");
    }
    dir
}

fn lines(text: &[u8]) -> Vec<String> {
    String::from_utf8_lossy(text).lines().map(str::to_string).collect()
}

#[test]
fn two_files_and_their_pipelines_are_compared() {
    let new = TEXT.replace("1000", "2000").replace("10.0.0.0/8\"", "10.0.0.0/8\", \"fd00::/8\"");
    let dir = folder(&new, &format!("{STAGES}[[stage]]\nshape = {{}}\n"));
    let output = against(dir.path(), &[]);
    let said = lines(&output.stdout);
    assert_eq!(output.status.code(), Some(0), "{}", String::from_utf8_lossy(&output.stderr));
    assert!(said[0].contains("new.toml: 3 different from") && said[0].ends_with("old.toml"));
    assert_eq!(
        said[1..],
        [
            "  + transit.prefixes: \"fd00::/8\"",
            "  ~ workers.flows_max: 1000 -> 2000",
            "  + pipeline.stage[2 shape].shape: {}",
        ]
    );
    let restart = "needs a restart: workers.flows_max: 1000 runs, 2000 wanted";
    let refused = lines(&output.stderr);
    assert!(refused[0].contains("warning: there is no `[qos.PORT]`"), "{refused:?}");
    assert!(refused.len() == 3 && refused[1] == restart, "{refused:?}");

    let output = against(dir.path(), &["--json"]);
    let json: serde_json::Value = serde_json::from_slice(&output.stdout).expect("JSON");
    assert_eq!(json["unchanged"], false);
    assert_eq!(json["needs_restart"][0], restart["needs a restart: ".len()..]);
    let changed = serde_json::json!(
        { "change": "changed", "at": "workers.flows_max", "old": 1000, "new": 2000 }
    );
    assert_eq!(json["changes"][1], changed);
}

#[test]
fn no_difference_is_told_and_a_faulty_file_as_by_check() {
    let output = against(folder(TEXT, STAGES).path(), &[]);
    assert_eq!(output.status.code(), Some(0));
    let said = lines(&output.stdout);
    assert!(said.len() == 1 && said[0].contains("new.toml: no difference from"), "{said:?}");

    let output = against(folder(&TEXT.replace("/8", "/99"), STAGES).path(), &[]);
    assert_eq!((output.status.code(), output.stdout.len()), (Some(2), 0));
    let said = lines(&output.stderr);
    assert!(said[0].contains("new.toml:7:13: error:"), "{said:?}");
}
