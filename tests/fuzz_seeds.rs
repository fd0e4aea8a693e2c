//! The fuzz targets of `tests/fuzz` on stable Rust: every seed, and mutations that are the same
//! with every run. `TIDEGATE_FUZZ_SEED=7` makes other ones.

#[allow(dead_code, reason = "other tests use it")]
#[path = "fuzz/targets/mod.rs"]
mod targets;

use std::fs;
use std::path::{Path, PathBuf};

use tidegate::base::Seed;
use tidegate::base::hash::Rng;

use targets::{TARGETS, seeds};

/// A mutation grows an input up to this many bytes.
const BYTES_MAX: usize = 4_096;

fn folder(target: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fuzz/corpus").join(target)
}

/// The committed seeds of a target by name.
fn corpus(target: &str) -> Vec<(String, Vec<u8>)> {
    let entries = fs::read_dir(folder(target)).expect("a folder of seeds");
    let read = |entry: std::io::Result<fs::DirEntry>| {
        let path = entry.expect("an entry").path();
        let name = path.file_name().expect("a name").to_string_lossy().into_owned();
        (name, fs::read(&path).expect("a seed"))
    };
    let mut corpus: Vec<_> = entries.map(read).collect();
    corpus.sort();
    corpus
}

/// Runs a target; where it panics, tells how to see it again.
fn run(target: &str, input: &[u8], what: &str) {
    struct Told<'a>(&'a str, &'a [u8], &'a str);
    impl Drop for Told<'_> {
        fn drop(&mut self) {
            if std::thread::panicking() {
                let Told(target, input, what) = self;
                let hex: String = input.iter().map(|b| format!("{b:02x}")).collect();
                eprintln!("{target}: {what} found something. The input: {hex}");
            }
        }
    }
    let function = TARGETS.iter().find(|(name, _)| *name == target).expect("a target").1;
    let told = Told(target, input, what);
    function(told.1);
}

fn run_all(target: &str, mutations: u64) {
    let corpus = corpus(target);
    assert!(corpus.len() >= 9, "only {} seeds for {target}", corpus.len());
    for (name, input) in &corpus {
        run(target, input, name);
    }
    let base = std::env::var("TIDEGATE_FUZZ_SEED").ok().and_then(|s| s.parse().ok()).unwrap_or(1);
    for i in 0..mutations {
        let mut rng = Rng::new(Seed(base << 32 | i));
        let input = mutant(&corpus, &mut rng);
        run(target, &input, &format!("mutation {i} of TIDEGATE_FUZZ_SEED={base}"));
    }
}

/// A seed with some changes.
fn mutant(corpus: &[(String, Vec<u8>)], rng: &mut Rng) -> Vec<u8> {
    let any = |rng: &mut Rng| &corpus[rng.below(corpus.len() as u32) as usize].1;
    let mut input = any(rng).clone();
    for _ in 0..=rng.below(6) {
        let at = rng.below(input.len() as u32 + 1) as usize;
        let end = (at + rng.below(40) as usize).min(input.len());
        match rng.below(7) {
            0 => input.truncate(at),
            1 => drop(input.drain(at..end)),
            2 => {
                let other = any(rng);
                let from = rng.below(other.len() as u32 + 1) as usize;
                let to = (from + rng.below(60) as usize).min(other.len());
                input.splice(at..at, other[from..to].iter().copied());
            }
            3 => input.insert(at, rng.next_u64() as u8),
            4 => {
                let copy = input[at..end].to_vec();
                input.splice(at..at, copy);
            }
            5 if at < end => input[at] = [0, 1, 0x7f, 0x80, 0xff][rng.below(5) as usize],
            _ if at < end => input[at] ^= 1 << rng.below(8),
            _ => {}
        }
    }
    input.truncate(BYTES_MAX);
    input
}

#[test]
fn pipeline() {
    run_all("pipeline", 200);
}

#[test]
fn splice() {
    run_all("splice", 200);
}

#[test]
fn parse() {
    run_all("parse", 3_000);
}

#[test]
fn hello() {
    run_all("hello", 4_000);
}

#[test]
fn quic() {
    run_all("quic", 2_000);
}

#[test]
fn inspector() {
    run_all("inspector", 2_000);
}

#[test]
fn capture() {
    run_all("capture", 1_000);
}

#[test]
fn reassembly() {
    run_all("reassembly", 1_000);
}

#[test]
fn http1() {
    run_all("http1", 2_000);
}

#[test]
fn hpack() {
    run_all("hpack", 2_000);
}

#[test]
fn h2() {
    run_all("h2", 2_000);
}

#[test]
fn config() {
    run_all("config", 1_000);
}

#[test]
fn rules() {
    run_all("rules", 300);
}

#[test]
fn pcap() {
    run_all("pcap", 300);
}

/// The configurations and pipelines that are shipped are seeds too.
#[test]
fn shipped_files() {
    for folder in ["config", "config/scenarios", "pipelines"] {
        let entries = fs::read_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join(folder));
        for entry in entries.expect("a folder") {
            let path = entry.expect("an entry").path();
            if path.is_dir() {
                continue;
            }
            run("config", &fs::read(&path).expect("a file"), &path.display().to_string());
        }
    }
}

/// The language of scripts may change; then the seeds must too (see [`write_the_seeds`]).
#[test]
fn seeds_are_what_the_builders_make() {
    for seed in seeds::all() {
        let file = fs::read(folder(seed.target).join(&seed.name)).ok();
        let same = file.as_deref() == Some(&seed.bytes);
        assert!(same, "{}/{}: cargo test --test fuzz_seeds -- --ignored", seed.target, seed.name);
    }
}

#[test]
#[ignore = "writes to tests/fuzz/corpus"]
fn write_the_seeds() {
    for seed in seeds::all() {
        fs::create_dir_all(folder(seed.target)).expect("a folder");
        fs::write(folder(seed.target).join(&seed.name), &seed.bytes).expect("a seed");
    }
}
