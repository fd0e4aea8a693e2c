//! What the demo prints.

use std::fmt::Write as _;

use hdrhistogram::Histogram;
use serde::Serialize;

use super::client::Seen;

/// One run's figures.
#[derive(Clone, Debug, Serialize)]
pub struct Phase {
    pub qos: bool,
    pub requests: u64,
    pub errors: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub first_error: Option<String>,
    pub first_byte_ms: Quantiles,
    pub gap_ms: Quantiles,
    pub chat_mbit_per_s: f64,
    pub bulk_mbit_per_s: f64,
    /// All bytes that the appliance sent towards the users, as a rate.
    pub wan_mbit_per_s: f64,
    pub appliance: Appliance,
}

/// Where the appliance's packets went.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Appliance {
    pub rx_packets: u64,
    pub tx_packets: u64,
    pub drops: Vec<(String, u64)>,
    /// How each port is driven.
    pub ports: Vec<String>,
}

#[derive(Clone, Copy, Debug, Serialize)]
pub struct Quantiles {
    pub p50: f64,
    pub p95: f64,
    pub p99: f64,
}

impl Quantiles {
    fn of_us(h: &Histogram<u64>) -> Quantiles {
        let at = |q| h.value_at_quantile(q) as f64 / 1_000.0;
        Quantiles { p50: at(0.50), p95: at(0.95), p99: at(0.99) }
    }
}

impl Phase {
    pub fn new(qos: bool, seen: &Seen, wan_bytes_per_s: f64, appliance: Appliance) -> Phase {
        let seconds = seen.measured.as_secs_f64().max(1e-9);
        let mbit = |bytes: u64| bytes as f64 * 8.0 / 1e6 / seconds;
        Phase {
            qos,
            requests: seen.requests,
            errors: seen.errors,
            first_error: seen.first_error.clone(),
            first_byte_ms: Quantiles::of_us(&seen.first_byte_us),
            gap_ms: Quantiles::of_us(&seen.gap_us),
            chat_mbit_per_s: mbit(seen.chat_bytes),
            bulk_mbit_per_s: mbit(seen.bulk_bytes),
            wan_mbit_per_s: wan_bytes_per_s * 8.0 / 1e6,
            appliance,
        }
    }
}

/// Both runs and what follows from them.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    pub phases: Vec<Phase>,
    /// Interactive p99 time to first byte, with QoS over without.
    pub first_byte_p99_ratio: f64,
    pub ceil_mbit_per_s: f64,
    /// Share of the configured ceil that the wan port sent with QoS on.
    pub ceil_used: f64,
}

impl Report {
    pub fn new(off: Phase, on: Phase, ceil_mbit_per_s: f64) -> Report {
        Report {
            first_byte_p99_ratio: on.first_byte_ms.p99 / off.first_byte_ms.p99.max(1e-9),
            ceil_used: on.wan_mbit_per_s / ceil_mbit_per_s,
            ceil_mbit_per_s,
            phases: vec![off, on],
        }
    }

    /// For people.
    pub fn to_table(&self) -> String {
        let mut out = String::new();
        let mut row = |name: &str, cell: &dyn Fn(&Phase) -> String| {
            let cells: Vec<String> = self.phases.iter().map(cell).collect();
            let _ = writeln!(
                out,
                "{name:<36}{}",
                cells.iter().fold(String::new(), |mut s, c| {
                    let _ = write!(s, "{c:>16}");
                    s
                })
            );
        };
        let q = |f: fn(&Quantiles) -> f64, q: &Quantiles| format!("{:.1} ms", f(q));
        row("", &|p| if p.qos { "QoS on" } else { "QoS off" }.to_string());
        row("interactive requests", &|p| p.requests.to_string());
        row("  errors", &|p| p.errors.to_string());
        row("  time to first byte  p50", &|p| q(|q| q.p50, &p.first_byte_ms));
        row("                      p95", &|p| q(|q| q.p95, &p.first_byte_ms));
        row("                      p99", &|p| q(|q| q.p99, &p.first_byte_ms));
        row("  gap between tokens  p50", &|p| q(|q| q.p50, &p.gap_ms));
        row("                      p95", &|p| q(|q| q.p95, &p.gap_ms));
        row("                      p99", &|p| q(|q| q.p99, &p.gap_ms));
        row("interactive goodput", &|p| format!("{:.2} Mbit/s", p.chat_mbit_per_s));
        row("bulk goodput", &|p| format!("{:.2} Mbit/s", p.bulk_mbit_per_s));
        row("sent to users, all bytes", &|p| format!("{:.2} Mbit/s", p.wan_mbit_per_s));
        row("appliance: packets received", &|p| p.appliance.rx_packets.to_string());
        row("appliance: packets sent", &|p| p.appliance.tx_packets.to_string());
        self.drops(&mut out);
        self.verdict(&mut out);
        out
    }

    fn drops(&self, out: &mut String) {
        for phase in &self.phases {
            let label = if phase.qos { "on" } else { "off" };
            for (reason, n) in &phase.appliance.drops {
                let _ = writeln!(out, "  dropped with QoS {label}: {n} {reason}");
            }
            if phase.appliance.drops.is_empty() {
                let _ = writeln!(out, "  dropped with QoS {label}: nothing");
            }
        }
        if let Some(phase) = self.phases.last() {
            let _ = writeln!(out, "ports: {}", phase.appliance.ports.join("; "));
        }
        for phase in &self.phases {
            if let Some(e) = &phase.first_error {
                let _ = writeln!(out, "first error with QoS {}: {e}", phase.qos);
            }
        }
    }

    fn verdict(&self, out: &mut String) {
        let _ = writeln!(
            out,
            "\nWith QoS the slowest 1 % of first bytes took {:.2} x the time they took without, \
             and the wan port sent {:.1} % of its ceil of {} Mbit/s.",
            self.first_byte_p99_ratio,
            self.ceil_used * 100.0,
            self.ceil_mbit_per_s
        );
    }
}
