//! Medians, ratios, the table and its JSON.

use std::fmt;

use serde_json::{Value, json};

use crate::TRAFFIC;
use crate::bed::Traffic;
use crate::comparison::median;
use crate::forwarder::Kind;
use crate::machine::machine;
use crate::measure::Sample;
use crate::sink::Sink;

/// Above this share of the machine, others' work makes a measurement doubtful: once more, then.
pub const DISTURBED: f64 = 0.05;

/// All samples, in the order of rounds.
pub struct Results {
    kinds: Vec<Kind>,
    seconds: f64,
    sink: Sink,
    samples: Vec<(Kind, Traffic, Sample)>,
    /// Measurements that were thrown away, because others had too much of the machine.
    pub repeated: u32,
}

/// Whom a forwarder is compared with.
#[derive(Clone, Copy)]
enum Peer {
    Dpdk {
        tuned: bool,
    },
    /// The best of the kernel's variants.
    Kernel {
        dnat: bool,
    },
}

/// Heading of the table, key of the JSON.
const PEERS: [(&str, &str, Peer); 4] = [
    ("x DPDK", "ratio_dpdk", Peer::Dpdk { tuned: false }),
    ("x tuned", "ratio_dpdk_tuned", Peer::Dpdk { tuned: true }),
    ("x Linux", "ratio_linux", Peer::Kernel { dnat: false }),
    ("x DNAT", "ratio_linux_dnat", Peer::Kernel { dnat: true }),
];

impl Results {
    pub fn new(kinds: Vec<Kind>, seconds: f64, sink: Sink) -> Results {
        Results { kinds, seconds, sink, samples: Vec::new(), repeated: 0 }
    }

    pub fn add(&mut self, kind: Kind, traffic: Traffic, sample: Sample) {
        self.samples.push((kind, traffic, sample));
    }

    fn of(&self, kind: Kind, traffic: Traffic) -> Vec<Sample> {
        let wanted = self.samples.iter().filter(|s| s.0 == kind && s.1 == traffic);
        wanted.map(|s| s.2).collect()
    }

    fn forwarded(&self, kind: Kind, traffic: Traffic) -> f64 {
        median(self.of(kind, traffic).iter().map(|s| s.forwarded))
    }

    /// Medians of processor time a packet, in nanoseconds, and of the kernel's share of it.
    fn cost(&self, kind: Kind, traffic: Traffic) -> Option<(f64, f64)> {
        let costs: Vec<_> = self.of(kind, traffic).iter().filter_map(|s| s.cost).collect();
        let ns = median(costs.iter().map(|c| c.ns_per_packet));
        (!costs.is_empty()).then(|| (ns, median(costs.iter().map(|c| c.kernel_share))))
    }

    /// The peer's forwarder: of the kernel's, the one that was best with this traffic.
    fn peer(&self, peer: Peer, traffic: Traffic) -> Option<Kind> {
        let is_meant = |kind: &&Kind| match (peer, **kind) {
            (Peer::Dpdk { tuned }, Kind::Dpdk { tuned: is }) => tuned == is,
            (Peer::Kernel { dnat }, Kind::Kernel { dnat: has, .. }) => dnat == has,
            _ => false,
        };
        let meant = self.kinds.iter().filter(is_meant).copied();
        meant.max_by(|a, b| self.forwarded(*a, traffic).total_cmp(&self.forwarded(*b, traffic)))
    }

    /// The median of the rounds' ratios: both of a ratio were measured within seconds.
    fn ratio(&self, kind: Kind, peer: Peer, traffic: Traffic) -> Option<f64> {
        let theirs = self.of(self.peer(peer, traffic)?, traffic);
        let ours = self.of(kind, traffic);
        Some(median(ours.iter().zip(&theirs).map(|(a, b)| a.forwarded / b.forwarded)))
    }

    /// Median and greatest share of the machine that others had.
    fn disturbed(&self) -> (f64, f64) {
        let all = || self.samples.iter().map(|s| s.2.disturbed);
        (median(all()), all().fold(0.0, f64::max))
    }

