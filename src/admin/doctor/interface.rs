//! One interface that is to become a port.

use super::{Finding, System};
use crate::control::netlink::{Link, Mirror};
use crate::nic::ethtool::{Channels, Ethtool, Offload};
use crate::nic::link;
use crate::nic::open::{FRAME_SIZE_MAX, mtu_max};
use crate::nic::steer::{PROGRAM_NAME, program_name};

/// Largest IP packet that fits a frame as configured by default.
const MTU_OF_2K_FRAMES: u32 = mtu_max(2_048);
/// The same for the larger ones.
const MTU_OF_4K_FRAMES: u32 = mtu_max(FRAME_SIZE_MAX);
/// Drivers that receive into pages refuse native XDP beyond about this: a page holds XDP's headroom
/// and `struct skb_shared_info` besides (`veth_xdp_set`, drivers/net/veth.c).
const MTU_OF_PAGES: u32 = 3_498;

/// Drivers known to run XDP programs natively (Documentation/networking, and their sources).
const NATIVE: [&str; 22] = [
    "bnxt_en",
    "cpsw",
    "ena",
    "gve",
    "hv_netvsc",
    "i40e",
    "ice",
    "idpf",
    "igb",
    "igc",
    "ixgbe",
    "mana",
    "mlx4_en",
    "mlx5_core",
    "mvneta",
    "nfp",
    "qede",
    "sfc",
    "stmmac",
    "thunder_nic",
    "veth",
    "virtio_net",
];
/// Of those, the ones that also read and write our frames themselves.
const ZERO_COPY: [&str; 8] = ["gve", "i40e", "ice", "igb", "igc", "ixgbe", "mlx5_core", "stmmac"];

/// What the kernel tells of an interface, by ways that heed the network namespace we are in:
/// `/sys/class/net` shows that of whoever mounted it.
pub struct Facts {
    link: Link,
    driver: String,
    channels: Channels,
    /// Offloads that join packets and are on.
    merges: Vec<Offload>,
}

/// Looks at an interface of this network namespace.
pub fn examine(system: &System, mirror: &Mirror, name: &str) -> Vec<Finding> {
    let Some(link) = mirror.link_named(name) else {
        let mut there: Vec<_> = mirror.links().map(|l| l.name.as_str()).collect();
        there.sort_unstable();
        let advice = format!("In this network namespace there are: {}.", there.join(", "));
        return vec![Finding::fail(name, "no such interface", advice)];
    };
    let facts = match facts(link) {
        Ok(facts) => facts,
        Err(error) => {
            let advice = "ethtool's questions could not be asked.";
            return vec![Finding::warn(name, error.to_string(), advice)];
        }
    };
    let mut all = judge(system, &facts);
    all.extend(attached(name, &format!("{name}: XDP program")));
    all
}

fn facts(link: &Link) -> std::io::Result<Facts> {
    let ethtool = Ethtool::open()?;
    let on = |o: &&Offload| matches!(ethtool.offload(&link.name, **o), Ok(Some(true)));
    Ok(Facts {
        driver: ethtool.driver(&link.name)?,
        channels: ethtool.channels(&link.name)?,
        merges: Offload::RECEIVE_MERGES.iter().filter(on).copied().collect(),
        link: link.clone(),
    })
}

fn judge(system: &System, facts: &Facts) -> Vec<Finding> {
    let name = &facts.link.name;
    let subject = |what: &str| format!("{name}: {what}");
    // The cards' own folders are only ours if the mount shows our namespace.
    let base = format!("sys/class/net/{name}");
    let shown = system.number(&format!("{base}/ifindex")) == Some(u64::from(facts.link.ifindex));
    let base = shown.then_some(base);
    let mut all = vec![
        state(system, base.as_deref(), &facts.link, &subject("link")),
        driver(&facts.driver, &subject("driver")),
        queues(&facts.channels, name, &subject("queues")),
        mtu(facts.link.mtu, name, &subject("mtu")),
    ];
    all.extend(merges(&facts.merges, &subject("receive merging")));
    if let Some(base) = base {
        all.extend(node(system, &base, &subject("NUMA node")));
        all.extend(interrupts(system, name, &base, &subject("interrupts")));
    }
    all
}

