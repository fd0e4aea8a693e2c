//! The machine as a whole: kernel, rights, memory, cores.

use super::{Finding, System};
use crate::nic::open::check_kernel;

/// Frames of a usual set-up: two workers of 16,384 frames of 2 KiB.
const LOCKED_KB_USUAL: u64 = 64 << 10;
/// Notifications of the kernel's tables that may wait unread.
const RMEM_MAX_USUAL: u64 = 4 << 20;

/// Bits of `CapEff` (linux/capability.h).
const NEEDED: [(u32, &str); 4] = [
    (12, "CAP_NET_ADMIN"),
    (13, "CAP_NET_RAW"),
    // The XDP program compares pointers as only its holders' may (kernel/bpf/verifier.c).
    (CAP_PERFMON, "CAP_PERFMON"),
    (CAP_BPF, "CAP_BPF"),
];
const CAP_IPC_LOCK: u32 = 14;
const CAP_SYS_ADMIN: u32 = 21;
const CAP_PERFMON: u32 = 38;
const CAP_BPF: u32 = 39;

pub fn examine(system: &System) -> Vec<Finding> {
    let capabilities = capabilities(system);
    let mut all = vec![kernel(system), af_xdp(system), rights(capabilities)];
    all.extend(jit(system));
    all.push(locked_memory(system, capabilities));
    all.extend(huge_pages(system));
    all.push(cores(system));
    all.extend(governor(system));
    all.push(forwarding(system));
    all.extend(receive_buffer(system));
    all
}

fn kernel(system: &System) -> Finding {
    let release = system.text("proc/sys/kernel/osrelease").unwrap_or_default();
    if let Err(error) = check_kernel(&release) {
        return Finding::fail("kernel", release, format!("{error}."));
    }
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map(str::parse::<u32>);
    let version = match (numbers.next(), numbers.next()) {
        (Some(Ok(major)), Some(Ok(minor))) => (major, minor),
        _ => return Finding::warn("kernel", release, "Its version could not be understood."),
    };
    let advice = if version < (5, 11) {
        "Before Linux 5.11 there is no busy polling, and the XDP program's tables count against \
         the limit for locked memory."
    } else if version < (6, 16) {
        "On veth pairs, bursts toward a full ring are lost silently before Linux 6.16. Network \
         cards are not concerned."
    } else {
        return Finding::ok("kernel", release);
    };
    Finding::note("kernel", release, advice)
}

fn af_xdp(system: &System) -> Finding {
    let protocols = system.text("proc/net/protocols").unwrap_or_default();
    match protocols.lines().any(|l| l.split_whitespace().next() == Some("XDP")) {
        true => Finding::ok("AF_XDP", "built into this kernel"),
        false => Finding::fail(
            "AF_XDP",
            "not in this kernel",
            "The kernel must be built with CONFIG_XDP_SOCKETS=y, as those of Debian, Ubuntu, \
             Fedora and RHEL are.",
        ),
    }
}

