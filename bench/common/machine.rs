//! What the machine is that figures are of.

use std::fs;

/// The processor and the kernel, as they call themselves.
pub fn machine() -> String {
    let info = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let field = |name: &str| {
        let line = info.lines().find(|l| l.split(':').next().is_some_and(|n| n.trim() == name));
        line.and_then(|l| l.split_once(':')).map_or("?", |(_, value)| value.trim())
    };
    let cpus = info.lines().filter(|l| l.starts_with("processor")).count();
    let kernel = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    format!(
        "{} (family {}, model {}), {cpus} CPUs, Linux {}",
        field("model name"),
        field("cpu family"),
        field("model"),
        kernel.trim()
    )
}