fn state(system: &System, base: Option<&str>, link: &Link, subject: &str) -> Finding {
    let speed = base.and_then(|b| system.number(&format!("{b}/speed"))).filter(|s| *s > 0);
    let state = match (link.up, link.carrier) {
        (true, true) => "up",
        (true, false) => "up, without a carrier",
        (false, _) => "down",
    };
    let found = match speed {
        Some(mbit) => format!("{state}, {mbit} Mbit/s"),
        None => state.to_string(),
    };
    if link.up && link.carrier {
        return Finding::ok(subject, found);
    }
    let name = &link.name;
    let advice = match link.up {
        true => "Look at the cable, or at the other end of the pair.".to_string(),
        false => format!("ip link set dev {name} up"),
    };
    Finding::warn(subject, found, advice)
}

fn driver(driver: &str, subject: &str) -> Finding {
    match (NATIVE.contains(&driver), ZERO_COPY.contains(&driver)) {
        (true, true) => Finding::ok(subject, format!("{driver}: native XDP, zero-copy")),
        (true, false) => Finding::note(
            subject,
            format!("{driver}: native XDP"),
            "Not known for zero-copy: each packet is copied once in the kernel. `show ports` tells \
             the mode got.",
        ),
        (false, _) => Finding::warn(
            subject,
            format!(
                "{}: not known for native XDP",
                if driver.is_empty() { "none" } else { driver }
            ),
            "Generic mode works with every driver, at a fraction of the rate. `show ports` tells \
             the mode got.",
        ),
    }
}

fn queues(channels: &Channels, name: &str, subject: &str) -> Finding {
    let (rx, tx) = (channels.receive(), channels.transmit());
    let found = format!("{rx} receive, {tx} transmit");
    if (rx, tx) == (1, 1) {
        return Finding::ok(subject, found);
    }
    let command = channels.command(name, rx.min(tx).max(1));
    Finding::note(
        subject,
        found,
        format!(
            "Each worker needs a receive and a transmit queue of its own; one queue a worker is \
             best: `{command}`, with the number of workers (`count_max`, or `count` without it)."
        ),
    )
}

fn mtu(mtu: u32, name: &str, subject: &str) -> Finding {
    let found = mtu.to_string();
    if mtu <= MTU_OF_2K_FRAMES {
        return Finding::ok(subject, found);
    }
    if mtu <= MTU_OF_PAGES {
        let advice = "Needs `frame_size = 4096`: `tidegate run` refuses it otherwise.";
        return Finding::note(subject, found, advice);
    }
    let advice = |fits| format!("ip link set dev {name} mtu {fits} or less.");
    if mtu <= MTU_OF_4K_FRAMES {
        let why = "Needs `frame_size = 4096`, and most drivers refuse native XDP";
        return Finding::warn(subject, found, format!("{why}: {}", advice(MTU_OF_PAGES)));
    }
    let why = "Fits no frame, so that `tidegate run` refuses it";
    Finding::fail(subject, found, format!("{why}: {}", advice(MTU_OF_4K_FRAMES)))
}

