//! One interface that is to become a port.

use super::{Finding, System};
use crate::nic::link;
use crate::nic::steer::{PROGRAM_NAME, program_name};

/// Largest IP packet that fits a frame of 2 KiB behind the headroom that XDP keeps.
const MTU_OF_2K_FRAMES: u64 = 1774;
/// The same for 4 KiB, a page, which native mode is bounded by, too.
const MTU_OF_4K_FRAMES: u64 = 3498;

/// Drivers known to run XDP programs natively (Documentation/networking, and their sources).
const NATIVE: [&str; 22] = [
    "bnxt_en", "cpsw", "ena", "gve", "hv_netvsc", "i40e", "ice", "idpf", "igb", "igc", "ixgbe",
    "mana", "mlx4_en", "mlx5_core", "mvneta", "nfp", "qede", "sfc", "stmmac", "thunder_nic",
    "veth", "virtio_net",
];
/// Of those, the ones that also read and write our frames themselves.
const ZERO_COPY: [&str; 8] =
    ["gve", "i40e", "ice", "igb", "igc", "ixgbe", "mlx5_core", "stmmac"];

pub fn examine(system: &System, name: &str) -> Vec<Finding> {
    let base = format!("sys/class/net/{name}");
    if name.contains('/') || !system.exists(&base) {
        let there = system.names("sys/class/net").join(", ");
        let advice = format!("In this network namespace there are: {there}.");
        return vec![Finding::fail(name, "no such interface", advice)];
    }
    let subject = |what: &str| format!("{name}: {what}");
    let mut all = vec![
        state(system, &base, &subject("link")),
        driver(system, &base, &subject("driver")),
        queues(system, &base, &subject("queues")),
    ];
    all.extend(mtu(system, &base, &subject("mtu")));
    all.extend(node(system, &base, &subject("NUMA node")));
    all.extend(interrupts(system, name, &base, &subject("interrupts")));
    all.extend(attached(name, &subject("XDP program")));
    all
}

fn state(system: &System, base: &str, subject: &str) -> Finding {
    let state = system.text(&format!("{base}/operstate")).unwrap_or_default();
    let speed = system.number(&format!("{base}/speed")).filter(|s| *s > 0);
    let found = match speed {
        Some(mbit) => format!("{state}, {mbit} Mbit/s"),
        None => state.clone(),
    };
    match state.as_str() {
        "up" | "unknown" => Finding::ok(subject, found),
        _ => Finding::warn(
            subject,
            found,
            "ip link set dev … up, and look at the cable or the other end of the pair.",
        ),
    }
}

fn driver(system: &System, base: &str, subject: &str) -> Finding {
    let Some(driver) = system.link_name(&format!("{base}/device/driver")) else {
        let advice = "No device behind it (veth, bridge, tunnel). veth runs XDP natively in copy \
                      mode; others only generically, at a few hundred thousand packets a second.";
        return Finding::note(subject, "virtual", advice);
    };
    let known = driver.as_str();
    match (NATIVE.contains(&known), ZERO_COPY.contains(&known)) {
        (true, true) => Finding::ok(subject, format!("{driver}: native XDP, zero-copy")),
        (true, false) => Finding::note(
            subject,
            format!("{driver}: native XDP"),
            "Not known for zero-copy: each packet is copied once in the kernel. `show ports` tells \
             the mode got.",
        ),
        (false, _) => Finding::warn(
            subject,
            format!("{driver}: not known for native XDP"),
            "Generic mode works with every driver, at a fraction of the rate. `show ports` tells \
             the mode got.",
        ),
    }
}

fn queues(system: &System, base: &str, subject: &str) -> Finding {
    let names = system.names(&format!("{base}/queues"));
    let count = |kind: &str| names.iter().filter(|n| n.starts_with(kind)).count();
    let (rx, tx) = (count("rx-"), count("tx-"));
    let found = format!("{rx} receive, {tx} transmit");
    let advice = "Each worker needs a receive and a transmit queue of its own, and packets of queues \
                  without a worker are not ours: ethtool -L … combined N (for veth: rx N tx N) with \
                  N = `workers.count`.";
    match (rx, tx) {
        (0, _) | (_, 0) => Finding::fail(subject, found, advice),
        (1, 1) => Finding::ok(subject, found),
        _ => Finding::note(subject, found, advice),
    }
}

fn mtu(system: &System, base: &str, subject: &str) -> Option<Finding> {
    let mtu = system.number(&format!("{base}/mtu"))?;
    let found = mtu.to_string();
    Some(match mtu {
        0..=MTU_OF_2K_FRAMES => Finding::ok(subject, found),
        ..=MTU_OF_4K_FRAMES => Finding::note(
            subject,
            found,
            "Needs `frame_size = 4096`: larger packets are lost otherwise.",
        ),
        _ => Finding::warn(
            subject,
            found,
            format!(
                "Packets of over {MTU_OF_4K_FRAMES} bytes fit no frame and native XDP is refused: ip \
                 link set dev … mtu {MTU_OF_4K_FRAMES} or less."
            ),
        ),
    })
}

