//! Compiles the XDP program with clang into `$OUT_DIR/steer.o`, which `src/nic/steer.rs` embeds.

use std::env;
use std::path::{Path, PathBuf};
use std::process::{Command, exit};

const SOURCE: &str = "src/nic/bpf/steer.c";

fn main() {
    println!("cargo:rerun-if-changed={SOURCE}");
    println!("cargo:rerun-if-env-changed=CLANG");
    let out = PathBuf::from(env::var_os("OUT_DIR").unwrap_or_default()).join("steer.o");
    if let Err(reason) = compile(Path::new(SOURCE), &out) {
        eprintln!("error: the XDP program {SOURCE} could not be built: {reason}");
        eprintln!("help: it needs clang and the BPF headers; on Debian and Ubuntu:");
        eprintln!("      apt-get install clang llvm libbpf-dev linux-libc-dev");
        exit(1);
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
