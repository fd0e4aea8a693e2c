//! Compiles the BPF programs with clang into `$OUT_DIR`: `steer.o` and, of the same source,
//! `steer_tc.o`, which `src/nic/steer.rs` embeds, and `flood.o` of `src/nic/flood.rs`.

use std::env;
use std::path::{Path, PathBuf};
use std::process::{Command, exit};

const FOLDER: &str = "src/nic/bpf";
/// Sources, what is made of them, and with which flags. Programs for tc need a kernel that knows
/// all atomic instructions (`v3`).
const PROGRAMS: [(&str, &str, &[&str]); 3] = [
    ("steer", "steer", &[]),
    ("steer", "steer_tc", &["-DTG_TC", "-mcpu=v3"]),
    ("flood", "flood", &[]),
];
const HEADERS: [&str; 8] = [
    "fragments.h",
    "hook.h",
    "inbox.h",
    "offload.h",
    "offload_tc.h",
    "offload_xdp.h",
    "parse.h",
    "splice.h",
];

fn main() {
    println!("cargo:rerun-if-env-changed=CLANG");
    for header in HEADERS {
        println!("cargo:rerun-if-changed={FOLDER}/{header}");
    }
    let out = PathBuf::from(env::var_os("OUT_DIR").unwrap_or_default());
    for (source, object, flags) in PROGRAMS {
        let source = Path::new(FOLDER).join(source).with_extension("c");
        println!("cargo:rerun-if-changed={}", source.display());
        if let Err(reason) = compile(&source, &out.join(object).with_extension("o"), flags) {
            let source = source.display();
            eprintln!("error: the BPF program {source} could not be built: {reason}");
            eprintln!("help: it needs clang and the BPF headers; on Debian and Ubuntu:");
            eprintln!("      apt-get install clang llvm libbpf-dev linux-libc-dev");
            exit(1);
        }
    }
}

fn compile(source: &Path, out: &Path, flags: &[&str]) -> Result<(), String> {
    let clang = env::var("CLANG").unwrap_or_else(|_| "clang".to_owned());
    let arch = env::var("CARGO_CFG_TARGET_ARCH").unwrap_or_default();
    let result = Command::new(&clang)
        // -g keeps the BTF that the maps are defined by.
        .args(["-target", "bpf", "-O2", "-g", "-Wall", "-Wextra", "-Werror"])
        // Debian keeps asm/types.h in a folder of the architecture, which this target doesn't
        // search.
        .arg(format!("-I/usr/include/{arch}-linux-gnu"))
        .args(flags)
        .arg("-c")
        .arg(source)
        .arg("-o")
        .arg(out)
        .output()
        .map_err(|e| format!("`{clang}` can't be run: {e}"))?;
    if !result.status.success() {
        return Err(format!(
            "`{clang}` failed:\n{}",
            String::from_utf8_lossy(&result.stderr).trim_end()
        ));
    }
    Ok(())
}