fn merges(on: &[Offload], subject: &str) -> Option<Finding> {
    let names: Vec<_> = on.iter().map(ToString::to_string).collect();
    if names.is_empty() {
        return None;
    }
    let advice = "Joined packets never reach AF_XDP as they were sent. `tidegate run` switches \
                  this off, and on again when it ends: nothing to do.";
    Some(Finding::note(subject, format!("{} on", names.join(", ")), advice))
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
        let advice = "A tidegate runs here; or one with `on_failure = \"drop\"` was killed, and \
                      its program goes on dropping our traffic until the next start, or until \
                      `tidegate doctor --restore`.";
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
    use crate::control::netlink::mirror::Fact;

    fn find<'a>(all: &'a [Finding], subject: &str) -> &'a Finding {
        all.iter().find(|f| f.subject == subject).expect(subject)
    }

    fn link(name: &str, mtu: u32, up: bool) -> Link {
        Link { ifindex: 9, name: name.into(), mac: None, mtu, up, carrier: up }
    }

    #[test]
    fn a_missing_interface_is_answered_with_those_that_exist() {
        let (_dir, system) = machine(&[]);
        let mut mirror = Mirror::default();
        mirror.load(Fact::Link(link("lan9", 1500, true)));
        let all = examine(&system, &mirror, "eht9");
        assert_eq!((all.len(), all[0].verdict), (1, Verdict::Fail));
        assert!(all[0].advice.as_deref().is_some_and(|a| a.contains("lan9")), "{all:?}");
    }

    #[test]
    fn a_card_is_described() {
        let (_dir, system) = machine(&[
            ("sys/class/net/fast9/ifindex", "9\n"),
            ("sys/class/net/fast9/speed", "25000\n"),
            ("sys/class/net/fast9/device/numa_node", "1\n"),
            ("sys/devices/system/node/node1/cpulist", "8-15\n"),
            ("proc/interrupts", " CPU0\n 41:  7  PCI-MSI  fast9-rx-0\n 42: 9 PCI-MSI fast9-rx-1\n"),
            ("proc/irq/41/effective_affinity_list", "0\n"),
            ("proc/irq/42/effective_affinity_list", "1\n"),
        ]);
        let channels = Channels { combined: 2, combined_max: 8, ..Channels::default() };
        let mut facts = Facts {
            link: link("fast9", 9000, true),
            driver: "ice".into(),
            channels,
            merges: vec![Offload::Gro],
        };
        let all = judge(&system, &facts);
        assert_eq!(find(&all, "fast9: link").found, "up, 25000 Mbit/s");
        assert_eq!(find(&all, "fast9: driver").found, "ice: native XDP, zero-copy");
        assert_eq!(find(&all, "fast9: queues").found, "2 receive, 2 transmit");
        assert_eq!(find(&all, "fast9: mtu").verdict, Verdict::Fail);
        assert_eq!(find(&all, "fast9: receive merging").found, "gro on");
        assert_eq!(find(&all, "fast9: NUMA node").found, "1, cores 8-15");
        assert_eq!(find(&all, "fast9: interrupts").found, "2 on cores 0 1");
        // Another namespace's folder of the same name is not read.
        facts.link.ifindex = 10;
        assert_eq!(find(&judge(&system, &facts), "fast9: link").found, "up");
    }

    #[test]
    fn an_mtu_is_judged_as_run_would() {
        let judged = |size: u32| mtu(size, "v9", "v9: mtu");
        for (size, verdict, advice) in [
            (1_774, Verdict::Ok, ""),
            (1_775, Verdict::Note, "frame_size = 4096"),
            (3_498, Verdict::Note, "frame_size = 4096"),
            (3_499, Verdict::Warn, "mtu 3498 or less"),
            (3_822, Verdict::Warn, "mtu 3498 or less"),
            (3_823, Verdict::Fail, "mtu 3822 or less"),
        ] {
            let finding = judged(size);
            assert_eq!(finding.verdict, verdict, "{size}");
            assert!(finding.advice.unwrap_or_default().contains(advice), "{size}");
        }
    }

    #[test]
    fn an_interface_that_is_down_is_told_so() {
        let (_dir, system) = machine(&[]);
        let channels = Channels { rx: 1, tx: 1, ..Channels::default() };
        let driver = "veth".to_string();
        let facts = Facts { link: link("v9", 1500, false), driver, channels, merges: vec![] };
        let all = judge(&system, &facts);
        assert_eq!(find(&all, "v9: link").verdict, Verdict::Warn);
        assert_eq!(find(&all, "v9: driver").verdict, Verdict::Note);
        assert_eq!(find(&all, "v9: queues").verdict, Verdict::Ok);
        assert_eq!(find(&all, "v9: mtu").verdict, Verdict::Ok);
    }
}
