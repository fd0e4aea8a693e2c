//! Medians, ratios, the table and its JSON.

use std::fmt;
use std::time::Duration;

use serde_json::{Value, json};

use crate::comparison::median;
use crate::contender::Kind;
use crate::machine::machine;
use crate::measure::{Sample, Test};

/// All samples, in the order of rounds.
pub struct Results {
    kinds: Vec<Kind>,
    seconds: f64,
    samples: Vec<(Kind, Test, Sample)>,
    /// Measurements that failed and were done again: (router, why).
    pub repeated: Vec<(Kind, String)>,
}

impl Results {
    pub fn new(kinds: Vec<Kind>, seconds: f64) -> Results {
        Results { kinds, seconds, samples: Vec::new(), repeated: Vec::new() }
    }

    pub fn add(&mut self, kind: Kind, test: Test, sample: Sample) {
        self.samples.push((kind, test, sample));
    }

    fn of(&self, kind: Kind, test: Test) -> impl Iterator<Item = &Sample> {
        self.samples.iter().filter(move |s| s.0 == kind && s.1 == test).map(|s| &s.2)
    }

    fn median(&self, kind: Kind, test: Test, value: impl Fn(&Sample) -> f64) -> f64 {
        median(self.of(kind, test).map(value))
    }

    /// The median of the rounds' ratios of work for the router's processor time: tidegate's to that
    /// of the better one of the others.
    fn ratio(&self, kind: Kind, test: Test) -> Option<f64> {
        let per_cpu = |kind| self.of(kind, test).map(|s| s.per_cpu_second).collect::<Vec<_>>();
        let (ours, haproxy, nginx) = (per_cpu(kind), per_cpu(Kind::Haproxy), per_cpu(Kind::Nginx));
        let ratios = ours.iter().enumerate().filter_map(|(round, ours)| {
            let theirs = [haproxy.get(round), nginx.get(round)].into_iter().flatten();
            theirs.copied().reduce(f64::max).map(|theirs| ours / theirs)
        });
        let ratios: Vec<f64> = ratios.collect();
        (kind.is_tidegate() && !ratios.is_empty()).then(|| median(ratios))
    }

    /// Microseconds beyond what it takes without a router; of that itself, all.
    fn added(&self, kind: Kind, test: Test, q: f64) -> f64 {
        let all = |kind| self.median(kind, test, |s| quantile(&s.took, q).as_secs_f64() * 1e6);
        let known = self.kinds.contains(&Kind::Forwarding);
        let base = if kind == Kind::Forwarding || !known { 0.0 } else { all(Kind::Forwarding) };
        all(kind) - base
    }

    pub fn to_json(&self) -> Value {
        let rows = self.kinds.iter().map(|&kind| {
            let rounds = |test, value: fn(&Sample) -> f64| {
                self.of(kind, test).map(value).collect::<Vec<_>>()
            };
            let added = |test| [0.5, 0.99].map(|q| self.added(kind, test, q));
            json!({
                "router": kind.name(),
                "connections_per_second": self.median(kind, Test::Connections, |s| s.rate),
                "connections_per_cpu_second":
                    self.median(kind, Test::Connections, |s| s.per_cpu_second),
                "connections_busy": self.median(kind, Test::Connections, |s| s.busy),
                "connections_rounds": rounds(Test::Connections, |s| s.per_cpu_second),
                "ratio_connections": self.ratio(kind, Test::Connections),
                "bits_per_second": self.median(kind, Test::Download, |s| s.rate),
                "bits_per_cpu_second": self.median(kind, Test::Download, |s| s.per_cpu_second),
                "download_busy": self.median(kind, Test::Download, |s| s.busy),
                "download_rounds": rounds(Test::Download, |s| s.per_cpu_second),
                "ratio_bits": self.ratio(kind, Test::Download),
                "merged_bits_per_second": self.median(kind, Test::Merged, |s| s.rate),
                "merged_bits_per_cpu_second":
                    self.median(kind, Test::Merged, |s| s.per_cpu_second),
                "merged_rounds": rounds(Test::Merged, |s| s.per_cpu_second),
                "ratio_merged_bits": self.ratio(kind, Test::Merged),
                "opening_us": added(Test::Opening),
                "exchange_us": added(Test::Exchanges),
            })
        });
        let repeated = self.repeated.iter().map(|(kind, why)| (kind.name(), why));
        json!({
            "seconds_each": self.seconds,
            "repeated": repeated.collect::<Vec<_>>(),
            "results": rows.collect::<Vec<_>>(),
        })
    }

    fn fmt_row(&self, f: &mut fmt::Formatter<'_>, kind: Kind) -> fmt::Result {
        let rate = |test| self.median(kind, test, |s: &Sample| s.rate);
        let busy = |test| self.median(kind, test, |s: &Sample| s.busy);
        let per_cpu = |test| self.median(kind, test, |s: &Sample| s.per_cpu_second);
        let ratio = |test| self.ratio(kind, test).map_or("-".into(), |r| format!("{r:.2}"));
        write!(f, "{:<26}", kind.name())?;
        let test = Test::Connections;
        write!(f, "{:>8.0}{:>6.0}%", rate(test), busy(test) * 100.0)?;
        write!(f, "{:>10.0}{:>7}", per_cpu(test), ratio(test))?;
        for test in [Test::Download, Test::Merged] {
            write!(f, "{:>8.2}{:>6.0}%", rate(test) / 1e9, busy(test) * 100.0)?;
            write!(f, "{:>9.2}{:>7}", per_cpu(test) / 1e9, ratio(test))?;
        }
        for test in [Test::Opening, Test::Exchanges] {
            write!(f, "{:>8.0}{:>8.0}", self.added(kind, test, 0.5), self.added(kind, test, 0.99))?;
        }
        writeln!(f)
    }
}

impl fmt::Display for Results {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "\n{:<26}{:>31}{:>30}", "", "new connections", "a download in frames")?;
        write!(f, "{:>30}", "in 64 KB")?;
        writeln!(f, "{:>16}{:>16}", "opening, us", "exchange, us")?;
        write!(f, "{:<26}{:>8}{:>7}{:>10}{:>7}", "", "1/s", "busy", "1/CPU s", "x")?;
        for _ in [Test::Download, Test::Merged] {
            write!(f, "{:>8}{:>7}{:>9}{:>7}", "Gbit/s", "busy", "/CPU s", "x")?;
        }
        writeln!(f, "{:>8}{:>8}{:>8}{:>8}", "p50", "p99", "p50", "p99")?;
        self.kinds.iter().try_for_each(|&kind| self.fmt_row(f, kind))?;
        let rounds = self.of(self.kinds[0], Test::Connections).count();
        writeln!(
            f,
            "\nMedians of {rounds} rounds of {} s each; clients and servers on core 0, all of the \
             router on core 1.\n\
             busy: the router's processor time, that of the kernel's threads that take its frames \
             in included; 1/CPU s: work for a second of it.\n\
             in frames: what arrives at the router is what a wire carries. in 64 KB: what veth \
             carries instead, but for XDP programs; busy: all of core 1's time, as of its \
             interrupts.\n\
             x: work for a second of processor time, to that of HAProxy or nginx, whichever does \
             more.\n\
             us: microseconds until the answer, beyond those without a router.\n\
             {} measurements failed and were done again.\n\
             {}.",
            self.seconds,
            self.repeated.len(),
            machine(),
        )
    }
}

fn quantile(sorted: &[Duration], q: f64) -> Duration {
    let at = (sorted.len() as f64 * q) as usize;
    sorted.get(at.min(sorted.len().saturating_sub(1))).copied().unwrap_or_default()
}