fn node(system: &System, base: &str, subject: &str) -> Option<Finding> {
    let node = system.number(&format!("{base}/device/numa_node"))?;
    let cores = system.text(&format!("sys/devices/system/node/node{node}/cpulist"))?;
    Some(Finding::note(
        subject,
        format!("{node}, cores {cores}"),
        "Give workers cores of this node: memory of another node is about twice as far.",
    ))
}

fn interrupts(system: &System, name: &str, base: &str, subject: &str) -> Option<Finding> {
    let table = system.text("proc/interrupts")?;
    let bus = system.link_name(&format!("{base}/device"));
    let named = |line: &&str| {
        // Drivers name them after the interface (eth0-rx-0) or after the bus address.
        let text = line.split_whitespace().next_back().unwrap_or_default();
        text.starts_with(&format!("{name}-")) || bus.as_ref().is_some_and(|b| text.contains(b))
    };
    let numbers: Vec<_> =
        table.lines().filter(named).filter_map(|l| l.trim().split_once(':')).collect();
    if numbers.is_empty() {
        return None;
    }
    let mut cores: Vec<_> = numbers
        .iter()
        .filter_map(|(n, _)| system.text(&format!("proc/irq/{n}/effective_affinity_list")))
        .collect();
    cores.sort();
    cores.dedup();
    Some(Finding::note(
        subject,
        format!("{} on cores {}", numbers.len(), cores.join(" ")),
        "For busy polling: a queue's interrupt belongs on its worker's core; otherwise beside it \
         (stop irqbalance, or ban the workers' cores in it).",
    ))
}

/// Looks at the kernel itself: only in the namespace that we run in.
fn attached(name: &str, subject: &str) -> Option<Finding> {
    let id = link::xdp_program_id(link::index_of(name).ok()?).ok()??;
    let program = program_name(id).unwrap_or_else(|| format!("id {id}"));
    if program == PROGRAM_NAME {
        let advice = "A tidegate runs here; or one with `on_failure = \"drop\"` was killed, and its \
                      program goes on dropping our traffic until the next start.";
        return Some(Finding::note(subject, program, advice));
    }
    Some(Finding::fail(
        subject,
        format!("{program}, not ours"),
        format!("Stop its owner, or remove it: ip link set dev {name} xdp off."),
    ))
}

#[cfg(test)]
mod tests {
    use super::super::Verdict;
    use super::super::tests::machine;
    use super::*;

    fn find<'a>(all: &'a [Finding], subject: &str) -> &'a Finding {
        all.iter().find(|f| f.subject == subject).expect(subject)
    }

    #[test]
    fn a_missing_interface_is_answered_with_those_that_exist() {
        let (_dir, system) =
            machine(&[("sys/class/net/lan9/mtu", "1500"), ("sys/class/net/wan9/mtu", "1500")]);
        let all = examine(&system, "eht9");
        assert_eq!((all.len(), all[0].verdict), (1, Verdict::Fail));
        assert!(all[0].advice.as_deref().is_some_and(|a| a.contains("lan9, wan9")), "{all:?}");
        assert_eq!(examine(&system, "../net").len(), 1);
    }

    #[test]
    fn a_card_is_described() {
        let (dir, system) = machine(&[
            ("sys/class/net/fast9/operstate", "up\n"),
            ("sys/class/net/fast9/speed", "25000\n"),
            ("sys/class/net/fast9/mtu", "9000\n"),
            ("sys/class/net/fast9/queues/rx-0/x", ""),
            ("sys/class/net/fast9/queues/rx-1/x", ""),
            ("sys/class/net/fast9/queues/tx-0/x", ""),
            ("sys/class/net/fast9/queues/tx-1/x", ""),
            ("proc/interrupts", " CPU0\n 41:  7  PCI-MSI  fast9-rx-0\n 42: 9 PCI-MSI fast9-rx-1\n"),
            ("proc/irq/41/effective_affinity_list", "0\n"),
            ("proc/irq/42/effective_affinity_list", "1\n"),
        ]);
        let device = dir.path().join("sys/class/net/fast9/device");
        std::fs::create_dir_all(&device).expect("folder");
        std::os::unix::fs::symlink("../drivers/ice", device.join("driver")).expect("link");
        let all = examine(&system, "fast9");
        assert_eq!(find(&all, "fast9: link").found, "up, 25000 Mbit/s");
        assert_eq!(find(&all, "fast9: driver").found, "ice: native XDP, zero-copy");
        assert_eq!(find(&all, "fast9: queues").found, "2 receive, 2 transmit");
        assert_eq!(find(&all, "fast9: mtu").verdict, Verdict::Warn);
        assert_eq!(find(&all, "fast9: interrupts").found, "2 on cores 0 1");
    }

    #[test]
    fn a_virtual_interface_that_is_down_is_told_so() {
        let (_dir, system) = machine(&[
            ("sys/class/net/v9/operstate", "down\n"),
            ("sys/class/net/v9/mtu", "1500\n"),
            ("sys/class/net/v9/queues/rx-0/x", ""),
            ("sys/class/net/v9/queues/tx-0/x", ""),
        ]);
        let all = examine(&system, "v9");
        assert_eq!(find(&all, "v9: link").verdict, Verdict::Warn);
        assert_eq!(find(&all, "v9: driver").found, "virtual");
        assert_eq!(find(&all, "v9: mtu").verdict, Verdict::Ok);
    }
}
