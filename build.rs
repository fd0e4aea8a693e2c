//! Compiles the XDP programs with clang into `$OUT_DIR`: `steer.o`, which `src/nic/steer.rs`
//! embeds, and `flood.o` of `src/nic/flood.rs`.

use std::env;
use std::path::{Path, PathBuf};
use std::process::{Command, exit};

const FOLDER: &str = "src/nic/bpf";
const PROGRAMS: [&str; 2] = ["steer", "flood"];

fn main() {
    println!("cargo:rerun-if-env-changed=CLANG");
    for header in ["fragments.h", "offload.h", "parse.h", "splice.h"] {
        println!("cargo:rerun-if-changed={FOLDER}/{header}");
    }
    let out = PathBuf::from(env::var_os("OUT_DIR").unwrap_or_default());
    for program in PROGRAMS {
        let source = Path::new(FOLDER).join(program).with_extension("c");
        println!("cargo:rerun-if-changed={}", source.display());
        if let Err(reason) = compile(&source, &out.join(program).with_extension("o")) {
            let source = source.display();
            eprintln!("error: the XDP program {source} could not be built: {reason}");
            eprintln!("help: it needs clang and the BPF headers; on Debian and Ubuntu:");
            eprintln!("      apt-get install clang llvm libbpf-dev linux-libc-dev");
            exit(1);
        }
    }
}

fn compile(source: &Path, out: &Path) -> Result<(), String> {
    let clang = env::var("CLANG").unwrap_or_else(|_| "clang".to_owned());
    let arch = env::var("CARGO_CFG_TARGET_ARCH").unwrap_or_default();
    let result = Command::new(&clang)
        // -g keeps the BTF that the maps are defined by.
        .args(["-target", "bpf", "-O2", "-g", "-Wall", "-Wextra", "-Werror"])
        // Debian keeps asm/types.h in a folder of the architecture, which this target doesn't
        // search.
        .arg(format!("-I/usr/include/{arch}-linux-gnu"))
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