    pub fn to_json(&self) -> Value {
        let mut rows = Vec::new();
        for traffic in TRAFFIC {
            for &kind in &self.kinds {
                let samples = self.of(kind, traffic);
                let mut row = json!({
                    "forwarder": kind.name(),
                    "translation": format!("{:?}", kind.translation()).to_lowercase(),
                    "frame_bytes": traffic.size,
                    "flows": traffic.flows,
                    "offered_pps": median(samples.iter().map(|s| s.offered)),
                    "forwarded_pps": self.forwarded(kind, traffic),
                    "loss": median(samples.iter().map(Sample::loss)),
                    "cpu_ns_per_packet": self.cost(kind, traffic).map(|c| c.0),
                    "cpu_kernel_share": self.cost(kind, traffic).map(|c| c.1),
                    "rounds": samples.iter().map(|s| s.forwarded).collect::<Vec<_>>(),
                    "disturbed": samples.iter().map(|s| s.disturbed).collect::<Vec<_>>(),
                });
                for (_, key, peer) in PEERS {
                    row[key] = json!(self.ratio(kind, peer, traffic));
                }
                rows.push(row);
            }
        }
        let (median, max) = self.disturbed();
        json!({
            "sink": format!("{:?}", self.sink).to_lowercase(),
            "seconds_each": self.seconds,
            "disturbed_median": median,
            "disturbed_max": max,
            "repeated": self.repeated,
            "results": rows,
        })
    }
}

impl fmt::Display for Results {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for traffic in TRAFFIC {
            let flows = if traffic.flows == 1 { "flow" } else { "flows" };
            writeln!(f, "\n{} B frames, {} {flows}; Mpps", traffic.size, traffic.flows)?;
            write!(f, "{:<44}{:>9}{:>11}", "", "offered", "forwarded")?;
            write!(f, "{:>8}{:>8}", "ns/pkt", "kernel")?;
            PEERS.iter().try_for_each(|(name, ..)| write!(f, "{name:>9}"))?;
            writeln!(f)?;
            for &kind in &self.kinds {
                self.fmt_row(f, kind, traffic)?;
            }
        }
        let rounds = self.of(self.kinds[0], TRAFFIC[0]).len();
        let (median, max) = self.disturbed();
        writeln!(
            f,
            "\nMedians of {rounds} rounds of {} s each; generator on core 0, router on \
             core 1, sink: {:?}.\n\
             ns/pkt: processor time of the forwarder's own threads for a forwarded packet, and how \
             much of it in the kernel.\n\
             x: ratio to DPDK as it comes, to DPDK tuned, to the best of the kernel's ways to \
             forward, and to translate.\n\
             {}. Other programs had {:.0} % of \
             the machine, {:.0} % at most; {} measurements were done again for that.",
            self.seconds,
            self.sink,
            machine(),
            median * 100.0,
            max * 100.0,
            self.repeated,
        )?;
        if median > DISTURBED {
            writeln!(f, "That is too much for these figures to be trusted.")?;
        }
        Ok(())
    }
}

impl Results {
    fn fmt_row(&self, f: &mut fmt::Formatter<'_>, kind: Kind, traffic: Traffic) -> fmt::Result {
        let samples = self.of(kind, traffic);
        write!(
            f,
            "{:<44}{:>9.3}{:>11.3}",
            kind.name(),
            median(samples.iter().map(|s| s.offered)) / 1e6,
            self.forwarded(kind, traffic) / 1e6,
        )?;
        match self.cost(kind, traffic) {
            Some((ns, kernel)) => write!(f, "{ns:>8.0}{:>7.0}%", kernel * 100.0)?,
            None => write!(f, "{:>8}{:>8}", "-", "-")?,
        }
        for (.., peer) in PEERS {
            match self.ratio(kind, peer, traffic) {
                Some(ratio) => write!(f, "{ratio:>9.2}")?,
                None => write!(f, "{:>9}", "-")?,
            }
        }
        writeln!(f)
    }
}