fn capabilities(system: &System) -> u64 {
    let status = system.text("proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|l| l.strip_prefix("CapEff:"));
    line.and_then(|hex| u64::from_str_radix(hex.trim(), 16).ok()).unwrap_or(0)
}

fn has(capabilities: u64, bit: u32) -> bool {
    capabilities & (1 << bit) != 0
}

fn rights(capabilities: u64) -> Finding {
    let missing: Vec<_> = NEEDED
        .iter()
        .filter(|(bit, _)| {
            // Both were split off CAP_SYS_ADMIN, which still includes them.
            let split_off = matches!(*bit, CAP_BPF | CAP_PERFMON);
            let by_admin = split_off && has(capabilities, CAP_SYS_ADMIN);
            !has(capabilities, *bit) && !by_admin
        })
        .map(|(_, name)| *name)
        .collect();
    if missing.is_empty() {
        return Finding::ok("privileges", "all that are needed");
    }
    let missing = missing.join(", ");
    Finding::fail(
        "privileges",
        format!("without {missing}"),
        "Run as root, or grant CAP_NET_ADMIN, CAP_NET_RAW, CAP_BPF, CAP_PERFMON and CAP_IPC_LOCK \
         (AmbientCapabilities= in a systemd unit): they open AF_XDP sockets and load the XDP \
         program.",
    )
}

fn jit(system: &System) -> Option<Finding> {
    match system.number("proc/sys/net/core/bpf_jit_enable")? {
        0 => Some(Finding::warn(
            "BPF JIT",
            "off",
            "sysctl net.core.bpf_jit_enable=1: the XDP program is interpreted otherwise, at \
             several times the cost a packet.",
        )),
        _ => Some(Finding::ok("BPF JIT", "on")),
    }
}

fn locked_memory(system: &System, capabilities: u64) -> Finding {
    let subject = "locked memory";
    if has(capabilities, CAP_IPC_LOCK) {
        return Finding::ok(subject, "unlimited (CAP_IPC_LOCK)");
    }
    let limits = system.text("proc/self/limits").unwrap_or_default();
    let line = limits.lines().find_map(|l| l.strip_prefix("Max locked memory"));
    let soft = line.and_then(|l| l.split_whitespace().next().map(ToString::to_string));
    match soft.as_deref() {
        Some("unlimited") => Finding::ok(subject, "unlimited"),
        Some(bytes) => {
            let kb = bytes.parse::<u64>().unwrap_or(0) >> 10;
            if kb >= LOCKED_KB_USUAL {
                return Finding::ok(subject, format!("{kb} KiB"));
            }
            Finding::warn(
                subject,
                format!("{kb} KiB"),
                "Frames are locked in memory: allow as many bytes as `frames` x `frame_size` x \
                 workers (ulimit -l, LimitMEMLOCK= in a systemd unit), or grant CAP_IPC_LOCK.",
            )
        }
        None => Finding::warn(subject, "unknown", "/proc/self/limits can't be read."),
    }
}

fn huge_pages(system: &System) -> Option<Finding> {
    let info = system.text("proc/meminfo")?;
    let value = |name: &str| {
        let line = info.lines().find_map(|l| l.strip_prefix(name))?;
        line.split_whitespace().next()?.parse::<u64>().ok()
    };
    let (total, free) = (value("HugePages_Total:")?, value("HugePages_Free:")?);
    let found = format!("{free} free of {total}");
    Some(match free {
        0 => Finding::note(
            "huge pages",
            found,
            "Only for `huge_pages = true`, which saves address translations at high rates: \
             sysctl vm.nr_hugepages=N with N x 2 MiB for all frames.",
        ),
        _ => Finding::ok("huge pages", found),
    })
}

fn cores(system: &System) -> Finding {
    let count = system.names("sys/devices/system/cpu").iter().filter(|n| is_cpu(n)).count();
    let isolated = system.text("sys/devices/system/cpu/isolated").unwrap_or_default();
    let found = match isolated.as_str() {
        "" => format!("{count}, none isolated"),
        list => format!("{count}, isolated: {list}"),
    };
    if count < 2 {
        let advice = "Workers and the rest of the system share one core: keep `idle = \
                      \"adaptive\"`, and expect packets to wait for other processes.";
        return Finding::warn("cores", found, advice);
    }
    if isolated.is_empty() {
        let advice = "For dedicated appliances: isolcpus=, nohz_full= and rcu_nocbs= on the \
                      kernel's command line keep others off the cores of workers; name those in \
                      `cores` and set `idle = \"busy\"`.";
        return Finding::note("cores", found, advice);
    }
    Finding::ok("cores", found)
}

fn is_cpu(name: &str) -> bool {
    name.strip_prefix("cpu").is_some_and(|n| !n.is_empty() && n.bytes().all(|b| b.is_ascii_digit()))
}

fn governor(system: &System) -> Option<Finding> {
    let governor = system.text("sys/devices/system/cpu/cpu0/cpufreq/scaling_governor")?;
    Some(match governor.as_str() {
        "performance" => Finding::ok("CPU frequency", governor),
        _ => Finding::warn(
            "CPU frequency",
            format!("governor {governor}"),
            "cpupower frequency-set -g performance: a worker that sleeps between bursts is clocked \
             down, and the next burst waits for it.",
        ),
    })
}

fn forwarding(system: &System) -> Finding {
    let v4 = system.number("proc/sys/net/ipv4/ip_forward") == Some(1);
    let v6 = system.number("proc/sys/net/ipv6/conf/all/forwarding") == Some(1);
    let word = |on| if on { "on" } else { "off" };
    let found = format!("IPv4 {}, IPv6 {}", word(v4), word(v6));
    match v4 && v6 {
        true => Finding::ok("kernel forwarding", found),
        false => Finding::note(
            "kernel forwarding",
            found,
            "With `on_failure = \"pass\"` the kernel takes over if a worker dies. For routed \
             traffic that takes sysctl net.ipv4.ip_forward=1 and net.ipv6.conf.all.forwarding=1.",
        ),
    }
}

fn receive_buffer(system: &System) -> Option<Finding> {
    let max = system.number("proc/sys/net/core/rmem_max")?;
    let found = format!("{} KiB", max >> 10);
    Some(match max >= RMEM_MAX_USUAL {
        true => Finding::ok("rmem_max", found),
        false => Finding::note(
            "rmem_max",
            found,
            format!(
                "Only with full routing tables: sysctl net.core.rmem_max={RMEM_MAX_USUAL} lets a \
                 burst of route changes wait unread. What is lost is read anew, which takes longer."
            ),
        ),
    })
}

#[cfg(test)]
mod tests {
    use super::super::Verdict;
    use super::super::tests::machine;
    use super::*;

    fn verdict(found: &[Finding], subject: &str) -> Verdict {
        found.iter().find(|f| f.subject == subject).expect(subject).verdict
    }

    #[test]
    fn a_good_machine_passes() {
        let (_dir, system) = machine(&[
            ("proc/sys/kernel/osrelease", "6.18.44-generic\n"),
            ("proc/net/protocols", "protocol  size\nXDP       1088      0\n"),
            ("proc/self/status", "Name:\tx\nCapEff:\t000001ffffffffff\n"),
            ("proc/sys/net/core/bpf_jit_enable", "1\n"),
            ("proc/meminfo", "HugePages_Total:     512\nHugePages_Free:      512\n"),
            ("sys/devices/system/cpu/cpu0/cpufreq/scaling_governor", "performance\n"),
            ("sys/devices/system/cpu/cpu1/x", ""),
            ("sys/devices/system/cpu/cpufreq/x", ""),
            ("sys/devices/system/cpu/isolated", "1\n"),
            ("proc/sys/net/ipv4/ip_forward", "1\n"),
            ("proc/sys/net/ipv6/conf/all/forwarding", "1\n"),
            ("proc/sys/net/core/rmem_max", "8388608\n"),
        ]);
        let found = examine(&system);
        assert!(found.iter().all(|f| f.verdict == Verdict::Ok), "{found:#?}");
        assert!(found.iter().any(|f| f.found == "2, isolated: 1"));
    }

    #[test]
    fn what_is_missing_is_named() {
        let (_dir, system) = machine(&[
            ("proc/sys/kernel/osrelease", "5.4.0-150-generic\n"),
            ("proc/net/protocols", "protocol  size\nXDPFOO    1\n"),
            ("proc/self/status", "CapEff:\t0000000000001000\n"),
            ("proc/self/limits", "Max locked memory         8388608              8388608  bytes\n"),
            ("sys/devices/system/cpu/cpu0/x", ""),
        ]);
        let found = examine(&system);
        for (subject, want) in [
            ("kernel", Verdict::Fail),
            ("AF_XDP", Verdict::Fail),
            ("privileges", Verdict::Fail),
            ("locked memory", Verdict::Warn),
            ("cores", Verdict::Warn),
            ("kernel forwarding", Verdict::Note),
        ] {
            assert_eq!(verdict(&found, subject), want, "{subject}");
        }
        let rights = found.iter().find(|f| f.subject == "privileges").expect("listed");
        assert_eq!(rights.found, "without CAP_NET_RAW, CAP_PERFMON, CAP_BPF");
        assert!(found.iter().filter(|f| f.verdict != Verdict::Ok).all(|f| f.advice.is_some()));
    }

    #[test]
    fn cap_sys_admin_includes_what_was_split_off() {
        let bits = 1 << 12 | 1 << 13 | 1 << 21;
        assert_eq!(rights(bits).verdict, Verdict::Ok);
    }
}
